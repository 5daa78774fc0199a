"""Checkpoints in each of their layouts, and every way in which a download goes wrong."""

import json
import mmap
import os
import platform
import struct
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import torch
from checkpoint_helpers import assert_refused, assert_same, some_tensors
from safetensors.torch import save_file

from happyhorse_core.describe.kinds import open_kind
from happyhorse_core.errors import CheckpointError
from happyhorse_core.model_folder import find_models
from happyhorse_core.text.load import inspect_text_encoder
from happyhorse_core.weights.source import open_source

ROOT = Path(__file__).resolve().parents[2]
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 5221\n"


def write_sharded(folder: Path, **index_metadata: str) -> Path:
    """Two shards and their index; returns the index."""
    tensors = some_tensors()
    parts = {"m-00001-of-00002.safetensors": ["front.weight", "front.bias"]}
    parts["m-00002-of-00002.safetensors"] = [name for name in tensors if not name.startswith("front.")]
    folder.mkdir(exist_ok=True)
    for shard, names in parts.items():
        save_file({name: tensors[name] for name in names}, folder / shard, metadata={"format": "pt"})
    index = folder / "model.safetensors.index.json"
    weight_map = {name: shard for shard, names in parts.items() for name in names}
    index.write_text(json.dumps({"metadata": index_metadata, "weight_map": weight_map}))
    return index


def write_raw(path: Path, header: object, data: bytes = b"") -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# Layouts


def test_single_file(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors", metadata={"role": "distill"})
    with open_source(str(tmp_path / "one.safetensors")) as source:
        assert_same(source, some_tensors())
        assert source.metadata == {"role": "distill"}
        assert source.path == tmp_path / "one.safetensors"


def test_folder_with_one_file_and_hidden_companions(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors")
    (tmp_path / "._one.safetensors").write_bytes(b"left by a Mac")
    (tmp_path / "config.json").write_text("{}")
    assert_same(open_source(tmp_path), some_tensors())


@pytest.mark.parametrize("by_index", [False, True])
def test_sharded_folder(tmp_path: Path, by_index: bool) -> None:
    index = write_sharded(tmp_path / "distill", quantization="none")
    with open_source(index if by_index else index.parent) as source:
        assert_same(source, some_tensors())
        assert source.metadata == {"format": "pt", "quantization": "none"}


def test_prefix_needs_only_the_shards_that_hold_it(tmp_path: Path) -> None:
    index = write_sharded(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    source = open_source(index, prefix="front.")
    assert set(source.names) == {"weight", "bias"}
    assert torch.equal(source.read("weight"), some_tensors()["front.weight"])


def test_tensors_that_the_index_forgot_are_there(tmp_path: Path) -> None:
    index = write_sharded(tmp_path)
    content = json.loads(index.read_text())
    del content["weight_map"]["front.bias"]
    index.write_text(json.dumps(content))
    assert "front.bias" in open_source(tmp_path)


def test_index_decides_between_two_files_with_one_tensor(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    second = tmp_path / "m-00002-of-00002.safetensors"
    stale = {name: tensor for name, tensor in some_tensors().items() if not name.startswith("front.")}
    save_file(stale | {"front.bias": torch.zeros(7)}, second)
    assert_same(open_source(tmp_path), some_tensors())


@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "bool", "uint8", "float64", "int8"])
def test_dtypes(tmp_path: Path, name: str) -> None:
    tensors = {"x": torch.tensor([[0, 1, 2]]).to(getattr(torch, name))}
    save_file(tensors, tmp_path / "x.safetensors")
    found = open_source(tmp_path).read("x")
    assert found.dtype == tensors["x"].dtype
    assert torch.equal(found.float(), tensors["x"].float())


def test_tensor_that_is_not_aligned(tmp_path: Path) -> None:
    header = {
        "byte": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [1, 9]},
    }
    path = write_raw(tmp_path / "x.safetensors", header, b"\x07" + struct.pack("<2f", 1.5, -2.0))
    assert open_source(path).read("x").tolist() == [1.5, -2.0]


# Views


def test_sub_and_renamed(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors")
    source = open_source(tmp_path)
    view = source.sub("front.").renamed({"weight": "w", "bias": None}.get)
    assert view.names == ("w",)
    assert "w" in view
    assert "front.weight" not in view
    assert torch.equal(view.read("w"), some_tensors()["front.weight"])
    assert len(source.sub("absent.")) == 0


def test_renamed_to_one_name_is_refused(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"front\.\w+ and front\.\w+ both stand for front"):
        open_source(tmp_path).renamed(lambda name: name.partition(".")[0])


def test_reading_an_absent_tensor(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match="no tensor named other among 5"):
        open_source(tmp_path).read("other")


def test_absent_prefix(tmp_path: Path) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors")
    with pytest.raises(CheckpointError, match=r"begins with encoder\.; found .*front"):
        open_source(tmp_path, prefix="encoder.")


def test_tensors_outlive_the_source_and_writing_spares_the_file(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file(some_tensors(), path)
    before = path.read_bytes()
    with open_source(path) as source:
        weight = source.read("front.weight")
    assert torch.equal(weight, some_tensors()["front.weight"])
    weight.zero_()
    assert path.read_bytes() == before


# Memory


@pytest.mark.skipif(sys.platform != "linux", reason="limits on address space are the kernel's own")
def test_file_too_large_to_map_is_read_tensor_by_tensor(tmp_path: Path) -> None:
    size = 4 << 30
    path = tmp_path / "large.safetensors"
    header = {
        "filler": {"dtype": "U8", "shape": [64, size // 64], "data_offsets": [0, size]},
        "x": {"dtype": "F32", "shape": [2], "data_offsets": [size, size + 8]},
    }
    write_raw(path, header)
    with path.open("r+b") as file:
        file.seek(size, os.SEEK_END)
        file.write(struct.pack("<2f", 1.5, -2.0))
    program = f"""
        import resource, sys
        sys.path.append({str(ROOT)!r})
        from happyhorse_core.weights.source import open_source
        source = open_source({str(path)!r})
        used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
        assert source.read("x").tolist() == [1.5, -2.0]
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


@pytest.mark.skipif(platform.machine() not in ("x86_64", "aarch64") or sys.platform != "linux", reason="of Linux only")
def test_opening_and_mapping_more_than_the_machine_has(tmp_path: Path) -> None:
    size = 2 * os.sysconf("SC_PHYS_PAGES") * mmap.PAGESIZE
    path = tmp_path / "huge.safetensors"
    header = {"x": {"dtype": "F32", "shape": [size // 4096, 1024], "data_offsets": [0, size]}}
    text = json.dumps(header)
    write_raw(path, text.ljust(-(-len(text) // 8) * 8).encode())
    os.truncate(path, path.stat().st_size + size)
    assert open_source(path).read("x")[-1, -3:].tolist() == [0, 0, 0]


# Paths


def test_missing_file_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "other.safetensors").touch()
    assert_refused(tmp_path / "absent.safetensors", "no such file or folder", "other.safetensors")


def test_missing_file_in_a_missing_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path / "gone" / "absent.safetensors", "no such file or folder", "is not there either")


def test_link_to_nothing(tmp_path: Path) -> None:
    (tmp_path / "one.safetensors").symlink_to(tmp_path / "blob")
    assert_refused(tmp_path / "one.safetensors", f"a link to {tmp_path / 'blob'}, which does not exist")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such pipes")
def test_pipe(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "one.safetensors")
    assert_refused(tmp_path / "one.safetensors", "a device or a pipe")


@pytest.mark.skipif(sys.platform == "win32", reason="has no such pipes")
@pytest.mark.parametrize("name", ["model.safetensors.index.json", "m-00002-of-00002.safetensors"])
def test_pipe_in_a_folder(tmp_path: Path, name: str) -> None:
    write_sharded(tmp_path)
    (tmp_path / name).unlink()
    os.mkfifo(tmp_path / name)
    assert_refused(tmp_path, name, "a device or a pipe")


@pytest.mark.parametrize(("begin", "said"), [(4, "x and y lie on the same bytes"), (12, "leave 4 bytes between")])
def test_tensors_that_share_bytes_or_leave_some(tmp_path: Path, begin: int, said: str) -> None:
    header = {"x": FLOAT, "y": {"dtype": "F32", "shape": [2], "data_offsets": [begin, begin + 8]}}
    assert_refused(write_raw(tmp_path / "x.safetensors", header, bytes(begin + 8)), said)


def test_unknown_kind(tmp_path: Path) -> None:
    (tmp_path / "one.zip").write_bytes(b"PK")
    assert_refused(tmp_path / "one.zip", "unknown kind", ".safetensors")


def test_empty_folder(tmp_path: Path) -> None:
    assert_refused(tmp_path, "the folder is empty", "expected one *.safetensors.index.json")


def test_folder_without_weights_names_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "config.json").touch()
    (tmp_path / "transformer").mkdir()
    assert_refused(tmp_path, "found config.json, transformer/;")


def test_folder_of_shards_without_an_index(tmp_path: Path) -> None:
    write_sharded(tmp_path).unlink()
    assert_refused(tmp_path, "m-00001-of-00002.safetensors, m-00002-of-00002.safetensors", "no index")


def test_folder_with_two_indexes(tmp_path: Path) -> None:
    index = write_sharded(tmp_path)
    (tmp_path / "other.safetensors.index.json").write_bytes(index.read_bytes())
    assert_refused(tmp_path, "several indexes: model.safetensors.index.json, other.safetensors.index.json")
    assert_same(open_source(index), some_tensors())


@contextmanager
def forbidden(mode: int, *, of_folder: bool) -> Iterator[Path]:
    """A folder with a weights file, one of them in ``mode``; root, who may read everything, becomes another user."""
    is_root = os.geteuid() == 0
    with TemporaryDirectory() as folder:
        path = Path(folder) / "one.safetensors"
        save_file(some_tensors(), path)
        path.with_suffix(".ckpt").write_bytes(b"x")
        for file in path, path.with_suffix(".ckpt"):
            file.chmod(0o644 if of_folder else mode)
        path.parent.chmod(mode if of_folder else 0o755)
        if is_root:
            os.seteuid(65534)
        try:
            yield path
        finally:
            if is_root:
                os.seteuid(0)
            path.parent.chmod(0o755)


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_file_that_may_not_be_read() -> None:
    with forbidden(0, of_folder=False) as path:
        assert_refused(path, "can't be read: Permission denied")
        assert_refused(path.with_suffix(".ckpt"), "can't be read: Permission denied")


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of another kind")
def test_folder_that_may_not_be_read() -> None:
    with forbidden(0, of_folder=True) as path:
        assert_refused(path.parent, "can't be read: Permission denied")
        assert_refused(path, "can't be read: Permission denied")


# Indexes


def test_missing_shard(tmp_path: Path) -> None:
    index = write_sharded(tmp_path)
    (tmp_path / "m-00002-of-00002.safetensors").unlink()
    assert_refused(index, "1 of the 2 files", "missing: m-00002-of-00002.safetensors")


def test_tensor_missing_from_its_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    shard = tmp_path / "m-00001-of-00002.safetensors"
    save_file({"front.weight": torch.ones(7, 3)}, shard)
    with pytest.raises(
        CheckpointError, match=r"1 tensors that the index places here are missing: front\.bias"
    ) as caught:
        open_source(tmp_path)
    assert str(shard) in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"weight_map": {"a": ', "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ("\u00e9\u00e9", "no valid JSON"),
        ("[]", "found a list of 0; expected a JSON object"),
        ("{}", "found no weight_map"),
        ('{"weight_map": {}}', "found no weight_map"),
        ('{"weight_map": {"a": 3}}', "tensor a: found 3; expected the name of a file"),
        ('{"weight_map": {"a": "../m-00001-of-00002.safetensors"}}', "expected the name of a file"),
        ('{"weight_map": {"a": "C:\\\\x.safetensors"}}', "expected the name of a file"),
        (LFS_POINTER, "Git LFS pointer"),
        ("", "an empty file"),
        ("<!DOCTYPE html><html></html>", "a web page"),
    ],
)
def test_broken_index(tmp_path: Path, text: str, said: str) -> None:
    index = write_sharded(tmp_path)
    index.write_text(text, encoding="latin-1")
    assert_refused(index, said)


# Damaged and foreign files


@pytest.mark.parametrize("name", ["one.safetensors", "one.ckpt", "one.pth"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (LFS_POINTER.encode(), "Git LFS pointer"),
        (b"<!DOCTYPE html><html><body>Sign in</body></html>", "a web page"),
        (b"\n  <HTML><head>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code>", "an XML document"),
        (b"GGUF\x03\x00\x00\x00" + bytes(100), "a GGUF file"),
    ],
)
def test_something_else_than_weights(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert_refused(tmp_path / name, said)


@pytest.mark.parametrize("kept", [0.999, 0.5, 0.1])
@pytest.mark.parametrize("sharded", [False, True])
def test_truncated_safetensors(tmp_path: Path, kept: float, sharded: bool) -> None:
    save_file(some_tensors(), tmp_path / "one.safetensors")
    path = tmp_path / "one.safetensors"
    if sharded:
        path = write_sharded(tmp_path).parent / "m-00001-of-00002.safetensors"
    size = path.stat().st_size
    os.truncate(path, int(size * kept))
    with pytest.raises(CheckpointError, match="incomplete") as caught:
        open_source(tmp_path / "model.safetensors.index.json" if sharded else path)
    assert str(path) in str(caught.value)
    assert f"found {int(size * kept):,}" in str(caught.value)
    if kept > 0.9:
        assert f"{size:,} bytes" in str(caught.value)


def test_lfs_pointer_as_shard(tmp_path: Path) -> None:
    write_sharded(tmp_path)
    shard = tmp_path / "m-00002-of-00002.safetensors"
    shard.write_text(LFS_POINTER)
    with pytest.raises(CheckpointError, match="Git LFS pointer") as caught:
        open_source(tmp_path)
    assert str(shard) in str(caught.value)


def test_safetensors_with_bytes_to_spare(tmp_path: Path) -> None:
    path = tmp_path / "one.safetensors"
    save_file(some_tensors(), path)
    path.write_bytes(path.read_bytes() + b"junk")
    assert_refused(path, "damaged", f"{path.stat().st_size - 4:,} bytes")


FLOAT = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (b"{not json at all}", "no valid JSON"),
        (b'{"x": ' + b"[" * 100_000, "no valid JSON"),
        ({"__metadata__": {"a": "b"}}, "no tensors"),
        ({}, "no tensors"),
        ({"x": {**FLOAT, "dtype": "F4"}}, "tensor x: found dtype 'F4'"),
        ({"x": {**FLOAT, "shape": [3]}}, "tensor x: F32 of shape [3] does not fit bytes 0 to 8"),
        ({"x": {**FLOAT, "shape": [-2]}}, "tensor x"),
        ({"x": {**FLOAT, "shape": [2.0]}}, "tensor x"),
        ({"x": {**FLOAT, "shape": 2}}, "tensor x"),
        (
            {"x": {**FLOAT, "shape": [2**62, 0], "data_offsets": [0, 0]}},
            "tensor x: found shape (4611686018427387904, 0)",
        ),
        ({"x": {**FLOAT, "shape": [2**28 + 1, 0], "data_offsets": [0, 0]}}, "each at most 268,435,456"),
        ({"x": {**FLOAT, "shape": [2, *[1] * 8]}}, "expected at most 8 dimensions"),
        ({"x": {**FLOAT, "shape": [2, *[1] * 10**5]}}, "expected at most 8 dimensions"),
        ({"x": {**FLOAT, "shape": [-(2**63), -(2**63)]}}, "tensor x"),
        ({"x": {**FLOAT, "data_offsets": [-8, 0]}}, "tensor x"),
        ({"x": {**FLOAT, "data_offsets": [2**63 - 8, 2**63 - 1]}}, "tensor x"),
        ({"x": {**FLOAT, "shape": [10**30]}}, "no valid JSON"),
        (b'{"x": {"dtype": "F32", "shape": [Infinity], "data_offsets": [0, 8]}}', "Infinity is no number"),
        (
            {f"x{n}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for n in range(100_001)},
            "found 100,001 tensors",
        ),
        ({"x": {**FLOAT, "data_offsets": [8, 0]}}, "tensor x"),
        ({"x": {**FLOAT, "data_offsets": [0]}}, "tensor x"),
        ({"x": {"dtype": "F32"}}, "tensor x"),
        ({"x": "F32"}, "tensor x"),
    ],
)
def test_broken_header(tmp_path: Path, header: object, said: str) -> None:
    data = bytes(8) if isinstance(header, dict) and "x" in header else b""
    assert_refused(write_raw(tmp_path / "x.safetensors", header, data), said)


def test_a_header_whose_length_begins_like_a_pickle(tmp_path: Path) -> None:
    header = json.dumps({"a": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]}}).encode().ljust(0x80)
    assert struct.pack("<Q", len(header)).startswith(b"\x80")
    assert open_source(write_raw(tmp_path / "m.safetensors", header, b"\7")).read("a").item() == 7


@pytest.mark.parametrize("content", [b"abc", bytes(8), bytes(200), b"\xff" * 64, b"weights, surely" * 9])
def test_not_safetensors(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    assert_refused(tmp_path / "x.safetensors", "is no safetensors file")


def test_kinds_under_each_others_names(tmp_path: Path) -> None:
    torch.save(some_tensors(), tmp_path / "x.safetensors")
    assert_refused(tmp_path / "x.safetensors", "Name it .ckpt or .pth")
    save_file(some_tensors(), tmp_path / "x.ckpt")
    assert_refused(tmp_path / "x.ckpt", "Name it .safetensors")


# Paths that no system can have


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a" * 300, "as long as this"),
        ("a/" * 3000, "as long as this"),
        ("a\0b", "no file can have this name"),
        ("\ud800", "no file can have this name"),
    ],
)
@pytest.mark.parametrize("ending", ["", ".safetensors", ".ckpt", ".safetensors.index.json"])
def test_paths_that_can_t_be(tmp_path: Path, name: str, said: str, ending: str) -> None:
    path = tmp_path / (name + ending)
    opens = (
        open_source,
        inspect_text_encoder,
        open_kind,
        lambda path: find_models(path, "distilled", with_image=False),
    )
    for open_it in opens:
        with pytest.raises(CheckpointError, match=said) as caught:
            open_it(path)
        assert str(caught.value).isprintable()
