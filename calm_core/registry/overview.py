"""What a registry holds: versions of a model, with what was measured and decided; and which of them nobody needs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from calm_core.registry.aliases import MEASURED_TAG, Decision
from calm_core.store.facts import Score
from calm_core.store.facts.base import Share
from calm_core.weights.versions import exact_uri, registered_model, version_if_there, versions_of

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


_LARGEST_BRIERLM = 100  # a tag may hold any number, and one of 300 digits leaves no room in a table


@dataclass(frozen=True)
class Version:
    """A version of a registered model.

    Attributes:
        number: Of the version.
        uri: By its number.
        aliases: That point to it.
        registered: When, in ISO 8601.
        score: Its BrierLM; None where no tag says it.
        autoencoder_accuracy: Likewise.
        decision: Whether and why it became champion; None of a version that other code has registered.
        stage: As earlier versions of MLflow had it instead of aliases: None, Staging, Production or Archived.
        tags: All of them.
        run: Of MLflow, in which it was registered.
    """

    number: str
    uri: str
    aliases: tuple[str, ...]
    registered: str
    score: Score | None
    autoencoder_accuracy: float | None
    decision: Decision | None
    stage: str
    tags: dict[str, str]
    run: str

    @property
    def is_unused(self) -> bool:
        """Whether nobody needs it: without an alias or a stage of use, decided about, and never champion."""
        is_named = bool(self.aliases) or self.stage in ("Staging", "Production")
        return not is_named and self.decision is not None and self.decision.is_never_promoted

    def as_json(self) -> dict[str, Any]:
        """What is known, as JSON values."""
        decision = self.decision
        return {
            "version": self.number,
            "uri": self.uri,
            "aliases": list(self.aliases),
            "registered": self.registered,
            "brierlm": self.score.model_dump(mode="json") if self.score else None,
            "autoencoder_accuracy": self.autoencoder_accuracy,
            "state": decision.state if decision else None,
            "decision": decision.decided.model_dump(mode="json") if decision else None,
            "earlier": list(decision.earlier) if decision else [],
            "run": self.run,
        }


def all_versions(model_name: str) -> list[Version]:
    """The versions of a registered model, the newest first.

    Raises:
        CalmError: There is no such model.
    """
    from mlflow import MlflowClient  # import costs seconds: only where it is used

    client = MlflowClient()
    model = registered_model(client, f"models:/{model_name}", model_name)
    named: dict[str, list[str]] = {}
    for alias, number in sorted(model.aliases.items()):
        named.setdefault(str(number), []).append(alias)
    versions = versions_of(client, model_name)
    return [_version(model_name, version, named.get(number, [])) for number, version in reversed(versions.items())]


def one_version(model_name: str, number: int) -> Version:
    """One version of a registered model.

    Raises:
        CalmError: There is none, or it cannot be used.
    """
    from mlflow import MlflowClient

    *_, exact = exact_uri(f"models:/{model_name}/{number}").rpartition("/")
    version = MlflowClient().get_model_version(model_name, exact)
    return _version(model_name, version, version.aliases)


def unused(versions: Sequence[Version], keep: int) -> list[Version]:
    """Versions that nobody needs, and that are not among the newest.

    Args:
        versions: All, the newest first.
        keep: How many of the newest stay whatever they are.
    """
    return [each for each in versions[keep:] if each.is_unused]


def delete_unused(model_name: str, keep: int) -> list[Version]:
    """Delete what is unused, each after one more look at it: an alias may have come while others were deleted.

    Args:
        model_name: Of the registered model.
        keep: As that of `unused`.

    Returns:
        The versions that are deleted.
    """
    from mlflow import MlflowClient

    client, deleted = MlflowClient(), []
    for each in unused(all_versions(model_name), keep):
        version = version_if_there(client, model_name, each.number)
        if version and _version(model_name, version, version.aliases).is_unused:
            client.delete_model_version(model_name, each.number)
            deleted.append(each)
    return deleted


def _version(model_name: str, version: "ModelVersion", aliases: Sequence[str]) -> Version:
    tags = {str(name): str(value) for name, value in version.tags.items()}
    score, accuracy = _measured(tags.get(MEASURED_TAG, ""))
    return Version(
        number=str(version.version),
        uri=f"models:/{model_name}/{version.version}",
        aliases=tuple(aliases),
        registered=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC).isoformat(timespec="seconds"),
        score=score,
        autoencoder_accuracy=accuracy,
        decision=Decision.read(tags),
        stage=str(version.current_stage),
        tags=tags,
        run=version.run_id or "",
    )


def _measured(text: str) -> tuple[Score | None, float | None]:
    try:
        told = json.loads(text)
        accuracy = TypeAdapter(Share | None).validate_python(told.get("autoencoder_accuracy"), strict=True)
        score = Score.model_validate(told["brierlm"], strict=True)
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
        return None, None
    is_brierlm = all(abs(number) <= _LARGEST_BRIERLM for number in (score.value, score.low or 0, score.high or 0))
    return (score, accuracy) if is_brierlm else (None, None)
