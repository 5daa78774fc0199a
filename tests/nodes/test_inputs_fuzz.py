"""Every input of every node, given one wrong value after the other: each ends in one line that names an input, or in
a right result, and never in an error of Python's own."""

import io
import math
from collections.abc import Mapping
from fractions import Fraction
from types import SimpleNamespace

import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import InputImpl, Types
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.errors import HappyHorseError
from test_core_wrong_wires import WorkBeganError, arguments, inputs_of, no_work, pair, sound, video

assert no_work, "the fixture that ends a test where long work would begin"

CONSTANTS = {
    "null": None,
    "true": True,
    "0": 0,
    "-1": -1,
    "0.3": 0.3,
    "2^64": 2**64,
    "10^5000": 10**5000,
    "NaN": math.nan,
    "Infinity": math.inf,
    "-Infinity": -math.inf,
    "-1e308": -1e308,
    "no text": "",
    "text": "model",
    "lines": "a\nb\x1b[31m\0",
    "half of a pair of surrogates": "\ud800",
    "long text": "x" * 200_000,
    "a way out of the folder": "../../etc/passwd",
    "empty list": [],
    "list": [1, "a", None],
    "a wire in a list": [["1", 0]],
    "empty dict": {},
    "samples that are text": {"samples": "x"},
    "a sound of text": {"waveform": "x", "sample_rate": "y"},
    "an object": SimpleNamespace(),
    "a module": torch.nn.Identity(),
    "a tensor without dimensions": torch.ones(()),
    "a tensor of two dimensions": torch.ones(2, 3),
}
"""What a prompt of the API can hold where a wire belongs, and a little more."""


def masked(*masks):
    return pair(video(), torch.ones(1, 64, 9), noise_mask=NestedTensor(list(masks)))


def filmed(**parts):
    right = {"images": torch.zeros(41, 64, 96, 3), "audio": sound(), "frame_rate": Fraction(25)}
    return InputImpl.VideoFromComponents(Types.VideoComponents(**right | parts))


def text(tensor, extra=None):
    return [[tensor, {} if extra is None else extra]]


nan, ones = torch.full((1, 5, 24), math.nan), torch.ones
CONTENT = {
    "MODEL": {"without weights": SimpleNamespace(model=None)},
    "CLIP": {"without weights": SimpleNamespace(cond_stage_model=None)},
    "VAE": {"without weights": SimpleNamespace(first_stage_model=None)},
    "VIDEO": {
        "without a way in": SimpleNamespace(get_components=None),
        "no video file": InputImpl.VideoFromFile(io.BytesIO(b"x" * 100)),
        "an empty file": InputImpl.VideoFromFile(io.BytesIO()),
        "pictures of text": filmed(images="x"),
        "pictures of bytes": filmed(images=torch.ones(41, 64, 96, 3, dtype=torch.uint8)),
        "sound of text": filmed(audio="x"),
        "sound without a rate": filmed(audio={"waveform": torch.ones(1, 2, 44100)}),
        "sound at rate 0": filmed(audio=sound() | {"sample_rate": 0}),
        "sound at rate NaN": filmed(audio=sound() | {"sample_rate": math.nan}),
        "several sounds": filmed(audio=sound(batch=2)),
        "NaN sound": filmed(audio={"waveform": torch.ones(1, 2, 44100) * math.nan, "sample_rate": 44100}),
    },
    "CONDITIONING": {
        "whole numbers": text(ones(1, 5, 24, dtype=torch.long)),
        "two dimensions": text(ones(5, 24)),
        "no tokens": text(ones(1, 0, 24)),
        "NaN": text(nan),
        "text": text("x"),
        "no dict": text(ones(1, 5, 24), "x"),
        "a tensor": ones(1, 5, 24),
        "a single": [[ones(1, 5, 24)]],
        "a triple": [[ones(1, 5, 24), {}, {}]],
        "on no device": text(ones(1, 5, 24, device="meta")),
        "sparse": text(ones(1, 5, 24).to_sparse()),
    },
    "LATENT": {
        "a tensor": video(),
        "a number": {"samples": 3},
        "no streams": pair(),
        "whole numbers": {"samples": ones(1, 48, 3, 4, 6, dtype=torch.int32)},
        "one dimension": {"samples": torch.zeros(5)},
        "two dimensions, empty": {"samples": torch.zeros(2, 3)},
        "three dimensions, empty": {"samples": torch.zeros(1, 64, 9)},
        "no values": {"samples": torch.zeros(0, 4, 8, 8)},
        "six dimensions": {"samples": torch.zeros(1, 4, 1, 1, 8, 8)},
        "NaN": pair(video() * math.nan, ones(1, 64, 9)),
        "NaN in the sound": pair(video(), ones(1, 64, 9) * math.nan),
        "text in a stream": pair(video(), "x"),
        "no number of dimensions": {"samples": torch.tensor(0.0)},
        "a mask of text": {**pair(video(), ones(1, 64, 9)), "noise_mask": "x"},
        "a mask of one dimension": {**pair(video(), ones(1, 64, 9)), "noise_mask": ones(4)},
        "a mask without values": {**pair(video(), ones(1, 64, 9)), "noise_mask": ones(1, 0, 4)},
        "a mask of one stream": masked(ones(1, 1, 3, 4, 6)),
        "a mask of text in a stream": masked(ones(1, 1, 3, 4, 6), "x"),
    },
    "IMAGE": {
        "bytes": ones(1, 64, 96, 3, dtype=torch.uint8),
        "no batch": ones(64, 96, 3),
        "NaN": ones(1, 64, 96, 3) * math.nan,
        "text": "x",
    },
    "AUDIO": {
        "no rate": {"waveform": ones(1, 2, 44100)},
        "no waveform": {"sample_rate": 44100},
        "rate 0": sound() | {"sample_rate": 0},
        "rate NaN": sound() | {"sample_rate": math.nan},
        "rate of text": sound() | {"sample_rate": "44100"},
        "rate too large": sound() | {"sample_rate": 10**30},
        "whole numbers": {"waveform": ones(1, 2, 44100, dtype=torch.int16), "sample_rate": 44100},
        "two dimensions": {"waveform": ones(2, 44100), "sample_rate": 44100},
        "no channels": {"waveform": ones(1, 0, 44100), "sample_rate": 44100},
        "NaN": {"waveform": ones(1, 2, 44100) * math.nan, "sample_rate": 44100},
    },
}
"""Kind of a socket -> what is wrong in a value that looks right."""


def wrong_values(item):
    return CONSTANTS | CONTENT.get(item.get_io_type(), {})


@pytest.mark.parametrize("node", pack.NODES, ids=lambda node: node.__name__)
def test_each_wrong_value_ends_in_one_line_or_a_right_result(node):
    right = arguments(node)
    for name, item in inputs_of(node).items():
        for what, value in wrong_values(item).items():
            try:
                tiny.run(node, **right | {name: value})
            except HappyHorseError as error:
                named = str(error).partition(": ")[0]
                # A right value may show another input as wrong: a speaker who says nothing.
                assert named == name or (fits(item, value) and named in right), (name, what, str(error))
                assert str(error).isprintable()
            except WorkBeganError:
                assert fits(item, value), (name, what, "long work began")
            except Exception as error:
                raise AssertionError(f"{name}, {what}: {error!r}") from error
            else:
                assert fits(item, value), (name, what, "no error")


def fits(item, value):
    """Whether a value from ``CONSTANTS`` is a right one for an input after all."""
    kind = item.get_io_type()
    if value is None:
        return item.optional
    if kind in ("INT", "FLOAT"):
        number = isinstance(value, int if kind == "INT" else (int, float)) and not isinstance(value, bool)
        return number and item.min <= value <= item.max
    return kind == "STRING" and isinstance(value, str)


def test_a_picture_of_no_numbers_is_not_gone_on_from():
    film = filmed(images=torch.full((41, 64, 96, 3), math.nan))
    with pytest.raises(HappyHorseError, match="^video: found values that are no numbers"):
        tiny.run(pack.HappyHorseExtend, **arguments(pack.HappyHorseExtend) | {"video": film})


class LazySound(Mapping):
    """Sound as other packs give it: a mapping, read when it is asked for."""

    def __getitem__(self, key):
        return {"waveform": torch.zeros(1, 2, 44100), "sample_rate": 44100.0}[key]

    def __iter__(self):
        return iter(("waveform", "sample_rate"))

    def __len__(self):
        return 2


def test_sound_that_is_read_when_asked_for_is_right():
    with pytest.raises(WorkBeganError):
        tiny.run(pack.HappyHorseAudioToVideo, **arguments(pack.HappyHorseAudioToVideo) | {"audio": LazySound()})


@pytest.mark.parametrize("node", pack.NODES)
def test_an_input_that_the_node_has_not_is_refused_by_its_name(node):
    with pytest.raises(ValueError, match=r"^of_an_older_version: found an input that this node has not, .*[.]$"):
        tiny.run(node, **arguments(node), of_an_older_version=1)
