"""The layers and the attention that every module of the package is built from.

Modules take an ``operations`` object and never name a layer class themselves, so that a host can hand in layers
that it quantises, streams from disk or patches. An ``operations`` object has the attributes of ``TorchOps``.
Layers compute in the dtype of their input: a weight kept in another dtype is cast for the call.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class _NoInit:
    """Weights always come from a checkpoint, so drawing random ones first would only cost time."""

    def reset_parameters(self) -> None:
        return None


def _weight_and_bias(layer: nn.Module, x: Tensor) -> tuple[Tensor, Tensor | None]:
    bias = layer.bias
    return layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


class TorchOps:
    """Plain PyTorch layers, for the command line and for tests."""

    class Linear(_NoInit, nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return F.linear(x, *_weight_and_bias(self, x))

    FloatLinear = Linear
    """For the layers that must stay float32 whatever the rest of a checkpoint is quantised to."""

    class ExpertLinear(_NoInit, nn.Linear):
        """One linear layer per modality, their weights stacked along the rows in the order video, audio, text.

        Made with ``out_features`` of all experts together, so that ``weight`` has the checkpoint's shape.
        """

        def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:
            """[B, S, in] -> [B, S, out / experts]; ``lengths`` are the tokens of each modality in sequence order."""
            weight, bias = _weight_and_bias(self, x)
            return expert_linear(x, weight, bias, lengths)

    class Conv1d(_NoInit, nn.Conv1d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, *_weight_and_bias(self, x))

    class Conv2d(_NoInit, nn.Conv2d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, *_weight_and_bias(self, x))

    class Conv3d(_NoInit, nn.Conv3d):
        def forward(self, x: Tensor) -> Tensor:
            return self._conv_forward(x, *_weight_and_bias(self, x))

    class ConvTranspose1d(_NoInit, nn.ConvTranspose1d):
        def forward(self, x: Tensor) -> Tensor:
            weight, bias = _weight_and_bias(self, x)
            return F.conv_transpose1d(
                x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
            )

    class Embedding(_NoInit, nn.Embedding):
        def forward(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
            """[...] int64 -> [..., dim], in ``out_dtype`` where one is given (the name that ComfyUI's layer uses)."""
            rows = super().forward(ids)
            return rows if out_dtype is None else rows.to(out_dtype)

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        """Softmax attention, scaled by 1 / sqrt(head_dim), without a mask.

        q [B, Hq, S, D], k and v [B, Hkv, L, D] with Hq a multiple of Hkv -> [B, S, Hq * D], heads in order.
        ``options`` are passed through for the host's sake and not read here.
        """
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(2)


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Sequence[int]) -> Tensor:
    """Applies the i-th block of ``weight``'s rows to the i-th span of tokens, [B, S, in] -> [B, S, out / experts]."""
    weights = weight.chunk(len(lengths))
    biases = [None] * len(lengths) if bias is None else bias.chunk(len(lengths))
    spans = x.split(list(lengths), dim=1)
    return torch.cat([F.linear(s, w, b) for s, w, b in zip(spans, weights, biases, strict=True)], dim=1)
