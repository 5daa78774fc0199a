"""Frames and sound into one mp4: H.264 and AAC, of equal length, there whole or not there at all."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import av
import numpy as np

from ..atomic import part_of, writing, written_whole
from ..errors import InputError, OutputError
from ..geometry import FRAME_RATE, OUTPUT_SAMPLE_RATE

QUALITY = "17"
"""x264's constant rate factor: visually lossless, about."""
ENCODER_OPTIONS = {"crf": QUALITY, "mbtree": "0"}
"""x264's macroblock tree depends on what memory held before: equal frames would give other files now and then."""
AUDIO_BIT_RATE = 256_000
AAC_FRAME = 1024
BT709 = 1
LIMITED_RANGE = 1
SUFFIXES = (".mp4", ".m4v")

Frame = TypeVar("Frame")


class Mp4Writer:
    """Writes one clip; use as a context manager.

    with Mp4Writer(path, width, height, metadata={"prompt": "..."}) as writer:
        writer.add_frames(frames)  # any number of times
        writer.add_sound(waveform)  # likewise, before or after

    When the block ends well, the sound is cut or filled with silence to the length of the frames, and the finished
    file takes its name, replacing an older one. When it ends in an exception, Ctrl-C included, nothing is left behind.
    ``metadata`` comes back as the ``metadata`` of the container. Equal frames, sound and metadata give equal files on
    the same machine.

    The constructor raises OutputError if ``path`` can't be written and InputError for sizes that H.264 can't hold; it
    leaves nothing on the disk. The rest raises OutputError if writing fails or no frame came.
    """

    def __init__(
        self,
        path: str | Path,
        width: int,
        height: int,
        *,
        fps: int = FRAME_RATE,
        sample_rate: int = OUTPUT_SAMPLE_RATE,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        if width < 2 or height < 2 or width % 2 or height % 2:
            raise InputError(f"size: found {width} x {height}, expected even numbers of pixels, at least 2 a side.")
        self.path = Path(path).absolute()
        self.width, self.height, self.fps, self.sample_rate = width, height, fps, sample_rate
        self.metadata = dict(metadata or {})
        check_writable(self.path)
        self._sound: list[np.ndarray] = []
        self._frames = 0

    def __enter__(self) -> "Mp4Writer":
        with ExitStack() as stack, writing(self.path, av.error.FFmpegError):
            part = stack.enter_context(written_whole(self.path))
            # Both streams wait for each other without limit, so that they lie side by side however they were added.
            options = {"movflags": "use_metadata_tags+faststart", "max_interleave_delta": "0"}
            self._container = av.open(str(part), "w", format="mp4", options=options)
            stack.callback(self._abandon)
            self._container.metadata.update(self.metadata)
            self._video = self._add_video_stream()
            self._audio = self._container.add_stream("aac", rate=self.sample_rate, layout="stereo")
            self._audio.bit_rate = AUDIO_BIT_RATE
            self._cleanup = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is not None:
            self._cleanup.__exit__(kind, error, traceback)
            return
        with self._cleanup:
            self._finish()

    def add_frames(self, frames: np.ndarray) -> None:
        """uint8 [N, H, W, 3], RGB, in the order in which they are shown."""
        if frames.dtype != np.uint8 or frames.shape[1:] != (self.height, self.width, 3):
            expected = f"uint8 [N, {self.height}, {self.width}, 3]"
            raise ValueError(f"frames: found {frames.dtype} {list(frames.shape)}, expected {expected}.")
        for pixels in frames:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
            # The default conversion is BT.601's, which players undo with BT.709's where the picture is large.
            frame = frame.reformat(format="yuv420p", dst_colorspace=BT709)
            frame.pts, frame.time_base = self._frames, Fraction(1, self.fps)
            self._frames += 1
            self._encode(self._video.encode, frame)

    def add_sound(self, sound: np.ndarray) -> None:
        """float32 [2, M] at ``sample_rate``; louder than [-1, 1] is clipped. Raises InputError if not finite."""
        if sound.ndim != 2 or sound.shape[0] != 2:
            raise ValueError(f"sound: found the shape {list(sound.shape)}, expected [2, M].")
        if not np.isfinite(sound).all():
            raise InputError("sound: the waveform holds values that are not numbers; nothing can be written.")
        self._sound.append(np.clip(sound, -1, 1).astype(np.float32))

    def _add_video_stream(self) -> av.VideoStream:
        stream = self._container.add_stream("h264", rate=self.fps, options=ENCODER_OPTIONS)
        stream.width, stream.height, stream.pix_fmt = self.width, self.height, "yuv420p"
        context = stream.codec_context
        context.time_base = Fraction(1, self.fps)
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED_RANGE
        return stream

    def _abandon(self) -> None:
        # After a good end the container is closed already. Else it writes an ending, to a file that goes away.
        with suppress(av.error.FFmpegError, OSError):
            self._container.close()

    def _finish(self) -> None:
        if not self._frames:
            raise OutputError(f"{self.path}: there are no frames to write.")
        self._encode(self._video.encode, None)
        for frame in self._sound_frames():
            self._encode(self._audio.encode, frame)
        self._encode(self._audio.encode, None)
        with writing(self.path, av.error.FFmpegError):
            self._container.close()

    def _sound_frames(self) -> Iterator[av.AudioFrame]:
        length = round(self._frames * self.sample_rate / self.fps)
        sound = np.concatenate([*self._sound, np.zeros((2, 0), np.float32)], axis=1)[:, :length]
        sound = np.pad(sound, ((0, 0), (0, length - sound.shape[1])))
        for start in range(0, length, AAC_FRAME):
            block = np.ascontiguousarray(sound[:, start : start + AAC_FRAME])
            frame = av.AudioFrame.from_ndarray(block, format="fltp", layout="stereo")
            frame.sample_rate, frame.pts, frame.time_base = self.sample_rate, start, Fraction(1, self.sample_rate)
            yield frame

    def _encode(self, encode: "Callable[[Frame], Sequence[av.Packet[Any]]]", frame: Frame) -> None:
        with writing(self.path, av.error.FFmpegError):
            self._container.mux(encode(frame))


def check_writable(path: Path) -> None:
    """Raises OutputError where no mp4 can be written to ``path``, which is absolute. Leaves nothing on the disk."""
    if path.suffix.lower() not in SUFFIXES:
        raise OutputError(f"output: found {path.name!r}, expected a name that ends in {' or '.join(SUFFIXES)}.")
    try:
        if not path.parent.is_dir():
            raise OutputError(f"output: the folder {path.parent} does not exist. Create it, or choose another.")
        if path.exists() and not path.is_file():
            raise OutputError(f"output: {path} exists and is not a file. Choose another name.")
        if path.exists() and not os.access(path, os.W_OK):
            raise OutputError(f"output: {path} exists and is write-protected. Choose another name.")
        probe = part_of(path)
        probe.touch(exist_ok=False)
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise OutputError(f"output: can't write {path} ({error.strerror}). Choose another place.") from error
