"""A conversion from beginning to end: look, plan, write, put in place."""

import json
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from ..atomic import writing, written_whole
from ..describe.kinds import AUTO, open_kind
from ..describe.report import gibibytes
from ..errors import CheckpointError, InputError, OutputError
from ..progress import Progress, silent
from ..weights import nvfp4
from ..weights.files import some, unreadable
from ..weights.formats import NOTE, NVFP4, SCALE, TENSOR_SCALE, note_bytes
from ..weights.safetensors_file import SafetensorsFile
from .layout import Layout
from .plan import BF16, FP8_SCALED, Plan, Planned, make_plan
from .rounding import largest, rounded, row_scales, scale_for

Report = Callable[[str, str], Progress]
"""Called with the name and the unit of a stage as it begins; returns who listens to its progress."""
MANY = 40
"""Names that an error lists."""
SUFFIX = ".safetensors"
SOURCES_KEY = "happyhorse.sources"


@dataclass(frozen=True)
class Converted:
    """What was written: the plan, and the file's size in bytes."""

    path: Path
    plan: Plan
    size: int


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    role: str | None = None,
    kind: str = AUTO,
    force: bool = False,
    report: Report = lambda stage, unit: silent,
) -> Converted:
    """Writes the weights at ``source`` as the safetensors file ``target``; see ``plan`` for what goes into it.

    Takes memory for about one tensor. Nothing stands under the final name before the file is complete; the source is
    only read. Raises CheckpointError for a source that can't be used or changes meanwhile, InputError for options that
    don't fit it, OutputError where the file can't be written or stands there already.
    """
    _check_target(target, force)
    contents = open_kind(source, kind, role=role, mapped=False)
    if role is not None and contents.transformer is None:
        raise InputError(f"--role: found {role}, but {source} is a {contents.kind}; only transformers have a role.")
    plan = make_plan(contents, dtype)
    if target.resolve() in {file.resolve() for file in plan.files}:
        raise OutputError(f"{target}: is a file that would be read. Choose another name for the new one.")
    before = {file: _size_and_time(file) for file in plan.files}
    made_from = [{"name": file.name, "bytes": size} for file, (size, _) in before.items()]
    metadata = {**plan.metadata, SOURCES_KEY: json.dumps(made_from)}
    layout = Layout(plan.stored(), metadata)
    with contents.opened, written_whole(target) as part:
        with writing(target):
            file = part.open("wb", buffering=0)
        with file:
            _check_room(target, layout.size)
            writer = _Writer(file, target, layout)
            writer.put_bytes(0, layout.header(metadata))
            _write(source, plan, writer, report("converting", "B"))
        _check_unchanged(before)
        _check_target(target, force)  # a large conversion takes minutes, in which somebody may have written it
        _check_written(part, target)
    return Converted(target, plan, layout.size)


def _size_and_time(file: Path) -> tuple[int, int]:
    try:
        found = file.stat()
    except OSError as error:
        raise unreadable(file, error) from error
    return found.st_size, found.st_mtime_ns


def _check_unchanged(before: Mapping[Path, tuple[int, int]]) -> None:
    """A download that still runs would give a file that is half of this and half of that."""
    for file, found in before.items():
        now = _size_and_time(file)
        if now != found:
            raise CheckpointError(
                f"{file}: changed while it was read: {found[0]:,} bytes at first, {now[0]:,} now. "
                "Wait until whatever writes it has ended, then start again."
            )


def _check_target(target: Path, force: bool) -> None:
    if target.suffix.lower() != SUFFIX:
        raise OutputError(f"{target}: the new file is a safetensors file; expected a name that ends in {SUFFIX}.")
    if not target.parent.is_dir():
        raise OutputError(f"{target}: there is no folder {target.parent}. Make it first.")
    if target.is_dir():
        raise OutputError(f"{target}: is a folder; expected the name of the file to write.")
    if target.exists() and not force:
        raise OutputError(f"{target}: stands there already. Choose another name, or replace it with --force.")


def _check_room(target: Path, needed: int) -> None:
    free = shutil.disk_usage(target.parent).free
    if free < needed:
        raise OutputError(
            f"{target}: takes {gibibytes(needed)}, but {target.parent} has only {gibibytes(free)} free. Make room "
            "there, or choose another disk."
        )


def _check_written(part: Path, target: Path) -> None:
    """Reads the header back, which tells where each tensor lies and how long the file has to be."""
    try:
        SafetensorsFile(part)
    except CheckpointError as error:
        raise OutputError(
            f"{target}: what was written is no longer there as a whole ({error}). See whether another process writes "
            "the same file, and check the disk."
        ) from error


class _Writer:
    """Puts spans of numbers one behind another at each tensor's place."""

    def __init__(self, file: BinaryIO, target: Path, layout: Layout) -> None:
        self._file, self._target, self._next = file, target, dict(layout.begins)

    def put(self, name: str, numbers: Iterable[Tensor]) -> None:
        for block in numbers:
            content = block.contiguous().flatten().view(torch.uint8).numpy().data
            self.put_bytes(self._next[name], content)
            self._next[name] += len(content)

    def put_bytes(self, offset: int, content: bytes | memoryview) -> None:
        rest = memoryview(content)
        with writing(self._target):
            self._file.seek(offset)
            while rest:
                rest = rest[self._file.write(rest) :]


def _write(source: Path, plan: Plan, writer: _Writer, progress: Progress) -> None:
    """Converts tensor after tensor. Once one is bad, only looks for others, to name them all."""
    total, done = sum(planned.entry.nbytes for planned in plan.tensors), 0
    bad: list[str] = []
    large: list[str] = []
    for planned in plan.tensors:
        tensor = planned.entry.read()
        experts = tensor.chunk(planned.experts) if planned.experts > 1 else (tensor,)  # a single number has no rows
        is_number = planned.entry.dtype.is_floating_point
        magnitudes = [largest(expert) if is_number else 0.0 for expert in experts]
        if math.inf in magnitudes:
            bad.append(planned.name)
        elif is_number and not planned.format and magnitudes[0] > torch.finfo(planned.dtype).max:
            large.append(planned.name)
        elif not bad and not large:
            _put(writer, planned, experts, magnitudes)
        del tensor, experts
        planned.entry.release()
        done += planned.entry.nbytes
        progress(done, total)
    if bad:
        raise CheckpointError(
            f"{source}: {len(bad)} of {len(plan.tensors)} tensors hold numbers that are not finite (NaN or infinite): "
            f"{some(bad, MANY)}. Nothing was written; download the source again, or from elsewhere."
        )
    if large:
        raise CheckpointError(
            f"{source}: {len(large)} of {len(plan.tensors)} tensors hold numbers that the new dtype has no room for: "
            f"{some(large, MANY)}. Nothing was written; choose --dtype {FP8_SCALED} or {BF16}."
        )


def _put(writer: _Writer, planned: Planned, experts: Sequence[Tensor], magnitudes: Sequence[float]) -> None:
    if not planned.format:
        writer.put(planned.name, rounded(experts[0], planned.dtype))
        return
    layer = planned.name.removesuffix("weight")
    if planned.format == NVFP4:
        scale = scale_for(magnitudes[0], nvfp4.LARGEST)
        for numbers, blocks in nvfp4.quantise(experts[0], scale):
            writer.put(planned.name, [numbers])
            writer.put(layer + SCALE, [blocks])
        writer.put(layer + TENSOR_SCALE, [torch.tensor(scale)])
    else:
        scales = [scale_for(magnitude) for magnitude in magnitudes]
        for expert, scale in zip(experts, scales, strict=True):
            writer.put(planned.name, rounded(expert, planned.dtype, scale))
        writer.put(layer + SCALE, [row_scales(scales, planned.entry.shape[0] if len(scales) > 1 else 1)])
    note = torch.frombuffer(bytearray(note_bytes(planned.format)), dtype=torch.uint8)
    writer.put(layer + NOTE, [note])
