"""What Kubeflow's driver and launcher do with a compiled pipeline, for tests: no cluster runs here.

Each task is a process of the SDK's real executor with the executor input that the driver would hand on, in Kubeflow's
published schema. Before it, all that lies under the URIs of its inputs is downloaded; after it, what it has left at the
paths of its outputs is uploaded, as the launcher does. Of a loop, all items but the first run in forks of one process
that has the libraries loaded: 64 partitions would be minutes of imports.
"""

import contextlib
import json
import multiprocessing
import os
import re
import subprocess
import sys
import uuid
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from google.protobuf import json_format
from kfp.pipeline_spec import pipeline_spec_pb2

from calm_core.store import storage

LARGEST_ARGUMENT = 128 << 10
"""Bytes of one argument of a command on Linux, its end included."""
_STORE = "projects/1/locations/default/metadataStores/default"
_MOUNTED = """
import sys
from kfp.dsl.types import artifact_types
artifact_types._MINIO_LOCAL_MOUNT_PREFIX = sys.argv.pop(1)
from kfp.dsl import executor_main
executor_main.executor_main()
"""

SESSION = json.dumps(
    {
        "Provider": "minio",
        "Params": {
            "accessKeyKey": "accesskey",
            "disableSSL": "true",
            "endpoint": "seaweedfs.kubeflow:9000",
            "forcePathStyle": "true",
            "fromEnv": "false",
            "maxRetries": "5",
            "region": "us-east-1",
            "secretKeyKey": "secretkey",
            "secretName": "mlpipeline-minio-artifact",
        },
    }
)
"""What Kubeflow notes with each artifact of where it lies."""

Parameters = dict[str, Any]
Artifacts = dict[str, list[dict[str, Any]]]


@dataclass
class Backend:
    """A double of Kubeflow's backend.

    Attributes:
        root: The pipeline root, a URL that begins with ``minio://``.
        mount: Where pods see the bucket.
        environment: Of all tasks.
        downloaded: The keys that the launcher has fetched for each task.
        sizes: Bytes of the argument with all inputs of each task, its end included; the most of a task in a loop.
        ran: How often each task has run.
    """

    pipeline: Path
    root: str
    mount: Path
    environment: Mapping[str, str]
    downloaded: dict[str, list[str]] = field(default_factory=dict)
    sizes: dict[str, int] = field(default_factory=dict)
    ran: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        self.spec, platform = yaml.safe_load_all(self.pipeline.read_text())
        self._pods = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
        self.run_id = str(uuid.uuid4())
        self._is_forked = False
        self._artifacts = 0

    def run(self, arguments: Parameters) -> Artifacts:
        """Run the pipeline, and hand on its outputs."""
        definitions = self.spec["root"]["inputDefinitions"]["parameters"]
        assert arguments.keys() <= definitions.keys()
        defaults = {name: each["defaultValue"] for name, each in definitions.items() if "defaultValue" in each}
        return self._dag(self.spec["root"], defaults | arguments, {})[1]

    def _dag(self, component: Any, parameters: Parameters, artifacts: Artifacts) -> tuple[Parameters, Artifacts]:
        made: dict[str, tuple[Parameters, Artifacts]] = {}
        waiting = dict(component["dag"]["tasks"])
        while waiting:
            name = next(name for name, task in waiting.items() if made.keys() >= set(task.get("dependentTasks", [])))
            task = waiting.pop(name)
            inputs = task.get("inputs", {})
            given = {
                key: self._parameter(value, parameters, made) for key, value in inputs.get("parameters", {}).items()
            }
            taken = {key: self._artifact(value, artifacts, made) for key, value in inputs.get("artifacts", {}).items()}
            made[name] = self._task(name, task, given, taken)
        selected = {}
        for key, output in component["dag"].get("outputs", {}).get("artifacts", {}).items():
            [chosen] = output["artifactSelectors"]
            selected[key] = made[chosen["producerSubtask"]][1][chosen["outputArtifactKey"]]
        return {}, selected

    def _parameter(self, value: Any, parameters: Parameters, made: Mapping[str, tuple[Parameters, Artifacts]]) -> Any:
        match value:
            case {"componentInputParameter": name}:
                return parameters[name]
            case {"taskOutputParameter": {"producerTask": task, "outputParameterKey": key}}:
                return made[task][0][key]
            case {"runtimeValue": {"constant": constant}}:
                return constant
        raise AssertionError(value)

    def _artifact(self, value: Any, artifacts: Artifacts, made: Mapping[str, tuple[Parameters, Artifacts]]) -> Any:
        match value:
            case {"componentInputArtifact": name}:
                return artifacts[name]
            case {"taskOutputArtifact": {"producerTask": task, "outputArtifactKey": key}}:
                return made[task][1][key]
        raise AssertionError(value)

    def _task(self, name: str, task: Any, given: Parameters, taken: Artifacts) -> tuple[Parameters, Artifacts]:
        component = self.spec["components"][task["componentRef"]["name"]]
        if condition := task.get("triggerPolicy", {}).get("condition"):
            parameter, expected = re.fullmatch(r"inputs.parameter_values\['(.+)'\] == (true|false)", condition).groups()  # type: ignore[union-attr]
            if given[parameter] != (expected == "true"):
                return {}, {}
        if iterator := task.get("parameterIterator"):
            results = []
            for number, item in enumerate(given[iterator["items"]["inputParameter"]]):
                self._is_forked = number > 0
                results.append(self._dag(component, given | {iterator["itemInput"]: item}, taken)[1])
            self._is_forked = False
            return {}, {key: [each for result in results for each in result[key]] for key in results[0]}
        if "dag" in component:
            return self._dag(component, given, taken)
        return self.execute(name, component, given, taken)

    def executor_input(
        self, name: str, component: Any, given: Parameters, taken: Artifacts, folder: Path
    ) -> dict[str, Any]:
        """What the driver hands on to a task."""
        outputs = component.get("outputDefinitions", {})
        place = f"{self.root}/calm-train/{self.run_id}/{name}/{uuid.uuid4()}"
        executor_input = {
            "inputs": {
                "parameterValues": given,
                "artifacts": {key: {"artifacts": each} for key, each in taken.items() if each},
            },
            "outputs": {
                "parameters": {key: {"outputFile": str(folder / key)} for key in outputs.get("parameters", {})},
                "artifacts": {
                    key: {
                        "artifacts": [
                            {"name": key, "type": definition["artifactType"], "uri": f"{place}/{key}", "metadata": {}}
                        ]
                    }
                    for key, definition in outputs.get("artifacts", {}).items()
                },
                "outputFile": str(folder / "output.json"),
            },
        }
        json_format.ParseDict(executor_input, pipeline_spec_pb2.ExecutorInput())
        return executor_input

    def execute(self, name: str, component: Any, given: Parameters, taken: Artifacts) -> tuple[Parameters, Artifacts]:
        """Run a task: driver, launcher, executor."""
        folder = self.mount / "pods" / str(uuid.uuid4())
        folder.mkdir(parents=True)
        executor_input = self.executor_input(name, component, given, taken, folder)
        fetched = self.downloaded.setdefault(name, [])
        for artifact in (each for artifacts in taken.values() for each in artifacts):
            for key in storage.files_below(artifact["uri"]):
                fetched.append(key)
                target = self._path(key)
                target.parent.mkdir(parents=True, exist_ok=True)
                storage.fetch(key, target)
        container = self.spec["deploymentSpec"]["executors"][component["executorLabel"]]["container"]
        argument = json.dumps(executor_input)
        self.ran[name] += 1
        self.sizes[name] = max(self.sizes.get(name, 0), len(argument.encode()) + 1)
        source = folder / "component.py"
        source.write_text(container["command"][-1])
        arguments = [argument if word == "{{$}}" else word for word in container["args"]]
        command = [sys.executable, "-c", _MOUNTED, f"{self.mount}/minio/", "--component_module_path", str(source)]
        environment = dict(self.environment)
        for field_path in self._pods[component["executorLabel"]]["fieldPathAsEnv"]:
            environment[field_path["name"]] = {"metadata.labels['pipeline/runid']": self.run_id}[
                field_path["fieldPath"]
            ]
        log = folder / "log.txt"
        if self._is_forked:
            task = _forks().Process(target=_forked, args=(log, command[2], [*command[3:], *arguments], environment))
            task.start()
            task.join()
            code = task.exitcode
        else:
            with log.open("wb") as stream:
                code = subprocess.run([*command, *arguments], env=environment, stdout=stream, stderr=stream).returncode
        assert code == 0, f"{name}: {log.read_text()[-8000:]}"
        output = strict_json((folder / "output.json").read_text())
        json_format.ParseDict(output, pipeline_spec_pb2.ExecutorOutput())
        artifacts: Artifacts = {}
        for key, produced in executor_input["outputs"]["artifacts"].items():
            [artifact] = produced["artifacts"]
            [described] = output["artifacts"][key]["artifacts"]
            artifact["metadata"] = described["metadata"] | {"display_name": key, "store_session_info": SESSION}
            artifact["name"] = f"{_STORE}/artifacts/{10**9 + self._artifacts}"
            self._artifacts += 1
            local = self._path(artifact["uri"])
            for file in [local] if local.is_file() else local.rglob("*"):
                if file.is_file():
                    storage.write(artifact["uri"] + str(file).removeprefix(str(local)), file.read_bytes())
            artifacts[key] = [artifact]
        return output.get("parameterValues", {}), artifacts

    def _path(self, uri: str) -> Path:
        """Where a pod sees an object."""
        return self.mount / "minio" / uri.partition("://")[2]


def _forks() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["kfp.dsl.executor_main", "calm_core.data.stage", "s3fs"])
    return context


def _forked(log: Path, program: str, arguments: list[str], environment: Mapping[str, str]) -> None:
    """What `python -c program arguments` does."""
    os.environ.clear()
    os.environ.update(environment)
    sys.argv = ["-c", *arguments]
    with log.open("w") as stream, contextlib.redirect_stdout(stream), contextlib.redirect_stderr(stream):
        exec(program, {"__name__": "__main__"})


def strict_json(text: str) -> Any:
    """JSON that Kubeflow's launcher takes: no NaN, no infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in {text[:200]}")

    return json.loads(text, parse_constant=refuse)


def environment_of(endpoint: Mapping[str, str], home: Path) -> dict[str, str]:
    """What a pod's variables are: none of this machine's own settings."""
    ours = ("CALM_", "MLFLOW_", "KFP_", "AWS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return kept | dict(endpoint) | {"HOME": str(home), "_KFP_RUNTIME": "true"}
