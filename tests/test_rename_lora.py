"""The renaming of LoRA files, as a command; tests/nodes/test_core_loras.py loads what comes out of it."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from comfy_host import ROOT

LAYER = "block.layers.0.attention.linear_qkv"


def run(*arguments: object) -> subprocess.CompletedProcess:
    command = [sys.executable, str(ROOT / "scripts" / "rename_lora.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd="/", timeout=120)


def names(path: Path) -> list[str]:
    with safe_open(path, "pt") as file:
        return sorted(file.keys())


def test_every_prefix_becomes_the_hosts_and_nothing_else_changes(tmp_path):
    given = {
        f"base_model.model.{LAYER}.lora_A.weight": torch.ones(2, 3),
        f"base_model.model.transformer.{LAYER}.lora_B.default.weight": torch.full((4, 2), 2.0),
        f"{LAYER}.alpha": torch.tensor(2.0),
        "transformer.adapter.text_embedder.lora_A.weight": torch.ones(1, 1),
        "module.final_linear_audio.lora_A.weight": torch.ones(1, 1),
        "diffusion_model.block.layers.1.mlp.down_proj.lora_A.weight": torch.ones(1, 1),
        "lora_unet_block_layers_1_mlp_down_proj.lora_up.weight": torch.ones(1, 1),
    }
    save_file(given, tmp_path / "in.safetensors", {"ss_network_dim": "2"})
    answer = run(tmp_path / "in.safetensors", tmp_path / "out.safetensors")
    assert (answer.returncode, answer.stdout) == (0, "")
    assert "5 names changed" in answer.stderr
    assert names(tmp_path / "out.safetensors") == sorted([
        f"diffusion_model.{LAYER}.lora_A.weight",
        f"diffusion_model.{LAYER}.lora_B.weight",
        f"diffusion_model.{LAYER}.alpha",
        "diffusion_model.adapter.text_embedder.lora_A.weight",
        "diffusion_model.final_linear_audio.lora_A.weight",
        "diffusion_model.block.layers.1.mlp.down_proj.lora_A.weight",
        "lora_unet_block_layers_1_mlp_down_proj.lora_up.weight",
    ])  # fmt: skip
    with safe_open(tmp_path / "out.safetensors", "pt") as file:
        assert file.metadata() == {"ss_network_dim": "2"}
        assert torch.equal(file.get_tensor(f"diffusion_model.{LAYER}.lora_B.weight"), torch.full((4, 2), 2.0))


def test_a_file_is_renamed_in_place(tmp_path):
    path = tmp_path / "lora.safetensors"
    save_file({f"{LAYER}.lora_A.weight": torch.ones(1, 1)}, path)
    assert run(path, path).returncode == 0
    assert names(path) == [f"diffusion_model.{LAYER}.lora_A.weight"]
    assert [p.name for p in tmp_path.iterdir()] == ["lora.safetensors"]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"double_blocks.0.img_attn.qkv.lora_A.weight": 1}, "belongs to no layer of this model"),
        ({f"{LAYER}.lora_A.weight": 1, f"transformer.{LAYER}.lora_A.weight": 1}, "same name"),
        (None, "No such file"),
        (b"no safetensors", "header"),
    ],
    ids=["another model", "twice", "missing", "no safetensors"],
)
def test_what_cannot_be_renamed_is_said_and_nothing_is_written(tmp_path, tensors, message):
    path = tmp_path / "in.safetensors"
    if isinstance(tensors, bytes):
        path.write_bytes(tensors)
    elif tensors is not None:
        save_file({name: torch.ones(value) for name, value in tensors.items()}, path)
    answer = run(path, tmp_path / "out.safetensors")
    assert answer.returncode == 2
    assert message.lower() in answer.stderr.lower() and "Traceback" not in answer.stderr
    assert not [p for p in tmp_path.iterdir() if p != path]
