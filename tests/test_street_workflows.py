"""Workflows as people have them: what ComfyUI's own editor sends for them, and the files that hold them."""

import json

import pytest
from PIL import Image
from test_workflow_format import OBJECT_INFO, canvas, inputs_of, node, subgraph

from browser import Editor
from comfy_host import ROOT
from scripts import run_workflow
from scripts.workflow_file import read_workflow
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


# files that hold a workflow


def saves_of_all_kinds():
    """A canvas with core's nodes that save a workflow with what it made."""
    links = [[number, 1, 0, key, 0, "IMAGE"] for number, key in enumerate((2, 3, 4, 5), 1)]
    links += [[5, 5, 0, 6, 0, "VIDEO"], *([number, 7, 0, number + 2, 0, "AUDIO"] for number in (6, 7, 8))]
    image, sound = ("images", "IMAGE"), ("audio", "AUDIO")
    return canvas(
        [
            node(1, "EmptyImage", [64, 64, 3, 255]),
            node(2, "SaveImage", ["kept"], [(*image, 1)]),
            node(3, "SaveAnimatedWEBP", ["kept", 6, True, 80, "default"], [(*image, 2)]),
            node(4, "SaveWEBM", ["kept", "vp9", 6, 32], [(*image, 3)]),
            node(5, "CreateVideo", [6], [(*image, 4), ("audio", "AUDIO", None)], ("VIDEO",)),
            node(6, "SaveVideo", ["kept", "auto", "auto"], [("video", "VIDEO", 5)]),
            node(7, "EmptyAudio", [0.5, 44100, 2], (), ("AUDIO",)),
            node(8, "SaveAudio", ["kept"], [(*sound, 6)]),
            node(9, "SaveAudioMP3", ["kept", "V0"], [(*sound, 7)]),
            node(10, "SaveAudioOpus", ["kept", "128k"], [(*sound, 8)]),
        ],
        links,
    )


@pytest.fixture(scope="module")
def run(comfy_server):
    def run(path, output):
        return run_workflow.main([str(path), "--output", str(output), "--server", f"127.0.0.1:{comfy_server.port}"])

    return run


@pytest.fixture(scope="module")
def saved(run, tmp_path_factory):
    """The files that a workflow made, by their endings."""
    folder = tmp_path_factory.mktemp("saved")
    (folder / "canvas.json").write_text(json.dumps(saves_of_all_kinds()))
    assert run(folder / "canvas.json", folder / "made") == run_workflow.DONE
    return {path.suffix: path for path in (folder / "made").iterdir()}


ENDINGS = (".png", ".webp", ".webm", ".mp4", ".flac", ".mp3", ".opus")


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_workflow_is_read_out_of_what_it_made(saved, comfy_server, ending):
    assert saved.keys() == set(ENDINGS)
    workflow, shown = read_workflow(saved[ending])
    assert shown == saves_of_all_kinds()
    assert values_of(workflow) == values_of(to_api(shown, comfy_server.object_info()))


def values_of(prompt):
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


def test_a_clip_is_made_again_from_itself(saved, run, tmp_path):
    assert run(saved[".mp4"], tmp_path) == run_workflow.DONE
    again = next(tmp_path.glob("*.webp"))
    assert again.read_bytes() == saved[".webp"].read_bytes()
    assert read_workflow(again).canvas == saves_of_all_kinds()


@pytest.mark.parametrize("ending", ENDINGS)
def test_a_file_that_is_cut_or_changed_is_refused_in_a_line(saved, tmp_path, ending):
    whole = saved[ending].read_bytes()
    for count in (13, 40, len(whole) // 3):
        (tmp_path / "cut").write_bytes(whole[:count])
        with pytest.raises(WorkflowError) as refused:
            read_workflow(tmp_path / "cut")
        assert len(str(refused.value).splitlines()) == 1
    (tmp_path / "changed").write_bytes(whole.replace(b"class_type", b"class_\xff\0pe").replace(b"nodes", b"n\0des"))
    with pytest.raises(WorkflowError):
        read_workflow(tmp_path / "changed")


def test_a_picture_without_a_workflow(tmp_path):
    Image.new("RGB", (4, 4)).save(tmp_path / "plain.png")
    with pytest.raises(WorkflowError, match=r"plain\.png holds no workflow"):
        read_workflow(tmp_path / "plain.png")


# what the editor sends

DRAWN = sorted((ROOT / "tests" / "workflows").glob("*.json"))
"""Workflows drawn in ComfyUI's editor and saved by it, and what it sent for them; some in format 1 as well as 0.4."""
each_drawn = pytest.mark.parametrize("path", DRAWN, ids=lambda path: path.stem)


@each_drawn
def test_what_is_sent_for_a_workflow_is_what_the_editor_sends(comfy_server, path):
    drawn = json.loads(path.read_text(encoding="utf-8"))
    assert drawn["canvas"]["version"] == 0.4 and drawn.get("canvas_1", {}).get("version", 1) == 1
    for name in ("canvas", "canvas_1"):
        if name in drawn:
            assert values_of(to_api(drawn[name], comfy_server.object_info())) == values_of(drawn["prompt"])


@each_drawn
def test_what_the_editor_sends_for_a_workflow(editor, path):
    drawn = json.loads(path.read_text(encoding="utf-8"))
    editor.load(drawn["canvas"], path.stem)
    assert values_of(editor.prompt()) == values_of(drawn["prompt"])


@pytest.fixture(scope="module")
def editor(browser, comfy_server):
    with Editor(browser, comfy_server) as opened:
        yield opened
