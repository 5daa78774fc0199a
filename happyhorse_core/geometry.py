"""Arithmetic between pixels, seconds, frames, latents and tokens. The one place where strides and rates are written."""

from dataclasses import dataclass
from math import prod

from .errors import InputError

FRAME_RATE = 25
"""Frames per second of every clip; also the audio latents per second."""
SPATIAL_STRIDE = 16
TEMPORAL_STRIDE = 4
SIZE_STEP = 32
"""Pixels; the stride of the autoencoder times the 2 x 2 patch of the transformer."""
VIDEO_CHANNELS = 48
AUDIO_CHANNELS = 64
SAMPLES_PER_AUDIO_LATENT = 2048
MODEL_SAMPLE_RATE = FRAME_RATE * SAMPLES_PER_AUDIO_LATENT
"""51,200 Hz: what the audio autoencoder is fed with, so that one latent lasts one frame."""
OUTPUT_SAMPLE_RATE = 44_100
MAX_PIXELS_PER_SIDE = 4096
MAX_SECONDS = 30
MIN_FRAMES = TEMPORAL_STRIDE + 1


def frames_from_seconds(seconds: float) -> int:
    """Frames that the model is asked for: 25 a second and one.

    As many as ``frames_of_latent(latent_frames(frames))`` come out, up to three fewer: 126 frames give 125 of video and
    126 audio latents, as in the released pipeline. Raises InputError outside 0.16 to 30 seconds.
    """
    least = (MIN_FRAMES - 1) / FRAME_RATE
    if not least <= seconds <= MAX_SECONDS:
        raise InputError(f"seconds: found {seconds:g}, expected {least:g} to {MAX_SECONDS}.")
    return check_frames(round(seconds * FRAME_RATE) + 1)


def check_frames(frames: int) -> int:
    """``frames`` as they are. Raises InputError below 5, where a clip is a single frame, or above 30 seconds."""
    longest = MAX_SECONDS * FRAME_RATE + 1
    if not MIN_FRAMES <= frames <= longest:
        raise InputError(
            f"frames: found {frames}, expected {MIN_FRAMES} to {longest}: a first picture and at least one group of "
            f"{TEMPORAL_STRIDE} after it, at most {MAX_SECONDS} s."
        )
    return frames


def latent_frames(frames: int) -> int:
    """Latent frames that hold ``frames``; the first frame has one to itself."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


def frames_of_latent(latent_length: int) -> int:
    """Pictures that ``latent_length`` latent frames decode to."""
    return (latent_length - 1) * TEMPORAL_STRIDE + 1


def samples_of_frames(frames: int, sample_rate: int) -> int:
    """Samples that sound while ``frames`` frames are seen, the last one whole: 1,764 a frame at 44,100 Hz."""
    return -(-frames * sample_rate // FRAME_RATE)


def snap_size(width: int, height: int) -> tuple[int, int]:
    """Width and height floored to multiples of 32 pixels, as the released model does.

    Raises InputError below 32 or above 4096 pixels a side.
    """
    for name, value in (("width", width), ("height", height)):
        if not SIZE_STEP <= value <= MAX_PIXELS_PER_SIDE:
            raise InputError(f"{name}: found {value}, expected {SIZE_STEP} to {MAX_PIXELS_PER_SIDE} pixels.")
    return width // SIZE_STEP * SIZE_STEP, height // SIZE_STEP * SIZE_STEP


@dataclass(frozen=True)
class ClipShape:
    """The size of a clip, in every unit that a stage asks for.

    ``width`` and ``height`` are multiples of 32. ``frames`` is what the model is asked for; ``video_frames`` come out.
    """

    width: int
    height: int
    frames: int

    @property
    def video_frames(self) -> int:
        return frames_of_latent(latent_frames(self.frames))

    @property
    def seconds(self) -> float:
        """How long the finished clip lasts."""
        return self.video_frames / FRAME_RATE

    @property
    def video_latent(self) -> tuple[int, int, int, int]:
        """[48, T, H, W] of the video latent."""
        return (
            VIDEO_CHANNELS,
            latent_frames(self.frames),
            self.height // SPATIAL_STRIDE,
            self.width // SPATIAL_STRIDE,
        )

    @property
    def audio_latent(self) -> tuple[int, int]:
        """[64, A] of the audio latent: one latent a frame."""
        return AUDIO_CHANNELS, self.frames

    @property
    def latent_bytes(self) -> int:
        """Both latents of one clip in float32."""
        return 4 * (prod(self.video_latent) + prod(self.audio_latent))


DEFAULT_WIDTH, DEFAULT_HEIGHT = 448, 256
"""Pixels; one of the two sizes that the released base model is best at (the other is 480 x 256)."""


def size_for_picture(width: int, height: int) -> tuple[int, int]:
    """The size on the grid with a picture's shape and about as many pixels as the default size has."""
    scale = (DEFAULT_WIDTH * DEFAULT_HEIGHT / (width * height)) ** 0.5
    snapped = (max(SIZE_STEP, round(side * scale / SIZE_STEP) * SIZE_STEP) for side in (width, height))
    return snap_size(*(min(side, MAX_PIXELS_PER_SIDE) for side in snapped))
