"""A small part of ``python -m tools.attack``, and its judge: it has to see each kind of defect."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from safetensors.torch import save_file

import workflow_cases
from tools.attack import child, judge, nodes, results, runner
from tools.attack.case import CANARY, Case, numbered
from tools.mutate import VIDEO_DECODER_FILE

ROOT = Path(__file__).resolve().parent.parent
CASES, NODE_CASES, SEED = 40, 15, 7
SECONDS, MEMORY = 4, 1 << 30

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the cases are copies of one process")


def test_bad_inputs_end_in_a_clear_error_or_the_right_result(tmp_path):
    chosen = ["--cases", str(CASES), "--seed", str(SEED), "--kinds", ",".join(runner.KINDS), "--folder", str(tmp_path)]
    command = [sys.executable, "-m", "tools.attack", *chosen]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = [json.loads(line) for line in (tmp_path / "verdicts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(found) == CASES
    assert {verdict["verdict"] for verdict in found} == {judge.CLEAR, judge.RIGHT}
    assert {verdict["kind"] for verdict in found} == set(runner.KINDS)


def test_wrong_inputs_of_nodes_end_in_a_clear_error_or_the_right_result(comfy_server):
    workflow_cases.put_files(comfy_server)
    attacked = nodes.Nodes(comfy_server)
    found = [attacked.run(SEED, number) for number in range(NODE_CASES)]
    assert [verdict for verdict in found if verdict.defect] == []
    assert {verdict.verdict for verdict in found} > {judge.CLEAR}


@pytest.mark.parametrize("kind", ["TypeError", "KeyError", "torch.OutOfMemoryError"])
def test_a_raw_error_of_a_node_of_ours_is_a_defect(kind):
    frame = '  File "/x/custom_nodes/ComfyUI-HappyHorse/nodes/decode.py", line 1, in execute\n'
    error = {"node_type": "HappyHorseDecode", "exception_type": kind, "exception_message": "x", "traceback": [frame]}
    assert nodes.judged(error)[0] == "traceback"
    assert nodes.judged(error | {"exception_type": "pack.happyhorse_core.errors.InputError"})[0] == judge.CLEAR
    assert (
        nodes.judged(error | {"node_type": "KSampler", "traceback": ['  File "/x/nodes.py", line 1, in x\n']})[0]
        == judge.HOST
    )


def raise_an_error(_):
    raise KeyError("x")


def wait_for_ever(_):
    time.sleep(60)


def take_memory(_):
    held = bytearray(2 << 30)
    held[::4096] = b"x" * len(held[::4096])
    return 0


def leave_half_a_file(_):
    Path("o.mp4.part").write_bytes(b"half")
    sys.stderr.write("error: x\n")
    return 1


def leave_a_file_outside(_):
    Path("../x").touch()
    sys.stderr.write("error: x\n")
    return 1


def lose_what_was_there(_):
    Path("given").unlink()
    sys.stderr.write("error: x\n")
    return 1


def run_what_was_given(_):
    Path(f"../{CANARY}").touch()
    return 0


def start_a_program(_):
    subprocess.run(["true"], check=True)
    return 0


def die(_):
    os.kill(os.getpid(), 9)


def say_two_words(_):
    sys.stderr.write("went wrong\n")
    return 1


def write_escapes(_):
    sys.stderr.write("error: \x1b[31mx\n")
    return 1


def write_no_clip(_):
    Path("o.mp4").write_bytes(b"no clip")
    return 0


def explain(_):
    sys.stderr.write("error: image: x is no picture. Choose another.\n")
    return 1


def given(_rng, folder):
    (folder / "given").write_bytes(b"x")
    return Case("x", ("generate", "--models", "m", "--prompt", "p", "--output", "o.mp4"))


@pytest.mark.parametrize(
    ("command", "verdict"),
    [
        (raise_an_error, "traceback"),
        (wait_for_ever, "hang"),
        (take_memory, "memory"),
        (leave_half_a_file, "leftover"),
        (leave_a_file_outside, "leftover"),
        (lose_what_was_there, "leftover"),
        (run_what_was_given, "code executed"),
        (start_a_program, "code executed"),
        (die, "crash"),
        (say_two_words, "unclear"),
        (write_escapes, "control characters"),
        (write_no_clip, "wrong result"),
        (explain, judge.CLEAR),
    ],
)
def test_the_judge_sees(tmp_path, command, verdict):
    # On top of what the tests before left in this process, which the case begins as a copy of.
    bounds = runner.Bounds(SECONDS, runner.resident(os.getpid()) + MEMORY)
    pid = runner.fork(lambda: child.run(given, 1, 1, tmp_path, command), tmp_path)
    ended = runner.watched(pid, bounds)
    assert judge.judge(tmp_path, "x", 1, ended, bounds.memory).verdict == verdict


def test_a_case_is_the_same_again(tmp_path):
    for kind, build in runner.KINDS.items():
        made = []
        for name in ("a", "b"):
            folder = tmp_path / kind / name
            folder.mkdir(parents=True)
            before = Path.cwd()
            os.chdir(folder)  # as a case is built; names in some files are those of its folder
            try:
                case = build(numbered(SEED, 3), Path())
            finally:
                os.chdir(before)
            made.append((case.what, case.arguments, sorted(child.contents(folder))))
        assert made[0] == made[1], kind


@pytest.mark.parametrize(("change", "wrong"), [("none", ""), ("value", "other values"), ("name", "missing")])
def test_what_a_conversion_writes_is_compared_with_its_undamaged_source(tmp_path, change, wrong):
    tensors = {name: tensor.contiguous() for name, tensor in results.tensors_of(VIDEO_DECODER_FILE).items()}
    name = "decoder.conv_out.conv.bias"
    if change == "value":
        tensors[name] = tensors[name] + 1
    elif change == "name":
        del tensors[name]
    save_file(tensors, tmp_path / "x.safetensors")
    assert wrong in results.wrong_tensors(tmp_path / "x.safetensors", VIDEO_DECODER_FILE, same_values=True)
    assert bool(wrong) == bool(results.wrong_tensors(tmp_path / "x.safetensors", VIDEO_DECODER_FILE, same_values=True))
