"""What several commands share: the options that make a configuration."""

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from calm_core.config import Config, resolve_config
from pipelines import profiles

ProfileOption = Annotated[
    str, typer.Option("--profile", help="Settings to start from: a profile's name, or the path of a .yaml file.")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="SECTION.KEY=VALUE", help="Change one setting; repeatable. `calm config` lists them."
    ),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        help="Path, glob or fsspec URL of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, or a folder that "
        "datasets has saved; repeatable.",
    ),
]
TextFieldOption = Annotated[str | None, typer.Option("--text-field", help="Field or column that holds the text.")]

DEFAULT_PROFILE = "tiny"


def configuration(
    profile: str, overrides: Sequence[str] | None, sources: Sequence[str] | None = None, text_field: str | None = None
) -> Config:
    """Defaults < profile < --set < --source and --text-field.

    Raises:
        ConfigError: The profile, a key or a value is refused.
    """
    settings = list(overrides or [])
    if sources:
        settings.append(f"data.sources={json.dumps(list(sources))}")
    if text_field is not None:
        settings.append(f"data.text_field={json.dumps(text_field)}")
    return resolve_config(profiles.load(profile), settings)
