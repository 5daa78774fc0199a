"""Graphs of core's nodes around our loaders, on a real ComfyUI server: results, cache, interruption and previews."""

import io
import json
import struct
import uuid

import av
import numpy as np
import pytest
from PIL import Image
from safetensors import safe_open

from comfy_host import ComfyServer, PromptInterruptedError
from tools.make_tiny_checkpoints import write_stack

SEED = 5
WIDTH, HEIGHT = 96, 64
STEPS = 4


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def core_graph(model: str = "distill", seconds: float = 1.0, steps: int = STEPS) -> dict:
    """Text to video by core's nodes: only the loaders and the empty latent are ours."""
    latent = {"width": WIDTH, "height": HEIGHT, "seconds": seconds, "frames": 0, "batch_size": 1}
    weights = {"weight_dtype": "default"}
    sampling = {"seed": SEED, "steps": steps, "cfg": 1.0, "sampler_name": "lcm", "scheduler": "simple", "denoise": 1.0}
    return {
        "model": node("HappyHorseModelLoader", model_name=f"daVinci-MagiHuman/{model}", role="auto", **weights),
        "shifted": node("ModelSamplingSD3", model=["model", 0], shift=5.0),
        "clip": node("HappyHorseTextEncoderLoader", text_encoder_name="t5gemma-9b-9b-ul2", device="default", **weights),
        "vae": node("HappyHorseVideoVAELoader", decoder_name="checkpoint-340000.ckpt", encoder_name="Wan2.2_VAE.pth"),
        "audio_vae": node("HappyHorseAudioVAELoader", audio_vae_name="stable_audio_open_1.0.safetensors"),
        "text": node("CLIPTextEncode", clip=["clip", 0], text="A man by the window says good morning."),
        "empty": node("HappyHorseEmptyLatent", **latent),
        "sampled": node(
            "KSampler",
            model=["shifted", 0],
            positive=["text", 0],
            negative=["text", 0],
            latent_image=["empty", 0],
            **sampling,
        ),
        "pictures": node("VAEDecode", samples=["sampled", 0], vae=["vae", 0]),
        "sound": node("VAEDecodeAudio", samples=["sampled", 0], vae=["audio_vae", 0]),
        "video": node("CreateVideo", images=["pictures", 0], audio=["sound", 0], fps=25.0),
        "saved": node("SaveVideo", video=["video", 0], filename_prefix="core", format="auto", codec="auto"),
    }


def latent_graph(model: str = "distill", name: str = "") -> dict:
    """The same, ending with both clean latents in files of their own."""
    graph = {key: value for key, value in core_graph(model).items() if key in LATENT_PART}
    graph["apart"] = node("LTXVSeparateAVLatent", av_latent=["sampled", 0])
    for slot, stream in enumerate(("video", "audio")):
        prefix = f"latents/{name or uuid.uuid4().hex}_{stream}"
        graph[stream] = node("SaveLatent", samples=["apart", slot], filename_prefix=prefix)
    return graph


LATENT_PART = ("model", "shifted", "clip", "text", "empty", "sampled")


def latents(server: ComfyServer, model: str = "distill") -> dict[str, bytes]:
    """The values of the clean latents of a run."""
    entry, found = server.queue(latent_graph(model)), {}
    for stream in ("video", "audio"):
        (item,) = entry["outputs"][stream]["latents"]
        with safe_open(server.output / item["subfolder"] / item["filename"], "np") as file:
            found[stream] = file.get_tensor("latent_tensor").tobytes()
    return found


def cached(entry: dict) -> set[str]:
    return set(dict(entry["status"]["messages"])["execution_cached"]["nodes"])


def pictures_and_samples(path) -> tuple[int, int]:
    with av.open(str(path)) as file:
        frames = [frame for packet in file.demux() for frame in packet.decode()]
    pictures = [frame for frame in frames if isinstance(frame, av.VideoFrame)]
    return len(pictures), sum(frame.samples for frame in frames if isinstance(frame, av.AudioFrame))


def test_core_nodes_make_a_video_with_sound_and_the_same_graph_is_served_from_the_cache(comfy_server):
    comfy_server.forget_results()
    entry = comfy_server.queue(core_graph())
    (path,) = comfy_server.files_of(entry)
    pictures, samples = pictures_and_samples(path)
    assert pictures == 25 and abs(samples / 44100 - 1) < 0.05
    assert cached(entry) == set()
    with comfy_server.events() as events:
        again = comfy_server.queue(core_graph(), client_id=events.client_id)
        ran = {data["node"] for data in events.of_type("progress")}
    assert set(core_graph()) - {"saved"} <= cached(again) and not ran
    longer = comfy_server.queue(core_graph(steps=STEPS + 1))
    assert cached(longer) == {"model", "shifted", "clip", "vae", "audio_vae", "text", "empty"}


def test_what_the_server_shall_forget_it_does_before_the_next_workflow(comfy_server):
    picture = node("EmptyImage", width=64, height=64, batch_size=1, color=255)
    graph = {"picture": picture, "saved": node("SaveImage", images=["picture", 0], filename_prefix="forgotten")}
    for _ in range(20):
        comfy_server.queue(graph)
        comfy_server.forget_results()
        assert cached(comfy_server.queue(graph)) == set()


def test_saved_latents_are_loaded_joined_and_decoded(comfy_server):
    entry = comfy_server.queue(latent_graph(name="kept"))
    graph = {key: core_graph()[key] for key in ("vae", "audio_vae", "video", "saved")}
    for stream in ("video", "audio"):
        (item,) = entry["outputs"][stream]["latents"]
        name = comfy_server.put_input(comfy_server.output / item["subfolder"] / item["filename"])
        graph[f"loaded {stream}"] = node("LoadLatent", latent=name)
    streams = {"video_latent": ["loaded video", 0], "audio_latent": ["loaded audio", 0]}
    graph["joined"] = node("LTXVConcatAVLatent", **streams)
    graph["pictures"] = node("VAEDecodeTiled", samples=["joined", 0], vae=["vae", 0], **TILES)
    graph["sound"] = node("VAEDecodeAudioTiled", samples=["joined", 0], vae=["audio_vae", 0], tile_size=512, overlap=64)
    (path,) = comfy_server.files_of(comfy_server.queue(graph))
    assert pictures_and_samples(path)[0] == 25


TILES = {"tile_size": 512, "overlap": 64, "temporal_size": 64, "temporal_overlap": 8}


def test_two_models_in_turn(comfy_server):
    comfy_server.forget_results()
    first, other = latents(comfy_server), latents(comfy_server, "base")
    assert first["video"] != other["video"]
    comfy_server.forget_results()
    assert latents(comfy_server, "base") == other
    assert latents(comfy_server) == first


def test_interrupted_decoding_ends_early_and_the_next_run_is_right(comfy_server):
    comfy_server.forget_results()
    with comfy_server.events() as events:
        prompt = comfy_server.submit(core_graph(seconds=30.0, steps=1), client_id=events.client_id)
        events.wait_for("progress", lambda data: data["node"] == "pictures" and 1 <= data["value"] < data["max"])
        comfy_server.interrupt()
        with pytest.raises(PromptInterruptedError):
            comfy_server.wait(prompt, seconds=60)
        stopped = events.wait_for("execution_interrupted")
    assert stopped["node_id"] == "pictures" and "video" not in stopped["executed"]
    (path,) = comfy_server.files_of(comfy_server.queue(core_graph()))
    assert pictures_and_samples(path)[0] == 25


@pytest.mark.parametrize("with_metadata", [False, True], ids=["plain", "with metadata"])
def test_a_picture_is_shown_at_each_step(comfy_server, with_metadata):
    """Binary messages of type 1, or of type 4 to clients that ask for them, as the browser does."""
    comfy_server.forget_results()
    with comfy_server.events() as events:
        if with_metadata:
            events.send("feature_flags", {"supports_preview_metadata": True})
        extra = {"preview_method": "latent2rgb"}
        payload = {"prompt": latent_graph(), "client_id": events.client_id, "extra_data": extra}
        comfy_server.wait(comfy_server.post("/prompt", payload)["prompt_id"])
        events.wait_for("execution_success")
        steps = [data["value"] for data in events.of_type("progress") if data["node"] == "sampled"]
        previews = list(events.previews)
    assert steps == list(range(1, STEPS + 1))
    shown = [shown_in(kind, data) for kind, data in previews if kind == (4 if with_metadata else 1)]
    assert len(shown) == STEPS
    for metadata, picture in shown:
        assert abs(picture.width / picture.height - WIDTH / HEIGHT) < 0.01, "in the shape of the clip"
        assert np.asarray(picture).std() > 5, "not a blank one"
        assert not with_metadata or metadata["node_id"] == "sampled"
    first, last = (np.asarray(shown[index][1]).astype(int) for index in (0, -1))
    assert np.abs(first - last).mean() > 1, "it follows the steps"


def shown_in(kind: int, data: bytes) -> tuple[dict, Image.Image]:
    """Metadata and picture of a preview."""
    if kind == 1:
        return {}, Image.open(io.BytesIO(data[4:]))
    (length,) = struct.unpack(">I", data[:4])
    return json.loads(data[4 : 4 + length]), Image.open(io.BytesIO(data[4 + length :]))


def test_a_server_that_keeps_no_model_and_no_result_makes_the_same(comfyui, comfy_server, tmp_path):
    expected = latents(comfy_server)
    write_stack(tmp_path / "models", "comfyui", 0)
    with ComfyServer(comfyui, tmp_path, arguments=["--disable-smart-memory", "--cache-none"]) as server:
        assert latents(server) == expected
        assert latents(server) == expected
