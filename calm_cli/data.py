"""Datasets and their files: `calm data inspect`, `calm data mix` and `calm verify`."""

import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from rich.text import Text

from calm_core.errors import ArtifactError, ConfigError
from calm_core.store.artifact import MANIFEST_NAME, Artifact, Manifest

app = typer.Typer(no_args_is_help=True, help="Look at datasets, and mix them.", rich_markup_mode="markdown")
UriArgument = Annotated[str, typer.Argument(metavar="URI", help="Folder of the artifact.", show_default=False)]

_BAR_WIDTH = 40
_SHOWN = 5
_CHECKED_AT_A_TIME = 8


@app.command()
def inspect(
    uri: UriArgument,
    sequences: Annotated[int, typer.Option(min=0, help="Sequences that are decoded and shown.")] = 3,
    split: Annotated[str, typer.Option(help="Their split: train or validation.")] = "train",
) -> None:
    """Show what is in a dataset: counts, lengths of documents, and some of its text.

    Example:

      calm data inspect out/dataset --sequences 5
    """
    manifest = Artifact(uri, "dataset").manifest
    results = manifest.results
    if split not in results["splits"]:
        raise ConfigError(f"--split: there is no split {split!r}; there are {', '.join(results['splits'])}")
    console = Console(highlight=False, soft_wrap=True)
    show_counts(manifest, console)
    _show_sequences(console, uri, split, sequences)


def show_counts(manifest: Manifest, console: Console) -> None:
    """Print what a dataset holds, and where it came from, as tables."""
    results = manifest.results
    size = sum(entry.size for entry in manifest.files if entry.path.startswith(tuple(results["splits"])))
    for table in (_counts(results, size), _splits(results), _lengths(results)):
        console.print(table)
        console.print()
    sources, examples = manifest.origins["sources"], manifest.origins["reject_examples"]
    console.print(f"{len(sources):,} source files" + (f", the first {_SHOWN}:" if len(sources) > _SHOWN else ""))
    for file in sources[:_SHOWN]:
        console.print(f"  {file['uri']}  {file['size']:,} bytes  {file['digest'][:16]}", markup=False)
    for example in examples[:_SHOWN]:
        console.print(f"  rejected: {example}", markup=False)


def _counts(results: dict[str, Any], size: int) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_row("documents in", f"{results['documents_in']:,}")
    table.add_row("documents out", f"{results['documents_out']:,}")
    table.add_row("exact duplicates", f"{results['duplicates']:,}")
    table.add_row("near-duplicates", f"{results['near_duplicates']:,}")
    for reason, count in results["rejected"].items():
        table.add_row(f"rejected: {reason}", f"{count:,}")
    table.add_row("changed by normalisation", f"{results['normalized']:,}")
    table.add_row("vocabulary", f"{results['vocab_size']:,} tokens, encoded by {results['engine']}")
    tokens = sum(split["tokens"] for split in results["splits"].values())
    table.add_row("bytes on disk", f"{size:,}, {size / max(tokens, 1):.2f} a token")
    return table


def _splits(results: dict[str, Any]) -> Table:
    names = ("documents", "sequences", "tokens", "padding", "text_bytes")
    table = Table("split", *(name.replace("_", " ") for name in names), "shards", box=None, pad_edge=False)
    for split, counts in results["splits"].items():
        table.add_row(split, *(f"{counts[name]:,}" for name in names), f"{len(counts['shards']):,}")
    return table


def _lengths(results: dict[str, Any]) -> Table:
    """A histogram with a bar for each power of two."""
    totals = [sum(column) for column in zip(*(s["document_lengths"] for s in results["splits"].values()), strict=True)]
    used = [i for i, count in enumerate(totals) if count]
    table = Table("tokens in a document", "documents", "", box=None, pad_edge=False)
    for i in range(used[0], used[-1] + 1) if used else ():
        bar = "█" * round(_BAR_WIDTH * totals[i] / max(totals)) or ("▏" if totals[i] else "")
        table.add_row(f"{2**i:,} to {2 ** (i + 1) - 1:,}", f"{totals[i]:,}", bar)
    return table


def _show_sequences(console: Console, uri: str, split: str, number: int) -> None:
    import numpy as np

    from calm_core.data.reading.loader import TokenDataset

    dataset = TokenDataset(uri, split)
    places = np.linspace(0, dataset.num_sequences - 1, min(number, dataset.num_sequences)).astype(np.int64)
    for place, tokens in zip(places.tolist(), dataset.rows(places).tolist(), strict=True):
        console.print(f"\n[bold]{split} sequence {place:,}[/]")
        documents = [[]]  # type: list[list[int]]
        for token in tokens:
            documents[-1].append(token)
            if token == dataset.eos_id:
                documents.append([])
        end = Text(" ⏎ end of document ⏎ ", "dim")
        console.print(end.join(Text(dataset.tokenizer.decode(document)) for document in documents))


@app.command()
def mix(
    datasets: Annotated[
        list[str],
        typer.Argument(metavar="URI=WEIGHT...", help="Datasets and their shares of a batch.", show_default=False),
    ],
    output: Annotated[str, typer.Option("--output", metavar="URI", help="Folder of the mixture that is written.")],
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
            raise ConfigError(f"{item}: give each dataset its weight, e.g. out/web=0.8")
    mixture = mix_datasets(weights, output)
    console = Console(highlight=False, soft_wrap=True)
    for uri, share in zip(weights, mixture.manifest.results["weights"], strict=True):
        console.print(f"{share:6.1%}  {uri}", markup=False)
    console.print(f"mixture: {mixture.uri}", markup=False)


def verify(uri: UriArgument) -> None:
    """Check every byte of an artifact against its manifest, many files at a time.

    Examples:

      calm verify out/dataset

      calm verify s3://bucket/calm/dataset
    """
    manifest = Artifact.manifest_of(uri)
    artifact = Artifact(uri, manifest.kind)
    sizes = {entry.path: entry.size for entry in manifest.files}
    damage: list[str] = []
    started = time.monotonic()
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    screen = Console(stderr=True)
    bars = Progress(*columns, console=screen, transient=True, disable=not screen.is_terminal)
    with ThreadPoolExecutor(_CHECKED_AT_A_TIME) as pool, bars as progress:
        task = progress.add_task("", total=sum(sizes.values()))
        checks = {pool.submit(artifact.check, path): path for path in sizes}
        for check in as_completed(checks):
            if isinstance(error := check.exception(), ArtifactError):
                damage.append(str(error))
            elif error:
                pool.shutdown(wait=False, cancel_futures=True)
                raise error
            progress.advance(task, sizes[checks[check]])
    if damage:
        first, *others = sorted(damage)
        more = f" (and {len(others)} more files)" if others else ""
        raise ArtifactError(first + more)
    seconds = time.monotonic() - started
    Console(highlight=False, soft_wrap=True).print(
        f"{uri}: whole, {len(sizes):,} files of the {manifest.kind} and {MANIFEST_NAME}, "
        f"{sum(sizes.values()):,} bytes in {seconds:.1f} s",
        markup=False,
    )
    for dataset in manifest.origins.get("datasets", []):  # of a mixture
        verify(dataset)
