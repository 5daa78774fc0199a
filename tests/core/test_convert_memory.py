"""Converting and loading more than 3 GiB of float32 shards takes memory for the result and for about one tensor.

The shards are files with holes, which take no room on the disk but are read like others. Each step has a process of its
own, whose peak the system keeps: of all its memory, pages of mapped files included.
"""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from convert_helpers import is_linear, wide_shapes, write_hollow_shards

ROOT = Path(__file__).parents[2]
GIB = 2**30
ROOM = 2 * GIB
PATIENCE = 120

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")

MEASURED = """
import json, re, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from happyhorse_core.convert.run import convert
from happyhorse_core.dit.load import inspect_transformer, load_transformer

def memory(field):
    return int(re.search(field + r":\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024

torch.zeros(2**20).bfloat16().float()  # what the first calculation brings in is no part of the measure
before = memory("VmRSS")
"""
CONVERT = (
    MEASURED
    + """
convert(Path(sys.argv[1]), Path(sys.argv[2]), dtype="fp8-scaled")
print(json.dumps({"peak": memory("VmHWM") - before}))
"""
)
LOAD = (
    MEASURED
    + """
model = load_transformer(inspect_transformer(Path(sys.argv[1])))
size = sum(tensor.nbytes for tensor in model.state_dict().values())
print(json.dumps({"peak": memory("VmHWM") - before, "model": size, "after": memory("VmRSS") - before}))
"""
)


def measured(script: str, *paths: Path) -> dict[str, int]:
    """What a script prints, run in a process of its own."""
    run = subprocess.run(
        [sys.executable, "-c", script, *map(str, paths)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_peak_memory_of_three_gibibytes(tmp_path, record_property):
    free = shutil.disk_usage(tmp_path).free
    if free < ROOM:
        pytest.skip(f"the converted file and some spare room take {ROOM / GIB:.0f} GiB, {free / GIB:.1f} are free")
    shapes = wide_shapes(hidden=2560, layers=12)
    on_disk = write_hollow_shards(tmp_path / "distill", shapes, shards=5)
    assert on_disk > 3 * GIB
    largest = 4 * max(math.prod(shape) for shape in shapes.values())

    converted = measured(CONVERT, tmp_path / "distill", tmp_path / "new.safetensors")
    record_property("converting", {"source": on_disk, "largest tensor": largest, **converted})
    assert converted["peak"] < 1.1 * largest + 2**26, "the largest tensor, and blocks of what it becomes"
    expected = sum((1 if is_linear(name) else 4) * math.prod(shape) for name, shape in shapes.items())
    assert 0 <= (tmp_path / "new.safetensors").stat().st_size - expected < 2**20

    loaded = measured(LOAD, tmp_path / "distill")
    record_property("loading", {"source": on_disk, "largest tensor": largest, **loaded})
    assert loaded["model"] > 1.5 * GIB
    assert loaded["peak"] < loaded["model"] + 1.1 * largest
