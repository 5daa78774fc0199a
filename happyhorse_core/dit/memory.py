"""What memory the transformer takes while it computes, and the steps around it."""

from .layers import MLP_TOKENS

BLOCK_BYTES = 200 * 2**20
"""Float32 blocks between the matmuls, where a sequence has more than a block of them."""
BLOCK_COPIES = 64
"""Bytes per token and hidden channel of such a block and its copies."""


def activation_bytes(tokens: int, hidden: int, itemsize: int = 2) -> int:
    """Peak of what a forward pass holds beside its weights, for matmuls in a dtype of ``itemsize`` bytes.

    Per token and hidden channel, attention takes 6 + 6.7 * itemsize bytes (residual stream, queries, keys, values and
    results) and the MLP 8 + itemsize, and on the part of the sequence that it works on 9.5 * itemsize more. Counted on
    the released layers, within a fifth; what an attention kernel takes for itself is not in it.
    """
    part = tokens / -(-tokens // MLP_TOKENS)
    attention = tokens * (6 + 6.7 * itemsize)
    mlp = tokens * (8 + itemsize) + part * 9.5 * itemsize
    return int(hidden * max(attention, mlp)) + min(BLOCK_BYTES, int(part * hidden * BLOCK_COPIES))


def sampling_bytes(activations: int, latents: int, *, multistep: bool) -> int:
    """Peak of the steps beside the weights, for ``activations`` of one call and the bytes of a clip's ``latents``.

    A solver that looks back holds 6 copies of the latents while the model computes and 10 between two calls, the
    distilled model's 3 and 7. Counted on the loop; guidance holds one more.
    """
    held = 6 if multistep else 3
    return max(activations + held * latents, (held + 4) * latents)
