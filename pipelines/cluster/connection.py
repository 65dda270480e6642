"""Connections of generated API clients, with bounds; what goes wrong on them is one line."""

import contextlib
import json
import time
import urllib.parse
from collections.abc import Iterator
from typing import Any

import urllib3

from calm_core.errors import CalmError, ConfigError
from calm_core.shown import shortened

LARGEST_ANSWER = 64 << 20
"""Bytes; a page of runs with all their tasks has some hundred KiB."""
_CONNECT_SECONDS, _READ_SECONDS = 10.0, 60.0
_WAITS: tuple[float, ...] = (1.0, 2.0, 4.0, 8.0)
"""Seconds before a read is tried again."""
_BLOCK = 1 << 20
_ERROR_BYTES = 64 << 10
_PASSING = {429, 500, 502, 503, 504}


class Refused(CalmError):
    """A server has refused a request.

    Attributes:
        status: Of HTTP.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message, can_pass=status in _PASSING)
        self.status = status


class Pool:
    """A client's connections, with bounds: of time, of an answer's size, and of what counts as an answer.

    Reads are tried again where that can help; whatever makes or changes something is sent once.

    Args:
        pool: What urllib3 keeps them in.
        host: The address, for people.
        log_in: How to log in again.
    """

    def __init__(self, pool: Any, host: str, log_in: str) -> None:
        self._pool = pool
        self._host = shortened(host, 200)
        self._log_in = log_in
        self._has_answered = False
        self._waits = _WAITS

    @contextlib.contextmanager
    def impatient(self) -> Iterator[None]:
        """Try nothing again while the block lasts: there is another way."""
        self._waits = ()
        try:
            yield
        finally:
            self._waits = _WAITS

    def request(self, method: str, url: str, preload_content: bool = True, **options: Any) -> urllib3.BaseHTTPResponse:
        waits = iter(self._waits if method == "GET" else ())
        while True:
            try:
                with failures(self._host, method):
                    answer = self._once(method, url, preload_content, **options)
                self._has_answered = True
                return answer
            except CalmError as error:
                is_new = not self._has_answered and not isinstance(error, Refused)  # whoever mistypes it must not wait
                wait = next(waits, None) if error.can_pass and not is_new else None
                if wait is None:
                    raise
                time.sleep(wait)

    def _once(self, method: str, url: str, preload_content: bool, **options: Any) -> urllib3.BaseHTTPResponse:
        timeout = urllib3.Timeout(connect=_CONNECT_SECONDS, read=_READ_SECONDS)
        options |= {"timeout": options.get("timeout") or timeout, "retries": False, "redirect": False}
        try:
            response = self._pool.request(method, url, preload_content=False, **options)
        except (ValueError, UnicodeError) as error:  # http.client's own texts repeat a header
            if isinstance(error, urllib3.exceptions.HTTPError):
                raise
            raise ConfigError(f"{self._host}: HTTP takes no such address, token or cookie; check them") from None
        if 300 <= response.status < 400:
            raise self._redirected(response.headers.get("location", ""))
        if not 200 <= response.status < 300:
            raise self._refused(response.status, _start_of(response))
        if "html" in response.headers.get("content-type", ""):
            raise self._page_of_people()
        if not preload_content:
            return response  # type: ignore[no-any-return] # urllib3's, through the SDK's pool
        data = _all_of(response, self._host)
        if data.lstrip()[:1] == b"<":
            raise self._page_of_people()
        return urllib3.HTTPResponse(data, response.headers, response.status, reason=response.reason)

    def _refused(self, status: int, body: bytes) -> CalmError:
        said = _said(body)
        match status:
            case 401:
                line = f"the token or cookie is missing or has expired (401); {self._log_in}"
            case 403:
                line = f"no right to do this (403{said}); ask for it, or check --namespace"
            case 404:
                line = f"there is none (404{said})"
            case 409:
                line = f"exists already, or somebody changes it (409{said})"
            case _ if status >= 500:
                line = f"it has failed ({status}{said}); try again later"
            case _:
                line = f"it refuses this ({status}{said})"
        return Refused(f"{self._host}: {line}", status)

    def _redirected(self, location: str) -> CalmError:
        target = urllib.parse.urlsplit(location)
        ours = urllib.parse.urlsplit(self._host)
        if (ours.scheme, target.scheme) == ("http", "https") and target.hostname == ours.hostname:
            return ConfigError(f"{self._host}: is served by https; write https://...")
        return Refused(f"{self._host}: asks to log in; {self._log_in}", 401)

    def _page_of_people(self) -> CalmError:
        return Refused(
            f"{self._host}: answers with a page for people: it asks to log in, or is another service; check the "
            f"address, and {self._log_in}",
            401,
        )


@contextlib.contextmanager
def failures(host: str, method: str = "GET") -> Iterator[None]:
    """Turn what urllib3 raises into one line."""
    try:
        yield
    except urllib3.exceptions.SSLError as error:
        raise ConfigError(
            f"{host}: its certificate is not trusted ({_short(error)}); name the file with its authority: SSL_CERT_FILE"
        ) from None
    except urllib3.exceptions.NameResolutionError:
        raise CalmError(f"{host}: there is no host of this name; check the address and VPN", can_pass=True) from None
    except (urllib3.exceptions.NewConnectionError, urllib3.exceptions.ConnectTimeoutError):
        raise CalmError(f"{host}: nothing answers there; check address, port-forward and VPN", can_pass=True) from None
    except urllib3.exceptions.ProxyError:
        raise CalmError(f"{host}: the proxy does not reach it; check HTTPS_PROXY and NO_PROXY", can_pass=True) from None
    except urllib3.exceptions.LocationValueError:
        raise ConfigError(f"{host}: is no address; write https://name[:port][/path]") from None
    except (urllib3.exceptions.TimeoutError, urllib3.exceptions.ProtocolError, urllib3.exceptions.HTTPError):
        told = "" if method == "GET" else "; it may have been done all the same: look before you do it again"
        raise CalmError(f"{host}: the answer did not come, or broke off{told}", can_pass=True) from None


def _short(error: Exception) -> str:
    return shortened(str(error).rpartition("] ")[2].partition(" (_ssl")[0] or type(error).__name__)


def _all_of(response: Any, host: str) -> bytes:
    data = bytearray()
    for block in response.stream(_BLOCK):
        data += block
        if len(data) > LARGEST_ANSWER:
            response.close()
            raise CalmError(f"{host}: an answer is larger than {LARGEST_ANSWER >> 20} MiB; it is not read")
    return bytes(data)


def _start_of(response: Any) -> bytes:
    """The first part of an error's text."""
    with contextlib.suppress(urllib3.exceptions.HTTPError), contextlib.closing(response):
        return next(iter(response.stream(_ERROR_BYTES)), b"")
    return b""


def _said(body: bytes) -> str:
    """What an error's body says, from its sentence on; Kubeflow repeats its own functions before it."""
    try:
        told = json.loads(body)
    except ValueError:
        return ""
    text = told.get("message") or told.get("error_message") or told.get("error") if isinstance(told, dict) else None
    return f": {shortened(text, 300)}" if isinstance(text, str) and text else ""
