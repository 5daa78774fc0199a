"""Nodes that change a MODEL for parts of other networks: a warning once per sampling, or a refusal in one sentence."""

import logging

import comfy_extras.nodes_freelunch as freelunch
import comfy_extras.nodes_hidream_o1 as hidream
import comfy_extras.nodes_hypertile as hypertile
import comfy_extras.nodes_lt_audio as lt_audio
import comfy_extras.nodes_lumina2 as lumina
import comfy_extras.nodes_model_downscale as downscale
import comfy_extras.nodes_pag as pag
import comfy_extras.nodes_perpneg as perpneg
import comfy_extras.nodes_rope as rope
import comfy_extras.nodes_sag as sag
import comfy_extras.nodes_slg as slg
import comfy_extras.nodes_video_model as video_model
import pytest
import tiny
import torch

import nodes


def sample(patcher, steps=3):
    text, negative = tiny.positive(), tiny.positive("blurred picture, noise")
    chosen = (steps, 4.0, "euler", "simple")
    return tiny.streams(nodes.KSampler().sample(patcher, 3, *chosen, text, negative, tiny.empty())[0])


def same(one, other):
    """Up to rounding: a prompt by itself is another sum than two in a batch."""
    return all(torch.allclose(a, b, atol=1e-4) for a, b in zip(one, other, strict=True))


def warnings(caplog):
    return [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]


def with_layer(patcher, number):
    inputs = {"double_layers": str(number), "single_layers": "", "scale": 3.0, "rescaling_scale": 0.0}
    return slg.SkipLayerGuidanceDiT.execute(patcher, start_percent=0.0, end_percent=1.0, **inputs).args[0]


UNREAD = {
    "input_block_patch": lambda m: downscale.PatchModelAddDownscale.execute(
        m, 3, 2.0, 0.0, 1.0, False, "bicubic", "bicubic"
    ).args[0],
    "attn1_output_patch": lambda m: hypertile.HyperTile.execute(m, 256, 2, 0, False)[0],
    "attn1 in the block middle 0": lambda m: pag.PerturbedAttentionGuidance.execute(m, 3.0).args[0],
    "ScaleROPE": lambda m: rope.ScaleROPE.execute(m, 2.0, 0.0, 1.0, 0.0, 1.0, 0.0).args[0],
    "layer 99 (there are 0 to 5)": lambda m: with_layer(m, 99),
}


@pytest.mark.parametrize("what", UNREAD)
def test_a_patch_for_another_network_is_named_once_in_a_sampling(what, caplog):
    patched = UNREAD[what](tiny.model())
    plain = sample(tiny.model())
    with caplog.at_level(logging.WARNING, "happyhorse"):
        first = sample(patched)
        said = warnings(caplog)
        second = sample(patched)
    assert same(first, plain) and same(second, plain)
    assert sum(what in line for line in said) == 1
    assert warnings(caplog) == said + said


def test_a_patch_that_the_model_reads_is_not_warned_of(caplog):
    with caplog.at_level(logging.WARNING, "happyhorse"):
        found = sample(with_layer(tiny.model(), 1))
    assert not warnings(caplog) and not same(found, sample(tiny.model()))


REFUSED = {
    "a node that replaces attn1": lambda m: sag.SelfAttentionGuidance.execute(m, 0.5, 2.0).args[0],
    "guidance by VideoLinearCFGGuidance": lambda m: video_model.VideoLinearCFGGuidance().patch(m, 1.0)[0],
    "guidance by VideoTriangleCFGGuidance": lambda m: video_model.VideoTriangleCFGGuidance().patch(m, 1.0)[0],
    "HiDreamO1PatchSeamSmoothing": lambda m: hidream.HiDreamO1PatchSeamSmoothing.execute(
        model=m, **defaults(hidream.HiDreamO1PatchSeamSmoothing)
    ).args[0],
    "a HappyHorse model, which has no model_channels": lambda m: freelunch.FreeU.execute(m, 1.1, 1.2, 0.9, 0.2).args[0],
}


def defaults(node):
    inputs = [item for item in node.GET_SCHEMA().inputs if item.id != "model"]
    return {item.id: item.default if item.default is not None else item.options[0] for item in inputs}


@pytest.mark.parametrize("what", REFUSED)
def test_a_node_that_would_fail_is_refused_in_a_sentence(what):
    with pytest.raises(ValueError, match=rf"^model: found .*{what}.*expected .*away\.|^model: found .*{what}"):
        sample(REFUSED[what](tiny.model()), steps=1)


def test_a_call_with_pictures_is_refused():
    with pytest.raises(ValueError, match="^model: found a node that gives the model pictures"):
        tiny.model().model.diffusion_model(torch.zeros(1, 3, 64, 64))


def test_an_attribute_of_another_model_is_missed_in_a_sentence():
    inner = tiny.model().model.diffusion_model
    with pytest.raises(AttributeError, match="^model: found a HappyHorse model, which has no forward_video"):
        _ = inner.forward_video
    assert not hasattr(inner, "input_blocks") and inner.in_channels == 48


def test_nodes_that_ask_for_channels_and_streams_work():
    plain = sample(tiny.model())
    for patched in (
        lumina.RenormCFG.execute(tiny.model(), 100.0, 1.0).args[0],
        perpneg.PerpNeg.execute(tiny.model(), tiny.positive("a room"), 1.0).args[0],
    ):
        found = sample(patched)
        assert all(torch.isfinite(stream).all() for stream in found) and not same(found, plain)


def test_text_encoder_is_loaded_without_a_prompt():
    """As Save Checkpoint does."""
    assert tiny.clip().cond_stage_model.memory_estimation_function({}) > 0


def test_another_models_decoder_of_sound_has_the_rate():
    _, sound = tiny.streams(tiny.empty())
    audio = lt_audio.LTXVAudioVAEDecode.execute({"samples": sound}, tiny.audio_vae()).args[0]
    assert audio["sample_rate"] == 44100 and audio["waveform"].shape[-1] == 1764 * sound.shape[-1]
