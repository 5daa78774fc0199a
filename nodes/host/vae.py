"""The two autoencoders as ComfyUI VAE objects: core decode and encode nodes work on them."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor, nn

from ...happyhorse_core import geometry
from ...happyhorse_core.audio_vae.decode import CHUNK, decode_soundtrack, receptive_field
from ...happyhorse_core.audio_vae.encode import WINDOW_SECONDS, encode_soundtrack
from ...happyhorse_core.audio_vae.load import inspect_oobleck
from ...happyhorse_core.audio_vae.model import Oobleck
from ...happyhorse_core.audio_vae.resample import resample_fft
from ...happyhorse_core.errors import InputError
from ...happyhorse_core.memory import FREE_PART
from ...happyhorse_core.video_vae.image_encoder import WanImageEncoder
from ...happyhorse_core.video_vae.load import inspect_image_encoder, inspect_turbo_decoder
from ...happyhorse_core.video_vae.tiling import COPIES, OVERLAP, decode_tiles, fitting_tile, window_bytes
from ...happyhorse_core.video_vae.turbo_decoder import TurboDecoder
from ...happyhorse_core.weights.component import ComponentFile
from ...happyhorse_core.weights.quantised import dequantised
from .fill import HostProgress, check_tensors, fill
from .load import make_patcher
from .ops import host_operations
from .weights import open_weights, source_paths

log = logging.getLogger("happyhorse")

VIDEO_DTYPES = (torch.bfloat16, torch.float32)
AUDIO_DTYPES = (torch.float32,)
OUTPUT_SAMPLES_PER_LATENT = geometry.OUTPUT_SAMPLE_RATE // geometry.FRAME_RATE


class VideoAutoencoder(nn.Module):
    """TurboVAED's decoder and one frame of Wan2.2's encoder. Latents are raw, as the host's Wan2.2 VAE has them."""

    comfy_has_chunked_io = True

    def __init__(self, decoder: TurboDecoder, encoder: WanImageEncoder | None) -> None:
        super().__init__()
        self.turbo = decoder
        self.still = encoder

    def decode_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[B, 48, T, H, W] -> [B, 3, 4(T-1) + 1, 16H, 16W]."""
        stride = geometry.SPATIAL_STRIDE
        return shape[0], 3, geometry.frames_of_latent(shape[2]), shape[3] * stride, shape[4] * stride

    def decode(self, latent: Tensor, output_buffer: Tensor | None = None) -> Tensor | None:
        """Raw [B, 48, T, H, W] -> about [-1, 1], window by window into ``output_buffer`` where the host gives one."""
        chunks = self.turbo.decode_windows(latent, progress=HostProgress())
        if output_buffer is None:
            return torch.cat(list(chunks), dim=2)
        start = 0
        for chunk in chunks:
            output_buffer[:, :, start : start + chunk.shape[2]].copy_(chunk)
            start += chunk.shape[2]
        return None

    def decode_tiled(
        self,
        latent: Tensor,
        tile_x: int = 2 * OVERLAP,
        tile_y: int = 2 * OVERLAP,
        overlap: int = OVERLAP,
        tile_t: int | None = None,
        overlap_t: int | None = None,
    ) -> Tensor:
        """``decode`` tile by tile, in latent pixels. The host calls it for its own nodes and where memory ran out.

        Those know nothing of this decoder: smaller overlaps than it needs are widened, and tiles with them, so that no
        seam shows. In time it has windows of its own, whatever ``tile_t`` and ``overlap_t`` ask for.
        """
        overlap = max(overlap, OVERLAP)
        tile = (max(tile_y, 2 * overlap), max(tile_x, 2 * overlap))
        out = latent.new_empty(self.decode_output_shape(latent.shape), device=mm.intermediate_device())
        progress = HostProgress()
        for item, pixels in zip(latent.split(1), out.split(1), strict=True):
            start = 0
            for chunk in decode_tiles(self.turbo, item, tile, overlap, progress):
                pixels[:, :, start : start + chunk.shape[2]].copy_(chunk)
                start += chunk.shape[2]
        return out

    def encode_tiled(self, pixels: Tensor, **tiles: int) -> Tensor:
        """``encode``: one picture is small, and the encoder looks at it as a whole."""
        return self.encode(pixels, pixels.device)

    def check_encoder(self, field: str) -> None:
        """Raises InputError if it was loaded to decode only. ``field`` is the input that it came from."""
        if self.still is None:
            raise InputError(
                f"{field}: this VAE can only decode. Choose Wan2.2_VAE.pth as the encoder in Load HappyHorse Video VAE."
            )

    def encode(self, pixels: Tensor, device: torch.device | None = None) -> Tensor:
        """[B, 3, 1, H, W] in [-1, 1] -> raw [B, 48, 1, H/16, W/16]."""
        self.check_encoder("vae")
        if pixels.shape[2] != 1:
            raise InputError(f"pixels: found {pixels.shape[2]} frames, expected one: only first frames are encoded.")
        return self.still(pixels.to(device))


class AudioAutoencoder(nn.Module):
    """Oobleck at the model's clock. Takes sound at 51,200 Hz, gives it at 44,100 Hz."""

    output_sample_rate = geometry.OUTPUT_SAMPLE_RATE  # for nodes that ask the network

    def __init__(self, oobleck: Oobleck) -> None:
        super().__init__()
        self.oobleck = oobleck

    def decode(self, latent: Tensor) -> Tensor:
        """[B, 64, A] -> [B, 2, 1764 A] at 44,100 Hz."""
        return resample_fft(decode_soundtrack(self.oobleck, latent, HostProgress()))

    def encode(self, waveform: Tensor) -> Tensor:
        """[B, 2, N] at 51,200 Hz -> [B, 64, ceil(N / 2048)]."""
        return encode_soundtrack(self.oobleck, waveform, HostProgress())


class HappyHorseVAE(comfy.sd.VAE):
    """A host VAE around a module of ours. Its loader sets the sizes and rates that the host would have detected."""

    def __init__(
        self,
        build: Callable[[torch.dtype], nn.Module],
        paths: list[str],
        working_dtypes: tuple[torch.dtype, ...],
        disable_dynamic: bool,
    ) -> None:
        with _without_detection_warning():
            super().__init__(sd={})
        self.working_dtypes = list(working_dtypes)
        self.device = mm.vae_device()
        self.output_device = mm.intermediate_device()
        self.vae_dtype = mm.vae_dtype(self.device, self.working_dtypes)
        self.first_stage_model = build(self.vae_dtype).eval().requires_grad_(False)
        mm.archive_model_dtypes(self.first_stage_model)
        self.patcher = make_patcher(
            self.first_stage_model, self.device, mm.vae_offload_device(), paths, disable_dynamic
        )
        self.model_size()


def load_video_vae(decoder_path: str, encoder_path: str | None, disable_dynamic: bool = False) -> HappyHorseVAE:
    """TurboVAED, and for images the encoder of Wan2.2's VAE."""
    decoder = inspect_turbo_decoder(decoder_path, open_weights)
    encoder = None if encoder_path is None else inspect_image_encoder(encoder_path, open_weights)

    def build(dtype: torch.dtype) -> VideoAutoencoder:
        still = None if encoder is None else _on_host(encoder, WanImageEncoder, dtype)
        return VideoAutoencoder(_on_host(decoder, TurboDecoder, dtype), still)

    paths = [path for file in (decoder, encoder) if file is not None for path in source_paths(file.source)]
    vae = HappyHorseVAE(build, paths, VIDEO_DTYPES, disable_dynamic)
    stride = geometry.SPATIAL_STRIDE
    vae.latent_channels, vae.latent_dim, vae.output_channels = geometry.VIDEO_CHANNELS, 3, 3
    vae.upscale_ratio = (geometry.frames_of_latent, stride, stride)
    vae.upscale_index_formula = (geometry.TEMPORAL_STRIDE, stride, stride)
    vae.downscale_ratio = (geometry.latent_frames, stride, stride)
    vae.downscale_index_formula = (geometry.TEMPORAL_STRIDE, stride, stride)
    vae.memory_used_decode = _video_decode_memory(vae.first_stage_model.turbo)
    # So that the host asks ``decode_tiled`` for tiles. Its own ones would also cut through the windows in time.
    vae.handles_tiling = True
    vae.memory_used_encode = lambda shape, dtype: (
        math.prod(shape[3:]) // 4 * 160 * COPIES * mm.dtype_size(dtype) * shape[0]
    )
    vae.patcher.cached_patcher_init = (load_video_vae_patcher, (decoder_path, encoder_path))
    log.info("HappyHorse: loaded the video VAE %s (encoder: %s), %s.", decoder_path, encoder_path, vae.vae_dtype)
    return vae


def load_video_vae_patcher(
    decoder_path: str, encoder_path: str | None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher alone: what the host calls to load the same weights once more."""
    return load_video_vae(decoder_path, encoder_path, disable_dynamic).patcher


def load_audio_vae(path: str, disable_dynamic: bool = False) -> HappyHorseVAE:
    """Stable Audio Open's autoencoder, from its full file or from one with the autoencoder alone."""
    file = inspect_oobleck(path, open_weights)

    def build(dtype: torch.dtype) -> AudioAutoencoder:
        return AudioAutoencoder(_on_host(file, Oobleck, dtype))

    vae = HappyHorseVAE(build, source_paths(file.source), AUDIO_DTYPES, disable_dynamic)
    vae.latent_channels, vae.latent_dim, vae.output_channels = geometry.AUDIO_CHANNELS, 1, 2
    vae.upscale_ratio, vae.downscale_ratio = OUTPUT_SAMPLES_PER_LATENT, geometry.SAMPLES_PER_AUDIO_LATENT
    vae.audio_sample_rate, vae.audio_sample_rate_output = geometry.MODEL_SAMPLE_RATE, geometry.OUTPUT_SAMPLE_RATE
    # The end is filled up with silence to a whole latent, never cropped; one channel becomes two.
    vae.crop_input, vae.pad_channel_value = False, "replicate"
    vae.process_input = vae.process_output = lambda waveform: waveform
    samples, window = geometry.SAMPLES_PER_AUDIO_LATENT, WINDOW_SECONDS * geometry.MODEL_SAMPLE_RATE
    width = vae.first_stage_model.oobleck.config.encoder_widths[0]
    per_sample = width * COPIES * 2
    chunk = CHUNK + 2 * receptive_field(vae.first_stage_model.oobleck.config)
    vae.memory_used_decode = lambda shape, dtype: (
        min(shape[-1], chunk) * samples * per_sample * mm.dtype_size(dtype) * shape[0]
    )
    vae.memory_used_encode = lambda shape, dtype: min(shape[-1], window) * per_sample * mm.dtype_size(dtype) * shape[0]
    vae.patcher.cached_patcher_init = (load_audio_vae_patcher, (path,))
    log.info("HappyHorse: loaded the audio VAE %s, %s.", path, vae.vae_dtype)
    return vae


def load_audio_vae_patcher(path: str, disable_dynamic: bool = False) -> comfy.model_patcher.ModelPatcher:
    """The patcher alone: what the host calls to load the same weights once more."""
    return load_audio_vae(path, disable_dynamic).patcher


def _on_host(file: ComponentFile[Any], kind: type[nn.Module], dtype: torch.dtype) -> nn.Module:
    """The network with the host's layers, which it can offload and patch, filled from its file."""
    module = kind(file.config, operations=host_operations(comfy.ops.manual_cast), dtype=dtype)
    targets = module.state_dict()
    with file.source as source:
        source = dequantised(source, module)
        check_tensors(source, module, False, file.ignore)
        wanted = source.renamed(lambda name: name if name in targets else None)
        fill(module, wanted, lambda name, tensor: targets[name].dtype, assign=True)
    return module


def _video_decode_memory(decoder: TurboDecoder) -> Callable[[tuple[int, ...], torch.dtype], int]:
    """Bytes for one window, the largest thing that is ever decoded at once."""

    def memory(shape: tuple[int, ...], dtype: torch.dtype) -> int:
        return shape[0] * window_bytes(decoder.config, shape[3], shape[4], shape[2], mm.dtype_size(dtype))

    return memory


def decode_frames(vae: comfy.sd.VAE, latent: Tensor, tile: int, overlap: int = OVERLAP) -> Tensor:
    """Raw [B, 48, T, H, W] -> frames [B, F, 16H, 16W, 3] in [0, 1]. Sizes in latent pixels.

    A ``tile`` of 0 is chosen by free memory if the VAE is ours; of another it leaves the choice to the host.
    """
    height, width = latent.shape[3:]
    sides = (max(tile, 2 * overlap),) * 2
    if tile == 0:
        ours = isinstance(vae.first_stage_model, VideoAutoencoder)
        sides = _fitting_tile(vae, latent, overlap) if ours else (height, width)
    if sides[0] >= height and sides[1] >= width:
        return vae.decode(latent)
    return vae.decode_tiled(latent, tile_x=sides[1], tile_y=sides[0], overlap=overlap)


def _fitting_tile(vae: comfy.sd.VAE, latent: Tensor, overlap: int) -> tuple[int, int]:
    """The largest tile for the memory that is free once the host has moved other models out of the way."""

    def needed(height: int, width: int) -> int:
        return int(vae.memory_used_decode((1, *latent.shape[1:3], height, width), vae.vae_dtype))

    mm.load_models_gpu([vae.patcher], memory_required=needed(*latent.shape[3:]))
    free = int(vae.patcher.get_free_memory(vae.device) * FREE_PART)
    tile = fitting_tile(*latent.shape[3:], free, needed, overlap)
    if tile != tuple(latent.shape[3:]):
        log.info(
            "HappyHorse: decoding in tiles of up to %d x %d pixels, as %.1f GB are free.",
            tile[1] * geometry.SPATIAL_STRIDE,
            tile[0] * geometry.SPATIAL_STRIDE,
            free / 1e9,
        )
    return tile


@contextmanager
def _without_detection_warning() -> Iterator[None]:
    """The host says that it found no VAE in an empty state dict. That is how it is asked for defaults here."""

    def keep(record: logging.LogRecord) -> bool:
        return "No VAE weights detected" not in record.getMessage()

    root = logging.getLogger()
    root.addFilter(keep)
    try:
        yield
    finally:
        root.removeFilter(keep)
