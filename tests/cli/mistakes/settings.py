"""Mistakes in settings and profiles."""

from tests.cli.mistakes.frame import Mistake

MISTAKES = [
    Mistake(
        "unknown setting",
        ("run", "--set", "calm.lerning_rate=1"),
        ("unknown setting calm.lerning_rate; did you mean calm.learning_rate?",),
        exit_code=2,
    ),
]
