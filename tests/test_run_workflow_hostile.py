"""``scripts/run_workflow.py`` against a server that means harm: it ends soon, in one line, without half a file."""

import asyncio
import json
import socket
import subprocess
import sys
import time
from dataclasses import dataclass, field

import pytest
from hostile_server import JOB, MEGABYTE, Answer, HostileServer, frame, head, messages, plain, raw, says

from comfy_host import ROOT
from scripts import comfy_client, run_workflow
from scripts.comfy_client import Server, ServerError
from scripts.run_workflow import DONE, FAILED, WRONG

WORKFLOW = {"1": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "x"}}}
SECONDS = 6
"""In which each of these ends, on a machine with other things to do."""
MEASURED = """
import sys
from scripts import run_workflow
code = run_workflow.main()
with open("/proc/self/status") as status:  # the most that was in use, in kilobytes
    print(next(line.split()[1] for line in status if line.startswith("VmHWM")))
sys.exit(code)
"""
LARGEST = 200_000
"""Kilobytes of memory that the script takes at most: 50,000 for itself, and an answer a few times over."""
FILE = ["ok.png"]
ESCAPES = "\x1b]0;title\x07\x1b[2J\r\n\u202e\0"
STATUS = {"status_str": "success", "messages": []}
NO_COMFYUI = "The server answered as no ComfyUI does: "


@dataclass
class Way:
    """What the server does, by paths; the exit code, a part of what is said, the files that are there in the end."""

    wrong: dict[str, Answer]
    code: int = FAILED
    said: str = ""
    files: list[str] = field(default_factory=list)
    options: tuple[str, ...] = ()


def text(content: object) -> bytes:
    return frame(1, json.dumps(content).encode())


def told(kind: object, data: object) -> bytes:
    return text({"type": kind, "data": data})


def redirect(place: str) -> Answer:
    return plain(b"", f"Location: {place}", status="302 Found")


def job(**parts: object) -> dict[str, Answer]:
    return {"/history": says({JOB: {"outputs": {}, "status": STATUS} | parts})}


def made(*items: object) -> dict[str, Answer]:
    return job(outputs={"1": {"images": list(items)}})


IN_TIME = ("--timeout", "1")
UP = "did not end within 1 s, and was given up"
PROGRESS = told("progress", {"prompt_id": JOB, "value": 1, "max": 2})
SLOW = raw(head("200 OK"), b"x", pause=0.05, forever=True)
WAYS = {
    "a right one": Way({}, DONE, files=FILE),
    # messages
    "a frame of 10 GB": Way({"/ws": messages(frame(1, MEGABYTE, says=10 << 30), MEGABYTE, forever=True)}, DONE,
                            "messages stopped", FILE),
    "a message of endless frames": Way({"/ws": messages(frame(1, MEGABYTE, last=False),
                                                        frame(0, MEGABYTE, last=False), forever=True)}, DONE,
                                       "messages stopped", FILE),
    "endless messages": Way({"/ws": messages(PROGRESS, forever=True)}, FAILED, UP, options=IN_TIME),
    "endless pings": Way({"/ws": messages(frame(9, b"x"), forever=True)}, FAILED, UP, options=IN_TIME),
    "endless news of the queue": Way({"/ws": messages(told("status", {}), forever=True)}, FAILED, UP, options=IN_TIME),
    "messages that are none": Way({"/ws": messages(
        frame(1, b"no JSON"), frame(1, b"[" * 100_000), text([1]), text({}), told([], {}), told("status", "x"),
        told("progress", "x"), told("progress", {"prompt_id": JOB, "value": "a", "max": [1]}),
        told("progress", {"prompt_id": JOB, "value": 1, "max": 1e400}),
        told("executing", {"prompt_id": JOB, "node": {}}),
        told("execution_cached", {"prompt_id": JOB, "nodes": [[], {}]}),
        told("execution_cached", {"prompt_id": JOB, "nodes": 5}), told("status", {}),
    )}, DONE, files=FILE),
    "a message that is not UTF-8": Way({"/ws": messages(frame(1, b"\xff"), pause=0.5)}, DONE, "messages stopped", FILE),
    "a frame of no kind": Way({"/ws": messages(frame(0x73, b"x"), pause=0.5)}, DONE, "messages stopped", FILE),
    "nodes that are not there": Way({"/ws": messages(*(
        told("executing", {"prompt_id": JOB, "node": f"{ESCAPES}{number}"}) for number in range(1000)
    ), told("status", {}))}, DONE, files=FILE),
    "messages elsewhere": Way({"/ws?": redirect("http://localhost:9/ws")}, FAILED, "goes to no other address"),
    "no messages": Way({"/ws?": plain(b"", status="404 Not Found")}, DONE, "No progress is shown", FILE),
    # answers
    "an endless answer": Way({"/object_info": raw(head("200 OK"), MEGABYTE, forever=True)}, FAILED,
                             "more than the 33,554,432 bytes"),
    "an endless head": Way({"/object_info": raw(b"HTTP/1.1 200 OK\r\n", b"a: b\r\n", forever=True)}, FAILED,
                           "No ComfyUI answers"),
    "an endless line": Way({"/object_info": raw(b"HTTP/1.1 200 OK\r\na: ", MEGABYTE, forever=True)}, FAILED,
                           "No ComfyUI answers"),
    "endless promises of an answer": Way({"/object_info": raw(head("102 Soon"), pause=0.01, forever=True)}, FAILED,
                                         "it does not answer in time"),
    "an answer a byte at a time": Way({"/object_info": SLOW}, FAILED, "it does not answer in time"),
    "silence": Way({"/object_info": raw(b"", pause=1, forever=True)}, FAILED, "in time"),
    "an answer of 10 GB": Way({"/object_info": raw(head("200 OK", f"Content-Length: {10 << 30}"))}, FAILED,
                              "10,737,418,240 bytes; at most"),
    "a packed answer": Way({"/object_info": plain(b"x", "Content-Encoding: gzip")}, FAILED, "packed as gzip"),
    "a length that is none": Way({"/object_info": raw(head("200 OK", "Content-Length: abc"), b"{}")}, FAILED,
                                 "No ComfyUI answers"),
    "no HTTP": Way({"/object_info": raw(b"\xff\0" * 1000)}, FAILED, "No ComfyUI answers"),
    "no JSON": Way({"/object_info": plain(b"<html>")}, FAILED, "/object_info/SaveImage is not JSON"),
    "JSON without an end": Way({"/object_info": plain(b"[" * 1_000_000)}, FAILED, "is not JSON"),
    "a number without an end": Way({"/object_info": plain(b"1" * 1_000_000)}, FAILED, "is not JSON"),
    "an error with escapes": Way({"/object_info": raw(b"HTTP/1.1 500 \x1b[2Jx\r\nContent-Length: 0\r\n\r\n")}, FAILED,
                                 r"500 \x1b[2Jx"),
    "a file of ours": Way({"/object_info": redirect("file:///etc/passwd")}, FAILED, "goes to no other address"),
    "a circle": Way({"/object_info": redirect("/object_info/SaveImage")}, FAILED, "goes to no other address"),
    "another machine": Way({"/prompt": redirect("http://10.0.0.1/")}, FAILED, "goes to no other address"),
    "descriptions that are none": Way({"/object_info": says({"SaveImage": 5})}, FAILED,
                                      "the description of SaveImage should be of the type dict"),
    "descriptions of others": Way({"/object_info": says({"Other": 5})}, DONE, files=FILE),
    # the job
    "no id": Way({"/prompt": says({})}, FAILED, NO_COMFYUI),
    "an id that is a path": Way({"/prompt": says({"prompt_id": "../../x?y="})}, FAILED, "of letters and digits"),
    "an answer that is a list": Way({"/prompt": says([1])}, FAILED, NO_COMFYUI),
    "errors that are none": Way({"/prompt": says({"prompt_id": JOB, "node_errors": 5})}, FAILED, NO_COMFYUI),
    "errors of the wrong kind": Way({"/prompt": says({"prompt_id": JOB, "node_errors": {
        "1": 5, ESCAPES: {"errors": 5}, "3": {"errors": [5, {"message": ESCAPES, "extra_info": {"input_name": []}}]},
        "4": {"class_type": [], "errors": [{"details": [1], "extra_info": {"input_name": ESCAPES}}]},
    }})}, FAILED, "cannot run, and are left out", FILE),
    "a refusal with escapes": Way({"/prompt": plain(json.dumps({"error": {"message": ESCAPES, "details": 5}}).encode(),
                                                    status="400 Bad")}, WRONG, r"refused the workflow: \x1b]0;title"),
    "a queue that is none": Way({"/queue": says([])}, FAILED, "the queue should be of the type dict"),
    "jobs that are none": Way({"/queue": says({"queue_running": [[]], "queue_pending": []})}, FAILED, NO_COMFYUI),
    "jobs without places": Way({"/queue": says({"queue_running": [], "queue_pending": [["a", "b"]]})}, FAILED,
                               NO_COMFYUI),
    "a history that is none": Way({"/history": says([1])}, FAILED, "the history should be of the type dict"),
    "a job that is none": Way({"/history": says({JOB: [1]})}, FAILED, "the history of the job should be"),
    "outputs that are none": Way(job(outputs=[1]), FAILED, "what the job made should be of the type dict"),
    "an output that is none": Way(job(outputs={ESCAPES: 1}), FAILED, "should be of the type dict"),
    "a status that is none": Way(job(status="x"), FAILED, "the job's status should be of the type dict"),
    "messages of another shape": Way(job(status={"messages": [["execution_error"]]}), FAILED, NO_COMFYUI),
    "a failure with escapes": Way(job(status={"status_str": ESCAPES, "messages": [["execution_error", {
        "node_id": ESCAPES, "exception_type": [1], "exception_message": ESCAPES * 10_000, "traceback": [1, ESCAPES],
    }]]}), FAILED, r"failed: [1]: \x1b]0;title\x07\x1b[2J", options=("--verbose",)),
    "texts with escapes": Way(job(outputs={"1": {"text": [ESCAPES, 5, "long " * 100_000]}, "2": {"text": 5}}), DONE,
                              r"(SaveImage): \x1b]0;title\x07\x1b[2J"),
    # files
    "names of other folders": Way(made(*({"filename": name, "subfolder": "../..", "type": "output"} for name in (
        "../../up.mp4", "..\\..\\up.mp4", "C:drive.mp4", "/tmp/root.mp4", ".bashrc", "..", ESCAPES, "\ud800.mp4",
    ))), DONE, files=["_.mp4", "_]0_title__[2J____", "bashrc", "drive.mp4", "result", "root.mp4", "up (1).mp4",
                      "up.mp4"]),
    "names that are none": Way(made({"filename": 5, "subfolder": [7], "type": "output"}, {"filename": {}, "type": []}),
                               DONE, files=["5"]),
    "a file on another machine": Way({"/view": redirect("http://10.0.0.1/internal")}, FAILED,
                                     "ok.png was not saved: http://127.0.0.1:"),
    "a file with a wrong length": Way({"/view": raw(head("200 OK", "Content-Length: abc"), b"x")}, FAILED,
                                      "ok.png was not saved:"),
    "a file that breaks off": Way({"/view": raw(head("200 OK", "Content-Length: 9"), b"x")}, FAILED,
                                  "ok.png was not saved: it did not arrive whole"),
    "an endless file": Way({"/view": raw(head("200 OK"), MEGABYTE, forever=True)}, FAILED,
                           "more than the 3,000,000 bytes", options=("--max-gb", "0.003")),
    "a file that is too large": Way({"/view": raw(head("200 OK", f"Content-Length: {20 * 10**9}"))}, FAILED,
                                    "it has 20,000,000,000 bytes; at most 16,000,000,000"),
    "a file a byte at a time": Way({"/view": SLOW}, FAILED, "it comes too slowly"),
    "a file a byte at a time, in time": Way({"/view": SLOW}, FAILED, "not end within 0.7 s",
                                            options=("--timeout", "0.7")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(run_workflow, "ANSWER_SECONDS", 1)


def arguments(server, folder):
    workflow = folder / "workflow.json"
    workflow.write_text(json.dumps(WORKFLOW))
    places = ["--output", str(folder / "a" / "results"), "--server", f"http://127.0.0.1:{server.port}"]
    return [str(workflow), *places]


def run(server, folder, *options):
    return run_workflow.main([*arguments(server, folder), *options])


@pytest.mark.parametrize("name", WAYS)
def test_it_ends_soon_with_a_line_and_whole_files(name, tmp_path, capsys):
    way = WAYS[name]
    with HostileServer(way.wrong, FILE) as server:
        began = time.monotonic()
        code = run(server, tmp_path, *way.options)
        seconds = time.monotonic() - began
    shown, said = capsys.readouterr()
    assert (code, sorted(path.name for path in (tmp_path / "a" / "results").iterdir())) == (way.code, way.files), said
    assert way.said in said and seconds < SECONDS
    assert len(shown.splitlines()) == len(way.files)
    assert all(line.isprintable() and len(line) < 2500 for line in (shown + said).splitlines())
    assert len(said.splitlines()) < 250


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
@pytest.mark.parametrize("name", ["a frame of 10 GB", "a message of endless frames", "an endless answer"])
def test_what_has_no_end_takes_no_memory(name, tmp_path):
    with HostileServer(WAYS[name].wrong, FILE) as server:
        command = [sys.executable, "-c", MEASURED, *arguments(server, tmp_path)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == WAYS[name].code
    assert int(done.stdout.splitlines()[-1]) < LARGEST


def test_files_beyond_the_bound_are_left_and_the_bound_is_of_all_together(tmp_path, capsys):
    with HostileServer({}, ["a.png", "b.png", "c.png"]) as server:
        assert run(server, tmp_path, "--max-gb", "0.000000009") == FAILED
    assert len(list((tmp_path / "a" / "results").iterdir())) == 2
    assert "c.png was not saved: it has 4 bytes; at most 1 are taken" in capsys.readouterr().err


def test_a_server_that_dies_is_asked_once_for_its_many_files(tmp_path, capsys):
    gone = {"/view": raw(b"")}
    with HostileServer(gone, [f"{number}.png" for number in range(500)]) as server:
        assert run(server, tmp_path) == FAILED
    assert "500 of 500 files were not saved" in capsys.readouterr().err
    assert len([path for path in server.asked if path.startswith("/view")]) <= 2


def test_more_files_than_anybody_wants_are_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(run_workflow, "MOST_RESULTS", 3)
    with HostileServer({}, [f"{number}.png" for number in range(5)]) as server:
        assert run(server, tmp_path) == FAILED
    assert len(list((tmp_path / "a" / "results").iterdir())) == 3
    assert "made 5 files; 2 of them are left" in capsys.readouterr().err


def test_a_server_that_takes_no_upload_to_its_end(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        (tmp_path / "large.png").write_bytes(bytes(20 << 20))
        server = Server(f"http://127.0.0.1:{silent.getsockname()[1]}", seconds=0.5)

        async def upload():
            async with server:
                await server.upload(tmp_path / "large.png")

        monkeypatch.setattr(comfy_client, "SLOWEST", 1 << 30)
        with pytest.raises(ServerError, match="in time"):
            asyncio.run(upload())
