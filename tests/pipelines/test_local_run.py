"""`calm run` on a miniature corpus: the whole pipeline, its cache, and how it fails."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from calm_core.data.tokenizers.tokenizer import Tokenizer
from calm_core.store.artifact import Artifact
from calm_core.store.facts import DatasetFacts, EvaluationFacts
from pipelines.local.run import last_words

PROFILE = Path(__file__).with_name("mini.yaml")
STAGES = ["prepare", "train-autoencoder", "train-calm", "evaluate", "register", "report"]
NEVER_CACHED = {"register": "done", "report": "done"}


class Workplace:
    """A folder to run in. Its name holds "python3", a word that Kubeflow's local runner replaces in commands."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "my python3 texts"
        self.folder.mkdir()
        ours = ("CALM_", "MLFLOW_", "KFP_")
        self.temporary = folder / "temporary"
        self.temporary.mkdir()
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        self.environment["TMPDIR"] = str(self.temporary)

    def write(self, name: str, lines: list[str]) -> None:
        (self.folder / name).write_text("\n".join(lines) + "\n")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "calm_cli.start", *arguments]

    def calm(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        ended = subprocess.run(
            self.command(*arguments), cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert list(self.temporary.iterdir()) == []
        return ended

    def started(self, source: str, *arguments: str) -> "subprocess.Popen[str]":
        """A run that goes on beside the test."""
        return subprocess.Popen(
            self.command("run", "--profile", str(PROFILE), "--source", source, *arguments),
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def outputs(self) -> dict[str, str]:
        """URIs of what the newest run that has succeeded handed on."""
        found = max(self.folder.glob(".calm/logs/*/outputs.json"), key=lambda path: path.stat().st_mtime_ns)
        outputs: dict[str, str] = json.loads(found.read_text())
        return outputs

    def run(self, *arguments: str, source: str = "*.jsonl") -> subprocess.CompletedProcess[str]:
        return self.calm("run", "--profile", str(PROFILE), "--source", source, *arguments)


def last_states(output: str) -> dict[str, str]:
    """The last state that the plain display told of each stage."""
    stages = [*STAGES, "train-transformer", "evaluate-transformer"]
    progress = output.partition("\nreport: /")[0]  # what it ends with, where the page of the run lies
    told = [line.split(": ", 1) for line in progress.splitlines() if line.split(":")[0] in stages and ": " in line]
    return {stage: rest.split()[0] for stage, rest in told}


def document(number: int) -> str:
    return json.dumps(
        {"text": f"Country {number} has {number * 7} rivers and a mild climate, with rain in {1900 + number}. " * 3}
    )


@pytest.fixture(scope="module")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    place = Workplace(tmp_path_factory.mktemp("run"))
    place.write("a.jsonl", [document(number) for number in range(30)])
    place.write("b.jsonl", [document(number) for number in range(25, 60)] + ['{"text": "broken'])
    return place


@pytest.fixture(scope="module")
def first_run(workplace: Workplace) -> subprocess.CompletedProcess[str]:
    run = workplace.run()
    assert run.returncode == 0, run.stdout + run.stderr
    return run


def test_the_first_run_does_every_stage_and_registers_a_model(first_run: subprocess.CompletedProcess[str]) -> None:
    assert last_states(first_run.stdout) == dict.fromkeys(STAGES, "done")
    assert "registered: calm version 1 (models:/calm@champion)" in first_run.stdout
    assert [line for line in first_run.stderr.splitlines() if not line.endswith(" ...")] == []


def test_it_ends_with_the_page_about_the_run(first_run: subprocess.CompletedProcess[str], workplace: Workplace) -> None:
    last = first_run.stdout.rstrip().splitlines()[-1]
    page = Path(last.removeprefix("report: ")).read_text()
    assert re.search(r"<h1>calm version \d+ is champion</h1>", page)
    assert "calm run --profile" in page and " s</span>" in page  # the command, and how long stages took
    [shown] = Path(workplace.folder, ".calm", "pipeline").glob(f"{Path(last).parents[3].name}/report*/page")
    assert shown.read_text() == page  # in Kubeflow
    found = workplace.calm("report")
    assert (found.returncode, found.stdout.strip()) == (0, last.removeprefix("report: "))


def test_every_document_is_accounted_for(first_run: subprocess.CompletedProcess[str]) -> None:
    """66 lines: 60 different documents, 5 repeated, 1 broken line, whose place is shown."""
    pairs = [re.split("  +", line, maxsplit=1) for line in first_run.stdout.splitlines()]
    words = {pair[0]: pair[1] for pair in pairs if len(pair) == 2}
    assert words["documents"].startswith("66 read")
    assert words["rejected"].startswith("1 ")
    assert words["duplicates dropped"] == "5"
    assert "b.jsonl" in first_run.stdout


def test_the_same_run_again_comes_from_the_cache(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    again = workplace.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert last_states(again.stdout) == dict.fromkeys(STAGES, "cached") | NEVER_CACHED
    assert "registered: calm version 1" in again.stdout  # the registry is asked again, and has this model already


def test_a_changed_setting_reruns_only_what_depends_on_it(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    changed = workplace.run("--set", "calm.learning_rate=5e-4")
    assert changed.returncode == 0, changed.stdout + changed.stderr
    assert last_states(changed.stdout) == {
        "prepare": "cached",
        "train-autoencoder": "cached",
        "train-calm": "done",
        "evaluate": "done",
        **NEVER_CACHED,
    }
    assert "registered: calm version 2" in changed.stdout


def test_the_baseline_is_trained_and_scored_when_the_settings_say_so(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    run = workplace.run("--set", "train_baseline=true")
    assert run.returncode == 0, run.stdout + run.stderr
    states = last_states(run.stdout)
    assert states["train-transformer"] == states["evaluate-transformer"] == "done"
    assert states["train-calm"] == states["evaluate"] == "cached"
    assert run.stdout.count("Transformer") == 1  # heads the baseline's column
    made = [Artifact.of_any_kind(workplace.outputs()[name]) for name in ("baseline_model", "baseline_report")]
    assert made[1].manifest.parents["transformer"] == made[0].digest
    again = workplace.run("--set", "train_baseline=true")
    assert set(last_states(again.stdout).values()) == {"cached", "done"}  # registering is never cached
    assert again.stdout[again.stdout.index("scores x 100") :].startswith(
        run.stdout[run.stdout.index("scores x 100") :].partition("total time")[0]
    )


def test_prompts_and_names_that_look_like_placeholders_are_taken_as_they_are(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    """Kubeflow would run the evaluation with its own text in their place, or break."""
    prompts = ["{{$}} {{$.inputs.parameters['seed']}}", "{{workflow.name}} 100 %", "/kfp-workspace"]
    source = "{{$.inputs.parameters['data']}} 50%.jsonl"
    shutil.copy(workplace.folder / "b.jsonl", workplace.folder / "b")
    (workplace.folder / "b.jsonl").rename(workplace.folder / source)
    run = workplace.run("--source", source, "--set", f"evaluation.prompts={json.dumps(prompts)}", source="a.jsonl")
    (workplace.folder / source).unlink()
    (workplace.folder / "b").rename(workplace.folder / "b.jsonl")
    assert run.returncode == 0, run.stdout + run.stderr
    # The file of the same content has another name, so preparing looks at it anew; what it makes is the same.
    assert last_states(run.stdout)["train-calm"] == "cached"
    evaluation = Artifact(workplace.outputs()["evaluation_report"], EvaluationFacts)
    assert [sample.prompt for sample in evaluation.facts.samples] == prompts


def damage(file: Path) -> None:
    """Change a byte in its place, as a disk does: every name of the file has it."""
    with file.open("r+b") as content:
        content.seek(file.stat().st_size // 2)
        byte = content.read(1)
        content.seek(-1, os.SEEK_CUR)
        content.write(bytes([byte[0] ^ 1]))


def test_a_run_repairs_what_it_finds_damaged_and_repeats_nothing_else(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    """A shard, which dataset and partition share; the dataset's manifest; the weights; the report."""
    assert workplace.run().returncode == 0
    uris = workplace.outputs()
    made = {name: Artifact.of_any_kind(uri) for name, uri in uris.items()}
    before = {name: artifact.digest for name, artifact in made.items()}
    damage(next(Path(made["dataset"].uri).glob("train/*.parquet")))
    damage(Path(made["calm_model"].uri, "weights.safetensors"))
    Path(made["evaluation_report"].uri, "report.html").unlink()
    repaired = workplace.run()
    assert repaired.returncode == 0, repaired.stdout + repaired.stderr
    assert last_states(repaired.stdout) == {
        "prepare": "done",
        "train-autoencoder": "cached",
        "train-calm": "done",
        "evaluate": "done",
        **NEVER_CACHED,
    }
    after = {name: Artifact.of_any_kind(uri) for name, uri in workplace.outputs().items()}
    for artifact in after.values():
        artifact.check_files()
    assert {name: artifact.digest for name, artifact in after.items()} == before
    Path(workplace.outputs()["dataset"], "manifest.json").unlink()
    again = workplace.run()
    assert again.returncode == 0, again.stdout + again.stderr
    assert last_states(again.stdout) == dict.fromkeys(STAGES, "cached") | NEVER_CACHED | {"prepare": "done"}
    assert Artifact.of_any_kind(workplace.outputs()["dataset"]).digest == before["dataset"]


def test_a_tokenizer_that_is_named_by_path_counts_by_its_content(tmp_path: Path) -> None:
    """The runs are stopped after preparing."""
    place = Workplace(tmp_path)
    place.write("a.jsonl", [document(number) for number in range(40)])
    (place.folder / "tok").mkdir()
    settings = ["--set", "tokenizer.source=tok"]

    def prepared() -> str:
        with place.started("*.jsonl", *settings) as run:
            assert run.stdout is not None
            lines = [run.stdout.readline()]
            while lines[-1] and not lines[-1].startswith("train-autoencoder: "):
                lines.append(run.stdout.readline())
            run.terminate()
        return last_states("".join(lines))["prepare"]

    for size in (300, 280):
        tokenizer = Tokenizer.train([document(number) for number in range(9)], size)
        (place.folder / "tok" / "tokenizer.json").write_bytes(tokenizer.to_bytes())
        assert prepared() == "done"
    datasets = place.folder.glob(".calm/pipeline/*/merge-partitions/dataset")
    assert sorted(Artifact(str(uri), DatasetFacts).facts.vocab_size for uri in datasets) == [280, 300]
    (place.folder / "tok" / "tokenizer.json").unlink()
    deleted = place.run(*settings)
    assert deleted.stderr.startswith("error tok: holds no tokenizer.json")


def test_the_registered_model_writes_the_same_text_for_the_same_seed(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    texts = [workplace.calm("generate", "Country 7", "--max-new-tokens", "8", "--seed", "1") for _ in range(2)]
    assert texts[0].returncode == 0, texts[0].stderr
    assert texts[0].stdout.startswith("Country 7")
    assert texts[0].stdout == texts[1].stdout


def test_mlflow_holds_a_run_with_a_child_for_each_stage(
    first_run: subprocess.CompletedProcess[str], workplace: Workplace
) -> None:
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{workplace.folder}/.calm/mlflow.db")
    experiment = client.get_experiment_by_name("calm")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], order_by=["attributes.start_time ASC"])
    parent = runs[0]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert parent.info.run_name == "calm-train"
    assert {run.info.status for run in [parent, *children]} == {"FINISHED"}
    assert {run.data.tags["calm.stage"] for run in children} >= {"train-autoencoder", "train-calm"}
    assert parent.data.params["calm.model.hidden_size"] == "16"
    assert {"brierlm", "brier_1", "brier_4", "autoencoder_accuracy"} <= set(parent.data.metrics)


@contextmanager
def run_at_work(folder: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A `calm run` that is preparing its text, and the processes below it: Kubeflow's runner, a task."""
    place = Workplace(folder)
    place.write("a.jsonl", [document(number) for number in range(40)])
    with place.started("*.jsonl") as run:
        assert run.stdout is not None
        while not run.stdout.readline().startswith("prepare: running"):
            assert run.poll() is None
        processes = psutil.Process(run.pid).children(recursive=True)
        assert len(processes) >= 2
        yield run, processes


def test_a_stopped_run_leaves_no_process_and_says_how_to_go_on(tmp_path: Path) -> None:
    with run_at_work(tmp_path) as (run, processes):
        run.send_signal(signal.SIGTERM)
        assert run.wait(timeout=60) == 128 + signal.SIGTERM
        assert run.stderr is not None
        assert "run the same command again" in run.stderr.read()
        assert [process for process in processes if process.is_running()] == []
        assert list((tmp_path / "temporary").iterdir()) == []


@pytest.fixture(scope="module")
def training_place(tmp_path_factory: pytest.TempPathFactory) -> Workplace:
    """Where runs train without end, after the first one with text that is prepared."""
    place = Workplace(tmp_path_factory.mktemp("training"))
    place.write("a.jsonl", [document(number) for number in range(40)])
    return place


KILLED = "was killed (SIGKILL), perhaps for want of memory: this machine has "
PROCESSES = {
    "torch.distributed.run's own": ("calm_core.training.agent", f"torchrun {KILLED}"),
    "a rank": ("calm_core.training.worker", f"a rank {KILLED}"),
    "a task": ("kfp.dsl.executor_main", f"its process {KILLED}"),
    "Kubeflow's runner": ("pipelines.local.worker", f"its process {KILLED}"),
}


@pytest.mark.parametrize(("module", "reason"), PROCESSES.values(), ids=PROCESSES.keys())
def test_a_run_whose_process_is_killed_says_in_one_line_which_one(
    module: str, reason: str, training_place: Workplace
) -> None:
    """As the kernel does for want of memory."""
    with training_place.started("*.jsonl", "--set", "autoencoder.steps=1000000") as run:
        processes = _down_to(run, "calm_core.training.worker")
        next(process for process in processes if _module_of(process) == module).kill()
        assert run.stderr is not None
        # A slow machine is told what is being checked.
        [line] = [line for line in run.stderr.read().splitlines() if not line.endswith(" ...")]
        assert run.wait(timeout=60) == 1
    assert line.startswith(f"error train-autoencoder: {reason}")
    assert line.count("run the same command again") == 1
    assert "finished stages come from the cache (log: " in line
    assert psutil.wait_procs(processes, timeout=60)[1] == []
    assert list(training_place.temporary.iterdir()) == []


def _down_to(run: "subprocess.Popen[str]", module: str) -> list[psutil.Process]:
    """The processes below a run, once there is one of this module."""
    while True:
        assert run.poll() is None, run.communicate()
        processes = psutil.Process(run.pid).children(recursive=True)
        if any(_module_of(process) == module for process in processes):
            return processes
        time.sleep(0.05)


def _module_of(process: psutil.Process) -> str:
    """The module that a Python process runs; empty where it runs none, or has ended."""
    try:
        words = process.cmdline()
        return words[words.index("-m") + 1]
    except (psutil.Error, ValueError):
        return ""


@pytest.mark.parametrize(
    ("log", "said"),
    [
        (["Running pipeline", "done"], ""),
        (
            ["error: s3://a: no such artifact", "RuntimeError: Pipeline 'calm-train' finished"],
            "s3://a: no such artifact",
        ),
        (
            [
                "Traceback (most recent call last):",
                '  File "executor.py", line 3, in main',
                "    broken()",
                "TypeError: no reason",
                "",
                "Traceback (most recent call last):",
                '  File "worker.py", line 9, in run',
                "RuntimeError: Pipeline 'calm-train' finished with status FAILURE. Inner task failed: 'scan'.",
            ],
            "TypeError: no reason",
        ),
        (
            [
                "Traceback (most recent call last):",
                '  File "cache.py", line 1, in put',
                "IsADirectoryError: .calm/cache/a",
            ],
            "IsADirectoryError: .calm/cache/a",
        ),
    ],
    ids=["nothing", "an error of ours", "a fault in a task", "a fault in Kubeflow's runner"],
)
def test_a_log_tells_why_a_run_has_failed(log: list[str], said: str) -> None:
    assert last_words("\n".join(log)) == said


def test_a_run_ends_when_the_process_that_watches_it_is_killed(tmp_path: Path) -> None:
    with run_at_work(tmp_path) as (run, processes):
        run.kill()
        _, alive = psutil.wait_procs(processes, timeout=20)
        assert alive == []
        assert list((tmp_path / "temporary").iterdir()) == []
