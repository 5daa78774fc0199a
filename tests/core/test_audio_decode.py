"""Decoding sound in chunks against decoding it at once."""

from pathlib import Path

import pytest
import torch
from peak_memory import PeakMemory

from happyhorse_core.audio_vae.config import OobleckConfig
from happyhorse_core.audio_vae.decode import CHUNK, decode_soundtrack, receptive_field
from happyhorse_core.audio_vae.load import load_oobleck
from happyhorse_core.audio_vae.model import Oobleck
from happyhorse_core.ops import TorchOps

GOLDEN = Path(__file__).parents[1] / "golden"
RELEASED = OobleckConfig(2, 64, (128, 128, 256, 512, 1024, 2048), (2, 4, 4, 8, 8), (128, 128, 256, 512, 1024, 2048), (2, 4, 4, 8, 8))  # fmt: skip  # noqa: E501


@pytest.fixture(scope="module")
def vae():
    return load_oobleck(GOLDEN / "audio_vae.weights.safetensors", dtype=torch.float32)


def latents(length, batch=1):
    return torch.randn(batch, 64, length, generator=torch.Generator().manual_seed(length))


@pytest.mark.parametrize("length", [1, 5, 20, 21, 37])
@pytest.mark.parametrize("chunk", [5, 20])
def test_chunks_are_the_whole(vae, length, chunk):
    latent = latents(length, batch=2)
    expected = vae.decode(latent)
    found = decode_soundtrack(vae, latent, chunk=chunk)
    assert found.shape == expected.shape
    torch.testing.assert_close(found, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


def test_a_short_sound_is_decoded_at_once(vae):
    latent = latents(CHUNK)
    assert torch.equal(decode_soundtrack(vae, latent), vae.decode(latent))


def test_receptive_field_is_what_is_measured(vae):
    field, length = receptive_field(vae.config), 40
    assert receptive_field(RELEASED) == 10
    latent = latents(length)
    changed = latent.clone()
    changed[..., 0] += 10
    difference = (vae.decode(changed) - vae.decode(latent)).abs().amax(dim=(0, 1))
    reach = int(difference.nonzero().max()) // vae.config.samples_per_latent
    assert field - 2 <= reach <= field


def test_progress_counts_chunks_and_can_stop_them(vae):
    calls = []
    decode_soundtrack(vae, latents(12), lambda done, total: calls.append((done, total)), chunk=5)
    assert calls == [(1, 3), (2, 3), (3, 3)]

    def stop(done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        decode_soundtrack(vae, latents(12), stop, chunk=5)


def test_memory_of_half_a_minute_is_that_of_a_chunk():
    """Tensors alone, at the released size, in float32."""
    vae = Oobleck(RELEASED, operations=TorchOps, dtype=torch.float32, device="meta").requires_grad_(False)
    latent = torch.empty(1, 64, 751, device="meta")
    with PeakMemory() as whole:
        vae.decode(latent)
    with PeakMemory() as chunked:
        decode_soundtrack(vae, latent)
    assert whole.peak > 3.2 * 2**30
    assert chunked.peak < 0.7 * 2**30
