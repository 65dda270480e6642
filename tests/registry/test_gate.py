"""The rules of promotion: a table of facts and what they decide."""

from dataclasses import dataclass, field, replace
from typing import Any

import pytest

from calm_core.config import RegistryConfig
from calm_core.registry.gate import Contender, Signature, judge
from calm_core.store.facts import LONGEST_TOLD, Difference, ScoreDifference

CALLED = Signature(None, [{"type": "string"}], {"temperature": ("double", None), "stop": ("string", [-1])})
ONE = Contender("1", autoencoder_accuracy=0.95, tokenizer="a" * 64, signature=CALLED)
TWO = replace(ONE, version="2")


def difference(brierlm: float = 2.0, p_value: float = 0.001, brier: float = 0.01, **terms: float) -> Difference:
    values = {n: terms.get(f"brier_{n}", brier) for n in "1234"}
    return Difference(
        brierlm=ScoreDifference(value=brierlm, low=brierlm - 1, high=brierlm + 1, p_value=p_value),
        brier={n: ScoreDifference(value=value, p_value=0.5) for n, value in values.items()},
        documents=30,
        positions=900,
        resamples=9999,
        confidence=0.95,
    )


WIN = difference()


@dataclass(frozen=True)
class Case:
    """Facts, and what they decide.

    Attributes:
        says: A part of the reason.
        failed: The rules that were not met.
    """

    name: str
    promoted: bool
    says: str
    failed: tuple[str, ...] = ()
    challenger: Contender = TWO
    champion: Contender | None = ONE
    comparison: Difference | str = WIN
    rules: dict[str, Any] = field(default_factory=dict)


MAX = "max_regression"
CASES = [
    Case("a significant win", True, "champion instead of version 1: BrierLM +2.00 [1.00, 3.00] on 30 documents"),
    Case("as significant as is asked for", True, "p = 0.05", comparison=difference(p_value=0.05)),
    Case(
        "less significant",
        False,
        "champion stays with version 1, since this one is not significantly better: BrierLM +2.00 [1.00, 3.00] on 30 "
        "documents, p = 0.0501, and 0.05 is asked for",
        ("significance",),
        comparison=difference(p_value=0.0501),
    ),
    Case(
        "by another level",
        False,
        "and 0.01 is asked for",
        ("significance",),
        comparison=difference(p_value=0.02),
        rules={"significance": 0.01},
    ),
    Case("significantly worse", False, "BrierLM -2.00", ("significance",), comparison=difference(-2.0)),
    Case("equal", False, "BrierLM +0.00", ("significance",), comparison=difference(0.0, 1.0, 0.0)),
    Case("no champion", True, "champion, since there was none", champion=None, comparison="was not compared"),
    Case(
        "a champion that cannot be loaded",
        True,
        "champion instead of version 1, which cannot be loaded",
        champion=replace(ONE, loads=False),
        comparison="was not compared",
    ),
    Case(
        "no position scored",
        False,
        "no version is champion, since this one has a score of no position",
        ("score",),
        challenger=replace(TWO, is_scored=False),
        champion=None,
    ),
    Case(
        "another protocol that cannot be mended",
        False,
        "since this one was scored with another dataset",
        ("comparison",),
        comparison="was scored with another dataset",
    ),
    Case("accurate enough", True, "BrierLM", rules={"min_autoencoder_accuracy": 0.95}),
    Case(
        "too inaccurate",
        False,
        "since this one has autoencoder accuracy 95%, less than 96%",
        ("min_autoencoder_accuracy",),
        rules={"min_autoencoder_accuracy": 0.96},
    ),
    Case(
        "hardly too inaccurate",
        False,
        "since this one has autoencoder accuracy 94.9996%, less than 95%",
        ("min_autoencoder_accuracy",),
        challenger=replace(TWO, autoencoder_accuracy=0.949996),
        rules={"min_autoencoder_accuracy": 0.95},
    ),
    Case(
        "a fall that is hardly too far",
        False,
        "changes brier 4 by -2.004 points, and may lose 2",
        ("max_regression.brier_4",),
        comparison=difference(brier_4=-0.02004),
        rules={MAX: {"brier_4": 0.02}},
    ),
    Case(
        "too inaccurate for a first champion too",
        False,
        "no version is champion",
        ("min_autoencoder_accuracy",),
        champion=None,
        rules={"min_autoencoder_accuracy": 0.96},
    ),
    Case(
        "an accuracy that nobody measured",
        False,
        "has no measured autoencoder accuracy, less than",
        ("min_autoencoder_accuracy",),
        challenger=replace(TWO, autoencoder_accuracy=None),
        rules={"min_autoencoder_accuracy": 0.5},
    ),
    Case(
        "a term that falls too far",
        False,
        "changes brier 4 by -3 points, and may lose 2",
        ("max_regression.brier_4",),
        comparison=difference(brier_4=-0.03),
        rules={MAX: {"brier_4": 0.02}},
    ),
    Case("a term that falls", True, "", comparison=difference(brier_4=-0.02), rules={MAX: {"brier_4": 0.02}}),
    Case("a fall that nobody has forbidden", True, "", comparison=difference(brier_4=-0.9)),
    Case(
        "an autoencoder that loses",
        False,
        "changes autoencoder accuracy by -5 points, and may lose 1",
        ("max_regression.autoencoder_accuracy",),
        challenger=replace(TWO, autoencoder_accuracy=0.9),
        rules={MAX: {"autoencoder_accuracy": 0.01}},
    ),
    Case(
        "a champion's accuracy that nobody measured",
        False,
        "has no autoencoder accuracy to compare",
        ("max_regression.autoencoder_accuracy",),
        champion=replace(ONE, autoencoder_accuracy=None),
        rules={MAX: {"autoencoder_accuracy": 0.01}},
    ),
    Case(
        "another tokenizer",
        False,
        "has another tokenizer (sha256 bbbbbbbbbbbb… instead of aaaaaaaaaaaa…)",
        ("tokenizer", "comparison"),
        challenger=replace(TWO, tokenizer="b" * 64),
        comparison="was scored on other tokens",
    ),
    Case("a tokenizer that is not known", True, "", champion=replace(ONE, tokenizer=None)),
    Case(
        "a parameter that is gone",
        False,
        "no longer takes stop",
        ("signature",),
        challenger=replace(TWO, signature=replace(CALLED, parameters={"temperature": ("double", None)})),
    ),
    Case(
        "a parameter of another type, and other inputs",
        False,
        "takes other inputs and takes temperature as another type",
        ("signature",),
        challenger=replace(
            TWO, signature=Signature([], CALLED.outputs, {**CALLED.parameters, "temperature": ("string", None)})
        ),
    ),
    Case(
        "a new parameter",
        True,
        "",
        challenger=replace(TWO, signature=replace(CALLED, parameters={**CALLED.parameters, "n": ("long", None)})),
    ),
    Case("never", False, "champion stays with version 1, since registry.promote is never", rules={"promote": "never"}),
    Case(
        "never the first",
        False,
        "no version is champion, since registry.promote is never",
        champion=None,
        rules={"promote": "never"},
    ),
    Case(
        "always",
        True,
        "champion instead of version 1, since registry.promote is always",
        comparison=difference(-9.0),
        rules={"promote": "always"},
    ),
    Case(
        "always, whatever is broken",
        True,
        "since registry.promote is always, although this one has autoencoder accuracy 95%, less than 99%; has "
        "another tokenizer",
        ("min_autoencoder_accuracy", "tokenizer"),
        challenger=replace(TWO, tokenizer="b" * 64),
        rules={"promote": "always", "min_autoencoder_accuracy": 0.99},
    ),
    Case(
        "all that is wrong is told",
        False,
        "is not better: BrierLM -2.00 [-3.00, -1.00] on 30 documents, p = 0.001; "
        "changes brierlm by -2 points, and may lose 0.5; changes brier 1 by -1 points, and may lose 0",
        ("significance", "max_regression.brierlm", "max_regression.brier_1"),
        comparison=difference(-2.0, brier=-0.01),
        rules={MAX: {"brierlm": 0.5, "brier_1": 0, "autoencoder_accuracy": 0}},
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_rules_decide(case: Case) -> None:
    rules = RegistryConfig.model_validate(case.rules)
    decided = judge(rules, case.challenger, case.champion, case.comparison)
    assert decided.promoted == case.promoted and case.says in decided.reason
    assert tuple(check.rule for check in decided.checks if not check.passed) == case.failed
    assert decided.champion == (case.champion.version if case.champion else "")
    assert decided.comparison in (None, case.comparison)


def test_a_line_is_bounded_whatever_a_signature_holds() -> None:
    before = replace(ONE, signature=replace(CALLED, parameters={"p" * 900 + str(i): "long" for i in range(99)}))
    decided = judge(RegistryConfig(), TWO, before, difference())
    assert not decided.promoted and "and 91 more" in decided.reason and len(decided.reason) <= LONGEST_TOLD
