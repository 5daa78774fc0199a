"""The benchmark runs and its floor does what it says, at toy sizes."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch.autograd.profiler_util import EventList
from torch.profiler import profile

from benchmarks.flex import flex_local
from benchmarks.floor import Recorder, measure
from benchmarks.full_size import BF16, FP8, STAGES, Clock, released_config, run
from benchmarks.stages import Size, heads, transformer
from happyhorse_core.dit.local_attention import local_attention
from happyhorse_core.estimate import work_of_call
from happyhorse_core.ops import TorchOps
from happyhorse_core.precision import usual_dtype

ROOT = Path(__file__).parents[2]
TOY = Size(256, 2, 64, 64, 4, 7)


def test_the_floor_replays_every_product_and_attention_once() -> None:
    recorder = Recorder()
    with torch.inference_mode():
        run = transformer(TOY, recorder, torch.float32, torch.device("cpu"))
        run()
        assert recorder.calls == []
        timing = measure(run, recorder, torch.device("cpu"), 2)
    # Three embedders and two final layers; per layer four products and one attention; in outer layers three experts.
    assert len(recorder.calls) == 5 + TOY.layers * (4 * 3 + 1)
    assert timing.seconds > 0
    assert timing.cpu_seconds > 0
    assert timing.floor > 0
    assert timing.lowest <= timing.ratio <= timing.highest
    kinds = {event.key for event in of_kernels(recorder.replay)}
    assert {"aten::mm", "aten::scaled_dot_product_attention"} <= kinds
    # What the core may lose by the strides of its inputs is not to be lost by the floor as well.
    assert not kinds & {"aten::bmm", "aten::clone", "aten::contiguous", "aten::cat"}


def of_kernels(run: Callable[[], object]) -> EventList:
    with torch.inference_mode(), profile() as found:
        run()
    return found.key_averages()


def test_the_program_writes_its_figures(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [
        sys.executable,
        "-m",
        "benchmarks",
        "--quick",
        "--repeats",
        "1",
        "--device",
        "cpu",
        "--json",
        str(target),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    figures = json.loads(target.read_text())
    # On a processor without bfloat16 the transformer is timed in float32 alone.
    assert len(figures["stages"]) == (5 if usual_dtype(torch.device("cpu")) is torch.bfloat16 else 4)
    for stage in figures["stages"]:
        assert stage["stage"] in done.stdout
        assert stage["seconds"] > 0
        assert stage["ratio"] > 0


def test_the_full_size_program_runs_and_counts_operations(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/full_size.py", "--toy", "--device", "cpu", "--json", str(target)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=True)
    found = json.loads(target.read_text())["stages"]
    transformer_lines = [(line["stage"], line["precision"]) for line in found[:6]]
    assert transformer_lines == [(stage.name, kind) for kind in (BF16, FP8) for stage in STAGES]
    assert [line["stage"].split()[0] for line in found[6:]] == ["decode", "attention,", "attention,", "attention,"]
    assert all(line["seconds"] >= 0 for line in found)
    counted = []
    for stage in STAGES:
        size = Size(5120, 40, stage.width, stage.height, 32, 300)
        counted.append(work_of_call(released_config(stage.role), size.sequence).total / 1e12)
    # 99 and 3,800 TFLOP a step are the published model's, counted elsewhere by hand.
    assert abs(counted[0] / 99 - 1) < 0.03
    assert abs(counted[2] / 3800 - 1) < 0.03


def test_where_a_device_is_slow_fewer_steps_are_timed_and_stages_left_out() -> None:
    clock = Clock(torch.device("cpu"), limit=100.0)
    assert clock.steps(8, one=0.1) == 8
    assert clock.steps(8, one=7.0) == 3
    assert clock.steps(8, one=70.0) == 1
    found: list[dict[str, object]] = []
    late = Clock(torch.device("cpu"), limit=0.0)
    run(late, toy=True, compile_layers=False, precisions=(BF16, FP8), report=found.append)
    assert found == []


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(("frames", "radius"), [(5, 1), (7, 2), (3, 5)])
def test_local_attention_by_flex_attention_is_that_by_slices(frames: int, radius: int) -> None:
    size, device = Size(640, 1, 64, 96, frames, 9), torch.device("cpu")
    q, k, v = heads(size, torch.float32, device)
    assert q.shape[1] > k.shape[1]
    found = flex_local(size.layout(), radius, device)(q, k, v)
    expected = local_attention(TorchOps.attention, q, k, v, size.layout(), radius, {})
    assert found.shape == expected.shape
    assert torch.allclose(found, expected, atol=1e-5)
