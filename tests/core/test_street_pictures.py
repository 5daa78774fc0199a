"""Pictures as people have them: from phones, from scanners, under any name. Judged by their pixels."""

import os

import numpy as np
import pytest
from PIL import Image, ImageCms

from happyhorse_core.media.image import load_image

WIDTH, HEIGHT = 48, 40
TURNS = {
    1: lambda pixels: pixels,
    2: np.fliplr,
    3: lambda pixels: np.rot90(pixels, 2),
    4: np.flipud,
    5: lambda pixels: pixels.transpose(1, 0, 2),
    6: lambda pixels: np.rot90(pixels, -1),
    7: lambda pixels: np.rot90(pixels, 2).transpose(1, 0, 2),
    8: np.rot90,
}
"""What turns a stored picture upright, by its EXIF orientation."""


@pytest.fixture
def photo():
    """Smooth enough for a lossy format, and different in each corner."""
    down, across = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([across * 5, down * 6, 255 - across * 2 - down * 3], axis=2).astype(np.uint8)


def read(path):
    """uint8 [H, W, 3]."""
    return ((load_image(path)[0].permute(1, 2, 0).numpy() + 1) * 127.5).round().astype(np.uint8)


def assert_like(found, pixels, steps):
    assert found.shape == pixels.shape
    assert np.abs(found.astype(int) - pixels).max() <= steps


@pytest.mark.parametrize("orientation", TURNS)
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_all_eight_senses_of_a_camera(tmp_path, photo, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(photo).save(tmp_path / "a", format=kind, exif=exif, quality=100)
    assert_like(read(tmp_path / "a"), TURNS[orientation](photo), 0 if kind in ("PNG", "TIFF") else 16)


@pytest.mark.parametrize(
    "name", ["A.PNG", "png.jpg", "none", "with spaces.png", "\u00e4\u65e5.png", os.fsdecode(b"\xff.png")]
)
def test_names_of_any_kind(tmp_path, photo, name):
    Image.fromarray(photo).save(tmp_path / "plain.png")
    (tmp_path / "plain.png").rename(tmp_path / name)
    (tmp_path / "link").symlink_to(tmp_path / name)
    assert_like(read(tmp_path / name), photo, 0)
    assert_like(read(tmp_path / "link"), photo, 0)


def test_a_progressive_jpeg_with_a_profile(tmp_path, photo):
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo).save(tmp_path / "a.jpg", progressive=True, quality=100, subsampling=0, icc_profile=profile)
    assert_like(read(tmp_path / "a.jpg"), photo, 6)
