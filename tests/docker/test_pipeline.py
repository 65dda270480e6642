"""All of the pipeline in the image, as strict clusters run it, on a real S3 and on MLflow's server of k8s/."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import docker
import mlflow
import pytest
from kfp import components

from calm_core.config import resolve_config
from calm_core.store import storage
from calm_core.store.artifact import Artifact
from calm_core.store.code_version import code_version
from calm_core.store.facts import DatasetFacts, RegistrationFacts
from pipelines import profiles
from pipelines.arguments import arguments_of, pods_of
from pipelines.compile import TRAIN_PIPELINE
from pipelines.local.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, free_port
from tests.conftest import sentences
from tests.docker.kubeflow_runner import docker_runner
from tests.k8s.rendered import find, overlay
from tests.object_store import environment
from tests.postgres import Postgres

ROOT = f"s3://{BUCKET}/runs"
TEXTS = f"s3://{BUCKET}/texts-in-the-image"
SHORTENED = [
    f"data.sources=[{TEXTS}/*.jsonl]",
    "data.sequence_length=64",
    "tokenizer.vocab_size=300",
    *(f"{each}.steps=4" for each in ("autoencoder", "calm")),
    *(f"{each}.warmup_steps=1" for each in ("autoencoder", "calm")),
    *(f"{each}.checkpoint_interval=2" for each in ("autoencoder", "calm")),
    "evaluation.samples=2",
    "evaluation.max_sequences=8",
    "registry.min_autoencoder_accuracy=0",  # nothing is learned in so few steps
]
KEYS = {"AWS_ACCESS_KEY_ID": ACCESS_KEY, "AWS_SECRET_ACCESS_KEY": SECRET_KEY, "AWS_DEFAULT_REGION": "us-east-1"}


@pytest.fixture(scope="module")
def s3(s3_endpoint: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """What leads to S3."""
    with pytest.MonkeyPatch.context() as patch, environment(patch, s3_endpoint, tmp_path_factory.mktemp("cache")):
        yield KEYS | {"AWS_ENDPOINT_URL": s3_endpoint}


@pytest.fixture(scope="module")
def server(
    engine: docker.DockerClient, image: str, pod: dict[str, Any], s3: dict[str, str], postgres: Postgres
) -> Iterator[str]:
    """MLflow with the commands of its manifest, the one that makes its tables first."""
    port = free_port()
    variables = s3 | {
        "MLFLOW_BACKEND_STORE_URI": postgres.make("in-the-image"),
        "MLFLOW_ARTIFACTS_DESTINATION": f"s3://{BUCKET}/mlflow",
        "MLFLOW_SERVER_ALLOWED_HOSTS": f"127.0.0.1:{port}",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    }
    template = find(overlay("local"), "Deployment", "mlflow")["spec"]["template"]["spec"]
    [migrate], [serve] = template["initContainers"], template["containers"]
    options = pod | {"network_mode": "host", "environment": variables, "working_dir": "/tmp"}

    def command(container: dict[str, Any]) -> list[str]:
        words = container["command"] + container.get("args", [])
        for name, value in variables.items():
            words = [each.replace(f"$({name})", value) for each in words]
        return [each.replace("--port=5000", f"--port={port}") for each in words]

    engine.containers.run(image, command(migrate), remove=True, **options)
    running = engine.containers.run(image, command(serve), detach=True, **options)
    try:
        deadline = time.monotonic() + 240
        while True:
            with suppress(OSError), urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
                assert answer.read() == b"OK"
                break
            running.reload()
            assert running.status == "running" and time.monotonic() < deadline, running.logs()[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        running.remove(force=True)


@pytest.mark.timeout(1200)
def test_all_of_it_runs_for_any_user_and_ends_with_a_model_that_writes(
    engine: docker.DockerClient,
    image: str,
    pod: dict[str, Any],
    s3: dict[str, str],
    server: str,
    tmp_path: Path,
) -> None:
    for number, documents in enumerate((range(60), range(50, 120))):
        lines = "".join(json.dumps({"text": sentences(i, 20)}) + "\n" for i in documents)
        storage.write(f"{TEXTS}/{number}.jsonl", lines.encode())
    config = resolve_config(profiles.load("tiny"), SHORTENED)
    arguments = arguments_of(config, f"{ROOT}/plans", f"{ROOT}/checkpoints") | pods_of(config)
    arguments |= {"image": image, "code_version": ""}  # the image brings its own
    tmp_path.chmod(0o777)
    variables = s3 | {"MLFLOW_TRACKING_URI": server}
    container = pod | {"network_mode": "host", "environment": variables, "shm_size": "1g"}

    with docker_runner(tmp_path, ROOT, **container):
        run = components.load_component_from_file(str(TRAIN_PIPELINE))(**arguments)

    outputs = {name: artifact.uri for name, artifact in run.outputs.items()}
    assert all(uri.startswith(f"{ROOT}/calm-train-") for uri in outputs.values())
    assert all(path.stat().st_uid == int(pod["user"].partition(":")[0]) for path in tmp_path.rglob("*"))
    dataset = Artifact(outputs["dataset"], DatasetFacts)
    dataset.check_files()
    assert (dataset.facts.documents_out, dataset.facts.duplicates) == (120, 10)
    registration = Artifact(outputs["registration"], RegistrationFacts)
    assert registration.manifest.code_version == code_version()
    assert (registration.facts.version, registration.facts.promoted) == ("1", True)

    client = mlflow.MlflowClient(server)
    champion = client.get_model_version_by_alias("calm", "champion")
    assert str(champion.version) == "1" and champion.tags["calm.evaluation_digest"]
    assert client.get_run(champion.run_id).info.artifact_uri.startswith("mlflow-artifacts:")
    assert [key for key in storage.files_below(f"s3://{BUCKET}/mlflow") if key.endswith("calm/weights.safetensors")]

    generate = ["calm", "generate", "the river", "--model", "models:/calm@champion", "--max-new-tokens", "8"]
    alone = pod | {"network_mode": "host", "environment": {"MLFLOW_TRACKING_URI": server}}
    assert engine.containers.run(image, generate, remove=True, **alone).decode().startswith("the river")
