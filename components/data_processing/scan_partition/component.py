from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def scan_partition(
    partition: dict[str, Any], data: dict[str, Any], code_version: str, scan: dsl.Output[dsl.Dataset]
) -> None:
    """Read a partition's documents, count what is unusable, and note each document's hash.

    Args:
        partition: One item of `plan_partitions`.
        data: Settings of the sources and the shards (`DataConfig`).
        code_version: Version of the code, part of the cache key.
        scan: Hashes of the usable documents, and the rejects by reason.
    """
    from calm_core.config import DataConfig
    from calm_core.data.preparing import scan as step
    from calm_core.data.sources.partitions import Partition
    from components.body import describe, place_of, settings, stage

    with stage(code_version):
        config = settings(DataConfig, data)
        describe(scan, step.scan_partition(Partition.parse(partition), config, place_of(scan)))
