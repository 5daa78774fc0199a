"""Arithmetic between pixels, seconds, frames, latents and tokens. The one place where strides and rates are written."""

from dataclasses import dataclass

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


def frames_from_seconds(seconds: float) -> int:
    """Frames of a clip of so many seconds: 25 a second and one, on the grid 4n + 1 that the latents can hold.

    Raises InputError outside (0, 30] seconds.
    """
    if not 0 < seconds <= MAX_SECONDS:
        raise InputError(f"seconds: found {seconds:g}, expected more than 0 and at most {MAX_SECONDS}.")
    return snap_frames(round(seconds * FRAME_RATE) + 1)


def snap_frames(frames: int) -> int:
    """The largest 4n + 1 that is not above ``frames``, at least 5: a clip has a first frame and something after it."""
    if frames < 2:
        raise InputError(f"frames: found {frames}, expected at least 2; a clip of one picture has no sound.")
    if frames > MAX_SECONDS * FRAME_RATE + 1:
        raise InputError(f"frames: found {frames}, expected at most {MAX_SECONDS * FRAME_RATE + 1} (30 s at 25 fps).")
    return max(5, (frames - 1) // TEMPORAL_STRIDE * TEMPORAL_STRIDE + 1)


def latent_frames(frames: int) -> int:
    """Latent frames that hold ``frames`` pictures; the first picture has one to itself."""
    return (frames - 1) // TEMPORAL_STRIDE + 1


def frames_of_latent(latent_length: int) -> int:
    """Pictures that ``latent_length`` latent frames decode to."""
    return (latent_length - 1) * TEMPORAL_STRIDE + 1


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
    """The size of a clip, in every unit that a stage asks for. ``width`` and ``height`` are multiples of 32."""

    width: int
    height: int
    frames: int

    @property
    def seconds(self) -> float:
        return self.frames / FRAME_RATE

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


DEFAULT_WIDTH, DEFAULT_HEIGHT = 448, 256
"""Pixels; one of the two sizes that the released base model is best at (the other is 480 x 256)."""


def size_for_picture(width: int, height: int) -> tuple[int, int]:
    """The size on the grid with a picture's shape and about as many pixels as the default size has."""
    scale = (DEFAULT_WIDTH * DEFAULT_HEIGHT / (width * height)) ** 0.5
    snapped = (max(SIZE_STEP, round(side * scale / SIZE_STEP) * SIZE_STEP) for side in (width, height))
    return snap_size(*(min(side, MAX_PIXELS_PER_SIDE) for side in snapped))
