"""A configuration as the arguments of `calm-train` and `calm-retrain`."""

import json
from typing import Any

from calm_core.config import Config, Section, resolve_config
from calm_core.errors import ConfigError
from calm_core.store.code_version import code_version
from components.quoting import is_safe, quoted
from pipelines import profiles

# All inputs of a task, those that are artifacts included, are one argument of 128 KiB.
_MAX_SECTION_BYTES = 48 << 10
MAX_PARTITIONS = 64  # whose scans and shards are such inputs of one task, some 100 KiB in all
MAX_DATA_BYTES = 12 << 10  # of the settings that the same task gets
_NOT_OF_STAGES = ("cluster", "retraining")


def arguments_of(config: Config, plan_root: str, checkpoint_root: str) -> dict[str, Any]:
    """The arguments of `calm-train`: one struct for each section. Kubeflow has no null: unset is absent.

    Args:
        config: Every setting of the run.
        plan_root, checkpoint_root: URLs of folders for plans and checkpoints.

    Raises:
        ConfigError: Something would not arrive as it was written.
    """
    if config.data.partitions > MAX_PARTITIONS:
        raise ConfigError(
            f"data.partitions: a pipeline has at most {MAX_PARTITIONS}, not {config.data.partitions}; lower it"
        )
    if config.calm.teacher:
        raise ConfigError(
            "calm.teacher: a pipeline has no teacher; leave it out, and train with `calm train calm --teacher`"
        )
    for root in (plan_root, checkpoint_root):
        if not is_safe(root):
            raise ConfigError(
                f"{root}: Kubeflow would replace a part of this path, as a placeholder; use another folder"
            )
    return {
        **{name: _argument(name, section) for name, section in _sections(config).items()},
        "train_baseline": config.train_baseline,
        "seed": config.seed,
        "code_version": code_version(),
        "plan_root": plan_root,
        "checkpoint_root": checkpoint_root,
    }


def retraining_of(config: Config) -> dict[str, Any]:
    """The argument `retraining` of `calm-retrain`, whose others are those of `calm-train`."""
    return _argument("retraining", config.retraining)


def retrained(config: Config, extends: str, initial_weights: str) -> Config:
    """The settings of a training that a look has found due.

    Args:
        config: Every setting.
        extends: URI of the dataset that new text is added to; empty: as the settings say.
        initial_weights: URI of the registered version that autoencoder and language model start from; likewise.
    """
    sections: dict[str, Section] = {}
    if extends:
        sections["data"] = config.data.model_copy(update={"extends": extends})
    if initial_weights:
        for name in ("autoencoder", "calm"):
            sections[name] = getattr(config, name).model_copy(update={"initial_weights": initial_weights})
    return config.model_copy(update=sections)


def pods_of(config: Config) -> dict[str, Any]:
    """The further arguments of `calm-train` in a cluster: what the pods of its tasks get.

    They would take part in the cache keys of one machine, which reads none of them.
    """
    pods = config.cluster
    values = pods.model_dump(mode="json", exclude={"node_resources", "queue"})
    values |= {"accelerators": str(pods.accelerators), "tolerations": pods.kubernetes_tolerations}
    trainjob = {"resources": pods.node_resources, "queue": pods.queue}
    return {name: value for name, value in values.items() if value != ""} | {
        "trainjob": {name: value for name, value in trainjob.items() if value}
    }


def defaults_of(profile: str) -> dict[str, Any]:
    """The arguments of `calm-train` that are compiled in: who runs it from Kubeflow's own page names `sources` alone.

    Args:
        profile: Whose settings they are. What it does not set is left to the stages.
    """
    settings = profiles.load(profile)
    config = resolve_config(settings)
    sections = {name: settings.get(name, {}) for name in _sections(config)}
    sections["data"] = {"sources": []} | sections["data"]
    return sections | pods_of(config) | {"train_baseline": config.train_baseline, "seed": config.seed}


def _sections(config: Config) -> dict[str, Section]:
    """The sections of the stages; each is an argument of its own."""
    return {name: section for name, section in config if isinstance(section, Section) and name not in _NOT_OF_STAGES}


def _argument(name: str, section: Section) -> dict[str, Any]:
    argument: dict[str, Any] = quoted(section.model_dump(mode="json", exclude_none=True))
    text = json.dumps(argument)
    most = MAX_DATA_BYTES if name == "data" else _MAX_SECTION_BYTES
    if len(text) > most:
        raise ConfigError(
            f"{name}: these settings are {len(text):,} bytes, and Kubeflow hands on {most:,} at most; "
            "shorten them, e.g. name many sources by one pattern"
        )
    return argument
