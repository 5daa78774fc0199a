"""The devices that the program can compute on, by name."""

import re

import torch

from .errors import InputError

_NAME = re.compile(r"([a-z]+)(?::([0-9]{1,4}))?")


def device_counts() -> dict[str, int]:
    """How many devices of each kind that the program can use are here; there is always one ``cpu``."""
    counts = {"cpu": 1, "cuda": torch.cuda.device_count(), "xpu": torch.xpu.device_count()}
    return counts | {"mps": int(torch.backends.mps.is_available())}


def parse_device(name: str) -> torch.device:
    """'cuda:1' -> that device; without a number it is the first of its kind.

    Raises InputError, which names the devices that are here, for any other. PyTorch's further kinds hold no numbers
    (``meta``), or are there only with libraries that it doesn't bring (``hpu``, ``privateuseone``).
    """
    counts = device_counts()
    match = _NAME.fullmatch(name.strip())
    if match is None or int(match[2] or 0) >= counts.get(match[1], 0):
        here = [f"{kind}:{n}" if kind in ("cuda", "xpu") else kind for kind in counts for n in range(counts[kind])]
        raise InputError(f"found {name[:40]!r}, expected one of what PyTorch finds here: {', '.join(here)}.")
    kind = match[1]
    device = torch.device(kind, int(match[2] or 0)) if kind in ("cuda", "xpu") else torch.device(kind)
    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).split("\n")[0]  # of a driver's trouble, the rest are hints for programmers
        raise InputError(f"found {name!r}, which PyTorch can't use: {reason}") from error
    return device
