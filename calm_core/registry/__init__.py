"""Registered models: MLflow's registry, and loading a model from it with this library alone."""
