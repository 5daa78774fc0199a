"""Finds the parts of the model in a folder, by the names under which they are published."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .dit.roles import BASE, DISTILLED, SR_540P, SR_1080P
from .errors import CheckpointError
from .weights.files import exists, is_folder

MAGIHUMAN = "GAIR/daVinci-MagiHuman"


@dataclass(frozen=True)
class Part:
    """One part of the model: what it is called, where it may lie below the folder, where it is published."""

    title: str
    places: tuple[str, ...]
    published: str


def _transformer(folder: str) -> Part:
    places = (folder, f"daVinci-MagiHuman/{folder}", f"diffusion_models/{folder}")
    return Part("transformer", (*places, f"diffusion_models/daVinci-MagiHuman/{folder}"), f"{MAGIHUMAN}, {folder}/")


TRANSFORMERS = {
    DISTILLED.name: _transformer("distill"),
    BASE.name: _transformer("base"),
    SR_540P.name: _transformer("540p_sr"),
    SR_1080P.name: _transformer("1080p_sr"),
}
TEXT_ENCODER = Part(
    "text encoder", ("t5gemma-9b-9b-ul2", "text_encoders/t5gemma-9b-9b-ul2"), "google/t5gemma-9b-9b-ul2"
)
VIDEO_DECODER = Part(
    "video decoder",
    (
        "turbo_vae/checkpoint-340000.ckpt",
        "daVinci-MagiHuman/turbo_vae/checkpoint-340000.ckpt",
        "vae/checkpoint-340000.ckpt",
    ),
    f"{MAGIHUMAN}, turbo_vae/",
)
IMAGE_ENCODER = Part(
    "image encoder",
    ("Wan2.2-TI2V-5B/Wan2.2_VAE.pth", "vae/Wan2.2_VAE.pth", "Wan2.2_VAE.pth"),
    "Wan-AI/Wan2.2-TI2V-5B, Wan2.2_VAE.pth",
)
AUDIO_VAE = Part(
    "audio autoencoder",
    ("stable-audio-open-1.0/model.safetensors", "vae/stable_audio_open_1.0.safetensors"),
    "stabilityai/stable-audio-open-1.0, model.safetensors",
)


@dataclass(frozen=True)
class ModelFiles:
    """Paths of the parts that one run needs.

    ``image_encoder`` only where a picture is given, ``sr_transformer`` only where the clip is enlarged.
    """

    transformer: Path
    text_encoder: Path
    video_decoder: Path
    audio_vae: Path
    image_encoder: Path | None = None
    sr_transformer: Path | None = None


def find_models(
    folder: Path,
    role: str,
    *,
    with_image: bool,
    sr_role: str | None = None,
    chosen: Mapping[str, Path] | None = None,
) -> ModelFiles:
    """Finds every part below ``folder``; ``chosen`` maps a part's field name to a path that is taken instead.

    Raises CheckpointError naming the folder if it is missing, or the part, where it was looked for and where it is
    published.
    """
    chosen = chosen or {}
    is_there = exists(folder)
    if not is_there or not is_folder(folder):
        found = "a file" if is_there else "nothing"
        raise CheckpointError(f"models folder {folder}: found {found}, expected a folder with the model's parts.")
    parts = {
        "transformer": TRANSFORMERS[role],
        "text_encoder": TEXT_ENCODER,
        "video_decoder": VIDEO_DECODER,
        "audio_vae": AUDIO_VAE,
    }
    if with_image:
        parts["image_encoder"] = IMAGE_ENCODER
    if sr_role is not None:
        parts["sr_transformer"] = replace(TRANSFORMERS[sr_role], title="super-resolution transformer")
    paths = {field: chosen.get(field) or _find(folder, part) for field, part in parts.items()}
    return ModelFiles(**paths)


def _find(folder: Path, part: Part) -> Path:
    for place in part.places:
        if exists(folder / place):
            return folder / place
    raise CheckpointError(
        f"{part.title}: not found in {folder}, expected one of {', '.join(part.places)}. "
        f"It is published as {part.published}; it can also be named by an option of its own."
    )
