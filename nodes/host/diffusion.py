"""The transformer as a ComfyUI model: its configuration, its sampling wrapper and its forward signature.

Latents reach the wrapper packed, [B, 1, N], with the shapes of the streams beside them; the transformer gets the
streams apart. Both streams stay float32 up to the transformer, which rounds where the released model does.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_prefetch
import comfy.patcher_extension
import comfy.supported_models_base
import torch
from comfy.nested_tensor import NestedTensor
from torch import Tensor

from ...happyhorse_core import geometry
from ...happyhorse_core.dit.config import TransformerConfig
from ...happyhorse_core.dit.memory import activation_bytes
from ...happyhorse_core.dit.model import HappyHorseTransformer
from ...happyhorse_core.dit.roles import Role
from ...happyhorse_core.errors import InputError
from ...happyhorse_core.text.tokenizer import MAX_TOKENS
from .latent_format import AUDIO_LATENT, VIDEO_LATENT, HappyHorseLatent, is_pair
from .ops import host_operations, let_layers_choose
from .unread import Unread

PATCH_VALUES = geometry.VIDEO_CHANNELS * 4
"""Latent values that make one video token: 48 channels of a 2 x 2 patch."""
MISSING = "found a HappyHorse model, which has no {}, expected one that this node was made for. Take the node away."
"""What is said of an attribute or a key of other models."""
LOCAL_LAYERS = "happyhorse_local_layers"
"""Key of ``transformer_options``: the layers with local attention, where it is not the checkpoint's own choice."""


class HostTransformer(HappyHorseTransformer):
    """The core's transformer under the forward signature that ComfyUI calls. It adds no parameters."""

    def __init__(
        self,
        *,
        config: TransformerConfig,
        image_model: str,
        operations: type,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(config, operations=host_operations(operations), dtype=dtype, device=device)
        self.dtype = dtype
        self.in_channels = config.video_channels  # nodes that guide ask for it
        let_layers_choose(self.block.layers)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            raise AttributeError(f"model: {MISSING.format(name)}") from None

    def forward(
        self,
        x: list[Tensor],
        timestep: Tensor | None = None,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        compute_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        """Streams [video [B, 48, T, H, W], audio [B, 64, A]] -> their velocities. The model takes no timestep.

        Raises ValueError for anything but two streams.
        """
        if not isinstance(x, list) or len(x) != 2:
            raise ValueError(
                "model: found a node that gives the model pictures, expected one that gives it latents of picture and "
                "sound. It was made for another model, such as a detector."
            )
        options = transformer_options if transformer_options is not None else {}
        wrappers = comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options)
        if wrappers:
            # Step caches add in place into what they are given, and float32 streams are views of the sampler's state.
            x = [stream.clone() for stream in x]
        return comfy.patcher_extension.WrapperExecutor.new_class_executor(self._forward, self, wrappers).execute(
            x, timestep, context, control, options, compute_dtype=compute_dtype, **kwargs
        )

    def _forward(
        self,
        x: list[Tensor],
        timestep: Tensor | None = None,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        compute_dtype: torch.dtype | None = None,
        **kwargs: Any,
    ) -> list[Tensor]:
        options = dict(transformer_options) if transformer_options is not None else {}
        video, audio = x
        layers = list(self.block.layers)
        queue = comfy.model_prefetch.make_prefetch_queue(list(layers), video.device, options)
        hook = _layer_hook(layers, queue, video.device, options)
        compute = compute_dtype if compute_dtype is not None else self.dtype
        out = super().forward(
            video,
            audio,
            context,
            compute_dtype=compute,
            options=options,
            layer_hook=hook,
            local_layers=options.get(LOCAL_LAYERS),
        )
        if queue is not None:
            comfy.model_prefetch.prefetch_queue_pop(queue, video.device, None)
        return list(out)


def _layer_hook(
    layers: Sequence[torch.nn.Module], queue: list | None, device: torch.device, options: dict[str, Any]
) -> Callable[[int, Tensor, Callable[[Tensor], Tensor]], Tensor]:
    """What runs around each layer: the host streams its weights in, and other nodes may replace it."""
    replacements = options.get("patches_replace", {}).get("dit", {})
    options["total_blocks"] = len(layers)
    options["block_type"] = "double"

    def hook(index: int, hidden: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        comfy.model_prefetch.prefetch_queue_pop(queue, device, layers[index])
        options["block_index"] = index
        replacement = replacements.get(("double_block", index), replacements.get(("single_block", index)))
        if replacement is None:
            return run(hidden)

        def original(args: dict[str, Any]) -> dict[str, Tensor]:
            return {"img": run(args["img"])}

        return replacement({"img": hidden, "transformer_options": options}, {"original_block": original})["img"]

    return hook


class HappyHorseModel(comfy.model_base.BaseModel):
    """Sampling wrapper: knows the streams, their statistics, what a mask holds still and what memory a step takes."""

    def __init__(self, model_config: "HappyHorseConfig", device: torch.device | None = None) -> None:
        super().__init__(model_config, comfy.model_base.ModelType.FLOW, device=device, unet_model=HostTransformer)
        self._unread = Unread()

    @property
    def role(self) -> Role:
        """What the checkpoint was trained for."""
        return self.model_config.role

    def get_dtype_inference(self) -> torch.dtype:
        """The embedders of the released model work in float32: latents and text must arrive unrounded."""
        return torch.float32

    def process_latent_in(self, latent: Tensor | NestedTensor) -> Tensor | NestedTensor:
        return self._map_video(latent, self.latent_format.process_in)

    def process_latent_out(self, latent: Tensor | NestedTensor) -> Tensor | NestedTensor:
        return self._map_video(latent, self.latent_format.process_out)

    def _map_video(self, latent: Tensor | NestedTensor, fn: Callable[[Tensor], Tensor]) -> Tensor | NestedTensor:
        """Applies the video statistics to the video stream alone, in each form that the host hands latents around."""
        if getattr(latent, "is_nested", False):
            video, *others = latent.unbind()
            return NestedTensor([fn(video), *others])
        if latent.ndim == 5:
            return fn(latent)
        shapes = self.latent_shapes
        if latent.shape[1] != 1 or shapes is None or len(shapes) < 2:
            return latent  # sound alone
        split = math.prod(shapes[0][1:])
        video = fn(latent[..., :split].reshape(latent.shape[0], *shapes[0][1:]))
        return torch.cat([video.reshape(latent.shape[0], 1, split), latent[..., split:]], dim=-1)

    def apply_model(
        self, x: Tensor, t: Tensor, *args: Any, transformer_options: dict[str, Any] | None = None, **kwargs: Any
    ) -> Tensor:
        """One call of the model in a sampling. What its options hold for other models is said in words."""
        options = {} if transformer_options is None else transformer_options
        whole = {} if self.current_patcher is None else self.current_patcher.model_options
        self._unread.check(options, whole, len(self.diffusion_model.block.layers))
        return super().apply_model(x, t, *args, transformer_options=options, **kwargs)

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """Text by CONDRegular: tokens repeated to a common length would change a model that attends to them jointly.

        The host calls it for each prompt before a sampling, and some nodes within one: those don't name the streams.
        """
        shapes = kwargs.get("latent_shapes")
        if shapes is None:
            shapes = self.latent_shapes
        else:
            self._unread = Unread()
        text = kwargs.get("cross_attn")
        self._check_streams(shapes)
        self._check_text(text)
        compute = self.manual_cast_dtype if self.manual_cast_dtype is not None else self.get_dtype()
        return {
            "c_crossattn": comfy.conds.CONDRegular(text),
            "latent_shapes": comfy.conds.CONDConstant(shapes),
            "compute_dtype": comfy.conds.CONDConstant(compute),
        }

    def _check_streams(self, shapes: Sequence[Sequence[int]] | None) -> None:
        found = [list(shape) for shape in shapes or []]
        if not is_pair(found):
            raise InputError(
                f"latent: found streams of shapes {found}, expected {VIDEO_LATENT}, and {AUDIO_LATENT}. Use Empty "
                "HappyHorse Latent, or join picture and sound with Concat AV Latent."
            )

    def _check_text(self, text: Tensor | None) -> None:
        width = self.model_config.transformer.text_in_channels
        if text is None or text.shape[-1] != width:
            found = "no text" if text is None else f"a text embedding of width {text.shape[-1]}"
            raise InputError(
                f"conditioning: found {found}, expected width {width}. Encode the prompt with the CLIP of "
                "Load HappyHorse Text Encoder."
            )

    def scale_latent_inpaint(self, sigma: Tensor, noise: Tensor, latent_image: Tensor, **kwargs: Any) -> Tensor:
        """Held frames and held sound are shown to the model clean at every step, as it was trained."""
        return latent_image

    def map_context_window_to_modalities(
        self, primary_indices: Sequence[int], latent_shapes: Sequence[Sequence[int]], dim: int
    ) -> list[list[int]]:
        """The audio latents that sound during the chosen video frames: one for the first, four for each later one.

        A window from the middle of a clip is shown with the frame before it, in the place where the model knows a
        frame of one picture. So it gets the last latent of that frame's sound, and both streams begin together.
        """
        first, stride = primary_indices[0], geometry.TEMPORAL_STRIDE
        before = [stride * (first - 1)] if first > 0 and first - 1 not in primary_indices else []
        spans = [range(max(0, stride * (i - 1) + 1), stride * i + 1) for i in primary_indices]
        audio = before + [latent for span in spans for latent in span]
        return [list(primary_indices), *([a for a in audio if a < shape[dim]] for shape in latent_shapes[1:])]

    def memory_required(self, input_shape: Sequence[int], cond_shapes: dict[str, Any] | None = None) -> float:
        """Bytes of working memory for one call. The shape is the packed [B, 1, N] or, unpacked, [B, 48, T, H, W]."""
        tokens = input_shape[0] * (math.prod(input_shape[1:]) // PATCH_VALUES + MAX_TOKENS)
        compute = self.manual_cast_dtype if self.manual_cast_dtype is not None else self.get_dtype()
        itemsize = compute.itemsize if compute in self.model_config.supported_inference_dtypes else 2
        return activation_bytes(tokens, self.model_config.transformer.hidden_size, itemsize)


class NetworkConfig(dict[str, Any]):
    """The host's ``unet_config``: what other nodes look up in it and is not there is refused in a sentence."""

    def __missing__(self, key: str) -> Any:
        raise ValueError(f"model: {MISSING.format(key)}")

    def copy(self) -> "NetworkConfig":
        return NetworkConfig(self)


class HappyHorseConfig(comfy.supported_models_base.BASE):
    """The host's description of one loaded checkpoint."""

    unet_config: dict[str, Any] = {}
    unet_extra_config: dict[str, Any] = {}
    sampling_settings = {"shift": 5.0}
    latent_format = HappyHorseLatent
    memory_usage_factor = 1.0
    supported_inference_dtypes = [torch.bfloat16, torch.float32]

    def __init__(self, transformer: TransformerConfig, role: Role) -> None:
        super().__init__(NetworkConfig(image_model="happyhorse", config=transformer))
        self.transformer = transformer
        self.role = role

    def model_type(self, state_dict: dict[str, Tensor], prefix: str = "") -> comfy.model_base.ModelType:
        return comfy.model_base.ModelType.FLOW

    def inpaint_model(self) -> bool:
        return False

    def get_model(
        self, state_dict: dict[str, Tensor], prefix: str = "", device: torch.device | None = None
    ) -> HappyHorseModel:
        return HappyHorseModel(self, device=device)
