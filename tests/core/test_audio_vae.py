"""Oobleck: the released numbers, long sounds in windows, files that load and files that are refused."""

import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from happyhorse_core.audio_vae.config import OobleckConfig, detect_oobleck
from happyhorse_core.audio_vae.encode import crossfade, encode_soundtrack, window_starts
from happyhorse_core.audio_vae.load import PREFIX, load_oobleck, read_oobleck
from happyhorse_core.audio_vae.model import Oobleck
from happyhorse_core.errors import CheckpointError
from happyhorse_core.ops import TorchOps
from happyhorse_core.weights.source import open_source

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = GOLDEN / "audio_vae.weights.safetensors"
LOPSIDED = OobleckConfig(
    audio_channels=2,
    latent_channels=3,
    encoder_widths=(5, 4, 7),
    encoder_strides=(2, 4),
    decoder_widths=(3, 6, 2),
    decoder_strides=(4, 2),
)


@pytest.fixture(scope="module")
def released():
    return load_oobleck(WEIGHTS)


@pytest.fixture(scope="module")
def weights():
    return load_file(WEIGHTS)


@pytest.fixture
def lopsided():
    torch.manual_seed(0)
    vae = Oobleck(LOPSIDED, operations=TorchOps)
    for parameter in vae.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return vae.requires_grad_(False)


def assert_golden(found, expected):
    assert found.shape == expected.shape
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_released_encoder(released):
    io = load_file(GOLDEN / "audio_vae.io.safetensors")
    mean, scale = released.encode_distribution(io["encoder_input"])
    assert_golden(mean, io["encoder_mean"])
    assert_golden(scale, io["encoder_scale"])
    assert torch.equal(released.encode(io["encoder_input"]), mean)


def test_released_decoder(released):
    io = load_file(GOLDEN / "audio_vae.io.safetensors")
    assert_golden(released.decode(io["latent"]), io["waveform"])


def test_sizes_are_read_off_the_tensors(released):
    assert released.config == OobleckConfig(
        2, 64, (2, 2, 4, 8, 16, 32), (2, 4, 4, 8, 8), (2, 2, 4, 8, 16, 32), (2, 4, 4, 8, 8)
    )
    assert released.config.samples_per_latent == 2048


def test_encoder_and_decoder_may_differ(lopsided):
    shapes = {name: tuple(tensor.shape) for name, tensor in lopsided.state_dict().items()}
    assert detect_oobleck(shapes, "test") == LOPSIDED


def test_the_released_size_has_156_million_parameters():
    widths, strides = (128, 128, 256, 512, 1024, 2048), (2, 4, 4, 8, 8)
    config = OobleckConfig(2, 64, widths, strides, widths, strides)
    vae = Oobleck(config, operations=TorchOps, device="meta")
    assert detect_oobleck({name: tuple(tensor.shape) for name, tensor in vae.state_dict().items()}, "test") == config
    assert round(sum(parameter.numel() for parameter in vae.parameters()) / 1e6) == 156


def test_released_names_but_for_the_weight_norm(released, weights):
    folded = {name.removeprefix(PREFIX).replace("weight_g", "weight").replace("weight_v", "weight") for name in weights}
    assert set(released.state_dict()) == folded


def test_modules_with_children_hold_no_parameters(released):
    for module in released.modules():
        assert not (list(module.children()) and list(module.parameters(recurse=False)))


@pytest.mark.parametrize(("samples", "latents"), [(1, 1), (7, 1), (8, 1), (9, 2), (80, 10)])
def test_a_part_of_a_latent_is_filled_with_silence(lopsided, samples, latents):
    torch.manual_seed(1)
    sound = torch.randn(2, 2, samples)
    latent = lopsided.encode(sound)
    assert latent.shape == (2, 3, latents)
    padded = torch.zeros(2, 2, latents * 8)
    padded[..., :samples] = sound
    assert torch.equal(latent, lopsided.encode(padded))


def test_batch_items_do_not_mix(lopsided):
    torch.manual_seed(2)
    latent = torch.randn(3, 3, 5)
    wave = lopsided.decode(latent)
    assert wave.shape == (3, 2, 40)
    for index in range(3):
        torch.testing.assert_close(wave[index : index + 1], lopsided.decode(latent[index : index + 1]))


def test_half_precision_weights_serve_a_float32_sound(released):
    half = load_oobleck(WEIGHTS, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert half.encode(torch.zeros(1, 2, 2048)).dtype == torch.float32


# Long sounds


def test_windows_cover_the_sound_and_no_more():
    assert window_starts(725, 725, 362) == [0]
    assert window_starts(726, 725, 362) == [0, 363]
    for length in range(1, 60):
        starts = window_starts(length, window=9, overlap=4)
        assert starts == list(range(0, 5 * len(starts), 5))
        assert starts[-1] + 9 >= length
        assert len(starts) == 1 or starts[-2] + 9 < length


def test_crossfade_is_linear_and_starts_with_the_older_window():
    joined = crossfade(torch.zeros(1, 1, 6), torch.ones(1, 1, 5), overlap=4)
    assert joined.flatten().tolist() == [0, 0, 0, 0.25, 0.5, 0.75, 1]


@pytest.mark.parametrize(("seconds", "windows"), [(0.04, 1), (30, 2), (44, 3)])
def test_windows_join_to_what_one_piece_would_give(released, seconds, windows):
    torch.manual_seed(4)
    sound, seen = torch.randn(1, 2, round(seconds * 51200)) * 0.1, []
    latent = encode_soundtrack(released, sound, progress=lambda done, total: seen.append((done, total)))
    whole = released.encode(sound)
    assert latent.shape == whole.shape
    assert seen == [(n + 1, windows) for n in range(windows)]
    # A window's first latents don't hear what came before it, but hardly count in the mix; its last ones count little.
    error = (latent - whole).abs().amax(dim=(0, 1)) / whole.abs().max()
    assert error.max() < 0.01
    assert error.median() < 1e-4


def test_short_sound_is_encoded_in_one_piece(released):
    torch.manual_seed(3)
    sound = torch.randn(1, 2, 5000)
    assert torch.equal(encode_soundtrack(released, sound), released.encode(sound))


# Files


def test_the_rest_of_stable_audio_is_never_read(tmp_path, weights, released):
    others = {"model.model.to_in.weight": torch.ones(4, 4), "conditioner.embed.weight": torch.ones(3)}
    save_file({**weights, **others}, tmp_path / "model.safetensors")
    with open_source(tmp_path) as source:
        entries = {name: entry for name, entry in source.entries.items() if name in weights}
        broken = {name: poisoned(source.entries[name]) for name in others}
        vae = read_oobleck(source.with_entries({**entries, **broken}))
    assert vae.config == released.config
    assert torch.equal(vae.decoder.layers[0].weight, released.decoder.layers[0].weight)
    assert torch.equal(load_oobleck(tmp_path).decoder.layers[0].weight, released.decoder.layers[0].weight)


def poisoned(entry):
    def read():
        raise AssertionError("a tensor outside the autoencoder was read")

    return type(entry)(entry.file, entry.shape, entry.dtype, read)


def original(name: str) -> str:
    return name.replace("weight_g", "parametrizations.weight.original0").replace(
        "weight_v", "parametrizations.weight.original1"
    )


@pytest.mark.parametrize("rename", [lambda name: name.removeprefix(PREFIX), original])
def test_other_spellings_of_the_same_weights(tmp_path, weights, released, rename):
    save_file({rename(name): tensor for name, tensor in weights.items()}, tmp_path / "vae.safetensors")
    vae = load_oobleck(tmp_path / "vae.safetensors")
    for name, tensor in released.state_dict().items():
        assert torch.equal(vae.state_dict()[name], tensor), name


def test_folded_weights_load_as_they_are(tmp_path, released):
    save_file(released.state_dict(), tmp_path / "vae.safetensors")
    assert torch.equal(
        load_oobleck(tmp_path / "vae.safetensors").encoder.layers[0].weight, released.encoder.layers[0].weight
    )


def test_weight_norm_is_folded_in_float32(weights, released):
    for layer in ("encoder.layers.1.layers.4", "decoder.layers.1.layers.1"):
        v = weights[f"{PREFIX}{layer}.weight_v"].double()
        g = weights[f"{PREFIX}{layer}.weight_g"].double()
        expected = torch.stack([row * scale.item() / row.norm() for row, scale in zip(v, g, strict=True)])
        torch.testing.assert_close(released.state_dict()[f"{layer}.weight"].double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda w: w.pop(PREFIX + "encoder.layers.3.layers.0.layers.1.bias"),
            "encoder.layers.3.layers.0.layers.1.bias",
        ),
        (lambda w: w.pop(PREFIX + "encoder.layers.7.weight_v"), "encoder.layers.7.weight"),
        (lambda w: w.pop(PREFIX + "decoder.layers.2.layers.1.weight_g"), "decoder.layers.2.layers.1.weight"),
        (lambda w: w.update({PREFIX + "decoder.layers.9.bias": torch.ones(2)}), "decoder.layers.9.bias"),
        (lambda w: w.update({PREFIX + "encoder.layers.0.weight_g": torch.ones(3, 1, 1)}), "encoder.layers.0"),
        (lambda w: w.update({PREFIX + "encoder.layers.0.weight_v": torch.ones(2, 7)}), "encoder.layers.0"),
        (lambda w: w.update({PREFIX + "decoder.layers.6.alpha": torch.ones(3)}), "decoder.layers.6.alpha"),
        (lambda w: [w.pop(name) for name in list(w) if ".encoder." in name], "encoder.layers.1"),
        (
            lambda w: [w.pop(name) for name in list(w) if "encoder.layers.3." in name],
            "encoder.layers.3.layers.4.weight",
        ),
        (
            lambda w: w.update({PREFIX + "encoder.layers.1.layers.4.weight_v": torch.ones(2, 2, 8)}),
            "one latent of 4096 samples, its decoder 2048",
        ),
    ],
)
def test_damaged_weights_are_refused_by_name(tmp_path, weights, damage, message):
    tensors = dict(weights)
    damage(tensors)
    save_file(tensors, tmp_path / "broken.safetensors")
    with pytest.raises(CheckpointError, match=message) as caught:
        load_oobleck(tmp_path / "broken.safetensors")
    assert "broken.safetensors" in str(caught.value)


def test_another_model_is_refused(tmp_path):
    save_file({"adapter.video_embedder.weight": torch.ones(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="not Stable Audio Open's autoencoder"):
        load_oobleck(tmp_path)


def test_an_oobleck_of_another_rate_is_refused_but_can_be_read(tmp_path, lopsided):
    save_file(lopsided.state_dict(), tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="found 2 channels of sound, 3 of latents and 8 samples per latent"):
        load_oobleck(tmp_path / "other.safetensors")
    with open_source(tmp_path / "other.safetensors") as source:
        assert read_oobleck(source).config == LOPSIDED


def test_loading_reports_progress(tmp_path):
    seen = []
    load_oobleck(WEIGHTS, progress=lambda done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1] > 0
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_truncated_file_is_refused(tmp_path):
    content = WEIGHTS.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    assert json.loads(content[8 : 8 + length])
    (tmp_path / "cut.safetensors").write_bytes(content[: length + 100])
    with pytest.raises(CheckpointError, match="cut.safetensors"):
        load_oobleck(tmp_path / "cut.safetensors")
