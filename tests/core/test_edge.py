"""What the command line is given is checked before anything is loaded, and what is wrong is told in one line."""

import pytest
import torch

from happyhorse_core.cli import main
from happyhorse_core.device import device_counts, parse_device
from happyhorse_core.errors import InputError

GOOD = {"models": ".", "prompt": "A horse.", "output": "clip.mp4"}


def refused(capsys: pytest.CaptureFixture[str], **changes: str) -> str:
    """The error of ``generate`` with these options, after checking that it is one line and that nothing began."""
    arguments = [word for name, value in (GOOD | changes).items() for word in (f"--{name.replace('_', '-')}", value)]
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
