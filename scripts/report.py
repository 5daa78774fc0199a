"""What a server says of a workflow that it refused or that failed, in words for the person who wanted to run it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .texts import one_line
from .workflow_widgets import Json, find_input, mapping, sequence

CHOICES = 12
LONGEST_VALUE = 80
LONGEST_TEXT = 500
TRACEBACK_LINES = 12


def title_of(node: Mapping[str, Json]) -> str:
    return (node.get("_meta") or {}).get("title") or node["class_type"]


def name_of(key: str, prompt: Mapping[str, Json]) -> str:
    """A node as a person knows it: id, title and class."""
    node = prompt.get(key)
    if node is None:
        return f"node {one_line(key, LONGEST_VALUE)}"
    title, kind = title_of(node), node["class_type"]
    return one_line(f"node {key} ({kind})" if title == kind else f'node {key} "{title}" ({kind})', LONGEST_TEXT)


def describe_refusal(answer: Mapping[str, Json], prompt: Mapping[str, Json], object_info: Mapping[str, Json]) -> str:
    """A server's answer to a workflow that it does not run, or not all of: a line per input, under its node."""
    lines, wrong = [], mapping(answer.get("node_errors"))
    if error := answer.get("error"):
        lines.append(one_line(f"The server refused the workflow: {describe_error(error, with_details=not wrong)}"))
    for key, problem in wrong.items():
        lines.append(f"  {name_of(key, prompt)}")
        node = prompt.get(key, {})
        description = object_info.get(node.get("class_type"), {})
        for each in map(mapping, sequence(mapping(problem).get("errors"))):
            said = describe_input(each, description, node.get("inputs", {}))
            lines += [f"    {one_line(line, LONGEST_TEXT)}" for line in said]
    return "\n".join(lines) or one_line(json.dumps(answer))


def describe_error(error: Json, *, with_details: bool) -> str:
    """What is wrong with a workflow as a whole. Its details repeat what is said of the nodes, if something is."""
    if not isinstance(error, Mapping):
        return str(error)
    details = error.get("details") if with_details else ""
    return f"{error.get('message')}" + (f" ({details})" if details else "")


def describe_input(error: Mapping[str, Json], description: dict, values: Mapping[str, Json]) -> Iterator[str]:
    """What is wrong with one input, and what it takes."""
    extra = mapping(error.get("extra_info"))
    name = extra.get("input_name")
    message, details = str(error.get("message") or ""), str(error.get("details") or "")
    if not isinstance(name, str):
        yield f"{message}: {details}" if details else message
        return
    received = f", got {shorten(extra['received_value'])}" if "received_value" in extra else ""
    # Lists of choices are left to the line below, and details that are only the name say nothing.
    more = (
        ""
        if details in ("", name, name.split(".")[-1]) or error.get("type") == "value_not_in_list"
        else f" ({details})"
    )
    yield f"{name}: {message}{more}{received}"
    item = find_input(description, values, name)
    if item is None:
        return
    if item.choices:
        yield f"  allowed: {choices(item.choices)}"
    limits = [f"{word} {item.options[key]}" for key, word in (("min", "from"), ("max", "to")) if key in item.options]
    if limits and error.get("type") in ("value_smaller_than_min", "value_bigger_than_max", "invalid_input_type"):
        yield f"  allowed: {' '.join(limits)}"


def choices(values: Sequence[Any]) -> str:
    left = len(values) - CHOICES
    listed = ", ".join(one_line(value, LONGEST_VALUE) for value in values[:CHOICES])
    return listed + (f" and {left} more" if left > 0 else "")


def shorten(value: Any) -> str:
    return one_line(repr(value), LONGEST_VALUE)


def describe_failure(entry: Mapping[str, Json], prompt: Mapping[str, Json], verbose: bool) -> str:
    """Why a workflow did not end well, by its history entry; "" if it did."""
    status = entry.get("status") or {}
    if status.get("status_str", "success") == "success":
        return ""
    messages = dict(status.get("messages") or [])
    if "execution_interrupted" in messages:
        node = str(messages["execution_interrupted"].get("node_id"))
        return f"The workflow was interrupted on the server, at {name_of(node, prompt)}."
    error = messages.get("execution_error")
    if error is None:
        return "The workflow failed, and the server does not say why; its log may."
    message = str(error.get("exception_message")).strip()
    text = f"{name_of(str(error.get('node_id')), prompt)} failed: {error.get('exception_type')}: {message}"
    if not verbose:
        return text + "\n(--verbose shows where.)"
    lines = "".join(map(str, sequence(error.get("traceback")))).rstrip().splitlines()[-TRACEBACK_LINES:]
    return "\n".join([text, *(f"  {line}" for line in lines)])
