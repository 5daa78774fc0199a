"""Where a stage computes what is no number, it says so, with the file and its tensors, and no clip is written."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from happyhorse_core.cli import main
from happyhorse_core.errors import CheckpointError
from happyhorse_core.finite import check_finite

OF_TEXT = "t5gemma-9b-9b-ul2/model-00001-of-00003.safetensors", "model.encoder.layers.0.mlp.down_proj.weight"
OF_STILL = "Wan2.2-TI2V-5B/Wan2.2_VAE.pth", "encoder.conv1.weight"
OF_MODEL = "distill/model-00003-of-00003.safetensors", "final_norm_video.weight"
OF_LARGER = "540p_sr/model-00003-of-00003.safetensors", "final_norm_video.weight"
OF_VIDEO = "turbo_vae/checkpoint-340000.ckpt", "decoder.conv_out.conv.weight"
OF_SOUND = "stable-audio-open-1.0/model.safetensors", "pretransform.model.decoder.layers.0.weight_g"
DAMAGED = {
    "Encode prompt": OF_TEXT,
    "Encode image": OF_STILL,
    "Denoise with the distilled model": OF_MODEL,
    "Denoise with the 540p_sr model": OF_LARGER,
    "Decode sound": OF_SOUND,
    "Decode video": OF_VIDEO,
}
EXTRA = {
    "Encode image": ["--image", "picture.png"],
    "Denoise with the 540p_sr model": ["--upscale", "96x96"],
}


def poison(file: Path, name: str, value: float) -> None:
    """Puts ``value`` at the end of a tensor."""
    if file.suffix == ".safetensors":
        tensors = load_file(file)
        tensors[name].view(-1)[-1] = value
        save_file(tensors, file)
        return
    content = torch.load(file, weights_only=True)
    content.get("ema_state_dict", content)[name].view(-1)[-1] = value
    torch.save(content, file)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("stage", DAMAGED)
def test_the_stage_that_computes_no_numbers_is_named(
    models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    stage: str,
    value: float,
) -> None:
    monkeypatch.chdir(tmp_path)
    file, name = DAMAGED[stage]
    shutil.copytree(models, "models")
    poison(Path("models") / file, name, value)
    Image.fromarray(np.full((64, 64, 3), 90, np.uint8)).save("picture.png")
    before = set(tmp_path.iterdir())
    options = ["--prompt", "A horse.", "--seconds", "0.2", "--size", "64x64", "--steps", "2", *EXTRA.get(stage, [])]
    assert main(["generate", "--models", "models", "--output", "clip.mp4", *options]) == 1
    error = capsys.readouterr().err.rpartition("error: ")[2]
    part = (Path("models") / file).parent
    assert f"{stage}: found values that are not finite (NaN or infinite) in what was computed with {part}" in error
    last = name.removesuffix("_g").rpartition("coder.")[2]
    assert "it holds such values itself, in " in error and last in error
    assert set(tmp_path.iterdir()) == before


def test_without_a_cause_in_the_weights_another_precision_is_the_way_out() -> None:
    good, bad = torch.ones(3), torch.tensor([1.0, -math.inf])
    check_finite("Encode prompt", Path("file"), good, good, model=torch.nn.Linear(2, 2))
    with pytest.raises(CheckpointError, match="Encode prompt: .* computed with file. Compute with --dtype float32"):
        check_finite("Encode prompt", Path("file"), good, bad, model=torch.nn.Linear(2, 2))
