from typing import Any

from kfp import dsl

from components.image import IMAGE


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def train_tokenizer(
    plan: str,
    tokenizer: dict[str, Any],
    data: dict[str, Any],
    tokenizer_digest: str,
    code_version: str,
    tokenizer_model: dsl.Output[dsl.Model],
) -> None:
    """Train a byte-level BPE tokenizer on the training documents, or take the one that the settings name.

    Args:
        plan: File of all partitions, from `plan_partitions`; it names its content.
        tokenizer: Settings of the tokenizer (`TokenizerConfig`).
        data: Settings of the sources and the shards (`DataConfig`).
        tokenizer_digest: What `plan_partitions` says of the tokenizer that the settings name.
        code_version: Version of the code, part of the cache key.
        tokenizer_model: The trained tokenizer.
    """
    from calm_core.config import DataConfig, TokenizerConfig
    from calm_core.data.preparing import train_tokenizer as step
    from calm_core.data.sources.partitions import read_plan
    from components.body import describe, place_of, settings, stage

    with stage(code_version):
        artifact = step.train_tokenizer(
            read_plan(plan),
            settings(TokenizerConfig, tokenizer),
            settings(DataConfig, data),
            place_of(tokenizer_model),
            tokenizer_digest,
        )
        describe(tokenizer_model, artifact)
