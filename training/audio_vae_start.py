"""Weights to start from: the network as a linear codec that keeps the principal components of the sounds.

From random weights thousands of steps pass before anything but the loudest, in the middle of the stereo picture, gets
through the bottleneck. Here each strided convolution is set to the principal components of what comes into it, block
by block, the decoder's to their transposes, and all else to (almost) nothing, so that training begins with a codec.
"""

import math

import torch
from torch import Tensor, nn

from happyhorse_core.audio_vae.layers import DecoderBlock, EncoderBlock, ResidualUnit
from happyhorse_core.audio_vae.model import Oobleck

BRANCH, SPARE = 0.1, 0.3
"""Of the random weights: how much the end of a residual branch and a channel without a component keeps."""
BEND = -3.0
"""Logarithm of a and b of the activations on the main path, where x + sin(a x)^2 / b is nearly x."""
FAINTEST = 1e-3
"""The least deviation of a component, relative to the largest, that is brought to 1."""


@torch.no_grad()
def start_as_linear_codec(vae: Oobleck, pieces: Tensor) -> None:
    """Sets the weights of ``vae``, random before, by the sounds ``pieces`` [B, 2, N]."""
    _straighten(vae)
    encoder, decoder = vae.encoder.layers, vae.decoder.layers
    _keep_channels(encoder[0].weight, 2)
    _keep_channels(decoder[-1].weight, 2)
    x = encoder[0](pieces)
    up = [block for block in decoder if isinstance(block, DecoderBlock)][::-1]
    down = [block for block in encoder if isinstance(block, EncoderBlock)]
    for forth, back in zip(down, up, strict=True):
        before = forth.layers[:-1](x)
        x = _set_pair(forth.layers[-1], back.layers[1], before)
        forth.layers[-1].bias.zero_()
        back.layers[1].bias.zero_()
    _set_ends(vae, encoder[-2](x))


def _straighten(vae: Oobleck) -> None:
    """Makes residual branches faint and the activations between the strided convolutions nearly straight."""
    for module in vae.modules():
        if isinstance(module, ResidualUnit):
            module.layers[-1].weight.mul_(BRANCH)
        blocks = isinstance(module, EncoderBlock | DecoderBlock)
        for child in module.layers if blocks or module in (vae.encoder, vae.decoder) else ():
            if hasattr(child, "alpha"):
                child.alpha.fill_(BEND)
                child.beta.fill_(BEND)


def _keep_channels(weight: Tensor, count: int) -> None:
    """Lets a convolution's first ``count`` channels pass as they are; the random weights around become faint."""
    weight.mul_(SPARE)
    weight[:count] = 0
    for channel in range(count):
        weight[channel, channel, weight.shape[2] // 2] = 1


def _set_pair(forth: nn.Conv1d, back: nn.ConvTranspose1d, before: Tensor) -> Tensor:
    """Sets a strided convolution and the one that undoes it by the input [B, C, N]; returns the output."""
    stride, channels = forth.stride[0], before.shape[1]
    blocks = before.unflatten(2, (-1, stride)).transpose(1, 2).flatten(2).flatten(0, 1)
    deviations, components = _principal_components(blocks)
    count = min(forth.out_channels, components.shape[1])
    scale = 1 / deviations[0]
    basis = components[:, :count].T.unflatten(1, (channels, stride))
    # Of a kernel of two strides, the block itself lies in the middle.
    middle = slice(stride // 2, stride // 2 + stride)
    for weight, factor in ((forth.weight, scale), (back.weight, 1 / scale)):
        weight[:count] = 0
        weight[count:] *= SPARE
        weight[:count, :, middle] = factor * basis
    return forth(before)


def _set_ends(vae: Oobleck, x: Tensor) -> None:
    """Sets the last convolution before the latent and the first one after it by what comes into the former."""
    latents = vae.config.latent_channels
    deviations, components = _principal_components(x.transpose(1, 2).flatten(0, 1))
    size = deviations[:latents].clamp(min=FAINTEST * float(deviations[0]))
    forth, back = vae.encoder.layers[-1].weight, vae.decoder.layers[0].weight
    forth[:latents], back[:] = 0, 0
    forth[:latents, :, forth.shape[2] // 2] = components[:, :latents].T / size[:, None]
    back[:, :, back.shape[2] // 2] = components[:, :latents] * size


def _principal_components(rows: Tensor) -> tuple[Tensor, Tensor]:
    """[n, d] -> the deviations [d] (about zero) and the directions [d, d] in its columns, the largest first."""
    power, directions = torch.linalg.eigh(rows.double().T @ rows.double() / len(rows))
    deviations = power.flip(0).clamp(min=0).sqrt()
    return deviations.to(rows.dtype).clamp(min=math.ulp(1.0)), directions.flip(1).to(rows.dtype)
