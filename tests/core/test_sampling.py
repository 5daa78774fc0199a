"""Schedule, solvers, guidance and the loop, against formulas written out here."""

import math

import pytest
import torch
from torch import Tensor

from happyhorse_core.errors import InputError
from happyhorse_core.sampling.guidance import guide, sr_video_scale, video_scale
from happyhorse_core.sampling.loop import denoise, guided, hold_first_frame
from happyhorse_core.sampling.schedule import flow_sigmas
from happyhorse_core.sampling.solver import DistilledSolver, UniPC, seeded_noise


@pytest.mark.parametrize("steps", [1, 2, 5, 8, 32, 1000])
def test_sigmas_fall_from_almost_one_to_zero(steps: int) -> None:
    sigmas = flow_sigmas(steps)
    assert sigmas.dtype == torch.float32
    assert len(sigmas) == steps + 1
    assert sigmas[0] == pytest.approx(5 * 0.999 / (1 + 4 * 0.999))
    assert sigmas[-1] == 0
    assert (sigmas.diff() < 0).all()


@pytest.mark.parametrize(
    ("steps", "shift", "named"), [(0, 5, "steps"), (-1, 5, "steps"), (1001, 5, "steps"), (8, 0, "shift")]
)
def test_schedules_that_cannot_be(steps: int, shift: float, named: str) -> None:
    with pytest.raises(InputError, match=named):
        flow_sigmas(steps, shift)


def exact_flow(x: Tensor, sigma: float) -> Tensor:
    """x0 for a data distribution N(0, 0.25): the posterior mean, a linear function of x."""
    return x * (1 - sigma) * 0.25 / ((1 - sigma) ** 2 * 0.25 + sigma**2)


def spread(sigma: float) -> float:
    """Standard deviation of x at a noise level."""
    return math.sqrt((1 - sigma) ** 2 * 0.25 + sigma**2)


def integrate(steps: int) -> float:
    """How far UniPC ends from the exact solution of the probability flow, which keeps x / spread(sigma)."""
    sigmas = torch.linspace(0.9, 0.1, steps + 1, dtype=torch.float64)
    solver, start = UniPC(sigmas), torch.linspace(-2, 2, 9, dtype=torch.float64)
    x = start
    for index, sigma in enumerate(sigmas.tolist()[:-1]):
        x = solver.step(index, x, exact_flow(x, sigma))
    expected = start * spread(0.1) / spread(0.9)
    return ((x - expected).abs().max() / expected.abs().max()).item()


def test_unipc_is_of_second_order() -> None:
    coarse, middle, fine = (integrate(steps) for steps in (10, 20, 40))
    assert coarse > 3 * middle > 9 * fine
    assert fine < 1e-3


def test_unipc_is_exact_where_the_prediction_never_changes() -> None:
    sigmas = flow_sigmas(6)
    solver, target = UniPC(sigmas), torch.randn(3, 5)
    x = noise = torch.randn(3, 5)
    for index, sigma in enumerate(sigmas.tolist()[:-1]):
        if index:
            torch.testing.assert_close(
                x, sigma / sigmas[0] * noise + (1 - sigma / sigmas[0]) * target, rtol=1e-4, atol=1e-4
            )
        x = solver.step(index, x, target)
    assert torch.equal(x, target)


def test_the_distilled_step_adds_fresh_noise_but_for_the_last() -> None:
    sigmas = flow_sigmas(3)
    drawn = []

    def noise(index: int, like: Tensor) -> Tensor:
        drawn.append(index)
        return torch.full_like(like, 2.0)

    solver, x0 = DistilledSolver(sigmas, noise), torch.ones(2)
    for index in range(2):
        level = sigmas[index + 1].item()
        torch.testing.assert_close(solver.step(index, torch.zeros(2), x0), torch.full((2,), level * 2 + 1 - level))
    assert torch.equal(solver.step(2, torch.zeros(2), x0), x0)
    assert drawn == [0, 1]


def test_guidance_drops_in_the_second_half() -> None:
    scales = [video_scale(s) for s in flow_sigmas(32).tolist()[:-1]]
    assert scales == [5.0] * 27 + [2.0] * 5
    assert video_scale(0.501) == 5.0
    assert video_scale(0.5009) == 2.0
    assert video_scale(0.301, 4.0, 1.5, late_from=300) == 4.0
    assert video_scale(0.3009, 4.0, 1.5, late_from=300) == 1.5
    assert sr_video_scale(15).flatten().tolist() == [2.0] * 13 + [3.5] * 2
    assert guide(torch.tensor(3.0), torch.tensor(1.0), 5.0) == 11


def run(seed: int = 0, *, hold_audio: bool = False, image: Tensor | None = None) -> tuple[Tensor, Tensor, list]:
    sigmas = flow_sigmas(4)
    draw = seeded_noise(torch.Generator().manual_seed(seed))
    video, audio = draw(0, torch.empty(1, 48, 3, 2, 2)), draw(0, torch.empty(1, 64, 9))
    seen = []

    def velocity(v: Tensor, a: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        seen.append((v[:, :, :1].clone(), a.clone()))
        return v * 0.5 + a.mean(), a * 0.5 + v.mean()

    audio_solver = None if hold_audio else DistilledSolver(sigmas, draw)
    video, audio = denoise(
        velocity, video, audio, sigmas, DistilledSolver(sigmas, draw), audio_solver, image_latent=image
    )
    return video, audio, seen


def test_one_seed_one_result() -> None:
    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_a_given_picture_is_what_the_model_sees_and_what_comes_out() -> None:
    image = torch.randn(1, 48, 1, 2, 2)
    video, _, seen = run(image=image)
    assert all(torch.equal(frame, image) for frame, _ in seen)
    assert torch.equal(video[:, :, :1], image)
    assert not torch.equal(video[:, :, 1:2], image)


def test_a_given_sound_is_never_stepped_by_the_distilled_model() -> None:
    _, audio, seen = run(hold_audio=True)
    assert all(torch.equal(heard, audio) for _, heard in seen)


def test_holding_leaves_the_callers_tensor_alone() -> None:
    video = torch.zeros(1, 48, 2, 2, 2)
    assert hold_first_frame(video, torch.ones(1, 48, 1, 2, 2))[:, :, 0].eq(1).all()
    assert video.eq(0).all()


def test_guided_velocity_scales_each_stream_on_its_own() -> None:
    one, zero = torch.ones(1), torch.zeros(1)
    move = guided(lambda v, a, s: (one, one), lambda v, a, s: (zero, zero))
    assert [x.item() for x in move(zero, zero, 0.9)] == [5, 5]
    assert [x.item() for x in move(zero, zero, 0.2)] == [2, 5]


def test_an_interruption_ends_the_loop_at_once() -> None:
    sigmas, calls = flow_sigmas(4), []

    def velocity(v: Tensor, a: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        calls.append(sigma)
        return v, a

    def stop(done: int, total: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        denoise(velocity, torch.ones(1, 48, 1, 2, 2), torch.ones(1, 64, 1), sigmas, UniPC(sigmas), None, progress=stop)
    assert len(calls) == 2
