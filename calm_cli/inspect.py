"""What is in an artifact: `calm inspect`."""

from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from calm_cli.screen import Screen
from calm_core.errors import ConfigError
from calm_core.shown import lines_of, visible
from calm_core.store.artifact import Artifact
from calm_core.store.facts import SPLITS, DatasetFacts, MixtureFacts, ModelFacts, SplitCounts

if TYPE_CHECKING:
    from calm_core.data.reading.dataset import Dataset

UriArgument = Annotated[str, typer.Argument(metavar="URI", help="Folder of the artifact.", show_default=False)]

_BAR_WIDTH = 40
_SHOWN = 5


def inspect(
    uri: UriArgument,
    sequences: Annotated[int, typer.Option(min=0, help="Sequences of a dataset or mixture that are shown.")] = 3,
    split: Annotated[str, typer.Option(help="Their split: train or validation.")] = "train",
) -> None:
    """Show what is in a dataset, a mixture, a model, or any other artifact.

    Examples:

      calm inspect out/dataset --sequences 5

      calm inspect out/calm

      calm data inspect out/mixture --split validation
    """
    if split not in SPLITS:
        raise ConfigError(f"--split: there is no split {split!r}; there are {', '.join(SPLITS)}")
    artifact, console = Artifact.of_any_kind(uri), Screen(soft_wrap=True)
    if isinstance(artifact.facts, DatasetFacts):
        show_dataset(cast(Artifact[DatasetFacts], artifact), console)
    elif isinstance(artifact.facts, MixtureFacts):
        _show_mixture(artifact.facts, console)
    elif isinstance(artifact.facts, ModelFacts):
        _show_model(cast(Artifact[ModelFacts], artifact), console)
    else:
        console.print(f"{artifact.manifest.kind}: {uri}", f"digest: {artifact.digest}", sep="\n")
        console.print_json(data={**artifact.manifest.results, **artifact.manifest.timings})
    if sequences and isinstance(artifact.facts, DatasetFacts | MixtureFacts):
        from calm_core.data.reading.dataset import open_dataset

        _show_sequences(open_dataset(uri, split), split, sequences, console)


def show_dataset(artifact: Artifact[DatasetFacts], console: Console) -> None:
    """Print what a dataset holds, and where it came from, as tables."""
    facts = artifact.facts
    size = sum(entry.size for entry in artifact.manifest.files if entry.path.startswith(SPLITS))
    for table in (_counts(facts, size), _splits(facts), _lengths(list(facts.splits.values()))):
        console.print(table)
        console.print()
    more = f", the first {_SHOWN}:" if len(facts.sources) > _SHOWN else ""
    console.print(f"{len(facts.sources):,} source files{more}")
    for file in facts.sources[:_SHOWN]:
        console.print(f"  {visible(file.uri)}  {file.size:,} bytes  {file.digest[:16]}")
    for example in facts.reject_examples[:_SHOWN]:
        console.print(f"  rejected: {visible(example)}")


def _rows() -> Table:
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    return table


def _counts(facts: DatasetFacts, size: int) -> Table:
    table = _rows()
    table.add_row("documents in", f"{facts.documents_in:,}")
    table.add_row("documents out", f"{facts.documents_out:,}")
    table.add_row("exact duplicates", f"{facts.duplicates:,}")
    table.add_row("near-duplicates", f"{facts.near_duplicates:,}")
    table.add_row("documents changed by the tokenizer", f"{facts.changed_documents:,}")
    table.add_row("unknown tokens", f"{facts.unknown_tokens:,}")
    for reason, count in facts.rejected.items():
        table.add_row(f"rejected: {reason}", f"{count:,}")
    table.add_row("changed by normalisation", f"{facts.normalized:,}")
    table.add_row("vocabulary", f"{facts.vocab_size:,} tokens, encoded by {facts.engine}")
    start = "" if facts.bos_id is None else ", each begins with a token of its own"
    table.add_row("packing", facts.packing + start)
    table.add_row("bytes on disk", f"{size:,}, {size / max(facts.tokens, 1):.2f} a token")
    return table


def _splits(facts: DatasetFacts) -> Table:
    names = ("documents", "sequences", "tokens", "padding", "left_out", "text_bytes")
    table = Table("split", *(name.replace("_", " ") for name in names), "shards", box=None, pad_edge=False)
    for split, counts in facts.splits.items():
        table.add_row(split, *(f"{getattr(counts, name):,}" for name in names), f"{len(counts.shards):,}")
    return table


def _lengths(splits: list[SplitCounts]) -> Table:
    """A histogram with a bar for each power of two."""
    totals = [sum(column) for column in zip(*(split.document_lengths for split in splits), strict=True)]
    used = [i for i, count in enumerate(totals) if count]
    table = Table("tokens in a document", "documents", "", box=None, pad_edge=False)
    for i in range(used[0], used[-1] + 1) if used else ():
        bar = "█" * round(_BAR_WIDTH * totals[i] / max(totals)) or ("▏" if totals[i] else "")
        table.add_row(f"{2**i:,} to {2 ** (i + 1) - 1:,}", f"{totals[i]:,}", bar)
    return table


def _show_mixture(facts: MixtureFacts, console: Console) -> None:
    table = Table("share", "sequences for training", "tokens", "dataset", box=None, pad_edge=False)
    for weight, uri in zip(facts.weights, facts.datasets, strict=True):
        counts = Artifact(uri, DatasetFacts).facts.splits["train"]
        table.add_row(
            f"{weight:.1%}", f"{counts.sequences:,}", f"{counts.tokens:,}", Text(visible(uri), overflow="fold")
        )
    console.print(table)


def _show_model(artifact: Artifact[ModelFacts], console: Console) -> None:
    """Print numbers, lineage and settings of a model."""
    facts, table = artifact.facts, _rows()
    table.add_row("kind", artifact.manifest.kind)
    table.add_row("digest", artifact.digest)
    for name, value in facts.part("results").items():
        if name != "validation":
            table.add_row(name.replace("_", " "), f"{value:,}" if isinstance(value, int) else str(value))
    for name, number in facts.validation.items():
        table.add_row(f"validation {name.replace('_', ' ')}", f"{number:.4f}")
    if facts.tokens_per_second:
        table.add_row("training tokens per second", f"{facts.tokens_per_second:,.0f}")
    for name, digest in artifact.manifest.parents.items():
        table.add_row(f"made from {name}", digest)
    console.print(table)
    console.print("\nsettings")
    console.print_json(data=artifact.manifest.config)


def _show_sequences(dataset: "Dataset", split: str, number: int, console: Console) -> None:
    import numpy as np

    if not dataset.num_sequences:
        console.print(f"\nthe {split} split is empty")
    places = np.linspace(0, dataset.num_sequences - 1, min(number, dataset.num_sequences)).astype(np.int64)
    for place in places.tolist():  # one by one: somebody may ask for all there are
        [tokens] = dataset.rows(np.array([place])).tolist()
        console.print(f"\n{split} sequence {place:,}", style="bold")
        documents = [[]]  # type: list[list[int]]
        for token in tokens:
            if token == dataset.bos_id and dataset.packing == "contiguous":
                documents.append([])
            documents[-1].append(token)
            if token == dataset.eos_id:
                documents.append([])
        end = Text(" ⏎ end of document ⏎ ", "dim")
        console.print(end.join(Text(lines_of(dataset.tokenizer.decode(document))) for document in documents))
