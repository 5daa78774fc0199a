"""Pictures from files of every kind that is opened, files that it should not open, and the first frame's crop."""

import contextlib
import io
import os
import random
import resource
import struct
import zlib

import numpy as np
import pytest
import torch
from peak_memory import PeakMemory
from PIL import EpsImagePlugin, Image, features

from happyhorse_core.errors import InputError
from happyhorse_core.media import image as image_module
from happyhorse_core.media.formats import PREVIEW_TAG
from happyhorse_core.media.image import fit_image, load_image

WIDTH, HEIGHT = 40, 33
LOSSLESS = {"webp": {"lossless": True}, "jp2": {"irreversible": False}}
AVIF = ["AVIF"] if features.check("avif") else []
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\nshowpage\n%%EOF\n"


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


@pytest.mark.parametrize("name", ["a.webp", "a.bmp", "a.tiff", "a.jp2"])
def test_other_formats(tmp_path, colours, name):
    Image.fromarray(colours).save(tmp_path / name, **LOSSLESS.get(name[2:], {}))
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


def header_only(path, width, height, *, depth=8, colour=2, content=b""):
    """A PNG that says how large it is and, without content, has no pixels: only the header can be what is judged."""

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b""))
    return path


def test_missing_file(tmp_path):
    refused(tmp_path / "none.png", "does not exist")


def test_name_that_no_file_can_have(tmp_path):
    with pytest.raises(InputError, match=r"can't be opened \(File name too long\)"):
        load_image(tmp_path / ("x" * 5000))


def test_folder(tmp_path):
    refused(tmp_path, "is a folder")


def test_empty_file(tmp_path):
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty file")


def test_text_named_as_a_picture(tmp_path):
    (tmp_path / "text.png").write_text("This is no picture. " * 50)
    refused(tmp_path / "text.png", "no picture of a known kind", "JPEG, PNG")


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


@pytest.mark.parametrize(("width", "height"), [(16_000, 16_000), (13_000, 13_000), (10_001, 10_000)])
def test_too_many_pixels_are_refused_by_the_header(tmp_path, width, height):
    refused(header_only(tmp_path / "bomb.png", width, height), "too many pixels")


def test_a_large_picture_that_decodes_is_refused_without_its_memory(tmp_path):
    """13,000 x 13,000 pixels of one colour: 64 KB that would take 6 GB."""
    line = zlib.compressobj()
    content = b"".join([*(line.compress(bytes(13_000 // 8 + 1)) for _ in range(13_000)), line.flush()])
    header_only(tmp_path / "large.png", 13_000, 13_000, depth=1, colour=0, content=content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    refused(tmp_path / "large.png", "13000 x 13000", "at most 100 million")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000


def test_a_jpeg_above_the_limit_is_read_at_half_its_size(tmp_path, monkeypatch, colours):
    large = np.kron(colours, np.ones((2, 2, 1), np.uint8))
    Image.fromarray(large).save(tmp_path / "large.jpg", quality=100, subsampling=0)
    assert_pixels(load_image(tmp_path / "large.jpg"), large, steps=8)
    monkeypatch.setattr(image_module, "MAX_PIXELS", large.shape[0] * large.shape[1] - 1)
    assert_pixels(load_image(tmp_path / "large.jpg"), colours, steps=8)
    monkeypatch.setattr(image_module, "MAX_PIXELS", WIDTH * HEIGHT - 1)
    refused(tmp_path / "large.jpg", "too many pixels")


def test_a_file_of_absurd_size_is_not_read(tmp_path):
    with (tmp_path / "endless.webp").open("wb") as file:
        file.write(b"RIFF\xff\xff\xff\xffWEBPVP8L")
        file.truncate(2**31)
    refused(tmp_path / "endless.webp", "2,048 MiB", "at most 1,024 MiB")


def test_a_large_photograph_is_let_through_to_the_decoder_without_a_warning(tmp_path, recwarn):
    refused(header_only(tmp_path / "large.png", 10_000, 9_000), "can't be decoded")
    assert not recwarn.list


# Formats that are not opened, and decoders that fail


def test_no_program_is_started_on_postscript(tmp_path, monkeypatch):
    gs = tmp_path / "gs"
    gs.write_text(f"#!/bin/sh\necho started > '{tmp_path}/started'\n")
    gs.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(EpsImagePlugin, "gs_binary", None)
    (tmp_path / "x.eps").write_bytes(POSTSCRIPT)
    (tmp_path / "x.png").write_bytes(POSTSCRIPT)
    refused(tmp_path / "x.eps", "is a PostScript (EPS) file", "expected one of JPEG, PNG")
    refused(tmp_path / "x.png", "is a PostScript (EPS) file")
    assert not (tmp_path / "started").exists()
    with Image.open(tmp_path / "x.eps") as picture, contextlib.suppress(OSError):
        picture.load()
    assert (tmp_path / "started").exists(), "Pillow would have started it"


@pytest.mark.parametrize("kind", ["PPM", "TGA", "PCX", "SGI", "ICO", "DDS", "PDF", "EPS", "QOI"])
def test_formats_that_few_need_are_not_opened(tmp_path, kind, colours):
    try:
        Image.fromarray(colours).save(tmp_path / "a.png", format=kind)
    except KeyError:
        (tmp_path / "a.png").write_bytes(b"qoif" + bytes(100))  # Pillow before version 12.1 writes no QOI
    refused(tmp_path / "a.png", "expected one of JPEG, PNG, WEBP")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"%PDF-1.7\n", "a PDF document"),
        (b"8BPS\0\1", "a Photoshop file"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "FlashPix"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'>", "an SVG drawing"),
        (b"\0\0\0\x20ftypisom", "a video"),
        (b"RIFF\0\0\0\0AVI LIST", "a video"),
        (b"RIFF\0\0\0\0WAVEfmt ", "a sound file"),
        (b"P6 40 33 255\n", "a PBM, PGM, PPM or PFM picture"),
        (b"\0\0\0\x18ftypheic", "HEIF"),
        (b"\xff\x0a\xfa\x7f", "JXL"),
        (b"\x89PNG\r\n\x1a\n", "a damaged PNG picture"),
        (b"RIFF\0\0\0\0WEBPVP8 ", "can't be decoded"),
        (b"", "no picture of a known kind"),
    ],
)
def test_what_it_is_instead_is_said(tmp_path, content, words):
    (tmp_path / "a.jpg").write_bytes(content + b"\1" * 64)
    refused(tmp_path / "a.jpg", words)


def test_a_camera_s_raw_file_is_not_taken_for_its_preview(tmp_path, colours):
    Image.fromarray(colours).save(tmp_path / "a.dng", format="TIFF", tiffinfo={PREVIEW_TAG: 1})
    refused(tmp_path / "a.dng", "begins with a preview")


def damaged(rng, content):
    """Some bytes changed, left out, doubled or cut off, mostly near the start, where headers are."""
    content = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        place = rng.randrange(min(len(content), rng.choice((60, 400, len(content)))))
        action = rng.choice(("byte", "bit", "number", "number", "drop", "double", "cut"))
        if action == "byte":
            content[place] = rng.randrange(256)
        elif action == "bit":
            content[place] ^= 1 << rng.randrange(8)
        elif action == "number":
            content[place : place + 4] = rng.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\xff\x7f"))
        elif action == "drop":
            del content[place : place + rng.randrange(1, 40)]
        elif action == "double":
            content[place:place] = content[: rng.randrange(1, 40)]
        elif place > 3:
            del content[place:]
        content = content or bytearray(1)
    return bytes(content)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", *AVIF])
def test_damage_is_one_error_or_a_picture(tmp_path, kind, colours):
    exif = Image.Exif()
    exif[0x0112] = 6
    written = io.BytesIO()
    Image.fromarray(colours).save(written, format=kind, exif=exif)
    refusals = 0
    for seed in range(60):
        (tmp_path / "a").write_bytes(damaged(random.Random(f"{kind} {seed}"), written.getvalue()))
        try:
            assert load_image(tmp_path / "a").isfinite().all()
        except InputError as error:
            assert str(error).startswith(f"image: {tmp_path / 'a'} ")
            refusals += 1
    assert refusals > 10


@pytest.mark.parametrize("kind", AVIF)
def test_an_avif_whose_pixels_are_missing(tmp_path, kind, colours):
    written = io.BytesIO()
    Image.fromarray(colours).save(written, format=kind)
    content = written.getvalue()
    pixels = content.index(b"mdat") + 4
    (tmp_path / "a.avif").write_bytes(content[:pixels] + bytes(len(content) - pixels))
    refused(tmp_path / "a.avif", "can't be decoded")


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


def test_a_picture_is_made_to_fit_without_another_copy_of_all_its_numbers():
    pixels = np.random.default_rng(0).integers(0, 256, (1000, 500, 3), dtype=np.uint8)
    picture = expected(pixels)
    with PeakMemory() as memory:
        fitted = fit_image(picture, 64, 128)
    assert memory.peak < 3 * pixels.nbytes  # 8 bits of each, and floats of a band
    whole = Image.fromarray(pixels).resize((64, 128), Image.Resampling.LANCZOS)
    assert_pixels(fitted[:, :, 0], np.asarray(whole))
