"""Settings of the registry."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

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


Share = Annotated[float, Field(ge=0, le=1)]


class MaxRegression(Section):
    """How far a version may fall behind the champion and become champion all the same; unset: any way."""

    brierlm: float | None = Field(None, ge=0, le=100, description="in points of BrierLM, of which there are 100")
    brier_1: Share | None = Field(None, description="Brier-1, as a share: 0.01 is one of the points that tables show")
    brier_2: Share | None = Field(None, description="Brier-2, likewise")
    brier_3: Share | None = Field(None, description="Brier-3, likewise")
    brier_4: Share | None = Field(None, description="Brier-4, likewise")
    autoencoder_accuracy: Share | None = Field(None, description="share of held-out tokens that come back")


class RegistryConfig(Section):
    """Where the model is registered in MLflow, and when it becomes champion."""

    model_name: Annotated[Name, AfterValidator(_not_blank), AfterValidator(_of_mlflow)] = "calm"
    alias: Annotated[Name, AfterValidator(_no_version)] = Field(
        "champion", description="name in MLflow for the version to be used: models:/calm@champion"
    )
    challenger_alias: Annotated[Name, AfterValidator(_no_version)] = Field(
        "challenger", description="name in MLflow for the newest version"
    )
    promote: Literal["better", "always", "never"] = Field(
        "better",
        description="when the new version becomes champion: if there is none or it is significantly better on the same "
        "documents, and keeps to what follows; always; never",
    )
    significance: float = Field(
        0.05,
        ge=0.001,
        le=0.5,
        description="largest p-value that counts as better, so the share of equally good versions that are taken for "
        "better",
    )
    min_autoencoder_accuracy: Share = Field(
        0.0, description="smallest share of held-out tokens that come back from the autoencoder, for any champion"
    )
    max_regression: MaxRegression = MaxRegression()

    @model_validator(mode="after")
    def _aliases_differ(self) -> Self:
        if self.alias == self.challenger_alias:
            raise ValueError(f"alias and challenger_alias are both {self.alias}; choose another one")
        return self
