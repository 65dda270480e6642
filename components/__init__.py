"""Kubeflow components: each body parses, calls one calm_core function, and fills its outputs."""
