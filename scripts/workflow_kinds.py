"""The nodes that the workflows use, as they lie on the canvas: what a server says of them, and what only we know."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .workflow_widgets import DYNAMIC_COMBO, Input, companions, declared_inputs, inputs_below

Json = Any
"""What json.loads returns."""

CONTROL = "control_after_generate"
"""A widget that the editor puts below a seed."""


@dataclass(frozen=True)
class Kind:
    """A class of nodes. ``sockets`` are (name -> type); widgets are in the editor's order, (name -> first value)."""

    display_name: str
    width: int
    height: int
    sockets: Mapping[str, str] = field(default_factory=dict)
    widgets: Mapping[str, Json] = field(default_factory=dict)
    outputs: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    browser_only: tuple[str, ...] = ()
    """Widgets that are saved and not sent to the server."""


SIZES = {
    "HappyHorseModelLoader": (360, 110),
    "HappyHorseTextEncoderLoader": (360, 110),
    "HappyHorseVideoVAELoader": (360, 115),
    "HappyHorseAudioVAELoader": (360, 90),
    "LoraLoaderModelOnly": (360, 95),
    "LoadImage": (300, 340),
    "LoadAudio": (300, 140),
    "CLIPTextEncode": (440, 340),
    "HappyHorsePrompt": (440, 800),
    "HappyHorseNegativePrompt": (440, 220),
    "HappyHorseEmptyLatent": (300, 200),
    "HappyHorseImageToVideo": (300, 100),
    "HappyHorseAudioToVideo": (300, 100),
    "HappyHorseExtend": (300, 150),
    "HappyHorseSampler": (300, 160),
    "HappyHorseBaseSampler": (300, 290),
    "HappyHorseSuperResolution": (320, 310),
    "HappyHorseDecode": (300, 130),
    "HappyHorseJoinClips": (300, 130),
    "SaveVideo": (460, 420),
}
"""Width and height of a node on the canvas."""
FIRST_VALUES = {
    "HappyHorseModelLoader": {"model_name": "daVinci-MagiHuman/distill"},
    "HappyHorseTextEncoderLoader": {"text_encoder_name": "t5gemma-9b-9b-ul2"},
    "HappyHorseVideoVAELoader": {"decoder_name": "checkpoint-340000.ckpt", "encoder_name": "none"},
    "HappyHorseAudioVAELoader": {"audio_vae_name": "stable_audio_open_1.0.safetensors"},
    "LoadImage": {"image": "example.png"},
    "HappyHorseSampler": {"seed": 1},
    "HappyHorseBaseSampler": {"seed": 1},
    "HappyHorseSuperResolution": {"seed": 1},
}
"""What our workflows start from where it is not the default: files, which a server lists as it has them, and seeds."""
ADDED = {"LoadImage": {"upload": "image"}, "LoadAudio": {"audioUI": None, "upload": None}}
"""Widgets that the editor adds to a node and saves."""
NOTE = Kind("Markdown Note", 460, 580, widgets={"text": ""})


def read_kinds(object_info: Mapping[str, Json]) -> dict[str, Kind]:
    """The kinds by their ids, from a server's /object_info."""
    return {"MarkdownNote": NOTE} | {name: read_kind(name, object_info[name]) for name in SIZES}


def read_kind(name: str, description: Mapping[str, Json]) -> Kind:
    sockets = [item for item in declared_inputs(description) if not item.has_widget]
    widgets = list(shown_widgets([item for item in declared_inputs(description) if item.has_widget]))
    controls = [control for item in widgets for control in companions(item)]
    values: dict[str, Json] = {}
    for item in widgets:
        values |= {item.name: item.default()} | dict.fromkeys(companions(item), "randomize")
    return Kind(
        description["display_name"],
        *SIZES[name],
        sockets={item.name: item.type for item in sockets},
        widgets=values | FIRST_VALUES.get(name, {}) | ADDED.get(name, {}),
        outputs=tuple(zip(description["output_name"], description["output"], strict=True)),
        optional=tuple(item.name for item in sockets if not item.required),
        browser_only=(*controls, *ADDED.get(name, {})),
    )


def shown_widgets(inputs: Sequence[Input]) -> Iterator[Input]:
    """The inputs, and below each dynamic combo those of its default choice."""
    for item in inputs:
        yield item
        if item.type == DYNAMIC_COMBO:
            yield from shown_widgets(inputs_below(item, item.default()))
