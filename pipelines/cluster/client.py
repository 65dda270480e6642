"""Kubeflow Pipelines' API through its SDK: every failure is one line, and nothing is waited for without end."""

import contextlib
import io
import json
import os
import sys
import urllib.parse
import urllib.request
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

import kfp_server_api
from kfp.client import KF_PIPELINES_SA_TOKEN_ENV, KF_PIPELINES_SA_TOKEN_PATH, Client

from calm_core.errors import CalmError, ConfigError
from calm_core.shown import holds_secret, shortened
from pipelines.cluster.connection import Pool, Refused, failures

PAGE_SIZE = 50
_MOST_PAGES = 200
_BLOCK, _CONNECT_SECONDS = 1 << 20, 10.0

TOKEN_VARIABLE, COOKIES_VARIABLE = "KFP_EXISTING_TOKEN", "KFP_COOKIES"
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")
_HEALTH, _HOST = "/apis/v2beta1/healthz", "host"
_NAMESPACE_FILE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_KUBEFLOWS_OWN = "kubeflow"
"""The namespace in which Kubeflow is installed; without users of its own, all runs are there."""
_OLDEST = (2, 16)
_LOG_IN = f"log in again ({TOKEN_VARIABLE}, {KF_PIPELINES_SA_TOKEN_ENV} or {COOKIES_VARIABLE})"

AnswerT = TypeVar("AnswerT")


class Page(Protocol):
    """One answer of a listing."""

    next_page_token: str | None


class Cluster:
    """Kubeflow Pipelines, of which one namespace is looked at.

    Attributes:
        kfp: Its SDK's client.
        host: Its address, as people may read it.
        version: As it calls itself; empty if it does not.
        is_multi_user: Whether each namespace has pipelines and runs of its own.
        namespace: In which runs are.
    """

    def __init__(self, kfp: Client, host: str, namespace: str) -> None:
        self.kfp = kfp
        self.host = shortened(host, 200)
        health = self._health()
        self.version = str(health.get("tag_name") or health.get("apiServerTagName") or "")
        self.is_multi_user = bool(health.get("multi_user"))
        self.namespace = namespace or kfp.get_user_namespace() or _namespace_of_pod()
        if not self.namespace and self.is_multi_user:
            raise ConfigError(f"--namespace: each user of {self.host} has one; name yours")
        self.namespace = self.namespace or _KUBEFLOWS_OWN
        if (number := version_number(self.version)) and number < _OLDEST:
            raise CalmError(f"{self.host}: is Kubeflow Pipelines {self.version}; 2.16 or newer is needed")

    @property
    def asked_namespace(self) -> str:
        """The namespace as requests name it: without users of its own, Kubeflow takes none."""
        return self.namespace if self.is_multi_user else ""

    @property
    def options(self) -> str:
        """The options of the command line that name it."""
        return f"--host {self.host}" + (f" --namespace {self.namespace}" if self.is_multi_user else "")

    def _health(self) -> dict[str, Any]:
        try:
            health = self.get_json(_HEALTH)
        except Refused as error:
            if error.status == 404:
                raise _no_kubeflow(self.host) from None
            raise
        if not {"multi_user", "tag_name", "apiServerReady"} & set(health):
            raise _no_kubeflow(self.host)
        if health.get("apiServerReady") is False:
            raise CalmError(
                f"{self.host}: Kubeflow's page answers, its API server does not; try again later", can_pass=True
            )
        return health

    def get_json(self, path: str) -> dict[str, Any]:
        """An object that the API has, as JSON says it."""
        answer = self.call("reading", self._api_client.call_api, path, "GET", **self._plain(), response_type="object")
        if not isinstance(answer, dict):
            raise _not_understood(self, "no JSON object")
        return answer

    def stream(self, path: str, query: list[tuple[str, str]], quiet_seconds: float = 60) -> Iterator[bytes]:
        """The parts of a text that the API has, as they come.

        Args:
            path, query: Which.
            quiet_seconds: How long nothing may come.

        Raises:
            CalmError: There is none, or it breaks off.
        """
        pool = self._api_client.rest_client.pool_manager
        with pool.impatient():
            response = self.call(
                "reading",
                self._api_client.call_api,
                path,
                "GET",
                query_params=query,
                **self._plain(),
                _preload_content=False,
                _request_timeout=(_CONNECT_SECONDS, quiet_seconds),
            )
        with failures(self.host), contextlib.closing(response):
            yield from response.stream(_BLOCK)

    def _plain(self) -> dict[str, Any]:
        return {
            "header_params": {"Accept": "application/json, text/plain"},
            "auth_settings": ["Bearer"],
            "_return_http_data_only": True,
        }

    @property
    def _api_client(self) -> kfp_server_api.ApiClient:
        return self.kfp._existing_api_client

    def call(self, doing: str, function: Callable[..., AnswerT], *arguments: Any, **named: Any) -> AnswerT:
        """Ask the API.

        Args:
            doing: What the request does, for an error's line, e.g. "creating the run".
            function: Of the SDK's API.
            arguments, named: Its arguments.

        Raises:
            Refused: It may not be done, or what it needs is missing; `status` says which.
            CalmError: There is no answer, or none that this version of the SDK understands.
        """
        try:
            return function(*arguments, **named)
        except Refused as error:
            raise Refused(f"{error} ({doing})", error.status) from None
        except CalmError:
            raise
        except (kfp_server_api.ApiException, ValueError, TypeError, AttributeError, KeyError) as error:
            raise _not_understood(self, type(error).__name__) from None

    def pages(
        self, doing: str, function: Callable[..., Page], of_page: str, most: int = 1000, **named: Any
    ) -> Iterator[Any]:
        """All entries of a listing, at most so many.

        Raises:
            CalmError: As `call`; or the listing has no end.
        """
        token, tokens = "", set()
        for _ in range(_MOST_PAGES):
            page = self.call(doing, function, page_token=token, page_size=min(PAGE_SIZE, most), **named)
            for entry in getattr(page, of_page) or ():
                if entry is None:
                    raise _not_understood(self, "null in a list")
                yield entry
                most -= 1
                if not most:
                    return
            token = page.next_page_token or ""
            if not token:
                return
            if token in tokens:
                break
            tokens.add(token)
        raise CalmError(f"{self.host}: its list has no end ({doing}); ask whoever runs it")

    def link(self, path: str) -> str:
        """The address of a page of Kubeflow's user interface."""
        return shortened(f"{self.kfp._get_url_prefix()}/#/{path}", 500)


def connect(host: str = "", namespace: str = "") -> Cluster:
    """Reach Kubeflow Pipelines, in any of the SDK's ways.

    Args:
        host: Its address; empty: KF_PIPELINES_ENDPOINT, or from within the cluster, or through kubectl's settings.
        namespace: In which runs are; empty: the one of the SDK's settings, or of this pod.

    Raises:
        ConfigError: The address, a token or the namespace is missing, or is none.
        CalmError: Nothing answers there, or something else does.
    """
    host = host or os.environ.get("KF_PIPELINES_ENDPOINT", "")
    options: dict[str, Any] = {"host": _checked_host(host) if host else None}
    if token := _header(TOKEN_VARIABLE, os.environ.get(TOKEN_VARIABLE, "")):
        options["existing_token"] = token
    elif host and (os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or Path(KF_PIPELINES_SA_TOKEN_PATH).exists()):
        options["credentials"] = _TokenFile(os.environ.get(KF_PIPELINES_SA_TOKEN_ENV) or KF_PIPELINES_SA_TOKEN_PATH)
    if cookies := _header(COOKIES_VARIABLE, os.environ.get(COOKIES_VARIABLE, "")):
        options["cookies"] = cookies
    if bundle := next(filter(None, map(os.environ.get, _CA_VARIABLES)), None):
        options["ssl_ca_cert"] = bundle
    if host and (proxy := _proxy_for(str(options["host"]))):
        options["proxy"] = proxy
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(sys.stderr if host else io.StringIO()):
            warnings.simplefilter("ignore")
            kfp = _QuietClient(**options)
    except json.JSONDecodeError:
        raise ConfigError(f"{Client._LOCAL_KFP_CONTEXT}: is no JSON any more; mend or delete it") from None
    except CalmError:
        raise
    except Exception as error:  # Google's, and whatever a settings file makes of it; their texts may hold tokens
        raise CalmError(
            f"{shortened(host) or 'kubectl'}: the SDK could not log in ({type(error).__name__}); check the "
            "KF_PIPELINES_ variables and the SSL_CERT_FILE"
        ) from None
    address = str(kfp._existing_config.host)
    if "://" not in address:  # as the SDK names the service from within the cluster
        address = kfp._existing_config.host = f"http://{address}"
    _keep_address(kfp._existing_config)
    if not host and address == kfp_server_api.Configuration().host:
        raise ConfigError(
            "--host: is missing, and neither a cluster nor kubectl's settings are here; name Kubeflow's address: "
            "--host URL or KF_PIPELINES_ENDPOINT"
        )
    kfp._existing_api_client.rest_client.pool_manager = Pool(
        kfp._existing_api_client.rest_client.pool_manager, address, _LOG_IN
    )
    return Cluster(kfp, address, namespace)


def _keep_address(config: kfp_server_api.Configuration) -> None:
    """Undo what renewing a token of kubectl's settings does to the address: it sets that of Kubernetes itself."""
    renew, address = config.refresh_api_key_hook, config.host

    def renew_token(config: kfp_server_api.Configuration) -> None:
        renew(config)
        config.host = address

    if renew:
        config.refresh_api_key_hook = renew_token


def version_number(version: str) -> tuple[int, int] | None:
    """Major and minor of a version, if it is one."""
    try:
        major, minor = version.lstrip("v").split(".")[:2]
        return int(major), int(minor)
    except ValueError:
        return None


class _QuietClient(Client):  # type: ignore[misc] # the SDK has no types
    """The SDK's client, which asks nothing before its connection has bounds, and writes no settings file."""

    def get_kfp_healthz(self, sleep_duration: int = 0) -> kfp_server_api.V2beta1GetHealthzResponse:
        return kfp_server_api.V2beta1GetHealthzResponse(multi_user=False)

    def get_user_namespace(self) -> str:
        return str(self._context_setting.get("namespace") or "")

    @property
    def _existing_api_client(self) -> kfp_server_api.ApiClient:
        return self._run_api.api_client


class _TokenFile:
    """A token in a file, which somebody renews: it is read for each request."""

    def __init__(self, path: str) -> None:
        self._path = path

    def refresh_api_key_hook(self, config: kfp_server_api.Configuration) -> None:
        try:
            token = Path(self._path).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise ConfigError(f"{self._path}: the token cannot be read: {reason}") from None
        config.api_key["authorization"] = _header(self._path, token)


def _no_kubeflow(host: str) -> CalmError:
    return CalmError(
        f"{host}: is not Kubeflow Pipelines; name the address of its page or API, path included, e.g. "
        "--host https://kubeflow.example/pipeline"
    )


def _not_understood(cluster: Cluster, what: str) -> CalmError:
    ours, theirs = kfp_server_api.__version__, getattr(cluster, "version", "")
    return CalmError(
        f"{cluster.host}: an answer is damaged, or of a version that this SDK does not know ({what}): Kubeflow "
        f"{theirs or 'of unknown version'}, kfp {ours}"
    )


def _checked_host(host: str) -> str:
    """An address as the SDK takes it.

    Raises:
        ConfigError: It holds a secret, or is none.
    """
    if holds_secret(host):
        raise ConfigError(f"--host: an address holds no user or password; give a token by {TOKEN_VARIABLE}")
    url = host if "://" in host else f"https://{host}"
    parts = urllib.parse.urlsplit(url)
    try:
        is_address = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        is_address = False
    if not is_address or parts.query or any(not 32 < ord(sign) < 127 for sign in url):
        raise ConfigError(f"--host: {shortened(host)} is no address; write --host https://name[:port][/path]")
    return url.partition("#")[0].rstrip("/")


def _header(name: str, value: str) -> str:
    """A secret that goes into a header, which is never repeated.

    Raises:
        ConfigError: HTTP cannot carry it.
    """
    value = value.strip()
    if any(not 32 <= ord(sign) < 127 for sign in value):
        raise ConfigError(f"{name}: holds signs that no token or cookie has; write it anew, on one line")
    return value


def _proxy_for(url: str) -> str:
    """The proxy that the environment names for an address; urllib3 asks it for none."""
    parts = urllib.parse.urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc):
        return ""
    return urllib.request.getproxies().get(parts.scheme, "")


def _namespace_of_pod() -> str:
    try:
        return _NAMESPACE_FILE.read_text(encoding="utf-8").strip()
    except OSError:
        return ""
