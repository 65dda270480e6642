from components.training.train_autoencoder.component import train_autoencoder

__all__ = ["train_autoencoder"]
