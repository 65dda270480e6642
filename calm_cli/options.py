"""What several commands share: options that make a configuration, and options that name what stages read and write."""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import typer

from calm_core.config import Config, SettingError, resolve_config
from calm_core.errors import ConfigError
from pipelines import profiles
from pipelines.local.home import Home

ProfileOption = Annotated[
    str,
    typer.Option(
        "--profile",
        metavar="PROFILE",
        help=f"Settings to start from: {', '.join(profiles.names())}, or the path of a .yaml file.",
    ),
]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.KEY=VALUE",
        help="Change one setting, e.g. calm.steps=1000; repeatable. `calm config` lists them.",
    ),
]
SourceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PATH",
        help="Path, pattern in quotes or fsspec URL of .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .txt files, or a "
        "folder that datasets has saved; repeatable. [default: The World Factbook, which comes with the installation]",
        show_default=False,
    ),
]
TextFieldOption = Annotated[
    str | None,
    typer.Option(
        "--text-field", metavar="NAME", help="Field or column that holds the text. [default: the profile's, text]"
    ),
]
DatasetOption = Annotated[
    str, typer.Option("--dataset", metavar="URI", help="The dataset of `calm prepare`, or a mixture.")
]
AutoencoderOption = Annotated[
    str,
    typer.Option(
        "--autoencoder",
        metavar="URI",
        help="The autoencoder of a CALM model. [default: where it was when the model was trained]",
        show_default=False,
    ),
]
OutputOption = Annotated[str, typer.Option("--output", metavar="URI", help="Folder of the artifact that is written.")]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite",
        help="Replace what an earlier command of this kind has written to --output. Files of others stay.",
    ),
]

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of a table.")]

DEFAULT_PROFILE = "tiny"
DEFAULT_MODEL = "models:/calm@champion"

_OPTION_OF = {
    "override": "--set",
    "data.sources": "--source",
    "data.text_field": "--text-field",
    "data.extends": "--extends",
    "workers": "--workers",
    "output_uri": "--output",
    "autoencoder_uri": "--autoencoder",
    "autoencoder_folder": "--autoencoder",
    "tokenizer_folder": "--tokenizer",
    "checkpoint_root": "--checkpoints",
    "overwrite=True": "--overwrite",
    "shard_rows": "--rows",
    "resume=True": "--resume",
}
"""The options of what the library's messages call by the names of settings and arguments."""


def with_options(message: str) -> str:
    """A message of the library with the command line's options: beside settings, and in place of arguments."""

    def option(match: re.Match[str]) -> str:
        name = match[0]
        return f"{name} ({_OPTION_OF[name]})" if "." in name else _OPTION_OF[name]

    names = "|".join(re.escape(name) for name in _OPTION_OF)
    return re.sub(rf"(?<![\w./-])(?:{names})(?![\w/])", option, message)


def configuration(profile: str, overrides: Sequence[str] | None, given: Mapping[str, Any] | None = None) -> Config:
    """Defaults < profile < --set < what other options give, by `section.key`; None where an option is not used.

    Raises:
        ConfigError: The profile, a key or a value is refused.
    """
    values = {key: value for key, value in (given or {}).items() if value is not None}
    try:
        return resolve_config(profiles.load(profile), overrides or (), values)
    except SettingError as error:
        changed = [*values, *(override.partition("=")[0].strip() for override in overrides or ())]
        if any(_overlap(error.key, key) for key in changed):
            raise
        raise ConfigError(f"{profiles.place_of(profile, error.key)}{error}") from None


def _overlap(one: str, other: str) -> bool:
    return f"{one}.".startswith(f"{other}.") or f"{other}.".startswith(f"{one}.")


def with_text(config: Config, home: Home) -> Config:
    """The same settings, with the text that comes with the installation where no source is named."""
    if config.data.sources:
        return config
    from calm_core.data.sources.factbook import write_factbook

    home.corpus.parent.mkdir(exist_ok=True)
    write_factbook(str(home.corpus))
    return config.model_copy(update={"data": config.data.model_copy(update={"sources": (str(home.corpus),)})})
