"""The transformer: three modalities in, one stream of tokens through all layers, two velocities out.

The model has no timestep input; the noise level shows in the latents alone. Outputs of text tokens are dropped.
Source of the maths: the released daVinci-MagiHuman model (arXiv 2603.21986).
"""

from collections.abc import Callable, Collection
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ..errors import InputError
from ..ops import Device, DType, LayerArguments, Operations, Options
from .config import AUDIO, VIDEO, TransformerConfig
from .layers import ModalityRMSNorm, TransformerLayer
from .layout import PackedLayout, build_layout, patchify, unpatchify
from .rope import frequency_bands

LayerHook = Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]
"""``hook(index, hidden, run)`` stands in for layer ``index``; ``run(hidden)`` is what the layer itself would do."""


class RotaryBands(nn.Module):
    """Holds the frequencies, which the checkpoint stores as ``adapter.rope.bands``."""

    def __init__(self, count: int, *, device: Device = None) -> None:
        super().__init__()
        self.bands: Tensor
        self.register_buffer("bands", frequency_bands(count).to(device=device))


class Adapter(nn.Module):
    """Brings each modality to the hidden size, in float32."""

    def __init__(self, config: TransformerConfig, *, operations: Operations, device: Device) -> None:
        super().__init__()
        kwargs = LayerArguments(dtype=torch.float32, device=device)
        self.video_embedder = operations.FloatLinear(config.video_in_channels, config.hidden_size, **kwargs)
        self.text_embedder = operations.FloatLinear(config.text_in_channels, config.hidden_size, **kwargs)
        self.audio_embedder = operations.FloatLinear(config.audio_in_channels, config.hidden_size, **kwargs)
        self.rope = RotaryBands(config.rope_bands, device=device)

    def forward(self, video: Tensor, audio: Tensor, text: Tensor) -> Tensor:
        """Video [B, V, Cv], audio [B, A, Ca] and text [B, L, Ct] tokens -> [B, V + A + L, hidden] float32."""
        return torch.cat(
            [
                self.video_embedder(video.float()),
                self.audio_embedder(audio.float()),
                self.text_embedder(text.float()),
            ],
            dim=1,
        )


class Blocks(nn.Module):
    """The stack of layers; the checkpoint calls it ``block``."""

    def __init__(self, config: TransformerConfig, *, operations: Operations, dtype: DType, device: Device) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            TransformerLayer(config, n, operations=operations, dtype=dtype, device=device)
            for n in range(config.num_layers)
        )


class HappyHorseTransformer(nn.Module):
    """The whole transformer of one checkpoint.

    ``dtype`` is what the layers' linear weights are kept in; embedders, norms, rotary bands and final layers are
    always float32.
    """

    def __init__(
        self, config: TransformerConfig, *, operations: Operations, dtype: DType = None, device: Device = None
    ) -> None:
        super().__init__()
        self.config = config
        self.adapter = Adapter(config, operations=operations, device=device)
        self.block = Blocks(config, operations=operations, dtype=dtype, device=device)
        self.final_norm_video = ModalityRMSNorm(config.hidden_size, device=device)
        self.final_norm_audio = ModalityRMSNorm(config.hidden_size, device=device)
        final = LayerArguments(dtype=torch.float32, device=device)
        self.final_linear_video = operations.FloatLinear(
            config.hidden_size, config.video_in_channels, bias=False, **final
        )
        self.final_linear_audio = operations.FloatLinear(
            config.hidden_size, config.audio_in_channels, bias=False, **final
        )

    def forward(
        self,
        video: Tensor,
        audio: Tensor,
        text: Tensor,
        *,
        compute_dtype: torch.dtype = torch.bfloat16,
        options: Options | None = None,
        layer_hook: LayerHook | None = None,
        local_layers: Collection[int] | None = None,
        group: "dist.ProcessGroup | None" = None,
    ) -> tuple[Tensor, Tensor]:
        """Velocities (noise - clean) of one batch, float32.

        video [B, 48, T, H, W] with even H and W, audio [B, 64, A], text [B, L, C] -> the first two shapes again.
        Batch items are independent sequences of equal lengths. ``options`` go to every attention call as they are.
        ``local_layers`` are those with local attention in this call, where it is not the checkpoint's own choice.
        The processes of ``group`` share the work (see ``parallel``): each calls with the same inputs and gets the same
        results; between layers, and so in a hook, it has the hidden states of its own tokens alone.
        Raises InputError for shapes that don't fit the checkpoint or each other, or heads that can't be shared out.
        """
        self._check(video, audio, text)
        options = {} if options is None else options
        layout = build_layout(self.config, video, audio, text, self.adapter.rope.bands.to(video.device), group)
        tokens = patchify(video), audio.transpose(1, 2), text
        x = self.adapter(*(tokens if layout.share is None else layout.share.own(tokens)))
        for index, layer in enumerate(self.block.layers):
            radius = self.config.local_radius(index, local_layers)
            run = partial(layer, layout=layout, radius=radius, compute_dtype=compute_dtype, options=options)
            x = run(x) if layer_hook is None else layer_hook(index, x, run)
        return self._read_out(x, layout)

    def _read_out(self, x: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor]:
        video, audio, _ = x.split(layout.lengths, dim=1)
        video = self.final_linear_video(self.final_norm_video(video, (video.shape[1],)))
        audio = self.final_linear_audio(self.final_norm_audio(audio, (audio.shape[1],)))
        if layout.share is not None:
            video, audio = layout.share.gather(video, VIDEO), layout.share.gather(audio, AUDIO)
        return unpatchify(video, layout), audio.transpose(1, 2)

    def _check(self, video: Tensor, audio: Tensor, text: Tensor) -> None:
        config = self.config
        expected = {
            "video": (video, 5, 1, config.video_channels),
            "audio": (audio, 3, 1, config.audio_in_channels),
            "text": (text, 3, 2, config.text_in_channels),
        }
        for name, (tensor, rank, axis, channels) in expected.items():
            if tensor.ndim != rank or tensor.shape[axis] != channels or tensor.numel() == 0:
                raise InputError(
                    f"{name}: found a tensor of shape {list(tensor.shape)}, expected {rank} axes "
                    f"with {channels} channels on axis {axis} and none empty."
                )
            if tensor.shape[0] != video.shape[0]:
                raise InputError(
                    f"{name}: found a batch of {tensor.shape[0]}, expected {video.shape[0]} as the video has."
                )
        if video.shape[3] % 2 or video.shape[4] % 2:
            raise InputError(
                f"video: found a latent of {video.shape[4]} x {video.shape[3]}, expected even sides: "
                "width and height in pixels are multiples of 32."
            )
