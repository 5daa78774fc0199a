"""CLIP and VAE objects against the core functions that they wrap, through the host's own nodes."""

import logging

import comfy_extras.nodes_audio as audio_nodes
import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_pack.happyhorse_core.audio_vae.resample import resample_fft
from happyhorse_pack.happyhorse_core.media.image import fit_image
from happyhorse_pack.happyhorse_core.text.load import load_text_encoder
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise
from happyhorse_pack.happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from happyhorse_pack.nodes.host import files

import nodes as host


def vae_path(name):
    return files.resolve_entry("vae", name, "name")


def text_path():
    return files.resolve_entry("text_encoders", tiny.TEXT_ENCODER, "name")


def raw_latent(frames=9, batch=1):
    generator = torch.Generator().manual_seed(3)
    return denormalise(torch.randn(batch, 48, frames, 4, 6, generator=generator))


def test_clip_text_encode_equals_the_core():
    expected = load_text_encoder(text_path(), dtype=torch.float32).encode_prompt(tiny.PROMPT)
    found, extra = tiny.positive()[0]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-3)
    assert found.dtype == torch.float32
    assert torch.equal(found, found.half().float()), "the video model was trained on text rounded through float16"
    assert extra["pooled_output"] is None


def test_weighted_words_are_plain_text():
    plain, weighted = tiny.positive("a (red:1.5) hat"), tiny.positive("a red hat")
    assert plain[0][0].shape[1] > weighted[0][0].shape[1]


def test_long_prompt_is_cut_with_a_warning_that_says_how_much(caplog):
    words = " ".join(["window"] * 1500)
    with caplog.at_level(logging.WARNING):
        found = tiny.positive(words)[0][0]
    assert found.shape[1] == 640
    count = len(load_text_encoder(text_path()).tokenizer.encode(words))
    assert f"{count} tokens" in caplog.text and f"{count - 640} are cut" in caplog.text


def test_empty_text_is_one_token_of_zeros():
    found = tiny.positive("  ")[0][0]
    assert list(found.shape) == [1, 1, 24]
    assert torch.count_nonzero(found) == 0


@pytest.mark.parametrize("weight_dtype", ["fp8_e4m3fn", "fp32"])
def test_text_encoder_in_other_dtypes(weight_dtype):
    inputs = {"text_encoder_name": tiny.TEXT_ENCODER, "weight_dtype": weight_dtype, "device": "cpu"}
    clip = tiny.run(pack.HappyHorseTextEncoderLoader, **inputs)[0]
    found = host.CLIPTextEncode().encode(clip, tiny.PROMPT)[0][0][0]
    expected = tiny.positive()[0][0]
    error = ((found - expected).norm() / expected.norm()).item()
    assert error < (0.5 if weight_dtype.startswith("fp8") else 1e-3)
    norm = clip.cond_stage_model.encoder.layers[0].pre_self_attn_layernorm.weight
    assert norm.dtype in (torch.bfloat16, torch.float32)


def test_video_decode_equals_the_core():
    latent = raw_latent()
    decoder = load_turbo_decoder(vae_path("checkpoint-340000.ckpt"), dtype=torch.float32)
    expected = (decoder(latent) / 2 + 0.5).clamp(0, 1).movedim(1, -1)
    found = tiny.video_vae().decode(latent)
    assert list(found.shape) == [1, 33, 64, 96, 3]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)
    frames = host.VAEDecode().decode(tiny.video_vae(), {"samples": latent})[0]
    assert torch.equal(frames, found[0])


def test_batches_and_tiles_decode_to_the_same_pictures():
    latent = raw_latent(frames=3, batch=2)
    whole = tiny.video_vae().decode(latent)
    for index in range(2):
        torch.testing.assert_close(whole[index : index + 1], tiny.video_vae().decode(latent[index : index + 1]))
    tiled = host.VAEDecodeTiled().decode(tiny.video_vae(), {"samples": latent[:1]}, 64, 16)[0]
    assert tiled.shape == whole[0].shape
    assert torch.isfinite(tiled).all()


def test_picture_encode_equals_the_core():
    image = tiny.picture(96, 64)
    encoder = load_image_encoder(vae_path("Wan2.2_VAE.pth"), dtype=torch.float32)
    expected = encoder(fit_image(image.movedim(-1, 1) * 2 - 1, 96, 64))
    found = host.VAEEncode().encode(tiny.video_vae(), image)[0]["samples"]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


def test_sound_decode_equals_the_core_and_lasts_as_long_as_the_frames():
    latent = torch.randn(1, 64, 26, generator=torch.Generator().manual_seed(2))
    vae = load_oobleck(vae_path("stable_audio_open_1.0.safetensors"))
    found = tiny.audio_vae().decode(latent).movedim(-1, 1)
    assert list(found.shape) == [1, 2, 26 * 1764]
    torch.testing.assert_close(found, resample_fft(vae.decode(latent)), atol=1e-5, rtol=0)
    decoded = audio_nodes.VAEDecodeAudio.execute(tiny.audio_vae(), {"samples": latent}).args[0]
    assert decoded["sample_rate"] == 44100
    assert decoded["waveform"].shape == found.shape


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_encode_gives_25_latents_a_second(channels):
    waveform = torch.rand(1, channels, 44100, generator=torch.Generator().manual_seed(4)) - 0.5
    sound = {"waveform": waveform, "sample_rate": 44100}
    found = audio_nodes.VAEEncodeAudio.execute(tiny.audio_vae(), sound).args[0]["samples"]
    assert list(found.shape) == [1, 64, 25]
    again = audio_nodes.VAEEncodeAudio.execute(tiny.audio_vae(), sound).args[0]["samples"]
    assert torch.equal(found, again)


def test_sound_that_ends_within_a_latent_is_filled_up():
    waveform = torch.rand(1, 2, 51200 + 100)
    found = tiny.audio_vae().encode(waveform.movedim(1, -1))
    assert found.shape[-1] == 26
    expected = load_oobleck(vae_path("stable_audio_open_1.0.safetensors")).encode(waveform)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_copies_for_another_device_are_loaded_from_the_same_files():
    for vae in (tiny.video_vae(), tiny.audio_vae()):
        factory, arguments = vae.patcher.cached_patcher_init
        again = factory(*arguments, disable_dynamic=True)
        first, second = vae.first_stage_model.state_dict(), again.model.state_dict()
        assert first.keys() == second.keys()
        assert all(torch.equal(first[name], second[name]) for name in first)
    factory, arguments = tiny.clip().patcher.cached_patcher_init
    assert factory(*arguments, disable_dynamic=True).model.state_dict().keys()


def test_loading_a_vae_says_nothing_alarming(caplog):
    with caplog.at_level(logging.WARNING):
        tiny.run(pack.HappyHorseAudioVAELoader, audio_vae_name="stable_audio_open_1.0.safetensors")
    assert not caplog.records


def test_decode_node_gives_frames_sound_and_a_video_of_both():
    latent = tiny.empty(frames=9)
    video, audio = tiny.streams(latent)
    inputs = {"latent": latent, "vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    images, sound, clip = tiny.run(pack.HappyHorseDecode, **inputs)
    assert list(images.shape) == [9, 64, 96, 3]
    assert images.min() >= 0 and images.max() <= 1
    assert list(sound["waveform"].shape) == [1, 2, 9 * 1764]
    assert sound["sample_rate"] == 44100
    parts = clip.get_components()
    assert parts.frame_rate == 25
    assert torch.equal(parts.images, images)


def test_loud_sound_stays_within_full_scale():
    latent = tiny.empty(frames=5)
    video, audio = tiny.streams(latent)
    loud = {"samples": NestedTensor([video, 100 * torch.randn(audio.shape)])}
    inputs = {"latent": loud, "vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    assert tiny.run(pack.HappyHorseDecode, **inputs)[1]["waveform"].abs().max() == 1


def test_sound_is_cut_to_the_pictures_that_come_out():
    latent = tiny.empty(frames=12)
    inputs = {"latent": latent, "vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    images, sound, _ = tiny.run(pack.HappyHorseDecode, **inputs)
    assert tiny.streams(latent)[1].shape[-1] == 12
    assert images.shape[0] == 9
    assert sound["waveform"].shape[-1] == 9 * 1764


def test_decode_node_of_a_batch_gives_all_frames_and_all_sounds():
    latent = tiny.empty(frames=5, batch_size=2)
    inputs = {"latent": latent, "vae": tiny.video_vae("none"), "audio_vae": tiny.audio_vae()}
    images, sound, clip = tiny.run(pack.HappyHorseDecode, **inputs)
    assert list(images.shape) == [10, 64, 96, 3]
    assert list(sound["waveform"].shape) == [2, 2, 5 * 1764]
    assert list(clip.get_components().images.shape) == [5, 64, 96, 3]
