"""Sound as people have it: put together, with gaps, from playlists and videos. Judged by pitch, length and level."""

import socket
import wave
from fractions import Fraction

import av
import numpy as np
import pytest

from happyhorse_core.errors import InputError
from happyhorse_core.media.sound import load_sound

MODEL_RATE = 51_200


def tone(rate, seconds, *frequencies, level=0.5):
    """One sine per channel, [C, N]."""
    time = np.arange(round(rate * seconds)) / rate
    return np.stack([level * np.sin(2 * np.pi * frequency * time) for frequency in frequencies]).astype(np.float32)


def add_sound(container, stream, rate, samples, layout, *, start=0.0):
    """Encodes and muxes samples whose first one is at ``start`` seconds."""
    converter = av.AudioResampler(format=stream.codec_context.format, layout=layout, rate=rate)
    block = stream.codec_context.frame_size or 1024
    for first in range(0, samples.shape[1], block):
        part = samples[:, first : first + block]
        frame = av.AudioFrame.from_ndarray(part.T.reshape(1, -1).copy(), format="flt", layout=layout)
        frame.sample_rate, frame.pts, frame.time_base = rate, round(start * rate) + first, Fraction(1, rate)
        for converted in converter.resample(frame):
            container.mux(stream.encode(converted))


def write_sound(path, codec, rate, samples, layout="stereo"):
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        add_sound(container, stream, rate, samples, layout)
        container.mux(stream.encode(None))
    return path


def pitch(channel):
    """Hz of the loudest frequency."""
    spectrum = np.abs(np.fft.rfft(channel * np.hanning(len(channel))))
    return spectrum.argmax() * MODEL_RATE / len(channel)


def level(channel):
    return float(np.sqrt(np.mean(np.square(channel))))


def assert_tone(part, left, right, *, loudness=0.5, tolerance=0.03):
    """[2, N]: a sine in each channel, of this pitch and amplitude, away from the ends."""
    part = part[:, 2000:-2000]
    for channel, frequency in zip(part, (left, right), strict=True):
        assert pitch(channel) == pytest.approx(frequency, abs=4)
        assert level(channel) == pytest.approx(loudness / 2**0.5, abs=tolerance)


def read(path):
    return load_sound(path)[0].numpy()


@pytest.mark.parametrize(
    ("name", "codec", "rate", "longer"),
    [
        ("a.MP3", "libmp3lame", 44_100, 0),
        ("a.m4a", "aac", 48_000, 0.03),
        ("a.opus", "libopus", 48_000, 0),
        ("a.ac3", "ac3", 48_000, 0.04),
        ("a.wav", "pcm_s24le", 96_000, 0),
        ("a.wav", "pcm_f32le", 8_000, 0),
        ("a.m4a", "alac", 44_100, 0),
        ("a.aiff", "pcm_s16be", 44_100, 0),
        ("sound with spaces and \u00e4\u65e5.flac", "flac", 44_100, 0),
    ],
)
def test_what_recorders_write(tmp_path, name, codec, rate, longer):
    write_sound(tmp_path / name, codec, rate, tone(rate, 1, 440, 660))
    sound = read(tmp_path / name)
    assert 0 <= sound.shape[1] / MODEL_RATE - 1 <= longer + 0.001
    assert_tone(sound[:, :MODEL_RATE], 440, 660)


@pytest.mark.parametrize("name", ["a.mka", "a.nut"])
def test_a_gap_in_the_timestamps_is_silence(tmp_path, name):
    with av.open(str(tmp_path / name), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        add_sound(container, stream, 48_000, tone(48_000, 1, 440, 660), "stereo", start=3)
        add_sound(container, stream, 48_000, tone(48_000, 1, 880, 550), "stereo", start=4.5)
        container.mux(stream.encode(None))
    sound = read(tmp_path / name)
    assert sound.shape[1] / MODEL_RATE == pytest.approx(2.5, abs=0.01)
    assert_tone(sound[:, :MODEL_RATE], 440, 660)
    assert level(sound[:, int(1.1 * MODEL_RATE) : int(1.4 * MODEL_RATE)]) < 1e-3
    assert_tone(sound[:, int(1.55 * MODEL_RATE) :], 880, 550)


def test_ogg_files_one_after_the_other_keep_their_pitch_and_level(tmp_path):
    first = write_sound(tmp_path / "1.ogg", "flac", 44_100, tone(44_100, 1, 440, 660))
    second = write_sound(tmp_path / "2.ogg", "flac", 44_100, tone(44_100, 1, 880, 550))
    (tmp_path / "both.ogg").write_bytes(first.read_bytes() + second.read_bytes())
    sound = read(tmp_path / "both.ogg")
    assert_tone(sound[:, :MODEL_RATE], 440, 660)


@pytest.mark.parametrize(("rate", "layout"), [(44_100, "mono"), (22_050, "stereo"), (22_050, "mono")])
def test_rate_and_channels_that_change_in_the_middle(tmp_path, rate, layout):
    first = write_sound(tmp_path / "1.mp3", "libmp3lame", 44_100, tone(44_100, 1, 440, 660))
    frequencies = (880,) if layout == "mono" else (880, 550)
    second = write_sound(tmp_path / "2.mp3", "libmp3lame", rate, tone(rate, 1, *frequencies), layout)
    (tmp_path / "both.mp3").write_bytes(first.read_bytes() + second.read_bytes())
    sound = read(tmp_path / "both.mp3")
    assert 1.9 < sound.shape[1] / MODEL_RATE < 2.3
    assert_tone(sound[:, : int(0.95 * MODEL_RATE)], 440, 660)
    assert_tone(sound[:, int(1.2 * MODEL_RATE) : int(1.8 * MODEL_RATE)], 880, frequencies[-1])


def test_more_channels_than_any_room_has_are_refused(tmp_path):
    with wave.open(str(tmp_path / "many.wav"), "wb") as file:
        file.setnchannels(100)
        file.setsampwidth(2)
        file.setframerate(8_000)
        file.writeframes(bytes(200 * 8_000))
    with pytest.raises(InputError, match="100 channels, expected at most 32"):
        load_sound(tmp_path / "many.wav")


# Playlists


@pytest.mark.parametrize("name", ["a.m3u8", "a.ffconcat", "a.sdp", "a.mpd", "a.wav"])
def test_a_playlist_opens_no_other_file_and_no_address(tmp_path, name):
    write_sound(tmp_path / "other.wav", "pcm_s16le", 44_100, tone(44_100, 1, 440, 660))
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.setblocking(False)
        port = server.getsockname()[1]
        address = f"http://127.0.0.1:{port}/a.ts"
        sdp = f"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio {port} RTP/AVP 0\n"
        mpd = f'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>{address}</BaseURL></Period></MPD>'
        for content in (
            f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{address}\n#EXT-X-ENDLIST\n",
            "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nother.wav\n#EXT-X-ENDLIST\n",
            f"ffconcat version 1.0\nfile '{address}'\n",
            "ffconcat version 1.0\nfile other.wav\n",
            sdp,
            mpd,
        ):
            (tmp_path / name).write_text(content)
            with pytest.raises(InputError, match="not a sound file"):
                load_sound(tmp_path / name)
        with pytest.raises(BlockingIOError):
            server.accept()
