"""`calm run`: the whole pipeline, watched."""

import signal
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape

from calm_cli import summary
from calm_cli.board import BASELINE_STAGES, STAGES, Board
from calm_cli.display import display_for
from calm_cli.options import (
    DEFAULT_PROFILE,
    ProfileOption,
    SetOption,
    SourceOption,
    TextFieldOption,
    configuration,
    with_text,
)
from calm_cli.runs import asked_for
from calm_cli.screen import Screen
from calm_core.config import Config
from calm_core.telemetry.mlflow_run import PARENT_RUN_VARIABLE, Run, start_run
from pipelines.arguments import arguments_of
from pipelines.local.home import Home
from pipelines.local.run import STOP_SECONDS, LocalRun

_POLL_SECONDS = 0.25
_GO_ON = "run the same command again: finished stages come from the cache"


class Stopped(Exception):
    """The user, or the system, has asked the run to end."""

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.exit_code = 128 + signal_number


class PipelineFailed(Exception):
    """A stage has failed; the text says which, why, and how to go on."""


def run(
    profile: ProfileOption = DEFAULT_PROFILE,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    set_: SetOption = None,
) -> None:
    """Prepare text, train the autoencoder and the language model, score and register them.

    Stages that have been done with the same settings, text and code come from the cache. Everything lands in .calm
    (or $CALM_HOME): artifacts, checkpoints, logs, MLflow.

    Without --source the text is the CIA World Factbook that comes with the installation.

    Examples:

      calm run

      calm run --source 'texts/*.jsonl' --source notes.txt --text-field body

      calm run --set calm.learning_rate=5e-4 --set seed=1
    """
    config = configuration(profile, set_, {"data.sources": source or None, "data.text_field": text_field})
    asked = asked_for(profile, source or (), text_field, set_ or (), config)
    home = Home.find()
    with home.lock() as lock:
        raise typer.Exit(run_pipeline(with_text(config, home), home, lock, Screen(), Screen(stderr=True), asked))


def run_pipeline(
    config: Config, home: Home, lock: int, console: Console, errors: Console, asked: Mapping[str, Any] | None = None
) -> int:
    """Run the pipeline, show it, and keep its record in MLflow.

    Args:
        config: Every setting of the run.
        home: Where it works.
        lock: The home's lock, which is held.
        console: Where the run and its results are shown.
        errors: Where a failure is shown.
        asked: What the run is remembered by, as `asked_for` says.

    Returns:
        The exit code: 0, 1 after a failure, 128 + the signal that stopped it.

    Raises:
        ConfigError: A setting cannot be handed to Kubeflow.
    """
    from pipelines.local.tracking import use_tracking

    arguments = arguments_of(config, str(home.plans), str(home.checkpoints))
    try:
        with _signals_as_exception():
            use_tracking(home, config.experiment)
            with _parent_run(config) as parent:
                pipeline = LocalRun.start(arguments, home, lock, {PARENT_RUN_VARIABLE: parent.run_id}, asked)
                console.print(f"log: {pipeline.log}", soft_wrap=True)
                board = watch(pipeline, _stages(config), console)
                if pipeline.poll():
                    raise PipelineFailed(failure_text(board, pipeline))
                finished = summary.Finished.read(pipeline.outputs())
                _record(parent, finished, board)
    except Stopped as stopped:
        errors.print(f"[yellow]stopped[/]; to go on, {_GO_ON}", markup=True, soft_wrap=True)
        return stopped.exit_code
    except PipelineFailed as failure:
        errors.print(str(failure), markup=True, soft_wrap=True)
        return 1
    console.print()
    summary.show(finished, board, console)
    return 0


def _stages(config: Config) -> tuple[str, ...]:
    """The stages of a run, in the order in which Kubeflow's local runner begins them."""
    return STAGES + BASELINE_STAGES if config.train_baseline else STAGES


def watch(pipeline: LocalRun, stages: Sequence[str], console: Console) -> Board:
    """Show a run until it ends; however this function ends, no process of the run is left."""
    board = Board(stages)
    try:
        with display_for(board, console) as display:
            ended = None
            while ended is None:
                ended = pipeline.poll()  # before the events, so that none of the last ones is missed
                for event in pipeline.events():
                    board.apply(event)
                if ended == 0:
                    board.succeed()
                elif ended is not None:
                    board.fail(time.time())
                else:
                    time.sleep(_POLL_SECONDS)
                display.refresh(time.time())
    except Stopped:
        console.print(f"stopping; what is at work has {STOP_SECONDS:.0f} s to save it")
        raise
    finally:
        pipeline.stop()
    return board


def failure_text(board: Board, pipeline: LocalRun) -> str:
    """Which stage failed, why, where its log is, and how to go on."""
    blamed = board.blamed
    if blamed is None:
        reason = "the pipeline failed before a stage said why"
    else:
        unexplained = (
            "it ended without a reason: killed, for example for want of memory, or broken before it could report"
        )
        reason = f"{blamed.stage}: {blamed.reason or unexplained}"
    return f"[bold red]failed[/] {escape(reason)}\n  log: {escape(str(pipeline.log))}\n  to go on: {_GO_ON}"


@contextmanager
def _parent_run(config: Config) -> Iterator[Run]:
    """The pipeline's run in MLflow: all settings, and how it ended."""
    from pipelines.local.tracking import end_open_stages

    parent = start_run("calm-train", {})
    status = "FAILED"
    try:
        parent.log_parameters(config.model_dump(mode="json"))
        yield parent
        status = "FINISHED"
    except Stopped:
        status = "KILLED"
        raise
    finally:
        parent.end(status)
        if status != "FINISHED":
            end_open_stages(parent, status)


def _record(parent: Run, finished: summary.Finished, board: Board) -> None:
    """Write the headline numbers to MLflow, and which stages were answered from the cache."""
    parent.log_metrics(finished.scores())
    parent.set_tags({f"calm.cached.{row.stage}": "true" for row in board.rows if row.state == "cached"})


@contextmanager
def _signals_as_exception() -> Iterator[None]:
    """Turn Ctrl-C, a termination request and a closed terminal into `Stopped`."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(number)

    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
