"""Driving sound from files and arrays: formats, channels, rates, lengths, and what is no sound."""

import logging
import wave

import av
import numpy as np
import pytest
import torch
from PIL import Image

from happyhorse_core.errors import InputError
from happyhorse_core.media.sound import load_sound, soundtrack_from_array

MODEL_RATE = 51_200
EDGE = 2_000
"""Samples at either end that resampling and lossy codecs may bend."""


def tones(rate, seconds, *frequencies, level=0.5):
    """One sine per channel, [C, N]; a frequency of 0 is silence."""
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([level * np.sin(2 * np.pi * frequency * time) for frequency in frequencies]).astype(np.float32)


def write_sound(path, codec, rate, samples, layout, *, picture=False):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        if picture:
            write_picture(container)
        converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
        block = stream.codec_context.frame_size or 1024
        for start in range(0, samples.shape[1], 960 if codec == "libopus" else block):
            part = samples[:, start : start + (960 if codec == "libopus" else block)]
            frame = av.AudioFrame.from_ndarray(part.T.reshape(1, -1).copy(), format="flt", layout=layout)
            frame.sample_rate, frame.pts = rate, start
            for converted in converter.resample(frame):
                container.mux(stream.encode(converted))
        container.mux(stream.encode(None))
    return path


def write_picture(container):
    stream = container.add_stream("h264", rate=25)
    stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
    for _ in range(5):
        frame = av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_plain_wav(path, rate, samples):
    """A wav file as the standard library writes it, which does not name the loudspeakers."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(samples.shape[0])
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    return path


def assert_tones(sound, seconds, *frequencies, level=0.5, tolerance=1e-3):
    assert sound.dtype == torch.float32
    assert sound.shape[:2] == (1, 2)
    # Lossy codecs may fill up their last block.
    assert 0 <= sound.shape[2] - round(seconds * MODEL_RATE) <= 0.03 * MODEL_RATE
    expected = tones(MODEL_RATE, seconds, *frequencies, level=level)
    error = np.abs(sound[0, :, : expected.shape[1]].numpy() - expected)[:, EDGE:-EDGE]
    assert error.max() <= tolerance


def loudest_frequency(channel):
    spectrum = torch.fft.rfft(channel * torch.hann_window(len(channel))).abs()
    return spectrum.argmax().item() * MODEL_RATE / len(channel)


@pytest.mark.parametrize(
    ("name", "codec", "rate", "tolerance"),
    [
        ("a.wav", "pcm_s16le", 44_100, 1e-4),
        ("a.wav", "pcm_f32le", 96_000, 1e-4),
        ("a.wav", "pcm_u8", 22_050, 0.01),
        ("a.flac", "flac", 48_000, 1e-4),
        ("a.mp3", "libmp3lame", 44_100, 0.05),
        ("a.ogg", "libopus", 48_000, 0.05),
    ],
)
def test_stereo_files_keep_their_channels_and_their_time(tmp_path, name, codec, rate, tolerance):
    write_sound(tmp_path / name, codec, rate, tones(rate, 1.2, 440, 660), "stereo")
    assert_tones(load_sound(str(tmp_path / name)), 1.2, 440, 660, tolerance=tolerance)


@pytest.mark.parametrize(("name", "picture"), [("a.m4a", False), ("video.mp4", True), ("video.mkv", True)])
def test_aac_alone_and_in_a_video(tmp_path, name, picture):
    write_sound(tmp_path / name, "aac", 44_100, tones(44_100, 1.5, 440, 660), "stereo", picture=picture)
    sound = load_sound(tmp_path / name)
    # Matroska does not say how much of the first block to leave out, and FFmpeg before version 8 does not know.
    assert 0 <= sound.shape[2] / MODEL_RATE - 1.5 <= 0.04
    assert loudest_frequency(sound[0, 0]) == pytest.approx(440, abs=1)
    assert loudest_frequency(sound[0, 1]) == pytest.approx(660, abs=1)


def test_mono_at_a_telephone_s_rate_is_doubled(tmp_path):
    write_sound(tmp_path / "a.wav", "pcm_s16le", 8_000, tones(8_000, 1, 300), "mono")
    sound = load_sound(tmp_path / "a.wav")
    assert_tones(sound, 1, 300, 300)
    assert torch.equal(sound[:, 0], sound[:, 1])


def test_the_model_s_own_rate_is_left_alone():
    samples = tones(MODEL_RATE, 0.3, 440, 660)
    assert np.array_equal(soundtrack_from_array(samples, MODEL_RATE)[0].numpy(), samples)


@pytest.mark.parametrize(
    ("speakers", "left", "right"),
    [
        ((440, 0, 0, 0, 0, 0), 0.5, 0),
        ((0, 440, 0, 0, 0, 0), 0, 0.5),
        ((0, 0, 440, 0, 0, 0), 0.5 * 0.5**0.5, 0.5 * 0.5**0.5),
        ((0, 0, 0, 440, 0, 0), 0, 0),
        ((0, 0, 0, 0, 440, 0), 0.5 * 0.5**0.5, 0),
    ],
)
def test_surround_is_mixed_down_by_its_loudspeakers(tmp_path, speakers, left, right):
    samples = tones(48_000, 0.5, *speakers)
    named = write_sound(tmp_path / "named.wav", "pcm_s16le", 48_000, samples, "5.1")
    nameless = write_plain_wav(tmp_path / "nameless.wav", 48_000, samples)
    for path in (named, nameless):
        peaks = load_sound(path)[0, :, EDGE:-EDGE].abs().amax(dim=1)
        assert peaks.tolist() == pytest.approx([left, right], abs=1e-3)


def test_a_mix_that_would_clip_is_turned_down_as_a_whole():
    sound = soundtrack_from_array(tones(MODEL_RATE, 0.5, *[440] * 6, level=0.9), MODEL_RATE)
    assert sound.abs().max() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("count", [3, 8, 9, 24])
def test_nameless_channels_are_mixed_evenly(tmp_path, count):
    samples = tones(22_050, 0.5, *[440] * count)
    samples[0] = 0
    write_plain_wav(tmp_path / "many.wav", 22_050, samples)
    assert_tones(load_sound(tmp_path / "many.wav"), 0.5, 440, 440, level=0.5 * (count - 1) / count)


def test_surround_in_planes_of_eight_channels(tmp_path):
    samples = tones(48_000, 0.5, 440, 0, 0, 0, 0, 0, 0, 660)
    write_sound(tmp_path / "a.flac", "flac", 48_000, samples, "7.1")
    write_sound(tmp_path / "a.ogg", "libopus", 48_000, samples, "7.1")
    for name in ("a.flac", "a.ogg"):
        sound = load_sound(tmp_path / name)
        assert loudest_frequency(sound[0, 0]) == pytest.approx(440, abs=2)
        assert loudest_frequency(sound[0, 1]) == pytest.approx(660, abs=2)


def test_a_name_that_looks_like_an_address_is_a_file(tmp_path, monkeypatch):
    write_plain_wav(tmp_path / "http:sound.wav", 16_000, tones(16_000, 0.5, 440))
    monkeypatch.chdir(tmp_path)
    assert_tones(load_sound("http:sound.wav"), 0.5, 440, 440)


# Arrays


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 48_000, 192_000])
def test_arrays_and_files_go_the_same_way(tmp_path, rate):
    samples = (tones(rate, 0.7, 440, 660) * 32767).round() / 32768
    write_plain_wav(tmp_path / "a.wav", rate, samples * (32768 / 32767))
    from_array = soundtrack_from_array(torch.from_numpy(samples.astype(np.float32))[None], rate)
    torch.testing.assert_close(from_array, load_sound(tmp_path / "a.wav"))
    assert from_array.shape[2] == round(samples.shape[1] * MODEL_RATE / rate)
    assert_tones(from_array, samples.shape[1] / rate, 440, 660)


def test_blocks_of_the_resampler_leave_no_seam():
    assert_tones(soundtrack_from_array(tones(16_000, 21.3, 440, 660), 16_000), 21.3, 440, 660)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((100,), "shape [100]"),
        ((2, 2, 6000), "shape [2, 2, 6000]"),
        ((2, 0), "empty"),
        ((0, 6000), "empty"),
    ],
)
def test_arrays_of_other_shapes_are_refused(shape, words):
    with pytest.raises(InputError) as caught:
        soundtrack_from_array(np.zeros(shape, np.float32), 48_000)
    assert words in str(caught.value)


@pytest.mark.parametrize("rate", [0, -44_100, 10, 10_000_000, float("nan")])
def test_absurd_rates_are_refused(rate):
    with pytest.raises(InputError, match="sample rate"):
        soundtrack_from_array(np.zeros((2, 6000), np.float32), rate)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_no_numbers_are_refused(value):
    samples = tones(MODEL_RATE, 0.1, 440, 440)
    samples[1, 7] = value
    with pytest.raises(InputError, match="not numbers"):
        soundtrack_from_array(samples, MODEL_RATE, name="my sound")


# Lengths and silence


def test_more_than_thirty_seconds_are_cut_and_said(tmp_path, caplog):
    write_plain_wav(tmp_path / "long.wav", 16_000, tones(16_000, 33, 440))
    with caplog.at_level(logging.WARNING):
        sound = load_sound(tmp_path / "long.wav")
    assert_tones(sound, 30, 440, 440)
    assert sound.shape[2] == 30 * MODEL_RATE
    assert "long.wav is longer than 30 s" in caplog.text


def test_exactly_the_limit_is_not_cut(caplog):
    with caplog.at_level(logging.WARNING):
        sound = soundtrack_from_array(tones(16_000, 2, 440), 16_000, max_seconds=2)
        shorter = soundtrack_from_array(tones(16_000, 2, 440), 16_000, max_seconds=0.5)
    assert (sound.shape[2], shorter.shape[2]) == (2 * MODEL_RATE, MODEL_RATE // 2)
    assert [record.getMessage() for record in caplog.records] == [
        "audio: the sound is longer than 0.5 s; only its first 0.5 s are used."
    ]


def test_silence_is_let_through_and_said(tmp_path, caplog):
    write_plain_wav(tmp_path / "silent.wav", 44_100, tones(44_100, 1, 0, 0))
    with caplog.at_level(logging.WARNING):
        sound = load_sound(tmp_path / "silent.wav")
    assert not sound.any()
    assert "silent.wav is silent" in caplog.text


def test_less_than_one_latent_is_refused():
    with pytest.raises(InputError, match=r"lasts 0\.03998 s, expected at least 0\.04 s"):
        soundtrack_from_array(np.ones((2, 1763), np.float32) * 0.1, 44_100)
    assert soundtrack_from_array(np.ones((2, 1764), np.float32) * 0.1, 44_100).shape == (1, 2, 2048)


# Files that are refused, or read in part


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        load_sound(path)
    for word in ("audio: ", str(path), *words):
        assert word in str(caught.value)


def test_missing_folder_and_empty(tmp_path):
    (tmp_path / "empty.wav").touch()
    refused(tmp_path / "none.wav", "does not exist")
    refused(tmp_path, "is a folder")
    refused(tmp_path / "empty.wav", "empty file")


@pytest.mark.parametrize("name", ["text.wav", "text.mp3", "text.txt", "text"])
def test_text(tmp_path, name):
    (tmp_path / name).write_text("This is no sound. " * 100)
    refused(tmp_path / name)


def test_a_picture(tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "a.png")
    refused(tmp_path / "a.png", "not a sound file")


def test_a_video_without_sound(tmp_path):
    with av.open(str(tmp_path / "mute.mp4"), "w") as container:
        write_picture(container)
    refused(tmp_path / "mute.mp4", "no sound track")


def test_a_header_without_sound(tmp_path):
    write_plain_wav(tmp_path / "a.wav", 44_100, np.zeros((2, 0), np.float32))
    refused(tmp_path / "a.wav")


def test_an_mp4_without_its_end(tmp_path):
    write_sound(tmp_path / "a.m4a", "aac", 44_100, tones(44_100, 1, 440, 660), "stereo")
    content = (tmp_path / "a.m4a").read_bytes()
    (tmp_path / "a.m4a").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "a.m4a", "not a sound file")


def test_rubbish_after_half_an_mp3_is_left_out_and_said(tmp_path, caplog):
    path = write_sound(tmp_path / "a.mp3", "libmp3lame", 44_100, tones(44_100, 2, 440, 660), "stereo")
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + b"TAGjunkjunkjunk" * 40)
    with caplog.at_level(logging.WARNING):
        sound = load_sound(path)
    assert 0.9 * MODEL_RATE < sound.shape[2] < 1.1 * MODEL_RATE
    assert "a.mp3: damaged packets left out" in caplog.text
