"""Local attention chosen for one call, against models that were built with that choice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from happyhorse_core.dit.config import released_local_layers
from happyhorse_core.dit.detect import LOCAL_METADATA_KEY, RECEPTIVE_FIELD_METADATA_KEY, detect_transformer
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.dit.roles import SR_540P, SR_1080P
from happyhorse_core.errors import CheckpointError
from happyhorse_core.ops import TorchOps

WEIGHTS = Path(__file__).parents[1] / "golden" / "transformer.weights.safetensors"


def build(role, **changes):
    weights = {name: tensor.float() for name, tensor in load_file(WEIGHTS).items()}
    config = detect_transformer({name: tuple(t.shape) for name, t in weights.items()}, role=role, where="golden")
    model = HappyHorseTransformer(replace(config, **changes), operations=TorchOps, dtype=torch.float32)
    model.load_state_dict(weights)
    return model.requires_grad_(False)


def call(model, **kwargs):
    generator = torch.Generator().manual_seed(3)
    shapes = ((1, 48, 6, 4, 4), (1, 64, 21), (1, 7, 24))
    video, audio, text = (torch.randn(shape, generator=generator) for shape in shapes)
    return torch.cat([out.flatten() for out in model(video, audio, text, compute_dtype=torch.float32, **kwargs)])


@pytest.mark.parametrize("layers", [(), (0, 1, 3), tuple(range(6))])
def test_layers_chosen_for_a_call_stand_in_for_the_checkpoint_s(layers):
    expected = call(build(SR_540P, local_attn_layers=layers, frame_receptive_field=2))
    for role in (SR_540P, SR_1080P):
        model = build(role, frame_receptive_field=2)
        before = call(model)
        assert torch.equal(call(model, local_layers=layers), expected)
        assert torch.equal(call(model), before), "a call leaves no trace in the model"


def test_local_attention_matters():
    model = build(SR_540P, frame_receptive_field=2)
    assert not torch.allclose(call(model), call(model, local_layers=(0, 1, 3)), atol=1e-3)


def test_the_released_choice_of_40_layers():
    assert set(range(40)) - set(released_local_layers(40)) == {3, 7, 11, 15, 19, 23, 27, 31}
    assert build(SR_1080P).config.local_attn_layers == released_local_layers(6)


@pytest.mark.parametrize("text", ["[0, 6]", "[-1]", "[true]", "[0.0]", "{}", "3", "[", "[1,]", "[" * 10**5, "[9e9]"])
def test_a_choice_in_the_metadata_that_names_no_layers(text):
    shapes = {name: tuple(t.shape) for name, t in load_file(WEIGHTS).items()}
    with pytest.raises(CheckpointError, match=r"^x: metadata 'happyhorse\.local_attn_layers': found .* from 0 to 5"):
        detect_transformer(shapes, metadata={LOCAL_METADATA_KEY: text}, where="x")


@pytest.mark.parametrize("text", ["", "-1", "1.0", "x", "9" * 10**5, "\u0663"])
def test_a_reach_in_the_metadata_that_is_no_number_of_frames(text):
    shapes = {name: tuple(t.shape) for name, t in load_file(WEIGHTS).items()}
    with pytest.raises(CheckpointError, match=r"^x: metadata 'happyhorse\.frame_receptive_field': found .*such as 11"):
        detect_transformer(shapes, metadata={RECEPTIVE_FIELD_METADATA_KEY: text}, where="x")


@pytest.mark.parametrize(("text", "layers"), [("[]", ()), ("[ ]", ()), ("[0]", (0,)), ("[5, 1,3 ]", (5, 1, 3))])
def test_a_choice_in_the_metadata(text, layers):
    shapes = {name: tuple(t.shape) for name, t in load_file(WEIGHTS).items()}
    metadata = {LOCAL_METADATA_KEY: text, RECEPTIVE_FIELD_METADATA_KEY: "3"}
    config = detect_transformer(shapes, metadata=metadata, where="x")
    assert (config.local_attn_layers, config.frame_receptive_field) == (layers, 3)
