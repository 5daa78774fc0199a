"""Scaled float8 weights in our layers on top of the host's: one expert at a time, and products as CUDA takes them."""

from functools import cache
from typing import Any

import comfy.ops
import pytest
import torch
import torch.nn.functional as F
from comfy.quant_ops import QuantizedTensor
from happyhorse_pack.happyhorse_core.convert.run import convert
from happyhorse_pack.nodes.host import load, stacked_float8
from happyhorse_pack.nodes.host.ops import host_operations
from test_converted import BF16, SHARED, STACK, source, streams
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

FLOAT8 = torch.float8_e4m3fn
ROWS, COLUMNS, LENGTHS = 72, 40, (5, 0, 4)


class Kernels:
    """Does what CUDA's float8 product does, which a CPU lacks here, and asks what it asks of its arguments."""

    def __init__(self) -> None:
        self.count = 0

    def __enter__(self) -> "Kernels":
        self.kernels = torch.library.Library("aten", "IMPL")
        self.kernels.impl("_scaled_mm", self._first, "CPU", allow_override=True)
        if hasattr(torch, "_scaled_mm_v2"):
            self.kernels.impl("_scaled_mm_v2", self._second, "CPU", allow_override=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.kernels._destroy()

    def _first(self, a: Tensor, b: Tensor, scale_a: Tensor, scale_b: Tensor, bias: Any = None, *_: Any) -> Tensor:
        assert a.dtype == b.dtype == FLOAT8
        assert a.is_contiguous()
        assert b.t().is_contiguous()
        assert not [side for side in (a.shape[1], *b.shape) if side % 16]
        assert all(scale.numel() == 1 and scale.dtype == torch.float32 for scale in (scale_a, scale_b))
        self.count += 1
        out = a.float() @ b.float() * scale_a * scale_b
        return (out if bias is None else out + bias).to(BF16)

    def _second(self, a: Tensor, b: Tensor, scales_a: list, *rest: Any) -> Tensor:
        scales_b, bias = rest[2], rest[5]
        return self._first(a, b, scales_a[0], scales_b[0], bias)


class Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.nbytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and not isinstance(out, QuantizedTensor) and "view" not in func.tags:
            self.nbytes = max(self.nbytes, out.numel() * out.element_size())
        return out


def stack(
    kind: str, products: bool = False, rows: int = ROWS, columns: int = COLUMNS
) -> tuple[torch.nn.Module, Tensor]:
    """A layer of three experts, its weight in one of the kinds of float8, and what that weight stands for."""
    generator = torch.Generator().manual_seed(2)
    scales = {
        "expert": torch.tensor([0.25, 2.0, 0.5]).repeat_interleave(rows).unsqueeze(1),
        "row": 2.0 ** torch.randint(-3, 3, (3 * rows, 1), generator=generator),
        "stack": torch.tensor(0.5),
        "plain": torch.tensor(1.0),
    }
    weight = torch.randn(3 * rows, columns, generator=generator).to(FLOAT8)
    if kind == "plain":
        layer = host_operations(comfy.ops.manual_cast).ExpertLinear(columns, 3 * rows, bias=False, dtype=FLOAT8)
        layer.load_state_dict({"weight": weight})
    else:
        picked = comfy.ops.mixed_precision_ops(
            {}, compute_dtype=BF16, disabled=set() if products else {"float8_e4m3fn"}
        )
        layer = host_operations(picked).ExpertLinear(columns, 3 * rows, bias=False)
        note = torch.frombuffer(bytearray(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
        layer.load_state_dict({"weight": weight, "weight_scale": scales[kind], "comfy_quant": note})
    return layer, weight.float() * scales[kind]


def expected_of(x: Tensor, weight: Tensor) -> Tensor:
    parts = zip(x.float().split(list(LENGTHS), dim=1), weight.chunk(3), strict=True)
    return torch.cat([F.linear(span, expert) for span, expert in parts], dim=1)


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected).norm() / expected.norm())


@pytest.mark.parametrize("dtype", [BF16, torch.float32])
@pytest.mark.parametrize("kind", ["expert", "row", "stack", "plain"])
def test_experts_are_multiplied_out_one_at_a_time(kind, dtype):
    layer, weight = stack(kind, rows=512, columns=256)
    x = torch.randn(2, 9, 256).to(dtype)
    with Largest() as largest:
        found = layer(x, LENGTHS)
    assert found.dtype == dtype
    assert error(found, expected_of(x, weight)) < 0.004
    assert largest.nbytes == 512 * 256 * dtype.itemsize


@pytest.mark.parametrize("kind", ["expert", "stack", "row"])
def test_products_in_float8(kind, caplog):
    layer, weight = stack(kind, products=True)
    x = torch.randn(2, 9, COLUMNS).to(BF16)
    with Kernels() as kernels:
        found = layer(x, LENGTHS)
    assert not caplog.records
    assert kernels.count == (0 if kind == "row" else 2), "an expert without tokens needs none"
    assert error(found, expected_of(x, weight)) < 0.04


def test_what_is_added_to_a_stack_is_added_to_all_of_it():
    layer, weight = stack("expert", products=True)
    patch = torch.randn(3 * ROWS, COLUMNS)
    layer.weight_function = [lambda dense: dense + patch.to(dense.dtype)]
    x = torch.randn(2, 9, COLUMNS).to(BF16)
    with Kernels() as kernels:
        assert error(layer(x, LENGTHS), expected_of(x, weight + patch)) < 0.01
    assert kernels.count == 0


@pytest.mark.parametrize(("rows", "columns"), [(40, 24), (32, 24), (40, 32), (32, 32)])
def test_padding_changes_no_value(rows, columns):
    weight, x, bias = torch.randn(rows, columns), torch.randn(7, columns), torch.randn(rows).to(BF16)
    weight = QuantizedTensor.from_float(weight.to(BF16), stacked_float8.PADDED_NAME, scale="recalculate")
    rounded = QuantizedTensor.from_float(x.to(BF16), stacked_float8.PADDED_NAME)
    with Kernels() as kernels:
        found = F.linear(rounded, weight, bias)
    assert kernels.count == 1
    assert found.shape == (7, rows)
    assert error(found, F.linear(rounded.dequantize().float(), weight.dequantize().float(), bias.float())) < 0.01


@cache
def converted() -> str:
    target = source().with_name("products.safetensors")
    convert(source(), target, dtype="fp8-scaled")
    return str(target)


def test_a_whole_transformer_multiplies_in_float8(monkeypatch, caplog):
    monkeypatch.setattr(load.mm, "unet_manual_cast", lambda *args, **kwargs: BF16)
    monkeypatch.setattr(load.mm, "supports_fp8_compute", lambda *args: True)
    model = load.load_diffusion_model(converted()).model.diffusion_model
    assert model.get_submodule(SHARED).in_features % 16, "else nothing had to be padded"
    assert model.get_submodule(STACK).weight._layout_cls == stacked_float8.NAME
    video, audio, text = streams()
    options = {"context": text, "transformer_options": {}, "compute_dtype": BF16}
    with Kernels() as kernels:
        found = model([video, audio], torch.ones(1), **options)
    config = model.config
    assert kernels.count == 4 * (config.num_layers + 2 * len(config.mm_layers))
    assert not [record for record in caplog.records if "fall" in record.getMessage()]
    exact = load.load_diffusion_model(str(source()), weight_dtype="fp32").model.diffusion_model
    exact = exact([video, audio], torch.ones(1), context=text, transformer_options={}, compute_dtype=torch.float32)
    for a, b in zip(found, exact, strict=True):
        assert 0 < error(a, b) < 0.15
