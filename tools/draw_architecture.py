"""Draws who imports whom: ``python -m tools.draw_architecture`` writes docs/images/architecture.svg from the code.

One box for each package of what ComfyUI loads. The modules at the root of ``happyhorse_core`` stand in two boxes: those
that use no other package of the core lie below all, the others above. Arrows point at what is imported; one is left out
where a chain of others says the same, and one that runs back is red. ``--check`` says whether the picture has the boxes
and arrows of the code.
"""

import argparse
import ast
import re
import sys
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PICTURE = ROOT / "docs" / "images" / "architecture.svg"
CORE = "happyhorse_core"
UPPER, GROUND = f"{CORE} (upper)", f"{CORE} (ground)"
TITLES = {UPPER: f"{CORE}: what joins the parts", GROUND: f"{CORE}: what all may use", "pack": "__init__.py"}
BOX_HEIGHT, FLOOR, SPACE, MARGIN, LETTER, GAP = 30, 62, 22, 24, 6.4, 8
INK, PAPER, RED = "#33404d", "#ffffff", "#d1242f"
FILLS = {"nodes": "#dbe9f9", "core": "#e6f2dc", "edge": "#f3ecd9"}


def module_of(path):
    """happyhorse_core/dit/load.py -> ("happyhorse_core", "dit", "load")."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" else parts


def sources():
    """{module: its path} of what ComfyUI loads."""
    paths = [ROOT / "__init__.py", *(ROOT / "nodes").rglob("*.py"), *(ROOT / CORE).rglob("*.py")]
    return {module_of(path): path for path in paths}


def imports_of(path, modules):
    """Modules of the pack that a file imports, wherever in it the line stands."""
    package = path.parent.relative_to(ROOT).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = (*package[: len(package) - node.level + 1], *filter(None, (node.module or "").split(".")))
            for name in node.names:
                found = (*base, name.name) if (*base, name.name) in modules else base
                if found in modules:
                    yield found


def code_graph():
    """{box: the boxes that it imports} and {box: names of its modules}, both sorted."""
    modules = sources()
    links = {module: set(imports_of(path, modules)) - {module} for module, path in modules.items()}
    ground = ground_of(links)
    boxes = {module: box_of(module, ground) for module in links}
    names, graph = {}, {}
    for module, box in sorted(boxes.items()):
        names.setdefault(box, []).append(module[-1] if module else "__init__")
        graph.setdefault(box, set()).update(boxes[other] for other in links[module])
    return {box: sorted(others - {box}) for box, others in graph.items()}, names


def ground_of(links):
    """Modules at the root of the core that, with all they import, use no package of it."""
    ground = {module for module in links if module[:1] == (CORE,) and len(module) < 3 and not is_package(module, links)}
    while True:
        climbers = {module for module in ground if links[module] - ground}
        if not climbers:
            return ground
        ground -= climbers


def is_package(module, links):
    return len(module) == 2 and any(len(other) > 2 and other[:2] == module for other in links)


def box_of(module, ground):
    if not module:
        return "pack"
    if module in ground:
        return GROUND
    if module[0] == "nodes":
        return "nodes/host" if module[1:2] == ("host",) else "nodes"
    folder = module[1] if len(module) > 2 or (ROOT.joinpath(*module)).is_dir() else None
    return f"{CORE}/{folder}" if folder else UPPER


def backward(graph):
    """Arrows to leave out so that none runs in a circle: of each circle the one from its most imported box."""
    removed = set()
    while circle := find_circle({box: [o for o in others if (box, o) not in removed] for box, others in graph.items()}):
        importers = {box: sum(box in others for others in graph.values()) for box in graph}
        removed.add(
            max(zip(circle, [*circle[1:], circle[0]], strict=True), key=lambda pair: (importers[pair[0]], pair))
        )
    return removed


def find_circle(graph):
    """Boxes that import each other in a ring, or None."""
    for start in sorted(graph):
        paths = [[start]]
        seen = set()
        while paths:
            path = paths.pop()
            for other in graph[path[-1]]:
                if other == start:
                    return path
                if other not in seen:
                    seen.add(other)
                    paths.append([*path, other])
    return None


def floors_of(graph):
    """{box: its floor}: one above the highest that it imports, the ground at 0."""
    floors = {}

    def floor(box):
        if box not in floors:
            floors[box] = 1 + max((floor(other) for other in graph[box]), default=-1)
        return floors[box]

    for box in graph:
        floor(box)
    return floors


def reduced(graph):
    """The arrows that no chain of others repeats."""

    def reach(box):
        return {box}.union(*(reach(other) for other in graph[box]))

    return {
        box: [other for other in others if not any(other in reach(third) for third in others if third != other)]
        for box, others in graph.items()
    }


def lines_of(box, names):
    """The second line of a box: which modules are in it."""
    inside = [name for name in names if not name.startswith("__") and name not in ("happyhorse_core", Path(box).name)]
    return " · ".join(inside)


def wrap(text, length):
    lines = [""]
    for word in filter(None, text.split(" · ")):
        if lines[-1] and len(lines[-1]) + len(word) + 3 > length:
            lines.append("")
        lines[-1] += f" · {word}" if lines[-1] else word
    return lines


def draw(graph, names):
    """The picture as SVG text."""
    against = backward(graph)
    forward = {box: [other for other in others if (box, other) not in against] for box, others in graph.items()}
    floors = floors_of(forward)
    arrows = [(box, other) for box, others in reduced(forward).items() for other in others]
    texts = {box: wrap(lines_of(box, names[box]), 44 if "(" not in box and box != "nodes" else 84) for box in graph}
    rows = with_gaps(rows_of(floors), floors, arrows)
    sizes = {item: size_of(item, texts[item]) if item in texts else (GAP, 0) for row in rows for item in row}
    width = 2 * MARGIN + max(sum(sizes[box][0] for box in row) + SPACE * (len(row) - 1) for row in rows)
    places, y = {}, MARGIN
    for row in rows:
        free = width - 2 * MARGIN - sum(sizes[box][0] for box in row)
        gap = free / (len(row) + 1)
        x = MARGIN + gap
        for box in row:
            places[box] = (x, y, *sizes[box])
            x += sizes[box][0] + gap
        tall = max(sizes[box][1] for box in row)
        places |= {item: (*places[item][:3], tall) for item in row if item not in graph}
        y += tall + FLOOR
    height = y - FLOOR + MARGIN
    shapes = [arrow(places, *pair, INK) for pair in arrows] + [arrow(places, *pair, RED) for pair in sorted(against)]
    shapes += [picture_of(box, places[box], texts[box]) for box in places if box in graph]
    head = "".join(marker(name, colour) for name, colour in (("ink", INK), ("red", RED)))
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" font-family="sans-serif">',
            "<!-- from tools/draw_architecture.py -->",
            *(f"<!-- imports: {box} > {other} -->" for box, others in sorted(graph.items()) for other in others),
            f'<defs>{head}</defs><rect width="100%" height="100%" fill="{PAPER}"/>',
            *shapes,
            "</svg>\n",
        ]
    )


def rows_of(floors):
    """Boxes by floor, the highest first, ComfyUI's side to the left."""
    rows = [[box for box in floors if floors[box] == floor] for floor in range(max(floors.values()), -1, -1)]
    return [sorted(row, key=lambda box: (not box.startswith("nodes"), box)) for row in rows]


def with_gaps(rows, floors, arrows):
    """The rows with a gap, (above, below, floor), for each arrow that has to pass one, at the side that it goes to."""
    rows = [list(row) for row in rows]
    for above, below in sorted(arrows):
        target = rows[-1 - floors[below]]
        left = 2 * target.index(below) + 1 < len(target)
        for floor in range(floors[below] + 1, floors[above]):
            row = rows[-1 - floor]
            row.insert(0 if left else len(row), (above, below, floor))
    return rows


def size_of(box, text):
    longest = max(len(TITLES.get(box, box)) * 1.25, *map(len, text))
    return longest * LETTER + 24, BOX_HEIGHT + 15 * len([line for line in text if line])


def picture_of(box, place, text):
    x, y, width, height = place
    kind = "nodes" if box.startswith(("nodes", "pack")) else "edge" if "(" in box else "core"
    middle = x + width / 2
    lines = [
        f'<text x="{middle:.1f}" y="{y + 35 + 15 * number}" font-size="11" text-anchor="middle" fill="{INK}">'
        f"{escape(line)}</text>"
        for number, line in enumerate(line for line in text if line)
    ]
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="7" fill="{FILLS[kind]}" '
        f'stroke="{INK}"/><text x="{middle:.1f}" y="{y + 19}" font-size="14" font-weight="bold" text-anchor="middle" '
        f'fill="{INK}">{escape(TITLES.get(box, box))}</text>' + "".join(lines)
    )


def arrow(places, above, below, colour):
    """From the lower edge of one box to the upper edge of the other, through the gaps between that are left for it."""
    start, end = places[above], places[below]
    down = end[1] > start[1]
    x1, y1 = start[0] + start[2] / 2, start[1] + (start[3] if down else 0)
    x2, y2 = end[0] + end[2] / 2, end[1] + (0 if down else end[3])
    passed = (places[item] for item in places if isinstance(item, tuple) and item[:2] == (above, below))
    gaps = sorted(passed, key=lambda gap: gap[1])
    # Lines spread over the edges of wide boxes instead of meeting in one point.
    first, last = (gaps[0][0], gaps[-1][0]) if gaps else (x2, x1)
    x1 += max(-0.4, min(0.4, (first - x1) / 1400)) * start[2]
    x2 += max(-0.4, min(0.4, (last - x2) / 1400)) * end[2]
    path, x, y = f"M{x1:.1f} {y1:.1f}", x1, y1
    if down:
        # Past the taller boxes beside it first.
        y = max(place[1] + place[3] for place in places.values() if place[1] == start[1])
        path += f"V{y:.1f}"
    for gap in gaps:
        path += curve(x, y, gap[0], gap[1]) + f"V{gap[1] + gap[3]:.1f}"
        x, y = gap[0], gap[1] + gap[3]
    path += curve(x, y, x2, y2)
    name = "red" if colour == RED else "ink"
    return f'<path d="{path}" fill="none" stroke="{colour}" stroke-width="1.3" marker-end="url(#{name})"/>'


def curve(x1, y1, x2, y2):
    """An S from one point to another, upright at both ends."""
    bend = (y2 - y1) * 0.45
    return f"C{x1:.1f} {y1 + bend:.1f} {x2:.1f} {y2 - bend:.1f} {x2:.1f} {y2:.1f}"


def marker(name, colour):
    return (
        f'<marker id="{name}" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="8" markerHeight="8" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{colour}"/></marker>'
    )


def drawn_graph(text):
    """{box: the boxes that it imports}, read back from a picture."""
    graph = {}
    for box, other in re.findall(r"<!-- imports: (.+?) > (.+?) -->", text):
        graph.setdefault(box, []).append(other)
        graph.setdefault(other, [])
    return graph


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tools.draw_architecture", description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the picture is of other code")
    asked = parser.parse_args(arguments)
    graph, names = code_graph()
    if asked.check:
        return int(drawn_graph(PICTURE.read_text(encoding="utf-8")) != graph)
    PICTURE.write_text(draw(graph, names), encoding="utf-8")
    print(f"Wrote {PICTURE.relative_to(ROOT)}.")
    for box, other in sorted(backward(graph)):
        print(f"Runs back: {box} imports {other}.", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
