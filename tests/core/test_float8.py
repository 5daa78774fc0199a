"""Transformer layers whose weights stay in float8: what they hold, what they compute, what a GPU will ask of them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from convert_helpers import community_float8, is_linear, saved, tensors_of
from peak_memory import PeakMemory
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from happyhorse_core.cli import main
from happyhorse_core.convert.run import convert
from happyhorse_core.dit.float8 import Float8MatmulOps, Float8Ops, float8_operations, rounded_rows
from happyhorse_core.dit.load import inspect_transformer, load_transformer, loaded_bytes
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps
from happyhorse_core.weights.formats import FLOAT8

BF16 = torch.bfloat16
KINDS = ("fp8-scaled", "fp8", "community")


@pytest.fixture(scope="module")
def files(models: Path) -> dict[str, Path]:
    """The distilled model in each float8 layout."""
    found = {kind: models / f"{kind}.safetensors" for kind in KINDS}
    for kind in KINDS[:2]:
        convert(models / "distill", found[kind], dtype=kind)
    tensors = {name: tensor.bfloat16() for name, tensor in tensors_of(models / "distill").items()}
    saved(found["community"], community_float8(tensors))
    return found


def loaded(path: Path, **options: Any) -> HappyHorseTransformer:
    return load_transformer(inspect_transformer(path, "distilled"), **options)


def outputs(model: HappyHorseTransformer, dtype: torch.dtype = BF16) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    sizes = ((1, 48, 3, 4, 6), (1, 64, 9), (1, 7, 24))
    streams = [torch.randn(size, generator=generator) for size in sizes]
    return torch.cat([out.flatten() for out in model(*streams, compute_dtype=dtype)])


def linear_bytes(model: HappyHorseTransformer) -> tuple[int, int]:
    """Bytes of the linear layers' weights, and their numbers as the checkpoint counts them."""
    layers = {name.rpartition(".")[0] for name in model.state_dict() if is_linear(name)}
    modules = [model.get_submodule(name) for name in layers]
    return sum(m.weight.nbytes for m in modules), sum(m.in_features * m.out_features for m in modules)


# what is held


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_a_float8_file_stay_one_byte_each_and_compute_what_bfloat16_would(files, kind):
    kept, expanded = loaded(files[kind]), loaded(files[kind], operations=TorchOps)
    held, numbers = linear_bytes(kept)
    assert held == numbers
    assert linear_bytes(expanded)[0] == 2 * numbers
    assert torch.equal(outputs(kept), outputs(expanded))


def test_other_files_and_float32_have_no_float8(files, models):
    for model in (loaded(models / "distill"), loaded(files["fp8-scaled"], dtype=torch.float32)):
        assert not [name for name, tensor in model.state_dict().items() if tensor.dtype == FLOAT8]


def test_a_file_with_some_layers_in_float8_keeps_those(files, tmp_path):
    tensors = tensors_of(files["fp8-scaled"])
    whole, layer = tensors_of(files["community"]), "block.layers.0.mlp.down_proj"
    for end in ("weight", "weight_scale", "comfy_quant"):
        del tensors[f"{layer}.{end}"]
    tensors[f"{layer}.weight"] = whole[f"{layer}.weight"].to(BF16)
    model = loaded(saved(tmp_path / "mixed.safetensors", tensors))
    assert model.get_submodule(layer).weight.dtype == BF16
    assert model.get_submodule("block.layers.0.mlp.up_gate_proj").weight.dtype == FLOAT8
    assert outputs(model).isfinite().all()


def test_the_estimate_counts_float8_as_it_is_kept(files):
    file = inspect_transformer(files["fp8-scaled"], "distilled")
    numbers = linear_bytes(loaded(files["fp8-scaled"]))[1]
    assert loaded_bytes(file, torch.float32) - 2 * loaded_bytes(file, BF16) == 2 * numbers


def test_one_expert_at_a_time_is_multiplied_out():
    layer = Float8Ops.ExpertLinear(640, 3 * 720, bias=False, dtype=BF16, device="meta")
    layer.keep_float8(torch.zeros(3 * 720, 640, dtype=FLOAT8), torch.ones(3 * 720, 1))
    x = torch.zeros(1, 3, 640, dtype=BF16)
    with torch.inference_mode(), PeakMemory() as memory:
        layer(x, (1, 1, 1))
    expert = 640 * 720 * BF16.itemsize
    assert expert <= memory.peak < 1.1 * expert


# products


def float8_layer(
    operations: type[Float8Ops], columns: int, rows: int, seed: int = 0
) -> tuple[torch.nn.Module, Tensor, Tensor]:
    """A layer of so many columns and rows, its float32 weight before it was rounded, and after."""
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * 0.02
    scale = weight.abs().amax() / 448
    layer = operations.Linear(columns, rows, bias=False, dtype=BF16, device="meta")
    layer.keep_float8((weight / scale).to(FLOAT8), scale)
    return layer, weight, (weight / scale).to(FLOAT8).float() * scale


def error(found: Tensor, expected: Tensor) -> float:
    return float((found.float() - expected.float()).norm() / expected.float().norm())


def test_rounded_rows_have_a_scale_each_and_zeros_at_their_end():
    x = torch.randn(7, 21) * torch.logspace(-6, 6, 7).unsqueeze(1)
    x[3] = 0
    found, scales = rounded_rows(x.to(BF16), 32)
    assert found.shape == (7, 32)
    assert not found[:, 21:].float().any()
    assert (found.float().abs().amax(dim=1) == torch.tensor([448.0] * 3 + [0.0] + [448.0] * 3)).all()
    assert torch.allclose(found[:, :21].float() * scales, x, rtol=0.07, atol=0)


def test_a_product_is_that_of_the_rounded_numbers():
    layer, _, rounded = float8_layer(Float8MatmulOps, 85, 43)
    x = torch.randn(2, 5, 85).to(BF16)
    inputs, scales = rounded_rows(x.flatten(0, 1), 85)
    expected = torch.nn.functional.linear(inputs.float() * scales, rounded).unflatten(0, (2, 5))
    assert layer(x).shape == (2, 5, 43)
    assert layer(x).dtype == BF16
    assert error(layer(x), expected) < 0.004


def test_a_token_s_result_depends_on_no_other_token():
    layer, _, _ = float8_layer(Float8MatmulOps, 85, 43)
    x = torch.randn(1, 6, 85) * torch.tensor([1e-3, 1, 1e3, 1, 1, 1]).view(1, 6, 1)
    together = layer(x.to(BF16))
    for n, token in enumerate(x.to(BF16).split(1, dim=1)):
        assert error(together[:, n], layer(token)[:, 0]) < 0.004


@pytest.mark.parametrize(("columns", "rows"), [(5120, 1031), (13652, 1024)])
def test_the_error_at_real_width_beside_bfloat16(record_property, columns, rows):
    """Random numbers of a normal distribution. The README of the benchmarks states these figures."""
    kept, weight, _ = float8_layer(Float8Ops, columns, rows)
    product, _, _ = float8_layer(Float8MatmulOps, columns, rows)
    x = torch.randn(1, 64, columns, generator=torch.Generator().manual_seed(1)).to(BF16)
    exact = torch.nn.functional.linear(x.float(), weight)
    with torch.inference_mode():
        errors = {
            "bfloat16": error(torch.nn.functional.linear(x, weight.to(BF16)), exact),
            "float8 weights": error(kept(x), exact),
            "float8 products": error(product(x), exact),
        }
    record_property("relative_errors", errors)
    assert errors["bfloat16"] < 0.0025
    assert 0.02 < errors["float8 weights"] < 0.028
    assert 0.03 < errors["float8 products"] < 0.039


class ScaledProducts(TorchDispatchMode):
    """Holds every float8 product against what CUDA asks of one."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is torch.ops.aten._scaled_mm.default:
            a, b, scale_a, scale_b = args[:4]
            assert a.is_contiguous()
            assert b.t().is_contiguous()
            assert not [side for side in (a.shape[1], *b.shape) if side % 16]
            assert (scale_a.shape, scale_b.shape) == ((a.shape[0], 1), (1, b.shape[1]))
            assert all(s.is_contiguous() and s.dtype == torch.float32 for s in (scale_a, scale_b))
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("kind", KINDS)
def test_a_transformer_of_float8_products(files, models, kind):
    model = loaded(files[kind], operations=Float8MatmulOps)
    with torch.inference_mode(), ScaledProducts() as products:
        found = outputs(model)
    config = model.config
    assert products.count == 4 * (config.num_layers + 2 * len(config.mm_layers))
    exact = outputs(loaded(models / "distill", dtype=torch.float32), torch.float32)
    assert 0 < error(found, exact) < (0.35 if kind == "fp8" else 0.15)
    assert error(found, outputs(loaded(files[kind]))) < 0.12


def test_experts_without_tokens_and_layers_with_a_bias():
    rows, columns, lengths = 3 * 21, 40, (5, 0, 8)
    weight, bias = torch.randn(rows, columns), torch.randn(rows)
    scales = torch.tensor([0.5, 0.25, 2.0]).repeat_interleave(21).unsqueeze(1)
    plain = TorchOps.ExpertLinear(columns, rows).requires_grad_(False)
    plain.weight.data, plain.bias.data = (weight / scales).to(FLOAT8).float() * scales, bias
    x = torch.randn(2, 13, columns)
    for operations, bound in ((Float8Ops, 1e-6), (Float8MatmulOps, 0.04)):
        layer = operations.ExpertLinear(columns, rows).requires_grad_(False)
        layer.bias.data = bias
        layer.keep_float8((weight / scales).to(FLOAT8), scales)
        assert error(layer(x, lengths), plain(x, lengths)) < bound


def test_a_cpu_multiplies_out():
    assert float8_operations(torch.device("cpu")) is Float8Ops


def test_the_command_line_takes_a_float8_file(files, models, tmp_path):
    settings = {
        "models": models,
        "transformer": files["fp8-scaled"],
        "prompt": "A horse.",
        "output": tmp_path / "a.mp4",
    }
    sizes = {"seconds": "0.6", "size": "64x96", "seed": "7", "steps": "2", "device": "cpu"}
    arguments = [f"--{name}={value}" for name, value in (settings | sizes).items()]
    assert main(["generate", *arguments]) == 0
    assert (tmp_path / "a.mp4").stat().st_size > 1000
