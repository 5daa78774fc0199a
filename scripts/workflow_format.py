"""From the workflow that ComfyUI's editor saves (canvas format) to the prompt that its server runs (API format).

The server takes {node id: {"class_type", "inputs"}} with a value or [node id, output slot] for every input. The editor
saves nodes, links and widget values as they lie on the canvas, and does the rest in the browser, so this file follows
what the browser does: it looks through reroutes, primitives, bypassed nodes and subgraphs for what really feeds an
input, and leaves out notes, muted nodes and what hangs on them. What else the browser works out is refused by name, as
the editor's own export does it right. ``to_api`` is the way in.

A node inside a subgraph gets the id "5:12": node 12 in the subgraph that node 5 stands for.
"""

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from .texts import one_line
from .workflow_widgets import (
    DYNAMIC_TYPES,
    Input,
    Json,
    declared_inputs,
    made_in_the_browser,
    saved_values,
)

MUTED, BYPASSED = 2, 4
NOTES = ("Note", "MarkdownNote")
PRIMITIVE, REROUTE = "PrimitiveNode", "Reroute"
SUBGRAPH_INPUTS, SUBGRAPH_OUTPUTS = -10, -20
"""The ids that links inside a subgraph use for its inputs and outputs."""
MOST_SUBGRAPHS = 10_000
HOST_ITSELF = "-1"
"""Stands in a list of promoted widgets for the subgraph's own inputs."""
EXPORT = "Open it in ComfyUI, choose Workflow > Export (API), and run the file that it writes."


class WorkflowError(ValueError):
    """A workflow that cannot be made into one that the server runs."""


class Link(NamedTuple):
    """What feeds an input: an output of a node that the server runs."""

    node: str
    slot: int


class Value(NamedTuple):
    """What feeds an input: a value that was typed into a widget.

    The editor sends it as it is where that widget is on the node of a subgraph, and works out what it holds elsewhere.
    """

    value: Json
    as_it_is: bool = False


Source = Link | Value | None


class Slot(NamedTuple):
    """An input of a node on the canvas: its name, its type and the id of the link into it."""

    name: str
    type: str
    link: int | None


def to_api(workflow: dict, object_info: dict) -> dict:
    """The API workflow of a canvas workflow, or a copy of one that is an API workflow already.

    ``object_info`` describes at least the node classes of the workflow, as GET /object_info does. Raises WorkflowError.
    """
    if is_api(workflow):
        return copy.deepcopy(workflow)
    check_format(workflow)
    with damage_named():
        return Converter(workflow, object_info).convert()


@contextmanager
def damage_named() -> Iterator[None]:
    """Turns what goes wrong with a workflow whose parts are not what they should be into a WorkflowError."""
    try:
        yield
    except WorkflowError:
        raise
    except RecursionError:
        raise WorkflowError(f"The workflow has more links in a row than can be followed. {EXPORT}") from None
    except (KeyError, IndexError, TypeError, AttributeError, ValueError) as error:
        what = one_line(repr(error), 200)
        raise WorkflowError(f"The workflow is damaged: its parts do not fit together ({what}). {EXPORT}") from error


def check_format(workflow: Json) -> None:
    """Raises WorkflowError for what is neither in API nor in canvas format."""
    if not is_api(workflow) and not is_canvas(workflow):
        raise WorkflowError(
            "This is no workflow of ComfyUI: it has neither a list of 'nodes' (canvas format) nor nodes with a "
            "'class_type' (API format). Save it in ComfyUI with Save or with Export (API)."
        )
    for key, node in workflow.items() if is_api(workflow) else ():
        parts = {"class_type": str, "inputs": Mapping, "_meta": Mapping | None}
        wrong = [name for name, kind in parts.items() if not isinstance(node.get(name), kind)]
        if wrong:
            raise WorkflowError(f"The workflow is damaged: node {key} has no right {wrong[0]}.")


def is_api(workflow: Json) -> bool:
    """Whether this is {node id: {"class_type": ..., "inputs": ...}}."""
    return (
        isinstance(workflow, Mapping)
        and bool(workflow)
        and all(isinstance(node, Mapping) and "class_type" in node for node in workflow.values())
    )


def is_canvas(workflow: Json) -> bool:
    return (
        isinstance(workflow, Mapping)
        and isinstance(workflow.get("nodes"), list)
        and all(
            isinstance(node, Mapping) and "id" in node and isinstance(node.get("type"), str)
            for node in workflow["nodes"]
        )
    )


def node_classes(workflow: dict) -> set[str]:
    """The classes whose description ``to_api`` and the server's checks need."""
    if is_api(workflow):
        return {node["class_type"] for node in workflow.values()}
    with damage_named():
        graphs = [workflow, *subgraphs_of(workflow).values()]
        own = {*subgraphs_of(workflow), *NOTES, PRIMITIVE, REROUTE}
        return {str(node["type"]) for graph in graphs for node in graph["nodes"]} - own


def subgraphs_of(workflow: Mapping[str, Json]) -> dict[str, Json]:
    """The definitions of subgraphs by id; subgraphs that hold others list them at their side."""
    return {graph["id"]: graph for graph in (workflow.get("definitions") or {}).get("subgraphs") or []}


def read_links(graph: Mapping[str, Json]) -> dict[int, dict[str, Json]]:
    """Links by id. They are objects in subgraphs, and lists elsewhere."""
    names = ("id", "origin_id", "origin_slot", "target_id", "target_slot", "type")
    links = [
        dict(zip(names, link, strict=False)) if isinstance(link, list) else dict(link)
        for link in graph.get("links") or []
        if link
    ]
    return {link["id"]: link for link in links}


@dataclass(eq=False)
class Scope:
    """One graph as it runs: the canvas itself, or one use of a subgraph, by the node ``host`` of the scope ``outer``.

    ``promoted`` holds what the host says of widgets inside: (id of the inner node, widget) -> value.
    """

    graph: Mapping[str, Json]
    outer: "Scope | None" = None
    host: Mapping[str, Json] | None = None
    promoted: dict[tuple[str, str], Json] = field(default_factory=dict)
    host_inputs: dict[str, Json] = field(default_factory=dict)
    """Values of the host's own widgets, by the name of the subgraph's input that they stand for."""
    children: "dict[str, Scope]" = field(default_factory=dict)
    """The scopes of the subgraph nodes in this one, by their id."""

    @cached_property
    def links(self) -> dict[int, dict[str, Json]]:
        return read_links(self.graph)

    @cached_property
    def nodes(self) -> dict[str, Mapping[str, Json]]:
        return {str(node["id"]): node for node in self.graph["nodes"]}

    @property
    def path(self) -> str:
        return "" if self.outer is None else f"{self.outer.path}{self.host['id']}:"


class Converter:
    """One conversion. Its methods follow a value from the input that wants it to where it comes from."""

    def __init__(self, workflow: dict, object_info: dict) -> None:
        self.object_info = object_info
        self.definitions = subgraphs_of(workflow)
        self.root = Scope(workflow)
        self.values: dict[tuple[Scope, str], dict[str, Json]] = {}
        self.opened = 0
        self.open_subgraphs(self.root, [])

    def convert(self) -> dict:
        nodes = list(self.running_nodes(self.root))
        self.check_classes([node for _, node in nodes])
        prompt = {f"{scope.path}{node['id']}": self.convert_node(scope, node) for scope, node in nodes}
        for node in prompt.values():
            # Links to what does not run (muted nodes, loose ends) are left out, as if nothing was connected.
            loose = [name for name, value in node["inputs"].items() if is_link(value) and value[0] not in prompt]
            for name in loose:
                del node["inputs"][name]
        return prompt

    # what there is

    def open_subgraphs(self, scope: Scope, parents: list[str]) -> None:
        """Gives every subgraph node of ``scope`` a scope of its own, down to the last."""
        for node in scope.graph["nodes"]:
            definition = self.definitions.get(node["type"])
            if definition is None:
                continue
            if node["type"] in parents:
                raise WorkflowError(f"Subgraph '{definition.get('name')}' contains itself.")
            self.opened += 1
            if self.opened > MOST_SUBGRAPHS:  # ten in ten in ten ... are soon more than memory holds
                raise WorkflowError(f"The workflow uses more than {MOST_SUBGRAPHS:,} subgraphs, one in the other.")
            child = Scope(definition, scope, node)
            scope.children[str(node["id"])] = child
            self.open_subgraphs(child, [*parents, node["type"]])
            self.promote_widgets(child)

    def promote_widgets(self, scope: Scope) -> None:
        """Reads what the host of ``scope`` shows of the widgets inside it."""
        host = scope.host
        saved = list(host.get("widgets_values") or [])
        shown = {item["name"]: target for item in scope.graph["inputs"] if (target := self.widget_behind(scope, item))}
        for index, name in enumerate(shown):
            scope.host_inputs[name] = saved[index] if index < len(saved) else self.widget_value(scope, *shown[name])
        inputs = {target: name for name, target in shown.items()}
        promoted = (host.get("properties") or {}).get("proxyWidgets") or []
        for (inner, name, *_), value in zip(promoted, saved, strict=False):
            linked = name if str(inner) == HOST_ITSELF else inputs.get((str(inner), name))
            if value is None:
                continue
            if linked in shown:
                scope.host_inputs[linked] = value
            else:
                scope.promoted[str(inner), name] = value

    def widget_behind(self, scope: Scope, item: Mapping[str, Json]) -> tuple[str, str] | None:
        """(inner node, widget) that an input of a subgraph stands for, where it stands for one."""
        for number in item.get("linkIds") or []:
            link = scope.links.get(number)
            node = scope.nodes.get(str(link["target_id"])) if link else None
            slot = next((slot for slot in (node or {}).get("inputs") or [] if slot.get("link") == number), None)
            if slot is None:
                continue
            name = (slot.get("widget") or {}).get("name", slot["name"])
            if name in self.widget_values(scope, node):
                return str(node["id"]), name
        return None

    def running_nodes(self, scope: Scope) -> Iterator[tuple[Scope, Mapping[str, Json]]]:
        """All nodes that reach the server, in the order of the file."""
        for node in scope.graph["nodes"]:
            if node.get("mode") in (MUTED, BYPASSED) or node["type"] in (*NOTES, PRIMITIVE, REROUTE):
                continue
            if str(node["id"]) in scope.children:
                yield from self.running_nodes(scope.children[str(node["id"])])
            else:
                yield scope, node

    def check_classes(self, nodes: list[Mapping[str, Json]]) -> None:
        missing = sorted({node["type"] for node in nodes if node["type"] not in self.object_info})
        if not missing:
            return
        if any(name.startswith(("workflow>", "workflow/")) for name in missing):
            raise WorkflowError(f"The workflow has group nodes, which cannot be read: {', '.join(missing)}. {EXPORT}")
        raise WorkflowError(
            f"The server does not have these nodes: {', '.join(missing)}. Install the packs that they belong to, and "
            f"restart ComfyUI. If they exist in the browser only: {EXPORT}"
        )

    # what the server gets

    def convert_node(self, scope: Scope, node: Mapping[str, Json]) -> dict[str, Json]:
        description = self.object_info[node["type"]]
        kinds = {item.name: item.type for item in declared_inputs(description)}
        inputs = {name: wrap(value, kinds.get(name)) for name, value in self.widget_values(scope, node).items()}
        done = set()
        for slot in node.get("inputs") or []:
            source = self.resolve_input(scope, slot.get("link"), frozenset())
            if isinstance(source, Link):
                inputs[slot["name"]] = [source.node, source.slot]
            elif isinstance(source, Value):
                inputs[slot["name"]] = wrap(source.value)
                done |= {slot["name"]} if source.as_it_is else set()
        own = {name: value for name, value in inputs.items() if name not in done}
        self.check_values(f"{scope.path}{node['id']} ({node['type']})", node["type"], own)
        title = node.get("title") or description.get("display_name") or node["type"]
        return {"inputs": inputs, "class_type": node["type"], "_meta": {"title": title}}

    def check_values(self, name: str, kind: str, inputs: Mapping[str, Json]) -> None:
        """Refuses what the editor would change, or add, when it sends a node."""
        for item in declared_inputs(self.object_info[kind]):
            found = made_in_the_browser(item, inputs.get(item.name))
            if found:
                raise WorkflowError(f"Node {name}: its {item.name} holds {found}. {EXPORT}")

    def widget_values(self, scope: Scope, node: Mapping[str, Json]) -> dict[str, Json]:
        """The values of all widgets on a node by name; those of a subgraph node by the names of its inputs."""
        key = str(node["id"])
        if key in scope.children:
            return scope.children[key].host_inputs
        if (scope, key) not in self.values:
            values: dict[str, Json] = {}
            if node["type"] == PRIMITIVE:
                values = dict(zip(["value"], node.get("widgets_values") or [], strict=False))
            elif node["type"] in self.object_info:
                values = saved_values(node, self.object_info[node["type"]])
            self.values[scope, key] = values
        overrides = {name: value for (inner, name), value in scope.promoted.items() if inner == key}
        return self.values[scope, key] | overrides

    def widget_value(self, scope: Scope, node: str, widget: str) -> Json:
        return self.widget_values(scope, scope.nodes[node])[widget]

    # where it comes from

    def resolve_input(self, scope: Scope, number: int | None, seen: frozenset) -> Source:
        """What feeds an input that link ``number`` of ``scope`` leads into."""
        link = None if number is None else scope.links.get(number)
        if link is None:
            return None
        if (scope, number) in seen:
            raise WorkflowError(f"Link {number} of the workflow leads back to itself.")
        seen |= {(scope, number)}
        if link["origin_id"] == SUBGRAPH_INPUTS:
            return self.resolve_host_input(scope, link["origin_slot"], seen)
        return self.resolve_output(scope, link, seen)

    def resolve_host_input(self, scope: Scope, index: int, seen: frozenset) -> Source:
        """What the host of ``scope`` gets at the input that stands for slot ``index`` of the subgraph's inputs."""
        name = scope.graph["inputs"][index]["name"]
        slot = next((slot for slot in scope.host.get("inputs") or [] if slot["name"] == name), {})
        if slot.get("link") is not None:
            source = self.resolve_input(scope.outer, slot["link"], seen)
            # The editor lets no primitive reach into a subgraph: the widget inside keeps the value of its own.
            return None if isinstance(source, Value) and not source.as_it_is else source
        return Value(scope.host_inputs[name], as_it_is=True) if name in scope.host_inputs else None

    def resolve_output(self, scope: Scope, link: Mapping[str, Json], seen: frozenset) -> Source:
        node, index = scope.nodes.get(str(link["origin_id"])), link["origin_slot"]
        if node is None or node.get("mode") == MUTED:
            return None
        if node.get("mode") == BYPASSED:
            slot = self.bypass_slot(scope, node, index, str(link.get("type") or "*"))
            return self.resolve_input(scope, slot.link, seen) if slot else None
        if node["type"] == REROUTE:
            return self.resolve_input(scope, next(iter(node.get("inputs") or []), {}).get("link"), seen)
        if node["type"] == PRIMITIVE:
            values = self.widget_values(scope, node)
            return Value(values.get("value", next(iter(values.values())))) if values else None
        child = scope.children.get(str(node["id"]))
        if child is None:
            return Link(f"{scope.path}{node['id']}", index)
        inner = next(
            (
                number
                for number, each in child.links.items()
                if each["target_id"] == SUBGRAPH_OUTPUTS and each["target_slot"] == index
            ),
            None,
        )
        return self.resolve_input(child, inner, seen)

    def bypass_slot(self, scope: Scope, node: Mapping[str, Json], index: int, wanted: str) -> Slot | None:
        """The input that a bypassed node hands on as output ``index``, to an input of type ``wanted``.

        The one at the same place if its type fits, else the first of exactly that type, else the first that fits.
        """
        slots = self.slots(scope, node)
        given = str((node.get("outputs") or [{}] * (index + 1))[index].get("type") or "*")
        if wanted == "*":
            return slots[index] if index < len(slots) else next(iter(slots), None)
        fitting = [slot for slot in slots if connects(slot.type, given) and connects(slot.type, wanted)]
        same_place = [slot for slot in fitting if index < len(slots) and slot is slots[index]]
        exact = [slot for slot in slots if slot.type == wanted]
        return next(iter([*same_place, *exact, *fitting]), None)

    def slots(self, scope: Scope, node: Mapping[str, Json]) -> list[Slot]:
        """The inputs of a node in the editor's order: sockets, then widgets, then what only the file knows."""
        saved = {slot["name"]: slot for slot in node.get("inputs") or []}
        child = scope.children.get(str(node["id"]))
        if child is not None:
            declared = [(item["name"], str(item["type"])) for item in child.graph["inputs"]]
        else:
            inputs = declared_inputs(self.object_info.get(node["type"], {}))
            declared = [(name, kind) for item in sorted(inputs, key=has_widget) for name, kind in spread(item, saved)]
        ordered = {name: Slot(name, kind, saved.get(name, {}).get("link")) for name, kind in declared}
        rest = {name: Slot(name, str(slot.get("type")), slot.get("link")) for name, slot in saved.items()}
        return list((ordered | {name: slot for name, slot in rest.items() if name not in ordered}).values())


def has_widget(item: Input) -> bool:
    return item.has_widget


def spread(item: Input, saved: Mapping[str, Mapping[str, Json]]) -> list[tuple[str, str]]:
    """(name, type) of the slots of one declared input, where the file says how many and of which type they are."""
    if item.type in DYNAMIC_TYPES:
        below = [(name, str(slot.get("type"))) for name, slot in saved.items() if name.startswith(f"{item.name}.")]
        return [(item.name, "COMBO"), *below] if item.has_widget else below
    if item.type == "COMFY_MATCHTYPE_V3":
        return [(item.name, str(saved.get(item.name, {}).get("type", "*")))]
    return [(item.name, item.type)]


def connects(one: str, other: str) -> bool:
    """Whether an output of one type may be linked to an input of the other; a type may be several, with commas."""
    if "*" in (one, other) or "" in (one, other):
        return True
    return bool(set(one.lower().split(",")) & set(other.lower().split(",")))


def wrap(value: Json, kind: str | None = None) -> Json:
    """A list as a value has to be told from a link."""
    if not isinstance(value, list):
        return value
    return {"__type__": kind, "__value__": value} if kind == "CURVE" else {"__value__": value}


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2
