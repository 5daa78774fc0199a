"""The sound track of a file, as it is stored: in stretches of one rate and one set of loudspeakers."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av
import numpy as np

from ..errors import InputError
from .files import require_file

logger = logging.getLogger(__name__)

MAX_BYTES = 2**36
"""64 GiB: a film in high quality. Only the first seconds are read, but an index may lie at the end."""
MIN_SAMPLE_RATE = 1_000
MAX_SAMPLE_RATE = 768_000
MAX_CHANNELS = 32
SHORTEST_GAP = 0.1
"""Seconds; smaller ones are how containers round their timestamps."""
LONGEST_GAP = 10.0
"""A larger step of the timestamps is taken for a new beginning, as FFmpeg's own program does."""
UNNAMED = "NONE"
"""What PyAV calls a channel of a file that doesn't say which loudspeaker it is for."""

FORMATS = (
    *("wav", "w64", "aiff", "au", "caf", "voc", "mp3", "aac", "loas", "ac3", "eac3", "dts", "truehd", "flac", "ogg"),
    *("amr", "amrnb", "amrwb", "ape", "tta", "wv", "dsf", "mov", "mp4", "m4a", "3gp", "matroska", "webm", "avi"),
    *("asf", "mpeg", "mpegts", "flv", "rm", "nut", "mxf"),
)
"""FFmpeg's names of what is opened. Playlists are not: they make it open other files and addresses."""
OPTIONS = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}

DAMAGE = (OSError, ValueError, EOFError, LookupError, TypeError, RuntimeError, ArithmeticError, av.error.FFmpegError)
"""What PyAV raises on files that break off or contradict themselves."""


@dataclass
class Stretch:
    """Samples [C, N] in [-1, 1], their rate, and their loudspeakers by FFmpeg's names, or () where they have none."""

    rate: int
    layout: av.AudioLayout
    parts: list[np.ndarray] = field(default_factory=list)

    @property
    def samples(self) -> np.ndarray:
        return np.concatenate(self.parts).T

    @property
    def channels(self) -> tuple[str, ...]:
        names = tuple(channel.name for channel in self.layout.channels)
        return () if UNNAMED in names else names


def read_sound(path: str | Path, max_seconds: float) -> list[Stretch]:
    """The first sound track of a file of one of ``FORMATS``, a little more than ``max_seconds`` of it at most.

    Most files have one stretch; one that was put together from several has more. Where the timestamps leave a gap of
    0.1 to 10 s, or the sound begins later than the picture, there is silence; the file's own start is time 0.
    Parts that can't be decoded are left out, with a warning.
    Raises InputError for a file that is missing, no sound, without a sound track, or of absurd rates or channels.
    """
    path = require_file(path, "audio", "a sound file", largest=MAX_BYTES)
    try:
        # The prefix keeps a name with a colon from being taken for an address.
        with av.open(f"file:{path}", metadata_errors="ignore", options=OPTIONS) as container:
            if not container.streams.audio:
                raise InputError(f"audio: {path} has no sound track. Choose a sound file or a video with sound.")
            stretches = _read(path, container, max_seconds)
    except InputError:
        raise
    except MemoryError as error:
        raise InputError(f"audio: {path} takes more memory than there is. Cut it to what is needed.") from error
    except DAMAGE as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise InputError(
            f"audio: {path} is not a sound file that can be read ({reason}). Use a WAV, FLAC, MP3, M4A or Ogg file, or "
            "a video with sound."
        ) from error
    if not stretches:
        raise InputError(f"audio: {path} has a sound track without sound in it. Choose another file.")
    return stretches


def _read(path: Path, container: av.container.InputContainer, max_seconds: float) -> list[Stretch]:
    stretches: list[Stretch] = []
    to_float = av.AudioResampler(format="flt")
    seconds = 0.0
    end: float | None = None if container.start_time is None else container.start_time / av.time_base
    for frame in _frames(path, container):
        if not stretches or (stretches[-1].rate, stretches[-1].layout) != (frame.sample_rate, frame.layout):
            _check_format(path, frame)
            stretches.append(Stretch(frame.sample_rate, frame.layout))
            to_float = av.AudioResampler(format="flt", layout=frame.layout, rate=frame.sample_rate)
        parts, rate, count = stretches[-1].parts, frame.sample_rate, len(frame.layout.channels)
        start = frame.time
        if start is not None and end is not None and SHORTEST_GAP < start - end <= LONGEST_GAP:
            parts.append(np.zeros((round((start - end) * rate), count), np.float32))
            seconds += start - end
        # Interleaved: PyAV crashes on arrays of eight channels and more in planes.
        parts += [part.to_ndarray().reshape(-1, count) for part in to_float.resample(frame)]
        seconds += frame.samples / rate
        end = None if start is None else start + frame.samples / rate
        if seconds > max_seconds + 1:
            break
    return stretches


def _frames(path: Path, container: av.container.InputContainer) -> Iterator[av.AudioFrame]:
    damaged = 0
    try:
        for packet in container.demux(container.streams.audio[0]):
            try:
                yield from packet.decode()
            except av.error.InvalidDataError:
                # Tags at the end of an mp3, or a few broken packets: players skip them too.
                damaged += 1
    finally:
        if damaged:
            logger.warning("audio: %s: damaged packets left out: %d.", path, damaged)


def _check_format(path: Path, frame: av.AudioFrame) -> None:
    rate, count = frame.sample_rate, len(frame.layout.channels)
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        raise InputError(
            f"audio: {path} has a sample rate of {rate} Hz, expected {MIN_SAMPLE_RATE:,} to {MAX_SAMPLE_RATE:,}."
        )
    if count > MAX_CHANNELS:
        raise InputError(f"audio: {path} has {count} channels, expected at most {MAX_CHANNELS}. Mix it to stereo.")
