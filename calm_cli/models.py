"""Use what a run has made: `calm generate` and `calm ui`."""

import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from calm_cli.inputs import require_model
from calm_cli.options import DEFAULT_MODEL, AutoencoderOption
from calm_cli.screen import Screen, told
from calm_core.config.evaluation import MIN_TEMPERATURE, SamplerName
from calm_core.errors import CalmError, ConfigError
from calm_core.generation.arguments import MAX_SEED
from calm_core.generation.sampling import BUDGET, READING_SAMPLES, SAMPLES, Sampling
from calm_core.shown import redacted, shortened, visible
from calm_core.store.facts import CalmFacts, TransformerFacts
from calm_core.telemetry.mlflow_run import REGISTERED
from pipelines.local.home import Home

if TYPE_CHECKING:
    from calm_core.generation.text import TextGenerator

_LONGEST_INPUT = 16 << 20
"""Bytes of a prompt; a model reads some 100,000 tokens."""


def generate(
    prompts: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="PROMPT", help="Texts to continue; - reads one from standard input.", show_default=False
        ),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="URI", help="A registered model, or a CALM model or Transformer of `calm train`.")
    ] = DEFAULT_MODEL,
    autoencoder: AutoencoderOption = "",
    temperature: Annotated[
        float,
        typer.Option(
            min=MIN_TEMPERATURE,
            max=1.0,
            help="1 writes freely, less writes likelier text. There is no 0: CALM draws samples, and of probabilities, "
            "which would tell the likeliest text, it knows none.",
        ),
    ] = 0.5,
    sampler: Annotated[
        SamplerName | None,
        typer.Option(
            help="How CALM reaches a temperature below 1: path, noise-scale, truncated and branch cost as much as 1, "
            "densest some times, batch counts equal samples, exact rejects.",
            show_default="the best for the model",
        ),
    ] = None,
    samples: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=2**20,
            help="Samples per chunk of --sampler batch.",
            show_default=f"{SAMPLES}; {READING_SAMPLES} if the decoder reads",
        ),
    ] = None,
    exact: Annotated[bool, typer.Option("--exact", help="The same as --sampler exact.")] = False,
    budget: Annotated[
        int | None,
        typer.Option(min=1, help="Draws per chunk after which --exact gives up.", show_default=f"{BUDGET}"),
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=2**20, help="Tokens written for each prompt, at most.")
    ] = 64,
    stop: Annotated[
        list[str] | None, typer.Option(metavar="TEXT", help="End before this text; repeatable.", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same text.")] = 0,
) -> None:
    """Continue prompts with a model. A single prompt's text appears as it is written.

    A file or pipe gets prompt and text byte for byte, and a newline after each; a terminal shows control characters.
    Without a prompt, or with -, standard input is the prompt, less one newline at its end.

    Examples:

      calm generate "The climate of" --temperature 0.5 --seed 1

      calm generate "The economy" "In 1990" --model models:/calm/3 --stop "."

      calm generate "The economy" --model out/calm

      echo "The climate of" | calm generate
    """
    texts = _texts(prompts)
    if exact and sampler not in (None, "exact"):
        raise ConfigError(f"--exact: is --sampler exact, and not {sampler}; leave one of them out")
    sampler = "exact" if exact else sampler
    if budget is not None and sampler != "exact":
        raise ConfigError("--budget: is the budget of --exact, which is not given; add --exact, or leave it out")
    if samples is not None and sampler not in (None, "batch"):
        raise ConfigError(f"--samples: is of --sampler batch, and not of {sampler}; leave one of them out")
    if seed > MAX_SEED:
        raise ConfigError(f"--seed {seed}: expected at most {MAX_SEED}")
    for number, text in enumerate(stop or (), 1):
        _require_text(f"--stop {number}", text)
    screen = Screen(stderr=True)
    with _doing(screen, f"loading {model}"):
        generator = _generator(model, autoencoder)
        sampling = Sampling(temperature, samples, budget or 0, sampler)
        rest = generator.stream(texts, max_new_tokens=max_new_tokens, sampling=sampling, seed=seed, stop=stop or ())
        pieces = chain(list(islice(rest, 1)), rest)  # prompts are read for the first one, and may be refused
    if len(texts) == 1:
        _write(texts[0], bold=True)
        try:
            for _, piece in pieces:
                _write(piece)
        finally:
            _write("\n")
        return
    written = [""] * len(texts)
    with _doing(screen, f"writing {len(texts)} texts"):
        for number, piece in pieces:
            written[number] += piece
    for prompt, text in zip(texts, written, strict=True):
        _write(prompt, bold=True)
        _write(text + "\n")


def _generator(model: str, autoencoder: str) -> "TextGenerator":
    """A model that writes; whether there is one is known before torch is imported, which takes seconds."""
    if not model.startswith(REGISTERED):
        require_model(model, autoencoder, CalmFacts, TransformerFacts)
        from calm_core.registry.load import load_generator

        return load_generator(model, autoencoder)
    if autoencoder:
        raise ConfigError("autoencoder_uri: a registered model brings its autoencoder; leave it out")
    from calm_core.weights.registered import registered_artifacts
    from pipelines.local.tracking import read_tracking

    read_tracking(Home.find(make=False))
    with registered_artifacts(model) as (its_autoencoder, calm):
        from calm_core.registry.load import calm_generator

        return calm_generator(calm, its_autoencoder)


@contextmanager
def _doing(screen: Screen, what: str) -> Iterator[None]:
    """Say what is done for as long as it takes; where nobody looks at a terminal, only if that is long."""
    if screen.is_terminal:
        with screen.status(Text(shortened(what, 60))):
            yield
    else:
        with told(screen) as tell:
            tell(what)
            yield


def _texts(prompts: Sequence[str] | None) -> list[str]:
    """The prompts, with standard input in place of - and of none.

    Raises:
        ConfigError: One is no text, or there is nothing to read.
    """
    if not prompts and sys.stdin.isatty():
        raise ConfigError("PROMPT is missing: `calm generate 'The climate of'`, or pipe a text into `calm generate`")
    prompts = prompts or ["-"]
    if prompts.count("-") > 1:
        raise ConfigError("PROMPT: standard input (-) is named twice; it is read once")
    texts = [_standard_input() if prompt == "-" else prompt for prompt in prompts]
    for number, text in enumerate(texts, 1):
        _require_text(f"prompt {number}", text)
    return texts


def _standard_input() -> str:
    if sys.stdin.isatty():
        Screen(stderr=True).print("type the prompt; Ctrl-D on a line of its own ends it", style="dim")
    data = sys.stdin.buffer.read(_LONGEST_INPUT + 1)
    if not data:
        raise ConfigError("standard input: holds no prompt; give one: calm generate 'The climate of'")
    if len(data) > _LONGEST_INPUT:
        raise ConfigError(f"standard input: has more than {_LONGEST_INPUT:,} bytes; give the end of the prompt")
    try:
        return re.sub(r"\r?\n\Z", "", data.decode())
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input: is not UTF-8 text (byte {error.start + 1}); convert it first") from None


def _require_text(what: str, text: str) -> None:
    """Refuse bytes that are no UTF-8, which Python hands on as halves of characters."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        half = text[error.start]
        shown = f"byte \\x{ord(half) - 0xDC00:02x}" if "\udc80" <= half <= "\udcff" else visible(half)
        raise ConfigError(f"{what}: is not UTF-8 text ({shown} at {error.start}); convert it first") from None


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
    from pipelines.local.tracking import read_tracking, send_what_is_left, tracking_uri

    home = Home.find(make=False)
    uri = tracking_uri(home)
    if uri.startswith(("http://", "https://")):
        raise CalmError(f"MLFLOW_TRACKING_URI names a server that runs already: open {redacted(uri)}")
    mlflow_server.require_free(port)
    read_tracking(home)
    send_what_is_left(home)
    print("MLflow's server is starting", file=sys.stderr, flush=True)
    mlflow_server.serve(uri, home.mlflow_artifacts.as_uri(), port)
