"""Profiles: named sets of settings, one YAML file each."""

from pathlib import Path
from typing import Any

import yaml

from calm_core.errors import ConfigError

_FOLDER = Path(__file__).parent


def names() -> list[str]:
    """Names of the profiles that come with the library."""
    return sorted(path.stem for path in _FOLDER.glob("*.yaml"))


def load(profile: str) -> dict[str, Any]:
    """The settings of a profile.

    Args:
        profile: Name of a profile of the library, or path of a .yaml file.

    Raises:
        ConfigError: There is no such profile, or it is no YAML mapping.
    """
    path = Path(profile) if profile.endswith((".yaml", ".yml")) else _FOLDER / f"{profile}.yaml"
    try:
        settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        known = ", ".join(names())
        raise ConfigError(
            f"--profile {profile}: no such profile; there are {known}, or give the path of a .yaml file"
        ) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--profile {profile}: unreadable YAML ({reason})") from None
    if not isinstance(settings, dict):
        raise ConfigError(f"--profile {profile}: expected sections with settings, as `calm config` prints them")
    return settings
