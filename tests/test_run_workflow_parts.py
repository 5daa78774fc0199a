"""The parts of ``scripts/run_workflow.py`` that can be seen without a ComfyUI."""

import asyncio
import http.server
import io
import os
import re
import threading
import time

import pytest

from comfy_host import ROOT, free_port
from scripts import run_workflow
from scripts.comfy_client import Result, Server, ServerError, results_of, texts_of
from scripts.progress import Progress
from scripts.report import describe_failure, describe_refusal
from scripts.results import local_name, place, save_result
from scripts.run_workflow import Job, RunFailedError
from scripts.settings import Setting, SettingError, apply_settings, parse_setting

NOWHERE = "http://127.0.0.1:9"
PROMPT = {"1": {"class_type": "EmptyImage", "inputs": {}, "_meta": {"title": "Size"}}}
INFO = {
    "EmptyImage": {"input": {"required": {"width": ["INT", {}], "height": ["INT", {}]}}},
    "Words": {
        "input": {
            "required": {"text": ["STRING", {}], "kind": [["one", "2", 3], {}], "on": ["BOOLEAN", {}], "any": ["*"]},
            "optional": {"format": ["COMFY_DYNAMICCOMBO_V3", {"options": [{"key": "a", "inputs": {"required": {
                "size": ["INT", {}]}}}]}]},
        }
    },
}  # fmt: skip


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


# settings


def changed(*settings):
    """The inputs of a node "Words" titled v1.5, after settings; node 3 and 4 have the same class."""
    prompt = {
        "1": {"class_type": "Words", "inputs": {"text": "", "format": "a"}, "_meta": {"title": "v1.5"}},
        "2:3": {"class_type": "EmptyImage", "inputs": {"width": ["1", 0]}},
        "4": {"class_type": "EmptyImage", "inputs": {}, "_meta": {"title": "Second"}},
    }
    asyncio.run(apply_settings(prompt, [parse_setting(text) for text in settings], INFO, Server(NOWHERE), []))
    return prompt


@pytest.mark.parametrize("name", ["1", "v1.5", "Words"])
def test_a_node_goes_by_id_title_or_class(name):
    assert changed(f"{name}.text=hello")["1"]["inputs"]["text"] == "hello"


@pytest.mark.parametrize(
    ("text", "name", "value"),
    [
        ("1.text=12", "text", "12"),
        ("1.text=null", "text", "null"),
        ("1.text=a=b", "text", "a=b"),
        ("1.text=", "text", ""),
        ('1.text="12"', "text", "12"),
        ("1.text=NaN", "text", "NaN"),
        ("1.kind=2", "kind", "2"),
        ("1.kind=3", "kind", 3),
        ("1.on=False", "on", False),
        ("1.on=true", "on", True),
        ("1.any=12", "any", 12),
        ("1.any=1.5", "any", 1.5),
        ("1.any=Infinity", "any", "Infinity"),
        ("1.any=[1, 2]", "any", {"__value__": [1, 2]}),
        ('1.text=["4", 0]', "text", ["4", 0]),
        ("1.format.size=3", "format.size", 3),
    ],
)
def test_values(text, name, value):
    assert changed(text)["1"]["inputs"][name] == value


def test_a_setting_replaces_a_link_and_the_last_one_counts():
    assert changed("2:3.width=5", "2:3.width=6")["2:3"]["inputs"]["width"] == 6


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9.text=x", r"no node '9'\. It has:\n  node 1 \"v1\.5\" \(Words\)\n  node 2:3 \(EmptyImage\)"),
        ("1.words=x", r"node 1 \"v1\.5\" \(Words\) has no input 'words'\. It has: text, format, kind, on, any"),
        ("1.format.depth=x", r"has no input 'format\.depth'"),
        ("EmptyImage.width=5", r"several nodes.*\n  node 2:3 \(EmptyImage\)\n  node 4 \"Second\""),
        ("1.on=maybe", "'maybe' is neither true nor false"),
    ],
)
def test_settings_that_do_not_fit(text, message):
    with pytest.raises(SettingError, match=message):
        changed(text)


@pytest.mark.parametrize("text", ["text", "=x", "text=x", ".text=x", "1.=x"])
def test_what_is_no_setting(text):
    with pytest.raises(SettingError, match=r"NODE\.INPUT=VALUE"):
        parse_setting(text)


def test_no_upload_where_another_setting_is_wrong(tmp_path):
    with pytest.raises(SettingError, match="no node"):  # the server would not be reached
        asyncio.run(apply_settings({}, [Setting("1.a", "x")], {}, Server(NOWHERE), [ROOT / "README.md"]))
    with pytest.raises(SettingError, match=r"no file .*missing\.png"):
        asyncio.run(apply_settings({}, [], {}, Server(NOWHERE), [tmp_path / "missing.png"]))


# what the server says


def test_long_lists_of_allowed_values_are_cut():
    node = {"class_type": "K", "inputs": {"name": "x" * 200}}
    info = {"K": {"input": {"required": {"name": [[f"choice {i}" for i in range(50)]]}}}}
    error = {
        "type": "value_not_in_list",
        "message": "Value not in list",
        "details": "name: 'x' not in (list of length 50)",
        "extra_info": {"input_name": "name", "input_config": None, "received_value": "x" * 200},
    }
    text = describe_refusal({"node_errors": {"7": {"class_type": "K", "errors": [error]}}}, {"7": node}, info)
    assert text.endswith("choice 10, choice 11 and 38 more")
    assert max(map(len, text.splitlines())) < 180


def test_failures_in_the_history():
    stopped = {"status": {"status_str": "error", "messages": [["execution_interrupted", {"node_id": "1"}]]}}
    assert describe_failure(stopped, PROMPT, False).endswith('at node 1 "Size" (EmptyImage).')
    assert "does not say why" in describe_failure({"status": {"status_str": "error", "messages": []}}, PROMPT, False)
    assert describe_failure({"status": {"status_str": "success", "messages": []}}, PROMPT, False) == ""


def test_a_server_that_goes_away(monkeypatch):
    monkeypatch.setattr(run_workflow, "LOST_SECONDS", 0.1)

    async def wait():
        async with Server(f"http://127.0.0.1:{free_port()}") as server:
            await Job(server, PROMPT, None).wait()

    with pytest.raises(RunFailedError, match="went away while it ran"):
        asyncio.run(wait())


# results


def test_a_name_that_is_taken_gets_a_number(tmp_path):
    def no_links(source, target):
        raise OSError("no hard links here")

    for number, link in enumerate((os.link, no_links, os.link, no_links)):
        part = tmp_path / ".part"
        part.write_text(str(number))
        assert place(part, tmp_path / "a.tar.gz", link).read_text() == str(number)
        part.unlink(missing_ok=True)
    assert files_in(tmp_path) == ["a.tar (1).gz", "a.tar (2).gz", "a.tar (3).gz", "a.tar.gz"]


class Truncating(http.server.BaseHTTPRequestHandler):
    """Promises ten bytes and sends six; knows nothing of other files."""

    def do_GET(self):  # noqa: N802
        if "whole" not in self.path:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", "10")
        self.end_headers()
        self.wfile.write(b"sixbyt")

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(("name", "message"), [("whole.mp4", "did not arrive whole"), ("gone.mp4", "404")])
def test_half_a_file_is_no_file(tmp_path, name, message):
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Truncating) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()

        async def save():
            async with Server(f"http://127.0.0.1:{server.server_address[1]}") as client:
                await save_result(client, Result(name, "", "output"), tmp_path, 100)

        with pytest.raises(ServerError, match=message):
            asyncio.run(save())
        server.shutdown()
    assert files_in(tmp_path) == []


NAMES = {
    "../../x.png": "x.png",
    "..\\..\\x.png": "x.png",
    "/tmp/x.png": "x.png",
    "\\\\server\\share\\x.png": "x.png",
    "C:x.png": "x.png",
    "x.png:stream": "x.png_stream",
    "..": "result",
    "": "result",
    "C:": "result",
    "\0": "_",
    "a\nb\x1b[31m\u202e.mp4": "a_b_[31m_.mp4",
    "\udcff.mp4": "_.mp4",
    ".bashrc": "bashrc",
    "-rf": "rf",
    "~root": "_root",
    "$(id)`.png": "_(id)_.png",
    "a. . ": "a",
    "CON": "_CON",
    "nul.mp4": "_nul.mp4",
    "Com\u00b9 .tar.gz": "_Com\u00b9 .tar.gz",
    "console.png": "console.png",
    "Pferd (1)_00001_.png": "Pferd (1)_00001_.png",
    "\u99ac\u306e\u7d75.webp": "\u99ac\u306e\u7d75.webp",
    "\u0918\u094b\u0921\u093c\u093e.png": "\u0918\u094b\u0921\u093c\u093e.png",
    "x" * 300 + ".mp4": "x" * 196 + ".mp4",
    "\u99ac" * 100 + ".mp4": "\u99ac" * 65 + ".mp4",
    "a." + "x" * 300: "a." + "x" * 198,
}
"""What a server calls a file, and what it is called here."""


@pytest.mark.parametrize("name", NAMES)
def test_names_of_results_are_safe_on_every_system(name):
    assert local_name(name) == NAMES[name]


def test_results_in_the_history():
    item = {"filename": "a.png", "subfolder": "s", "type": "output"}
    entry = {
        "outputs": {
            "1": {"images": [item, item], "animated": [True], "text": ["hello"]},
            "2": {"3d": [{"filename": "b.glb", "type": "temp"}], "read": [{"filename": "c.png", "type": "input"}]},
            "3": {"odd": "text", "none": None},
        }
    }
    assert results_of(entry) == [Result("a.png", "s", "output"), Result("b.glb", "", "temp")]


@pytest.mark.parametrize("url", ["ftp://x", "http://", "://", ""])
def test_addresses_that_are_none(url):
    with pytest.raises(ValueError, match="no address of a server"):
        Server(url)


def test_addresses():
    assert Server("localhost:8188").url == "http://localhost:8188"
    assert Server("https://host/comfy/").url == "https://host/comfy"


# progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


TITLES = {"1": "Load", "2": "Sample", "3": "Save"}


def test_a_line_per_node_where_there_is_no_terminal():
    stream = io.StringIO()
    progress = Progress(stream, TITLES)
    progress.waiting(2)
    progress.waiting(2)
    progress.waiting(1)
    progress.handle("execution_start", {})
    progress.handle("execution_cached", {"nodes": ["1", "left by another workflow"]})
    progress.handle("executing", {"node": "2"})
    progress.handle("progress", {"node": "2", "value": 1, "max": 2})
    progress.handle("executing", {"node": "made on the way", "display_node": "2"})
    progress.handle("executing", {"node": "3"})
    progress.handle("executing", {"node": None})
    progress.close()
    assert stream.getvalue().splitlines() == [
        "Waiting: 2 jobs ahead in the queue",
        "Waiting: 1 job ahead in the queue",
        "[2/3] Sample",
        "[3/3] Save",
    ]


def test_a_bar_in_a_terminal():
    stream = Terminal()
    progress = Progress(stream, TITLES)
    progress.waiting(1)
    progress.handle("executing", {"node": "2"})
    for step in range(1, 5):
        time.sleep(0.11)  # it is not drawn more often
        progress.handle("progress", {"node": "2", "value": step, "max": 4})
    progress.handle("executing", {"node": "3"})
    shown = [line.strip() for line in stream.getvalue().split("\r")]
    assert "Waiting: 1 job ahead in the queue  00:00" in shown
    assert "[1/3] Sample  00:00" in shown
    assert any(re.match(r"\[1/3\] Sample:  50%\|.* 2/4 \[00:00<00:00, ", line) for line in shown), shown
    assert shown[-1] == "[2/3] Save  00:00"
    progress.close()
    assert not stream.getvalue().rpartition("\r")[0].rpartition("\r")[2].strip(), "the line is left empty"


def test_texts_in_the_history():
    entry = {"outputs": {"1": {"text": ["a", "b"]}, "2": {"text": "c"}, "3": {"images": []}}}
    assert texts_of(entry) == [("1", "a"), ("1", "b"), ("2", "c")]
