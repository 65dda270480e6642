"""One training loop for every model: torchrun starts it, DeepSpeed runs it."""
