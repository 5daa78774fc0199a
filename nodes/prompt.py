"""Prompts: one in the format that the model was trained on, and the negative one with its default words."""

import logging

from comfy_api.latest import io, ui
from server import PromptServer

from ..happyhorse_core.negative_prompt import DEFAULT_NEGATIVE_PROMPT
from ..happyhorse_core.prompt import LANGUAGES, NO_SOUND, Line, build_prompt, count_words, length_warning
from .host import checks
from .host.inputs import checked

log = logging.getLogger("happyhorse")

CATEGORY = "HappyHorse/conditioning"
LANGUAGE = "English"


def line_inputs(number: int, *, advanced: bool = False) -> list:
    """The widgets of one line of dialogue."""
    return [
        io.String.Input(
            f"speaker_{number}",
            default="",
            tooltip="Who speaks, as they are seen, in about five words: Young man in yellow shirt.",
            advanced=advanced,
        ),
        io.Combo.Input(
            f"language_{number}",
            options=list(LANGUAGES),
            default=LANGUAGE,
            tooltip="What the line is spoken in: one of the seven languages of the model.",
            advanced=advanced,
        ),
        io.String.Input(
            f"words_{number}",
            default="",
            multiline=True,
            tooltip="What is said, word for word. Leave it and the speaker empty for no such line.",
            advanced=advanced,
        ),
    ]


class HappyHorsePrompt(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HappyHorsePrompt",
            display_name="HappyHorse Prompt",
            category=CATEGORY,
            description="Writes a prompt in the format that the model was trained on: what is seen, who says what, "
            "what else is heard. Chinese, Japanese and Korean characters are set apart as the model expects.",
            search_aliases=["happyhorse", "prompt builder", "dialogue", "speech", "text", "magihuman"],
            inputs=[
                io.String.Input(
                    "description",
                    default="",
                    multiline=True,
                    tooltip="What is seen, in one paragraph of 150 to 200 English words: who, where, light, camera, "
                    "and what happens from beginning to end.",
                ),
                *line_inputs(1),
                *line_inputs(2),
                *line_inputs(3, advanced=True),
                *line_inputs(4, advanced=True),
                io.String.Input(
                    "background_sound",
                    default="",
                    tooltip=f"What is heard besides speech, as in: Soft rain on the window. Empty: {NO_SOUND}.",
                ),
            ],
            outputs=[io.String.Output(display_name="STRING", tooltip="The prompt, for the text of CLIP Text Encode.")],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    @checked
    def execute(
        cls,
        description: str,
        speaker_1: str = "",
        language_1: str = LANGUAGE,
        words_1: str = "",
        speaker_2: str = "",
        language_2: str = LANGUAGE,
        words_2: str = "",
        speaker_3: str = "",
        language_3: str = LANGUAGE,
        words_3: str = "",
        speaker_4: str = "",
        language_4: str = LANGUAGE,
        words_4: str = "",
        background_sound: str = "",
    ) -> io.NodeOutput:
        lines = [
            Line(speaker_1, language_1, words_1),
            Line(speaker_2, language_2, words_2),
            Line(speaker_3, language_3, words_3),
            Line(speaker_4, language_4, words_4),
        ]
        prompt = build_prompt(description, lines, background_sound)
        message = length_warning(description)
        if message is not None:
            log.warning("HappyHorse: %s", message)
        shown = message or f"description: {count_words(description)} words."
        if cls.hidden is not None and cls.hidden.unique_id:  # run from a graph: there is a node to show it on
            PromptServer.instance.send_progress_text(shown, cls.hidden.unique_id)
        return io.NodeOutput(prompt, ui=ui.PreviewText(shown))


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
    @checked
    def execute(cls, clip: object, text: str) -> io.NodeOutput:
        checks.check_clip(clip, "clip")
        return io.NodeOutput(clip.encode_from_tokens_scheduled(clip.tokenize(text)))
