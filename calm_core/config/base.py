"""What every section of the settings is."""

import difflib
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from calm_core.errors import ConfigError
from calm_core.shown import WHERE_SECRETS_GO, brief, holds_secret, redacted, shortened, visible

MOST_STEPS, MOST_LAYERS = 10**9, 1024
"""Bounds are far beyond every published model: they catch slips of the keyboard, and what no machine could hold."""


def _one_visible_line(text: str) -> str:
    if visible(text) != text:
        raise ValueError(f"holds a control character ({brief(text)}); rename it")
    return text


def _without_secret(uri: str) -> str:
    if holds_secret(uri):
        raise ValueError(WHERE_SECRETS_GO)
    return uri


Fraction = Annotated[float, Field(ge=0, lt=1)]
Small = Annotated[float, Field(ge=1e-12, le=1)]
Layers = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
Width = Annotated[int, Field(ge=1, le=2**20)]
Steps = Annotated[int, Field(ge=1, le=MOST_STEPS)]
Name = Annotated[str, Field(max_length=250), AfterValidator(_one_visible_line)]
Uri = Annotated[str, Field(max_length=4096), AfterValidator(_without_secret), AfterValidator(_one_visible_line)]


class Section(BaseModel):
    """A group of settings: immutable, unknown keys refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _means_what_it_says(cls, value: Any, info: ValidationInfo) -> Any:
        """No switch is a number, no text is half a character, and none carries a secret; -0.0 is 0.0."""
        is_switch = info.field_name is not None and cls.model_fields[info.field_name].annotation is bool
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            if isinstance(item, bool) and not is_switch:
                raise ValueError(f"is no switch: expected another value than {str(item).lower()}")
            if isinstance(item, str) and any("\ud800" <= char <= "\udfff" for char in item):
                raise ValueError(f"holds half a character, which is no text ({brief(item)})")
            if isinstance(item, str) and redacted(item) != item:
                raise ValueError(WHERE_SECRETS_GO)
        positive = [0.0 if isinstance(item, float) and item == 0 else item for item in items]
        return positive if isinstance(value, list | tuple) else positive[0]


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
    key = shortened(".".join(str(part) for part in first["loc"]))
    if first["type"] == "extra_forbidden":
        names = list(setting_names(section_type))
        if key in names:
            return f"{key}: is a setting of another kind than the one that is chosen; leave it out"
        moved = [name for name in names if name.rpartition(".")[2] == key.rpartition(".")[2]]
        close = difflib.get_close_matches(key, moved or names, n=1, cutoff=0.6 if moved else 0.75)
        hint = f"did you mean {close[0]}?" if close else "`calm config` lists all settings"
        return f"unknown setting {key}; {hint}"
    if first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    return f"{key}: {_in_our_words(first)} (got {brief(first['input'])})"


def _in_our_words(error: ErrorDetails) -> str:
    """What pydantic finds, where it says so in terms of Python, or without a reason."""
    bound = error.get("ctx", {}).get("le", 0)
    match error["type"]:
        case "tuple_type":
            return "expected a list, e.g. [first, second]"
        case "model_type" | "model_attributes_type":
            return "expected a section with settings of its own"
        case "string_type":
            return """expected text; a number or a word like true is text in quotes, e.g. '"12"'"""
        case "less_than_equal" if bound > 1000:
            return f"expected at most {bound:,}, which is beyond every published model"
    return error["msg"][:1].lower() + error["msg"][1:]


def setting_names(section_type: type[Section]) -> Iterator[str]:
    """Dotted names of all settings of a section, its sub-sections' and all their kinds' included."""
    for name, field in section_type.model_fields.items():
        nested = field.annotation
        if isinstance(nested, type) and issubclass(nested, Section):
            kinds = (nested, *nested.__subclasses__())
            yield from dict.fromkeys(f"{name}.{inner}" for kind in kinds for inner in setting_names(kind))
        else:
            yield name
