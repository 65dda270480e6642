from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def find_duplicates(
    scans: dsl.Input[list[dsl.Dataset]], code_version: str, duplicates: dsl.Output[dsl.Dataset]
) -> None:
    """Find exact duplicates among the documents of all partitions.

    Args:
        scans: The scans of all partitions.
        code_version: Version of the code, part of the cache key.
        duplicates: For each partition, the documents to leave out.
    """
    from calm_core.data import prepare
    from components.body import describe, stage

    with stage(code_version):
        describe(duplicates, prepare.find_duplicates([scan.uri for scan in scans], duplicates.uri))
