from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def tokenize_partition(
    partition: dict[str, Any],
    data: dict[str, Any],
    code_version: str,
    tokenizer_model: dsl.Input[dsl.Model],
    duplicates: dsl.Input[dsl.Dataset],
    shards: dsl.Output[dsl.Dataset],
) -> None:
    """Tokenise a partition's documents and pack them into sequences.

    Args:
        partition: One item of `plan_partitions`.
        data: Settings of the sources and the shards (`DataConfig`).
        code_version: Version of the code, part of the cache key.
        tokenizer_model: The trained tokenizer.
        duplicates: For each partition, the documents to leave out.
        shards: The partition's sequences of tokens as Parquet.
    """
    from calm_core.config import DataConfig
    from calm_core.data.preparing import tokenize as step
    from calm_core.data.sources.partitions import Partition
    from components.body import describe, place_of, settings, stage

    with stage(code_version):
        artifact = step.tokenize_partition(
            Partition.parse(partition),
            settings(DataConfig, data),
            tokenizer_model.uri,
            duplicates.uri,
            place_of(shards),
        )
        describe(shards, artifact)
