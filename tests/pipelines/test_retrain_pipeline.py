"""The compiled `calm-retrain.yaml` in Kubeflow's own local runner: first text, then none new."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from calm_core.config import resolve_config
from pipelines.arguments import arguments_of, retraining_of
from tests.pipelines.kubeflow_backend import environment_of
from tests.pipelines.test_local_run import PROFILE, document

RUN = """
import json, os, sys
from pathlib import Path
from kfp import components, local
from pipelines.compile import RETRAIN_PIPELINE
from pipelines.local import worker

os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
sys.executable = "python3"  # as in the worker
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1], raise_on_error=True)
pipeline = worker._without_retries(RETRAIN_PIPELINE)
components.load_component_from_text(pipeline)(**json.loads(sys.argv[2]))
"""


@pytest.mark.timeout(900)
def test_it_trains_on_the_first_text_and_then_looks_for_more(tmp_path: Path) -> None:
    (tmp_path / "texts.jsonl").write_text("".join(document(number) + "\n" for number in range(40)))
    config = resolve_config(yaml.safe_load(PROFILE.read_text()), [f"data.sources=[{tmp_path}/texts.jsonl]"])
    arguments = arguments_of(config, str(tmp_path / "plans"), str(tmp_path / "checkpoints"))
    arguments |= {"retraining": retraining_of(config)}
    environment = environment_of({"MLFLOW_TRACKING_URI": f"sqlite:///{tmp_path}/mlflow.db"}, tmp_path)
    del environment["_KFP_RUNTIME"]  # this is no pod
    registry = MlflowClient(environment["MLFLOW_TRACKING_URI"])
    registry.search_experiments()  # makes the database, which a server would have made

    def run(root: str) -> set[str]:
        """The tasks that ran."""
        command = [sys.executable, "-c", RUN, str(tmp_path / root), json.dumps(arguments)]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
        return {task.name for run in (tmp_path / root).iterdir() for task in run.iterdir()}

    assert run("first") >= {"find-new-data", "merge-partitions", "train-calm", "register-model", "report-2"}
    assert registry.get_model_version_by_alias("calm", "champion").version == 1
    assert run("second") == {"find-new-data"}
