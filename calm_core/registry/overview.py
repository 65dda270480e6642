"""What a registry holds: versions of a model, with what was measured and decided; and which of them nobody needs."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from calm_core.registry.aliases import MEASURED_TAG, Decision
from calm_core.registry.versions import registered_model, versions_of
from calm_core.store.facts import Score

if TYPE_CHECKING:
    from mlflow.entities.model_registry import ModelVersion


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
    tags: dict[str, str]
    run: str

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


def unused(versions: Sequence[Version], keep: int) -> list[Version]:
    """Versions that nobody needs: without an alias, never champion, decided about, and not among the newest.

    Args:
        versions: All, the newest first.
        keep: How many of the newest stay whatever they are.
    """
    return [
        each
        for each in versions[keep:]
        if not each.aliases and each.decision and each.decision.state == "kept" and not each.decision.was_promoted
    ]


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
        tags=tags,
        run=version.run_id or "",
    )


def _measured(text: str) -> tuple[Score | None, float | None]:
    try:
        told = json.loads(text)
        accuracy = TypeAdapter(float | None).validate_python(told.get("autoencoder_accuracy"), strict=True)
        return Score.model_validate(told["brierlm"], strict=True), accuracy
    except (ValueError, ValidationError, KeyError, TypeError, AttributeError, RecursionError):
        return None, None
