"""Which widgets a node has in ComfyUI's editor, in which order, and what a saved workflow says their values are.

A canvas file stores widget values as a plain list, so their names have to be worked out from the node's description in
/object_info the way the editor does: inputs in their declared order, each with the widgets that come along with it (a
seed's "control after generate", the fields of a box, the inputs below the chosen option of a dynamic combo). Newer
files hold the names as well; they decide where the two orders differ, as for nodes whose own JavaScript adds widgets.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Any
"""What json.loads returns."""

WIDGET_TYPES = {
    "INT", "FLOAT", "BOOLEAN", "STRING", "COMBO", "MARKDOWN", "TEXTAREA", "COLOR", "COLORS", "BOUNDING_BOX",
    "BOUNDING_BOXES", "CURVE", "RANGE", "CHART", "GALLERIA", "PAINTER", "COMPOSITOR", "VIDEO_EDIT",
}  # fmt: skip
"""Types of inputs that are edited on the node, and saved; all others are sockets."""
BROWSER_TYPES = {"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ADVANCED"}
"""Types of inputs whose value the browser makes at the moment of sending: a photo, a recording, a rendered scene."""
CONSTANTS = {"IMAGECOMPARE": ["", ""]}
"""What the editor sends for widgets of these types, which it does not save."""
CUSTOM_COMBO = "CustomCombo"
"""The node whose choices are typed in by the user, into widgets that it does not declare."""
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
DYNAMIC_TYPES = {DYNAMIC_COMBO, "COMFY_AUTOGROW_V3", "COMFY_DYNAMICSLOT_V3"}
SEEDS = ("seed", "noise_seed")
"""Integers of these names have a "control after generate" even where their node does not ask for one."""
UPLOADS = ("image_upload", "audio_upload", "video_upload", "animated_image_upload", "file_upload")
"""Options of an input that lets the user choose a file on their own machine."""
NAMED_AFTER_SAVING = "filename_prefix"
CHOICES_OR_COMMENTS = re.compile(r"\{[^{}]*\}|\\[{}|]|//|/\*")
"""What the editor works out in a prompt: one of {a|b}, a backslash before one of these, a comment."""
FILLED_IN_NAME = re.compile(r"%date:[^%]+%|%[^%.]+\.[^%.]+%")
"""What the editor fills into a file name; %year% and its like are left to the server."""


def mapping(value: Json) -> Mapping[str, Json]:
    """``value`` where it is one; a server may send anything in its place."""
    return value if isinstance(value, Mapping) else {}


def sequence(value: Json) -> Sequence[Json]:
    return value if isinstance(value, list | tuple) else []


@dataclass(frozen=True)
class Input:
    """One declared input of a node: its name, type ("COMBO" for a list of choices) and options."""

    name: str
    type: str
    options: Mapping[str, Json]
    required: bool

    @property
    def choices(self) -> list[Json]:
        """What a combo offers; for a dynamic combo the keys of its options."""
        found = sequence(self.options.get("options"))
        return [mapping(item).get("key") for item in found] if self.type == DYNAMIC_COMBO else list(found)

    @property
    def has_widget(self) -> bool:
        kind = str(self.options.get("widgetType") or self.type)
        return (kind in WIDGET_TYPES or kind == DYNAMIC_COMBO) and not self.options.get("forceInput")

    @property
    def takes_files(self) -> bool:
        return any(self.options.get(name) for name in UPLOADS)

    def default(self) -> Json:
        """The value before anybody edits the widget; None where the type has no plain one."""
        if self.type in ("COMBO", DYNAMIC_COMBO):
            return self.options.get("default") or next(iter(self.choices), None)
        plain = {"INT": 0, "FLOAT": 0, "STRING": "", "BOOLEAN": False}
        return self.options.get("default", plain.get(self.type))


def declared_inputs(description: Mapping[str, Json]) -> list[Input]:
    """The inputs of a node of /object_info in the editor's order, without those below dynamic ones."""
    inputs = {item.name: item for item in read_inputs(mapping(description.get("input")))}
    order = mapping(description.get("input_order"))
    named = [str(name) for kind in ("required", "optional") for name in sequence(order.get(kind))]
    return [inputs[name] for name in dict.fromkeys([*named, *inputs]) if name in inputs]


def read_inputs(groups: Mapping[str, Json], prefix: str = "") -> Iterator[Input]:
    for kind in ("required", "optional"):
        for name, parts in mapping(groups.get(kind)).items():
            declared, options, *_ = (*sequence(parts), None, None)
            options = dict(mapping(options))
            if isinstance(declared, list):
                declared, options = "COMBO", {"options": declared} | options
            if isinstance(declared, str):
                yield Input(prefix + name, declared, options, kind == "required")


def inputs_below(combo: Input, choice: Json) -> list[Input]:
    """The inputs that a dynamic combo shows while ``choice`` is chosen."""
    for option in map(mapping, sequence(combo.options.get("options"))):
        if option.get("key") == choice:
            return list(read_inputs(mapping(option.get("inputs")), prefix=f"{combo.name}."))
    return []


def find_input(description: Mapping[str, Json], values: Mapping[str, Json], name: str) -> Input | None:
    """The input ``name`` of a node, also below the choices that ``values`` makes in its dynamic combos."""
    waiting = declared_inputs(description)
    while waiting:
        item = waiting.pop(0)
        if item.name == name:
            return item
        if item.type == DYNAMIC_COMBO:
            waiting += inputs_below(item, values.get(item.name, item.default()))
        if item.type in DYNAMIC_TYPES - {DYNAMIC_COMBO} and name.startswith(f"{item.name}."):
            return item
    return None


def companions(item: Input) -> list[str]:
    """Names of the widgets that follow an input's own in a file, and are not sent to the server."""
    if item.type == "BOUNDING_BOX":
        return ["x", "y", "width", "height"]
    control = item.options.get("control_after_generate", item.type == "INT" and item.name in SEEDS)
    if not control or item.type not in ("INT", "FLOAT", "COMBO"):
        return []
    first = control if isinstance(control, str) and item.type != "COMBO" else "control_after_generate"
    return [first, "control_filter_list"] if item.type == "COMBO" else [first]


def saved_values(node: Mapping[str, Json], description: Mapping[str, Json]) -> dict[str, Json]:
    """The values of all widgets of a node that are sent to the server, by name, in the editor's order.

    ``node`` is the node of the canvas file, ``description`` its class in /object_info. Widgets that the file says
    nothing of have their defaults, as they have in the editor.
    """
    declared = declared_inputs(description)
    constants = {item.name: CONSTANTS[item.type] for item in declared if item.type in CONSTANTS}
    if node["type"] == CUSTOM_COMBO:
        return typed_choices(node.get("widgets_values") or [])
    return read_values(node, description, [item for item in declared if item.has_widget]) | constants


def typed_choices(saved: Sequence[Json]) -> dict[str, Json]:
    """The values of CUSTOM_COMBO, which saves its choice, a place that is worked out anew, and all choices.

    The editor keeps an empty field for one more choice below the last.
    """
    choice, typed = next(iter(saved), ""), list(saved[2:])
    while typed and not typed[-1]:
        typed.pop()
    typed.append("")
    place = typed.index(choice) if choice in typed else -1
    return {"choice": choice, "index": place} | {f"option{count}": text for count, text in enumerate(typed, 1)}


def read_values(node: Mapping[str, Json], description: Mapping[str, Json], inputs: Sequence[Input]) -> dict[str, Json]:
    saved = node.get("widgets_values")
    names = node.get("widgets_values_named")
    if isinstance(saved, Mapping):  # nodes that store their widgets themselves
        return by_name(inputs, saved)
    values = without_forced(description, saved or [])
    placed = by_position(inputs, values)
    if names and (saved is None or list(names) != [name for name, _, _ in placed][: len(names)]):
        return by_name(inputs, names)
    return {name: value for name, value, sent in placed if sent}


def by_position(inputs: Sequence[Input], values: Sequence[Json]) -> list[tuple[str, Json, bool]]:
    """(name, value, is sent to the server) of every saved widget."""
    left = list(values)
    placed = []
    waiting = list(inputs)
    while waiting:
        item = waiting.pop(0)
        value = chosen(item, left.pop(0) if left else item.default())
        placed.append((item.name, value, True))
        placed += [(name, left.pop(0) if left else None, False) for name in companions(item)]
        if item.type == DYNAMIC_COMBO:
            waiting = [below for below in inputs_below(item, value) if below.has_widget] + waiting
    return placed


def by_name(inputs: Sequence[Input], names: Mapping[str, Json]) -> dict[str, Json]:
    return {item.name: chosen(item, names.get(item.name, item.default())) for item in shown(inputs, names)}


def shown(inputs: Sequence[Input], values: Mapping[str, Json]) -> Iterator[Input]:
    """The inputs that have a widget, including those below what ``values`` chooses in dynamic combos."""
    for item in inputs:
        if not item.has_widget:
            continue
        yield item
        if item.type == DYNAMIC_COMBO:
            yield from shown(inputs_below(item, values.get(item.name, item.default())), values)


def chosen(item: Input, value: Json) -> Json:
    """A combo without a value shows its first choice."""
    return next(iter(item.choices), None) if value is None and item.choices else value


def without_forced(description: Mapping[str, Json], values: Sequence[Json]) -> Sequence[Json]:
    """Drops the values of inputs that were widgets when an old file was saved and are sockets only today."""
    kept = []
    for item in read_inputs(mapping(description.get("input"))):
        forced = bool(item.options.get("forceInput"))
        if item.has_widget or forced:
            kept += [not forced, True] if item.options.get("control_after_generate") else [not forced]
    if len(kept) != len(values):
        return values
    return [value for value, keep in zip(values, kept, strict=True) if keep]


def made_in_the_browser(item: Input, value: Json) -> str | None:
    """What the editor would work out in an input before it sends the workflow; None where it sends it as it is."""
    if item.type in BROWSER_TYPES:
        return "a value that the browser makes"
    if not isinstance(value, str):
        return None
    if item.options.get("dynamicPrompts") and (found := CHOICES_OR_COMMENTS.search(value)):
        return f"{found[0]!r}, a choice or a comment"
    if item.name == NAMED_AFTER_SAVING and (found := FILLED_IN_NAME.search(value)):
        return f"{found[0]!r}, a part of the name that it fills in"
    return None
