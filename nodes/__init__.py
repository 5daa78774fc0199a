"""The pack's nodes, listed for ComfyUI."""

from comfy_api.latest import ComfyExtension, io

from .audio_driven import HappyHorseAudioToVideo
from .base_model import HappyHorseBaseSampler, HappyHorseGuider
from .decode import HappyHorseDecode
from .extend import HappyHorseExtend, HappyHorseJoinClips
from .latent import HappyHorseEmptyLatent, HappyHorseImageToVideo
from .loaders import (
    HappyHorseAudioVAELoader,
    HappyHorseModelLoader,
    HappyHorseTextEncoderLoader,
    HappyHorseVideoVAELoader,
)
from .prompt import HappyHorseNegativePrompt, HappyHorsePrompt
from .sampling import HappyHorseSampler, HappyHorseSamplerUniPC, HappyHorseSigmas
from .super_resolution import HappyHorseSuperResolution

NODES: list[type[io.ComfyNode]] = [
    HappyHorseModelLoader,
    HappyHorseTextEncoderLoader,
    HappyHorseVideoVAELoader,
    HappyHorseAudioVAELoader,
    HappyHorseEmptyLatent,
    HappyHorseImageToVideo,
    HappyHorseAudioToVideo,
    HappyHorseExtend,
    HappyHorsePrompt,
    HappyHorseNegativePrompt,
    HappyHorseSampler,
    HappyHorseBaseSampler,
    HappyHorseGuider,
    HappyHorseSigmas,
    HappyHorseSamplerUniPC,
    HappyHorseSuperResolution,
    HappyHorseDecode,
    HappyHorseJoinClips,
]


class HappyHorseExtension(ComfyExtension):
    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        return NODES


async def comfy_entrypoint() -> HappyHorseExtension:
    """What ComfyUI calls to learn the nodes."""
    return HappyHorseExtension()
