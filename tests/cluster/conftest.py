"""A Kubeflow Pipelines, and commands that reach it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from calm_cli.main import main
from pipelines.cluster import connection
from tests.cluster.servers import Kubeflow, Kubernetes, running

OF_THE_USER = ("KFP_EXISTING_TOKEN", "KFP_COOKIES", "KF_PIPELINES_ENDPOINT", "KF_PIPELINES_SA_TOKEN_PATH")
OTHERS = ("KF_PIPELINES_UI_ENDPOINT", "KUBECONFIG", "KF_PIPELINES_DEFAULT_EXPERIMENT_NAME", "https_proxy", "http_proxy")


@pytest.fixture(autouse=True)
def own_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of the user's is read, and nothing is waited for."""
    from kfp.client import Client

    for name in (*OF_THE_USER, *OTHERS):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(Client, "_LOCAL_KFP_CONTEXT", str(tmp_path / "context.json"))
    monkeypatch.setattr(connection, "_WAITS", (0.01, 0.01, 0.01))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def kubeflow() -> Iterator[Kubeflow]:
    """Without users; at its end every request has been as its models have it."""
    server = Kubeflow()
    with running(server):
        yield server
    assert server.wrong == []


@pytest.fixture
def kubernetes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Kubernetes]:
    """One that kubectl's settings name."""
    server = Kubernetes()
    settings = tmp_path / "kubeconfig"
    settings.write_text(
        f"""apiVersion: v1
kind: Config
current-context: here
contexts: [{{name: here, context: {{cluster: here, user: me, namespace: team}}}}]
clusters: [{{name: here, cluster: {{server: "{server.url}"}}}}]
users: [{{name: me, user: {{token: kube-secret}}}}]
"""
    )
    monkeypatch.setenv("KUBECONFIG", str(settings))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(settings))
    with running(server):
        yield server
    assert server.wrong == []


Call = Callable[..., tuple[int, str, str]]


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    """Run a command: its exit code, and what it has printed."""

    def run(*arguments: str) -> tuple[int, str, str]:
        with pytest.raises(SystemExit) as ending:
            main(arguments)
        out, err = capsys.readouterr()
        return int(ending.value.code or 0), out, err

    return run
