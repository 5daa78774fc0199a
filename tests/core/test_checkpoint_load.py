"""Modules built without memory and filled from checkpoints: strictly, in their own dtypes, a tensor at a time."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from happyhorse_core.errors import CheckpointError
from happyhorse_core.ops import TorchOps
from happyhorse_core.weights.fill import load_module
from happyhorse_core.weights.source import TensorSource, open_source


class Scale(nn.Module):
    """A leaf with a parameter, a persistent buffer and an integer one."""

    def __init__(self, *, dtype: torch.dtype | None, device: torch.device | str | None) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.empty(5, dtype=dtype, device=device))
        self.register_buffer("mean", torch.empty(5, dtype=torch.float32, device=device))
        self.register_buffer("count", torch.empty((), dtype=torch.int64, device=device))


class Net(nn.Module):
    def __init__(self, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None) -> None:
        super().__init__()
        self.first = TorchOps.Linear(3, 7, dtype=dtype, device=device)
        self.blocks = nn.ModuleList([TorchOps.Linear(7, 5, bias=False, dtype=dtype, device=device)])
        self.scale = Scale(dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](self.first(x)) * self.scale.gain.to(x.dtype) + self.scale.mean.to(x.dtype)


def net_tensors() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    shapes = {"first.weight": (7, 3), "first.bias": (7,), "blocks.0.weight": (5, 7), "scale.gain": (5,)}
    tensors = {name: torch.randn(*shape, generator=generator) for name, shape in shapes.items()}
    return tensors | {"scale.mean": torch.randn(5, generator=generator), "scale.count": torch.tensor(41)}


def saved(folder: Path, tensors: Mapping[str, Tensor]) -> TensorSource:
    save_file(dict(tensors), folder / "net.safetensors")
    return open_source(folder / "net.safetensors")


def loaded(source: TensorSource, dtype: torch.dtype = torch.float32, **options: object) -> Net:
    net = Net(dtype=dtype, device="meta")
    load_module(net, source, **options)
    return net


def assert_refused(source: TensorSource, *parts: str, **options: object) -> None:
    with pytest.raises(CheckpointError) as caught:
        loaded(source, **options)
    for part in (str(source.path), *parts):
        assert part in str(caught.value)


# What is loaded


def test_everything_is_in_place(tmp_path: Path) -> None:
    net = loaded(saved(tmp_path, net_tensors()))
    assert net.state_dict().keys() == net_tensors().keys()
    for name, tensor in net.state_dict().items():
        assert tensor.device.type == "cpu"
        assert torch.equal(tensor, net_tensors()[name]), name
    assert all(isinstance(parameter, nn.Parameter) for parameter in net.parameters())
    assert len(list(net.parameters())) == 4
    assert not any(parameter.requires_grad for parameter in net.parameters())


def test_the_module_computes(tmp_path: Path) -> None:
    net = loaded(saved(tmp_path, net_tensors()))
    t = net_tensors()
    x = torch.randn(2, 3)
    expected = (x @ t["first.weight"].T + t["first.bias"]) @ t["blocks.0.weight"].T * t["scale.gain"] + t["scale.mean"]
    assert torch.allclose(net(x), expected, atol=1e-5)
    assert not net(x).requires_grad


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32, torch.float64, torch.float8_e4m3fn])
@pytest.mark.parametrize("built", [torch.float32, torch.bfloat16])
def test_dtypes_of_file_and_module(tmp_path: Path, stored: torch.dtype, built: torch.dtype) -> None:
    tensors = {name: t.to(stored) if t.is_floating_point() else t for name, t in net_tensors().items()}
    net = loaded(saved(tmp_path, tensors), built)
    assert net.first.weight.dtype == built
    assert torch.equal(net.first.weight, tensors["first.weight"].to(built))
    assert net.scale.mean.dtype == torch.float32, "a buffer keeps the dtype that the module gave it"
    assert net.scale.count.dtype == torch.int64


def test_dtype_by_name(tmp_path: Path) -> None:
    def dtype_of(name: str, tensor: Tensor) -> torch.dtype:
        return torch.float16 if name == "blocks.0.weight" else tensor.dtype

    net = loaded(saved(tmp_path, net_tensors()), torch.bfloat16, dtype_of=dtype_of)
    assert net.blocks[0].weight.dtype == torch.float16
    assert net.first.weight.dtype == torch.bfloat16


def test_from_a_pickle_and_through_views(tmp_path: Path) -> None:
    torch.save({"model": {f"net.{name}": tensor for name, tensor in net_tensors().items()}}, tmp_path / "net.pth")
    net = loaded(open_source(tmp_path / "net.pth", prefix="net."))
    assert torch.equal(net.scale.gain, net_tensors()["scale.gain"])
    view = open_source(tmp_path / "net.pth").renamed(lambda name: name.removeprefix("net."))
    assert torch.equal(loaded(view).first.bias, net_tensors()["first.bias"])


def test_loaded_module_outlives_its_source(tmp_path: Path) -> None:
    with saved(tmp_path, net_tensors()) as source:
        net = loaded(source)
    (tmp_path / "net.safetensors").unlink()
    assert torch.equal(net.first.weight, net_tensors()["first.weight"])


def test_progress_counts_bytes_and_may_stop(tmp_path: Path) -> None:
    source = saved(tmp_path, net_tensors())
    calls: list[tuple[int, int]] = []
    loaded(source, progress=lambda done, total: calls.append((done, total)))
    total = sum(tensor.nbytes for tensor in net_tensors().values())
    assert [call[1] for call in calls] == [total] * 6
    assert calls[-1][0] == total
    assert all(before[0] < after[0] for before, after in zip(calls, calls[1:], strict=False))

    def stop(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        loaded(source, progress=stop)


# What is refused


def test_missing_tensors(tmp_path: Path) -> None:
    tensors = net_tensors()
    del tensors["first.bias"], tensors["scale.mean"]
    assert_refused(saved(tmp_path, tensors), "2 of 6 tensors are missing: first.bias, scale.mean")


def test_many_missing_tensors_are_counted_and_some_named(tmp_path: Path) -> None:
    assert_refused(saved(tmp_path, {"other": torch.ones(1)}), "6 of 6 tensors are missing: first.weight,", "and 1 more")


def test_extra_tensors_unless_ignored(tmp_path: Path) -> None:
    source = saved(tmp_path, net_tensors() | {"decoder.a": torch.ones(1), "decoder.b": torch.ones(1)})
    assert_refused(source, "2 tensors are not expected: decoder.a, decoder.b")
    assert_refused(source, "1 tensors are not expected: decoder.b", ignore=("*.a",))
    loaded(source, ignore=("decoder.*",))


def test_ignoring_does_not_excuse_missing_ones(tmp_path: Path) -> None:
    tensors = net_tensors()
    del tensors["first.bias"]
    assert_refused(saved(tmp_path, tensors), "missing: first.bias", ignore=("*",))


def test_wrong_shapes(tmp_path: Path) -> None:
    tensors = net_tensors() | {"first.weight": torch.ones(3, 7), "scale.gain": torch.ones(6)}
    assert_refused(
        saved(tmp_path, tensors),
        "2 tensors don't fit",
        "first.weight in net.safetensors has shape [3, 7], expected [7, 3]",
        "scale.gain in net.safetensors has shape [6], expected [5]",
    )


def test_integers_in_place_of_weights(tmp_path: Path) -> None:
    tensors = net_tensors() | {"blocks.0.weight": torch.ones(5, 7, dtype=torch.int8)}
    assert_refused(saved(tmp_path, tensors), "blocks.0.weight in net.safetensors is stored as torch.int8")


@pytest.mark.parametrize("spoil", [{"first.bias": None}, {"more": torch.ones(1)}, {"scale.gain": torch.ones(9)}])
def test_nothing_is_touched_when_refused(tmp_path: Path, spoil: dict[str, Tensor | None]) -> None:
    tensors = {name: tensor for name, tensor in (net_tensors() | spoil).items() if tensor is not None}
    net = Net(device="meta")
    with pytest.raises(CheckpointError):
        load_module(net, saved(tmp_path, tensors))
    assert all(tensor.is_meta for tensor in net.state_dict().values())


def test_buffer_that_no_checkpoint_fills(tmp_path: Path) -> None:
    net = Net(device="meta")
    net.scale.register_buffer("table", torch.empty(4, device="meta"), persistent=False)
    with pytest.raises(RuntimeError, match=r"scale\.table"):
        load_module(net, saved(tmp_path, net_tensors()))
    net.scale.table = torch.arange(4)
    load_module(net, saved(tmp_path, net_tensors()))
    assert net.scale.table.tolist() == [0, 1, 2, 3]


def test_file_that_vanished_after_it_was_opened(tmp_path: Path) -> None:
    source = saved(tmp_path, net_tensors())
    (tmp_path / "net.safetensors").unlink()
    assert_refused(source, "no such file")


# Scaled float8

KEY = "blocks.0.weight"
SCALE_KEYS = ["blocks.0.weight.__fp8_scale", "blocks.0.weight_scale", "blocks.0.scale_weight"]


def quantised(scale_key: str | None, scale: Tensor, dtype: torch.dtype = torch.float8_e4m3fn) -> dict[str, Tensor]:
    """The net's tensors with one weight divided by a scale (that may be one number a row) and rounded to float8."""
    tensors = net_tensors()
    tensors[KEY] = (tensors[KEY] / scale.reshape(-1, 1)).to(dtype)
    return tensors | ({scale_key: scale} if scale_key else {})


@pytest.mark.parametrize("key", SCALE_KEYS)
@pytest.mark.parametrize("built", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1), (5,), (5, 1)])
def test_scale_is_applied(tmp_path: Path, key: str, built: torch.dtype, shape: tuple[int, ...]) -> None:
    scale = torch.full(shape, 0.01) if torch.Size(shape).numel() == 1 else torch.linspace(0.01, 0.05, 5).reshape(shape)
    tensors = quantised(key, scale)
    net = loaded(saved(tmp_path, tensors), built)
    exact = tensors[KEY].float() * scale.reshape(-1, 1)
    assert torch.equal(net.blocks[0].weight, exact.to(built))
    assert (net.blocks[0].weight.float() - net_tensors()[KEY]).abs().max() < 0.07 * net_tensors()[KEY].abs().max()


def test_comfyui_notes_are_read(tmp_path: Path) -> None:
    def note(text: str) -> Tensor:
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    tensors = quantised("blocks.0.weight_scale", torch.tensor(0.01))
    tensors |= {"blocks.0.input_scale": torch.tensor(0.5), "scaled_fp8": torch.empty(0, dtype=torch.float8_e4m3fn)}
    net = loaded(saved(tmp_path, tensors | {"blocks.0.comfy_quant": note(json.dumps({"format": "float8_e4m3fn"}))}))
    assert torch.equal(net.blocks[0].weight, tensors[KEY].float() * 0.01)
    for text, said in (
        ('{"format": "mxfp8"}', "found format mxfp8"),
        ("[]", "JSON that names"),
        ("?", "JSON that names"),
    ):
        source = saved(tmp_path, tensors | {"blocks.0.comfy_quant": note(text)})
        assert_refused(source, "blocks.0.comfy_quant", said)


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (torch.ones(7), "scale of shape [7]"),
        (torch.ones(1, 7), "scale of shape [1, 7]"),
        (torch.ones(5, 7), "scale of shape [5, 7]"),
        (torch.ones(0), "scale of shape [0]"),
        (torch.ones(5, dtype=torch.uint8), "a torch.uint8 scale"),
    ],
)
def test_scale_of_another_kind(tmp_path: Path, scale: Tensor, said: str) -> None:
    tensors = quantised(None, torch.tensor(0.01)) | {SCALE_KEYS[0]: scale}
    assert_refused(saved(tmp_path, tensors), f"tensor {KEY} of shape [5, 7]", said)


def test_two_scales(tmp_path: Path) -> None:
    tensors = quantised(SCALE_KEYS[0], torch.tensor(0.01)) | {SCALE_KEYS[1]: torch.tensor(0.01)}
    assert_refused(saved(tmp_path, tensors), "found two scales", *SCALE_KEYS[:2])


def test_scale_lost_from_one_of_several(tmp_path: Path) -> None:
    tensors = quantised(SCALE_KEYS[0], torch.tensor(0.01))
    tensors["first.weight"] = tensors["first.weight"].to(torch.float8_e4m3fn)
    assert_refused(saved(tmp_path, tensors), "1 float8 tensors have no scale in a file of scaled ones: first.weight")


def test_scale_without_float8(tmp_path: Path) -> None:
    tensors = net_tensors() | {SCALE_KEYS[0]: torch.tensor(0.01)}
    assert_refused(saved(tmp_path, tensors), f"no float8 weight: {SCALE_KEYS[0]}", "a weight of torch.float32")
    del tensors["blocks.0.weight"]
    assert_refused(saved(tmp_path, tensors), f"no float8 weight: {SCALE_KEYS[0]}", "there is no weight")


# Memory


class Wide(nn.Module):
    def __init__(self, *, dtype: torch.dtype, device: str) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            [TorchOps.Linear(1024, 1024, bias=False, dtype=dtype, device=device) for _ in range(12)]
        )


def own_memory() -> int:
    """Bytes that this process holds itself, without the pages of mapped files."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0]) * 1024


@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")
@pytest.mark.parametrize(("built", "growth"), [(torch.float32, 0), (torch.bfloat16, 12 * 2**21)])
def test_peak_memory_is_the_module_and_one_tensor(tmp_path: Path, built: torch.dtype, growth: int) -> None:
    generator = torch.Generator().manual_seed(0)
    weights = {f"layers.{i}.weight": torch.randn(1024, 1024, generator=generator) for i in range(12)}
    source = saved(tmp_path, weights)
    wide = Wide(dtype=built, device="meta")
    seen = []
    before = own_memory()
    load_module(wide, source, progress=lambda done, total: seen.append(own_memory() - before))
    assert len(seen) == 12
    assert max(seen) < growth + 3 * 2**22, "of 48 MB on disk"
    assert torch.equal(wide.layers[11].weight, weights["layers.11.weight"].to(built))
