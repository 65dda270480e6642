"""Mistakes around MLflow: servers, stores, registered models."""

from tests.cli.mistakes.frame import Mistake

MISTAKES: list[Mistake] = []
