"""Run the compiled pipeline with Kubeflow's local runner: ``python -m pipelines.local.worker REQUEST``.

REQUEST is a JSON file with the pipeline's arguments, where tasks write (`pipeline_root`), where the cache lies
(`cache_root`), and which files get the URIs of the outputs (`outputs`) and the task that has failed (`failure`). It is
a process of its own so that Kubeflow's chatter and the tasks' output go to a log, and so that all of it can be stopped
together. $TMPDIR is of this run alone: Kubeflow makes a folder there for each task, and leaves it.
"""

import json
import os
import shutil
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import yaml
from kfp import components, local
from kfp.local import cache, subprocess_task_handler

from calm_core.shown import SafeStream
from calm_core.telemetry.processes import PROCESSES_VARIABLE, end_with_parent, machine_cores
from pipelines.compile import TRAIN_PIPELINE
from pipelines.local.cache import use_checked_cache
from pipelines.local.run import BASELINE_MODEL, BASELINE_REPORT, RUN_REPORT, STOP_SECONDS

_AT_ONCE = 2
"""Tasks of a loop that Kubeflow's local runner has at work at a time."""
_POLL_SECONDS = 0.05


def run(request: dict[str, Any]) -> None:
    """Run the pipeline, and write the URIs of its outputs.

    Raises:
        RuntimeError: A task failed.
    """
    # Kubeflow replaces each "python3" in a task's command by sys.executable, those in paths and settings included; so
    # sys.executable has to be this word, and PATH has to lead to this interpreter.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    sys.executable = "python3"
    os.environ[PROCESSES_VARIABLE] = str(max(1, machine_cores() // _AT_ONCE))
    use_checked_cache()
    _note_failures(Path(request["failure"]))
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=request["pipeline_root"],
        cache_root=request["cache_root"],
        enable_caching=True,
    )
    task = components.load_component_from_text(_without_retries(TRAIN_PIPELINE))(**request["arguments"])
    outputs = {name: artifact.uri for name, artifact in task.outputs.items()}
    outputs |= _baseline(outputs["evaluation_report"])
    [outputs[RUN_REPORT]] = map(str, Path(outputs["registration"]).parents[1].glob(f"*/{RUN_REPORT}"))
    Path(request["outputs"]).write_text(json.dumps(outputs, indent=1), encoding="utf-8")


def _without_retries(pipeline: Path) -> str:
    """A compiled pipeline in which no task is tried again: pods get lost, but what fails here would fail again."""
    spec, *rest = yaml.safe_load_all(pipeline.read_text(encoding="utf-8"))
    for component in [spec["root"], *spec["components"].values()]:
        for task in component.get("dag", {}).get("tasks", {}).values():
            task.pop("retryPolicy", None)
    return yaml.safe_dump_all([spec, *rest])


def _baseline(own_report: str) -> dict[str, str]:
    """URIs of the baseline's model and scores, if it was trained.

    A pipeline hands on nothing of a conditional branch; the cache has seen it pass.
    """
    handed_on: list[dict[str, Any]] = cache.get_local_cache().handed_on
    found = {}
    for outputs in handed_on:
        if "transformer_model" in outputs:
            found[BASELINE_MODEL] = outputs["transformer_model"].uri
        elif "evaluation_report" in outputs and outputs["evaluation_report"].uri != own_report:
            found[BASELINE_REPORT] = outputs["evaluation_report"].uri
    return found


def _note_failures(file: Path) -> None:
    """Write down which task fails first, and its exit code: Kubeflow says the one in a sentence, and forgets the other.

    Args:
        file: Where, as JSON.
    """
    run_task = subprocess_task_handler.run_local_subprocess

    def run_and_note(full_command: list[str], env_vars: dict[str, str] | None = None) -> int:
        exit_code = int(run_task(full_command, env_vars))
        if exit_code and not file.exists():
            name = full_command[full_command.index("--function_to_execute") + 1].replace("_", "-")
            file.write_text(json.dumps({"task": name, "exit_code": exit_code}), encoding="utf-8")
        return exit_code

    subprocess_task_handler.run_local_subprocess = run_and_note


def _end(temporary: str) -> None:
    """End this process and its tasks, and remove their temporary folder, as the process that watches would."""
    tasks = psutil.Process().children(recursive=True)
    for task in tasks:
        with suppress(psutil.NoSuchProcess):
            task.terminate()
    until = time.monotonic() + STOP_SECONDS
    # psutil's own waiting would take their exit codes from Kubeflow's runner, for which they would have succeeded then.
    while any(map(_is_at_work, tasks)) and time.monotonic() < until:
        time.sleep(_POLL_SECONDS)
    shutil.rmtree(temporary, ignore_errors=True)
    os.killpg(0, signal.SIGTERM)


def _is_at_work(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


if __name__ == "__main__":
    end_with_parent(lambda: _end(os.environ["TMPDIR"]))
    sys.stdout, sys.stderr = SafeStream(sys.stdout), SafeStream(sys.stderr)
    try:
        run(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    finally:  # also where its tasks were ended since nobody watches
        shutil.rmtree(os.environ["TMPDIR"], ignore_errors=True)
