"""Writes the workflows: workflows/NAME.json for the canvas, and workflows/api/NAME.json, the same for the server.

    python scripts/build_workflows.py [--server ADDRESS] [--check]

The inputs of the nodes, their defaults and their outputs are read from a ComfyUI that runs with this pack.
With --check nothing is written, and the exit code is 1 where a file is not as it would be written.
"""

import argparse
import asyncio
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

if not __package__:  # started as a file
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from scripts import workflow_prompts as prompts
from scripts.comfy_client import ServerError, read_object_info
from scripts.workflow_canvas import Node, Output, Workflow
from scripts.workflow_kinds import Kind, read_kinds
from scripts.workflow_notes import PONY_NOTE, note

Kinds = Mapping[str, Kind]

ROOT = Path(__file__).resolve().parent.parent
BASE, SR_540P, SR_1080P = (f"daVinci-MagiHuman/{name}" for name in ("base", "540p_sr", "1080p_sr"))
PICTURE_ENCODER = "Wan2.2_VAE.pth"
LORA = "my_lora.safetensors"
SPEECH = "speech.wav"
PONY = {
    "model_name": "HappyHorse-Pony/distill",
    "text_encoder_name": "HappyHorse-Pony/t5gemma-9b-9b-ul2",
    "decoder_name": "HappyHorse-Pony/turbo_vae/checkpoint-340000.ckpt",
    "encoder_name": "HappyHorse-Pony/Wan2.2-TI2V-5B/Wan2.2_VAE.pth",
    "audio_vae_name": "HappyHorse-Pony/stable-audio-open-1.0/model.safetensors",
}
"""The parts of the model that comes with the pack."""


class Stack:
    """The loaders, which all workflows start with, in a column of their own."""

    def __init__(
        self,
        workflow: Workflow,
        *,
        picture: bool = False,
        model: str | None = None,
        files: Mapping[str, str] | None = None,
    ) -> None:
        """``files`` names each part by its loader's field, in place of the released ones."""
        names = {"encoder_name": PICTURE_ENCODER if picture else "none"} | ({"model_name": model} if model else {})
        names |= files or {}

        def add(kind: str, *fields: str) -> Node:
            return workflow.add(kind, **{field: names[field] for field in fields if field in names})

        workflow.column("Models")
        self.model = add("HappyHorseModelLoader", "model_name")["MODEL"]
        self.clip = add("HappyHorseTextEncoderLoader", "text_encoder_name")["CLIP"]
        self.vae = add("HappyHorseVideoVAELoader", "decoder_name", "encoder_name")["VAE"]
        self.audio_vae = add("HappyHorseAudioVAELoader", "audio_vae_name")["AUDIO VAE"]

    def decode(self, workflow: Workflow, latent: Node) -> Node:
        return workflow.add("HappyHorseDecode", latent=latent["LATENT"], vae=self.vae, audio_vae=self.audio_vae)


def encode(workflow: Workflow, stack: Stack, text: str, title: str = "Prompt") -> Node:
    return workflow.add("CLIPTextEncode", title=title, colour="positive", clip=stack.clip, text=text)


def hold(workflow: Workflow, stack: Stack, picture: Node, latent: Node) -> Node:
    return workflow.add("HappyHorseImageToVideo", vae=stack.vae, image=picture["IMAGE"], latent=latent["LATENT"])


def sample(workflow: Workflow, model: Output, prompt: Node, latent: Node, seed: int = 1) -> Node:
    return workflow.add(
        "HappyHorseSampler", model=model, positive=prompt["CONDITIONING"], latent=latent["LATENT"], seed=seed
    )


def enlarge(workflow: Workflow, model: Node, clip: Node, prompt: Node, **picture: Output) -> Node:
    return workflow.add(
        "HappyHorseSuperResolution",
        sr_model=model["MODEL"],
        latent=clip["LATENT"],
        positive=prompt["CONDITIONING"],
        **picture,
    )


def save(workflow: Workflow, clip: Node, prefix: str) -> None:
    workflow.add("SaveVideo", video=clip["VIDEO"], filename_prefix=f"video/{prefix}")


def finish(workflow: Workflow, stack: Stack, clip: Node, prefix: str) -> None:
    """Decodes and saves in a group below that of the sampler."""
    workflow.group("Decode and save")
    save(workflow, stack.decode(workflow, clip), prefix)


def text_to_video(kinds: Kinds) -> Workflow:
    workflow = Workflow("text_to_video", note("text_to_video", "distill"), kinds)
    stack = Stack(workflow)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.RAIN)
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.column("Sample")
    clip = sample(workflow, stack.model, prompt, empty)
    finish(workflow, stack, clip, "HappyHorse")
    return workflow


def image_to_video(kinds: Kinds) -> Workflow:
    workflow = Workflow("image_to_video", note("image_to_video", "distill", "picture"), kinds)
    stack = Stack(workflow, picture=True)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.FROM_PICTURE)
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.group("First frame")
    picture = workflow.add("LoadImage", title="First frame")
    workflow.column("Start and sample")
    start = hold(workflow, stack, picture, empty)
    clip = sample(workflow, stack.model, prompt, start)
    finish(workflow, stack, clip, "HappyHorse_i2v")
    return workflow


def audio_driven(kinds: Kinds) -> Workflow:
    workflow = Workflow("audio_driven", note("audio_driven", "distill", "picture"), kinds)
    stack = Stack(workflow, picture=True)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.FROM_SOUND)
    empty = workflow.add("HappyHorseEmptyLatent", title="Size (the sound sets the length)")
    workflow.column("First frame and sound")
    picture = workflow.add("LoadImage", title="First frame")
    sound = workflow.add("LoadAudio", title="Sound", audio=SPEECH)
    workflow.group("Start")
    shown = hold(workflow, stack, picture, empty)
    start = workflow.add(
        "HappyHorseAudioToVideo", audio_vae=stack.audio_vae, audio=sound["AUDIO"], latent=shown["LATENT"]
    )
    workflow.column("Sample")
    clip = sample(workflow, stack.model, prompt, start)
    finish(workflow, stack, clip, "HappyHorse_a2v")
    return workflow


def base_with_cfg(kinds: Kinds) -> Workflow:
    workflow = Workflow("base_with_cfg", note("base_with_cfg", "base"), kinds)
    stack = Stack(workflow, model=BASE)
    workflow.column("Write the prompt")
    written = workflow.add(
        "HappyHorsePrompt",
        description=prompts.BAKERY,
        **prompts.BAKERY_LINES,
        background_sound=prompts.BAKERY_SOUND,
    )
    workflow.column("Encode the prompts")
    positive = workflow.add(
        "CLIPTextEncode", title="Prompt", colour="positive", node_height=100, clip=stack.clip, text=written["STRING"]
    )
    negative = workflow.add("HappyHorseNegativePrompt", title="Negative prompt", colour="negative", clip=stack.clip)
    workflow.group("Size")
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.column("Sample with guidance")
    clip = workflow.add(
        "HappyHorseBaseSampler",
        model=stack.model,
        positive=positive["CONDITIONING"],
        negative=negative["CONDITIONING"],
        latent=empty["LATENT"],
    )
    finish(workflow, stack, clip, "HappyHorse_base")
    return workflow


def super_resolution_540p(kinds: Kinds) -> Workflow:
    workflow = Workflow("super_resolution_540p", note("super_resolution_540p", "distill", "540p_sr"), kinds)
    stack = Stack(workflow)
    enlarger = workflow.add("HappyHorseModelLoader", title="Load the super-resolution model", model_name=SR_540P)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.LIGHTHOUSE)
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.column("Sample")
    small = sample(workflow, stack.model, prompt, empty)
    workflow.group("Enlarge to 896 x 512")
    clip = enlarge(workflow, enlarger, small, prompt)
    workflow.column("Decode and save")
    save(workflow, stack.decode(workflow, clip), "HappyHorse_540p")
    return workflow


def super_resolution_1080p(kinds: Kinds) -> Workflow:
    workflow = Workflow(
        "super_resolution_1080p", note("super_resolution_1080p", "distill", "1080p_sr", "picture"), kinds
    )
    stack = Stack(workflow, picture=True)
    enlarger = workflow.add("HappyHorseModelLoader", title="Load the super-resolution model", model_name=SR_1080P)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.WORKSHOP)
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.group("First frame, in full size")
    picture = workflow.add("LoadImage", title="First frame")
    workflow.column("Start and sample")
    start = hold(workflow, stack, picture, empty)
    small = sample(workflow, stack.model, prompt, start)
    workflow.group("Enlarge to 1920 x 1088")
    clip = enlarge(workflow, enlarger, small, prompt, vae=stack.vae, image=picture["IMAGE"])
    workflow.column("Decode and save")
    save(workflow, stack.decode(workflow, clip), "HappyHorse_1080p")
    return workflow


def lora(kinds: Kinds) -> Workflow:
    workflow = Workflow("lora", note("lora", "distill"), kinds)
    stack = Stack(workflow)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.SINGER)
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.column("LoRA")
    changed = workflow.add("LoraLoaderModelOnly", model=stack.model, lora_name=LORA)
    workflow.group("Sample")
    clip = sample(workflow, changed["MODEL"], prompt, empty)
    finish(workflow, stack, clip, "HappyHorse_lora")
    return workflow


def extend(kinds: Kinds) -> Workflow:
    workflow = Workflow("extend", note("extend", "distill", "picture"), kinds)
    stack = Stack(workflow, picture=True)
    workflow.column("Prompts")
    prompt = encode(workflow, stack, prompts.TRAIN_START, "Prompt of the first clip")
    next_prompt = encode(workflow, stack, prompts.TRAIN_NEXT, "Prompt of the next clip")
    workflow.column("Size of both clips")
    empty = workflow.add("HappyHorseEmptyLatent")
    workflow.group("First clip")
    first = stack.decode(workflow, sample(workflow, stack.model, prompt, empty))
    workflow.column("Next clip")
    start = workflow.add(
        "HappyHorseExtend", video=first["VIDEO"], vae=stack.vae, audio_vae=stack.audio_vae, latent=empty["LATENT"]
    )
    following = stack.decode(workflow, sample(workflow, stack.model, next_prompt, start, seed=2))
    workflow.group("Join and save")
    joined = workflow.add(
        "HappyHorseJoinClips", video=first["VIDEO"], next_video=following["VIDEO"], overlap=start["OVERLAP"]
    )
    save(workflow, joined, "HappyHorse_long")
    return workflow


def pony(kinds: Kinds) -> Workflow:
    workflow = Workflow("pony", PONY_NOTE, kinds)
    stack = Stack(workflow, files=PONY)
    workflow.column("Prompt and size")
    prompt = encode(workflow, stack, prompts.PONY)
    empty = workflow.add("HappyHorseEmptyLatent", width=64, height=64, seconds=2.0)
    workflow.column("Sample")
    clip = sample(workflow, stack.model, prompt, empty)
    finish(workflow, stack, clip, "HappyHorse_pony")
    return workflow


WORKFLOWS: tuple[Callable[[Kinds], Workflow], ...] = (
    text_to_video,
    image_to_video,
    audio_driven,
    base_with_cfg,
    super_resolution_540p,
    super_resolution_1080p,
    lora,
    extend,
    pony,
)


def files(object_info: Mapping[str, Any]) -> dict[Path, str]:
    """Path and text of every file, for the nodes that a server describes."""
    found, kinds = {}, read_kinds(object_info)
    for build in WORKFLOWS:
        workflow = build(kinds)
        found[ROOT / "workflows" / f"{workflow.name}.json"] = as_text(workflow.canvas())
        found[ROOT / "workflows" / "api" / f"{workflow.name}.json"] = as_text(workflow.api())
    return found


def as_text(content: Any) -> str:
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; say which files are not up to date")
    parser.add_argument("--server", default="http://127.0.0.1:8188", help="a ComfyUI that runs with this pack")
    options = parser.parse_args(arguments)
    try:
        wanted = files(asyncio.run(read_object_info(options.server)))
    except ServerError as error:
        print(error, file=sys.stderr)
        return 1
    stale = [path for path, text in wanted.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    for path in stale:
        print(f"{'stale' if options.check else 'written'}: {path.relative_to(ROOT)}")
        if not options.check:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(wanted[path], encoding="utf-8")
    return int(options.check and bool(stale))


if __name__ == "__main__":
    sys.exit(main())
