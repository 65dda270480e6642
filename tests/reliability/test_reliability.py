"""A short run of every campaign; ``python -m tests.reliability`` makes the long one."""

from pathlib import Path

import pytest

from tests.reliability.campaign import run
from tests.reliability.campaigns import CAMPAIGNS

SHORT = 60


@pytest.mark.parametrize("name", CAMPAIGNS)
def test_wrong_inputs_are_refused_in_one_line(name: str, tmp_path: Path) -> None:
    cases, _ = CAMPAIGNS[name]
    tally = run(cases, tmp_path, SHORT, seed=1)
    assert tally.bad == 0, "\n".join(tally.examples)
    assert tally.answers.total() == SHORT
