"""Mistakes in commands: names, options, arguments, standard input."""

from tests.cli.mistakes.frame import Mistake

MISTAKES: list[Mistake] = []
