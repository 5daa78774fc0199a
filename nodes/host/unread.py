"""What other nodes put on a model for parts of a network that ours has not: said in words, once per sampling.

Core hands such patches to every model in ``transformer_options``, and a model reads those that it knows.
"""

import logging
from collections.abc import Iterator
from typing import Any

log = logging.getLogger("happyhorse")

Options = dict[str, Any]

SWITCHES = {
    "rope_options": "scaled positions (ScaleROPE)",
    "stg_self_attn_blocks": "skipped self-attention (LTXVSpatioTemporalGuidance)",
    "a2v_cross_attn": "cut cross-attention of picture and sound (LTXVModalityGuidance)",
    "chroma_radiance_options": "options of Chroma Radiance",
    "animate2_cache": "the cache of Wan Animate 2",
    "audio_embeds": "sound of another model's encoder",
}
"""Keys of ``transformer_options`` that core's nodes set for other models."""
ATTENTION = ("attn1", "attn2")
BLOCKS = ("double_block", "single_block")
FRAMES_AS_BATCH = ("VideoLinearCFGGuidance", "VideoTriangleCFGGuidance")
"""Core's nodes whose guidance takes the items of a batch for the frames of a clip, each of four axes."""
ONE_LATENT = {"hidream_o1_patch_seam_smoothing": "HiDreamO1PatchSeamSmoothing"}
"""Keys of wrappers around the network that take its latent for one tensor, and the nodes that set them."""


class Unread:
    """What was said of one sampling: make another for the next."""

    def __init__(self) -> None:
        self._told: set[str] | None = None

    def check(self, options: Options, model_options: Options, layers: int) -> None:
        """Warns of each kind of patch in ``transformer_options`` that a model of so many layers does not read.

        Raises ValueError at the first call where a node's patch would end in an error of another kind: one in
        ``model_options`` that can't guide a clip, or attention of a U-Net, for which a node would wait in vain. Such
        attention that comes in later calls is only another way to guide, which then does nothing.
        """
        if self._told is None:
            refuse(options, model_options)
            self._told = set()
        for what in sorted(set(unread(options, layers)) - self._told):
            self._told.add(what)
            log.warning("HappyHorse: without effect on this model: %s. Take that node away.", what)


def unread(options: Options, layers: int) -> Iterator[str]:
    """In words, what ``transformer_options`` hold for parts that a model of so many layers has not."""
    for kind, patches in options.get("patches", {}).items():
        if patches:
            yield f"a patch of the kind {kind}"
    for kind, replaced in options.get("patches_replace", {}).items():
        for block in replaced:
            known = kind == "dit" and isinstance(block, tuple) and len(block) == 2 and block[0] in BLOCKS
            if not known:
                yield f"a replacement of {kind} in the block {_words(block)}"
            elif not 0 <= block[1] < layers:
                yield f"a change of layer {block[1]} (there are 0 to {layers - 1})"
    for key, what in SWITCHES.items():
        if key in options:
            yield what


def refuse(options: Options, model_options: Options) -> None:
    """Raises ValueError for what a node put on the MODEL and would fail on."""
    for kind in ATTENTION:
        for block in options.get("patches_replace", {}).get(kind, {}):
            raise ValueError(
                f"model: found a node that replaces {kind} in the block {_words(block)}, expected none: those are "
                "parts of a U-Net, which this model is not. Take that node away, such as Self-Attention Guidance."
            )
    guide, _, _ = getattr(model_options.get("sampler_cfg_function"), "__qualname__", "").partition(".")
    if guide in FRAMES_AS_BATCH:
        raise ValueError(
            f"model: found guidance by {guide}, expected none: it takes the clips of a batch for the frames of one. "
            "Take that node away; HappyHorse Guider changes the scale on the way."
        )
    for key in options.get("wrappers", {}).get("diffusion_model", {}):
        if key in ONE_LATENT:
            raise ValueError(
                f"model: found the node {ONE_LATENT[key]}, expected none: it was made for another model, of a latent "
                "without sound. Take it away."
            )


def _words(block: Any) -> str:
    return " ".join(str(part) for part in block) if isinstance(block, tuple) else str(block)
