"""The one-frame Wan2.2 encoder: the released numbers, its step from 3-D to 2-D, files that load or are refused."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from happyhorse_core.errors import CheckpointError
from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.image_encoder import (
    DownStage,
    WanImageEncoder,
    average_down,
    detect_image_encoder,
    pack_pixels,
    still_frame_shape,
    still_frame_tensor,
)
from happyhorse_core.video_vae.latent_statistics import normalise
from happyhorse_core.video_vae.load import load_image_encoder

GOLDEN = Path(__file__).parents[1] / "golden"
WEIGHTS = GOLDEN / "image_encoder.weights.safetensors"
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def weights():
    return load_file(WEIGHTS)


@pytest.fixture(scope="module")
def encoder():
    return load_image_encoder(WEIGHTS, dtype=torch.float32)


def shapes_of(tensors):
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def noise(*shape, seed=0):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def worst(found, expected):
    return float((found - expected).abs().max() / expected.abs().max())


class TestNumbers:
    def test_matches_the_reference(self, encoder):
        io = load_file(GOLDEN / "image_encoder.io.safetensors")
        latent = encoder(io["image"])
        assert latent.shape == io["latent"].shape
        assert worst(normalise(latent), io["latent"]) <= TOLERANCE

    def test_weights_of_another_dtype_than_the_picture(self, encoder):
        io = load_file(GOLDEN / "image_encoder.io.safetensors")
        small = load_image_encoder(WEIGHTS)
        assert {parameter.dtype for parameter in small.parameters()} == {torch.bfloat16}
        assert worst(normalise(small(io["image"])), io["latent"]) <= TOLERANCE
        latent = encoder(io["image"].bfloat16())
        assert latent.dtype == torch.float32
        assert worst(normalise(latent), io["latent"]) <= 0.05

    @pytest.mark.parametrize(("height", "width"), [(16, 16), (32, 80), (96, 48)])
    def test_sizes(self, encoder, height, width):
        latent = encoder(noise(1, 3, 1, height, width))
        assert latent.shape == (1, 48, 1, height // 16, width // 16)
        assert latent.isfinite().all()

    def test_a_batch_is_its_items(self, encoder):
        images = noise(2, 3, 1, 48, 32)
        single = torch.cat([encoder(images[:1]), encoder(images[1:])])
        assert torch.allclose(encoder(images), single, atol=1e-5)

    def test_the_picture_is_left_alone(self, encoder):
        image = noise(1, 3, 1, 32, 32)
        before = image.clone()
        encoder(image)
        assert torch.equal(image, before)

    def test_pixels_are_packed_columns_first(self):
        image = torch.tensor([[[[0.0, 2.0], [1.0, 3.0]]]])
        assert pack_pixels(image).flatten().tolist() == [0, 1, 2, 3]

    def test_averages_run_over_channel_frame_row_column(self):
        # Two channels to four, in time and space: each group of 2 * 2 * 4 / 4 = 4 is one channel's one frame.
        x = torch.tensor([[1.0, 2.0, 3.0, 4.0], [5.0, 6.0, 7.0, 8.0]]).view(1, 2, 2, 2)
        pooled = average_down(x, DownStage(channels=4, layers=1, halves_space=True, halves_time=True))
        assert pooled.flatten().tolist() == [0, 2.5, 0, 6.5]
        # Space alone: groups of two, that is the two columns of each row.
        pooled = average_down(x, DownStage(channels=4, layers=1, halves_space=True, halves_time=False))
        assert pooled.flatten().tolist() == [1.5, 3.5, 5.5, 7.5]

    def test_gradients_are_those_of_small_differences(self, encoder):
        image, along = noise(1, 3, 1, 32, 48), noise(1, 3, 1, 32, 48, seed=1)
        target = torch.randn(1, 48, 1, 2, 3, generator=torch.Generator().manual_seed(2))
        with torch.no_grad():
            ahead, behind = ((encoder(image + step * along) * target).sum() for step in (0.003, -0.003))
        image.requires_grad_(True)
        (encoder(image) * target).sum().backward()
        assert float((image.grad * along).sum()) == pytest.approx(float(ahead - behind) / 0.006, rel=0.01)


class TestStillFrame:
    def test_a_causal_convolution_shows_a_first_frame_its_last_tap_only(self):
        weight, frame = noise(5, 4, 3, 3, 3), noise(2, 4, 7, 6, seed=1)
        clip = F.pad(frame.unsqueeze(2), (0, 0, 0, 0, 2, 0))
        expected = F.conv3d(clip, weight, padding=(0, 1, 1)).squeeze(2)
        found = F.conv2d(frame, still_frame_tensor("encoder.conv1.weight", weight), padding=1)
        assert torch.allclose(found, expected, atol=1e-5)

    def test_shapes_tell_what_tensors_become(self, weights):
        for name, tensor in weights.items():
            assert still_frame_shape(name, tuple(tensor.shape)) == tuple(still_frame_tensor(name, tensor).shape)

    def test_kernels_of_another_form_are_kept_for_loading_to_refuse(self, weights, tmp_path):
        assert still_frame_shape("encoder.conv1.weight", (8, 12, 5, 3, 3)) == (8, 12, 5, 3, 3)
        path = tmp_path / "vae.safetensors"
        save_file(weights | {"encoder.conv1.weight": torch.zeros(8, 12, 5, 3, 3)}, path)
        with pytest.raises(CheckpointError, match=r"encoder\.conv1\.weight.*has shape"):
            load_image_encoder(path)


class TestDetection:
    def test_sizes_of_the_small_encoder(self, weights):
        config = detect_image_encoder(shapes_of(weights), "test")
        assert (config.channels, config.latent_channels) == (8, 48)
        assert config.stages == (
            DownStage(8, 2, True, False),
            DownStage(16, 2, True, True),
            DownStage(32, 2, True, True),
            DownStage(32, 2, False, False),
        )

    def test_the_module_holds_every_tensor_that_a_picture_meets(self, weights):
        config = detect_image_encoder(shapes_of(weights), "test")
        module = WanImageEncoder(config, operations=TorchOps, device="meta")
        expected = {
            name: still_frame_shape(name, tuple(tensor.shape))
            for name, tensor in weights.items()
            if ".time_conv." not in name
        }
        assert shapes_of(module.state_dict()) == expected

    def test_a_downsampler_that_is_missing_shows_in_the_stride(self, weights):
        shapes = shapes_of(weights)
        del shapes["encoder.downsamples.1.downsamples.2.resample.1.weight"]
        with pytest.raises(CheckpointError, match=r"8 x 8 pixels; expected 16 x 16"):
            detect_image_encoder(shapes, "vae.pth")

    def test_widths_that_have_no_shortcut_are_refused(self, weights):
        shapes = shapes_of(weights) | {"encoder.downsamples.1.downsamples.0.residual.2.weight": (24, 8, 3, 3, 3)}
        with pytest.raises(CheckpointError, match=r"vae\.pth: .*downsamples\.1.*from 8 to 24"):
            detect_image_encoder(shapes, "vae.pth")


class TestLoading:
    def test_the_released_pickle_holds_a_decoder_too(self, weights, tmp_path):
        path = tmp_path / "Wan2.2_VAE.pth"
        other = {"decoder.conv1.weight": torch.zeros(4, 48, 3, 3, 3), "conv2.weight": torch.zeros(48, 48, 1, 1, 1)}
        torch.save(weights | other, path)
        io = load_file(GOLDEN / "image_encoder.io.safetensors")
        encoder = load_image_encoder(path, dtype=torch.float32)
        assert worst(normalise(encoder(io["image"])), io["latent"]) <= TOLERANCE

    def test_missing_and_extra_tensors(self, weights, tmp_path):
        path = tmp_path / "vae.safetensors"
        name = "encoder.middle.1.proj.bias"
        for change, words in (
            ({name: None}, name),
            ({"encoder.extra": torch.zeros(1)}, "encoder.extra"),
            ({"conv1.weight": None}, "'conv1.weight' is missing"),
        ):
            changed = {key: value for key, value in (weights | change).items() if value is not None}
            save_file(changed, path)
            with pytest.raises(CheckpointError, match=r"vae\.safetensors") as error:
                load_image_encoder(path)
            assert words in str(error.value)

    def test_files_that_are_missing_or_of_another_model(self, tmp_path):
        with pytest.raises(CheckpointError, match=r"nowhere\.pth"):
            load_image_encoder(tmp_path / "nowhere.pth")
        with pytest.raises(CheckpointError, match=r"turbo_vaed\.weights.*found tensors of a TurboVAED decoder"):
            load_image_encoder(GOLDEN / "turbo_vaed.weights.safetensors")
        with pytest.raises(CheckpointError, match=r"transformer\.weights.*found tensors of the video and sound"):
            load_image_encoder(GOLDEN / "transformer.weights.safetensors")
