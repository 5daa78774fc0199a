"""What is shipped in pony/ beside its transformers: pictures, sounds and prompts come through it."""

import numpy as np
import pytest
import torch

from happyhorse_core.audio_vae.encode import encode_soundtrack
from happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_core.model_folder import AUDIO_VAE, IMAGE_ENCODER, TEXT_ENCODER, VIDEO_DECODER
from happyhorse_core.text.load import load_text_encoder
from happyhorse_core.video_vae.latent_statistics import denormalise
from happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from training.judge.clip import judge_clip, matches
from training.run import PONY
from training.video_vae import encode_clips, psnr, to_pictures
from training.video_vae_parts import ClipEncoder
from training.world.draw import draw
from training.world.prompts import prompt
from training.world.scene import MOTIONS, Scene, sample_scene
from training.world.sound import RATE, sound

FRAMES, ENOUGH_PSNR = 49, 28.0
each_motion = pytest.mark.parametrize("motion", [*MOTIONS, "speaking"])


def scene_of(motion: str) -> Scene:
    rng = np.random.default_rng(7)
    return sample_scene(rng, kind="face") if motion == "speaking" else sample_scene(rng, motion=motion)


@each_motion
@torch.inference_mode()
def test_a_clip_comes_back_from_its_latents(motion):
    """As pictures and as sound, and the judge finds in both together what the scene asked for."""
    scene = scene_of(motion)
    pictures = torch.from_numpy(draw(scene, frames=FRAMES))[None]
    exact = {"dtype": torch.float32}
    encoder = load_image_encoder(PONY / IMAGE_ENCODER.places[0], **exact)
    latent = encode_clips(ClipEncoder(encoder), pictures)
    assert latent.abs().max() < 6 and 0.3 < latent.std() < 2
    decoder = load_turbo_decoder(PONY / VIDEO_DECODER.places[0], **exact)
    made = to_pictures(decoder(denormalise(latent)))
    assert psnr(made, pictures)[0] > ENOUGH_PSNR and psnr(made[:, :1], pictures[:, :1])[0] > ENOUGH_PSNR
    vae = load_oobleck(PONY / AUDIO_VAE.places[0])
    waveform = torch.from_numpy(sound(scene, FRAMES))[None]
    heard = vae.decode(encode_soundtrack(vae, waveform))[0, :, : waveform.shape[2]].numpy()
    assert all(matches(judge_clip(made[0].numpy(), heard, RATE), scene).values())


def test_tokens_of_a_prompt_tell_it_from_others():
    """The same words in another order are closer than a prompt that asks for another colour."""
    encoder = load_text_encoder(PONY / TEXT_ENCODER.places[0], dtype=torch.float32)
    red, crimson, blue = (
        encoder.encode_prompt(text).float().mean(1)[0]
        for text in (
            "A small red circle slides to the left on a navy background.",
            "On a navy background, a little scarlet disc glides leftwards.",
            "A small blue circle slides to the left on a navy background.",
        )
    )
    assert torch.dist(red, crimson) < torch.dist(red, blue)
    assert encoder.tokenizer.encode(prompt(scene_of("speaking"), np.random.default_rng(0))).count(3) == 0  # <unk>
