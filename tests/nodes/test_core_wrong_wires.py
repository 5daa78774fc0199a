"""Each input of each node, given what does not belong there: an error names the input before any long work begins.

The cases come from the schemas: an input of a kind that has no wrong values here fails the last test of this file.
"""

from fractions import Fraction
from types import SimpleNamespace

import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from comfy_api.latest import InputImpl, Types
from happyhorse_pack import nodes as pack
from happyhorse_pack.nodes.host import diffusion, text_encoder, vae

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN")


class WorkBeganError(Exception):
    """Something that takes minutes with real weights was called."""


@pytest.fixture(autouse=True)
def no_work(monkeypatch):
    def begin(*args, **kwargs):
        raise WorkBeganError

    monkeypatch.setattr(diffusion.HostTransformer, "forward", begin)
    monkeypatch.setattr(text_encoder.HostTextModel, "encode_token_weights", begin)
    for kind in (vae.VideoAutoencoder, vae.AudioAutoencoder):
        monkeypatch.setattr(kind, "encode", begin)
        monkeypatch.setattr(kind, "decode", begin)


def words(text=tiny.PROMPT):
    """Conditioning of the right width. ``CLIP Text Encode`` would be work."""
    return [[torch.ones(1, 5, 24) if text.strip() else torch.zeros(1, 1, 24), {}]]


def sound(seconds=1.0, batch=1, rate=44100):
    return {"waveform": torch.zeros(batch, 2, int(seconds * rate)), "sample_rate": rate}


def film(pictures=41, fps=25):
    images = torch.zeros(pictures, 64, 96, 3)
    parts = Types.VideoComponents(images=images, audio=sound(pictures / 25), frame_rate=Fraction(fps))
    return InputImpl.VideoFromComponents(parts)


def sampled():
    video, audio = tiny.streams(tiny.empty())
    return pair(torch.ones_like(video), audio)


def pair(*streams, **extra):
    return {"samples": NestedTensor(list(streams)), **extra}


def video(channels=48, height=4, width=6, batch=1):
    return torch.ones(batch, channels, 3, height, width)


def audio(channels=64, batch=1):
    return torch.ones(batch, channels, 9)


def other_model():
    return SimpleNamespace(model=torch.nn.Identity())


def other_vae():
    return SimpleNamespace(first_stage_model=torch.nn.Identity(), latent_channels=4, latent_dim=2)


def enlarger():
    return tiny.model("daVinci-MagiHuman/540p_sr")


FILES = {
    "model_name": lambda: tiny.DISTILLED,
    "text_encoder_name": lambda: tiny.TEXT_ENCODER,
    "decoder_name": lambda: "checkpoint-340000.ckpt",
    "encoder_name": lambda: "Wan2.2_VAE.pth",
    "audio_vae_name": lambda: "stable_audio_open_1.0.safetensors",
}
RIGHT = FILES | {
    "model": tiny.model,
    "sr_model": enlarger,
    "clip": tiny.clip,
    "vae": tiny.video_vae,
    "audio_vae": tiny.audio_vae,
    "positive": words,
    "negative": words,
    "latent": sampled,
    "image": tiny.picture,
    "audio": sound,
    "video": film,
    "next_video": film,
    "description": lambda: "A room.",
}
"""What fits into each socket and each list of files; other widgets keep their defaults."""

RIGHT_FOR_NODE = {("HappyHorseExtend", "latent"): lambda: tiny.empty(frames=33)}

LATENTS = {
    "another model's": lambda: pair(video(channels=16), audio()),
    "another model's sound": lambda: pair(video(), audio(channels=8)),
    "no sound": lambda: pair(video(), audio()[:, :, :0]),
    "a picture": lambda: {"samples": torch.ones(1, 4, 8, 8)},
    "video alone": lambda: {"samples": video()},
    "sound alone": lambda: {"samples": audio()},
    "in the wrong order": lambda: pair(audio(), video()),
    "three streams": lambda: pair(video(), audio(), audio()),
    "odd sides": lambda: pair(video(height=5), audio()),
    "unlike batches": lambda: pair(video(batch=2), audio()),
    "no frames": lambda: pair(video()[:, :, :0], audio()),
    "a picture's mask on the sound": lambda: pair(
        video(), audio(), noise_mask=NestedTensor([torch.ones(1, 1, 64, 96), torch.ones(1, 1, 64, 96)])
    ),
}
IMAGES = {
    "several": lambda: tiny.picture().repeat(3, 1, 1, 1),
    "none": lambda: tiny.picture()[:0],
    "five channels": lambda: torch.ones(1, 64, 96, 5),
    "no pixels": lambda: torch.ones(1, 0, 96, 3),
}
SOUNDS = {
    "none": lambda: None,
    "several": lambda: sound(batch=2),
    "too long": lambda: sound(31.0),
    "shorter than a clip": lambda: sound(0.02),
    "empty": lambda: sound(0.0),
}
TEXTS = {"another encoder": lambda: [[torch.ones(1, 5, 768), {}]], "nothing": list}
VAES = {"another model's": other_vae}
WRONG = {
    "MODEL": {"another model": other_model},
    "CLIP": {"another model's": lambda: SimpleNamespace(cond_stage_model=torch.nn.Identity())},
    "VAE": VAES,
    "CONDITIONING": TEXTS,
    "LATENT": LATENTS,
    "IMAGE": IMAGES,
    "AUDIO": SOUNDS,
    "VIDEO": {"another frame rate": lambda: film(fps=30)},
}
"""Kind of a socket -> what is wrong -> the value."""
WRONG_BY_NAME = {
    "model": {"an enlarger": enlarger},
    "sr_model": {"a generator": tiny.model},
    "vae": {"the audio VAE": tiny.audio_vae},
    "audio_vae": {"the video VAE": tiny.video_vae},
    "positive": {"no words": lambda: words(" ")},
    **{name: {"missing": lambda: "missing.safetensors", "outside": lambda: "../../etc/hostname"} for name in FILES},
}
WRONG_BY_NODE = {
    ("HappyHorseImageToVideo", "vae"): {"without an encoder": lambda: tiny.video_vae("none")},
    ("HappyHorseExtend", "vae"): {"without an encoder": lambda: tiny.video_vae("none")},
    ("HappyHorseSuperResolution", "vae"): {
        "without an encoder": lambda: tiny.video_vae("none"),
        "nothing beside a picture": lambda: None,
    },
    ("HappyHorseSuperResolution", "latent"): {"empty": tiny.empty},
    ("HappyHorseExtend", "latent"): {"another size": lambda: tiny.empty(width=64)},
}


def inputs_of(node):
    return {item.id: item for item in node.GET_SCHEMA().inputs}


def wrong_values(node, item):
    """What is wrong -> a maker of the value, for one input of one node."""
    return (
        WRONG.get(item.get_io_type(), {})
        | WRONG_BY_NAME.get(item.id, {})
        | WRONG_BY_NODE.get((node.__name__, item.id), {})
    )


CASES = [
    pytest.param(node, name, make, id=f"{node.__name__}-{name}-{what}")
    for node in pack.NODES
    for name, item in inputs_of(node).items()
    for what, make in wrong_values(node, item).items()
]


def arguments(node):
    """Values that fit for all inputs that need one; the widgets' defaults for the rest."""
    values = {}
    for name, item in inputs_of(node).items():
        make = RIGHT_FOR_NODE.get((node.__name__, name), RIGHT.get(name))
        values[name] = make() if make is not None else item.default
    return values


@pytest.mark.parametrize(("node", "name", "make"), CASES)
def test_wrong_value_is_refused_by_name_before_any_work(node, name, make):
    with pytest.raises(ValueError, match=rf"^{name}: "):
        tiny.run(node, **(arguments(node) | {name: make()}))


@pytest.mark.parametrize("node", pack.NODES, ids=lambda node: node.__name__)
def test_right_values_get_past_the_checks(node):
    """Without this a test above could pass for another input's sake."""
    try:
        tiny.run(node, **arguments(node))
    except WorkBeganError:
        assert any(item.get_io_type() not in WIDGETS for item in inputs_of(node).values())


def test_every_input_is_covered():
    """Sockets by wrong values, numbers by bounds, lists by their options: those two ComfyUI checks before it runs."""
    open_inputs = []
    for node in pack.NODES:
        for name, item in inputs_of(node).items():
            kind = item.get_io_type()
            if kind in ("INT", "FLOAT"):
                covered = item.min is not None and item.max is not None and item.min <= item.default <= item.max
            elif kind == "COMBO":
                covered = bool(item.options) and (name not in FILES or wrong_values(node, item))
            else:
                covered = kind in ("STRING", "BOOLEAN") or wrong_values(node, item)
            if not covered:
                open_inputs.append(f"{node.__name__}.{name}")
    assert not open_inputs
