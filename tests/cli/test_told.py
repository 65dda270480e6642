"""What is said of work that takes long."""

from threading import Event
from types import SimpleNamespace
from typing import Any

import pytest

from calm_cli import screen
from calm_cli.screen import Screen, told


class Said(Screen):
    """A screen that remembers what it was given, and tells when."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []
        self.came = Event()

    def print(self, *texts: Any, **options: Any) -> None:
        self.lines += texts
        self.came.set()


def test_short_work_that_is_long_together_is_told_and_shorter_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(screen, "time", SimpleNamespace(monotonic=lambda: now[0]))
    said = Said()
    with told(said) as tell:
        tell("loading one thing")
    with told(said) as tell:
        tell("loading a thing")
        now[0] = 3.0
        tell("loading another")
        assert said.lines == []
        now[0] = 6.0
        tell("loading a third")
        assert said.came.wait(60)
    assert said.lines == ["loading a third ..."]
