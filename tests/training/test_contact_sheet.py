"""The contact sheet of a clip: the right pictures in the right places, and the waveform on their time axis."""

import numpy as np
import pytest
from PIL import Image

from happyhorse_core.media.video_file import Mp4Writer
from tools.contact_sheet import CHANNEL_INK, MARGIN, PAPER, contact_sheet, main, read_clip


def grey_frames(count, size=10):
    """Picture k is of grey 10 k."""
    return np.broadcast_to((10 * np.arange(count, dtype=np.uint8))[:, None, None, None], (count, size, size, 3))


def sheet_of(*arguments, **words):
    path = arguments[2]
    contact_sheet(*arguments, **words)
    with Image.open(path) as picture:
        return np.array(picture)


def inked(sheet, channel):
    """Columns, as parts of the sheet's inner width, where a channel's ink stands more than a line high."""
    high = (sheet == CHANNEL_INK[channel]).all(-1).sum(0) > 3
    return (np.flatnonzero(high) - MARGIN) / (sheet.shape[1] - 2 * MARGIN)


def test_pictures_stand_evenly_from_the_first_on(tmp_path):
    sheet = sheet_of(grey_frames(16), None, tmp_path / "a.png", columns=4)
    cell = (sheet.shape[1] - 2 * MARGIN) // 4
    row = sheet[MARGIN + cell // 2]
    assert [int(row[MARGIN + cell * k + cell // 2, 0]) for k in range(4)] == [0, 40, 80, 120]


def test_the_second_row_goes_on_where_the_first_ends(tmp_path):
    wave = np.zeros((2, 8000), np.float32)
    wave[0, 6000:7000] = 0.5
    sheet = sheet_of(grey_frames(8), wave, tmp_path / "a.png", columns=4, rows=2)
    half = sheet.shape[0] // 2
    assert not len(inked(sheet[:half], 0))
    places = inked(sheet[half:], 0)
    assert (places.min(), places.max()) == pytest.approx((0.5, 0.75), abs=0.01)
    cell = (sheet.shape[1] - 2 * MARGIN) // 4
    assert sheet[half + 2 * MARGIN, MARGIN + cell // 2, 0] == 40


def test_a_sound_stands_below_the_picture_of_its_time(tmp_path):
    wave = np.zeros((2, 1000), np.float32)
    wave[1, 250:500] = -0.3
    sheet = sheet_of(grey_frames(8), wave, tmp_path / "a.png")
    assert not len(inked(sheet, 0))
    places = inked(sheet, 1)
    assert (places.min(), places.max()) == pytest.approx((0.25, 0.5), abs=0.01)


@pytest.mark.parametrize("samples", [600, 2000])
def test_with_a_rate_sound_keeps_the_time_of_the_pictures(tmp_path, samples):
    wave = np.zeros((2, samples), np.float32)
    wave[0, 500:510] = 1
    # 25 pictures last a second, 1000 samples.
    sheet = sheet_of(grey_frames(25), wave, tmp_path / "a.png", rate=1000)
    assert inked(sheet, 0).mean() == pytest.approx(0.505, abs=0.01)


def test_silence_is_a_line_and_no_sound_is_left_out(tmp_path):
    silent = sheet_of(grey_frames(8), np.zeros((2, 100), np.float32), tmp_path / "a.png")
    without = sheet_of(grey_frames(8), None, tmp_path / "b.png")
    assert (silent == CHANNEL_INK[0]).all(-1).sum() > 1000 and not len(inked(silent, 0))
    assert len(without) < len(silent)
    assert (without[-MARGIN:] == PAPER).all()


@pytest.mark.parametrize(
    ("frames", "wave", "words"),
    [
        (np.zeros((4, 8, 8), np.uint8), None, "frames: found"),
        (np.zeros((4, 8, 8, 3), np.float32), None, "frames: found float32"),
        (np.zeros((0, 8, 8, 3), np.uint8), None, "frames: found"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros(10, np.float32), "waveform: found"),
        (np.zeros((4, 8, 8, 3), np.uint8), np.zeros((2, 0), np.float32), "waveform: found"),
    ],
)
def test_what_is_no_clip_is_refused_and_nothing_written(tmp_path, frames, wave, words):
    with pytest.raises(ValueError, match=words):
        contact_sheet(frames, wave, tmp_path / "a.png")
    assert not list(tmp_path.iterdir())


def write_clip(path, sound):
    with Mp4Writer(path, 64, 64, sample_rate=44_100) as writer:
        frames = np.zeros((25, 64, 64, 3), np.uint8)
        frames[...] = (200, 40, 90)
        writer.add_frames(frames)
        if sound:
            wave = np.zeros((2, 44_100), np.float32)
            wave[0, 26_460:37_485] = 0.5 * np.sin(np.arange(11_025) / 20)
            writer.add_sound(wave)
    return path


def test_a_file_is_read_in_its_colours_and_its_time(tmp_path):
    frames, fps, wave, rate = read_clip(write_clip(tmp_path / "a.mp4", sound=True))
    assert (frames.shape, fps, rate) == ((25, 64, 64, 3), 25, 44_100)
    assert np.abs(frames.mean((0, 1, 2)) - (200, 40, 90)).max() < 4
    heard = np.flatnonzero(np.abs(wave[0]) > 0.2) / rate
    assert (heard.min(), heard.max()) == pytest.approx((0.6, 0.85), abs=0.02)


def test_the_command_line_makes_a_sheet_of_a_file(tmp_path, capsys):
    assert main([str(write_clip(tmp_path / "a.mp4", sound=True)), str(tmp_path / "a.png"), "--rows", "2"]) == 0
    with Image.open(tmp_path / "a.png") as picture:
        sheet = np.array(picture)
    assert not len(inked(sheet[: len(sheet) // 2], 0)) and len(inked(sheet[len(sheet) // 2 :], 0))
    assert "a.png" in capsys.readouterr().out


def test_the_command_line_tells_what_is_wrong_with_a_file(tmp_path, capsys):
    (tmp_path / "a.mp4").write_text("not a clip", encoding="utf-8")
    for name in ("a.mp4", "missing.mp4"):
        assert main([str(tmp_path / name), str(tmp_path / "a.png")]) == 1
        assert name in capsys.readouterr().err
    assert not (tmp_path / "a.png").exists()
