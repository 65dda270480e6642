"""The stages one by one, with the arguments and the meaning that they have in Python and in the pipeline."""

import os
from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

import typer

from calm_cli.inputs import require, require_language_model
from calm_cli.inspect import show_dataset
from calm_cli.options import (
    DEFAULT_PROFILE,
    AutoencoderOption,
    DatasetOption,
    OutputOption,
    ProfileOption,
    SetOption,
    SourceOption,
    TextFieldOption,
    configuration,
    with_text,
)
from calm_cli.screen import Screen
from calm_core.config import HEADS, Config, TrainingConfig
from calm_core.errors import ConfigError
from calm_core.shown import visible
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts, CalmFacts, DatasetFacts, EvaluationFacts, Facts, MixtureFacts
from pipelines.local.home import Home

if TYPE_CHECKING:
    ModelKind: TypeAlias = str
    HeadKind: TypeAlias = str
else:  # what there is to choose from, as the registries say it
    ModelKind, HeadKind = Literal[tuple(TrainingConfig.of_kind)], Literal[tuple(HEADS.classes)]

CheckpointsOption = Annotated[
    str | None,
    typer.Option("--checkpoints", metavar="URI", help="Folder of the checkpoints. [default: .calm/checkpoints]"),
]


def _begin(config: Config, *uris: str) -> Home:
    """Refuse URIs that cannot be used, then make MLflow ready for the stage's record."""
    from calm_core.store import storage
    from pipelines.local.tracking import use_tracking

    for uri in filter(None, uris):  # unset options are empty
        storage.filesystem_of(uri)

    home = Home.find()
    use_tracking(home, config.experiment)
    return home


def _end(artifact: Artifact[Facts]) -> None:
    """Show what has been made."""
    console = Screen(soft_wrap=True)
    console.print(f"{artifact.manifest.kind}: {artifact.uri}", f"digest: {artifact.digest}", sep="\n")
    console.print_json(data={**artifact.manifest.results, **artifact.manifest.timings})


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
        typer.Option(min=1, help="Processes, at most one a partition; the bytes stay the same. [default: a core each]"),
    ] = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Read text, train the tokenizer, and write a tokenised dataset.

    A run that was stopped goes on from its finished partitions.

    Examples:

      calm prepare --source 'texts/*.jsonl.gz' --output out/dataset --set data.partitions=16

      calm prepare --source 's3://bucket/web/*.parquet' --output s3://bucket/dataset

      calm prepare --extends out/dataset --source 'texts/*.jsonl.gz' --output out/dataset-2
    """
    options = {"data.extends": extends, "data.sources": source or None, "data.text_field": text_field}
    config = configuration(profile, set_, options)
    from calm_core.data.stage import prepare_data

    config = with_text(config, _begin(config, output))
    dataset = prepare_data(config.data, config.tokenizer, output, workers or os.cpu_count() or 1)
    console = Screen(soft_wrap=True)
    console.print(f"\ndataset: {dataset.uri}", f"digest: {dataset.digest}", "", sep="\n")
    show_dataset(dataset, console)


def train(
    kind: Annotated[
        ModelKind, typer.Argument(metavar="KIND", help=f"What is trained: {', '.join(TrainingConfig.of_kind)}.")
    ],
    dataset: DatasetOption,
    output: OutputOption,
    autoencoder: Annotated[
        str, typer.Option(metavar="URI", help="The trained autoencoder; needed for CALM.", show_default=False)
    ] = "",
    head: Annotated[HeadKind | None, typer.Option(help="CALM's generative head. [default: the profile's]")] = None,
    checkpoints: CheckpointsOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Train one model: the autoencoder, CALM on a trained autoencoder, or the token-level Transformer baseline.

    Stopped by Ctrl-C or SIGTERM, it saves a checkpoint and exits with 75; the same command goes on from there.

    Examples:

      calm train autoencoder --dataset out/dataset --output out/autoencoder --set autoencoder.steps=1000

      calm train calm --head flow --dataset out/dataset --autoencoder out/autoencoder --output out/calm

      calm train transformer --dataset out/dataset --output out/transformer
    """
    if head and kind != "calm":
        raise ConfigError(f"--head: is CALM's, {kind} has none")
    config = configuration(profile, set_, {HEADS.setting: head})
    require(dataset, DatasetFacts, MixtureFacts)
    if autoencoder:
        require(autoencoder, AutoencoderFacts)
    elif kind == "calm":
        raise ConfigError("autoencoder_uri: CALM is trained on an autoencoder; name that of `calm train autoencoder`")
    home = _begin(config, dataset, autoencoder, output, checkpoints or "")
    from calm_core.training import stage

    _end(
        stage.train(
            getattr(config, kind),
            dataset,
            output,
            seed=config.seed,
            checkpoint_root=checkpoints or str(home.checkpoints),
            autoencoder_uri=autoencoder,
        )
    )


def evaluate(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="URI of a CALM model or a Transformer of `calm train`.")
    ],
    dataset: DatasetOption,
    output: OutputOption,
    autoencoder: AutoencoderOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Score a language model with BrierLM on held-out text, and let it write.

    Examples:

      calm evaluate out/calm --dataset out/dataset --output out/evaluation

      calm evaluate out/transformer --dataset out/dataset --output out/baseline
    """
    config = configuration(profile, set_)
    require_language_model(model, autoencoder)
    require(dataset, DatasetFacts, MixtureFacts)
    _begin(config, model, dataset, autoencoder, output)
    from calm_core.evaluation import stage

    _end(stage.evaluate(config.evaluation, dataset, model, output, seed=config.seed, autoencoder_uri=autoencoder))


def compare(
    evaluations: Annotated[
        list[str], typer.Argument(metavar="EVALUATION", help="URIs of evaluations.", show_default=False)
    ],
) -> None:
    """Show scores side by side; those with different protocols are refused.

    Example:

      calm compare out/evaluation out/baseline
    """
    from rich.table import Table

    from calm_cli.summary import interval
    from calm_core.evaluation.comparison import require_same_protocol

    artifacts = [require(uri, EvaluationFacts) for uri in evaluations]
    require_same_protocol(artifacts)
    table = Table("evaluation", "model", *(f"Brier-{n}" for n in range(1, 5)), "BrierLM", box=None, pad_edge=False)
    for artifact in artifacts:
        facts = artifact.facts
        brier = [f"{facts.brier[n].value:.4f}" for n in sorted(facts.brier)]
        table.add_row(visible(artifact.uri), visible(facts.model), *brier, interval(facts.brierlm, 3))
    Screen().print(table)


def register(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="URI of a CALM model of `calm train`.")],
    evaluation: Annotated[str, typer.Option(metavar="URI", help="Its scores, of `calm evaluate`.")],
    output: OutputOption,
    autoencoder: AutoencoderOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Register a scored model in MLflow, with its lineage.

    Example:

      calm register out/calm --evaluation out/evaluation --output out/registration
    """
    config = configuration(profile, set_)
    require(model, CalmFacts)
    require_language_model(model, autoencoder)
    require(evaluation, EvaluationFacts)
    _begin(config, model, evaluation, autoencoder, output)
    from calm_core.registry.stage import register_model

    _end(register_model(config.registry, model, evaluation, output, autoencoder_uri=autoencoder))
