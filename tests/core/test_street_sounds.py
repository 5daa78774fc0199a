"""Sound as people have it: put together, with gaps, from playlists and videos. Judged by pitch, length and level."""

import socket
import wave
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
import pytest
from PIL import Image

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


def id3_with_cover(path):
    """An ID3 tag that holds a JPEG, as shops and phones write it before an mp3."""
    picture = BytesIO()
    Image.new("RGB", (300, 300), "red").save(picture, "JPEG")
    body = b"\0image/jpeg\0\3\0" + picture.getvalue()
    frame = b"APIC" + len(body).to_bytes(4, "big") + b"\0\0" + body
    size = bytes((len(frame) >> shift) & 127 for shift in (21, 14, 7, 0))
    path.write_bytes(b"ID3\3\0\0" + size + frame + path.read_bytes())


def test_a_cover_in_an_mp3_is_no_sound(tmp_path):
    write_sound(tmp_path / "a.mp3", "libmp3lame", 44_100, tone(44_100, 1, 440, 660))
    alone = read(tmp_path / "a.mp3")
    id3_with_cover(tmp_path / "a.mp3")
    with av.open(str(tmp_path / "a.mp3")) as container:
        assert len(container.streams.video) == 1
    assert np.array_equal(read(tmp_path / "a.mp3"), alone)


def test_a_voice_recorder_s_amr(tmp_path):
    write_sound(tmp_path / "a.amr", "libopencore_amrnb", 8_000, tone(8_000, 1, 440), "mono")
    sound = read(tmp_path / "a.amr")
    assert sound.shape[1] / MODEL_RATE == pytest.approx(1, abs=0.03)
    assert_tone(sound, 440, 440, tolerance=0.1)


def test_surround_of_a_film_comes_down_to_stereo(tmp_path):
    """Front left and right as they are, the centre at half its power, nothing of the deep tones' own channel."""
    silence = np.zeros(48_000, np.float32)
    left, right, centre = tone(48_000, 1, 440, 660, 880, level=0.25)
    deep = tone(48_000, 1, 60, level=0.5)[0]
    write_sound(tmp_path / "a.ac3", "ac3", 48_000, np.stack([left, right, centre, deep, silence, silence]), "5.1")
    for channel, own in zip(read(tmp_path / "a.ac3")[:, 4000:-4000], (440, 660), strict=True):
        loudness = {hertz: amplitude(channel, hertz) for hertz in (60, 440, 660, 880)}
        assert loudness[own] == pytest.approx(0.25, rel=0.03)
        assert loudness[880] == pytest.approx(0.25 * 0.5**0.5, rel=0.03)
        assert loudness[1100 - own] < 0.005 and loudness[60] < 0.005


def amplitude(channel, hertz):
    """Of the sine of one frequency in a channel."""
    window = np.hanning(channel.shape[0])
    turns = np.exp(2j * np.pi * hertz * np.arange(channel.shape[0]) / MODEL_RATE)
    return 2 * abs(np.sum(window * channel * turns)) / window.sum()


def test_sound_that_begins_after_the_picture(tmp_path):
    """A clip given as sound keeps its time: what is seen at 0.5 s is heard at 0.5 s."""
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        pictures = container.add_stream("mpeg4", rate=25)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        stream = container.add_stream("pcm_s16le", rate=48_000, layout="stereo")
        for _ in range(25):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        container.mux(pictures.encode(None))
        add_sound(container, stream, 48_000, tone(48_000, 0.5, 440, 660), "stereo", start=0.5)
        container.mux(stream.encode(None))
    sound = read(tmp_path / "a.mkv")
    assert sound.shape[1] / MODEL_RATE == pytest.approx(1, abs=0.01)
    assert level(sound[:, : int(0.45 * MODEL_RATE)]) < 1e-3
    assert_tone(sound[:, int(0.52 * MODEL_RATE) :], 440, 660)


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.wav", "pcm_s16le"), ("a.mp3", "libmp3lame"), ("a.m4a", "aac"), ("a.flac", "flac"), ("a.ogg", "libopus")],
)
def test_damage_is_one_error_or_a_sound(tmp_path, name, codec):
    whole = write_sound(tmp_path / name, codec, 48_000, tone(48_000, 0.3, 440, 660)).read_bytes()
    for seed in range(40):
        rng = np.random.default_rng(seed)
        data = bytearray(whole[: int(rng.integers(1, len(whole)))] if seed % 4 == 0 else whole)
        for place in rng.integers(0, len(data), 1 + seed % 9):
            data[place] = int(rng.integers(256))
        (tmp_path / name).write_bytes(data)
        try:
            sound = read(tmp_path / name)
        except InputError as error:
            assert "\n" not in str(error) and name in str(error)
        else:
            assert np.isfinite(sound).all() and sound.shape[0] == 2


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
    assert sound.shape[1] / MODEL_RATE == pytest.approx(2, abs=0.01)
    assert_tone(sound[:, :MODEL_RATE], 440, 660)
    assert_tone(sound[:, MODEL_RATE:], 880, 550)


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
