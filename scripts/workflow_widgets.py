"""Which widgets a node has in ComfyUI's editor, in which order, and what a saved workflow says their values are.

A canvas file stores widget values as a plain list, so their names have to be worked out from the node's description in
/object_info the way the editor does: inputs in their declared order, each with the widgets that come along with it (a
seed's "control after generate", the fields of a box, the inputs below the chosen option of a dynamic combo). Newer
files hold the names as well; they decide where the two orders differ, as for nodes whose own JavaScript adds widgets.
"""

import datetime
import random
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
FIXED_VALUES: dict[str, Json] = {"IMAGECOMPARE": ["", ""]}
"""Types of widgets that the file does not hold, and what the editor sends for them."""
BROWSER_TYPES = {"WEBCAM", "AUDIO_RECORD", "LOAD_3D", "LOAD_3D_ADVANCED"}
"""Types of inputs whose value the browser makes at the moment of sending: a photo, a recording, a rendered scene."""
CUSTOM_COMBO = "CustomCombo"
"""The node whose choices are typed in by the user; its index and its choices are widgets that it does not declare."""
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
DYNAMIC_TYPES = {DYNAMIC_COMBO, "COMFY_AUTOGROW_V3", "COMFY_DYNAMICSLOT_V3"}
SEEDS = ("seed", "noise_seed")
"""Integers of these names have a "control after generate" even where their node does not ask for one."""
UPLOADS = ("image_upload", "audio_upload", "video_upload", "animated_image_upload", "file_upload")
"""Options of an input that lets the user choose a file on their own machine."""
NAMED_AFTER_SAVING = "filename_prefix"


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
        found = self.options.get("options") or []
        return [item["key"] for item in found] if self.type == DYNAMIC_COMBO else list(found)

    @property
    def has_widget(self) -> bool:
        kind = self.options.get("widgetType") or self.type
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
    inputs = {item.name: item for item in read_inputs(description.get("input") or {})}
    order = description.get("input_order") or {}
    named = [name for kind in ("required", "optional") for name in order.get(kind) or [] if name in inputs]
    return [inputs[name] for name in dict.fromkeys([*named, *inputs])]


def read_inputs(groups: Mapping[str, Json], prefix: str = "") -> Iterator[Input]:
    for kind in ("required", "optional"):
        for name, (declared, *rest) in (groups.get(kind) or {}).items():
            options = dict(rest[0]) if rest and rest[0] else {}
            if isinstance(declared, list):
                declared, options = "COMBO", {"options": declared} | options
            yield Input(prefix + name, declared, options, kind == "required")


def inputs_below(combo: Input, choice: Json) -> list[Input]:
    """The inputs that a dynamic combo shows while ``choice`` is chosen."""
    for option in combo.options.get("options") or []:
        if option["key"] == choice:
            return list(read_inputs(option["inputs"], prefix=f"{combo.name}."))
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
    fixed = {item.name: FIXED_VALUES[item.type] for item in declared if item.type in FIXED_VALUES}
    values = read_values(node, description, [item for item in declared if item.has_widget])
    if node["type"] == CUSTOM_COMBO and "choice" in values:
        values["index"] = index_of_choice(values["choice"], node.get("widgets_values"))
    return fixed | values


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


def index_of_choice(choice: Json, saved: Json) -> int:
    """The place of ``choice`` among what the user of a Custom Combo typed in, which follows choice and index."""
    typed = saved[2:] if isinstance(saved, list) else []
    return typed.index(choice) if choice in typed else -1


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
    for item in read_inputs(description.get("input") or {}):
        forced = bool(item.options.get("forceInput"))
        if item.has_widget or forced:
            kept += [not forced, True] if item.options.get("control_after_generate") else [not forced]
    if len(kept) != len(values):
        return values
    return [value for value, keep in zip(values, kept, strict=True) if keep]


def expand_choices(text: str, chance: random.Random) -> str:
    """A prompt as the editor sends it: without comments, and with one of each ``{a|b}`` chosen by ``chance``.

    A backslash keeps ``{``, ``}`` and ``|`` as they are.
    """
    text = re.sub(r"/\*.*?\*/|//[^\n\r]*", "", text, flags=re.DOTALL)
    innermost = re.compile(r"(?<!\\)\{((?:\\.|[^{}\\])*)\}", re.DOTALL)
    while True:
        # From the inside out, so that a choice may hold choices; one that is not closed stays as it is.
        expanded = innermost.sub(lambda match: chance.choice(re.split(r"(?<!\\)\|", match[1])), text)
        if expanded == text:
            return re.sub(r"\\([{}|])", r"\1", text)
        text = expanded


def expand_file_name(text: str, widget: Mapping[tuple[str, str], Json], now: datetime.datetime) -> str:
    """A file name as the editor sends it: ``%date:yyyy-MM-dd%`` and ``%Node.widget%`` are filled in.

    ``widget`` holds values by (name of the node, name of the widget). What is not known is left for the server.
    """

    def fill(match: re.Match) -> str:
        if match[1].startswith("date:"):
            return expand_date(match[1].removeprefix("date:"), now)
        name, dot, wanted = match[1].partition(".")
        if not dot or "." in wanted or (name, wanted) not in widget:
            return match[0]
        return re.sub(r'[/?<>\\:*|"\x00-\x1f\x7f]', "_", as_text(widget[name, wanted]))

    return re.sub(r"%([^%]+)%", fill, text)


def as_text(value: Json) -> str:
    """A value as JavaScript writes it into a text."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return "" if value is None else str(value)


def expand_date(text: str, now: datetime.datetime) -> str:
    parts = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def fill(match: re.Match) -> str:
        if match[0][0] == "y":
            return {"yy": f"{now.year % 100:02}", "yyyy": str(now.year)}.get(match[0], match[0])
        return str(parts[match[0][0]]).zfill(len(match[0]))

    return re.sub(r"dd?|MM?|hh?|mm?|ss?|yyy?y?", fill, text)
