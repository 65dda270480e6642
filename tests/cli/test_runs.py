"""`calm runs`: the list and all about one run, of folders as runs leave them, and of damaged ones."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
import pytest

from calm_cli.main import main
from calm_cli.options import configuration
from calm_cli.runs import asked_for
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import EvaluationFacts, RegistrationFacts, Score
from calm_core.telemetry.progress import ProgressEvent
from pipelines.arguments import arguments_of
from pipelines.local.home import Home
from pipelines.local.runs import past_runs

NAMES = [f"run-20261124-18051{i}-abcdefg{i}" for i in range(9)]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)
    return Home(tmp_path / "home")


@pytest.fixture
def artifacts(home: Home, evaluation_uri: str) -> dict[str, str]:
    """An evaluation with a known score, and a registration, where a pipeline writes them."""
    evaluation = Artifact(evaluation_uri, EvaluationFacts)
    uris = {name: str(home.pipeline_root / "calm-train-1" / name) for name in ("evaluation_report", "registration")}
    brier = {n: Score(value=0.18417) for n in evaluation.facts.brier}
    score = Score(value=18.417, low=16.3734, high=20.6867)
    with ArtifactWriter(uris["evaluation_report"], EvaluationFacts, {}, evaluation.manifest.parents) as writer:
        writer.facts = evaluation.facts.model_copy(update={"brierlm": score, "brier": brier})
    with ArtifactWriter(uris["registration"], RegistrationFacts, {}, {}) as registration:
        registration.facts = RegistrationFacts(
            model_name="calm",
            version="4",
            alias="champion",
            model_uri="models:/calm/4",
            promoted=False,
            reason="champion stays with version 1 (18.42 against 12.30)",
        )
    return uris


def leave(
    home: Home, name: str, *, changed: tuple[str, ...] = (), events: tuple[ProgressEvent, ...] = (), **files: Any
) -> Path:
    """The folder of a run, with what `calm run` would have left in it by then."""
    config = configuration("tiny", changed)
    request: Mapping[str, Any] = {
        "arguments": arguments_of(config, str(home.plans), str(home.checkpoints)),
        "pipeline_root": str(home.pipeline_root),
        "asked": asked_for("run", "tiny", (), None, changed, config),
        "started": 1000.0,
        "process": 2**22 + 1,  # beyond the highest one there can be
        "process_started": 1.0,
    }
    folder = home.logs / name
    folder.mkdir(parents=True)
    (folder / "request.json").write_text(json.dumps({**request, **files.pop("request", {})}))
    (folder / "progress.jsonl").write_text("".join(event.model_dump_json() + "\n" for event in events))
    for file, content in files.items():
        (folder / f"{file}.json").write_text(json.dumps(content))
    return folder


def event(stage: str, state: Any = "running", note: str = "") -> ProgressEvent:
    return ProgressEvent(time=1001.0, stage=stage, state=state, note=note)


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ending:
        main(["runs", *arguments])
    out, err = capsys.readouterr()
    assert err == ""
    assert not ending.value.code
    return out


@pytest.fixture
def every_kind(home: Home, artifacts: dict[str, str]) -> None:
    """Six runs: done, failed, stopped, at work, killed, and one of a version that noted no more than its outputs."""
    leave(home, NAMES[0], request={"asked": None}, outputs=artifacts)
    changed = ("calm.learning_rate=5e-4", "autoencoder.steps=70", "calm.steps=90", "data.sources=[a b.jsonl]")
    leave(home, NAMES[1], changed=changed, outputs=artifacts, ended={"state": "done", "time": 1065.0})
    failed = event("prepare", "failed", "a.jsonl: no such file")
    leave(home, NAMES[2], events=(event("prepare"), failed), ended={"state": "failed", "time": 1003.0})
    trained = (event("prepare", "finished"), event("train-autoencoder"))
    leave(home, NAMES[3], events=trained, ended={"state": "stopped", "time": 1003.0})
    own = {"process": os.getpid(), "process_started": psutil.Process().create_time()}
    leave(home, NAMES[4], events=(event("evaluate"),), request=own)
    leave(home, NAMES[5], events=(event("train-calm"),), changed=("seed=1",))


def test_the_list_has_one_row_a_run_at_80_columns(
    every_kind: None, home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    heading, *rows = shown(capsys).splitlines()
    assert heading.startswith("run  started ")
    assert [row.rstrip() for row in rows[:6]] == [
        "  6  2026-11-24 18:05  did not finish: train-calm          seed=1",
        "  5  2026-11-24 18:05  running: evaluate",
        "  4  2026-11-24 18:05  stopped: train-autoencoder",
        "  3  2026-11-24 18:05  failed: prepare",
        "  2  2026-11-24 18:05  18.42 [16.37, 20.69]        calm/4  calm.steps=90 autoen…",
        "  1  2026-11-24 18:05  18.42 [16.37, 20.69]        calm/4",
    ]
    assert all(len(row) <= 80 for row in rows[:6])
    told = " ".join(rows[6:])
    assert str(home.pipeline_root) in told and str(home.logs) in told and "calm runs 6" in told and "--output" in told


def test_a_narrow_terminal_still_shows_which_run_each_is(
    every_kind: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    lines = shown(capsys).splitlines()
    assert [line[:21] for line in lines if line[:3].strip().isdecimal()] == [
        f"  {number}  2026-11-24 18:05" for number in (6, 5, 4, 3, 2, 1)
    ]
    assert all(len(line) <= 60 for line in lines[: lines.index("")])


def test_one_run_is_shown_with_all_that_belongs_to_it(
    every_kind: None, artifacts: dict[str, str], home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys, "2")
    for uri in artifacts.values():
        assert uri in told and Artifact.of_any_kind(uri).digest in told
    for part in (
        "done, after 1:05",
        "calm.learning_rate: 0.0005",
        "18.42 [16.37, 20.69]",
        "models:/calm/4",
        "champion stays with version 1 (18.42 against 12.30)",
        f"{artifacts['evaluation_report']}/report.html",
        str(home.logs / NAMES[1] / "pipeline.log"),
        "again       calm run --set calm.learning_rate=5e-4 --set autoencoder.steps=70 --set calm.steps=90 "
        "--set 'data.sources=[a b.jsonl]'",
    ):
        assert part in told
    assert "to go on  calm run\n" in shown(capsys, "3") and "a.jsonl: no such file" in shown(capsys, "3")


def test_what_a_failed_run_had_made_is_shown(
    home: Home, evaluation_uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """And not what runs before and after it have made."""
    for name in NAMES[:3]:
        leave(home, name, events=(event("register", "failed", "no"),), ended={"state": "failed", "time": 1003.0})
    made = [f"calm-train-2026-11-24-18-05-1{second}-000001" for second in range(3)]
    for folder in made:
        shutil.copytree(evaluation_uri, home.pipeline_root / folder / "evaluate" / "evaluation_report")
    told = shown(capsys, "2")
    assert f"evaluate/evaluation_report: {home.pipeline_root}/{made[1]}/evaluate/evaluation_report" in told
    assert made[0] not in told and made[2] not in told


@pytest.mark.parametrize("name", ["2", NAMES[1], NAMES[1][:-1], NAMES[1].removeprefix("run-")])
def test_a_run_is_named_by_its_number_or_the_beginning_of_its_name(
    name: str, every_kind: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert f"run         2  {NAMES[1]}" in shown(capsys, name)


def test_a_name_of_several_runs_or_of_none_is_one_line(every_kind: None, capsys: pytest.CaptureFixture[str]) -> None:
    for name, said in (("run-2026", "6 runs have names that begin so"), ("99", "no run has this number"), ("0", "no ")):
        with pytest.raises(SystemExit) as ending:
            main(["runs", name])
        out, err = capsys.readouterr()
        assert (ending.value.code, out, err.count("\n")) == (1, "", 1)
        assert said in err


def test_json_says_the_same_to_machines(
    every_kind: None, artifacts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    listed = json.loads(shown(capsys, "--json"))
    endings = ["unknown", "running", "stopped", "failed", "done", "done"]
    assert [each["ended"] for each in listed] == endings
    one = json.loads(shown(capsys, "2", "--json"))
    assert one["settings"]["calm"]["learning_rate"] == 5e-4 and "settings" not in listed[4]
    assert one["brierlm"] == {"value": 18.417, "low": 16.3734, "high": 20.6867}
    assert one["registered"]["version"] == "4" and not one["registered"]["promoted"]
    assert one["artifacts"]["registration"]["digest"] == Artifact.of_any_kind(artifacts["registration"]).digest
    assert one["changed"]["calm.steps"] == "90"


def test_where_nothing_has_run_it_is_one_line_and_no_folder_is_made(
    home: Home, capsys: pytest.CaptureFixture[str]
) -> None:
    told = shown(capsys)
    assert told.count("\n") == 1 and "nothing has run here yet" in told
    assert not home.path.exists()
    assert json.loads(shown(capsys, "--json")) == []


def test_a_home_that_was_moved_shows_what_lies_in_it_now(
    every_kind: None, home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "elsewhere"
    shutil.move(home.path, moved)
    monkeypatch.setenv("CALM_HOME", str(moved))
    told = shown(capsys, "2")
    assert f"{moved}/pipeline/calm-train-1/registration" in told and str(home.path) not in told
    assert "18.42 [16.37, 20.69]" in told


def test_damage_never_breaks_the_list(
    home: Home, artifacts: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    files = ("request.json", "outputs.json", "progress.jsonl", "ended.json")
    contents = [b"", b"{", b"[]", b"null", b"3", b"\xff\xfe\x00", b"[" * 100_000]
    contents += [b'{"state": {}, "asked": [], "process": "x"}', b'{"process": 1e99, "process_started": "x"}']
    contents += [b'{"asked": {"command": 3, "changed": [1]}, "arguments": [], "pipeline_root": 7}']
    contents += [b'{"registration": 3, "evaluation_report": "no/where"}']
    whole = leave(home, NAMES[0], outputs=artifacts, ended={"state": "done", "time": 1.0}, events=(event("prepare"),))
    number = 0
    for file in files:
        for content in [*contents, None]:
            number += 1
            folder = shutil.copytree(whole, home.logs / f"run-20261124-19{number:04}-damaged")
            (folder / file).unlink()
            if content is None:
                (folder / file).mkdir()  # of all things
            else:
                (folder / file).write_bytes(content)
    (home.logs / "run-\x1b[31m-odd name").mkdir()
    (home.logs / "run-a-file").touch()
    Path(artifacts["registration"], "manifest.json").write_text("{")
    told = shown(capsys)
    assert told.count("2026-11-24") == 1 + len(files) * (len(contents) + 1)
    assert "\x1b" not in told and "odd name" in told
    assert len(json.loads(shown(capsys, "--json"))) == number + 2
    for past in past_runs(home):
        assert "all settings" in shown(capsys, str(past.number))
    assert "damaged manifest" in shown(capsys, NAMES[0])


def test_it_loads_nothing_heavy(home: Home) -> None:
    script = (
        "import sys\n"
        "from calm_cli.main import main\n"
        "try: main(['runs'])\n"
        "except SystemExit: print({'torch', 'mlflow', 'deepspeed', 'kfp', 'pyarrow'} & set(sys.modules))"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "set()"


def test_what_is_unfinished_is_counted(home: Home, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("autoencoder-0", "calm-1"):
        (home.checkpoints / name / "spec").mkdir(parents=True)
    (home.checkpoints / "calm-1.log").touch()
    told = shown(capsys)
    assert f"checkpoints of 2 unfinished trainings: {home.checkpoints}/; delete the folder of one that" in told
    (home.checkpoints / "evaluation-2").mkdir()
    assert "checkpoints of 2 unfinished trainings and 1 unfinished evaluation: " in shown(capsys)
