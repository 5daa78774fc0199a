"""Pictures from files of every kind that Pillow opens, files that it should not open, and the first frame's crop."""

import struct
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from happyhorse_core.errors import InputError
from happyhorse_core.media.image import fit_image, load_image

WIDTH, HEIGHT = 40, 33


@pytest.fixture
def colours():
    return np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def expected(pixels):
    """uint8 [H, W, 3] as the tensor that it should become."""
    return torch.from_numpy(pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]


def assert_pixels(image, pixels, steps=0):
    """Equal but for ``steps`` of 255."""
    assert image.dtype == torch.float32
    assert image.shape == (1, 3, *pixels.shape[:2])
    torch.testing.assert_close(image, expected(pixels), atol=(steps + 0.01) / 127.5, rtol=0)


def test_colours_come_out_as_they_are(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert_pixels(image, colours)
    assert image.is_contiguous()


@pytest.mark.parametrize("name", ["a.webp", "a.bmp", "a.tiff", "a.ppm", "a.tga"])
def test_other_formats(tmp_path, colours, name):
    Image.fromarray(colours).save(tmp_path / name, **({"lossless": True} if name.endswith("webp") else {}))
    assert_pixels(load_image(str(tmp_path / name)), colours)


def test_grey(tmp_path, colours):
    Image.fromarray(colours[..., 0]).save(tmp_path / "grey.png")
    assert_pixels(load_image(tmp_path / "grey.png"), colours[..., :1].repeat(3, axis=2))


def test_black_and_white(tmp_path, colours):
    bits = colours[..., 0] > 127
    Image.fromarray(bits).save(tmp_path / "bits.png")
    assert_pixels(load_image(tmp_path / "bits.png"), (bits[..., None] * np.uint8(255)).repeat(3, axis=2))


def test_transparency_is_laid_on_black(tmp_path, colours):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:10], alpha[10:20] = 0, 128
    Image.fromarray(np.concatenate([colours, alpha], axis=2)).save(tmp_path / "rgba.png")
    assert_pixels(load_image(tmp_path / "rgba.png"), (colours * (alpha / 255)).round().astype(np.uint8), steps=1)


def test_grey_with_transparency(tmp_path, colours):
    alpha = np.full((HEIGHT, WIDTH), 255, np.uint8)
    alpha[:, :7] = 0
    picture = Image.merge("LA", [Image.fromarray(colours[..., 0]), Image.fromarray(alpha)])
    picture.save(tmp_path / "la.png")
    assert_pixels(load_image(tmp_path / "la.png"), (colours[..., :1] * (alpha[..., None] > 0)).repeat(3, axis=2))


def test_palette(tmp_path, colours):
    picture = Image.fromarray(colours).quantize(16)
    picture.save(tmp_path / "palette.png")
    assert_pixels(load_image(tmp_path / "palette.png"), np.asarray(picture.convert("RGB")))


def test_palette_with_a_transparent_colour(tmp_path):
    picture = Image.new("P", (WIDTH, HEIGHT), 1)
    picture.putpalette([10, 20, 30, 200, 100, 50])
    picture.paste(0, (0, 0, 5, HEIGHT))
    picture.save(tmp_path / "palette.png", transparency=0)
    pixels = np.full((HEIGHT, WIDTH, 3), (200, 100, 50), np.uint8)
    pixels[:, :5] = 0
    assert_pixels(load_image(tmp_path / "palette.png"), pixels)


@pytest.mark.parametrize("name", ["deep.png", "deep.tiff"])
def test_sixteen_bits_are_scaled_not_clipped(tmp_path, name):
    deep = np.linspace(0, 65535, WIDTH * HEIGHT).round().astype(np.uint16).reshape(HEIGHT, WIDTH)
    Image.fromarray(deep).save(tmp_path / name)
    assert_pixels(load_image(tmp_path / name), (deep / 257).round().astype(np.uint8)[..., None].repeat(3, axis=2))


@pytest.mark.parametrize("top", [1.0, 255.0])
def test_floating_point_pixels_of_either_range(tmp_path, top):
    ramp = np.linspace(0, top, WIDTH * HEIGHT, dtype=np.float32).reshape(HEIGHT, WIDTH)
    Image.fromarray(ramp).save(tmp_path / "ramp.tiff")
    pixels = (ramp * (255 / top)).round().astype(np.uint8)[..., None].repeat(3, axis=2)
    assert_pixels(load_image(tmp_path / "ramp.tiff"), pixels, steps=1)


def test_print_colours(tmp_path):
    Image.new("CMYK", (WIDTH, HEIGHT), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg", quality=100)
    assert_pixels(load_image(tmp_path / "cmyk.jpg"), np.full((HEIGHT, WIDTH, 3), (255, 0, 0), np.uint8), steps=3)


@pytest.mark.parametrize(("orientation", "turns"), [(1, 0), (6, -1), (3, 2), (8, 1)])
def test_the_camera_s_rotation_is_undone(tmp_path, colours, orientation, turns):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(colours).save(tmp_path / "turned.png", exif=exif)
    assert_pixels(load_image(tmp_path / "turned.png"), np.ascontiguousarray(np.rot90(colours, turns)))


@pytest.mark.parametrize("name", ["moving.gif", "moving.png", "moving.webp"])
def test_an_animation_gives_its_first_picture(tmp_path, name):
    frames = [Image.new("RGB", (WIDTH, HEIGHT), colour) for colour in ((250, 0, 0), (0, 250, 0), (0, 0, 250))]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=40, lossless=True)
    assert_pixels(load_image(tmp_path / name), np.full((HEIGHT, WIDTH, 3), (250, 0, 0), np.uint8), steps=2)


# Files that are refused


def refused(path, *words):
    with pytest.raises(InputError) as caught:
        load_image(path)
    message = str(caught.value)
    assert message.startswith("image: ")
    for word in (str(path), *words):
        assert word in message


def header_only(path, width, height):
    """A PNG that says how large it is and has no pixels, so that only the header can be what is judged."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    return path


def test_missing_file(tmp_path):
    refused(tmp_path / "none.png", "does not exist")


def test_name_that_no_file_can_have(tmp_path):
    refused(tmp_path / ("x" * 5000), "can't be opened")


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty file")


def test_text_named_as_a_picture(tmp_path):
    (tmp_path / "text.png").write_text("This is no picture. " * 50)
    refused(tmp_path / "text.png", "not a picture")


@pytest.mark.parametrize("name", ["cut.png", "cut.jpg", "cut.webp", "cut.gif", "cut.tiff"])
def test_a_file_that_breaks_off(tmp_path, name):
    pixels = np.random.default_rng(1).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: len(content) // 2])
    refused(tmp_path / name)


def test_every_length_of_a_cut_file_is_refused_in_our_words(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "whole.png")
    content = (tmp_path / "whole.png").read_bytes()
    for length in range(1, len(content) - 100, 97):
        (tmp_path / "part.png").write_bytes(content[:length])
        refused(tmp_path / "part.png")


@pytest.mark.parametrize("size", [(31, 64), (64, 31), (1, 1)])
def test_tiny(tmp_path, size):
    Image.new("RGB", size).save(tmp_path / "tiny.png")
    refused(tmp_path / "tiny.png", f"{size[0]} x {size[1]} pixels", "expected 32 to 16,384")


def test_smallest_that_is_taken(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "small.png")
    assert load_image(tmp_path / "small.png").shape == (1, 3, 32, 32)


@pytest.mark.parametrize("size", [(16385, 40), (40, 30000)])
def test_too_long_a_side(tmp_path, size):
    refused(header_only(tmp_path / "long.png", *size), f"{size[0]} x {size[1]} pixels")


def test_decompression_bomb(tmp_path):
    refused(header_only(tmp_path / "bomb.png", 16000, 16000), "too many pixels")


def test_a_large_photograph_is_let_through_to_the_decoder_without_a_warning(tmp_path, recwarn):
    refused(header_only(tmp_path / "large.png", 10_000, 9_000), "can't be decoded")
    assert not recwarn.list


# The first frame


def test_a_picture_of_the_right_size_is_left_alone(colours):
    image = expected(colours)
    assert torch.equal(fit_image(image, WIDTH, HEIGHT), image.unsqueeze(2))


@pytest.mark.parametrize(
    ("size", "target", "box"),
    [
        # Corners are rounded, halves to even: 5.5 to 45.5 becomes 6 to 46.
        ((100, 40), (64, 64), (30, 0, 70, 40)),
        ((40, 100), (64, 64), (0, 30, 40, 70)),
        ((101, 40), (32, 32), (30, 0, 70, 40)),
        ((51, 40), (32, 32), (6, 0, 46, 40)),
        ((90, 60), (48, 32), (0, 0, 90, 60)),
        ((97, 61), (448, 256), (0, 3, 97, 58)),
        ((32, 1000), (4096, 32), (0, 500, 32, 501)),
    ],
)
def test_centre_crop_then_lanczos(size, target, box):
    pixels = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    cropped = Image.fromarray(pixels[box[1] : box[3], box[0] : box[2]])
    resized = np.asarray(cropped.resize(target, Image.Resampling.LANCZOS))
    frame = fit_image(expected(pixels), *target)
    assert frame.shape == (1, 3, 1, target[1], target[0])
    torch.testing.assert_close(frame[:, :, 0], expected(resized), atol=1e-6, rtol=0)


def test_the_result_stays_in_range_where_lanczos_overshoots():
    edge = torch.full((1, 3, 64, 64), -1.0)
    edge[..., 32:] = 1
    frame = fit_image(edge, 96, 96)
    assert frame.min() == -1
    assert frame.max() == 1
