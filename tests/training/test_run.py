"""The training loop: going on where it stopped, averaged weights, the curve."""

import csv

import pytest
import torch
from torch import nn

from training.run import CURVE, Averages, learning_rate, load_trained, train

WANTED = torch.tensor([[1.0, -2.0, 0.5]])


def make() -> nn.Linear:
    torch.manual_seed(3)
    return nn.Linear(3, 1)


def step_of(net: nn.Linear):
    def step(index: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        x = torch.randn(7, 3, generator=generator)
        return {"loss": (net(x) - x @ WANTED.T).square().mean(), "size": x.norm()}

    return step


def run(folder, net, steps=40, **options):
    settings = {"steps": steps, "minutes": 5, "lr": 0.1, "warmup": 5, "ema": 0.9, "seed": 11} | options
    return train("test", folder, {"net": net}, step_of(net), **settings)


def rows(folder):
    with (folder / CURVE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_learns_and_writes_the_curve(tmp_path):
    net = make()
    assert run(tmp_path, net, steps=200)
    assert torch.allclose(net.weight, WANTED, atol=0.01)
    curve = rows(tmp_path)
    assert [int(float(row["step"])) for row in curve] == list(range(200))
    assert float(curve[-1]["loss"]) < 1e-3 < float(curve[0]["loss"])


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tmp_path):
    whole, parts = make(), make()
    run(tmp_path / "whole", whole)
    done = False
    for _ in range(40):  # no minutes: stops after each step
        again = make()
        done = run(tmp_path / "parts", again, minutes=0)
        parts = again
    assert done
    assert torch.equal(parts.weight, whole.weight)
    assert rows(tmp_path / "parts") == rows(tmp_path / "whole")
    for folder in ("whole", "parts"):
        assert load_trained(tmp_path / folder, {"net": parts}) == 40
        averaged = parts.weight.clone()
        assert not torch.equal(averaged, whole.weight)
    assert torch.equal(averaged, parts.weight)


def test_sheet_sees_the_averages_and_leaves_the_weights(tmp_path):
    net, seen = make(), []
    run(tmp_path, net, sheet=lambda path, modules: seen.append((path.name, net.weight.clone())), sheet_every=20)
    assert [name for name, _ in seen] == ["sheet-000020.png", "sheet-000040.png"]
    trained = net.weight.clone()
    load_trained(tmp_path, {"net": net})
    assert torch.equal(net.weight, seen[-1][1])
    assert not torch.equal(trained, seen[-1][1])


def test_averages_follow_the_parameters():
    net = nn.Linear(1, 1, bias=False)
    net.weight.data.fill_(1.0)
    averages = Averages({"net": net}, 0.9)
    net.weight.data.fill_(3.0)
    averages.update(10_000)
    averages.swap()
    assert net.weight.item() == pytest.approx(1.2)
    averages.swap()
    assert net.weight.item() == 3.0


def test_learning_rate_rises_and_falls():
    rates = [learning_rate(n, 100, 2.0, 10) for n in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.0) and rates[100] == pytest.approx(0)
    late = [learning_rate(n, 100, 2.0, 10, 0.2) for n in range(101)]
    assert late[:11] == rates[:11] and late[82] == pytest.approx(2.0)
    assert late[91] == pytest.approx(1.0) and late[100] == pytest.approx(0)
