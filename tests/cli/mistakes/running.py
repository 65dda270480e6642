"""Mistakes that `calm run` finds before it trains, and what the machine cannot do."""

from tests.cli.mistakes.frame import Mistake

MISTAKES: list[Mistake] = []
