"""In which precision a device multiplies fastest."""

import torch


def usual_dtype(device: torch.device) -> torch.dtype:
    """bfloat16, that of the released pipeline, or float32 on a processor for which torch has no matmuls in it.

    There torch falls back to plain loops, about ten times slower than its float32 (measured on an x86-64 processor
    with AVX2 alone).
    """
    if device.type == "cpu" and not _multiplies_bfloat16():
        return torch.float32
    return torch.bfloat16


def _multiplies_bfloat16() -> bool:
    """Whether torch's library for processors takes bfloat16 here: the question that torch asks before each matmul."""
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()
