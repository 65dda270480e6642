"""`calm sweep`: many runs that differ in some settings and seeds, and what came of them."""

import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

import typer

from calm_cli.cluster import HostOption, NamespaceOption, PipelineRootOption
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
from calm_core.config.base import MOST_STEPS
from calm_core.errors import CalmError, ConfigError, Interrupted
from pipelines.compile import TRAIN_PIPELINE
from pipelines.local.home import Home
from pipelines.local.preflight import check_environment, check_sweep
from pipelines.sweeps.plan import ContentOf, FlopsOf, Plan, make_plan, read_grid

if TYPE_CHECKING:
    from calm_cli.sweep_folder import SweepFolder


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
    cluster: Annotated[
        bool, typer.Option("--cluster", help="Submit the runs to Kubeflow, and collect those that have ended.")
    ] = False,
    host: HostOption = "",
    namespace: NamespaceOption = "",
    pipeline_root: PipelineRootOption = "",
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
    if not cluster and (host or namespace or pipeline_root):
        raise ConfigError("--host, --namespace, --pipeline-root: are of a cluster; add --cluster, or leave them out")

    def planned(content_of: ContentOf, **more: Any) -> Plan:
        def resolve(chosen: Mapping[str, Any]) -> Config:
            return configuration(profile, set_, given | more | dict(chosen))

        return make_plan(values, resolve, content_of, _flops(), halving or 0, min_steps)

    config = configuration(profile, set_, given)
    if cluster:
        whole = _in_cluster(planned, output.absolute(), plan, host, namespace, pipeline_root)
    else:
        whole = _here(planned, config, output.absolute(), plan, parallel)
    if plan:
        return
    show_pairs([("page", str(whole.page)), ("time", clock(time.monotonic() - started))], Screen(soft_wrap=True))
    if whole.failed:
        again = "archive them in Kubeflow, and run the same" if cluster else "run the same"
        raise CalmError(
            f"{whole.failed:,} of the runs failed; {again} command again to try them again", can_pass=not cluster
        )


class _Planned(Protocol):
    def __call__(self, content_of: ContentOf, **more: Any) -> Plan: ...


def _here(planned: _Planned, config: Config, path: Path, only_plan: bool, parallel: int) -> "SweepFolder":
    """Carry a sweep out on this machine."""
    from calm_cli.sweep_folder import SweepFolder

    check_environment()
    home = Home.find()
    plan = planned(_contents(), **{"data.sources": with_text(config, home).data.sources})
    folder, runs = SweepFolder(plan, path), plan.largest()
    with told(Screen(stderr=True)) as tell:
        check_sweep(
            [(run.config, run.model) for run in runs], home, path, parallel, lambda what: tell(f"checking {what}")
        )
    _show_plan(plan, "each is trained anew")
    if not only_plan:
        from calm_cli.sweep_local import LocalSweep

        LocalSweep(folder, parallel).carry_out(Screen())
    return folder


def _in_cluster(
    planned: _Planned, path: Path, only_plan: bool, host: str, namespace: str, pipeline_root: str
) -> "SweepFolder":
    """Submit what is not there, and collect what has ended.

    Raises:
        Interrupted: Some runs are at work still.
    """
    from calm_cli.sweep_folder import SweepFolder
    from pipelines.cluster.client import connect
    from pipelines.cluster.submit import Package, arguments, checked_root
    from pipelines.cluster.sweep import SETTINGS, ClusterSweep, content_of, require_mlflow

    package, root = Package(TRAIN_PIPELINE), checked_root(pipeline_root) if pipeline_root else ""
    plan = planned(content_of(package), **SETTINGS)
    if any(run.model != "calm" for run in plan.runs):
        raise ConfigError("--grid model: a pipeline trains CALM; sweep the Transformer on one machine")
    for run in plan.runs:
        arguments(run.config, root, package)
    folder = SweepFolder(plan, path)
    require_mlflow()
    _show_plan(plan, "a rung is submitted once the one before has ended")
    if only_plan:
        return folder
    sweep = ClusterSweep(connect(host, namespace), package, root)
    while due := plan.due(folder.scores):
        folder.results |= sweep.look(due)
        if sweep.at_work:
            break
    folder.write()
    console = Screen()
    folder.show(console)
    console.print()
    for name, run_id in sweep.at_work.items():
        console.print(f"at work: {folder.labels[name]}: {run_id}", soft_wrap=True)
    if number := len(sweep.at_work):
        raise Interrupted(
            f"{number:,} runs are at work, {sweep.submitted:,} of them submitted now; run the same command "
            "again to collect them"
        )
    return folder


def _show_plan(plan: Plan, how: str) -> None:
    """How many runs there are, what they share, and what they cost."""
    console, flops_of = Screen(), _flops()
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
        lines.append(("rungs", f"settings x steps: {', '.join(told)}; {how}"))
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
        shape = training.model_copy(update={"steps": MOST_STEPS, "profile_steps": None}).model_dump_json()
        sizes = config.tokenizer.vocab_size, config.data.sequence_length
        tokens = training.steps * training.global_batch_size * config.data.sequence_length
        return of_a_token(kind, shape, config.autoencoder.model_dump_json(), *sizes) * tokens

    return flops_of
