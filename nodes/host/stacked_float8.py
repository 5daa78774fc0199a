"""Scaled float8 weights of several modalities in one matrix: a scale for each row, the same for all rows of an expert.

The host's own float8 layout is meant for one scale. With several it works on the CPU, but its CUDA kernels refuse them.
This layout holds the same tensors and is saved under the same names; it differs in how it multiplies and rounds.

CUDA's float8 matmuls also ask that 16 divides both sides of a weight. The host pads none and dequantises where a
matmul fails. Of the released widths 16 divides neither 7208 nor 13652 nor 27304, so these have a layout that pads.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import comfy.quant_ops
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor, TensorCoreFP8E4M3Layout
from torch import Tensor

from ...happyhorse_core.dit.config import MODALITIES
from ...happyhorse_core.weights.formats import ALIGNMENT, FLOAT8

NAME = "HappyHorseStackedFP8Layout"
ROWS_NAME = "HappyHorseRowFP8Layout"
"""The same for scales that differ within an expert; those can only be dequantised."""
PADDED_NAME = "HappyHorsePaddedFP8Layout"
"""One scale, as the host's own layout, for weights whose sides 16 doesn't divide."""
HOST_NAME = "TensorCoreFP8E4M3Layout"
SLICEABLE = (NAME, ROWS_NAME, HOST_NAME, "TensorCoreFP8E5M2Layout")


class StackedFP8Layout(getattr(comfy.quant_ops, "QuantizedLayout", object)):
    """float8_e4m3fn [experts * rows, columns] and scales [experts * rows, 1]."""

    # A host without its library of quantised kernels has neither, and loads no quantised weights.
    Params = getattr(TensorCoreFP8E4M3Layout, "Params", None)

    @classmethod
    def quantize(cls, tensor: Tensor, scale: Any = None, **options: Any) -> tuple[Tensor, Any]:
        """Rounds anew, as after a LoRA was added for good: the host's own rounding, for each expert by itself."""
        done = [
            TensorCoreFP8E4M3Layout.quantize(expert, scale="recalculate", **options)
            for expert in tensor.chunk(MODALITIES)
        ]
        scales = torch.stack([params.scale for _, params in done]).repeat_interleave(tensor.shape[0] // MODALITIES)
        params = cls.Params(scale=scales.unsqueeze(1), orig_dtype=tensor.dtype, orig_shape=tuple(tensor.shape))
        return torch.cat([data for data, _ in done]), params

    @classmethod
    def dequantize(cls, qdata: Tensor, params: Any) -> Tensor:
        return qdata.to(params.orig_dtype).mul_(params.scale.to(params.orig_dtype))

    @classmethod
    def get_plain_tensors(cls, qtensor: QuantizedTensor) -> tuple[Tensor, Tensor]:
        return qtensor._qdata, qtensor._params.scale

    @classmethod
    def state_dict_tensors(cls, qdata: Tensor, params: Any) -> dict[str, Tensor]:
        return {"": qdata, "_scale": params.scale}


class PaddedFP8Layout(TensorCoreFP8E4M3Layout):
    """The host's layout but for its linear layer, which fills up both sides with zeros to multiples of 16."""


comfy.quant_ops.register_layout_class(PADDED_NAME, PaddedFP8Layout)
comfy.quant_ops.register_layout_class(NAME, StackedFP8Layout)
comfy.quant_ops.register_layout_class(ROWS_NAME, StackedFP8Layout)


def with_padded_layout(layer: torch.nn.Module) -> None:
    """Gives a loaded linear layer the layout that pads where its weight needs it; leaves any other as it is."""
    weight = layer.weight
    if isinstance(weight, QuantizedTensor) and weight._layout_cls == HOST_NAME and _pads(weight._qdata):
        padded = QuantizedTensor(weight._qdata, PADDED_NAME, weight._params)
        layer.weight = torch.nn.Parameter(padded, requires_grad=False)
        layer.layout_type = PADDED_NAME  # by which the host quantises the layer's input


def with_stacked_layout(weight: Any) -> Any:
    """A loaded weight in this layout where it is float8 with several scales; any other as it is."""
    if not isinstance(weight, QuantizedTensor) or weight._layout_cls != HOST_NAME:
        return weight
    scale = weight._params.scale
    if scale is None or scale.numel() == 1:
        return weight
    of_experts = scale.flatten().unflatten(0, (MODALITIES, -1))
    name = NAME if bool((of_experts == of_experts[:, :1]).all()) else ROWS_NAME
    return torch.nn.Parameter(QuantizedTensor(weight._qdata, name, weight._params), requires_grad=False)


class Float8Rows(NamedTuple):
    """The rows of one expert, a view of the stack, and their scale: one number, or [rows, 1].

    Not a tensor of the host's quantised class until it has to be: ``torch.compile`` can't see one being made.
    """

    data: Tensor
    scale: Tensor

    def dequantised(self, dtype: torch.dtype) -> Tensor:
        return self.data.to(dtype).mul_(self.scale.to(dtype))

    @property
    def can_multiply(self) -> bool:
        """Whether the host's float8 matmul takes them."""
        return self.data.dtype == FLOAT8 and self.scale.numel() == 1

    def linear(self, x: Tensor, input_scale: Tensor | None, bias: Tensor | None) -> Tensor:
        """[tokens, in] -> [tokens, rows], by the host's float8 matmul, as the host's own layers use it."""
        name = PADDED_NAME if _pads(self.data) else HOST_NAME
        params = TensorCoreFP8E4M3Layout.Params(scale=self.scale, orig_dtype=x.dtype, orig_shape=tuple(self.data.shape))
        rounded = QuantizedTensor.from_float(x, name, scale=input_scale)
        return F.linear(rounded, QuantizedTensor(self.data, name, params), bias)


def expert_weights(stack: Tensor, experts: int) -> Sequence[Tensor | Float8Rows]:
    """The rows of each expert. Quantised kinds whose rows can't be told apart are dequantised as a whole."""
    if not isinstance(stack, QuantizedTensor):
        return stack.chunk(experts)
    if stack._layout_cls not in SLICEABLE:
        return stack.dequantize().chunk(experts)
    scale = stack._params.scale
    scales = [scale] * experts if scale.numel() == 1 else scale.chunk(experts)
    if stack._layout_cls == NAME and experts == MODALITIES:
        scales = [of_expert.flatten()[0] for of_expert in scales]
    return [Float8Rows(data, part) for data, part in zip(stack._qdata.chunk(experts), scales, strict=True)]


@comfy.quant_ops.register_layout_op(torch.ops.aten.linear.default, PaddedFP8Layout)
def padded_linear(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """[tokens, in] -> [tokens, rows]: the host's linear layer on both sides filled up, and what was added cut off."""
    x, weight, bias = (*args, None)[:3]
    if not isinstance(x, QuantizedTensor) or not isinstance(weight, QuantizedTensor):
        x, weight = (part.dequantize() if isinstance(part, QuantizedTensor) else part for part in (x, weight))
        return F.linear(x, weight, bias)
    rows, columns = weight.shape
    beside = -columns % ALIGNMENT
    out = F.linear(_padded(x, 0, beside), _padded(weight, -rows % ALIGNMENT, beside))[:, :rows]
    return out if bias is None else out + bias


def _pads(data: Tensor) -> bool:
    return any(side % ALIGNMENT for side in data.shape)


def _padded(tensor: QuantizedTensor, below: int, beside: int) -> QuantizedTensor:
    """The same values under the host's own layout, filled up with zeros."""
    # As bytes, since float8 tensors can't be padded; the byte 0 is the number 0.
    qdata = F.pad(tensor._qdata.view(torch.uint8), (0, beside, 0, below)).view(tensor._qdata.dtype)
    return QuantizedTensor(qdata, HOST_NAME, replace(tensor._params, orig_shape=tuple(qdata.shape)))
