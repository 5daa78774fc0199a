"""What a checkpoint is for. Tensors don't tell: base, distilled and both super-resolution models share every shape."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ..errors import CheckpointError
from .config import COORDS_BASE, COORDS_SR


@dataclass(frozen=True)
class Role:
    """How a checkpoint is run: where tokens stand, whether attention is local, steps and guidance of its training."""

    name: str
    coords_style: str
    local_attention: bool
    steps: int
    guided: bool

    @property
    def is_super_resolution(self) -> bool:
        return self.coords_style == COORDS_SR


BASE = Role("base", COORDS_BASE, local_attention=False, steps=32, guided=True)
DISTILLED = Role("distilled", COORDS_BASE, local_attention=False, steps=8, guided=False)
SR_540P = Role("540p_sr", COORDS_SR, local_attention=False, steps=5, guided=False)
SR_1080P = Role("1080p_sr", COORDS_SR, local_attention=True, steps=5, guided=False)
ROLES = {role.name: role for role in (BASE, DISTILLED, SR_540P, SR_1080P)}

RELEASED_FOLDERS = {"base": BASE, "distill": DISTILLED, "540p_sr": SR_540P, "1080p_sr": SR_1080P}
"""Folder names of the released daVinci-MagiHuman repository."""
METADATA_KEY = "happyhorse.role"
ASSUMED = "assumed, since neither metadata nor the folder's name tells"
"""Where a role comes from that nothing tells."""


def resolve_role(requested: str | None, metadata: Mapping[str, str], path: Path) -> tuple[Role, str]:
    """The role of a checkpoint and, in words for the log, where it was found.

    In this order: what the user asked for, the file's metadata, the name of the released folder; else distilled.
    Raises CheckpointError for a name that is no role, and where the request and the metadata disagree.
    """
    written = metadata.get(METADATA_KEY)
    for name, where in ((requested, "the requested role"), (written, f"the metadata {METADATA_KEY!r}")):
        if name is not None and name not in ROLES:
            raise CheckpointError(f"{path}: {where} is {name!r}, expected one of {', '.join(ROLES)}.")
    if requested and written and requested != written:
        raise CheckpointError(
            f"{path}: its metadata says it is the {written} model, but it was asked for as {requested}. "
            f"Choose {written}, or another file."
        )
    if requested:
        return ROLES[requested], "as requested"
    if written:
        return ROLES[written], "from the file's metadata"
    folder = path.name if path.is_dir() else path.parent.name
    if folder in RELEASED_FOLDERS:
        return RELEASED_FOLDERS[folder], f"from the folder name {folder}"
    return DISTILLED, ASSUMED
