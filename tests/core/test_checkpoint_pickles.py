"""Pickled checkpoints: read where they hold tensors alone, never run."""

import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import pytest
import torch
from checkpoint_helpers import assert_refused, assert_same, some_tensors
from torch import Tensor

from happyhorse_core.errors import CheckpointError
from happyhorse_core.weights.source import open_source
from tools.mutate_pickles import TENSOR_FORMS


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "ema_state_dict"])
def test_pickled(tmp_path: Path, wrapper: str | None, zipped: bool) -> None:
    path = tmp_path / "weights.pth"
    content: dict = some_tensors() if wrapper is None else {wrapper: some_tensors(), "epoch": 3, "loss": None}
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    with open_source(path) as source:
        assert_same(source, some_tensors())


def test_pickled_prefers_smoothed_weights_and_drops_module(tmp_path: Path) -> None:
    smoothed = {("module." if "weight" in name else "") + name: tensor for name, tensor in some_tensors().items()}
    torch.save({"state_dict": {"other": torch.ones(2)}, "ema_state_dict": smoothed}, tmp_path / "turbo.ckpt")
    assert_same(open_source(tmp_path / "turbo.ckpt"), some_tensors())


def test_pickled_with_both_names_of_one_tensor_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "module.a": torch.zeros(2)}, tmp_path / "turbo.ckpt")
    assert_refused(tmp_path / "turbo.ckpt", "both a and module.a")


class Bait:
    """Runs ``call(*arguments)`` in any program that unpickles it carelessly."""

    def __init__(self, call: object, *arguments: object) -> None:
        self.reduced = call, arguments

    def __reduce__(self) -> tuple:
        return self.reduced


class Innocent:
    """A class of a training program's own."""


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("form", ["archive", "legacy", "bare"])
@pytest.mark.parametrize("call", ["os.system", "exec"])
def test_pickle_with_code_is_not_run(tmp_path: Path, form: str, call: str) -> None:
    mark = tmp_path / "ran"
    bait = Bait(os.system, f"touch {mark}") if call == "os.system" else Bait(exec, f"open({str(mark)!r}, 'w').close()")
    content = {"state_dict": some_tensors(), "callbacks": bait}
    named = [] if form == "bare" else ["(posix.system)" if call == "os.system" else "(exec)"]
    path = tmp_path / "evil.ckpt"
    if form == "bare":
        path.write_bytes(pickle.dumps({"callbacks": bait}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=form == "archive")
    assert_refused(path, "wants to run code", "was not run", "safetensors", *named)
    assert not mark.exists()
    pickle.loads(path.read_bytes()) if form == "bare" else torch.load(path, weights_only=False)
    assert mark.exists(), "the bait is dead, so the test shows nothing"


def test_pickle_with_a_class_of_its_own(tmp_path: Path) -> None:
    torch.save({"state_dict": some_tensors(), "config": Innocent()}, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "wants to run code", "Innocent")


class Doubled(torch.nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * x


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_compiled_program(tmp_path: Path) -> None:
    torch.jit.script(Doubled()).save(tmp_path / "x.pt")
    assert_refused(tmp_path / "x.pt", "a compiled program (TorchScript)", "safetensors")


def test_tar(tmp_path: Path) -> None:
    (tmp_path / "storages").write_bytes(b"x")
    with tarfile.open(tmp_path / "x.pth", "w") as archive:
        archive.add(tmp_path / "storages", "storages")
    assert_refused(tmp_path / "x.pth", "a tar", "safetensors")


def test_zip_of_something_else(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.ckpt", "w") as archive:
        archive.writestr("holiday.txt", "not weights")
    assert_refused(tmp_path / "x.ckpt", "is no PyTorch weights file")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("kept", [0.05, 0.3, 0.6, 0.9, 0.99])
def test_truncated_pickle(tmp_path: Path, zipped: bool, kept: float) -> None:
    path = tmp_path / "x.ckpt"
    torch.save(some_tensors() | {"long": torch.ones(999)}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * kept))
    assert_refused(path, "is no PyTorch weights file")


@pytest.mark.parametrize("seed", range(40))
def test_damaged_pickle_raises_nothing_unforeseen(tmp_path: Path, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    path = tmp_path / "x.ckpt"
    torch.save(some_tensors(), path, _use_new_zipfile_serialization=seed % 2 == 0)
    content = bytearray(path.read_bytes())
    for position in torch.randint(0, min(len(content), 900), (12,), generator=generator).tolist():
        content[position] = int(torch.randint(0, 256, (), generator=generator))
    path.write_bytes(content)
    try:
        open_source(path)
    except CheckpointError as error:
        assert str(path) in str(error)


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.ones(2)], torch.ones(2), {"state_dict": {"a": 1}}, {}])
def test_pickle_without_named_tensors(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "no named tensors")


def test_pickle_that_holds_itself(tmp_path: Path) -> None:
    content: dict = {"a": torch.ones(2)}
    content["model"] = content
    torch.save(content, tmp_path / "x.pth")
    assert_refused(tmp_path / "x.pth", "no named tensors")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize(
    ("form", "said"),
    [("sparse", "sparse"), ("meta", "without values"), ("quantised", "quantised"), ("huge", "fewer numbers")],
)
def test_pickled_tensor_that_is_not_plain_is_refused(tmp_path: Path, form: str, said: str) -> None:
    odd = TENSOR_FORMS[form](torch.ones(3, 2))
    torch.save(some_tensors() | {"odd": odd}, tmp_path / "x.ckpt")
    assert_refused(tmp_path / "x.ckpt", "tensor 'odd'", said)


def test_archive_that_unfolds_in_memory_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(1000)}, tmp_path / "plain.ckpt")
    with (
        zipfile.ZipFile(tmp_path / "plain.ckpt") as plain,
        zipfile.ZipFile(tmp_path / "packed.ckpt", "w", zipfile.ZIP_DEFLATED) as packed,
    ):
        for record in plain.infolist():
            packed.writestr(record.filename, plain.read(record))
    assert_refused(tmp_path / "packed.ckpt", "record", "found it compressed")


def test_archive_with_a_huge_pickle_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "large.ckpt"
    torch.save({"a": torch.ones(1), "b": "x" * ((64 << 20) + 1)}, path)
    assert_refused(path, "record data.pkl", "at most 67,108,864 are read")


def test_a_shape_from_which_no_network_could_be_built_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.empty(2**40, 0)}, tmp_path / "x.ckpt")
    assert_refused(tmp_path / "x.ckpt", "tensor a: found shape (1099511627776, 0)")


@pytest.mark.parametrize("name", ["x.ckpt", "x.safetensors", "x.safetensors.index.json"])
def test_a_terabyte_of_nothing_is_refused_at_once(tmp_path: Path, name: str) -> None:
    (tmp_path / name).touch()
    os.truncate(tmp_path / name, 1 << 40)
    assert_refused(tmp_path / name)
