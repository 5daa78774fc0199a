"""The README's moving picture: clips one after another, each frame with the sound that was heard until then."""

import numpy as np
from PIL import Image

from tools.contact_sheet import CHANNEL_INK, read_clip
from tools.gallery import PICTURES, SIDE, write_moving_picture

RATE = 44_100


def clip(grey, frames=10):
    """A clip of one grey whose left channel is heard in its second half, too short by a hundred samples."""
    waveform = np.zeros((2, frames * RATE // 25 - 100), np.float32)
    waveform[0, waveform.shape[1] // 2 :] = 0.5
    return np.full((frames, 8, 8, 3), grey, np.uint8), 25.0, waveform, RATE


def test_clips_follow_one_another_in_both_files(tmp_path):
    mp4, webp = tmp_path / "a.mp4", tmp_path / "a.webp"
    write_moving_picture([clip(40), clip(200)], mp4, webp)
    frames, fps, waveform, rate = read_clip(mp4)
    assert (len(frames), fps, rate) == (20, 25, RATE)
    assert np.abs(frames[[0, 9, 10, 19], SIDE // 2, SIDE // 2, 0].astype(int) - [40, 40, 200, 200]).max() < 5
    heard = np.flatnonzero(np.abs(waveform[0]) > 0.2) / RATE
    assert [bool(((heard > a) & (heard < a + 0.1)).any()) for a in (0.05, 0.25, 0.45, 0.65)] == [
        False,
        True,
        False,
        True,
    ]
    with Image.open(webp) as picture:
        assert (picture.n_frames, picture.info["loop"]) == (20, 0)
        assert [ink(picture, frame) for frame in (4, 9, 14, 19)] == [False, True, False, True]


def ink(picture, frame):
    """Whether the sound of the left channel is drawn in a frame, which is more than a line of silence."""
    picture.seek(frame)
    strip = np.asarray(picture.convert("RGB"), int)[SIDE:]
    return bool((np.abs(strip - CHANNEL_INK[0]).max(-1) < 40).sum(0).max() > 8)


def test_the_files_that_are_shown_are_small():
    assert (PICTURES / "pony_moving.webp").stat().st_size < 400_000
    assert (PICTURES / "pony_moving.mp4").stat().st_size < 300_000
