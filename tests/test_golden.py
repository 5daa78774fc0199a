"""Every golden file, against our own modules, in float32.

``HAPPYHORSE_GOLDEN_DIR`` names another directory of such files; each file there is checked, whatever its sizes.
"""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from happyhorse_core import super_resolution
from happyhorse_core.audio_vae.load import read_oobleck
from happyhorse_core.audio_vae.resample import resample_fft
from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.ops import TorchOps
from happyhorse_core.sampling.loop import Velocity, denoise, guided
from happyhorse_core.sampling.schedule import flow_sigmas, timestep
from happyhorse_core.sampling.solver import DistilledSolver, UniPC
from happyhorse_core.text.config import detect_text_encoder
from happyhorse_core.text.encoder import T5GemmaEncoder
from happyhorse_core.video_vae.latent_statistics import LATENT_MEAN, LATENT_STD, denormalise, normalise
from happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from happyhorse_core.weights.fill import load_module
from happyhorse_core.weights.source import open_source

GOLDEN = Path(os.environ.get("HAPPYHORSE_GOLDEN_DIR") or Path(__file__).parent / "golden")
FILES = sorted(GOLDEN.glob("*.io.safetensors"))

Tensors = dict[str, torch.Tensor]
Metadata = dict[str, str]


def read(path: Path) -> tuple[Tensors, Metadata]:
    with safe_open(path, "pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def weights_path(metadata: Metadata) -> Path:
    return GOLDEN / f"{metadata['weights']}.weights.safetensors"


def assert_close(found: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    assert found.shape == expected.shape
    worst = (found - expected).abs().max().item()
    assert worst <= tolerance * expected.abs().max().item()


def transformer(metadata: Metadata) -> HappyHorseTransformer:
    tensors = load_file(weights_path(metadata))
    config = replace(
        detect_transformer({name: tuple(t.shape) for name, t in tensors.items()}, where="golden"),
        coords_style=metadata["coords_style"],
        local_attn_layers=tuple(json.loads(metadata["local_attn_layers"])),
        frame_receptive_field=int(metadata["frame_receptive_field"]),
    )
    assert config.head_dim == int(metadata["head_dim"])
    assert config.mm_layers == tuple(json.loads(metadata["mm_layers"]))
    assert config.gelu7_layers == tuple(json.loads(metadata["gelu7_layers"]))
    model = HappyHorseTransformer(config, operations=TorchOps, dtype=torch.float32, device="meta")
    load_module(model, open_source(weights_path(metadata)))
    return model


def velocity(model: HappyHorseTransformer, text: torch.Tensor) -> Velocity:
    return lambda video, audio, sigma: model(video, audio, text, compute_dtype=torch.float32)


def check_forward(io: Tensors, metadata: Metadata) -> None:
    video, audio = velocity(transformer(metadata), io["text"])(io["video"], io["audio"].mT, 1.0)
    assert_close(video, io["velocity_video"], 1e-4)
    assert_close(audio.mT, io["velocity_audio"], 1e-4)


def check_sample(io: Tensors, metadata: Metadata) -> None:
    model = transformer(metadata)
    sigmas = flow_sigmas(int(metadata["steps"]), float(metadata["shift"]))
    torch.testing.assert_close(sigmas, io["sigmas"], rtol=0, atol=1e-6)
    assert [timestep(s) for s in sigmas.tolist()[:-1]] == io["timesteps"].tolist()

    move = velocity(model, io["text"])
    if metadata["cfg_number"] == "2":
        move = guided(move, velocity(model, io["text_negative"]))
    if metadata["mode"] == "distilled":
        video_solver = DistilledSolver(sigmas, lambda step, like: io["step_noise_video"][step])
        audio_solver = DistilledSolver(sigmas, lambda step, like: io["step_noise_audio"][step].mT)
    else:
        video_solver, audio_solver = UniPC(sigmas), UniPC(sigmas)
    if metadata["mode"] == "sr" or metadata["audio_driven"] == "True":
        audio_solver = None
    video, audio = denoise(
        move,
        io["video_noise"],
        io["audio_init"].mT,
        sigmas,
        video_solver,
        audio_solver,
        image_latent=io.get("image_latent"),
    )
    assert_close(video, io["video_out"], 1e-3)
    assert_close(audio.mT, io["audio_out"], 1e-3)


def check_sr_start(io: Tensors, metadata: Metadata) -> None:
    table = super_resolution.zero_snr_table()
    torch.testing.assert_close(table, io["sigma_table"], rtol=0, atol=1e-6)
    signal = table[int(metadata["noise_value"])].item()
    assert signal == pytest.approx(float(metadata["sigma"]), abs=1e-6)
    height, width = io["video_start"].shape[-2:]
    enlarged = super_resolution.enlarge(io["video_latent"], height, width)
    assert_close(super_resolution.renoise(enlarged, io["noise_video"], signal), io["video_start"], 1e-4)
    mixed = super_resolution.mix_audio(io["audio_latent"], io["noise_audio"], float(metadata["audio_noise_scale"]))
    assert_close(mixed, io["audio_start"], 1e-4)


def check_turbo_vaed(io: Tensors, metadata: Metadata) -> None:
    decoder = load_turbo_decoder(weights_path(metadata), dtype=torch.float32)
    assert_close(decoder(denormalise(io["latent"])), io["video"], 1e-4)


def check_audio_vae(io: Tensors, metadata: Metadata) -> None:
    vae = read_oobleck(open_source(weights_path(metadata)), dtype=torch.float32)
    mean, scale = vae.encode_distribution(io["encoder_input"])
    assert_close(mean, io["encoder_mean"], 1e-4)
    assert_close(scale, io["encoder_scale"], 1e-4)
    assert_close(vae.decode(io["latent"]), io["waveform"], 1e-4)


def check_audio_resample(io: Tensors, metadata: Metadata) -> None:
    numerator, denominator = map(int, metadata["ratio"].split("/"))
    assert_close(resample_fft(io["waveform"], numerator, denominator), io["resampled"], 1e-4)


def check_image_encoder(io: Tensors, metadata: Metadata) -> None:
    torch.testing.assert_close(torch.tensor(LATENT_MEAN), io["latent_mean"])
    torch.testing.assert_close(torch.tensor(LATENT_STD), io["latent_std"])
    encoder = load_image_encoder(weights_path(metadata), dtype=torch.float32)
    assert_close(normalise(encoder(io["image"])), io["latent"], 1e-4)


def check_text_encoder(io: Tensors, metadata: Metadata) -> None:
    source = open_source(weights_path(metadata)).sub("encoder.")
    config = detect_text_encoder(source.shapes, json.loads(metadata["config"]), where="golden")
    encoder = T5GemmaEncoder(config, operations=TorchOps, dtype=torch.float32, device="meta")
    load_module(encoder, source)
    assert_close(encoder(io["input_ids"], compute_dtype=torch.float32), io["last_hidden_state"], 1e-4)


CHECKS: dict[str, Callable[[Tensors, Metadata], None]] = {
    "forward": check_forward,
    "sample": check_sample,
    "sr_start": check_sr_start,
    "turbo_vaed": check_turbo_vaed,
    "audio_vae": check_audio_vae,
    "audio_resample": check_audio_resample,
    "image_encoder": check_image_encoder,
    "text_encoder": check_text_encoder,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name.removesuffix(".io.safetensors"))
def test_golden(path: Path) -> None:
    io, metadata = read(path)
    with torch.inference_mode():
        CHECKS[metadata["kind"]](io, metadata)


def test_the_directory_holds_golden_files() -> None:
    assert FILES, f"no *.io.safetensors in {GOLDEN}"


def test_our_copy_has_every_kind() -> None:
    ours = (Path(__file__).parent / "golden").glob("*.io.safetensors")
    assert {read(path)[1]["kind"] for path in ours} == set(CHECKS)
