"""The joint video and sound transformer published as daVinci-MagiHuman (arXiv 2603.21986), in plain PyTorch.

Nothing in this package imports ComfyUI. Conventions that hold everywhere:

- video latents are ``[B, 48, T, H, W]`` and audio latents ``[B, 64, A]``, channels first, as the autoencoders do;
- sigma runs from almost 1 (noise) to 0 (clean), ``x = sigma * noise + (1 - sigma) * x0``, velocity is ``noise - x0``;
- pixels are in ``[-1, 1]`` inside the package, waveforms in ``[-1, 1]`` with shape ``[B, 2, samples]``.
"""

__version__ = "0.1.0"
