"""The aliases of a registered model, and when they move.

MLflow has no transaction that could compare an alias and set it. But versions are numbered in their order, and each is
seen by all who look later: so versions are decided about in that order. Whoever registers one first decides about the
earlier ones that nobody has decided about yet, as their owners would, and so all come to the same decisions.

A decision stands in one tag of its version, before the alias moves; whoever moves the alias looks once more whether
another version has followed meanwhile. What an interrupted process leaves undone, the next one does. Only decisions
that are new, or were never carried out, move an alias: what somebody has moved or removed by hand stays so.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, ValidationError

from calm_core.config import RegistryConfig
from calm_core.errors import CalmError
from calm_core.shown import shortened
from calm_core.store.facts import LONGEST_TOLD, Decided
from calm_core.store.facts.base import Record
from calm_core.store.facts.registry import Told
from calm_core.weights.versions import version_if_there, versions_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion

DECISION_TAG = "calm.decision"
PROMOTION_TAG = "calm.promotion"
"""Tag with the line that says why a version has become champion or not."""
MEASURED_TAG = "calm.measured"
"""Tag with how good a version is, as JSON."""
EVALUATION_TAG = "calm.evaluation_digest"
"""Tag that tells a model with its scores from others."""

_RULES = frozenset({"promote", "significance", "min_autoencoder_accuracy", "max_regression"})
_MOST_EARLIER = 16

Judge = Callable[[str, str | None, RegistryConfig], Decided | None]
"""Decides about a version, from its number, that of the champion, and rules; None where that cannot be told here."""


class Decision(Record):
    """What has been decided about a version.

    Attributes:
        state: `promoting` until the alias has moved; `rolled back` once it has been moved away by `Aliases.roll_back`.
        rules: Those of the registry when the version was registered, and by which it is decided about.
        decided: The decision, once there is one.
        was_promoted: Whether the version has ever been champion, also if it was decided about again.
        earlier: Reasons of the decisions before.
    """

    state: Literal["undecided", "promoting", "promoted", "kept", "rolled back"]
    rules: Annotated[dict[str, Any], Field(default_factory=dict)]
    decided: Decided = Decided(promoted=False)
    was_promoted: bool = False
    earlier: Annotated[tuple[Told, ...], Field(max_length=_MOST_EARLIER)] = ()

    @classmethod
    def begun(cls, config: RegistryConfig) -> "Decision":
        """That of a version that is about to be registered."""
        return cls(state="undecided", rules=config.model_dump(mode="json", include=set(_RULES)))

    @classmethod
    def read(cls, tags: Mapping[str, str]) -> "Decision | None":
        """What a version's tags say; None if that is nothing, as of those that an earlier version has registered."""
        try:
            return cls.model_validate_json(tags[DECISION_TAG])
        except (KeyError, ValidationError, RecursionError):
            return None

    @property
    def tags(self) -> dict[str, str]:
        """Tags that say it: for people, and then for `read`."""
        told = {} if self.state == "undecided" else {PROMOTION_TAG: self.decided.reason}
        return told | {DECISION_TAG: self.model_dump_json(exclude_defaults=True)}

    @property
    def is_open(self) -> bool:
        """Whether something remains to be done."""
        return self.state in ("undecided", "promoting")

    @property
    def is_promoted(self) -> bool:
        """Whether the version has become champion, or is about to."""
        return self.state in ("promoting", "promoted")

    @property
    def is_never_promoted(self) -> bool:
        """Whether the version has lost, and has never been champion."""
        return self.state == "kept" and not self.was_promoted

    def followed_by(self, state: Literal["promoting", "kept", "rolled back"], decided: Decided) -> "Decision":
        """Another decision, which remembers this one's reason."""
        was_promoted = self.was_promoted or state == "promoting"
        return Decision(state=state, rules=self.rules, decided=decided, was_promoted=was_promoted, earlier=self.reasons)

    @property
    def reasons(self) -> tuple[str, ...]:
        """This decision's reason, and those before."""
        return (*self.earlier, self.decided.reason)[-_MOST_EARLIER:] if self.decided.reason else self.earlier


class Aliases:
    """The aliases of a registered model.

    Args:
        config: Names of the model and the aliases, and the rules of promotion.
        judge: Applies the rules.
    """

    def __init__(self, config: RegistryConfig, judge: Judge) -> None:
        from mlflow import MlflowClient  # import costs seconds: only where it is used

        self._client = MlflowClient()
        self._config = config
        self._judge = judge

    def decide(self, number: str) -> Decided:
        """Decide whether a version becomes champion, and let the aliases move; how that ended stands in its tags.

        It is decided about once: again only by other rules, and if it has never been champion. The rules of now count
        also where an interrupted registration had others.
        """
        known = self._known()
        decision = self._decision(number)
        begun = Decision.begun(self._config)
        if decision is None or (decision.state in ("undecided", "kept") and decision.rules != begun.rules):
            decision = begun.model_copy(update={"earlier": decision.reasons if decision else ()})
            self._write(number, decision)
        if decision.state == "undecided" or self._holder(self._config.challenger_alias) is None:
            self._name_challenger()
        for each in self._open_until(number):
            with nullcontext() if each == number else may_be_deleted():
                self._decide(each, known)
        return self._answer(number)

    def promote(self, number: str, why: str) -> Decided:
        """Let a version be champion by hand; the reason stands in its tags.

        Raises:
            CalmError: It is champion already.
        """
        known = self._known()
        before = self._settle(known) or ""
        if before == number:
            raise CalmError(f"version {number} of {self._config.model_name} is {self._config.alias} already")
        instead = f" instead of version {before}" if before else ""
        reason = shortened(f"{self._config.alias}{instead}, by hand: {why}", LONGEST_TOLD)
        decision = self._decision(number) or Decision.begun(self._config)
        decided = Decided(promoted=True, reason=reason, champion=before)
        self._write(number, decision.followed_by("promoting", decided))
        self._decide(number, known)
        return self._answer(number)

    def roll_back(self, why: str, check: Callable[[str], None] = lambda number: None) -> tuple[str, str]:
        """Let the version be champion again that was it before the present one, and was not rolled back itself.

        Args:
            why: For the tags.
            check: Raises where the version of a number cannot be used; then nothing moves.

        Returns:
            The numbers of the version that was champion, and of the one that now is.

        Raises:
            CalmError: There is no champion, or none before it that is still there.
        """
        model, alias = self._config.model_name, self._config.alias
        holder = self._settle(self._known())
        if holder is None:
            raise CalmError(f"no version of {model} is {alias}; choose one: calm registry promote NUMBER")
        decisions = self._decisions()
        before = _champion_before(holder, decisions)
        if not before:
            raise CalmError(
                f"no tag of {model} says which version was {alias} before version {holder}, and was not rolled back; "
                "choose one: calm registry promote NUMBER"
            )
        if version_if_there(self._client, model, before) is None:
            raise CalmError(
                f"version {before} of {model}, which was {alias} before version {holder}, has been deleted; choose "
                "another: calm registry promote NUMBER"
            )
        check(before)
        reason = shortened(f"rolled back to version {before}: {why}", LONGEST_TOLD)
        decided = Decided(promoted=False, reason=reason, champion=before)
        self._write(holder, decisions[holder].followed_by("rolled back", decided))
        self._point(before)
        return holder, before

    def _answer(self, number: str) -> Decided:
        """The decision about a version, as far as the alias still says so."""
        decision = self._decision(number)
        if decision is None or decision.is_open:
            raise CalmError(f"version {number} of {self._config.model_name} could not be decided about; run it again")
        holder = self._holder()
        if not decision.is_promoted or holder == number:
            return decision.decided
        now = f"{self._config.alias} stays with version {holder}" if holder else f"no version is {self._config.alias}"
        return decision.decided.model_copy(
            update={"promoted": False, "reason": f"{now}; this one was {self._config.alias} before"}
        )

    def _decide(self, number: str, known: set[str]) -> None:
        """Decide about a version if nobody has, and let the alias move.

        Args:
            number: Of the version.
            known: Versions that had become champion before this process began.
        """
        while True:
            champion = self._settle(known)
            decision = self._decision(number)  # if it is open now, it has not been followed when the alias was read
            if decision is None or not decision.is_open:
                return
            if decision.state == "promoting" and self._came_before(number, champion):
                self._write(number, decision.model_copy(update={"state": "promoted"}))
                return
            decided = self._judged(number, champion, decision)
            if decided is None:
                return
            if self._settle(known) != champion:  # it took a while
                continue
            self._write(number, decision.followed_by("promoting" if decided.promoted else "kept", decided))

    def _judged(self, number: str, champion: str | None, decision: Decision) -> Decided | None:
        if champion == number:
            return Decided(promoted=True, reason=f"{self._config.alias} already")
        try:
            rules = RegistryConfig.model_validate(self._config.model_dump() | decision.rules)
        except ValidationError:  # from a registry
            return None
        return self._judge(number, champion, rules)

    def _settle(self, known: set[str]) -> str | None:
        """Let the alias move to where decisions that were made lately want it; returns the champion's number."""
        while True:
            holder = self._holder()
            lately = {
                decision.decided.champion: version
                for version, decision in reversed(self._decisions().items())
                if decision.state == "promoting" or (decision.state == "promoted" and version not in known)
            }
            champion = holder or ""
            while champion in lately:
                champion = lately.pop(champion)
            if champion == (holder or ""):
                return holder
            self._point(champion)

    def _came_before(self, number: str, champion: str | None) -> bool:
        """Whether a version is champion, or was followed by it."""
        decisions = self._decisions()
        seen: set[str] = set()
        while champion and champion not in seen:
            if champion == number:
                return True
            seen.add(champion)
            champion = decisions[champion].decided.champion if champion in decisions else None
        return False

    def _open_until(self, number: str) -> list[str]:
        """Versions up to this one that are to be decided about, in their order; less those registered twice at once."""
        seen: set[str] = set()
        found = []
        for each, version in self._versions().items():
            decision = Decision.read(version.tags)
            digest = version.tags.get(EVALUATION_TAG, each)
            if int(each) <= int(number) and decision and decision.is_open and (digest not in seen or each == number):
                found.append(each)
            seen.add(digest)
        return found

    def _known(self) -> set[str]:
        return {version for version, decision in self._decisions().items() if decision.state == "promoted"}

    def _name_challenger(self) -> None:
        """Let the challenger be the newest version, also if another one is registered at the same time."""
        while (newest := [*self._versions()][-1]) != self._holder(self._config.challenger_alias):
            with may_be_deleted():
                self._point(newest, self._config.challenger_alias)

    def _versions(self) -> "dict[str, ModelVersion]":
        return versions_of(self._client, self._config.model_name)

    def _decisions(self) -> dict[str, Decision]:
        read = ((number, Decision.read(version.tags)) for number, version in self._versions().items())
        return {number: decision for number, decision in read if decision}

    def _decision(self, number: str) -> Decision | None:
        version = version_if_there(self._client, self._config.model_name, number)
        return Decision.read(version.tags) if version else None

    def _holder(self, alias: str = "") -> str | None:
        """Number of the version that has the alias, champion unless another is named; a deleted version has none."""
        aliases: Mapping[str, Any] = self._client.get_registered_model(self._config.model_name).aliases
        number = aliases.get(alias or self._config.alias)
        return None if number is None else str(number)

    def _write(self, number: str, decision: Decision) -> None:
        for name, value in decision.tags.items():
            _set(self._client.set_model_version_tag, self._config.model_name, number, name, value)

    def _point(self, number: str, alias: str = "") -> None:
        name = alias or self._config.alias
        _set(self._client.set_registered_model_alias, self._config.model_name, name, number)


def _champion_before(holder: str, decisions: Mapping[str, Decision]) -> str:
    """The version that was champion before another one and was not rolled back; empty if no tag tells."""
    rolled_back = {number for number, decision in decisions.items() if decision.state == "rolled back"}
    passed: set[str] = set()
    number = holder
    while number not in passed and (number == holder or number in rolled_back):
        passed.add(number)
        number = decisions[number].decided.champion if number in decisions else ""
    return "" if number in passed else number


@contextmanager
def may_be_deleted() -> Iterator[None]:
    """Whoever makes a version of what is registered already withdraws it."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise


def _set(write: Callable[..., None], *arguments: str) -> None:
    """Set a tag or an alias, also if another process makes it at the same time.

    MLflow looks for one before it makes one, without a lock; its database then refuses the second one.
    """
    from mlflow.exceptions import MlflowException

    try:
        write(*arguments)
    except MlflowException as error:
        if not re.search("unique|duplicate", str(error), re.IGNORECASE):
            raise
        write(*arguments)
