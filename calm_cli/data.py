"""Datasets and their files: `calm data mix` and `calm verify`."""

import time
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from calm_cli.inspect import UriArgument
from calm_cli.options import OutputOption
from calm_cli.screen import Screen
from calm_core.errors import ArtifactError, ConfigError
from calm_core.shown import brief
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import MixtureFacts


def mix(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="URI=WEIGHT", help="Datasets and their shares of a batch.", show_default=False),
    ],
    output: OutputOption,
) -> None:
    """Name several datasets that are trained on as one, each with its share of every batch.

    The mixture is taken wherever a dataset is; nothing is copied. Shares need not add up to 1.

    Example:

      calm data mix out/web=0.8 out/books=0.2 --output out/mixture
    """
    from calm_core.data.mixture import mix_datasets

    weights: dict[str, float] = {}
    for item in datasets:
        uri, _, weight = item.rpartition("=")
        if uri in weights:
            raise ConfigError(f"{uri}: is named twice; give each dataset one weight")
        try:
            weights[uri] = float(weight)
        except ValueError:
            uri = ""
        if not uri:
            raise ConfigError(f"{item or brief(item)}: give each dataset its weight, e.g. out/web=0.8")
    mixture = mix_datasets(weights, output)
    console = Screen(soft_wrap=True)
    for uri, share in zip(weights, mixture.facts.weights, strict=True):
        console.print(f"{share:6.1%}  {uri}")
    console.print(f"mixture: {mixture.uri}")


def verify(uri: UriArgument) -> None:
    """Check every byte of an artifact against its manifest, many files at a time.

    Examples:

      calm verify out/dataset

      calm verify s3://bucket/calm/dataset
    """
    artifact = Artifact.of_any_kind(uri)
    manifest = artifact.manifest
    size = sum(entry.size for entry in manifest.files)
    started = time.monotonic()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    screen = Screen(stderr=True)
    with Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress:
        task = progress.add_task("", total=size)
        artifact.check_files(on_checked=lambda entry: progress.advance(task, entry.size))
    seconds = time.monotonic() - started
    Screen(soft_wrap=True).print(
        f"{uri}: whole, {len(manifest.files):,} files of the {manifest.kind} and {MANIFEST_NAME}, "
        f"{size:,} bytes in {seconds:.1f} s",
    )
    if isinstance(artifact.facts, MixtureFacts):
        for dataset, digest in zip(artifact.facts.datasets, artifact.facts.digests, strict=True):
            verify(dataset)
            if Artifact.of_any_kind(dataset).digest != digest:
                raise ArtifactError(f"{dataset}: is not the dataset that was mixed into {uri}; mix again")
