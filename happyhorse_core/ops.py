"""The layers and the attention that every module of the package is built from.

Modules take an ``operations`` object and never name a layer class themselves, so that a host can hand in layers
that it quantises, streams from disk or patches. ``Operations`` is what such an object has, ``TorchOps`` is one.
Layers compute in the dtype of their input: a weight kept in another dtype is cast for the call.
"""

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Device = torch.device | str | None
DType = torch.dtype | None
Options = dict[str, Any]
"""What a host hands to every attention call; nothing here reads it."""
Attend = Callable[[Tensor, Tensor, Tensor, Options], Tensor]
"""``Operations.attention`` as blocks call it."""


class MakesLinear(Protocol):
    def __call__(
        self,
        in_features: int,
        out_features: int,
        /,
        *,
        bias: bool = True,
        dtype: DType = None,
        device: Device = None,
    ) -> nn.Module: ...


class MakesConv(Protocol):
    """Makes convolutions whose sizes are the same along all axes."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        /,
        *,
        stride: int = 1,
        padding: int = 0,
        dilation: int = 1,
        bias: bool = True,
        dtype: DType = None,
        device: Device = None,
    ) -> nn.Module: ...


class MakesConv3d(Protocol):
    """Makes convolutions whose sizes are given by axis."""

    def __call__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        /,
        *,
        padding: tuple[int, int, int] = (0, 0, 0),
        dtype: DType = None,
        device: Device = None,
    ) -> nn.Module: ...


class MakesEmbedding(Protocol):
    def __call__(self, rows: int, dim: int, /, *, dtype: DType = None, device: Device = None) -> nn.Module: ...


class Operations(Protocol):
    """What a network may ask of ``operations``: a class or an object with these makers of layers and this attention.

    Layers are called with what they compute on and give a tensor; ``TorchOps`` shows with what.
    """

    @property
    def Linear(self) -> MakesLinear: ...
    @property
    def FloatLinear(self) -> MakesLinear:
        """For the layers that must stay float32 whatever the rest of a checkpoint is quantised to."""

    @property
    def ExpertLinear(self) -> MakesLinear: ...
    @property
    def Conv1d(self) -> MakesConv: ...
    @property
    def Conv2d(self) -> MakesConv: ...
    @property
    def Conv3d(self) -> MakesConv3d: ...
    @property
    def ConvTranspose1d(self) -> MakesConv: ...
    @property
    def Embedding(self) -> MakesEmbedding: ...
    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: Options | None = None, /) -> Tensor: ...


class LayerArguments(TypedDict):
    """Keywords that every layer is made with."""

    dtype: DType
    device: Device


class ModuleArguments(LayerArguments):
    """Keywords that every module built from layers is made with."""

    operations: Operations


class _NoInit:
    """Weights always come from a checkpoint, so drawing random ones first would only cost time."""

    def reset_parameters(self) -> None:
        return None


def _weight_and_bias(
    layer: nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d, x: Tensor
) -> tuple[Tensor, Tensor | None]:
    bias: Tensor | None = layer.bias
    return layer.weight.to(x.dtype), None if bias is None else bias.to(x.dtype)


class EmptyLinear(_NoInit, nn.Linear):
    """What linear layers of any kind have: a weight [out, in] and perhaps a bias."""


class Linear(EmptyLinear):
    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, *_weight_and_bias(self, x))


class ExpertLinear(EmptyLinear):
    """One linear layer per modality, their weights stacked along the rows in the order video, audio, text.

    Made with ``out_features`` of all experts together, so that ``weight`` has the checkpoint's shape.
    """

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:  # type: ignore[override]  # nn.Linear has one expert
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
    padding: tuple[int, ...]  # never one of the words that other convolutions take

    def forward(self, x: Tensor, output_size: Sequence[int] | None = None) -> Tensor:
        if output_size is not None:
            raise NotImplementedError("The output's size follows from the input's alone.")
        weight, bias = _weight_and_bias(self, x)
        return F.conv_transpose1d(
            x, weight, bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class Embedding(_NoInit, nn.Embedding):
    def forward(self, ids: Tensor, out_dtype: torch.dtype | None = None) -> Tensor:
        """[...] int64 -> [..., dim], in ``out_dtype`` where one is given (the name that ComfyUI's layer uses)."""
        rows = super().forward(ids)
        return rows if out_dtype is None else rows.to(out_dtype)


def expert_linear(x: Tensor, weight: Tensor, bias: Tensor | None, lengths: Sequence[int]) -> Tensor:
    """Applies the i-th block of ``weight``'s rows to the i-th span of tokens, [B, S, in] -> [B, S, out / experts]."""
    weights = weight.chunk(len(lengths))
    biases = [None] * len(lengths) if bias is None else bias.chunk(len(lengths))
    spans = x.split(list(lengths), dim=1)
    return torch.cat([linear_of_span(s, w, b) for s, w, b in zip(spans, weights, biases, strict=True)], dim=1)


def linear_of_span(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``F.linear`` of a part of a sequence, [B, S, in] -> [B, S, out], as one product of two axes.

    Such a part keeps the batch stride of the whole, even where B is 1. ``matmul`` then runs a product for each of the
    batch, with a copy of the weight, which takes several times as long.
    """
    return F.linear(x.flatten(0, -2), weight, bias).unflatten(0, x.shape[:-1])


class TorchOps:
    """Plain PyTorch layers, for the command line and for tests."""

    # By name, since a type checker takes no class made in here for what a protocol asks of the class around it.
    Linear = Linear
    FloatLinear = Linear
    ExpertLinear = ExpertLinear
    Conv1d = Conv1d
    Conv2d = Conv2d
    Conv3d = Conv3d
    ConvTranspose1d = ConvTranspose1d
    Embedding = Embedding

    @staticmethod
    def attention(q: Tensor, k: Tensor, v: Tensor, options: Options | None = None) -> Tensor:
        """Softmax attention, scaled by 1 / sqrt(head_dim), without a mask.

        q [B, Hq, S, D], k and v [B, Hkv, L, D] with Hq a multiple of Hkv -> [B, S, Hq * D], heads in order.
        ``options`` are passed through for the host's sake and not read here.
        """
        grouped = q.shape[1] != k.shape[1]
        out = F.scaled_dot_product_attention(q, k, v, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(2)
