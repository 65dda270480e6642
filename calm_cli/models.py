"""Use what a run has made: `calm generate` and `calm ui`."""

import sys
from typing import Annotated

import typer

from calm_cli.options import DEFAULT_MODEL, AutoencoderOption
from calm_core.errors import CalmError
from calm_core.shown import redacted, visible
from calm_core.telemetry.mlflow_run import REGISTERED
from pipelines.local.home import Home


def generate(
    prompts: Annotated[list[str], typer.Argument(metavar="PROMPT...", help="Texts to continue.", show_default=False)],
    model: Annotated[
        str, typer.Option(metavar="URI", help="A registered model, or a CALM model or Transformer of `calm train`.")
    ] = DEFAULT_MODEL,
    autoencoder: AutoencoderOption = "",
    temperature: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="1 writes freely, less writes likelier text.")
    ] = 0.5,
    samples: Annotated[int, typer.Option(min=1, help="Samples per chunk that a low temperature needs.")] = 200,
    exact: Annotated[bool, typer.Option("--exact", help="Reach the temperature exactly, by rejection.")] = False,
    budget: Annotated[int, typer.Option(min=1, help="Draws per chunk after which --exact gives up.")] = 100_000,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Tokens written for each prompt.")] = 64,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue prompts with a model. A single prompt's text appears as it is written.

    A file or pipe gets prompt and text byte for byte, and a newline after each; a terminal shows control characters.

    Examples:

      calm generate "The climate of" --temperature 0.5 --seed 1

      calm generate "The economy" "In 1990" --model models:/calm/3 --stop "."

      calm generate "The economy" --model out/calm
    """
    from pipelines.local.tracking import read_tracking

    if model.startswith(REGISTERED):
        read_tracking(Home.find(make=False))
    from calm_core.generation.text import Sampling
    from calm_core.registry.load import load_generator

    sampling = Sampling(temperature, samples, budget if exact else 0)
    generator = load_generator(model, autoencoder)
    pieces = generator.stream(prompts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop or ())
    if len(prompts) == 1:
        _write(prompts[0], bold=True)
        try:
            for _, piece in pieces:
                _write(piece)
        finally:
            _write("\n")
        return
    texts = [""] * len(prompts)
    for number, piece in pieces:
        texts[number] += piece
    for prompt, text in zip(prompts, texts, strict=True):
        _write(prompt, bold=True)
        _write(text + "\n")


def _write(text: str, bold: bool = False) -> None:
    """Write a text, byte for byte; to a terminal, with its control characters shown instead of acting."""
    if sys.stdout.isatty():
        text = visible(text, keep="\n\t")
        text = typer.style(text, bold=True) if bold else text
    sys.stdout.flush()
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()


def ui(port: Annotated[int, typer.Option(min=1, max=65535, help="Port on this machine.")] = 5000) -> None:
    """Look at runs, curves, settings and models: MLflow's server on this machine's data. Ctrl-C ends it.

    Example:

      calm ui --port 5001
    """
    from pipelines.local import mlflow_server
    from pipelines.local.tracking import read_tracking, tracking_uri

    home = Home.find(make=False)
    uri = tracking_uri(home)
    if uri.startswith(("http://", "https://")):
        raise CalmError(f"MLFLOW_TRACKING_URI names a server that runs already: open {redacted(uri)}")
    mlflow_server.require_free(port)
    read_tracking(home)
    print("MLflow's server is starting", file=sys.stderr, flush=True)
    mlflow_server.serve(uri, home.mlflow_artifacts.as_uri(), port)
