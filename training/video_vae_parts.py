"""The parts of the Pony's video autoencoder: a decoder, an image encoder and what makes an encoder of clips of it.

The decoder and the image encoder are the pack's own classes at small sizes. The latents are the transformer's, that is
normalised; the networks take and give raw ones, so ``ClipEncoder`` normalises and who decodes denormalises.
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from happyhorse_core.ops import TorchOps
from happyhorse_core.video_vae.image_encoder import DownStage, ImageEncoderConfig, WanImageEncoder
from happyhorse_core.video_vae.latent_statistics import normalise
from happyhorse_core.video_vae.turbo_decoder import TurboDecoder, TurboVAEDConfig, UpStage

LATENT_CHANNELS = 48
GROUP = 4
"""Pictures of a latent frame; the first one of a clip has a single picture."""
DECODER_WIDTHS = (64, 32, 16, 16)
ENCODER_WIDTHS = (16, 16, 32, 64, 64)
GROUND = -0.7
"""About the mean of the world's pictures, in [-1, 1]."""
BRANCH_GAIN = 0.2
"""How strong a residual branch is at the start, beside its shortcut."""


def build_decoder(widths: tuple[int, ...] = DECODER_WIDTHS) -> TurboDecoder:
    """A decoder in the released arrangement: space doubles in the first three stages, time in the first two.

    It starts by painting the world's usual ground, with upsamplers that hand on what they get.
    """
    stages = tuple(UpStage(width, 1, stage < 3, stage < 2) for stage, width in enumerate(widths))
    decoder = TurboDecoder(TurboVAEDConfig(LATENT_CHANNELS, widths[0], 1, stages, 2), operations=TorchOps)
    _start(decoder, branches=("conv2.conv.weight", "conv_out.conv.weight"))
    nn.init.constant_(decoder.decoder.conv_out.conv.bias, GROUND)
    for name, weight in decoder.named_parameters():
        if name.endswith("resample.1.weight"):
            _hand_on(weight, lambda kernel: [kernel[:, :, 1, 1]])
        elif name.endswith("time_conv.conv.weight"):
            _hand_on(weight, lambda kernel: kernel[:, :, 1, 0, 0].chunk(2))
    return decoder


def build_image_encoder(widths: tuple[int, ...] = ENCODER_WIDTHS) -> WanImageEncoder:
    """An image encoder in the released arrangement: space halves in the first three stages, time in the last two.

    It starts with an empty first layer's answer to the world's usual ground, and downsamplers that average.
    """
    stages = tuple(DownStage(width, 1, stage < 3, stage in (1, 2)) for stage, width in enumerate(widths[1:]))
    encoder = WanImageEncoder(ImageEncoderConfig(widths[0], stages, LATENT_CHANNELS), operations=TorchOps)
    _start(encoder, branches=("residual.6.weight", "proj.weight"))
    first = encoder.encoder.conv1
    with torch.no_grad():
        first.bias.copy_(-GROUND * first.weight.sum((1, 2, 3)))
    for name, weight in encoder.named_parameters():
        if name.endswith("resample.1.weight"):
            _hand_on(weight, _corner, 1 / 4)
    return encoder


def _start(module: nn.Module, branches: tuple[str, ...]) -> None:
    """Random weights that keep the size of activations, with weak residual branches; the pack's layers come empty."""
    for name, parameter in module.named_parameters():
        if name.endswith("gamma"):
            nn.init.ones_(parameter)
        elif parameter.ndim == 1:
            nn.init.zeros_(parameter)
        else:
            gain = BRANCH_GAIN if name.endswith(branches) else 1.0
            nn.init.normal_(parameter, std=gain * parameter[0].numel() ** -0.5)


def _corner(kernel: Tensor) -> list[Tensor]:
    """The taps of a kernel [out, in, 3, 3] that see the four pixels it makes one of."""
    return [kernel[:, :, row, column] for row in (0, 1) for column in (0, 1)]


@torch.no_grad()
def _hand_on(kernel: Tensor, taps: Callable[[Tensor], Iterable[Tensor]], share: float = 1.0) -> None:
    """Halves a random kernel and lets ``share`` of every channel through each of its ``taps``, square matrices."""
    kernel.mul_(0.5)
    identity = torch.zeros_like(kernel)
    for tap in taps(identity):
        tap.diagonal().fill_(share)
    kernel.add_(identity)


class ClipEncoder(nn.Module):
    """Clips -> latents. The latent of four pictures is the image encoder's of their mean.

    That moves smoothly with time, and a still clip has the same latent at every time, its first frame's. Where in the
    blur of a mean each of the four pictures was the decoder sees from the latents before and after.
    """

    def __init__(self, image: WanImageEncoder) -> None:
        super().__init__()
        self.image = image

    def forward(self, video: Tensor, *, starts_clip: bool = True) -> Tensor:
        """[B, 3, F, H, W] in [-1, 1] -> [B, 48, T, H/16, W/16] normalised, float32.

        F is 4(T-1) + 1 where the run of pictures starts a clip, whose first picture has a latent of its own, else 4T.
        """
        later = video[:, :, 1:] if starts_clip else video
        pictures = later.unflatten(2, (-1, GROUP)).mean(3)
        if starts_clip:
            pictures = torch.cat([video[:, :, :1], pictures], 2)
        latents = self.image(pictures.transpose(1, 2).flatten(0, 1).unsqueeze(2))
        return normalise(latents.squeeze(2).unflatten(0, (len(video), -1)).transpose(1, 2))
