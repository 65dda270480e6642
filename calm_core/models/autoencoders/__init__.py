"""Autoencoders: a chunk of K tokens to one latent vector and back."""
