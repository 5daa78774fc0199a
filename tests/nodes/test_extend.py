"""Clips that go on from one another: what the next one holds, and what the joined video is made of."""

import logging
from fractions import Fraction

import pytest
import tiny
import torch
from comfy_api.latest import InputImpl, Types
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.extend import stretch_to_hold
from happyhorse_pack.nodes.host.latents import ORIGINAL

RATE = 44100


def video(pictures=41, *, start=0, rate=RATE, channels=2, size=(96, 64), fps=25, sound=True):
    """A VIDEO from a film whose brightness rises by 1/500 a picture and whose sound rises with its time."""
    width, height = size
    levels = torch.arange(start, start + pictures) / 500
    images = levels[:, None, None, None].expand(-1, height, width, 3)
    times = torch.arange(pictures * rate // 25) / rate + start / 25
    audio = {"waveform": (times / 20).expand(1, channels, -1), "sample_rate": rate} if sound else None
    parts = Types.VideoComponents(images=images, audio=audio, frame_rate=Fraction(fps))
    return InputImpl.VideoFromComponents(parts)


def go_on(clip=None, latent=None, overlap=0.4, **changes):
    inputs = {"video": clip or video(), "vae": tiny.video_vae(), "audio_vae": tiny.audio_vae(), "overlap": overlap}
    return tiny.run(pack.HappyHorseExtend, latent=latent or tiny.empty(frames=33), **(inputs | changes))


def join(first, second, overlap=10, **changes):
    inputs = {"video": first, "next_video": second, "overlap": overlap}
    return tiny.run(pack.HappyHorseJoinClips, **(inputs | changes))[0].get_components()


def sample(latent, base=False):
    inputs = {"positive": tiny.positive(), "latent": latent, "seed": 3, "steps": 2}
    if base:
        inputs["negative"] = tiny.positive("Blurred.")
        return tiny.run(pack.HappyHorseBaseSampler, model=tiny.model(tiny.BASE), **inputs)[0]
    return tiny.run(pack.HappyHorseSampler, model=tiny.model(), **inputs)[0]


def decode(latent):
    return tiny.run(pack.HappyHorseDecode, latent=latent, vae=tiny.video_vae(), audio_vae=tiny.audio_vae())


def image_to_video(image):
    inputs = {"vae": tiny.video_vae(), "image": image, "latent": tiny.empty(frames=33)}
    return tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]


@pytest.mark.parametrize(("overlap", "shared"), [(0.4, 10), (0.04, 1), (1.0, 25)])
def test_the_next_clip_holds_the_picture_and_the_sound_of_one_moment(overlap, shared):
    clip = video()
    parts = clip.get_components()
    latent, pictures = go_on(clip, overlap=overlap)
    assert pictures == shared
    expected = image_to_video(parts.images[41 - shared : 42 - shared])
    assert torch.equal(tiny.streams(latent)[0], tiny.streams(expected)[0])
    video_mask, audio_mask = latent["noise_mask"].unbind()
    assert torch.equal(video_mask, expected["noise_mask"].unbind()[0])
    assert list(audio_mask.shape) == [1, 1, 33]
    assert audio_mask[..., :shared].max() == 0 and audio_mask[..., shared:].min() == 1
    stretch = stretch_to_hold(parts.audio["waveform"][0], RATE, 41, shared)
    held = stretch.held(tiny.audio_vae().encode(stretch.sound.movedim(1, -1)))
    assert torch.equal(tiny.streams(latent)[1][..., :shared], held)
    assert tiny.streams(latent)[1][..., shared:].count_nonzero() == 0


@pytest.mark.parametrize("base", [False, True])
def test_a_sampler_keeps_what_is_held_and_makes_the_rest(base):
    latent, shared = go_on()
    out = sample(latent, base)
    for stream, length in ((0, 1), (1, shared)):
        found, held = tiny.streams(out)[stream], tiny.streams(latent)[stream]
        torch.testing.assert_close(found[:, :, :length], held[:, :, :length], atol=1e-5, rtol=0)
        assert not torch.allclose(found[:, :, length:], held[:, :, length:], atol=1e-2)


def test_the_held_sound_steers_what_follows():
    quiet = video(channels=1)
    parts = quiet.get_components()
    parts.audio["waveform"] = parts.audio["waveform"] * 0.1
    first, other = (sample(go_on(clip)[0]) for clip in (video(), InputImpl.VideoFromComponents(parts)))
    assert not torch.allclose(tiny.streams(first)[1][..., 15:], tiny.streams(other)[1][..., 15:], atol=1e-3)


def test_a_batch_goes_on_from_one_clip():
    latent, _ = go_on(latent=tiny.empty(frames=33, batch_size=2))
    out_video, out_audio = tiny.streams(sample(latent))
    assert torch.equal(out_audio[0, :, :10], out_audio[1, :, :10])
    assert not torch.allclose(out_video[0], out_video[1], atol=1e-2)


def test_a_sound_that_drove_the_latent_is_no_longer_its_original():
    sound = {"waveform": torch.rand(1, 2, RATE), "sample_rate": RATE}
    inputs = {"audio_vae": tiny.audio_vae(), "audio": sound}
    driven = tiny.run(pack.HappyHorseAudioToVideo, latent=tiny.empty(), **inputs)[0]
    assert ORIGINAL not in go_on(latent=driven)[0]
    after = tiny.run(pack.HappyHorseAudioToVideo, latent=go_on()[0], **inputs)[0]
    assert torch.equal(after["noise_mask"].unbind()[0][:, :, 0], torch.zeros(1, 1, 4, 6))
    assert torch.equal(tiny.streams(after)[0][:, :, 0], tiny.streams(go_on()[0])[0][:, :, 0])
    assert decode(after)[1]["waveform"].shape[-1] == 25 * 1764


def test_a_clip_without_sound_goes_on_from_its_last_picture(caplog):
    with caplog.at_level(logging.WARNING):
        latent, shared = go_on(video(sound=False))
    assert shared == 1
    assert "has no sound" in caplog.text
    assert latent["noise_mask"].unbind()[1].min() == 1
    assert torch.equal(tiny.streams(latent)[0], tiny.streams(image_to_video(video().get_components().images[-1:]))[0])


def test_joined_pictures_and_sound_are_one_film():
    """Five clips of one film whose every picture and sample tells its time: the joined video must be that film."""
    film, lengths = video(41), (33, 49, 41, 45)
    total = 41
    for length in lengths:
        following = video(length, start=total - 10)
        film = tiny.run(pack.HappyHorseJoinClips, video=film, next_video=following, overlap=10)[0]
        total += length - 10
    found, expected = film.get_components(), video(total).get_components()
    assert torch.equal(found.images, expected.images)
    assert found.frame_rate == 25
    assert found.audio["sample_rate"] == RATE
    assert found.audio["waveform"].shape == (1, 2, total * 1764)
    torch.testing.assert_close(found.audio["waveform"], expected.audio["waveform"], atol=1e-5, rtol=0)


def test_two_clips_from_the_model_become_one():
    first = decode(sample(tiny.empty(frames=33)))[2]
    latent, shared = go_on(first)
    second = decode(sample(latent))[2]
    found = join(first, second, shared)
    before, after = first.get_components(), second.get_components()
    assert found.images.shape[0] == 33 + 33 - 10
    assert torch.equal(found.images[:24], before.images[:24])
    assert torch.equal(found.images[24:], after.images[1:])
    end = 33 * 1764
    assert torch.equal(found.audio["waveform"][..., : end - 1764], before.audio["waveform"][..., : end - 1764])
    assert torch.equal(found.audio["waveform"][..., end:], after.audio["waveform"][..., 10 * 1764 :])


def test_the_joined_video_is_saved_with_picture_and_sound_in_step(tmp_path):
    import av

    joined = tiny.run(pack.HappyHorseJoinClips, video=video(), next_video=video(33, start=31), overlap=10)[0]
    joined.save_to(str(tmp_path / "film.mp4"))
    with av.open(str(tmp_path / "film.mp4")) as file:
        seconds = [
            float(stream.duration * stream.time_base) for stream in (file.streams.video[0], file.streams.audio[0])
        ]
    assert seconds[0] == pytest.approx(64 / 25)
    assert abs(seconds[0] - seconds[1]) < 1 / 25


def test_clips_of_other_rates_and_channels_are_brought_to_the_first(caplog):
    found = join(video(), video(33, start=31, rate=48000, channels=1))
    expected = video(64).get_components()
    assert found.audio["sample_rate"] == RATE
    assert found.audio["waveform"].shape == expected.audio["waveform"].shape
    end = found.audio["waveform"].shape[-1]
    middle = slice(0, end - 3000)  # a film that breaks off rings at its end when resampled
    difference = found.audio["waveform"] - expected.audio["waveform"]
    assert difference[..., middle].abs().max() < 5e-3


def test_where_one_clip_has_no_sound_the_video_is_silent(caplog):
    with caplog.at_level(logging.WARNING):
        found = join(video(sound=False), video(33, start=31))
    assert "one of the clips has no sound" in caplog.text
    assert found.audio["waveform"].shape == (1, 2, 64 * 1764)
    assert found.audio["waveform"][..., : 40 * 1764].count_nonzero() == 0
    assert found.audio["waveform"][..., 41 * 1764 :].min() > 0
    assert join(video(sound=False), video(33, sound=False)).audio is None


def test_clips_that_do_not_meet_are_said(caplog):
    long = video(201)
    with caplog.at_level(logging.WARNING):
        join(long, video(33, start=191))
        assert not caplog.records
        join(long, video(33, start=100), overlap=10)
        assert "differ by 18 %, those at an overlap of 101 frames by 0 %" in caplog.text
        caplog.clear()
        join(video(33, start=191), long)
        assert "differ by 43 %, but in the other order they meet" in caplog.text


def test_a_right_join_is_not_warned_of(caplog):
    """Untrained weights: the held picture comes back as another one."""
    latent, shared = go_on(decode(sample(tiny.empty(frames=33)))[2])
    first, second = decode(sample(tiny.empty(frames=33)))[2], decode(sample(latent))[2]
    with caplog.at_level(logging.WARNING):
        join(first, second, shared)
    assert not [record for record in caplog.records if "join" in record.getMessage()]
    pictures = [clip.get_components().images for clip in (first, second)]
    assert (pictures[0][-shared] - pictures[1][0]).abs().mean() > 0.1


# bad input


def test_sockets_mixed_up():
    with pytest.raises(ValueError, match="^vae: found an audio VAE, expected a video VAE"):
        go_on(vae=tiny.audio_vae())
    with pytest.raises(ValueError, match="^audio_vae: found a video VAE, expected an audio VAE"):
        go_on(audio_vae=tiny.video_vae())
    with pytest.raises(ValueError, match="vae: this VAE can only decode"):
        go_on(vae=tiny.video_vae("none"))
    with pytest.raises(ValueError, match=r"latent: found \[1, 16, 3, 4, 6\], expected video"):
        go_on(latent={"samples": torch.ones(1, 16, 3, 4, 6)})


def test_sizes_that_differ():
    with pytest.raises(ValueError, match="latent: found 96 x 64 pixels, expected 128 x 64, the size of the clip"):
        go_on(video(size=(128, 64)))
    with pytest.raises(ValueError, match="next_video: found 128 x 64 pixels, expected 96 x 64"):
        join(video(), video(size=(128, 64)))


def test_frame_rates_that_differ():
    with pytest.raises(ValueError, match="^video: found 24 frames a second, expected 25"):
        go_on(video(fps=24))
    with pytest.raises(ValueError, match="^next_video: found 30 frames a second, expected 25"):
        join(video(), video(fps=30))


def test_overlaps_that_do_not_fit():
    with pytest.raises(ValueError, match="overlap: found 45 frames .1.8 s., but the clip has 41"):
        go_on(overlap=1.8, latent=tiny.empty(frames=61))
    with pytest.raises(ValueError, match="overlap: found 33 frames .*, but the next clip has 33, expected at least 34"):
        go_on(overlap=33 / 25)
    with pytest.raises(ValueError, match="overlap: found 33 frames .*, but the next clip has 33"):
        join(video(), video(33), 33)
    with pytest.raises(ValueError, match="overlap: found 0.0, expected a number from 0.04 to 10"):
        go_on(overlap=0.0)


def test_sounds_of_unlike_channels():
    with pytest.raises(ValueError, match="next_video: found sounds of 2 and 6 channels"):
        join(video(), video(channels=6))
