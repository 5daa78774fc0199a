"""Prompts: the negative one with its default words."""

from comfy_api.latest import io

from ..happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from . import checks

CATEGORY = "HappyHorse/conditioning"


class HappyHorseNegativePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorseNegativePrompt",
            display_name="HappyHorse Negative Prompt",
            category=CATEGORY,
            description="What the base model is guided away from. Starts with words for poor pictures, poor sound and "
            "poor speech, to edit as needed.",
            search_aliases=["happyhorse", "negative", "clip text encode", "magihuman"],
            inputs=[
                io.Clip.Input("clip", tooltip="From Load HappyHorse Text Encoder."),
                io.String.Input(
                    "text",
                    multiline=True,
                    default=DEFAULT_NEGATIVE_PROMPT,
                    tooltip="What the clip shall not be, as words between commas. May be empty.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(
                    display_name="CONDITIONING", tooltip="For the negative input of HappyHorse Base Sampler or Guider."
                )
            ],
        )

    @classmethod
    def execute(cls, clip: object, text: str) -> io.NodeOutput:
        checks.check_clip(clip, "clip")
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text)))
