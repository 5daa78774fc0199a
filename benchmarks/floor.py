"""The floor of a stage: its matmuls, convolutions and attention alone, on the very tensors of a real run.

All layers of the core come from an injected ``operations`` object. ``Recorder.operations`` stands in for it, notes
every call while the stage runs once, and ``replay`` makes the same calls again and nothing else.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from happyhorse_core.ops import TorchOps

LAYERS = ("Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose1d")


@dataclass
class Recorder:
    """Calls of one run, in order; recording is off until ``recording`` is set."""

    recording: bool = False
    calls: list[Callable[[], Tensor]] = field(default_factory=list)

    def note(self, call: Callable[[], Tensor]) -> None:
        """Keeps a call, and with it the tensors that it computes on, while recording."""
        if self.recording:
            self.calls.append(call)

    def operations(self) -> type:
        """An ``operations`` class whose layers and attention tell this recorder what they compute."""
        members: dict[str, Any] = {name: self._layer(getattr(TorchOps, name)) for name in LAYERS}
        members["FloatLinear"] = members["Linear"]
        members["ExpertLinear"] = self._expert_layer()
        members["attention"] = staticmethod(self._attention)
        return type("RecordingOps", (TorchOps,), members)

    def _layer(self, kind: type[nn.Module]) -> type[nn.Module]:
        note = self.note

        class Recording(kind):
            def forward(self, *inputs: Tensor) -> Tensor:
                plain = super().forward
                note(lambda: plain(*inputs))
                return plain(*inputs)

        return Recording

    def _expert_layer(self) -> type[nn.Module]:
        recorder = self

        class Recording(TorchOps.ExpertLinear):
            def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
                weights = self.weight.to(x.dtype).chunk(len(lengths))
                for span, weight in zip(x.split(list(lengths), dim=1), weights, strict=True):
                    # The matmuls alone: putting the spans together again is not part of the floor.
                    recorder.note(lambda s=span, w=weight: F.linear(s, w))
                return super().forward(x, lengths)

        return Recording

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        self.note(lambda: TorchOps.attention(q, k, v))
        return TorchOps.attention(q, k, v)

    def replay(self) -> None:
        for call in self.calls:
            call()


@dataclass(frozen=True)
class Timing:
    """Seconds of a stage and of its floor: medians of runs in turn; ``ratio`` is the median of the pairs' ratios."""

    seconds: float
    floor: float
    ratio: float
    peak_bytes: int | None


def synchronised(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def timed(run: Callable[[], object], device: torch.device) -> float:
    start = synchronised(device)
    run()
    return synchronised(device) - start


def measure(run: Callable[[], object], recorder: Recorder, device: torch.device, repeats: int) -> Timing:
    """Times ``run``, whose layers are the recorder's, against their floor."""
    recorder.recording = True
    run()
    recorder.recording = False
    return measure_pair(run, recorder.replay, device, repeats)


def measure_pair(
    run: Callable[[], object], floor: Callable[[], object], device: torch.device, repeats: int, share: float = 1.0
) -> Timing:
    """Times ``run`` and ``floor`` in turn, ``repeats`` times after one of each; ``share`` of the floor is compared."""
    run(), floor()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pairs = [(timed(run, device), share * timed(floor, device)) for _ in range(repeats)]
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    full, least = zip(*pairs, strict=True)
    return Timing(median(full), median(least), median(a / b for a, b in pairs), peak)
