"""Sizes, guidance and steps of the super-resolution stage."""

import itertools

import pytest
import torch

from happyhorse_core.dit.roles import SR_540P, SR_1080P
from happyhorse_core.errors import InputError
from happyhorse_core.sampling.guidance import sr_video_scale
from happyhorse_core.super_resolution import enlarge, shape_warnings, start, target_size, upscale

ROLES = (SR_540P, SR_1080P)


@pytest.mark.parametrize(
    ("role", "source", "asked", "expected"),
    [
        (SR_540P, (448, 256), (0, 0), (896, 512)),
        (SR_1080P, (448, 256), (0, 0), (1920, 1088)),
        (SR_1080P, (896, 512), (0, 0), (1920, 1088)),
        (SR_540P, (256, 448), (0, 0), (512, 896)),
        (SR_540P, (480, 256), (0, 0), (928, 480)),
        (SR_540P, (256, 256), (0, 0), (672, 672)),
        (SR_540P, (448, 256), (640, 0), (640, 352)),
        (SR_540P, (448, 256), (0, 512), (896, 512)),
        (SR_540P, (448, 256), (911, 543), (896, 512)),
        (SR_540P, (448, 256), (448, 256), (448, 256)),
    ],
)
def test_sizes_are_chosen_and_snapped(role, source, asked, expected):
    assert target_size(role, source, *asked) == expected


def test_every_choice_is_on_the_grid_and_keeps_the_clip_s_shape():
    sides = range(32, 513, 96)
    for role, width, height in itertools.product(ROLES, sides, sides):
        if max(width / height, height / width) > 4:
            continue
        found = target_size(role, (width, height))
        assert found[0] % 32 == found[1] % 32 == 0
        assert found[0] / found[1] == pytest.approx(width / height, rel=0.12)


@pytest.mark.parametrize(
    ("source", "asked", "words"),
    [
        ((448, 256), (320, 512), "width: found 320, expected at least 448"),
        ((448, 256), (896, 255), "height: found 224, expected at least 256"),
        ((1920, 1088), (0, 0), "width: found 896, expected at least 1920"),
        ((448, 256), (4128, 512), "width: found 4128, expected 32 to 4096"),
        ((448, 256), (-64, 0), "width: found -64, expected"),
        ((448, 256), (16, 512), "width: found 16, expected"),
        ((2048, 32), (4096, 0), None),
    ],
)
def test_sizes_that_cannot_be_are_named(source, asked, words):
    if words is None:
        assert target_size(SR_540P, source, *asked) == (4096, 64)
        return
    with pytest.raises(InputError, match=f"^{words}"):
        target_size(SR_540P, source, *asked)


def test_shapes_that_the_models_were_not_trained_for_are_said():
    assert shape_warnings(SR_540P, (448, 256), (896, 512)) == []
    assert shape_warnings(SR_1080P, (448, 256), (1920, 1088)) == []
    assert shape_warnings(SR_1080P, (448, 256), (1792, 1024)) == []
    (ghosting,) = shape_warnings(SR_540P, (256, 448), (512, 896))
    assert "512 x 896 has another shape than 896 x 512" in ghosting and "ghosting" in ghosting
    (stretched,) = shape_warnings(SR_540P, (256, 448), (896, 512))
    assert "stretched" in stretched
    # 5% is the limit: 928 x 512 is 3.6% wider than trained, 960 x 512 is 7.1%.
    assert shape_warnings(SR_540P, (928, 512), (928, 512)) == []
    assert len(shape_warnings(SR_540P, (960, 512), (960, 512))) == 1


def test_enlarging_keeps_corners_and_runs_in_straight_lines():
    video = torch.arange(4.0).view(1, 1, 1, 2, 2).expand(1, 48, 3, 2, 2)
    large = enlarge(video, 3, 5)
    assert large[0, 0, 0].tolist() == [[0, 0.25, 0.5, 0.75, 1], [1, 1.25, 1.5, 1.75, 2], [2, 2.25, 2.5, 2.75, 3]]
    assert torch.equal(large[:, :, 0], large[:, :, 2])
    with pytest.raises(InputError, match="target size: found 32 x 16 pixels, expected at least .* 32 x 32"):
        enlarge(video, 1, 2)


def test_start_is_mostly_signal_for_the_picture_and_mostly_noise_for_the_sound():
    video, audio = torch.ones(1, 48, 2, 4, 6), torch.ones(1, 64, 5)
    nothing = torch.zeros(1, 48, 2, 8, 12), torch.zeros(1, 64, 5)
    large, heard = start(video, audio, (192, 128), *nothing)
    torch.testing.assert_close(large, torch.full((1, 48, 2, 8, 12), 0.8389104))
    torch.testing.assert_close(heard, torch.full((1, 64, 5), 0.3))
    large, heard = start(video, audio, (192, 128), nothing[0] + 1, nothing[1] + 1)
    torch.testing.assert_close(large, torch.full_like(large, 0.8389104 + (1 - 0.8389104**2) ** 0.5))
    torch.testing.assert_close(heard, torch.full_like(heard, 1.0))


def test_guidance_below_that_of_the_start_is_the_same_in_all_frames():
    assert sr_video_scale(15, scale=1.5).flatten().tolist() == [1.5] * 15


def test_steps_end_at_the_picture_that_the_model_predicts_and_hold_sound_and_first_frame():
    wanted, still = torch.randn(1, 48, 3, 4, 4), torch.randn(1, 48, 1, 4, 4)
    heard = torch.randn(1, 64, 9)
    calls = []

    def velocity(video, audio, sigma):
        calls.append((sigma, torch.equal(video[:, :, :1], still), torch.equal(audio, heard)))
        return (video - wanted) / sigma, torch.ones_like(audio)

    found = upscale(velocity, torch.randn(1, 48, 3, 4, 4), heard, image_latent=still)
    torch.testing.assert_close(found[:, :, 1:], wanted[:, :, 1:], atol=1e-5, rtol=0)
    assert torch.equal(found[:, :, :1], still)
    assert len(calls) == 5 and all(first and sound for _, first, sound in calls)
    assert calls[0][0] == pytest.approx(0.9998, abs=1e-4)
