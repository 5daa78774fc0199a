"""The super-resolution stage in the host's sampling code."""

import math
from collections.abc import Callable
from typing import Any

import comfy.sample
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...happyhorse_core import geometry, super_resolution
from ...happyhorse_core.dit.config import released_local_layers
from ...happyhorse_core.sampling.guidance import guide, sr_video_scale
from ...happyhorse_core.video_vae.latent_statistics import normalise
from .diffusion import LOCAL_LAYERS
from .latents import blank, fresh_mask, with_first_frame
from .sampling import sample_from
from .solver import unipc_sampler

AUTO, ON, OFF = "auto", "on", "off"
LOCAL_CHOICES = (AUTO, ON, OFF)


def with_local_attention(model: ModelPatcher, choice: str) -> ModelPatcher:
    """``model``, or a clone that is told which layers are local. The model itself is shared, not changed."""
    if choice == AUTO:
        return model
    clone = model.clone()
    config = model.model.model_config.transformer
    layers = (config.local_attn_layers or released_local_layers(config.num_layers)) if choice == ON else ()
    clone.model_options["transformer_options"][LOCAL_LAYERS] = layers
    return clone


def guided_by_frame(model: ModelPatcher, scale: float) -> ModelPatcher:
    """A clone of ``model`` whose guidance of the video is ``scale``, and at most 2 in the first 13 latent frames."""
    clone = model.clone()
    clone.set_model_sampler_cfg_function(_frame_guidance(scale), disable_cfg1_optimization=True)
    return clone


def _frame_guidance(scale: float) -> Callable[[dict[str, Any]], Tensor]:
    def guidance(args: dict[str, Any]) -> Tensor:
        cond, uncond = args["cond"], args["uncond"]
        shape = args["model"].latent_shapes[0]
        scales = sr_video_scale(shape[2], scale).to(cond).expand(1, *shape[1:]).reshape(1, 1, -1)
        split = math.prod(shape[1:])
        video = guide(cond[..., :split], uncond[..., :split], scales)
        return torch.cat([video, cond[..., split:]], dim=-1)

    return guidance


def start_state(
    video: Tensor, audio: Tensor, size: tuple[int, int], seed: int, batch_index: list[int] | None
) -> tuple[Tensor, Tensor]:
    """The normalised start of the steps at the target size and the audio as the model hears it, from a seed."""
    width, height = (side // geometry.SPATIAL_STRIDE for side in size)
    shapes = NestedTensor([video.new_empty(*video.shape[:3], height, width), audio])
    noise_video, noise_audio = comfy.sample.prepare_noise(shapes, seed, batch_index).unbind()
    return super_resolution.start(normalise(video), audio, size, noise_video, noise_audio)


def refine(
    model: ModelPatcher,
    conditioning: dict[str, list],
    start: Tensor,
    heard: Tensor,
    first: Tensor | None,
    *,
    steps: int,
    seed: int,
) -> Tensor:
    """Raw video [B, 48, T, H, W] from ``start``, the normalised latent of that shape at the first noise level.

    ``conditioning`` has ``positive`` and, where there is guidance, ``negative``. ``heard`` [B, 64, A] is the audio as
    the model hears it, and stays. ``first`` [1, 48, 1, H, W], raw, is held as the first frame.
    """
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditioning)
    video = blank(start) if first is None else with_first_frame(blank(start), first.to(start))
    mask = NestedTensor([fresh_mask(start, first is not None), torch.zeros_like(heard[:, :1])])
    out = sample_from(
        NestedTensor([start, torch.zeros_like(heard)]),
        NestedTensor([video, heard]),
        guider,
        unipc_sampler(),
        steps=steps,
        seed=seed,
        mask=mask,
    )
    return out.unbind()[0]
