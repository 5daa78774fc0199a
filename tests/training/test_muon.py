"""Muon: steps of one size in every direction, the same after a stop."""

import pytest
import torch
from torch import nn

from training.muon import MATCH, Muon, orthogonal
from training.run import train


@pytest.mark.parametrize("shape", [(5, 40), (40, 5), (7, 7)])
def test_singular_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 30
    values = torch.linalg.svdvals(orthogonal(matrix))
    assert values.min() > 0.6 and values.max() < 1.3
    # The directions stay: what is left of the matrix in its own basis has no part beside the diagonal.
    left, _, right = torch.linalg.svd(matrix, full_matrices=False)
    inside = left.T @ orthogonal(matrix) @ right.T
    assert (inside - inside.diagonal().diag()).abs().max() < 1e-3


def test_a_step_has_the_size_of_adam_s():
    weight = nn.Parameter(torch.zeros(6, 3, 3, 5))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=0.01).step()
    assert weight.detach().square().mean().sqrt() == pytest.approx(0.01 * MATCH, rel=0.3)
    bias = nn.Parameter(torch.zeros(3))
    bias.grad = torch.tensor([5.0, -2.0, 0.1])
    Muon([bias], lr=0.01, vector_rate=0.5).step()
    assert torch.allclose(bias.detach(), torch.tensor([-0.005, 0.005, -0.005]), atol=1e-6)


def learn(folder, minutes):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2))

    def step(index, generator):
        x = torch.randn(16, 3, generator=generator)
        return {"loss": (net(x) - torch.sin(x[:, :2])).square().mean()}

    options = {"steps": 150, "lr": 0.05, "warmup": 3, "ema": 0.9, "make_optimizer": lambda p: Muon(p, 0.05)}
    done = train("test", folder, {"net": net}, step, minutes=minutes, **options)
    return done, net, step(0, torch.Generator().manual_seed(99))["loss"].item()


def test_learns_and_goes_on_after_stops_as_without_them(tmp_path):
    done, whole, loss = learn(tmp_path / "whole", 5)
    assert done and loss < 0.1
    done = False
    while not done:  # no minutes: stops after each step
        done, parts, _ = learn(tmp_path / "parts", 0)
    assert all(torch.equal(one, other) for one, other in zip(whole.parameters(), parts.parameters(), strict=True))
