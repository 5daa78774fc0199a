"""A training loop that can be stopped and taken up again, with averaged weights, curves and sheets of samples."""

import argparse
import csv
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from tqdm import tqdm

from happyhorse_core import edge
from happyhorse_core.precision import usual_dtype

Step = Callable[[int, torch.Generator], Mapping[str, Tensor]]
"""``step(index, generator)`` -> the loss and whatever else belongs on the curve, each one number."""
Sheet = Callable[[Path, Mapping[str, nn.Module]], None]
"""``sheet(path, modules)`` draws samples of the modules, which hold their averaged weights meanwhile."""
State = dict[str, Tensor]

STATE, CURVE = "state.pt", "curve.csv"
PONY = Path(__file__).resolve().parent.parent / "pony"


class Averages:
    """Exponential averages of the parameters of some modules, in float32."""

    def __init__(self, modules: Mapping[str, nn.Module], decay: float) -> None:
        self.parameters = {f"{n}.{k}": p for n, m in modules.items() for k, p in m.named_parameters()}
        self.values = {name: value.detach().clone() for name, value in self.parameters.items()}
        self.decay = decay

    def update(self, index: int) -> None:
        """Takes in the parameters as they are after step ``index``; early steps count for more."""
        decay = min(self.decay, (1 + index) / (10 + index))
        torch._foreach_lerp_(list(self.values.values()), [p.detach() for p in self.parameters.values()], 1 - decay)

    def swap(self) -> None:
        """Exchanges the averages and the parameters."""
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                held = parameter.clone()
                parameter.copy_(self.values[name])
                self.values[name].copy_(held)


def run_parser(description: str, steps: int) -> argparse.ArgumentParser:
    """The options of a transformer's run: --runs, --models, --minutes, --steps, --seed, --device."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="the folder of all runs")
    parser.add_argument("--models", type=Path, default=PONY, help="text encoder and autoencoders; default pony/")
    parser.add_argument("--minutes", type=float, default=120, help="stop after so long; the next call goes on")
    parser.add_argument("--steps", type=int, default=steps, help=f"steps of the whole run (default {steps})")
    parser.add_argument("--seed", type=int, default=0)
    add_device(parser)
    return parser


def add_device(parser: argparse.ArgumentParser) -> None:
    """The option --device, which is CUDA where there is any."""
    usual = "cuda" if torch.cuda.is_available() else "cpu"
    parser.add_argument("--device", type=edge.device, default=torch.device(usual), help=f"default here: {usual}")


def device_of(module: nn.Module) -> torch.device:
    """Where a module computes. What a step draws is drawn on the CPU, the same on every machine, and then moved."""
    return next(module.parameters()).device


def autocast(device: torch.device) -> torch.autocast:
    """Products in bfloat16 where the device is fast in it."""
    dtype = usual_dtype(device)
    return torch.autocast(device.type, dtype, enabled=dtype == torch.bfloat16)


def learning_rate(index: int, steps: int, peak: float, warmup: int, fall: float = 1.0) -> float:
    """Rises linearly to ``peak`` in ``warmup`` steps, and falls to 0 along a cosine in the last part ``fall`` of the
    others; a run whose rate stays at its peak until then can be made longer (Haegele et al., arXiv 2405.18392)."""
    if index < warmup:
        return peak * (index + 1) / warmup
    passed = (index - warmup) / max(1, steps - warmup)
    return peak * 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, 1 - (1 - passed) / fall))))


def train(
    name: str,
    folder: Path,
    modules: Mapping[str, nn.Module],
    step: Step,
    *,
    steps: int,
    minutes: float,
    lr: float,
    seed: int = 0,
    warmup: int = 100,
    fall: float = 1.0,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.99),
    make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    ema: float = 0.999,
    clip: float = 1.0,
    device: torch.device | str = "cpu",
    sheet: Sheet | None = None,
    sheet_every: int = 1000,
    save_every_minutes: float = 3.0,
) -> bool:
    """Trains ``modules`` until ``steps`` are done (returns True) or ``minutes`` are over (returns False).

    Called again with the same folder it goes on where it was saved last; every step draws from a generator seeded by
    ``seed`` and its index, so a run that was interrupted sees what an uninterrupted one would have seen.
    ``make_optimizer`` makes another optimizer than AdamW; its learning rate follows the same curve. The modules are
    moved to ``device``; what a step feeds them with is the step's to move.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for module in modules.values():
        module.to(device)
    parameters = [p for module in modules.values() for p in module.parameters() if p.requires_grad]
    make_optimizer = make_optimizer or (lambda found: torch.optim.AdamW(found, lr, betas, weight_decay=weight_decay))
    optimizer = make_optimizer(parameters)
    averages = Averages(modules, ema)
    first, rows = _resume(folder, modules, optimizer, averages)
    ends, saved = time.monotonic() + 60 * minutes, time.monotonic()
    bar = tqdm(range(first, steps), desc=name, initial=first, total=steps, mininterval=5)
    for index in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(index, steps, lr, warmup, fall)
        figures = step(index, torch.Generator().manual_seed(seed * 1_000_003 + index))
        optimizer.zero_grad(set_to_none=True)
        figures["loss"].backward()
        nn.utils.clip_grad_norm_(parameters, clip)
        optimizer.step()
        averages.update(index)
        rows.append({"step": float(index)} | {key: value.item() for key, value in figures.items()})
        bar.set_postfix({key: f"{value:.4f}" for key, value in rows[-1].items() if key != "step"}, refresh=False)
        done, now = index + 1, time.monotonic()
        if done == steps or now > ends or now - saved > 60 * save_every_minutes:
            _save(folder, done, modules, optimizer, averages, rows)
            saved = now
        if sheet is not None and (done % sheet_every == 0 or done == steps):
            draw_sheet(sheet, folder / f"sheet-{done:06d}.png", modules, averages)
        if now > ends and done < steps:
            return False
    return True


def draw_sheet(sheet: Sheet, path: Path, modules: Mapping[str, nn.Module], averages: Averages) -> None:
    """Lets ``sheet`` draw with the averaged weights."""
    averages.swap()
    try:
        with torch.no_grad():
            sheet(path, modules)
    finally:
        averages.swap()


def load_trained(folder: Path, modules: Mapping[str, nn.Module]) -> int:
    """Puts the averaged weights of a run into ``modules``; returns the steps that the run had done."""
    state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    with torch.no_grad():
        for name, module in modules.items():
            for key, parameter in module.named_parameters():
                parameter.copy_(state["averages"][f"{name}.{key}"])
    return state["done"]


def _resume(
    folder: Path, modules: Mapping[str, nn.Module], optimizer: torch.optim.Optimizer, averages: Averages
) -> tuple[int, list[dict[str, float]]]:
    if not (folder / STATE).exists():
        return 0, []
    state = torch.load(folder / STATE, weights_only=True, map_location="cpu")
    for name, module in modules.items():
        module.load_state_dict(state["modules"][name])
    optimizer.load_state_dict(state["optimizer"])
    for name, value in averages.values.items():
        value.copy_(state["averages"][name])
    with (folder / CURVE).open(newline="", encoding="utf-8") as file:
        rows = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    return state["done"], [row for row in rows if row["step"] < state["done"]]


def _save(
    folder: Path,
    done: int,
    modules: Mapping[str, nn.Module],
    optimizer: torch.optim.Optimizer,
    averages: Averages,
    rows: list[dict[str, float]],
) -> None:
    """Writes the curve and the state; each file is whole at any moment."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    with (folder / f"{CURVE}.part").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    (folder / f"{CURVE}.part").replace(folder / CURVE)
    state = {
        "done": done,
        "modules": {name: module.state_dict() for name, module in modules.items()},
        "optimizer": optimizer.state_dict(),
        "averages": averages.values,
    }
    torch.save(state, folder / f"{STATE}.part")
    (folder / f"{STATE}.part").replace(folder / STATE)
