"""The note beside each workflow: what it does, which files it needs, where they come from, where they go."""

HUB = "https://huggingface.co"
MAGIHUMAN = f"{HUB}/GAIR/daVinci-MagiHuman"


def transformer(folder: str, what: str) -> str:
    return (
        f"- {what}: the whole folder [{folder}]({MAGIHUMAN}/tree/main/{folder}) → "
        f"**diffusion_models/daVinci-MagiHuman/{folder}**"
    )


MODELS = {
    "distill": transformer("distill", "Model, 8 steps"),
    "base": transformer("base", "Model, 32 steps"),
    "540p_sr": transformer("540p_sr", "Super-resolution model"),
    "1080p_sr": transformer("1080p_sr", "Super-resolution model"),
    "picture": f"- Picture encoder: [Wan2.2_VAE.pth]({HUB}/Wan-AI/Wan2.2-TI2V-5B) → **vae**",
}
ALWAYS = (
    f"- Text encoder: the whole of [t5gemma-9b-9b-ul2]({HUB}/google/t5gemma-9b-9b-ul2) → "
    "**text_encoders/t5gemma-9b-9b-ul2**",
    f"- Video decoder: [checkpoint-340000.ckpt]({MAGIHUMAN}/tree/main/turbo_vae) → **vae**",
    f"- Sound: model.safetensors of [stable-audio-open-1.0]({HUB}/stabilityai/stable-audio-open-1.0) → "
    "**vae/stable_audio_open_1.0.safetensors**",
)

EXTRA = {
    "text_to_video": """\
Makes a clip with sound from a prompt. Sizes are multiples of 32 pixels around 448 x 256, lengths mostly 5 to 10 s.""",
    "image_to_video": """\
Makes a clip that starts from a picture. The picture is cut to the shape of the clip around its centre; crop it before \
to choose the part yourself.""",
    "audio_driven": """\
Makes a clip that follows a sound of 0.2 to 30 s, which sets the length and comes out as it went in. Write what is \
said into the prompt as well. **Choose your own sound and picture.**

To go without a picture, bypass HappyHorse Image To Video (Ctrl+B).""",
    "base_with_cfg": """\
Makes a clip with the base model: 32 steps, guided by a prompt and a negative prompt. That is eight times the work of \
the distilled model. HappyHorse Prompt writes the prompt in the format that the model was trained on.

For Sampler Custom Advanced, use HappyHorse Guider, HappyHorse Sigmas and HappyHorse UniPC Sampler instead.""",
    "super_resolution_540p": """\
Makes a small clip and enlarges it to 896 x 512 in latent space, in 5 steps. The sound stays that of the small clip.

Other shapes than 7:4 work, but ghosting is to be expected.""",
    "super_resolution_1080p": """\
Makes a small clip from a picture and enlarges it to 1920 x 1088 in latent space, in 5 steps. Give the picture in full \
size: it is encoded again for the large clip. The sound stays that of the small clip.

Other shapes than 16:9 work, but ghosting is to be expected. Without a picture, disconnect vae and image.""",
    "lora": """\
Makes a clip with a LoRA on the model. **Choose your own file** in Load LoRA: one whose names start with \
diffusion_model. (with the dot), in **loras**. Several LoRAs go one after the other.""",
    "extend": """\
Makes a clip, lets a second one go on from it, and joins both to one video of 9 s: HappyHorse Extend holds a picture \
and the sound of the last second, so that voice and room stay the same.

For a third clip, copy the group Next clip: HappyHorse Extend takes the joined video too.""",
}

PONY_NOTE = """\
Makes a clip with the Pony, a tiny model that comes with this pack: nothing has to be downloaded, and it takes seconds \
on a laptop without a GPU. Use it to try nodes and workflows.

It knows clips of 2 s and 64 x 64 pixels with one or two coloured shapes that move and sound, or a face that says \
vowels; pony/README.md lists its words. It is of the same architecture as the real model and has nothing else in \
common with it: its parts go only with each other.

## Prompts to try

- A small blue square slides to the right on a black background. ... \\<A steady high tone that wanders from left to \
right>
- A medium green circle pulses in its place against a grey to navy gradient. ... \\<A mid tone that gets louder and \
softer with the size>
- The round face of a woman with tan skin speaks on a navy background. Then Dialogue: and \\<Woman with a high voice, \
English>: "a o a", then Background Sound: and \\<No prominent background sound>

The other templates name the files of the real model.
"""

END = """\
Folders are those below ComfyUI/models. The pages of Google and Stability AI ask for an account that has accepted \
their terms. Licences: Gemma terms of use (text encoder), Stability AI Community License (sound), Apache-2.0 (the rest).

Official HappyHorse weights are not published. daVinci-MagiHuman has the same architecture, and these are its weights.

## Prompt

One paragraph of 150 to 200 English words, then Dialogue: with lines such as \\<Old man with hat, French>: "Bonjour", \
then Background Sound:. Languages: Mandarin, Cantonese, English, Japanese, Korean, German, French. Between the \
characters of Chinese, Japanese and Korean dialogue stands a single space."""


def note(name: str, *models: str) -> str:
    """The text beside workflow ``name``; ``models`` are keys of MODELS that it needs beyond what all do."""
    lines = "\n".join([*(MODELS[model] for model in models), *ALWAYS])
    return f"{EXTRA[name]}\n\n## Files\n\n{lines}\n\n{END}\n"
