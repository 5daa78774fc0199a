"""From a chosen file to a model under the host's memory management. The one place that decides dtypes and devices.

The core opens and checks a checkpoint; the host's own machinery then holds, casts, moves and patches the weights.
"""

import json
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import comfy.utils
import torch
from torch import Tensor

from ...happyhorse_core.checkpoint.load import load_module
from ...happyhorse_core.checkpoint.quantised import dequantised
from ...happyhorse_core.checkpoint.roles import ROLES
from ...happyhorse_core.checkpoint.source import TensorSource
from ...happyhorse_core.config import TransformerConfig
from ...happyhorse_core.dit.load import BANDS, inspect_transformer
from ...happyhorse_core.dit.model import HappyHorseTransformer
from ...happyhorse_core.dit.rope import frequency_bands
from ...happyhorse_core.ops import TorchOps
from .diffusion import HappyHorseConfig
from .regions import allow_masks

log = logging.getLogger("happyhorse")

AUTO = "auto"
ROLE_CHOICES = (AUTO, *ROLES)
DEFAULT = "default"
WEIGHT_DTYPES = {
    DEFAULT: None,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}
QUANT_NOTE = ".comfy_quant"
QUANT_EXTRAS = (QUANT_NOTE, ".weight_scale", ".weight_scale_2", ".input_scale", ".pre_quant_scale")
COMMUNITY_SCALE = ".weight.__fp8_scale"
FLOAT8_NOTE = {torch.float8_e4m3fn: "float8_e4m3fn", torch.float8_e5m2: "float8_e5m2"}


def load_diffusion_model(
    path: str, role: str = AUTO, weight_dtype: str = DEFAULT, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A transformer checkpoint, file or folder, as a MODEL. ``role`` and ``weight_dtype`` are the loader's choices."""
    file = inspect_transformer(Path(path), None if role == AUTO else role)
    with file.source as source:
        requested = WEIGHT_DTYPES[weight_dtype]
        quantised = requested is None and is_quantised(source)
        source = with_host_notes(source) if quantised else dequantised(source, reference(file.config))
        check_tensors(source, file.config, quantised)
        config = HappyHorseConfig(file.config, file.role)
        choose_dtypes(config, source, requested, quantised)
        patcher = build_patcher(config, lambda: read_state(source, config), disable_dynamic)
    allow_masks(patcher)
    patcher.cached_patcher_init = (load_diffusion_model, (path, role, weight_dtype))
    log.info(
        "HappyHorse: loaded %s as the %s model (%s): %d layers, weights %s.",
        path,
        file.role.name,
        file.role_origin,
        file.config.num_layers,
        "quantised" if quantised else config.unet_config["dtype"],
    )
    return patcher


def build_patcher(
    config: HappyHorseConfig, read: Callable[[], dict[str, Tensor]], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Builds the host's model and hands it the weights the way the host's own loader does."""
    model = config.get_model({})
    # Looked up at call time: the host swaps this class when it starts with dynamic memory.
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    patcher = kind(model, load_device=mm.get_torch_device(), offload_device=mm.unet_offload_device())
    if not mm.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    model.load_model_weights(read(), "", assign=patcher.is_dynamic())
    return patcher


def choose_dtypes(
    config: HappyHorseConfig, source: TensorSource, requested: torch.dtype | None, quantised: bool
) -> None:
    """Settles the dtype that weights are kept in and the one that layers compute in, as the host would."""
    supported = config.supported_inference_dtypes
    stored = None if quantised else main_dtype(source)
    count = sum(math.prod(shape) for shape in source.shapes.values())
    dtype = requested
    if dtype is None:
        dtype = mm.unet_dtype(model_params=count, supported_dtypes=supported, weight_dtype=stored)
    cast = mm.unet_manual_cast(None if quantised else dtype, mm.get_torch_device(), supported)
    config.quant_config = {"mixed_ops": True} if quantised else None
    config.set_inference_dtype(dtype, cast)


def main_dtype(source: TensorSource) -> torch.dtype:
    """The dtype that most bytes of a checkpoint are in."""
    sizes: dict[torch.dtype, int] = {}
    for entry in source.entries.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def is_quantised(source: TensorSource) -> bool:
    """Whether the host's quantised layers can keep the weights: ones that it noted itself, or plain scaled float8."""
    scales = [name for name in source.names if name.endswith(COMMUNITY_SCALE)]
    if not scales:
        return any(name.endswith(QUANT_NOTE) for name in source.names)
    return all(_is_one_scale(source, name) for name in scales)


def _is_one_scale(source: TensorSource, name: str) -> bool:
    """Whether a community scale is one number for a whole float8 weight, the only kind that the host's layers know."""
    weight = source.entries.get(f"{name.removesuffix(COMMUNITY_SCALE)}.weight")
    return weight is not None and weight.dtype in FLOAT8_NOTE and math.prod(source.entries[name].shape) == 1


def with_host_notes(source: TensorSource) -> TensorSource:
    """A view in which community float8 weights (``X.weight.__fp8_scale``) carry the host's names and notes."""
    entries = {}
    for name, entry in source.entries.items():
        if not name.endswith(COMMUNITY_SCALE):
            entries[name] = entry
            continue
        layer = name.removesuffix(COMMUNITY_SCALE)
        note = json.dumps({"format": FLOAT8_NOTE[source.entries[f"{layer}.weight"].dtype]}).encode()
        tensor = torch.frombuffer(bytearray(note), dtype=torch.uint8)
        entries[f"{layer}.weight_scale"] = entry
        entries[layer + QUANT_NOTE] = replace(
            entry, shape=tuple(tensor.shape), dtype=tensor.dtype, read=lambda tensor=tensor: tensor
        )
    return source.with_entries(entries)


def check_tensors(source: TensorSource, transformer: TransformerConfig, quantised: bool) -> None:
    """Raises CheckpointError unless the tensors are exactly those of the transformer. Reads nothing.

    Quantised layers are held to their names alone: packed weights have other shapes.
    """
    expected = reference(transformer)
    plain = source
    if quantised:
        shapes = expected.state_dict()
        entries = {}
        for name, entry in source.entries.items():
            layer = name.rpartition(".")[0]
            if name.endswith(QUANT_EXTRAS) and layer + QUANT_NOTE in source:
                continue
            if layer + QUANT_NOTE in source and name in shapes:
                stand_in = shapes[name]
                entry = replace(
                    entry,
                    shape=tuple(stand_in.shape),
                    dtype=stand_in.dtype,
                    read=lambda stand_in=stand_in: stand_in,
                )
            entries[name] = entry
        plain = source.with_entries(entries)
    load_module(expected, plain, device="meta", dtype_of=lambda name, tensor: tensor.dtype)


def reference(transformer: TransformerConfig) -> HappyHorseTransformer:
    """The core's own transformer without memory, for its names, shapes and which tensors are always float32."""
    return HappyHorseTransformer(transformer, operations=TorchOps, dtype=torch.bfloat16, device="meta")


def read_state(source: TensorSource, config: HappyHorseConfig) -> dict[str, Tensor]:
    """Name -> tensor. Large weights stay views of the file; small ones are brought to float32, where they compute."""
    exact = {
        name for name, tensor in reference(config.transformer).state_dict().items() if tensor.dtype == torch.float32
    }
    state: dict[str, Tensor] = {}
    progress = HostProgress()
    for done, name in enumerate(source.names, start=1):
        tensor = source.read(name)
        state[name] = tensor.float() if name in exact else tensor
        progress(done, len(source))
    if source.dtypes[BANDS] != torch.float32:
        # Merged files store the rotary frequencies rounded, which moves every position; the formula is exact.
        state[BANDS] = frequency_bands(config.transformer.rope_bands)
    return state


class HostProgress:
    """A core ``Progress`` listener: shows a bar on the node and stops the work when the user interrupts."""

    def __init__(self) -> None:
        self.bar: comfy.utils.ProgressBar | None = None

    def __call__(self, done: int, total: int) -> None:
        mm.throw_exception_if_processing_interrupted()
        if self.bar is None:
            self.bar = comfy.utils.ProgressBar(total)
        self.bar.update_absolute(done, total)
