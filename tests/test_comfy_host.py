"""The helpers that find and drive ComfyUI: wrong ones would let the tests against it pass for the wrong reason."""

import sys
import urllib.error

import pytest

from comfy_host import (
    ROOT,
    ComfyServer,
    ComfyUINotFoundError,
    PromptFailedError,
    PromptInterruptedError,
    PromptRefusedError,
    describe_refusal,
    find_comfyui,
    raise_if_failed,
)

STUB_PACK = """
import time
import comfy.utils


class StubCount:
    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "stub", "count", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"steps": ("INT", {"default": 1, "min": 1, "max": 1000})}}

    def count(self, steps):
        bar = comfy.utils.ProgressBar(steps)
        for _ in range(steps):
            time.sleep(0.05)
            bar.update(1)
        if steps == 2:
            raise ValueError("two is refused")
        return {"ui": {"steps": [steps]}}


NODE_CLASS_MAPPINGS = {"StubCount": StubCount}
"""


def make_comfyui(path, environment=".venv"):
    (path / "comfy").mkdir(parents=True)
    (path / "main.py").touch()
    if environment:
        (path / environment / "bin").mkdir(parents=True)
        (path / environment / "bin" / "python").touch()
    return path


def test_named_comfyui_wins_over_the_one_that_holds_the_pack(tmp_path):
    named, holder = make_comfyui(tmp_path / "named"), make_comfyui(tmp_path / "holder", "venv")
    pack = holder / "custom_nodes" / "Pack"
    assert find_comfyui({"COMFYUI_PATH": str(named)}, pack).path == named
    held = find_comfyui({}, pack)
    assert held.path == holder
    assert held.python == holder / "venv" / "bin" / "python"


def test_home_is_the_last_resort(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    with pytest.raises(ComfyUINotFoundError, match="no ComfyUI at .*ComfyUI; set COMFYUI_PATH"):
        find_comfyui({}, tmp_path / "pack")
    make_comfyui(tmp_path / "ComfyUI")
    assert find_comfyui({}, tmp_path / "pack").path == tmp_path / "ComfyUI"


def test_python_is_named_or_lies_in_the_folder(tmp_path):
    bare = make_comfyui(tmp_path / "bare", environment=None)
    with pytest.raises(ComfyUINotFoundError, match="set COMFYUI_PYTHON"):
        find_comfyui({"COMFYUI_PATH": str(bare)})
    with pytest.raises(ComfyUINotFoundError, match="names no Python: '/no/such/python'"):
        find_comfyui({"COMFYUI_PATH": str(bare), "COMFYUI_PYTHON": "/no/such/python"})
    assert find_comfyui({"COMFYUI_PATH": str(bare), "COMFYUI_PYTHON": sys.executable}).python.samefile(sys.executable)


def test_refusals_name_node_and_input():
    problem = {"class_type": "Loader", "errors": [{"message": "Value not in list", "details": "model: 'x' not in []"}]}
    answer = {"error": {"message": "Prompt outputs failed validation", "details": ""}, "node_errors": {"7": problem}}
    assert describe_refusal(answer).splitlines() == [
        "Prompt outputs failed validation",
        "node 7 (Loader): Value not in list: model: 'x' not in []",
    ]


def test_failures_are_raised_and_success_is_not():
    raise_if_failed({"status": {"status_str": "success", "messages": []}})
    error = {"node_id": "3", "node_type": "Loader", "exception_type": "ValueError", "exception_message": "bad file"}
    with pytest.raises(PromptFailedError, match=r"node 3 \(Loader\) raised ValueError: bad file"):
        raise_if_failed({"status": {"status_str": "error", "messages": [["execution_error", error]]}})
    with pytest.raises(PromptInterruptedError):
        raise_if_failed({"status": {"status_str": "error", "messages": [["execution_interrupted", {}]]}})


def test_a_server_runs_fails_refuses_interrupts_and_ends(comfyui, tmp_path):
    pack = tmp_path / "stub pack"
    pack.mkdir()
    (pack / "__init__.py").write_text(STUB_PACK)
    with ComfyServer(comfyui, tmp_path / "base of the server", pack=pack) as server:
        assert server.object_info("StubCount")["output_node"]
        assert server.queue(counting(1))["outputs"] == {"1": {"steps": [1]}}
        with pytest.raises(PromptFailedError, match="two is refused"):
            server.queue(counting(2))
        with pytest.raises(PromptRefusedError, match=r"node 1 \(StubCount\): Value 0 smaller than min of 1"):
            server.queue(counting(0))
        with server.events() as events:
            prompt = server.submit(counting(1000), client_id=events.client_id)
            events.wait_for("progress", lambda data: data["value"] >= 1)
            server.interrupt()
            events.wait_for("execution_interrupted")
            with pytest.raises(PromptInterruptedError):
                server.wait(prompt)
    with pytest.raises(urllib.error.URLError):
        server.get("/system_stats", seconds=2)


def counting(steps):
    return {"1": {"class_type": "StubCount", "inputs": {"steps": steps}}}


def test_a_server_that_can_not_start_says_why(comfyui, tmp_path):
    server = ComfyServer(comfyui, tmp_path, arguments=["--no-such-argument"], pack=ROOT / "tests")
    with pytest.raises(RuntimeError, match="ended with status 2(.|\n)*no-such-argument"):
        server.start()
