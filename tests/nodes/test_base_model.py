"""The base model's guidance and sampler through the host, against the core's loop and the golden files."""

import logging
import os
from pathlib import Path
from types import SimpleNamespace

import comfy.model_management
import comfy.sample
import comfy_extras.nodes_custom_sampler as custom
import happyhorse_pack
import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from happyhorse_pack.happyhorse_core.sampling.guidance import Scales, guide, video_scale
from happyhorse_pack.happyhorse_core.sampling.loop import denoise, guided
from happyhorse_pack.happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_pack.happyhorse_core.sampling.solver import UniPC
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise, normalise
from happyhorse_pack.nodes.host.guider import TwoStreamGuider
from happyhorse_pack.nodes.host.load import load_diffusion_model
from happyhorse_pack.nodes.host.solver import unipc_sampler
from safetensors import safe_open

import nodes as host

SEED = 11
GOLDEN = Path(os.environ.get("HAPPYHORSE_GOLDEN_DIR") or Path(happyhorse_pack.__file__).parent / "tests" / "golden")


def exact_model():
    return tiny.model(tiny.BASE, "fp32")


def prompts():
    """Two texts of unlike lengths."""
    text = tiny.positive()[0][0]
    return [[text[:, :9], {}]], [[text[:, 7:12], {}]]


def sample(latent=None, patcher=None, **changes):
    positive, negative = prompts()
    inputs = {"positive": positive, "negative": negative, "latent": latent or tiny.empty(), "seed": SEED, "steps": 8}
    return tiny.run(pack.HappyHorseBaseSampler, model=patcher or exact_model(), **(inputs | changes))[0]


def velocities(patcher):
    core = patcher.model.diffusion_model

    def velocity(text):
        return lambda video, audio, sigma: core([video, audio], torch.tensor([sigma]), context=text)

    return [velocity(conditioning[0][0]) for conditioning in prompts()]


def expected(latent, move, steps=8, *, image_latent=None, hold_audio=False):
    """The core's loop from the host's noise; the video in the transformer's latent space."""
    sigmas = flow_sigmas(steps)
    video, audio = comfy.sample.prepare_noise(latent["samples"], SEED).unbind()
    if hold_audio:
        audio = tiny.streams(latent)[1]
    solver = None if hold_audio else UniPC(sigmas)
    return denoise(move, video, audio, sigmas, UniPC(sigmas), solver, image_latent=image_latent)


def assert_same(latent, wanted, tolerance=1e-5):
    video, audio = tiny.streams(latent)
    for found, value in ((normalise(video), wanted[0]), (audio, wanted[1])):
        assert (found - value).abs().max() <= tolerance * value.abs().max()


def two_scales(positive, negative, video, audio):
    """The core's guidance with constants that are given."""

    def velocity(v, a, sigma):
        wanted, unwanted = positive(v, a, sigma), negative(v, a, sigma)
        return guide(wanted[0], unwanted[0], video), guide(wanted[1], unwanted[1], audio)

    return velocity


def test_base_sampler_equals_the_guided_loop_of_the_core():
    sigmas = flow_sigmas(8).tolist()
    assert {video_scale(sigma) for sigma in sigmas} == {5.0, 2.0}
    latent = tiny.empty()
    assert_same(sample(latent), expected(latent, guided(*velocities(exact_model()))))


def test_base_sampler_holds_a_picture_and_a_sound():
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": tiny.empty()}
    start = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]
    video, audio = tiny.streams(start)
    sound = torch.randn(audio.shape, generator=torch.Generator().manual_seed(1))
    masks = [start["noise_mask"].unbind()[0], torch.zeros_like(sound[:, :1])]
    start = {"samples": NestedTensor([video, sound]), "noise_mask": NestedTensor(masks)}
    out = sample(start)
    assert torch.equal(tiny.streams(out)[1], sound)
    wanted = expected(
        start, guided(*velocities(exact_model())), image_latent=normalise(video[:, :, :1]), hold_audio=True
    )
    assert_same(out, wanted)


@pytest.mark.parametrize("scales", [(1.0, 3.0), (3.0, 1.0), (1.0, 1.0), (0.0, 7.0), (4.0, 4.0)])
def test_each_stream_has_its_own_scale(scales):
    video, audio = scales
    latent = tiny.empty()
    out = sample(latent, video_scale_early=video, video_scale_late=video, audio_scale=audio)
    assert_same(out, expected(latent, two_scales(*velocities(exact_model()), video, audio)))


@pytest.mark.parametrize(("switch", "same_as"), [(0, "video_scale_early"), (1000, "video_scale_late")])
def test_the_switch_can_be_moved(switch, same_as):
    found = sample(video_scale_early=4.0, video_scale_late=2.5, switch_timestep=switch)
    value = {"video_scale_early": 4.0, "video_scale_late": 2.5}[same_as]
    always = sample(video_scale_early=value, video_scale_late=value)
    assert all(torch.equal(a, b) for a, b in zip(tiny.streams(found), tiny.streams(always), strict=True))


def test_guider_in_core_nodes_samples_the_same_clip():
    positive, negative = prompts()
    guider = tiny.run(pack.HappyHorseGuider, model=exact_model(), positive=positive, negative=negative)[0]
    sigmas, latent = flow_sigmas(8), tiny.empty()
    noise = custom.RandomNoise.execute(SEED).args[0]
    out, _ = custom.SamplerCustomAdvanced.execute(noise, guider, unipc_sampler(), sigmas, latent).args
    start = [s * sigmas[0] for s in comfy.sample.prepare_noise(latent["samples"], SEED).unbind()]
    solvers = UniPC(sigmas), UniPC(sigmas)
    assert_same(out, denoise(guided(*velocities(exact_model())), *start, sigmas, *solvers))


def test_negative_prompt_is_left_out_where_both_scales_are_one():
    calls = []

    def count(args, extra):
        calls.append(1)
        return extra["original_block"](args)

    patcher = exact_model().clone()
    patcher.set_model_patch_replace(count, "dit", "double_block", 0)
    sample(patcher=patcher, steps=2, video_scale_early=1.0, audio_scale=1.0)
    assert len(calls) == 2
    sample(patcher=patcher, steps=2, video_scale_early=1.0, audio_scale=2.0)
    assert len(calls) == 2 + 4


def patched(**options):
    patcher = exact_model().clone()
    patcher.model_options = {**patcher.model_options, **options}
    return patcher


def test_another_nodes_formula_is_asked_for_each_stream():
    seen = []

    def formula(args):
        seen.append(args["cond_scale"])
        return args["uncond"] + (args["cond"] - args["uncond"]) * (args["cond_scale"] + 1)

    latent = tiny.empty()
    out = sample(latent, patched(sampler_cfg_function=formula), steps=2, audio_scale=3.0)
    assert seen == [5.0, 3.0] * 2
    assert_same(out, expected(latent, two_scales(*velocities(exact_model()), 6.0, 4.0), 2))


def test_functions_after_the_guidance_see_its_result():
    scales = []

    def halve(args):
        scales.append(args["cond_scale"])
        video = args["uncond_denoised"] + (args["cond_denoised"] - args["uncond_denoised"]) * 5.0
        split = 48 * 3 * 4 * 6
        torch.testing.assert_close(args["denoised"][..., :split], video[..., :split], atol=1e-4, rtol=1e-4)
        return args["denoised"] * 0.5

    plain, halved = sample(steps=1), sample(patcher=patched(sampler_post_cfg_function=[halve]), steps=1)
    assert scales == [5.0]
    for stream in range(2):
        full, half = (x if stream else normalise(x) for x in (tiny.streams(s)[stream] for s in (plain, halved)))
        torch.testing.assert_close(half, full * 0.5, atol=1e-4, rtol=0)


def test_cfg_override_of_the_host_sets_both_scales():
    patcher = custom.CFGOverride.execute(exact_model(), 3.0, 0.0, 1.0).args[0]
    found = sample(patcher=patcher)
    wanted = sample(video_scale_early=3.0, video_scale_late=3.0, audio_scale=3.0)
    assert all(torch.equal(a, b) for a, b in zip(tiny.streams(found), tiny.streams(wanted), strict=True))


def test_one_seed_one_clip_and_batches():
    latent = tiny.empty(batch_size=2)
    first, again, other = (tiny.streams(sample(latent, steps=2, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and torch.equal(first[1], again[1])
    assert not torch.allclose(first[0], other[0], atol=1e-2)
    assert not torch.allclose(first[0][0], first[0][1], atol=1e-2)


def test_interrupting_between_the_two_prompts_leaves_the_model_usable():
    wanted = tiny.streams(sample(steps=2))

    def interrupt(args, extra):
        comfy.model_management.interrupt_current_processing(True)
        return extra["original_block"](args)

    patcher = exact_model().clone()
    patcher.set_model_patch_replace(interrupt, "dit", "double_block", 3)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(patcher=patcher, steps=2)
    assert all(torch.equal(a, b) for a, b in zip(tiny.streams(sample(steps=2)), wanted, strict=True))


# golden


def is_base_clip(path):
    with safe_open(path, "pt") as file:
        return file.metadata()["kind"] == "sample" and file.metadata()["mode"] == "base"


GOLDEN_FILES = [path for path in sorted(GOLDEN.glob("*.io.safetensors")) if is_base_clip(path)]


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.name.removesuffix(".io.safetensors"))
def test_golden_clips_come_out_of_the_hosts_sampler(path):
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    patcher = load_diffusion_model(str(GOLDEN / f"{metadata['weights']}.weights.safetensors"), "base", "fp32")
    guider = TwoStreamGuider(patcher, Scales())
    if metadata["cfg_number"] == "1":
        guider.scales = Scales(1.0, 1.0, audio=1.0)
    guider.set_conds([[values["text"], {}]], [[values["text_negative"], {}]])
    sigmas = flow_sigmas(int(metadata["steps"]), float(metadata["shift"]))
    driven = metadata["audio_driven"] == "True"
    video, audio = values["video_noise"], values["audio_init"].mT.contiguous()
    start = denormalise(torch.zeros_like(video))
    masks = [torch.ones_like(video[:, :1]), torch.full_like(audio[:, :1], 0.0 if driven else 1.0)]
    if "image_latent" in values:
        start[:, :, :1] = denormalise(values["image_latent"])
        masks[0][:, :, :1] = 0
    noise = NestedTensor([video / sigmas[0], audio / sigmas[0]])
    clip = NestedTensor([start, audio if driven else torch.zeros_like(audio)])
    out = guider.sample(noise, clip, unipc_sampler(), sigmas, NestedTensor(masks), disable_pbar=True, seed=0)
    assert_same({"samples": out}, (values["video_out"], values["audio_out"].mT), 1e-3)


# negative prompt


def test_negative_prompt_is_encoded_as_by_the_core_node():
    default = next(i.default for i in pack.HappyHorseNegativePrompt.GET_SCHEMA().inputs if i.id == "text")
    assert default == DEFAULT_NEGATIVE_PROMPT
    found = tiny.run(pack.HappyHorseNegativePrompt, clip=tiny.clip(), text=default)[0]
    wanted = host.CLIPTextEncode().encode(tiny.clip(), default)[0]
    assert torch.equal(found[0][0], wanted[0][0])
    assert found[0][0].shape[1] > 20


def test_negative_prompt_may_be_empty():
    empty = tiny.run(pack.HappyHorseNegativePrompt, clip=tiny.clip(), text="")[0]
    video, _ = tiny.streams(sample(negative=empty, steps=1))
    assert torch.isfinite(video).all()


# bad input


def guider(**changes):
    positive, negative = prompts()
    inputs = {"model": exact_model(), "positive": positive, "negative": negative}
    return tiny.run(pack.HappyHorseGuider, **(inputs | changes))


both = pytest.mark.parametrize("node", [guider, lambda **c: sample(patcher=c.pop("model", None), **c)])


@both
def test_wrong_models(node):
    with pytest.raises(ValueError, match="model: found the 540p_sr super-resolution model"):
        node(model=tiny.model("daVinci-MagiHuman/540p_sr"))
    with pytest.raises(ValueError, match="model: found a Identity model, expected one from Load HappyHorse Model"):
        node(model=SimpleNamespace(model=torch.nn.Identity()))


@both
@pytest.mark.parametrize("field", ["positive", "negative"])
def test_text_of_another_encoder(node, field):
    with pytest.raises(ValueError, match=f"{field}: found text embeddings of width 768, expected 24"):
        node(**{field: [[torch.ones(1, 5, 768), {}]]})


@both
def test_empty_positive_prompt(node):
    with pytest.raises(ValueError, match="positive: found an empty prompt"):
        node(positive=tiny.positive(" "))


def test_distilled_model_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        guider(model=tiny.model())
    assert "the distilled model was made for 8 steps without guidance" in caplog.text


def test_latent_of_another_model():
    with pytest.raises(ValueError, match=r"latent: found \[1, 16, 3, 4, 6\], expected video"):
        sample({"samples": torch.ones(1, 16, 3, 4, 6)})


def test_clip_of_another_model():
    other = SimpleNamespace(cond_stage_model=torch.nn.Identity())
    with pytest.raises(ValueError, match="clip: found Identity, expected the CLIP of Load HappyHorse Text Encoder"):
        tiny.run(pack.HappyHorseNegativePrompt, clip=other, text="x")
