"""Learning from a teacher: its lessons and their losses against plain formulas, real trainings, and what is refused."""

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from calm_core.config import (
    AUTOENCODERS,
    CalmConfig,
    CalmModelConfig,
    DataConfig,
    DistillationConfig,
    TokenizerConfig,
    TransformerModelConfig,
)
from calm_core.data.stage import prepare_data
from calm_core.errors import CalmError, ConfigError
from calm_core.models.autoencoders.base import Autoencoder
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm, make_targets
from calm_core.models.heads.base import Targets
from calm_core.models.layers import freeze
from calm_core.models.noise import SequenceNoise
from calm_core.models.paired_noise import normal_quantiles, numbers_of
from calm_core.models.transformer import Transformer
from calm_core.store.artifact import Artifact
from calm_core.store.facts import CalmFacts
from calm_core.training.distillation import (
    CalmTeacher,
    Lessons,
    TransformerTeacher,
    begin_like,
    lesson_loss,
    make_teacher,
)
from calm_core.training.job import Job, TrainingSpec, check_inputs
from calm_core.training.stage import train
from tests.conftest import sentences
from tests.training.faulty_ranks import ForkedLauncher

B, P, K, L, V, D, N = 2, 6, 4, 5, 13, 16, 3
SHAPE = {"hidden_size": D, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
NO_TEXT = torch.zeros(0, 0, dtype=torch.int64)  # before a chunk: regression reads none


def autoencoder(kind: str = "mlp") -> Autoencoder:
    torch.manual_seed(1)
    shape = {"kind": kind, "chunk_size": K, "latent_size": L, "hidden_size": 8, "intermediate_size": 8}
    return freeze(make_autoencoder(AUTOENCODERS.parse(shape), V))


def calm(kind: str = "flow", seed: int = 0, **head: Any) -> Calm:
    torch.manual_seed(seed)
    config = CalmModelConfig.model_validate({**SHAPE, "head": {"kind": kind, "num_layers": 2, **head}})
    model = Calm(config, V, K, L)
    torch.nn.init.normal_(model.mlp_generator.final_layer.linears[2].weight)
    return model


def batch() -> tuple[Tensor, Tensor, Targets]:
    """Chunks, which of their tokens are real, and targets; padding inside a chunk, and at an end."""
    chunks = torch.randint(1, V, (B, P, K), generator=torch.Generator().manual_seed(2))
    real = torch.ones(B, P, K, dtype=torch.bool)
    real[0, 4:] = False
    real[1, 2, 1:] = False
    chunks = chunks * real
    return chunks, real, make_targets(autoencoder(), chunks, real, SequenceNoise([0, 1]), 2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("loss", ["regression", "cross_entropy"])
@pytest.mark.parametrize("kind", AUTOENCODERS.classes)
def test_the_loss_and_its_gradient_are_those_of_a_loop(loss: str, dtype: torch.dtype, kind: str) -> None:
    """Over positions, draws, and the tokens that count; the decoder gets no gradient."""
    generator = torch.Generator().manual_seed(3)
    frozen = autoencoder(kind).to(dtype)
    samples = torch.randn(7, N, L, generator=generator).to(dtype).requires_grad_()
    lessons = Lessons(
        uniform_RNV=torch.rand(7, N, L, generator=generator),
        latent_RNL=torch.randn(7, N, L, generator=generator),
        token_RNK=torch.randint(0, V, (7, N, K), generator=generator),
        real_RNK=torch.rand(7, N, K, generator=generator) < 0.7,
    )
    before = torch.randint(0, V, (7, frozen.reads), generator=generator)
    found = lesson_loss(samples, lessons, frozen, before, loss)
    (gradient,) = torch.autograd.grad(found, samples)

    plain = torch.zeros(())
    for r in range(7):
        for n in range(N):
            if loss == "regression":
                plain = plain + (samples[r, n].float() - lessons.latent_RNL[r, n]).square().mean() / N
                continue
            log_p = frozen.logits(samples[r, n], before[r], lessons.token_RNK[r, n]).float().log_softmax(-1)
            for k in range(K):
                plain = plain - lessons.real_RNK[r, n, k] * log_p[k, lessons.token_RNK[r, n, k]] / N
    (expected,) = torch.autograd.grad(plain, samples)
    tolerance = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(found, plain, **tolerance)
    torch.testing.assert_close(gradient, expected, **tolerance)
    assert not any(p.requires_grad for p in frozen.parameters())


@pytest.mark.parametrize("decoder", AUTOENCODERS.classes)
@pytest.mark.parametrize(("kind", "is_normal"), [("flow", True), ("energy", False)])
def test_a_calm_teacher_pairs_noise_with_its_own_sample_at_each_position(
    kind: str, is_normal: bool, decoder: str
) -> None:
    """The noise has 7 numbers, of which the teacher takes the first 5."""
    model, frozen, (chunks, real, targets) = (
        calm(kind, noise_size=5) if kind == "energy" else calm(),
        autoencoder(decoder),
        batch(),
    )
    lessons = CalmTeacher(freeze(model), frozen, N, 7).lessons(chunks, real, targets, SequenceNoise([4, 5]))
    uniform = SequenceNoise([4, 5]).uniform(P - 1, N, 7)
    positions = targets.counted_BP.nonzero().tolist()
    assert positions == [[0, 0], [0, 1], [0, 2], *([1, p] for p in range(5))]
    for r, (b, p) in enumerate(positions):
        hidden, _ = model.transformer(model.embed(chunks[b : b + 1, : p + 1]))
        drawn = normal_quantiles(uniform[b, p, :, :5]) if is_normal else uniform[b, p, :, :5]
        latent = model.mlp_generator.sample(hidden[0, -1], drawn)
        torch.testing.assert_close(lessons.latent_RNL[r], latent, rtol=1e-4, atol=1e-5)
        assert lessons.uniform_RNV[r].equal(uniform[b, p])
    assert lessons.real_RNK.all()
    text = torch.nn.functional.pad(chunks.flatten(1), (frozen.reads, 0), value=-1)
    before = torch.stack([text[b, (p + 1) * K :][: frozen.reads] for b, p in positions])
    assert lessons.token_RNK.equal(frozen.decode(lessons.latent_RNL, before.unsqueeze(1)))


def test_with_a_transformers_noise_the_teacher_draws_the_real_text() -> None:
    """Token by token from its cumulative distribution, by the number that the noise spells for it."""
    torch.manual_seed(0)
    model, (chunks, real, targets) = Transformer(TransformerModelConfig.model_validate(SHAPE), V), batch()
    lessons = TransformerTeacher(freeze(model), N, 24 * K).lessons(chunks, real, targets, SequenceNoise([4, 5]))
    numbers = numbers_of(lessons.uniform_RNV, K)
    for r, (b, p) in enumerate(targets.counted_BP.nonzero().tolist()):
        assert lessons.latent_RNL[r].equal(targets.mean_RL[r].expand(N, L))
        for n in range(N):
            assert lessons.token_RNK[r, n].equal(chunks[b, p + 1]) and lessons.real_RNK[r, n].equal(real[b, p + 1])
            for k in range(K):
                if not real[b, p + 1, k]:
                    continue
                before = chunks[b].flatten()[: (p + 1) * K + k]
                hidden, _ = model.transformer(model.embed(before[None]))
                probability = model.lm_head(hidden[0, -1]).double().softmax(-1)
                sorted_p, order = probability.sort(descending=True, stable=True)
                number = numbers[r, n, k] + 2.0**-25  # the middle of what 24 digits leave open
                assert order[torch.searchsorted(sorted_p.cumsum(0), number, right=True)] == chunks[b, p + 1, k]


def test_what_a_student_draws_for_one_sequence_depends_on_no_other() -> None:
    chunks, real, targets = batch()
    for teacher in (CalmTeacher(calm(), autoencoder(), N, L), TransformerTeacher(transformer(), N, L)):
        both = teacher.lessons(chunks, real, targets, SequenceNoise([4, 5]))
        alone = make_targets(autoencoder(), chunks[1:], real[1:], SequenceNoise([1]), 2)
        second = teacher.lessons(chunks[1:], real[1:], alone, SequenceNoise([5]))
        assert both.uniform_RNV[3:].allclose(second.uniform_RNV, atol=1e-5)


def transformer() -> Transformer:
    torch.manual_seed(0)
    return Transformer(TransformerModelConfig.model_validate(SHAPE), V)


def test_a_student_begins_with_what_fits() -> None:
    """All of a model of its kind; the backbone of others; nothing of another shape."""
    teacher = calm(seed=5)
    same, other_head, wider = calm(seed=6), calm("energy", seed=7), calm(seed=8, num_layers=3)
    begin_like(same, teacher)
    assert all(value.equal(same.state_dict()[name]) for name, value in teacher.state_dict().items())
    before = {name: value.clone() for name, value in other_head.state_dict().items()}
    begin_like(other_head, teacher)
    for name, value in other_head.state_dict().items():
        expected = before[name] if name.startswith("mlp_generator.") else teacher.state_dict()[name]
        assert value.equal(expected), name
    begin_like(wider, teacher)
    assert wider.mlp_generator.mlp_blocks[1].down_proj.weight.equal(
        teacher.mlp_generator.mlp_blocks[1].down_proj.weight
    )
    of_tokens, student = transformer(), calm(seed=9)
    embed = student.embed_proj[0].weight.clone()
    begin_like(student, of_tokens)
    assert all(v.equal(student.state_dict()[n]) for n, v in of_tokens.state_dict().items() if n != "lm_head.weight")
    assert student.embed_proj[0].weight.equal(embed)


def test_a_student_that_is_its_teacher_has_no_loss() -> None:
    """One that takes the noise in the way in which the teacher does."""
    chunks, real, targets = batch()
    teacher = make_teacher(calm(), autoencoder(), DistillationConfig(samples=N), L)
    lessons = teacher.lessons(chunks, real, targets, SequenceNoise([4, 5]))
    own, samples = answers(calm(), chunks, targets, lessons)
    assert own == 0
    assert lesson_loss(samples, lessons, autoencoder(), NO_TEXT, "regression") < 1e-8


@pytest.mark.parametrize("kind", ["energy", "flow"])
def test_a_student_learns_to_make_of_noise_what_its_teacher_makes(kind: str) -> None:
    """Of noise it has not seen: 100 steps halve the error of its latents."""
    chunks, real, targets = batch()
    student = calm(kind, seed=9, **({"noise_size": L} if kind == "energy" else {"sampling_steps": 1}))
    student.mlp_generator.finish_initialization()
    teacher = CalmTeacher(freeze(calm()), frozen := autoencoder(), 8, L)

    def loss_of(step: int) -> Tensor:
        lessons = teacher.lessons(chunks, real, targets, SequenceNoise([2 * step, 2 * step + 1]))
        return lesson_loss(answers(student, chunks, targets, lessons)[1], lessons, frozen, NO_TEXT, "regression")

    before, optimizer = float(loss_of(0)), torch.optim.Adam(student.parameters(), lr=5e-3)
    for step in range(1, 101):
        optimizer.zero_grad()
        loss_of(step).backward()
        optimizer.step()
    assert float(loss_of(0)) < before / 2


def answers(student: Calm, chunks: Tensor, targets: Targets, lessons: Lessons) -> tuple[Tensor, Tensor]:
    """The head's own loss, which is not asked for, and what it makes of the lessons' noise; as the task asks."""
    return student(
        chunks,
        targets,
        SequenceNoise([0, 1]),
        lambda head, hidden, _: head.sample_paired(hidden[targets.counted_BP], lessons.uniform_RNV),
        False,
    )


# Real trainings

HEADS: dict[str, dict[str, Any]] = {
    "energy": {"kind": "energy", "num_layers": 1, "model_samples": 2, "target_samples": 4, "noise_size": 16},
    "flow": {"kind": "flow", "num_layers": 1, "model_samples": 2, "sampling_steps": 1},
}


def config(teacher: str, head: str = "energy", **settings: Any) -> CalmConfig:
    layers = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    training = {
        "steps": 8, "warmup_steps": 1, "learning_rate": 5e-3, "global_batch_size": 4, "micro_batch_size": 2,
        "validation_interval": 4, "log_interval": 1, "checkpoint_interval": 2,
    }  # fmt: skip
    return CalmConfig.model_validate(
        training | {"teacher": teacher, "model": layers | {"head": HEADS[head]}} | settings
    )


@pytest.fixture
def teachers(model_uris: tuple[str, str], transformer_uri: str) -> dict[str, str]:
    return {"calm": model_uris[1], "transformer": transformer_uri}


def weights(artifact: Artifact[Any]) -> dict[str, Tensor]:
    return safetensors.torch.load(artifact.read("weights.safetensors"))


@pytest.mark.parametrize(
    ("teacher", "head", "distillation"),
    [
        ("calm", "energy", {"samples": 2}),
        ("transformer", "energy", {"samples": 2, "own_loss_weight": 0.5}),
        ("transformer", "flow", {"loss": "cross_entropy", "samples": 1}),
    ],
)
@pytest.mark.parametrize("precision", ["fp32", "bf16", "bf16-mixed"])
def test_a_student_goes_on_where_it_was_stopped_and_names_its_teacher(
    teacher: str,
    head: str,
    distillation: dict[str, Any],
    precision: str,
    teachers: dict[str, str],
    model_uris: tuple[str, str],
    dataset_uri: str,
    tmp_path: Path,
) -> None:
    """Killed in its sixth step, bit for bit."""
    settings = config(teachers[teacher], head, distillation=distillation, precision=precision)
    start = partial(train, settings, dataset_uri, seed=0, autoencoder_uri=model_uris[0])
    whole = start(str(tmp_path / "whole"), checkpoint_root=str(tmp_path / "a"), launcher=ForkedLauncher())
    with pytest.raises(CalmError, match="a rank was killed"):
        start(
            str(tmp_path / "killed"),
            checkpoint_root=str(tmp_path / "b"),
            launcher=ForkedLauncher({6: killed}),
        )
    resumed = start(
        str(tmp_path / "killed"), checkpoint_root=str(tmp_path / "b"), launcher=ForkedLauncher(), resume=True
    )
    assert resumed.read("curves.jsonl") == whole.read("curves.jsonl")
    assert all(value.equal(weights(whole)[name]) for name, value in weights(resumed).items())
    assert whole.manifest.parents["teacher"] == Artifact.of_any_kind(teachers[teacher]).digest
    assert isinstance(whole.facts, CalmFacts) and whole.facts.teacher_uri.endswith(teachers[teacher])
    assert whole.facts.teacher_flops and whole.facts.teacher_training_flops
    own = {"energy_loss"} if "own_loss_weight" in distillation else set()
    assert set(whole.facts.validation) == {"distillation_loss"} | own


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def spec_of(settings: CalmConfig, dataset_uri: str, autoencoder_uri: str) -> TrainingSpec:
    return TrainingSpec(
        kind="calm", config=settings, dataset_uri=dataset_uri, autoencoder_uri=autoencoder_uri, output_uri="", seed=0
    )


def test_what_lies_there_tells_trainings_apart_and_not_where(
    teachers: dict[str, str], model_uris: tuple[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    import shutil

    copy = str(shutil.copytree(teachers["transformer"], tmp_path / "copy"))
    places = {
        uri: Job.of(check_inputs(spec_of(config(uri), dataset_uri, model_uris[0])), "jobs").uri
        for uri in ("", *teachers.values(), copy)
    }
    assert places[copy] == places[teachers["transformer"]]
    assert len({*places.values()}) == 3


def refused(settings: CalmConfig, dataset_uri: str, autoencoder_uri: str) -> str:
    with pytest.raises(ConfigError) as error:
        check_inputs(spec_of(settings, dataset_uri, autoencoder_uri))
    return str(error.value)


def test_a_teacher_that_does_not_fit_is_refused_before_the_ranks(
    teachers: dict[str, str], model_uris: tuple[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    autoencoder_uri = model_uris[0]
    assert "is a dataset artifact, a calm or transformer artifact was expected" in refused(
        config(dataset_uri), dataset_uri, autoencoder_uri
    )
    assert "calm.teacher: nothing: " in refused(config("nothing"), dataset_uri, autoencoder_uri)
    assert "is a registered model" in refused(config("models:/calm/1"), dataset_uri, autoencoder_uri)

    from calm_core.config import AutoencoderConfig

    of_another_k = AutoencoderConfig.model_validate(
        {"steps": 2, "warmup_steps": 1, "global_batch_size": 4, "micro_batch_size": 4,
         "model": {"chunk_size": 2, "latent_size": 4, "hidden_size": 32, "intermediate_size": 48}}
    )  # fmt: skip
    other = train(
        of_another_k,
        dataset_uri,
        str(tmp_path / "k2"),
        seed=0,
        checkpoint_root=str(tmp_path),
        launcher=ForkedLauncher(),
    )
    assert f"was trained on another autoencoder than {other.uri}" in refused(
        config(teachers["calm"]), dataset_uri, other.uri
    )
    few = {"model": config("").model.model_dump() | {"head": HEADS["energy"] | {"noise_size": 3}}}
    for teacher in teachers.values():
        assert "makes a sample of 3 random numbers, and needs 4, " in refused(
            config(teacher, **few), dataset_uri, autoencoder_uri
        )
    both = config(teachers["calm"], initial_weights=teachers["calm"], model=own_shape(teachers["calm"]))
    assert "the student begins with its teacher's weights" in refused(both, dataset_uri, autoencoder_uri)

    source = tmp_path / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": sentences(i, 12)}) + "\n" for i in range(40)))
    data = DataConfig(sources=(str(source),), sequence_length=32, rows_per_group=16, validation_fraction=0.2)
    elsewhere = prepare_data(data, TokenizerConfig(vocab_size=280), str(tmp_path / "dataset")).uri
    assert f"has another tokenizer than {elsewhere}" in refused(
        config(teachers["transformer"]), elsewhere, autoencoder_uri
    )


def own_shape(uri: str) -> dict[str, Any]:
    shape: dict[str, Any] = Artifact(uri, CalmFacts).manifest.config["model"]
    return shape


def test_a_teacher_that_was_replaced_meanwhile_ends_the_training(
    teachers: dict[str, str], model_uris: tuple[str, str], dataset_uri: str, tmp_path: Path
) -> None:
    from calm_core.training.job import open_inputs

    spec = check_inputs(spec_of(config(teachers["calm"]), dataset_uri, model_uris[0]))
    inputs = open_inputs(spec, torch.device("cpu"), torch.float32)
    assert inputs.teacher is not None and inputs.teacher.digest == spec.parents["teacher"]
    changed = spec.model_copy(update={"parents": spec.parents | {"teacher": "0" * 64}})
    with pytest.raises(CalmError, match="an input has been replaced"):
        open_inputs(changed, torch.device("cpu"), torch.float32)
