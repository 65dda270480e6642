"""The command line: `calm`."""

import sys
import traceback
from collections.abc import Sequence
from importlib.metadata import version
from platform import python_version
from typing import Annotated

import typer
from rich.text import Text

from calm_cli import checkpoints, data, models, stages
from calm_cli.compare import compare
from calm_cli.doctor import doctor
from calm_cli.estimate import estimate
from calm_cli.inspect import inspect
from calm_cli.options import DEFAULT_PROFILE, ProfileOption, SetOption, configuration, with_options
from calm_cli.registry import registry_app
from calm_cli.report import report
from calm_cli.retrain import retrain
from calm_cli.run import run
from calm_cli.runs import runs_app
from calm_cli.schedule import schedule_app
from calm_cli.screen import Screen
from calm_cli.settings import settings_lines
from calm_cli.stopping import stop_behind
from calm_cli.submit import submit
from calm_cli.sweep import sweep
from calm_cli.usage import App, UsageError
from calm_core.errors import EXIT_FAILED, CalmError, ConfigError, Interrupted
from calm_core.shown import lines_of
from calm_core.store.code_version import code_version
from calm_core.store.storage import first_answer_soon

app = App(add_completion=False, rich_markup_mode="markdown", pretty_exceptions_enable=False)


def _print_version(asked: bool) -> None:
    if asked:
        typer.echo(f"calm {version('calm-pipelines')}, code {code_version()}, Python {python_version()}")
        raise typer.Exit


@app.callback()
def calm(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit."),
    ] = False,
) -> None:
    """Train, score and use CALM language models.

    CALM predicts one continuous vector for each chunk of K tokens instead of one token at a time. `calm run` makes
    such a model from text: it prepares the text, trains an autoencoder (chunk to vector and back) and the language
    model, scores it with BrierLM on held-out text, and registers it in MLflow.

    Start here:

      calm run                                  # the whole pipeline, some minutes

      calm run --source 'texts/*.jsonl'         # on your own text

      calm run --set calm.learning_rate=5e-4    # reruns what depends on it

      calm generate "The climate of" --seed 1   # the registered model writes

      calm retrain                              # again, if there is new text

      calm runs                                 # what has run here

      calm report                               # the page about the newest run

      calm ui                                   # curves, settings and models
    """


def config(profile: ProfileOption = DEFAULT_PROFILE, set_: SetOption = None) -> None:
    """Print all settings with their meaning, as YAML that --profile reads.

    Examples:

      calm config --set calm.steps=1000

      calm config > my.yaml && calm run --profile my.yaml
    """
    text = "".join(f"{line}\n" for line in settings_lines(configuration(profile, set_)))
    sys.stdout.buffer.write(text.encode())  # as --profile reads it, whatever the terminal's encoding


app.command()(run)
app.command()(retrain)
app.add_typer(runs_app, name="runs")
app.command()(report)
app.command()(sweep)
app.command()(config)
app.command()(estimate)
app.command()(models.generate)
app.command()(models.ui)
app.command()(inspect)
app.command()(data.verify)
app.command()(doctor)
app.command("import")(checkpoints.import_)
app.command()(checkpoints.export)
data_app = App(help="Prepare datasets, look at them, and mix them.")
for of_data in (stages.prepare, inspect, data.verify, data.mix):
    data_app.command()(of_data)
app.add_typer(data_app, name="data")
app.add_typer(registry_app, name="registry")
app.command(rich_help_panel="In a cluster")(submit)
app.add_typer(schedule_app, name="schedule", rich_help_panel="In a cluster")
for command in (stages.prepare, stages.train, stages.evaluate, compare, stages.register):
    app.command(rich_help_panel="Single stages")(command)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an error that the user can cause is one line on stderr.

    Raises:
        SystemExit: Always; 0, 1 for an error, 2 for wrong settings or usage, 75 for a stopped training that goes on
            when it is run again.
    """
    try:
        with first_answer_soon():
            sys.exit(_run(sys.argv[1:] if arguments is None else arguments))
    except Exception as error:
        if stopped := stop_behind(error):
            raise stopped from None
        _show(error)
        sys.exit(error.exit_code if isinstance(error, CalmError) else EXIT_FAILED)


def _show(error: Exception) -> None:
    match error:
        case Interrupted():
            Screen(stderr=True).print(str(error), style="yellow", soft_wrap=True)
        case CalmError():
            line = Text.assemble(("error", "bold red"), " ", with_options(str(error)))
            Screen(stderr=True).print(line, soft_wrap=True)
        case _:  # a fault of ours: its traceback may hold what the libraries say of URLs and texts
            sys.stderr.write(lines_of("".join(traceback.format_exception(error))))


def _run(arguments: Sequence[str]) -> int:
    """Run a command; returns its exit code."""
    try:
        with typer.main.get_command(app).make_context("calm", list(arguments)) as context:
            context.command.invoke(context)
    except typer.Exit as ending:
        return ending.exit_code
    except UsageError as error:
        raise ConfigError(str(error)) from None
    return 0
