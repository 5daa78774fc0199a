"""What is true of a scene at each moment, which the transformer's hidden states learn to tell while it is trained.

Where picture and sound have to meet to the moment, little of the flow's loss depends on it, and for thousands of steps
one stream takes nothing from the other. Heads that read place, size, mouth and touches off the tokens of both streams
make that a task of its own, as REPA (Yu et al., arXiv 2410.06940) does with the features of another network. They are
of the training alone; the transformer is the same with or without them.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from happyhorse_core.geometry import FRAME_RATE, TEMPORAL_STRIDE, frames_of_latent

from .model import HIDDEN, LAYERS
from .world.scene import RADIUS, Scene, track

READ_AFTER = LAYERS // 2
"""The layer whose results are read."""
CENTRES = torch.tensor([0.5, 0.55, 0.0, 0.0, 0.0])
SPREADS = torch.tensor([0.15, 0.15, 0.2, 0.35, 0.3])
"""Of x, y, swell, opening of the mouth and touch, so that all count about the same."""
WEIGHT = 0.5


def truth_of(scene: Scene, frames: int = 51) -> Tensor:
    """[frames, 5] float32: x, y, swell (radius over the resting one, less 1), opening and touch of each picture.

    The touch is 1 in the picture in whose 40 ms a shape meets the floor.
    """
    found = track(scene, frames)
    touch = torch.zeros(frames)
    touch[[int(time * FRAME_RATE) for time in found.touches]] = 1
    radius = found.radius[0] if scene.kind == "face" else RADIUS[scene.size]
    columns = [torch.from_numpy(part) for part in (found.x, found.y, found.radius / radius - 1, found.opening)]
    return (torch.stack([*columns, touch], 1).float() - CENTRES) / SPREADS


class TruthHeads(nn.Module):
    """Reads the truth off the hidden states: that of its four pictures off each video token, and of its own off each
    sound token."""

    def __init__(self) -> None:
        super().__init__()
        self.video = nn.Linear(HIDDEN, TEMPORAL_STRIDE * len(CENTRES))
        self.audio = nn.Linear(HIDDEN, len(CENTRES))
        self.hidden: Tensor | None = None

    def watch(self, index: int, hidden: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        """The hook that keeps the hidden states to be read."""
        out = run(hidden)
        if index == READ_AFTER:
            self.hidden = out
        return out

    def loss(self, video: Tensor, truth: Tensor) -> Tensor:
        """Mean square error for latents like ``video`` [B, 48, T, H, W], with the truth [B, A, 5]."""
        frames, tokens = video.shape[2], video.shape[2] * video.shape[3] * video.shape[4] // 4
        seen, heard, _ = self.hidden.split(
            [tokens, truth.shape[1], self.hidden.shape[1] - tokens - truth.shape[1]], dim=1
        )
        told = self.video(_even(seen)).unflatten(1, (frames, -1))
        wanted = groups_of(truth, frames).flatten(2)[:, :, None].expand_as(told)
        return functional.mse_loss(told, wanted) + functional.mse_loss(self.audio(_even(heard)), truth)


def groups_of(truth: Tensor, frames: int) -> Tensor:
    """[B, A, 5] -> [B, frames, 4, 5]: the pictures of each latent; the first has one alone, taken four times."""
    first = truth[:, :1, None].expand(-1, -1, TEMPORAL_STRIDE, -1)
    others = truth[:, 1 : frames_of_latent(frames)].unflatten(1, (frames - 1, TEMPORAL_STRIDE))
    return torch.cat([first, others], 1)


def _even(hidden: Tensor) -> Tensor:
    return functional.rms_norm(hidden.float(), hidden.shape[-1:])
