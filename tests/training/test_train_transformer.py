"""What the transformer is trained on: noise where there is to be noise, losses that have the right least value."""

import pytest
import torch
from torch import nn

from happyhorse_core.ops import TorchOps
from happyhorse_core.sampling.schedule import flow_sigmas
from training.distil import SCALE, consistency_loss, teacher_step
from training.model import CONFIG, TrainingOps, make_transformer
from training.transformer import AFTER_PICTURE, count_after_picture, draw_sigmas, flow_loss, make_example, masked_mean

BATCH, FRAMES = 64, 3
ALIKE = torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1)
"""Weights of clips whose parts all count the same."""
NONE = torch.zeros(BATCH, dtype=torch.bool)
"""None of the clips is driven by its sound."""


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(5)


@pytest.fixture
def clean(generator):
    return torch.randn(BATCH, 48, FRAMES, 2, 2, generator=generator), torch.randn(BATCH, 64, 5, generator=generator)


@pytest.fixture
def example(clean, generator):
    return make_example(*clean, NONE, draw_sigmas(BATCH, generator), generator)


class Straight(nn.Module):
    """Knows the clean latents, and so the velocity of each noisy one at a known level."""

    def __init__(self, clean, levels):
        super().__init__()
        self.clean, self.levels = clean, levels

    def forward(self, video, audio, text, *, compute_dtype, layer_hook=None):
        return tuple(
            (x - c) / s.clamp(min=1e-9) for x, c, s in zip((video, audio), self.clean, self.levels, strict=True)
        )


def levels_of(sigma, example):
    return sigma.view(-1, 1, 1, 1, 1) * example.noisy[0], sigma.view(-1, 1, 1) * example.noisy[1]


def test_some_clips_have_a_clean_first_picture_and_some_a_clean_sound(example):
    pictures = (example.video[:, :, 0] == example.clean[0][:, :, 0]).flatten(1).all(1)
    sounds = (example.audio == example.clean[1]).flatten(1).all(1)
    assert pictures.tolist() == [not mask.all() for mask in example.noisy[0]]
    assert sounds.tolist() == [not mask.all() for mask in example.noisy[1]]
    assert 5 < pictures.sum() < 50 and 5 < sounds.sum() < 50
    assert not (example.video[:, :, 1:] == example.clean[0][:, :, 1:]).any()


def test_clips_that_are_driven_have_their_sound_given(clean, generator):
    driven = torch.arange(BATCH) % 3 == 0
    example = make_example(*clean, driven, draw_sigmas(BATCH, generator), generator)
    given = example.noisy[1][:, 0, 0] == 0
    assert given[driven].all() and not given.all()
    assert torch.equal(example.audio[driven], clean[1][driven])


def test_noisy_latents_lie_between_noise_and_clip(example):
    for x, clean, noise, level in zip(
        (example.video, example.audio), example.clean, example.noise, levels_of(example.sigma, example), strict=True
    ):
        torch.testing.assert_close(x, clean + level * (noise - clean))


def test_flow_loss_is_nothing_for_the_true_velocity_and_counts_noisy_parts_alone(example):
    true = Straight(example.clean, levels_of(example.sigma, example))
    assert flow_loss(true, example, None, ALIKE)["loss"] < 1e-6

    class Idle(nn.Module):
        def forward(self, video, audio, text, *, compute_dtype, layer_hook=None):
            return torch.zeros_like(video), torch.zeros_like(audio)

    counts = count_after_picture(ALIKE, example.noisy[0])[0]
    wanted = masked_mean(counts * (example.noise[0] - example.clean[0]).square(), example.noisy[0])
    assert flow_loss(Idle(), example, None, ALIKE)["video"] == pytest.approx(wanted.item())
    assert 1.5 < wanted < 2.5 * counts.mean()
    one = torch.zeros(1, 48, 1, 1, 1)
    one[:, 5] = 48
    error = (counts * (example.noise[0] - example.clean[0]).square())[:, 5:6]
    found = flow_loss(Idle(), example, None, (one, ALIKE[1]))["video"]
    assert found == pytest.approx(masked_mean(error, example.noisy[0]).item(), rel=1e-4)
    alike, loud = (flow_loss(Idle(), example, None, (one, weight * ALIKE[1]))["audio"] for weight in (1, 4))
    assert loud == pytest.approx(4 * alike.item())


def test_frame_after_a_given_picture_counts_more_and_all_others_alike(example):
    video, audio = count_after_picture((torch.full((BATCH, 48, 1, 2, 2), 0.5), ALIKE[1]), example.noisy[0])
    given = example.noisy[0][:, 0, 0, 0, 0] == 0
    assert (video[given, :, 1] == 0.5 * AFTER_PICTURE).all() and (video[~given, :, 1] == 0.5).all()
    assert (video[:, :, [0, 2]] == 0.5).all() and audio is ALIKE[1]


def test_masked_mean_of_nothing_is_zero():
    assert masked_mean(torch.ones(2, 3), torch.zeros(2, 1)) == 0


def test_teacher_goes_down_the_straight_line_and_keeps_what_is_given(example):
    true = Straight(example.clean, levels_of(example.sigma, example))
    after = 0.5 * example.sigma
    lower = teacher_step(true, example, after, None, None)
    for x, clean, noise, level in zip(lower, example.clean, example.noise, levels_of(after, example), strict=True):
        torch.testing.assert_close(x, clean + level * (noise - clean), rtol=1e-4, atol=1e-4)


def test_teacher_is_guided_except_where_a_first_picture_is_given(example):
    class Told(nn.Module):
        """Says 1 to the prompt and 0 to the negative one."""

        def forward(self, video, audio, text, *, compute_dtype, layer_hook=None):
            return text * torch.ones_like(video), text * torch.ones_like(audio)

    lower = teacher_step(Told(), example, example.sigma - 1, torch.tensor(1.0), torch.tensor(0.0))
    given = example.noisy[0][:, 0, 0, 0, 0] == 0
    for x, before, noisy in zip(lower, (example.video, example.audio), example.noisy, strict=True):
        change = (before - x).flatten(1).amax(1)
        torch.testing.assert_close(change[given & noisy.flatten(1).any(1)].mean(), torch.tensor(1.0))
        torch.testing.assert_close(change[~given & noisy.flatten(1).any(1)].mean(), torch.tensor(SCALE))


def test_consistency_loss_is_nothing_where_both_predictions_agree(example, generator):
    after = 0.5 * example.sigma
    lower = tuple(
        clean + level * (noise - clean)
        for clean, noise, level in zip(example.clean, example.noise, levels_of(after, example), strict=True)
    )

    class Constant(nn.Module):
        """Predicts the same clean clip wherever it is asked, from the level that the noise shows."""

        def __init__(self, found):
            super().__init__()
            self.found, self.sigmas = found, iter((after, example.sigma))

        def forward(self, video, audio, text, *, compute_dtype, layer_hook=None):
            sigma = next(self.sigmas)
            return (video - self.found[0]) / sigma.view(-1, 1, 1, 1, 1), (audio - self.found[1]) / sigma.view(-1, 1, 1)

    agreed = Constant([torch.zeros_like(x) for x in example.clean])
    assert consistency_loss(agreed, example, lower, after, None, ALIKE)["loss"] < 1e-9
    other = Constant([torch.zeros_like(x) for x in example.clean])
    other.sigmas = iter((after * 1.1, example.sigma))
    assert consistency_loss(other, example, lower, after, None, ALIKE)["loss"] > 1e-4


def test_attention_of_training_is_that_of_the_pack(generator):
    q, k, v = (torch.randn(2, heads, 7, 8, generator=generator) for heads in (6, 3, 3))
    torch.testing.assert_close(TrainingOps.attention(q, k, v), TorchOps.attention(q, k, v))


def test_noise_levels_lie_mostly_where_the_steps_of_the_sampler_do(generator):
    drawn = draw_sigmas(20_000, generator)
    assert drawn.min() > 0 and drawn.max() < 1
    steps = flow_sigmas(1000)[:-1]
    mixed = 0.7 * steps.median() + 0.3 * 0.5
    assert drawn.median() == pytest.approx(mixed.item(), abs=0.05)


def test_fresh_transformer_says_nothing_and_learns():
    model = make_transformer(0)
    assert sum(p.numel() for p in model.parameters()) < 6.5e6 and CONFIG.num_layers == 5
    generator = torch.Generator().manual_seed(1)
    video, audio = torch.randn(2, 48, FRAMES, 2, 2, generator=generator), torch.randn(2, 64, 5, generator=generator)
    text = torch.randn(2, 4, CONFIG.text_in_channels, generator=generator)
    example = make_example(video, audio, NONE[:2], torch.tensor([0.5, 0.9]), generator)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = flow_loss(model, example, text, ALIKE)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] == pytest.approx(4, abs=0.5)
    assert losses[-1] < 0.75 * losses[0]
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
