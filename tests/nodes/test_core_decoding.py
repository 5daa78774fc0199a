"""The host's decode, encode and video nodes on our VAE objects, and what the previews show."""

import comfy_extras.nodes_audio as audio_nodes
import comfy_extras.nodes_video as video_nodes
import latent_preview
import numpy as np
import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise

import nodes


def clip(batch=1, frames=3, height=4, width=6):
    """A clean pair of quiet sound and a picture that changes slowly."""
    generator = torch.Generator().manual_seed(2)
    video = torch.randn(batch, 48, frames, height, width, generator=generator) * 0.5
    audio = torch.randn(batch, 64, 4 * (frames - 1) + 1, generator=generator) * 0.1
    return {"samples": NestedTensor([denormalise(video), audio])}


def ours(latent):
    return tiny.run(pack.HappyHorseDecode, latent=latent, vae=tiny.video_vae(), audio_vae=tiny.audio_vae())


@pytest.mark.parametrize("batch", [1, 2])
def test_core_decoders_give_what_our_decoder_gives(batch):
    latent = clip(batch)
    frames, sound, _ = ours(latent)
    assert list(frames.shape) == [9 * batch, 64, 96, 3]
    found = nodes.VAEDecode().decode(tiny.video_vae(), latent)[0]
    torch.testing.assert_close(found, frames, atol=1e-5, rtol=0)
    heard = audio_nodes.VAEDecodeAudio.execute(tiny.audio_vae(), latent).args[0]
    assert heard["sample_rate"] == sound["sample_rate"] == 44100
    assert heard["waveform"].shape[:2] == (batch, 2)
    if heard["waveform"].abs().max() < 1:
        torch.testing.assert_close(heard["waveform"][..., : sound["waveform"].shape[-1]], sound["waveform"])


def test_a_batch_is_decoded_clip_by_clip():
    """Frames of one clip after the other, sounds side by side, and the first clip as the video."""
    both = clip(batch=2)
    frames, sound, video = ours(both)
    for index in range(2):
        one = {"samples": NestedTensor([stream[index : index + 1] for stream in tiny.streams(both)])}
        alone, heard, _ = ours(one)
        torch.testing.assert_close(frames[9 * index : 9 * index + 9], alone, atol=1e-5, rtol=0)
        torch.testing.assert_close(sound["waveform"][index], heard["waveform"][0], atol=1e-5, rtol=0)
    parts = video.get_components()
    torch.testing.assert_close(parts.images, frames[:9])
    assert parts.audio["waveform"].shape[0] == 1


def test_tiled_decoding_of_sound_is_near_the_whole():
    latent = clip(frames=17)
    whole = audio_nodes.VAEDecodeAudio.execute(tiny.audio_vae(), latent).args[0]["waveform"]
    tiled = audio_nodes.VAEDecodeAudioTiled.execute(tiny.audio_vae(), latent, 32, 16).args[0]["waveform"]
    assert tiled.shape == whole.shape
    assert (tiled - whole).norm() < 0.2 * whole.norm()


def test_tiled_decoding_of_pictures_is_near_the_whole():
    latent = clip(height=8, width=12)
    whole = nodes.VAEDecode().decode(tiny.video_vae(), latent)[0]
    tiled = nodes.VAEDecodeTiled().decode(tiny.video_vae(), latent, 128, 64, 64, 8)[0]
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.05


def test_encoded_sound_has_25_latents_a_second_whatever_its_rate():
    for rate, channels in ((44100, 2), (16000, 1), (48000, 2)):
        sound = {"waveform": torch.randn(1, channels, rate) * 0.1, "sample_rate": rate}
        latent = audio_nodes.VAEEncodeAudio.execute(tiny.audio_vae(), sound).args[0]
        assert latent["samples"].shape[:2] == (1, 64) and latent["samples"].shape[2] in (25, 26)


def test_encoded_pictures_start_a_clip():
    vae, picture = tiny.video_vae(), tiny.picture(96, 64)
    whole = nodes.VAEEncode().encode(vae, picture)[0]["samples"]
    tiled = nodes.VAEEncodeTiled().encode(vae, picture, 512, 64)[0]["samples"]
    masked = nodes.VAEEncodeForInpaint().encode(vae, picture, torch.zeros(1, 64, 96))[0]
    assert list(whole.shape) == list(masked["samples"].shape) == [1, 48, 1, 4, 6]
    torch.testing.assert_close(tiled, whole, atol=1e-4, rtol=1e-4)
    inputs = {"vae": vae, "image": picture, "latent": tiny.empty()}
    start = tiny.streams(tiny.run(pack.HappyHorseImageToVideo, **inputs)[0])[0]
    torch.testing.assert_close(whole, start[:, :, :1], atol=1e-2, rtol=1e-2)


def test_create_video_holds_frames_and_sound():
    frames, sound, ready = ours(clip())
    made = video_nodes.CreateVideo.execute(frames, 25.0, sound).args[0].get_components()
    given = ready.get_components()
    assert made.frame_rate == given.frame_rate == 25
    assert torch.equal(made.images, given.images)
    assert torch.equal(made.audio["waveform"], given.audio["waveform"])


# --- previews ---------------------------------------------------------------------------------------------------------


def preview(monkeypatch, video):
    """The picture that the host makes of a clean latent in the middle of sampling."""
    monkeypatch.setattr(latent_preview.args, "preview_method", latent_preview.LatentPreviewMethod.Latent2RGB)
    previewer = latent_preview.get_previewer(torch.device("cpu"), tiny.model().model.latent_format)
    return np.asarray(previewer.decode_latent_to_preview_image("JPEG", video)[1]).astype(int)


def test_preview_is_of_a_frame_that_is_made_and_not_of_the_given_picture(monkeypatch):
    """Its colours are weighed sums of the latent's channels."""
    video = torch.zeros(1, 48, 5, 4, 6)
    video[:, :, 0] = 3 * torch.randn(48, 1, 1, generator=torch.Generator().manual_seed(0))
    grey = preview(monkeypatch, torch.zeros_like(video))
    assert grey.shape == (4, 6, 3)
    assert np.array_equal(preview(monkeypatch, video), grey), "the first frame is not looked at"
    factors = torch.tensor(tiny.model().model.latent_format.latent_rgb_factors)
    video[0, :, 2, :, 3:] += (torch.linalg.pinv(factors.T) @ torch.tensor([0.5, -0.5, -0.5]))[:, None, None]
    shown = preview(monkeypatch, video)
    left, right = shown[:, :3].mean(axis=(0, 1)), shown[:, 3:].mean(axis=(0, 1))
    assert np.array_equal(left, grey[:, :3].mean(axis=(0, 1)))
    assert right[0] > left[0] + 30 and right[0] > right[1] + 30, "the right half turned red"


def test_preview_of_one_frame(monkeypatch):
    assert preview(monkeypatch, torch.zeros(1, 48, 1, 4, 6)).shape == (4, 6, 3)


def test_packs_that_animate_previews_get_each_frame_as_it_is():
    """They take a clip apart into pictures, [T, 48, H, W], and hand these to the host's previewer."""
    pictures = torch.randn(5, 48, 4, 6)
    assert torch.equal(tiny.model().model.latent_format.latent_rgb_factors_reshape(pictures), pictures)
