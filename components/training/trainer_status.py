"""How far a training is, for the status of its TrainJob: where Kubeflow's Trainer takes it (its gate TrainJobStatus).

The controller then names a server in each pod's environment, with a token and a certificate, and writes what that is
sent into ``status.trainerStatus``. Nobody waits for it, and nothing fails with it.
"""

import os
import re
import ssl
import sys
import threading
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, ProgressEvent, parse

URL_VARIABLE, CERTIFICATE_VARIABLE, TOKEN_VARIABLE = (
    f"KUBEFLOW_TRAINER_SERVER_{name}" for name in ("URL", "CA_CERT", "TOKEN")
)
_SECONDS = 10.0
"""Between two messages; the server asks for 5 at least."""
_LOOK_SECONDS = 0.5
_ANSWER_SECONDS = 5.0
_NUMBER = re.compile(r"([a-z][a-z0-9 ]{0,62}[a-z0-9]) (-?[0-9.]+(?:e[-+]?[0-9]+)?)(?:,|$)")


@contextmanager
def status_pushed(folder: Path, environment: Mapping[str, str] = os.environ) -> Iterator[None]:
    """Send what the ranks tell of their progress while the block lasts, and show it as before.

    Args:
        folder: For a file that the ranks write to.
        environment: What names the server; without one, nothing is done.
    """
    if not environment.get(URL_VARIABLE):
        yield
        return
    file = folder / "progress.jsonl"
    file.touch()
    os.environ[PROGRESS_FILE_VARIABLE] = str(file)
    over = threading.Event()
    thread = threading.Thread(target=_push, args=(file, environment, over), daemon=True)
    thread.start()
    try:
        yield
    finally:
        del os.environ[PROGRESS_FILE_VARIABLE]
        over.set()
        thread.join(2 * _ANSWER_SECONDS)


def _push(file: Path, environment: Mapping[str, str], over: threading.Event) -> None:
    waited, latest = _SECONDS, None
    with file.open(encoding="utf-8") as lines:
        while True:
            is_last = over.wait(_LOOK_SECONDS)
            waited += _LOOK_SECONDS
            while line := lines.readline():
                with suppress(ValueError):
                    event = parse(line)
                    print(f"{event}\n", end="", file=sys.stderr, flush=True)
                    latest = event if event.total else latest
            if latest and (is_last or waited >= _SECONDS):
                with suppress(OSError, ValueError):  # it is away, or refuses: the next message may arrive
                    _send(status_of(latest), environment)
                waited, latest = 0.0, None
            if is_last:
                return


def status_of(event: ProgressEvent) -> dict[str, Any]:
    """The message for a point of the curves (`UpdateTrainJobStatusRequest`)."""
    metrics = {name.replace(" ", "_"): value for name, value in _NUMBER.findall(f"{event.note}, {event.detail}")}
    if event.rate:
        metrics["tokens_per_second"] = f"{event.rate:.6g}"
    status: dict[str, Any] = {
        "progressPercentage": min(100 * event.done // event.total, 100),
        "metrics": [{"name": name, "value": value} for name, value in metrics.items()],
        "lastUpdatedTime": datetime.fromtimestamp(event.time, UTC).isoformat(timespec="seconds"),
    }
    if event.eta or event.done >= event.total:
        status["estimatedRemainingSeconds"] = min(round(event.eta), 2**31 - 1)
    return {"trainerStatus": status}


def _send(message: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    import json

    token = Path(environment[TOKEN_VARIABLE]).read_text(encoding="utf-8").strip()  # it is renewed
    request = urllib.request.Request(
        environment[URL_VARIABLE],
        json.dumps(message).encode(),
        {"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    certificate = environment.get(CERTIFICATE_VARIABLE)
    context = ssl.create_default_context(cafile=certificate) if request.type == "https" else None
    with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS, context=context):
        pass
