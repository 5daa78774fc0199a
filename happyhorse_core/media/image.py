"""A picture from a file, and a picture made to fit the clip."""

import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, JpegImagePlugin, TiffImagePlugin, UnidentifiedImageError
from torch import Tensor

from ..errors import InputError
from .files import require_file
from .formats import PREVIEW_TAG, accepted_formats, describe_file

MIN_SIDE = 32
MAX_SIDE = 16_384
MAX_PIXELS = 100_000_000
"""What is decoded at most, and takes 2 GB. The largest frame of a clip has 17 million pixels."""
MAX_BYTES = 2**30
"""More than ``MAX_PIXELS`` take uncompressed; some decoders read the whole file before they look at it."""
BAND = 256
"""Rows of a picture that are turned into 8 bits at a time."""
SIXTEEN_BIT_STEP = 257
"""65535 / 255."""

DAMAGE = (
    *(OSError, SyntaxError, ValueError, EOFError, LookupError, TypeError, AttributeError, AssertionError),
    *(RuntimeError, ArithmeticError, BufferError, struct.error, zlib.error),
)
"""What Pillow and its decoders raise on files that break off or contradict themselves; RuntimeError is AVIF's."""


def load_image(path: str | Path) -> Tensor:
    """Reads a picture of a format in ``formats.FORMATS`` -> float32 [1, 3, H, W] in [-1, 1], RGB, upright by its EXIF.

    Of an animation the first picture is taken. Transparency is laid on black, which is also what most programs store
    under fully transparent pixels. 16 bits a channel become 8, as everything else here is. Colour profiles are not
    applied, as ComfyUI applies none. A JPEG of more than 100 million pixels is read at half its size.
    Raises InputError for a file that is missing, of another kind, damaged, above 1 GiB, below 32 or above 16,384
    pixels a side, or above 100 million pixels (JPEG: ``PIL.Image.MAX_IMAGE_PIXELS``, times two), all by its header.
    """
    path = require_file(path, "image", "a picture file", largest=MAX_BYTES)
    return _to_tensor(_open_rgb(path))


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
            # Of large pictures, where our own limit decides, and of what Pillow passes over in damaged files.
            warnings.simplefilter("ignore")
            with Image.open(path, formats=accepted_formats()) as picture:
                _check_header(path, picture)
                ImageOps.exif_transpose(picture, in_place=True)
                return _to_rgb(picture)
    except InputError:
        raise
    except Image.DecompressionBombError as error:
        raise InputError(f"image: {path} has too many pixels to be read ({error}). Scale it down.") from error
    except UnidentifiedImageError as error:
        raise InputError(
            f"image: {path} is {describe_file(path)}, expected one of {', '.join(accepted_formats())}. "
            "Save it as a PNG or JPEG."
        ) from error
    except PermissionError as error:
        raise InputError(f"image: {path} can't be read: {error.strerror}.") from error
    except MemoryError as error:
        raise InputError(f"image: {path} takes more memory than there is. Scale it down.") from error
    except DAMAGE as error:
        raise InputError(f"image: {path} can't be decoded; damaged or incomplete? ({error}) Save it again.") from error


def _check_header(path: Path, picture: ImageFile.ImageFile) -> None:
    """Refuses what is too small or too large before a pixel is read, and has a large JPEG read at half its size."""
    width, height = picture.size
    if min(width, height) < MIN_SIDE or max(width, height) > MAX_SIDE:
        raise InputError(
            f"image: {path} is {width} x {height} pixels, expected {MIN_SIDE} to {MAX_SIDE:,} pixels a side. Resize it."
        )
    if width * height > MAX_PIXELS and isinstance(picture, JpegImagePlugin.JpegImageFile):
        picture.draft(None, (width // 2, height // 2))
        width, height = picture.size
    if width * height > MAX_PIXELS:
        raise InputError(
            f"image: {path} has too many pixels to be read: {width} x {height}, expected at most "
            f"{MAX_PIXELS // 10**6} million. Scale it down."
        )
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tag_v2.get(PREVIEW_TAG) == 1:
        raise InputError(f"image: {path} begins with a preview, as a camera's raw file does. Save it as a PNG or JPEG.")


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
    return picture if picture.mode == "RGB" else picture.convert("RGB")


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
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).unsqueeze(0)
    return pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


def _to_picture(image: Tensor) -> Image.Image:
    # In bands, since the float copy of 100 million pixels takes 1.2 GB.
    source = image[0].permute(1, 2, 0)
    pixels = torch.empty(source.shape, dtype=torch.uint8, device=source.device)
    for band, values in zip(pixels.split(BAND), source.split(BAND), strict=True):
        band.copy_(values.float().add(1).mul_(127.5).round_().clamp_(0, 255))
    return Image.fromarray(pixels.cpu().numpy())
