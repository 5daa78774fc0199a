"""What a case's end was: a clear error, a right result, or a defect and of what kind."""

import json
import re
import unicodedata
from dataclasses import asdict, dataclass
from pathlib import Path

from happyhorse_core.errors import LONGEST_MESSAGE

from .case import CANARY, OUTPUT
from .child import contents

OWN = {"case.json", "end.json", "out", "err", "started", "tmp", "work"}
"""What the process of a case writes itself."""
CLEAR, RIGHT, HARNESS = "clear error", "right result", "attack's own failure"
HOST = "error of the host"
"""What a node of core raised in its own code, of inputs that are its own."""
LONGEST = LONGEST_MESSAGE + 100


@dataclass(frozen=True)
class Ended:
    """How the process of a case ended. ``late``: it was stopped for its time, ``large``: for its memory."""

    status: int
    seconds: float
    peak: int
    late: bool = False
    large: bool = False


@dataclass(frozen=True)
class Verdict:
    number: int
    kind: str
    what: str
    verdict: str
    detail: str
    seconds: float
    peak: int

    @property
    def defect(self) -> bool:
        return self.verdict not in (CLEAR, RIGHT, HOST)

    def line(self) -> str:
        return json.dumps(asdict(self))


def judge(folder: Path, kind: str, number: int, ended: Ended, memory: int) -> Verdict:
    """The verdict on one case by what lies in its folder."""
    note = folder / "case.json"
    if not note.exists():
        text = read(folder / "harness")
        return Verdict(number, kind, "", HARNESS, text[-300:], ended.seconds, ended.peak)
    case = json.loads(note.read_text(encoding="utf-8"))
    verdict, detail = _verdict(folder, case, ended, memory)
    return Verdict(number, kind, case["what"], verdict, detail, round(ended.seconds, 2), ended.peak)


def _verdict(folder: Path, case: dict, ended: Ended, memory: int) -> tuple[str, str]:
    said = read(folder / "err")
    last = last_line(said)
    if (ran := executed(folder)) is not None:
        return "code executed", ran
    if ended.large or ended.peak > memory:
        return "memory", f"{ended.peak >> 20} MiB; {last}"
    if ended.late:
        return "hang", f"{ended.seconds:.0f} s; {last}"
    if "Traceback (most recent call last)" in said:
        return "traceback", last
    if not (folder / "end.json").exists():
        return "crash", f"status {ended.status}; {last}"
    end = json.loads((folder / "end.json").read_text(encoding="utf-8"))
    if left := leftovers(folder, case, end["status"]):
        return "leftover", left
    if end["status"] == 0:
        return ("wrong result", end["wrong"]) if end["wrong"] else (RIGHT, "")
    if case["arguments"][:1] == ["inspect"] and end["status"] == 1 and not last:
        return CLEAR, last_line(read(folder / "out"))
    return judged_line(said, last)


def executed(folder: Path) -> str | None:
    """What ran though it came from an input, or None."""
    marks = [path for path in (*folder.rglob(CANARY), *folder.rglob("ran")) if path.is_file()]
    if marks:
        return f"made {marks[0].name}"
    return read(folder / "started")[:300].strip() or None


def judged_line(said: str, last: str) -> tuple[str, str]:
    """Whether what was said last is one clear line."""
    if not last.startswith("error: "):
        return "unclear", f"last line: {last[:300]}"
    if any(unicodedata.category(letter) in ("Cc", "Cf", "Cs", "Zl", "Zp") for letter in last):
        return "control characters", ascii(last[:300])
    if len(last) > LONGEST:
        return "long", f"{len(last)} characters: {last[:120]}"
    return CLEAR, last


def last_line(said: str) -> str:
    lines = [line for line in re.split("[\r\n]+", said) if line.strip()]
    return lines[-1] if lines else ""


def leftovers(folder: Path, case: dict, status: int) -> str:
    """Files that are there though they should not be, or that were changed."""
    before, after = case["files"], contents(folder / "work")
    made = set(after) - set(before)
    if status == 0:
        made -= {ascii(OUTPUT), *map(ascii, case["arguments"])}
    changed = {name for name in before if after.get(name) != before[name]}
    if status == 0:
        changed -= {ascii(OUTPUT), *map(ascii, case["arguments"])}
    outside = [path.name for path in folder.iterdir() if path.name not in OWN]
    temporary = [path.name for path in (folder / "tmp").iterdir()]
    parts = (
        ("left", sorted(made)),
        ("changed or lost", sorted(changed)),
        ("left outside", outside),
        ("left in the temporary folder", temporary),
    )
    return "; ".join(f"{what}: {', '.join(names)[:200]}" for what, names in parts if names)


def read(path: Path) -> str:
    """A file's text, of a long one the end."""
    if not path.exists():
        return ""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - (1 << 20)))
        return file.read().decode("utf-8", "surrogateescape")
