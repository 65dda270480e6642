"""BrierLM at equal training FLOPs: CALM with K = 1, 2 and 4 and the token-level baseline, on the default corpus.

All models share the data, tokenizer, backbone, batch, optimiser and schedule of a profile; steps differ so that each
language model trains with the same number of FLOPs (`calm estimate`'s count). The autoencoder's own training is counted
apart. Scores share one protocol: the same positions of the same held-out text.
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from calm_core.config import Config, resolve_config
from calm_core.data.sources.factbook import write_factbook
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError
from calm_core.evaluation.comparison import require_same_protocol
from calm_core.evaluation.stage import evaluate
from calm_core.scaling.cost import Cost, estimate
from calm_core.store.artifact import Artifact, FactsT
from calm_core.store.facts import AutoencoderFacts, DatasetFacts, EvaluationFacts, Score
from calm_core.training.stage import train
from calm_core.training.tasks.make import TASKS
from pipelines import profiles

CHUNK_SIZES = (1, 2, 4)


def main() -> None:
    """Train and score all models, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_compute", description=__doc__)
    parser.add_argument("--profile", default="tiny", help="shapes and schedules; its CALM (K = 4) sets the FLOPs")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--output", default=".calm/equal-compute", help="what is there already is not made again")
    arguments = parser.parse_args()
    folder = Path(arguments.output).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    write_factbook(str(folder / "corpus.jsonl"))

    def configure(*settings: str) -> Config:
        source = f"data.sources=[{folder / 'corpus.jsonl'}]"
        return resolve_config(profiles.load(arguments.profile), [*arguments.set, source, *settings])

    config = configure()
    budget = estimate(config, gpus=1)["CALM"].training_flops
    dataset = _made(
        folder / "dataset", DatasetFacts, config, lambda uri: prepare_data(config.data, config.tokenizer, uri)
    ).uri
    console = Console(width=140)
    console.print(f"{budget:.3g} training FLOPs for each language model")
    table = Table("model", "tokens", "steps", "minutes", "autoencoder: FLOPs", "accuracy", "BrierLM", box=None)
    for name in ("Brier-1", "Brier-2", "Brier-3", "Brier-4"):
        table.add_column(name)
    scores = []
    for chunk_size in (*CHUNK_SIZES, None):
        scores.append(_row(table, folder, configure, dataset, chunk_size, budget))
        require_same_protocol(scores)
    console.print(table)
    console.print(f"protocol: {scores[0].facts.protocol}", highlight=False)


def _row(
    table: Table,
    folder: Path,
    configure: Callable[..., Config],
    dataset: str,
    chunk_size: int | None,
    budget: float,
) -> Artifact[EvaluationFacts]:
    """Train and score one model; None is the baseline."""
    name = "transformer" if chunk_size is None else f"calm-{chunk_size}"
    settings = [] if chunk_size is None else [f"autoencoder.model.chunk_size={chunk_size}"]
    section = "transformer" if chunk_size is None else "calm"
    cost = _cost(configure(*settings), section)
    config = configure(*settings)
    tokens_a_step = config.data.sequence_length * getattr(config, section).global_batch_size
    steps = max(1, round(budget / cost.training_flops_per_token / tokens_a_step))
    config = configure(*settings, f"{section}.steps={steps}")
    checkpoints = str(folder / "checkpoints")
    autoencoder = None
    if chunk_size is not None:
        autoencoder = _made(
            folder / f"autoencoder-{chunk_size}",
            AutoencoderFacts,
            config.autoencoder,
            lambda uri: train(config.autoencoder, dataset, uri, seed=config.seed, checkpoint_root=checkpoints),
        )
    autoencoder_uri = autoencoder.uri if autoencoder else ""
    model = _made(
        folder / name,
        TASKS[section].facts,
        getattr(config, section),
        lambda uri: train(
            getattr(config, section),
            dataset,
            uri,
            seed=config.seed,
            checkpoint_root=checkpoints,
            autoencoder_uri=autoencoder_uri,
        ),
    )
    score = evaluate(
        config.evaluation,
        dataset,
        model.uri,
        str(folder / f"{name}-score"),
        seed=config.seed,
        autoencoder_uri=autoencoder_uri,
    )
    facts = score.facts
    table.add_row(
        facts.model,
        f"{model.facts.trained_tokens:,}",
        f"{steps:,}",
        f"{model.facts.seconds / 60:.1f}",
        "" if autoencoder is None else f"{estimate(config, gpus=1)['autoencoder'].training_flops:.2g}",
        "" if autoencoder is None else f"{facts.autoencoder_accuracy:.2%}",
        *(_interval(value) for value in (facts.brierlm, *facts.brier.values())),
    )
    return score


def _cost(config: Config, section: str) -> Cost:
    return estimate(config, gpus=1)["Transformer" if section == "transformer" else "CALM"]


def _made(path: Path, kind: type[FactsT], config: Any, make: Callable[[str], Artifact[Any]]) -> Artifact[FactsT]:
    """The artifact at a path, made unless it is there with the same settings."""
    settings = config.model_dump(mode="json")
    try:
        artifact = Artifact(str(path), kind)
        if kind is DatasetFacts or settings.items() <= artifact.manifest.config.items():
            return artifact
    except ArtifactError:
        pass
    return make(str(path))


def _interval(score: Score) -> str:
    digits = 2 if (score.high or score.value) > 0.5 else 4
    return f"{score.value:.{digits}f} {score.interval(digits)}"


if __name__ == "__main__":
    main()
