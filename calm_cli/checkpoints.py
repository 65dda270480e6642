"""Public checkpoints: `calm import` and `calm export`."""

import time
from shlex import quote
from typing import Annotated

import typer

from calm_cli.inputs import require_model
from calm_cli.options import AutoencoderOption, JsonOption, OverwriteOption
from calm_cli.result import document, print_json, show_result
from calm_cli.screen import Screen
from calm_core.store.facts import AutoencoderFacts, CalmFacts


def import_(
    folder: Annotated[str, typer.Argument(metavar="DIR", help="Folder of a public autoencoder or CALM model.")],
    output: Annotated[str, typer.Option(metavar="URI", help="Folder of the artifacts that are written.")],
    autoencoder: Annotated[
        str,
        typer.Option(metavar="DIR", help="Folder of a CALM model's autoencoder. [default: beside DIR, by ae_path]"),
    ] = "",
    tokenizer: Annotated[
        str, typer.Option(metavar="DIR", help="Folder with tokenizer.json. [default: DIR, else the autoencoder's]")
    ] = "",
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Read a public checkpoint in Hugging Face's format; it then generates, is scored and registered like one of ours.

    An autoencoder is written to --output; a CALM model to --output/calm, and its autoencoder to --output/autoencoder.

    Examples:

      calm import downloads/CALM-Autoencoder --tokenizer downloads/llama3_tokenizer --output out/autoencoder

      calm import downloads/CALM-M --autoencoder downloads/CALM-Autoencoder --tokenizer downloads/llama3_tokenizer
      --output out/calm-m
    """
    from calm_core.weights.huggingface import import_checkpoint

    started = time.monotonic()
    errors = Screen(stderr=True, soft_wrap=True)
    artifacts = import_checkpoint(
        folder,
        output,
        autoencoder_folder=autoencoder,
        tokenizer_folder=tokenizer,
        overwrite=overwrite,
        tell=lambda line: errors.print(line),
    )
    if json_:
        print_json([document(artifact) for artifact in artifacts.values()])
        return
    for kind, artifact in artifacts.items():
        uri = quote(artifact.uri)
        show_result(artifact, started, False, [f"calm generate PROMPT --model {uri}"] if kind == "calm" else [])


def export(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="URI of an autoencoder or a CALM model.")],
    output: Annotated[str, typer.Option(metavar="DIR", help="The folder that is made.")],
    autoencoder: AutoencoderOption = "",
    overwrite: OverwriteOption = False,
) -> None:
    """Write a model as a folder in Hugging Face's format: config.json, model.safetensors, the tokenizer's files.

    The folder of a CALM model holds that of its autoencoder.

    Example:

      calm export out/calm --output my-calm
    """
    require_model(model, autoencoder, CalmFacts, AutoencoderFacts)
    from calm_core.weights.huggingface import export_checkpoint

    errors = Screen(stderr=True, soft_wrap=True)
    export_checkpoint(
        model, output, autoencoder_uri=autoencoder, overwrite=overwrite, tell=lambda line: errors.print(line)
    )
    Screen(soft_wrap=True).print(f"written: {output}")
