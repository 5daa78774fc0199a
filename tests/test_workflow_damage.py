"""Workflows and descriptions of nodes that are damaged on purpose: each converts, or is refused by name."""

import asyncio
import copy
import random
from pathlib import Path

import pytest
from test_workflow_format import OBJECT_INFO, canvas, node, scaled, subgraph

from scripts.report import describe_refusal
from scripts.settings import Setting, SettingError, apply_settings, local_file
from scripts.workflow_file import read_workflow
from scripts.workflow_format import WorkflowError, check_format, node_classes, to_api
from scripts.workflow_widgets import Input
from workflow_cases import api

ODD = (None, True, 0, -1, 1e308, "", "\0", [], {}, [[]], {"a": {}}, ["a", 0], "SaveImage")
TIMES = 300


def places(document, path=()):
    """The paths to all parts of a document."""
    if not isinstance(document, dict | list):
        return
    for key, value in document.items() if isinstance(document, dict) else enumerate(document):
        yield (*path, key)
        yield from places(value, (*path, key))


def damaged(document, number):
    """A copy of a document of which up to three parts are something else, or gone; the same one for the same number."""
    draw = random.Random(number)
    document = copy.deepcopy(document)
    for _ in range(draw.randint(1, 3)):
        *path, last = draw.choice(list(places(document)))
        holder = document
        for key in path:
            holder = holder[key]
        if draw.random() < 0.3:
            del holder[last]
        else:
            holder[last] = copy.deepcopy(draw.choice(ODD))
    return document


def convert(workflow, object_info):
    try:
        check_format(workflow)
        node_classes(workflow)
        prompt = to_api(workflow, object_info)
    except WorkflowError as error:
        assert len(str(error).splitlines()) == 1
        return None
    for key in prompt:
        describe_refusal({"node_errors": {key: {"errors": [{"extra_info": {"input_name": "a"}}]}}}, prompt, object_info)
    return prompt


@pytest.mark.parametrize("workflow", [scaled(widgets_values=[48]), api("pony")])
def test_a_damaged_workflow_is_converted_or_refused(workflow):
    done = [convert(damaged(workflow, number), OBJECT_INFO) for number in range(TIMES)]
    assert None in done


def test_damaged_descriptions_are_ignored_or_refused():
    done = [convert(scaled(widgets_values=[48]), damaged(OBJECT_INFO, number)) for number in range(TIMES)]
    assert any(done)


def nested(depth):
    """Two uses of a subgraph in each use of the next: 2 ** depth of the last."""
    graphs = [
        subgraph([node(1, f"s{level + 1}"), node(2, f"s{level + 1}")], [], key=f"s{level}") for level in range(depth)
    ]
    graphs.append(subgraph([], [], key=f"s{depth}"))
    return canvas([node(1, "s0")], definitions={"subgraphs": graphs})


def test_subgraphs_that_multiply_are_refused():
    assert to_api(nested(5), OBJECT_INFO) == {}
    with pytest.raises(WorkflowError, match="more than 10,000 subgraphs"):
        to_api(nested(40), OBJECT_INFO)


def test_a_row_of_reroutes_that_is_too_long_is_refused():
    reroutes = [node(key, "Reroute", [], [("", "*", key - 1)]) for key in range(1, 5000)]
    last = node(5000, "ImageInvert", [], [("image", "IMAGE", 4999)])
    links = [(key, key, 0, key + 1, 0, "*") for key in range(1, 5000)]
    with pytest.raises(WorkflowError, match="in a row"):
        to_api(canvas([*reroutes, last], links), OBJECT_INFO)


@pytest.mark.parametrize("text", ["[" * 100_000, "{" * 100_000, '{"a":' * 100_000, "1" * 10_000])
def test_what_nests_too_deep_is_no_workflow(tmp_path, text):
    path = tmp_path / "deep.json"
    path.write_text(text)
    with pytest.raises(WorkflowError):
        read_workflow(path)


def test_what_is_no_file_or_too_large_is_no_workflow(tmp_path):
    for path in (tmp_path, "/dev/zero"):
        with pytest.raises(WorkflowError, match="is no file"):
            read_workflow(Path(path))
    with (tmp_path / "large.json").open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(WorkflowError, match="more than the 67,108,864 bytes"):
        read_workflow(tmp_path / "large.json")


@pytest.mark.parametrize("value", ["x" * 5000, "~nobody_of_this_name/x.png", "\0", "[" * 100_000, ""])
def test_values_that_cannot_be_files_are_values(value):
    item = Input("image", "COMBO", {"image_upload": True, "options": []}, True)
    assert local_file(item, value) is None


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_uploads_that_cannot_be_files(name):
    with pytest.raises(SettingError, match="there is no file"):
        asyncio.run(apply_settings({}, [], {}, None, [Path(name)]))


def test_a_value_that_nests_too_deep_is_a_text():
    prompt = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": ""}}}
    deep = "[" * 100_000
    asyncio.run(apply_settings(prompt, [Setting("1.filename_prefix", deep)], OBJECT_INFO, None, []))
    assert prompt["1"]["inputs"]["filename_prefix"] == deep
