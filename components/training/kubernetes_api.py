"""The Kubernetes API as a pod of a pipeline asks it: again where it does not answer, and with its newest token."""

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import urllib3

from calm_core.errors import CalmError, ConfigError, first_line
from calm_core.shown import shortened

POD_VARIABLE, CONTAINER = "KFP_POD_NAME", "main"
"""Kubeflow Pipelines tells a task its pod's name, and calls the container of its code so."""
_HOST_VARIABLE = "KUBERNETES_SERVICE_HOST"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_CONNECT_SECONDS, _ANSWER_SECONDS = 5.0, 30.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 30.0  # seconds between two tries
_REFUSED_SECONDS = 300.0
"""How long a refused token or right is asked with again, while something is waited for: a token is renewed, and rights
are applied anew."""
_PASSING = {408, 425, 429, 500, 502, 503, 504}
_PAGE = 200
_LONGEST_BODY = 64 << 20


class Refusal(Exception):
    """The API has answered, and said no.

    Attributes:
        status: Of HTTP.
        message: What it said, on one line.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{message} ({status})")
        self.status, self.message = status, message


class Unreachable(Exception):
    """The API has not answered, or with nothing of its own."""


@dataclass(frozen=True)
class Patience:
    """How long something is tried.

    Attributes:
        seconds: Where the API does not answer; None: for ever.
        refused_seconds: Where it refuses token or rights.
    """

    seconds: float | None = 120.0
    refused_seconds: float = 0.0


AT_THE_START = Patience()
WHILE_WAITING = Patience(None, _REFUSED_SECONDS)


class KubernetesApi:
    """One namespace of a cluster.

    In a pod it is that of the pod, with the pod's service account; elsewhere that of kubectl's configuration.

    Args:
        tell: Gets a line when the API stops to answer, and when it answers again.

    Attributes:
        namespace: Its name.

    Raises:
        ConfigError: There is no cluster.
    """

    def __init__(self, tell: Callable[[str], object]) -> None:
        self._tell = tell
        self._load()

    def _load(self) -> None:
        from kubernetes import client, config

        configuration = client.Configuration()
        configuration.retries = False
        try:
            if os.environ.get(_HOST_VARIABLE):
                config.load_incluster_config(configuration)
                self.namespace = _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
            else:
                config.load_kube_config(client_configuration=configuration)
                _, context = config.list_kube_config_contexts()
                self.namespace = context["context"].get("namespace", "default")
        except (config.ConfigException, OSError) as error:
            raise ConfigError(
                f"no Kubernetes cluster is known here ({first_line(error)}); nodes above 1 and launcher: trainjob are "
                "for a pipeline in a cluster"
            ) from None
        self._client = client.ApiClient(configuration)

    def get(self, path: str, patience: Patience, **query: Any) -> dict[str, Any] | None:
        """An object; None where there is none."""
        return self._asked("GET", path, patience, query=query)

    def create(self, path: str, body: Mapping[str, Any], patience: Patience) -> dict[str, Any] | None:
        """The object that has been created; None where there is one of its name."""
        return self._asked("POST", path, patience, body=body)

    def delete(self, path: str, body: Mapping[str, Any], patience: Patience) -> None:
        """Delete an object, if it is there, and still the one that is meant."""
        self._asked("DELETE", path, patience, body=body)

    def all(self, path: str, patience: Patience, **query: Any) -> list[dict[str, Any]]:
        """The items of a list, of all its pages."""
        items: list[dict[str, Any]] = []
        asked = {"limit": _PAGE, **query}
        while True:
            try:
                page = self.get(path, patience, **asked) or {}
            except Refusal as refusal:
                if refusal.status != 410 or "continue" not in asked:  # the pages have become too old: from the start
                    raise
                items, asked = [], {"limit": _PAGE, **query}
                continue
            items += page.get("items") or []
            token = (page.get("metadata") or {}).get("continue")
            if not token:
                return items
            asked = {**asked, "continue": token}

    def lines(self, path: str, quiet_seconds: float, **query: Any) -> Iterator[bytes]:
        """A text as it is written, line by line with its newline; the last one may have none.

        Raises:
            Refusal: There is none.
            Unreachable: The connection was lost, or nothing came for so long.
        """
        try:
            response = self._sent("GET", path, query, None, timeout=quiet_seconds)
            try:
                rest = b""
                for chunk in response.stream(1 << 16):
                    *whole, rest = (rest + chunk).split(b"\n")
                    yield from (line + b"\n" for line in whole)
                if rest:
                    yield rest
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(first_line(error)) from None

    @contextmanager
    def rights(self, what: str) -> Iterator[None]:
        """Say in one line what is refused.

        Raises:
            CalmError: It is.
        """
        try:
            yield
        except Refusal as refusal:
            where = self.namespace
            if refusal.status == 401:
                raise CalmError(
                    f"{where}: Kubernetes refuses this task's token ({refusal.message}); run it again", can_pass=True
                ) from None
            if refusal.status == 404:
                raise ConfigError(
                    f"{where}: the cluster knows no {what.split()[-1]}; install Kubeflow Trainer 2.2 or newer"
                ) from None
            advice = (
                f"the task's service account may not {what}; apply k8s/ and run the pipeline with calm-pipeline"
                if "cannot" in refusal.message
                else f"to {what} was refused"
            )
            raise ConfigError(f"{where}: {advice} ({refusal.message})") from None

    def _asked(
        self,
        method: str,
        path: str,
        patience: Patience,
        *,
        query: Mapping[str, Any] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> dict[str, Any] | None:
        """Ask until there is an answer. None: nothing is there, or, of what is created, something is.

        Raises:
            Refusal: It is refused.
            CalmError: There is no answer for so long.
        """
        began, pause, told = time.monotonic(), _FIRST_PAUSE, False
        while True:
            try:
                answer = self._answer(method, path, query, body)
            except Refusal as refusal:
                if refusal.status == 404 and method != "POST":
                    return None
                if refusal.status == 409 and method != "GET":
                    return None
                if refusal.status not in _PASSING | {401, 403}:
                    raise
                is_refused = refusal.status in (401, 403)
                if refusal.status == 401:
                    with suppress(ConfigError):  # the file of the token is about to be replaced
                        self._load()
                limit = patience.refused_seconds if is_refused else patience.seconds
                if refusal.status == 401:
                    limit = max(limit or 0.0, _FIRST_PAUSE * 4)  # once more with a token that has just been renewed
                if limit is not None and time.monotonic() - began >= limit:
                    raise
                why = str(refusal)
            except Unreachable as error:
                why = str(error)
                if patience.seconds is not None and time.monotonic() - began >= patience.seconds:
                    raise CalmError(
                        f"the Kubernetes API does not answer ({why}); run it again once it does", can_pass=True
                    ) from None
            else:
                if told:
                    self._tell("the Kubernetes API answers again")
                return answer
            if not told and pause > _FIRST_PAUSE:
                told = True
                self._tell(f"the Kubernetes API does not answer ({shortened(why, 300)}); it is asked again")
            time.sleep(pause)
            pause = min(2 * pause, _LONGEST_PAUSE)

    def _answer(
        self, method: str, path: str, query: Mapping[str, Any] | None, body: Mapping[str, Any] | None
    ) -> dict[str, Any]:
        try:
            response = self._sent(method, path, query, body, timeout=_ANSWER_SECONDS)
            try:
                data = response.read(_LONGEST_BODY)
            finally:
                response.close()
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise Unreachable(first_line(error)) from None
        try:
            answer = json.loads(data)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise Unreachable("what answers is no Kubernetes API")
        return answer

    def _sent(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any] | None,
        body: Mapping[str, Any] | None,
        *,
        timeout: float,
    ) -> urllib3.BaseHTTPResponse:
        """Raises a `Refusal` where the status is no good one; the body is not yet read."""
        client = self._client
        headers = {"Accept": "application/json, */*", "Content-Type": "application/json"}
        client.update_params_for_auth(headers, [], ["BearerToken"])
        url = f"{client.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        response: urllib3.BaseHTTPResponse = client.rest_client.pool_manager.request(
            method,
            url,
            headers=headers,
            body=json.dumps(body).encode() if body is not None else None,
            preload_content=False,
            redirect=False,
            retries=False,
            timeout=urllib3.Timeout(connect=_CONNECT_SECONDS, read=timeout),
        )
        if 200 <= response.status < 300:
            return response
        try:
            raise Refusal(response.status, _message(response.read(1 << 16)) or response.reason or "no reason")
        finally:
            response.close()


def _message(data: bytes) -> str:
    """What a Kubernetes Status says."""
    with suppress(ValueError, KeyError, TypeError):
        return shortened(str(json.loads(data)["message"]), 600)
    return ""
