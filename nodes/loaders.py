"""Loaders: from files in the host's model folders to MODEL, CLIP and VAE."""

from comfy_api.latest import io

from .host import files
from .host.inputs import checked
from .host.load import AUTO, DEFAULT, ROLE_CHOICES, WEIGHT_DTYPES, load_diffusion_model
from .host.text_encoder import DEVICES, load_clip
from .host.vae import load_audio_vae, load_video_vae

CATEGORY = "HappyHorse/loaders"
NO_FILE = "none"
DTYPE_TIP = (
    "What the large weights are kept in. default: as the file and the hardware suggest (bf16 on most GPUs). fp8 halves "
    "the memory and costs some quality. Embedders, norms and final layers always stay exact."
)


class HappyHorseModelLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        entries = files.list_entries("diffusion_models")
        return io.Schema(
            node_id="HappyHorseModelLoader",
            display_name="Load HappyHorse Model",
            category=CATEGORY,
            description="Loads the joint video and sound transformer: a daVinci-MagiHuman checkpoint, one file or a "
            "folder of shards, from models/diffusion_models, or the small one that comes with the pack.",
            search_aliases=["happyhorse", "davinci", "magihuman", "load diffusion model", "unet loader", "t2v", "i2v"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=entries,
                    default=files.preferred(entries, "distill", "magihuman", "happyhorse"),
                    tooltip="A file or a folder with an index in models/diffusion_models. The distill checkpoint makes "
                    "clips in 8 steps. HappyHorse-Pony is a tiny model for a first try, of coloured shapes and faces; "
                    "its parts go only with each other.",
                ),
                io.Combo.Input(
                    "weight_dtype", options=list(WEIGHT_DTYPES), default=DEFAULT, tooltip=DTYPE_TIP, advanced=True
                ),
                io.Combo.Input(
                    "role",
                    options=list(ROLE_CHOICES),
                    default=AUTO,
                    tooltip="What the checkpoint was trained for; its tensors don't tell. auto: from the file's "
                    "metadata, else from the folder's name (base, distill, 540p_sr, 1080p_sr), else distilled.",
                    advanced=True,
                ),
            ],
            outputs=[io.Model.Output(display_name="MODEL", tooltip="Works with core samplers, LoRAs and patches.")],
        )

    @classmethod
    @checked
    def execute(cls, model_name: str, weight_dtype: str = DEFAULT, role: str = AUTO) -> io.NodeOutput:
        path = files.resolve_entry("diffusion_models", model_name, "model_name")
        return io.NodeOutput(load_diffusion_model(path, role, weight_dtype))


class HappyHorseTextEncoderLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        entries = files.list_entries("text_encoders")
        return io.Schema(
            node_id="HappyHorseTextEncoderLoader",
            display_name="Load HappyHorse Text Encoder",
            category=CATEGORY,
            description="Loads the encoder half of T5Gemma-9B-9B-UL2 with its tokenizer. The CLIP works with CLIP Text "
            "Encode; prompts are cut at 640 tokens, and (word:1.2) weights have no effect.",
            search_aliases=["happyhorse", "t5gemma", "clip loader", "magihuman"],
            inputs=[
                io.Combo.Input(
                    "text_encoder_name",
                    options=entries,
                    default=files.preferred(entries, "t5gemma"),
                    tooltip="The Hugging Face folder with config.json and tokenizer.json, or one merged file with "
                    "tokenizer.json beside it, in models/text_encoders.",
                ),
                io.Combo.Input(
                    "weight_dtype", options=list(WEIGHT_DTYPES), default=DEFAULT, tooltip=DTYPE_TIP, advanced=True
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    default=DEFAULT,
                    tooltip="Where prompts are encoded. cpu leaves the GPU to the video model and takes longer.",
                    advanced=True,
                ),
            ],
            outputs=[io.Clip.Output(display_name="CLIP", tooltip="For CLIP Text Encode.")],
        )

    @classmethod
    @checked
    def execute(cls, text_encoder_name: str, weight_dtype: str = DEFAULT, device: str = DEFAULT) -> io.NodeOutput:
        path = files.resolve_entry("text_encoders", text_encoder_name, "text_encoder_name")
        return io.NodeOutput(load_clip(path, weight_dtype, device))


class HappyHorseVideoVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        entries = files.list_entries("vae")
        return io.Schema(
            node_id="HappyHorseVideoVAELoader",
            display_name="Load HappyHorse Video VAE",
            category=CATEGORY,
            description="Loads TurboVAED, which turns latents into frames, and the picture encoder of Wan2.2's VAE, "
            "which image to video needs. The VAE works with core VAE Decode and VAE Encode.",
            search_aliases=["happyhorse", "turbo vae", "turbovaed", "wan2.2 vae", "vae loader", "magihuman"],
            inputs=[
                io.Combo.Input(
                    "decoder_name",
                    options=entries,
                    default=files.preferred(entries, "checkpoint-340000", "turbo"),
                    tooltip="TurboVAED: checkpoint-340000.ckpt or a safetensors file of it, in models/vae.",
                ),
                io.Combo.Input(
                    "encoder_name",
                    options=[NO_FILE, *entries],
                    default=files.preferred([e for e in files.own(entries) if "wan2" in e.lower()], "wan2.2_vae")
                    or NO_FILE,
                    tooltip="Wan2.2_VAE.pth or a safetensors file of it, in models/vae. Only image to video needs it; "
                    "none saves the memory.",
                ),
            ],
            outputs=[io.Vae.Output(display_name="VAE", tooltip="Decodes clips, encodes a first frame.")],
        )

    @classmethod
    @checked
    def execute(cls, decoder_name: str, encoder_name: str = NO_FILE) -> io.NodeOutput:
        decoder = files.resolve_entry("vae", decoder_name, "decoder_name")
        encoder = None if encoder_name == NO_FILE else files.resolve_entry("vae", encoder_name, "encoder_name")
        return io.NodeOutput(load_video_vae(decoder, encoder))


class HappyHorseAudioVAELoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        entries = files.list_entries("vae")
        return io.Schema(
            node_id="HappyHorseAudioVAELoader",
            display_name="Load HappyHorse Audio VAE",
            category=CATEGORY,
            description="Loads Stable Audio Open's autoencoder at the model's clock of 25 latents a second. It gives "
            "stereo sound at 44,100 Hz and works with core VAE Decode Audio and VAE Encode Audio.",
            search_aliases=["happyhorse", "stable audio", "oobleck", "sound", "vae loader", "magihuman"],
            inputs=[
                io.Combo.Input(
                    "audio_vae_name",
                    options=entries,
                    default=files.preferred(entries, "stable_audio", "stable-audio", "audio"),
                    tooltip="The whole Stable Audio Open 1.0 file, of which only the autoencoder is read, or the "
                    "autoencoder alone, in models/vae.",
                )
            ],
            outputs=[io.Vae.Output(display_name="AUDIO VAE", tooltip="Decodes and encodes sound.")],
        )

    @classmethod
    @checked
    def execute(cls, audio_vae_name: str) -> io.NodeOutput:
        return io.NodeOutput(load_audio_vae(files.resolve_entry("vae", audio_vae_name, "audio_vae_name")))
