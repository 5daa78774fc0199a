"""The shipped workflows on a real ComfyUI server with tiny models of random weights."""

import io
import re
import uuid
from pathlib import Path

import av
import pytest
from PIL import Image
from safetensors import safe_open

from comfy_host import PACK_NAME, ROOT, PromptFailedError, PromptInterruptedError, PromptRefusedError
from happyhorse_core.prompt import length_warning
from scripts import build_workflows
from scripts.workflow_format import to_api
from workflow_cases import (
    HEIGHT,
    NAMES,
    NOTES,
    OF_RELEASED_MODELS,
    PICTURES,
    SEED,
    SIZES,
    WIDTH,
    api,
    canvas,
    node_of,
    put_files,
    small,
)

WAN = "Wan-AI/Wan2.2-TI2V-5B"
PAGES = ("GAIR/daVinci-MagiHuman", "google/t5gemma-9b-9b-ul2", "stabilityai/stable-audio-open-1.0", WAN)
PROMPTS = ("CLIPTextEncode", "HappyHorsePrompt")

each_workflow = pytest.mark.parametrize("name", NAMES)
each_released = pytest.mark.parametrize("name", OF_RELEASED_MODELS)


@pytest.fixture(scope="module")
def server(comfy_server):
    put_files(comfy_server)
    return comfy_server


# --- canvas and API formats -------------------------------------------------------------------------------------------


def test_files_are_those_that_the_script_writes(server):
    # Otherwise: python scripts/build_workflows.py --server ADDRESS
    wanted = build_workflows.files(server.object_info())
    assert not [path.name for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    assert {path.parent.name for path in wanted} == {"workflows", "api"} and len(wanted) == 2 * len(NAMES)


@each_workflow
def test_canvas_and_api_format_are_the_same_workflow(server, name):
    assert to_api(canvas(name), server.object_info()) == api(name)


@each_released
def test_prompts_are_in_the_trained_format(name):
    texts = [values.get("description") or values.get("text") for values in inputs_of(name, *PROMPTS)]
    assert texts
    for text in texts:
        if isinstance(text, str):  # else from HappyHorse Prompt
            description, *rest = text.split("\n\n")
            assert length_warning(description) is None
            assert not rest or [part.split("\n")[0] for part in rest] == ["Dialogue:", "Background Sound:"]


def inputs_of(name: str, *kinds: str) -> list[dict]:
    return [node["inputs"] for node in api(name).values() if node["class_type"] in kinds]


@each_workflow
def test_canvas_is_consistent(server, name):
    graph, info = canvas(name), server.object_info()
    nodes = {node["id"]: node for node in graph["nodes"]}
    assert len(nodes) == len(graph["nodes"]) and graph["last_node_id"] == max(nodes)
    assert graph["last_link_id"] == len(graph["links"]) and graph["version"] == 0.4
    for key, source, slot, target, socket, kind in graph["links"]:
        output, entry = nodes[source]["outputs"][slot], nodes[target]["inputs"][socket]
        assert key in output["links"] and entry["link"] == key
        assert output["type"] == entry["type"] == kind
        assert nodes[source]["order"] < nodes[target]["order"]
        assert nodes[source]["pos"][0] <= nodes[target]["pos"][0], "the graph reads from left to right"
    for node in graph["nodes"]:
        if node["type"] in NOTES:
            continue
        assert [o["type"] for o in node["outputs"]] == info[node["type"]]["output"]
        assert [o["name"] for o in node["outputs"]] == info[node["type"]]["output_name"]
        # The same order, so that a file saved before an input was added still fits.
        assert node["widgets_values"] == list(node["widgets_values_named"].values())


@each_workflow
def test_canvas_is_laid_out_in_groups_without_overlap(name):
    graph = canvas(name)
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in graph["nodes"]}
    ids = sorted(boxes)
    for a in ids:
        assert not [b for b in ids if b > a and overlap(boxes[a], boxes[b])]
    for node in graph["nodes"]:
        inside = [group for group in graph["groups"] if overlap(boxes[node["id"]], group["bounding"])]
        assert len(inside) == (0 if node["type"] in NOTES else 1)


def overlap(a, b) -> bool:
    return a[0] < b[0] + b[2] and b[0] < a[0] + a[2] and a[1] < b[1] + b[3] and b[1] < a[1] + a[3]


@each_released
def test_note_names_every_file_its_folder_and_where_it_comes_from(name):
    graph = canvas(name)
    (note,) = [node["widgets_values"][0] for node in graph["nodes"] if node["type"] in NOTES]
    for node in api(name).values():
        for field, value in node["inputs"].items():
            if field.endswith("_name") and node["class_type"].startswith("HappyHorse") and value != "none":
                assert value.rsplit("/", 1)[-1] in note
    for page in PAGES:
        assert (f"](https://huggingface.co/{page}" in note) == (page != WAN or "Wan2.2_VAE.pth" in str(api(name)))
    for folder in ("diffusion_models", "text_encoders", "vae"):
        assert f"**{folder}" in note
    assert "Apache-2.0" in note and "Gemma" in note and "Stability AI Community" in note


# --- runs -------------------------------------------------------------------------------------------------------------


OF_TINY_MODELS = (
    "the model reads at most 640",  # the tiny tokenizer has few words
    "ghosting",  # the tiny sizes are not of the trained shape
    "frames differ",  # random weights do not keep a first frame
)
"""Warnings that the shipped sizes and released models do not give."""


def assert_clip(path: Path, width: int, height: int, pictures: int) -> None:
    with av.open(str(path)) as file:
        (video,), (sound,) = file.streams.video, file.streams.audio
        assert video.codec_context.name == "h264" and sound.codec_context.name == "aac"
        assert (video.width, video.height, video.average_rate) == (width, height, 25)
        assert (sound.rate, sound.channels) == (44100, 2)
        frames = samples = 0
        for packet in file.demux(video, sound):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    frames += 1
                else:
                    samples += frame.samples
    assert frames == pictures
    # AAC packs 1024 samples; the last pack is filled up.
    assert abs(samples / 44100 - frames / 25) < 1 / 25


def assert_clean(log: str) -> None:
    assert "Traceback" not in log
    found = re.findall(r"^\[(?:WARNING|ERROR|CRITICAL)\].*", log, re.MULTILINE)
    assert not [line for line in found if not any(words in line for words in OF_TINY_MODELS)]


@each_workflow
def test_workflow_ends_with_a_video_with_sound_and_a_clean_log(server, name):
    before = len(server.log_text())
    entry = server.queue(small(name))
    (path,) = server.files_of(entry)
    assert path.suffix == ".mp4"
    assert_clip(path, *SIZES.get(name, (WIDTH, HEIGHT)), PICTURES.get(name, 25))
    assert_clean(server.log_text()[before:])


@each_workflow
def test_server_takes_the_api_file_as_it_is(server, name):
    prompt_id = server.submit(api(name))  # PromptRefusedError where an input does not fit
    server.post("/queue", {"delete": [prompt_id]})
    server.post("/interrupt", {"prompt_id": prompt_id})


def latents(server, name: str, **values: float) -> dict[str, bytes]:
    """The bytes of the clean latents, video and audio, of a run in which no node's result is taken from the cache."""
    server.forget_results()
    prompt = {key: node for key, node in small(name, **values).items() if node["class_type"] != "SaveVideo"}
    source = prompt[node_of(prompt, "HappyHorseDecode")]["inputs"]["latent"]
    prompt["split"] = {"class_type": "LTXVSeparateAVLatent", "inputs": {"av_latent": source}}
    for slot, stream in enumerate(("video", "audio")):
        inputs = {"samples": ["split", slot], "filename_prefix": f"latents/{uuid.uuid4().hex}"}
        prompt[stream] = {"class_type": "SaveLatent", "inputs": inputs}
    entry = server.queue(prompt)
    cached = dict(entry["status"]["messages"])["execution_cached"]["nodes"]
    assert source[0] not in cached
    found = {}
    for stream in ("video", "audio"):
        (item,) = entry["outputs"][stream]["latents"]
        with safe_open(server.output / item["subfolder"] / item["filename"], "np") as file:
            found[stream] = file.get_tensor("latent_tensor").tobytes()
    return found


@pytest.mark.parametrize("name", ["text_to_video", "image_to_video", "base_with_cfg", "super_resolution_1080p"])
def test_one_seed_gives_the_same_bytes_and_another_gives_others(server, name):
    first, again = latents(server, name), latents(server, name)
    assert first == again
    other = latents(server, name, seed=SEED + 1)
    assert all(first[stream] != other[stream] for stream in first)


def test_lora_changes_the_clip(server):
    assert latents(server, "lora")["video"] != latents(server, "lora", strength_model=0.0)["video"]


def test_picture_and_prompt_matter(server):
    given = latents(server, "image_to_video")
    free = latents(server, "text_to_video")
    assert given["video"] != free["video"]


def test_interrupted_run_ends_early_and_the_next_one_is_right(server):
    expected = latents(server, "text_to_video")
    server.forget_results()
    with server.events() as events:
        prompt_id = server.submit(small("text_to_video", steps=1000), client_id=events.client_id)
        events.wait_for("progress", lambda data: data["max"] == 1000 and data["value"] >= 2)
        server.interrupt()
        with pytest.raises(PromptInterruptedError):
            server.wait(prompt_id, seconds=20)
        events.wait_for("execution_interrupted")
        assert max(data["value"] for data in events.of_type("progress") if data["max"] == 1000) < 900
    assert latents(server, "text_to_video") == expected
    assert_clip(server.files_of(server.queue(small("text_to_video", seed=5)))[0], 96, 64, 25)


def test_progress_and_previews_come_while_the_clip_is_made(server):
    server.forget_results()
    prompt = small("text_to_video", seed=77)
    prompt[node_of(prompt, "HappyHorseEmptyLatent")]["inputs"]["seconds"] = 2.0
    with server.events() as events:
        payload = {"prompt": prompt, "client_id": events.client_id, "extra_data": {"preview_method": "latent2rgb"}}
        server.wait(server.post("/prompt", payload)["prompt_id"])
        steps = {data["node"]: data["max"] for data in events.of_type("progress")}
        previews = list(events.previews)
    assert steps[node_of(prompt, "HappyHorseSampler")] == 8
    assert node_of(prompt, "HappyHorseDecode") in steps
    pictures = [payload for kind, payload in previews if kind == 1]
    assert pictures and Image.open(io.BytesIO(pictures[-1][4:])).size[0] > 1


# --- bad input --------------------------------------------------------------------------------------------------------


def test_super_resolution_checkpoint_is_refused_with_a_way_out(server):
    prompt = small("text_to_video")
    loader = node_of(prompt, "HappyHorseModelLoader")
    prompt[loader]["inputs"]["model_name"] = "daVinci-MagiHuman/540p_sr"
    with pytest.raises(PromptFailedError, match="model: found the 540p_sr super-resolution model"):
        server.queue(prompt)


def test_file_that_is_not_there_is_refused_before_anything_runs(server):
    prompt = small("text_to_video")
    prompt[node_of(prompt, "HappyHorseModelLoader")]["inputs"]["model_name"] = "nothing.safetensors"
    with pytest.raises(PromptRefusedError, match=r"model_name.*nothing\.safetensors"):
        server.queue(prompt)


def test_truncated_weights_are_named(server):
    folder = server.models / "diffusion_models" / "broken"
    folder.mkdir()
    whole = server.models / "diffusion_models" / "daVinci-MagiHuman" / "distill" / "model-00001-of-00003.safetensors"
    (folder / "cut.safetensors").write_bytes(whole.read_bytes()[:-100])
    prompt = small("text_to_video")
    prompt[node_of(prompt, "HappyHorseModelLoader")]["inputs"]["model_name"] = "broken/cut.safetensors"
    with pytest.raises(PromptFailedError, match=r"cut\.safetensors"):
        server.queue(prompt)


def test_empty_prompt_is_refused(server):
    prompt = small("text_to_video")
    prompt[node_of(prompt, "CLIPTextEncode")]["inputs"]["text"] = " "
    with pytest.raises(PromptFailedError, match="positive: found an empty prompt"):
        server.queue(prompt)


# --- what the browser is served ---------------------------------------------------------------------------------------


def test_workflows_are_listed_as_templates(server):
    """Those of the canvas, and not the ones in API form beside them, which the editor would open without a layout."""
    assert sorted(server.get("/workflow_templates")[PACK_NAME]) == sorted(NAMES)


def test_help_pages_are_served(server):
    pages = sorted(path.name for path in (ROOT / "web" / "docs").glob("*.md"))
    ours = {f"{name}.md" for name, info in server.object_info().items() if info["python_module"].endswith(PACK_NAME)}
    assert set(pages) == ours
    for page in pages:
        assert server.get(f"/extensions/{PACK_NAME}/docs/{page}").startswith(b"# ")
