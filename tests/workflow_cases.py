"""The shipped workflows for tests: their two formats, the files that they load, and versions of them for tiny clips."""

import io
import json
import wave

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from comfy_host import ROOT, ComfyServer
from scripts import build_workflows
from tools.make_tiny_checkpoints import HEAD_DIM, HEADS, HIDDEN

NAMES = tuple(build.__name__ for build in build_workflows.WORKFLOWS)
OF_RELEASED_MODELS = tuple(name for name in NAMES if name != "pony")
"""Those whose files the user downloads."""
NOTES = ("Note", "MarkdownNote")
SEED = 11
WIDTH, HEIGHT = 96, 64
SIZES = {"super_resolution_540p": (192, 128), "super_resolution_1080p": (192, 128)}
"""Sizes of the enlarged clips; all others are WIDTH x HEIGHT."""
PICTURES = {"audio_driven": 17, "extend": 25 + 25 - 5}
"""Lengths of the clips; all others are of 25 pictures."""
OVERLAP_SECONDS = 0.2
SPEECH_SECONDS = 0.68


def canvas(name: str) -> dict:
    return json.loads((ROOT / "workflows" / f"{name}.json").read_text(encoding="utf-8"))


def api(name: str) -> dict:
    return json.loads((ROOT / "workflows" / "api" / f"{name}.json").read_text(encoding="utf-8"))


def nodes_of(prompt: dict, kind: str) -> list[str]:
    """The ids of the nodes of a kind."""
    return [key for key, node in prompt.items() if node["class_type"] == kind]


def node_of(prompt: dict, kind: str) -> str:
    """The id of the one node of a kind."""
    (found,) = nodes_of(prompt, kind)
    return found


def small_values(name: str) -> dict[str, dict]:
    """What to set, by kind of node, to get a clip that a tiny model makes in seconds."""
    values = {"HappyHorseEmptyLatent": {"width": WIDTH, "height": HEIGHT, "seconds": 1.0}}
    if name in SIZES:
        width, height = SIZES[name]
        values["HappyHorseSuperResolution"] = {"width": width, "height": height, "steps": 2}
    if name == "image_to_video":
        values["LoadImage"] = {"image": "photograph.jpg"}
    if name == "base_with_cfg":
        values["HappyHorseBaseSampler"] = {"steps": 4}
    if name == "extend":
        values["HappyHorseExtend"] = {"overlap": OVERLAP_SECONDS}
    return values


def small(name: str, **values: float) -> dict:
    """A workflow for a tiny clip; the graph is the shipped one. ``values`` go to all nodes that have such a widget."""
    prompt = api(name)
    for kind, chosen in small_values(name).items():
        for key in nodes_of(prompt, kind):
            prompt[key]["inputs"] |= chosen
    for node in prompt.values():
        node["inputs"] |= {key: value for key, value in ({"seed": SEED} | values).items() if key in node["inputs"]}
    return prompt


# what the workflows load


def photograph() -> bytes:
    """A JPEG as a phone stores it: upright only when its EXIF orientation is applied."""
    rows, columns = np.mgrid[0:240, 0:320]
    noise = np.random.default_rng(0).normal(0, 8, (240, 320, 3))
    colours = np.stack([rows, columns * 0.75, 255 - rows], axis=-1) + noise
    picture = Image.fromarray(colours.clip(0, 255).astype(np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    exif[0x0110] = "A phone"
    data = io.BytesIO()
    picture.save(data, "JPEG", quality=92, exif=exif)
    return data.getvalue()


def landscape() -> bytes:
    """A PNG of hills below an evening sky: a picture that is pleasant to see on the canvas."""
    rows, columns = np.mgrid[0:288, 0:512]
    picture = 255 * np.stack([0.98 - rows / 900, 0.55 + rows / 900, 0.35 + rows / 1500], axis=-1)
    picture[(rows - 150) ** 2 + (columns - 350) ** 2 < 38**2] = (255, 236, 170)
    for height, wave_length, colour in ((170, 61, (190, 110, 120)), (205, 83, (120, 80, 120)), (245, 47, (60, 55, 90))):
        edge = height + 18 * np.sin(columns / wave_length) + 7 * np.sin(columns / wave_length * 2.7)
        picture[rows > edge] = colour
    data = io.BytesIO()
    Image.fromarray(picture.clip(0, 255).astype(np.uint8)).save(data, "PNG")
    return data.getvalue()


def speech() -> bytes:
    """A stereo WAV that is as long as 17 pictures."""
    times = np.arange(int(44100 * SPEECH_SECONDS)) / 44100
    sound = np.stack([np.sin(2 * np.pi * hertz * times) for hertz in (220, 330)], axis=-1) * 0.3
    data = io.BytesIO()
    with wave.open(data, "wb") as file:
        file.setnchannels(2)
        file.setsampwidth(2)
        file.setframerate(44100)
        file.writeframes((sound * 32767).astype("<i2").tobytes())
    return data.getvalue()


def lora() -> dict[str, torch.Tensor]:
    """A LoRA on one layer of the tiny transformer."""
    generator = torch.Generator().manual_seed(0)
    name = "diffusion_model.block.layers.2.attention.linear_proj"
    return {
        f"{name}.lora_A.weight": torch.randn(4, HEADS * HEAD_DIM, generator=generator),
        f"{name}.lora_B.weight": torch.randn(HIDDEN, 4, generator=generator),
    }


def put_files(server: ComfyServer) -> None:
    """Gives a server everything that the workflows name besides the models."""
    server.put_input(landscape(), "example.png")
    server.put_input(photograph(), "photograph.jpg")
    server.put_input(speech(), build_workflows.SPEECH)
    folder = server.models / "loras"
    folder.mkdir(exist_ok=True)
    save_file(lora(), folder / build_workflows.LORA)
