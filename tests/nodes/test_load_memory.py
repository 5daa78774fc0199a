"""A float32 checkpoint never stands in memory as float32, and quantised weights stand there as in their file.

Measured by the system's account of this process, mapped pages included. The checkpoints are files with holes, which
take no room on the disk but are read like others.
"""

import json
import math
import re
import shutil
import sys
import tempfile
from functools import cache
from pathlib import Path

import comfy.model_patcher
import pytest
import torch
from core.convert_helpers import is_linear, wide_shapes, write_hollow_shards
from happyhorse_pack.happyhorse_core.convert.run import convert
from happyhorse_pack.nodes.host import load
from happyhorse_pack.nodes.host.text_encoder import load_clip

from tools.make_tiny_checkpoints import TEXT_CONFIG, tokenizer_json

SHAPES = wide_shapes(hidden=1024, layers=8)
LARGEST = 4 * max(math.prod(shape) for shape in SHAPES.values())
SLACK = 2**26
"""For what Python and the host allocate besides."""

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's account of memory")


@pytest.fixture(scope="module")
def checkpoint():
    folder = Path(tempfile.mkdtemp(prefix="happyhorse-tests-"))
    write_hollow_shards(folder / "distill", SHAPES, shards=3)
    yield folder / "distill"
    shutil.rmtree(folder)


def resident(field: str = "VmRSS") -> int:
    return int(re.search(field + r":\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def size_of(tensors: dict[str, torch.Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors.values())


@cache
def model_size(dtype: torch.dtype) -> int:
    return sum(math.prod(shape) * (dtype.itemsize if is_linear(name) else 4) for name, shape in SHAPES.items())


def read_all(tensors: dict[str, torch.Tensor]) -> None:
    """Brings every page of them into memory."""
    for tensor in tensors.values():
        tensor.flatten().view(torch.uint8)[::1024].sum()


@pytest.fixture
def dynamic(monkeypatch, dynamic_memory):
    """As on a GPU: the model takes the tensors that it is handed instead of copying them into its own."""

    class Dynamic(comfy.model_patcher.ModelPatcher):
        def is_dynamic(self) -> bool:
            return True

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Dynamic)


@pytest.fixture(params=["copied", "handed over"])
def mode(request):
    if request.param == "handed over":
        request.getfixturevalue("dynamic")


def loaded(path: Path, weight_dtype: str) -> tuple[torch.nn.Module, int, int]:
    """The model, and by how many bytes this process has grown, at most while loading and once all weights were read."""
    before = resident()
    reset_peak()
    model = load.load_diffusion_model(str(path), weight_dtype=weight_dtype).model.diffusion_model
    peak = resident("VmHWM") - before
    read_all(model.state_dict())
    return model, peak, resident() - before


@pytest.mark.parametrize(("weight_dtype", "dtype"), [("bf16", torch.bfloat16), ("fp8_e4m3fn", torch.float8_e4m3fn)])
def test_float32_shards(checkpoint, mode, weight_dtype, dtype):
    model, peak, after = loaded(checkpoint, weight_dtype)
    expected = model_size(dtype)
    tensors = model.state_dict()
    assert {tensor.dtype for name, tensor in tensors.items() if is_linear(name)} == {dtype}
    assert {tensor.dtype for name, tensor in tensors.items() if not is_linear(name)} == {torch.float32}
    assert size_of(tensors) == expected
    assert peak < expected + 1.1 * LARGEST + SLACK
    assert after < expected + SLACK


# The text encoder

TEXT_SIZES = {
    "vocab_size": 16_384,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 128,
    "layer_types": ["sliding_attention", "full_attention"] * 3,
}


def text_shapes() -> dict[str, tuple[int, ...]]:
    hidden, inner = TEXT_SIZES["hidden_size"], TEXT_SIZES["intermediate_size"]
    shapes = {"embed_tokens.weight": (TEXT_SIZES["vocab_size"], hidden), "norm.weight": (hidden,)}
    for layer in range(TEXT_SIZES["num_hidden_layers"]):
        for part in ("pre_self_attn", "post_self_attn", "pre_feedforward", "post_feedforward"):
            shapes[f"layers.{layer}.{part}_layernorm.weight"] = (hidden,)
        for part, heads in (("q", 8), ("k", 4), ("v", 4)):
            shapes[f"layers.{layer}.self_attn.{part}_proj.weight"] = (heads * 128, hidden)
        shapes[f"layers.{layer}.self_attn.o_proj.weight"] = (hidden, 8 * 128)
        for part in ("gate", "up"):
            shapes[f"layers.{layer}.mlp.{part}_proj.weight"] = (inner, hidden)
        shapes[f"layers.{layer}.mlp.down_proj.weight"] = (hidden, inner)
    return {f"model.encoder.{name}": shape for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def text_folder():
    folder = Path(tempfile.mkdtemp(prefix="happyhorse-tests-"))
    write_hollow_shards(folder / "text", text_shapes(), shards=2)
    (folder / "text" / "tokenizer.json").write_text(tokenizer_json(), encoding="utf-8")
    tree = {"model_type": "t5gemma", "encoder": TEXT_CONFIG | TEXT_SIZES}
    (folder / "text" / "config.json").write_text(json.dumps(tree))
    yield folder
    shutil.rmtree(folder)


@pytest.mark.parametrize("dtype", ["fp8-scaled", "nvfp4"])
def test_a_quantised_text_encoder_takes_what_its_file_does(text_folder, mode, dtype):
    path = text_folder / f"{dtype}.safetensors"
    if not path.exists():
        convert(text_folder / "text", path, dtype=dtype)
    size = path.stat().st_size
    bf16 = 2 * sum(math.prod(shape) for shape in text_shapes().values())
    assert size + SLACK < bf16, "else this would show nothing"
    before = resident()
    reset_peak()
    clip = load_clip(str(path))
    peak = resident("VmHWM") - before
    tensors = clip.cond_stage_model.state_dict()
    read_all(tensors)
    assert peak < size + SLACK
    assert resident() - before < size + SLACK
    assert abs(size_of(tensors) - size) < 2**20


def test_float32_shards_of_a_text_encoder(text_folder, mode):
    before = resident()
    reset_peak()
    clip = load_clip(str(text_folder / "text"))
    peak = resident("VmHWM") - before
    tensors = clip.cond_stage_model.state_dict()
    read_all(tensors)
    expected = 2 * sum(math.prod(shape) for shape in text_shapes().values())
    largest = 4 * max(math.prod(shape) for shape in text_shapes().values())
    assert size_of(tensors) == expected
    assert peak < expected + 1.1 * largest + SLACK
    assert resident() - before < expected + SLACK
