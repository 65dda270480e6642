"""Mistakes in settings and profiles."""

from tests.cli.mistakes.frame import Mistake

MISTAKES = [
    Mistake(
        "unknown setting",
        ("run", "--set", "calm.lerning_rate=1"),
        ("unknown setting calm.lerning_rate; did you mean calm.learning_rate?",),
        exit_code=2,
    ),
    Mistake(
        "registry.promote is another word",
        ("run", "--set", "registry.promote=sometimes"),
        ("registry.promote: expected better, always or never",),
        exit_code=2,
    ),
    Mistake(
        "registry.promote is a switch",
        ("register", "{calm}", "--evaluation", "{evaluation}", "--output", "out", "--set", "registry.promote=true"),
        ("registry.promote: ",),
        exit_code=2,
    ),
]
