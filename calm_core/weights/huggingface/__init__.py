"""Public CALM checkpoints in Hugging Face's folder format: read as artifacts, and written back.

A folder holds config.json and weights: model.safetensors, pytorch_model.bin, or either of them in shards with an index.
Parameter names are those of the models here; a CALM folder holds its autoencoder again, below `ae_model.`.
"""

from calm_core.weights.huggingface.exporting import export_checkpoint
from calm_core.weights.huggingface.importing import import_checkpoint

__all__ = ["export_checkpoint", "import_checkpoint"]
