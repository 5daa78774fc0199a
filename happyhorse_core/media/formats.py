"""Which kinds of picture are opened, and what a file of another kind is."""

import importlib
from functools import cache
from pathlib import Path

from PIL import Image

FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "HEIF", "GIF", "BMP", "TIFF", "JPEG2000", "JXL")
"""Pillow's names of the formats that are opened. No other is asked: that of EPS would start Ghostscript on the file."""
PLUG_INS = ("pillow_heif", "pillow_jxl")
"""What brings HEIF and JPEG XL to Pillow, where it is installed."""

PREVIEW_TAG = 254
"""NewSubfileType of TIFF, which is 1 where a picture is a smaller copy of another one in the file."""

HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
ACCEPTED_STARTS = (
    *((b"\xff\xd8", "JPEG"), (b"\x89PNG", "PNG"), (b"GIF8", "GIF"), (b"BM", "BMP"), (b"II", "TIFF"), (b"MM", "TIFF")),
    *((b"\xff\x4f\xff\x51", "JPEG2000"), (b"\0\0\0\x0cjP", "JPEG2000")),
    *((b"\xff\x0a", "JXL"), (b"\0\0\0\x0cJXL ", "JXL")),
)
PACKAGES = {"HEIF": "pillow-heif", "JXL": "pillow-jxl-plugin", "AVIF": "a newer Pillow"}
OTHER_STARTS = (
    (b"%!PS", "a PostScript (EPS) file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript (EPS) file"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop file"),
    (b"gimp xcf", "a GIMP file"),
    (b"\xd0\xcf\x11\xe0", "an old Office or FlashPix file"),
    (b"PK\x03\x04", "a zip file, as those of Office and Krita are"),
    (b"<svg", "an SVG drawing"),
    (b"<?xml", "an XML file, as SVG drawings are"),
    (b"v/1\x01", "an OpenEXR picture"),
    (b"#?RADIANCE", "a Radiance HDR picture"),
    (b"DDS ", "a DDS texture"),
    (b"qoif", "a QOI picture"),
    (b"SIMPLE  =", "a FITS file"),
    (b"icns", "an icon of macOS"),
    (b"\0\0\1\0", "an icon of Windows"),
    (b"\xd7\xcd\xc6\x9a", "a Windows metafile"),
    (b"FUJIFILMCCD-RAW", "a camera's raw file"),
    (b"IIRO", "a camera's raw file"),
    (b"IIU\0", "a camera's raw file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"ID3", "a sound file"),
    (b"OggS", "a sound file"),
    (b"fLaC", "a sound file"),
)
"""What a file is by its first bytes."""
UNKNOWN = "no picture of a known kind"


def accepted_formats() -> list[str]:
    """Those of ``FORMATS`` that this Pillow and its plug-ins open."""
    _use_plug_ins()
    Image.init()
    return [name for name in FORMATS if name in Image.OPEN]


def describe_file(path: Path) -> str:
    """What kind of file this is, which no format in ``accepted_formats`` took, by its first bytes."""
    with path.open("rb") as file:
        start = file.read(16)
    name = _format_of(start)
    if name in accepted_formats():
        return f"a damaged {name} picture"
    if name:
        return f"a picture in {name}, for which {PACKAGES.get(name, 'another Pillow')} has to be installed"
    if start[4:8] == b"ftyp":
        return "a video"
    if start[:4] == b"RIFF":
        return {b"AVI ": "a video", b"WAVE": "a sound file"}.get(start[8:12], UNKNOWN)
    if start[:1] == b"P" and start[1:2] in b"1234567fF" and start[2:3].isspace():
        return "a PBM, PGM, PPM or PFM picture"
    return next((kind for first, kind in OTHER_STARTS if start.startswith(first)), UNKNOWN)


def _format_of(start: bytes) -> str:
    """Which of ``FORMATS`` begins like this, or ""."""
    if start[4:8] == b"ftyp":
        return "HEIF" if start[8:12] in HEIF_BRANDS else "AVIF" if start[8:12] in (b"avif", b"avis") else ""
    if start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        return "WEBP"
    return next((name for first, name in ACCEPTED_STARTS if start.startswith(first)), "")


@cache
def _use_plug_ins() -> None:
    for name in PLUG_INS:
        try:
            plug_in = importlib.import_module(name)
        except ImportError:
            continue
        # One of them registers itself where it is imported, the other when it is told to.
        getattr(plug_in, "register_heif_opener", lambda: None)()
