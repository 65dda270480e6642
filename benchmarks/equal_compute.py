"""BrierLM at equal training FLOPs: CALM with K = 1, 2 and 4 and the token-level baseline, on the default corpus.

All models share the data and tokenizer of a profile; CALM and the baseline have its shape, batch and learning rate of
their own sections each. With a smaller K a step takes fewer sequences, so that it trains on as many chunks, down to
one sequence. Steps differ so that each language model trains with the same number of FLOPs (`calm estimate`'s count).
The autoencoder's own training is counted apart; the seeds share it. Scores share one protocol: the same positions of
the same held-out text.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from calm_core.config import Config, resolve_config
from calm_core.data.sources.factbook import write_factbook
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError
from calm_core.evaluation.comparison import require_same_protocol
from calm_core.evaluation.stage import evaluate
from calm_core.scaling.cost import Cost, estimate
from calm_core.store.artifact import Artifact, FactsT
from calm_core.store.facts import AutoencoderFacts, DatasetFacts, EvaluationFacts, ModelFacts, Score
from calm_core.training.stage import train
from calm_core.training.tasks.make import TASKS
from pipelines import profiles

CHUNK_SIZES = (1, 2, 4)


@dataclass(frozen=True)
class Runs:
    """One model trained with one budget, once a seed.

    Attributes:
        config: That it was trained with.
        models, scores: Facts and evaluation of each seed.
    """

    config: Config
    models: list[ModelFacts]
    scores: list[Artifact[EvaluationFacts]]


class Laboratory:
    """Trains and scores models on the default corpus; what is in its folder already is not made again.

    Args:
        folder: Where everything lies.
        profile: Shapes, batches and schedules.
        settings: Changes of the profile.
    """

    def __init__(self, folder: str, profile: str, settings: Sequence[str]) -> None:
        self.folder = Path(folder).absolute()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_factbook(str(self.folder / "corpus.jsonl"))
        fixed = [f"data.sources=[{self.folder / 'corpus.jsonl'}]", "evaluation.prompts=[]"]  # no text is written
        self._profile, self._settings = profiles.load(profile), [*settings, *fixed]
        config = self.configure()
        self._dataset = _made(
            self.folder / "dataset", DatasetFacts, config, lambda uri: prepare_data(config.data, config.tokenizer, uri)
        ).uri

    def configure(self, *settings: str) -> Config:
        """The profile with changes of one's own beside those of all."""
        return resolve_config(self._profile, [*self._settings, *settings])

    def runs(self, chunk_size: int | None, budget: float, seeds: Sequence[int]) -> Runs:
        """Train and score one model with so many FLOPs; None is the baseline."""
        section = "transformer" if chunk_size is None else "calm"
        settings = [] if chunk_size is None else _of_chunk_size(self.configure(), chunk_size)
        config = self.configure(*settings)
        training = getattr(config, section)
        tokens_a_step = config.data.sequence_length * training.global_batch_size
        steps = max(1, round(budget / _cost(config, section).training_flops_per_token / tokens_a_step))
        warmup = min(training.warmup_steps, steps // 4)
        config = self.configure(*settings, f"{section}.steps={steps}", f"{section}.warmup_steps={warmup}")
        autoencoder_uri = "" if chunk_size is None else self._autoencoder(config, chunk_size).uri
        name = f"transformer-{steps}" if chunk_size is None else f"calm-{chunk_size}-{steps}"
        models, scores = [], []
        for seed in seeds:
            model = self._model(f"{name}-seed-{seed}", config, section, seed, autoencoder_uri)
            models.append(model.facts)
            scores.append(self._score(f"{name}-seed-{seed}-score", config, model, autoencoder_uri))
        return Runs(config, models, scores)

    def _autoencoder(self, config: Config, chunk_size: int) -> Artifact[AutoencoderFacts]:
        return _made(
            self.folder / f"autoencoder-{chunk_size}",
            AutoencoderFacts,
            config.autoencoder,
            lambda uri: train(
                config.autoencoder, self._dataset, uri, seed=config.seed, checkpoint_root=self._checkpoints
            ),
        )

    def _model(self, name: str, config: Config, section: str, seed: int, autoencoder_uri: str) -> Artifact[ModelFacts]:
        training = getattr(config, section)
        return _made(
            self.folder / name,
            TASKS[section].facts,
            training,
            lambda uri: train(
                training,
                self._dataset,
                uri,
                seed=seed,
                checkpoint_root=self._checkpoints,
                autoencoder_uri=autoencoder_uri,
            ),
        )

    def _score(
        self, name: str, config: Config, model: Artifact[ModelFacts], autoencoder_uri: str
    ) -> Artifact[EvaluationFacts]:
        return _made(
            self.folder / name,
            EvaluationFacts,
            config.evaluation,
            lambda uri: evaluate(
                config.evaluation, self._dataset, model.uri, uri, seed=config.seed, autoencoder_uri=autoencoder_uri
            ),
            of=model,
        )

    @property
    def _checkpoints(self) -> str:
        return str(self.folder / "checkpoints")


def main() -> None:
    """Train and score all models, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.equal_compute", description=__doc__)
    parser.add_argument("--profile", default="tiny", help="shapes and schedules; its CALM (K = 4) sets the FLOPs")
    parser.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="change a setting")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the language models' training")
    parser.add_argument("--output", default=".calm/equal-compute", help="what is there already is not made again")
    arguments = parser.parse_args()
    laboratory = Laboratory(arguments.output, arguments.profile, arguments.set)
    budget = _cost(laboratory.configure(), "calm").training_flops
    console = Console(width=140)
    console.print(f"{budget:.3g} training FLOPs for each language model")
    table = Table("model", "tokens", "steps", "minutes", "autoencoder: FLOPs", "accuracy", "BrierLM", box=None)
    for name in ("Brier-1", "Brier-2", "Brier-3", "Brier-4"):
        table.add_column(name)
    scores: list[Artifact[EvaluationFacts]] = []
    for chunk_size in (*CHUNK_SIZES, None):
        runs = laboratory.runs(chunk_size, budget, arguments.seeds)
        table.add_row(*_row(runs, chunk_size))
        scores += runs.scores
        require_same_protocol(scores)
    console.print(table)
    console.print(
        f"seeds {arguments.seeds}: means, BrierLM with its smallest and largest; of one seed, with its interval"
    )
    console.print(f"protocol: {scores[0].facts.protocol}", highlight=False)


def _row(runs: Runs, chunk_size: int | None) -> list[str]:
    scores = [score.facts for score in runs.scores]
    steps = getattr(runs.config, "transformer" if chunk_size is None else "calm").steps
    autoencoder = ["", ""]
    if chunk_size is not None:
        flops = estimate(runs.config, gpus=1)["autoencoder"].training_flops
        autoencoder = [f"{flops:.2g}", f"{scores[0].autoencoder_accuracy:.2%}"]
    return [
        "Transformer" if chunk_size is None else f"CALM, K {chunk_size}",
        f"{runs.models[0].trained_tokens:,}",
        f"{steps:,}",
        f"{statistics.mean(model.seconds for model in runs.models) / 60:.1f}",
        *autoencoder,
        _spread([score.brierlm for score in scores]),
        *(f"{statistics.mean(score.brier[n].value for score in scores):.4f}" for n in scores[0].brier),
    ]


def _of_chunk_size(config: Config, chunk_size: int) -> list[str]:
    """Settings of another K with as many chunks in a step, or of one sequence."""
    batch = max(1, config.calm.global_batch_size * chunk_size // config.autoencoder.model.chunk_size)
    return [
        f"autoencoder.model.chunk_size={chunk_size}",
        f"calm.global_batch_size={batch}",
        f"calm.micro_batch_size={min(batch, config.calm.micro_batch_size)}",
    ]


def _cost(config: Config, section: str) -> Cost:
    return estimate(config, gpus=1)["Transformer" if section == "transformer" else "CALM"]


def _made(
    path: Path,
    kind: type[FactsT],
    config: Any,
    make: Callable[[str], Artifact[Any]],
    of: Artifact[Any] | None = None,
) -> Artifact[FactsT]:
    """The artifact at a path, made unless it is there with the same settings, and of the same model."""
    settings = config.model_dump(mode="json")
    try:
        artifact = Artifact(str(path), kind)
        same = kind is DatasetFacts or settings.items() <= artifact.manifest.config.items()
        if same and (of is None or of.digest in artifact.manifest.parents.values()):
            return artifact
    except ArtifactError:
        pass
    return make(str(path))


def _spread(scores: Sequence[Score]) -> str:
    values = [score.value for score in scores]
    if len(scores) == 1:
        return escape(f"{values[0]:.2f} {scores[0].interval()}")
    return f"{statistics.mean(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
