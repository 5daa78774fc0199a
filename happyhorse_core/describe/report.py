"""What a file or folder of weights is, in lines for a person: kind, role, sizes, dtypes, what is missing."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from ..dit.config import TransformerConfig
from ..dit.load import BANDS
from ..errors import CheckpointError, one_line
from ..text.load import EMBEDDED_TOKENIZER
from ..weights.files import exists, folder_of, some
from ..weights.formats import COMMUNITY_SCALES, EXTRAS, NOTE, READABLE_FORMATS, SCALE, WEIGHT_SCALES, noted_format
from ..weights.known import TEXT_ENCODER
from ..weights.quantised import dequantised, packed_weights
from ..weights.tensors import TensorSource
from .kinds import Contents, open_kind

LONGEST_VALUE = 120


@dataclass(frozen=True)
class Description:
    """``lines`` are pairs of a title and a text. ``problems`` say why the weights can't be used; none is good."""

    lines: tuple[tuple[str, str], ...]
    problems: tuple[str, ...]

    def __str__(self) -> str:
        width = max(len(title) for title, _ in self.lines) + 2
        lines = (*self.lines, *_titled("problem", self.problems))
        return "\n".join(f"{title:<{width}}{one_line(text)}" for title, text in lines)


def describe(path: Path) -> Description:
    """Looks at headers alone. Raises CheckpointError where the files can't be read or are of no known kind."""
    contents = open_kind(path)
    with contents.opened as opened:
        stored = contents.source
        plain = stored.with_entries({n: e for n, e in stored.entries.items() if not n.endswith(EXTRAS)})
        quantisation, formats = _quantisation(stored)
        lines = [
            ("path", str(path)),
            ("kind", contents.kind),
            *_role(contents),
            *_files(opened),
            *_tensors(contents, plain, opened),
            ("quantisation", quantisation),
            *_sizes(contents),
            *_metadata(opened),
        ]
        return Description(tuple(lines), tuple(_problems(contents, plain, formats)))


def _titled(title: str, texts: Iterable[str]) -> list[tuple[str, str]]:
    return [(title, text) for text in texts]


def _role(contents: Contents) -> list[tuple[str, str]]:
    file = contents.transformer
    return [] if file is None else [("role", f"{file.role.name} ({file.role_origin})")]


def _files(opened: TensorSource) -> list[tuple[str, str]]:
    files = sorted({entry.file for entry in opened.entries.values()})
    size = sum(file.stat().st_size for file in files)
    return [("files", f"{some([file.name for file in files])}; {gibibytes(size)}")]


def _tensors(contents: Contents, plain: TensorSource, opened: TensorSource) -> list[tuple[str, str]]:
    expected = contents.module.state_dict()
    used = contents.as_loaded(plain)
    parameters = sum(tensor.numel() for tensor in expected.values())
    sizes: Counter[str] = Counter()
    for entry in contents.source.entries.values():
        sizes[str(entry.dtype).removeprefix("torch.")] += entry.nbytes
    lines = [
        ("tensors", f"{sum(name in used for name in expected)} of {len(expected)} that the model has"),
        ("parameters", f"{parameters:,}"),
        ("stored", ", ".join(f"{dtype} {gibibytes(size)}" for dtype, size in sizes.most_common())),
    ]
    own = {id(entry) for entry in contents.source.entries.values()}
    as_stored = {id(entry) for entry in opened.entries.values()}
    merged = sum(id(e) not in as_stored and name != BANDS for name, e in contents.source.entries.items())
    if merged:
        lines.append(("layout", f"experts or projections apart; {merged} tensors are put together when they are read"))
    unused = [n for n, entry in opened.entries.items() if id(entry) not in own and n != EMBEDDED_TOKENIZER]
    if unused and contents.transformer is None:
        size = sum(opened.entries[name].nbytes for name in unused)
        lines.append(("not used", f"{len(unused)} tensors of other networks, {gibibytes(size)}: {some(unused)}"))
    if contents.kind == TEXT_ENCODER:
        lines.append(("tokenizer", _tokenizer(contents) or "missing"))
    return lines


def _tokenizer(contents: Contents) -> str | None:
    """Where a text encoder's tokenizer is; None where it is neither in the file nor beside it."""
    if EMBEDDED_TOKENIZER in contents.opened:
        return "in the file"
    return "tokenizer.json beside it" if exists(folder_of(contents.path) / "tokenizer.json") else None


def _quantisation(source: TensorSource) -> tuple[str, set[str]]:
    """In words, and the formats that ComfyUI's notes name."""
    formats: Counter[str] = Counter()
    for name, entry in source.entries.items():
        if name.endswith(f".{NOTE}"):
            formats[noted_format(entry.read()) or "an unreadable note"] += 1
    of_blocks = {name.removesuffix("weight") + SCALE for name in packed_weights(source)}
    per_row = sum(
        name.endswith(WEIGHT_SCALES) and entry.numel > 1 and name not in of_blocks
        for name, entry in source.entries.items()
    )
    community = sum(name.endswith(COMMUNITY_SCALES) for name in source.names)
    float8 = sum("float8" in str(entry.dtype) and len(entry.shape) > 1 for entry in source.entries.values())
    parts = [f"{count} layers {found} (ComfyUI's notes)" for found, count in formats.items()]
    if community:
        parts.append(f"{community} layers float8 with a scale each")
    if per_row:
        parts.append(f"{per_row} of them with a scale for each row or expert")
    if float8 and not parts:
        parts.append(f"{float8} tensors rounded to float8, without scales")
    return ", ".join(parts) or "none", set(formats)


def _sizes(contents: Contents) -> list[tuple[str, str]]:
    config = contents.config
    if not is_dataclass(config):
        return []
    lines = []
    for entry in fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, tuple) and value and all(type(number) is int for number in value):
            text = spans(value) if isinstance(config, TransformerConfig) else ", ".join(map(str, value))
        elif isinstance(value, tuple):
            text = f"{len(value)} entries" if value else "none"
        else:
            text = str(value)
        lines.append((entry.name.replace("_", " "), text))
    return lines


def _metadata(opened: TensorSource) -> list[tuple[str, str]]:
    lines = []
    for key, value in sorted(opened.metadata.items()):
        cut = f"{value[:LONGEST_VALUE]}... ({len(value)} characters)" if len(value) > LONGEST_VALUE else value
        lines.append(("metadata", f"{key} = {cut}"))
    return lines


def _problems(contents: Contents, plain: TensorSource, formats: set[str]) -> list[str]:
    problems = []
    expected = contents.module.state_dict()
    unreadable = ""
    if formats <= set(READABLE_FORMATS):
        try:
            plain = dequantised(contents.source, contents.module)
        except CheckpointError as error:
            unreadable = str(error)
    else:
        unreadable = f"only the ComfyUI nodes can read {', '.join(sorted(formats - set(READABLE_FORMATS)))}"
    loaded = contents.as_loaded(plain)
    missing = [name for name in expected if name not in loaded]
    extra = [
        name
        for name in loaded.names
        if name not in expected and not any(fnmatchcase(name, glob) for glob in contents.ignore)
    ]
    # Without its format nobody knows what shape a layer has.
    packed = {
        name for name in loaded.names if unreadable and f"{name.removesuffix('.weight')}{NOTE}" in contents.source
    }
    wrong = [
        f"{name} {list(loaded.shapes[name])}, expected {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in loaded and name not in packed and loaded.shapes[name] != tuple(tensor.shape)
    ]
    if missing:
        problems.append(f"{len(missing)} tensors are missing: {some(missing)}")
    if extra:
        problems.append(f"{len(extra)} tensors are not expected: {some(extra)}")
    if wrong:
        problems.append(f"{len(wrong)} tensors are of another shape: {some(wrong)}")
    if contents.kind == TEXT_ENCODER and _tokenizer(contents) is None:
        problems.append("there is no tokenizer: put the model's tokenizer.json beside the weights")
    if unreadable:
        problems.append(unreadable)
    return problems


def spans(numbers: Iterable[int]) -> str:
    """(0, 1, 2, 5) -> '0-2, 5'."""
    found: list[list[int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1][1] = number
        else:
            found.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in found)


def gibibytes(size: int) -> str:
    """A size in the largest unit that leaves a number of at least one."""
    for unit, exponent in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if size >= 2**exponent:
            return f"{size / 2**exponent:.2f} {unit}"
    return f"{size} B"
