"""The tiny stack as the nodes load it, and ways to run a node."""

from functools import cache
from typing import Any

import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack

DISTILLED = "daVinci-MagiHuman/distill"
BASE = "daVinci-MagiHuman/base"
TEXT_ENCODER = "t5gemma-9b-9b-ul2"
PROMPT = "A young woman stands by the window and speaks softly to the camera."


def run(node: type, **inputs: Any) -> tuple:
    """Outputs of a node's execute, called as the host calls it."""
    return node.execute(**inputs).args


@cache
def model(name: str = DISTILLED, weight_dtype: str = "default", role: str = "auto") -> Any:
    return run(pack.HappyHorseModelLoader, model_name=name, weight_dtype=weight_dtype, role=role)[0]


@cache
def clip() -> Any:
    return run(pack.HappyHorseTextEncoderLoader, text_encoder_name=TEXT_ENCODER)[0]


@cache
def video_vae(encoder: str = "Wan2.2_VAE.pth") -> Any:
    return run(pack.HappyHorseVideoVAELoader, decoder_name="checkpoint-340000.ckpt", encoder_name=encoder)[0]


@cache
def audio_vae() -> Any:
    return run(pack.HappyHorseAudioVAELoader, audio_vae_name="stable_audio_open_1.0.safetensors")[0]


@cache
def positive(text: str = PROMPT) -> list:
    import nodes

    return nodes.CLIPTextEncode().encode(clip(), text)[0]


def empty(width: int = 96, height: int = 64, frames: int = 9, batch_size: int = 1) -> dict:
    inputs = {"width": width, "height": height, "seconds": 1.0, "frames": frames, "batch_size": batch_size}
    return run(pack.HappyHorseEmptyLatent, **inputs)[0]


def picture(width: int = 128, height: int = 80) -> torch.Tensor:
    """IMAGE [1, H, W, 3]: smooth colours, no two rows or columns alike."""
    y = torch.linspace(0, 1, height)[:, None].expand(height, width)
    x = torch.linspace(0, 1, width)[None].expand(height, width)
    return torch.stack([y, x, (x + y) / 2], dim=-1)[None]


def streams(latent: dict) -> tuple[torch.Tensor, torch.Tensor]:
    samples: NestedTensor = latent["samples"]
    video, audio = samples.unbind()
    return video, audio
