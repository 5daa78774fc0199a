"""Linear layers that keep weights in scaled float8: one byte a number, multiplied as such where the device can.

Of a file with scaled float8 weights these layers take the weights as they are. On a device with float8 matmuls an
input is rounded to float8 too, with a scale for each token, so that a token's result depends neither on its neighbours
nor on how a sequence is cut; the matmul itself is exact to bfloat16. On any other device a layer's weight is
dequantised for the call, one expert at a time, and the result is the same as with the file expanded to bfloat16.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import Device, DType, EmptyLinear, ExpertLinear, Linear, TorchOps, linear_of_span
from ..weights.formats import ALIGNMENT, FLOAT8
from .config import MODALITIES
from .elementwise import blocks

LARGEST = torch.finfo(FLOAT8).max
SMALLEST_SCALE = 1e-30


def has_float8_matmuls(device: torch.device) -> bool:
    """Whether a GPU multiplies float8 matrices with a scale a row, found out by trying.

    It takes compute capability 8.9 and a build of torch with these kernels. A CPU computes them too, but no faster.
    """
    if device.type != "cuda":
        return False
    matrix = torch.ones(ALIGNMENT, ALIGNMENT, device=device).to(FLOAT8)
    scale = torch.ones(ALIGNMENT, 1, device=device)
    try:
        torch._scaled_mm(matrix, matrix.t(), scale_a=scale, scale_b=scale.t(), out_dtype=torch.bfloat16)
    except (RuntimeError, ValueError):
        return False
    return True


def rounded_rows(x: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """[rows, n] -> float8 [rows, columns], zeros after the first n columns, and its scales, float32 [rows, 1]."""
    scales = torch.linalg.vector_norm(x, torch.inf, dim=-1, keepdim=True, dtype=torch.float32)
    scales = scales.clamp_(min=SMALLEST_SCALE * LARGEST) / LARGEST
    out = torch.empty(x.shape[0], columns, dtype=FLOAT8, device=x.device)
    out[:, x.shape[1] :] = 0
    for _, rows in blocks(x.unsqueeze(0), (x.shape[0],)):
        out[rows, : x.shape[1]] = x[rows] / scales[rows]
    return out, scales


class _Float8Weight(EmptyLinear):
    """What the layers share. Until ``keep_float8`` a layer is a plain one: files keep some weights in other dtypes."""

    experts = 1
    float8_matmuls = False
    weight_scale: Tensor | None

    def __init__(
        self, in_features: int, out_features: int, bias: bool = True, device: Device = None, dtype: DType = None
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self.register_buffer("weight_scale", None, persistent=False)

    def keep_float8(self, weight: Tensor, scale: Tensor) -> None:
        """Takes over ``weight`` [out, in] in float8 and its float32 scale, one number or one a row.

        They are kept as [experts, rows, columns] and [experts, rows], for matmuls with rows and columns of zeros up
        to a multiple of 16.
        """
        scale = scale.to(torch.float32).flatten().expand(self.out_features).unflatten(0, (self.experts, -1))
        weight = weight.unflatten(0, (self.experts, -1))
        if self.float8_matmuls:
            below, beside = (-size % ALIGNMENT for size in weight.shape[1:])
            # As bytes, since float8 tensors can't be padded; the byte 0 is the number 0.
            weight = F.pad(weight.view(torch.uint8), (0, beside, 0, below)).view(FLOAT8)
            scale = F.pad(scale, (0, below), value=1.0)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.weight_scale = scale.contiguous()

    def apply_expert(self, x: Tensor, expert: int, scale: Tensor) -> Tensor:
        """[..., in] -> [..., out / experts] with the weight of one expert and its scales."""
        rows = self.out_features // self.experts
        weight = self.weight[expert]
        bias = None if self.bias is None else self.bias[expert * rows : (expert + 1) * rows].to(x.dtype)
        if not self.float8_matmuls:
            return linear_of_span(x, weight.to(x.dtype).mul_(scale.unsqueeze(1)), bias)
        if not x.numel():
            return x.new_empty(*x.shape[:-1], rows)
        rounded, scales = rounded_rows(x.flatten(0, -2), weight.shape[1])
        out = torch._scaled_mm(
            rounded, weight.t(), scale_a=scales, scale_b=scale.unsqueeze(0), out_dtype=torch.bfloat16
        )
        out = out[:, :rows].unflatten(0, x.shape[:-1]).to(x.dtype)
        return out if bias is None else out + bias


class Float8Linear(_Float8Weight, Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if self.weight_scale is None else self.apply_expert(x, 0, self.weight_scale[0])


class Float8ExpertLinear(_Float8Weight, ExpertLinear):
    experts = MODALITIES

    def forward(self, x: Tensor, lengths: Sequence[int]) -> Tensor:  # type: ignore[override]  # as in ExpertLinear
        if self.weight_scale is None:
            return super().forward(x, lengths)
        scales, spans = self.weight_scale, x.split(list(lengths), dim=1)
        return torch.cat([self.apply_expert(span, n, scales[n]) for n, span in enumerate(spans)], dim=1)


class Float8MatmulLinear(Float8Linear):
    float8_matmuls = True


class Float8MatmulExpertLinear(Float8ExpertLinear):
    float8_matmuls = True


class Float8Ops(TorchOps):
    """Keeps float8 weights and dequantises them for each call."""

    Linear = Float8Linear
    ExpertLinear = Float8ExpertLinear


class Float8MatmulOps(Float8Ops):
    """Keeps float8 weights and multiplies in float8, on a device that ``has_float8_matmuls``."""

    Linear = Float8MatmulLinear
    ExpertLinear = Float8MatmulExpertLinear


def float8_operations(device: torch.device) -> type[Float8Ops]:
    """The operations that make the most of float8 weights on a device."""
    return Float8MatmulOps if has_float8_matmuls(device) else Float8Ops
