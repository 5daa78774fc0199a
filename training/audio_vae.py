"""Trains the Pony's audio autoencoder: Stable Audio Open's Oobleck, small, on the sounds of the world.

    python -m training.audio_vae --folder RUN [--minutes M]      trains, or goes on
    python -m training.audio_vae --folder RUN --judge            figures on fresh sounds
    python -m training.audio_vae --folder RUN --export DIR       writes stable-audio-open-1.0/ under DIR

There is no adversary: the sounds are simple enough for errors of waveform and spectra alone. Latents are what the
encoder calls the mean, pulled to mean 0 and deviation 1, and the decoder learns from noisy ones, so that it forgives
a transformer's small errors.
"""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from happyhorse_core.audio_vae.config import OobleckConfig
from happyhorse_core.audio_vae.encode import encode_soundtrack
from happyhorse_core.audio_vae.load import PREFIX
from happyhorse_core.audio_vae.model import Oobleck
from happyhorse_core.ops import TorchOps

from .audio_vae_figures import figures_on_fresh_sounds
from .audio_vae_loss import latent_pull, sound_loss
from .audio_vae_sounds import SoundPool
from .audio_vae_start import start_as_linear_codec
from .run import add_device, device_of, load_trained, train

WIDTHS, STRIDES = (4, 32, 96, 192), (16, 16, 8)
CONFIG = OobleckConfig(2, 64, WIDTHS, STRIDES, WIDTHS, STRIDES)
NAME = "stable-audio-open-1.0"
POOL, STEPS, RATE = 80, 4_000, 1.5e-3
BATCH, PIECE = 8, 12
"""Pieces of a step and their latents."""
STARTERS = 96
"""Pieces that set the first weights."""
WHOLE_BATCH, WHOLE, WHOLE_PART = 2, 51, 0.1
"""The last steps see whole clips."""
NOISE, LATENT_NOISE = (0.05, 0.2), 0.15
"""Deviations of the noise on a piece's latents, and the one that the file states."""
NOISE_RAMP = 0.2
"""The part of the steps in which the noise grows from nothing: what is faint is learnt before it has to be robust."""
PULL = 0.1
LOUDNESS, RAMP = (0.1, 1.0), (0.05, 0.3)
"""Weight of the spectra's logarithms before and after a part of the steps: from the start, silence would win."""


def make_oobleck(config: OobleckConfig, seed: int) -> Oobleck:
    """An autoencoder with fresh weights that keep the variance, residual branches small."""
    torch.manual_seed(seed)
    vae = Oobleck(config, operations=TorchOps, dtype=torch.float32)
    for name, weight in vae.named_parameters():
        if weight.ndim == 1:
            nn.init.zeros_(weight)
        else:
            nn.init.normal_(weight, std=_spread(vae, name, weight))
    last = vae.encoder.layers[-1]
    with torch.no_grad():
        # The rows of the scale: every latent has the same deviation, and only the mean is learnt.
        last.weight[config.latent_channels :] = 0
        last.bias[config.latent_channels :] = math.log(math.expm1(LATENT_NOISE - 1e-4))
    return vae


def _spread(vae: Oobleck, name: str, weight: Tensor) -> float:
    layer = vae.get_submodule(name.removesuffix(".weight"))
    if isinstance(layer, nn.ConvTranspose1d):
        return (2 * weight.shape[0]) ** -0.5
    # A residual unit ends in its pointwise convolution; the last layer makes a waveform, which is small.
    gain = 0.3 if weight.shape[2] == 1 else 0.1 if layer is vae.decoder.layers[-1] else 1.0
    gain *= 3.0 if layer is vae.encoder.layers[0] else 1.0
    return gain * math.prod(weight.shape[1:]) ** -0.5


def loudness_weight(progress: float) -> float:
    """For the part of the steps that are done."""
    part = min(max((progress - RAMP[0]) / (RAMP[1] - RAMP[0]), 0.0), 1.0)
    return LOUDNESS[0] + (LOUDNESS[1] - LOUDNESS[0]) * part


def losses(vae: Oobleck, waveform: Tensor, progress: float, generator: torch.Generator) -> dict[str, Tensor]:
    """What a step minimises, under ``loss``, and its parts, for pieces [B, 2, N]."""
    waveform = waveform.to(device_of(vae))
    latent = vae.encode(waveform)
    low, high = (min(progress / NOISE_RAMP, 1.0) * bound for bound in NOISE)
    spread = low + (high - low) * torch.rand(len(latent), 1, 1, generator=generator)
    made = vae.decode(latent + (spread * torch.randn(latent.shape, generator=generator)).to(latent.device))
    parts = sound_loss(made, waveform)
    pull = latent_pull(latent)
    loss = parts["wave"] + parts["convergence"] + loudness_weight(progress) * parts["loudness"] + PULL * pull
    return {"loss": loss, **parts, "pull": pull, "deviation": latent.detach().std()}


def load_sound_encoder(folder: Path) -> Oobleck:
    """The trained autoencoder of a run, in float32."""
    vae = make_oobleck(CONFIG, 0)
    load_trained(folder, {"vae": vae})
    return vae.eval().requires_grad_(False)


def encode_sounds(vae: Oobleck, waveforms: Tensor) -> Tensor:
    """[B, 2, N] at 51,200 Hz -> [B, 64, ceil(N / 2048)], as the pipeline encodes a given sound."""
    return encode_soundtrack(vae, waveforms)


def export(vae: Oobleck, target: Path) -> None:
    """Writes the autoencoder in the layout of Stable Audio Open's files, without the diffusion model around it."""
    target = target / NAME
    target.mkdir(parents=True, exist_ok=True)
    tensors = {PREFIX + name: value for name, value in with_weight_norm(vae.state_dict()).items()}
    save_file(tensors, target / "model.safetensors", metadata={"format": "pt"})
    tree = json.dumps(released_config(vae.config), indent=2)
    (target / "model_config.json").write_text(tree + "\n", encoding="utf-8")


def with_weight_norm(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same network with each convolution's weight as magnitude and direction, as the released file has it."""
    split: dict[str, Tensor] = {}
    for name, value in tensors.items():
        if not name.endswith(".weight"):
            split[name] = value.contiguous()
            continue
        length = torch.linalg.vector_norm(value, dim=(1, 2), keepdim=True)
        split[f"{name}_g"] = length
        # A row of zeros has no direction, so any one does.
        split[f"{name}_v"] = torch.where(length > 0, value, 1.0).contiguous()
    return split


def released_config(config: OobleckConfig) -> dict[str, Any]:
    """The model_config.json that belongs to the file."""

    def half(widths: tuple[int, ...], strides: tuple[int, ...], latent: int) -> dict[str, Any]:
        multiples = [width // widths[0] for width in widths[1:]]
        return {
            "channels": widths[0],
            "c_mults": multiples,
            "strides": list(strides),
            "latent_dim": latent,
            "use_snake": True,
        }

    channels, latents = config.audio_channels, config.latent_channels
    encoder = {"in_channels": channels, **half(config.encoder_widths, config.encoder_strides, 2 * latents)}
    decoder = {"out_channels": channels, **half(config.decoder_widths, config.decoder_strides, latents)}
    autoencoder = {
        "encoder": {"type": "oobleck", "requires_grad": False, "config": encoder},
        "decoder": {"type": "oobleck", "config": decoder | {"final_tanh": False}},
        "bottleneck": {"type": "vae"},
        "latent_dim": latents,
        "downsampling_ratio": config.samples_per_latent,
        "io_channels": channels,
    }
    pretransform = {"type": "autoencoder", "iterate_batch": True, "config": autoencoder}
    tree = {"model_type": "diffusion_cond", "sample_size": 2097152, "sample_rate": 44100, "audio_channels": channels}
    return tree | {"model": {"pretransform": pretransform}}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where the run is kept")
    parser.add_argument("--minutes", type=float, default=60, help="stop after so long; the next call goes on")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"length of the whole run (default {STEPS})")
    parser.add_argument("--threads", type=int, default=1, help="processor cores to use (default 1)")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    parser.add_argument("--judge", action="store_true", help="print figures on fresh sounds, and train nothing")
    parser.add_argument("--export", type=Path, help="write the autoencoder under this folder, and nothing else")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.export is not None:
        export(load_sound_encoder(options.folder), options.export)
        return
    if options.judge or train_oobleck(options):
        vae = load_sound_encoder(options.folder)
        for line in figures_on_fresh_sounds(vae, options.seed + 1, noises=(0.0, LATENT_NOISE)):
            print(line)


def train_oobleck(options: argparse.Namespace) -> bool:
    """Trains or goes on; whether the run is done."""
    steps, seed = options.steps, options.seed
    vae, pool = make_oobleck(CONFIG, seed), SoundPool.make(seed, POOL)
    start_as_linear_codec(vae, pool.draw(STARTERS, PIECE, torch.Generator().manual_seed(seed)))

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        whole = index >= (1 - WHOLE_PART) * steps
        pieces = pool.draw(*((WHOLE_BATCH, WHOLE) if whole else (BATCH, PIECE)), generator)
        return losses(vae, pieces, index / steps, generator)

    settings = {"steps": steps, "minutes": options.minutes, "lr": RATE, "seed": seed, "ema": 0.998}
    return train("audio_vae", options.folder, {"vae": vae}, step, device=options.device, **settings)


if __name__ == "__main__":
    main()
