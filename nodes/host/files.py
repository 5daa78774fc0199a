"""Weights in the host's model folders and in the pack: what a loader lists, and where a chosen entry lies on disk."""

import os
import re
from collections.abc import Sequence
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath

import folder_paths

from ...happyhorse_core.dit.roles import BASE, DISTILLED
from ...happyhorse_core.errors import InputError, one_line
from ...happyhorse_core.model_folder import AUDIO_VAE, IMAGE_ENCODER, TEXT_ENCODER, TRANSFORMERS, VIDEO_DECODER

SHARD = re.compile(r"^(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors$")

LONGEST_SHOWN = 300
SHIPPED = "HappyHorse-Pony"
"""What the entries of the Pony begin with, the small model that comes with the pack."""
SHIPPED_FOLDER = Path(__file__).resolve().parents[2] / "pony"
SHIPPED_PLACES = {
    "diffusion_models": [TRANSFORMERS[role.name].places[0] for role in (DISTILLED, BASE)],
    "text_encoders": [TEXT_ENCODER.places[0]],
    "vae": [part.places[0] for part in (VIDEO_DECODER, IMAGE_ENCODER, AUDIO_VAE)],
}


def list_entries(kind: str) -> list[str]:
    """Files of one of the host's model folders, with each set of shards shown once, as the folder that holds it.

    The pack's own come last.
    """
    shipped = [f"{SHIPPED}/{place}" for place in SHIPPED_PLACES[kind] if (SHIPPED_FOLDER / place).exists()]
    return collapse_shards(folder_paths.get_filename_list(kind)) + shipped


def collapse_shards(names: Sequence[str]) -> list[str]:
    """``A/model-00001-of-00013.safetensors`` and the rest become ``A``; shards that lie in no folder, their index."""
    entries = set()
    for name in names:
        path = PurePath(name)
        shard = SHARD.match(path.name)
        if shard is None:
            entries.add(name)
        elif path.parent == PurePath():
            entries.add(f"{shard['stem']}.safetensors.index.json")
        else:
            entries.add(path.parent.as_posix())
    return sorted(entries)


def resolve_entry(kind: str, name: str, field: str) -> str:
    """Full path of an entry that a loader listed. ``field`` is the input that it came from, for the error.

    Names come from saved workflows, so they are kept inside the model folders.
    """
    roots = [Path(root) for root in folder_paths.get_folder_paths(kind)]
    if stays_below(name):
        relative = PurePath(name)
        places = [root / relative for root in roots]
        if relative.parts[:1] == (SHIPPED,):
            places.append(SHIPPED_FOLDER.joinpath(*relative.parts[1:]))
        for place in places:
            if os.path.exists(place):  # noqa: PTH110 - Path.exists raises for a name that is too long
                return str(place)
    raise InputError(
        f"{field}: {one_line(name, LONGEST_SHOWN)!r} is not in the {kind} folder ({', '.join(map(str, roots))}). "
        "Put the file or folder there and refresh, or choose another."
    )


def stays_below(name: str) -> bool:
    """Whether a name, appended to a folder, lies below it on every system: no root, no drive, no step up, not empty."""
    paths = [PurePosixPath(name), PureWindowsPath(name)]
    return all(path.parts and not path.anchor and ".." not in path.parts for path in paths)


def own(entries: Sequence[str]) -> list[str]:
    """What the user put there or, where that is nothing, what is shipped: the two don't go together."""
    return [entry for entry in entries if not entry.startswith(f"{SHIPPED}/")] or list(entries)


def preferred(entries: Sequence[str], *hints: str) -> str | None:
    """The first entry whose name has one of the hints in it, so that a fresh loader shows the likely choice."""
    entries = own(entries)
    found = (entry for hint in hints for entry in entries if hint.lower() in entry.lower())
    return next(found, entries[0] if entries else None)
