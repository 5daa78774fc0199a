"""Stopping in the middle of each stage: it ends there, and the next run is right."""

import comfy.model_management
import comfy.utils
import pytest
import tiny
import torch
from comfy.model_management import InterruptProcessingException, interrupt_current_processing
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise

import nodes


@pytest.fixture(autouse=True)
def nothing_left_over():
    yield
    interrupt_current_processing(False)


def load_model():
    patcher = tiny.run(pack.HappyHorseModelLoader, model_name=tiny.DISTILLED)[0]
    return list(patcher.model.diffusion_model.state_dict().values())


def load_text_encoder():
    clip = tiny.run(pack.HappyHorseTextEncoderLoader, text_encoder_name=tiny.TEXT_ENCODER)[0]
    return list(clip.cond_stage_model.state_dict().values())


def load_video_vae():
    names = {"decoder_name": "checkpoint-340000.ckpt", "encoder_name": "Wan2.2_VAE.pth"}
    return list(tiny.run(pack.HappyHorseVideoVAELoader, **names)[0].first_stage_model.state_dict().values())


def load_audio_vae():
    inputs = {"audio_vae_name": "stable_audio_open_1.0.safetensors"}
    return list(tiny.run(pack.HappyHorseAudioVAELoader, **inputs)[0].first_stage_model.state_dict().values())


LOADS = [load_model, load_text_encoder, load_video_vae, load_audio_vae]


@pytest.mark.parametrize("load", LOADS, ids=lambda load: load.__name__)
def test_interrupted_load(load, monkeypatch):
    expected, seen = load(), []

    def stop(value, total, preview, node_id=None):
        seen.append((value, total))
        interrupt_current_processing(True)

    monkeypatch.setattr(comfy.utils, "PROGRESS_BAR_HOOK", stop)
    with pytest.raises(InterruptProcessingException):
        load()
    monkeypatch.undo()
    assert len(seen) == 1 and seen[0][0] < seen[0][1], "it stopped at the second part of several"
    assert all(torch.equal(a, b) for a, b in zip(load(), expected, strict=True))


def encode_text():
    return [nodes.CLIPTextEncode().encode(tiny.clip(), tiny.PROMPT)[0][0][0]]


def sample():
    inputs = {"positive": tiny.positive(), "latent": tiny.empty(), "seed": 3, "steps": 2}
    return list(tiny.streams(tiny.run(pack.HappyHorseSampler, model=tiny.model(), **inputs)[0]))


def sample_base():
    prompts = {"positive": tiny.positive(), "negative": tiny.positive("Blurred.")}
    inputs = {"latent": tiny.empty(), "seed": 3, "steps": 2}
    return list(tiny.streams(tiny.run(pack.HappyHorseBaseSampler, model=tiny.model(tiny.BASE), **prompts, **inputs)[0]))


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


def encode_picture():
    return [nodes.VAEEncode().encode(tiny.video_vae(), tiny.picture(96, 64))[0]["samples"]]


def decode_video():
    return [tiny.video_vae().decode(denormalise(random(1, 48, 9, 4, 6)))]


def decode_audio():
    return [tiny.audio_vae().decode(random(1, 64, 9))]


def encode_audio():
    return [tiny.audio_vae().encode(random(1, 40960, 2))]


def middle(module):
    """A layer with weights from the middle of a network."""
    layers = [layer for layer in module.modules() if not list(layer.children()) and list(layer.parameters())]
    return layers[len(layers) // 2]


def transformer(patcher):
    return patcher.model.diffusion_model.block.layers[3].mlp.down_proj


STAGES = {
    encode_text: lambda: middle(tiny.clip().cond_stage_model.encoder.layers[2]),
    sample: lambda: transformer(tiny.model()),
    sample_base: lambda: transformer(tiny.model(tiny.BASE)),
    encode_picture: lambda: middle(tiny.video_vae().first_stage_model.still),
    decode_video: lambda: middle(tiny.video_vae().first_stage_model.turbo),
    decode_audio: lambda: middle(tiny.audio_vae().first_stage_model.oobleck.decoder),
    encode_audio: lambda: middle(tiny.audio_vae().first_stage_model.oobleck.encoder),
}
"""What runs, and a layer in the middle of it."""


@pytest.mark.parametrize("run", STAGES, ids=lambda run: run.__name__)
def test_interrupted_stage(run):
    expected, layer, calls = run(), STAGES[run](), []

    def stop(*_):
        calls.append(1)
        interrupt_current_processing(True)

    hook = layer.register_forward_pre_hook(stop)
    try:
        with pytest.raises(InterruptProcessingException):
            run()
    finally:
        hook.remove()
    assert len(calls) == 1, "it did not come to that layer again"
    assert all(torch.equal(a, b) for a, b in zip(run(), expected, strict=True))
