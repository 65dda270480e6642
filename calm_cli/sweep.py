"""`calm sweep`: many runs that differ in some settings and seeds, and what came of them."""

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from calm_cli.display import clock
from calm_cli.options import (
    DEFAULT_PROFILE,
    ProfileOption,
    SetOption,
    SourceOption,
    TextFieldOption,
    configuration,
    with_text,
)
from calm_cli.screen import Screen, told
from calm_cli.tables import show_pairs
from calm_core.config import AutoencoderConfig, Config, DataConfig, TrainingConfig
from calm_core.errors import CalmError
from pipelines.local.home import Home
from pipelines.local.preflight import check_environment, check_sweep
from pipelines.sweeps.plan import ContentOf, FlopsOf, Plan, make_plan, read_grid


def sweep(
    output: Annotated[Path, typer.Option("--output", metavar="FOLDER", help="Where all of it lies, on this machine.")],
    grid: Annotated[
        list[str] | None,
        typer.Option(
            "--grid",
            metavar="SECTION.KEY=VALUE,VALUE",
            help="Values of a setting; all combinations are run. Repeatable. `seed` gives seeds, which are pooled; "
            "`model` calm or transformer; `flops` training FLOPs of it, from which its steps follow.",
            show_default=False,
        ),
    ] = None,
    halving: Annotated[
        int | None,
        typer.Option(
            metavar="ETA",
            min=2,
            help="Successive halving: the best one of ETA choices of settings goes on to ETA times the steps.",
            show_default=False,
        ),
    ] = None,
    min_steps: Annotated[
        int, typer.Option(min=1, help="With --halving: least steps of the first rung; the last has those that are set.")
    ] = 100,
    parallel: Annotated[int, typer.Option(min=1, help="Runs at work at a time.")] = 1,
    plan: Annotated[bool, typer.Option("--plan", help="Check it, show what would be run, and end.")] = False,
    profile: ProfileOption = DEFAULT_PROFILE,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    set_: SetOption = None,
) -> None:
    """Train and score a language model with each combination of some settings, and compare them.

    Data set and autoencoder are made once where runs share them. One that was stopped goes on where it was; with more
    values in the same folder, only what is new is run. The table lands in results.csv and results.json, pictures in
    results.html, each run in MLflow.

    Examples:

      calm sweep --grid calm.learning_rate=5e-4,1e-3 --grid seed=0,1,2 --output out/sweep

      calm sweep --grid model=calm,transformer --grid flops=2e13,4e13 --grid seed=0,1,2 --output out/growth

      calm sweep --grid calm.learning_rate=3e-4,1e-3,3e-3 --halving 3 --output out/halving
    """
    started = time.monotonic()
    values = read_grid(grid or ())
    given: dict[str, Any] = {"data.sources": source or None, "data.text_field": text_field}
    config = configuration(profile, set_, given)
    check_environment()
    home = Home.find()
    given["data.sources"] = with_text(config, home).data.sources

    def resolve(chosen: Mapping[str, Any]) -> Config:
        return configuration(profile, set_, given | dict(chosen))

    flops_of = _flops()
    planned = make_plan(values, resolve, _contents(), flops_of, halving or 0, min_steps)
    from calm_cli.sweep_local import PAGE_NAME, LocalSweep

    runs = planned.largest()
    local = LocalSweep(planned, output.absolute(), parallel)
    with told(Screen(stderr=True)) as tell:
        check_sweep([(run.config, run.model) for run in runs], home, local.folder, parallel, lambda what: tell(what))
    console = Screen()
    _show_plan(planned, flops_of, console)
    if plan:
        return
    failed = local.carry_out(home, console)
    show_pairs(
        [("page", str(local.folder / PAGE_NAME)), ("time", clock(time.monotonic() - started))], Screen(soft_wrap=True)
    )
    if failed:
        raise CalmError(f"{failed:,} of the runs failed; run the same command again to try them again", can_pass=True)


def _show_plan(plan: Plan, flops_of: FlopsOf, console: Console) -> None:
    """How many runs there are, what they share, and what they cost."""
    runs, seeds = plan.largest(), len(plan.candidates[0].rungs[0])
    autoencoders = {run.autoencoder: flops_of(run.config, "autoencoder") for run in runs if run.autoencoder}
    lines = [
        ("runs", f"{len(runs):,}"),
        ("settings", f"{len(plan.candidates):,}, each with {seeds:,} seed{'s' * (seeds > 1)}"),
        ("shared", f"a data set, {len(autoencoders):,} autoencoder{'s' * (len(autoencoders) != 1)}"),
        ("training FLOPs", f"{sum(run.flops for run in runs):.3g}"),
    ]
    if autoencoders:
        lines.append(("  of autoencoders", f"{sum(autoencoders.values()):.3g} more"))
    if plan.rungs > 1:
        steps = [sorted({run.steps for each in plan.candidates for run in each.rungs[i]}) for i in range(plan.rungs)]
        told = [f"{plan.places(rung):,} x {' or '.join(f'{n:,}' for n in each)}" for rung, each in enumerate(steps)]
        lines.append(("rungs", f"settings x steps: {', '.join(told)}; each is trained anew"))
    show_pairs(lines, console)
    console.print()


def _contents() -> ContentOf:
    """What the settings of a section name by path, and the code that reads it, as digests."""
    from calm_core.data.sources.files import find_files
    from calm_core.data.tokenizers.content import digest_of_source
    from calm_core.store.artifact import Artifact, digest_of
    from calm_core.store.code_version import code_version
    from calm_core.store.facts import DatasetFacts
    from calm_core.weights.initial import initial_digest

    @cache
    def of_data(settings: str, tokenizer: str) -> str:
        data = DataConfig.model_validate_json(settings)
        extended = [Artifact(data.extends, DatasetFacts).digest] if data.extends else []
        return digest_of(
            [code_version(), digest_of_source(tokenizer), *extended, *(file.digest for file in find_files(data))]
        )

    @cache
    def of_weights(kind: str, settings: str) -> str:
        return initial_digest(TrainingConfig.of_kind[kind].model_validate_json(settings))

    def content_of(config: Config, section: str) -> str:
        if section == "data":
            return of_data(config.data.model_dump_json(), config.tokenizer.source)
        return of_weights(section, getattr(config, section).model_dump_json())

    return content_of


def _flops() -> FlopsOf:
    """Training FLOPs of a model of some settings; each shape is counted once."""
    from calm_core.scaling.cost import training_flops_per_token

    @cache
    def of_a_token(kind: str, training: str, autoencoder: str, vocab_size: int, sequence_length: int) -> float:
        settings = TrainingConfig.of_kind[kind].model_validate_json(training)
        shape = AutoencoderConfig.model_validate_json(autoencoder)
        return training_flops_per_token(settings, shape, vocab_size, sequence_length)

    def flops_of(config: Config, kind: str) -> float:
        training: TrainingConfig = getattr(config, kind)
        shape = training.model_copy(update={"steps": 1, "profile_steps": None}).model_dump_json()
        sizes = config.tokenizer.vocab_size, config.data.sequence_length
        tokens = training.steps * training.global_batch_size * config.data.sequence_length
        return of_a_token(kind, shape, config.autoencoder.model_dump_json(), *sizes) * tokens

    return flops_of
