"""Weights in the host's model folders: what a loader lists, and where a chosen entry lies on disk."""

import re
from collections.abc import Sequence
from pathlib import Path, PurePath

import folder_paths

SHARD = re.compile(r"^(?P<stem>.+)-\d{5}-of-\d{5}\.safetensors$")


def list_entries(kind: str) -> list[str]:
    """Files of one of the host's model folders, with each set of shards shown once, as the folder that holds it."""
    return collapse_shards(folder_paths.get_filename_list(kind))


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
    relative = PurePath(name)
    if not relative.is_absolute() and ".." not in relative.parts:
        for root in roots:
            if (root / relative).exists():
                return str(root / relative)
    raise ValueError(
        f"{field}: {name!r} is not in the {kind} folder ({', '.join(map(str, roots))}). Put the file or folder there "
        "and refresh, or choose another."
    )


def preferred(entries: Sequence[str], *hints: str) -> str | None:
    """The first entry whose name has one of the hints in it, so that a fresh loader shows the likely choice."""
    found = (entry for hint in hints for entry in entries if hint.lower() in entry.lower())
    return next(found, entries[0] if entries else None)
