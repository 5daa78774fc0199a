"""What hidden states learn to tell: the truth of a scene at each moment, in the rows of both streams' tokens."""

import numpy as np
import pytest
import torch

from training.model import HIDDEN, LAYERS, make_transformer
from training.truth import CENTRES, READ_AFTER, SPREADS, TruthHeads, groups_of, truth_of
from training.world.scene import HEAD_RADIUS, Scene, sample_scene, track


def plain(truth):
    return truth * SPREADS + CENTRES


def test_truth_is_the_track_with_its_touches():
    scene = sample_scene(np.random.default_rng(3), motion="bouncing")
    found, wanted = plain(truth_of(scene)), track(scene, 51)
    np.testing.assert_allclose(found[:, 0], wanted.x, atol=1e-6)
    np.testing.assert_allclose(found[:, 1], wanted.y, atol=1e-6)
    assert found[:, 4].nonzero()[:, 0].tolist() == [int(25 * touch) for touch in wanted.touches]
    assert len(wanted.touches) >= 2


def test_truth_of_a_face_is_its_mouth():
    scene = sample_scene(np.random.default_rng(3), kind="face")
    found = plain(truth_of(scene, 49))
    assert track(scene).radius[0] == HEAD_RADIUS
    np.testing.assert_allclose(found[:, 2], 0, atol=1e-6)
    np.testing.assert_allclose(found[:, 3], track(scene).opening, atol=1e-6)


def test_each_latent_has_four_pictures_and_the_first_has_one():
    truth = torch.arange(11.0)[None, :, None].expand(1, 11, 5)
    assert groups_of(truth, 3)[0, :, :, 0].tolist() == [[0, 0, 0, 0], [1, 2, 3, 4], [5, 6, 7, 8]]


@pytest.fixture
def heads():
    torch.manual_seed(0)
    return TruthHeads()


def test_heads_read_each_token_at_its_time(heads):
    """Hidden states that hold the truth itself can be read without error, and only with it at its own tokens."""
    truth = truth_of(Scene("shape", "circle", "red", "small", "bouncing", ("black", "black"), pace=0.7), 9)[None]
    frames = 3
    told = torch.zeros(1, frames * 2 + 9 + 2, HIDDEN)
    told[:, : frames * 2, :20] = groups_of(truth, frames).flatten(2).repeat_interleave(2, 1)
    told[:, frames * 2 : -2, :5] = truth
    # All rows get the same length, so that evening them out is the same for all.
    told[..., 100] = (400 - told.square().sum(-1)).sqrt()
    with torch.no_grad():
        for head in (heads.video, heads.audio):
            head.bias.zero_()
            head.weight.copy_(torch.eye(HIDDEN)[: len(head.weight)] * 20 / HIDDEN**0.5)
    heads.hidden = told
    video = torch.zeros(1, 48, frames, 2, 4)
    assert heads.loss(video, truth) < 1e-9
    assert heads.loss(video, truth.roll(1, 1)) > 0.1


def test_gradient_of_the_heads_reaches_the_transformer_below_them(heads):
    model = make_transformer(0)
    video, audio, text = torch.randn(1, 48, 3, 2, 2), torch.randn(1, 64, 9), torch.randn(1, 4, 128)
    plain_result = model(video, audio, text, compute_dtype=torch.float32)
    watched = model(video, audio, text, compute_dtype=torch.float32, layer_hook=heads.watch)
    assert all(torch.equal(a, b) for a, b in zip(plain_result, watched, strict=True))
    heads.loss(video, torch.randn(1, 9, 5)).backward()
    reached = [layer.attention.linear_qkv.weight.grad is not None for layer in model.block.layers]
    assert reached == [index <= READ_AFTER for index in range(LAYERS)]
    assert 0 < READ_AFTER < LAYERS - 1
