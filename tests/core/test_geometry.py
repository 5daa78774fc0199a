"""Sizes and lengths on their grids."""

import pytest
import torch

from happyhorse_core.errors import HappyHorseError, InputError
from happyhorse_core.geometry import (
    ClipShape,
    check_frames,
    frames_from_seconds,
    latent_frames,
    samples_of_frames,
    size_for_picture,
    snap_size,
)
from happyhorse_core.memory import available_bytes, require


def test_pictures_are_what_the_latents_decode_to() -> None:
    for frames in range(5, 752):
        pictures = ClipShape(32, 32, check_frames(frames)).video_frames
        assert pictures % 4 == 1
        assert 0 <= frames - pictures < 4
        assert latent_frames(pictures) == latent_frames(frames)


@pytest.mark.parametrize(
    ("seconds", "frames", "pictures"), [(5, 126, 125), (4, 101, 101), (0.16, 5, 5), (30, 751, 749)]
)
def test_seconds(seconds: float, frames: int, pictures: int) -> None:
    shape = ClipShape(32, 32, frames_from_seconds(seconds))
    assert (shape.frames, shape.video_frames) == (frames, pictures)


@pytest.mark.parametrize("seconds", [0, 0.1, -1, 30.1, float("nan"), float("inf")])
def test_impossible_seconds(seconds: float) -> None:
    with pytest.raises(InputError, match="seconds"):
        frames_from_seconds(seconds)


@pytest.mark.parametrize("frames", [-5, 0, 1, 4, 752])
def test_impossible_frames(frames: int) -> None:
    with pytest.raises(InputError, match="frames"):
        check_frames(frames)


def test_sizes_snap_down_to_32() -> None:
    assert snap_size(480, 272) == (480, 256)
    assert snap_size(32, 63) == (32, 32)
    for bad in ((0, 64), (64, -32), (31, 64), (64, 5000)):
        with pytest.raises(InputError, match="width|height"):
            snap_size(*bad)


@pytest.mark.parametrize("picture", [(1920, 1080), (1080, 1920), (50, 4000), (3000, 3000), (448, 256)])
def test_a_picture_chooses_a_size_of_its_shape(picture: tuple[int, int]) -> None:
    width, height = size_for_picture(*picture)
    assert snap_size(width, height) == (width, height)
    assert width * height <= 2.5 * 448 * 256
    assert (width > height) == (picture[0] > picture[1])


def test_the_shape_of_a_clip() -> None:
    shape = ClipShape(448, 256, 126)
    assert shape.video_latent == (48, 32, 16, 28)
    assert shape.audio_latent == (64, 126)
    assert shape.seconds == 5


def test_too_little_memory_is_said_before_loading() -> None:
    needed = 2 * 2**30
    with pytest.raises(HappyHorseError, match=r"at least 2\.0 GiB and 1\.0 GiB"):
        require(needed, 2**30, "a clip")
    require(needed, needed, "a clip")
    require(needed, None, "a clip")
    free = available_bytes(torch.device("cpu"))
    assert free is None or free > 2**20


def test_samples_of_frames_cover_them_and_no_more() -> None:
    assert samples_of_frames(125, 44_100) == 125 * 1764
    for rate in (8_000, 11_025, 22_050, 44_056, 48_000):
        for frames in range(1, 200):
            samples = samples_of_frames(frames, rate)
            assert samples - 1 < frames * rate / 25 <= samples
