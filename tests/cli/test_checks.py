"""What is said while `calm run` checks what it will need."""

import time

import pytest
from rich.console import Console

from calm_cli import run


def test_short_checks_that_are_long_together_are_told_and_shorter_ones_are_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(run, "_SILENT_SECONDS", 0.5)
    with run._told(Console()) as tell:
        tell("one thing")
    assert capsys.readouterr().out == ""
    with run._told(Console()) as tell:
        for number in range(8):
            tell(f"thing {number}")
            time.sleep(0.2)
    assert capsys.readouterr().out.count("checking thing ") >= 2
