"""The audio autoencoder's training: its real network, its losses, its pieces, its file and its figures."""

import json
import re

import numpy as np
import pytest
import torch

from happyhorse_core.audio_vae.config import OobleckConfig
from happyhorse_core.audio_vae.encode import encode_soundtrack
from happyhorse_core.audio_vae.load import load_oobleck
from training import audio_vae
from training.audio_vae import (
    CONFIG,
    LATENT_NOISE,
    LOUDNESS,
    NAME,
    encode_sounds,
    export,
    load_sound_encoder,
    losses,
    loudness_weight,
    make_oobleck,
)
from training.audio_vae_figures import figures, latent_line
from training.audio_vae_loss import latent_pull, magnitudes, sound_loss
from training.audio_vae_sounds import KINDS, SoundPool, sample_sound
from training.audio_vae_start import start_as_linear_codec
from training.run import train
from training.world.sound import PITCH, VOICE_PERIOD

RATE, LATENT = 51_200, 2048
TINY = OobleckConfig(2, 64, (2, 4, 6, 10), (16, 16, 8), (2, 4, 6, 10), (16, 16, 8))


def tone(pitch: float, latents: int = 6, left: float = 0.4, right: float = 0.2) -> torch.Tensor:
    """[1, 2, N]"""
    wave = torch.sin(2 * torch.pi * pitch * torch.arange(latents * LATENT) / RATE)
    return torch.stack([left * wave, right * wave])[None]


def click(at: float, latents: int = 51) -> np.ndarray:
    """[2, N]: a damped tone that begins at ``at`` seconds."""
    passed = np.arange(latents * LATENT) / RATE - at
    wave = 0.5 * np.where(passed >= 0, np.exp(-np.maximum(passed, 0) / 0.014) * np.sin(3500 * passed), 0)
    return np.stack([wave, 0.5 * wave]).astype(np.float32)


@pytest.fixture(scope="module")
def pool() -> SoundPool:
    return SoundPool.make(3, per_kind=2)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_every_weight_of_the_real_network_learns(pool):
    vae = make_oobleck(TINY, 1)
    losses(vae, pool.draw(2, 4, seeded()), 1.0, seeded())["loss"].backward()
    for name, weight in vae.named_parameters():
        assert weight.grad is not None and weight.grad.isfinite().all(), name
        assert weight.grad.abs().max() > 0, name


def test_fresh_weights_keep_the_variance_and_state_the_noise():
    vae = make_oobleck(CONFIG, 2)
    waveform = 0.3 * torch.randn(1, 2, 12 * LATENT, generator=seeded())
    mean, scale = vae.encode_distribution(waveform)
    assert 0.1 < mean.std() < 5
    assert torch.allclose(torch.nn.functional.softplus(scale) + 1e-4, torch.tensor(LATENT_NOISE), atol=1e-6)
    assert vae.decode(torch.randn(1, 64, 12, generator=seeded())).abs().max() < 3


def test_the_start_is_a_codec_in_stereo():
    """From random weights the error is as large as the sound; here it must be well below, on either side.

    Were the sound mono, the error of a side of the second piece would be 0.31 of what the piece has on both.
    """
    vae, pieces = make_oobleck(CONFIG, 3), torch.cat([tone(500.0), tone(300.0, left=0.1, right=0.5)])
    start_as_linear_codec(vae, pieces)
    with torch.no_grad():
        latent = vae.encode(pieces)
        made = vae.decode(latent)
    error = (made - pieces)[..., LATENT:-LATENT].square().mean(-1) / pieces.square().mean((1, 2))[:, None]
    assert error.max() < 0.2, error
    assert latent.std() < 5


def test_the_start_leaves_no_weight_without_gradient(pool):
    vae = make_oobleck(CONFIG, 3)
    start_as_linear_codec(vae, pool.draw(4, 4, seeded()))
    losses(vae, pool.draw(2, 3, seeded(1)), 1.0, seeded())["loss"].backward()
    # A row that reads only spare channels may start without one; no whole tensor may.
    assert all(weight.grad.abs().max() > 0 for weight in vae.parameters())


def test_a_few_steps_make_the_loss_smaller(tmp_path):
    vae, waveform = make_oobleck(TINY, 4), tone(500.0, latents=2)
    first = losses(vae, waveform, 0.0, seeded())["loss"].item()

    def step(index, generator):
        return losses(vae, waveform, 0.0, generator)

    assert train("test", tmp_path, {"vae": vae}, step, steps=15, minutes=2, lr=1e-2, warmup=5)
    assert losses(vae, waveform, 0.0, seeded())["loss"].item() < 0.92 * first


def test_loudness_counts_little_at_first():
    assert loudness_weight(0.0) == pytest.approx(LOUDNESS[0])
    assert LOUDNESS[0] < loudness_weight(0.1) < loudness_weight(0.2) < 1
    assert loudness_weight(0.5) == pytest.approx(1.0)


def test_magnitudes_are_the_amplitudes_of_sines():
    spectrum = magnitudes(tone(500.0, latents=8), 2048)
    middle = spectrum[0, :, 20, 6]  # 500 Hz is bin 20 of 25 Hz each
    assert torch.allclose(middle, torch.tensor([0.4, 0.2, 0.6 / 2**0.5, 0.2 / 2**0.5]), atol=1e-3)


def test_loss_sees_each_way_in_which_a_sound_may_differ():
    wanted = tone(500.0)
    same = sound_loss(wanted, wanted)
    assert all(value < 1e-3 for value in same.values())
    louder, other_side = 1.3 * wanted, wanted.flip(1)
    higher, later = tone(560.0), wanted.roll(300, -1)
    for made in (louder, other_side, higher, torch.zeros_like(wanted)):
        assert all(value > 0.01 for value in sound_loss(made, wanted).values())
    assert sound_loss(later, wanted)["wave"] > 0.3
    assert sound_loss(wanted + 0.003 * torch.randn(wanted.shape, generator=seeded()), wanted)["loudness"] > 0.1


def test_loss_of_silence_has_finite_gradients():
    made = torch.zeros(1, 2, 3 * LATENT, requires_grad=True)
    sum(sound_loss(made, torch.zeros_like(made)).values()).backward()
    assert made.grad.isfinite().all()


def test_pull_is_least_for_a_normal_distribution():
    latent = torch.randn(4, 64, 200, generator=seeded())
    normal = latent_pull(latent)
    assert normal < 0.02
    outlier = latent.clone()
    outlier[0, 5, :3] = 9
    for other in (latent + 0.5, latent * 1.5, latent * 0.5, outlier):
        assert latent_pull(other) > 3 * normal


def test_pieces_follow_the_generator_and_the_length_asked_for(pool):
    pieces = pool.draw(5, 7, seeded(4))
    assert pieces.shape == (5, 2, 7 * LATENT) and pieces.dtype == torch.float32
    assert torch.equal(pieces, pool.draw(5, 7, seeded(4)))
    assert not torch.equal(pieces, pool.draw(5, 7, seeded(5)))
    assert pool.draw(2, 51, seeded()).shape == (2, 2, 51 * LATENT)
    assert 0.01 < pieces.square().mean().sqrt() < 0.5


@pytest.mark.parametrize("pitch", [*PITCH.values(), *(RATE / period for period in VOICE_PERIOD.values())])
def test_steady_pitches_have_whole_periods_in_a_latent(pitch):
    assert pitch * LATENT / RATE == pytest.approx(round(pitch * LATENT / RATE), abs=1e-9)


def test_a_steady_sound_is_the_same_in_each_latent():
    wave = sample_sound(np.random.default_rng(8), "sliding left")
    start = 20 * LATENT
    wave /= np.sqrt((wave[:, start : start + LATENT] ** 2).mean(1, keepdims=True))
    assert wave.shape == (2, 51 * LATENT)
    assert np.abs(wave[:, start : start + LATENT] - wave[:, start + LATENT : start + 2 * LATENT]).max() < 0.2


def test_every_kind_is_drawn(pool):
    marked = SoundPool({kind: [np.full((2, 51 * LATENT), n + 1, np.float32)] for n, kind in enumerate(KINDS)})
    found = marked.draw(200, 2, seeded()).amax((1, 2))
    assert {n + 1 for n in range(len(KINDS))} <= {round(float(value), 3) for value in found}


def test_the_exported_file_is_the_trained_network(tmp_path):
    vae = make_oobleck(TINY, 5)
    export(vae, tmp_path)
    assert sorted(path.name for path in (tmp_path / NAME).iterdir()) == ["model.safetensors", "model_config.json"]
    loaded = load_oobleck(tmp_path / NAME)
    assert loaded.config == TINY
    wanted, found = vae.state_dict(), loaded.state_dict()
    assert wanted.keys() == found.keys()
    for name, value in wanted.items():
        assert torch.allclose(found[name], value, rtol=1e-6, atol=0), name
    waveform = tone(300.0)
    assert torch.allclose(loaded.encode(waveform), vae.encode(waveform), atol=1e-5)
    tree = json.loads((tmp_path / NAME / "model_config.json").read_text())["model"]["pretransform"]["config"]
    settings = tree["decoder"]["config"]
    assert [settings["channels"] * n for n in (1, *settings["c_mults"])] == list(TINY.decoder_widths)
    assert settings["strides"] == [16, 16, 8] and tree["downsampling_ratio"] == LATENT


def test_sounds_are_encoded_as_the_pipeline_does(tmp_path, monkeypatch):
    monkeypatch.setattr(audio_vae, "CONFIG", TINY)
    vae, waveform = make_oobleck(TINY, 6), torch.randn(2, 2, 51 * LATENT, generator=seeded())
    train(
        "test", tmp_path, {"vae": vae}, lambda n, g: {"loss": vae.encode(waveform).mean()}, steps=1, minutes=1, lr=0.0
    )
    encoder = load_sound_encoder(tmp_path)
    latent = encode_sounds(encoder, waveform)
    assert latent.shape == (2, 64, 51) and not latent.requires_grad
    assert torch.equal(latent, encode_soundtrack(vae, waveform).detach())


def test_figures_of_a_perfect_sound():
    wanted = click(0.5)
    found = figures(wanted.copy(), wanted, clicks=True)
    assert found["click ms"] == found["clicks off"] == found["place"] == found["pitch %"] == found["lsd dB"] == 0
    assert found["r"] == pytest.approx(1) and found["silence dB"] < -100


def test_figures_see_what_is_wrong():
    wanted = click(0.5)
    assert figures(click(0.52), wanted, clicks=True)["click ms"] == pytest.approx(20, abs=1.5)
    assert figures(wanted + click(1.2), wanted, clicks=True)["clicks off"] == 1
    assert figures(0.5 * wanted, wanted)["level dB"] == pytest.approx(6.02, abs=0.1)
    assert figures(wanted[::-1], wanted)["place"] > 0.5
    noisy = wanted + np.float32(1e-3) * np.random.default_rng(0).standard_normal(wanted.shape).astype(np.float32)
    assert figures(noisy, wanted)["silence dB"] == pytest.approx(-57, abs=1)
    steady = tone(500.0, 51)[0].numpy()
    assert figures(tone(510.0, 51)[0].numpy(), steady)["pitch %"] == pytest.approx(2, abs=0.3)
    assert "r" not in figures(steady, steady)


def test_latents_are_told_by_their_channels():
    latent = torch.randn(3, 64, 500, generator=seeded())
    latent[:, 7] = 3 * latent[:, 7] + 1
    line = latent_line(latent)
    values = [float(value) for value in re.findall(r"-?\d+\.\d+", line)]
    assert values[1] == pytest.approx(1.0, abs=0.2) and values[3] == pytest.approx(3.0, abs=0.3)
