"""The stages one by one, with the arguments and the meaning that they have in Python and in the pipeline."""

import enum
import json
import os
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from calm_cli.data import show_counts
from calm_cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, SourceOption, TextFieldOption, configuration
from calm_core.config import AutoencoderConfig, CalmConfig, Config, TransformerConfig
from calm_core.errors import ConfigError
from pipelines.local.home import Home

if TYPE_CHECKING:
    from calm_core.store.artifact import Artifact


class Model(enum.StrEnum):
    """What `calm train` can train."""

    autoencoder = enum.auto()
    calm = enum.auto()
    transformer = enum.auto()


class Head(enum.StrEnum):
    """CALM's generative heads."""

    energy = enum.auto()
    diffusion = enum.auto()
    flow = enum.auto()


DatasetOption = Annotated[str, typer.Option("--dataset", metavar="URI", help="The dataset of `calm prepare`.")]
AutoencoderOption = Annotated[
    str, typer.Option("--autoencoder", metavar="URI", help="The model of `calm train --model autoencoder`.")
]
CalmOption = Annotated[str, typer.Option("--calm", metavar="URI", help="The model of `calm train --model calm`.")]
EvaluationOption = Annotated[str, typer.Option("--evaluation", metavar="URI", help="The scores of `calm evaluate`.")]
OutputOption = Annotated[str, typer.Option("--output", metavar="URI", help="Folder of the artifact that is written.")]
CheckpointsOption = Annotated[
    str | None,
    typer.Option("--checkpoints", metavar="URI", help="Folder of the checkpoints. [default: .calm/checkpoints]"),
]


def _begin(config: Config) -> Home:
    """Make MLflow ready for the stage's record."""
    from pipelines.local.tracking import use_tracking

    home = Home.find()
    use_tracking(home, config.experiment)
    return home


def _end(artifact: "Artifact") -> None:
    """Show what has been made."""
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"{artifact.manifest.kind}: {artifact.uri}", f"digest: {artifact.digest}", sep="\n", markup=False)
    console.print_json(data={**artifact.manifest.results, **artifact.manifest.timings})


def prepare(
    output: OutputOption,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    extends: Annotated[
        str, typer.Option(metavar="URI", help="A dataset to take over and add the new sources to.", show_default=False)
    ] = "",
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
    settings = [*(set_ or []), *([f"data.extends={json.dumps(extends)}"] if extends else [])]
    config = configuration(profile, settings, source, text_field)
    if not config.data.sources:
        raise ConfigError("data.sources: name the text, e.g. --source 'texts/*.jsonl'")
    from calm_core.data.stage import prepare_data

    _begin(config)
    dataset = prepare_data(config.data, config.tokenizer, output, workers or os.cpu_count() or 1)
    console = Console(soft_wrap=True, highlight=False)
    console.print(f"\ndataset: {dataset.uri}", f"digest: {dataset.digest}", "", sep="\n", markup=False)
    show_counts(dataset.manifest, console)


def train(
    model: Annotated[Model, typer.Option(help="What is trained.")],
    dataset: DatasetOption,
    output: OutputOption,
    autoencoder: Annotated[
        str, typer.Option(metavar="URI", help="The trained autoencoder; needed for CALM.", show_default=False)
    ] = "",
    head: Annotated[Head | None, typer.Option(help="CALM's generative head. [default: the profile's]")] = None,
    checkpoints: CheckpointsOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Train one model: the autoencoder, CALM on a trained autoencoder, or the token-level Transformer baseline.

    Examples:

      calm train --model autoencoder --dataset out/dataset --output out/autoencoder --set autoencoder.steps=1000

      calm train --model calm --head flow --dataset out/dataset --autoencoder out/autoencoder --output out/calm

      calm train --model transformer --dataset out/dataset --output out/transformer
    """
    from calm_core.training.stage import train

    if head and model != Model.calm:
        raise ConfigError(f"--head: is CALM's, a model {model.value} has none")
    config = configuration(profile, [*(set_ or []), *([f"calm.model.head={head.value}"] if head else [])])
    home = _begin(config)
    sections: dict[Model, AutoencoderConfig | CalmConfig | TransformerConfig] = {
        Model.autoencoder: config.autoencoder,
        Model.calm: config.calm,
        Model.transformer: config.transformer,
    }
    root = checkpoints or str(home.checkpoints)
    _end(train(sections[model], dataset, output, seed=config.seed, checkpoint_root=root, autoencoder_uri=autoencoder))


def evaluate(
    dataset: DatasetOption,
    model: Annotated[str, typer.Option(metavar="URI", help="A CALM model or a Transformer of `calm train`.")],
    output: OutputOption,
    autoencoder: Annotated[
        str, typer.Option(metavar="URI", help="The autoencoder of a CALM model.", show_default=False)
    ] = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Score a language model with BrierLM on held-out text, and let it write.

    Examples:

      calm evaluate --dataset out/dataset --autoencoder out/autoencoder --model out/calm --output out/evaluation

      calm evaluate --dataset out/dataset --model out/transformer --output out/baseline
    """
    from calm_core.evaluation import stage

    config = configuration(profile, set_)
    _begin(config)
    _end(stage.evaluate(config.evaluation, dataset, model, output, seed=config.seed, autoencoder_uri=autoencoder))


def compare(
    evaluations: Annotated[
        list[str], typer.Argument(metavar="URI...", help="Evaluations of `calm evaluate`.", show_default=False)
    ],
) -> None:
    """Show scores side by side; those with different protocols are refused.

    Example:

      calm compare out/evaluation out/baseline
    """
    from rich.table import Table

    from calm_cli.summary import interval
    from calm_core.evaluation.protocol import require_same_protocol
    from calm_core.store.artifact import Artifact

    artifacts = [Artifact(uri, "evaluation") for uri in evaluations]
    require_same_protocol(artifacts)
    table = Table("evaluation", "model", *(f"Brier-{n}" for n in range(1, 5)), "BrierLM", box=None, pad_edge=False)
    for artifact in artifacts:
        results = artifact.manifest.results
        brier = [f"{results['brier'][n]['value']:.4f}" for n in sorted(results["brier"])]
        table.add_row(artifact.uri, results["model"], *brier, interval(results["brierlm"], 3))
    Console().print(table)


def register(
    autoencoder: AutoencoderOption,
    calm: CalmOption,
    evaluation: EvaluationOption,
    output: OutputOption,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Register a scored model in MLflow, with its lineage.

    Example:

      calm register --autoencoder out/autoencoder --calm out/calm --evaluation out/evaluation --output out/registration
    """
    from calm_core.registry.register import register_model

    config = configuration(profile, set_)
    _begin(config)
    _end(register_model(config.registry, autoencoder, calm, evaluation, output))
