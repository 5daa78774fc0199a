"""Stable Audio Open's autoencoder, as the released model uses it: 51,200 Hz stereo, one latent per picture."""
