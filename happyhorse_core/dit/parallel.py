"""One token sequence over several processes: context parallelism over heads (DeepSpeed-Ulysses, arXiv 2309.14509).

Each of N ranks holds all weights and a run of neighbouring tokens: S / N of them, some ranks one more where N does not
divide S. Whatever looks at one token at a time (embedding, norms, projections, MLP, residual stream, final layers) runs
on the rank's own tokens, of whichever modalities they are. Attention looks at all tokens but at one head at a time, so
around it tokens are traded for heads: every rank gets all S tokens of Hq / N query heads and of the Hkv / N key-value
heads that these use, and gives back its heads' results. Local attention needs no change: it sees whole frames.

Volume. Per layer, with heads of D channels, e bytes a value and B clips, a rank sends (N - 1) / N of its queries, keys
and values before attention and of the results after it, and receives as much:

    B * S / N * (N - 1) / N * (2 * Hq + 2 * Hkv) * D * e bytes

In bfloat16 at the released sizes (40, 8, 128) these are 24,576 bytes for each of S / N tokens, times (N - 1) / N. For
65,600 tokens (5 s at 1920x1088) on 2 ranks: 403 MB a layer, 16 GB in 40 layers; on 8: 88 MB and 3.5 GB. The velocities
at the end add 192 float32 values a video token, once a call.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..errors import InputError
from .config import TransformerConfig


@dataclass(frozen=True)
class Share:
    """The tokens of a packed sequence that this process holds, and the trade with the others of ``group``.

    ``table[rank][modality]`` are the tokens of a modality that a rank holds; ranks follow each other in the sequence.
    """

    group: "dist.ProcessGroup"
    rank: int
    table: tuple[tuple[int, ...], ...]

    @property
    def lengths(self) -> tuple[int, ...]:
        """Own tokens of each modality."""
        return self.table[self.rank]

    @property
    def sizes(self) -> list[int]:
        """Tokens of each rank."""
        return [sum(row) for row in self.table]

    @property
    def tokens(self) -> slice:
        """Where the own tokens stand in the sequence."""
        start = sum(self.sizes[: self.rank])
        return slice(start, start + self.sizes[self.rank])

    def own(self, tokens: Sequence[Tensor]) -> list[Tensor]:
        """[B, length, C] of each modality -> the own tokens of each."""
        starts = [sum(row[modality] for row in self.table[: self.rank]) for modality in range(len(tokens))]
        return [x[:, a : a + n] for x, a, n in zip(tokens, starts, self.lengths, strict=True)]

    def to_heads(self, q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
        """Own tokens of all heads, [B, H, s, D] -> all tokens of the own heads, [B, H / N, S, D]. In one message."""
        parts = [x.unflatten(1, (len(self.table), -1)).permute(1, 3, 0, 2, 4) for x in (q, k, v)]
        # [N, s, B, heads, D] and then [S, B, heads, D]: with tokens in front, what arrives is in sequence order.
        sent = torch.cat(parts, dim=3).flatten(0, 1)
        received = self._trade(sent, [self.sizes[self.rank]] * len(self.table), self.sizes)
        return received.permute(1, 2, 0, 3).split([part.shape[3] for part in parts], dim=1)

    def to_tokens(self, out: Tensor) -> Tensor:
        """All tokens of the own heads, [B, S, H / N * D] -> own tokens of all heads in order, [B, s, H * D]."""
        size = self.sizes[self.rank]
        received = self._trade(out.transpose(0, 1).contiguous(), self.sizes, [size] * len(self.table))
        return received.unflatten(0, (len(self.table), size)).permute(2, 1, 0, 3).flatten(2)

    def gather(self, x: Tensor, modality: int) -> Tensor:
        """Own tokens of one modality [B, s, C] -> all tokens of it, on every rank."""
        sizes = [row[modality] for row in self.table]
        # Not every backend gathers pieces of unequal lengths.
        padded = F.pad(x, (0, 0, 0, max(sizes) - x.shape[1])).contiguous()
        parts = [torch.empty_like(padded) for _ in sizes]
        dist.all_gather(parts, padded, group=self.group)
        return torch.cat([part[:, :size] for part, size in zip(parts, sizes, strict=True)], dim=1)

    def _trade(self, sent: Tensor, sent_sizes: list[int], received_sizes: list[int]) -> Tensor:
        received = sent.new_empty(sum(received_sizes), *sent.shape[1:])
        dist.all_to_all_single(received, sent, received_sizes, sent_sizes, group=self.group)
        return received


def share_of(config: TransformerConfig, lengths: Sequence[int], group: "dist.ProcessGroup") -> Share:
    """This process's share of a sequence with so many tokens of each modality. Raises as ``check_ranks`` does."""
    ranks = dist.get_world_size(group)
    check_ranks(config, ranks)
    return Share(group, dist.get_rank(group), share_table(lengths, ranks))


def share_table(lengths: Sequence[int], ranks: int) -> tuple[tuple[int, ...], ...]:
    """Tokens of each modality for each rank: runs of equal length, the first ones a token longer if need be."""
    size, longer = divmod(sum(lengths), ranks)
    table, first = [], 0
    for rank in range(ranks):
        end = first + size + (rank < longer)
        row, start = [], 0
        for length in lengths:
            row.append(max(0, min(end, start + length) - max(first, start)))
            start += length
        table.append(tuple(row))
        first = end
    return tuple(table)


def check_ranks(config: TransformerConfig, ranks: int) -> None:
    """Raises InputError unless every rank gets equally many heads."""
    heads, kv_heads = config.num_heads, config.num_kv_heads
    if heads % ranks or kv_heads % ranks:
        fits = [n for n in range(1, kv_heads + 1) if heads % n == 0 and kv_heads % n == 0]
        raise InputError(
            f"devices: found {ranks}, expected {' or '.join(map(str, fits))}: each takes as many of the transformer's "
            f"{heads} query heads and {kv_heads} key-value heads as the others."
        )
