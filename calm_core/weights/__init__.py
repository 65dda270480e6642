"""Trained models from artifacts and from public checkpoints."""
