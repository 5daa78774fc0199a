"""Nodes of the host that handle latents: what works on video and sound together, and the way round where it does not.

The lists ``TOGETHER`` and ``APART`` are those of docs/compatibility.md.
"""

from pathlib import Path

import comfy_extras.nodes_custom_sampler as custom
import comfy_extras.nodes_post_processing  # noqa: F401  (before nodes_latent, which it imports in a circle)
import folder_paths
import pytest
import tiny
import torch
from comfy.latent_formats import LatentFormat
from comfy.nested_tensor import NestedTensor
from comfy_extras import nodes_latent
from comfy_extras.nodes_differential_diffusion import DifferentialDiffusion
from comfy_extras.nodes_hunyuan import EmptyHunyuanLatentVideo
from comfy_extras.nodes_lt import LTXVConcatAVLatent, LTXVSeparateAVLatent
from comfy_extras.nodes_wan import Wan22ImageToVideoLatent
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import normalise

import nodes

SEED = 3
PAGE = Path(__file__).parent.parent.parent / "docs" / "compatibility.md"


def sample(latent, positive=None, patcher=None, denoise=1.0, sampler="lcm", steps=2):
    text = positive or tiny.positive()
    choices = (SEED, steps, 1.0, sampler, "simple", text, text, latent, denoise)
    return nodes.KSampler().sample(patcher or tiny.model(), *choices)[0]


def separate(latent):
    return LTXVSeparateAVLatent.execute(latent).args


def concat(video, audio):
    return LTXVConcatAVLatent.execute(video, audio).args[0]


def differ(one, other):
    pairs = zip(tiny.streams(one), tiny.streams(other), strict=True)
    return max((a - b).abs().max().item() for a, b in pairs)


def some_latent(batch=1, seed=1):
    generator = torch.Generator().manual_seed(seed)
    video, audio = tiny.streams(tiny.empty(batch_size=batch))
    return {"samples": NestedTensor([torch.randn(s.shape, generator=generator) for s in (video, audio)])}


def shapes(latent):
    return [list(stream.shape) for stream in tiny.streams(latent)]


# --- what works on the pair, and what has to be done to each stream ---------------------------------------------------

TOGETHER = {
    "LatentAdd": lambda pair: nodes_latent.LatentAdd.execute(pair, pair).args[0],
    "LatentSubtract": lambda pair: nodes_latent.LatentSubtract.execute(pair, pair).args[0],
    "LatentMultiply": lambda pair: nodes_latent.LatentMultiply.execute(pair, 2.0).args[0],
    "LatentBlend": lambda pair: nodes.LatentBlend().blend(pair, pair, 0.5)[0],
    "LatentBatchSeedBehavior": lambda pair: nodes_latent.LatentBatchSeedBehavior.execute(pair, "fixed").args[0],
    "SetLatentNoiseMask": lambda pair: nodes.SetLatentNoiseMask().set_mask(pair, torch.ones(1, 64, 96))[0],
}


def time_axis(latent):
    """What these nodes call the axis that is time."""
    return "x" if latent["samples"].ndim == 3 else "t"


def add_noise(latent):
    noise = custom.RandomNoise.execute(SEED).args[0]
    return custom.AddNoise.execute(tiny.model(), noise, flow_sigmas(4), latent).args[0]


APART = {
    "AddNoise": add_noise,
    "RepeatLatentBatch": lambda latent: nodes.RepeatLatentBatch().repeat(latent, 2)[0],
    "LatentFromBatch": lambda latent: nodes.LatentFromBatch().frombatch(latent, 0, 1)[0],
    "LatentBatch": lambda latent: nodes_latent.LatentBatch.execute(latent, latent).args[0],
    "LatentInterpolate": lambda latent: nodes_latent.LatentInterpolate.execute(latent, latent, 0.5).args[0],
    "LatentConcat": lambda latent: nodes_latent.LatentConcat.execute(latent, latent, time_axis(latent)).args[0],
    "LatentCut": lambda latent: nodes_latent.LatentCut.execute(latent, time_axis(latent), 0, 1).args[0],
}
"""Nodes that take one stream only."""
PICTURE = {
    # It counts 8 pixels to a latent value, and ours are of 16.
    "LatentUpscale": lambda latent: nodes.LatentUpscale().upscale(latent, "bilinear", 192 // 2, 128 // 2, "disabled")[
        0
    ],
    "LatentUpscaleBy": lambda latent: nodes.LatentUpscaleBy().upscale(latent, "bilinear", 2.0)[0],
}


@pytest.mark.parametrize("name", TOGETHER)
def test_nodes_that_take_both_streams(name):
    pair = some_latent()
    out = TOGETHER[name](pair)
    assert shapes(out) == shapes(pair)
    assert name in PAGE.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", [*APART, *PICTURE])
def test_nodes_that_take_one_stream_work_on_each(name):
    pair, node = some_latent(), (APART | PICTURE)[name]
    with pytest.raises((AttributeError, TypeError, IndexError)):
        node(pair)
    video, audio = separate(pair)
    joined = concat(node(video), audio if name in PICTURE else node(audio))
    assert all(torch.isfinite(stream).all() for stream in tiny.streams(joined))
    assert tiny.streams(joined)[0].shape[0] == tiny.streams(joined)[1].shape[0]
    if name in PICTURE:
        assert shapes(joined) == [[1, 48, 3, 8, 12], [1, 64, 9]]
    assert f"`{name}`" in PAGE.read_text(encoding="utf-8")


def test_noise_added_to_each_stream_is_what_the_sampler_adds():
    """The way round for Add Noise: both streams apart, then sampled without further noise."""
    clean = sample(tiny.empty())
    sigmas = flow_sigmas(8)[4:]
    video, audio = (
        add_one(stream, sigmas, seed) for stream, seed in zip(separate(clean), (SEED, SEED + 1), strict=True)
    )
    noise = custom.RandomNoise.execute(SEED).args[0].generate_noise(separate(clean)[0])
    expected = sigmas[0] * noise + (1 - sigmas[0]) * normalise(tiny.streams(clean)[0])
    torch.testing.assert_close(normalise(video["samples"]), expected, atol=1e-5, rtol=0)
    guider = custom.BasicGuider.execute(tiny.model(), tiny.positive()).args[0]
    euler = custom.KSamplerSelect.execute("euler").args[0]
    none = custom.DisableNoise.execute().args[0]
    out = custom.SamplerCustomAdvanced.execute(none, guider, euler, sigmas, concat(video, audio)).args[0]
    assert all(torch.isfinite(stream).all() for stream in tiny.streams(out))


def add_one(latent, sigmas, seed):
    noise = custom.RandomNoise.execute(seed).args[0]
    return custom.AddNoise.execute(tiny.model(), noise, sigmas, latent).args[0]


def test_separated_streams_join_to_the_same_latent():
    pair = sample(tiny.empty())
    assert differ(concat(*separate(pair)), pair) == 0


def test_a_pair_is_saved_and_loaded_stream_by_stream(monkeypatch, tmp_path):
    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    monkeypatch.setattr(folder_paths, "input_directory", str(tmp_path))
    pair, saver, loaded = sample(tiny.empty()), nodes.SaveLatent(), []
    with pytest.raises(AttributeError):
        saver.save(pair, "pair")
    for name, stream in zip(("video", "audio"), separate(pair), strict=True):
        (written,) = saver.save(stream, name)["ui"]["latents"]
        loaded.append(nodes.LoadLatent().load(written["filename"])[0])
    assert differ(concat(*loaded), pair) == 0
    again = sample(concat(*loaded), denoise=0.5)
    assert differ(again, sample(pair, denoise=0.5)) == 0


# --- latents of other nodes -------------------------------------------------------------------------------------------


def test_picture_latent_of_the_hosts_wan_node_with_our_sound():
    vae, picture = tiny.video_vae(), tiny.picture()
    other = Wan22ImageToVideoLatent.execute(vae, 96, 64, 9, 1, picture).args[0]
    with pytest.raises(ValueError, match="latent: found streams of shapes .* join picture and sound with Concat AV"):
        sample(other)
    found = sample(concat(other, separate(tiny.empty())[1]))
    inputs = {"vae": vae, "image": picture, "latent": tiny.empty()}
    expected = sample(tiny.run(pack.HappyHorseImageToVideo, **inputs)[0])
    assert shapes(found) == shapes(expected)
    torch.testing.assert_close(tiny.streams(found)[0][:, :, :1], other["samples"][:, :, :1], atol=1e-5, rtol=0)


EMPTY = {
    "hunyuan": lambda batch: EmptyHunyuanLatentVideo.execute(96, 64, 9, batch).args[0],
    "wan": lambda batch: Wan22ImageToVideoLatent.execute(tiny.video_vae(), 96, 64, 9, batch).args[0],
    "image": lambda batch: nodes.EmptyLatentImage().generate(96, 64, batch)[0],
}
each_empty = pytest.mark.parametrize(
    ("node", "batch"), [("hunyuan", 1), ("hunyuan", 2), ("wan", 1), ("image", 1), ("image", 2)]
)


def empty_shapes(node, batch):
    frames, sound = (1, 1) if node == "image" else (3, 9)
    return [[batch, 48, frames, 4, 6], [batch, 64, sound]]


@pytest.mark.skipif(not hasattr(LatentFormat, "fix_empty_latent"), reason="ComfyUI 0.33.0 does not ask for the sound")
@each_empty
def test_empty_latents_of_other_nodes(node, batch):
    assert shapes(sample(EMPTY[node](batch))) == empty_shapes(node, batch)


@each_empty
def test_empty_latents_of_other_nodes_in_our_sampler(node, batch):
    inputs = {"positive": tiny.positive(), "latent": EMPTY[node](batch), "seed": SEED, "steps": 1}
    out = tiny.run(pack.HappyHorseSampler, model=tiny.model(), **inputs)[0]
    assert shapes(out) == empty_shapes(node, batch)


# --- masks ------------------------------------------------------------------------------------------------------------


def right_half(frames=1):
    painted = torch.zeros(frames, 64, 96)
    painted[:, :, 48:] = 1
    return painted


def test_a_painted_mask_changes_its_part_of_the_picture_and_all_of_the_sound():
    pair = some_latent()
    out = sample(nodes.SetLatentNoiseMask().set_mask(pair, right_half())[0])
    (video, audio), (before, sound) = tiny.streams(out), tiny.streams(pair)
    torch.testing.assert_close(video[..., :3], before[..., :3], atol=1e-4, rtol=0)
    assert (video[..., 3:] - before[..., 3:]).abs().mean() > 0.1
    assert (audio - sound).abs().mean() > 0.1


@pytest.mark.parametrize(("held", "free"), [(0, 1), (1, 0)], ids=["picture", "sound"])
def test_one_stream_is_held_by_its_mask(held, free):
    """The picture by nodes of the host: Separate, Set Latent Noise Mask, Concat. Sound has no such node there."""
    pair = some_latent()
    parts = list(separate(pair))
    if held == 0:
        parts[0] = nodes.SetLatentNoiseMask().set_mask(parts[0], torch.zeros(1, 64, 96))[0]
    else:
        parts[1] = {**parts[1], "noise_mask": torch.zeros(1, 1, 9)}
    out = tiny.streams(sample(concat(*parts)))
    torch.testing.assert_close(out[held], tiny.streams(pair)[held], atol=1e-4, rtol=0)
    assert (out[free] - tiny.streams(pair)[free]).abs().mean() > 0.1


def test_a_mask_for_each_clip_of_a_batch():
    pair = some_latent(batch=2)
    video, audio = separate(pair)
    mask = torch.ones(2, 1, 3, 4, 6)
    mask[1] = 0
    out = tiny.streams(sample(concat({**video, "noise_mask": mask}, audio)))[0]
    before = tiny.streams(pair)[0]
    torch.testing.assert_close(out[1], before[1], atol=1e-4, rtol=0)
    assert (out[0] - before[0]).abs().mean() > 0.1


def test_differential_diffusion_frees_more_of_a_stream_the_higher_its_mask():
    pair = some_latent()
    video, audio = tiny.streams(pair)
    masks = [torch.linspace(0, 1, 6).expand(1, 1, 3, 4, 6), torch.linspace(0, 1, 9).expand(1, 1, 9)]
    patcher = DifferentialDiffusion.execute(tiny.model()).args[0]
    out = sample({**pair, "noise_mask": NestedTensor(masks)}, patcher=patcher, steps=8, sampler="euler")
    moved_video, moved_audio = (a - b for a, b in zip(tiny.streams(out), (video, audio), strict=True))
    columns, times = moved_video.abs().mean(dim=(0, 1, 2, 3)), moved_audio.abs().mean(dim=(0, 1))
    assert columns[0] < 1e-4 and times[0] < 1e-4
    assert columns[-1] > 5 * columns[1] and times[-1] > 5 * times[1]


# --- prompts for parts of the picture ---------------------------------------------------------------------------------


def for_part(text, mask):
    return nodes.ConditioningSetMask().append(text, mask, "default", 1.0)[0]


def one_step(positive):
    return sample(tiny.empty(), positive, sampler="euler", steps=1)


def test_prompts_for_parts_of_the_picture_act_in_their_parts():
    left, right = tiny.positive(), tiny.positive("blurred picture, noise")
    one, other = (tiny.streams(one_step(text)) for text in (left, right))
    both = nodes.ConditioningCombine().combine(for_part(left, 1 - right_half()), for_part(right, right_half()))[0]
    video, audio = tiny.streams(one_step(both))
    torch.testing.assert_close(video[..., :3], one[0][..., :3], atol=1e-4, rtol=0)
    torch.testing.assert_close(video[..., 3:], other[0][..., 3:], atol=1e-4, rtol=0)
    torch.testing.assert_close(audio, (one[1] + other[1]) / 2, atol=1e-4, rtol=0)


def test_a_prompt_for_later_frames_by_a_mask_of_several_pictures():
    first, later = tiny.positive(), tiny.positive("blurred picture, noise")
    mask = torch.tensor([0.0, 1.0, 1.0])[:, None, None].expand(3, 64, 96)
    both = nodes.ConditioningCombine().combine(for_part(first, 1 - mask), for_part(later, mask))[0]
    video, _ = tiny.streams(one_step(both))
    for frame, text in enumerate((first, later, later)):
        expected = tiny.streams(one_step(text))[0][:, :, frame]
        torch.testing.assert_close(video[:, :, frame], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("node", ["pixels", "percentage"])
def test_areas_are_refused_with_the_way_round(node):
    text = tiny.positive()
    if node == "pixels":
        text = nodes.ConditioningSetArea().append(text, 64, 32, 0, 0, 1.0)[0]
    else:
        text = nodes.ConditioningSetAreaPercentage().append(text, 0.5, 0.5, 0, 0, 1.0)[0]
    with pytest.raises(ValueError, match=r"conditioning: found an area, .* use Conditioning \(Set Mask\)"):
        sample(tiny.empty(), text)
