"""Bad sound and video for ``--audio``."""

import io
import struct
from functools import cache
from pathlib import Path
from random import Random

import av
import numpy as np

from .case import Case, generate
from .damage import damaged, no_file

FORMATS = {
    "wav": ("pcm_s16le", "s16"),
    "aiff": ("pcm_s16be", "s16"),
    "mp3": ("libmp3lame", "s16p"),
    "flac": ("flac", "s16"),
    "ogg": ("flac", "s16"),
    "opus": ("libopus", "flt"),
    "adts": ("aac", "fltp"),
    "mp4": ("aac", "fltp"),
    "matroska": ("aac", "fltp"),
    "ac3": ("ac3", "fltp"),
}
FILMS = ("mp4", "mov", "matroska", "avi", "mpegts", "flv")
SUFFIXES = (".wav", ".mp3", ".m4a", ".flac", ".ogg", ".mkv", ".mp4", ".WAV", "", ".txt", ".m3u8", ".png")
RATE = 48_000

TEXTS = {
    "m3u8": b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n",
    "m3u8 of the network": b"#EXTM3U\n#EXTINF:10,\nhttp://127.0.0.1:9/x.ts\n#EXT-X-ENDLIST\n",
    "ffconcat": b"ffconcat version 1.0\nfile /etc/passwd\n",
    "ffconcat of itself": b"ffconcat version 1.0\nfile x.wav\n",
    "sdp": b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio 9 RTP/AVP 0\n",
    "dash": b'<?xml version="1.0"?><MPD type="static"><Period><BaseURL>file:///etc/passwd</BaseURL></Period></MPD>',
    "pls": b"[playlist]\nFile1=http://127.0.0.1:9/x\n",
    "metadata": b";FFMETADATA1\ntitle=x\n",
    "subtitles": b"1\n00:00:00,000 --> 00:00:01,000\nHello\n",
    "text": b"hello\n" * 99,
}


@cache
def sample(form: str, layout: str = "stereo", seconds: float = 0.4, rate: int = RATE) -> bytes:
    """A tone in a container."""
    codec, kind = FORMATS[form]
    data = io.BytesIO()
    with av.open(data, "w", format=form) as container:
        stream = container.add_stream(codec, rate=rate, layout=layout)
        tone = np.sin(np.arange(int(rate * seconds)) * 0.05).astype(np.float32) * 0.3
        channels = len(av.AudioLayout(layout).channels)
        frame = av.AudioFrame.from_ndarray(np.repeat(tone[None], channels, axis=0), format="fltp", layout=layout)
        frame.sample_rate, frame.pts = rate, 0
        resampler = av.AudioResampler(format=kind, layout=layout, rate=rate, frame_size=stream.frame_size or 0)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(stream.encode(part))
        container.mux(stream.encode(None))
    return data.getvalue()


@cache
def film(form: str, sound: bool = True) -> bytes:
    """Five pictures, with a tone where there is to be sound."""
    data = io.BytesIO()
    with av.open(data, "w", format=form) as container:
        video = container.add_stream("h264", rate=25)
        video.width, video.height, video.pix_fmt = 64, 64, "yuv420p"
        audio = container.add_stream("aac", rate=RATE, layout="stereo") if sound else None
        for _ in range(5):
            container.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((64, 64, 3), np.uint8))))
        container.mux(video.encode(None))
        if audio is not None:
            tone = np.sin(np.arange(RATE // 5) * 0.05).astype(np.float32) * 0.3
            frame = av.AudioFrame.from_ndarray(np.stack([tone, tone]), format="fltp", layout="stereo")
            frame.sample_rate, frame.pts = RATE, 0
            container.mux([*audio.encode(frame), *audio.encode(None)])
    return data.getvalue()


def wav_of(rng: Random) -> tuple[str, bytes]:
    """A WAV whose header says strange things of bytes that may not fit."""
    rate = rng.choice((0, 1, 7999, 8000, 44_100, 384_000, 2**31, 2**32 - 1))
    channels = rng.choice((0, 1, 2, 3, 8, 32, 255, 65535))
    bits, tag = rng.choice(((8, 1), (16, 1), (24, 1), (32, 3), (64, 3), (7, 1), (0, 1), (16, 0xFFFE), (32, 0x55)))
    step = channels * bits // 8
    form = struct.pack("<HHIIHH", tag, channels, rate, rate * step & 0xFFFFFFFF, step & 0xFFFF, bits)
    content = rng.choice((bytes(40_000), b"\xff" * 40_000, rng.randbytes(40_000), b"\0\0\xc0\x7f" * 9999, b""))
    size = rng.choice((len(content), 0, 2**32 - 1))
    body = b"WAVEfmt " + struct.pack("<I", 16) + form + b"data" + struct.pack("<I", size) + content
    what = f"WAV of {rate} Hz, {channels} channels, {bits} bits, tag {tag}, {size} of {len(content)} bytes"
    return what, b"RIFF" + struct.pack("<I", len(body) & 0xFFFFFFFF) + body


def content(rng: Random) -> tuple[str, bytes]:
    kind = rng.choice(
        ("damaged",) * 8
        + ("wav", "wav", "wav", "text", "text", "text", "long", "short", "video", "join", *("film",) * 5)
    )
    form = rng.choice(sorted(FORMATS))
    if kind == "damaged":
        how, data = damaged(sample(form, rng.choice(("mono", "stereo"))), rng)
        return f"{form}: {how}", data
    if kind == "wav":
        return wav_of(rng)
    if kind == "text":
        name = rng.choice(sorted(TEXTS))
        return name, TEXTS[name]
    if kind == "long":
        return "an hour of flac", sample("flac", "mono", 3600, 8000)
    if kind == "short":
        seconds = rng.choice((0.01, 0.03, 0.05))
        return f"{form} of {seconds} s", sample(rng.choice(("wav", "flac", "aiff")), "stereo", seconds)
    if kind == "video":
        return "video without sound", film("mp4", sound=False)
    if kind == "film":
        form = rng.choice(FILMS)
        how, data = damaged(film(form), rng)
        return f"film, {form}: {how}", data
    other = rng.choice(sorted(FORMATS))
    return f"{form} and {other} in one", sample(form) + sample(other, "mono")


def build(rng: Random, folder: Path) -> Case:
    """A bad sound under a name that may not fit it."""
    path = folder / f"x{rng.choice(SUFFIXES)}"
    if rng.random() < 0.08:
        what = no_file(path, rng)
    else:
        what, data = content(rng)
        path.write_bytes(data)
    return Case(f"{what} as {path.name}", generate("--audio", path.name))
