"""Bad pictures for ``--image``."""

import io
import struct
import zlib
from functools import cache
from pathlib import Path
from random import Random

from PIL import Image

from .case import Case, generate
from .damage import damaged, no_file

FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "TIFF", "JPEG2000", "MPO", "ICO", "TGA", "PPM", "DDS", "PCX")
MODES = ("RGB", "RGBA", "L", "P", "CMYK", "1", "I;16", "LA", "F")
SUFFIXES = (".png", ".jpg", ".webp", ".avif", ".gif", ".bmp", ".tif", ".jp2", ".PNG", ".txt", "", ".exe", ".heic")

EPS = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 64 64
%%EndComments
/f (../canary) (w) file def f closefile
showpage
"""
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="64" height="64"><image href="file:///etc/passwd"/></svg>'
TEXTS = {
    "EPS": EPS,
    "PDF": b"%PDF-1.4\n1 0 obj<</Type/Catalog/Pages 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF",
    "SVG": SVG,
    "PSD": b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 3, 64, 64, 8, 3) + bytes(12) + b"\0\0" + b"x" * 12288,
    "XCF": b"gimp xcf v011\0" + struct.pack(">III", 64, 64, 0) + bytes(64),
    "XBM": b"#define x_width 64\n#define x_height 64\nstatic char x_bits[] = {" + b"0x00," * 512 + b"};",
    "WMF": b"\xd7\xcd\xc6\x9a\0\0" + struct.pack("<hhhhH", 0, 0, 999, 999, 72) + bytes(64),
    "FITS": b"SIMPLE  =                    T".ljust(80) + b"END".ljust(2800),
    "HTML": b"<!DOCTYPE html><html><body>404</body></html>",
    "MVG": b"push graphic-context\nviewbox 0 0 640 480\nfill 'url(https://127.0.0.1/x|touch ../canary)'\n",
    "playlist": b"#EXTM3U\nfile:///etc/passwd\n",
}


@cache
def sample(form: str, mode: str) -> bytes:
    """A picture of 96 x 64 in a format; in a mode that the format has."""
    picture = Image.linear_gradient("L").resize((96, 64)).convert("RGB")
    data = io.BytesIO()
    try:
        picture.convert(mode).save(data, form)
    except (OSError, ValueError, KeyError):
        data = io.BytesIO()
        picture.save(data, form)
    return data.getvalue()


def animation(form: str) -> bytes:
    frames = [Image.new("RGB", (64, 64), colour) for colour in ("red", "green", "blue")]
    data = io.BytesIO()
    frames[0].save(data, form, save_all=True, append_images=frames[1:])
    return data.getvalue()


def png_of(width: int, height: int, data: bytes) -> bytes:
    """A PNG whose header may promise any size, with right checksums."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", data), (b"IEND", b""))
    parts = (struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def too_large(rng: Random) -> tuple[str, bytes]:
    """A header of a large picture: true, with all of its bytes, or a lie."""
    side = rng.choice((9_000, 13_000, 16_384, 16_385, 60_000, 2**31 - 1))
    if side > 13_000 or rng.random() < 0.5:
        return f"header says {side} a side", png_of(side, rng.choice((1, 40, side)), zlib.compress(bytes(9999)))
    if rng.random() < 0.5:
        return f"a real picture of {side} a side", png_of(side, side, zlib.compress(bytes((side * 3 + 1) * side), 1))
    data = io.BytesIO()
    Image.new("L", (side, side)).save(data, rng.choice(("JPEG", "TIFF", "GIF", "WEBP" if side < 16_384 else "PNG")))
    return f"a real picture of {side} a side", data.getvalue()


def turned(rng: Random) -> bytes:
    """A JPEG with EXIF, of which some may be no EXIF."""
    exif = Image.Exif()
    exif[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 65535))
    data = io.BytesIO()
    block = exif.tobytes() if rng.random() < 0.5 else b"Exif\0\0" + rng.randbytes(64)
    Image.new("RGB", (96, 64), "red").save(data, "JPEG", exif=block)
    return data.getvalue()


def content(rng: Random) -> tuple[str, bytes]:
    kind = rng.choice(
        ("damaged",) * 8 + ("large", "large", "text", "text", "text", "exif", "animation", "sound", "odd")
    )
    if kind == "damaged":
        form = rng.choice(FORMATS)
        how, data = damaged(sample(form, rng.choice(MODES)), rng)
        return f"{form}: {how}", data
    if kind == "large":
        return too_large(rng)
    if kind == "text":
        name = rng.choice(sorted(TEXTS))
        return name, TEXTS[name]
    if kind == "exif":
        return "EXIF", turned(rng)
    if kind == "animation":
        form = rng.choice(("GIF", "PNG", "WEBP", "TIFF"))
        how, data = damaged(animation(form), rng)
        return f"animated {form}: {how}", data
    if kind == "odd":
        size = rng.choice(((1, 1), (31, 64), (32, 32), (5000, 33), (33, 9000)))
        data = io.BytesIO()
        Image.new(rng.choice(("RGB", "L", "P", "1", "RGBA")), size).save(data, "PNG")
        return f"{size[0]} x {size[1]}", data.getvalue()
    return "random bytes", rng.randbytes(rng.choice((1, 12, 999)))


def build(rng: Random, folder: Path) -> Case:
    """A bad picture under a name that may not fit it."""
    path = folder / f"x{rng.choice(SUFFIXES)}"
    if rng.random() < 0.08:
        what = no_file(path, rng)
    else:
        what, data = content(rng)
        path.write_bytes(data)
    return Case(f"{what} as {path.name}", generate("--image", path.name))
