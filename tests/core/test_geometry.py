"""Sizes and lengths on their grids."""

import pytest
import torch

from happyhorse_core.errors import HappyHorseError, InputError
from happyhorse_core.geometry import (
    ClipShape,
    frames_from_seconds,
    frames_of_latent,
    latent_frames,
    size_for_picture,
    snap_frames,
    snap_size,
)
from happyhorse_core.memory import available_bytes, require, weight_bytes


def test_frames_and_latents_agree() -> None:
    for frames in range(2, 752):
        snapped = snap_frames(frames)
        assert snapped % 4 == 1
        assert frames_of_latent(latent_frames(snapped)) == snapped
        assert 0 <= frames - snapped < 4 or snapped == 5


@pytest.mark.parametrize(("seconds", "frames"), [(5, 125), (1, 25), (0.04, 5), (30, 749), (2.5, 61)])
def test_seconds(seconds: float, frames: int) -> None:
    assert frames_from_seconds(seconds) == frames


@pytest.mark.parametrize("seconds", [0, -1, 30.1, float("nan"), float("inf")])
def test_impossible_seconds(seconds: float) -> None:
    with pytest.raises(InputError, match="seconds"):
        frames_from_seconds(seconds)


@pytest.mark.parametrize("frames", [-5, 0, 1, 752])
def test_impossible_frames(frames: int) -> None:
    with pytest.raises(InputError, match="frames"):
        snap_frames(frames)


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
    shape = ClipShape(448, 256, 125)
    assert shape.video_latent == (48, 32, 16, 28)
    assert shape.audio_latent == (64, 125)
    assert shape.seconds == 5


def test_too_little_memory_is_said_before_loading() -> None:
    needed = weight_bytes({"a": (1024, 1024, 1024)}, torch.bfloat16)
    with pytest.raises(HappyHorseError, match=r"at least 2\.0 GiB and 1\.0 GiB"):
        require(needed, 2**30, "a clip")
    require(needed, needed, "a clip")
    require(needed, None, "a clip")
    free = available_bytes(torch.device("cpu"))
    assert free is None or free > 2**20
