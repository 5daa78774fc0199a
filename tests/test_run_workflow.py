"""``scripts/run_workflow.py`` as its users start it, against a real ComfyUI server."""

import asyncio
import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

import av
import pytest
from PIL import Image

from comfy_host import ROOT
from scripts.comfy_client import Server
from scripts.report import describe_refusal
from scripts.run_workflow import DONE, FAILED, INTERRUPTED, WRONG, Job, RunFailedError
from scripts.workflow_file import read_workflow
from scripts.workflow_format import WorkflowError

SCRIPT = ROOT / "scripts" / "run_workflow.py"
SECONDS = 120


def picture(width=16, prefix="picture", **more):
    """A workflow that saves one plain picture, as (id, title, class) 1 "Size" EmptyImage and 2 SaveImage."""
    return {
        "1": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 8, "batch_size": 1, "color": 255},
            "_meta": {"title": "Size"},
        },
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    } | more


def slow():
    """A workflow that takes minutes, and stops where it is told to."""
    prompt = json.loads((ROOT / "workflows" / "api" / "text_to_video.json").read_text(encoding="utf-8"))
    for node in prompt.values():
        if node["class_type"] == "HappyHorseEmptyLatent":
            node["inputs"] |= {"width": 96, "height": 64, "seconds": 1.0}
        if node["class_type"] == "HappyHorseSampler":
            node["inputs"] |= {"steps": 1000, "seed": int(time.time() * 1000)}
    return prompt


class Script:
    """Starts the script on a server, in a folder of its own."""

    def __init__(self, url, folder):
        self.url = url
        self.folder = folder
        self.output = folder / "results"

    def command(self, workflow, *arguments, url=None):
        path = self.folder / "workflow.json"
        path.write_text(workflow if isinstance(workflow, str) else json.dumps(workflow), encoding="utf-8")
        # -I: as for somebody else, with nothing of this folder or of the environment.
        places = ["--output", str(self.output), "--server", url or self.url]
        return [sys.executable, "-I", str(SCRIPT), str(path), *places, *map(str, arguments)]

    def __call__(self, workflow, *arguments, url=None):
        return subprocess.run(
            self.command(workflow, *arguments, url=url),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=SECONDS,
        )

    def start(self, workflow, *arguments, url=None):
        return subprocess.Popen(
            self.command(workflow, *arguments, url=url),
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


@pytest.fixture
def script(comfy_server, tmp_path):
    return Script(f"http://127.0.0.1:{comfy_server.port}", tmp_path)


@pytest.fixture
def local(tmp_path):
    """A script for what happens before a server is asked for anything."""
    return Script("http://127.0.0.1:9", tmp_path)


def files_in(folder):
    return sorted(path.name for path in folder.iterdir())


def wait_until(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


# results


def test_results_are_saved_and_nothing_is_replaced(script, comfy_server):
    first = script(picture(prefix="sub/kept"))
    assert (first.returncode, first.stdout) == (DONE, f"{script.output / 'kept_00001_.png'}\n"), first.stderr
    saved = script.output / "kept_00001_.png"
    assert saved.read_bytes() == (comfy_server.output / "sub" / "kept_00001_.png").read_bytes()
    assert Image.open(saved).size == (16, 8)
    # The server takes this from its cache, so that the name is the same again.
    again = script(picture(prefix="sub/kept"))
    assert (again.returncode, again.stdout) == (DONE, f"{script.output / 'kept_00001_ (1).png'}\n"), again.stderr
    assert files_in(script.output) == ["kept_00001_ (1).png", "kept_00001_.png"]


def test_sound_previews_and_texts(script):
    workflow = {
        "1": {"class_type": "EmptyAudio", "inputs": {"duration": 0.5, "sample_rate": 8000, "channels": 1}},
        "2": {"class_type": "SaveAudio", "inputs": {"audio": ["1", 0], "filename_prefix": "sound"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["4", 0]}},
        "4": picture()["1"],
        "5": {"class_type": "PrimitiveString", "inputs": {"value": "hello there"}},
        "6": {"class_type": "PreviewAny", "inputs": {"source": ["5", 0]}},
    }
    run = script(workflow)
    assert run.returncode == DONE, run.stderr
    assert "node 6 (PreviewAny): hello there" in run.stderr
    preview, sound = sorted(Path(line) for line in run.stdout.splitlines())
    assert re.match(r"ComfyUI_temp_\w+_00001_\.png$", preview.name) and Image.open(preview).size == (16, 8)
    with av.open(sound) as opened:
        assert opened.streams.audio[0].sample_rate == 8000


def test_a_canvas_workflow_runs_and_is_kept_in_the_file(script):
    canvas = {
        "nodes": [
            {"id": 5, "type": "Note", "widgets_values": ["hello"], "mode": 0},
            {"id": 1, "type": "EmptyImage", "mode": 0, "widgets_values": [24, 8, 1, 0], "inputs": [], "title": "Size"},
            {
                "id": 2, "type": "SaveImage", "mode": 0, "widgets_values": ["canvas"],
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }  # fmt: skip
    run = script(canvas, "--set", "Size.width=40")
    assert run.returncode == DONE, run.stderr
    with Image.open(run.stdout.strip()) as saved:
        assert saved.size == (40, 8)
        assert json.loads(saved.info["workflow"]) == canvas
        assert json.loads(saved.info["prompt"])["1"]["inputs"]["width"] == 40


def test_the_text_to_video_workflow(script):
    canvas = (ROOT / "workflows" / "text_to_video.json").read_text(encoding="utf-8")
    settings = ["width=96", "height=64", "seconds=1"]
    changes = [part for each in settings for part in ("--set", f"HappyHorseEmptyLatent.{each}")]
    run = script(canvas, *changes, "--set", "HappyHorseSampler.steps=2", "--set", "SaveVideo.filename_prefix=clip")
    assert run.returncode == DONE, run.stderr
    assert re.search(r"^\[\d+/\d+\] .+", run.stderr, re.MULTILINE), "each node is named when it starts"
    with av.open(run.stdout.strip()) as clip:
        assert (clip.streams.video[0].width, clip.streams.video[0].height) == (96, 64)
        assert clip.streams.audio


def test_the_pony_in_api_form(script):
    run = script((ROOT / "workflows" / "api" / "pony.json").read_text(encoding="utf-8"))
    assert run.returncode == DONE, run.stderr
    with av.open(run.stdout.strip()) as clip:
        assert (clip.streams.video[0].width, clip.streams.video[0].height) == (64, 64)


def test_a_folder_whose_name_the_terminal_cannot_show(script):
    script.output = script.folder / "größe"
    command = [part for part in script.command(picture(prefix="shown")) if part != "-I"]  # it would hide the variable
    run = subprocess.run(
        command, capture_output=True, text=True, env=os.environ | {"PYTHONIOENCODING": "ascii"}, timeout=SECONDS
    )
    assert run.returncode == DONE, run.stderr
    assert run.stdout.endswith("gr\\xf6\\xdfe/shown_00001_.png\n")
    assert files_in(script.output) == ["shown_00001_.png"]


# settings and files


def test_files_are_uploaded_under_a_name_of_their_own(script, comfy_server, tmp_path):
    comfy_server.put_input(b"something else", "mine.png")
    Image.new("RGB", (20, 12)).save(tmp_path / "mine.png")
    Image.new("RGB", (28, 12)).save(tmp_path / 'größe "1%20".png')
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "other.png"}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "loaded"}},
    }
    run = script(workflow, "--set", "LoadImage.image=mine.png")
    assert run.returncode == DONE, run.stderr
    assert Image.open(run.stdout.strip()).size == (20, 12)
    assert (comfy_server.input / "mine.png").read_bytes() == b"something else"
    assert (comfy_server.input / "mine (1).png").read_bytes() == (tmp_path / "mine.png").read_bytes()

    workflow["1"]["inputs"]["image"] = "mine.png"
    run = script(workflow, "--upload", tmp_path / "mine.png")
    assert run.returncode == DONE, run.stderr
    assert Image.open(run.stdout.strip()).size == (20, 12)
    assert not (comfy_server.input / "mine (2).png").exists(), "the same file is stored once"

    run = script(workflow, "--set", 'LoadImage.image=größe "1%20".png')
    assert run.returncode == DONE, run.stderr
    assert Image.open(run.stdout.strip()).size == (28, 12)


def test_a_wrong_setting_is_told_before_anything_is_sent(script):
    run = script(picture(), "--set", "9.width=3")
    assert (run.returncode, run.stdout) == (WRONG, "")
    assert "the workflow has no node '9'. It has:\n  node 1 \"Size\" (EmptyImage)\n  node 2 (SaveImage)" in run.stderr


# refusals and failures


def test_a_refused_workflow_is_explained_per_input(script):
    workflow = picture(width=70000)
    workflow["2"]["inputs"] = {"images": ["3", 0]}
    workflow["3"] = {"class_type": "ImageBlend", "inputs": {"image1": ["1", 0], "blend_factor": "x", "blend_mode": "z"}}
    run = script(workflow)
    assert (run.returncode, run.stdout) == (WRONG, "")
    lines = run.stderr.splitlines()
    assert lines[0] == "The server refused the workflow: Prompt outputs failed validation"
    assert {
        '  node 1 "Size" (EmptyImage)',
        "    width: Value 70000 bigger than max of 16384, got 70000",
        "      allowed: from 1 to 16384",
        "  node 3 (ImageBlend)",
        "    image2: Required input is missing",
        "    blend_mode: Value not in list, got 'z'",
        "      allowed: normal, multiply, screen, overlay, soft_light, difference",
        "    filename_prefix: Required input is missing",
    } <= set(lines), run.stderr
    assert re.search(r"^    blend_factor: Failed to convert .* could not convert string to float", run.stderr, re.M)


def test_refusals_of_other_kinds_are_shown_too(script):
    assert describe_refusal({"error": "no way"}, {}, {}) == "The server refused the workflow: no way"
    assert describe_refusal({"odd": 1}, {}, {}) == '{"odd": 1}'
    run = script({"1": picture()["1"]})
    assert (run.returncode, run.stderr.strip()) == (WRONG, "The server refused the workflow: Prompt has no outputs")
    run = script(picture(**{"3": {"class_type": "Nowhere", "inputs": {}}}))
    assert run.returncode == WRONG and "Node 'Nowhere' not found" in run.stderr


def test_parts_that_cannot_run_do_not_hide_behind_those_that_can(script):
    run = script(picture(prefix="half", **{"3": {"class_type": "SaveImage", "inputs": {"filename_prefix": "lost"}}}))
    assert run.returncode == FAILED
    assert "Parts of the workflow cannot run" in run.stderr and "images: Required input is missing" in run.stderr
    assert files_in(script.output) == ["half_00001_.png"]


def test_a_failing_node_is_named_and_results_before_it_are_saved(script, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture at all")
    workflow = picture(
        prefix="before",
        **{
            "3": {"class_type": "LoadImage", "inputs": {"image": "x.png"}, "_meta": {"title": "The picture"}},
            "4": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "after"}},
        },
    )
    # The good half is in the server's cache, so that it comes first whatever the order is.
    assert script(picture(prefix="before")).returncode == DONE
    for path in script.output.iterdir():
        path.unlink()
    run = script(workflow, "--set", "3.image=broken.png")
    assert run.returncode == FAILED
    assert re.search(r'node 3 "The picture" \(LoadImage\) failed: [\w.]+: \S+', run.stderr)
    assert "Traceback" not in run.stderr and "File " not in run.stderr
    verbose = script(workflow, "--set", "3.image=broken.png", "--verbose")
    assert verbose.returncode == FAILED and re.search(r'File ".*", line \d+', verbose.stderr)


def test_nothing_listens(local):
    run = local(picture())
    assert (run.returncode, run.stdout) == (FAILED, "")
    assert run.stderr.startswith("No ComfyUI answers at http://127.0.0.1:9 (")
    assert "python main.py" in run.stderr and "--server" in run.stderr and "Traceback" not in run.stderr


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "no workflow of ComfyUI"),
        ('{"a": 1}', "no workflow of ComfyUI"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_file_that_is_no_workflow(local, text, message):
    path = local.folder / "bad.json"
    path.write_text(text, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(WorkflowError, match=message):
        read_workflow(path)
    assert local(path.read_bytes().decode("latin-1") if text == "{" else "[]").returncode == WRONG


def test_workflows_as_they_are_sent_or_saved_with_a_mark_are_read(tmp_path):
    path = tmp_path / "sent.json"
    path.write_text(json.dumps({"prompt": picture(), "client_id": "x"}), encoding="utf-8-sig")
    assert read_workflow(path) == (picture(), None)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--set", "nothing"], "is not of the form NODE.INPUT=VALUE"),
        (["--timeout", "0"], "no number above 0"),
        (["--timeout", "soon"], "invalid positive value"),
        (["--server", "ftp://x"], "is no address of a server"),
        (["--output", "workflow.json"], "nothing can be written to"),
    ],
)
def test_wrong_arguments(local, arguments, message):
    run = local(picture(), *arguments)
    assert run.returncode == WRONG and message in run.stderr and "Traceback" not in run.stderr


def test_a_python_without_the_libraries_is_told_what_to_do():
    answer = subprocess.run([sys.executable, "-I", "-S", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert answer.returncode != 0 and "Traceback" not in answer.stderr
    assert "lacks aiohttp and tqdm" in answer.stderr and "-m pip install aiohttp tqdm" in answer.stderr


def test_help_explains_everything():
    answer = subprocess.run([sys.executable, "-I", str(SCRIPT), "--help"], capture_output=True, text=True)
    assert answer.returncode == 0
    words = ("--set", "--output", "--server", "--timeout", "--upload", "--verbose", "NODE.INPUT=VALUE", "130", "8188")
    assert not [word for word in words if word not in answer.stdout]


# the queue, interruption, lost connections


def running(server):
    return [job[1] for job in server.get("/queue")["queue_running"]]


def pending(server):
    return [job[1] for job in server.get("/queue")["queue_pending"]]


def test_interrupted_while_it_runs(script, comfy_server):
    process = script.start(slow())
    wait_until(lambda: running(comfy_server))
    time.sleep(0.5)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == INTERRUPTED and "Traceback" not in errors
    wait_until(lambda: not running(comfy_server), 30)


def test_waiting_behind_another_job(script, comfy_server):
    """It says so; interrupted, it leaves the queue without harm to the other job; else it runs in the end."""
    other = comfy_server.submit(slow())
    try:
        wait_until(lambda: running(comfy_server) == [other])
        given_up, waiting = script.start(picture(prefix="never")), script.start(picture(prefix="patient"))
        wait_until(lambda: len(pending(comfy_server)) == 2)
        given_up.send_signal(signal.SIGTERM)
        assert given_up.wait(SECONDS) == INTERRUPTED
        assert running(comfy_server) == [other] and len(pending(comfy_server)) == 1
    finally:
        comfy_server.interrupt()
    output, errors = waiting.communicate(timeout=SECONDS)
    assert waiting.returncode == DONE, errors
    assert Path(output.strip()).name == "patient_00001_.png"
    assert re.search(r"^Waiting: [12] jobs? ahead in the queue$", errors, re.MULTILINE)
    assert not [name for name in files_in(script.output) if "never" in name]
    given_up.communicate()


def test_time_is_up(script, comfy_server):
    run = script(slow(), "--timeout", "1.5")
    assert run.returncode == FAILED
    assert "Stopping the job" in run.stderr and "did not end within 1.5 s, and was given up" in run.stderr
    wait_until(lambda: not running(comfy_server), 30)


class Relay:
    """Passes connections on to a server, and cuts those of a websocket "before" or "after" their first bytes."""

    def __init__(self, port, cut):
        self._target, self._cut = port, cut
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self):
        self._listener.close()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client):
        upstream = socket.create_connection(("127.0.0.1", self._target), 30)
        threading.Thread(target=self._pump, args=(upstream, client), daemon=True).start()
        with client, upstream:
            self._pump(client, upstream)
            for end in (client, upstream):
                with contextlib.suppress(OSError):  # it ended by itself
                    end.shutdown(socket.SHUT_RDWR)

    def _pump(self, source, target):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                opens = data.startswith(b"GET /ws")
                if opens and self._cut == "before":
                    return
                target.sendall(data)
                if opens:
                    time.sleep(0.3)
                    return


def test_without_the_servers_messages_the_result_comes_all_the_same(script, comfy_server):
    relay = Relay(comfy_server.port, "before")
    try:
        run = script(picture(prefix="silent"), url=relay.url)
    finally:
        relay.close()
    assert run.returncode == DONE, run.stderr
    assert "No progress is shown" in run.stderr
    assert files_in(script.output) == ["silent_00001_.png"]


def test_a_connection_that_breaks_while_the_job_waits(script, comfy_server):
    relay = Relay(comfy_server.port, "after")
    other = comfy_server.submit(slow())
    try:
        wait_until(lambda: running(comfy_server) == [other])
        process = script.start(picture(prefix="unheard"), url=relay.url)
        lines = []
        while "messages stopped" not in (line := process.stderr.readline()):
            assert line, "".join(lines)
            lines.append(line)
    finally:
        comfy_server.interrupt()
    output, errors = process.communicate(timeout=SECONDS)
    relay.close()
    assert process.returncode == DONE, errors
    assert Path(output.strip()).name == "unheard_00001_.png"


def test_a_job_that_the_server_does_not_know(script):
    async def wait():
        async with Server(script.url) as server:
            await Job(server, picture(), None).wait()

    with pytest.raises(RunFailedError, match="does not know the job any more"):
        asyncio.run(wait())


# files


def test_rights_of_results_are_those_of_other_new_files(script):
    (script.folder / "other").touch()
    assert script(picture(prefix="rights")).returncode == DONE
    (saved,) = script.output.iterdir()
    assert saved.stat().st_mode == (script.folder / "other").stat().st_mode


def test_it_starts_at_once(script):
    """All but the job itself: starting Python, looking at the nodes, queueing, and fetching the result."""
    script(picture(prefix="quick"))
    began = time.monotonic()
    assert script(picture(prefix="quick")).returncode == DONE
    assert time.monotonic() - began < 10, "0.3 s on a machine with nothing else to do"
    with urllib.request.urlopen(f"{script.url}/queue") as answer:
        assert json.load(answer) == {"queue_running": [], "queue_pending": []}
