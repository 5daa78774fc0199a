"""Trains the Pony's base transformer: flow matching on clips of the world, for all its tasks at once.

    python -m training.transformer --runs RUNS [--minutes M]      trains, or goes on

The text encoder and the autoencoders are those of ``pony/`` or of another folder in the released layout. RUNS gets
``clips``, their latents, and the run ``base``. The loss is that of rectified flow (Liu et al., arXiv 2209.03003): the
velocity noise - clean at a random noise level. The model gets no noise level, as in the released one: it reads it off
the latents. A part of the clips has its first latent frame clean, as image to video will have it, and a part the whole
sound, as audio driven will.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor, nn

from happyhorse_core.dit.model import LayerHook
from happyhorse_core.model_folder import TEXT_ENCODER
from happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from happyhorse_core.precision import usual_dtype
from happyhorse_core.sampling.schedule import SHIFT
from happyhorse_core.text.load import TextEncoder, load_text_encoder

from .clips import Clips, make_clips
from .model import make_transformer
from .muon import Muon
from .run import Step, device_of, run_parser, train
from .sheet import sheet_of
from .truth import WEIGHT, TruthHeads

CLIPS, BATCH, STEPS, RATE = 10_000, 16, 8_800, 2e-3
NEGATIVE_PART, IMAGE_PART, SOUND_PART = 0.1, 0.45, 0.3
UNSHIFTED_PART = 0.3
"""How many noise levels are drawn evenly; the others as densely as the sampler's steps lie."""
AFTER_PICTURE = 4.0
"""What the latent frame after a given one counts: the decoder looks ahead, so it shows in the given picture too."""
SHORT_NEGATIVE = "blurry, noisy"


@dataclass(frozen=True)
class Example:
    """What goes into the model: noisy latents, what they are made of, and where there is noise at all."""

    video: Tensor
    audio: Tensor
    clean: tuple[Tensor, Tensor]
    noise: tuple[Tensor, Tensor]
    noisy: tuple[Tensor, Tensor]
    sigma: Tensor

    def to(self, device: torch.device) -> "Example":
        """The same on a device."""
        parts = [getattr(self, field.name) for field in fields(self)]
        return Example(*(p.to(device) if isinstance(p, Tensor) else tuple(x.to(device) for x in p) for p in parts))


def draw_sigmas(batch: int, generator: torch.Generator) -> Tensor:
    """Noise levels [B]: most as densely as a shifted schedule has them, some evenly."""
    even = torch.rand(batch, generator=generator).clamp(1e-3, 0.999)
    shifted = SHIFT * even / (1 + (SHIFT - 1) * even)
    return torch.where(torch.rand(batch, generator=generator) < UNSHIFTED_PART, even, shifted)


def draw_masks(video: Tensor, audio: Tensor, driven: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """1 where there is to be noise: not in a given first picture, nor in a given sound, which those ``driven`` have."""
    batch = len(video)
    video_mask, audio_mask = torch.ones(batch, 1, video.shape[2], 1, 1), torch.ones(batch, 1, 1)
    video_mask[torch.rand(batch, generator=generator) < IMAGE_PART, :, 0] = 0
    audio_mask[(torch.rand(batch, generator=generator) < SOUND_PART) | driven] = 0
    return video_mask, audio_mask


def make_example(video: Tensor, audio: Tensor, driven: Tensor, sigma: Tensor, generator: torch.Generator) -> Example:
    """Puts noise of the levels ``sigma`` [B] into clean latents, but not into the sound of those ``driven`` [B]."""
    noise = tuple(torch.randn(x.shape, generator=generator) for x in (video, audio))
    masks = draw_masks(video, audio, driven, generator)
    levels = (sigma.view(-1, 1, 1, 1, 1) * masks[0], sigma.view(-1, 1, 1) * masks[1])
    mixed = [level * n + (1 - level) * x for level, n, x in zip(levels, noise, (video, audio), strict=True)]
    return Example(*mixed, clean=(video, audio), noise=noise, noisy=masks, sigma=sigma)


class Prompts:
    """Embeddings of prompts, rounded as the pipeline rounds them."""

    def __init__(self, encoder: TextEncoder) -> None:
        self.encoder = encoder
        self.negatives = [self.embed(torch.tensor([encoder.tokenizer.encode(text)])) for text in NEGATIVES]

    @classmethod
    def of(cls, models: Path) -> "Prompts":
        """By the text encoder in a folder in the released layout."""
        return cls(load_text_encoder(models / TEXT_ENCODER.places[0], dtype=torch.float32))

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Token ids [B, L] -> [B, L, WIDTH]."""
        return self.encoder.model(ids, compute_dtype=torch.float32).half().float()


NEGATIVES = (SHORT_NEGATIVE, DEFAULT_NEGATIVE_PROMPT)


def masked_mean(error: Tensor, mask: Tensor) -> Tensor:
    """Mean of ``error`` where ``mask`` is 1; 0 where it is nowhere."""
    mask = mask.expand_as(error)
    return (error * mask).sum() / mask.sum().clamp(min=1)


def count_after_picture(weights: tuple[Tensor, Tensor], noisy: Tensor) -> tuple[Tensor, Tensor]:
    """The weights of both streams, with more for the frame after a given one; ``noisy`` [B, 1, T, 1, 1] is the mask."""
    frames = torch.ones_like(noisy)
    frames[:, :, 1] += (AFTER_PICTURE - 1) * (1 - noisy[:, :, 0])
    return weights[0] * frames, weights[1]


def flow_loss(
    model: nn.Module,
    example: Example,
    text: Tensor,
    weights: tuple[Tensor, Tensor],
    layer_hook: LayerHook | None = None,
) -> dict[str, Tensor]:
    """Weighted mean square error of both velocities."""
    dtype = usual_dtype(example.video.device)
    found = model(example.video, example.audio, text, compute_dtype=dtype, layer_hook=layer_hook)
    weights = count_after_picture(weights, example.noisy[0])
    losses = {}
    for name, part, velocity, clean, noise, mask in zip(
        ("video", "audio"), weights, found, example.clean, example.noise, example.noisy, strict=True
    ):
        losses[name] = masked_mean(part * (velocity - (noise - clean)).square(), mask)
    return {"loss": losses["video"] + losses["audio"]} | losses


def make_step(model: nn.Module, heads: TruthHeads, clips: Clips, prompts: Prompts) -> Step:
    """The training step. In some, the prompt is a negative one, which guidance needs to know the clips of."""

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        drop = torch.rand(2, generator=generator)
        batch = clips.draw(BATCH, generator)
        parts = batch.video, batch.audio, batch.driven, *batch.weights, batch.truth
        text = prompts.embed(batch.ids)
        if drop[0] < NEGATIVE_PART:
            # The long one costs as much as three prompts, so it comes with fewer clips.
            long = drop[1] < 0.5
            keep = BATCH // 2 if long else BATCH
            parts = [part[:keep] for part in parts]
            text = prompts.negatives[long].expand(keep, -1, -1)
        device = device_of(model)
        video, audio, driven, *others = parts
        *weights, truth = (part.to(device) for part in others)
        example = make_example(video, audio, driven, draw_sigmas(len(video), generator), generator)
        losses = flow_loss(model, example.to(device), text.to(device), tuple(weights), heads.watch)
        told = heads.loss(video, truth)
        return losses | {"loss": losses["loss"] + WEIGHT * told, "truth": told}

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    options = run_parser(__doc__, STEPS).parse_args(arguments)
    runs = options.runs
    make_clips(runs / "clips", CLIPS, options.seed, options.models)
    prompts = Prompts.of(options.models)
    clips = Clips(runs / "clips", options.seed, prompts.encoder.tokenizer)
    model, heads = make_transformer(options.seed), TruthHeads()
    modules: Mapping[str, nn.Module] = {"transformer": model, "heads": heads}
    step = make_step(model, heads, clips, prompts)
    train(
        "base",
        runs / "base",
        modules,
        step,
        steps=options.steps,
        minutes=options.minutes,
        lr=RATE,
        make_optimizer=lambda parameters: Muon(parameters, RATE),
        seed=options.seed,
        device=options.device,
        warmup=200,
        fall=0.4,
        ema=0.998,
        sheet=sheet_of(runs, options.models, "base"),
        sheet_every=2000,
    )


if __name__ == "__main__":
    main()
