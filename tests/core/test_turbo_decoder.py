"""TurboVAED: the released numbers, windows over clips of every length, files that load and files that are refused."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from happyhorse_core.errors import CheckpointError
from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.latent_statistics import LATENT_MEAN, LATENT_STD, denormalise, normalise
from happyhorse_core.video_vae.load import load_turbo_decoder
from happyhorse_core.video_vae.turbo_decoder import (
    TurboDecoder,
    UpStage,
    Window,
    detect_turbo_vaed,
    inverse_rms,
    plan_windows,
    unpack_pixels,
)

GOLDEN = Path(__file__).parents[1] / "golden"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def weights():
    return load_file(GOLDEN / "turbo_vaed.weights.safetensors")


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def build(weights, dtype=torch.float32):
    decoder = TurboDecoder(detect_turbo_vaed(shapes_of(weights), "test"), operations=TorchOps, dtype=dtype)
    decoder.load_state_dict(weights, strict=True)
    return decoder.requires_grad_(False)


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def worst(found, expected):
    return float((found.float() - expected.float()).abs().max() / expected.float().abs().max())


class TestNumbers:
    @pytest.mark.parametrize("name", ["turbo_vaed_1", "turbo_vaed_9"])
    def test_matches_the_reference(self, weights, name):
        io = load_file(GOLDEN / f"{name}.io.safetensors")
        video = build(weights)(denormalise(io["latent"]))
        assert video.shape == io["video"].shape
        assert worst(video, io["video"]) <= TOLERANCE

    def test_weights_of_another_dtype_than_the_latent(self, weights):
        io = load_file(GOLDEN / "turbo_vaed_1.io.safetensors")
        decoder = build(weights, torch.bfloat16)
        assert worst(decoder(denormalise(io["latent"])), io["video"]) <= TOLERANCE
        video = build(weights)(denormalise(io["latent"]).bfloat16())
        assert video.dtype == torch.bfloat16
        assert worst(video, io["video"]) <= 0.05

    def test_statistics_are_the_reference_s(self):
        io = load_file(GOLDEN / "image_encoder.io.safetensors")
        assert torch.equal(torch.tensor(LATENT_MEAN), io["latent_mean"])
        assert torch.equal(torch.tensor(LATENT_STD), io["latent_std"])

    def test_normalise_undoes_denormalise(self):
        latent = noise(2, 48, 3, 2, 2)
        assert torch.allclose(normalise(denormalise(latent)), latent, atol=1e-6)
        assert torch.allclose(denormalise(torch.zeros(1, 48, 1, 1, 1)).flatten(), torch.tensor(LATENT_MEAN))
        assert denormalise(latent.bfloat16()).dtype == torch.bfloat16

    def test_norm_of_large_bfloat16_values_is_taken_in_float32(self):
        x = torch.full((1, 48, 1, 1, 1), 300.0, dtype=torch.bfloat16)
        assert inverse_rms(x, 1e-8).item() == pytest.approx(1 / 300, rel=1e-5)

    def test_pixels_are_unpacked_columns_first(self):
        # One latent place of one channel: values 0..3 lie column by column in the 2 x 2 patch.
        x = torch.arange(4.0).view(1, 4, 1, 1, 1)
        assert unpack_pixels(x, 2).tolist() == [[[[[0.0, 2.0], [1.0, 3.0]]]]]


class TestWindows:
    @pytest.mark.parametrize(
        ("length", "expected"),
        [
            (1, [Window(0, 7, 0, 24)]),
            (7, [Window(0, 7, 0, 0)]),
            (8, [Window(0, 8, 0, 4), Window(6, 14, 4, 24)]),
            (14, [Window(0, 8, 0, 4), Window(6, 14, 4, 0)]),
            (16, [Window(0, 8, 0, 4), Window(6, 15, 4, 4), Window(13, 21, 4, 20)]),
        ],
    )
    def test_plan(self, length, expected):
        assert plan_windows(length, 7, 7) == expected

    @pytest.mark.parametrize(("first", "step"), [(7, 7), (3, 5), (1, 1), (5, 2)])
    def test_plans_keep_every_frame_once(self, first, step):
        for length in range(1, 40):
            kept = 0
            for window in plan_windows(length, first, step):
                decoded = 4 * (window.stop - window.start) - 3 * window.starts_clip
                kept += decoded - window.skip - window.drop
            assert kept == 4 * (length - 1) + 1

    def test_clips_of_every_length(self, weights):
        decoder = build(weights)
        for length in range(1, 17):
            latent = noise(1, 48, length, 1, 2, seed=length)
            video = decoder(latent)
            assert video.shape == (1, 3, 4 * (length - 1) + 1, 16, 32)
            assert video.isfinite().all()
            chunks = list(decoder.decode_windows(latent))
            assert torch.equal(torch.cat(chunks, dim=2), video)
            assert chunks[0].shape[2] == min(25, video.shape[2])

    @pytest.mark.parametrize(("first", "step"), [(3, 5), (1, 1)])
    def test_windows_of_other_lengths(self, weights, tmp_path, first, step):
        path = tmp_path / "turbo.safetensors"
        save_file(weights, path, {"config": json.dumps({"first_chunk_size": first, "step_size": step})})
        decoder = load_turbo_decoder(path, dtype=torch.float32)
        chunks = list(decoder.decode_windows(noise(1, 48, 7, 1, 1)))
        assert chunks[0].shape[2] == 4 * (first - 1) + 1
        assert sum(chunk.shape[2] for chunk in chunks) == 25

    def test_a_window_sees_one_latent_of_its_neighbours(self, weights):
        decoder = build(weights)
        latent = noise(1, 48, 14, 1, 2)
        video = decoder(latent)
        changed = latent.clone()
        changed[:, :, 8:] += 1  # beyond what the first window sees
        assert torch.equal(decoder(changed)[:, :, :25], video[:, :, :25])
        changed = latent.clone()
        changed[:, :, 7] += 1
        assert not torch.equal(decoder(changed)[:, :, :25], video[:, :, :25])

    def test_a_short_clip_is_one_that_holds_its_last_latent(self, weights):
        decoder = build(weights)
        latent = noise(1, 48, 3, 1, 2)
        held = torch.cat([latent, latent[:, :, -1:].expand(-1, -1, 4, -1, -1)], dim=2)
        assert torch.equal(decoder(latent), decoder(held)[:, :, :9])

    def test_a_batch_is_its_items(self, weights):
        decoder = build(weights)
        latent = noise(2, 48, 9, 3, 2)
        single = torch.cat([decoder(latent[:1]), decoder(latent[1:])])
        assert torch.allclose(decoder(latent), single, atol=1e-5)

    def test_progress_counts_windows_and_can_stop_them(self, weights):
        decoder = build(weights)
        latent = noise(1, 48, 16, 1, 1)
        calls = []
        list(decoder.decode_windows(latent, lambda done, total: calls.append((done, total))))
        assert calls == [(1, 3), (2, 3), (3, 3)]

        def stop(done, total):
            raise KeyboardInterrupt

        chunks = decoder.decode_windows(latent, stop)
        assert next(chunks).shape[2] == 25
        with pytest.raises(KeyboardInterrupt):
            next(chunks)


class TestGradients:
    def test_they_are_those_of_small_differences(self, weights):
        decoder, latent = build(weights).requires_grad_(True), noise(2, 48, 8, 2, 1).requires_grad_(True)
        video = decoder(latent)
        target = noise(*video.shape, seed=1)
        (video * target).sum().backward()
        length = latent.grad.norm()
        with torch.no_grad():
            assert torch.allclose(decoder(latent), video, atol=1e-5)
            ahead, behind = (
                (decoder(latent + step * latent.grad / length).double() * target).sum() for step in (0.01, -0.01)
            )
        assert float(ahead - behind) / 0.02 == pytest.approx(float(length), rel=0.01)
        assert all(parameter.grad.abs().max() > 0 for parameter in decoder.parameters())


class TestDetection:
    def test_the_released_decoder(self):
        released = json.loads((GOLDEN / "full_size_turbo_vaed.json").read_text())
        expected = {name: tuple(shape) for name, shape in released["shapes"].items()}
        config = detect_turbo_vaed(expected, "test")
        settings = released["config"]
        assert (config.first_window, config.window) == (settings["first_chunk_size"], settings["step_size"])
        assert config.stages == (
            UpStage(512, 3, True, True),
            UpStage(256, 2, True, True),
            UpStage(128, 2, True, False),
            UpStage(64, 2, False, False),
        )
        decoder = TurboDecoder(config, operations=TorchOps, device="meta")
        assert shapes_of(decoder.state_dict()) == expected

    @pytest.mark.parametrize(
        ("settings", "words"),
        [
            ("no json", "no valid JSON"),
            ('{"step_size": 7}', "first_chunk_size"),
            ('{"first_chunk_size": 7, "step_size": 0}', "step_size: found 0"),
            ('{"first_chunk_size": true, "step_size": 7}', "first_chunk_size: found True"),
            ('{"first_chunk_size": 7, "step_size": 4611686018427387904}', "step_size: found 46116"),
            ("[" * 100_000, "no valid JSON"),
        ],
    )
    def test_settings_in_metadata_that_make_no_windows(self, weights, settings, words):
        with pytest.raises(CheckpointError, match=r"^x\.safetensors: ") as error:
            detect_turbo_vaed(shapes_of(weights), "x.safetensors", {"config": settings})
        assert words in str(error.value)

    @pytest.mark.parametrize(
        ("names", "words"),
        [
            (["pretransform.model.decoder.layers.1.layers.1.weight_v"], "an Oobleck audio autoencoder"),
            (["encoder.downsamples.0.downsamples.0.residual.2.weight"], "a Wan2.2 video autoencoder"),
            (["one", "two"], "2 tensors such as 'one', 'two'"),
            ([], "no tensors"),
        ],
    )
    def test_another_model_is_named(self, names, words):
        with pytest.raises(CheckpointError) as error:
            detect_turbo_vaed(dict.fromkeys(names, (1,)), "some.ckpt")
        assert str(error.value).startswith("some.ckpt: ")
        assert words in str(error.value)
        assert "expected a TurboVAED decoder" in str(error.value)

    def test_variants_that_are_not_built_are_refused(self, weights):
        shapes = shapes_of(weights)
        name = "decoder.up_blocks.0.resnets.0.conv1.depthwise_conv.weight"
        with pytest.raises(CheckpointError, match="depthwise_conv.*not supported"):
            detect_turbo_vaed(shapes | {name: (16, 1, 3, 3, 3)}, "x.ckpt")

    def test_an_upsampler_that_is_missing_shows_in_the_strides(self, weights):
        shapes = shapes_of(weights)
        del shapes["decoder.up_blocks.0.upsamplers.0.time_conv.conv.weight"]
        with pytest.raises(CheckpointError, match="2 frames and 16 x 16 pixels.*expected 4 and 16 x 16"):
            detect_turbo_vaed(shapes, "x.ckpt")

    def test_a_missing_or_malformed_first_layer_is_named(self, weights):
        shapes = shapes_of(weights)
        with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.conv\.weight.*has shape \(5,\)"):
            detect_turbo_vaed(shapes | {"decoder.conv_in.conv.weight": (5,)}, "x.ckpt")
        del shapes["decoder.conv_in.conv.weight"]
        with pytest.raises(CheckpointError, match=r"decoder\.conv_in\.conv\.weight' is missing"):
            detect_turbo_vaed(shapes, "x.ckpt")


class TestLoading:
    @pytest.fixture
    def pickled(self, weights, tmp_path):
        """A file as training left it: smoothed weights among other things, half of their names prefixed."""
        path = tmp_path / "checkpoint-1.ckpt"
        smoothed = {("module." if i % 2 else "") + name: tensor for i, (name, tensor) in enumerate(weights.items())}
        raw = {name: torch.zeros_like(tensor) for name, tensor in weights.items()}
        torch.save({"step": 1, "state_dict": raw, "ema_state_dict": smoothed}, path)
        return path

    def test_the_released_pickle(self, pickled, weights):
        io = load_file(GOLDEN / "turbo_vaed_1.io.safetensors")
        calls = []
        decoder = load_turbo_decoder(
            pickled, dtype=torch.float32, progress=lambda done, total: calls.append((done, total))
        )
        assert worst(decoder(denormalise(io["latent"])), io["video"]) <= TOLERANCE
        assert calls[-1][0] == calls[-1][1]
        assert {p.dtype for p in load_turbo_decoder(pickled).parameters()} == {torch.bfloat16}

    @pytest.mark.parametrize("prefix", ["decoder.", ""])
    def test_safetensors_with_and_without_prefix(self, weights, tmp_path, prefix):
        path = tmp_path / "turbo.safetensors"
        save_file({prefix + name.removeprefix("decoder."): tensor for name, tensor in weights.items()}, path)
        loaded = load_turbo_decoder(path).state_dict()
        assert all(torch.equal(loaded[name], tensor) for name, tensor in weights.items())

    def test_missing_extra_and_misshapen_tensors(self, weights, tmp_path):
        path = tmp_path / "turbo.safetensors"
        name = "decoder.up_blocks.2.conv_in.conv1.conv.bias"
        for change, words in (
            ({name: None}, "1 of 40 tensors are missing"),
            ({"decoder.extra": torch.zeros(1)}, "decoder.extra"),
            ({name: torch.zeros(9)}, "has shape"),
        ):
            changed = {key: value for key, value in (weights | change).items() if value is not None}
            save_file(changed, path)
            with pytest.raises(CheckpointError, match="turbo.safetensors") as error:
                load_turbo_decoder(path)
            assert words in str(error.value)

    def test_files_that_are_missing_or_of_another_model(self, tmp_path):
        with pytest.raises(CheckpointError, match="nowhere.ckpt"):
            load_turbo_decoder(tmp_path / "nowhere.ckpt")
        with pytest.raises(CheckpointError, match=r"image_encoder\.weights.*found tensors of a Wan2\.2"):
            load_turbo_decoder(GOLDEN / "image_encoder.weights.safetensors")
        with pytest.raises(CheckpointError, match=r"audio_vae\.weights.*found tensors of an Oobleck"):
            load_turbo_decoder(GOLDEN / "audio_vae.weights.safetensors")
