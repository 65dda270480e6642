"""Training a CALM language model on what a teacher makes of noise."""

from collections.abc import Callable
from typing import Any, Self

from torch import Tensor

from calm_core.config import AutoencoderConfig, CalmConfig
from calm_core.models.calm import make_targets
from calm_core.models.heads.base import Head
from calm_core.models.noise import SequenceNoise
from calm_core.store import storage
from calm_core.training.distillation import (
    Teacher,
    begin_like,
    lesson_loss,
    load_teacher,
    make_teacher,
    teacher_cost,
)
from calm_core.training.tasks.base import Inputs, Loss
from calm_core.training.tasks.calm import CalmTask
from calm_core.weights.load import settings_of


class DistillationTask(CalmTask):
    """Noise paired with the frozen teacher's targets, and the head's own loss if that has a weight."""

    headline = "distillation_loss"
    teacher: Teacher
    config: CalmConfig

    @classmethod
    def create(cls, config: CalmConfig, inputs: Inputs) -> Self:
        assert inputs.teacher is not None and inputs.autoencoder is not None
        task = super().create(config, inputs)
        teacher = load_teacher(inputs.teacher, inputs.autoencoder)
        if config.distillation.start_from_teacher:
            begin_like(task.model, teacher)
        task.config, task.headline = config, cls.headline
        task.teacher = make_teacher(
            teacher.to(inputs.device, inputs.dtype),
            task.autoencoder,
            config.distillation,
            task.model.mlp_generator.noise_size,
        )
        return task

    def own_facts(self, inputs: Inputs) -> dict[str, Any]:
        assert inputs.teacher is not None and inputs.autoencoder is not None
        autoencoder = settings_of(inputs.autoencoder, AutoencoderConfig)
        cost = teacher_cost(self.config, inputs.teacher, autoencoder, inputs.dataset.sequence_length)
        return super().own_facts(inputs) | {
            "teacher_uri": storage.absolute(inputs.teacher.uri),
            "teacher_flops": cost.passes,
            "teacher_training_flops": cost.training,
        }

    def loss(self, forward: Callable[..., Any], tokens_BT: Tensor, noise: SequenceNoise, counts: Tensor) -> Loss:
        settings, count = self.config.distillation, counts[0].float()
        chunks_BPK, real_BPK = self._chunks(tokens_BT)
        has_own = settings.own_loss_weight > 0
        samples = self.target_samples if has_own else 0
        targets = make_targets(self.autoencoder, chunks_BPK, real_BPK, noise, samples)
        lessons = self.teacher.lessons(chunks_BPK, real_BPK, targets, noise)

        def answer(head: Head, hidden_BPD: Tensor, _: SequenceNoise) -> Tensor:
            return head.sample_paired(targets.rows(hidden_BPD), lessons.uniform_RNV)

        own, samples_RNL = forward(chunks_BPK, targets, noise, answer, has_own)
        before_RW = targets.rows(self.autoencoder.before(chunks_BPK)[:, 1:])
        taught = lesson_loss(samples_RNL, lessons, self.autoencoder, before_RW, settings.loss) / count
        if not has_own:
            return Loss(taught, {"distillation_loss": taught})
        own = own / count
        return Loss(taught + settings.own_loss_weight * own, {"distillation_loss": taught, self.own_loss: own})

    @property
    def own_loss(self) -> str:
        """Name of the head's own loss."""
        return self.model.mlp_generator.loss_name
