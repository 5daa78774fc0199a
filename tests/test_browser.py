"""The shipped workflows in ComfyUI's editor, in a real Chromium.

HAPPYHORSE_PICTURES=1 makes the run write the pictures of docs/images, which the README shows, anew.
"""

import json
import os
import re

import pytest
from PIL import Image

from browser import HEIGHT, NEWEST_FRONT_END, WIDTH, Editor, NoFrontEndError, fetch_front_end
from comfy_host import ROOT
from workflow_cases import NAMES, NOTES, api, canvas, put_files

PICTURES = ROOT / "docs" / "images"
WRITE_PICTURES = bool(os.environ.get("HAPPYHORSE_PICTURES"))
LARGEST_PICTURE, LARGEST_THUMBNAIL = 300_000, 50_000
FRONT_ENDS = {"pinned": "comfy_server", "newest": "newest_server"}
"""The editor that the host asks for, and the newest, by the server that has it."""
RENDERERS = {"classic": False, "nodes_2": True}

each_workflow = pytest.mark.parametrize("name", NAMES)


@pytest.fixture(scope="module", params=FRONT_ENDS)
def server(request):
    chosen = request.getfixturevalue(FRONT_ENDS[request.param])
    put_files(chosen)
    return chosen


def is_pinned(server) -> bool:
    return "--front-end-root" not in server.arguments


@pytest.fixture(scope="module", params=RENDERERS)
def editor(browser, server, request):
    """One editor for each of the two ways in which ComfyUI draws nodes."""
    with Editor(browser, server, Comfy__VueNodes__Enabled=RENDERERS[request.param]) as opened:
        yield opened


@each_workflow
def test_workflow_opens_without_a_complaint_and_sends_its_twin(editor, name):
    editor.load(canvas(name), name)
    assert not [node["type"] for node in editor.nodes() if node["missing"]]
    assert not editor.complains()
    assert values_of(editor.prompt()) == values_of(api(name))
    assert not editor.problems


def values_of(prompt: dict) -> dict:
    return {key: (node["class_type"], node["inputs"]) for key, node in prompt.items()}


@each_workflow
def test_nodes_lie_in_their_groups_without_overlap_and_in_sight(editor, name):
    editor.load(canvas(name), name)
    nodes = {f"{node['title']} ({node['id']})": node for node in editor.nodes()}
    boxes = {title: box_of(node) for title, node in nodes.items()}
    groups = {group["title"]: group["box"] for group in editor.groups()}
    assert not overlapping(boxes) and not overlapping(groups)
    homes = {title: [group for group in groups if holds(groups[group], box)] for title, box in boxes.items()}
    assert {title: len(home) for title, home in homes.items()} == {
        title: int(node["type"] not in NOTES) for title, node in nodes.items()
    }
    seen = editor.view()
    assert not [title for title, box in {**boxes, **groups}.items() if not holds(seen, box)]


def box_of(node: dict) -> list[float]:
    """Left, top, width, height of a node with its title."""
    (left, top), (width, height) = node["pos"], node["size"]
    return [left, top - node["bar"], width, height + node["bar"]]


def overlapping(boxes: dict[str, list[float]]) -> list[tuple[str, str]]:
    titles = sorted(boxes)
    return [(a, b) for a in titles for b in titles if a < b and touch(boxes[a], boxes[b])]


def touch(a: list[float], b: list[float]) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


def holds(outer: list[float], inner: list[float]) -> bool:
    inside = zip(inner[:2], outer[:2], strict=True)
    ends = zip(inner[:2], inner[2:], outer[:2], outer[2:], strict=True)
    return all(a >= b for a, b in inside) and all(a + size <= b + whole for a, size, b, whole in ends)


def test_the_editor_is_the_one_that_is_meant(browser, server, comfyui):
    pin = re.search(r"^comfyui-frontend-package==(\S+)", (comfyui.path / "requirements.txt").read_text(), re.MULTILINE)
    meant = pin[1] if is_pinned(server) else NEWEST_FRONT_END
    with Editor(browser, server) as editor:
        assert editor.page.evaluate("() => window.__COMFYUI_FRONTEND_VERSION__") == meant


def test_an_editor_that_can_not_be_had_is_named(monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(NoFrontEndError, match="comfyui-frontend-package 0.0.0 can't be had"):
        fetch_front_end("0.0.0")
    assert not list((ROOT / ".cache").glob("frontend-0.0.0*"))


def test_what_is_wrong_with_a_workflow_would_be_seen(browser, server):
    graph = canvas("text_to_video")
    wrong = next(node for node in graph["nodes"] if node["type"] == "HappyHorseSampler")
    wrong["type"] = "NodeThatIsNotThere"
    wrong["pos"][1] += 300
    with Editor(browser, server) as editor:
        editor.load(graph, "wrong")
        assert [node["type"] for node in editor.nodes() if node["missing"]] == ["NodeThatIsNotThere"]
        editor.page.get_by_test_id("error-overlay").wait_for()
        assert "NodeThatIsNotThere" in editor.complains()
        boxes = {str(node["id"]): box_of(node) for node in editor.nodes()}
        assert [pair for pair in overlapping(boxes) if str(wrong["id"]) in pair]
        editor.page.evaluate("console.error('an error of the pack')")
        assert [problem for problem in editor.problems if "an error of the pack" in problem]


def test_run_shows_its_video_on_the_page(browser, server):
    with Editor(browser, server, "pony") as editor:
        before = len(server.get("/history"))
        editor.run()
        video = editor.wait_for_video()
        assert (video["width"], video["height"]) == (64, 64)
        assert video["seconds"] == pytest.approx(2, abs=0.1)
        history = server.get("/history")
        assert len(history) == before + 1
        (path,) = server.files_of(list(history.values())[-1])
        assert path.name in video["src"]
        assert not editor.complains() and not editor.problems
        if WRITE_PICTURES and is_pinned(server):
            editor.look_at(canvas("pony")["extra"]["ds"])
            editor.picture(PICTURES / "run_pony.png")


def test_templates_are_shown_with_their_thumbnails(browser, server):
    with Editor(browser, server) as editor:
        assert editor.open_templates(NAMES) == {f"{name}.jpg": 200 for name in NAMES}
        assert not editor.problems


def test_help_page_opens(browser, server):
    with Editor(browser, server, "text_to_video") as editor:
        expected = ("Makes a clip with the distilled model", "Spoken languages: Mandarin")
        text = editor.open_help("HappyHorseSampler", *expected)
        assert all(part in text for part in expected)


def test_editor_in_chinese_shows_chinese_nodes(browser, server):
    texts = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))
    with Editor(browser, server, Comfy__Locale="zh", Comfy__VueNodes__Enabled=True) as editor:
        editor.load(canvas("text_to_video"), "text_to_video")
        untitled = [node for node in editor.nodes() if node["type"] in texts]
        assert {node["title"] for node in untitled} == {texts[node["type"]]["display_name"] for node in untitled}
        for kind, name in (("HappyHorseEmptyLatent", "seconds"), ("HappyHorseSampler", "steps")):
            editor.page.get_by_text(texts[kind]["inputs"][name]["name"]).first.wait_for()
        if WRITE_PICTURES and is_pinned(server):
            editor.picture(PICTURES / "text_to_video_zh.png")


def test_pictures_are_there_and_small(request):
    if WRITE_PICTURES:
        server = request.getfixturevalue("comfy_server")
        put_files(server)
        write_pictures(request.getfixturevalue("browser"), server)
    for name in (*NAMES, "run_pony", "text_to_video_zh"):
        path = PICTURES / f"{name}.png"
        assert path.stat().st_size < LARGEST_PICTURE
        with Image.open(path) as picture:
            assert picture.size == (WIDTH, HEIGHT)
    for name in NAMES:
        assert (ROOT / "workflows" / f"{name}.jpg").stat().st_size < LARGEST_THUMBNAIL


def write_pictures(browser, server) -> None:
    for name in NAMES:
        with Editor(browser, server) as editor:
            editor.load(canvas(name), name)
            editor.picture(PICTURES / f"{name}.png")
            editor.thumbnail(ROOT / "workflows" / f"{name}.jpg")
