"""Base model, given sound, prompt and longer clips on a real ComfyUI server, with tiny models of random weights."""

import struct
import wave
from pathlib import Path

import av
import numpy as np
import pytest

from comfy_host import PromptFailedError

TEXT_EVENT = 3
WORDS = "A young woman walks along the quiet river while evening light falls. " * 13


DEFAULT = {"weight_dtype": "default"}


def node(kind: str, **inputs: object) -> dict:
    return {"class_type": kind, "inputs": inputs}


def graph(role: str = "distill", seconds: float = 1.0, **others: dict) -> dict:
    """Loaders, prompts and an empty latent under short names, and what else is given."""
    return {
        "model": node("HappyHorseModelLoader", model_name=f"daVinci-MagiHuman/{role}", role="auto", **DEFAULT),
        "clip": node("HappyHorseTextEncoderLoader", text_encoder_name="t5gemma-9b-9b-ul2", device="default", **DEFAULT),
        "vae": node("HappyHorseVideoVAELoader", decoder_name="checkpoint-340000.ckpt", encoder_name="Wan2.2_VAE.pth"),
        "audio_vae": node("HappyHorseAudioVAELoader", audio_vae_name="stable_audio_open_1.0.safetensors"),
        "prompt": node("HappyHorsePrompt", description=WORDS, speaker_1="Woman in red", words_1="早上好", **LINES),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=["prompt", 0]),
        "empty": node("HappyHorseEmptyLatent", width=96, height=64, seconds=seconds, frames=0, batch_size=1),
        **others,
    }


LINES = {f"language_{n}": "Mandarin" for n in (1, 2, 3, 4)} | {"background_sound": "Soft rain"}
LINES |= {f"{part}_{n}": "" for part in ("speaker", "words") for n in (2, 3, 4)}


def distilled(latent: str, seed: int = 1) -> dict:
    return node(
        "HappyHorseSampler", model=["model", 0], positive=["positive", 0], latent=[latent, 0], seed=seed, steps=2
    )


def decoded(latent: str) -> dict:
    return node("HappyHorseDecode", latent=[latent, 0], vae=["vae", 0], audio_vae=["audio_vae", 0])


def saved(source: str, slot: int) -> dict:
    inputs = {"format": "mp4", "format.codec": "h264"}
    return node("SaveVideo", video=[source, slot], filename_prefix=f"stages/{source}", **inputs)


def lengths(path: Path) -> tuple[int, float]:
    """Pictures and seconds of sound in a video file."""
    pictures = samples = rate = 0
    with av.open(str(path)) as file:
        for packet in file.demux(file.streams.video[0], file.streams.audio[0]):
            for frame in packet.decode():
                if isinstance(frame, av.VideoFrame):
                    pictures += 1
                else:
                    samples, rate = samples + frame.samples, frame.sample_rate
    return pictures, samples / rate


def assert_saved(server, entry: dict, pictures: int) -> None:
    (path,) = [path for path in server.files_of(entry) if path.suffix == ".mp4"]
    found, seconds = lengths(path)
    assert found == pictures
    assert abs(seconds - pictures / 25) < 1 / 25


def assert_quiet(log: str) -> None:
    assert "Traceback" not in log
    assert "[WARNING]" not in log and "[ERROR]" not in log


def texts(previews: list[tuple[int, bytes]]) -> dict[str, str]:
    """What was shown on nodes, by their ids."""
    found = {}
    for kind, payload in previews:
        if kind == TEXT_EVENT:
            (length,) = struct.unpack(">I", payload[:4])
            found[payload[4 : 4 + length].decode()] = payload[4 + length :].decode()
    return found


def base_graph(**guidance: float) -> dict:
    ends = {"positive": ["positive", 0], "negative": ["negative", 0]}
    return graph(
        "base",
        negative=node("HappyHorseNegativePrompt", clip=["clip", 0], text="blurred, hiss"),
        sampler=node(
            "HappyHorseBaseSampler", model=["model", 0], **ends, latent=["empty", 0], seed=1, steps=2, **guidance
        ),
        decode=decoded("sampler"),
        save=saved("decode", 2),
    )


SCALES = {"video_scale_early": 5.0, "video_scale_late": 2.0, "switch_timestep": 500, "audio_scale": 5.0}


def test_base_model_makes_a_clip_from_a_built_prompt(comfy_server):
    before = len(comfy_server.log_text())
    with comfy_server.events() as events:
        entry = comfy_server.queue(base_graph(**SCALES), client_id=events.client_id)
        events.wait_for("execution_success")
        shown = texts(events.previews)
    assert_saved(comfy_server, entry, 25)
    assert shown == {"prompt": "description: 156 words."}
    assert entry["outputs"]["prompt"]["text"] == ["description: 156 words."]
    assert_quiet(comfy_server.log_text()[before:])


def test_the_guider_works_in_core_nodes(comfy_server):
    ends = {"model": ["model", 0], "positive": ["positive", 0], "negative": ["negative", 0]}
    prompt = base_graph(**SCALES) | {
        "guider": node("HappyHorseGuider", **ends, **SCALES),
        "sigmas": node("HappyHorseSigmas", steps=2, shift=5.0),
        "solver": node("HappyHorseSamplerUniPC"),
        "noise": node("RandomNoise", noise_seed=1),
    }
    prompt["sampler"] = node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["solver", 0],
        sigmas=["sigmas", 0],
        latent_image=["empty", 0],
    )
    assert_saved(comfy_server, comfy_server.queue(prompt), 25)


def recording(seconds: float, rate: int) -> bytes:
    """A mono WAV file of 16 bits."""
    times = np.arange(int(seconds * rate)) / rate
    return (np.sin(times * 2 * np.pi * 330) * np.linspace(0.2, 0.9, len(times)) * 32767).astype("<i2").tobytes()


def test_a_given_sound_comes_out_as_it_went_in(comfy_server, tmp_path):
    rate, samples = 22050, recording(1.0, 22050)
    with wave.open(str(tmp_path / "speech.wav"), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(samples)
    comfy_server.put_input(tmp_path / "speech.wav")
    prompt = graph(
        load=node("LoadAudio", audio="speech.wav"),
        drive=node("HappyHorseAudioToVideo", audio_vae=["audio_vae", 0], audio=["load", 0], latent=["empty", 0]),
        sampler=distilled("drive"),
        decode=decoded("sampler"),
        save=saved("decode", 2),
        flac=node("SaveAudio", audio=["decode", 1], filename_prefix="stages/speech"),
    )
    before = len(comfy_server.log_text())
    entry = comfy_server.queue(prompt)
    assert_saved(comfy_server, entry, 25)
    (path,) = [path for path in comfy_server.files_of(entry) if path.suffix == ".flac"]
    with av.open(str(path)) as file:
        stream = file.streams.audio[0]
        assert (stream.rate, stream.channels) == (rate, 1)
        frames = [frame.to_ndarray() for frame in file.decode(stream)]
    found = np.concatenate([frame.reshape(-1) for frame in frames]).astype(np.int64)
    found = found // 65536 if np.abs(found).max() > 32768 else found
    assert len(found) == rate
    assert np.abs(found - np.frombuffer(samples, "<i2")).max() <= 1
    assert_quiet(comfy_server.log_text()[before:])


def extended(overlap: float = 0.4) -> dict:
    return graph(
        first=distilled("empty"),
        clip_1=decoded("first"),
        extend=node(
            "HappyHorseExtend",
            video=["clip_1", 2],
            vae=["vae", 0],
            audio_vae=["audio_vae", 0],
            latent=["empty", 0],
            overlap=overlap,
        ),
        second=distilled("extend", seed=2),
        clip_2=decoded("second"),
        join=node(
            "HappyHorseJoinClips",
            video=["clip_1", 2],
            next_video=["clip_2", 2],
            overlap=["extend", 1],
            crossfade_ms=40.0,
        ),
        save=saved("join", 0),
    )


def test_a_clip_goes_on_and_both_become_one_video(comfy_server):
    assert_saved(comfy_server, comfy_server.queue(extended()), 25 + 25 - 10)


def test_an_overlap_that_leaves_nothing_is_refused_before_the_second_clip(comfy_server):
    with pytest.raises(PromptFailedError, match=r"node extend .*overlap: found 50 frames .2 s., but the clip has 25"):
        comfy_server.queue(extended(2.0))
