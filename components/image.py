"""The image that every component runs in."""

import os

IMAGE = os.environ.get("CALM_IMAGE", "ghcr.io/calm-pipelines/calm-python:0.1.0")
"""Name of the image, read when a pipeline is compiled; CALM_IMAGE pins another one, by digest."""
