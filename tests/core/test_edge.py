"""What the command line is given is checked before anything is loaded, and what is wrong is told in one line."""

import os
import sys
from pathlib import Path

import pytest
import torch

from happyhorse_core import edge
from happyhorse_core.cli import main
from happyhorse_core.device import device_counts, parse_device
from happyhorse_core.errors import InputError

PATHS = ("models", "output", "image", "audio", "transformer", "text-encoder", "sr-transformer")
BAD_PATHS = {
    "": "an empty text",
    "a\0b": "null",
    "\ud800": "surrogates not allowed",
    "n" * 300 + ".mp4": "name too long",
    "a" * 5000 + ".mp4": "(of 5,004 characters)",
}
GOOD = {"models": ".", "prompt": "A horse.", "output": "clip.mp4"}


def refused(capsys: pytest.CaptureFixture[str], **changes: str) -> str:
    """The error of ``generate`` with these options, after checking that it is one line and that nothing began."""
    arguments = [f"--{name}={value}" for name, value in (GOOD | changes).items()]
    with pytest.raises(SystemExit) as end:
        main(["generate", *arguments])
    assert end.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1 and len(error) < 400, error
    return error


# devices


@pytest.mark.parametrize(
    "name",
    ["meta", "hpu", "privateuseone", "vulkan", "toaster", "", "cpu:1", "cpu:", "cpu:-1", "cuda:99", "cuda:٣", "a\nb"],
)
def test_a_device_that_can_not_be_used_is_named_beside_those_that_can(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    error = refused(capsys, device=name)
    assert f"--device: found {name!r}, expected one of what PyTorch finds here: cpu" in error


def test_every_device_that_is_here_can_be_named() -> None:
    for kind, count in device_counts().items():
        for number in range(count):
            assert parse_device(f" {kind}:{number}").type == kind
        if count:
            assert parse_device(kind) == parse_device(f"{kind}:0")
        with pytest.raises(InputError, match=f"found '{kind}:{count}'"):
            parse_device(f"{kind}:{count}")
    assert parse_device("cpu") == torch.device("cpu"), "the name under which tensors of the CPU know it"


def test_one_wrong_of_several_devices_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert "--devices: found 'meta'" in refused(capsys, devices="cpu,meta")


# texts and paths


@pytest.mark.parametrize("option", ["prompt", "negative-prompt"])
@pytest.mark.parametrize("bad", ["\0", "\ud800", "\udcff", "\udfff"])
def test_what_is_no_text_is_named_with_its_place(capsys: pytest.CaptureFixture[str], option: str, bad: str) -> None:
    error = refused(capsys, **{option: f"horse{bad}"})
    assert f"--{option}: found {bad!r} as character 6, expected text in UTF-8" in error


def test_a_text_has_a_largest_length(capsys: pytest.CaptureFixture[str]) -> None:
    assert edge.text("馬" * 100_000) == "馬" * 100_000
    assert "--prompt: found 100,001 characters" in refused(capsys, prompt="a" * 100_001)


@pytest.mark.parametrize("option", PATHS)
@pytest.mark.parametrize("bad", BAD_PATHS, ids=range(len(BAD_PATHS)))
def test_what_is_no_path_is_named(capsys: pytest.CaptureFixture[str], option: str, bad: str) -> None:
    error = refused(capsys, **{option: bad})
    assert f"--{option}: found " in error
    assert BAD_PATHS[bad] in error


@pytest.mark.parametrize(
    "command", [("inspect", ""), ("inspect", "n" * 300), ("convert", "a\0b", "x"), ("convert", ".", "")]
)
def test_paths_of_weights_are_checked_alike(capsys: pytest.CaptureFixture[str], command: tuple[str, ...]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(command)
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and ": found " in error


@pytest.mark.skipif(os.name == "nt", reason="makes a symbolic link")
def test_links_in_a_circle_are_no_path(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    assert "--models: found " in refused(capsys, models=str(tmp_path / "circle"))


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a name is text")
def test_names_of_any_bytes_are_taken(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, clip = tmp_path / os.fsdecode(b"\xff"), tmp_path / os.fsdecode(b"\xfe\n.mp4")
    folder.symlink_to(models / "distill")
    options = {"models": models, "prompt": "A horse.", "output": clip, "transformer": folder, "steps": 1}
    options |= {"seconds": 0.2, "size": "64x64"}
    assert main(["generate", *(word for name, value in options.items() for word in (f"--{name}", str(value)))]) == 0
    assert clip.is_file()
    assert capsys.readouterr().out.startswith(f"{tmp_path}/\\udcfe\\n.mp4: 64x64")


# numbers

BAD_NUMBERS = {
    "seconds": ["nan", "inf", "-inf", "1e400", "", "five", "1" * 5000],
    "size": ["", "64", "x", "64x", "4.5x3", "64x64x64", "nanxnan", "9" * 5000 + "x64", "٦٤x64"],
    "steps": ["", "nan", "1.5", "1e3", "9" * 5000, "٣"],
    "seed": ["", "0x10", "1" * 21, "9" * 5000],
    "upscale": ["large", "64x" + "9" * 5000],
}


@pytest.mark.parametrize(("option", "bad"), [(option, bad) for option, values in BAD_NUMBERS.items() for bad in values])
def test_what_is_no_number_is_named(capsys: pytest.CaptureFixture[str], option: str, bad: str) -> None:
    assert f"--{option}: found {bad[:9]!r}"[:-1] in refused(capsys, **{option: bad})


def test_sizes_are_read_in_every_spelling() -> None:
    for text in ("448x256", " 448 X 256", "448×256", "448*256"):
        assert edge.size(text) == (448, 256)
