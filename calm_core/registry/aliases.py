"""Names that point to a version of a registered model, and when one moves to another version."""

import json
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from calm_core.config import RegistryConfig
from calm_core.store.artifact import digest_of
from calm_core.store.facts import EvaluationFacts
from calm_core.store.protocol import Protocol, complete, differences

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

SCORE_TAG, PROTOCOL_TAG, PROTOCOL_DIGEST_TAG = "calm.brierlm_value", "calm.protocol", "calm.protocol_digest"
PROMOTION_TAG = "calm.promotion"
"""Tag with the line that says whether the alias has moved; `_UNDECIDED` while that is being found out."""

_UNDECIDED = "undecided"
_MOST_NAMES = 4  # of settings in which two protocols differ; the evaluations have all


@dataclass(frozen=True)
class Promotion:
    """Whether an alias points to a version, and why, for people."""

    promoted: bool
    reason: str


@dataclass(frozen=True)
class Measured:
    """A BrierLM, and how it was measured: the protocol names the held-out text by its dataset's digest."""

    brierlm: float
    protocol: Protocol

    @classmethod
    def of(cls, evaluation: EvaluationFacts) -> "Measured":
        """What an evaluation says."""
        return cls(evaluation.brierlm.value, complete(evaluation.protocol))

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "Measured | None":
        """What the tags of a version say; None if they say nothing, as those of earlier versions of this library."""
        try:
            score, protocol = float(tags[SCORE_TAG]), json.loads(tags[PROTOCOL_TAG])
        except (KeyError, ValueError, RecursionError):
            return None
        return cls(score, protocol) if math.isfinite(score) and isinstance(protocol, dict) else None

    @property
    def tags(self) -> dict[str, str]:
        """What later registrations compare with: in the registry, where it is as long as the version is."""
        text = json.dumps(self.protocol, sort_keys=True)
        return {SCORE_TAG: repr(self.brierlm), PROTOCOL_TAG: text, PROTOCOL_DIGEST_TAG: self.protocol_digest}

    @property
    def protocol_digest(self) -> str:
        """Scores with equal ones may be compared."""
        return digest_of(self.protocol)

    @property
    def counts(self) -> bool:
        """Whether it says anything: earlier versions gave scores of no position."""
        return math.isfinite(self.brierlm) and self.protocol.get("positions") != 0

    def is_better_than(self, other: "Measured") -> bool:
        """Whether both were measured alike, and this one is higher."""
        return self.counts and not differences(self.protocol, other.protocol) and self.brierlm > other.brierlm


class Aliases:
    """The alias of a registered model.

    Args:
        config: Names of the model and the alias, and when it moves.
        can_be_loaded: Says of a version's number whether its files are whole.
    """

    def __init__(self, config: RegistryConfig, can_be_loaded: Callable[[str], bool]) -> None:
        from mlflow import MlflowClient  # import costs seconds: only where it is used

        self._client = MlflowClient()
        self._config = config
        self._can_be_loaded = can_be_loaded

    def promote(self, number: str, measured: Measured) -> Promotion:
        """Let the alias point to a version if it may; how that ended stands in the version's tags.

        Args:
            number: Of the version.
            measured: Its score.
        """
        decided_before = {each.version for each in self._alike(measured) if _is_decided(each)}
        for name, value in (measured.tags | {PROMOTION_TAG: _UNDECIDED}).items():
            self._client.set_model_version_tag(self._config.model_name, number, name, value)
        promotion = self._decided(number, measured)
        if promotion.promoted and self._config.promote == "better":
            promotion = self._outdone(number, measured, decided_before) or promotion
        self._client.set_model_version_tag(self._config.model_name, number, PROMOTION_TAG, promotion.reason)
        return promotion

    def _decided(self, number: str, measured: Measured) -> Promotion:
        alias, promote = self._config.alias, self._config.promote
        holder = self._holder()
        if holder == number:
            return Promotion(True, f"{alias} already")
        stays = f"{alias} stays with version {holder}" if holder else f"no version is {alias}"
        if promote == "never":
            return Promotion(False, f"{stays}, since registry.promote is never")
        if promote == "better" and not measured.counts:
            return Promotion(False, f"{stays}, since the score of this one is of no position; evaluate on more text")
        if holder is None:
            self._point(number)
            return Promotion(True, f"{alias}, since no version was")
        if promote == "always":
            self._point(number)
            return Promotion(True, f"{alias} instead of version {holder}, since registry.promote is always")
        theirs = Measured.read(self._client.get_model_version(self._config.model_name, holder).tags)
        if theirs and measured.is_better_than(theirs):
            self._point(number)
            return Promotion(True, f"{alias} instead of version {holder} ({_against(measured, theirs)})")
        if not self._can_be_loaded(holder):  # a champion that nobody can use
            self._point(number)
            return Promotion(True, f"{alias} instead of version {holder}, which cannot be loaded")
        if theirs and theirs.counts and not differences(measured.protocol, theirs.protocol):
            return Promotion(False, f"{stays} ({_against(theirs, measured)})")
        return Promotion(
            False,
            f"{stays}, which {_why_not_compared(measured, theirs)}; this one is "
            f"models:/{self._config.model_name}/{number}, and with --set registry.promote=always it becomes {alias}",
        )

    def _outdone(self, number: str, measured: Measured, decided_before: set[str]) -> Promotion | None:
        """What has become of the alias if a better version was registered at the same time.

        MLflow has no transaction that could compare and set. But whoever registers says so in a tag before looking at
        the alias, and looks after setting it at all who did so meanwhile: they are seen by whoever sets it last.
        Versions that were decided before are left out: somebody may have moved the alias away from them by hand.
        """
        best, score = number, measured
        while rivals := [
            (theirs, str(each.version))
            for each in self._alike(measured)
            if each.version not in decided_before and PROMOTION_TAG in each.tags
            if (theirs := Measured.read(each.tags)) and theirs.is_better_than(score)
        ]:
            score, best = max(rivals, key=lambda rival: (rival[0].brierlm, -int(rival[1])))
            self._point(best)
        if best == number:
            return None
        return Promotion(False, f"{self._config.alias} stays with version {best} ({_against(score, measured)})")

    def _alike(self, measured: Measured) -> "Iterator[ModelVersion]":
        """The model's versions that were scored alike."""
        # Of all models: a name in the filter would have to be quoted.
        found = self._client.search_model_versions(f"tags.`{PROTOCOL_DIGEST_TAG}` = '{measured.protocol_digest}'")
        return (each for each in found if each.name == self._config.model_name)

    def _holder(self) -> str | None:
        """Number of the version that has the alias; a deleted version has none."""
        aliases: Mapping[str, Any] = self._client.get_registered_model(self._config.model_name).aliases
        return str(aliases[self._config.alias]) if self._config.alias in aliases else None

    def _point(self, number: str) -> None:
        self._client.set_registered_model_alias(self._config.model_name, self._config.alias, number)


def _is_decided(version: "ModelVersion") -> bool:
    return version.tags.get(PROMOTION_TAG, _UNDECIDED) != _UNDECIDED


def _against(first: Measured, second: Measured) -> str:
    return f"{first.brierlm:.2f} against {second.brierlm:.2f}"


def _why_not_compared(measured: Measured, theirs: Measured | None) -> str:
    if theirs is None:
        return "has no score to compare with"
    if not theirs.counts:
        return "has a score of no position"
    names = [name.replace("_", " ") for name in differences(measured.protocol, theirs.protocol)]
    more = " and more" if len(names) > _MOST_NAMES else ""
    return f"was scored with another {', '.join(names[:_MOST_NAMES])}{more}"
