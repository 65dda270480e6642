from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_duplicates(
    data: dict[str, Any],
    code_version: str,
    scans: dsl.Input[list[dsl.Dataset]],
    duplicates: dsl.Output[dsl.Dataset],
) -> None:
    """Find documents that repeat an earlier one, among all partitions and the dataset that is extended.

    Args:
        data: Settings of the sources and the shards (`DataConfig`).
        code_version: Version of the code, part of the cache key.
        scans: The scans of all partitions.
        duplicates: For each partition, the documents to leave out.
    """
    from calm_core.config import DataConfig
    from calm_core.data.preparing import duplicates as step
    from components.body import describe, place_of, settings, stage

    with stage(code_version):
        uris = [scan.uri for scan in scans]
        describe(duplicates, step.find_duplicates(uris, settings(DataConfig, data), place_of(duplicates)))
