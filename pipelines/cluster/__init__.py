"""Kubeflow Pipelines, Trainer and Kubernetes, as their APIs show them to whoever submits a run."""
