"""What every section of the settings is."""

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, TypeVar, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, ValidationInfo, field_validator
from pydantic_core import ErrorDetails

from calm_core.config import text
from calm_core.errors import ConfigError
from calm_core.shown import WHERE_SECRETS_GO, brief, holds_secret, redacted, shortened, visible

MOST_STEPS, MOST_LAYERS = 10**9, 1024
"""Bounds are far beyond every published model: they catch slips of the keyboard, and what no machine could hold."""
_MOST_MEANT = 4


def _one_visible_line(name: str) -> str:
    if visible(name) != name:
        raise ValueError(f"holds a control character ({brief(name)}); rename it")
    return name


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
        annotation = cls.model_fields[info.field_name].annotation if info.field_name is not None else None
        is_switch, is_text = annotation is bool, annotation is str  # which takes no switch, and says what it takes
        items = value if isinstance(value, list | tuple) else [value]
        for item in items:
            if isinstance(item, bool) and not (is_switch or is_text):
                raise ValueError(f"expected a value that is no switch (got {str(item).lower()})")
            if isinstance(item, str) and any("\ud800" <= char <= "\udfff" for char in item):
                raise ValueError(f"holds half a character, which is no text ({brief(item)})")
            if isinstance(item, str) and redacted(item) != item:
                raise ValueError(WHERE_SECRETS_GO)
        positive = [0.0 if isinstance(item, float) and item == 0 else item for item in items]
        return positive if isinstance(value, list | tuple) else positive[0]


SectionT = TypeVar("SectionT", bound=Section)


class SettingError(ConfigError):
    """A setting is refused.

    Attributes:
        key: Its dotted name; empty if several contradict each other.
    """

    def __init__(self, message: str, key: str) -> None:
        super().__init__(message)
        self.key = key


def parse_section(section_type: type[SectionT], values: Mapping[str, Any]) -> SectionT:
    """Validate plain values (from YAML, JSON or a pipeline parameter).

    Raises:
        SettingError: One line that names the first bad key.
    """
    try:
        return section_type.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        raise SettingError(_error_line(section_type, first, shortened(key)), key) from None


def _error_line(section_type: type[Section], error: ErrorDetails, key: str) -> str:
    given = error["input"]
    if error["type"] == "extra_forbidden":
        return _unknown(section_type, key, given)
    if error["type"] == "value_error":
        message = error["msg"].removeprefix("Value error, ")
        return f"{key}: {message}" if key else message
    if error["type"].startswith("model_"):
        within = next(name for name in setting_names(section_type) if name.startswith(f"{key}."))
        return f"{key}: is a section; set what is in it, e.g. {within} (got {as_written(given)})"
    if error["type"] == "missing" and isinstance(error["loc"][-1], int):
        return f"{key.rpartition('.')[0]}: has too few values (got {as_written(given)})"
    if isinstance(given, Mapping) and given:
        return f"{key}: is one setting, nothing lies within it (got {as_written(given)})"
    beyond = ", which is beyond every published model" if error.get("ctx", {}).get("le", 0) > 1000 else ""
    return f"{key}: {in_our_words(error)}{beyond} (got {as_written(given)})"


def as_written(value: Any) -> str:
    """A value as a profile or an option has it, shortened."""
    if value is None:
        return "nothing"
    try:
        return shortened(text.write(value))
    except (TypeError, ValueError):  # from Python, where it may be anything
        return brief(value)


def in_our_words(error: ErrorDetails) -> str:
    """What is expected in place of a value that pydantic refuses, without words of Python."""
    given, limits = error["input"], error.get("ctx", {})
    most, least = limits.get("max_length", 0), limits.get("min_length", 0)
    match error["type"]:
        case "int_type" | "int_parsing" | "int_from_float" | "int_parsing_size":
            return f"expected a whole number{', in digits alone, e.g. 1000' if _has_marks(given) else ''}"
        case "float_type" | "float_parsing":
            return f"expected a number{', with a point before decimals, e.g. 0.5' if _has_marks(given) else ''}"
        case "finite_number":
            return "expected a number, neither infinite nor NaN"
        case "bool_type" | "bool_parsing":
            return "expected true or false"
        case "string_type":
            return f"expected text{_in_quotes(given)}"
        case "string_too_short":
            return "must not be empty"
        case "string_too_long":
            return f"has {len(given):,} characters, at most {most:,} are taken"
        case "literal_error":
            return f"expected {limits['expected'].replace(chr(39), '')}"
        case "tuple_type":
            return f"expected a list in brackets, e.g. {_as_list(given)}"
        case "too_long":
            return f"has {limits['actual_length']:,} values, {'at most ' * (most > 10)}{most:,} are taken"
        case "too_short":
            return f"has {limits['actual_length']:,} values, at least {least:,} are needed"
        case "greater_than":
            return f"expected more than {_number(limits['gt'])}"
        case "less_than":
            return f"expected less than {_number(limits['lt'])}"
        case "greater_than_equal":
            return f"expected at least {_number(limits['ge'])}"
        case "less_than_equal":
            return f"expected at most {_number(limits['le'])}"
    return error["msg"][:1].lower() + error["msg"][1:]


def _in_quotes(given: Any) -> str:
    if isinstance(given, Mapping | list | tuple):
        return ""
    return f"; in quotes it is text: '{text.write('' if given is None else as_written(given))}'"


def _number(bound: float) -> str:
    return f"{bound:,.0f}" if bound == int(bound) else f"{bound:g}"


def _has_marks(given: Any) -> bool:
    """Whether something is a number but for the marks that people write between digits."""
    return isinstance(given, str) and re.fullmatch(r"[-+]?[\d.,'_ ]*\d", given.strip()) is not None


def _as_list(given: Any) -> str:
    if isinstance(given, str) and "," in given:
        return shortened(f"[{given}]")
    return f"[{as_written(given)}]" if isinstance(given, str | int | float) else "[first, second]"


def _unknown(section_type: type[Section], key: str, given: Any) -> str:
    """What is said of a setting that does not exist: the ones that may be meant."""
    names = list(setting_names(section_type))
    if key in names:
        return f"{key}: is a setting of another kind than the one that is chosen; leave it out"
    sections = {name[:end] for name in names for end, char in enumerate(name) if char == "."}
    section, inside = key, given
    while isinstance(inside, Mapping) and len(inside) == 1:  # an unknown section hides what it is asked for
        inner, inside = next(iter(inside.items()))
        key = shortened(f"{key}.{inner}")
    meant = _meant(key.lower().replace("-", "_").replace(" ", "."), [*names, *sorted(sections)])
    if not meant and isinstance(given, Mapping):
        meant = difflib.get_close_matches(section.lower(), sections, n=1, cutoff=0.6)
    hint = f"did you mean {' or '.join(meant)}?" if meant else "`calm config` lists all settings"
    return f"unknown setting {key}; {hint}"


def _meant(key: str, names: list[str]) -> list[str]:
    """Settings that somebody may mean who writes this name, at most some."""
    if key in names:
        return [key]
    section, _, leaf = key.rpartition(".")
    leaves = {name: name.rpartition(".")[2] for name in names}
    alike = [name for name in names if difflib.SequenceMatcher(None, leaf, leaves[name]).ratio() > 0.6]
    like = [
        name
        for name, its in leaves.items()
        if leaf == its
        or (len(leaf) > 1 and leaf == "".join(word[0] for word in its.split("_")))
        or (len(leaf) > 3 and leaf in its)
    ]
    if section and (below := [name for name in like if leaves[name] == leaf and name.startswith(f"{section}.")]):
        return below[:_MOST_MEANT]
    if beside := [name for name in like if name.rpartition(".")[0] == section]:
        return beside[:_MOST_MEANT]
    if section and (close := difflib.get_close_matches(key, alike, n=1, cutoff=0.8)):
        return close
    if moved := [name for name in like if leaves[name] == leaf]:
        return (difflib.get_close_matches(key, moved, n=1, cutoff=0.6) if section else []) or moved[:_MOST_MEANT]
    return (like or difflib.get_close_matches(leaf, alike, n=1, cutoff=0.75) or alike)[:_MOST_MEANT]


def setting_names(section_type: type[Section]) -> Iterator[str]:
    """Dotted names of all settings of a section, its sub-sections' and all their kinds' included."""
    for name, field in section_type.model_fields.items():
        # A section that may be unset is a union with None.
        types = (one for one in (field.annotation, *get_args(field.annotation)) if isinstance(one, type))
        if nested := next((one for one in types if issubclass(one, Section)), None):
            kinds = (nested, *nested.__subclasses__())
            yield from dict.fromkeys(f"{name}.{inner}" for kind in kinds for inner in setting_names(kind))
        else:
            yield name
