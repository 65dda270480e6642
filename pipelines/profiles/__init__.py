"""Profiles: named sets of settings, one YAML file each; `base` names the profile that one is laid over."""

from pathlib import Path
from typing import Any

from calm_core.config import text
from calm_core.errors import ConfigError, first_line
from calm_core.shown import brief

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


def _path_of(profile: str, folder: Path) -> Path:
    file = folder / profile if profile.endswith((".yaml", ".yml")) else _FOLDER / f"{profile}.yaml"
    try:
        return file.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a circle of links, a NUL
        raise ConfigError(f"profile {brief(profile)}: is no path ({first_line(error)})") from None


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
        if not path.is_file():
            known = ", ".join(names())
            raise ConfigError(f"{asked}: no such profile; there are {known}, or give the path of a .yaml file")
        with path.open("rb") as file:
            settings = text.read(file.read(4 * text.LARGEST + 1).decode())  # a character has up to 4 bytes
    except (OSError, ValueError) as error:
        raise ConfigError(f"{asked}: unreadable YAML ({first_line(error)})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"{asked}: expected sections with settings, as `calm config` prints them")
    return settings


def _overlaid(base: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    both = {name for name in settings if isinstance(base.get(name), dict) and isinstance(settings[name], dict)}
    # Another kind starts from its own defaults: it does not know the settings of the one before.
    both = {name for name in both if settings[name].get("kind", base[name].get("kind")) == base[name].get("kind")}
    return base | settings | {name: _overlaid(base[name], settings[name]) for name in both}
