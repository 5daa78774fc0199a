"""Batches of clips for the transformer: prompts of one length, motions in their shares, weights of what changes."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from happyhorse_core.text.tokenizer import GemmaTokenizer
from tools.make_tiny_checkpoints import write_stack
from training.clips import (
    EMPHASIS,
    SECOND_EMPHASIS,
    SHARES,
    SOUND_WEIGHTS,
    STILL_WEIGHT,
    Clips,
    is_driven,
    make_clips,
    prompts_of,
    scene_of,
)
from training.text import make_tokenizer
from training.transformer import Prompts
from training.truth import truth_of
from training.world.scene import DROP

COUNT, SEED = 400, 4
MOTIONS = list(SHARES)


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Videos whose first channel is the number of the clip, and in which the channel of its motion changes."""
    folder = tmp_path_factory.mktemp("clips")
    generator = torch.Generator().manual_seed(0)
    video = torch.zeros(COUNT, 48, 5, 2, 2)
    for index in range(COUNT):
        video[index, 1 + MOTIONS.index(scene_of(SEED, index).motion)] = torch.randn(5, 2, 2, generator=generator)
        video[index, 0] = index
    save_file({"video": video, "audio": torch.zeros(COUNT, 64, 7)}, folder / "clips-000000.safetensors")
    path = folder / "tokenizer.json"
    texts = [text for index in range(COUNT) for text in prompts_of(SEED, index, scene_of(SEED, index))]
    path.write_text(make_tokenizer(texts), encoding="utf-8")
    return Clips(folder, SEED, GemmaTokenizer.from_file(path))


def test_motions_come_in_their_shares():
    found = [scene_of(SEED, index).motion for index in range(COUNT)]
    for motion, share in SHARES.items():
        assert found.count(motion) / COUNT == pytest.approx(share, abs=0.07)


def test_clips_come_as_often_as_their_motions_shall(clips):
    generator = torch.Generator().manual_seed(2)
    found = torch.cat([clips.draw(16, generator).video[:, 0, 0, 0, 0] for _ in range(400)]).long().tolist()
    scenes = [scene_of(SEED, index) for index in range(COUNT)]
    shares = [EMPHASIS.get(s.motion, 1.0) * (SECOND_EMPHASIS if s.second else 1.0) for s in scenes]
    kinds = {motion: [scene.motion == motion for scene in scenes] for motion in MOTIONS}
    kinds["with a second shape"] = [scene.second is not None for scene in scenes]
    for kind, members in kinds.items():
        wanted = sum(share for share, member in zip(shares, members, strict=True) if member) / sum(shares)
        assert sum(members[index] for index in found) / len(found) == pytest.approx(wanted, abs=0.08), kind


def test_a_batch_has_prompts_of_one_length_and_weights_of_its_motions(clips):
    generator = torch.Generator().manual_seed(1)
    for _ in range(20):
        batch = clips.draw(3, generator)
        video, (weight, loud), ids = batch.video, batch.weights, batch.ids
        assert video.shape == (3, 48, 5, 2, 2) and batch.audio.shape == (3, 64, 7) and len(ids) == 3
        assert weight.shape == (3, 48, 1, 2, 2)
        torch.testing.assert_close(weight.mean((1, 2, 3, 4)), torch.ones(3))
        numbers = video[:, 0, 0, 0, 0].tolist()
        parts_of = zip(numbers, weight, loud, ids.tolist(), batch.truth, batch.driven, strict=True)
        for number, parts, level, text, truth, driven in parts_of:
            scene = scene_of(SEED, int(number))
            assert torch.equal(truth, truth_of(scene, 7))
            assert driven == (scene.motion == "bouncing" and is_driven(int(number)))
            assert driven or scene.motion != "bouncing" or scene.phase == DROP
            assert level.item() == SOUND_WEIGHTS.get(scene.motion, 1.0)
            assert parts.mean((1, 2, 3)).argmax() == 1 + MOTIONS.index(scene.motion)
            assert parts.min() == pytest.approx(STILL_WEIGHT)
            assert text in [clips.tokenizer.encode(prompt) for prompt in prompts_of(SEED, int(number), scene)]


def test_clips_are_made_once_by_the_autoencoders_of_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("training.clips.PART", 2)
    monkeypatch.setattr("training.clips.BATCH", 1)
    write_stack(tmp_path / "models", "released", 3)
    make_clips(tmp_path / "clips", 4, SEED, tmp_path / "models")
    parts = sorted((tmp_path / "clips").iterdir())
    assert [part.name for part in parts] == ["clips-000000.safetensors", "clips-000002.safetensors"]
    with safe_open(parts[0], "pt") as file:
        assert file.get_slice("video").get_shape() == [2, 48, 13, 4, 4]
        assert file.get_slice("audio").get_shape() == [2, 64, 51]
    before = parts[0].stat().st_mtime_ns
    parts[1].unlink()
    make_clips(tmp_path / "clips", 4, SEED, tmp_path / "models")
    assert parts[1].exists() and parts[0].stat().st_mtime_ns == before
    made = Prompts.of(tmp_path / "models").embed(torch.tensor([[5, 6, 7]]))
    assert made.shape[:2] == (1, 3) and made.isfinite().all()
