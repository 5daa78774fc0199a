"""Changes to the inputs of an API workflow from the command line, and the files that they name."""

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from .comfy_client import Server
from .report import name_of
from .texts import read_json
from .workflow_widgets import DYNAMIC_COMBO, Input, Json, declared_inputs, find_input

LISTED = 40


class SettingError(ValueError):
    """An argument that does not fit the workflow or this machine."""


class Setting(NamedTuple):
    """One --set: where, as NODE.INPUT, and the text of the value."""

    place: str
    text: str


class Target(NamedTuple):
    """The input that a setting means: its node, its name and what the server says of it, where it says something."""

    node: str
    name: str
    declared: Input | None


def parse_setting(text: str) -> Setting:
    place, equals, value = text.partition("=")
    if not equals or not all(place.rpartition(".")[::2]):
        raise SettingError(f"'{text}' is not of the form NODE.INPUT=VALUE")
    return Setting(place.strip(), value)


async def apply_settings(
    prompt: dict, settings: Sequence[Setting], object_info: Mapping[str, Json], server: Server, uploads: Sequence[Path]
) -> None:
    """Uploads ``uploads`` and writes the settings into ``prompt``; SettingError before anything has changed.

    A file that the server had to give another name is renamed in the inputs that choose it.
    """
    for path in uploads:
        if not readable(path):
            raise SettingError(f"--upload: there is no file {path} that can be read.")
    targets = [find_target(prompt, setting.place, object_info) for setting in settings]
    values = [read_value(setting, target, prompt) for setting, target in zip(settings, targets, strict=True)]
    sent: dict[Path, str] = {}
    for path in uploads:
        sent[path.resolve()] = await server.upload(path)
        rename_input(prompt, object_info, path.name, sent[path.resolve()])
    for target, value in zip(targets, values, strict=True):
        path = local_file(target.declared, value)
        if path is not None and path not in sent:
            sent[path] = await server.upload(path)
        prompt[target.node]["inputs"][target.name] = sent[path] if path is not None else value


def readable(path: Path) -> bool:
    try:
        return path.is_file() and os.access(path, os.R_OK)
    except (OSError, ValueError):  # a name that no file can have
        return False


def rename_input(prompt: dict, object_info: Mapping[str, Json], old: str, new: str) -> None:
    for node in prompt.values():
        for item in declared_inputs(object_info.get(node["class_type"], {})):
            if item.takes_files and node["inputs"].get(item.name) == old:
                node["inputs"][item.name] = new


def find_target(prompt: dict, place: str, object_info: Mapping[str, Json]) -> Target:
    """The input that ``place`` means. Titles and names of inputs may hold dots, so every dot may be the one between."""
    parts = place.split(".")
    splits = [(".".join(parts[:count]), ".".join(parts[count:])) for count in range(1, len(parts))]
    known = [(node, name) for node, name in splits if nodes_called(prompt, node)]
    if not known:
        listed = listing(name_of(key, prompt) for key in prompt)
        raise SettingError(f"--set {place}: the workflow has no node '{splits[-1][0]}'. It has:\n{listed}")
    for called, name in known:
        nodes = nodes_called(prompt, called)
        found = [target for node in nodes if (target := target_at(prompt, node, name, object_info))]
        if found and len(nodes) > 1:
            listed = listing(name_of(key, prompt) for key in nodes)
            raise SettingError(f"--set {place}: '{called}' is the name of several nodes. Use the id of one:\n{listed}")
        if found:
            return found[0]
    called, name = known[-1]
    node = nodes_called(prompt, called)[0]
    declared = declared_inputs(object_info.get(prompt[node]["class_type"], {}))
    names = dict.fromkeys([*prompt[node]["inputs"], *(item.name for item in declared)])
    raise SettingError(f"--set {place}: {name_of(node, prompt)} has no input '{name}'. It has: {', '.join(names)}")


def nodes_called(prompt: dict, name: str) -> list[str]:
    """The node with the id ``name``, else those with that title, else those of that class."""
    if name in prompt:
        return [name]
    titled = [key for key, node in prompt.items() if (node.get("_meta") or {}).get("title") == name]
    return titled or [key for key, node in prompt.items() if node["class_type"] == name]


def target_at(prompt: dict, node: str, name: str, object_info: Mapping[str, Json]) -> Target | None:
    inputs = prompt[node]["inputs"]
    declared = find_input(object_info.get(prompt[node]["class_type"], {}), inputs, name)
    return Target(node, name, declared) if declared is not None or name in inputs else None


def read_value(setting: Setting, target: Target, prompt: dict) -> Json:
    """The value that a setting's text stands for at its input."""
    try:
        value = read_json(setting.text, parse_constant=refuse_constant)
    except ValueError:
        value = setting.text
    if isinstance(value, list):
        is_link = len(value) == 2 and value[0] in prompt and isinstance(value[1], int)
        return value if is_link else {"__value__": value}
    kind = target.declared.type if target.declared is not None else None
    if kind == "BOOLEAN" and isinstance(value, str):  # the server takes every text for true
        if value.lower() not in ("true", "false"):
            raise SettingError(f"--set {setting.place}: '{value}' is neither true nor false.")
        return value.lower() == "true"
    if isinstance(value, str) or kind not in ("STRING", "COMBO", DYNAMIC_COMBO) or value in target.declared.choices:
        return value
    return setting.text


def refuse_constant(text: str) -> None:
    raise ValueError(f"{text} is not JSON")


def local_file(item: Input | None, value: Json) -> Path | None:
    """The file of this machine that a value names, where its input chooses one from the server's input folder."""
    if item is None or not item.takes_files or item.options.get("image_folder", "input") != "input":
        return None
    if not isinstance(value, str) or not value:
        return None
    try:
        path = Path(value).expanduser()
        return path.resolve() if readable(path) else None
    except RuntimeError:  # nobody's home
        return None


def listing(names: Iterator[str]) -> str:
    every = list(names)
    left = len(every) - LISTED
    return "\n".join(f"  {name}" for name in every[:LISTED]) + (f"\n  and {left} more" if left > 0 else "")
