"""Context windows of the host: long clips in overlapping pieces, each with the sound of its frames."""

import comfy_extras.nodes_context_windows as windows
import pytest
import tiny
import torch
from comfy.patcher_extension import WrappersMP
from happyhorse_pack import nodes as pack

import nodes

FRAMES = 33
CHOICES = {"context_stride": 1, "closed_loop": False}


def windowed(patcher, node=windows.WanContextWindowsManualNode, **changes):
    inputs = {"context_length": 17, "context_overlap": 8, "context_schedule": "standard_static", **CHOICES}
    inputs |= {"fuse_method": "pyramid", "freenoise": False}
    return node.execute(patcher, **(inputs | changes)).args[0]


def sample(patcher, latent=None):
    text, latent = tiny.positive(), latent or tiny.empty(frames=FRAMES)
    return tiny.streams(nodes.KSampler().sample(patcher, 3, 2, 1.0, "lcm", "simple", text, text, latent)[0])


def lengths_seen(patcher, latent=None):
    """(latent frames, audio latents) of each call of the model."""
    seen = []

    def look(executor, x, *args, **kwargs):
        seen.append((x[0].shape[2], x[1].shape[2]))
        return executor(x, *args, **kwargs)

    patcher = patcher.clone()
    patcher.add_wrapper(WrappersMP.DIFFUSION_MODEL, look)
    sample(patcher, latent)
    return seen


def differ(one, other):
    return max((a - b).abs().max().item() for a, b in zip(one, other, strict=True))


def test_a_clip_that_fits_into_one_window_is_the_same():
    assert differ(sample(windowed(tiny.model(), context_length=FRAMES)), sample(tiny.model())) == 0


def test_each_window_has_the_length_of_a_clip_in_both_streams():
    """What the model was trained on: one audio latent for the first frame, four for each later one."""
    seen = lengths_seen(windowed(tiny.model()))
    assert len(seen) == 2 * 3 and len(set(seen)) == 2
    assert all(audio == 4 * (video - 1) + 1 for video, audio in seen)
    assert min(seen) == (5, 17)


WAN = {"node": windows.WanContextWindowsManualNode}
LTXV = {"node": windows.LTXVContextWindowsNode, "context_length": 33}
MANUAL = {"node": windows.ContextWindowsManualNode, "dim": 2, "context_length": 5, "context_overlap": 2}


@pytest.mark.parametrize(
    "choices",
    [
        WAN | {"freenoise": True},
        WAN | {"context_schedule": "standard_uniform", "context_stride": 2},
        WAN | {"context_schedule": "batched", "context_overlap": 0, "fuse_method": "flat"},
        WAN | {"fuse_method": "relative", "retain_first_frame": True},
        WAN | {"fuse_method": "overlap-linear"},
        MANUAL,
        MANUAL | {"context_schedule": "looped_uniform", "closed_loop": True},
        MANUAL | {"causal_window_fix": False, "latent_retain_index_list": "0"},
        {
            "node": windows.LTXVContextWindowsNode,
            "context_length": 33,
            "context_overlap": 8,
            "retain_first_frame": True,
        },
    ],
    ids=lambda choices: "-".join(str(v) for k, v in choices.items() if k != "node") or choices["node"].__name__,
)
def test_every_kind_of_window_makes_a_whole_clip(choices):
    plain, found = sample(tiny.model()), sample(windowed(tiny.model(), **choices))
    assert all(torch.isfinite(stream).all() for stream in found)
    assert 0 < differ(found, plain) < 5
    assert [stream.shape for stream in found] == [stream.shape for stream in plain]


def test_a_picture_stays_the_first_frame_of_a_clip_made_in_windows():
    inputs = {"vae": tiny.video_vae(), "image": tiny.picture(), "latent": tiny.empty(frames=FRAMES)}
    start = tiny.run(pack.HappyHorseImageToVideo, **inputs)[0]
    video, _ = sample(windowed(tiny.model()), start)
    torch.testing.assert_close(video[:, :, :1], tiny.streams(start)[0][:, :, :1], atol=1e-5, rtol=0)
