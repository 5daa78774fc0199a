"""What a node is given, checked by the kinds that its schema declares before it runs.

ComfyUI's server checks a widget's constant only, lets NaN past its limits, and hands on whatever a prompt holds in
place of a wire. Which model a MODEL, CLIP, VAE or LATENT is of is checked in ``checks`` and ``latents``.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from functools import wraps
from numbers import Real
from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ...happyhorse_core.errors import InputError, one_line
from ...happyhorse_core.finite import is_finite

FILE_NAMES = "_name"
"""The end of inputs that name a file: which there are is checked where it is looked up."""
SHOWN = 60
MOST_BITS = 128
"""Of a whole number that is shown as it is: Python writes none of more than 4,300 digits."""
MASK_RANKS = (2, 3, 4, 5)
"""Dimensions of noise masks: a picture's, a batch's, a video's."""


def checked(execute: Callable[..., io.NodeOutput]) -> Callable[..., io.NodeOutput]:
    """Wraps a node's ``execute``. Raises InputError that names the first input that is not of its kind."""
    signature = inspect.signature(execute)

    @wraps(execute)
    def run(cls: type[io.ComfyNode], *args: Any, **kwargs: Any) -> io.NodeOutput:
        unknown = next((name for name in kwargs if name not in signature.parameters), None)
        if unknown is not None:
            # The server hands on every wire of a prompt, also one to an input of an older version.
            raise InputError(
                f"{one_line(unknown, SHOWN)}: found an input that this node has not, expected those that it shows. "
                "Take it out of the workflow, or add the node anew."
            )
        given = signature.bind(cls, *args, **kwargs).arguments
        for item in cls.define_schema().inputs:
            if item.id in given:
                given[item.id] = fitting(item, given[item.id])
        return execute(**given)

    return run


def fitting(item: io.Input, value: Any) -> Any:
    """``value`` as an input takes it: itself, or the same number in another type. Raises InputError if it is wrong."""
    kind = item.get_io_type()
    if kind in WIDGETS:
        return WIDGETS[kind](item, value)
    if value is not None or not item.optional:
        check_socket(kind, value, item.id)
    return value


def check_socket(kind: str, value: Any, name: str) -> None:
    """Raises InputError that calls ``value`` ``name`` unless it is of a kind of ``SOCKETS`` and has finite numbers."""
    fits, wanted = SOCKETS[kind]
    if not fits(value):
        raise wrong(name, value, wanted)
    if any(not is_finite(tensor) for tensor in numbers_of(kind, value)):
        raise InputError(
            f"{name}: found values that are no numbers (NaN or infinite), expected finite ones. Something before "
            "this node went wrong: a damaged file, or a precision that its model can't be run in."
        )


def wrong(name: str, value: Any, wanted: str) -> InputError:
    return InputError(f"{name}: found {shown(value)}, expected {wanted}.")


def shown(value: Any) -> str:
    """A value in words, for an error."""
    if value is None:
        return "nothing"
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}, {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, str):
        return f"the text {one_line(value, SHOWN)!r}"
    if isinstance(value, int) and value.bit_length() > MOST_BITS:
        return f"a whole number of {value.bit_length()} bits"
    if isinstance(value, bool | Real):
        return one_line(str(value), SHOWN)
    if isinstance(value, dict):
        return f"a dictionary of {one_line(', '.join(map(str, value)), SHOWN) or 'nothing'}"
    if isinstance(value, list | tuple):
        return f"a list of {len(value)}"
    return type(value).__name__


# widgets


def whole_number(item: io.Int.Input, value: Any) -> int:
    real = isinstance(value, Real) and not isinstance(value, bool)
    if not real or not item.min <= value <= item.max or value != int(value):  # NaN is within no limits
        raise wrong(item.id, value, f"a whole number from {item.min} to {item.max}")
    return int(value)


def number(item: io.Float.Input, value: Any) -> float:
    real = isinstance(value, Real) and not isinstance(value, bool)
    # One step of rounding past the ends: 1 / 25 is no number that a canvas can hold exactly.
    if not real or not item.min - 1e-6 <= value <= item.max + 1e-6:
        raise wrong(item.id, value, f"a number from {item.min:g} to {item.max:g}")
    return float(value)


def text(item: io.String.Input, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(item.id, value, "a text")
    for character in value:
        if character == "\0" or "\ud800" <= character <= "\udfff":
            raise InputError(f"{item.id}: found the character {character!a}, expected text in Unicode.")
    return value


def choice(item: io.Combo.Input, value: Any) -> str:
    if not isinstance(value, str):
        raise wrong(item.id, value, "one of its choices")
    if value not in item.options and not item.id.endswith(FILE_NAMES):
        raise wrong(item.id, value, f"one of {', '.join(item.options)}")
    return value


WIDGETS: dict[str, Callable[[Any, Any], Any]] = {"INT": whole_number, "FLOAT": number, "STRING": text, "COMBO": choice}


# sockets


def has_numbers(value: Any, ranks: Sequence[int]) -> bool:
    """Whether ``value`` is a tensor of floats that are there to be read, of one of ``ranks`` dimensions."""
    if not isinstance(value, Tensor) or value.ndim not in ranks:
        return False
    return value.is_floating_point() and value.layout == torch.strided and not value.is_meta


def is_conditioning(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(one, list | tuple)
        and len(one) == 2
        and has_numbers(one[0], (3,))
        and one[0].numel() > 0
        and isinstance(one[1], dict)
        for one in value
    )


def is_latent(value: Any) -> bool:
    if not isinstance(value, dict):
        return False
    samples = streams(value.get("samples"))
    return bool(samples) and all(has_numbers(stream, range(2, 6)) for stream in samples) and has_fitting_mask(value)


def has_fitting_mask(latent: dict) -> bool:
    """Whether its noise mask, if it has one, can be laid on the video, and a part of it on the sound."""
    mask = latent.get("noise_mask")
    masks = streams(mask)
    if getattr(mask, "is_nested", False) and len(masks) < 2:
        return False
    return mask is None or all(isinstance(one, Tensor) and one.ndim in MASK_RANKS and one.numel() for one in masks)


def streams(value: Any) -> list:
    """What a latent holds, which is one tensor or the host's several in one."""
    return list(value.unbind()) if getattr(value, "is_nested", False) else [value]


def is_image(value: Any) -> bool:
    return has_numbers(value, (4,))


def is_audio(value: Any) -> bool:
    """Any mapping: other nodes read a file only when its sound is asked for."""
    if not isinstance(value, Mapping) or not {"waveform", "sample_rate"} <= set(value):
        return False
    return has_numbers(value["waveform"], (3,)) and isinstance(value["sample_rate"], Real)


def has(name: str) -> Callable[[Any], bool]:
    return lambda value: getattr(value, name, None) is not None


SOCKETS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "MODEL": (has("model"), "a model: connect Load HappyHorse Model"),
    "CLIP": (has("cond_stage_model"), "a text encoder: connect Load HappyHorse Text Encoder"),
    "VAE": (has("first_stage_model"), "a VAE: connect Load HappyHorse Video VAE or Load HappyHorse Audio VAE"),
    "CONDITIONING": (is_conditioning, "an encoded prompt: connect CLIP Text Encode"),
    "LATENT": (
        is_latent,
        "a latent, and if it has a noise mask one that fits: connect Empty HappyHorse Latent or what follows it",
    ),
    "IMAGE": (is_image, "pictures, [number, height, width, channels]: connect Load Image"),
    "AUDIO": (
        is_audio,
        "sound with its sample rate: connect Load Audio. The video that it came from may have no sound track",
    ),
    "VIDEO": (has("get_components"), "a video: connect HappyHorse Decode or Load Video"),
}
"""Kind of a socket -> whether a value is of it, and what it should be."""


def numbers_of(kind: str, value: Any) -> list[Tensor]:
    """The tensors of a socket's value that a node computes on."""
    if kind == "CONDITIONING":
        return [one[0] for one in value]
    if kind == "LATENT":
        return streams(value["samples"])
    return {"IMAGE": lambda: [value], "AUDIO": lambda: [value["waveform"]]}.get(kind, list)()
