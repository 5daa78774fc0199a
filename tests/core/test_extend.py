"""Clips that go on: the timing of both streams over many clips, the sound at the joins, and what is held."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from happyhorse_core.errors import InputError
from happyhorse_core.extend import (
    CONTEXT,
    Stretch,
    check_overlap,
    fit_length,
    join_frames,
    join_sound,
    overlap_frames,
    stretch_to_hold,
)
from happyhorse_core.geometry import samples_of_frames

LENGTHS = (85, 65, 89, 77, 85)
RATES = (44_100, 48_000, 22_050, 11_025, 44_056)


def pictures_at(start: int, count: int) -> Tensor:
    """[count, 1]: each picture holds its place in the whole film."""
    return torch.arange(start, start + count, dtype=torch.float64)[:, None]


def sound_at(start: int, count: int, rate: int) -> Tensor:
    """[1, samples]: each sample holds its time in the whole film, in pictures."""
    return (start + torch.arange(samples_of_frames(count, rate), dtype=torch.float64) * 25 / rate)[None]


def tone(start: int, count: int, rate: int, *, gain: float = 1.0, phase: float = 0.0) -> Tensor:
    return gain * torch.sin(sound_at(start, count, rate) / 25 * 2 * math.pi * 220 + phase)


def chain(
    lengths: tuple[int, ...], overlap: int, rate: int, make: Callable[[int, int, int], Tensor], **join: float
) -> tuple[Tensor, Tensor]:
    """A film of clips that each start ``overlap`` pictures before the end of what is there, and go on from that."""
    pictures, sound = pictures_at(0, lengths[0]), make(0, 0, lengths[0])
    for number, count in enumerate(lengths[1:], start=1):
        start = len(pictures) - overlap
        sound = join_sound(sound, make(number, start, count), rate, (len(pictures), count), overlap, **join)
        pictures = join_frames(pictures, pictures_at(start, count), overlap)
    return pictures, sound


@pytest.mark.parametrize("overlap", [1, 2, 24, 25, 60])
@pytest.mark.parametrize("rate", RATES)
def test_picture_and_sound_stay_in_step_over_many_clips(overlap: int, rate: int) -> None:
    pictures, sound = chain(LENGTHS * 3, overlap, rate, lambda number, start, count: sound_at(start, count, rate))
    total = sum(LENGTHS * 3) - (3 * len(LENGTHS) - 1) * overlap
    assert torch.equal(pictures, pictures_at(0, total))
    assert sound.shape[-1] == samples_of_frames(total, rate)
    lag = (sound - sound_at(0, total, rate)).abs().max().item()
    assert lag < 0.002, "of a picture's 40 ms: within a sample"


def rms_steps(sound: Tensor, joins: list[int], rate: int) -> list[float]:
    """The largest change of level, in dB, between neighbouring windows of 50 ms around each join."""
    window = rate // 20
    steps = []
    for join in joins:
        around = sound[0, join - 5 * window : join + 5 * window]
        levels = 20 * around.unfold(0, window, window // 4).square().mean(-1).sqrt().log10()
        steps.append((levels[4:] - levels[:-4]).abs().max().item())
    return steps


@pytest.mark.parametrize("overlap", [1, 5, 25])
@pytest.mark.parametrize(("gain", "phase", "allowed"), [(1.0, 0.0, 0.01), (0.95, 0.3, 0.6)])
def test_level_of_a_held_tone_does_not_step_at_the_joins(
    overlap: int, gain: float, phase: float, allowed: float
) -> None:
    """The second case is a tone that the autoencoder gave back half a decibel lower and out of phase, each time."""
    rate, ends = 44_100, []

    def make(number: int, start: int, count: int) -> Tensor:
        ends.append(samples_of_frames(start + count, rate))
        return tone(start, count, rate, gain=gain**number, phase=phase * number)

    _, sound = chain(LENGTHS, overlap, rate, make)
    assert max(rms_steps(sound, ends[:-1], rate)) < allowed
    assert sound.diff().abs().max() < 1.2 * 2 * math.pi * 220 / rate, "no click"


def test_without_a_fade_such_a_tone_clicks() -> None:
    rate = 44_100

    def make(number: int, start: int, count: int) -> Tensor:
        return tone(start, count, rate, phase=1.5 * number)

    _, sound = chain(LENGTHS, 25, rate, make, fade_ms=0.0)
    assert sound.diff().abs().max() > 5 * 2 * math.pi * 220 / rate


def test_the_clips_own_sound_is_kept_up_to_the_fade_and_the_next_ones_after_it() -> None:
    before, after = torch.rand(2, 50 * 1764), torch.rand(2, 30 * 1764)
    joined = join_sound(before, after, 44_100, (50, 30), 10, fade_ms=20)
    end, fade = 50 * 1764, 882
    assert torch.equal(joined[:, : end - fade], before[:, : end - fade])
    assert torch.equal(joined[:, end:], after[:, 10 * 1764 :])
    assert joined.shape[-1] == 70 * 1764
    middle = joined[:, end - fade // 2]
    expected = (before[:, end - fade // 2] + after[:, 10 * 1764 - fade // 2]) / 2
    torch.testing.assert_close(middle, expected, atol=2e-3, rtol=0)


def test_a_fade_is_never_longer_than_the_overlap() -> None:
    before, after = torch.zeros(1, 20 * 1764), torch.ones(1, 20 * 1764)
    joined = join_sound(before, after, 44_100, (20, 20), 1, fade_ms=5000)
    assert joined[0, : 19 * 1764].max() == 0
    assert 0 < joined[0, 19 * 1764] < 0.01
    assert joined[0, 20 * 1764 :].min() == 1


def test_sound_that_is_shorter_or_longer_than_its_pictures_is_put_right_before_the_join() -> None:
    before, after = torch.ones(1, 20 * 1764 + 999), 2 * torch.ones(1, 12 * 1764)
    joined = join_sound(before, after, 44_100, (20, 20), 5, fade_ms=0)
    assert joined[0, : 20 * 1764].eq(1).all()
    assert joined[0, 20 * 1764 : 27 * 1764].eq(2).all()
    assert joined[0, 27 * 1764 :].eq(0).all()
    assert joined.shape[-1] == 35 * 1764


@pytest.mark.parametrize(("pictures", "overlap"), [(125, 25), (125, 1), (25, 25), (30, 25), (5, 1), (126, 40)])
def test_the_held_stretch_is_the_sound_of_the_last_pictures(pictures: int, overlap: int) -> None:
    """An autoencoder stands in that gives the mean of each latent's samples."""
    number = torch.arange(pictures, dtype=torch.float32).repeat_interleave(2048) / 1000
    stretch = stretch_to_hold(number.expand(2, -1), 51_200, pictures, overlap)
    latent = stretch.sound.unfold(-1, 2048, 2048).mean(-1)
    expected = torch.arange(pictures - overlap, pictures) / 1000
    torch.testing.assert_close(stretch.held(latent)[0, 0], expected)
    assert stretch.first == min(CONTEXT, pictures - overlap)
    after = latent[0, 0, stretch.first + overlap :]
    torch.testing.assert_close(after, number.flip(0)[::2048][: len(after)])
    assert len(after) == min(CONTEXT, stretch.first + overlap)


@pytest.mark.parametrize("rate", RATES)
def test_the_held_stretch_is_found_at_any_rate(rate: int) -> None:
    start = samples_of_frames(80, rate)
    waveform = torch.zeros(1, samples_of_frames(100, rate))
    waveform[:, start:] = torch.sin(torch.arange(waveform.shape[-1] - start) * 2 * math.pi * 1000 / rate)
    stretch = stretch_to_hold(waveform, rate, 100, 25)
    levels = stretch.held(stretch.sound.unfold(-1, 2048, 2048).square().mean(-1).sqrt())[0, 0]
    assert levels[:4].max() < 0.01
    assert levels[6:].min() > 0.6
    assert len(levels) == 25


def test_a_clip_that_has_less_sound_than_pictures_ends_in_silence() -> None:
    stretch = stretch_to_hold(torch.ones(2, 90 * 1764), 44_100, 100, 20)
    levels = stretch.held(stretch.sound.unfold(-1, 2048, 2048).abs().mean(-1))[0, 0]
    assert levels[:9].min() > 0.9
    assert levels[11:].max() < 0.01


def test_the_encoder_sees_all_that_it_looks_at() -> None:
    """With the real autoencoder's layers, the held latents are those of the whole clip, but for the very end."""
    from happyhorse_core.audio_vae.config import OobleckConfig
    from happyhorse_core.audio_vae.model import Oobleck
    from happyhorse_core.ops import TorchOps

    torch.manual_seed(0)
    vae = Oobleck(tiny_config(OobleckConfig), operations=TorchOps)
    for name, parameter in vae.named_parameters():
        torch.nn.init.normal_(parameter, std=0.01 if name.endswith(("alpha", "beta")) else 0.2)
    sound = torch.rand(1, 2, 40 * 2048) - 0.5
    stretch = stretch_to_hold(sound[0], 51_200, 40, 20)
    whole = torch.cat([sound, sound.flip(-1)], dim=-1)
    with torch.no_grad():
        expected = vae.encode(whole)[..., 20:40]
        torch.testing.assert_close(stretch.held(vae.encode(stretch.sound)), expected, atol=1e-5, rtol=1e-5)
        cut = Stretch(stretch.sound[..., : 28 * 2048], stretch.first, stretch.length)
        assert not torch.allclose(cut.held(vae.encode(cut.sound)), expected, atol=1e-3)


def tiny_config(kind: type) -> object:
    """The released strides with few channels."""
    return kind(
        audio_channels=2,
        latent_channels=64,
        encoder_widths=(2, 2, 2, 2, 2, 2),
        decoder_widths=(2, 2, 2, 2, 2, 2),
        encoder_strides=(2, 4, 4, 8, 8),
        decoder_strides=(2, 4, 4, 8, 8),
    )


@pytest.mark.parametrize(("seconds", "frames"), [(0.04, 1), (1.0, 25), (0.99, 25), (2.02, 50), (10, 250)])
def test_overlap_in_frames(seconds: float, frames: int) -> None:
    assert overlap_frames(seconds, 251, 251) == frames


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.01, 10.1])
def test_overlaps_out_of_range(seconds: float) -> None:
    with pytest.raises(InputError, match=rf"overlap: found {seconds:g} s, expected 0.04 to 10 s"):
        overlap_frames(seconds, 500, 500)


@pytest.mark.parametrize(
    ("overlap", "pictures", "following", "named"),
    [
        (25, 24, 125, "the clip has 24, expected at least 25"),
        (25, 125, 25, "the next clip has 25, expected at least 26"),
    ],
)
def test_clips_that_are_shorter_than_the_overlap(overlap: int, pictures: int, following: int, named: str) -> None:
    with pytest.raises(InputError, match=named):
        check_overlap(overlap, pictures, following)
    assert check_overlap(24, 24, 25) == 24


def test_no_overlap_at_all() -> None:
    with pytest.raises(InputError, match="overlap: found 0 frames"):
        check_overlap(0, 10, 10)


def test_fit_length() -> None:
    assert fit_length(torch.ones(1, 3), 5).tolist() == [[1, 1, 1, 0, 0]]
    assert fit_length(torch.ones(1, 3), 2).tolist() == [[1, 1]]
