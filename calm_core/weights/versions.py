"""Which version of a registered model a URI names; and where it names none, what there is instead."""

import difflib
import re
from collections.abc import Iterable, Sequence
from itertools import groupby
from typing import TYPE_CHECKING

from calm_core.errors import CalmError
from calm_core.telemetry.mlflow_store import mlflow_answers

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion, RegisteredModel

_ADDRESS = re.compile(r"models:/+(?P<name>[^/?#]+?(?<!@))(?:@(?P<alias>[^/?#@]+)|/(?P<version>[^/?#@]+))?")
_LOGGED_MODEL = re.compile(r"models:/m-[0-9a-f]{32}")
_FILES = re.compile(r"runs:/[^/?#]+/[^/?#]+[^?#]*|mlflow-artifacts:/[^?#]*[^/?#]")
_FORMS = "models:/NAME@ALIAS, models:/NAME/NUMBER or runs:/RUN/model"
_LATEST = "latest"
_MAX_SHOWN = 8  # of what there is instead
_MAX_FOUND = 1000  # of names, of which the nearest is among so many, and of versions at a time
_LONGEST_NUMBER = 9  # digits; MLflow's databases have 32 bits for it


def exact_uri(uri: str) -> str:
    """The URI of a model by the number of its version, of any URI that MLflow resolves.

    Args:
        uri: With an alias or a number; one without either (of a run, a logged model, or files) stays as it is.

    Raises:
        CalmError: It has another form, or there is no such model, alias or version that can be used, or MLflow fails.
    """
    if _LOGGED_MODEL.fullmatch(uri) or _FILES.fullmatch(uri):
        return uri
    address = _ADDRESS.fullmatch(uri)
    if address is None:
        before, *after = re.split("([?#])", uri)  # not what follows, which may be a secret
        shown = f"{before}{after[0]}…" if after else before
        raise CalmError(f"{shown}: is no address of a registered model; write {_FORMS}")
    from mlflow import MlflowClient  # import costs seconds: only where it is used

    with mlflow_answers():
        client = MlflowClient()
        model = registered_model(client, uri, address["name"])
        version = _version(client, uri, model, address["alias"], address["version"])
    if version.status != "READY":
        raise CalmError(
            f"{uri}: version {version.version} of {model.name} is not ready ({version.status}); "
            "register the model again, or choose another version"
        )
    return f"models:/{model.name}/{version.version}"


def versions_of(client: "MlflowClient", name: str) -> "dict[str, ModelVersion]":
    """All versions of a registered model by number, in their order."""
    found: list[ModelVersion] = []
    token = None
    while token != "":
        page = client.search_model_versions(
            f"name = {_quoted(name)}",
            max_results=_MAX_FOUND,
            order_by=["version_number ASC"],  # no page moves while others register, as by time
            page_token=token,
        )
        found, token = [*found, *page], page.token or ""
    return {str(each.version): each for each in found if each.name == name}  # some databases take a name in any case


def version_if_there(client: "MlflowClient", name: str, number: str) -> "ModelVersion | None":
    """A version of a registered model; None if it is not there, or no longer."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version(name, number)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    return None


def registered_model(client: "MlflowClient", uri: str, name: str) -> "RegisteredModel":
    """The registered model of a name.

    Args:
        client: Of MLflow.
        uri: How somebody has named it.
        name: The name in there.

    Raises:
        CalmError: There is none; the line says what there is.
    """
    from mlflow.exceptions import MlflowException

    try:
        return client.get_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
    names = [model.name for model in client.search_registered_models(max_results=_MAX_FOUND)]
    if not names:
        raise CalmError(f"{uri}: no model is registered yet; `calm run` trains and registers one")
    close = difflib.get_close_matches(name, names, n=1)
    meant = f"; did you mean {uri.replace(name, close[0], 1)}?" if close else ";"
    raise CalmError(f"{uri}: there is no registered model {name}{meant} registered: {_listed(sorted(names))}")


def _version(
    client: "MlflowClient", uri: str, model: "RegisteredModel", alias: str | None, version: str | None
) -> "ModelVersion":
    """The version that an address names by its alias or number."""
    aliases = {str(name): str(number) for name, number in model.aliases.items()}
    number = (aliases.get(alias) if alias else version) or ""
    is_number = number.isdecimal() and len(number) <= _LONGEST_NUMBER
    if is_number and (found := version_if_there(client, model.name, str(int(number)))):
        return found
    versions = versions_of(client, model.name)
    numbers = [int(each) for each in versions]
    if numbers and _LATEST in (alias, version):
        return versions[str(numbers[-1])]
    if not numbers:
        raise CalmError(f"{uri}: {model.name} has no version yet; `calm run` registers one")
    there = f"it has {_listed(_ranges(numbers))}"
    named = [f"{name} (version {number})" for name, number in sorted(aliases.items())]
    if alias:
        close = difflib.get_close_matches(alias, aliases, n=1)
        meant = f"; did you mean {close[0]}? It" if close else "; it"
        other = f" has {_listed(named)}" if named else f" has none; write models:/{model.name}/NUMBER: {there}"
        raise CalmError(f"{uri}: {model.name} has no alias {alias}{meant}{other}")
    if version in aliases:
        raise CalmError(f"{uri}: {version} is an alias; write models:/{model.name}@{version}")
    if version:
        raise CalmError(f"{uri}: {model.name} has no version {version}; {there}")
    forms = [*(f"models:/{model.name}@{name}" for name in sorted(aliases)), f"models:/{model.name}/NUMBER"]
    raise CalmError(f"{uri}: names no version of {model.name}; write {_listed(forms, 'or')}: {there}")


def _quoted(name: str) -> str:
    return f'"{name}"' if "'" in name else f"'{name}'"


def _ranges(numbers: Sequence[int]) -> list[str]:
    """Rising numbers, with "1 to 3" for those that follow each other."""
    runs = [[number for _, number in run] for _, run in groupby(enumerate(numbers), lambda pair: pair[1] - pair[0])]
    return [f"{run[0]} to {run[-1]}" if len(run) > 1 else str(run[0]) for run in runs]


def _listed(items: Iterable[str], word: str = "and") -> str:
    """Some items in words, the first few of many."""
    shown = list(items)
    if len(shown) > _MAX_SHOWN:
        shown[_MAX_SHOWN:] = [f"{len(shown) - _MAX_SHOWN} more"]
    return f" {word} ".join(filter(None, (", ".join(shown[:-1]), shown[-1])))
