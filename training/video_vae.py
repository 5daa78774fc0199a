"""Trains the Pony's video autoencoder: the decoder and the image encoder, which also encodes clips.

    python -m training.video_vae --folder RUN [--minutes M]      trains, or goes on
    python -m training.video_vae --folder RUN2 --decoder RUN     trains the decoder of RUN further, for its latents
    python -m training.video_vae --folder RUN --check N          PSNR and latents of N fresh clips
    python -m training.video_vae --folder RUN --export DIR       writes turbo_vae/ and Wan2.2-TI2V-5B/ under DIR

Both are trained at once. The image encoder makes latents of a clip; noise is added to them, so that the decoder
forgives the transformer's errors; the decoder paints one of its windows. Nothing but pixels and their differences is
asked for, and of each latent channel mean 0 and deviation 1.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from happyhorse_core.video_vae.latent_statistics import denormalise

from .muon import Muon
from .run import add_device, device_of, load_trained, train
from .video_vae_export import export
from .video_vae_parts import ClipEncoder, build_decoder, build_image_encoder
from .video_vae_step import FRAMES, make_step, to_signed
from .world.draw import draw
from .world.scene import sample_scene

NAME = "video_vae"
BATCH, STEPS, RATE = 16, 2_400, 6e-3
EVERY = 500
CHECK_SEED = 900_000


def make_modules(seed: int) -> dict[str, nn.Module]:
    """The two networks with fresh weights."""
    torch.manual_seed(seed)
    return {"image": build_image_encoder(), "decoder": build_decoder()}


def load_modules(folder: Path) -> dict[str, nn.Module]:
    """The two networks of a run with their averaged weights, in float32, for inference."""
    modules = make_modules(0)
    load_trained(folder, modules)
    return {name: module.requires_grad_(False).eval() for name, module in modules.items()}


@torch.no_grad()
def encode_clips(encoder: ClipEncoder, frames: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] with F = 4(T-1) + 1 or, as 51 pictures that are asked for, a few more, which are cut off
    -> latents [B, 48, T, H/16, W/16], normalised, float32."""
    kept = (frames.shape[1] - 1) // 4 * 4 + 1
    return encoder(to_signed(frames[:, :kept]))


def to_pictures(video: Tensor) -> Tensor:
    """[B, 3, F, H, W] about [-1, 1] -> uint8 [B, F, H, W, 3]."""
    return ((video.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 4, 1)


def psnr(found: Tensor, wanted: Tensor) -> Tensor:
    """Of uint8 clips, in dB for each clip of the batch."""
    off = (found.double() - wanted.double()).square().flatten(1).mean(1)
    return 10 * torch.log10(255**2 / off.clamp_min(1e-9))


@torch.no_grad()
def check(
    modules: Mapping[str, nn.Module],
    count: int,
    *,
    seed: int = CHECK_SEED,
    held_out: bool | None = None,
    size: int = 64,
) -> dict[str, float]:
    """PSNR of fresh clips without noise on their latents and with 0.15, and how their latents spread."""
    encoder, rng = ClipEncoder(modules["image"]), np.random.default_rng(seed)
    generator = torch.Generator().manual_seed(seed)
    figures: dict[str, list[Tensor]] = {"clean": [], "noisy": []}
    latents = []
    for _ in range(count):
        scene = sample_scene(rng, held_out=held_out)
        clip = torch.from_numpy(draw(scene, frames=FRAMES, size=size))[None]
        latents.append(encode_clips(encoder, clip))
        for name, noise in (("clean", 0.0), ("noisy", 0.15)):
            noisy = latents[-1] + noise * torch.randn(latents[-1].shape, generator=generator)
            figures[name].append(psnr(to_pictures(modules["decoder"](denormalise(noisy))), clip))
    latent = torch.cat(latents)
    std, mean = torch.std_mean(latent, dim=(0, 2, 3, 4))
    change = latent.diff(dim=2).square().mean((0, 2, 3, 4)).sqrt()
    report = {}
    for name, values in figures.items():
        worst, middle = torch.cat(values).quantile(torch.tensor([0.01, 0.5], dtype=torch.float64)).tolist()
        report |= {f"{name} mean": float(torch.cat(values).mean()), f"{name} median": middle, f"{name} 1%": worst}
    spread = {"mean": mean, "std": std, "step std": change}
    for name, values in spread.items():
        report |= {f"latent {name} least": float(values.min()), f"latent {name} most": float(values.max())}
    return report | {"latent largest": float(latent.abs().max())}


def sheet(path: Path, modules: Mapping[str, nn.Module]) -> None:
    """Draws clips over what comes back of them, without noise and with 0.15 on their latents."""
    rng = np.random.default_rng(CHECK_SEED)
    device = device_of(modules["decoder"])
    clips = to_signed(torch.from_numpy(np.stack([draw(sample_scene(rng), frames=FRAMES) for _ in range(8)])))
    clips = clips.to(device)
    latents = ClipEncoder(modules["image"])(clips)
    noise = 0.15 * torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)).to(device)
    videos = [clips, *(modules["decoder"](denormalise(latent)) for latent in (latents, latents + noise))]
    rows = torch.stack([to_pictures(video[:, :, ::8]) for video in videos], dim=1)
    # [clips, 3, times, H, W, 3] -> one picture, two clips beside each other.
    image = rows.unflatten(0, (-1, 2)).permute(0, 2, 4, 1, 3, 5, 6)
    image = image.reshape(image.shape[0] * 3 * 64, -1, 3).cpu().numpy()
    Image.fromarray(image).resize((image.shape[1] * 2, image.shape[0] * 2), Image.Resampling.NEAREST).save(path)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="folder of the run")
    parser.add_argument("--minutes", type=float, default=115.0, help="stop after so long (default 115)")
    parser.add_argument("--steps", type=int, default=STEPS, help=f"steps of the whole run (default {STEPS})")
    parser.add_argument("--batch", type=int, default=BATCH, help=f"clips of a step (default {BATCH})")
    parser.add_argument("--rate", type=float, default=RATE, help=f"highest learning rate (default {RATE})")
    parser.add_argument(
        "--decoder", type=Path, metavar="RUN", help="keep the latents of this run, train its decoder on"
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights and clips (default 0)")
    add_device(parser)
    parser.add_argument("--threads", type=int, default=2, help="of the processor (default 2)")
    parser.add_argument("--check", type=int, metavar="N", help="report on N fresh clips instead of training")
    parser.add_argument("--export", type=Path, metavar="DIR", help="write the released files instead of training")
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.check:
        print(json.dumps(check(load_modules(options.folder), options.check), indent=2))
    elif options.export:
        export(load_modules(options.folder), options.export)
    else:
        modules = make_modules(options.seed)
        if options.decoder:
            load_trained(options.decoder, modules)
            modules["image"].requires_grad_(False)
        step = make_step(modules, steps=options.steps, batch=options.batch, seed=options.seed)
        settings = {"lr": options.rate, "seed": options.seed, "ema": 0.995, "sheet": sheet, "sheet_every": EVERY}
        settings["device"] = options.device
        settings |= {"steps": options.steps, "minutes": options.minutes}
        train(NAME, options.folder, modules, step, make_optimizer=lambda p: Muon(p, options.rate), **settings)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
