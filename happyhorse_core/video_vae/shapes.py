"""What a file's tensor names say about the model in it, for detection and for errors that help."""

from collections.abc import Mapping

from ..errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]


def dimension(shapes: Shapes, name: str, axis: int, where: str, expected: str) -> int:
    """One dimension of one tensor. Raises CheckpointError where the file lacks it."""
    if name not in shapes:
        raise CheckpointError(f"{where}: tensor '{name}' is missing; expected {expected}. The file may be incomplete.")
    shape = tuple(shapes[name])
    if len(shape) <= axis or shape[axis] == 0:
        raise CheckpointError(f"{where}: tensor '{name}' has shape {shape}; expected that of {expected}.")
    return shape[axis]


def count_blocks(shapes: Shapes, pattern: str) -> int:
    """How many of ``pattern.format(0)``, ``pattern.format(1)``, ... are there before the first gap."""
    count = 0
    while pattern.format(count) in shapes:
        count += 1
    return count
