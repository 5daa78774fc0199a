"""Files that keep projections and modalities apart read as the released ones."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from convert_helpers import saved, split_layout, tensors_of
from torch import Tensor

from happyhorse_core.dit.load import BANDS, inspect_transformer, load_transformer
from happyhorse_core.dit.split_experts import merge_split_experts
from happyhorse_core.errors import CheckpointError
from happyhorse_core.weights.source import open_source
from tools.make_tiny_checkpoints import write_stack

QKV = "block.layers.0.attention.linear_qkv.weight"


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    folder = tmp_path_factory.mktemp("models")
    write_stack(folder, "released", 2)
    return {name: tensor.bfloat16() for name, tensor in tensors_of(folder / "1080p_sr").items()}


def refused(path: Path, *parts: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        inspect_transformer(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("prefix", ["", "model.diffusion_model."])
def test_a_split_file_loads_as_the_released_weights(released, tmp_path, prefix):
    split = split_layout(released)
    # Of each layer 4 norms and 7 parts, or 21 where modalities are apart; 11 tensors around the layers.
    assert len(split) == 11 + 2 * (4 + 7) + 4 * (4 + 21)
    path = saved(tmp_path / "split.safetensors", {prefix + name: tensor for name, tensor in split.items()})
    file = inspect_transformer(path, "1080p_sr")
    assert set(file.source.names) == set(released)
    for name, tensor in released.items():
        assert file.source.shapes[name] == tuple(tensor.shape)
        if name == BANDS:
            continue  # exact, whatever the layout: tested where whole files are
        assert file.source.dtypes[name] == torch.bfloat16
        assert torch.equal(file.source.read(name), tensor), name
    assert file.config.mm_layers == (0, 1, 4, 5)
    assert file.config.gelu7_layers == (0, 1)
    model = load_transformer(file)
    assert torch.equal(model.block.layers[4].attention.linear_qkv.weight, released[QKV.replace("0", "4")])


def test_rows_stand_in_the_released_order(tmp_path, released):
    """Each part is filled with its place in the released tensor: q, k, v, g of video, then of audio, then of text."""
    tensors = split_layout(released)
    rows = {"q": 64, "k": 32, "v": 32, "g": 4}
    order = [(letter, modality) for modality in ("video", "audio", "text") for letter in "qkvg"]
    for place, (letter, modality) in enumerate(order):
        name = f"block.layers.0.attention.linear_{letter}_{modality}.weight"
        assert tensors[name].shape == (rows[letter], 64)
        tensors[name] = torch.full((rows[letter], 64), float(place), dtype=torch.bfloat16)
    whole = inspect_transformer(saved(tmp_path / "split.safetensors", tensors)).source.read(QKV)
    expected = [place for place, (letter, _) in enumerate(order) for _ in range(rows[letter])]
    assert whole[:, 0].tolist() == whole[:, -1].tolist() == expected


def test_parts_that_are_themselves_fused(released, tmp_path):
    tensors = dict(released)
    for suffix, expert in zip(("_video", "_audio", "_text"), tensors.pop(QKV).chunk(3), strict=True):
        tensors[QKV.replace(".weight", f"{suffix}.weight")] = expert.clone()
    source = inspect_transformer(saved(tmp_path / "fused.safetensors", tensors)).source
    assert torch.equal(source.read(QKV), released[QKV])


def test_a_released_file_is_left_alone(released, tmp_path):
    source = open_source(saved(tmp_path / "whole.safetensors", released))
    assert merge_split_experts(source) is source


def without(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.__delitem__(name)


def resized(name: str) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensors[name][:, :-1]})


def recast(name: str, dtype: torch.dtype) -> Callable[[dict[str, Tensor]], None]:
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


PART = "block.layers.0.attention.linear_k_audio.weight"


@pytest.mark.parametrize(
    ("spoil", "parts"),
    [
        (without(PART), ("from 11 parts", f"missing {PART}")),
        (without("block.layers.5.mlp.down_proj_text.weight"), ("mlp.down_proj_text.weight", "from 2 parts")),
        (without("block.layers.2.attention.linear_g.weight"), ("missing block.layers.2.attention.linear_g.weight",)),
        (resized(PART), (PART, "[32, 63]", "one width")),
        (recast(PART, torch.float32), (PART, "torch.float32", "one dtype")),
        (lambda tensors: tensors.update({QKV: torch.zeros(396, 64)}), (QKV, "both", "expected only one")),
        (
            lambda tensors: tensors.update({"block.layers.2.mlp.up_gate_proj_text.weight": torch.zeros(4, 64)}),
            ("both block.layers.2.mlp.up_gate_proj.weight",),
        ),
    ],
    ids=["no keys of an expert", "no text expert", "no gate", "width", "dtype", "both", "an expert too many"],
)
def test_parts_that_do_not_make_a_whole(released, tmp_path, spoil, parts):
    tensors = split_layout(released)
    spoil(tensors)
    refused(saved(tmp_path / "split.safetensors", tensors), *parts)


def test_float8_parts_are_refused(released, tmp_path):
    tensors = {n: t.to(torch.float8_e4m3fn) if t.ndim == 2 else t for n, t in split_layout(released).items()}
    refused(saved(tmp_path / "split.safetensors", tensors), "float8_e4m3fn", "bfloat16", "bf16 file")


def test_int8_of_quanto_is_refused(released, tmp_path):
    tensors = split_layout(released)
    names = [name for name in tensors if "linear_" in name and name.startswith("block")]
    for name in names:
        weight = tensors.pop(name)
        tensors |= {f"{name}._data": weight.to(torch.int8), f"{name}._scale": torch.ones(weight.shape[0], 1)}
    refused(saved(tmp_path / "split.safetensors", tensors), f"{len(names)} weights", "quanto", "ends in bf16")


@pytest.mark.parametrize("changed", ["another length", "integers"])
def test_rotary_bands_that_fit_no_transformer_are_refused(released, tmp_path, changed):
    """Rounded ones are replaced by exact ones, but only where the file has what it should have."""
    bands = released[BANDS]
    wrong = bands[:-1].clone() if changed == "another length" else bands.to(torch.int16)
    path = saved(tmp_path / "file.safetensors", released | {BANDS: wrong})
    with pytest.raises(CheckpointError, match=f"{BANDS} in file.safetensors"):
        load_transformer(inspect_transformer(path, "1080p_sr"))
