"""What every section of the settings is."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

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
        names = list(setting_names(section_type))
        if key in names:
            return f"{key}: is a setting of another kind than the one that is chosen; leave it out"
        moved = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
        close = difflib.get_close_matches(key, moved or names, n=1, cutoff=0.6 if moved else 0.75)
        hint = f"did you mean {close[0]}?" if close else "`calm config` lists all settings"
        return f"unknown setting {key}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}: {message} (got {first['input']!r})"


def setting_names(section_type: type[Section]) -> Iterator[str]:
    """Dotted names of all settings of a section, its sub-sections' and all their kinds' included."""
    for name, field in section_type.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            kinds = (nested, *nested.__subclasses__())
            yield from dict.fromkeys(f"{name}.{inner}" for kind in kinds for inner in setting_names(kind))
        else:
            yield name
