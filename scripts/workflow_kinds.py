"""The nodes that the workflows use, as they lie on the canvas: sockets, widgets with their first values, outputs, size.

Written down here so that workflows can be built without a ComfyUI; the tests compare it with what a server says.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT

Json = Any
"""What json.loads returns."""

CONTROL = "control_after_generate"
"""A widget that the editor puts below a seed."""


@dataclass(frozen=True)
class Kind:
    """A class of nodes. ``sockets`` are (name -> type); widgets are in the editor's order, (name -> first value)."""

    display_name: str
    width: int
    height: int
    sockets: Mapping[str, str] = field(default_factory=dict)
    widgets: Mapping[str, Json] = field(default_factory=dict)
    outputs: tuple[tuple[str, str], ...] = ()
    optional: tuple[str, ...] = ()
    browser_only: tuple[str, ...] = ()
    """Widgets that are saved and not sent to the server."""


LATENT_OUT = (("LATENT", "LATENT"),)
SAMPLED = {"model": "MODEL", "positive": "CONDITIONING"}

KINDS: dict[str, Kind] = {
    "MarkdownNote": Kind("Markdown Note", 460, 580, widgets={"text": ""}),
    # loaders
    "HappyHorseModelLoader": Kind(
        "Load HappyHorse Model",
        360,
        110,
        widgets={"model_name": "daVinci-MagiHuman/distill", "weight_dtype": "default", "role": "auto"},
        outputs=(("MODEL", "MODEL"),),
    ),
    "HappyHorseTextEncoderLoader": Kind(
        "Load HappyHorse Text Encoder",
        360,
        110,
        widgets={"text_encoder_name": "t5gemma-9b-9b-ul2", "weight_dtype": "default", "device": "default"},
        outputs=(("CLIP", "CLIP"),),
    ),
    "HappyHorseVideoVAELoader": Kind(
        "Load HappyHorse Video VAE",
        360,
        115,
        widgets={"decoder_name": "checkpoint-340000.ckpt", "encoder_name": "none"},
        outputs=(("VAE", "VAE"),),
    ),
    "HappyHorseAudioVAELoader": Kind(
        "Load HappyHorse Audio VAE",
        360,
        90,
        widgets={"audio_vae_name": "stable_audio_open_1.0.safetensors"},
        outputs=(("AUDIO VAE", "VAE"),),
    ),
    "LoraLoaderModelOnly": Kind(
        "Load LoRA",
        360,
        95,
        sockets={"model": "MODEL"},
        widgets={"lora_name": "", "strength_model": 1.0},
        outputs=(("MODEL", "MODEL"),),
    ),
    "LoadImage": Kind(
        "Load Image",
        300,
        340,
        widgets={"image": "example.png", "upload": "image"},
        outputs=(("IMAGE", "IMAGE"), ("MASK", "MASK")),
        browser_only=("upload",),
    ),
    "LoadAudio": Kind(
        "Load Audio",
        300,
        140,
        widgets={"audio": "", "audioUI": None, "upload": None},
        outputs=(("AUDIO", "AUDIO"),),
        browser_only=("audioUI", "upload"),
    ),
    # prompts
    "CLIPTextEncode": Kind(
        "CLIP Text Encode (Prompt)",
        440,
        340,
        sockets={"clip": "CLIP"},
        widgets={"text": ""},
        outputs=(("CONDITIONING", "CONDITIONING"),),
    ),
    "HappyHorsePrompt": Kind(
        "HappyHorse Prompt",
        440,
        800,
        widgets={
            "description": "",
            **{
                f"{name}_{number}": value
                for number in range(1, 5)
                for name, value in (("speaker", ""), ("language", "English"), ("words", ""))
            },
            "background_sound": "",
        },
        outputs=(("STRING", "STRING"),),
    ),
    "HappyHorseNegativePrompt": Kind(
        "HappyHorse Negative Prompt",
        440,
        220,
        sockets={"clip": "CLIP"},
        widgets={"text": DEFAULT_NEGATIVE_PROMPT},
        outputs=(("CONDITIONING", "CONDITIONING"),),
    ),
    # latents
    "HappyHorseEmptyLatent": Kind(
        "Empty HappyHorse Latent",
        300,
        200,
        widgets={"width": 448, "height": 256, "seconds": 5.0, "frames": 0, "batch_size": 1},
        outputs=LATENT_OUT,
    ),
    "HappyHorseImageToVideo": Kind(
        "HappyHorse Image To Video",
        300,
        100,
        sockets={"vae": "VAE", "image": "IMAGE", "latent": "LATENT"},
        outputs=LATENT_OUT,
    ),
    "HappyHorseAudioToVideo": Kind(
        "HappyHorse Audio To Video",
        300,
        100,
        sockets={"audio_vae": "VAE", "audio": "AUDIO", "latent": "LATENT"},
        outputs=LATENT_OUT,
    ),
    "HappyHorseExtend": Kind(
        "HappyHorse Extend",
        300,
        150,
        sockets={"video": "VIDEO", "vae": "VAE", "audio_vae": "VAE", "latent": "LATENT"},
        widgets={"overlap": 1.0},
        outputs=(*LATENT_OUT, ("OVERLAP", "INT")),
    ),
    # sampling
    "HappyHorseSampler": Kind(
        "HappyHorse Sampler",
        300,
        160,
        sockets={**SAMPLED, "latent": "LATENT"},
        widgets={"seed": 1, CONTROL: "randomize", "steps": 8},
        outputs=LATENT_OUT,
        browser_only=(CONTROL,),
    ),
    "HappyHorseBaseSampler": Kind(
        "HappyHorse Base Sampler",
        300,
        290,
        sockets={**SAMPLED, "negative": "CONDITIONING", "latent": "LATENT"},
        widgets={
            "seed": 1,
            CONTROL: "randomize",
            "steps": 32,
            "video_scale_early": 5.0,
            "video_scale_late": 2.0,
            "switch_timestep": 500,
            "audio_scale": 5.0,
        },
        outputs=LATENT_OUT,
        browser_only=(CONTROL,),
    ),
    "HappyHorseSuperResolution": Kind(
        "HappyHorse Super Resolution",
        320,
        310,
        sockets={
            "sr_model": "MODEL",
            "latent": "LATENT",
            "positive": "CONDITIONING",
            "negative": "CONDITIONING",
            "vae": "VAE",
            "image": "IMAGE",
        },
        widgets={
            "width": 0,
            "height": 0,
            "seed": 1,
            CONTROL: "randomize",
            "steps": 5,
            "local_attention": "auto",
            "cfg": 3.5,
        },
        outputs=LATENT_OUT,
        optional=("negative", "vae", "image"),
        browser_only=(CONTROL,),
    ),
    # results
    "HappyHorseDecode": Kind(
        "HappyHorse Decode",
        300,
        130,
        sockets={"latent": "LATENT", "vae": "VAE", "audio_vae": "VAE"},
        widgets={"tile_size": 0, "overlap": 256},
        outputs=(("IMAGE", "IMAGE"), ("AUDIO", "AUDIO"), ("VIDEO", "VIDEO")),
    ),
    "HappyHorseJoinClips": Kind(
        "HappyHorse Join Clips",
        300,
        130,
        sockets={"video": "VIDEO", "next_video": "VIDEO"},
        widgets={"overlap": 25, "crossfade_ms": 40.0},
        outputs=(("VIDEO", "VIDEO"),),
    ),
    "SaveVideo": Kind(
        "Save Video",
        460,
        420,
        sockets={"video": "VIDEO"},
        widgets={"filename_prefix": "video/HappyHorse", "format": "auto", "format.codec": "auto", "codec": "auto"},
        outputs=(("video", "VIDEO"),),
    ),
}
