"""A configuration as the arguments of `calm-train`."""

from typing import Any

from calm_core.config import Config, Section
from calm_core.store.code_version import code_version


def arguments_of(config: Config, plan_root: str, checkpoint_root: str) -> dict[str, Any]:
    """The arguments of `calm-train`: one struct for each section. Kubeflow has no null: unset is absent."""
    sections = {
        name: section.model_dump(mode="json", exclude_none=True)
        for name, section in config
        if isinstance(section, Section)
    }
    return {
        **sections,
        "train_baseline": config.train_baseline,
        "seed": config.seed,
        "code_version": code_version(),
        "plan_root": plan_root,
        "checkpoint_root": checkpoint_root,
    }
