"""What is in an artifact: `calm inspect`."""

from collections.abc import Iterator, Mapping
from itertools import chain, islice
from typing import TYPE_CHECKING, Annotated, cast

import typer
from rich.console import Console
from rich.text import Text

from calm_cli.options import JsonOption
from calm_cli.result import artifact_lines, document, plain_lines, print_json
from calm_cli.screen import Screen
from calm_cli.tables import show_pairs, show_table
from calm_core.errors import ConfigError
from calm_core.shown import lines_of, visible
from calm_core.store.artifact import Artifact, Manifest
from calm_core.store.facts import SPLITS, DatasetFacts, MixtureFacts, ModelFacts, SplitCounts

if TYPE_CHECKING:
    from calm_core.data.reading.dataset import Dataset

UriArgument = Annotated[str, typer.Argument(metavar="URI", help="Folder of the artifact.", show_default=False)]

_BAR_WIDTH = 40
_SHOWN = 5


def inspect(
    uri: UriArgument,
    sequences: Annotated[
        int, typer.Option(min=0, max=1000, help="Sequences of a dataset or mixture that are shown.")
    ] = 3,
    split: Annotated[str, typer.Option(help="Their split: train or validation.")] = "train",
    rows: Annotated[
        list[str] | None,
        typer.Option(metavar="SHARD:ROWS", help="Show these rows of a dataset's shard alone; repeatable."),
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Show what is in a dataset, a mixture, a model, or any other artifact.

    Examples:

      calm inspect out/dataset --sequences 5

      calm inspect out/calm

      calm data inspect out/mixture --split validation

      calm inspect out/dataset --rows train/part-00000-00000.parquet:0,2-3
    """
    if split not in SPLITS:
        raise ConfigError(f"--split: there is no split {split!r}; there are {', '.join(SPLITS)}")
    if rows and json_:
        raise ConfigError("--rows shows text; leave out --json")
    console = Screen(soft_wrap=True)
    if rows:
        from calm_core.data.reading.sources import sequences_at

        for dataset, numbers in [sequences_at(uri, each) for each in rows]:
            headings = {number: f"{source.shard} row {source.row:,}" for source, number in numbers.items()}
            for text in _sequences(dataset, headings):
                console.print(text)
        return
    artifact = Artifact.of_any_kind(uri)
    if json_:
        manifest = artifact.manifest
        more = {"config": manifest.config, "parents": manifest.parents, "origins": manifest.origins}
        print_json(document(artifact) | more | {"code_version": manifest.code_version})
        return
    texts: Iterator[Text] = iter(())
    if sequences and isinstance(artifact.facts, DatasetFacts | MixtureFacts):
        from calm_core.data.reading.dataset import open_dataset

        texts = _some_sequences(open_dataset(uri, split), split, sequences)
    first = list(islice(texts, 1))  # read before anything is shown: what cannot be read costs one line
    if isinstance(artifact.facts, DatasetFacts):
        _show_dataset(cast(Artifact[DatasetFacts], artifact), console)
    elif isinstance(artifact.facts, MixtureFacts):
        _show_mixture(cast(Artifact[MixtureFacts], artifact), console)
    elif isinstance(artifact.facts, ModelFacts):
        _show_model(cast(Artifact[ModelFacts], artifact), console)
    else:
        show_pairs([*artifact_lines(artifact), *_origin(artifact.manifest)], console)
    for text in chain(first, texts):
        console.print(text)


def _origin(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """What an artifact was made from, and by which code."""
    for name, digest in manifest.parents.items():
        yield f"made from {name}", digest
    yield "code", manifest.code_version


def _show_dataset(artifact: Artifact[DatasetFacts], console: Console) -> None:
    """Print what a dataset holds, and where it came from, as tables."""
    facts = artifact.facts
    show_pairs(_counts(artifact), console)
    console.print()
    show_table(["", *facts.splits], _splits(facts), console, right=range(1, len(facts.splits) + 1))
    console.print()
    block = "#" if console.options.ascii_only else "█"
    lengths = _lengths(list(facts.splits.values()), block)
    show_table(["tokens in a document", "documents", ""], lengths, console, right={1})
    more = f", the first {_SHOWN}:" if len(facts.sources) > _SHOWN else ""
    console.print(f"\n{len(facts.sources):,} source file{'s' * (len(facts.sources) != 1)}{more}")
    for file in facts.sources[:_SHOWN]:
        console.print(f"  {visible(file.uri)}  {file.size:,} bytes  {file.digest[:16]}")
    for example in facts.reject_examples[:_SHOWN]:
        console.print(f"  rejected: {visible(example)}")


def _counts(artifact: Artifact[DatasetFacts]) -> Iterator[tuple[str, str]]:
    facts = artifact.facts
    size = sum(entry.size for entry in artifact.manifest.files if entry.path.startswith(SPLITS))
    yield "digest", artifact.digest
    yield from _origin(artifact.manifest)
    yield "documents in", f"{facts.documents_in:,}"
    yield "documents out", f"{facts.documents_out:,}"
    yield "exact duplicates", f"{facts.duplicates:,}"
    yield "near-duplicates", f"{facts.near_duplicates:,}"
    yield "documents changed by the tokenizer", f"{facts.changed_documents:,}"
    yield "unknown tokens", f"{facts.unknown_tokens:,}"
    for reason, count in facts.rejected.items():
        yield f"rejected: {reason}", f"{count:,}"
    yield "changed by normalisation", f"{facts.normalized:,}"
    yield "vocabulary", f"{facts.vocab_size:,} tokens, encoded by {facts.engine}"
    start = "" if facts.bos_id is None else ", each begins with a token of its own"
    yield "packing", facts.packing + start
    yield "bytes on disk", f"{size:,}, {size / max(facts.tokens, 1):.2f} a token"


def _splits(facts: DatasetFacts) -> Iterator[list[str]]:
    """A row for each number, a column for each split."""
    splits = facts.splits.values()
    for name in ("documents", "sequences", "tokens", "padding", "left_out", "text_bytes"):
        yield [name.replace("_", " "), *(f"{getattr(counts, name):,}" for counts in splits)]
    yield ["shards", *(f"{len(counts.shards):,}" for counts in splits)]


def _lengths(splits: list[SplitCounts], block: str) -> Iterator[list[str]]:
    """A histogram with a bar for each power of two."""
    totals = [sum(column) for column in zip(*(split.document_lengths for split in splits), strict=True)]
    used = [i for i, count in enumerate(totals) if count]
    for i in range(used[0], used[-1] + 1) if used else ():
        bar = block * max(round(_BAR_WIDTH * totals[i] / max(totals)), 1 if totals[i] else 0)
        yield [f"{2**i:,} to {2 ** (i + 1) - 1:,}", f"{totals[i]:,}", bar]


def _show_mixture(artifact: Artifact[MixtureFacts], console: Console) -> None:
    facts, rows = artifact.facts, []
    for weight, uri in zip(facts.weights, facts.datasets, strict=True):
        counts = Artifact(uri, DatasetFacts).facts.splits["train"]
        rows.append([f"{weight:.1%}", f"{counts.sequences:,}", f"{counts.tokens:,}", uri])
    show_pairs([("digest", artifact.digest), *_origin(artifact.manifest)], console)
    console.print()
    show_table(["share", "sequences for training", "tokens", "dataset"], rows, console, right={0, 1, 2})


def _show_model(artifact: Artifact[ModelFacts], console: Console) -> None:
    """Print numbers, lineage and settings of a model."""
    facts = artifact.facts
    told = {"validation", "parameters", "trained_tokens", "precision", *facts.went_wrong}
    others = {name: value for name, value in facts.part("results").items() if name not in told}
    show_pairs([*artifact_lines(artifact), *plain_lines(others), *_origin(artifact.manifest)], console)
    console.print("\nsettings")
    console.print_json(data=artifact.manifest.config)


def _some_sequences(dataset: "Dataset", split: str, number: int) -> Iterator[Text]:
    """A heading and a text for each of some sequences, from all over the split."""
    import numpy as np

    if not dataset.num_sequences:
        yield Text(f"\nthe {split} split is empty")
    places = np.linspace(0, dataset.num_sequences - 1, min(number, dataset.num_sequences)).astype(np.int64)
    yield from _sequences(dataset, {place: f"{split} sequence {place:,}" for place in places.tolist()})


def _sequences(dataset: "Dataset", headings: Mapping[int, str]) -> Iterator[Text]:
    """Its heading and its text for each sequence, by its number in the split."""
    import numpy as np

    for place, heading in headings.items():  # one by one: somebody may ask for all there are
        [tokens] = dataset.rows(np.array([place])).tolist()
        yield Text(f"\n{heading}", "bold")
        documents = [[]]  # type: list[list[int]]
        for token in tokens:
            if token == dataset.bos_id and dataset.packing == "contiguous":
                documents.append([])
            documents[-1].append(token)
            if token == dataset.eos_id:
                documents.append([])
        end = Text(" ⏎ end of document ⏎ ", "dim")
        yield end.join(Text(lines_of(dataset.tokenizer.decode(document))) for document in documents)
