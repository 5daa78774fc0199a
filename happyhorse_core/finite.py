"""What was computed is numbers, or the stage, the file and its tensors are named."""

import math
from pathlib import Path

from torch import Tensor, nn

from .errors import CheckpointError
from .weights.files import some


def check_finite(stage: str, path: Path, *computed: Tensor, model: nn.Module | None = None) -> None:
    """Raises CheckpointError where ``stage`` computed NaN or infinity with the weights in ``path``.

    ``model`` holds those weights; its tensors that aren't finite are named. Takes one reading of each tensor, which is
    little beside computing it.
    """
    if all(is_finite(tensor) for tensor in computed):
        return
    found = f"{stage}: found values that are not finite (NaN or infinite) in what was computed with {path}"
    bad = [] if model is None else [name for name, tensor in model.state_dict().items() if not is_finite(tensor)]
    if bad:
        raise CheckpointError(f"{found}: it holds such values itself, in {some(bad)}. Download it again.")
    raise CheckpointError(
        f"{found}. Compute with --dtype float32; if that does not help, its weights are damaged: download it again."
    )


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor has neither NaN nor infinity. Takes no memory, except for float8."""
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    # NaN is the least and the greatest of values that it is among.
    lowest, highest = (tensor if tensor.itemsize > 1 else tensor.float()).aminmax()
    return math.isfinite(lowest) and math.isfinite(highest)
