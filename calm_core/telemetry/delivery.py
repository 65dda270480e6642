"""Sending what an outbox keeps to MLflow: a thread, which nobody waits for but for some seconds at the end."""

import json
import math
import re
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from calm_core.shown import brief
from calm_core.telemetry.mlflow_store import place_of, quiet_mlflow, reason_of
from calm_core.telemetry.outbox import (
    MOST_METRICS,
    End,
    Kept,
    Metrics,
    Outbox,
    Parameters,
    Record,
    Tags,
    Text,
    outbox_folder,
    outboxes,
)
from calm_core.telemetry.progress import report

_POLL_SECONDS = 1.0  # between two looks for new records, which other processes may add
_PAUSES = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)  # seconds between tries while MLflow is away; the last one repeats
_LONGEST_PAUSE_AT_THE_END = 1.0
_FIRST_TRY, _LONGEST_TRY = 10.0, 120.0  # seconds that MLflow has to answer; doubled with each failure
_TEXT_TRIES = 4
_NOT_NOW = {401, 403, 408, 429}  # a token that has expired may be renewed; and all from 500 on
_REFUSALS = {"BAD_REQUEST", "INVALID_PARAMETER_VALUE", "MALFORMED_REQUEST", "RESOURCE_DOES_NOT_EXIST"}
"""MLflow's codes for what no other try helps."""
_OVERLOADED = re.compile(r"QueuePool limit|sqlalche\.me/e/\w+/rvf5")
"""In a BAD_REQUEST all the same: no connection to the database is free, or the one that was is gone."""


class _Entry(NamedTuple):
    """What MLflow is told at once, or not at all; time (milliseconds) and step are of metrics."""

    key: str
    value: Any
    time: int = 0
    step: int = 0


class _NotNow(Exception):
    """The server, or what stands before it, does not take it now."""


class _RunIsGone(Exception):
    """The run has been deleted."""


class _Mlflow(Protocol):
    """The calls of MLflow that deliver.

    Attributes:
        seconds: What one may take, where that can be set.
    """

    seconds: float

    def log(self, run_id: str, field: str, entries: Sequence[_Entry]) -> None:
        """Log "metrics", "params" or "tags"."""

    def end(self, run_id: str, end: End) -> None: ...

    def lifecycle_stage(self, run_id: str) -> str: ...


class _Server:
    """MLflow's REST API, each call one try: its own client would try for minutes.

    Args:
        uri: Of the server.
    """

    def __init__(self, uri: str) -> None:
        self._uri = uri
        self.seconds = _FIRST_TRY

    def log(self, run_id: str, field: str, entries: Sequence[_Entry]) -> None:
        timed = field == "metrics"
        values = [
            {"key": one.key, "value": _number(one.value), "timestamp": one.time, "step": one.step}
            if timed
            else {"key": one.key, "value": one.value}
            for one in entries
        ]
        self._call("POST", "runs/log-batch", json={"run_id": run_id, field: values})

    def end(self, run_id: str, end: End) -> None:
        self._call("POST", "runs/update", json={"run_id": run_id, "status": end.status, "end_time": end.time})

    def lifecycle_stage(self, run_id: str) -> str:
        return str(self._call("GET", "runs/get", params={"run_id": run_id})["run"]["info"]["lifecycle_stage"])

    def _call(self, method: str, name: str, **content: Any) -> Any:
        from mlflow.utils.credentials import get_default_host_creds
        from mlflow.utils.rest_utils import http_request, verify_rest_response

        endpoint = f"/api/2.0/mlflow/{name}"
        response = http_request(
            get_default_host_creds(self._uri),
            endpoint,
            method,
            max_retries=0,
            timeout=self.seconds,
            raise_on_status=False,
            **content,
        )
        if response.status_code in _NOT_NOW or response.status_code >= 500:
            raise _NotNow(f"HTTP {response.status_code}")
        return verify_rest_response(response, endpoint).json()


class _Store:
    """A database, or whatever else MLflow's client knows.

    Args:
        uri: As MLflow is told it.
    """

    def __init__(self, uri: str) -> None:
        from mlflow import MlflowClient

        self._client = MlflowClient(uri)
        self.seconds = 0.0

    def log(self, run_id: str, field: str, entries: Sequence[_Entry]) -> None:
        from mlflow.entities import Metric, Param, RunTag

        if field == "metrics":
            self._client.log_batch(run_id, metrics=[Metric(*one) for one in entries])
        elif field == "params":
            self._client.log_batch(run_id, params=[Param(one.key, one.value) for one in entries])
        else:
            self._client.log_batch(run_id, tags=[RunTag(one.key, one.value) for one in entries])

    def end(self, run_id: str, end: End) -> None:
        self._client.set_terminated(run_id, end.status, end.time)

    def lifecycle_stage(self, run_id: str) -> str:
        return str(self._client.get_run(run_id).info.lifecycle_stage)


class Delivery:
    """Sends outboxes to MLflow, in the order in which they were filled, until it is told to end.

    MLflow that is away is tried again and again; what it refuses is told and left out. What was sent just before a
    process was killed is sent again: to MLflow the same name, value, time and step are one point.

    Args:
        uri: Where MLflow is.
        stage: Who tells of it.
        own: The outbox of this process's run, which it sends alone; None to send only what others have left.
    """

    def __init__(self, uri: str, stage: str, own: Outbox | None = None) -> None:
        self._uri, self._stage, self._own = uri, stage, own
        self._place = place_of(uri)
        self._mlflow: _Mlflow | None = None
        self._ending = threading.Event()
        self._failures = self._text_failures = 0
        self._reason = self._others_reason = ""
        self._told: set[str] = set()
        self._gone: set[str] = set()
        quiet_mlflow()
        self._thread = threading.Thread(target=self._work, name="mlflow-outbox", daemon=True)
        self._thread.start()

    def end(self, seconds: float) -> bool:
        """Wait until all is sent, for so many seconds at most; if something is left, say so in one line.

        Returns:
            Whether all of its own is sent. Else, as long as this process lives, it is tried on.
        """
        self._ending.set()
        self._thread.join(seconds)
        all_sent = not self._thread.is_alive()
        if not all_sent or self._others_reason:
            records = sum(outbox.count() for outbox in outboxes(self._place))
            reason = self._reason or self._others_reason
            why = f"MLflow does not answer ({reason})" if reason else f"MLflow is slow ({seconds:.0f} s)"
            self._tell(
                f"{self._place}: {why}; what it is to be told ({records:,} records) waits in {outbox_folder()}, and "
                "the next command that reaches it sends it"
            )
        return all_sent

    def _work(self) -> None:
        looked = False
        while True:
            ending = self._ending.is_set()  # before the look, so that nothing that was added until then is missed
            try:
                if self._own:
                    self._send_all(self._own)
            except Exception as error:  # MLflow's clients and databases have no common base
                self._wait_after(error)
                continue
            if ending or not looked:
                self._send_what_others_left()
                looked = True
            if ending:
                break
            self._ending.wait(_POLL_SECONDS)
        if self._own:
            self._own.remove()

    def _send_what_others_left(self) -> None:
        """Try to, once: what is the matter with another run holds up nothing of this one."""
        self._others_reason = ""
        for outbox in outboxes(self._place):
            if (self._own is None or outbox.path != self._own.path) and outbox.take():
                try:
                    self._send_all(outbox)
                    outbox.remove()
                except Exception as error:  # as above
                    self._others_reason = reason_of(error)
                finally:
                    outbox.give_back()

    def _send_all(self, outbox: Outbox) -> None:
        while batch := self._next_batch(outbox):
            records = [one.record for one in batch if one.record]
            if not records:
                self._tell_once(f"{outbox.path}: a damaged record is left out")
            elif outbox.run_id not in self._gone:
                try:
                    self._deliver(outbox.run_id, records)
                except _RunIsGone:
                    self._gone.add(outbox.run_id)
                    self._tell(f"{self._place}: the run {outbox.run_id} has been deleted; what it was told is left out")
                self._answered()
            outbox.sent(batch)

    @staticmethod
    def _next_batch(outbox: Outbox) -> list[Kept]:
        """The first records that go into one call: points of curves, as many as MLflow takes, or one other record."""
        batch: list[Kept] = []
        size = 0
        for kept in outbox.unsent():
            size += len(kept.record.values) if isinstance(kept.record, Metrics) else MOST_METRICS
            if batch and size > MOST_METRICS:
                break
            batch.append(kept)
        return batch

    def _deliver(self, run_id: str, records: Sequence[Record]) -> None:
        """Send what fits together, see `_next_batch`."""
        match records[0]:
            case Parameters(values=values):
                self._log(run_id, "params", _entries(values))
            case Tags(values=values):
                self._log(run_id, "tags", _entries(values))
            case Text() as text:
                self._log_text(run_id, text)
            case End() as end:
                self._connected.end(run_id, end)
            case _:
                points = [record for record in records if isinstance(record, Metrics)]
                entries = [_Entry(*pair, point.time, point.step) for point in points for pair in point.values.items()]
                self._log(run_id, "metrics", entries)

    def _log(self, run_id: str, field: str, entries: Sequence[_Entry]) -> None:
        """Log all that MLflow takes; what it refuses is searched by halves."""
        try:
            self._connected.log(run_id, field, entries)
        except Exception as error:
            if not _is_refusal(error):
                raise
            self._require_run(run_id)
            if len(entries) > 1:
                half = len(entries) // 2
                self._log(run_id, field, entries[:half])
                self._log(run_id, field, entries[half:])
            else:
                self._tell_refusal(f"{field} {brief(entries[0].key)}", error)

    def _log_text(self, run_id: str, text: Text) -> None:
        """Log a text; where MLflow answers, but its store of files does not take it, it is left out in the end."""
        from mlflow import MlflowClient

        try:
            MlflowClient(self._uri).log_text(run_id, text.text, text.name)
        except Exception as error:
            self._require_run(run_id)
            self._text_failures += 1
            if self._text_failures < _TEXT_TRIES and not _is_refusal(error):
                raise
            self._tell_refusal(text.name, error)
        self._text_failures = 0

    def _require_run(self, run_id: str) -> None:
        """Make sure that MLflow answers, and has the run.

        Raises:
            _RunIsGone: It has not.
        """
        try:
            active = self._connected.lifecycle_stage(run_id) == "active"
        except Exception as error:
            if not _is_refusal(error):
                raise
            active = False
        if not active:
            raise _RunIsGone

    @property
    def _connected(self) -> _Mlflow:
        if self._mlflow is None:
            http = self._uri.startswith(("http://", "https://"))
            self._mlflow = _Server(self._uri) if http else _Store(self._uri)
        return self._mlflow

    def _answered(self) -> None:
        if self._failures:
            self._tell(f"{self._place}: MLflow answers again")
        self._failures, self._reason = 0, ""
        self._connected.seconds = _FIRST_TRY

    def _wait_after(self, error: Exception) -> None:
        self._reason = reason_of(error)
        if not self._failures:
            self._tell(f"{self._place}: MLflow does not answer ({self._reason}); what it is to be told waits for it")
        pause = _PAUSES[min(self._failures, len(_PAUSES) - 1)]
        self._failures += 1
        if self._mlflow:
            self._mlflow.seconds = min(2 * self._mlflow.seconds, _LONGEST_TRY)
        if self._ending.is_set():
            time.sleep(min(pause, _LONGEST_PAUSE_AT_THE_END))
        else:
            self._ending.wait(pause)

    def _tell_refusal(self, what: str, error: Exception) -> None:
        self._tell_once(f"{self._place}: MLflow refuses {what} ({reason_of(error)}); it is left out")

    def _tell_once(self, note: str) -> None:
        if note not in self._told:
            self._told.add(note)
            self._tell(note)

    def _tell(self, note: str) -> None:
        report(self._stage, note=note)


def _entries(values: Mapping[str, str]) -> list[_Entry]:
    return [_Entry(*pair) for pair in values.items()]


def _number(value: float) -> float | str:
    """A number as MLflow's JSON has it."""
    return value if math.isfinite(value) else json.dumps(value)


def _is_refusal(error: Exception) -> bool:
    return getattr(error, "error_code", "") in _REFUSALS and not _OVERLOADED.search(str(error))
