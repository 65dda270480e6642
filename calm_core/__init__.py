"""CALM language models: data, models, training, evaluation and registry."""
