"""Batches of clips for the transformer: prompts of one length, motions in their shares, weights of what changes."""

import pytest
import torch
from safetensors.torch import save_file

from happyhorse_core.text.tokenizer import GemmaTokenizer
from training.clips import EMPHASIS, SHARES, SOUND_WEIGHTS, STILL_WEIGHT, Clips, is_driven, prompts_of, scene_of
from training.text import make_tokenizer
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
    motions = [scene_of(SEED, index).motion for index in found]
    there = [scene_of(SEED, index).motion for index in range(COUNT)]
    wanted = {name: EMPHASIS.get(name, 1.0) * there.count(name) for name in MOTIONS}
    for name, part in wanted.items():
        assert motions.count(name) / len(motions) == pytest.approx(part / sum(wanted.values()), abs=0.08)


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
