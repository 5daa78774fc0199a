"""The prompt encoder as a ComfyUI CLIP: the core's encoder and tokenizer behind the interface of CLIP Text Encode."""

import logging
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import comfy.model_management as mm
import comfy.model_patcher
import comfy.ops
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor, nn

from ...happyhorse_core.errors import InputError
from ...happyhorse_core.ops import TorchOps
from ...happyhorse_core.text.config import TextEncoderConfig
from ...happyhorse_core.text.encoder import T5GemmaEncoder
from ...happyhorse_core.text.load import IGNORED, inspect_text_encoder
from ...happyhorse_core.text.tokenizer import GemmaTokenizer
from ...happyhorse_core.weights.quantised import dequantised
from ...happyhorse_core.weights.source import TensorSource
from .fill import HostProgress, check_tensors, fill
from .load import DEFAULT, WEIGHT_DTYPES
from .ops import host_operations
from .quantised import QUANT_NOTE, is_quantised, with_host_notes
from .weights import open_weights, state_dict

log = logging.getLogger("happyhorse")

TOKENS = "t5gemma"
"""Key of the token list; also what tells this CLIP from others."""
DEVICES = (DEFAULT, "cpu")
Tokens = dict[str, list[list[tuple[int, float]]]]


def load_clip(
    path: str, weight_dtype: str = DEFAULT, device: str = DEFAULT, disable_dynamic: bool = False
) -> comfy.sd.CLIP:
    """A T5Gemma checkpoint, folder or file, as a CLIP. By default quantised weights stay what they are."""
    requested = WEIGHT_DTYPES[weight_dtype]
    stored = requested or torch.bfloat16
    exact = torch.float32 if stored == torch.float32 else torch.bfloat16
    file = inspect_text_encoder(path, open_weights)
    expected = T5GemmaEncoder(file.config, operations=TorchOps, dtype=exact, device="meta")
    with file.source as source:
        quantised = requested is None and is_quantised(source)
        source = with_host_notes(source) if quantised else dequantised(source, expected)
        check_tensors(source, expected, quantised, ignore=file.ignore)
        options: dict[str, Any] = {"dtype": stored}
        if device == "cpu":
            options |= {"load_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
        if quantised:
            # As the host's own text encoders: weights are widened for each matmul, inputs are never rounded.
            layers = comfy.ops.mixed_precision_ops({"mixed_ops": True}, stored, full_precision_mm=True)
            options["custom_operations"] = layers
        target = comfy.supported_models_base.ClipTarget(
            partial(HostTokenizer, file.tokenizer), partial(HostTextModel, file.config, exact, source)
        )
        clip = comfy.sd.CLIP(
            target,
            parameters=_parameters(source, stored, quantised),
            state_dict=[state_dict(file.source)],
            model_options=options,
            disable_dynamic=disable_dynamic,
        )
    clip.patcher.cached_patcher_init = (load_clip_patcher, (path, weight_dtype, device))
    log.info(
        "HappyHorse: loaded the text encoder %s: %d layers, weights %s.",
        path,
        len(file.config.windows),
        "quantised" if quantised else stored,
    )
    return clip


def _parameters(source: TensorSource, stored: torch.dtype, quantised: bool) -> int:
    """How many numbers of ``stored`` the model takes, by which the host decides where it begins."""
    if quantised:
        return sum(entry.nbytes for entry in source.entries.values()) // stored.itemsize
    return sum(entry.numel for entry in source.entries.values())


def load_clip_patcher(
    path: str, weight_dtype: str, device: str, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    """The patcher alone: what the host calls to load the same weights once more."""
    return load_clip(path, weight_dtype, device, disable_dynamic).patcher


class HostTokenizer:
    """Prompt -> token ids. All weights are 1: the model was trained on plain text, and reads ``(word:1.2)`` as such."""

    def __init__(self, tokenizer: GemmaTokenizer, embedding_directory: Any = None, tokenizer_data: Any = None) -> None:
        self.tokenizer = tokenizer

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> Tokens:
        """An empty text has no tokens. That is a legitimate negative prompt here, so it is no error."""
        ids = self.tokenizer.encode_prompt(text) if text.strip() else []
        return {TOKENS: [[(i, 1.0, 0) if return_word_ids else (i, 1.0) for i in ids]]}

    def untokenize(self, tokens: Sequence[tuple[int, float]]) -> list[tuple[tuple[int, float], str]]:
        return [(token, str(token[0])) for token in tokens]

    def state_dict(self) -> dict[str, Tensor]:
        return {}


class HostTextModel(nn.Module):
    """The core's encoder with what the host's CLIP calls. ``exact`` is the dtype of norms: float8 would spoil them.

    ``source`` holds the same tensors that the host hands to ``load_sd``, under the names of its layers.
    """

    def __init__(
        self,
        config: TextEncoderConfig,
        exact: torch.dtype,
        source: TensorSource,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
        model_options: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.dtypes = {dtype}
        self.exact = exact
        self.source: TensorSource | None = source
        self.options: dict[str, Any] = {}
        picked = (model_options or {}).get("custom_operations") or comfy.ops.manual_cast
        self.encoder = T5GemmaEncoder(config, operations=host_operations(picked), dtype=dtype, device=device)
        for module in self.encoder.modules():
            if not hasattr(module, "comfy_cast_weights"):
                for name, parameter in list(module.named_parameters(recurse=False)):
                    setattr(module, name, nn.Parameter(parameter.to(exact), requires_grad=False))

    def set_clip_options(self, options: dict[str, Any]) -> None:
        self.options.update(options)

    def reset_clip_options(self) -> None:
        self.options = {}

    def load_sd(self, tensors: dict[str, Tensor]) -> tuple[list[str], list[str]]:
        """Fills the layers once, with tensors that were checked: no names are missing or left over.

        The host sets ``can_assign_sd`` where weights stay mapped.
        """
        source, self.source = self.source, None
        if source is None:
            raise RuntimeError("The layers were filled before; make the encoder anew.")
        assign = getattr(self, "can_assign_sd", False)
        (stored,) = self.dtypes
        known = {name for name in source.names if not any(fnmatchcase(name, glob) for glob in IGNORED)}

        def dtype_of(name: str, tensor: Tensor) -> torch.dtype:
            layer, _, _ = name.rpartition(".")
            if not hasattr(self.encoder.get_submodule(layer), "comfy_cast_weights"):
                return self.exact
            if layer + QUANT_NOTE in source or (assign and tensor.dtype.itemsize <= stored.itemsize):
                return tensor.dtype
            return stored

        fill(self.encoder, source.renamed(lambda name: name if name in known else None), dtype_of, assign=assign)
        return [], []

    def memory_estimation_function(self, tokens: Tokens, device: torch.device | None = None) -> int:
        """Bytes of working memory: the gated layer in float32 and its inputs, for each token."""
        # A node that saves the weights loads them without a prompt.
        length = max(1, len(tokens.get(TOKENS, [[]])[0]))
        return length * self.encoder.config.intermediate_size * 4 * 8

    def encode_token_weights(self, tokens: Tokens) -> tuple[Tensor, None]:
        """[1, L, hidden] float32 on the output device, rounded through float16 as in training; no pooled output.

        An empty text gives one token of zeros, as the host's own encoders give an all-masked one.
        """
        if TOKENS not in tokens:
            raise InputError(f"tokens: found those of {', '.join(tokens)}, expected tokens made with this same CLIP.")
        ids = [item[0] for item in tokens[TOKENS][0]]
        output = mm.intermediate_device()
        if not ids:
            return torch.zeros(1, 1, self.encoder.config.hidden_size, device=output), None
        device = self.options.get("execution_device", self.encoder.norm.weight.device)
        compute = torch.bfloat16 if mm.should_use_bf16(device) else torch.float32
        hidden = self.encoder(torch.tensor([ids], device=device), compute_dtype=compute, progress=HostProgress())
        return hidden.half().float().to(output), None
