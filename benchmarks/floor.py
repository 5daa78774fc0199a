"""The floor of a stage: its matmuls, convolutions and attention alone, on the very numbers of a real run.

All layers of the core come from an injected ``operations`` object. ``Recorder.operations`` stands in for it and notes
every call while the stage runs once. ``replay`` computes the same again and nothing else, from tensors as the kernels
like them best: products of two contiguous axes, attention on contiguous heads, weights in the dtype of the product. So
what a call of the core loses by the strides of its inputs is above the floor, not in it.
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

    def operations(self) -> type:
        """An ``operations`` class whose layers and attention tell this recorder what they compute."""
        members: dict[str, Any] = {name: self._layer(getattr(TorchOps, name)) for name in LAYERS}
        members["FloatLinear"] = members["Linear"]
        members["ExpertLinear"] = self._expert_layer()
        members["attention"] = staticmethod(self._attention)
        return type("RecordingOps", (TorchOps,), members)

    def _layer(self, kind: type[nn.Module]) -> type[nn.Module]:
        recorder = self

        class Recording(kind):
            def forward(self, *inputs: Tensor) -> Tensor:
                if recorder.recording and issubclass(kind, nn.Linear):
                    recorder.calls.append(product(inputs[0], self.weight, self.bias))
                elif recorder.recording:
                    plain = super().forward
                    recorder.calls.append(lambda: plain(*inputs))
                return super().forward(*inputs)

        return Recording

    def _expert_layer(self) -> type[nn.Module]:
        recorder = self

        class Recording(TorchOps.ExpertLinear):
            def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
                if recorder.recording:
                    # The matmuls alone: putting the spans together again is not part of the floor.
                    parts = zip(x.split(list(lengths), dim=1), self.weight.chunk(len(lengths)), strict=True)
                    recorder.calls += [product(span, weight, None) for span, weight in parts]
                return super().forward(x, lengths)

        return Recording

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, options: dict[str, Any] | None = None) -> Tensor:
        if self.recording:
            heads = [x.contiguous() for x in (q, k, v)]
            grouped = q.shape[1] != k.shape[1]
            self.calls.append(lambda: F.scaled_dot_product_attention(*heads, enable_gqa=grouped))
        return TorchOps.attention(q, k, v)

    def replay(self) -> None:
        for call in self.calls:
            call()


def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Callable[[], Tensor]:
    """A call that multiplies [..., in] by a weight [out, in], both made two contiguous axes of one dtype beforehand."""
    flat, matrix = x.flatten(0, -2).contiguous(), weight.to(x.dtype).contiguous()
    added = None if bias is None else bias.to(x.dtype)
    return lambda: F.linear(flat, matrix, added)


@dataclass(frozen=True)
class Timing:
    """Seconds of a stage and of its floor: medians of runs in turn; ``ratio`` is the median of the pairs' ratios.

    ``lowest`` and ``highest`` are the ends of those. ``cpu_seconds`` is the time that the processor's cores worked on a
    run of the stage, all together: more than ``seconds`` says how many worked, less that other programs had them.
    """

    seconds: float
    cpu_seconds: float
    floor: float
    ratio: float
    lowest: float
    highest: float
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
    full, cores, least = [], [], []
    for _ in range(repeats):
        before = time.process_time()
        full.append(timed(run, device))
        cores.append(time.process_time() - before)
        least.append(share * timed(floor, device))
    peak = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None
    ratios = [a / b for a, b in zip(full, least, strict=True)]
    return Timing(median(full), median(cores), median(least), median(ratios), min(ratios), max(ratios), peak)
