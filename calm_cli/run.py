"""`calm run`: the whole pipeline, watched."""

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from rich.console import Console

from calm_cli import summary
from calm_cli.board import Board, stages_of
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
from calm_cli.screen import Screen, told
from calm_core.config import Config
from calm_core.errors import CalmError, Stopped
from calm_core.telemetry.mlflow_run import (
    COMMAND_VARIABLE,
    FLUSH_SECONDS,
    FLUSH_SECONDS_AFTER_FAILURE,
    PARENT_RUN_VARIABLE,
    Run,
    start_run,
    status_of,
)
from pipelines.arguments import arguments_of
from pipelines.local.home import Home
from pipelines.local.preflight import check_environment, check_run
from pipelines.local.run import STOP_SECONDS, LocalRun

_POLL_SECONDS = 0.25
_FROM_CACHE = "finished stages come from the cache"


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
    asked = asked_for("run", profile, source or (), text_field, set_ or (), config)
    check_environment()
    home = Home.find()
    with home.lock() as lock:
        config = with_text(config, home)
        arguments = arguments_of(config, str(home.plans), str(home.checkpoints))
        with told(Screen(stderr=True)) as tell:
            check_run(config, home, lambda what: tell(f"checking {what}"))
        console = Screen()
        finished, board = run_pipeline(config, arguments, home, lock, console, asked)
        console.print()
        summary.show(finished, board, console, asked["command"])


def run_pipeline(
    config: Config,
    arguments: Mapping[str, Any],
    home: Home,
    lock: int,
    console: Console,
    asked: Mapping[str, Any],
) -> tuple[summary.Finished, Board]:
    """Run the pipeline, show it, and keep its record in MLflow; returns what it has made, and how it went.

    Args:
        config: Every setting of the run, which has been checked.
        arguments: The same, as the pipeline takes it.
        home: Where it works.
        lock: The home's lock, which is held.
        console: Where the run is shown.
        asked: What the run is remembered by, as `asked_for` says.

    Raises:
        CalmError: A stage has failed; which one, why, where its log is, and how to go on.
        Stopped: This process was asked to end.
    """
    with _parent_run(config) as parent:
        told = {PARENT_RUN_VARIABLE: parent.run_id, COMMAND_VARIABLE: shlex.join(asked["command"])}
        pipeline = LocalRun.start(arguments, home, lock, told, asked)
        console.print(f"log: {pipeline.log}", soft_wrap=True)
        board = watch(pipeline, stages_of(config.train_baseline), console)
        if pipeline.poll():
            raise failure(board, pipeline)
        finished = summary.Finished.read(pipeline.outputs())
        _record(parent, finished, board)
    return finished, board


def watch(pipeline: LocalRun, stages: Sequence[str], console: Console) -> Board:
    """Show a run until it ends; however this function ends, no process of the run is left."""
    board = Board(stages, time.time())
    try:
        with display_for(board, console) as display:
            ended = None
            while ended is None:
                ended = pipeline.poll()  # before the events, so that none of the last ones is missed
                for event in pipeline.events():
                    board.apply(event)
                if ended == 0:
                    board.succeed(time.time())
                elif ended is not None:
                    board.fail(time.time())
                else:
                    time.sleep(_POLL_SECONDS)
                display.refresh(time.time())
    except Stopped as stopped:
        stopped.again = f"to go on, run the same command again: {_FROM_CACHE}"
        with suppress(OSError):  # the terminal is gone
            console.print(f"stopping; what is at work has {STOP_SECONDS:.0f} s to save it")
        raise
    finally:
        pipeline.stop()
    return board


def failure(board: Board, pipeline: LocalRun) -> CalmError:
    """What a failed run ends with: which stage failed, why, how to go on where that can help, and where the log is."""
    row, ending = board.blamed, pipeline.ending()
    stage = row.stage if row else ending.stage
    reason, can_pass = ending.reason, ending.can_pass
    if row and row.event and row.reason:  # it could say so itself
        reason, can_pass = row.reason, row.event.can_pass
    told = reason if reason.startswith(f"{stage}: ") else f"{stage}: {reason}"
    if can_pass:
        told += f": {_FROM_CACHE}" if "again" in told else f"; run the same command again: {_FROM_CACHE}"
    return CalmError(f"{told} (log: {pipeline.log})", can_pass=can_pass)


@contextmanager
def _parent_run(config: Config) -> Iterator[Run]:
    """The pipeline's run in MLflow: all settings, and how it ended."""
    from pipelines.local.tracking import end_open_stages

    parent = start_run("calm-train", {})
    try:
        parent.log_parameters(config.model_dump(mode="json"))
        yield parent
    except BaseException as error:
        if parent.end(status_of(error), FLUSH_SECONDS_AFTER_FAILURE):
            with suppress(CalmError):  # that MLflow is gone now must not hide why the run ended
                end_open_stages(parent, status_of(error))
        raise
    parent.end("FINISHED", FLUSH_SECONDS)


def _record(parent: Run, finished: summary.Finished, board: Board) -> None:
    """Write the headline numbers to MLflow, and which stages were answered from the cache."""
    parent.log_metrics(finished.scores())
    parent.set_tags({f"calm.cached.{row.stage}": "true" for row in board.rows if row.state == "cached"})
