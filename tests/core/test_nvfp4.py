"""Four-bit weights: rounding, the order of scales, what is refused, and the error at real width."""

import json
from pathlib import Path

import pytest
import torch
from convert_helpers import saved
from peak_memory import PeakMemory
from torch import Tensor, nn

from happyhorse_core.convert.rounding import largest, scale_for
from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.errors import CheckpointError
from happyhorse_core.weights import nvfp4
from happyhorse_core.weights.fill import load_module
from happyhorse_core.weights.source import open_source

VALUES = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]


def stored(weight: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    groups = list(nvfp4.quantise(weight, scale))
    return torch.cat([numbers for numbers, _ in groups]), torch.cat([blocks for _, blocks in groups])


def there_and_back(weight: Tensor, scale: float | None = None) -> Tensor:
    scale = scale or scale_for(largest(weight), nvfp4.LARGEST)
    return nvfp4.dequantise(*stored(weight, scale), torch.tensor(scale), tuple(weight.shape))


def relative_error(weight: Tensor, scale: float | None = None) -> float:
    return float((there_and_back(weight, scale) - weight).norm() / weight.norm())


def test_each_number_becomes_the_nearest_and_halves_the_even_one():
    """A block whose largest number is 6 has a scale of one, so these are rounded as they stand."""
    numbers = [0.24, 0.25, 0.26, 0.75, 0.74, 1.25, 1.26, 1.75, 1.74, 2.5, 2.51, 3.5, 3.49, 5.0, 5.01, 6.0]
    expected = [0.0, 0.0, 0.5, 1.0, 0.5, 1.0, 1.5, 2.0, 1.5, 2.0, 3.0, 4.0, 3.0, 4.0, 6.0, 6.0]
    weight = torch.tensor([numbers, [-number for number in numbers]])
    found = there_and_back(weight, 1.0)
    assert found.tolist() == [expected, [-number for number in expected]]


def test_values_are_kept_exactly_whatever_power_of_two_they_are_multiplied_by():
    signed = torch.tensor(VALUES + [-value for value in VALUES])
    weight = signed.repeat(5, 3) * torch.tensor([1.0, 2.0**-20, 2.0**10, 2.0**-7, 1.0]).unsqueeze(1)
    assert torch.equal(there_and_back(weight, 2.0**2), torch.where(weight.abs() < 2.0**-10, 0.0, weight)), (
        "a block too small is zero"
    )
    assert torch.equal(there_and_back(weight[1:2]), weight[1:2])


def test_two_numbers_a_byte_the_left_one_above():
    weight = torch.zeros(1, 16)
    weight[0, :4] = torch.tensor([6.0, -0.5, 3.0, 1.0])
    numbers, _ = stored(weight, 1.0)
    assert numbers.shape == (16, 8)
    assert numbers[0, :3].tolist() == [0x79, 0x52, 0]
    assert not numbers[1:].any()


def test_block_scales_lie_in_tiles():
    """Row 32 a + b and column c of a tile at byte 16 b + 4 a + c, tiles one after another."""
    weight = torch.zeros(200, 7 * 16)
    for row, column, size in ((0, 0, 1), (1, 0, 2), (33, 2, 3), (127, 3, 4), (5, 6, 5), (199, 5, 6)):
        weight[row, column * 16] = 6.0 * size
    _, blocks = stored(weight, 1.0)
    assert blocks.shape == (256, 8)
    flat = blocks.float().flatten()
    tile = 128 * 4
    expected = {0: 1, 16: 2, 16 + 4 + 2: 3, 16 * 31 + 4 * 3 + 3: 4, tile + 16 * 5 + 2: 5}
    expected[3 * tile + 16 * 7 + 4 * 2 + 1] = 6  # row 199 = 128 + 2 * 32 + 7
    assert {i: int(flat[i]) for i in flat.nonzero().flatten().tolist()} == expected


@pytest.mark.parametrize("shape", [(1, 1), (16, 16), (7, 5), (132, 168), (300, 24), (128, 64)])
def test_any_shape_comes_back(shape):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    assert tuple(part.shape for part in stored(weight, 1.0)) == nvfp4.stored_shapes(shape)
    assert (there_and_back(weight) - weight).abs().max() <= weight.abs().max() / 6


def test_zeros_and_the_smallest_numbers():
    assert torch.equal(there_and_back(torch.zeros(4, 16)), torch.zeros(4, 16))
    tiny = torch.full((4, 16), 1e-45)
    assert there_and_back(tiny).abs().max() <= 1e-44


def test_error_of_one_scale_for_experts_of_different_size_at_real_width(record_property):
    """Each expert ten times smaller than the one before, with outliers: they lose nothing by sharing a scale."""
    generator = torch.Generator().manual_seed(0)
    experts = [torch.randn(512, 5120, generator=generator).mul_(size) for size in (0.02, 0.002, 0.0002)]
    for expert in experts:
        expert.view(-1)[:: 2**18] *= 100
    shared = scale_for(max(largest(expert) for expert in experts), nvfp4.LARGEST)
    own = [relative_error(expert) for expert in experts]
    together = [relative_error(expert, shared) for expert in experts]
    record_property("relative_error_with_a_scale_per_expert", own)
    record_property("relative_error_with_a_scale_per_stack", together)
    assert max(together) < 0.095
    assert together == pytest.approx(own, rel=1e-4)


def test_memory_beside_the_weight_is_for_some_rows():
    weight = torch.randn(4096, 1024)
    with PeakMemory() as memory:
        for _ in nvfp4.quantise(weight, 2.0**-9):
            pass
    assert 0 < memory.peak < weight.nbytes / 4


# Loading


def test_the_released_transformer_is_known_by_packed_shapes():
    """Several of its matrices are filled up, so their rows are no whole numbers of heads any more."""
    golden = json.loads((Path(__file__).parents[1] / "golden" / "full_size_transformer.json").read_text())
    shapes = {name: tuple(shape) for name, (_, shape) in golden.items()}
    packed = dict(shapes)
    for name in [name for name, (dtype, _) in golden.items() if dtype == "bfloat16"]:
        packed[name], packed[f"{name}_scale"] = nvfp4.stored_shapes(shapes[name])
        packed[f"{name}_scale_2"], packed[f"{name.removesuffix('weight')}comfy_quant"] = (), (19,)
    qkv, up_gate = "block.layers.0.attention.linear_qkv.weight", "block.layers.9.mlp.up_gate_proj.weight"
    assert (shapes[qkv][0], packed[qkv][0]) == (21624, 21632)
    assert (shapes[up_gate][0], packed[up_gate][0]) == (27304, 27312)
    assert detect_transformer(packed, where="packed") == detect_transformer(shapes, where="full")
    packed[up_gate] = (27328, 2560)
    with pytest.raises(CheckpointError, match="27328 rows, expected 27304"):
        detect_transformer(packed, where="packed")


class Net(nn.Module):
    def __init__(self, rows: int = 20, columns: int = 24) -> None:
        super().__init__()
        self.first = nn.Module()
        self.first.weight = nn.Parameter(torch.empty(rows, columns, device="meta"))


WEIGHT = torch.randn(20, 24, generator=torch.Generator().manual_seed(3))


def tensors(**changes: Tensor | None) -> dict[str, Tensor]:
    scale = scale_for(largest(WEIGHT), nvfp4.LARGEST)
    numbers, blocks = stored(WEIGHT, scale)
    note = torch.frombuffer(bytearray(json.dumps({"format": "nvfp4"}).encode()), dtype=torch.uint8)
    found = {"weight": numbers, "weight_scale": blocks, "weight_scale_2": torch.tensor(scale), "comfy_quant": note}
    found |= changes
    return {f"first.{name}": tensor for name, tensor in found.items() if tensor is not None}


def test_a_module_gets_its_own_shape(tmp_path):
    """Also where a program wrote the block scales' bytes as such, the scale as [1], and a scale for activations."""
    for changes in ({}, {"weight_scale_2": torch.tensor([2.0**-9]), "input_scale": torch.tensor(0.5)}):
        content = tensors(**changes)
        if changes:
            content["first.weight_scale"] = content["first.weight_scale"].view(torch.uint8)
        net = Net()
        load_module(net, open_source(saved(tmp_path / "net.safetensors", content)))
        scale = content["first.weight_scale_2"].reshape(())
        expected = nvfp4.dequantise(content["first.weight"], content["first.weight_scale"], scale, (20, 24))
        assert torch.equal(net.first.weight, expected)
    assert relative_error(WEIGHT) < 0.12


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"weight_scale_2": None}, "first.weight_scale and first.weight_scale_2 are expected"),
        ({"weight_scale": None}, "first.weight_scale and first.weight_scale_2 are expected"),
        ({"weight_scale": torch.zeros(32, 4).to(torch.float8_e4m3fn)}, "make no matrix in nvfp4"),
        ({"weight_scale": torch.zeros(128, 4)}, "make no matrix in nvfp4"),
        ({"weight_scale_2": torch.zeros(2)}, "make no matrix in nvfp4"),
        ({"weight": torch.zeros(20, 12, dtype=torch.uint8)}, "make no matrix in nvfp4"),
        ({"weight": torch.zeros(48, 16, dtype=torch.uint8)}, "has shape [48, 32], expected [20, 24]"),
        ({"comfy_quant": torch.tensor(list(b'{"format": "mxfp4"}'), dtype=torch.uint8)}, "found format mxfp4"),
        ({"comfy_quant": torch.tensor(list(b"nvfp4"), dtype=torch.uint8)}, "expected JSON that names a format"),
        ({"comfy_quant": None}, "scales have no float8 weight"),
    ],
)
def test_what_is_refused(tmp_path, changes, words):
    with pytest.raises(CheckpointError) as caught:
        load_module(Net(), open_source(saved(tmp_path / "net.safetensors", tensors(**changes))))
    assert words in str(caught.value)
    assert "net.safetensors" in str(caught.value)
