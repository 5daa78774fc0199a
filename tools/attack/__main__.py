"""The command: see ``python -m tools.attack --help``."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is loaded: a process with threads can't be forked

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from . import __doc__ as description
from .case import PONY
from .child import contents
from .judge import Verdict
from .nodes import KIND as NODE
from .nodes import ComfyUINotFoundError, find_comfyui
from .runner import ALL, Attack, Bounds, say


def parser() -> argparse.ArgumentParser:
    layout = argparse.RawDescriptionHelpFormatter
    made = argparse.ArgumentParser("python -m tools.attack", description=description, formatter_class=layout)
    add = made.add_argument
    add("--seed", type=int, default=1, help="another seed makes other cases; default 1")
    add("--cases", type=int, default=1000, metavar="N", help="how many; default 1000")
    add("--case", type=int, metavar="N", help="only case N of this seed, and keep its files")
    add("--kinds", default=",".join(ALL), help=f"some of {', '.join(dict.fromkeys(ALL))}; default all")
    add("--workers", type=int, default=2, metavar="N", help="cases side by side; default 2")
    add("--folder", type=Path, metavar="DIR", help="where the files of defects stay; default a new temporary folder")
    add("--seconds", type=float, default=60, help="longest that a case may take; default 60")
    add("--memory", type=float, default=2, help="most GiB that a case may take; default 2")
    return made


def main() -> int:
    """0 where no defect was found, else 1."""
    args = parser().parse_args()
    torch.set_num_threads(1)
    folder = args.folder or Path(tempfile.mkdtemp(prefix="attack-"))
    folder.mkdir(parents=True, exist_ok=True)
    bounds = Bounds(args.seconds, int(args.memory * 2**30))
    attack = Attack(args.seed, folder.absolute(), kinds_of(args.kinds), bounds, args.case is not None)
    model = contents(PONY)
    numbers = range(args.cases) if args.case is None else [args.case]
    start = time.monotonic()
    with (folder / "verdicts.jsonl").open("w", encoding="utf-8") as lines:

        def told(verdict: Verdict) -> None:
            lines.write(verdict.line() + "\n")
            lines.flush()
            say(verdict)

        found = attack.run_all(numbers, args.workers, told)
    print(table(found))
    if contents(PONY) != model:
        print(f"a case changed a file of {PONY}")
        return 1
    print(f"{len(found)} cases in {time.monotonic() - start:.0f} s; files in {folder}")
    return int(any(verdict.defect for verdict in found))


def kinds_of(text: str) -> tuple[str, ...]:
    """The kinds that a text names; without that of nodes where there is no ComfyUI."""
    kinds = tuple(text.split(","))
    unknown = set(kinds) - set(ALL)
    if unknown:
        parser().error(f"--kinds: found {', '.join(sorted(unknown))}, expected some of {', '.join(dict.fromkeys(ALL))}")
    try:
        find_comfyui()
    except ComfyUINotFoundError as error:
        print(f"no cases of nodes: {error}")
        return tuple(kind for kind in kinds if kind != NODE)
    return kinds


def table(found: list[Verdict]) -> str:
    """Counts by kind and verdict, slowest and largest, as lines."""
    verdicts = sorted({verdict.verdict for verdict in found})
    lines = [f"{'kind':<12}" + "".join(f"{verdict:>20}" for verdict in verdicts) + f"{'slowest':>10}{'peak':>10}"]
    for kind in sorted({verdict.kind for verdict in found}):
        of_kind = [verdict for verdict in found if verdict.kind == kind]
        counts = Counter(verdict.verdict for verdict in of_kind)
        slowest, peak = max(v.seconds for v in of_kind), max(v.peak for v in of_kind) >> 20
        numbers = "".join(f"{counts[verdict]:>20}" for verdict in verdicts)
        lines.append(f"{kind:<12}{numbers}{slowest:>8.1f} s{peak:>6} MiB")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
