"""Classifier-free guidance with a scale for each stream, as the base model was trained to be sampled."""

import math
from collections.abc import Callable
from typing import Any

import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...happyhorse_core.sampling import guidance

CFG_FUNCTION = "sampler_cfg_function"
"""Where the host keeps another node's replacement of the guidance formula."""


class TwoStreamGuider(comfy.samplers.CFGGuider):
    """The host's guider with the core's two-stream schedule of scales.

    ``cfg`` is None unless another node sets it for a step, as CFG Override does; then it counts for both streams.
    """

    def __init__(self, model: ModelPatcher, scales: guidance.Scales) -> None:
        super().__init__(model)
        self.scales = scales
        self.cfg: float | None = None

    def predict_noise(
        self, x: Tensor, timestep: Tensor, model_options: dict[str, Any] | None = None, seed: int | None = None
    ) -> Tensor:
        """The guided clean latent, packed as ``x`` is: [B, 1, N].

        Patches of the host act as under its own guider. Those that get one scale only get the video's; a
        replacement of the formula is asked once for each stream.
        """
        options = model_options if model_options is not None else {}
        scales = (self.cfg, self.cfg) if self.cfg is not None else self.scales.at(timestep.max().item())
        video_scale, audio_scale = scales
        if video_scale != audio_scale:
            formula = by_stream(options.get(CFG_FUNCTION, plain), self._video_length(), video_scale, audio_scale)
            # The host leaves the negative prompt out where the scale that it knows of is 1.
            options = {**options, CFG_FUNCTION: formula, "disable_cfg1_optimization": True}
        positive, negative = self.conds["positive"], self.conds["negative"]
        return comfy.samplers.sampling_function(
            self.inner_model, x, timestep, negative, positive, video_scale, model_options=options, seed=seed
        )

    def _video_length(self) -> int:
        """How many values of a packed latent are the video's."""
        return math.prod(self.inner_model.latent_shapes[0][1:])


Formula = Callable[[dict[str, Any]], Tensor]
"""``sampler_cfg_function`` of the host: gives ``input`` minus the guided prediction, from ``args`` with ``cond`` and
``uncond`` in the same form."""


def plain(args: dict[str, Any]) -> Tensor:
    """Guidance without anything special, in the form of the host's replacement for it."""
    return guidance.guide(args["cond"], args["uncond"], args["cond_scale"])


def by_stream(formula: Formula, video_length: int, video_scale: float, audio_scale: float) -> Formula:
    """``formula`` with a scale for each of the two streams that are packed in its tensors."""

    def guide_both(args: dict[str, Any]) -> Tensor:
        video = formula({**args, "cond_scale": video_scale})[..., :video_length]
        audio = formula({**args, "cond_scale": audio_scale})[..., video_length:]
        return torch.cat([video, audio], dim=-1)

    return guide_both
