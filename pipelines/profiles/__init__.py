"""Profiles: named sets of settings, one YAML file each; `base` names the profile that one is laid over."""

import difflib
from pathlib import Path
from typing import Any

from calm_core.config import text
from calm_core.errors import ConfigError, first_line
from calm_core.shown import brief, shortened

_FOLDER = Path(__file__).parent
_MOST_BASES = 20


def names() -> list[str]:
    """Names of the profiles that come with the library."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(profile: str) -> dict[str, Any]:
    """The settings of a profile, laid over those of its base.

    Args:
        profile: Name of a profile of the library, or path of a .yaml file; so is `base`, relative to its file.

    Raises:
        ConfigError: There is no such profile or base, it is no YAML mapping, or bases go in a circle or have no end.
    """
    return _load(_path_of(profile, Path()), f"--profile {profile}", ())


def place_of(profile: str, key: str) -> str:
    """Where a profile that can be loaded sets something: "my.yaml, line 3: ", or nothing if it does not.

    Args:
        profile: As of `load`.
        key: A dotted name.
    """
    path = _path_of(profile, Path())
    settings = _text(path)
    if (line := text.line_of(settings, key.split("."))) is not None:
        return f"{path.name if path.parent in (_FOLDER, Path.cwd()) else path}, line {line}: "
    base = text.read(settings).get("base")
    return place_of(str(_path_of(base, path.parent)), key) if isinstance(base, str) else ""


def _path_of(profile: str, folder: Path) -> Path:
    if "://" in profile:
        raise ConfigError(f"profile {shortened(profile)}: is a URL; a profile is a file on this machine, download it")
    is_path = "/" in profile or "." in profile  # which no name of a profile holds
    file = folder / profile if is_path else _FOLDER / f"{profile}.yaml"
    try:
        return file.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
        reason = "it holds a NUL" if "\0" in profile else getattr(error, "strerror", None) or "its links go in a circle"
        raise ConfigError(f"profile {brief(profile)}: is no path ({reason})") from None


def _load(path: Path, asked: str, above: tuple[Path, ...]) -> dict[str, Any]:
    if path in above:
        raise ConfigError(f"{asked}: goes in a circle; a profile cannot be laid over itself")
    if len(above) > _MOST_BASES:
        raise ConfigError(f"{asked}: is the base of more than {_MOST_BASES} profiles laid over each other")
    settings = _read(path, asked)
    base = settings.pop("base", None)
    if base is None:
        return settings
    if not isinstance(base, str):
        raise ConfigError(
            f"{path}: base: expected the name of a profile, or the path of a .yaml file (got {brief(base)})"
        )
    return _overlaid(_load(_path_of(base, path.parent), f"{path}: base {base}", (*above, path)), settings)


def _read(path: Path, asked: str) -> dict[str, Any]:
    try:
        settings = text.read(_text(path))
    except FileNotFoundError:
        raise ConfigError(f"{asked}: {_missing(path)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{asked}: is a folder; give the path of a .yaml file in it") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{asked}: is not UTF-8 text (byte {error.start + 1}); save it as UTF-8") from None
    except OSError as error:
        raise ConfigError(f"{asked}: cannot be read ({error.strerror}); name a file that can") from None
    except ValueError as error:
        raise ConfigError(f"{asked}: unreadable YAML ({first_line(error)})") from None
    if settings is None:
        raise ConfigError(f"{asked}: is empty; `calm config > my.yaml` writes a profile to start from")
    if not isinstance(settings, dict):
        found = "a list" if isinstance(settings, list) else "a single value"
        raise ConfigError(f"{asked}: holds {found}; expected sections with settings, as `calm config` prints them")
    return settings


def _text(path: Path) -> str:
    if path.exists() and not (path.is_file() or path.is_dir()):
        raise OSError(0, "it is a pipe or a device")
    with path.open("rb") as file:
        return file.read(4 * text.LARGEST + 1).decode("utf-8-sig")  # a character has up to 4 bytes


def _missing(path: Path) -> str:
    """What is said of a profile that does not exist."""
    if path.parent != _FOLDER:
        near = difflib.get_close_matches(path.name, (file.name for file in path.parent.glob("*.y*ml")), n=1)
        if not path.parent.is_dir():
            return f"no such file: there is no folder {path.parent}"
        named = [path.stem] if path.stem in names() else []
        return f"no such file in {path.parent}" + (f"; did you mean {(near or named)[0]}?" if near or named else "")
    close = difflib.get_close_matches(path.stem.lower(), names(), n=1)
    known = f"there are {', '.join(names())}, or give the path of a .yaml file"
    return f"no such profile; {f'did you mean {close[0]}? ' if close else ''}{known}"


def _overlaid(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    both = {name for name in settings if isinstance(base.get(name), dict) and isinstance(settings[name], dict)}
    # Another kind starts from its own defaults: it does not know the settings of the one before.
    both = {name for name in both if settings[name].get("kind", base[name].get("kind")) == base[name].get("kind")}
    return base | settings | {name: _overlaid(base[name], settings[name]) for name in both}
