from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def merge_partitions(
    data: dict[str, Any],
    plan: str,
    code_version: str,
    scans: dsl.Input[list[dsl.Dataset]],
    shards: dsl.Input[list[dsl.Dataset]],
    duplicates: dsl.Input[dsl.Dataset],
    tokenizer_model: dsl.Input[dsl.Model],
    dataset: dsl.Output[dsl.Dataset],
    card: dsl.Output[dsl.Markdown],
) -> None:
    """Join all partitions into one dataset, and check that no document is lost.

    Args:
        data: Settings of the sources and the shards (`DataConfig`).
        plan: File of all partitions, from `plan_partitions`; it names its content.
        code_version: Version of the code, part of the cache key.
        scans: The scans of all partitions.
        shards: The sequences of all partitions.
        duplicates: For each partition, the documents to leave out.
        tokenizer_model: The trained tokenizer.
        dataset: Shards for training and validation, the tokenizer, and the counts of documents.
        card: What became of the documents, and what the dataset holds.
    """
    from calm_core.config import DataConfig
    from calm_core.data.preparing import merge as step
    from calm_core.data.sources.partitions import read_plan
    from calm_core.report.cards import data_card
    from components.body import describe, place_of, settings, show, stage

    with stage(code_version):
        prepared = step.Prepared(
            partitions=read_plan(plan),
            scan_uris=[scan.uri for scan in scans],
            shards_uris=[part.uri for part in shards],
            duplicates_uri=duplicates.uri,
            tokenizer_uri=tokenizer_model.uri,
        )
        artifact = step.merge_partitions(settings(DataConfig, data), prepared, place_of(dataset))
        describe(dataset, artifact)
        show(card, data_card(artifact.facts))
