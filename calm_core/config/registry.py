"""Settings of the registry."""

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from calm_core.config.base import Name, Section


def _not_blank(name: str) -> str:
    if not name.strip():
        raise ValueError("is blank; give it a name")
    return name


def _of_mlflow(name: str) -> str:
    if found := re.search(r"[/:.\"%'?#@]", name):
        raise ValueError(f"holds {found[0]}; the name of a model may have no / : . \" % ' ? # @")
    return name


def _no_version(alias: str) -> str:
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]*", alias):
        raise ValueError("expected a letter, then letters, digits, _ or -, e.g. champion")
    if re.fullmatch(r"(?i)v[0-9]+|latest", alias):
        raise ValueError(f"to MLflow {alias} is a version; choose another alias")
    return alias


class RegistryConfig(Section):
    """Where the model is registered in MLflow."""

    model_name: Annotated[Name, AfterValidator(_not_blank), AfterValidator(_of_mlflow)] = "calm"
    alias: Annotated[Name, AfterValidator(_no_version)] = Field(
        "champion", description="name in MLflow for the version to be used: models:/calm@champion"
    )
    promote: Literal["better", "always", "never"] = Field(
        "better",
        description="when the alias moves to the new version: if no version has it or the score is better on the same "
        "protocol and text; always; never",
    )
