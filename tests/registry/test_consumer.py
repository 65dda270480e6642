"""A consumer: an environment with what a registered model names loads it from an MLflow server, and serves it."""

import json
import os
import subprocess
import sys
import time
import urllib.request
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import Distribution, distribution
from pathlib import Path

import mlflow
import pytest
from packaging.requirements import Requirement

from calm_core.config import EvaluationConfig, RegistryConfig
from calm_core.evaluation.stage import evaluate
from calm_core.generation.text import Sampling
from calm_core.registry.load import load_generator
from calm_core.registry.stage import register_model
from pipelines.local.object_store import free_port
from tests.mlflow_tables import new_store

MODEL = "models:/calm@champion"
PROMPTS = ["the river", "the old port"]
PARAMETERS = {"max_new_tokens": 8, "temperature": 0.5, "seed": 1}
PAYLOADS = {
    "dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in PROMPTS]},
    "dataframe_records": [{"prompt": prompt} for prompt in PROMPTS],
    "inputs": PROMPTS,
    "instances": PROMPTS,
}
PREDICT = f"""
import socket
connect = socket.socket.connect
def connect_to_this_machine(self, address):
    assert not isinstance(address, tuple) or address[0] == "127.0.0.1", address
    return connect(self, address)
socket.socket.connect = connect_to_this_machine
import importlib.util, json, sys, mlflow, pandas, calm_core
for name in ("kfp", "deepspeed", "typer", "pyarrow", "pytest"):
    assert importlib.util.find_spec(name) is None, name
model = mlflow.pyfunc.load_model("{MODEL}")
assert calm_core.__file__.startswith(sys.prefix), calm_core.__file__
print(json.dumps(model.predict(pandas.DataFrame({{"prompt": {PROMPTS}}}), params={PARAMETERS})))
"""


def needed_by(ours: Distribution) -> list[Distribution]:
    """All that a distribution needs, without any of its extras, as it is installed in this environment."""
    found: dict[tuple[str, str], Distribution] = {}
    pending = [(ours, "")]
    while pending:
        outer, extra = pending.pop()
        for requirement in map(Requirement, outer.requires or []):
            if requirement.marker and not requirement.marker.evaluate({"extra": extra}):
                continue
            for inner_extra in {"", *requirement.extras} - {e for name, e in found if name == requirement.name}:
                found[requirement.name, inner_extra] = inner = distribution(requirement.name)
                pending.append((inner, inner_extra))
    return list({inner.name: inner for inner in found.values()}.values())


@pytest.fixture(scope="module")
def registry(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of an MLflow server that holds a champion."""
    folder = tmp_path_factory.mktemp("registry")
    autoencoder, calm = model_uris
    protocol = EvaluationConfig(samples=2, max_sequences=2, prompts=tuple(PROMPTS), prompt_tokens=4)
    evaluation = evaluate(protocol, dataset_uri, calm, str(folder / "evaluation"), seed=0, autoencoder_uri=autoencoder)
    command = [sys.executable, "-m", "mlflow", "server", f"--backend-store-uri={new_store(folder)}"]
    command += [f"--artifacts-destination={folder}/artifacts"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with server(command, environment, folder / "log") as address, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", address)
        mlflow.set_tracking_uri(address)
        register_model(RegistryConfig(), model_uris[1], evaluation.uri, str(folder / "registration"))
        yield address
        mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # unset, or it would count for all tests after these


@pytest.fixture(scope="module")
def programs(registry: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of programs of a virtual environment with the library that the model brings, what that needs, and
    nothing else; its files are links."""
    folder = tmp_path_factory.mktemp("consumer")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder / "venv")
    site = next(folder.glob("venv/lib/python*/site-packages"))
    download = [sys.executable, "-m", "mlflow", "artifacts", "download", f"--artifact-uri={MODEL}"]
    subprocess.run([*download, f"--dst-path={folder}/champion"], check=True, capture_output=True)
    install_ours(folder / "champion/requirements.txt", site)
    for needed in needed_by(Distribution.at(next(site.glob("calm_pipelines-*.dist-info")))):
        files = [file for file in needed.files or [] if ".." not in file.parts]
        for parent in {site / file.parent for file in files}:
            parent.mkdir(parents=True, exist_ok=True)
        for file in files:
            (site / file).symlink_to(file.locate())
        for entry in needed.entry_points.select(group="console_scripts"):
            program = folder / "venv/bin" / entry.name
            program.write_text(f"#!{folder}/venv/bin/python\nfrom {entry.module} import {entry.attr} as main\nmain()\n")
            program.chmod(0o755)
    return folder / "venv/bin"


def install_ours(requirements: Path, target: Path) -> None:
    """Install what a model's requirements say of this library alone, without an index, from another folder."""
    ours = requirements.with_name("ours.txt")
    lines = requirements.read_text().splitlines()
    ours.write_text("\n".join(line for line in lines if line.startswith(("--find-links", "calm-pipelines=="))))
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", f"--target={target}"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    done = subprocess.run([*command, f"--requirement={ours}"], cwd="/", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@contextmanager
def server(command: list[str], environment: Mapping[str, str], log: Path) -> Iterator[str]:
    """Run an MLflow server on a free port while the block lasts; yields its address."""
    port = free_port()
    address = f"http://127.0.0.1:{port}"
    with (
        log.open("wb") as output,
        subprocess.Popen(
            [*command, f"--port={port}", "--workers=1"], env=environment, stdout=output, stderr=output
        ) as process,
    ):
        try:
            while True:
                assert process.poll() is None, log.read_text()
                try:
                    urllib.request.urlopen(f"{address}/health", timeout=5).close()
                    break
                except OSError:  # it has not started yet
                    time.sleep(0.2)
            yield address
        finally:
            process.terminate()


@pytest.fixture
def environment(programs: Path, registry: str) -> dict[str, str]:
    """The consumer's environment: nothing of this repository but the installed library."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    return kept | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", "MLFLOW_TRACKING_URI": registry}


def expected() -> list[str]:
    sampling = Sampling(temperature=PARAMETERS["temperature"])
    return load_generator(MODEL).generate(PROMPTS, max_new_tokens=8, sampling=sampling, seed=1)


def test_the_core_alone_loads_a_registered_model(programs: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = [programs / "python", "-c", PREDICT]
    answer = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert answer.returncode == 0, answer.stderr
    assert "mismatch" not in answer.stderr  # which MLflow would say of other versions than the model names
    assert json.loads(answer.stdout) == expected()


def test_the_core_alone_serves_a_registered_model(programs: Path, environment: dict[str, str], tmp_path: Path) -> None:
    command = [str(programs / "mlflow"), "models", "serve", "--model-uri", MODEL, "--env-manager=local"]
    texts = expected()
    with server(command, environment, tmp_path / "log") as address:
        for form, prompts in PAYLOADS.items():
            request = urllib.request.Request(
                f"{address}/invocations",
                json.dumps({form: prompts, "params": PARAMETERS}).encode(),
                {"Content-Type": "application/json"},
            )
            with urllib.request.urlopen(request, timeout=60) as answer:
                assert json.load(answer)["predictions"] == texts, form
