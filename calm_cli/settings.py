"""Settings as YAML with their descriptions, in the form of a profile."""

from collections.abc import Iterator

from calm_core.config import Section, text

_COMMENT_COLUMN = 44


def settings_lines(section: Section, indent: str = "") -> Iterator[str]:
    """One line of YAML for each setting, its description behind it as a comment."""
    for name, field in type(section).model_fields.items():
        value = getattr(section, name)
        if isinstance(value, Section):
            summary = (type(value).__doc__ or "").partition("\n")[0]  # there is none under python -OO
            yield f"{f'{indent}{name}:'.ljust(_COMMENT_COLUMN)}  # {summary}".rstrip(" #")
            yield from settings_lines(value, indent + "  ")
        else:
            line = f"{indent}{name}: {text.write(section.model_dump(mode='json')[name])}"
            yield f"{line.ljust(_COMMENT_COLUMN)}  # {field.description}" if field.description else line
