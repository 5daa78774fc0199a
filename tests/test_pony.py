"""The model that comes with the pack makes what it is asked for, on the command line and in ComfyUI."""

from pathlib import Path

import pytest
from pony_cases import CASES, SECONDS, SIDE, Case, check_clip, given_sound, png

from happyhorse_core.cli import main
from scripts.build_workflows import PONY as ENTRIES
from training.run import PONY
from workflow_cases import api, node_of, nodes_of

LARGEST = 40e6
each_case = pytest.mark.parametrize("name", CASES)


def test_all_files_together_are_small():
    assert sum(path.stat().st_size for path in PONY.rglob("*") if path.is_file()) <= LARGEST


@each_case
def test_command_line(name, tmp_path):
    case, clip = CASES[name], tmp_path / "clip.mp4"
    command = ["generate", "--models", PONY, "--prompt", case.prompt, "--size", f"{SIDE}x{SIDE}", "--output", clip]
    command += ["--seed", 1]
    if case.from_picture:
        (tmp_path / "first.png").write_bytes(png(case.picture))
        command += ["--image", tmp_path / "first.png"]
    if case.from_sound:
        (tmp_path / "sound.wav").write_bytes(given_sound(case))
        command += ["--audio", tmp_path / "sound.wav"]
    else:
        command += ["--seconds", SECONDS]
    assert main([str(word) for word in command]) == 0
    check_clip(clip, case)


def test_command_line_with_the_base_model(tmp_path):
    case, clip = CASES["sliding"], tmp_path / "clip.mp4"
    command = ["generate", "--models", PONY, "--model", "base", "--guidance", "1.5,1.5,1.5", "--prompt", case.prompt]
    command += ["--seed", 1, "--seconds", SECONDS, "--size", f"{SIDE}x{SIDE}", "--output", clip]
    assert main([str(word) for word in command]) == 0
    check_clip(clip, case)


def workflow(case: Case) -> dict:
    """The template that the case is for, with the Pony's parts and the case's prompt and size."""
    prompt = api("image_to_video" if case.from_picture else "audio_driven" if case.from_sound else "pony")
    if case.from_sound:  # the template without its picture, as its note says
        hold = node_of(prompt, "HappyHorseImageToVideo")
        prompt[node_of(prompt, "HappyHorseAudioToVideo")]["inputs"]["latent"] = prompt.pop(hold)["inputs"]["latent"]
        del prompt[node_of(prompt, "LoadImage")]
        prompt[node_of(prompt, "LoadAudio")]["inputs"]["audio"] = "pony.wav"
    for node in prompt.values():
        node["inputs"] |= {field: name for field, name in ENTRIES.items() if field in node["inputs"]}
    prompt[node_of(prompt, "CLIPTextEncode")]["inputs"]["text"] = case.prompt
    prompt[node_of(prompt, "HappyHorseEmptyLatent")]["inputs"] |= {"width": SIDE, "height": SIDE, "seconds": SECONDS}
    for key in nodes_of(prompt, "LoadImage"):
        prompt[key]["inputs"]["image"] = "pony.png"
    return prompt


@each_case
def test_workflow(comfy_server, name):
    case = CASES[name]
    comfy_server.put_input(png(case.picture), "pony.png")
    comfy_server.put_input(given_sound(case), "pony.wav")
    (path,) = comfy_server.files_of(comfy_server.queue(workflow(case)))
    check_clip(Path(path), case)


def test_loaders_offer_it_after_what_the_user_has(comfy_server):
    for kind, field in (
        ("HappyHorseModelLoader", "model_name"),
        ("HappyHorseTextEncoderLoader", "text_encoder_name"),
        ("HappyHorseVideoVAELoader", "decoder_name"),
        ("HappyHorseVideoVAELoader", "encoder_name"),
        ("HappyHorseAudioVAELoader", "audio_vae_name"),
    ):
        options = comfy_server.object_info()[kind]["input"]["required"][field][1]
        shipped = [name for name in options["options"] if name.startswith("HappyHorse-Pony/")]
        assert ENTRIES[field] in shipped and options["options"][-len(shipped) :] == shipped
        assert options["default"] not in shipped
