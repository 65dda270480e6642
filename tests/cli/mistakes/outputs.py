"""Mistakes in where results go: places that hold something else, or cannot be written."""

from tests.cli.mistakes.frame import Mistake

MISTAKES: list[Mistake] = []
