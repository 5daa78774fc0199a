"""The video autoencoders: TurboVAED turns latents into frames, Wan2.2's encoder turns one picture into a latent."""
