"""Distils the Pony's base transformer to 8 steps without guidance: consistency distillation.

    python -m training.distil --runs RUNS [--minutes M]      trains, or goes on

From a noisy clip the guided base model goes one step of a fine schedule; the student's prediction of the clean clip
has to be the same before that step and after it (Song et al., arXiv 2303.01469, algorithm 2), so that each of its
predictions is a clip and not a mean of clips. That is what the sampler of the distilled model asks for: it predicts
the clean clip, puts new noise of the next level into it, and predicts again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from happyhorse_core.precision import usual_dtype
from happyhorse_core.sampling.guidance import guide
from happyhorse_core.sampling.schedule import flow_sigmas

from .clips import Clips
from .model import make_transformer
from .muon import Muon
from .run import Step, device_of, load_trained, run_parser, train
from .sheet import sheet_of
from .transformer import Example, Prompts, count_after_picture, make_example, masked_mean

BATCH, STEPS, RATE = 16, 600, 4e-4
GRID = 40
"""Steps of the fine schedule."""
SCALE = 1.5
"""Guidance of the teacher, for both streams, but none where a first picture is given: that says already what guidance
would stress, and what comes next has to fit it."""

Pair = tuple[Tensor, Tensor]


def levels(sigma: Tensor) -> Pair:
    """[B] as it multiplies video and audio."""
    return sigma.view(-1, 1, 1, 1, 1), sigma.view(-1, 1, 1)


def run_model(model: nn.Module, latents: Pair, text: Tensor) -> Pair:
    """The velocities of both streams."""
    return model(*latents, text, compute_dtype=usual_dtype(latents[0].device))


@torch.no_grad()
def teacher_step(teacher: nn.Module, example: Example, after: Tensor, text: Tensor, negative: Tensor) -> Pair:
    """The latents at the lower noise level ``after`` [B], by one Euler step of the guided teacher.

    What is given, a first picture or a sound, has no noise and stays.
    """
    latents = example.video, example.audio
    wanted, unwanted = run_model(teacher, latents, text), run_model(teacher, latents, negative)
    scales = levels(1 + (SCALE - 1) * example.noisy[0][:, 0, 0, 0, 0])
    changes = levels(after - example.sigma)
    parts = zip(latents, wanted, unwanted, scales, changes, example.noisy, strict=True)
    return tuple(x + guide(p, n, scale) * change * mask for x, p, n, scale, change, mask in parts)


def consistency_loss(
    student: nn.Module, example: Example, lower: Pair, after: Tensor, text: Tensor, weights: Pair
) -> dict[str, Tensor]:
    """Mean square distance of the student's two predictions of the clean clip, in units of the velocity.

    They are weighted as in the base model's training.
    """
    with torch.no_grad():
        targets = [x - s * v for x, s, v in zip(lower, levels(after), run_model(student, lower, text), strict=True)]
    found = run_model(student, (example.video, example.audio), text)
    weights = count_after_picture(weights, example.noisy[0])
    losses = {}
    parts = zip(
        ("video", "audio"), weights, found, (example.video, example.audio), targets, levels(example.sigma),
        example.noisy, strict=True,
    )  # fmt: skip
    for name, part, velocity, x, target, sigma, mask in parts:
        losses[name] = masked_mean(part * (velocity - (x - target) / sigma).square(), mask)
    return {"loss": losses["video"] + losses["audio"]} | losses


def make_step(student: nn.Module, teacher: nn.Module, clips: Clips, prompts: Prompts) -> Step:
    """The training step."""
    sigmas, device = flow_sigmas(GRID), device_of(teacher)
    negative = prompts.negatives[0].to(device)

    def step(index: int, generator: torch.Generator) -> dict[str, Tensor]:
        batch = clips.draw(BATCH, generator)
        text = prompts.embed(batch.ids).to(device)
        position = torch.randint(GRID, (BATCH,), generator=generator)
        latents = batch.video, batch.audio, batch.driven
        example = make_example(*latents, sigmas[position], generator).to(device)
        after = sigmas[position + 1].to(device)
        lower = teacher_step(teacher, example, after, text, negative.expand(BATCH, -1, -1))
        return consistency_loss(student, example, lower, after, text, tuple(part.to(device) for part in batch.weights))

    return step


def main(arguments: Sequence[str] | None = None) -> None:
    options = run_parser(__doc__, STEPS).parse_args(arguments)
    runs = options.runs
    prompts = Prompts.of(options.models)
    clips = Clips(runs / "clips", options.seed, prompts.encoder.tokenizer)
    teacher, student = make_transformer(options.seed), make_transformer(options.seed)
    for model in (teacher, student):
        load_trained(runs / "base", {"transformer": model})
    teacher.eval().requires_grad_(False).to(options.device)
    step = make_step(student, teacher, clips, prompts)
    modules = {"transformer": student}
    train(
        "distill",
        runs / "distill",
        modules,
        step,
        steps=options.steps,
        minutes=options.minutes,
        lr=RATE,
        make_optimizer=lambda parameters: Muon(parameters, RATE),
        seed=options.seed + 1,
        device=options.device,
        warmup=100,
        ema=0.998,
        sheet=sheet_of(runs, options.models, "distilled"),
        sheet_every=400,
    )


if __name__ == "__main__":
    main()
