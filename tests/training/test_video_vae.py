"""The Pony's video autoencoder: rules of its latents, windows that it trains on, a few steps, files that it becomes."""

import json
from copy import deepcopy

import numpy as np
import pytest
import torch
from PIL import Image

from happyhorse_core.video_vae.latent_statistics import denormalise, normalise
from happyhorse_core.video_vae.load import load_image_encoder, load_turbo_decoder
from happyhorse_core.video_vae.turbo_decoder import Window, plan_windows
from happyhorse_core.weights.source import open_source
from training.muon import Muon
from training.run import load_trained, train
from training.video_vae import check, encode_clips, load_modules, make_modules, psnr, sheet, to_pictures
from training.video_vae_export import IMAGE_FILE, TURBO_FILE, TURBO_SETTINGS, export
from training.video_vae_parts import ClipEncoder, build_decoder, build_image_encoder
from training.video_vae_step import FRAMES, POOL, RENEWED, Pool, cut_runs, decode, draw_wide, make_step, to_signed
from training.world.draw import draw
from training.world.scene import sample_scene


def make_small():
    torch.manual_seed(5)
    return {"image": build_image_encoder((4, 4, 8, 8, 8)), "decoder": build_decoder((8, 4, 8, 4))}


@pytest.fixture(scope="module")
def modules():
    return {name: part.requires_grad_(False) for name, part in make_small().items()}


@pytest.fixture(scope="module")
def encoder(modules):
    return ClipEncoder(modules["image"])


@pytest.fixture(scope="module")
def video():
    return torch.rand(2, 3, FRAMES, 32, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1


class TestLatents:
    def test_frame_0_is_the_image_encoder_s(self, modules, encoder, video):
        latent = encoder(video)
        assert latent.shape == (2, 48, 13, 2, 3)
        assert torch.allclose(latent[:, :, :1], normalise(modules["image"](video[:, :, :1])), atol=1e-5)

    def test_a_still_clip_has_one_latent(self, encoder, video):
        latent = encoder(video[:, :, 7:8].expand(-1, -1, 9, -1, -1))
        assert torch.allclose(latent, latent[:, :, :1].expand_as(latent), atol=1e-5)

    def test_four_pictures_have_the_latent_of_their_mean(self, modules, encoder, video):
        latent = encoder(video)
        mean = normalise(modules["image"](video[:, :, 5:9].mean(2, keepdim=True)))
        assert torch.allclose(latent[:, :, 2:3], mean, atol=1e-5)

    def test_a_run_inside_a_clip_has_the_clip_s_latents(self, encoder, video):
        inside = encoder(video[:, :, 9:21], starts_clip=False)
        assert torch.allclose(inside, encoder(video)[:, :, 3:6], atol=1e-5)

    def test_clips_of_51_pictures_lose_the_last_two(self, encoder):
        frames = torch.randint(256, (1, 51, 32, 32, 3), dtype=torch.uint8)
        latent = encode_clips(encoder, frames)
        assert latent.shape == (1, 48, 13, 2, 2)
        assert torch.equal(latent, encode_clips(encoder, frames[:, :49]))

    def test_pictures_come_back_from_floats(self):
        frames = torch.randint(256, (1, 3, 4, 5, 3), dtype=torch.uint8)
        assert torch.equal(to_pictures(to_signed(frames)), frames)
        assert psnr(frames, frames ^ 1).item() == pytest.approx(20 * np.log10(255))


class TestTraining:
    @pytest.mark.parametrize("window", [*plan_windows(13, 7, 7), Window(3, 11, 4, 4)])
    def test_windows_are_the_decoder_s_own(self, modules, encoder, video, window):
        latents, seen = min(window.stop, 13) - window.start, max(0, 4 * window.start - 3)
        pictures = video[:, :, seen : 4 * (min(window.stop, 13) - 1) + 1]
        latent = encoder(pictures, starts_clip=window.start == 0)
        assert latent.shape[2] == latents
        found, wanted = decode(modules["decoder"], latent, window, pictures)
        expected = modules["decoder"].decode_window(denormalise(encoder(video)), window)
        assert torch.allclose(found, expected, atol=1e-4)
        start = seen + window.skip
        assert torch.equal(wanted, video[:, :, start : start + found.shape[2]])

    def test_a_step_finds_the_same_clips_after_a_stop(self):
        whole, parts = Pool(3), Pool(3)
        for index in range(3):
            found = whole.pick(index, 9, np.random.default_rng(index))
        again = parts.pick(2, 9, np.random.default_rng(2))
        assert all(np.array_equal(one, other) for one, other in zip(found, again, strict=True))
        assert not np.array_equal(found[0], whole.pick(3, 9, np.random.default_rng(2))[0])
        assert len(whole.clips) <= POOL + RENEWED

    def test_runs_are_the_pictures_of_their_latents(self, monkeypatch):
        monkeypatch.setattr("training.video_vae_step.STILLS", 0.0)
        clip = np.arange(FRAMES, dtype=np.uint8)[:, None, None, None] * np.ones((1, 2, 2, 3), np.uint8)
        for start, latents, frames in ((0, 3, range(9)), (4, 2, range(13, 21))):
            run = cut_runs([clip], start, latents, np.random.default_rng(0))
            assert torch.equal(run, to_signed(torch.from_numpy(clip[None, frames.start : frames.stop])))
        monkeypatch.setattr("training.video_vae_step.STILLS", 1.0)
        run = cut_runs([clip], 4, 2, np.random.default_rng(0))
        assert torch.equal(run, run[:, :, :1].expand_as(run))

    def test_wide_clips(self):
        assert [clip.shape for clip in draw_wide(np.random.default_rng(0), 2)] == [(FRAMES, 64, 96, 3)] * 2

    def test_a_few_steps_teach_something_and_reach_every_weight(self, tmp_path):
        parts = make_small()
        before = {name: [p.detach().clone() for p in part.parameters()] for name, part in parts.items()}
        step = make_step(parts, steps=8, batch=4, seed=0)
        first = step(0, torch.Generator().manual_seed(0))["loss"].item()
        train("test", tmp_path, parts, step, steps=8, minutes=5, lr=2e-2, warmup=1, make_optimizer=lambda p: Muon(p, 1))
        assert step(0, torch.Generator().manual_seed(0))["loss"].item() < 0.9 * first
        for name, part in parts.items():
            for old, parameter in zip(before[name], part.parameters(), strict=True):
                assert not torch.equal(old, parameter.detach()), name

    def test_a_decoder_is_trained_on_for_the_same_latents(self, tmp_path):
        parts = make_small()
        frozen = [p.detach().clone() for p in parts["image"].requires_grad_(False).parameters()]
        first = parts["decoder"].decoder.conv_out.conv.weight.detach().clone()
        step = make_step(parts, steps=2, batch=4, seed=0)
        train("test", tmp_path, parts, step, steps=2, minutes=5, lr=2e-2, warmup=1, make_optimizer=lambda p: Muon(p, 1))
        assert not torch.equal(first, parts["decoder"].decoder.conv_out.conv.weight)
        load_trained(tmp_path, parts)
        for old, parameter in zip(frozen, parts["image"].parameters(), strict=True):
            assert torch.equal(old, parameter)

    def test_check_reports_on_the_clips_of_its_seed(self, modules, encoder):
        figures = check(modules, 1, seed=4)
        clip = torch.from_numpy(draw(sample_scene(np.random.default_rng(4), held_out=None)))[None]
        latent = encode_clips(encoder, clip)
        clean = psnr(to_pictures(modules["decoder"](denormalise(latent))), clip)
        assert figures["clean mean"] == pytest.approx(clean.item())
        assert figures["noisy mean"] != figures["clean mean"]
        assert figures["latent largest"] == pytest.approx(latent.abs().max().item())
        std = latent.std((0, 2, 3, 4))
        assert (figures["latent std least"], figures["latent std most"]) == pytest.approx(
            (std.min().item(), std.max().item())
        )

    def test_a_sheet_has_eight_clips_three_times(self, modules, tmp_path):
        with torch.no_grad():
            sheet(tmp_path / "sheet.png", modules)
        with Image.open(tmp_path / "sheet.png") as picture:
            assert picture.size == (2 * 2 * 7 * 64, 2 * 4 * 3 * 64)


class TestFiles:
    def test_exported_parts_are_read_as_the_released_ones(self, modules, video, tmp_path):
        export(modules, tmp_path)
        decoder = load_turbo_decoder(tmp_path / TURBO_FILE, dtype=torch.float32)
        assert decoder.config == modules["decoder"].config
        image = load_image_encoder(tmp_path / IMAGE_FILE, dtype=torch.float32)
        assert image.config == modules["image"].config
        latent = image(video[:, :, :1])
        rounded = deepcopy(modules["image"]).bfloat16().float()
        assert torch.equal(latent, rounded(video[:, :, :1]))
        assert torch.equal(decoder(latent), modules["decoder"](latent))
        settings = json.loads((tmp_path / TURBO_SETTINGS).read_text())
        assert settings["decoder_block_out_channels"] == [4, 8, 4, 8]
        assert settings["decoder_spatio_temporal_scaling"] == [False, True, True, True]
        assert settings["decoder_spatio_only"] == [False, True, False, False]

    def test_kernels_are_those_of_clips(self, modules, tmp_path):
        export(modules, tmp_path)
        with open_source(tmp_path / IMAGE_FILE) as file:
            shapes = file.shapes
        assert shapes["encoder.conv1.weight"] == (4, 12, 3, 3, 3)
        assert shapes["conv1.weight"] == (96, 96, 1, 1, 1)
        assert shapes["encoder.downsamples.1.downsamples.1.time_conv.weight"] == (8, 8, 3, 1, 1)
        assert shapes["encoder.downsamples.1.downsamples.1.resample.1.weight"] == (8, 8, 3, 3)
        assert shapes["encoder.middle.0.residual.0.gamma"] == (8, 1, 1, 1)
        assert shapes["encoder.middle.1.norm.gamma"] == (8, 1, 1)

    def test_a_run_s_averages_are_loaded(self, tmp_path):
        parts = make_modules(1)
        frozen = lambda index, generator: {"loss": 0 * next(parts["image"].parameters()).sum()}  # noqa: E731
        train("test", tmp_path, parts, frozen, steps=1, minutes=1, lr=0.0)
        for name, module in load_modules(tmp_path).items():
            for key, value in module.state_dict().items():
                assert torch.equal(value, parts[name].state_dict()[key])
