"""Wires from the wrong place, wrong files and impossible sizes: an error names the input, what came and what fits."""

import logging
from types import SimpleNamespace

import pytest
import tiny
import torch
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.nodes.host import files


def sampler(**changes):
    inputs = {"model": tiny.model(), "positive": tiny.positive(), "latent": tiny.empty(), "seed": 1, "steps": 1}
    return tiny.run(pack.HappyHorseSampler, **(inputs | changes))


def decoder(**changes):
    inputs = {"latent": tiny.empty(), "vae": tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    return tiny.run(pack.HappyHorseDecode, **(inputs | changes))


def image_to_video(**changes):
    inputs = {"latent": tiny.empty(), "vae": tiny.video_vae(), "image": tiny.picture()}
    return tiny.run(pack.HappyHorseImageToVideo, **(inputs | changes))


def plain_latent():
    return {"samples": torch.ones(1, 16, 3, 4, 6)}


def other_vae():
    """The parts of a VAE of another model that the checks look at."""
    return SimpleNamespace(first_stage_model=torch.nn.Identity(), latent_channels=4, latent_dim=2)


@pytest.mark.parametrize("node", [sampler, decoder, image_to_video])
def test_latent_of_another_model(node):
    with pytest.raises(ValueError, match=r"latent: found \[1, 16, 3, 4, 6\], expected video .* and audio .*Empty"):
        node(latent=plain_latent())


def test_streams_in_the_wrong_order():
    video, audio = tiny.streams(tiny.empty())
    with pytest.raises(ValueError, match="latent: found"):
        decoder(latent={"samples": NestedTensor([audio, video])})


@pytest.mark.parametrize("folder", ["540p_sr", "1080p_sr"])
def test_super_resolution_model_where_a_clip_is_to_be_made(folder):
    with pytest.raises(ValueError, match=f"model: found the {folder} super-resolution model, expected a distilled"):
        sampler(model=tiny.model(f"daVinci-MagiHuman/{folder}"))


def test_base_model_in_the_distilled_sampler_is_said(caplog):
    with caplog.at_level(logging.WARNING):
        sampler(model=tiny.model("daVinci-MagiHuman/base"))
    assert "the base model was made for 32 steps" in caplog.text


def test_model_of_another_kind():
    with pytest.raises(ValueError, match="model: found a Identity model, expected one from Load HappyHorse Model"):
        sampler(model=SimpleNamespace(model=torch.nn.Identity()))


def test_text_of_another_encoder():
    with pytest.raises(ValueError, match="positive: found text embeddings of width 768, expected 24"):
        sampler(positive=[[torch.ones(1, 5, 768), {}]])


def test_text_of_another_encoder_under_a_core_sampler():
    import nodes

    text = [[torch.ones(1, 5, 768), {}]]
    with pytest.raises(ValueError, match="conditioning: found a text embedding of width 768, expected width 24"):
        nodes.KSampler().sample(tiny.model(), 1, 1, 1.0, "lcm", "simple", text, text, tiny.empty())


def test_latent_without_sound_under_a_core_sampler():
    import nodes

    text = tiny.positive()
    latent = {"samples": torch.ones(1, 48, 3, 4, 6)}
    with pytest.raises(ValueError, match=r"latent: found streams of shapes \[\[1, 48, 3, 4, 6\]\], expected video"):
        nodes.KSampler().sample(tiny.model(), 1, 1, 1.0, "lcm", "simple", text, text, latent)


def test_empty_prompt():
    with pytest.raises(ValueError, match="positive: found an empty prompt"):
        sampler(positive=tiny.positive(" \n"))


def test_swapped_vaes():
    with pytest.raises(ValueError, match="^vae: found an audio VAE, expected a video VAE"):
        decoder(vae=tiny.audio_vae(), audio_vae=tiny.video_vae())
    with pytest.raises(ValueError, match="^audio_vae: found a video VAE, expected an audio VAE"):
        decoder(audio_vae=tiny.video_vae())
    with pytest.raises(ValueError, match="^vae: found an audio VAE"):
        image_to_video(vae=tiny.audio_vae())


def test_vaes_of_other_models():
    with pytest.raises(ValueError, match="^vae: found a VAE of 4 latent channels, expected the 48 of Wan2.2"):
        decoder(vae=other_vae())
    with pytest.raises(ValueError, match="^audio_vae: found Identity, expected the VAE of Load HappyHorse Audio VAE"):
        decoder(audio_vae=other_vae())


def test_vae_without_an_encoder():
    with pytest.raises(ValueError, match="vae: this VAE can only decode. Choose Wan2.2_VAE.pth as the encoder"):
        image_to_video(vae=tiny.video_vae("none"))


def test_several_pictures():
    with pytest.raises(ValueError, match="image: found 3 images, expected one"):
        image_to_video(image=tiny.picture().repeat(3, 1, 1, 1))


def test_a_clip_of_pictures_in_the_core_encode_node():
    import nodes

    with pytest.raises(ValueError, match="pixels: found 2 frames, expected one"):
        nodes.VAEEncode().encode(tiny.video_vae(), tiny.picture(64, 64).repeat(2, 1, 1, 1))


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("size", [(96, 64), (33, 40), (500, 30)])
def test_pictures_of_every_kind_become_a_first_frame(channels, size):
    image = tiny.picture(*size)
    image = image[..., :1] if channels == 1 else torch.cat([image, image[..., :1]], dim=-1)[..., :channels]
    video, _ = tiny.streams(image_to_video(image=image)[0])
    assert list(video.shape) == [1, 48, 3, 4, 6]
    assert torch.isfinite(video).all()


def test_sizes_off_the_grid_are_snapped_and_said(caplog):
    with caplog.at_level(logging.WARNING):
        video, audio = tiny.streams(tiny.empty(width=110, height=70, frames=8))
    assert list(video.shape) == [1, 48, 2, 4, 6]
    assert audio.shape[-1] == 8
    assert "110 x 70 is not a multiple of 32; the clip is 96 x 64" in caplog.text
    assert "8 frames are not 4n + 1; the clip has 5 frames" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"), [("width", 0), ("height", -32), ("width", 9999), ("frames", 1), ("frames", 10**6)]
)
def test_impossible_sizes(field, value):
    with pytest.raises(ValueError, match=f"{field}: found {value}, expected"):
        tiny.empty(**{field: value})


@pytest.mark.parametrize("seconds", [0.0, -1.0, 31.0])
def test_impossible_lengths(seconds):
    inputs = {"width": 64, "height": 64, "seconds": seconds, "frames": 0, "batch_size": 1}
    with pytest.raises(ValueError, match="seconds: found"):
        tiny.run(pack.HappyHorseEmptyLatent, **inputs)


@pytest.mark.parametrize("name", ["missing.safetensors", "../vae/Wan2.2_VAE.pth", "/etc/hostname"])
def test_names_outside_the_model_folders(name):
    with pytest.raises(ValueError, match=r"model_name: .* is not in the diffusion_models folder"):
        tiny.run(pack.HappyHorseModelLoader, model_name=name, weight_dtype="default", role="auto")


def test_files_of_other_models_in_each_loader():
    with pytest.raises(ValueError, match=r"Wan2.2_VAE.pth.*audio|audio.*Wan2.2_VAE.pth"):
        tiny.run(pack.HappyHorseAudioVAELoader, audio_vae_name="Wan2.2_VAE.pth")
    with pytest.raises(ValueError, match=r"checkpoint-340000.ckpt.*Wan2.2|Wan2.2.*checkpoint-340000.ckpt"):
        inputs = {"decoder_name": "checkpoint-340000.ckpt", "encoder_name": "checkpoint-340000.ckpt"}
        tiny.run(pack.HappyHorseVideoVAELoader, **inputs)


def test_transformer_with_a_missing_tensor(tmp_path):
    from happyhorse_pack.happyhorse_core.weights.source import open_source
    from happyhorse_pack.nodes.host.load import load_diffusion_model
    from safetensors.torch import save_file

    with open_source(files.resolve_entry("diffusion_models", tiny.DISTILLED, "name")) as source:
        tensors = {name: source.read(name).clone() for name in source.names}
    path = tmp_path / "cut.safetensors"
    del tensors["final_norm_audio.weight"]
    save_file(tensors, path)
    with pytest.raises(ValueError, match=r"cut.safetensors: 1 of \d+ tensors are missing: .*final_norm_audio.weight"):
        load_diffusion_model(str(path))


def test_role_that_contradicts_the_folder_can_be_given():
    assert tiny.model(role="540p_sr").model.role.is_super_resolution


def test_shards_are_listed_as_their_folder():
    names = [
        "a.ckpt",
        "x/model-00001-of-00002.safetensors",
        "x/model-00002-of-00002.safetensors",
        "x/other.safetensors",
    ]
    assert files.collapse_shards(names) == ["a.ckpt", "x", "x/other.safetensors"]
    assert files.collapse_shards(["m-00001-of-00002.safetensors"]) == ["m.safetensors.index.json"]
    assert files.list_entries("diffusion_models") == [
        *(f"daVinci-MagiHuman/{name}" for name in ("1080p_sr", "540p_sr", "base", "distill")),
        "HappyHorse-Pony/distill",
        "HappyHorse-Pony/base",
    ]


def test_shipped_model_is_preferred_only_where_there_is_no_other():
    shipped = ["HappyHorse-Pony/distill", "HappyHorse-Pony/base"]
    assert files.preferred(shipped, "magihuman", "base") == "HappyHorse-Pony/base"
    assert files.preferred(["other", *shipped], "distill") == "other"


def test_shipped_entry_stays_in_its_folder():
    assert files.resolve_entry("diffusion_models", "HappyHorse-Pony/base", "name").endswith("base")
    for name in ("HappyHorse-Pony/../nodes", "HappyHorse-Pony/nothing"):
        with pytest.raises(ValueError, match="name: .* is not in the diffusion_models folder"):
            files.resolve_entry("diffusion_models", name, "name")


OUTSIDE = [
    "/etc",
    "../models",
    "a/../..",
    "C:x",
    "C:\\x",
    "\\Windows\\x",
    "..\\x",
    "a\\..\\..\\x",
    "\\\\host\\share\\x",
]


@pytest.mark.parametrize("name", [*OUTSIDE, "", ".", "a\0b", "\udcff", "x" * 5000])
def test_names_that_no_model_folder_holds(name, tmp_path, monkeypatch):
    """Even where a file of that name lies there: what a shared workflow names means the same on every system."""
    monkeypatch.setattr(files.folder_paths, "get_folder_paths", lambda kind: [str(tmp_path / "models")])
    (tmp_path / "models").mkdir()
    if "/" not in name and name in OUTSIDE:
        (tmp_path / "models" / name).touch()
    with pytest.raises(ValueError, match="name: .* is not in the diffusion_models folder"):
        files.resolve_entry("diffusion_models", name, "name")
