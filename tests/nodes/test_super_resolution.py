"""The super-resolution node against the core's own stage, and what it refuses."""

import inspect
import logging

import comfy.sample
import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core import super_resolution
from happyhorse_pack.happyhorse_core.media.image import fit_image
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise, normalise
from happyhorse_pack.nodes.host.super_resolution import refine
from safetensors import safe_open
from safetensors.torch import load_file
from test_transformer import GOLDEN, golden_patcher

SMALL, LARGE = (96, 64), (160, 96)
SEED = 11


def sr_model(folder="540p_sr"):
    return tiny.model(f"daVinci-MagiHuman/{folder}", "fp32")


def clip(frames=9, batch=1):
    generator = torch.Generator().manual_seed(4)
    video = torch.randn(batch, 48, (frames - 1) // 4 + 1, SMALL[1] // 16, SMALL[0] // 16, generator=generator)
    return {"samples": NestedTensor([denormalise(video), torch.randn(batch, 64, frames, generator=generator)])}


def upscale(model=None, **changes):
    model = sr_model() if model is None else model
    inputs = {"sr_model": model, "latent": clip(), "positive": tiny.positive(), "seed": SEED}
    inputs |= {"width": LARGE[0], "height": LARGE[1]}
    return tiny.run(pack.HappyHorseSuperResolution, **(inputs | changes))[0]


def velocity(patcher, text, **options):
    def call(video, audio, sigma):
        model = patcher.model.diffusion_model
        return model([video, audio], torch.tensor([sigma]), context=text, transformer_options=options)

    return call


def guided(positive, negative, scale):
    """Guidance of the video as it was released: at most 2 in the first 13 latent frames."""

    def call(video, audio, sigma):
        cond, _ = positive(video, audio, sigma)
        uncond, _ = negative(video, audio, sigma)
        scales = torch.full((1, 1, video.shape[2], 1, 1), scale)
        scales[:, :, :13] = min(scale, 2.0)
        return uncond + scales * (cond - uncond), torch.zeros_like(audio)

    return call


def core_upscale(latent, *calls, scale=None, steps=5, size=LARGE, image_latent=None):
    """The stage in the core, on the noise that the host draws."""
    video, audio = tiny.streams(latent)
    shapes = [torch.empty(*video.shape[:3], size[1] // 16, size[0] // 16), audio]
    noises = comfy.sample.prepare_noise(NestedTensor(shapes), SEED).unbind()
    start = super_resolution.start(normalise(video), audio, size, *noises)
    call = calls[0] if scale is None else guided(*calls, scale)
    return super_resolution.upscale(call, *start, steps=steps, image_latent=image_latent)


def assert_equal(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize("folder", ["540p_sr", "1080p_sr"])
def test_node_equals_the_core_and_the_sound_passes_through(folder):
    patcher, latent = sr_model(folder), clip(frames=57)
    video, audio = tiny.streams(upscale(patcher, latent=latent))
    expected = core_upscale(latent, velocity(patcher, tiny.positive()[0][0]))
    assert_equal(normalise(video), expected)
    assert torch.equal(audio, tiny.streams(latent)[1])


def test_a_batch_is_enlarged_clip_by_clip():
    latent = clip(batch=2)
    video, _ = tiny.streams(upscale(latent=latent))
    expected = core_upscale(latent, velocity(sr_model(), tiny.positive()[0][0].expand(2, -1, -1)))
    torch.testing.assert_close(normalise(video), expected, atol=2e-4, rtol=0)


def test_guidance_is_the_core_s_with_a_lower_start():
    patcher, latent, bad = sr_model(), clip(frames=61), tiny.positive("Blurred, dark.")
    video, audio = tiny.streams(upscale(latent=latent, negative=bad, cfg=3.5))
    calls = [velocity(patcher, text[0][0]) for text in (tiny.positive(), bad)]
    assert_equal(normalise(video), core_upscale(latent, *calls, scale=3.5))
    assert torch.equal(audio, tiny.streams(latent)[1])
    constant = core_upscale(latent, *calls, scale=2.0)
    difference = (normalise(video) - constant).abs().amax(dim=(0, 1, 3, 4))
    assert video.shape[2] == 16 and difference[13:].min() > 1e-3


def test_guidance_of_one_and_no_negative_are_the_same():
    plain = tiny.streams(upscale(cfg=3.5))[0]
    assert torch.equal(tiny.streams(upscale(cfg=1.0, negative=tiny.positive("Blurred.")))[0], plain)
    assert not torch.allclose(tiny.streams(upscale(cfg=3.5, negative=tiny.positive("Blurred.")))[0], plain, atol=1e-3)


def test_picture_is_encoded_at_the_target_size_and_held():
    latent, image = clip(), tiny.picture(300, 200)
    out = upscale(latent=latent, image=image, vae=tiny.video_vae())
    video, audio = tiny.streams(out)
    pixels = (fit_image(image.movedim(-1, 1) * 2 - 1, *LARGE)[:, :, 0].movedim(1, -1) + 1) / 2
    still = normalise(tiny.video_vae().encode(pixels))
    torch.testing.assert_close(normalise(video)[:, :, :1], still, atol=1e-5, rtol=0)
    expected = core_upscale(latent, velocity(sr_model(), tiny.positive()[0][0]), image_latent=still)
    assert_equal(normalise(video), expected)
    masks = out["noise_mask"].unbind()
    assert list(masks[0].shape) == [1, 1, 3, LARGE[1] // 16, LARGE[0] // 16]
    assert masks[0][:, :, :1].sum() == 0 and masks[0][:, :, 1:].min() == 1
    assert torch.equal(masks[1], torch.ones(1, 1, 9)) and torch.equal(audio, tiny.streams(latent)[1])


def golden(name):
    path = GOLDEN / f"{name}.io.safetensors"
    with safe_open(path, "pt") as file:
        return load_file(path), file.metadata()


def test_golden_stage_through_the_host():
    io, metadata = golden("sample_sr")
    text = [[io["text"], {}]]
    steps = int(metadata["steps"])
    inputs = ({"positive": text}, io["video_noise"], io["audio_init"].mT, denormalise(io["image_latent"]))
    video = refine(golden_patcher(metadata), *inputs, steps=steps, seed=0)
    expected = io["video_out"]
    assert (normalise(video) - expected).abs().max() <= 1e-3 * expected.abs().max()


def test_golden_start_reaches_the_model_as_it_is():
    """The host's way to a start: divided by sigma as noise, held sound, masks. The first call must see the start."""
    io, _ = golden("sr_start")
    seen = []

    def spy(apply, args):
        seen.append(args["input"].clone())
        return apply(args["input"], args["timestep"], **args["c"])

    patcher = sr_model().clone()
    patcher.set_model_unet_function_wrapper(spy)
    start, heard = io["video_start"], io["audio_start"]
    heard = heard if heard.shape[1] == 64 else heard.mT
    refine(patcher, {"positive": tiny.positive()}, start, heard, None, steps=2, seed=0)
    expected = torch.cat([start.flatten(), heard.flatten()])
    torch.testing.assert_close(seen[0].flatten(), expected, atol=1e-5, rtol=0)
    audio_of = [call.flatten()[start.numel() :] for call in seen]
    assert all(torch.equal(audio, heard.flatten()) for audio in audio_of)


@pytest.mark.parametrize(
    ("folder", "choice", "same_as"),
    [
        ("540p_sr", "auto", ()),
        ("540p_sr", "off", ()),
        ("540p_sr", "on", tuple(range(6))),
        ("1080p_sr", "auto", tuple(range(6))),
        ("1080p_sr", "on", tuple(range(6))),
        ("1080p_sr", "off", ()),
    ],
)
def test_local_attention_follows_the_widget(folder, choice, same_as):
    """57 frames are 15 latent ones: enough that a radius of 11 leaves some out of sight."""
    patcher, latent = sr_model(folder), clip(frames=57)
    options_before = {key: dict(value) for key, value in patcher.model_options.items()}
    found = tiny.streams(upscale(patcher, latent=latent, steps=1, local_attention=choice))[0]
    call = velocity(patcher, tiny.positive()[0][0], happyhorse_local_layers=same_as)
    assert_equal(normalise(found), core_upscale(latent, call, steps=1))
    other = velocity(patcher, tiny.positive()[0][0], happyhorse_local_layers=() if same_as else tuple(range(6)))
    assert not torch.allclose(normalise(found), core_upscale(latent, other, steps=1), atol=1e-4)
    assert {key: dict(value) for key, value in patcher.model_options.items()} == options_before


def test_keys_of_the_latent_and_the_mask_of_its_sound_are_kept():
    latent = clip()
    video, audio = tiny.streams(latent)
    masks = NestedTensor([torch.ones_like(video[:, :1]), torch.zeros_like(audio[:, :1])])
    out = upscale(latent={**latent, "noise_mask": masks, "something": "kept"}, steps=1)
    assert out["something"] == "kept"
    video_mask, sound_mask = out["noise_mask"].unbind()
    assert sound_mask.shape == (1, 1, 9) and sound_mask.sum() == 0
    assert video_mask.shape == (1, 1, 3, 6, 10) and video_mask.min() == 1
    assert "noise_mask" not in upscale(steps=1)


def test_one_seed_one_clip():
    first, again, other = (tiny.streams(upscale(seed=seed, steps=2))[0] for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-2)


def test_enlarged_clip_decodes():
    inputs = {"latent": upscale(steps=1), "vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    images, _, _ = tiny.run(pack.HappyHorseDecode, **inputs)
    assert list(images.shape) == [9, LARGE[1], LARGE[0], 3]


def test_defaults_are_those_of_the_core():
    parameters = inspect.signature(pack.HappyHorseSuperResolution.execute).parameters
    widgets = {item.id: getattr(item, "default", None) for item in pack.HappyHorseSuperResolution.GET_SCHEMA().inputs}
    for name in ("width", "height", "seed", "steps", "local_attention", "cfg"):
        assert parameters[name].default == widgets[name]
    assert (widgets["steps"], widgets["cfg"]) == (5, 3.5)


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("folder", ["distill", "base"])
def test_model_that_makes_clips(folder):
    name = {"distill": "distilled"}.get(folder, folder)
    with pytest.raises(ValueError, match=f"^sr_model: found the {name} model, expected 540p_sr or 1080p_sr.*role"):
        upscale(tiny.model(f"daVinci-MagiHuman/{folder}"))


def test_model_of_another_kind():
    from types import SimpleNamespace

    with pytest.raises(ValueError, match="^sr_model: found a Identity model"):
        upscale(SimpleNamespace(model=torch.nn.Identity()))


@pytest.mark.parametrize(
    ("latent", "words"),
    [
        ({"samples": torch.ones(1, 16, 3, 4, 6)}, r"latent: found \[1, 16, 3, 4, 6\], expected video .* and audio"),
        ({"samples": torch.ones(1, 48, 3, 4, 6)}, r"latent: found \[1, 48, 3, 4, 6\], expected video .* and audio"),
        ({"samples": NestedTensor([torch.zeros(1, 48, 3, 4, 6), torch.zeros(1, 64, 9)])}, "latent: found an empty"),
    ],
)
def test_latents_that_are_no_clip(latent, words):
    with pytest.raises(ValueError, match=words):
        upscale(latent=latent)


@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((64, 96), "width: found 64, expected at least 96"),
        ((96, 40), "height: found 32, expected at least 64"),
        ((8192, 64), "width: found 8192, expected a whole number from 0 to 4096"),
        ((96, -32), "height: found -32, expected"),
    ],
)
def test_sizes_that_cannot_be(size, words):
    with pytest.raises(ValueError, match=words):
        upscale(width=size[0], height=size[1])


def test_texts_of_another_encoder_or_without_words():
    with pytest.raises(ValueError, match="^positive: found text embeddings of width 768"):
        upscale(positive=[[torch.ones(1, 5, 768), {}]])
    with pytest.raises(ValueError, match="^negative: found text embeddings of width 768"):
        upscale(negative=[[torch.ones(1, 5, 768), {}]])
    with pytest.raises(ValueError, match="^positive: found an empty prompt"):
        upscale(positive=tiny.positive(" "))


def test_pictures_and_vaes_that_do_not_fit():
    with pytest.raises(ValueError, match="^vae: found nothing, expected a video VAE, since image is connected"):
        upscale(image=tiny.picture())
    with pytest.raises(ValueError, match="^vae: found an audio VAE"):
        upscale(image=tiny.picture(), vae=tiny.audio_vae())
    with pytest.raises(ValueError, match="vae: this VAE can only decode"):
        upscale(image=tiny.picture(), vae=tiny.video_vae("none"))
    with pytest.raises(ValueError, match="image: found 2 images"):
        upscale(image=tiny.picture().repeat(2, 1, 1, 1), vae=tiny.video_vae())


@pytest.mark.parametrize(
    ("size", "said"),
    [
        ((160, 96), ["160 x 96 has another shape than the clip of 96 x 64"]),
        ((256, 256), ["256 x 256 has another shape than 896 x 512", "it is stretched"]),
        ((170, 100), ["170 x 100 is not a multiple of 32; the clip becomes 160 x 96"]),
    ],
)
def test_odd_sizes_are_said(caplog, size, said):
    with caplog.at_level(logging.WARNING):
        upscale(width=size[0], height=size[1], steps=1)
    assert all(words in caplog.text for words in said)


def test_held_first_frame_without_its_picture_is_said(caplog):
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": clip()}
    latent = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]
    with caplog.at_level(logging.WARNING):
        upscale(latent=latent, steps=1, image=tiny.picture(), vae=tiny.video_vae())
        assert "starts from a given picture" not in caplog.text
        upscale(latent=latent, steps=1)
    assert "starts from a given picture, but image is not connected" in caplog.text
