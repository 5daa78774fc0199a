"""The super-resolution stage in the host's sampling code."""

import math
from collections.abc import Callable
from typing import Any

import comfy.model_management
import comfy.samplers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...happyhorse_core.dit.config import released_local_layers
from ...happyhorse_core.sampling.guidance import guide, sr_video_scale
from ...happyhorse_core.sampling.schedule import flow_sigmas
from .diffusion import LOCAL_LAYERS
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
    """A clone of ``model`` whose guidance of the picture is ``scale``, and at most 2 in the first 13 latent frames."""
    clone = model.clone()
    clone.set_model_sampler_cfg_function(_frame_guidance(scale), disable_cfg1_optimization=True)
    return clone


def _frame_guidance(scale: float) -> Callable[[dict[str, Any]], Tensor]:
    def guidance(args: dict[str, Any]) -> Tensor:
        wanted, unwanted = args["cond"], args["uncond"]
        shape = args["model"].latent_shapes[0]
        scales = sr_video_scale(shape[2], scale).to(wanted).expand(1, *shape[1:]).reshape(1, 1, -1)
        split = math.prod(shape[1:])
        picture = guide(wanted[..., :split], unwanted[..., :split], scales)
        return torch.cat([picture, wanted[..., split:]], dim=-1)

    return guidance


def refine(
    model: ModelPatcher,
    conditioning: dict[str, list],
    start: Tensor,
    heard: Tensor,
    held: Tensor,
    hold_first: bool,
    *,
    steps: int,
    seed: int,
) -> Tensor:
    """Raw video [B, 48, T, H, W] from ``start``, the normalised latent of that shape at the first noise level.

    ``conditioning`` has ``positive`` and, where there is guidance, ``negative``. ``heard`` [B, 64, A] is the sound and
    stays as it is. ``held`` is the raw latent of an empty clip, whose first frame stays too if ``hold_first``.
    """
    sigmas = flow_sigmas(steps)
    guider = comfy.samplers.CFGGuider(model)
    guider.inner_set_conds(conditioning)
    picture_mask = torch.ones(start.shape[0], 1, *start.shape[2:], device=start.device)
    picture_mask[:, :, : int(hold_first)] = 0
    # The host starts from sigma * noise + (1 - sigma) * latent. The empty clip is zero to the model, and so the start
    # itself, divided by sigma, is the noise; of what is held the host makes no noise at all.
    out = guider.sample(
        NestedTensor([start / sigmas[0].item(), torch.zeros_like(heard)]),
        NestedTensor([held, heard]),
        unipc_sampler(),
        sigmas,
        denoise_mask=NestedTensor([picture_mask, torch.zeros_like(heard[:, :1])]),
        callback=latent_preview.prepare_callback(model, steps),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=seed,
    )
    return out.unbind()[0].to(comfy.model_management.intermediate_device())
