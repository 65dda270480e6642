"""docs/brierlm.md: its example is what the code that scores models computes."""

import re

import numpy as np
import torch

from calm_core.evaluation.brier import brier_terms, brierlm
from tests.docs.documented import ROOT

PAGE = (ROOT / "docs" / "brierlm.md").read_text(encoding="utf-8")


def test_the_example_is_computed_as_models_are_scored() -> None:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in PAGE.splitlines() if line.startswith("| ")
    ]
    heading, *positions, mean = rows
    assert heading[0] == "the text says" and mean[0].startswith("mean")
    words = {
        word: i for i, word in enumerate(sorted({w for row in positions for text in row[:3] for w in text.split()}))
    }
    tokens = torch.tensor([[[words[word] for word in text.split()] for text in row[:3]] for row in positions])
    terms = brier_terms(tokens[:, 1:], tokens[:, 0]).numpy()
    assert terms.tolist() == [[float(cell) for cell in row[3:]] for row in positions]
    assert [f"{100 * value:.2f}" for value in terms.mean(0)] == mean[3:]
    told = re.search(r"\*\*([\d.]+)\*\*", PAGE)
    assert told is not None and f"{brierlm(np.asarray(terms.mean(0))):.2f}" == told[1]
