"""What every component keeps to, and what the bodies share."""

import ast
import json
import os
import sys
from pathlib import Path

import pytest
from kfp import dsl

from calm_core.errors import CalmError, ConfigError, Interrupted, SourceError
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter
from calm_core.store.code_version import CODE_VERSION_VARIABLE
from calm_core.store.facts import DuplicatesFacts
from components import body, readme
from components.image import IMAGE

FOLDERS = readme.folders()
in_every_component = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


@in_every_component
def test_readme_is_up_to_date(folder: Path) -> None:
    text = (folder / "README.md").read_text()
    assert text == readme.readme(folder), "run: python -m components.readme"


@in_every_component
def test_top_level_imports_standard_library_and_kubeflow_only(folder: Path) -> None:
    """Kubeflow copies the body alone into the task, so what it needs must be imported inside it."""
    tree = ast.parse((folder / "component.py").read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    modules |= {alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
    allowed = sys.stdlib_module_names | {"kfp", "components.image"}
    assert {module for module in modules if module not in allowed} == set()


@in_every_component
def test_runs_in_our_image_and_carries_the_code_version(folder: Path) -> None:
    spec = readme.component_of(folder).component_spec
    assert spec.implementation.container.image == IMAGE
    assert spec.inputs["code_version"].type == "String"


@pytest.fixture
def clean_code_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(CODE_VERSION_VARIABLE, "before")  # restored after the test


@pytest.mark.usefixtures("clean_code_version")
@pytest.mark.parametrize(("error", "code"), [(SourceError, 1), (ConfigError, 2), (Interrupted, 75)])
def test_a_users_error_ends_the_task_with_its_line_and_its_exit_code(
    error: type[CalmError], code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ending, body.stage("image@sha256:1"):
        raise error("texts/*.jsonl: no such file")
    assert ending.value.code == code
    assert capsys.readouterr().err == "error: texts/*.jsonl: no such file\n"


@pytest.mark.usefixtures("clean_code_version")
def test_the_stage_sees_the_code_version_of_the_cache_key() -> None:
    with body.stage("image@sha256:1"):
        assert os.environ[CODE_VERSION_VARIABLE] == "image@sha256:1"


def test_metrics_are_logged_and_written_to_their_file(tmp_path: Path) -> None:
    metrics = dsl.Metrics(uri=str(tmp_path / "task" / "metrics"))
    body.log_metrics(metrics, {"brierlm": 0.25})
    assert metrics.metadata == {"brierlm": 0.25}
    assert json.loads(Path(metrics.path).read_text()) == {"brierlm": 0.25}


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_of_json_is_left_out(number: float, tmp_path: Path) -> None:
    """A bare NaN in an output's metadata fails the finished task in Kubeflow's launcher."""
    metrics = dsl.Metrics(uri=str(tmp_path / "metrics"))
    body.log_metrics(metrics, {"brierlm": 0.25, "loss": number, "unset": None})

    def refuse(constant: str) -> None:
        raise ValueError(constant)

    text = Path(metrics.path).read_text()
    assert metrics.metadata == json.loads(text, parse_constant=refuse) == {"brierlm": 0.25}


def test_what_kubeflow_shows_lies_at_the_place_of_the_output_and_is_bounded(tmp_path: Path) -> None:
    page = dsl.HTML(uri=str(tmp_path / "task" / "page"))
    body.show(page, "<p>é</p>")
    assert Path(page.path).read_bytes() == "<p>é</p>".encode()
    body.show(page, b"x" * (body.MOST_SHOWN_BYTES + 1))
    assert Path(page.path).stat().st_size < 100


RUN = "12345678-1234-1234-1234-123456789abc"


@pytest.mark.parametrize(
    ("uri", "root"),
    [
        (
            f"minio://mlpipeline/v2/artifacts/calm-train/{RUN}/train-calm/{RUN}/calm_model",
            "minio://mlpipeline/v2/artifacts",
        ),
        (
            f"minio://b/private-artifacts/team/v2/artifacts/calm-train/{RUN}/x/y/z",
            "minio://b/private-artifacts/team/v2/artifacts",
        ),
        (f"s3://bucket/root/p/{RUN}/t/1/model", "s3://bucket/root"),
    ],
)
def test_what_all_runs_share_lies_where_kubeflow_keeps_what_they_made(uri: str, root: str) -> None:
    assert body.root_of("", dsl.Model(uri=uri), "checkpoint") == f"{root}/calm/checkpoints"
    assert body.root_of("s3://b/named", dsl.Model(uri=uri), "checkpoint") == "s3://b/named"


def test_a_place_that_is_not_kubeflows_has_no_root() -> None:
    with pytest.raises(ConfigError, match="plan_root: is empty, and /home/x/task/found is no place of Kubeflow's"):
        body.root_of("", dsl.Model(uri="/home/x/task/found"), "plan")


def test_an_output_holds_its_manifest_alone(tmp_path: Path) -> None:
    """Kubeflow's launcher downloads all that lies there into each pod that it is an input of."""
    output = dsl.Dataset(uri=str(tmp_path / "task" / "scan"))
    with ArtifactWriter(body.place_of(output), DuplicatesFacts, {}, {}) as writer:
        writer.write("keys.bin", b"keys")
        writer.facts = DuplicatesFacts(duplicates=3, near_duplicates=0)
    artifact = Artifact(body.place_of(output), DuplicatesFacts)
    body.describe(output, artifact)
    assert [path.name for path in (tmp_path / "task" / "scan").rglob("*")] == [MANIFEST_NAME]
    assert output.metadata == {"digest": artifact.digest}
    assert Artifact(output.uri, DuplicatesFacts).read("keys.bin") == b"keys"


def test_a_fault_of_ours_ends_a_task_with_its_traceback_but_without_secrets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending, body.stage("image@sha256:1"):
        raise RuntimeError("cannot reach https://user:s3cr3t@host/x\x1b[2J")
    assert ending.value.code == 1
    shown = capsys.readouterr().err
    assert "RuntimeError: cannot reach https://***@host/x\\x1b[2J" in shown
    assert "Traceback" in shown and "s3cr3t" not in shown
