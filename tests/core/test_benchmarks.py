"""The benchmark runs and its floor does what it says, at toy sizes."""

import json
import subprocess
import sys
from pathlib import Path

import torch

from benchmarks.floor import Recorder, measure
from benchmarks.full_size import STAGES, operations_per_step, released_config
from benchmarks.stages import Size, transformer

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
    assert timing.floor > 0


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
    assert len(figures["stages"]) == 5
    for stage in figures["stages"]:
        assert stage["stage"] in done.stdout
        assert stage["seconds"] > 0
        assert stage["ratio"] > 0


def test_the_full_size_program_runs_and_counts_operations(tmp_path: Path) -> None:
    target = tmp_path / "figures.json"
    command = [sys.executable, "benchmarks/full_size.py", "--toy", "--device", "cpu", "--json", str(target)]
    subprocess.run(command, cwd=ROOT, capture_output=True, timeout=300, check=True)
    assert len(json.loads(target.read_text())["stages"]) == 4
    counted = []
    for stage in STAGES:
        size = Size(5120, 40, stage.width, stage.height, 32, 300)
        counted.append(operations_per_step(released_config(stage.role), size) / 1e12)
    # 99 and 3,800 TFLOP a step are the published model's, counted elsewhere by hand.
    assert abs(counted[0] / 99 - 1) < 0.03
    assert abs(counted[2] / 3800 - 1) < 0.03
