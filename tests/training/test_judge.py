"""The judge of clips: right on drawn ones, also when they have suffered, and not to be taken in by wrong ones."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import ndimage

from training.evaluate import meet
from training.judge.clip import agreement, in_time, judge_clip, matches
from training.judge.sounds import find_clicks
from training.world.draw import draw
from training.world.scene import MOTIONS, Scene, sample_scene, track, track_at
from training.world.sound import RATE, sound

KINDS = (*MOTIONS, "speaking")


def some_scene(motion, seed=0):
    return sample_scene(
        np.random.default_rng(seed), held_out=None, **({"kind": "face"} if motion == "speaking" else {"motion": motion})
    )


def judged(scene, size=64):
    return judge_clip(draw(scene, size=size), sound(scene), RATE)


def suffer(frames, wave, seed, smooth):
    """Blur and noise, alike from pixel to pixel where ``smooth``, to a PSNR of 28 dB; both on the sound too."""
    rng = np.random.default_rng(seed)
    pictures = frames.astype(float)
    error = 255**2 / 10**2.8
    sigma = 1.2
    while True:
        sigma *= 0.8
        blurred = ndimage.gaussian_filter(pictures, (0.3, sigma, sigma, 0))
        rest = error - np.mean((blurred - pictures) ** 2)
        if rest > 0.3 * error:
            break
    noise = rng.normal(size=pictures.shape)
    if smooth:
        noise = ndimage.gaussian_filter(noise, (1, 1.5, 1.5, 0))
    spoilt = blurred + noise * np.sqrt(rest) / noise.std()
    heard = wave + rng.normal(size=wave.shape) * 0.1 * wave.std()
    return np.clip(np.round(spoilt), 0, 255).astype(np.uint8), ndimage.gaussian_filter1d(heard, 3).astype(np.float32)


@pytest.mark.parametrize("motion", KINDS)
def test_drawn_clips_are_judged_right(motion):
    for seed in range(6):
        scene = some_scene(motion, seed)
        assert all(matches(judged(scene), scene).values()), scene


@pytest.mark.parametrize("motion", KINDS)
@pytest.mark.parametrize("smooth", [False, True])
def test_clips_that_suffered_are_judged_right(motion, smooth):
    for seed in range(4):
        scene = some_scene(motion, 100 + seed)
        frames, wave = suffer(draw(scene), sound(scene), seed, smooth)
        assert all(matches(judge_clip(frames, wave, RATE), scene).values()), scene


@pytest.mark.parametrize("motion", KINDS)
def test_larger_pictures_are_judged_right(motion):
    scene = some_scene(motion, 200)
    assert all(matches(judged(scene, size=96), scene).values()), scene


def test_tracks_touches_and_clicks_are_those_of_the_scene():
    scene = Scene("shape", "star", "cyan", "small", "bouncing", ("navy", "teal"), x=0.4, phase=0.6, pace=0.73)
    findings, truth = judged(scene), track(scene)
    assert findings.x == pytest.approx(truth.x, abs=0.01)
    assert findings.y == pytest.approx(truth.y, abs=0.01)
    assert findings.touches == pytest.approx(truth.touches, abs=0.01)
    assert findings.clicks == pytest.approx(track_at(scene, np.arange(52) / 25).touches, abs=0.003)


def test_the_radius_and_the_opening_follow_the_truth():
    pulsing, speaking = some_scene("pulsing", 3), some_scene("speaking", 3)
    assert np.corrcoef(judged(pulsing).radius, track(pulsing).radius)[0, 1] > 0.999
    assert np.corrcoef(judged(speaking).opening, track(speaking).opening)[0, 1] > 0.99


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"colour": "orange"}, {"colour"}),
        ({"shape": "square"}, {"shape"}),
        ({"motion": "orbiting"}, {"motion", "sync"}),
        ({"motion": "sliding left", "x": 0.8, "pace": 0.3}, {"motion", "sync"}),
    ],
)
def test_what_was_not_asked_for_is_told(change, wrong):
    asked = Scene("shape", "circle", "red", "medium", "pulsing", ("grey", "grey"), phase=0.2, pace=0.8)
    shown = replace(asked, **change)
    result = matches(judge_clip(draw(shown), sound(asked), RATE), asked)
    assert wrong - {"sync"} <= {name for name, right in result.items() if not right} <= wrong


@pytest.mark.parametrize("motion", ["bouncing", "pulsing", "speaking"])
def test_sound_that_comes_late_is_out_of_time(motion):
    scene = some_scene(motion, 5)
    late = np.roll(sound(scene), round(0.2 * RATE), axis=1)
    findings = judge_clip(draw(scene), late, RATE)
    assert not in_time(findings, motion)
    assert matches(findings, scene) == {"colour": True, "shape": True, "motion": True, "sync": False}


def test_a_click_within_one_frame_is_in_time_and_a_stray_one_is_not():
    scene = Scene("shape", "circle", "red", "medium", "bouncing", ("grey", "grey"), phase=0.5, pace=0.8)
    frames, wave = draw(scene), sound(scene)
    assert in_time(judge_clip(frames, np.roll(wave, round(0.03 * RATE), 1), RATE), "bouncing")
    assert not in_time(judge_clip(frames, np.roll(wave, round(0.06 * RATE), 1), RATE), "bouncing")
    # Touches at 0.4 and 1.2 s: one more click halfway between.
    stray = wave + np.roll(wave, round(0.4 * RATE), 1)
    assert not in_time(judge_clip(frames, stray, RATE), "bouncing")


def test_each_bounce_is_judged_and_each_stray_click_counts():
    scene = Scene("shape", "circle", "red", "medium", "bouncing", ("grey", "grey"), phase=0.5, pace=0.8)
    frames, wave = draw(scene), sound(scene)
    assert meet(judge_clip(frames, wave, RATE)) == [True, True]
    # Touches at 0.4 and 1.2 s: the second click comes too late, or there is one more after each.
    half = wave.copy()
    half[:, RATE:] = np.roll(wave, round(0.1 * RATE), 1)[:, RATE:]
    assert meet(judge_clip(frames, half, RATE)) == [True, False, False]
    stray = wave + np.roll(wave, round(0.4 * RATE), 1)
    assert meet(judge_clip(frames, stray, RATE)) == [True, True, False, False]
    assert meet(judge_clip(frames, np.zeros_like(wave), RATE)) == [False, False]
    still = np.repeat(frames[:1], len(frames), 0)
    assert meet(judge_clip(still, np.zeros_like(wave), RATE)) == [False]


@pytest.mark.parametrize("motion", ["sliding left", "sliding right", "orbiting"])
def test_sound_from_the_wrong_side_is_out_of_time(motion):
    scene = some_scene(motion, 6)
    findings = judge_clip(draw(scene), sound(scene)[::-1], RATE)
    assert agreement(findings, motion) < -0.9
    assert not in_time(findings, motion)


@pytest.mark.parametrize("motion", KINDS)
def test_silence_is_out_of_time(motion):
    scene = some_scene(motion, 7)
    assert not in_time(judge_clip(draw(scene), np.zeros((2, 104_448), np.float32), RATE), motion)


def test_a_shape_that_stands_still_has_no_motion():
    frames = np.repeat(draw(some_scene("orbiting", 8), 1), 49, 0)
    findings = judge_clip(frames, np.zeros((2, 104_448), np.float32), RATE)
    assert findings.motion is None and findings.shape is not None


def test_a_face_that_keeps_its_mouth_shut_does_not_speak():
    frames = np.repeat(draw(some_scene("speaking", 8), 1), 49, 0)
    findings = judge_clip(frames, np.zeros((2, 104_448), np.float32), RATE)
    assert (findings.shape, findings.motion) == ("face", None)


@pytest.mark.parametrize("blur", [0, 6])
def test_noise_shows_nothing_that_has_a_name(blur):
    rng = np.random.default_rng(3)
    noise = ndimage.gaussian_filter(rng.normal(size=(49, 64, 64, 3)), (blur / 2, blur, blur, 0))
    frames = np.clip(100 + 60 * noise / noise.std(), 0, 255).astype(np.uint8)
    findings = judge_clip(frames, rng.normal(size=(2, 104_448)).astype(np.float32), RATE)
    assert findings.shape is None and findings.motion is None


def test_an_empty_picture_shows_nothing():
    findings = judge_clip(np.full((49, 64, 64, 3), 30, np.uint8), np.zeros((2, 104_448), np.float32), RATE)
    assert (findings.shape, findings.colour, findings.motion, findings.touches, findings.clicks) == (
        *(None, None, None),
        *((), ()),
    )


@pytest.mark.parametrize("rate", [44_100, 51_200])
def test_clicks_are_found_at_either_rate(rate):
    wave = np.zeros((2, 2 * rate), np.float32)
    times = np.arange(rate // 20) / rate
    for start in (0.5, 1.25):
        wave[:, round(start * rate) :][:, : len(times)] += np.sin(2262 * times) * np.exp(-times / 0.014)
    assert find_clicks(wave, rate) == pytest.approx([0.5, 1.25], abs=0.003)
