"""What every section of the settings is."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from calm_core.errors import ConfigError

Fraction = Annotated[float, Field(ge=0, lt=1)]


class Section(BaseModel):
    """A group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


SectionT = TypeVar("SectionT", bound=Section)


def parse_section(section_type: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Validate plain values (from YAML, JSON or a pipeline parameter).

    Raises:
        ConfigError: One line that names the first bad key.
    """
    try:
        return section_type.model_validate(values)
    except ValidationError as error:
        raise ConfigError(_first_error_line(section_type, error)) from None


def _first_error_line(section_type: type[Section], error: ValidationError) -> str:
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        close = difflib.get_close_matches(key, list(setting_names(section_type)), n=1, cutoff=0.75)
        hint = f"did you mean {close[0]}?" if close else "`calm config` lists all settings"
        return f"unknown setting {key}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {first['input']!r})"


def setting_names(section_type: type[Section]) -> Iterator[str]:
    """Dotted names of all settings of a section, its sub-sections' included."""
    for name, field in section_type.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section) and not get_args(nested):
            yield from (f"{name}.{inner}" for inner in setting_names(nested))
        else:
            yield name
