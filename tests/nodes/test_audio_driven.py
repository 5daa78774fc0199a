"""Clips that follow a given sound: what is held, how long they are, and that the sound comes out as it went in."""

import logging
import math

import comfy_extras.nodes_lt as lt
import pytest
import tiny
import torch
from comfy_extras.nodes_audio import VAEEncodeAudio
from comfy_extras.nodes_video import CreateVideo
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.media.sound import soundtrack_from_array
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import normalise
from happyhorse_pack.nodes.host.latents import ORIGINAL


def sound(seconds=0.52, rate=44100, channels=2, batch=1):
    """AUDIO of noise that fades in: no two stretches alike."""
    samples = int(seconds * rate)
    noise = torch.rand(batch, channels, samples, generator=torch.Generator().manual_seed(5)) - 0.5
    return {"waveform": noise * torch.linspace(0.2, 1, max(samples, 1))[:samples], "sample_rate": rate}


def drive(audio=None, latent=None, audio_vae=None):
    inputs = {"audio": sound() if audio is None else audio, "latent": tiny.empty() if latent is None else latent}
    return tiny.run(pack.HappyHorseAudioToVideo, audio_vae=audio_vae or tiny.audio_vae(), **inputs)[0]


def hold_picture(latent):
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": latent}
    return tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]


def sample(latent, base=False):
    inputs = {"positive": tiny.positive(), "latent": latent, "seed": 3, "steps": 2}
    if base:
        inputs["negative"] = tiny.positive("Blurred.")
        return tiny.run(pack.HappyHorseBaseSampler, model=tiny.model(tiny.BASE), **inputs)[0]
    return tiny.run(pack.HappyHorseSampler, model=tiny.model(), **inputs)[0]


def decode(latent):
    return tiny.run(pack.HappyHorseDecode, latent=latent, vae=tiny.video_vae(), audio_vae=tiny.audio_vae())


@pytest.mark.parametrize(
    ("seconds", "latents", "frames"), [(0.2, 5, 2), (0.52, 13, 4), (0.6, 15, 4), (0.61, 16, 4), (0.64001, 16, 4)]
)
def test_the_sound_sets_the_length_of_both_streams(seconds, latents, frames):
    video, audio = tiny.streams(drive(sound(seconds), tiny.empty(frames=33)))
    assert list(video.shape) == [1, 48, frames, 4, 6]
    assert list(audio.shape) == [1, 64, latents]


def test_the_latent_holds_the_sound_as_the_core_encodes_it():
    given = sound(0.52, 22050, 1)
    latent = drive(given)
    heard = soundtrack_from_array(given["waveform"], 22050)
    expected = VAEEncodeAudio.execute(tiny.audio_vae(), {"waveform": heard, "sample_rate": 51200}).args[0]["samples"]
    assert torch.equal(tiny.streams(latent)[1], expected)
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert list(audio_mask.shape) == [1, 1, 13] and audio_mask.count_nonzero() == 0
    assert list(video_mask.shape) == [1, 1, 4, 4, 6] and video_mask.min() == 1
    assert normalise(tiny.streams(latent)[0]).abs().max() < 1e-6


@pytest.mark.parametrize("base", [False, True])
def test_a_sampled_clip_keeps_the_sound_and_decode_gives_the_original(base):
    given = sound(0.55, 48000, 1)
    out = sample(drive(given), base)
    images, audio, clip = decode(out)
    assert torch.equal(tiny.streams(out)[1], tiny.streams(drive(given))[1])
    assert images.shape[0] == 13
    assert audio["sample_rate"] == 48000
    assert torch.equal(audio["waveform"], given["waveform"][..., : 13 * 1920])
    assert torch.equal(clip.get_components().audio["waveform"], audio["waveform"])


def test_a_sound_that_ends_within_the_last_picture_is_filled_up_with_silence():
    given = sound(0.51)
    images, audio, _ = decode(drive(given))
    assert images.shape[0] == 13
    assert audio["waveform"].shape[-1] == 13 * 1764
    samples = given["waveform"].shape[-1]
    assert torch.equal(audio["waveform"][..., :samples], given["waveform"])
    assert audio["waveform"][..., samples:].count_nonzero() == 0


def test_the_sound_steers_the_picture():
    quiet = {**sound(), "waveform": sound()["waveform"] * 0.01}
    first, other = (normalise(tiny.streams(sample(drive(audio)))[0]) for audio in (sound(), quiet))
    assert not torch.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("frames", [5, 13, 33])
def test_a_picture_is_held_whether_it_comes_before_or_after_the_sound(frames):
    before = drive(latent=hold_picture(tiny.empty(frames=frames)))
    after = hold_picture(drive(latent=tiny.empty(frames=frames)))
    for first, second in zip(tiny.streams(before), tiny.streams(after), strict=True):
        torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
    for first, second in zip(before["noise_mask"].unbind(), after["noise_mask"].unbind(), strict=True):
        assert torch.equal(first, second)
    video_mask = before["noise_mask"].unbind()[0]
    assert video_mask[:, :, 0].count_nonzero() == 0 and video_mask[:, :, 1:].min() == 1
    still = tiny.streams(hold_picture(tiny.empty()))[0][:, :, :1]
    out = tiny.streams(sample(before))[0]
    torch.testing.assert_close(out[:, :, :1], still, atol=1e-5, rtol=0)


def test_a_batch_follows_one_sound():
    given = sound()
    out = sample(drive(given, tiny.empty(batch_size=2)))
    video, audio = tiny.streams(out)
    assert video.shape[0] == audio.shape[0] == 2
    assert not torch.allclose(video[0], video[1], atol=1e-2)
    images, heard, _ = decode(out)
    assert images.shape[0] == 26
    assert torch.equal(heard["waveform"], given["waveform"].expand(2, -1, -1)[..., : 13 * 1764])


def test_the_original_goes_through_separating_and_joining_the_streams():
    given = sound()
    video, audio = lt.LTXVSeparateAVLatent.execute(drive(given)).args
    joined = lt.LTXVConcatAVLatent.execute(video, audio).args[0]
    assert torch.equal(decode(joined)[1]["waveform"], given["waveform"][..., : 13 * 1764])


def test_another_sound_in_its_place_is_decoded():
    latent = drive()
    video, audio = lt.LTXVSeparateAVLatent.execute(latent).args
    other = {"samples": torch.randn(1, 64, 13, generator=torch.Generator().manual_seed(8))}
    joined = lt.LTXVConcatAVLatent.execute(video, other).args[0]
    assert ORIGINAL in joined
    found = decode(joined)[1]
    assert found["sample_rate"] == 44100
    plain = {"samples": joined["samples"]}
    assert torch.equal(found["waveform"], decode(plain)[1]["waveform"])
    longer = {**latent, "samples": tiny.empty(frames=17)["samples"]}
    assert decode(longer)[1]["waveform"].shape[-1] == 17 * 1764


def test_a_little_noise_of_the_sampler_does_not_hide_the_original():
    latent = drive()
    video, audio = tiny.streams(latent)
    audio += 0.004 * audio.abs().max()
    assert decode(latent)[1]["waveform"].shape[-1] == 13 * 1764
    assert torch.equal(decode(latent)[1]["waveform"], sound()["waveform"][..., : 13 * 1764])


def test_a_second_sound_takes_the_place_of_the_first():
    second = sound(0.36, 22050)
    latent = drive(second, drive())
    images, audio, _ = decode(latent)
    assert images.shape[0] == 9
    assert torch.equal(audio["waveform"], second["waveform"][..., : 9 * 882])


@pytest.mark.parametrize(("rate", "channels"), [(22050, 1), (48000, 2), (16000, 2), (44100, 6)])
def test_sounds_of_other_rates_can_be_saved(tmp_path, rate, channels, caplog):
    import av

    with caplog.at_level(logging.WARNING):
        images, audio, clip = decode(drive(sound(0.52, rate, channels)))
    assert not caplog.records
    for name, video in (("own", clip), ("core", CreateVideo.execute(images, 25.0, audio).args[0])):
        path = tmp_path / f"{name}.mp4"
        video.save_to(str(path))
        with av.open(str(path)) as file:
            stream = file.streams.audio[0]
            assert (stream.rate, stream.channels) == (rate, channels)
            assert file.streams.video[0].frames == 13


def test_rates_that_an_mp4_cannot_hold_are_said_before_the_work(tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        latent = drive(sound(0.52, 51200))
    assert "51200 Hz, which an mp4 can't hold" in caplog.text
    clip = decode(latent)[2]
    with pytest.raises(Exception, match="avcodec_open2"):
        clip.save_to(str(tmp_path / "clip.mp4"))
    with caplog.at_level(logging.WARNING):
        drive(sound(0.52, 44100, 3))
    assert "3 channels" in caplog.text


# bad input


@pytest.mark.parametrize(("seconds", "rate"), [(30.1, 8000), (45, 1000)])
def test_too_long(seconds, rate):
    with pytest.raises(ValueError, match=rf"audio: found {seconds:.2f} s of sound, expected at most 30 s. Cut it"):
        drive(sound(seconds, rate))


@pytest.mark.parametrize("seconds", [0.05, 0.159])
def test_too_short(seconds):
    latents = math.ceil(seconds * 25)
    with pytest.raises(ValueError, match=rf"audio: found {latents} frames of sound .*, expected at least 5 \(0.20 s\)"):
        drive(sound(seconds))


def test_empty_missing_and_several():
    with pytest.raises(ValueError, match="audio: the sound is empty"):
        drive(sound(0))
    with pytest.raises(ValueError, match="audio: found nothing, expected sound .* The video that it came from"):
        tiny.run(pack.HappyHorseAudioToVideo, audio_vae=tiny.audio_vae(), audio=None, latent=tiny.empty())
    with pytest.raises(ValueError, match=r"audio: found a waveform of shape \[3, 2, 22932\], expected one sound"):
        drive(sound(batch=3))
    with pytest.raises(ValueError, match="audio: the sound has a sample rate of 0 Hz"):
        drive({**sound(), "sample_rate": 0})
    with pytest.raises(ValueError, match="audio: found values that are no numbers"):
        drive({**sound(), "waveform": sound()["waveform"] / 0})


def test_sockets_mixed_up():
    with pytest.raises(ValueError, match="audio_vae: found a video VAE, expected an audio VAE. Swap"):
        drive(audio_vae=tiny.video_vae())
    with pytest.raises(ValueError, match=r"latent: found \[1, 16, 3, 4, 6\], expected video"):
        drive(latent={"samples": torch.ones(1, 16, 3, 4, 6)})
