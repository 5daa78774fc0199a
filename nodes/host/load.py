"""From a chosen file to a model under the host's memory management. The one place that decides dtypes and devices.

The core opens and checks a checkpoint; the host's own machinery then holds, casts, moves and patches the weights.
"""

import importlib
import inspect
import logging
import math
from collections.abc import Callable
from pathlib import Path

import comfy.model_management as mm
import comfy.model_patcher
import torch
from torch import Tensor

from ...happyhorse_core.dit.config import TransformerConfig
from ...happyhorse_core.dit.load import ATTENTION_CHOICE, IGNORED, inspect_transformer
from ...happyhorse_core.dit.model import HappyHorseTransformer
from ...happyhorse_core.dit.roles import ROLES
from ...happyhorse_core.ops import TorchOps
from ...happyhorse_core.weights.quantised import dequantised
from ...happyhorse_core.weights.source import TensorSource
from .diffusion import HappyHorseConfig
from .fill import check_tensors, fill
from .ops import ComfyAttention
from .quantised import is_quantised, with_host_notes
from .regions import allow_masks
from .weights import open_weights, source_paths

log = logging.getLogger("happyhorse")

AUTO = "auto"
ROLE_CHOICES = (AUTO, *ROLES)
DEFAULT = "default"
WEIGHT_DTYPES = {
    DEFAULT: None,
    "bf16": torch.bfloat16,
    "fp32": torch.float32,
    "fp8_e4m3fn": torch.float8_e4m3fn,
    "fp8_e5m2": torch.float8_e5m2,
}


def load_diffusion_model(
    path: str, role: str = AUTO, weight_dtype: str = DEFAULT, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """A transformer checkpoint, file or folder, as a MODEL. ``role`` and ``weight_dtype`` are the loader's choices."""
    file = inspect_transformer(Path(path), None if role == AUTO else role, open_weights)
    with file.source as source:
        requested = WEIGHT_DTYPES[weight_dtype]
        quantised = requested is None and is_quantised(source)
        expected = reference(file.config)
        source = with_host_notes(source) if quantised else dequantised(source, expected)
        check_tensors(source, expected, quantised, IGNORED)
        config = HappyHorseConfig(file.config, file.role)
        choose_dtypes(config, source, requested, quantised)
        patcher = build_patcher(config, source, quantised, disable_dynamic)
    allow_masks(patcher)
    patcher.cached_patcher_init = (load_diffusion_model, (path, role, weight_dtype))
    log.info(
        "HappyHorse: loaded %s as the %s model (%s): %d layers, weights %s.",
        path,
        file.role.name,
        file.role_origin,
        file.config.num_layers,
        "quantised" if quantised else config.unet_config["dtype"],
    )
    return patcher


def build_patcher(
    config: HappyHorseConfig, source: TensorSource, quantised: bool, disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """Builds the host's model and hands its layers the weights the way the host's own loader does."""
    model = config.get_model({})
    patcher = make_patcher(
        model, mm.get_torch_device(), mm.unet_offload_device(), source_paths(source), disable_dynamic
    )
    if not mm.is_device_cpu(patcher.offload_device):
        model.to(patcher.offload_device)
    assign = patcher.is_dynamic()
    dtype_of = target_dtypes(config, quantised, assign)
    if ComfyAttention is None:
        source = source.renamed(lambda name: None if name.endswith(ATTENTION_CHOICE) else name)
    fill(model.diffusion_model, source, dtype_of, assign=assign)
    return patcher


def make_patcher(
    model: torch.nn.Module, device: torch.device, offload_device: torch.device, paths: list[str], disable_dynamic: bool
) -> comfy.model_patcher.ModelPatcher:
    """The host's patcher around a module whose weights come from ``paths``."""
    # Looked up at call time: the host swaps this class when it starts with dynamic memory.
    kind = comfy.model_patcher.ModelPatcher if disable_dynamic else comfy.model_patcher.CoreModelPatcher
    extra = {}
    if "fast_disk" in inspect.signature(kind.__init__).parameters:
        # Newer hosts pin less memory for weights that a fast disk can stream.
        extra["fast_disk"] = importlib.import_module("comfy.storage").model_fast_disk(paths)
    return kind(model, load_device=device, offload_device=offload_device, **extra)


def choose_dtypes(
    config: HappyHorseConfig, source: TensorSource, requested: torch.dtype | None, quantised: bool
) -> None:
    """Settles the dtype that weights are kept in and the one that layers compute in, as the host would."""
    supported = config.supported_inference_dtypes
    stored = None if quantised else main_dtype(source)
    count = sum(math.prod(shape) for shape in source.shapes.values())
    dtype = requested
    if dtype is None:
        dtype = mm.unet_dtype(model_params=count, supported_dtypes=supported, weight_dtype=stored)
    cast = mm.unet_manual_cast(None if quantised else dtype, mm.get_torch_device(), supported)
    config.quant_config = {"mixed_ops": True} if quantised else None
    config.set_inference_dtype(dtype, cast)


def main_dtype(source: TensorSource) -> torch.dtype:
    """The dtype that most bytes of a checkpoint are in."""
    sizes: dict[torch.dtype, int] = {}
    for entry in source.entries.values():
        sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.nbytes
    return max(sizes, key=lambda dtype: sizes[dtype])


def reference(transformer: TransformerConfig) -> HappyHorseTransformer:
    """The core's own transformer without memory, for its names, shapes and which tensors are always float32."""
    return HappyHorseTransformer(transformer, operations=TorchOps, dtype=torch.bfloat16, device="meta")


def target_dtypes(config: HappyHorseConfig, quantised: bool, assign: bool) -> Callable[[str, Tensor], torch.dtype]:
    """The dtype of each tensor once it is loaded: float32 of those that compute in it, the chosen one of large weights.

    Quantised layers keep what they have. So do weights that are handed over (``assign``) and are not wider than the
    chosen dtype, since views of the file cost no memory, and the host casts them on the way to the device.
    """
    exact = {
        name for name, tensor in reference(config.transformer).state_dict().items() if tensor.dtype == torch.float32
    }
    chosen = config.unet_config["dtype"]

    def dtype_of(name: str, tensor: Tensor) -> torch.dtype:
        if name in exact:
            return torch.float32
        if quantised or name.endswith(ATTENTION_CHOICE) or (assign and tensor.dtype.itemsize <= chosen.itemsize):
            return tensor.dtype
        return chosen

    return dtype_of
