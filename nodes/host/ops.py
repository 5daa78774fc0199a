"""The ``operations`` object that the core is built with inside ComfyUI: the host's own layers, plus what they lack."""

from collections.abc import Sequence
from typing import Any

import comfy.ops
import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.quant_ops import QuantizedTensor
from torch import Tensor

from ...happyhorse_core.ops import expert_linear
from .stacked_float8 import with_stacked_layout


def attention(q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None) -> Tensor:
    """The host's attention under the core's signature: [B, H, S, D] in, [B, S, H * D] out.

    ``options`` is the host's ``transformer_options``, so that attention chosen by other nodes applies here too.
    """
    grouped = {"enable_gqa": True} if q.shape[1] != k.shape[1] else {}
    return optimized_attention(q, k, v, q.shape[1], skip_reshape=True, transformer_options=options, **grouped)


def host_operations(picked: type) -> type:
    """Adds ``attention``, ``ExpertLinear`` and ``FloatLinear`` to the operations class that the host picked."""

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
            weight, bias, stream = comfy.ops.cast_bias_weight(self, x, offloadable=True)
            dense = weight.dequantize() if isinstance(weight, QuantizedTensor) else weight
            out = expert_linear(x, dense, bias, (x.shape[1],) if lengths is None else lengths)
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return out

    return type(
        "HappyHorseOperations",
        (picked,),
        {
            "attention": staticmethod(attention),
            "ExpertLinear": ExpertLinear,
            # Not the picked class: that one may quantise, or bring every layer to the compute dtype.
            "FloatLinear": comfy.ops.manual_cast.Linear,
        },
    )
