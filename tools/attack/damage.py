"""Ways in which any file may be bad: bytes changed, cut off, repeated, or no file at all."""

import os
from collections.abc import Callable
from pathlib import Path
from random import Random

HEADER = 64
INTERESTING = (0, 1, 0x7F, 0x80, 0xFF)


def flip(data: bytes, rng: Random, within: int) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 2, 8, 32))):
        position = rng.randrange(min(within, len(changed)))
        changed[position] = rng.choice((rng.randrange(256), rng.choice(INTERESTING), changed[position] ^ 1))
    return bytes(changed)


def flip_header(data: bytes, rng: Random) -> bytes:
    return flip(data, rng, HEADER)


def flip_anywhere(data: bytes, rng: Random) -> bytes:
    return flip(data, rng, len(data))


def truncate(data: bytes, rng: Random) -> bytes:
    return data[: rng.randrange(len(data))]


def repeat(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start : start + rng.randrange(1, 999)] * rng.choice((2, 50)) + data[start:]


def drop(data: bytes, rng: Random) -> bytes:
    start = rng.randrange(len(data))
    return data[:start] + data[start + rng.randrange(1, 64) :]


def set_number(data: bytes, rng: Random) -> bytes:
    """A field of 2, 4 or 8 bytes near the start becomes very large or nothing."""
    size = rng.choice((2, 4, 8))
    start = rng.randrange(max(1, min(len(data), 512) - size))
    number = rng.choice((0, 1, 2 ** (8 * size - 1) - 1, 2 ** (8 * size - 1), 2 ** (8 * size) - 1))
    return data[:start] + number.to_bytes(size, rng.choice(("little", "big"))) + data[start + size :]


def zero_rest(data: bytes, rng: Random) -> bytes:
    kept = rng.randrange(len(data))
    return data[:kept] + bytes(len(data) - kept)


def append(data: bytes, rng: Random) -> bytes:
    return data + rng.randbytes(rng.choice((1, 100, 100_000)))


BYTES: tuple[Callable[[bytes, Random], bytes], ...] = (
    flip_header, flip_anywhere, truncate, repeat, drop, set_number, zero_rest, append
)  # fmt: skip


def damaged(data: bytes, rng: Random) -> tuple[str, bytes]:
    """How it was changed, and the changed bytes."""
    change = rng.choice(BYTES)
    return change.__name__.replace("_", " "), change(data, rng)


def no_file(path: Path, rng: Random) -> str:
    """Puts at ``path`` what is no file with bytes of its own; says what."""
    kind = rng.choice(("pipe", "endless", "folder", "empty", "broken link", "circular link", "nothing", "unreadable"))
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.touch()
    elif kind == "broken link":
        path.symlink_to("nowhere")
    elif kind == "circular link":
        path.symlink_to(path.name)
    elif kind == "unreadable":
        path.symlink_to("/proc/self/mem")
    return kind
