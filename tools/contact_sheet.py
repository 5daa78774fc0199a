"""A clip on one sheet: pictures from its beginning to its end, and under them its waveform on the same time axis.

``python -m tools.contact_sheet CLIP.mp4 SHEET.png`` makes one of a file.
"""

import argparse
import sys
from pathlib import Path

import av
import numpy as np
from PIL import Image

MARGIN, GAP = 12, 4
SHEET_WIDTH = 1280
WAVE_HEIGHT = 56
PAPER = (250, 250, 248)
CHANNEL_INK = ((46, 110, 190), (200, 96, 30))
"""Left blue above, right orange below."""


def contact_sheet(frames, waveform, path, columns=8, rows=1, *, rate=None, fps=25.0):
    """Writes a sheet of a clip as a picture, ``path`` ending in .png.

    ``frames`` are uint8 [F, H, W, 3], and ``waveform`` float [channels, N] or None; with its ``rate`` in Hz it is cut
    or filled up to the time of the pictures at ``fps`` a second, without it is taken to last as long as they do.
    ``columns`` times ``rows`` pictures are shown, evenly spread from the first on; under each one stands what sounds
    from its time to that of the next.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or not len(frames) or frames.dtype != np.uint8:
        raise ValueError(f"frames: found {frames.dtype} {list(frames.shape)}, expected uint8 [F, H, W, 3], F > 0.")
    width = (SHEET_WIDTH - 2 * MARGIN) // columns
    height = round(width * frames.shape[1] / frames.shape[2])
    wave = None if waveform is None else _fit(np.asarray(waveform), rate, len(frames) / fps)
    band = height + GAP + (0 if wave is None else len(wave) * WAVE_HEIGHT + GAP)
    sheet = Image.new("RGB", (2 * MARGIN + columns * width, 2 * MARGIN + rows * band - GAP), PAPER)
    # Small pictures keep their pixels visible; the smooth filter is for those that are made smaller.
    smooth = Image.Resampling.LANCZOS if frames.shape[2] > width else Image.Resampling.NEAREST
    for place in range(columns * rows):
        row, column = divmod(place, columns)
        frame = frames[place * len(frames) // (columns * rows)]
        small = Image.fromarray(frame).resize((width - GAP, height), smooth)
        sheet.paste(small, (MARGIN + column * width, MARGIN + row * band))
    if wave is not None:
        for row, part in enumerate(np.array_split(wave, rows, axis=1)):
            drawn = draw_wave(part, columns * width - GAP, np.abs(wave).max())
            sheet.paste(Image.fromarray(drawn), (MARGIN, MARGIN + row * band + height + GAP))
    sheet.save(path)


def _fit(waveform, rate, seconds):
    """The samples of so many seconds, silence where there are none."""
    if waveform.ndim != 2 or not waveform.size:
        raise ValueError(f"waveform: found {list(waveform.shape)}, expected [channels, N], N > 0; None for no sound.")
    length = waveform.shape[1] if rate is None else round(seconds * rate)
    return np.pad(waveform[:, :length], ((0, 0), (0, max(length - waveform.shape[1], 0))))


def draw_wave(waveform, width, loudest):
    """[channels * WAVE_HEIGHT, width, 3]: per column the reach of its samples from 0, one channel above the other."""
    picture = np.full((len(waveform) * WAVE_HEIGHT, width, 3), PAPER, np.uint8)
    edges = np.linspace(0, waveform.shape[1], width + 1).astype(int)
    scale = (WAVE_HEIGHT / 2 - 2) / max(float(loudest), 1e-3)
    for channel, samples in enumerate(waveform):
        middle = channel * WAVE_HEIGHT + WAVE_HEIGHT // 2
        for column in range(width):
            piece = samples[edges[column] : max(edges[column + 1], edges[column] + 1)]
            high, low = (round(float(value) * scale) for value in (max(piece.max(), 0), min(piece.min(), 0)))
            picture[middle - high : middle - low + 1, column] = CHANNEL_INK[channel % 2]
    return picture


def read_clip(path):
    """Frames uint8 [F, H, W, 3] and how many a second, the waveform float32 [2, N] or None, its rate in Hz or None."""
    with av.open(str(path)) as container:
        if not container.streams.video:
            raise ValueError(f"{path}: found no pictures in it, expected a video.")
        fps = float(container.streams.video[0].average_rate)
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
    with av.open(str(path)) as container:
        if not container.streams.audio:
            return frames, fps, None, None
        rate = container.streams.audio[0].rate
        resampler = av.AudioResampler(format="fltp", layout="stereo", rate=rate)
        decoded = [piece for frame in container.decode(audio=0) for piece in resampler.resample(frame)]
        decoded += resampler.resample(None)
    return frames, fps, np.concatenate([piece.to_ndarray() for piece in decoded], 1), rate


def main(arguments=None):
    parser = argparse.ArgumentParser(prog="python -m tools.contact_sheet", description=__doc__.splitlines()[0])
    parser.add_argument("clip", type=Path, help="video file, with or without sound")
    parser.add_argument("sheet", type=Path, help="picture to write, .png")
    parser.add_argument("--columns", type=int, default=8, help="pictures in a row (8)")
    parser.add_argument("--rows", type=int, default=1, help="rows (1)")
    asked = parser.parse_args(arguments)
    try:
        frames, fps, waveform, rate = read_clip(asked.clip)
        contact_sheet(frames, waveform, asked.sheet, asked.columns, asked.rows, rate=rate, fps=fps)
    except (OSError, ValueError, av.error.FFmpegError) as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 1
    print(f"Wrote {asked.sheet}.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
