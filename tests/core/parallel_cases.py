"""What the processes of test_parallel.py compute, in a file of its own so that they can import it without the tests."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file
from torch import Tensor

from happyhorse_core.dit.detect import detect_transformer
from happyhorse_core.dit.model import HappyHorseTransformer
from happyhorse_core.dit.roles import BASE, SR_540P, SR_1080P, Role
from happyhorse_core.ops import TorchOps

WEIGHTS = Path(__file__).parents[1] / "golden" / "transformer.weights.safetensors"
PATIENCE = timedelta(seconds=60)
RANKS = 4


@dataclass(frozen=True)
class Case:
    """One call: a role and changes to what it says, the clip's size in latents and tokens, the number of ranks."""

    role: Role = BASE
    changes: dict[str, Any] = field(default_factory=dict)
    batch: int = 1
    frames: int = 3
    audio: int = 9
    text: int = 7
    ranks: int = 2
    dtype: torch.dtype = torch.float32

    def inputs(self) -> tuple[Tensor, Tensor, Tensor]:
        """Video of 2 x 3 tokens a frame, audio and text."""
        generator = torch.Generator().manual_seed(3)
        shapes = (self.batch, 48, self.frames, 4, 6), (self.batch, 64, self.audio), (self.batch, self.text, 24)
        video, audio, text = (torch.randn(shape, generator=generator) for shape in shapes)
        return video, audio, text

    def model(self) -> HappyHorseTransformer:
        """The golden weights, and random ones where other sizes are asked for."""
        weights = load_file(WEIGHTS)
        config = detect_transformer({k: tuple(t.shape) for k, t in weights.items()}, role=self.role, where="golden")
        model = HappyHorseTransformer(replace(config, **self.changes), operations=TorchOps, dtype=self.dtype)
        generator = torch.Generator().manual_seed(4)
        state = {k: 0.2 * torch.randn(t.shape, generator=generator) for k, t in model.state_dict().items()}
        model.load_state_dict(state | {k: t for k, t in weights.items() if k in state and t.shape == state[k].shape})
        return model.requires_grad_(False)

    def outputs(self, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
        return self.model()(*self.inputs(), compute_dtype=self.dtype, group=group)


CASES = {
    "positions of the base model": Case(),
    "positions of super-resolution": Case(SR_540P, audio=10),
    "a batch of 2": Case(batch=2),
    "a batch of 3, local attention": Case(SR_1080P, {"frame_receptive_field": 1}, batch=3, frames=5),
    "local attention": Case(SR_1080P, {"frame_receptive_field": 2}, frames=7, audio=25),
    "local attention where every frame sees all": Case(SR_1080P),
    "a length that 2 divides": Case(text=9),
    "a rank with text alone": Case(text=91),
    "a rank with video alone": Case(frames=11, audio=5, text=2),
    "norms after the layers": Case(SR_540P, {"post_norm_layers": (0, 3)}),
    "4 ranks": Case(SR_1080P, {"num_heads": 8, "num_kv_heads": 4, "frame_receptive_field": 1}, batch=2, ranks=4),
    "4 ranks, a token each but for one": Case(
        changes={"num_heads": 12, "num_kv_heads": 4}, frames=1, audio=1, text=2, ranks=4
    ),
}
EVEN = Case(SR_1080P, {"frame_receptive_field": 1}, batch=2, text=9, dtype=torch.bfloat16)
"""A sequence of 36 tokens, for two ranks whose messages are counted."""


def compute(rank: int, folder: Path) -> None:
    """Runs all cases as one of ``RANKS`` processes and saves what came out as ``folder/<rank>.safetensors``."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    store = dist.FileStore(str(folder / "meeting"), RANKS)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS, timeout=PATIENCE)
    groups = {2: dist.new_group([0, 1]), RANKS: dist.group.WORLD}
    saved = {}
    for name, case in CASES.items():
        if rank < case.ranks:
            saved[f"{name} video"], saved[f"{name} audio"] = (x.contiguous() for x in case.outputs(groups[case.ranks]))
    if rank < 2:
        saved["bytes sent"] = torch.tensor(bytes_sent(rank, lambda: EVEN.outputs(groups[2])))
    save_file(saved, folder / f"{rank}.safetensors")
    dist.barrier()
    dist.destroy_process_group()


def bytes_sent(rank: int, call: Callable[[], object]) -> int:
    """What a rank sends to others around attention in one call."""
    plain, sent = dist.all_to_all_single, []

    def counted(out: Tensor, x: Tensor, out_sizes: list[int], sizes: list[int], **kwargs: Any) -> None:
        others = [chunk.nbytes for to, chunk in enumerate(x.split(sizes)) if to != rank]
        sent.append(sum(others))
        plain(out, x, out_sizes, sizes, **kwargs)

    dist.all_to_all_single = counted
    try:
        call()
    finally:
        dist.all_to_all_single = plain
    return sum(sent)


def end_slowly() -> None:
    """As a process that is killed on a busy machine: its files are closed a while before it is gone."""
    os.closerange(3, 256)
    time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGKILL)
