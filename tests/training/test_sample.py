"""Clips made in batches are those that the pack makes one at a time."""

import numpy as np
import pytest

from tools.make_tiny_checkpoints import write_stack
from training.evaluate import guidance, main, psnr
from training.sample import Order, load_stack, make_clips

PROMPTS = ("a red circle", "a blue star", "a large green square that slides")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    write_stack(folder, "released", 3)
    return folder


def orders(**given):
    return [Order(prompt, seed, **given) for seed, prompt in enumerate(PROMPTS)]


@pytest.mark.parametrize("role", ["distilled", "base"])
def test_a_clip_is_the_same_alone_and_with_others(folder, role):
    stack = load_stack(folder, role)
    together = dict(make_clips(stack, orders(), steps=2))
    assert sorted(together) == [0, 1, 2]
    for number, order in enumerate(orders()):
        ((_, alone),) = make_clips(stack, [order], steps=2)
        assert alone.frames.shape == (49, 64, 64, 3)
        assert np.abs(alone.frames.astype(int) - together[number].frames).mean() < 1
        np.testing.assert_allclose(alone.waveform, together[number].waveform, atol=0.02)
    assert np.abs(together[0].frames.astype(int) - together[1].frames).mean() > 3


def test_a_given_picture_and_a_given_sound_are_held(folder):
    stack = load_stack(folder, "distilled")
    sound = np.random.default_rng(1).normal(0, 0.1, (2, 51 * 2048)).astype(np.float32)
    (_, with_sound), (_, other) = make_clips(stack, [Order("a red circle", n, sound=sound) for n in (1, 2)], steps=2)
    assert np.array_equal(with_sound.waveform, other.waveform)
    assert not np.array_equal(with_sound.frames, other.frames)
    picture = np.full((64, 64, 3), 90, np.uint8)
    ((_, with_picture),) = make_clips(stack, [Order("a red circle", 1, picture=picture)], steps=2)
    assert not np.array_equal(with_picture.frames[0], with_sound.frames[0])


def test_evaluation_counts_what_held(folder, capsys):
    main(["--models", str(folder), "--count", "2", "--roles", "distilled", "--tasks", "text to video", "audio driven"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| task | judged | distilled |"
    assert "| text to video | colour and shape | 0.0 % of 2 |" in lines  # random weights show nothing
    assert [line for line in lines if line.startswith("| audio driven | picture follows the sound |")]


def test_evaluation_takes_another_guidance_and_refuses_none(folder, capsys):
    stack = load_stack(folder, "base")
    ((_, usual),) = make_clips(stack, orders()[:1], steps=2)
    stack.scales = guidance("5,2,5")
    ((_, strong),) = make_clips(stack, orders()[:1], steps=2)
    assert not np.array_equal(usual.frames, strong.frames) and not np.array_equal(usual.waveform, strong.waveform)
    with pytest.raises(SystemExit):
        main(["--guidance", "much"])
    assert "--guidance: found 'much', expected three numbers" in capsys.readouterr().err


def test_psnr():
    picture = np.zeros((4, 4, 3), np.uint8)
    assert psnr(picture, picture) > 100
    assert psnr(picture + np.uint8(255), picture) == pytest.approx(0)
    assert psnr(picture + np.uint8(16), picture) == pytest.approx(24.05, abs=0.01)
