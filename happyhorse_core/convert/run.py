"""A conversion from beginning to end: look, plan, write, read again, put in place."""

import hashlib
import math
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from ..describe.kinds import AUTO, open_kind
from ..describe.report import gibibytes
from ..errors import CheckpointError, InputError, OutputError
from ..progress import Progress, silent
from ..weights import nvfp4
from ..weights.files import some
from ..weights.safetensors_file import SafetensorsFile
from .layout import Layout, lay_out
from .part_file import PartFile, part_of
from .plan import BF16, FP8_SCALED, SOURCES_KEY, Plan, Planned, make_plan, note
from .rounding import largest, rounded, row_scales, scale_for
from .source_files import SourceFiles

Report = Callable[[str, str], Progress]
"""Called with the name and the unit of a stage as it begins; returns who listens to its progress."""
CHUNK = 2**22
MANY = 40
"""Names that an error lists."""
SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Converted:
    """What was written: the plan, with its final metadata, and the file's size in bytes."""

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

    Takes memory for about one tensor. Until it has been written and read again, nothing stands under the final name;
    the source is only read. Raises CheckpointError for a source that can't be used or changes meanwhile, InputError for
    options that don't fit it, OutputError where the file can't be written or stands there already.
    """
    _check_target(target, force)
    contents = open_kind(source, kind, role=role, mapped=False)
    if role is not None and contents.transformer is None:
        raise InputError(f"--role: found {role}, but {source} is a {contents.kind}; only transformers have a role.")
    plan = make_plan(contents, dtype)
    with contents.opened, SourceFiles(plan.files) as files:
        if files.holds(target) or files.holds(part_of(target)):
            raise OutputError(f"{target}: is a file that would be read. Choose another name for the new one.")
        draft = {**plan.metadata, SOURCES_KEY: files.placeholder()}
        layout = lay_out(plan.stored(), draft)
        with PartFile(target) as part:
            _check_room(target, layout.size)
            part.write_at(0, layout.header(draft))
            digests = _write(source, plan, layout, part, files, report("converting", "B"))
            plan = replace(plan, metadata={**plan.metadata, SOURCES_KEY: files.finished()})
            part.write_at(0, layout.header(plan.metadata))
            part.sync()
            _verify(part.path, layout, plan, digests, report("verifying", "B"))
            _check_target(target, force)  # a large conversion takes minutes, in which somebody may have written it
            part.publish()
    return Converted(target, plan, layout.size)


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


class _Writer:
    """Puts spans of numbers one behind another at each tensor's place, and keeps their checksums."""

    def __init__(self, part: PartFile, layout: Layout) -> None:
        self._part = part
        self._next = {name: begin for name, (begin, _) in layout.spans.items()}
        self.digests = {name: hashlib.sha256() for name in layout.spans}

    def put(self, name: str, numbers: Iterable[Tensor]) -> None:
        for block in numbers:
            content = memoryview(block.contiguous().flatten().view(torch.uint8).numpy())
            self._part.write_at(self._next[name], content)
            self._next[name] += len(content)
            self.digests[name].update(content)


def _write(
    source: Path, plan: Plan, layout: Layout, part: PartFile, files: SourceFiles, progress: Progress
) -> dict[str, str]:
    """Converts tensor after tensor; returns the SHA-256 of what each became. Once one is bad, only looks for others."""
    writer = _Writer(part, layout)
    total, done = sum(planned.entry.nbytes for planned in plan.tensors), 0
    bad: list[str] = []
    large: list[str] = []
    for planned in plan.tensors:
        tensor = _read(planned, files)
        experts = tensor.chunk(planned.experts) if planned.experts > 1 else (tensor,)
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
        files.follow(planned.entry.file, planned.entry.nbytes)
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
    return {name: digest.hexdigest() for name, digest in writer.digests.items()}


def _read(planned: Planned, files: SourceFiles) -> Tensor:
    files.check_unchanged(planned.entry.file)
    try:
        return planned.entry.read()
    except CheckpointError:
        files.check_unchanged(planned.entry.file)  # says why a file that was whole is not any more
        raise


def _put(writer: _Writer, planned: Planned, experts: Sequence[Tensor], magnitudes: Sequence[float]) -> None:
    if not planned.format:
        writer.put(planned.name, rounded(experts[0], planned.dtype))
        return
    layer = planned.name.removesuffix("weight")
    if planned.format == nvfp4.FORMAT:
        scale = scale_for(magnitudes[0], nvfp4.LARGEST)
        for numbers, blocks in nvfp4.quantise(experts[0], scale):
            writer.put(planned.name, [numbers])
            writer.put(f"{layer}weight_scale", [blocks])
        writer.put(f"{layer}weight_scale_2", [torch.tensor(scale)])
    else:
        scales = [scale_for(magnitude) for magnitude in magnitudes]
        for expert, scale in zip(experts, scales, strict=True):
            writer.put(planned.name, rounded(expert, planned.dtype, scale))
        writer.put(f"{layer}weight_scale", [row_scales(scales, planned.entry.shape[0] if len(scales) > 1 else 1)])
    writer.put(f"{layer}comfy_quant", [torch.frombuffer(bytearray(note(planned.format)), dtype=torch.uint8)])


def _verify(path: Path, layout: Layout, plan: Plan, digests: Mapping[str, str], progress: Progress) -> None:
    """Reads the new file from the disk. Raises OutputError where anything in it is not what was meant to be."""
    try:
        found = SafetensorsFile(path)
        kinds = {name: (entry.dtype, entry.shape) for name, entry in found.entries.items()}
        if kinds != dict(layout.entries) or found.metadata != dict(plan.metadata):
            raise _not_as_written(path, "its header")
        with path.open("rb", buffering=0) as file:
            for name, (begin, end) in sorted(layout.spans.items(), key=lambda item: item[1]):
                file.seek(begin)
                digest = hashlib.sha256()
                for left in range(end - begin, 0, -CHUNK):
                    digest.update(file.read(min(CHUNK, left)))
                if digest.hexdigest() != digests[name]:
                    raise _not_as_written(path, f"tensor {name}")
                progress(end, layout.size)
    except (CheckpointError, OSError) as error:
        raise _not_as_written(path, str(error)) from error


def _not_as_written(path: Path, what: str) -> OutputError:
    return OutputError(
        f"{path}: what the disk gives back differs from what was written to it: {what}. It is deleted; check the disk."
    )
