"""Writes the trained decoder and image encoder as the files that they are released in."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from happyhorse_core.video_vae.image_encoder import ImageEncoderConfig, WanImageEncoder
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder, TurboVAEDConfig
from tools.make_tiny_checkpoints import TURBO_CONFIG

TURBO_FILE = Path("turbo_vae", "checkpoint-340000.ckpt")
TURBO_SETTINGS = Path("turbo_vae", "TurboV3-Wan22-TinyShallow_7_7.json")
IMAGE_FILE = Path("Wan2.2-TI2V-5B", "Wan2.2_VAE.pth")
FLAT = (".resample.1.weight", ".to_qkv.weight", ".proj.weight")
"""Kernels of the clip's encoder that have no axis of time."""


def export(modules: Mapping[str, nn.Module], directory: Path) -> None:
    """Writes the decoder with its settings and the image encoder under ``directory``, over what is there."""
    decoder, image = modules["decoder"], modules["image"]
    assert isinstance(decoder, TurboDecoder)
    assert isinstance(image, WanImageEncoder)
    for path in (TURBO_FILE, IMAGE_FILE):
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().clone() for name, value in decoder.state_dict().items()}
    torch.save({"ema_state_dict": weights}, directory / TURBO_FILE)
    settings = json.dumps(turbo_settings(decoder.config), indent=2) + "\n"
    (directory / TURBO_SETTINGS).write_text(settings, encoding="utf-8")
    # Half the bytes; the latents move by a few thousandths of their deviation.
    torch.save({name: value.bfloat16() for name, value in clip_tensors(image).items()}, directory / IMAGE_FILE)


def turbo_settings(config: TurboVAEDConfig) -> dict[str, object]:
    """The decoder's published settings with the sizes of ``config``; they list the last stage first."""
    stages = config.stages[::-1]
    return TURBO_CONFIG | {
        "patch_size": config.patch_size,
        "decoder_block_out_channels": [stage.channels for stage in stages],
        "decoder_layers_per_block": [*(stage.layers for stage in stages), config.mid_layers],
        "decoder_spatio_temporal_scaling": [stage.doubles_space for stage in stages],
        "decoder_spatio_only": [stage.doubles_space and not stage.doubles_time for stage in stages],
        "first_chunk_size": config.first_window,
        "step_size": config.window,
    }


def clip_tensors(encoder: WanImageEncoder) -> dict[str, Tensor]:
    """The tensors of the encoder of clips that, given a single picture, does what ``encoder`` does.

    That is the inverse of ``still_frame_tensor``: kernels get an axis of time, zero but for the last tap. Where time
    is halved the file also has a convolution in time, zeros too, which no single picture meets.
    """
    tensors = {name: _clip_tensor(name, value.detach()) for name, value in encoder.state_dict().items()}
    return tensors | time_convolutions(encoder.config)


def _clip_tensor(name: str, tensor: Tensor) -> Tensor:
    if name.endswith(".gamma"):
        return (tensor if ".norm." in name else tensor.unsqueeze(1)).clone()
    if tensor.ndim != 4 or name.endswith(FLAT):
        return tensor.clone()
    kernel = tensor.new_zeros(*tensor.shape[:2], tensor.shape[-1], *tensor.shape[2:])
    kernel[:, :, -1] = tensor
    return kernel


def time_convolutions(config: ImageEncoderConfig) -> dict[str, Tensor]:
    """The convolutions in time of stages that halve it."""
    tensors = {}
    for index, stage in enumerate(config.stages):
        if stage.halves_time:
            name = f"encoder.downsamples.{index}.downsamples.{stage.layers}.time_conv"
            tensors[f"{name}.weight"] = torch.zeros(stage.channels, stage.channels, 3, 1, 1)
            tensors[f"{name}.bias"] = torch.zeros(stage.channels)
    return tensors
