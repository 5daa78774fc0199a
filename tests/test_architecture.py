"""The picture of docs/architecture.md shows the packages and imports of the code."""

import subprocess
import sys

from tools import draw_architecture as drawing

CIRCLE = {"a": ["b"], "b": ["c"], "c": ["b"]}


def test_the_picture_has_the_boxes_and_arrows_of_the_code():
    graph, _ = drawing.code_graph()
    found = drawing.drawn_graph(drawing.PICTURE.read_text(encoding="utf-8"))
    assert found == graph, "run: python -m tools.draw_architecture"


def test_the_graph_is_that_of_the_code():
    graph, names = drawing.code_graph()
    assert graph["pack"] == ["nodes"]
    assert "nodes/host" in graph["nodes"] and "nodes" not in graph["nodes/host"]
    assert "happyhorse_core/weights" in graph["happyhorse_core/dit"]
    assert graph[drawing.GROUND] == []
    assert {"errors", "geometry"} <= set(names[drawing.GROUND])
    assert {"cli", "pipeline"} <= set(names[drawing.UPPER])


def test_the_same_code_gives_the_same_picture():
    code = "from tools.draw_architecture import *; print(draw(*code_graph()))"
    texts = {
        subprocess.check_output([sys.executable, "-c", code], cwd=drawing.ROOT, env={"PYTHONHASHSEED": seed})
        for seed in ("1", "2", "3")
    }
    assert len(texts) == 1


def test_an_import_that_runs_back_is_red():
    assert drawing.backward(CIRCLE) == {("b", "c")}
    text = drawing.draw(CIRCLE, {box: [box] for box in CIRCLE})
    assert text.count(f'stroke="{drawing.RED}"') == 1
    straight = drawing.draw({"a": ["b"], "b": []}, {"a": ["x"], "b": ["y"]})
    assert f'stroke="{drawing.RED}"' not in straight
    assert drawing.drawn_graph(straight) == {"a": ["b"], "b": []}


def test_an_arrow_that_a_chain_repeats_is_left_out():
    graph = {"a": ["b", "c"], "b": ["c"], "c": []}
    assert drawing.reduced(graph) == {"a": ["b"], "b": ["c"], "c": []}
    assert drawing.floors_of(graph) == {"a": 2, "b": 1, "c": 0}
