"""Sampling through the host's code against the core's own loops, on the same noise."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import comfy.utils
import comfy_extras.nodes_custom_sampler as custom
import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from comfy.patcher_extension import WrappersMP
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.sampling.loop import denoise, guided
from happyhorse_pack.happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_pack.happyhorse_core.sampling.solver import DistilledSolver, UniPC
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise, normalise

SEED = 7


def sample(latent, seed=SEED, steps=3, text=tiny.PROMPT):
    inputs = {"positive": tiny.positive(text), "latent": latent, "seed": seed, "steps": steps}
    return tiny.run(pack.HappyHorseSampler, model=tiny.model(), **inputs)[0]


def velocity(patcher, text):
    """The core's view of the model: no host sampling code between."""
    core = patcher.model.diffusion_model

    def call(video, audio, sigma):
        return core([video, audio], torch.tensor([sigma]), context=text)

    return call


def step_noises(latent, steps, seed=SEED):
    """The fresh noise of each step as the host's lcm draws it on the CPU: packed, from the seed after the given one."""
    video, audio = tiny.streams(latent)
    generator = torch.Generator().manual_seed(seed + 1)
    packed, shapes = comfy.utils.pack_latents([video, audio])
    drawn = [torch.randn(packed.shape, generator=generator) for _ in range(steps)]
    return [comfy.utils.unpack_latents(noise, shapes) for noise in drawn]


def core_distilled(latent, steps, *, image_latent=None, hold_audio=False):
    """The released model's loop in the core, on the host's noise, in the transformer's latent space."""
    sigmas = flow_sigmas(steps)
    video, audio = tiny.streams({"samples": comfy.sample.prepare_noise(latent["samples"], SEED)})
    drawn = step_noises(latent, steps)
    solvers = [DistilledSolver(sigmas, lambda i, like, s=s: drawn[i][s]) for s in range(2)]
    if hold_audio:
        audio, solvers[1] = tiny.streams(latent)[1], None
    text = tiny.positive()[0][0]
    call = velocity(tiny.model(), text)
    return denoise(call, video, audio, sigmas, solvers[0], solvers[1], image_latent=image_latent)


def test_distilled_sampler_equals_the_core_loop():
    latent = tiny.empty()
    video, audio = tiny.streams(sample(latent, steps=8))
    expected_video, expected_audio = core_distilled(latent, 8)
    torch.testing.assert_close(normalise(video), expected_video, atol=2e-4, rtol=0)
    torch.testing.assert_close(audio, expected_audio, atol=2e-4, rtol=0)


def test_first_frame_is_held_as_in_the_core_loop():
    latent = tiny.empty()
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": latent}
    start = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]
    video, audio = tiny.streams(sample(start))
    still = tiny.streams(start)[0][:, :, :1]
    torch.testing.assert_close(video[:, :, :1], still, atol=1e-5, rtol=0)
    expected_video, expected_audio = core_distilled(latent, 3, image_latent=normalise(still))
    torch.testing.assert_close(normalise(video), expected_video, atol=2e-4, rtol=0)
    torch.testing.assert_close(audio, expected_audio, atol=2e-4, rtol=0)
    free, _ = tiny.streams(sample(latent))
    assert not torch.allclose(free[:, :, 1:], video[:, :, 1:], atol=1e-2)


def first_input(patcher, latent):
    """What the transformer is given at the first step: streams and text."""
    seen = []

    def look(executor, x, timestep, context, *args, **kwargs):
        seen.append([stream.clone() for stream in (*x, context)])
        return executor(x, timestep, context, *args, **kwargs)

    patcher = patcher.clone()
    patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, look)
    inputs = {"positive": tiny.positive(), "latent": latent, "seed": SEED, "steps": 1}
    tiny.run(pack.HappyHorseSampler, model=patcher, **inputs)
    return seen[0]


def test_sampling_starts_from_pure_noise_beside_the_given_frame():
    latent = tiny.empty()
    noise_video, noise_audio = tiny.streams({"samples": comfy.sample.prepare_noise(latent["samples"], SEED)})
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": latent}
    start = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]
    for given in (latent, start):
        video, audio, _ = first_input(tiny.model(), given)
        torch.testing.assert_close(video[:, :, 1:], noise_video[:, :, 1:], atol=1e-5, rtol=0)
        torch.testing.assert_close(audio, noise_audio, atol=1e-5, rtol=0)
    torch.testing.assert_close(video[:, :, :1], normalise(tiny.streams(start)[0][:, :, :1]), atol=1e-6, rtol=0)


def test_latents_and_text_reach_a_rounded_model_unrounded():
    for tensor in first_input(tiny.model(weight_dtype="bf16"), tiny.empty()):
        assert tensor.dtype == torch.float32
        assert not torch.equal(tensor, tensor.bfloat16().float())


def test_given_sound_is_held_and_steers_the_picture():
    latent = tiny.empty()
    video, audio = tiny.streams(latent)
    sound = torch.randn(audio.shape, generator=torch.Generator().manual_seed(1))
    masks = NestedTensor([torch.ones_like(video[:, :1]), torch.zeros_like(sound[:, :1])])
    driven = {"samples": NestedTensor([video, sound]), "noise_mask": masks}
    found_video, found_audio = tiny.streams(sample(driven))
    assert torch.equal(found_audio, sound)
    expected_video, _ = core_distilled(driven, 3, hold_audio=True)
    torch.testing.assert_close(normalise(found_video), expected_video, atol=2e-4, rtol=0)


def test_a_given_frame_and_a_given_sound_are_held_together():
    latent = tiny.empty()
    video, audio = tiny.streams(latent)
    sound = torch.randn(audio.shape, generator=torch.Generator().manual_seed(1))
    masks = NestedTensor([torch.ones_like(video[:, :1]), torch.zeros_like(sound[:, :1])])
    driven = {"samples": NestedTensor([video, sound]), "noise_mask": masks}
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": driven}
    start = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]
    found_video, found_audio = tiny.streams(sample(start))
    assert torch.equal(found_audio, sound)
    torch.testing.assert_close(found_video[:, :, :1], tiny.streams(start)[0][:, :, :1], atol=1e-5, rtol=0)


def test_mask_of_a_core_node_stays_beside_the_first_frame():
    import nodes

    painted = torch.zeros(1, 64, 96)
    painted[:, :, 48:] = 1
    latent = nodes.SetLatentNoiseMask().set_mask(tiny.empty(), painted)[0]
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": latent}
    mask, audio = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]["noise_mask"].unbind()
    assert list(mask.shape) == [1, 1, 3, 4, 6]
    assert mask[:, :, 0].max() == 0
    assert mask[0, 0, 1, 0].tolist() == [0, 0, 0, 1, 1, 1]
    assert audio.min() == 1


def test_one_seed_one_clip():
    latent = tiny.empty()
    first, again, other = (tiny.streams(sample(latent, seed)) for seed in (SEED, SEED, SEED + 5))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.allclose(first[0], other[0], atol=1e-2)


def of_seed(node, seed):
    """The video of one clip by a node that has a seed."""
    latent, text = tiny.empty(), tiny.positive()
    inputs = {"positive": text, "seed": seed, "steps": 2}
    if node is pack.HappyHorseSampler:
        inputs |= {"model": tiny.model(), "latent": latent}
    elif node is pack.HappyHorseBaseSampler:
        inputs |= {"model": tiny.model(tiny.BASE), "latent": latent, "negative": text}
    else:
        clip = {"samples": NestedTensor([stream + 1 for stream in tiny.streams(latent)])}
        inputs |= {"sr_model": tiny.model("daVinci-MagiHuman/540p_sr"), "latent": clip, "width": 192, "height": 128}
    return tiny.streams(tiny.run(node, **inputs)[0])[0]


@pytest.mark.parametrize("node", [pack.HappyHorseSampler, pack.HappyHorseBaseSampler, pack.HappyHorseSuperResolution])
def test_seeds_at_both_ends(node):
    clips = [of_seed(node, seed) for seed in (0, 2**63, 2**64 - 1, 2**64 - 1)]
    assert torch.equal(clips[2], clips[3])
    assert not any(torch.equal(clips[2], other) for other in clips[:2])


def test_every_node_with_a_seed_is_tried_at_both_ends():
    seeded = {
        node.__name__
        for node in vars(pack).values()
        if hasattr(node, "define_schema") and any(one.id == "seed" for one in node.define_schema().inputs)
    }
    assert seeded == {"HappyHorseSampler", "HappyHorseBaseSampler", "HappyHorseSuperResolution"}


def test_batch_makes_different_clips():
    video, audio = tiny.streams(sample(tiny.empty(batch_size=2)))
    assert video.shape[0] == audio.shape[0] == 2
    assert not torch.allclose(video[0], video[1], atol=1e-2)


def test_unipc_under_the_core_nodes_equals_the_core_loop():
    latent, steps = tiny.empty(), 6
    patcher, text = tiny.model("daVinci-MagiHuman/base"), tiny.positive()
    sigmas = tiny.run(pack.HappyHorseSigmas, steps=steps)[0]
    guider = custom.BasicGuider.execute(patcher, text).args[0]
    noise = custom.RandomNoise.execute(SEED).args[0]
    solver = tiny.run(pack.HappyHorseSamplerUniPC)[0]
    out, _ = custom.SamplerCustomAdvanced.execute(noise, guider, solver, sigmas, latent).args
    start = [s * sigmas[0] for s in comfy.sample.prepare_noise(latent["samples"], SEED).unbind()]
    expected = denoise(velocity(patcher, text[0][0]), *start, sigmas, UniPC(sigmas), UniPC(sigmas))
    video, audio = tiny.streams(out)
    for found, wanted in ((normalise(video), expected[0]), (audio, expected[1])):
        assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def test_constant_guidance_of_the_host_equals_guided_velocities():
    """Two prompts of unlike lengths: each must reach the model whole and unpadded."""
    latent, sigmas, patcher = tiny.empty(), flow_sigmas(3), tiny.model("daVinci-MagiHuman/base")
    text = tiny.positive()[0][0]
    good, bad = [[text[:, :8], {}]], [[text[:, 8:12], {}]]
    guider = custom.CFGGuider.execute(patcher, good, bad, 5.0).args[0]
    noise = custom.RandomNoise.execute(SEED).args[0]
    solver = tiny.run(pack.HappyHorseSamplerUniPC)[0]
    out, _ = custom.SamplerCustomAdvanced.execute(noise, guider, solver, sigmas, latent).args
    start = [s * sigmas[0] for s in comfy.sample.prepare_noise(latent["samples"], SEED).unbind()]
    calls = [velocity(patcher, text[0][0]) for text in (good, bad)]
    assert all(level > 0.501 for level in sigmas[:-1]), "the core's guidance is 5 for both streams on all these levels"
    expected = denoise(guided(*calls), *start, sigmas, UniPC(sigmas), UniPC(sigmas))
    video, audio = tiny.streams(out)
    torch.testing.assert_close(normalise(video), expected[0], atol=1e-3, rtol=0)
    torch.testing.assert_close(audio, expected[1], atol=1e-3, rtol=0)


def test_context_windows_take_the_sound_of_their_frames():
    model = tiny.model().model
    shapes = [[1, 48, 5, 4, 6], [1, 64, 17]]
    windows = model.map_context_window_to_modalities([0, 1, 2], shapes, 2)
    assert windows == [[0, 1, 2], list(range(9))]
    windows = model.map_context_window_to_modalities([3, 4], shapes, 2)
    assert windows == [[3, 4], list(range(8, 17))], "the last of the frame before, which the host shows beside it"
    looped = model.map_context_window_to_modalities([4, 0, 1], shapes, 2)
    assert looped == [[4, 0, 1], [12, 13, 14, 15, 16, 0, 1, 2, 3, 4]]
    everything = model.map_context_window_to_modalities([2, 3, 4, 0, 1], shapes, 2)
    assert sorted(everything[1]) == list(range(17)), "none of them twice"


def test_latent_statistics_touch_the_video_alone_in_every_form():
    model = tiny.model().model
    video, audio = torch.randn(1, 48, 2, 2, 2), torch.randn(1, 64, 5)
    nested = model.process_latent_in(NestedTensor([video, audio])).unbind()
    torch.testing.assert_close(nested[0], normalise(video))
    assert nested[1] is audio
    packed, model.latent_shapes = comfy.utils.pack_latents([video, audio])
    found = comfy.utils.unpack_latents(model.process_latent_in(packed), model.latent_shapes)
    torch.testing.assert_close(found[0], normalise(video))
    assert torch.equal(found[1], audio)
    model.latent_shapes = [video.shape]
    torch.testing.assert_close(model.process_latent_out(video), denormalise(video))


def test_interrupting_stops_at_the_next_layer_and_leaves_the_model_usable():
    latent = tiny.empty()
    expected = tiny.streams(sample(latent))
    calls = []

    def interrupt(args, extra):
        calls.append(1)
        comfy.model_management.interrupt_current_processing(True)
        return extra["original_block"](args)

    patcher = tiny.model().clone()
    patcher.set_model_patch_replace(interrupt, "dit", "double_block", 1)
    inputs = {"positive": tiny.positive(), "latent": latent, "seed": SEED, "steps": 3}
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.run(pack.HappyHorseSampler, model=patcher, **inputs)
    assert len(calls) == 1
    assert all(torch.equal(a, b) for a, b in zip(tiny.streams(sample(latent)), expected, strict=True))


def test_previews_show_a_frame_from_the_middle():
    import latent_preview

    form = tiny.model().model.latent_format
    previewer = latent_preview.Latent2RGBPreviewer(
        form.latent_rgb_factors, form.latent_rgb_factors_bias, form.latent_rgb_factors_reshape
    )
    clip = torch.zeros(1, 48, 5, 4, 6)
    grey = previewer.decode_latent_to_preview(clip)
    assert grey.size == (6, 4)
    clip[:, :, 0] = 3
    assert previewer.decode_latent_to_preview(clip).tobytes() == grey.tobytes()
    clip[:, :, 2] = 3
    assert previewer.decode_latent_to_preview(clip).tobytes() != grey.tobytes()


def test_step_cache_of_the_host_runs():
    # It cuts each stream to so many channels.
    assert tiny.model().model.latent_format.latent_channels >= 64
    from comfy_extras.nodes_easycache import EasyCacheNode

    patcher = EasyCacheNode.execute(tiny.model(), 0.0, 0.0, 0.95, False).args[0]
    latent = tiny.empty()
    inputs = {"positive": tiny.positive(), "latent": latent, "seed": SEED, "steps": 3}
    cached = tiny.run(pack.HappyHorseSampler, model=patcher, **inputs)[0]
    for found, expected in zip(tiny.streams(cached), tiny.streams(sample(latent)), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
