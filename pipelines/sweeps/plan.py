"""What a sweep runs: each combination of the values of some settings, or those of them that successive halving keeps.

A run is named by its content: equal settings, text and code have equal names, so that what is there is not made again.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product
from typing import Any

from calm_core.config import Config, setting_names
from calm_core.config import text as settings_text
from calm_core.config.base import as_written
from calm_core.errors import ConfigError
from calm_core.shown import shortened
from calm_core.store.artifact import digest_of

SEED, MODEL, FLOPS = "seed", "model", "flops"
"""Names in a grid that are no setting of a section: the seed, the language model, and the training FLOPs that its steps
follow from."""
MODELS = ("calm", "transformer")
_SECTIONS = {"calm": ("autoencoder", "calm"), "transformer": ("transformer",)}
"""What may differ between the runs of a model; all else is the text, or how its scores are measured."""
_OF_THE_SCORES = ("data", "tokenizer", "evaluation")
_DIGEST_CHARACTERS = 12
MOST_RUNS = 10_000

Grid = Mapping[str, tuple[Any, ...]]
"""Values by the setting's dotted name."""
Resolve = Callable[[Mapping[str, Any]], Config]
"""All settings, with some of them replaced."""
ContentOf = Callable[[Config, str], str]
"""A digest of what the settings of a section name by path, and of the code that reads it."""
FlopsOf = Callable[[Config, str], float]
"""Training FLOPs of a model of some settings, by its section."""


def read_grid(texts: Sequence[str]) -> dict[str, tuple[Any, ...]]:
    """A grid as it is typed.

    Args:
        texts: `section.key=value,value`, each value read as YAML.

    Raises:
        ConfigError: One is something else.
    """
    grid: dict[str, tuple[Any, ...]] = {}
    for text in texts:
        key, equals, values = (part.strip() for part in text.partition("="))
        if not (key and equals and values):
            raise ConfigError(
                f"--grid {shortened(text)}: expected section.key=value,value, e.g. calm.learning_rate=5e-4,1e-3"
            )
        if key in grid:
            raise ConfigError(f"--grid {shortened(key)}: is given twice; give all of its values once")
        try:
            found = settings_text.read(f"[{values}]")
        except ValueError as error:
            raise ConfigError(f"--grid {shortened(text)}: the values are not valid YAML ({error})") from None
        if not isinstance(found, list) or None in found:
            raise ConfigError(f"--grid {shortened(text)}: lacks a value; write key=value,value")
        twice = [value for place, value in enumerate(found) if value in found[:place]]
        if twice:
            raise ConfigError(f"--grid {key}: has {as_written(twice[0])} twice")
        grid[key] = tuple(found)
    return grid


@dataclass(frozen=True)
class Run:
    """One training and its evaluation.

    Attributes:
        config: Every setting.
        model: Its section.
        flops: Of training the language model.
        name, dataset, autoencoder: What is made, and what of, named by content; a Transformer has no autoencoder.
    """

    config: Config
    model: str
    flops: float
    name: str
    dataset: str
    autoencoder: str = ""

    @property
    def steps(self) -> int:
        """Of the language model."""
        return int(getattr(self.config, self.model).steps)


@dataclass(frozen=True)
class Candidate:
    """A choice of settings, tried with each seed.

    Attributes:
        model: Its section.
        settings: What was chosen of the grid, by name, without the seed.
        rungs: Its runs, one a seed, of each budget; of a plain grid there is one.
    """

    model: str
    settings: Mapping[str, Any]
    rungs: tuple[tuple[Run, ...], ...]

    def label(self, run: Run) -> str:
        """A run of it for people: what it differs in from the others."""
        told = {name.rpartition(".")[2]: value for name, value in self.settings.items()}
        named = told if len(told) == len(self.settings) else self.settings
        parts = [f"{name}={value if isinstance(value, str) else as_written(value)}" for name, value in named.items()]
        steps = [f"{run.steps:,} steps"] if len(self.rungs) > 1 else []
        return " ".join([self.model, *parts, f"seed={run.config.seed}", *steps])


@dataclass(frozen=True)
class Plan:
    """All runs that a sweep may come to.

    Attributes:
        candidates: In the order of the grid.
        eta: Of each `eta` candidates of a model one goes on to the next rung.
    """

    candidates: tuple[Candidate, ...]
    eta: int = 0

    @property
    def rungs(self) -> int:
        return len(self.candidates[0].rungs)

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """All of them, rung by rung."""
        return tuple(run for rung in range(self.rungs) for each in self.candidates for run in each.rungs[rung])

    def kept(self, scores: Mapping[str, float | None]) -> Iterator[tuple[Candidate, ...]]:
        """The candidates of each rung, as far as it is known.

        Args:
            scores: BrierLM of the runs that have ended, by name; None of those that failed.
        """
        kept = self.candidates
        for rung in range(self.rungs):
            yield kept
            if any(run.name not in scores for each in kept for run in each.rungs[rung]):
                return
            if rung + 1 < self.rungs:
                kept = self._best(kept, rung, scores)

    def due(self, scores: Mapping[str, float | None]) -> list[Run]:
        """Runs that can begin now; none where all is done.

        Args:
            scores: As of `kept`.
        """
        rung, kept = list(enumerate(self.kept(scores)))[-1]
        return [run for each in kept for run in each.rungs[rung] if run.name not in scores]

    def largest(self) -> tuple[Run, ...]:
        """As many runs as there are at most, of each rung, whichever these will be."""
        kept: list[Candidate] = []
        runs: list[Run] = []
        for rung in range(self.rungs):
            kept = [each for model in self._models for each in self._of(model)[: self._going_on(model, rung)]]
            runs += [run for each in kept for run in each.rungs[rung]]
        return tuple(runs)

    def _of(self, model: str) -> list[Candidate]:
        return [each for each in self.candidates if each.model == model]

    def places(self, rung: int) -> int:
        """How many candidates a rung has, of all models."""
        return sum(self._going_on(model, rung) for model in self._models)

    @property
    def _models(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(each.model for each in self.candidates))

    def _going_on(self, model: str, rung: int) -> int:
        """How many candidates of a model come to a rung."""
        candidates = len(self._of(model))
        for _ in range(rung):
            candidates = math.ceil(candidates / self.eta)
        return candidates

    def _best(
        self, candidates: Sequence[Candidate], rung: int, scores: Mapping[str, float | None]
    ) -> tuple[Candidate, ...]:
        """Those of each model that go on, by their mean over the seeds that did not fail; of equal ones the first."""

        def mean(each: Candidate) -> float:
            found = [score for run in each.rungs[rung] if (score := scores[run.name]) is not None]
            return sum(found) / len(found) if found else -math.inf

        going_on = set()
        for model in self._models:
            able = [place for place, each in enumerate(candidates) if each.model == model and mean(each) > -math.inf]
            best = sorted(able, key=lambda place: (-mean(candidates[place]), place))
            going_on |= {*best[: self._going_on(model, rung + 1)]}
        return tuple(each for place, each in enumerate(candidates) if place in going_on)


def make_plan(
    grid: Grid,
    resolve: Resolve,
    content_of: ContentOf,
    flops_of: FlopsOf,
    eta: int = 0,
    least_steps: int = 1,
) -> Plan:
    """Plan a sweep; all of its settings are refused or taken here.

    Args:
        grid: Values by name; the model is CALM unless they say.
        resolve: All settings, with some replaced.
        content_of, flops_of: Of some settings.
        eta: Of successive halving (Jamieson & Talwalkar 2016, arXiv 1502.07943): of each `eta` candidates one goes on
            to `eta` times the steps; 0 for a plain grid.
        least_steps: Of the first rung at least; the last one has the steps of the settings.

    Raises:
        ConfigError: A setting is unknown or refused, none of the models reads it, or two runs would be the same.
    """
    models = grid.get(MODEL, MODELS[:1])
    if unknown := [model for model in models if model not in MODELS]:
        raise ConfigError(f"--grid model: expected {' or '.join(MODELS)} (got {as_written(unknown[0])})")
    _require_read(grid, models)
    candidates = []
    for model in models:
        axes = {key: values for key, values in grid.items() if key not in (SEED, MODEL) and _is_read(key, model)}
        if eta and f"{model}.steps" in axes:
            raise ConfigError(f"--grid {model}.steps: is what --halving shares out; set the most with --set")

        if (number := math.prod(map(len, axes.values())) * len(grid.get(SEED, [0]))) > MOST_RUNS:
            raise ConfigError(f"--grid: makes {number:,} runs, a sweep may have {MOST_RUNS:,}; give fewer values")

        def run(values: Mapping[str, Any], model: str = model) -> Run:
            return _named(resolve(values), model, content_of, flops_of)

        for chosen in product(*axes.values()):
            settings = dict(zip(axes, chosen, strict=True))
            seeds = [settings | {SEED: seed} for seed in grid[SEED]] if SEED in grid else [settings]
            plain = [{key: value for key, value in values.items() if key != FLOPS} for values in seeds]
            first, steps = run(plain[0]), f"{model}.steps"
            most = _steps(first, settings[FLOPS]) if FLOPS in settings else first.steps
            rungs = [
                tuple(run(values | ({steps: number} if number != first.steps else {})) for values in plain)
                for number in budgets(most, eta, least_steps)
            ]
            candidates.append(Candidate(model, settings, tuple(rungs)))
    plan = Plan(tuple(candidates), eta)
    _require_distinct(plan)
    _require_same_positions(plan)
    return plan


def budgets(steps: int, eta: int, least: int) -> list[int]:
    """Steps of each rung, the fewest first: the most, and an eta-th of the next one as long as that is enough."""
    found = [steps]
    while eta and found[0] / eta >= least:
        found.insert(0, math.ceil(found[0] / eta))
    return found


def _steps(run: Run, flops: Any) -> int:
    """Steps that train a model with so many FLOPs."""
    if not isinstance(flops, int | float) or isinstance(flops, bool) or not 1 <= flops < math.inf:
        raise ConfigError(f"--grid {FLOPS}: expected training FLOPs, e.g. 1e13 (got {as_written(flops)})")
    return max(1, round(run.steps * flops / run.flops))


def _named(
    config: Config,
    model: str,
    content_of: ContentOf,
    flops_of: FlopsOf,
) -> Run:
    settings = config.model_dump(mode="json")
    del settings["data"]["sources"]
    dataset = _name("dataset", content_of(config, "data"), settings["data"], settings["tokenizer"])
    autoencoder = ""
    if model == "calm":
        autoencoder = _name(
            "autoencoder", dataset, content_of(config, "autoencoder"), settings["autoencoder"], config.seed
        )
    inputs = [dataset, autoencoder, content_of(config, model), config.seed]
    name = _name(model, *inputs, settings[model], settings["evaluation"])
    return Run(config, model, flops_of(config, model), name, dataset, autoencoder)


def _name(kind: str, *content: Any) -> str:
    return f"{kind}-{digest_of(list(content))[:_DIGEST_CHARACTERS]}"


def _is_read(key: str, model: str) -> bool:
    return key in (SEED, MODEL, FLOPS) or key.partition(".")[0] in _SECTIONS[model]


def _require_read(grid: Grid, models: Sequence[Any]) -> None:
    """Refuse a setting that no run reads, or that would make scores of which nobody could say which is better."""
    known = {*setting_names(Config)}
    for key in grid:
        section = key.partition(".")[0]
        if any(_is_read(key, model) for model in models):
            continue
        if section in _OF_THE_SCORES:
            raise ConfigError(
                f"--grid {shortened(key)}: changes the text or how scores are measured, so they could not be "
                f"compared; set it for all runs with --set {shortened(key)}=..."
            )
        if section in MODELS:
            raise ConfigError(f"--grid {shortened(key)}: no run of this sweep reads it; add --grid model={section}")
        if key in known or any(name.startswith(f"{key}.") for name in known):
            raise ConfigError(f"--grid {shortened(key)}: no run of a sweep reads it; leave it out")


def _require_distinct(plan: Plan) -> None:
    seen: dict[str, str] = {}
    for each in plan.candidates:
        for run in (run for rung in each.rungs for run in rung):
            label = each.label(run)
            if run.name in seen:
                raise ConfigError(f"--grid: {seen[run.name]} and {label} are the same run; leave one out")
            seen[run.name] = label


def _require_same_positions(plan: Plan) -> None:
    """Refuse models whose scores would be of different positions, since their chunks have different lengths."""
    chunks = [run.config.autoencoder.model.chunk_size if run.autoencoder else 1 for run in plan.runs]
    intervals = {
        run.config.evaluation.interval(chunk, run.config.data.sequence_length)
        for run, chunk in zip(plan.runs, chunks, strict=True)
    }
    if len(intervals) > 1:
        told = " and ".join(map(str, sorted({*chunks})))
        raise ConfigError(
            f"--grid: models of {told} tokens a chunk would be scored at different places; set the same for all with "
            f"--set evaluation.position_interval={math.lcm(*intervals)}"
        )


def differing(plan: Plan) -> tuple[str, ...]:
    """Names of the settings that candidates differ in, in the order of the grid."""
    return tuple(dict.fromkeys(name for each in plan.candidates for name in each.settings))
