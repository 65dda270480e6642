"""The stages one by one, with the arguments and the meaning that they have in Python and in the pipeline."""

from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from calm_cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, SourceOption, TextFieldOption, configuration
from calm_core.config import Config
from calm_core.errors import ConfigError
from pipelines.home import Home

if TYPE_CHECKING:
    from calm_core.artifact import Artifact

DatasetOption = Annotated[str, typer.Option("--dataset", metavar="URI", help="The dataset of `calm prepare`.")]
AutoencoderOption = Annotated[
    str, typer.Option("--autoencoder", metavar="URI", help="The model of `calm train-autoencoder`.")
]
CalmOption = Annotated[str, typer.Option("--calm", metavar="URI", help="The model of `calm train-calm`.")]
EvaluationOption = Annotated[str, typer.Option("--evaluation", metavar="URI", help="The scores of `calm evaluate`.")]
OutputOption = Annotated[str, typer.Option("--output", metavar="URI", help="Folder of the artifact that is written.")]
CheckpointsOption = Annotated[
    str | None,
    typer.Option("--checkpoints", metavar="URI", help="Folder of the checkpoints. [default: .calm/checkpoints]"),
]


def _begin(config: Config) -> Home:
    """Make MLflow ready for the stage's record."""
    from pipelines.local_tracking import use_tracking

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
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Read text, train the tokenizer, and write a tokenised dataset.

    Example:

      calm prepare --source 'texts/*.jsonl' --output out/dataset
    """
    config = configuration(profile, set_, source, text_field)
    if not config.data.sources:
        raise ConfigError("data.sources: name the text, e.g. --source 'texts/*.jsonl'")
    from calm_core.data.prepare import prepare_data

    _begin(config)
    _end(prepare_data(config.data, config.tokenizer, output))


def train_autoencoder(
    dataset: DatasetOption,
    output: OutputOption,
    checkpoints: CheckpointsOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Train the autoencoder that turns a chunk of tokens into one vector and back.

    Example:

      calm train-autoencoder --dataset out/dataset --output out/autoencoder --set autoencoder.steps=1000
    """
    from calm_core.training import stages

    config = configuration(profile, set_)
    home = _begin(config)
    root = checkpoints or str(home.checkpoints)
    _end(stages.train_autoencoder(config.autoencoder, dataset, output, seed=config.seed, checkpoint_root=root))


def train_calm(
    dataset: DatasetOption,
    autoencoder: AutoencoderOption,
    output: OutputOption,
    checkpoints: CheckpointsOption = None,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Train the CALM language model, which predicts the vector of the next chunk.

    Example:

      calm train-calm --dataset out/dataset --autoencoder out/autoencoder --output out/calm
    """
    from calm_core.training import stages

    config = configuration(profile, set_)
    home = _begin(config)
    root = checkpoints or str(home.checkpoints)
    _end(stages.train_calm(config.calm, dataset, autoencoder, output, seed=config.seed, checkpoint_root=root))


def evaluate(
    dataset: DatasetOption,
    autoencoder: AutoencoderOption,
    calm: CalmOption,
    output: OutputOption,
    profile: ProfileOption = DEFAULT_PROFILE,
    set_: SetOption = None,
) -> None:
    """Score a language model with BrierLM on held-out text, and let it write.

    Example:

      calm evaluate --dataset out/dataset --autoencoder out/autoencoder --calm out/calm --output out/evaluation
    """
    from calm_core.evaluation import stage

    config = configuration(profile, set_)
    _begin(config)
    _end(stage.evaluate(config.evaluation, dataset, autoencoder, calm, output, seed=config.seed))


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
