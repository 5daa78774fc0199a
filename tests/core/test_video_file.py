"""Mp4 files: what a player finds in them, and that they are there whole or not at all."""

import json
import os
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest

from happyhorse_core.errors import InputError, OutputError
from happyhorse_core.media.video_file import Mp4Writer

AAC_FRAME = 1024


def pictures(count, width, height):
    """Each frame of one grey that rises from frame to frame, with a red left half."""
    frames = np.empty((count, height, width, 3), np.uint8)
    frames[:] = np.linspace(40, 200, count)[:, None, None, None]
    frames[:, :, : width // 2] = (200, 30, 60)
    return frames


def sound(samples, rate=44_100):
    time = np.arange(samples) / rate
    return np.stack([0.5 * np.sin(2 * np.pi * 440 * time), 0.25 * np.sin(2 * np.pi * 660 * time)]).astype(np.float32)


def write(path, width=64, height=48, frames=6, samples=None, **options):
    with Mp4Writer(path, width, height, **options) as writer:
        writer.add_frames(pictures(frames, width, height))
        writer.add_sound(sound(frames * 1764 if samples is None else samples))
    return path


def decode(path):
    with av.open(str(path)) as container:
        images = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    with av.open(str(path)) as container:
        waveform = np.concatenate([frame.to_ndarray() for frame in container.decode(audio=0)], axis=1)
    return np.stack(images), waveform


def seconds(stream):
    return float(stream.duration * stream.time_base)


@pytest.mark.parametrize(
    ("width", "height", "frames"), [(32, 32, 1), (64, 96, 2), (96, 64, 13), (2, 2, 5), (64, 32, 126), (32, 32, 751)]
)
def test_what_a_player_finds(tmp_path, width, height, frames):
    path = write(tmp_path / "a.mp4", width, height, frames)
    with av.open(str(path)) as container:
        assert len(container.streams) == 2
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec_context.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (video.width, video.height, video.frames) == (width, height, frames)
        assert video.average_rate == 25
        assert (audio.codec_context.name, audio.rate, audio.layout.name) == ("aac", 44_100, "stereo")
        assert seconds(video) == pytest.approx(frames / 25, abs=1e-4)
        assert seconds(audio) == pytest.approx(frames / 25, abs=1e-4)
        assert (video.start_time, audio.start_time) == (0, 0)
    images, waveform = decode(path)
    assert len(images) == frames
    assert 0 <= waveform.shape[1] - frames * 1764 < AAC_FRAME, "only the codec's last block may be longer"


@pytest.mark.parametrize("samples", [0, 1, 5_000, 6 * 1764 - 1, 6 * 1764 + 1, 50_000])
def test_sound_is_cut_or_filled_to_the_pictures_length(tmp_path, samples):
    path = write(tmp_path / "a.mp4", samples=samples)
    with av.open(str(path)) as container:
        assert seconds(container.streams.audio[0]) == pytest.approx(6 / 25, abs=1e-4)
    _, waveform = decode(path)
    if samples == 5_000:
        assert np.abs(waveform[0, 2_000:4_500]).max() > 0.4
        assert np.abs(waveform[:, 7_200:]).max() < 0.02


def test_a_clip_to_which_nobody_added_sound_has_a_silent_track(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", 64, 48) as writer:
        writer.add_frames(pictures(6, 64, 48))
    _, waveform = decode(tmp_path / "a.mp4")
    assert waveform.shape[1] >= 6 * 1764
    assert not waveform.any()


def test_pictures_and_sound_survive(tmp_path):
    path = write(tmp_path / "a.mp4", frames=50)
    images, waveform = decode(path)
    expected = pictures(50, 64, 48)
    for columns in (slice(4, 28), slice(36, 60)):
        error = images[:, 4:-4, columns].astype(int) - expected[:, 4:-4, columns]
        assert np.abs(error).max() <= 6
    heard, played = waveform[:, 20_000:70_000], sound(50 * 1764)[:, 20_000:70_000]
    assert np.abs(heard - played).max() < 0.05, "in step, too: a shift of five samples would show"


def test_colours_are_named_so_that_every_player_shows_the_same(tmp_path):
    with av.open(str(write(tmp_path / "a.mp4"))) as container:
        context = container.streams.video[0].codec_context
        bt709, limited = 1, 1
        assert (context.colorspace, context.color_primaries, context.color_trc) == (bt709, bt709, bt709)
        assert context.color_range == limited


def test_pieces_in_any_order_make_the_same_file(tmp_path):
    whole = write(tmp_path / "whole.mp4", frames=9).read_bytes()
    frames, waveform = pictures(9, 64, 48), sound(9 * 1764)
    with Mp4Writer(tmp_path / "pieces.mp4", 64, 48) as writer:
        writer.add_sound(waveform[:, :700])
        writer.add_frames(frames[:0])
        writer.add_frames(frames[:1])
        writer.add_sound(waveform[:, 700:])
        writer.add_frames(frames[1:])
    assert (tmp_path / "pieces.mp4").read_bytes() == whole


def test_equal_frames_make_the_same_file_whatever_memory_held_before(tmp_path):
    """With x264's macroblock tree this size gave 5 different files of 15."""
    height, width = np.mgrid[:64, :96]
    waves = [np.sin((width + 3 * t) / 17) * np.cos((height - 2 * t) / 23) for t in range(25)]
    frames = np.stack([(128 + 100 * wave).astype(np.uint8) for wave in waves])[..., None].repeat(3, axis=3)
    files, held = set(), []
    for round_ in range(25):
        held = [*held[-3:], np.full(10_000 + 17_321 * round_, round_ * 10, np.uint8)]
        with Mp4Writer(tmp_path / "a.mp4", 96, 64) as writer:
            writer.add_frames(frames)
        files.add((tmp_path / "a.mp4").read_bytes())
    assert len(files) == 1


def test_frames_may_be_views(tmp_path):
    frames = pictures(6, 64, 48)
    write(tmp_path / "a.mp4")
    with Mp4Writer(tmp_path / "b.mp4", 64, 48) as writer:
        writer.add_frames(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)).transpose(0, 2, 3, 1))
        writer.add_sound(sound(2 * 6 * 1764)[:, : 6 * 1764])
    assert (tmp_path / "b.mp4").read_bytes() == (tmp_path / "a.mp4").read_bytes()


def test_loud_sound_is_clipped_not_refused(tmp_path):
    with Mp4Writer(tmp_path / "a.mp4", 64, 48) as writer:
        writer.add_frames(pictures(6, 64, 48))
        writer.add_sound(sound(6 * 1764) * 1000)
    assert 0.9 < np.abs(decode(tmp_path / "a.mp4")[1]).max() < 2


def test_settings_can_be_read_back(tmp_path):
    settings = {
        "prompt": 'Ein "Pferd" 馬 lacht;\nzweite = Zeile\\',
        "seed": "7",
        "workflow": json.dumps({"nodes": list(range(5_000))}),
    }
    with av.open(str(write(tmp_path / "a.mp4", metadata=settings))) as container:
        assert {name: container.metadata[name] for name in settings} == settings


def test_the_index_comes_first_so_that_browsers_start_at_once(tmp_path):
    content, boxes, place = write(tmp_path / "a.mp4").read_bytes(), [], 0
    while place < len(content):
        size, kind = struct.unpack(">I4s", content[place : place + 8])
        boxes.append(kind)
        place += size
    assert boxes.index(b"moov") < boxes.index(b"mdat")


def test_other_rates(tmp_path):
    with av.open(str(write(tmp_path / "a.mp4", frames=10, samples=48_000, fps=10, sample_rate=48_000))) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.average_rate, audio.rate) == (10, 48_000)
        assert seconds(video) == seconds(audio) == 1


# Whole or not at all


def folder(path):
    return sorted(child.name for child in path.iterdir())


def test_nothing_but_the_file_is_left(tmp_path):
    write(tmp_path / "a.mp4")
    assert folder(tmp_path) == ["a.mp4"]


@pytest.mark.skipif(sys.platform == "win32", reason="no such permissions")
def test_the_file_has_the_permissions_of_any_new_file(tmp_path):
    (tmp_path / "other").touch()
    assert write(tmp_path / "a.mp4").stat().st_mode == (tmp_path / "other").stat().st_mode


@pytest.mark.parametrize("before", [None, b"an older clip"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("frames", [0, 1, 30])
def test_an_exception_leaves_the_folder_as_it_was(tmp_path, before, error, frames):
    path = tmp_path / "a.mp4"
    if before:
        path.write_bytes(before)
    with pytest.raises(error), Mp4Writer(path, 64, 48) as writer:
        writer.add_frames(pictures(frames, 64, 48))
        writer.add_sound(sound(frames * 1764))
        raise error
    assert folder(tmp_path) == (["a.mp4"] if before else [])
    assert not before or path.read_bytes() == before


def test_an_older_file_stays_until_the_new_one_is_finished(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_bytes(b"an older clip")
    with Mp4Writer(path, 64, 48) as writer:
        writer.add_frames(pictures(30, 64, 48))
        assert path.read_bytes() == b"an older clip"
    assert len(decode(path)[0]) == 30


def test_a_writer_that_is_never_used_leaves_nothing(tmp_path):
    Mp4Writer(tmp_path / "a.mp4", 64, 48)
    assert folder(tmp_path) == []


def test_no_pictures(tmp_path):
    with pytest.raises(OutputError, match="no frames"), Mp4Writer(tmp_path / "a.mp4", 64, 48) as writer:
        writer.add_sound(sound(1764))
    assert folder(tmp_path) == []


def test_a_folder_that_goes_away_meanwhile(tmp_path):
    place = tmp_path / "out"
    place.mkdir()
    with pytest.raises(OutputError, match=r"a\.mp4: writing failed"), Mp4Writer(place / "a.mp4", 64, 48) as writer:
        writer.add_frames(pictures(3, 64, 48))
        for child in place.iterdir():
            child.unlink()
        place.rmdir()
    assert folder(tmp_path) == []


UNWRITABLE = [
    ("missing/a.mp4", "does not exist"),
    ("file/a.mp4", "does not exist"),
    ("folder.mp4", "is not a file"),
    ("a.avi", "ends in .mp4"),
    ("a", "ends in .mp4"),
    ("/", "ends in .mp4"),
    ("x" * 300 + ".mp4", "can't write"),
]
if Path("/proc/self").exists():
    UNWRITABLE.append(("/proc/a.mp4", "can't write /proc/a.mp4"))


@pytest.mark.parametrize(("name", "words"), UNWRITABLE)
def test_unwritable_places_are_refused_at_once(tmp_path, name, words):
    (tmp_path / "file").touch()
    (tmp_path / "folder.mp4").mkdir()
    before = folder(tmp_path)
    with pytest.raises(OutputError) as caught:
        Mp4Writer(tmp_path / name, 64, 48)
    assert words in str(caught.value)
    assert folder(tmp_path) == before


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_devices_and_pipes_are_not_replaced(tmp_path):
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(OutputError, match="not a file"):
        Mp4Writer(tmp_path / "pipe.mp4", 64, 48)


def test_relative_names_stay_where_they_were_when_the_folder_changes(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    with Mp4Writer("a.mp4", 64, 48) as writer:
        monkeypatch.chdir(tmp_path / "elsewhere")
        writer.add_frames(pictures(3, 64, 48))
    assert folder(tmp_path) == ["a.mp4", "elsewhere"]
    assert folder(tmp_path / "elsewhere") == []


# What it is given


@pytest.mark.parametrize("size", [(33, 32), (32, 33), (0, 32), (-2, 32)])
def test_sizes_that_can_not_be_encoded(tmp_path, size):
    with pytest.raises(InputError, match=f"{size[0]} x {size[1]}"):
        Mp4Writer(tmp_path / "a.mp4", *size)


@pytest.mark.parametrize(
    "frames",
    [np.zeros((2, 48, 64, 3), np.float32), np.zeros((2, 64, 48, 3), np.uint8), np.zeros((48, 64, 3), np.uint8)],
)
def test_frames_of_another_kind(tmp_path, frames):
    with pytest.raises(ValueError, match="expected uint8"), Mp4Writer(tmp_path / "a.mp4", 64, 48) as writer:
        writer.add_frames(frames)
    assert folder(tmp_path) == []


def test_sound_of_another_shape(tmp_path):
    with pytest.raises(ValueError, match="expected"), Mp4Writer(tmp_path / "a.mp4", 64, 48) as writer:
        writer.add_sound(np.zeros((1, 2, 100), np.float32))


def test_sound_that_is_not_numbers(tmp_path):
    broken = sound(1764)
    broken[1, 5] = np.nan
    with pytest.raises(InputError, match="not numbers"), Mp4Writer(tmp_path / "a.mp4", 64, 48) as writer:
        writer.add_sound(broken)
    assert folder(tmp_path) == []
