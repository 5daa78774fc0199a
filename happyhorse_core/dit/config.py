"""The shape and the role of a transformer checkpoint, as one frozen value."""

from collections.abc import Collection
from dataclasses import dataclass

VIDEO, AUDIO, TEXT = 0, 1, 2
MODALITIES = 3
"""Token order in the sequence, and the order in which per-modality weights are stacked."""

PATCH = 2
"""Side of a video patch in latent pixels; time is not patched."""

COORDS_BASE = "v2"
COORDS_SR = "v1"


@dataclass(frozen=True)
class TransformerConfig:
    """Everything that decides the forward pass of a checkpoint.

    The sizes come from the tensors. ``coords_style``, ``local_attn_layers`` and ``frame_receptive_field`` can't be
    read from tensors and come from the checkpoint's role.
    """

    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    video_in_channels: int
    audio_in_channels: int
    text_in_channels: int
    mm_layers: tuple[int, ...]
    gelu7_layers: tuple[int, ...]
    post_norm_layers: tuple[int, ...] = ()
    coords_style: str = COORDS_BASE
    local_attn_layers: tuple[int, ...] = ()
    frame_receptive_field: int = 11

    @property
    def rope_bands(self) -> int:
        """Frequencies per axis; three axes, sine and cosine, fill 6 of every 8 channels of a head."""
        return self.head_dim // 8

    @property
    def video_channels(self) -> int:
        """Channels of the video latent, before the 2 x 2 patch."""
        return self.video_in_channels // (PATCH * PATCH)

    @property
    def qkv_rows(self) -> tuple[int, int, int, int]:
        """Rows of ``linear_qkv``: queries, keys, values, one gate per query head."""
        kv = self.num_kv_heads * self.head_dim
        return self.num_heads * self.head_dim, kv, kv, self.num_heads

    def mlp_width(self, layer: int) -> int:
        """Columns of ``down_proj`` of a layer."""
        if layer in self.gelu7_layers:
            return 4 * self.hidden_size
        return int(self.hidden_size * 4 * 2 / 3) // 4 * 4

    def local_radius(self, layer: int, local_layers: Collection[int] | None = None) -> int | None:
        """How many frames to either side video tokens of a layer see; None for the whole clip.

        ``local_layers`` stands in for the checkpoint's own choice of local layers.
        """
        local = self.local_attn_layers if local_layers is None else local_layers
        return self.frame_receptive_field if layer in local else None


def released_local_layers(layers: int) -> tuple[int, ...]:
    """The local layers of the released 1080p model: of 40, all but 3, 7, ... 31.

    Every fourth layer sees the whole clip, but for the last eight.
    """
    return tuple(n for n in range(layers) if n % 4 != 3 or n >= layers - 8)
