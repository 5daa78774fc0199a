"""The ``operations`` object that the core is built with inside ComfyUI: the host's own layers, plus what they lack."""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import comfy.ldm.modules.attention
import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from torch import Tensor

from ...happyhorse_core.ops import linear_of_span
from .stacked_float8 import Float8Rows, expert_weights, with_padded_layout, with_stacked_layout

ComfyAttention: type[torch.nn.Module] | None = getattr(comfy.ldm.modules.attention, "ComfyAttention", None)
"""A layer's own choice of attention, from its checkpoint, a LoRA or a node; None in hosts that have none."""


def attention(
    q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None, preferred: torch.nn.Module | None = None
) -> Tensor:
    """The host's attention under the core's signature: [B, H, S, D] in, [B, S, H * D] out.

    ``options`` is the host's ``transformer_options``, so that attention chosen by other nodes applies here too.
    ``preferred`` is the layer's own choice, where the host has such.
    """
    extra: dict[str, Any] = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    if preferred is not None:
        extra["preferred_attention"] = preferred
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, transformer_options=options, **extra)


def let_layers_choose(layers: Iterable[torch.nn.Module]) -> None:
    """Gives each layer's attention the child that holds its own choice, where the host has such."""
    if ComfyAttention is None:
        return
    for layer in layers:
        layer.attention.comfy_attention = ComfyAttention()
        layer.attention.attend = partial(_attend_by_choice, layer.attention)


def _attend_by_choice(
    owner: torch.nn.Module, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None
) -> Tensor:
    # Looked up at each call: the host swaps the child for the choice of a LoRA or a node.
    return attention(q, k, v, options, owner.comfy_attention)


def apply_expert(layer: torch.nn.Module, x: Tensor, weight: Tensor | Float8Rows, bias: Tensor | None) -> Tensor:
    """[..., in] -> [..., rows] with the weight of one of a layer's experts, in float8 where the host's layers would."""
    if not isinstance(weight, Float8Rows):
        return linear_of_span(x, weight.to(x.dtype), bias)
    exact = getattr(layer, "_full_precision_mm", False) or getattr(layer, "comfy_force_cast_weights", False)
    if exact or not weight.can_multiply:
        return linear_of_span(x, weight.dequantised(x.dtype), bias)
    if not x.numel():
        return x.new_empty(*x.shape[:-1], weight.data.shape[0])
    scale = getattr(layer, "input_scale", None)
    out = weight.linear(x.flatten(0, -2), None if scale is None else scale.to(x.device), bias)
    return out.unflatten(0, x.shape[:-1])


def host_operations(picked: type) -> type:
    """Adds ``attention``, ``ExpertLinear`` and ``FloatLinear`` to the operations class that the host picked."""

    class Linear(picked.Linear):
        """The host's layer, with float8 matmuls also at widths that CUDA's kernels don't take as they are."""

        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)
            with_padded_layout(self)

    class ExpertLinear(picked.Linear):
        """Weights of several modalities stacked along the rows, kept as one tensor so that LoRAs find its name."""

        def _load_from_state_dict(self, *args: Any) -> None:
            super()._load_from_state_dict(*args)
            self.weight = with_stacked_layout(self.weight)

        def __call__(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
            if "forward" not in self.__dict__:
                return super().__call__(x, lengths)
            # A LoRA in bypass mode stands before `forward` and adds what it makes of the rows of all modalities.
            rows = [super(ExpertLinear, self).__call__(span) for span in x.split(list(lengths), dim=1)]
            return torch.cat([row.chunk(len(rows), dim=-1)[modality] for modality, row in enumerate(rows)], dim=1)

        def forward(self, x: Tensor, lengths: Sequence[int] | None = None) -> Tensor:
            """[B, S, in] -> [B, S, out] by each token's own modality; without ``lengths`` by all, [B, S, 3 * out]."""
            comfy.ops.run_every_op()
            # Only what is added to the whole stack, as a LoRA is, needs all of it in the dtype that is computed in.
            kept = x.dtype if self.weight_function else self.weight.dtype
            weight, bias, stream = comfy.ops.cast_bias_weight(
                self, x, dtype=kept, bias_dtype=x.dtype, offloadable=True, compute_dtype=x.dtype
            )
            spans = [x] if lengths is None else x.split(list(lengths), dim=1)
            biases = [None] * len(spans) if bias is None else bias.chunk(len(spans))
            weights = expert_weights(weight, len(spans))
            parts = [apply_expert(self, *part) for part in zip(spans, weights, biases, strict=True)]
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

    return type(
        "HappyHorseOperations",
        (picked,),
        {
            "attention": staticmethod(attention),
            "Linear": Linear,
            "ExpertLinear": ExpertLinear,
            # Not the picked class: that one may quantise, or bring every layer to the compute dtype.
            "FloatLinear": comfy.ops.manual_cast.Linear,
        },
    )
