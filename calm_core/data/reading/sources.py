"""Where sequences lie, as text: what a training names when it stops, and what `calm inspect --rows` takes."""

import re
from collections.abc import Iterable

from calm_core.data.reading.dataset import Source, TokenDataset
from calm_core.errors import ConfigError
from calm_core.store.artifact import Artifact
from calm_core.store.facts import SPLITS, DatasetFacts

_ROWS = re.compile(r"(?P<shard>.+):(?P<rows>\d{1,15}(-\d{1,15})?(,\d{1,15}(-\d{1,15})?)*)")


def shown_sources(sources: Iterable[Source]) -> list[tuple[str, str]]:
    """Each dataset and a shard of it with rows, like ("out/data", "train/part-00000-00000.parquet:3,7-9"), in order."""
    rows_of: dict[tuple[str, str], list[int]] = {}
    for dataset, shard, row in sorted(set(sources)):
        rows_of.setdefault((dataset, shard), []).append(row)
    return [(dataset, f"{shard}:{_ranges(rows)}") for (dataset, shard), rows in rows_of.items()]


def _ranges(rows: list[int]) -> str:
    """Sorted numbers as text, like 3,7-9."""
    found: list[list[int]] = []
    for row in rows:
        if found and found[-1][-1] == row - 1:
            found[-1][1:] = [row]
        else:
            found.append([row])
    return ",".join("-".join(map(str, ends)) for ends in found)


def sequences_at(uri: str, shard_rows: str) -> tuple[TokenDataset, dict[Source, int]]:
    """The split of a dataset that holds a shard, and the numbers of some rows' sequences in it.

    Args:
        uri: A `dataset` artifact.
        shard_rows: A shard with rows, as `shown_sources` writes it.

    Raises:
        ConfigError: That is no shard with rows, or the dataset does not have it.
        ArtifactError: The artifact is missing or damaged.
    """
    if not (match := _ROWS.fullmatch(shard_rows)):
        raise ConfigError(
            f"shard_rows: expected a shard and its rows, like train/part-00000-00000.parquet:3,7-9 (got {shard_rows})"
        )
    splits = Artifact(uri, DatasetFacts).facts.splits
    found = [name for name in SPLITS if match["shard"] in (shard.path for shard in splits[name].shards)]
    if not found:
        raise ConfigError(f"shard_rows: {uri} has no shard {match['shard']}; its folder holds those that there are")
    dataset = TokenDataset(uri, found[0])
    numbers = dataset.numbers_of(match["shard"])
    wanted: dict[Source, int] = {}
    for ends in (list(map(int, part.split("-"))) for part in match["rows"].split(",")):
        if ends[0] > ends[-1] or ends[-1] >= len(numbers):
            raise ConfigError(
                f"shard_rows: {match['shard']} has the rows 0 to {len(numbers) - 1} (got {match['rows']})"
            )
        wanted |= {Source(uri, match["shard"], row): numbers[row] for row in range(ends[0], ends[-1] + 1)}
    return dataset, wanted
