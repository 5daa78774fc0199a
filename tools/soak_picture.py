"""The picture of a soak: memory, handles and threads over the prompts, and how each prompt ended."""

from html import escape

WIDTH, PANEL, SPACE, LEFT, RIGHT, TOP = 900, 110, 34, 90, 20, 34
INK, GRID, PAPER = "#33404d", "#dde3e8", "#ffffff"
PANELS = (("memory", "memory, MiB", 1 << 20), ("handles", "open handles", 1), ("threads", "threads", 1))
COLOURS = {
    "same": "#2da44e",
    "first": "#8ac9a0",
    "interrupted": "#d4a72c",
    "cleared": "#8c959f",
    "failed on the full disk": "#8250df",
    "failed": "#d1242f",
    "different": "#d1242f",
}
NAMES = {"same": "same bytes as before", "first": "first of its kind"}
STRIP = 26


def draw(samples: list[dict]) -> str:
    """The picture as SVG text; ``samples`` are those of tools/soak.py, in order."""
    height = TOP + len(PANELS) * (PANEL + SPACE) + STRIP + 62
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif">'
    parts = [head, f'<rect width="100%" height="100%" fill="{PAPER}"/>']
    y = TOP
    for key, title, unit in PANELS:
        parts += panel([sample[key] / unit for sample in samples], title, y)
        y += PANEL + SPACE
    return "\n".join([*parts, *strip([sample["outcome"] for sample in samples], y), "</svg>\n"])


def place(number: int, count: int) -> float:
    return LEFT + (WIDTH - LEFT - RIGHT) * number / max(1, count)


def panel(values: list[float], title: str, y: float) -> list[str]:
    """One line over the prompts, from zero, so that a growth is seen as large as it is."""
    top = max(values) * 1.1 or 1
    points = " ".join(
        f"{place(i + 0.5, len(values)):.1f},{y + PANEL * (1 - v / top):.1f}" for i, v in enumerate(values)
    )
    marks = []
    for part in (0, 0.5, 1):
        level = y + PANEL * (1 - part)
        marks.append(f'<path d="M{LEFT} {level:.1f}H{WIDTH - RIGHT}" stroke="{GRID}"/>')
        marks.append(text(LEFT - 8, level + 4, f"{top * part:,.0f}", anchor="end"))
    return [
        text(LEFT, y - 8, title, bold=True),
        *marks,
        f'<polyline points="{points}" fill="none" stroke="#0969da" stroke-width="1.5"/>',
    ]


def strip(outcomes: list[str], y: float) -> list[str]:
    """A bar for each prompt in the colour of its end, the numbers of prompts below, and what the colours mean."""
    count = len(outcomes)
    width = place(1, count) - place(0, count)
    bars = [
        f'<rect x="{place(i, count):.2f}" y="{y}" width="{width:.2f}" height="{STRIP}" fill="{COLOURS[outcome]}"/>'
        for i, outcome in enumerate(outcomes)
    ]
    numbers = [
        text(place(count * n / 5, count), y + STRIP + 14, f"{count * n // 5}", anchor="middle") for n in range(6)
    ]
    legend, x = [], LEFT
    for outcome, colour in COLOURS.items():
        if outcome in outcomes:
            words = f"{NAMES.get(outcome, outcome)}: {outcomes.count(outcome)}"
            legend.append(f'<rect x="{x}" y="{y + STRIP + 26}" width="12" height="12" fill="{colour}"/>')
            legend.append(text(x + 17, y + STRIP + 36, words))
            x += 34 + 6.4 * len(words)
    return [text(LEFT, y - 8, "how each prompt ended", bold=True), *bars, *numbers, *legend]


def text(x: float, y: float, words: str, *, anchor: str = "start", bold: bool = False) -> str:
    weight = "bold" if bold else "normal"
    look = f'font-size="12" font-weight="{weight}" text-anchor="{anchor}" fill="{INK}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {look}>{escape(words)}</text>'
