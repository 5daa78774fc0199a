"""Decoding in tiles against decoding whole: where numbers are equal, where the eye can't tell, what it costs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from peak_memory import PeakMemory
from safetensors.torch import load_file

from happyhorse_core.errors import InputError
from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.tiling import (
    OVERLAP,
    decode_tiles,
    exact_overlap,
    fitting_tile,
    plan_tiles,
    receptive_field,
    window_bytes,
)
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder, detect_turbo_vaed

GOLDEN = Path(__file__).parents[1] / "golden"
SEEN = 2 / 127.5 / 2
"""1 of 255 steps, for values in [-1, 1]."""


def released():
    tree = json.loads((GOLDEN / "full_size_turbo_vaed.json").read_text())
    return detect_turbo_vaed({name: tuple(shape) for name, shape in tree["shapes"].items()}, "released")


@pytest.fixture(scope="module")
def decoder():
    """Tiny and random; its windows are short, to keep the tests so."""
    weights = load_file(GOLDEN / "turbo_vaed.weights.safetensors")
    config = detect_turbo_vaed({name: tuple(tensor.shape) for name, tensor in weights.items()}, "test")
    built = TurboDecoder(replace(config, first_window=1, window=2), operations=TorchOps, dtype=torch.float32)
    built.load_state_dict(weights)
    return built.requires_grad_(False)


def smooth(frames, height, width, batch=1, seed=0):
    """Latents that change over about eight places, as those of pictures do."""
    size = (max(2, frames // 4), max(2, height // 8), max(2, width // 8))
    coarse = torch.randn(batch, 48, *size, generator=torch.Generator().manual_seed(seed))
    return F.interpolate(coarse, size=(frames, height, width), mode="trilinear", align_corners=True)


def tiled(decoder, latent, tile, overlap=OVERLAP, **kwargs):
    return torch.cat(list(decode_tiles(decoder, latent, (tile, tile), overlap, **kwargs)), dim=2)


class TestPlan:
    @pytest.mark.parametrize(
        ("length", "tile", "overlap", "expected"),
        [
            (20, 32, 16, [(0, 20)]),
            (32, 32, 16, [(0, 32)]),
            (33, 32, 16, [(0, 25), (8, 33)]),
            (68, 32, 16, [(0, 29), (13, 42), (26, 55), (39, 68)]),
            (120, 68, 16, [(0, 68), (52, 120)]),
            (10, 4, 0, [(0, 4), (3, 7), (6, 10)]),
        ],
    )
    def test_examples(self, length, tile, overlap, expected):
        assert plan_tiles(length, tile, overlap) == expected

    def test_tiles_cover_everything_and_share_enough(self):
        for length in range(1, 90):
            for tile in (1, 5, 17, 32):
                for overlap in range(0, tile, 3):
                    plan = plan_tiles(length, tile, overlap)
                    assert plan[0][0] == 0 and plan[-1][1] == length
                    assert all(0 < stop - start <= tile for start, stop in plan)
                    pairs = zip(plan, plan[1:], strict=False)
                    assert all(before[1] - after[0] >= overlap and before[0] < after[0] for before, after in pairs)

    @pytest.mark.parametrize(("tile", "overlap"), [(16, 16), (8, 16), (0, 0), (8, -1)])
    def test_tiles_that_are_all_overlap(self, tile, overlap):
        with pytest.raises(InputError, match=f"tile: found {tile} latent pixels with an overlap of {overlap}"):
            plan_tiles(40, tile, overlap)


class TestReceptiveField:
    def test_of_the_released_decoder(self):
        assert receptive_field(released()) == 15
        assert exact_overlap(released()) == 32

    def test_is_what_is_measured(self, decoder):
        """One changed latent changes pixels up to that far away, and none further."""
        field, width = receptive_field(decoder.config), 24
        latent = smooth(1, 3, width)
        changed = latent.clone()
        changed[..., 0] += 10
        difference = (decoder(changed) - decoder(latent)).abs().amax(dim=(0, 1, 2, 3))
        reach = int(difference.nonzero().max()) // 16
        assert difference[(field + 1) * 16 :].max() == 0
        assert field - 2 <= reach <= field


class TestNumbers:
    def test_with_the_whole_receptive_field_tiles_are_the_whole_picture(self, decoder):
        overlap = exact_overlap(decoder.config)
        for latent, tile in ((smooth(3, 2, 36), 24), (smooth(1, 36, 2), 24), (smooth(1, 24, 21), 20)):
            whole = decoder(latent)
            found = tiled(decoder, latent, tile, overlap)
            assert found.shape == whole.shape
            # Convolutions of another size may add up in another order; that is all.
            assert (found - whole).abs().max() <= 2e-4 * whole.abs().max()

    def test_the_default_overlap_shows_no_seam(self, decoder):
        for latent in (smooth(1, 34, 36), smooth(3, 2, 44)):
            assert (tiled(decoder, latent, 32) - decoder(latent)).abs().max() < SEEN / 10

    def test_without_overlap_a_seam_shows(self, decoder):
        """The figures above are worth something only if tiles can go wrong."""
        latent = smooth(1, 4, 44)
        assert (tiled(decoder, latent, 32, 0) - decoder(latent)).abs().max() > 20 * SEEN

    def test_a_random_decoder_of_the_released_depth_shows_no_seam(self):
        """The depth decides how far an edge reaches; fewer channels and a thin strip keep this fast."""
        config = released()
        stages = tuple(replace(stage, channels=stage.channels // 4) for stage in config.stages)
        config = replace(config, mid_channels=128, stages=stages, first_window=1, window=1)
        decoder = TurboDecoder(config, operations=TorchOps, dtype=torch.float32).requires_grad_(False)
        generator = torch.Generator().manual_seed(0)
        for tensor in decoder.parameters():
            fan = tensor[0].numel() if tensor.ndim > 1 else 2500
            tensor.copy_(torch.randn(tensor.shape, generator=generator) / fan**0.5)
        latent = smooth(1, 3, 52)
        whole = decoder(latent)
        whole_range = whole.abs().max()
        worst = {overlap: float((tiled(decoder, latent, 48, overlap) - whole).abs().max()) for overlap in (0, 16, 32)}
        assert worst[32] <= 2e-4 * whole_range
        assert worst[16] <= SEEN * whole_range
        assert worst[0] > 20 * SEEN * whole_range

    def test_chunks_batches_and_other_types(self, decoder):
        latent = smooth(2, 2, 34, batch=2)
        chunks = list(decode_tiles(decoder, latent, (32, 32)))
        assert [chunk.shape[2] for chunk in chunks] == [chunk.shape[2] for chunk in decoder.decode_windows(latent)]
        assert (torch.cat(chunks, dim=2) - decoder(latent)).abs().max() < SEEN
        assert tiled(decoder, latent[:1].bfloat16(), 32).dtype == torch.bfloat16

    def test_a_single_tile_is_the_plain_decode(self, decoder):
        latent = smooth(3, 4, 5)
        assert torch.equal(tiled(decoder, latent, 32), decoder(latent))

    def test_progress_counts_tiles_and_can_stop_them(self, decoder):
        latent, calls = smooth(2, 2, 34), []
        tiled(decoder, latent, 32, progress=lambda done, total: calls.append((done, total)))
        assert calls == [(n, 4) for n in range(1, 5)]

        def stop(done, total):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            tiled(decoder, latent, 32, progress=stop)


class TestMemory:
    """Bytes of tensors at the released size, counted on the meta device, in bfloat16."""

    @pytest.fixture
    def full_size(self):
        decoder = TurboDecoder(released(), operations=TorchOps, dtype=torch.bfloat16, device="meta")
        return decoder.requires_grad_(False)

    def peak(self, decoder, width, height, tile, frames=21):
        latent = torch.empty(1, 48, frames, height // 16, width // 16, dtype=torch.bfloat16, device="meta")
        with PeakMemory() as memory:
            for chunk in decode_tiles(decoder, latent, (tile // 16, tile // 16)):
                del chunk
        return memory.peak

    def test_a_tile_bounds_it(self, full_size):
        gib = 2**30
        whole, large, small = (self.peak(full_size, 1920, 1088, tile, frames=8) for tile in (1920, 1088, 512))
        assert 12 * gib < whole < 15 * gib
        assert large < 8 * gib
        assert small < 2.5 * gib

    def test_length_does_not_matter(self, full_size):
        assert self.peak(full_size, 1024, 512, 512, frames=28) == self.peak(full_size, 1024, 512, 512, frames=21)

    def test_it_is_foreseen(self, full_size):
        for side in (512, 1088):
            peak = self.peak(full_size, side, side, side)
            foreseen = window_bytes(full_size.config, side // 16, side // 16, 21, 2)
            assert 1.2 * peak < foreseen < 2 * peak

    def test_the_counter_counts(self):
        with PeakMemory() as memory:
            first = torch.zeros(1000, dtype=torch.float32)
            second = first + 1
            del first
            second[:10].add_(1)
            third = torch.zeros(500, dtype=torch.float32)
        assert memory.peak == 8000
        del second, third


class TestFit:
    def test_the_largest_tile_that_fits(self):
        def cost(height, width):
            return height * width

        assert fitting_tile(68, 120, 10**9, cost) == (68, 120)
        assert fitting_tile(68, 120, 68 * 120, cost) == (68, 120)
        assert fitting_tile(68, 120, 68 * 119, cost) == (68, 112)
        assert fitting_tile(68, 120, 64 * 64, cost) == (64, 64)
        assert fitting_tile(68, 120, 1, cost) == (32, 32)
        assert fitting_tile(20, 120, 1, cost) == (20, 32)
        assert fitting_tile(68, 120, 1, cost, overlap=32) == (64, 64)

    def test_small_changes_of_memory_change_nothing(self):
        def cost(height, width):
            return height * width

        assert fitting_tile(68, 120, 5000, cost) == fitting_tile(68, 120, 4800, cost) == (64, 64)
