"""Prompts for parts of the frame: masks on conditioning, brought to latents of two streams.

The host packs both streams into one row of values before it looks at masks, which it then can't place. Here a mask is
packed the same way: resized to the video latent, frames along time, and one everywhere on the audio.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.patcher_extension
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...happyhorse_core.errors import InputError


def allow_masks(model: ModelPatcher) -> None:
    """Makes masks on conditioning work wherever ``model`` is sampled."""
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, "happyhorse_masks", _with_packed_masks)


def _with_packed_masks(executor: Callable[..., Tensor], *args: Any, **kwargs: Any) -> Tensor:
    shapes = kwargs.get("latent_shapes") or ()
    if len(shapes) > 1:
        # The guider has made copies of the entries for this run.
        for entries in executor.class_obj.conds.values():
            for entry in entries:
                _pack_mask(entry, shapes)
    return executor(*args, **kwargs)


def _pack_mask(entry: dict[str, Any], shapes: Sequence[Sequence[int]]) -> None:
    if entry.get("area") is not None:
        raise InputError(
            "conditioning: found an area, expected none: a latent of picture and sound has no place to cut it from. "
            "Draw the area as a mask and use Conditioning (Set Mask)."
        )
    if entry.get("mask") is None:
        return
    video = comfy.utils.reshape_mask(entry["mask"].float(), (1, *shapes[0][1:])).reshape(1, -1)
    audio = torch.ones(1, sum(math.prod(shape[1:]) for shape in shapes[1:]), device=video.device)
    entry["mask"] = torch.cat([video, audio], dim=1)
    # Where the mask is drawn tight around its bounds the host would cut the latent: it weighs it here as well.
    entry["set_area_to_bounds"] = False
