"""``python -m scripts.memory_table``: which precision fits which card, computed from the released sizes.

``--check`` compares the table with that of docs/memory.md and fails if it is another; ``--write`` puts it there.
"""

import argparse
import json
import sys
from math import prod
from pathlib import Path

from happyhorse_core.dit.memory import activation_bytes

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "memory.md"
FULL_SIZE = ROOT / "tests" / "golden" / "full_size_transformer.json"
START, END = "<!-- memory table, from scripts/memory_table.py -->", "<!-- end of the memory table -->"

GIB = 2**30
CARDS = (8, 12, 16, 24, 32, 48, 80)
CLIPS = (("448x256", 16, 28), ("896x512 (540p SR)", 32, 56), ("1920x1088 (1080p SR)", 68, 120))
LATENT_FRAMES = 32
TEXT = 300
HIDDEN = 5120
OVERHEAD = 1.0
"""GiB for the driver, PyTorch and whatever else is on the card."""
STREAMED = 1.5
"""GiB of the card that streamed weights pass through: the two largest layers, in bfloat16."""


def weights() -> tuple[float, float]:
    """GiB of the transformer in bfloat16 and in float8; what must be exact is float32 in both."""
    tensors = json.loads(FULL_SIZE.read_text()).values()
    exact = sum(4 * prod(shape) for dtype, shape in tensors if dtype == "float32")
    rest = sum(prod(shape) for dtype, shape in tensors if dtype != "float32")
    return (exact + 2 * rest) / GIB, (exact + rest) / GIB


def working(height: int, width: int) -> float:
    """GiB of one call for 5 s of a picture of so many latent pixels."""
    tokens = LATENT_FRAMES * height * width // 4 + 4 * (LATENT_FRAMES - 1) + 1 + TEXT
    return activation_bytes(tokens, HIDDEN) / GIB


def cell(card: int, height: int, width: int) -> str:
    """What to do on a card for one size, and the peak that is expected of it."""
    room, needed = card - OVERHEAD, working(height, width)
    bf16, float8 = weights()
    for name, resident in (("bf16", bf16), ("fp8", float8)):
        if resident + needed <= room:
            return f"{name}, {resident + needed + OVERHEAD:.0f} GiB"
    if needed + STREAMED > room:
        return "no"
    kept = room - needed - STREAMED
    return f"fp8, {float8 - kept:.0f} GiB streamed"


def table() -> str:
    """The table in Markdown."""
    head = ["5 s of", "working memory", *(f"{card} GB" for card in CARDS)]
    lines = [head, ["---"] * len(head)]
    for name, height, width in CLIPS:
        cells = [cell(card, height, width) for card in CARDS]
        lines.append([name, f"{working(height, width):.1f} GiB", *cells])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def main() -> int:
    """Prints, checks or writes the table."""
    parser = argparse.ArgumentParser(description="Memory that the transformer needs, by size and card.")
    parser.add_argument("--check", action="store_true", help="fail if docs/memory.md holds another table")
    parser.add_argument("--write", action="store_true", help="put the table into docs/memory.md")
    args = parser.parse_args()
    text = PAGE.read_text(encoding="utf-8")
    before, after = text.partition(START)[0], text.partition(END)[2]
    wanted = f"{before}{START}\n\n{table()}\n\n{END}{after}"
    if args.write:
        PAGE.write_text(wanted, encoding="utf-8")
    elif args.check:
        return int(text != wanted)
    else:
        print(table())
    return 0


if __name__ == "__main__":
    sys.exit(main())
