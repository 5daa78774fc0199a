"""Renames the layers in a LoRA file so that ComfyUI's own LoRA loader finds them.

    python scripts/rename_lora.py LORA.safetensors RENAMED.safetensors

ComfyUI knows ``diffusion_model.block.layers.0...`` and ``lora_unet_block_layers_0...``. Some training tools write the
layers' bare names, or put ``transformer.`` or ``base_model.model.`` before them; those do nothing under the loader. It
needs only the Python that ComfyUI runs in.
"""

import argparse
import os
import re
import sys
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

LAYER = re.compile(r"(?:^|\.)((?:block\.layers\.\d+|adapter|final_linear_\w+|final_norm_\w+)\..+)$")
"""A layer of the transformer, after whatever a tool put before it."""
FOR_COMFYUI = ("diffusion_model.", "lora_unet_")


def renamed(name: str) -> str:
    """The name that ComfyUI knows a tensor by. Raises ValueError for one that is of no layer of this model."""
    if name.startswith(FOR_COMFYUI):
        return name
    layer = LAYER.search(name)
    if layer is None:
        raise ValueError(
            f"{name!r} belongs to no layer of this model, expected block.layers.N..., adapter... or final_... after "
            "any prefix. Was the LoRA trained for another model?"
        )
    # PEFT's name of the adapter, where the tool kept it: lora_A.default.weight.
    return "diffusion_model." + re.sub(r"\.(lora_[AB])\.\w+\.weight$", r".\1.weight", layer[1])


def rename_file(source: Path, target: Path) -> int:
    """Writes ``source`` under the new names and returns how many of them changed."""
    with safe_open(source, "pt") as file:
        metadata = file.metadata()
        names = {name: renamed(name) for name in file.keys()}  # noqa: SIM118  (it can't be iterated)
        tensors = {new: file.get_tensor(name) for name, new in names.items()}
    if len(tensors) < len(names):
        raise ValueError(f"{source}: two of its tensors would get the same name.")
    unfinished = target.with_name(f"{target.name}.{os.getpid()}.unfinished")
    try:
        save_file(tensors, unfinished, metadata)
        unfinished.replace(target)
    finally:
        unfinished.unlink(missing_ok=True)
    return sum(new != name for name, new in names.items())


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Rename a LoRA's layers to what ComfyUI's LoRA loader knows.")
    parser.add_argument("source", type=Path, help="the LoRA, a safetensors file")
    parser.add_argument("target", type=Path, help="the file to write, such as ComfyUI/models/loras/NAME.safetensors")
    options = parser.parse_args(arguments)
    try:
        count = rename_file(options.source, options.target)
    except (OSError, ValueError, SafetensorError) as error:
        sys.stderr.write(f"Error: {error}\n")
        return 2
    sys.stderr.write(f"Wrote {options.target}: {count} names changed.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
