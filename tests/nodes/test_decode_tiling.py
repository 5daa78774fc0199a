"""Decoding in tiles through the nodes, ours and the host's, against decoding whole."""

import logging

import comfy.model_management
import pytest
import tiny
import torch
import torch.nn.functional as F
from comfy.nested_tensor import NestedTensor
from happyhorse_pack import nodes as pack
from happyhorse_pack.happyhorse_core.video_vae.latent_statistics import denormalise
from happyhorse_pack.nodes.host import vae as host_vae

import nodes as host

LIMIT = 2 / 255


def clip(frames=1, height=2, width=44, batch=1, seed=0):
    """A latent pair whose picture is smooth, and a strip too long for one tile of 32 latent pixels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(batch, 48, max(2, frames // 2), max(2, height // 8), max(2, width // 8), generator=generator)
    video = F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)
    return {"samples": NestedTensor([denormalise(video), torch.randn(batch, 64, 4 * frames - 3, generator=generator)])}


def decode(latent, vae=None, **changes):
    inputs = {"latent": latent, "vae": vae or tiny.video_vae(), "audio_vae": tiny.audio_vae()}
    return tiny.run(pack.HappyHorseDecode, **(inputs | changes))


def whole(latent):
    return tiny.video_vae().decode(tiny.streams(latent)[0]).flatten(0, 1)


@pytest.fixture
def tiles(monkeypatch):
    """Sizes, in latent pixels, of all that the decoder was given."""
    seen, turbo = [], tiny.video_vae().first_stage_model.turbo
    plain = turbo.decode_window

    def spy(latent, window):
        seen.append(tuple(latent.shape[3:]))
        return plain(latent, window)

    monkeypatch.setattr(turbo, "decode_window", spy)
    return seen


@pytest.mark.parametrize(("frames", "height", "width"), [(1, 44, 2), (9, 2, 44)])
def test_our_node_shows_no_seam(tiles, frames, height, width):
    latent = clip(frames, height, width)
    expected = whole(latent)
    tiles.clear()
    images, sound, video = decode(latent, tile_size=512)
    assert max(max(tile) for tile in tiles) <= 32 and len(tiles) > 1
    assert images.shape == expected.shape
    assert (images - expected).abs().max() < LIMIT
    assert torch.equal(video.get_components().images, images)
    assert sound["waveform"].shape[-1] == images.shape[0] * 1764


def test_core_tiled_decode_shows_no_seam():
    """With the widgets' defaults and with the smallest tiles and no overlap: the decoder knows what it needs."""
    for frames, widgets in ((9, (512, 64, 64, 8)), (1, (64, 0, 8, 4)), (1, (128, 32, 16, 4))):
        latent = clip(frames)
        expected = whole(latent)
        images = host.VAEDecodeTiled().decode(tiny.video_vae(), latent, *widgets)[0]
        assert images.shape == expected.shape
        assert (images - expected).abs().max() < LIMIT


def test_windows_in_time_stay_those_of_the_decoder(tiles):
    latent = clip(9)
    host.VAEDecodeTiled().decode(tiny.video_vae(), latent, 512, 64, 8, 4)
    assert len(tiles) == 2 * 2, "two windows of 7 latent frames, two tiles"


def test_wider_overlaps_make_larger_tiles(tiles):
    latent = clip(1, 2, 80)
    expected = whole(latent)
    tiles.clear()
    images = decode(latent, tile_size=512, overlap=512)[0]
    assert {tile[1] for tile in tiles} == {56} and len(tiles) == 2
    torch.testing.assert_close(images, expected, atol=1e-4, rtol=0)


def test_batches():
    latent = clip(2, batch=2)
    images = decode(latent, tile_size=512)[0]
    assert (images - whole(latent)).abs().max() < LIMIT


def test_whole_frames_where_memory_allows_it(tiles):
    latent = clip()
    images = decode(latent)[0]
    assert tiles == [(2, 44)]
    assert torch.equal(images, whole(latent))


def test_tiles_are_chosen_by_free_memory(tiles, monkeypatch, caplog):
    latent, vae = clip(1, 2, 60), tiny.video_vae()
    expected = whole(latent)
    tiles.clear()
    video = tiny.streams(latent)[0]
    part = vae.memory_used_decode((1, 48, 1, 2, 50), vae.vae_dtype) / host_vae.FREE_PART
    assert part < vae.memory_used_decode(video.shape, vae.vae_dtype)
    monkeypatch.setattr(vae.patcher, "get_free_memory", lambda device: part)
    with caplog.at_level(logging.INFO):
        images = decode(latent)[0]
    assert len(tiles) == 2 and max(tile[1] for tile in tiles) <= 48
    assert (images - expected).abs().max() < LIMIT
    assert "decoding in tiles of up to 768 x 32 pixels" in caplog.text


def test_memory_that_runs_out_leads_to_tiles(monkeypatch):
    latent = clip()
    video = tiny.streams(latent)[0]
    expected = tiny.video_vae().decode(video)

    def too_large(*args, **kwargs):
        raise comfy.model_management.OOM_EXCEPTION("out of memory")

    monkeypatch.setattr(tiny.video_vae().first_stage_model, "decode", too_large)
    found = tiny.video_vae().decode(video)
    assert (found - expected).abs().max() < LIMIT


def test_interrupting_stops_between_tiles(tiles):
    latent = clip(1, 2, 80)
    turbo = tiny.video_vae().first_stage_model.turbo
    spied = turbo.decode_window

    def interrupt(part, window):
        comfy.model_management.interrupt_current_processing(True)
        return spied(part, window)

    turbo.decode_window = interrupt
    try:
        with pytest.raises(comfy.model_management.InterruptProcessingException):
            decode(latent, tile_size=512)
    finally:
        turbo.decode_window = spied
        comfy.model_management.interrupt_current_processing(False)
    assert len(tiles) == 1
    assert (decode(latent, tile_size=512)[0] - whole(latent)).abs().max() < LIMIT


def test_first_pictures_are_encoded_whole_by_core_nodes():
    image = tiny.picture(96, 64)
    expected = host.VAEEncode().encode(tiny.video_vae(), image)[0]["samples"]
    found = host.VAEEncodeTiled().encode(tiny.video_vae(), image, 64, 0)[0]["samples"]
    torch.testing.assert_close(found, expected)


def test_a_vae_of_the_host_gets_its_tiles_from_the_host(monkeypatch):
    calls = []

    class Wan:
        latent_channels, latent_dim, first_stage_model = 48, 3, torch.nn.Identity()

        def decode(self, latent):
            calls.append("whole")
            return torch.zeros(1, 1, latent.shape[3] * 16, latent.shape[4] * 16, 3)

        def decode_tiled(self, latent, **tiles):
            calls.append(tiles)
            return torch.zeros(1, 1, latent.shape[3] * 16, latent.shape[4] * 16, 3)

    decode(clip(), vae=Wan())
    decode(clip(), vae=Wan(), tile_size=64)
    assert calls == ["whole", {"tile_x": 32, "tile_y": 32, "overlap": 16}]
