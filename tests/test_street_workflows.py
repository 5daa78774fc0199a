"""Workflows as people have them: what ComfyUI's own editor sends for them, and the files that hold them."""

import pytest
from test_workflow_format import OBJECT_INFO, canvas, inputs_of, node, subgraph

from scripts.workflow_format import WorkflowError, to_api


def test_choices_that_are_typed_in_and_where_the_chosen_one_is():
    choices = {"option1": "a", "option2": "b", "option3": ""}
    for saved in (["b", 0, "a", "b", ""], ["b", 0, "a", "b"]):
        assert inputs_of(canvas([node(1, "CustomCombo", saved)]), "1") == {"choice": "b", "index": 1} | choices
    assert inputs_of(canvas([node(1, "CustomCombo", ["c", 0, "a", "b", ""])]), "1")["index"] == -1


def test_a_comparison_holds_no_pictures_yet():
    assert inputs_of(canvas([node(1, "ImageCompare")]), "1") == {"compare_view": {"__value__": ["", ""]}}


def in_a_subgraph(text, **host):
    """A prompt inside a subgraph, which is shown on the outside."""
    inside = subgraph(
        [node(11, "CLIPTextEncode", [text], [("text", "STRING", 1, "text")])],
        [(1, -10, 0, 11, 0, "STRING")],
        inputs=[("text", "STRING", [1])],
    )
    shown = node(2, "sub", inputs=[("text", "STRING", None, "text")], **host)
    return canvas([shown], definitions={"subgraphs": [inside]})


def test_what_is_typed_outside_of_a_subgraph_is_sent_as_it_is():
    """The editor works out choices and comments in the widget of the node itself only."""
    workflow = in_a_subgraph("", widgets_values=["a {red|blue} horse // 50%"])
    assert inputs_of(workflow, "2:11") == {"text": "a {red|blue} horse // 50%"}
    with pytest.raises(WorkflowError, match="a choice or a comment"):
        to_api(canvas([node(11, "CLIPTextEncode", ["a {red|blue} horse"])]), OBJECT_INFO)
