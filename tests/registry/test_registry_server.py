"""The registry on a real MLflow server: several processes at once, and what the server tells others of an alias."""

import http.server
import json
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from cryptography.fernet import Fernet
from mlflow import MlflowClient

from calm_cli.main import main
from calm_core.config import RegistryConfig
from calm_core.registry.aliases import Aliases, Decision
from calm_core.registry.stage import register_model
from tests.docs.documented import blocks
from tests.registry.deciding_worker import decide
from tests.registry.made_up_scores import scored_otherwise
from tests.telemetry.tracking_server import TrackingServer, wait_until

ROUNDS = 4


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TrackingServer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_WEBHOOK_SECRET_ENCRYPTION_KEY", Fernet.generate_key().decode())
        patch.setenv("MLFLOW_WEBHOOK_ALLOWED_SCHEMES", "http")  # the receiver of this test has no certificate,
        patch.setenv("MLFLOW_WEBHOOK_ALLOW_PRIVATE_IPS", "true")  # and listens on this machine alone
        patch.setenv("MLFLOW_WEBHOOK_CACHE_TTL", "0")  # the server has looked for webhooks before this one is made
        server = TrackingServer(tmp_path_factory.mktemp("server"))
        server.start()
    yield server
    server.kill()


@pytest.fixture(autouse=True)
def on_the_server(server: TrackingServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", server.uri)
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    mlflow.set_tracking_uri(server.uri)


@pytest.mark.parametrize("processes", [2, 3])
def test_processes_at_once_make_one_champion(processes: int, tmp_path: Path) -> None:
    """Each version is better than the champion, none better than another: the lowest number of them wins."""
    client = MlflowClient()
    models = [f"{processes}-at-once-{number}" for number in range(ROUNDS)]
    for model in models:
        client.create_registered_model(model)
        config = RegistryConfig(model_name=model)
        client.create_model_version(model, "s3://nowhere/model", tags=Decision.begun(config).tags)
        Aliases(config, decide).decide("1")
    command = [sys.executable, "-m", "tests.registry.deciding_worker", str(tmp_path)]
    root = Path(__file__).parents[2]
    workers = [
        subprocess.Popen([*command, str(i), str(processes), *models], cwd=root, stdout=subprocess.PIPE, text=True)
        for i in range(processes)
    ]
    told = [worker.communicate(timeout=500)[0].splitlines() for worker in workers]
    assert [worker.returncode for worker in workers] == [0] * processes
    promoted = [line for lines in told for line in lines if line.endswith("True")]
    assert sorted(promoted) == [f"{model} 2 True" for model in models]
    for model in models:
        assert str(client.get_model_version_by_alias(model, "champion").version) == "2"
        assert str(client.get_model_version_by_alias(model, "challenger").version) == str(1 + processes)
        decisions = [Decision.read(each.tags) for each in client.search_model_versions(f"name = '{model}'")]
        assert sorted(each.state for each in decisions if each) == ["kept"] * (processes - 1) + ["promoted"] * 2


class Receiver:
    """A server that remembers what it was sent.

    Attributes:
        received: Headers and bodies.
    """

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], bytes]] = []
        received = self.received

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((dict(self.headers), body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()

    def moves(self, model: str) -> set[tuple[str, str]]:
        """Aliases of a model, and the versions that they were said to point to."""
        data = [json.loads(body)["data"] for _, body in [*self.received]]
        return {(each["alias"], each["version"]) for each in data if each["name"] == model}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    receiver = Receiver()
    yield receiver
    receiver.server.shutdown()
    receiver.server.server_close()


def snippet(name: str) -> str:
    """The documented snippet that uses a name."""
    [found] = [block.text for block in blocks("python") if block.where == "docs/registry.md" and name in block.text]
    return found


def test_a_webhook_tells_of_the_champion_with_a_signature(
    server: TrackingServer,
    receiver: Receiver,
    model_uris: tuple[str, str],
    evaluation_uri: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As docs/registry.md says; its snippets are run here."""
    monkeypatch.setenv("CALM_WEBHOOK_SECRET", "of this test")
    url = f"http://127.0.0.1:{receiver.server.server_port}/"
    for here, there in (("http://mlflow.example:5000", server.uri), ("https://hooks.example/calm", url)):
        assert here in snippet("create_webhook")
        monkeypatch.setitem(_PLACES, here, there)
    text = re.sub("|".join(map(re.escape, _PLACES)), lambda found: _PLACES[found[0]], snippet("create_webhook"))
    exec(compile(text, "docs/registry.md", "exec"), {})
    config = RegistryConfig(model_name="told")
    for number, score in enumerate((20.0, 25.0, 15.0), start=1):
        scored = scored_otherwise(evaluation_uri, score, tmp_path / str(number), seed=number)
        register_model(config, model_uris[1], scored, str(tmp_path / f"registration-{number}"))
    champions = {("champion", "1"), ("champion", "2")}
    challengers = {("challenger", number) for number in "123"}
    wait_until(lambda: receiver.moves("told") == champions | challengers)
    with pytest.raises(SystemExit) as ending:
        main(["registry", "promote", "3", "--reason", "shorter", "--model", "told"])
    assert ending.value.code == 0
    wait_until(lambda: ("champion", "3") in receiver.moves("told"))
    names: dict[str, Any] = {}
    exec(compile(snippet("is_genuine"), "docs/registry.md", "exec"), names)
    for headers, body in receiver.received:
        assert names["is_genuine"](headers, body, "of this test")
        assert not names["is_genuine"](headers, body + b" ", "of this test")
        assert not names["is_genuine"](headers, body, "another")


_PLACES: dict[str, str] = {}
