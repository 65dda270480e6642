"""The stages one by one, with the arguments and the meaning that they have in Python and in the pipeline."""

import re
import time
from shlex import quote
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from calm_cli.inputs import model_artifacts, require, require_model
from calm_cli.options import (
    DEFAULT_PROFILE,
    AutoencoderOption,
    DatasetOption,
    JsonOption,
    OutputOption,
    OverwriteOption,
    ProfileOption,
    SetOption,
    SourceOption,
    TextFieldOption,
    configuration,
    with_text,
)
from calm_cli.result import show_result
from calm_cli.screen import Screen
from calm_core.config import HEADS, Config, TrainingConfig
from calm_core.errors import ConfigError
from calm_core.shown import brief
from calm_core.store import storage
from calm_core.store.artifact import ArtifactWriter
from calm_core.store.facts import (
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    MixtureFacts,
    TransformerFacts,
)
from calm_core.weights.teacher import SETTING as TEACHER_SETTING
from pipelines.local.home import Home
from pipelines.local.preflight import check_environment, check_training

if TYPE_CHECKING:
    ModelKind: TypeAlias = str
    HeadKind: TypeAlias = str
else:  # what there is to choose from, as the registries say it
    ModelKind, HeadKind = Literal[tuple(TrainingConfig.of_kind)], Literal[tuple(HEADS.classes)]

CheckpointsOption = Annotated[
    str | None,
    typer.Option("--checkpoints", metavar="URI", help="Folder of the checkpoints. [default: .calm/checkpoints]"),
]


def _begin(config: Config, kind: str, output: str) -> Home:
    """Refuse places that cannot be used for this kind of artifact, then make MLflow ready for the stage's record."""
    from pipelines.local.tracking import use_tracking

    check_environment()
    _require_place(kind, output)
    home = Home.find()
    use_tracking(home, config.experiment)
    return home


def _require_place(kind: str, output: str) -> None:
    """Refuse a place that cannot be used for this kind of artifact."""
    ArtifactWriter(output, Facts.of_kind[kind], {}, {}, overwrite=True).check_place()


def _steps_between(text: str) -> list[int]:
    """The two numbers of A:B.

    Raises:
        ConfigError: It is something else.
    """
    if not (match := re.fullmatch(r"([0-9]{1,10}):([0-9]{1,10})", text)):
        raise ConfigError(f"--profile-steps: expected A:B, two numbers of steps, e.g. 10:12 (got {brief(text)})")
    return [int(match[1]), int(match[2])]


def _of(profile: str) -> str:
    """The option of a profile, where a command that goes on needs it."""
    return "" if profile == DEFAULT_PROFILE else f" --profile {quote(profile)}"


def prepare(
    output: OutputOption,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    extends: Annotated[
        str | None,
        typer.Option(metavar="URI", help="A dataset to take over and add the new sources to.", show_default=False),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(min=1, help="Processes; the bytes stay the same. [default: a core and 1 GiB of memory each]"),
    ] = None,
    overwrite: OverwriteOption = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Read text, train the tokenizer, and write a tokenised dataset.

    A run that was stopped goes on from its finished partitions.

    Examples:

      calm prepare --source 'texts/*.jsonl.gz' --output out/dataset --set data.partitions=16

      calm prepare --source 's3://bucket/web/*.parquet' --output s3://bucket/dataset

      calm prepare --extends out/dataset --source 'texts/*.jsonl.gz' --output out/dataset-2
    """
    started = time.monotonic()
    options = {"data.extends": extends, "data.sources": source or None, "data.text_field": text_field}
    config = configuration(profile, set_, options)
    if config.data.extends:
        require("--extends", config.data.extends, DatasetFacts)
    from calm_core.data.preparing.workers import most_workers
    from calm_core.data.sources.check import check_sources
    from calm_core.data.stage import prepare_data

    if config.data.sources:
        check_sources(config.data)
    config = with_text(config, _begin(config, "dataset", output))
    dataset = prepare_data(config.data, config.tokenizer, output, workers or most_workers(), overwrite=overwrite)
    train_it = f"calm train autoencoder --dataset {quote(output)} --output AUTOENCODER{_of(profile)}"
    show_result(dataset, started, json_, [train_it, f"calm inspect {quote(output)}"])


def train(
    kind: Annotated[
        ModelKind, typer.Argument(metavar="KIND", help=f"What is trained: {', '.join(TrainingConfig.of_kind)}.")
    ],
    dataset: DatasetOption,
    output: OutputOption,
    autoencoder: Annotated[
        str, typer.Option(metavar="URI", help="The trained autoencoder; needed for CALM.", show_default=False)
    ] = "",
    teacher: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="A trained CALM model on the same autoencoder, or a Transformer, that CALM learns from.",
            show_default=False,
        ),
    ] = "",
    head: Annotated[HeadKind | None, typer.Option(help="CALM's generative head. [default: the profile's]")] = None,
    checkpoints: CheckpointsOption = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Go on from a checkpoint; where there is none, say why and train nothing.")
    ] = False,
    profile_steps: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="Trace the steps after step A up to step B: what takes their time, as a file beside --output.",
            show_default=False,
        ),
    ] = None,
    overwrite: OverwriteOption = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Train one model: the autoencoder, CALM on a trained autoencoder, or the token-level Transformer baseline.

    Stopped by Ctrl-C or SIGTERM, it saves a checkpoint and exits with 75; the same command goes on from there. So does
    one with other settings of how it is carried out (processes, intervals, ...); settings that change the result begin
    anew. A second Ctrl-C, or a SIGTERM more than a second later, does not wait for the checkpoint (130, 143). Other
    exit codes: 1 failed, 2 wrong settings.

    On several machines the same command runs on each, with torchrun's PET_NNODES, PET_NODE_RANK, PET_MASTER_ADDR and
    PET_MASTER_PORT in the environment.

    Examples:

      calm train autoencoder --dataset out/dataset --output out/autoencoder --set autoencoder.steps=1000

      calm train calm --head flow --dataset out/dataset --autoencoder out/autoencoder --output out/calm

      calm train transformer --dataset out/dataset --output out/transformer

      calm train calm --teacher out/transformer --dataset out/dataset --autoencoder out/autoencoder --output out/student
    """
    started = time.monotonic()
    if head and kind != "calm":
        raise ConfigError(f"--head: is CALM's, {kind} has none")
    if teacher and kind != "calm":
        raise ConfigError(f"--teacher: is CALM's, {kind} has none")
    profiled = _steps_between(profile_steps) if profile_steps is not None else None
    config = configuration(
        profile, set_, {HEADS.setting: head, f"{kind}.profile_steps": profiled, TEACHER_SETTING: teacher or None}
    )
    if kind == "calm" and not autoencoder:
        raise ConfigError("--autoencoder: CALM is trained on an autoencoder; name that of `calm train autoencoder`")
    if autoencoder and kind != "calm":
        raise ConfigError(f"--autoencoder: is CALM's, {kind} has none")
    require("--dataset", dataset, DatasetFacts, MixtureFacts)
    if autoencoder:
        require("--autoencoder", autoencoder, AutoencoderFacts)
    if teacher:
        require("--teacher", teacher, CalmFacts, TransformerFacts)
    if checkpoints:
        storage.filesystem_of(checkpoints)
    check_environment()  # before torch reads it
    from calm_core.training import stage
    from calm_core.training.launcher import Nodes, TorchrunLauncher, require_nodes

    nodes = Nodes.from_environment()
    require_nodes(getattr(config, kind), nodes)
    home = Home.find()
    root = checkpoints or str(home.checkpoints)
    if not nodes or not nodes.rank:
        _require_place(kind, output)
        check_training(config, kind, dataset, autoencoder, output, root)
        _begin(config, kind, output)
    shared: dict[str, Any] = {
        "seed": config.seed,
        "checkpoint_root": root,
        "autoencoder_uri": autoencoder,
        "log_folder": root if storage.is_local(root) else str(home.logs),
    }
    if nodes and nodes.rank:
        stage.join(getattr(config, kind), dataset, nodes, **shared)
        told = f"node {nodes.rank} of {nodes.count} has done its part; node 0 tells what has been trained"
        Screen(stderr=True).print(told, soft_wrap=True)
        return
    model = stage.train(
        getattr(config, kind),
        dataset,
        output,
        overwrite=overwrite,
        resume=resume,
        launcher=TorchrunLauncher(nodes),
        **shared,
    )
    if kind == "autoencoder":
        next_ = f"calm train calm --dataset {quote(dataset)} --autoencoder {quote(output)} --output CALM"
    else:
        next_ = f"calm evaluate {quote(output)} --dataset {quote(dataset)} --output EVALUATION"
    show_result(model, started, json_, [next_ + _of(profile)])


def evaluate(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="URI of a CALM model or a Transformer of `calm train` or `calm import`, or of a registered model.",
        ),
    ],
    dataset: DatasetOption,
    output: OutputOption,
    autoencoder: AutoencoderOption = "",
    checkpoints: CheckpointsOption = None,
    overwrite: OverwriteOption = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Score a language model with BrierLM on held-out text, and let it write.

    One that was stopped goes on where it was.

    Examples:

      calm evaluate out/calm --dataset out/dataset --output out/evaluation

      calm evaluate out/transformer --dataset out/dataset --output out/baseline

      calm evaluate models:/calm@champion --dataset out/dataset --output out/champion
    """
    started = time.monotonic()
    config = configuration(profile, set_)
    if checkpoints:
        storage.filesystem_of(checkpoints)
    with model_artifacts(model, autoencoder) as (model_uri, autoencoder_uri):
        require("--dataset", dataset, DatasetFacts, MixtureFacts)
        check_environment()  # before torch reads it
        from calm_core.evaluation import stage

        stage.check_inputs(dataset, model_uri, autoencoder_uri)
        home = _begin(config, "evaluation", output)
        made = stage.evaluate(
            config.evaluation,
            dataset,
            model_uri,
            output,
            seed=config.seed,
            autoencoder_uri=autoencoder_uri,
            checkpoint_root=checkpoints or str(home.checkpoints),
            overwrite=overwrite,
        )
    if "calm" in made.manifest.parents and model_uri == model:
        next_ = f"calm register {quote(model)} --evaluation {quote(output)} --output REGISTRATION"
    else:
        next_ = f"calm compare {quote(output)} EVALUATION"
    show_result(made, started, json_, [next_])


def register(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="URI of a CALM model of `calm train`.")],
    evaluation: Annotated[str, typer.Option(metavar="URI", help="Its scores, of `calm evaluate`.")],
    output: OutputOption,
    dataset: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="The dataset of the evaluation, for the model card, and to score the champion on. [default: none]",
            show_default=False,
        ),
    ] = "",
    autoencoder: AutoencoderOption = "",
    overwrite: OverwriteOption = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
    json_: JsonOption = False,
) -> None:
    """Register a scored model in MLflow, with its lineage; it becomes champion if it is significantly better.

    Both are compared on the same documents: on those of the evaluation, on which the champion is scored if it was not,
    which needs --dataset.

    Example:

      calm register out/calm --evaluation out/evaluation --dataset out/dataset --output out/registration
    """
    started = time.monotonic()
    config = configuration(profile, set_)
    require_model(model, autoencoder, CalmFacts)
    require("--evaluation", evaluation, EvaluationFacts)
    if dataset:
        require("--dataset", dataset, DatasetFacts, MixtureFacts)
    _begin(config, "registration", output)
    from calm_core.registry.stage import register_model

    made = register_model(
        config.registry,
        model,
        evaluation,
        output,
        dataset_uri=dataset,
        autoencoder_uri=autoencoder,
        overwrite=overwrite,
    )
    show_result(made, started, json_, [f"calm generate PROMPT --model {quote(made.facts.model_uri)}"])
