"""A training job: what is checked before its ranks start, what each of them opens, and how it ended.

Before the ranks, `check_inputs` reads manifests alone: kinds, digests, whether the parts belong together. Behind them,
`open_inputs` reads tokenizer, shards and weights. Spec and outcome are artifacts beside the job's checkpoints, so the
ranks may run on other machines than whoever waits for them.
"""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch
from pydantic import Field, SerializeAsAny, ValidationError, ValidationInfo, field_validator

from calm_core.config import AutoencoderConfig, CalmConfig, TrainingConfig, TransformerConfig
from calm_core.data.reading.dataset import open_dataset, require_whole_chunks
from calm_core.errors import ArtifactError, CalmError, ConfigError, first_line
from calm_core.store import lock, storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter, digest_of
from calm_core.store.facts import (
    AutoencoderFacts,
    DatasetFacts,
    MixtureFacts,
    ModelFacts,
    OutcomeFacts,
    Record,
    SpecFacts,
)
from calm_core.store.lock import FolderLock
from calm_core.training.distillation import checked_teacher
from calm_core.training.initial_weights import checked_digest, plain_dataset
from calm_core.training.tasks.base import Inputs
from calm_core.weights.initial import INITIAL_WEIGHTS
from calm_core.weights.load import settings_of
from calm_core.weights.teacher import TEACHER, teacher_artifact

ModelConfig = AutoencoderConfig | CalmConfig | TransformerConfig


class TrainingSpec(Record):
    """What the ranks train.

    Attributes:
        kind: Of the model; the config is of this kind.
        config: Settings of the model and its training.
        dataset_uri, autoencoder_uri: The inputs.
        output_uri: Where the trained artifact is written.
        overwrite: Whether another artifact of its kind that lies there is replaced.
        resume: Whether to go on from a checkpoint, or not to train at all.
        seed: Of everything random.
        run_id: MLflow run that rank 0 logs to, empty for none.
        lock: Token of the lock that whoever has started the ranks holds.
        points_file: Local file that rank 0 appends the points of the curves to, empty for none.
        parents: Digests of the inputs.
    """

    kind: str
    config: SerializeAsAny[TrainingConfig]
    dataset_uri: str
    autoencoder_uri: str = ""
    output_uri: str
    overwrite: bool = False
    resume: bool = False
    seed: int
    run_id: str = ""
    lock: str = ""
    points_file: str = ""
    parents: dict[str, str] = Field(default_factory=dict)

    @field_validator("config", mode="before")
    @classmethod
    def _of_its_kind(cls, value: Any, info: ValidationInfo) -> TrainingConfig:
        return TrainingConfig.of_kind[info.data["kind"]].model_validate(value)

    @property
    def stage(self) -> str:
        """Name under which progress is reported."""
        return f"train-{self.kind}"

    @property
    def settings(self) -> dict[str, Any]:
        """What the trained artifact's manifest holds as its config."""
        return self.config.model_dump(mode="json") | {"seed": self.seed}

    def is_that_of(self, other: "TrainingSpec") -> bool:
        """Whether the ranks of another one do the same: it was made for another start, and differs in no setting."""
        of_a_start = {"run_id", "lock", "points_file"}
        return self.model_dump(exclude=of_a_start) == other.model_dump(exclude=of_a_start)

    @property
    def trained(self) -> dict[str, Any]:
        """All that changes the result: neither how it is carried out, nor where the inputs lie."""
        config = self.config.model_dump(mode="json", exclude=self.config.execution_settings()) | {"seed": self.seed}
        return {"kind": self.kind, "config": config, "parents": self.parents}

    def writer(self, kind: type[ModelFacts]) -> ArtifactWriter[ModelFacts]:
        """Of the trained artifact: one that was trained in another way, with the same result, is the same."""
        return ArtifactWriter(
            self.output_uri,
            kind,
            self.settings,
            self.parents,
            overwrite=self.overwrite,
            regardless_of=self.config.execution_settings(),
        )


def check_inputs(spec: TrainingSpec) -> TrainingSpec:
    """Check the inputs as far as their manifests tell, and note their digests.

    Raises:
        CalmError: One is missing, of another kind, or not needed; or the weights to start from do not fit.
    """
    parents = {"dataset": Artifact(spec.dataset_uri, DatasetFacts, MixtureFacts).digest}
    if (spec.kind == CalmConfig.kind) != bool(spec.autoencoder_uri):
        raise ConfigError(f"{spec.stage}: autoencoder_uri is needed for CALM, and for no other model")
    if spec.autoencoder_uri:
        parents["autoencoder"] = Artifact(spec.autoencoder_uri, AutoencoderFacts).digest
    if spec.config.initial_weights:
        parents[INITIAL_WEIGHTS] = checked_digest(spec.config, spec.dataset_uri, spec.autoencoder_uri)
    if isinstance(spec.config, CalmConfig) and spec.config.teacher:
        autoencoder = Artifact(spec.autoencoder_uri, AutoencoderFacts)
        parents[TEACHER] = checked_teacher(spec.config, plain_dataset(spec.dataset_uri), autoencoder)
    return spec.model_copy(update={"parents": parents})


def open_inputs(spec: TrainingSpec, device: torch.device, dtype: torch.dtype) -> Inputs:
    """Open what `check_inputs` has looked at.

    Raises:
        CalmError: An input is damaged, or has changed since.
    """
    dataset = open_dataset(spec.dataset_uri, "train")
    if empty := [part.uri for part in dataset.parts if not part.num_sequences]:
        raise CalmError(f"{spec.stage}: {empty[0]}: has no training text, all of it is held out; name another dataset")
    if dataset.pad_id == dataset.eos_id:
        raise CalmError(
            f"{spec.stage}: {spec.dataset_uri}: its padding is the token that ends a document, so a model would never "
            "learn to stop; prepare it with another tokenizer.pad_token"
        )
    autoencoder = Artifact(spec.autoencoder_uri, AutoencoderFacts) if spec.autoencoder_uri else None
    shape = settings_of(autoencoder, AutoencoderConfig) if autoencoder else spec.config
    if isinstance(shape, AutoencoderConfig):
        require_whole_chunks(dataset, shape.model.chunk_size)
    uri = spec.config.teacher if isinstance(spec.config, CalmConfig) else ""
    teacher = teacher_artifact(uri) if uri else None
    found = {"dataset": dataset.digest} | ({"autoencoder": autoencoder.digest} if autoencoder else {})
    found |= {TEACHER: teacher.digest} if teacher else {}
    if found != {name: digest for name, digest in spec.parents.items() if name != INITIAL_WEIGHTS}:
        raise CalmError(f"{spec.stage}: an input has been replaced since the job was made; run again", can_pass=True)
    return Inputs(dataset, autoencoder, spec.seed, device, dtype, teacher)


@dataclass(frozen=True)
class Job:
    """The place of a training: its spec, its checkpoints, its outcome.

    It is named by what is trained, so that a retried or resubmitted task finds its own work.

    Attributes:
        uri: Its folder.
        lock: Token of the lock under which this process works for it; empty for none.
    """

    uri: str
    lock: str = ""

    @classmethod
    def of(cls, spec: TrainingSpec, checkpoint_root: str) -> "Job":
        """The job of a checked spec, below the folder of all checkpoints."""
        return cls(storage.join(checkpoint_root, f"{spec.kind}-{digest_of(spec.trained)[:16]}"))

    def check(self, output_uri: str) -> None:
        """Refuse a place for checkpoints that cannot be written, or where the output would lie, or that lies in it.

        Raises:
            ConfigError: The job's folder would be removed with the output in it, or be in its way.
            CalmError: It cannot be written.
        """
        if storage.is_inside(output_uri, self.uri) or storage.is_inside(self.uri, output_uri):
            raise ConfigError(
                f"output_uri: {output_uri} and the checkpoints in {self.uri} would lie in each other; give "
                "checkpoint_root another folder"
            )
        ArtifactWriter(self.spec_uri, SpecFacts, {}, {}, overwrite=True).check()

    @property
    def name(self) -> str:
        """By what is trained."""
        return self.uri.rpartition("/")[2]

    @property
    def spec_uri(self) -> str:
        """Where the spec lies, the same for all names of the place: what a launcher hands to the ranks."""
        return storage.join(storage.real(self.uri), "spec")

    @property
    def _outcome_uri(self) -> str:
        return storage.join(self.uri, "outcome")

    def forget_outcome(self) -> None:
        """Remove what an earlier try has said; for before its ranks start anew."""
        storage.remove_folder(self._outcome_uri)

    def write_spec(self, spec: TrainingSpec) -> None:
        """Make the job ready to start."""
        self.forget_outcome()
        config = spec.model_dump(mode="json")
        with ArtifactWriter(self.spec_uri, SpecFacts, config, spec.parents, overwrite=True) as writer:
            writer.facts = SpecFacts()

    @classmethod
    def read(cls, spec_uri: str) -> "tuple[Job, TrainingSpec]":
        """The job, and its spec, of a spec's place.

        Raises:
            ArtifactError: There is none, or it is damaged.
        """
        settings = Artifact(spec_uri, SpecFacts).manifest.config
        try:
            spec = TrainingSpec.model_validate(settings)
        except (ValidationError, KeyError) as error:
            raise ArtifactError(f"{spec_uri}: is no spec of a training ({first_line(error)}); run again") from None
        return cls(spec_uri.rpartition("/")[0], spec.lock), spec

    def take(self, tell: Callable[[str], object], token: str = "") -> FolderLock:
        """The lock that keeps other trainings out of the folder.

        Args:
            tell: Gets a line before somebody on another machine is waited for.
            token: That of ranks which are taken over, so that they go on.
        """
        advice = "wait for it, or stop it, then run the same command again"
        return FolderLock(self.uri, advice, is_at_work=self._is_at_work, tell=tell, token=token)

    def _is_at_work(self) -> bool:
        """Whether ranks of this job, or what has started them, run on this machine."""
        import psutil

        told = (" ".join(each.info["cmdline"] or ()) for each in psutil.process_iter(["cmdline"]))
        return any(self.spec_uri in line for line in told)

    def require_lock(self) -> None:
        """Refuse to write into the folder where another training has taken it over.

        Raises:
            LockLostError: One has: whoever has started this rank stood still for long.
            StorageError: The storage failed, so this cannot be told.
        """
        if self.lock:
            lock.require(self.uri, self.lock)

    def write_outcome(self, facts: OutcomeFacts) -> None:
        """Say how the job ended. The first rank that says so is believed: what the others meet follows from it.

        Where another training has taken the job over, nothing is said: it is at work on an outcome of its own.
        """
        if (not self.lock or lock.is_held(self.uri, self.lock)) and self.outcome() is None:
            with ArtifactWriter(self._outcome_uri, OutcomeFacts, {}, {}, overwrite=True) as writer:
                writer.facts = facts

    def outcome(self) -> OutcomeFacts | None:
        """How the job ended; None where no rank could say."""
        with suppress(ArtifactError):
            return Artifact(self._outcome_uri, OutcomeFacts).facts
        return None

    def steps(self) -> list[int]:
        """After which steps a checkpoint of this job lies there."""
        steps = {name: name.removeprefix("step-") for name in storage.names_in(self.uri) if name.startswith("step-")}
        return [
            int(step)
            for name, step in steps.items()
            if step.isdecimal() and storage.exists(storage.join(self.uri, name, MANIFEST_NAME))  # else a copy
        ]
