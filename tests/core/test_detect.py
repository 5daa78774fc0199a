"""Sizes of a model from shapes that no file of it has: each ends in an error that names what is wrong."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from happyhorse_core.audio_vae.load import fold_weight_norm
from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.errors import CheckpointError
from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.shapes import dimension
from happyhorse_core.weights.tensors import TensorEntry, TensorSource

WEIGHTS = Path(__file__).parents[1] / "golden" / "transformer.weights.safetensors"
SHAPES = {name: tuple(tensor.shape) for name, tensor in load_file(WEIGHTS).items()}
ODD = [(), (0,), (1,), (0, 5), (5, 0), (2**28, 0), (2**28,), (2**28, 2**28), (1, 1, 1)]


@pytest.mark.parametrize("shape", ODD, ids=str)
def test_a_tensor_of_an_odd_shape_leaves_a_model_that_can_be_built_or_an_error(shape: tuple[int, ...]) -> None:
    for name in SHAPES:
        try:
            config = detect_transformer(SHAPES | {name: shape}, where="x")
        except CheckpointError as error:
            assert str(error).startswith("x: ")
        else:
            HappyHorseTransformer(config, operations=TorchOps, device="meta")


@pytest.mark.parametrize("number", ["9999", "9999999999", "9" * 30, "9" * 5000])
def test_a_layer_far_beyond_the_others_is_told_at_once(number: str) -> None:
    far = {f"block.layers.{number}.attention.pre_norm.weight": (8,)}
    if len(number) > 4:
        assert detect_transformer(SHAPES | far, where="x") == detect_transformer(SHAPES, where="x")
        return
    with pytest.raises(CheckpointError, match="tensors of 10000 layers are missing, first 'block.layers.6"):
        detect_transformer(SHAPES | far, where="x")


def entry(*shape: int) -> TensorEntry:
    return TensorEntry(Path("x"), shape, torch.float32, lambda: torch.zeros(shape))


@pytest.mark.parametrize("direction", [(), (4,), (4, 2), (4, 2, 3, 1), (5, 2, 3)])
def test_a_weight_norm_of_an_odd_shape_is_refused(direction: tuple[int, ...]) -> None:
    source = TensorSource(Path("x"), {"a.weight_g": entry(4, 1, 1), "a.weight_v": entry(*direction)})
    with pytest.raises(CheckpointError, match="^x: the weight norm of 'a' has"):
        fold_weight_norm(source)


@pytest.mark.parametrize("shape", [(), (3,), (3, 0)])
def test_a_dimension_that_is_not_there_or_nothing_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(CheckpointError, match="^x: tensor 'a' has shape"):
        dimension({"a": shape}, "a", 1, "x", "a model")
