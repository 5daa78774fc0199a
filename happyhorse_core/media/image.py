"""A picture from a file, and a picture made to fit the clip."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from .files import require_file

MIN_SIDE = 32
MAX_SIDE = 16_384
SIXTEEN_BIT_STEP = 257
"""65535 / 255."""

DAMAGE = (OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, struct.error, zlib.error)
"""What Pillow's format plugins raise on files that break off or contradict themselves."""


def load_image(path: str | Path) -> Tensor:
    """Reads whatever Pillow opens -> float32 [1, 3, H, W] in [-1, 1], RGB, turned upright by its EXIF orientation.

    Of an animation the first picture is taken. Transparency is laid on black, which is also what most programs store
    under fully transparent pixels. 16 bits a channel become 8, as everything else here is.
    Raises InputError for a file that is missing, no picture, damaged, below 32 or above 16,384 pixels a side, or above
    Pillow's own limit on pixels (``PIL.Image.MAX_IMAGE_PIXELS``, times two).
    """
    return _to_tensor(_open_rgb(require_file(path, "image", "a picture file")))


def fit_image(image: Tensor, width: int, height: int) -> Tensor:
    """[1, 3, H, W] in [-1, 1] -> [1, 3, 1, height, width] in [-1, 1]: one frame of the clip.

    Cut to the target's aspect around the centre, then resized with Pillow's Lanczos filter on 8-bit pixels, the way
    that the released model prepares its first frame. A picture of the target size is returned as it is.
    """
    if tuple(image.shape[-2:]) != (height, width):
        picture = _crop_to_aspect(_to_picture(image), width, height)
        image = _to_tensor(picture.resize((width, height), Image.Resampling.LANCZOS)).to(image.device)
    return image.unsqueeze(2)


def _open_rgb(path: Path) -> Image.Image:
    try:
        with warnings.catch_warnings():
            # Pillow warns of pictures that are half as large as those that it refuses; our own limit decides.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                _check_size(path, picture)
                return _to_rgb(ImageOps.exif_transpose(picture))
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image: {path} has too many pixels to be read ({error}). Scale it down.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"image: {path} is not a picture that Pillow can read. Use a PNG, JPEG or WebP file."
        ) from error
    except PermissionError as error:
        raise InputError(f"image: {path} can't be read: {error.strerror}.") from error
    except DAMAGE as error:
        raise InputError(f"image: {path} can't be decoded; damaged or incomplete? ({error}) Save it again.") from error


def _check_size(path: Path, picture: Image.Image) -> None:
    width, height = picture.size
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise InputError(
            f"image: {path} is {width} x {height} pixels, expected {MIN_SIDE} to {MAX_SIDE:,} pixels a side. Resize it."
        )


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode == "F":
        values = np.asarray(picture)
        # Floating point files hold either [0, 1] or [0, 255], and don't say which.
        scale = 255.0 if values.max() <= 1 else 1.0
        return _from_grey(values * scale)
    if picture.mode.startswith("I"):
        # Pillow's own conversion clips at 255 instead of scaling.
        return _from_grey(np.asarray(picture) / SIXTEEN_BIT_STEP)
    if "transparency" in picture.info or picture.mode in ("RGBA", "LA", "PA"):
        picture = picture.convert("RGBA")
        black = Image.new("RGBA", picture.size, (0, 0, 0, 255))
        return Image.alpha_composite(black, picture).convert("RGB")
    return picture.convert("RGB")


def _from_grey(values: np.ndarray) -> Image.Image:
    grey = np.nan_to_num(values).round().clip(0, 255).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def _crop_to_aspect(picture: Image.Image, width: int, height: int) -> Image.Image:
    """The largest centred part of the target's aspect. Corners round halves to even, as the released model's do."""
    full_width, full_height = picture.size
    if full_height * width > height * full_width:
        part_width, part_height = full_width, max(1, int(full_width * height / width))
    else:
        part_width, part_height = max(1, int(full_height * width / height)), full_height
    left, right = round((full_width - part_width) / 2), round((full_width + part_width) / 2)
    top, bottom = round((full_height - part_height) / 2), round((full_height + part_height) / 2)
    # A part of one pixel between two halves would round to nothing.
    return picture.crop((left, top, max(right, left + 1), max(bottom, top + 1)))


def _to_tensor(picture: Image.Image) -> Tensor:
    pixels = torch.from_numpy(np.array(picture))
    return pixels.permute(2, 0, 1).unsqueeze(0).to(torch.float32).div_(127.5).sub_(1).contiguous()


def _to_picture(image: Tensor) -> Image.Image:
    pixels = image[0].permute(1, 2, 0).float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(pixels.cpu().numpy())
