"""The rules by which a version becomes champion: from facts to a decision, with a line for people about each rule."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from calm_core.config import RegistryConfig
from calm_core.shown import shortened
from calm_core.store.facts import LONGEST_TOLD, Check, Decided, Difference

_MOST_NAMES = 8  # of parameters that a line tells


@dataclass(frozen=True)
class Signature:
    """How a model is called.

    Attributes:
        inputs, outputs: As MLflow describes them.
        parameters: The type of each parameter, by name.
    """

    inputs: Any
    outputs: Any
    parameters: Mapping[str, Any]

    def breaks_with(self, before: "Signature") -> str:
        """What callers of another model will miss in this one, in words; empty if nothing. New parameters may come."""
        found = ["takes other inputs"] if self.inputs != before.inputs else []
        found += ["has other outputs"] if self.outputs != before.outputs else []
        gone = [name for name in before.parameters if name not in self.parameters]
        found += [f"no longer takes {_listed(gone)}"] if gone else []
        changed = [name for name, type_ in before.parameters.items() if self.parameters.get(name, type_) != type_]
        found += [f"takes {_listed(changed)} as another type"] if changed else []
        return " and ".join(found)


@dataclass(frozen=True)
class Contender:
    """What the rules look at of a version.

    Attributes:
        version: Its number.
        is_scored: Whether any position was scored.
        autoencoder_accuracy: Share of held-out tokens that come back; None where that was not measured.
        tokenizer: SHA-256 of its tokenizer's file; None where that is not known.
        signature: None where it is not known.
        loads: Whether its files are whole.
    """

    version: str
    is_scored: bool = True
    autoencoder_accuracy: float | None = None
    tokenizer: str | None = None
    signature: Signature | None = None
    loads: bool = True


def judge(
    rules: RegistryConfig,
    challenger: Contender,
    champion: Contender | None = None,
    comparison: Difference | str = "was not compared",
) -> Decided:
    """Whether a version becomes champion.

    Args:
        rules: Of the registry.
        challenger: The version.
        champion: The one that is champion now, if any.
        comparison: The challenger's scores less the champion's on the same documents, or why there is none: what the
            challenger does, e.g. "was scored on other text".

    Returns:
        The decision; its reason names every rule that was not met.
    """
    name = rules.alias
    before = champion.version if champion else ""
    stays = f"{name} stays with version {before}" if champion else f"no version is {name}"
    becomes = f"{name} instead of version {before}" if champion else f"{name}, since there was none"
    measured = comparison if isinstance(comparison, Difference) and champion else None

    def decided(promoted: bool, reason: str, checks: Iterable[Check] = ()) -> Decided:
        line = shortened(reason, LONGEST_TOLD)
        return Decided(promoted=promoted, reason=line, champion=before, checks=[*checks], comparison=measured)

    if rules.promote == "never":
        return decided(False, f"{stays}, since registry.promote is never")
    own = [*_own_checks(rules, challenger)]
    with_champion = [*_compatibility(challenger, champion)] if champion else []
    if rules.promote == "always":
        checks = own + with_champion
        although = f", although this one {_failed(checks)}" if _failed(checks) else ""
        since = f"{becomes}, since registry.promote is always" if champion else becomes
        return decided(True, since + although, checks)
    if _failed(own):
        return decided(False, f"{stays}, since this one {_failed(own)}", own)
    if champion is None:
        return decided(True, becomes, own)
    if not champion.loads:  # a champion that nobody can use
        return decided(True, f"{becomes}, which cannot be loaded", own)
    checks = [*own, *with_champion, *_comparison_checks(rules, comparison)]
    if measured:
        checks += _regression_checks(rules, challenger, champion, measured)
    if not _failed(checks):
        assert measured
        return decided(True, f"{becomes}: {_told(measured)}", checks)
    return decided(False, f"{stays}, since this one {_failed(checks)}", checks)


def _failed(checks: Iterable[Check]) -> str:
    return "; ".join(check.told for check in checks if not check.passed)


def _own_checks(rules: RegistryConfig, challenger: Contender) -> Iterator[Check]:
    yield Check(
        rule="score",
        passed=challenger.is_scored,
        told="has a score" if challenger.is_scored else "has a score of no position; evaluate on more text",
    )
    least, accuracy = rules.min_autoencoder_accuracy, challenger.autoencoder_accuracy
    if least:
        passed = accuracy is not None and accuracy >= least
        has = (
            "has no measured autoencoder accuracy"
            if accuracy is None
            else f"has autoencoder accuracy {100 * accuracy:.6g}%"
        )
        yield Check(
            rule="min_autoencoder_accuracy",
            passed=passed,
            told=f"{has}, {'at least' if passed else 'less than'} {100 * least:.6g}%",
        )


def _compatibility(challenger: Contender, champion: Contender) -> Iterator[Check]:
    if challenger.tokenizer and champion.tokenizer:
        same = challenger.tokenizer == champion.tokenizer
        mine, theirs = challenger.tokenizer[:12], champion.tokenizer[:12]
        other = f"has another tokenizer (sha256 {mine}… instead of {theirs}…), so its tokens mean something else"
        yield Check(rule="tokenizer", passed=same, told="has the same tokenizer" if same else other)
    if challenger.signature and champion.signature:
        broken = challenger.signature.breaks_with(champion.signature)
        yield Check(rule="signature", passed=not broken, told=broken or "is called as before")


def _comparison_checks(rules: RegistryConfig, comparison: Difference | str) -> Iterator[Check]:
    if isinstance(comparison, str):
        yield Check(rule="comparison", passed=False, told=comparison)
        return
    told = _told(comparison)
    if comparison.brierlm.value <= 0:
        yield Check(rule="significance", passed=False, told=f"is not better: {told}")
    elif comparison.p_value > rules.significance:
        asked = f"and {rules.significance:g} is asked for"
        yield Check(rule="significance", passed=False, told=f"is not significantly better: {told}, {asked}")
    else:
        yield Check(rule="significance", passed=True, told=f"is better: {told}")


def _regression_checks(
    rules: RegistryConfig, challenger: Contender, champion: Contender, comparison: Difference
) -> Iterator[Check]:
    mine, theirs = challenger.autoencoder_accuracy, champion.autoencoder_accuracy
    gains: dict[str, float | None] = {"brierlm": comparison.brierlm.value}
    gains |= {f"brier_{n}": term.value for n, term in comparison.brier.items()}
    gains["autoencoder_accuracy"] = None if mine is None or theirs is None else mine - theirs
    for metric, most in rules.max_regression:
        if most is None:
            continue
        gain = gains.get(metric)
        scale = 1 if metric == "brierlm" else 100
        shown = metric.replace("_", " ")
        if gain is None:
            yield Check(rule=f"max_regression.{metric}", passed=False, told=f"has no {shown} to compare")
            continue
        passed = -gain <= most
        told = f"changes {shown} by {scale * gain:+.4g} points"
        yield Check(
            rule=f"max_regression.{metric}",
            passed=passed,
            told=told if passed else f"{told}, and may lose {scale * most:g}",
        )


def _told(comparison: Difference) -> str:
    difference = comparison.brierlm
    return (
        f"BrierLM {difference.value:+.2f} {difference.interval()} on {comparison.documents:,} documents, "
        f"p = {comparison.p_value:.4g}"  # all of it: it is one of 10,000
    )


def _listed(names: Iterable[str]) -> str:
    shown = [shortened(name) for name in names]
    more = f" and {len(shown) - _MOST_NAMES} more" if len(shown) > _MOST_NAMES else ""
    return ", ".join(shown[:_MOST_NAMES]) + more
