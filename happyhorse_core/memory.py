"""Says before a long load that it can't fit, since an operating system may end the process without a word."""

from pathlib import Path

import torch

from .errors import HappyHorseError

FREE_PART = 0.9
"""Of the memory that is free, how much a decoder may plan with."""
MEMINFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where there is no cheap way to know."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether an error says that an allocator had nothing left to give."""
    # The allocator of the CPU has no error class of its own.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "DefaultCPUAllocator" in str(error)


def require(needed: int, available: int | None, what: str) -> None:
    """Raises HappyHorseError naming ``what`` if ``needed`` bytes are more than there are."""
    if available is not None and needed > available:
        raise HappyHorseError(
            f"not enough memory for {what}: it needs at least {needed / 2**30:.1f} GiB and {available / 2**30:.1f} GiB "
            "are free. Choose a smaller size or fewer seconds, close other programs, or use a machine with more."
        )
