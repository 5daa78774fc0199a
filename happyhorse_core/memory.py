"""Says before a long load that it can't fit, since an operating system may end the process without a word."""

from pathlib import Path

import torch

from .dit.layers import MLP_TOKENS
from .errors import HappyHorseError

BLOCK_BYTES = 200 * 2**20
"""Float32 blocks between the products, where a sequence has more than a block of them."""
BLOCK_COPIES = 64
"""Bytes per token and hidden channel of such a block and its copies."""
MEMINFO = Path("/proc/meminfo")


def available_bytes(device: torch.device) -> int | None:
    """Free memory of a device; None where there is no cheap way to know."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    if device.type == "cpu" and MEMINFO.exists():
        fields = dict(line.split(":", 1) for line in MEMINFO.read_text().splitlines())
        return int(fields["MemAvailable"].split()[0]) * 1024
    return None


def activation_bytes(tokens: int, hidden: int, itemsize: int = 2) -> int:
    """Peak of what a forward pass holds beside its weights, for products in a dtype of ``itemsize`` bytes.

    Per token and hidden channel, attention takes 6 + 6.7 * itemsize bytes (residual stream, queries, keys, values and
    results) and the MLP 8 + itemsize, and on the part of the sequence that it works on 9.5 * itemsize more. Counted on
    the released layers, within a fifth; what an attention kernel takes for itself is not in it.
    """
    part = tokens / -(-tokens // MLP_TOKENS)
    attention = tokens * (6 + 6.7 * itemsize)
    mlp = tokens * (8 + itemsize) + part * 9.5 * itemsize
    return int(hidden * max(attention, mlp)) + min(BLOCK_BYTES, int(part * hidden * BLOCK_COPIES))


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
