"""`calm registry` on a real MLflow store; most versions have no files."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow import MlflowClient

from calm_cli.main import main
from calm_core.config import RegistryConfig
from calm_core.registry import evidence
from calm_core.registry.aliases import MEASURED_TAG, Aliases, Decision
from calm_core.registry.gate import Contender, judge
from calm_core.store.facts import Decided, Difference, ScoreDifference
from tests.mlflow_tables import new_store

BETTER = {"2": "1", "4": "2"}
"""Versions, and what they are significantly better than."""


def decide(number: str, champion: str | None, rules: RegistryConfig) -> Decided:
    better = BETTER.get(number) == champion
    difference = Difference(
        brierlm=ScoreDifference(value=2.5 if better else -1.0, low=-2.0, high=4.0, p_value=0.01 if better else 0.3),
        brier={n: ScoreDifference(value=0.01, p_value=0.5) for n in "1234"},
        documents=30,
        positions=900,
        resamples=99,
        confidence=0.95,
    )
    return judge(rules, Contender(number), Contender(champion) if champion else None, difference)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = new_store(tmp_path_factory.mktemp("mlflow"))
    MlflowClient(uri).create_registered_model("empty")
    return uri


@pytest.fixture
def client(database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> MlflowClient:
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("COLUMNS", "200")
    mlflow.set_tracking_uri(database)
    return MlflowClient()


@pytest.fixture
def model(client: MlflowClient, request: pytest.FixtureRequest) -> str:
    """A model with five versions: 1, 2 and 4 became champion, one after the other."""
    name = request.node.name.replace("[", "-").replace("]", "")
    client.create_registered_model(name)
    config = RegistryConfig(model_name=name)
    for number in range(1, 6):
        measured = {"brierlm": {"value": 10.0 + number, "low": 9.0, "high": 16.0}, "autoencoder_accuracy": 0.9}
        tags = Decision.begun(config).tags | {MEASURED_TAG: json.dumps(measured), "calm.code_version": "abc"}
        client.create_model_version(name, "file:///nowhere", tags=tags)
        Aliases(config, decide).decide(str(number))
    return name


@pytest.fixture
def calm(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs `calm registry`; gives what it prints, or the line of its error."""

    def run(*arguments: str, exit_code: int = 0) -> str:
        with pytest.raises(SystemExit) as ending:
            main(["registry", *arguments])
        output, error = capsys.readouterr()
        assert ending.value.code == exit_code, error
        return output if exit_code == 0 else error

    return run


def champion(client: MlflowClient, model: str) -> str:
    return str(client.get_model_version_by_alias(model, "champion").version)


def test_versions_are_listed_the_newest_first(model: str, calm: Callable[..., str]) -> None:
    heading, *rows = calm("list", "--model", model).splitlines()
    assert heading.split() == ["version", "aliases", "BrierLM", "registered", "decision"]
    assert [row.split()[0] for row in rows[:5]] == ["5", "4", "3", "2", "1"]
    assert " challenger " in rows[0] and " champion " in rows[1]
    assert "15.00" in rows[0] and "[ 9.00, 16.00]" in rows[0].replace("[9.00", "[ 9.00")
    assert "champion instead of version 2: BrierLM +2.50 [-2.00, 4.00]" in rows[1]
    assert "all about one, e.g. the whole reason: calm registry show 5" in rows[-1]


@pytest.mark.parametrize(
    "measured",
    [
        '{"brierlm": {"value": 1e308, "low": -1e308, "high": 1e308}}',
        f'{{"brierlm": {{"value": {"9" * 4000}}}}}',
        '{"brierlm": {"value": 1.0}, "autoencoder_accuracy": NaN}',
        '{"brierlm": {"value": 1.0}, "autoencoder_accuracy": 1e300}',
        "[" * 5000,
        "null",
    ],
)
def test_a_tag_of_somebody_else_ruins_no_list(
    measured: str, client: MlflowClient, calm: Callable[..., str], tmp_path: Path
) -> None:
    client.create_registered_model(tmp_path.name)
    for text in (measured, '{"brierlm": {"value": 12.5}}'):
        client.create_model_version(tmp_path.name, "file:///nowhere", tags={MEASURED_TAG: text})
    heading, good, bad, *_ = calm("list", "--model", tmp_path.name).splitlines()
    assert heading.split() == ["version", "aliases", "BrierLM", "registered", "decision"]
    assert good.split()[:2] == ["2", "12.50"] and bad.split()[0] == "1" and bad.split()[1].startswith("20")
    assert json.loads(calm("show", "1", "--model", tmp_path.name, "--json"))["brierlm"] is None


def test_scripts_get_json(model: str, calm: Callable[..., str]) -> None:
    listed: list[dict[str, Any]] = json.loads(calm("list", "--model", model, "--json"))
    assert [each["version"] for each in listed] == ["5", "4", "3", "2", "1"]
    assert listed[1]["aliases"] == ["champion"] and listed[1]["state"] == "promoted"
    assert listed[1]["decision"]["champion"] == "2" and listed[1]["decision"]["comparison"]["documents"] == 30
    assert listed[0]["brierlm"] == {"value": 15.0, "low": 9.0, "high": 16.0}
    shown = json.loads(calm("show", "4", "--model", model, "--json"))
    assert shown == listed[1] | {"tags": shown["tags"]} and shown["tags"]["calm.code_version"] == "abc"


def test_one_version_is_shown_whole(model: str, calm: Callable[..., str]) -> None:
    told = calm("show", "3", "--model", model)
    for part in (
        f"models:/{model}/3",
        "kept",
        "champion stays with version 2, since this one is not better: BrierLM -1.00",
        "no: is not better",
        "90.00%",
        "calm.code_version",
        "abc",
    ):
        assert part in told


def test_a_model_without_versions_and_none_at_all(client: MlflowClient, calm: Callable[..., str]) -> None:
    assert calm("list", "--model", "empty") == "empty has no version; `calm run` registers one\n"
    assert "there is no registered model emtpy; did you mean models:/empty?" in calm(
        "list", "--model", "emtpy", exit_code=1
    )


def test_a_version_is_promoted_by_hand_and_rolled_back(
    client: MlflowClient, model: str, calm: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(evidence, "check_files", asked.append)
    told = calm("promote", "3", "--reason", "the tone is right", "--model", model)
    assert told == f"version 3 of {model}: champion instead of version 4, by hand: the tone is right\n"
    assert champion(client, model) == "3" and asked == [f"models:/{model}/3"]
    assert client.get_model_version(model, "3").tags["calm.promotion"].endswith("by hand: the tone is right")
    for before, now in (("3", "4"), ("4", "2"), ("2", "1")):
        told = calm("rollback", "--reason", "it is not", "--model", model)
        assert told == f"champion of {model}: version {now} instead of version {before}\n"
        assert champion(client, model) == now
    assert asked[1:] == [f"models:/{model}/{number}" for number in (4, 2, 1)]
    assert "which version was champion before version 1" in calm(
        "rollback", "--reason", "further", "--model", model, exit_code=1
    )


def test_a_version_whose_files_are_gone_is_not_promoted(
    client: MlflowClient, model: str, calm: Callable[..., str]
) -> None:
    error = calm("promote", "3", "--reason", "why not", "--model", model, exit_code=1)
    assert f"models:/{model}/3: its files are gone (/nowhere" in error
    assert champion(client, model) == "4"


def test_nobody_goes_back_to_a_version_whose_files_are_gone(
    client: MlflowClient, model: str, calm: Callable[..., str]
) -> None:
    error = calm("rollback", "--reason", "why not", "--model", model, exit_code=1)
    assert f"models:/{model}/2: its files are gone (/nowhere" in error
    assert champion(client, model) == "4"


def test_unused_versions_are_listed_and_then_deleted(
    client: MlflowClient, model: str, calm: Callable[..., str]
) -> None:
    """Champions of old stay, as do aliases, the newest, and what this library has not decided about."""
    client.create_model_version(model, "file:///elsewhere")
    config = RegistryConfig(model_name=model)
    for _ in range(3):
        client.create_model_version(model, "file:///nowhere", tags=Decision.begun(config).tags)
        newest = client.search_model_versions(f"name = '{model}'")[0].version
        Aliases(config, decide).decide(str(newest))
    client.set_registered_model_alias(model, "kept-by-hand", "7")
    assert calm("delete-unused", "--model", model, "--keep", "2") == (
        f"unused versions of {model}: 3, 5\nwith --yes they are deleted\n"
    )
    assert json.loads(calm("delete-unused", "--model", model, "--json", "--keep", "5")) == {"unused": ["3"]}
    assert calm("delete-unused", "--model", model, "--keep", "2", "--yes") == f"deleted versions of {model}: 3, 5\n"
    left = {int(each.version) for each in client.search_model_versions(f"name = '{model}'")}
    assert left == {1, 2, 4, 6, 7, 8, 9}
    assert calm("delete-unused", "--model", model, "--keep", "2", "--yes") == f"{model}: no version is unused\n"


def test_what_is_needed_meanwhile_or_in_a_stage_of_mlflow_is_not_deleted(
    client: MlflowClient, model: str, calm: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An alias comes while the version before is deleted."""
    with pytest.warns(FutureWarning):
        client.transition_model_version_stage(model, "3", "Production")
    config = RegistryConfig(model_name=model)
    for _ in range(3):
        number = client.create_model_version(model, "file:///nowhere", tags=Decision.begun(config).tags).version
        Aliases(config, decide).decide(str(number))
    delete = MlflowClient.delete_model_version

    def delete_slowly(self: MlflowClient, name: str, version: str) -> None:
        delete(self, name, version)
        self.set_registered_model_alias(name, "used", "6")

    monkeypatch.setattr(MlflowClient, "delete_model_version", delete_slowly)
    told = calm("delete-unused", "--model", model, "--keep", "1", "--yes")
    assert told == f"deleted versions of {model}: 5, 7\n"
    left = {int(each.version) for each in client.search_model_versions(f"name = '{model}'")}
    assert left == {1, 2, 3, 4, 6, 8}


def test_a_champion_that_was_rolled_back_is_no_unused_version(
    client: MlflowClient, model: str, calm: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evidence, "check_files", lambda uri: None)
    calm("rollback", "--reason", "it is not", "--model", model)
    told = calm("delete-unused", "--model", model, "--keep", "1")
    assert told.splitlines()[0] == f"unused versions of {model}: 3"
