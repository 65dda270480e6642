"""Mistakes in commands: names, options, arguments, standard input."""

from tests.cli.mistakes.frame import Mistake

MISTAKES = [
    Mistake("a run that is not there", ("runs", "7"), ("7: no run has this number", "`calm runs` lists them")),
]
