"""Learning from a teacher: what is checked before the ranks, what it teaches, and what its student makes of that.

Suffixes of names as in `calm_core.models`; V is the number of random numbers of a draw.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from calm_core.config import AutoencoderConfig, CalmConfig, DistillationConfig, TrainingConfig, TransformerConfig
from calm_core.data.tokenizers.stored import TOKENIZER_NAME
from calm_core.errors import ConfigError
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.calm import Calm
from calm_core.models.cross_entropy import linear_cross_entropy
from calm_core.models.heads.base import Head, Targets
from calm_core.models.heads.make import make_head
from calm_core.models.layers import freeze, without_storage
from calm_core.models.noise import SequenceNoise
from calm_core.models.paired_noise import with_digits
from calm_core.models.transformer import Transformer
from calm_core.scaling.cost import teacher_flops_per_token, training_flops_per_token
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, DatasetFacts, ModelFacts, TransformerFacts
from calm_core.weights.initial import INITIAL_WEIGHTS
from calm_core.weights.load import load_calm, load_transformer, settings_of
from calm_core.weights.teacher import SETTING, teacher_artifact

_HEAD = "mlp_generator."


@dataclass(frozen=True)
class Lessons:
    """What a student is to make of noise at the R positions that count, in N draws.

    Attributes:
        uniform_RNV: The noise, uniform in [0, 1), fp32.
        latent_RNL: The latent that it becomes, fp32.
        token_RNK: The tokens that it becomes, int64.
        real_RNK: Which of them count.
    """

    uniform_RNV: Tensor
    latent_RNL: Tensor
    token_RNK: Tensor
    real_RNK: Tensor


class Teacher(ABC):
    """A frozen model that pairs noise with what it becomes.

    Args:
        samples: N.
        noise_size: V, of the student.
    """

    def __init__(self, samples: int, noise_size: int) -> None:
        self.samples = samples
        self.noise_size = noise_size

    @abstractmethod
    def lessons(self, chunks_BPK: Tensor, real_BPK: Tensor, targets: Targets, noise: SequenceNoise) -> Lessons:
        """Of a batch of chunks.

        Args:
            chunks_BPK: int64 token ids.
            real_BPK: bool, False at padding.
            targets: Of the text itself.
            noise: One generator for each of the B sequences.
        """

    def _uniform(self, targets: Targets, noise: SequenceNoise, *shape: int) -> Tensor:
        """Drawn for all positions, as the targets are; of those that count, [R, *shape]."""
        return targets.rows(noise.uniform(targets.counted_BP.shape[1], *shape))


class CalmTeacher(Teacher):
    """A CALM model: noise becomes what its head makes of it, in as many evaluations as that takes.

    The map is deterministic, so its student can learn it by regression (Luhman and Luhman 2021, for images).
    """

    def __init__(self, model: Calm, autoencoder: Autoencoder, samples: int, noise_size: int) -> None:
        super().__init__(samples, noise_size)
        self.model = model
        self.autoencoder = autoencoder

    @torch.no_grad()
    def lessons(self, chunks_BPK: Tensor, real_BPK: Tensor, targets: Targets, noise: SequenceNoise) -> Lessons:
        uniform_RNV = self._uniform(targets, noise, self.samples, self.noise_size)
        hidden_BPD, _ = self.model.transformer(self.model.embed(chunks_BPK[:, :-1]))
        latent_RNL = self.model.mlp_generator.sample_paired(targets.rows(hidden_BPD), uniform_RNV).float()
        before_RW = targets.rows(self.autoencoder.before(chunks_BPK)[:, 1:])
        token_RNK = self.autoencoder.decode(latent_RNL, before_RW.unsqueeze(1))
        return Lessons(uniform_RNV, latent_RNL, token_RNK, torch.ones_like(token_RNK, dtype=torch.bool))


class TransformerTeacher(Teacher):
    """A token-level Transformer: noise becomes the real text, where it says so.

    Drawing token x from it takes one uniform number u: x is the token in whose interval of the cumulative distribution
    u lies. Given the real x, u is therefore uniform within x's interval (Parallel Token Prediction, arXiv 2512.21323):
    K numbers for the K tokens of the next chunk, from one pass over the text. The noise spells them
    (`paired_noise.with_digits`). Padding says nothing of its number.
    """

    def __init__(self, model: Transformer, samples: int, noise_size: int) -> None:
        super().__init__(samples, noise_size)
        self.model = model

    @torch.no_grad()
    def lessons(self, chunks_BPK: Tensor, real_BPK: Tensor, targets: Targets, noise: SequenceNoise) -> Lessons:
        tokens_BT, size = chunks_BPK.flatten(1), chunks_BPK.shape[-1]
        token_RK, real_RK = targets.rows(chunks_BPK[:, 1:]), targets.rows(real_BPK[:, 1:])
        uniform_RNV = self._uniform(targets, noise, self.samples, self.noise_size)
        within_RNK = self._uniform(targets, noise, self.samples, size).double()
        hidden_BTD, _ = self.model.transformer(self.model.embed(tokens_BT[:, :-1]))
        # A token follows from the state of the one before: those of the second chunk on from state K - 1 on.
        before_RKD = targets.rows(hidden_BTD[:, size - 1 :].unflatten(1, (-1, size)))
        start_RK, length_RK = torch.zeros(2, *token_RK.shape, dtype=torch.float64, device=token_RK.device)
        start_RK[real_RK], length_RK[real_RK] = self.model.interval(before_RKD[real_RK], token_RK[real_RK])
        length_RK.masked_fill_(~real_RK, 1)
        number_RNK = start_RK.unsqueeze(1) + within_RNK * length_RK.unsqueeze(1)
        many = (-1, self.samples, -1)
        return Lessons(
            with_digits(uniform_RNV, number_RNK.clamp_max(1 - 2.0**-53)),
            targets.mean_RL.float().unsqueeze(1).expand(many),
            token_RK.unsqueeze(1).expand(many),
            real_RK.unsqueeze(1).expand(many),
        )


def lesson_loss(
    samples_RNL: Tensor, lessons: Lessons, autoencoder: Autoencoder, before_RW: Tensor, loss: str
) -> Tensor:
    """The student's loss, summed over positions, a mean over draws; fp32 scalar.

    Args:
        samples_RNL: What it makes of the lessons' noise.
        lessons: With what it should have made.
        autoencoder: Frozen; its decoder is given the samples.
        before_RW: The tokens before the chunks, int64, which that decoder may read.
        loss: "regression", the mean squared error of the latent; or "cross_entropy", of a chunk's tokens (nats).
    """
    if loss == "regression":
        return (samples_RNL.float() - lessons.latent_RNL).square().mean((1, 2)).sum()
    real = lessons.real_RNK
    states_RNKD = autoencoder.states(samples_RNL, before_RW.unsqueeze(1), lessons.token_RNK)
    total, _ = linear_cross_entropy(states_RNKD[real], autoencoder.embedding, lessons.token_RNK[real])
    return total / samples_RNL.shape[1]


def load_teacher(artifact: Artifact[ModelFacts], autoencoder: Artifact[AutoencoderFacts]) -> Calm | Transformer:
    """The teacher, frozen, on CPU.

    Raises:
        ArtifactError: It is damaged, or belongs to another autoencoder.
    """
    if isinstance(artifact.facts, CalmFacts):
        return freeze(load_calm(cast(Artifact[CalmFacts], artifact), autoencoder))
    return freeze(load_transformer(cast(Artifact[TransformerFacts], artifact)))


def make_teacher(
    model: Calm | Transformer, autoencoder: Autoencoder, config: DistillationConfig, noise_size: int
) -> Teacher:
    """What a loaded teacher is in lessons; `noise_size` is that of the student."""
    if isinstance(model, Calm):
        return CalmTeacher(model, autoencoder, config.samples, noise_size)
    return TransformerTeacher(model, config.samples, noise_size)


@torch.no_grad()
def begin_like(student: Calm, teacher: nn.Module) -> None:
    """Give a student the teacher's weights of equal name and shape; a head's, if both are of one kind."""
    taught = teacher.state_dict()
    same_head = isinstance(teacher, Calm) and teacher.config.head.kind == student.config.head.kind
    for name, own in student.state_dict().items():
        if name in taught and taught[name].shape == own.shape and (same_head or not name.startswith(_HEAD)):
            own.copy_(taught[name])


class TeacherCost(NamedTuple):
    """What a teacher adds to the operations of its student's training.

    Attributes:
        passes: Its forward passes over what the student reads.
        training: Its own training, with that of its own teacher; None where nobody here knows.
    """

    passes: float
    training: float | None


def teacher_cost(
    config: CalmConfig, teacher: Artifact[ModelFacts], autoencoder: AutoencoderConfig, sequence_length: int
) -> TeacherCost:
    """Of a student's whole training.

    Args:
        config: Of the training.
        teacher: What `config.teacher` names.
        autoencoder: Settings of the student's.
        sequence_length: Of the text, in tokens.

    Raises:
        ArtifactError: The teacher's settings are not understood.
    """
    facts = teacher.facts
    own = cast(CalmConfig | TransformerConfig, settings_of(teacher, TrainingConfig.of_kind[facts.kind]))
    tokens = config.steps * config.global_batch_size * sequence_length
    passes = tokens * teacher_flops_per_token(config, own, autoencoder, facts.vocab_size, sequence_length)
    if facts.trained_tokens is None:
        return TeacherCost(passes, None)
    own_length = facts.trained_tokens // (own.steps * own.global_batch_size)
    training = facts.trained_tokens * training_flops_per_token(own, autoencoder, facts.vocab_size, own_length)
    if isinstance(facts, CalmFacts):
        training += (facts.teacher_flops or 0) + (facts.teacher_training_flops or 0)
    return TeacherCost(passes, training)


def checked_teacher(
    config: CalmConfig, dataset: Artifact[DatasetFacts], autoencoder: Artifact[AutoencoderFacts]
) -> str:
    """The digest of a training's teacher, which fits as far as manifests tell.

    Args:
        config: Of the training.
        dataset: What it reads.
        autoencoder: What it predicts the vectors of.

    Raises:
        ConfigError: It is missing or of another kind, or has another tokenizer or autoencoder, or the student's head
            takes fewer random numbers than it needs, or cannot learn from it.
    """
    teacher = teacher_artifact(config.teacher)
    who = f"{SETTING}: {config.teacher}"
    if teacher.entry(TOKENIZER_NAME).sha256 != dataset.entry(TOKENIZER_NAME).sha256:
        raise ConfigError(f"{who} has another tokenizer than {dataset.uri}; name a model that was trained on its text")
    if teacher.facts.packing != dataset.facts.packing:
        raise ConfigError(
            f"{who} was trained on data.packing: {teacher.facts.packing}, and {dataset.uri} is packed by "
            f"{dataset.facts.packing}; name another teacher, or prepare the text as its was"
        )
    if isinstance(teacher.facts, CalmFacts) and teacher.manifest.parents.get("autoencoder") != autoencoder.digest:
        raise ConfigError(
            f"{who} was trained on another autoencoder than {autoencoder.uri}, so its vectors mean something else; "
            "train on the teacher's, or name another teacher"
        )
    if config.initial_weights and config.distillation.start_from_teacher:
        raise ConfigError(
            f"{config.kind}.{INITIAL_WEIGHTS}: the student begins with its teacher's weights; leave it out, or set "
            f"{config.kind}.distillation.start_from_teacher=false"
        )
    if not config.model.head.differentiable:
        raise ConfigError(
            f"calm.model.head: {config.model.head.kind} learns from no teacher, since its samples pass no gradient on "
            "to all of it; set calm.model.head=residual, energy or flow"
        )
    _require_noise(config, teacher, autoencoder)
    return teacher.digest


def _require_noise(config: CalmConfig, teacher: Artifact[ModelFacts], autoencoder: Artifact[AutoencoderFacts]) -> None:
    """Refuse a student whose head takes fewer random numbers than the teacher needs."""
    facts = teacher.facts
    own = _shape_of_head(config, autoencoder).noise_size
    if isinstance(facts, CalmFacts):
        needed = _shape_of_head(settings_of(teacher, CalmConfig), autoencoder).noise_size
        why = "as many as its teacher's"
    else:
        needed = settings_of(autoencoder, AutoencoderConfig).model.chunk_size
        why = "one for each token of a chunk"
    if own < needed:
        raise ConfigError(
            f"calm.model.head: makes a sample of {own} random numbers, and needs {needed}, {why}; set "
            f"calm.model.head.noise_size={needed} of an energy head"
        )


def _shape_of_head(config: CalmConfig, autoencoder: Artifact[AutoencoderFacts]) -> Head:
    with without_storage():
        latent_size = settings_of(autoencoder, AutoencoderConfig).model.latent_size
        return make_head(config.model.head, config.model.hidden_size, latent_size)
