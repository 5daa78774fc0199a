"""One step of training the video autoencoder: which pictures, what is asked of them and of the latents."""

from collections import OrderedDict
from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from happyhorse_core.video_vae.latent_statistics import denormalise
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder, Window, plan_windows

from .run import autocast, device_of
from .video_vae_parts import GROUP, ClipEncoder
from .world.draw import draw
from .world.scene import sample_scene

LATENTS = 13
FRAMES = GROUP * (LATENTS - 1) + 1
SHORT = 3
"""Latent frames of the short runs that most steps decode: more clips for the same work."""
WHOLE_FROM = 0.7
"""The part of the training after which steps decode the windows of a whole clip."""
NOISE = 0.25
"""The most noise, as its deviation, that is added to a latent frame; each gets its own amount."""
STILLS = 0.1
"""The part of the clips in which one picture stands still."""
WIDE = 0.06
"""The part of the steps with clips that are not square."""
POOL, RENEWED = 256, 4
"""Clips that steps take their runs of pictures from, and how many of them each step replaces."""
EDGE_WEIGHT = 4.0
"""How much more a pixel on an edge counts than one on a plain ground."""

Clip = NDArray[np.uint8]


def to_signed(pictures: Tensor) -> Tensor:
    """uint8 [B, F, H, W, 3] -> [B, 3, F, H, W] in [-1, 1]."""
    return (pictures.float() / 127.5 - 1).permute(0, 4, 1, 2, 3).contiguous()


class Pool:
    """Drawn clips of trained combinations. Clip ``n`` of a seed is always the same, and so is what a step finds."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self.clips: OrderedDict[int, Clip] = OrderedDict()

    def clip(self, number: int) -> Clip:
        """Clip ``number``, drawn unless it is one of the last that were."""
        if number not in self.clips:
            scene = sample_scene(np.random.default_rng((self.seed, number)))
            self.clips[number] = draw(scene, frames=FRAMES)
            while len(self.clips) > POOL + RENEWED:
                self.clips.popitem(last=False)
        return self.clips[number]

    def pick(self, index: int, count: int, rng: np.random.Generator) -> list[Clip]:
        """``count`` clips of those that step ``index`` has."""
        first = index * RENEWED
        newest = [self.clip(first + POOL + n) for n in range(RENEWED)]
        picked = [self.clip(int(number)) for number in first + rng.integers(POOL, size=count - len(newest))]
        return newest + picked


def draw_wide(rng: np.random.Generator, count: int) -> list[Clip]:
    """Clips of 64 x 96, of shapes that are larger by as much."""
    clips = []
    for _ in range(count):
        top = int(rng.integers(33))
        clips.append(draw(sample_scene(rng), frames=FRAMES, size=96)[:, top : top + 64])
    return clips


def cut_runs(clips: list[Clip], start: int, latents: int, rng: np.random.Generator) -> Tensor:
    """The pictures of latent frames ``start`` and on, of some clips one picture that stands still, in [-1, 1]."""
    first, last = max(0, GROUP * start - GROUP + 1), GROUP * (start + latents - 1)
    runs = []
    for clip in clips:
        run = clip[first : last + 1]
        if rng.random() < STILLS:
            run = np.broadcast_to(run[rng.integers(len(run))], run.shape)
        runs.append(run)
    return to_signed(torch.from_numpy(np.stack(runs)))


def pick_window(rng: np.random.Generator) -> Window:
    """One of the windows that a clip of 13 latent frames is decoded in, or one from inside a longer clip."""
    plan = plan_windows(LATENTS, 7, 7)
    inside = int(rng.integers(1, LATENTS - 8 + 1))
    windows = [*plan, Window(inside, inside + 8, GROUP, GROUP)]
    return windows[int(rng.choice(3, p=(0.4, 0.4, 0.2)))]


def picture_losses(found: Tensor, wanted: Tensor) -> dict[str, Tensor]:
    """Absolute and squared differences, of pixels (edges count for more) and of the steps between neighbours."""
    found, wanted = found.float(), wanted.float()
    rows, columns = (wanted.diff(dim=dim).abs().amax(1, keepdim=True) for dim in (3, 4))
    edges = F.pad(rows, (0, 0, 0, 1)) + F.pad(columns, (0, 1))
    weight = 1 + EDGE_WEIGHT * edges.clamp(max=1)
    off = found - wanted
    return {
        "square": (weight * off.square()).mean(),
        "absolute": (weight * (off.square() + 1e-4).sqrt()).mean(),
        "slope": sum(off.diff(dim=dim).abs().mean() for dim in (2, 3, 4)),
        "plain_square": off.detach().square().mean(),
    }


def latent_loss(latent: Tensor) -> Tensor:
    """How far each channel is from mean 0 and deviation 1 over a batch, with a push against far outliers."""
    std, mean = torch.std_mean(latent, dim=(0, 2, 3, 4))
    return mean.square().mean() + (std - 1).square().mean() + 0.1 * F.relu(latent.abs() - 3.5).square().mean()


def noised(latent: Tensor, generator: torch.Generator) -> Tensor:
    """Adds noise to latents [B, C, T, H, W], of another strength for each frame, as given ones have none."""
    amount = NOISE * torch.rand(len(latent), 1, latent.shape[2], 1, 1, generator=generator)
    return latent + (amount * torch.randn(latent.shape, generator=generator)).to(latent.device)


def make_step(
    modules: Mapping[str, nn.Module], *, steps: int, batch: int, seed: int
) -> Callable[[int, torch.Generator], dict[str, Tensor]]:
    """The step that ``training.run.train`` asks for, over ``image`` and ``decoder``.

    Runs of three latent frames from ``batch`` clips come first. Towards the end fewer clips are decoded in the very
    windows that the decoder later works in.
    """
    encoder, pool = ClipEncoder(modules["image"]), Pool(seed)
    decoder = modules["decoder"]
    assert isinstance(decoder, TurboDecoder)

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        rng = np.random.default_rng(int(torch.randint(2**31, (1,), generator=generator)))
        whole, wide = index >= WHOLE_FROM * steps, bool(rng.random() < WIDE)
        count = max(RENEWED, batch * SHORT // 8 if whole else batch)
        clips = draw_wide(rng, -(-count * 2 // 3)) if wide else pool.pick(index, count, rng)
        if whole:
            window = pick_window(rng)
        else:
            start = 0 if rng.random() < 0.3 else int(rng.integers(1, LATENTS - SHORT + 1))
            window = Window(start, start + SHORT, 0, 0)
        device = device_of(decoder)
        pictures = cut_runs(clips, window.start, min(window.stop, LATENTS) - window.start, rng).to(device)
        with autocast(device):
            latent = encoder(pictures, starts_clip=window.start == 0).float()
            found, wanted = decode(decoder, noised(latent, generator), window, pictures)
        losses, pull = picture_losses(found, wanted), latent_loss(latent)
        change = latent.diff(dim=2).square().mean()
        loss = losses["absolute"] + 2 * losses["square"] + 0.5 * losses["slope"] + 0.1 * pull + 0.02 * change
        psnr = -10 * torch.log10(losses["plain_square"] / 4)
        return {"loss": loss, **losses, "pull": pull, "change": change, "psnr": psnr}

    return step


def decode(decoder: TurboDecoder, latent: Tensor, window: Window, pictures: Tensor) -> tuple[Tensor, Tensor]:
    """What the decoder paints of the latents of a window, and those of their pictures that it should be.

    The window's latents beyond the clip's end are its last one, as when a whole clip is decoded.
    """
    frames = torch.arange(window.stop - window.start, device=latent.device).clamp_(max=latent.shape[2] - 1)
    found = decoder.decoder(denormalise(latent.index_select(2, frames)), starts_clip=window.start == 0)
    end = found.shape[2] - window.drop
    return found[:, :, window.skip : end], pictures[:, :, window.skip : end]
