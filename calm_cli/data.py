"""Datasets and their files: `calm data mix` and `calm verify`."""

import time
from collections.abc import Iterator
from shlex import quote
from typing import Annotated, Any

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn

from calm_cli.inspect import UriArgument
from calm_cli.options import JsonOption, OutputOption, OverwriteOption
from calm_cli.result import print_json, show_result
from calm_cli.screen import Screen, told
from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import MixtureFacts


def mix(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="URI=WEIGHT", help="Datasets and their shares of a batch.", show_default=False),
    ],
    output: OutputOption,
    overwrite: OverwriteOption = False,
    json_: JsonOption = False,
) -> None:
    """Name several datasets that are trained on as one, each with its share of every batch.

    The mixture is taken wherever a dataset is; nothing is copied. Shares need not add up to 1.

    Example:

      calm data mix out/web=0.8 out/books=0.2 --output out/mixture
    """
    from calm_core.data.mixture import mix_datasets

    started = time.monotonic()
    weights: dict[str, float] = {}
    for item in datasets:
        uri, _, weight = item.rpartition("=")
        if uri in weights:
            raise ConfigError(f"{uri}: is named twice; give each dataset one weight")
        if not uri:
            raise ConfigError(f"{item}: give each dataset its weight, e.g. out/web=0.8")
        try:
            weights[uri] = float(weight)
        except ValueError:
            raise ConfigError(f"{item}: the weight of {uri} is no number; write e.g. {uri}=0.8") from None
    mixture = mix_datasets(weights, output, overwrite=overwrite)
    show_result(mixture, started, json_, [f"calm train autoencoder --dataset {quote(output)} --output AUTOENCODER"])


def verify(uri: UriArgument, json_: JsonOption = False) -> None:
    """Check every byte of an artifact against its manifest, many files at a time.

    Examples:

      calm verify out/dataset

      calm verify s3://bucket/calm/dataset
    """
    verified = list(_verify(uri))
    if json_:
        print_json(verified[0] | ({"datasets": verified[1:]} if verified[1:] else {}))
        return
    for found in verified:
        Screen(soft_wrap=True).print(
            f"{found['uri']}: whole, {found['files']:,} files of the {found['kind']} and {MANIFEST_NAME}, "
            f"{found['bytes']:,} bytes in {found['seconds']:.1f} s",
        )


def _verify(uri: str) -> Iterator[dict[str, Any]]:
    """What has been found whole: the artifact, and the datasets of a mixture.

    Raises:
        ArtifactError: Something is damaged.
    """
    artifact = Artifact.of_any_kind(uri)
    manifest = artifact.manifest
    size = sum(entry.size for entry in manifest.files)
    started = time.monotonic()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    screen = Screen(stderr=True)
    with (
        told(screen) as tell,
        Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal) as progress,
    ):
        if not screen.is_terminal:
            tell(f"reading {size:,} bytes of {uri}")
        task = progress.add_task("", total=size)
        artifact.check_files(on_checked=lambda entry: progress.advance(task, entry.size))
    found = {"kind": manifest.kind, "uri": uri, "digest": artifact.digest, "files": len(manifest.files), "bytes": size}
    yield found | {"seconds": time.monotonic() - started}
    if isinstance(artifact.facts, MixtureFacts):
        for dataset, digest in zip(artifact.facts.datasets, artifact.facts.digests, strict=True):
            yield from _verify(dataset)
            if Artifact.of_any_kind(dataset).digest != digest:
                raise ArtifactError(f"{dataset}: is not the dataset that was mixed into {uri}; mix again")
