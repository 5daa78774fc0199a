"""Weights as people keep them: in folders of extra_model_paths.yaml, behind links, under names of any kind."""

import os
import shutil
from pathlib import Path

import folder_paths
import pytest
import tiny
import torch
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.errors import CheckpointError
from happyhorse_pack.nodes.host import files

NAMES = {
    "spaces": "turbo decoder (1).ckpt",
    "upper case": "TURBO.CKPT",
    "unicode": "Décodeur 解码器 🐎.ckpt",
    "a folder of its own": "subfolder/deep er/turbo.ckpt",
}


@pytest.fixture
def extra(tmp_path, monkeypatch):
    """A folder outside ComfyUI, named as in extra_model_paths.yaml."""
    folder = tmp_path / "Extra models"
    folder.mkdir()
    paths, endings = folder_paths.folder_names_and_paths["vae"]
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "vae", ([*paths, str(folder)], endings))
    monkeypatch.setattr(folder_paths, "filename_list_cache", {})
    return folder


def decoded(name):
    vae = tiny.run(pack.HappyHorseVideoVAELoader, decoder_name=name, encoder_name="none")[0]
    return vae.decode(torch.linspace(-1, 1, 48 * 2 * 4 * 6).reshape(1, 48, 2, 4, 6))


@pytest.mark.parametrize("linked", [False, True], ids=["copied", "linked"])
@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_file_of_any_name_is_listed_and_loaded(name, linked, extra):
    real = Path(files.resolve_entry("vae", "checkpoint-340000.ckpt", "name"))
    (extra / name).parent.mkdir(parents=True, exist_ok=True)
    if linked:
        (extra / name).symlink_to(real.resolve())
    else:
        shutil.copy(real, extra / name)
    inputs = {item.id: item for item in pack.HappyHorseVideoVAELoader.GET_SCHEMA().inputs}
    assert name in inputs["decoder_name"].options
    assert torch.equal(decoded(name), decoded("checkpoint-340000.ckpt"))


@pytest.mark.parametrize("ending", [".ckpt", ".safetensors"])
def test_a_name_that_is_no_text_is_refused(ending, extra):
    """The libraries that read weights take paths as UTF-8."""
    name = os.fsdecode(b"decoder \xff") + ending
    source = "checkpoint-340000.ckpt" if ending == ".ckpt" else "stable_audio_open_1.0.safetensors"
    shutil.copy(files.resolve_entry("vae", source, "name"), extra / name)
    with pytest.raises(CheckpointError, match="the name holds bytes that are no UTF-8.*Rename"):
        if ending == ".ckpt":
            decoded(name)
        else:
            tiny.run(pack.HappyHorseAudioVAELoader, audio_vae_name=name)
