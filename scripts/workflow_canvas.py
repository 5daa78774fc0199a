"""Lays a workflow out on ComfyUI's canvas: columns from left to right, in each some groups of nodes below each other.

A ``Workflow`` is written down node by node, each linked to outputs of earlier ones, and gives both of its files: the
canvas format, which the editor opens, and the API format, which the server runs.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .workflow_kinds import Kind

Json = Any
"""What json.loads returns."""

TITLE_BAR = 30
"""Height of a node's title, which lies above its position."""
GROUP_BAR = 40
MARGIN, GAP, GROUP_GAP, COLUMN_GAP = 20, 30, 50, 60
VIEW_WIDTH, VIEW_HEIGHT, VIEW_LEFT, VIEW_TOP = 1480, 780, 90, 90
"""The part of a window of 1600 x 900 that the editor's bars leave free."""
GROUP_COLOUR = "#3f789e"
PACK, CORE = "happyhorse", "comfy-core"
CORE_VERSION = "0.33.0"
COLOURS = {
    "note": {"color": "#432", "bgcolor": "#653"},
    "positive": {"color": "#232", "bgcolor": "#353"},
    "negative": {"color": "#322", "bgcolor": "#533"},
}
NAMES = uuid.UUID("6f3f2f0c-5a5e-4c4e-9d3f-3f6d5f2a7c11")
"""Namespace of the ids of workflows, so that the same workflow has the same id each time it is written."""


class Output(NamedTuple):
    """An output of a node, to link an input to."""

    node: "Node"
    slot: int

    @property
    def type(self) -> str:
        return self.node.kind.outputs[self.slot][1]


@dataclass(eq=False)
class Node:
    """One node: its kind, what is typed into its widgets, and what its sockets are linked to."""

    id: int
    name: str
    kind: Kind
    values: dict[str, Json]
    links: dict[str, Output]
    title: str | None
    colour: str | None
    height: int
    width: int = 0
    position: tuple[int, int] = (0, 0)

    def __getitem__(self, name: str) -> Output:
        """An output by its name."""
        return Output(self, [output for output, _ in self.kind.outputs].index(name))


@dataclass
class Group:
    title: str
    nodes: list[Node] = field(default_factory=list)

    @property
    def width(self) -> int:
        return max(node.kind.width for node in self.nodes) + 2 * MARGIN

    @property
    def height(self) -> int:
        return GROUP_BAR + sum(TITLE_BAR + node.height for node in self.nodes) + GAP * len(self.nodes)


class Workflow:
    """A workflow in the making: ``column``, ``group`` and ``add`` say where the next node goes."""

    def __init__(self, name: str, note: str, kinds: Mapping[str, Kind]) -> None:
        self.name = name
        self.kinds = kinds
        self.nodes: list[Node] = []
        self.columns: list[list[Group]] = []
        self.note = self._make("MarkdownNote", "Files and notes", "note", None, {"text": note})

    def column(self, title: str) -> None:
        """Starts a column to the right of the last, with its first group."""
        self.columns.append([])
        self.group(title)

    def group(self, title: str) -> None:
        """Starts a group below the last. Groups are numbered through."""
        number = sum(len(column) for column in self.columns) + 1
        self.columns[-1].append(Group(f"{number}. {title}"))

    def add(
        self,
        name: str,
        *,
        title: str | None = None,
        colour: str | None = None,
        node_height: int | None = None,
        **given: Json | Output,
    ) -> Node:
        """Adds a node to the current group. ``given`` holds links and widget values by the names of the inputs;
        ``node_height`` is that of the node on the canvas, in place of its kind's.

        Raises KeyError for an input that the node does not have, or that must be linked and is not.
        """
        node = self._make(name, title, colour, node_height, given)
        self.columns[-1][-1].nodes.append(node)
        return node

    def _make(
        self, name: str, title: str | None, colour: str | None, height: int | None, given: dict[str, Json | Output]
    ) -> Node:
        kind = self.kinds[name]
        links = {key: value for key, value in given.items() if isinstance(value, Output)}
        values = {key: value for key, value in given.items() if key not in links}
        unknown = (set(links) - {*kind.sockets, *kind.widgets}) | (set(values) - set(kind.widgets))
        missing = set(kind.sockets) - set(kind.optional) - set(links)
        if unknown or missing:
            raise KeyError(f"{self.name}, {name}: no inputs {sorted(unknown)}, not linked {sorted(missing)}")
        node = Node(len(self.nodes) + 1, name, kind, kind.widgets | values, links, title, colour, height or kind.height)
        self.nodes.append(node)
        return node

    # the API format

    def api(self) -> dict[str, Json]:
        return {str(node.id): self._api_node(node) for node in self.nodes if node is not self.note}

    @staticmethod
    def _api_node(node: Node) -> dict[str, Json]:
        values = {key: value for key, value in node.values.items() if key not in node.kind.browser_only}
        links = {key: [str(output.node.id), output.slot] for key, output in node.links.items()}
        title = node.title or node.kind.display_name
        return {"class_type": node.name, "inputs": values | links, "_meta": {"title": title}}

    # the canvas format

    def canvas(self) -> dict[str, Json]:
        groups, width, height = self._place()
        links = self._links()
        scale = round(min(VIEW_WIDTH / width, VIEW_HEIGHT / height, 1.0), 3)
        offset = [VIEW_LEFT / scale, VIEW_TOP / scale + TITLE_BAR]
        return {
            "id": str(uuid.uuid5(NAMES, self.name)),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [self._canvas_node(node, links) for node in self.nodes],
            "links": links,
            "groups": groups,
            "config": {},
            "extra": {"ds": {"scale": scale, "offset": [round(value) for value in offset]}},
            "version": 0.4,
        }

    def _place(self) -> tuple[list[dict[str, Json]], int, int]:
        """Gives every node its place; returns the groups and the size of the whole."""
        self.note.width = self.note.kind.width
        bottom = self.note.height
        left = self.note.width + COLUMN_GAP
        groups = []
        for column in self.columns:
            top, width = -TITLE_BAR, max(group.width for group in column)
            for group in column:
                y = top + GROUP_BAR + TITLE_BAR
                for node in group.nodes:
                    node.position, node.width = (left + MARGIN, y), width - 2 * MARGIN
                    y += node.height + TITLE_BAR + GAP
                groups.append(
                    {
                        "id": len(groups) + 1,
                        "title": group.title,
                        "bounding": [left, top, width, group.height],
                        "color": GROUP_COLOUR,
                        "font_size": 24,
                        "flags": {},
                    }
                )
                top += group.height + GROUP_GAP
            bottom = max(bottom, top - GROUP_GAP)
            left += width + COLUMN_GAP
        return groups, left - COLUMN_GAP, bottom + TITLE_BAR

    def _links(self) -> list[list[Json]]:
        """[id, source node, output, target node, input, type] of every link."""
        found: list[list[Json]] = []
        for node in self.nodes:
            for index, name in enumerate(self._slots(node)):
                output = node.links.get(name)
                if output is not None:
                    found.append([len(found) + 1, output.node.id, output.slot, node.id, index, output.type])
        return found

    @staticmethod
    def _slots(node: Node) -> list[str]:
        """The sockets of a node as the canvas counts them: its own, then widgets that are linked."""
        return [*node.kind.sockets, *(name for name in node.links if name not in node.kind.sockets)]

    def _canvas_node(self, node: Node, links: list[list[Json]]) -> dict[str, Json]:
        into = {index: key for key, _, _, target, index, _ in links if target == node.id}
        inputs = []
        for index, name in enumerate(self._slots(node)):
            linked = node.links.get(name)
            kind = node.kind.sockets[name] if linked is None else linked.type
            entry = {"name": name, "type": kind, "link": into.get(index)}
            if name in node.kind.optional:
                entry["shape"] = 7
            if name in node.kind.widgets:
                entry["widget"] = {"name": name}
            inputs.append(entry)
        outputs = []
        for slot, (name, kind) in enumerate(node.kind.outputs):
            out = [key for key, source, index, *_ in links if (source, index) == (node.id, slot)]
            outputs.append({"name": name, "type": kind, "links": out or None})
        note = node is self.note
        home = {"cnr_id": PACK} if node.name.startswith("HappyHorse") else {"cnr_id": CORE, "ver": CORE_VERSION}
        return {
            "id": node.id,
            "type": node.name,
            "pos": list(node.position),
            "size": [node.width, node.height],
            "flags": {},
            "order": node.id - 1,
            "mode": 0,
            "inputs": inputs,
            "outputs": outputs,
            **({"title": node.title} if node.title else {}),
            "properties": {} if note else {**home, "Node name for S&R": node.name},
            "widgets_values": list(node.values.values()),
            "widgets_values_named": node.values,
            **COLOURS.get(node.colour or "", {}),
        }
