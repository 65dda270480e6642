"""What a pod prints, as it prints it, over lost connections: each line once."""

import calendar
import re
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

from calm_core.errors import CalmError
from components.training.kubernetes_api import WHILE_WAITING, KubernetesApi, Refusal, Unreachable
from components.training.pods import NODE, is_terminated

_TIME = re.compile(rb"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?(?:Z|([+-])(\d\d):(\d\d)) ")
_QUIET_SECONDS = 120.0
"""A connection that has said nothing for so long may be dead: it is opened anew, which loses nothing."""
_PAUSE = 2.0


class PodLog:
    """Follows the log of a node's container in a thread, until that has ended and all of it has been told.

    Args:
        api: The cluster.
        path: Of the pod.
        tell: Gets each line, without its newline.
    """

    def __init__(self, api: KubernetesApi, path: str, tell: Callable[[str], object]) -> None:
        self._api, self._path, self._tell = api, path, tell
        self._last, self._told_at_last = 0, 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def end(self, seconds: float) -> None:
        """Wait for the rest of the log, so long at most."""
        if not self._is_over.is_set():
            self._thread.join(seconds)
            self._is_over.set()

    def _follow(self) -> None:
        while not self._is_over.is_set():
            try:
                pod = self._api.get(self._path, WHILE_WAITING)
                has_ended = pod is None or is_terminated(pod)
                for line in self._lines():
                    if self._is_over.is_set():
                        return
                    self._tell(line)
                if has_ended:
                    return
            except Refusal as refusal:  # 400: it is being started
                if refusal.status == 404:
                    return
            except (Unreachable, CalmError):
                pass
            self._is_over.wait(_PAUSE)

    def _lines(self) -> Iterator[str]:
        """What has not been told yet. The API goes back to whole seconds, so the first lines may have been told."""
        query: dict[str, Any] = {"container": NODE, "follow": "true", "timestamps": "true"}
        if self._last:
            query["sinceTime"] = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(self._last // 10**9))
        last, told = self._last, self._told_at_last  # of an earlier connection
        same, is_new = 0, True  # lines of the moment `last` that this connection has brought
        was_told = bool(last)
        for line in self._api.lines(f"{self._path}/log", _QUIET_SECONDS, **query):
            if not line.endswith(b"\n") and not self._ended_there():
                return  # it was cut off here, and comes again as a whole
            if found := _TIME.match(line):
                at = _nanoseconds(found)
                same += at == last
                was_told = was_told and (at < last or (at == last and same <= told))
                is_new = not was_told
                if is_new:
                    self._last, self._told_at_last = at, self._told_at_last + 1 if at == self._last else 1
            if is_new:
                yield line[found.end() if found else 0 :].rstrip(b"\r\n").decode(errors="replace")

    def _ended_there(self) -> bool:
        pod = self._api.get(self._path, WHILE_WAITING)
        return pod is None or is_terminated(pod)


def _nanoseconds(found: "re.Match[bytes]") -> int:
    date, fraction, sign, hours, minutes = found.groups()
    seconds = calendar.timegm(time.strptime(date.decode(), "%Y-%m-%dT%H:%M:%S"))
    if sign:
        offset = 3600 * int(hours) + 60 * int(minutes)
        seconds -= offset if sign == b"+" else -offset
    return seconds * 10**9 + int((fraction or b"0").ljust(9, b"0"))
