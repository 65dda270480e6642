"""What the rules of promotion look at, from registered versions: scores by document, tokenizers and signatures."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from calm_core.config import RegistryConfig
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import CalmError
from calm_core.evaluation.comparison import compare
from calm_core.evaluation.documents import DOCUMENTS_NAME, DocumentScores
from calm_core.evaluation.stage import score_documents
from calm_core.registry.gate import Contender, Signature, judge
from calm_core.shown import shortened
from calm_core.store.artifact import Artifact
from calm_core.store.facts import Decided, Difference, EvaluationFacts
from calm_core.store.protocol import differences
from calm_core.telemetry.stage import Stage
from calm_core.weights.registered import registered_artifacts, registered_evaluation, registered_signature

RESAMPLES, CONFIDENCE, SEED = 9_999, 0.95, 0
"""Of comparisons in the registry: the least p-value is 1 / 10,000, and equal versions give equal numbers."""
_MOST_NAMES = 4  # of settings in which two protocols differ; the evaluations have all
_LONGEST_WHY = 400

ReadT = TypeVar("ReadT")


@dataclass(frozen=True)
class Scores:
    """What is known of how good a version is.

    Attributes:
        evaluation: The one that it was registered with.
        documents: Its scores by document; None if it was made by an earlier version, which kept none.
    """

    evaluation: Artifact[EvaluationFacts]
    documents: DocumentScores | None

    @classmethod
    def of(cls, evaluation: Artifact[EvaluationFacts]) -> "Scores":
        """Those of an evaluation, whose files are read now."""
        is_kept = any(entry.path == DOCUMENTS_NAME for entry in evaluation.manifest.files)
        return cls(evaluation, DocumentScores.read(evaluation) if is_kept else None)

    @classmethod
    def registered(cls, uri: str) -> "Scores | None":
        """Those of a registered version; None if an earlier version of this library has registered it.

        Raises:
            CalmError: Its files are missing or damaged, or cannot be reached.
        """
        with registered_evaluation(uri) as evaluation:
            return cls.of(evaluation) if evaluation else None

    def unlike(self, other: "Scores | None") -> str:
        """Why another version was not scored like this one, as what it was scored with; empty if it was."""
        if other is None or other.documents is None or self.documents is None:
            return "version of this library, which kept no scores of single documents"
        found = [
            name.replace("_", " ") for name in differences(*(each.evaluation.facts.protocol for each in (self, other)))
        ]
        more = f" and {len(found) - _MOST_NAMES} more" if len(found) > _MOST_NAMES else ""
        return ", ".join(found[:_MOST_NAMES]) + more


def compared(first: DocumentScores, second: DocumentScores) -> Difference:
    """First minus second, as the registry compares."""
    return compare(first, second, resamples=RESAMPLES, confidence=CONFIDENCE, seed=SEED)


class Evidence:
    """Applies the rules of promotion to versions of a registered model.

    Args:
        model_name: Of the registered model.
        own: Number of the version that is being registered.
        evaluation: Its evaluation.
        dataset_uri: On which a champion is scored that was not scored like the version; unset, none is.
        stage: To which progress is reported.
    """

    def __init__(
        self, model_name: str, own: str, evaluation: Artifact[EvaluationFacts], dataset_uri: str, stage: Stage
    ) -> None:
        self._model_name, self._own = model_name, own
        self._dataset_uri, self._stage = dataset_uri, stage
        self._scores: dict[str, Scores | None] = {own: Scores.of(evaluation)}

    def decide(self, number: str, champion: str | None, rules: RegistryConfig) -> Decided | None:
        """Whether a version becomes champion; None where only its own registration can tell.

        Args:
            number: Of the version.
            champion: Of the one that is champion now.
            rules: Of the registration of the version.

        Raises:
            CalmError: The registry's files cannot be reached now.
        """
        if rules.promote == "never":
            return judge(rules, Contender(number), Contender(champion) if champion else None)
        scores = self._scores_of(number)
        if scores is None or (number != self._own and not _is_whole(self._uri(number))):
            return None
        challenger = self._contender(number, scores)
        if champion is None:
            return judge(rules, challenger)
        before = self._contender(champion, self._scores_of(champion))
        if rules.promote == "always":
            return judge(rules, challenger, before)
        comparison = self._compared(number, scores, champion, before)
        if comparison is None:
            return None
        decided = judge(rules, challenger, before, comparison)
        if decided.promoted or _is_whole(self._uri(champion)):
            return decided
        return judge(rules, challenger, Contender(champion, loads=False))

    def _compared(self, number: str, scores: Scores, champion: str, before: Contender) -> Difference | str | None:
        """A version's scores less the champion's, which is scored now if it was not scored alike."""
        evaluation, theirs = scores.evaluation, self._scores_of(champion)
        if before.tokenizer not in (None, evaluation.facts.protocol.get("tokenizer")):
            return "was scored on other tokens"
        if scores.documents is None:
            return "was evaluated by an earlier version of this library; evaluate it again"
        unlike = scores.unlike(theirs)
        if not unlike and theirs and theirs.documents:
            return compared(scores.documents, theirs.documents)
        if number != self._own:
            return None
        why = f"cannot be compared with version {champion}, which was scored with another {unlike}"
        if (
            not self._dataset_uri
            or Artifact.of_any_kind(self._dataset_uri).digest != evaluation.manifest.parents["dataset"]
        ):
            return f"{why}; name the dataset of the evaluation to score both on it"
        self._stage.report(note=f"scoring version {champion} like this one")
        try:
            with registered_artifacts(self._uri(champion)) as (autoencoder, calm):
                documents = score_documents(
                    calm.uri, self._dataset_uri, evaluation, self._stage, autoencoder_uri=autoencoder.uri
                )
            return compared(scores.documents, documents)
        except CalmError as error:
            if error.can_pass:
                raise
            return shortened(f"{why}: {error}", _LONGEST_WHY)

    def _scores_of(self, number: str) -> Scores | None:
        if number not in self._scores:
            self._scores[number] = _if_whole(lambda: Scores.registered(self._uri(number)))
        return self._scores[number]

    def _contender(self, number: str, scores: Scores | None) -> Contender:
        uri = self._uri(number)
        if scores is None:
            return Contender(number, tokenizer=_if_whole(lambda: _tokenizer_of(uri)), signature=_signature_of(uri))
        facts = scores.evaluation.facts
        return Contender(
            number,
            is_scored=facts.protocol.get("positions") != 0,
            autoencoder_accuracy=facts.autoencoder_accuracy,
            tokenizer=str(facts.protocol["tokenizer"]) if "tokenizer" in facts.protocol else None,
            signature=_signature_of(uri),
        )

    def _uri(self, number: str) -> str:
        return f"models:/{self._model_name}/{number}"


def check_files(uri: str) -> None:
    """Check every file of the weights of a registered model.

    Raises:
        CalmError: One is missing or damaged, or it is no model of ours.
    """
    with registered_artifacts(uri) as artifacts:
        for artifact in artifacts:
            artifact.check_files()


def _is_whole(uri: str) -> bool:
    """Whether the files of a registered model are there and undamaged.

    Raises:
        CalmError: That cannot be told now.
    """

    def check() -> bool:
        check_files(uri)
        return True

    return _if_whole(check) is not None


def _if_whole(read: Callable[[], ReadT | None]) -> ReadT | None:
    """What is read of a registered version; None if its files are missing or damaged.

    Raises:
        CalmError: That cannot be told now.
    """
    try:
        return read()
    except CalmError as error:
        if error.can_pass:
            raise
        return None


def _tokenizer_of(uri: str) -> str:
    with registered_artifacts(uri) as (_, calm):
        return calm.entry(TOKENIZER_NAME).sha256


def _signature_of(uri: str) -> Signature | None:
    """How a registered version is called; None where its files do not tell.

    Raises:
        CalmError: That cannot be told now.
    """
    told = _if_whole(lambda: registered_signature(uri))
    try:
        parsed = {name: json.loads(value) if value else None for name, value in dict(told or {}).items()}
        parameters = {spec["name"]: (spec["type"], spec.get("shape")) for spec in parsed.get("params") or ()}
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):  # a file from anywhere
        return None
    return Signature(parsed.get("inputs"), parsed.get("outputs"), parameters) if parsed else None
