"""Scaled float8 weights of several modalities in one matrix: a scale for each row, the same for all rows of an expert.

The host's own float8 layout is meant for one scale. With several it works on the CPU, but its CUDA kernels refuse them.
This layout holds the same tensors and is saved under the same names; it differs in how it multiplies and rounds.
"""

from typing import Any

import comfy.quant_ops
import torch
from comfy.quant_ops import QuantizedTensor, TensorCoreFP8E4M3Layout
from torch import Tensor

from ...happyhorse_core.config import MODALITIES

NAME = "HappyHorseStackedFP8Layout"


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


comfy.quant_ops.register_layout_class(NAME, StackedFP8Layout)


def with_stacked_layout(weight: Any) -> Any:
    """A loaded weight in this layout where it is float8 with several scales; any other as it is."""
    if not isinstance(weight, QuantizedTensor) or weight._layout_cls != "TensorCoreFP8E4M3Layout":
        return weight
    if weight._params.scale is None or weight._params.scale.numel() == 1:
        return weight
    return torch.nn.Parameter(QuantizedTensor(weight._qdata, NAME, weight._params), requires_grad=False)
