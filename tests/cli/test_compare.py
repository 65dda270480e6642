"""`calm compare`: tables, a picture and JSON of the same numbers."""

import io
import re
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from benchmarks.resampling import USUAL, drawn_pair
from calm_cli.compare import _show_bars
from calm_cli.screen import Screen
from calm_core.config import RegistryConfig
from calm_core.evaluation.documents import DocumentScores
from calm_core.registry.stage import register_model
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import Difference, EvaluationFacts, References, ScoreDifference
from pipelines.local.home import Home
from pipelines.local.tracking import use_tracking
from tests.cli.test_main import call
from tests.cli.test_results import KEYS, strict


def written(scores: DocumentScores, model: str, output: str, accuracy: float | None = None) -> str:
    """An evaluation that found these scores."""
    numbers = scores.scores(resamples=200, confidence=0.95, seed=0)
    with ArtifactWriter(output, EvaluationFacts, {"model": model}, {"dataset": "0" * 64}) as writer:
        scores.write(writer)
        writer.facts = EvaluationFacts(
            model=model,
            autoencoder_accuracy=accuracy,
            **dict(numbers),
            protocol={"dataset": "0" * 64, "positions": scores.positions},
            references=References(untrained=numbers, unigram=numbers),
            samples=[],
        )
    return output


@pytest.fixture(scope="module")
def evaluations(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of a CALM model, of a Transformer that is clearly better, and of one that is equal to that, in folders whose
    long names differ in the middle."""
    folder = tmp_path_factory.mktemp("compared")
    worse, better = drawn_pair(np.random.default_rng(0), USUAL, 200, (0.7, 1.0), own=0.0).by_document()
    models = {"first": ("CALM", worse, 0.99), "second": ("Transformer", better, None), "third": ("same", better, None)}
    return [
        written(scores, model, f"{folder}/{'runs/' * 20}{name}/evaluate/evaluation_report", accuracy)
        for name, (model, scores, accuracy) in models.items()
    ]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Home:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Home.find()


def test_models_are_named_and_each_is_compared_with_the_first(
    evaluations: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert call("compare", *evaluations, "--json") == 0
    numbers = strict(capfd.readouterr().out)
    assert call("compare", *evaluations) == 0
    names, *tables, bars = capfd.readouterr().out.split("\n\n")
    for number, (line, uri) in enumerate(zip(names.splitlines()[1:], evaluations, strict=True), 1):
        facts = Artifact(uri, EvaluationFacts).facts
        assert line.startswith(f"{number}  {facts.model}  ") and line.endswith(f"  {uri}")
        assert f"  {facts.brierlm.value:.2f} [" in line
    for number, (table, told) in enumerate(zip(tables, numbers["differences"], strict=True), 2):
        heading, *rows, verdict = table.splitlines()
        assert heading.split("  ")[0] == f"{number} against 1, x 100"
        assert [row.split()[0] for row in rows] == ["BrierLM", *(f"Brier-{n}" for n in "1234")]  # one has no accuracy
        assert all(len(row) <= len(heading) <= 80 for row in rows)
        brierlm = told["brierlm"]
        assert f"{brierlm['value']:+z.2f} [{brierlm['low']:z.2f}, {brierlm['high']:z.2f}]" in rows[0]
        assert rows[0].endswith(f"  {brierlm['corrected_p_value']:.2g}")
        assert f"{100 * told['brier']['1']['value']:+z.2f} [" in rows[1]
        assert verdict.startswith(f"{number} ") and f"on {told['documents']} documents" in verdict
    assert len(bars.splitlines()) == len(evaluations)


def test_accuracies_stand_beside_the_scores_where_both_models_have_them(
    evaluations: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    scores = DocumentScores.read(Artifact(evaluations[1], EvaluationFacts))
    other = written(scores, "CALM", str(tmp_path / "other"), accuracy=0.985)
    assert call("compare", evaluations[0], other) == 0
    assert re.search(r"^token accuracy +99\.00 +98\.50 +-0\.50$", capfd.readouterr().out, re.MULTILINE)


def test_json_has_the_evaluations_and_the_differences(
    evaluations: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = evaluations
    assert call("compare", first, second, "--json", "--resamples", "1000", "--confidence", "0.9") == 0
    told = strict(capfd.readouterr().out)
    assert [one["uri"] for one in told["evaluations"]] == [first, second]
    assert all(list(one) == KEYS for one in told["evaluations"])
    [difference] = told["differences"]
    assert (difference.pop("uri"), difference.pop("less"), difference.pop("verdict")) == (second, first, "better")
    found = Difference.model_validate(difference)
    assert (found.resamples, found.confidence) == (1000, 0.9)
    assert found.brierlm.corrected_p_value is None and found.verdict == "better"
    scores = [Artifact(uri, EvaluationFacts).facts.brierlm.value for uri in (first, second)]
    assert found.brierlm.value == pytest.approx(scores[1] - scores[0])


def test_equal_models_cannot_be_told_apart(evaluations: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert call("compare", *evaluations[1:]) == 0
    out = capfd.readouterr().out
    assert re.search(r"^2 and 1 cannot be told apart \(p = 1 on \d+ documents\)", out, re.MULTILINE)
    assert out.count("+0.00 [0.00, 0.00]") == 5


@pytest.mark.parametrize(("name", "begins"), [("a.png", b"\x89PNG"), ("a.SVG", b"<?xml"), ("a.pdf", b"%PDF")])
def test_the_picture_is_a_file_of_the_named_kind(
    name: str, begins: bytes, evaluations: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pictures = []
    for _ in range(2):
        assert call("compare", *evaluations, "--plot", name) == 0
        pictures.append(Path(name).read_bytes())
    assert pictures[0].startswith(begins) and pictures[0] == pictures[1]
    if begins == b"<?xml":
        texts = "".join(ElementTree.fromstring(pictures[0].decode()).itertext())
        assert "difference to 1" in texts and "prefers-color-scheme" in texts


def test_a_registered_model_brings_its_evaluation(
    evaluations: list[str],
    evaluation_uri: str,
    model_uris: tuple[str, str],
    home: Home,
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
) -> None:
    use_tracking(home, "calm")
    register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(tmp_path / "registration"))
    capfd.readouterr()
    assert call("compare", "models:/calm@champion", evaluation_uri, "--json") == 0
    told = strict(capfd.readouterr().out)
    assert [one["uri"] for one in told["evaluations"]] == ["models:/calm@champion", evaluation_uri]
    assert len({one["digest"] for one in told["evaluations"]}) == 1
    assert call("compare", evaluations[0], "models:/calm@champion") == 1
    assert f"{evaluations[0]} and models:/calm@champion cannot be compared" in capfd.readouterr().err


def bars(*found: tuple[float, float | None, float | None], encoding: str = "utf-8") -> str:
    buffer = io.BytesIO()
    terminal = io.TextIOWrapper(buffer, encoding=encoding)
    scores = [ScoreDifference(value=value, low=low, high=high, p_value=1) for value, low, high in found]
    about = {"brier": {}, "documents": 9, "positions": 9, "resamples": 9, "confidence": 0.95}
    _show_bars([Difference.model_validate(about | {"brierlm": score}) for score in scores], Screen(file=terminal))
    terminal.flush()
    return buffer.getvalue().decode(encoding)


def test_bars_lie_where_their_numbers_do() -> None:
    scale, first, second, third = bars((1, 0.5, 3), (-0.5, -1, 0.2), (2, None, None)).splitlines()
    assert scale.startswith("BrierLM   -1.00 ") and scale.endswith(" 3.00")
    assert first == "2 less 1  " + " " * 10 + "│" + " " * 4 + "├" + "─" * 4 + "●" + "─" * 19 + "┤"
    assert second == "3 less 1  ├────●────┼─┤"
    assert third == "4 less 1  " + " " * 10 + "│" + " " * 19 + "●"
    assert (
        bars((-0.5, -1, 1), encoding="ascii").splitlines()[1] == "2 less 1  [---------o---------+-------------------]"
    )
    assert bars((0, 0, 0)) == ""  # nothing to see
