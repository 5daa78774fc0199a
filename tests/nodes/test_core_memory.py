"""The host's memory management: weights that are only partly on the device, models in turn, weights in float8.

On a machine without a GPU nothing has to leave a device, so the budgets of ``--lowvram`` and ``--novram`` are given to
the host's patcher directly; what the layers then do is the same.
"""

import comfy.model_management
import comfy.sd
import pytest
import tiny
import torch
from comfy_extras.nodes_model_merging import ModelMergeSimple

import nodes

CPU = torch.device("cpu")
NOVRAM = 0.1
"""What the host gives as the budget for weights with ``--novram``, in bytes."""


def streams(batch=1):
    generator = torch.Generator().manual_seed(5)
    shapes = ((batch, 48, 3, 4, 6), (batch, 64, 9), (batch, 7, 24))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def forward(patcher):
    video, audio, text = streams()
    model = patcher.model.diffusion_model
    return model([video, audio], torch.ones(1), context=text, transformer_options={}, compute_dtype=torch.float32)


def lora(patcher, layers=("block.layers.0.mlp.up_gate_proj", "block.layers.3.attention.linear_qkv")):
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in layers:
        rows, columns = patcher.model.diffusion_model.get_submodule(layer).weight.shape
        tensors[f"diffusion_model.{layer}.lora_A.weight"] = torch.randn(2, columns, generator=generator) * 0.2
        tensors[f"diffusion_model.{layer}.lora_B.weight"] = torch.randn(rows, 2, generator=generator) * 0.2
    return comfy.sd.load_lora_for_models(patcher, None, tensors, 1.0, 0.0)[0]


def loaded(patcher, budget, run):
    """What ``run`` gives with at most ``budget`` bytes of weights loaded (0: all), and which part of them was."""
    comfy.model_management.unload_all_models()
    patcher.patch_model(device_to=CPU, lowvram_model_memory=budget)
    try:
        return run(), patcher.loaded_size() / patcher.model_size()
    finally:
        patcher.unpatch_model(CPU)


@pytest.mark.parametrize("weight_dtype", ["default", "fp8_e4m3fn"])
def test_a_transformer_that_is_partly_loaded_gives_the_same_with_a_lora(weight_dtype):
    patcher = lora(tiny.model(weight_dtype=weight_dtype))
    whole, everything = loaded(patcher, 0, lambda: forward(patcher))
    some, half = loaded(patcher, patcher.model_size() // 2, lambda: forward(patcher))
    nothing, rest = loaded(patcher, NOVRAM, lambda: forward(patcher))
    assert rest <= half < everything == 1
    assert rest < 0.1, "only norms stay on the device: each linear layer can be elsewhere, as can both ends"
    # A float8 weight that is patched when it is loaded is rounded once more.
    tolerance = 1e-5 if weight_dtype == "default" else 0.1
    for found in (some, nothing):
        for one, other in zip(found, whole, strict=True):
            assert (one - other).norm() <= tolerance * other.norm()
    bare = tiny.model(weight_dtype=weight_dtype)
    plain, _ = loaded(bare, NOVRAM, lambda: forward(bare))
    assert (plain[0] - whole[0]).norm() > 0.05 * whole[0].norm()


def test_a_text_encoder_that_is_partly_loaded_gives_the_same():
    clip = tiny.clip()
    tokens = clip.tokenize(tiny.PROMPT)

    def encode():
        return clip.cond_stage_model.encode_token_weights(tokens)[0]

    whole, everything = loaded(clip.patcher, 0, encode)
    partly, rest = loaded(clip.patcher, NOVRAM, encode)
    assert everything == 1 and rest < 0.1
    assert torch.equal(whole, partly)


@pytest.mark.parametrize("kind", ["video", "audio"])
def test_autoencoders_that_are_partly_loaded_give_the_same(kind):
    vae = tiny.video_vae() if kind == "video" else tiny.audio_vae()
    latent = streams()[0 if kind == "video" else 1]
    inner = vae.first_stage_model
    whole, everything = loaded(vae.patcher, 0, lambda: inner.decode(latent))
    partly, rest = loaded(vae.patcher, NOVRAM, lambda: inner.decode(latent))
    assert everything == 1 and rest < 0.1
    torch.testing.assert_close(partly, whole, atol=1e-6, rtol=1e-5)


def sample(patcher, latent=None, steps=2):
    text, latent = tiny.positive(), latent or tiny.empty()
    return tiny.streams(nodes.KSampler().sample(patcher, 3, steps, 1.0, "lcm", "simple", text, text, latent)[0])


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_two_models_in_turn_do_not_touch_each_other():
    distilled, base = tiny.model(), tiny.model(tiny.BASE)
    first, other = sample(distilled), sample(base)
    assert not same(first, other)
    assert same(sample(distilled), first)
    assert same(sample(base), other)
    patched = sample(lora(distilled))
    assert not same(patched, first)
    assert same(sample(base), other) and same(sample(distilled), first)
    comfy.model_management.unload_all_models()
    assert same(sample(distilled), first), "the weights are as before after the host took the model away"


@pytest.mark.parametrize(("weight_dtype", "most"), [("bf16", 0.02), ("fp8_e4m3fn", 0.15), ("fp8_e5m2", 0.3)])
def test_smaller_weights_give_nearly_the_same_clip(weight_dtype, most):
    patcher = tiny.model(weight_dtype=weight_dtype)
    assert patcher.model_size() < tiny.model(weight_dtype="fp32").model_size()
    for found, exact in zip(sample(patcher), sample(tiny.model(weight_dtype="fp32")), strict=True):
        assert 0 < (found - exact).norm() <= most * exact.norm()


def test_a_merge_of_two_checkpoints_lies_between_them():
    distilled, base = tiny.model(), tiny.model(tiny.BASE)
    merged = ModelMergeSimple().merge(distilled, base, 0.75)[0]
    assert same(sample(ModelMergeSimple().merge(distilled, base, 1.0)[0]), sample(distilled))
    found, near, far = sample(merged), sample(distilled), sample(base)
    assert (found[0] - near[0]).norm() < (found[0] - far[0]).norm()
    assert not same(found, near)
