"""What a server says of a workflow that it refused or that failed, in words for the person who wanted to run it."""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from .workflow_widgets import Json, find_input

CHOICES = 12
LONGEST_VALUE = 80
TRACEBACK_LINES = 12


def title_of(node: Mapping[str, Json]) -> str:
    return (node.get("_meta") or {}).get("title") or node["class_type"]


def name_of(key: str, prompt: Mapping[str, Json]) -> str:
    """A node as a person knows it: id, title and class."""
    node = prompt.get(key)
    if node is None:
        return f"node {key}"
    title, kind = title_of(node), node["class_type"]
    return f"node {key} ({kind})" if title == kind else f'node {key} "{title}" ({kind})'


def describe_refusal(answer: Mapping[str, Json], prompt: Mapping[str, Json], object_info: Mapping[str, Json]) -> str:
    """A server's answer to a workflow that it does not run, or not all of: a line per input, under its node."""
    lines = []
    error = answer.get("error")
    if isinstance(error, Mapping):
        # Its details repeat what is said of the nodes, if something is.
        details = "" if answer.get("node_errors") else error.get("details")
        lines.append(f"The server refused the workflow: {error.get('message')}" + (f" ({details})" if details else ""))
    elif error:
        lines.append(f"The server refused the workflow: {error}")
    for key, problem in (answer.get("node_errors") or {}).items():
        lines.append(f"  {name_of(key, prompt)}")
        description = object_info.get(problem.get("class_type"), {})
        values = prompt.get(key, {}).get("inputs", {})
        lines += [f"    {line}" for each in problem["errors"] for line in describe_input(each, description, values)]
    return "\n".join(lines) or json.dumps(answer)


def describe_input(error: Mapping[str, Json], description: dict, values: Mapping[str, Json]) -> Iterator[str]:
    """What is wrong with one input, and what it takes."""
    extra = error.get("extra_info") or {}
    name = extra.get("input_name")
    message, details = error.get("message") or "", str(error.get("details") or "")
    if name is None:
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
    return ", ".join(str(value) for value in values[:CHOICES]) + (f" and {left} more" if left > 0 else "")


def shorten(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= LONGEST_VALUE else text[: LONGEST_VALUE - 1] + "…"


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
    lines = "".join(error.get("traceback") or []).rstrip().splitlines()[-TRACEBACK_LINES:]
    return "\n".join([text, *(f"  {line}" for line in lines)])
