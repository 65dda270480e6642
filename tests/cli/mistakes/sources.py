"""Mistakes in texts, artifacts and storage that are read."""

from tests.cli.mistakes.frame import Mistake

MISTAKES: list[Mistake] = []
