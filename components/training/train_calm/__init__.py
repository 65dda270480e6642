from components.training.train_calm.component import train_calm

__all__ = ["train_calm"]
