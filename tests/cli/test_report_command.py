"""`calm report`: whatever names a run leads to its page."""

import json
import sys
import webbrowser
from pathlib import Path

import pytest

from calm_cli.main import main
from calm_core.report.stage import report
from calm_core.store.artifact import Artifact
from calm_core.store.facts import EvaluationFacts, ReportFacts
from pipelines.local.home import Home
from tests.report.pages import write_run

RUN = "run-20261126-031500-abcdefgh"


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The page of a run in the home of the current folder."""
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.chdir(tmp_path)
    home = Home.find()
    uris = write_run(home.pipeline_root / "calm-train-1")
    outputs = {"evaluation_report": uris["evaluation"], "registration": uris["registration"]}
    outputs["run_report"] = report(*uris.values(), str(home.pipeline_root / "calm-train-1" / "report")).uri
    for name in (RUN, "run-20261126-031600-failed"):
        (home.logs / name).mkdir(parents=True)
    (home.logs / RUN / "outputs.json").write_text(json.dumps(outputs))
    return Path(outputs["run_report"], "report.html")


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as ending:
        main(["report", *arguments])
    out, err = capsys.readouterr()
    return (err if ending.value.code else out).strip()


@pytest.mark.parametrize("named", ["", "1", RUN, "20261126-0315", "home/pipeline/calm-train-1/report"])
def test_a_run_is_named_by_number_name_or_artifact_and_the_newest_by_nothing(
    named: str, page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest run has failed, so it has no page."""
    assert told(capsys, *filter(None, [named])) == str(page)


def test_an_evaluation_has_a_page_of_its_own(
    page: Path, evaluation_page: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert told(capsys, str(evaluation_page.parent)) == str(evaluation_page)


@pytest.fixture
def evaluation_page(tmp_path: Path) -> Path:
    from calm_core.store.artifact import ArtifactWriter
    from tests.report.pages import evaluation

    with ArtifactWriter(str(tmp_path / "evaluation"), EvaluationFacts, {}, {}) as writer:
        writer.write("report.html", b"<p>scores</p>")
        writer.facts = evaluation()
    return tmp_path / "evaluation" / "report.html"


def test_it_is_written_where_one_says_and_over_nothing(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, "--output", "copy.html") == "copy.html"
    assert Path("copy.html").read_bytes() == page.read_bytes()
    Path("copy.html").write_text("mine")
    assert told(capsys, "--output", "copy.html").endswith(
        "copy.html: is there already; name another file with --output"
    )
    assert Path("copy.html").read_text() == "mine"


def test_a_page_that_has_changed_is_not_shown(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Artifact(str(page.parent), ReportFacts).check_files()
    page.write_bytes(page.read_bytes().replace(b"champion", b"Champion"))
    assert "report.html: file is damaged" in told(capsys, "1")


def test_a_run_without_a_page_says_how_it_ended(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "2: this run has no report: did not finish" in told(capsys, "2")


@pytest.mark.parametrize(("terminal", "display", "opened"), [(True, ":0", 1), (True, "", 0), (False, ":0", 0)])
def test_a_browser_opens_on_a_terminal_with_a_screen_alone(
    terminal: bool,
    display: str,
    opened: int,
    page: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    urls: list[str] = []
    monkeypatch.setattr(webbrowser, "open", urls.append)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: terminal)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("DISPLAY", display)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    assert told(capsys).endswith(str(page))
    assert urls == [page.as_uri()] * opened
