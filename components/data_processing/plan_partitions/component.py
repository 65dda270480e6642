from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_partitions(data: dict[str, Any], plan_root: str, code_version: str) -> list[dict[str, Any]]:
    """Cut the sources of text into partitions that are prepared side by side.

    It looks at the sources, so a pipeline must not cache it. A partition names its files by content, so that
    everything behind it can be cached.

    Args:
        data: Settings of the sources and the shards (`DataConfig`).
        plan_root: URL of the folder in which the partitions' pieces are written, named by their content.
        code_version: Version of the code, part of the cache key.

    Returns:
        One description of a partition for each task of a loop.
    """
    from calm_core.config import DataConfig, parse_section
    from calm_core.data.preparing import plan as step
    from components.body import stage

    with stage(code_version):
        partitions = step.plan_partitions(parse_section(DataConfig, data), plan_root)
        return [partition.model_dump() for partition in partitions]
