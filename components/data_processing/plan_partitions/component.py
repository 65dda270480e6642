from typing import Any, NamedTuple

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def plan_partitions(
    data: dict[str, Any],
    tokenizer: dict[str, Any],
    autoencoder: dict[str, Any],
    calm: dict[str, Any],
    transformer: dict[str, Any],
    plan_root: str,
    code_version: str,
    found: dsl.Output[dsl.Metrics],
) -> NamedTuple(  # type: ignore[valid-type] # Kubeflow's form
    "Plan",
    [
        ("Output", list[dict[str, Any]]),
        ("plan", str),
        ("tokenizer_digest", str),
        ("autoencoder_start", str),
        ("calm_start", str),
        ("transformer_start", str),
    ],
):
    """Cut the sources of text into partitions that are prepared side by side, and note what the settings name.

    It looks at all that the settings name by path, so a pipeline must not cache it. What it hands on names files by
    content, so that everything behind it can be cached.

    Args:
        data: Settings of the sources and the shards (`DataConfig`).
        tokenizer: Settings of the tokenizer (`TokenizerConfig`).
        autoencoder: Settings of the autoencoder and its training (`AutoencoderConfig`).
        calm: Settings of the language model and its training (`CalmConfig`).
        transformer: Settings of the baseline and its training (`TransformerConfig`).
        plan_root: URL of the folder in which the partitions' pieces are written, named by their content.
        code_version: Version of the code, part of the cache key.
        found: How much text there is.

    Returns:
        Output: One description of a partition for each task of a loop.
        plan: URI of a file with all of them.
        tokenizer_digest: Of the tokenizer that the settings name, empty where one is trained.
        autoencoder_start: Digest of the weights that the autoencoder starts from, empty for random ones.
        calm_start: Likewise, of the language model.
        transformer_start: Likewise, of the baseline.
    """
    from calm_core.config import AutoencoderConfig, CalmConfig, DataConfig, TokenizerConfig, TransformerConfig
    from calm_core.data.preparing import plan as step
    from calm_core.data.sources.partitions import write_plan
    from calm_core.data.tokenizers.content import digest_of_source
    from calm_core.weights.initial import initial_digest
    from components.body import log_metrics, root_of, settings, stage

    with stage(code_version):
        place = root_of(plan_root, found, "plan")
        partitions = step.plan_partitions(settings(DataConfig, data), place)
        log_metrics(found, {"partitions": len(partitions), "bytes": sum(each.num_bytes for each in partitions)})
        digest = digest_of_source(settings(TokenizerConfig, tokenizer).source)
        return (
            [partition.model_dump() for partition in partitions],
            write_plan(partitions, place),
            digest,
            initial_digest(settings(AutoencoderConfig, autoencoder)),
            initial_digest(settings(CalmConfig, calm)),
            initial_digest(settings(TransformerConfig, transformer)),
        )
