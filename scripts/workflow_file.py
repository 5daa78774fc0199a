"""The workflow in a file: JSON, or a picture, clip or sound that ComfyUI saved with the workflow that made it.

Each kind of file is told by its first bytes and read by the one reader for it: nothing in a file chooses another.
"""

import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from .texts import one_line, read_json
from .workflow_format import Json, WorkflowError, check_format, is_api, is_canvas

LARGEST_JSON = 64 << 20
"""Bytes of a workflow."""
START = 12
"""Bytes that tell the kind of a file."""
CONTAINERS = {b"ftyp": "mp4", b"\x1a\x45\xdf\xa3": "matroska", b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3"}
"""What clips and sounds start with; mp4 after four other bytes."""
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error)
"""What Pillow raises for a damaged picture."""


class Saved(NamedTuple):
    """What a file holds: the workflow to run, in either format, and what the editor is to show, where it has it."""

    workflow: dict
    canvas: dict | None


def read_workflow(path: Path) -> Saved:
    """The workflow in a file; WorkflowError says what is wrong with it.

    Of what ComfyUI saved the workflow as it ran is taken, which needs no conversion.
    """
    try:
        if path.exists() and not path.is_file():
            raise WorkflowError(f"{path} is no file.")
        held = embedded_texts(path)
        if held is None:
            if path.stat().st_size > LARGEST_JSON:
                raise WorkflowError(f"{path} has more than the {LARGEST_JSON:,} bytes that a workflow may have.")
            held = {"": path.read_text(encoding="utf-8-sig")}
        parts = {name: read_json(text) for name, text in held.items()}
    except WorkflowError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise WorkflowError(f"{path} cannot be read: {error}") from error
    except ValueError as error:
        raise WorkflowError(f"{path} is not JSON: {error}") from error
    return choose(path, parts)


def choose(path: Path, parts: dict[str, Json]) -> Saved:
    """The workflow and the canvas among the parts of a file, of which "" is all of a file of JSON."""
    if not parts:
        raise WorkflowError(f"{path} holds no workflow: ComfyUI saved it without one, or another program changed it.")
    whole = parts.get("")
    if isinstance(whole, dict) and is_api(whole.get("prompt")):  # as it is sent to the server
        parts = whole
    workflow = parts["prompt"] if is_api(parts.get("prompt")) else parts.get("workflow", whole)
    check_format(workflow)
    canvas = workflow if is_canvas(workflow) else parts.get("workflow")
    return Saved(workflow, canvas if is_canvas(canvas) else None)


def embedded_texts(path: Path) -> dict[str, str] | None:
    """The texts "workflow" and "prompt" that a file holds beside its picture or sound; None for other files."""
    with path.open("rb") as file:
        start = file.read(START)
    container = next((name for sign, name in CONTAINERS.items() if sign in (start[: len(sign)], start[4:8])), None)
    if start.startswith(b"\x89PNG"):
        texts = of_png(path)
    elif start[:4] == b"RIFF" and start[8:12] == b"WEBP":
        texts = of_webp(path)
    elif container is not None:
        texts = of_container(path, container)
    else:
        return None
    return {name.lower(): text for name, text in texts if name.lower() in ("workflow", "prompt")}


def of_png(path: Path) -> Iterator[tuple[str, str]]:
    try:
        from PIL.PngImagePlugin import PngImageFile
    except ImportError:
        raise missing(path, "Pillow") from None
    try:
        with PngImageFile(path) as picture:
            yield from ((name, text) for name, text in picture.info.items() if isinstance(text, str))
    except DAMAGE as error:
        raise damaged(path, error) from error


def of_webp(path: Path) -> Iterator[tuple[str, str]]:
    """ComfyUI keeps them as NAME:TEXT in the fields of EXIF."""
    try:
        from PIL.WebPImagePlugin import WebPImageFile
    except ImportError:
        raise missing(path, "Pillow") from None
    try:
        with WebPImageFile(path) as picture:
            fields = list(picture.getexif().values())
    except DAMAGE as error:
        raise damaged(path, error) from error
    for field in fields:
        name, colon, text = str(field).partition(":")
        if colon:
            yield name, text


def of_container(path: Path, kind: str) -> Iterator[tuple[str, str]]:
    try:
        import av
    except ImportError:
        raise missing(path, "av") from None
    try:
        with av.open(path, format=kind, metadata_errors="replace") as file:
            yield from file.metadata.items()
            for stream in file.streams:  # where Ogg has them
                yield from stream.metadata.items()
    except (av.FFmpegError, ValueError) as error:
        raise damaged(path, error) from error


def damaged(path: Path, error: Exception) -> WorkflowError:
    return WorkflowError(f"{path} is damaged, so that no workflow can be read out of it: {one_line(error, 300)}")


def missing(path: Path, library: str) -> WorkflowError:
    return WorkflowError(
        f"This Python lacks {library}, which reads the workflow out of {path}. Start the script with the Python of a "
        "ComfyUI, or name a workflow in JSON."
    )
