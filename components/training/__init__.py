"""Training of the autoencoder and of the language model."""
