"""What is known before a run: the room on the disk, and that nothing heavy is imported for what needs none of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from calm_core.config import resolve_config
from calm_core.errors import CalmError
from pipelines import profiles
from pipelines.local.home import Home
from pipelines.local.preflight import check_run, least_bytes

MINI = str(Path(__file__).with_name("mini.yaml"))


def test_the_room_that_a_run_needs_is_that_of_the_fullest_moment() -> None:
    """In bytes of a parameter: 4 for weights, 12 for each checkpoint; two lie there while a new one is saved."""
    config = resolve_config(
        profiles.load(MINI), ["autoencoder.checkpoint_interval=1", "calm.checkpoint_interval=2", "calm.steps=3"]
    )
    while_the_autoencoder_trains = 4 * 1000 + 2 * 12 * 1000
    while_calm_trains = 4 * 1000 + 4 * 10 + 12 * 10
    registered = 2 * (4 * 1000 + 4 * 10)
    assert max(while_the_autoencoder_trains, while_calm_trains, registered) == while_the_autoencoder_trains
    assert least_bytes(config, {"autoencoder": 1000, "calm": 10}, 0) == while_the_autoencoder_trains
    assert least_bytes(config, {"autoencoder": 1000, "calm": 10}, 5000) == 500 + while_the_autoencoder_trains
    averaged = resolve_config(profiles.load(MINI), ["autoencoder.checkpoint_interval=1", "autoencoder.ema_decay=0.9"])
    assert least_bytes(averaged, {"autoencoder": 1000}, 0) == 4 * 1000 + 2 * 16 * 1000
    without = resolve_config(profiles.load(MINI))  # its trainings end before the first checkpoint
    assert least_bytes(without, {"autoencoder": 1000, "calm": 10, "transformer": 1}, 0) == registered + 4


def test_a_run_that_cannot_fit_on_the_disk_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that claim to be larger than the disk, and take no room on it: one with many names."""
    monkeypatch.setenv("CALM_HOME", str(tmp_path / "home"))
    source = tmp_path / "huge-0.jsonl"
    line = json.dumps({"text": "Country 1 has rivers."}) + "\n"
    source.write_text(line * 200)
    with source.open("r+b") as file:
        file.truncate(shutil.disk_usage(tmp_path).free)  # many times that may be more than a file can have
    for number in range(1, 20):
        (tmp_path / f"huge-{number}.jsonl").hardlink_to(source)
    config = resolve_config(profiles.load(MINI), (), {"data.sources": [str(tmp_path / "huge-*.jsonl")]})
    with pytest.raises(
        CalmError, match=r"/home: this run writes [\d,.]+ GiB or more there .*, and [\d,.]+ [GM]iB are free"
    ):
        check_run(config, Home.find(), lambda what: None)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["--source", "nowhere.jsonl"], ["torch", "mlflow", "kfp", "deepspeed"]),
        (["--source", "a.txt", "--set", "tokenizer.source=nowhere"], ["torch", "mlflow", "kfp", "deepspeed"]),
        (["--source", "a.txt", "--set", "calm.model.hidden_size=1048576"], ["mlflow", "kfp"]),
    ],
    ids=["sources", "tokenizer", "models"],
)
def test_what_can_be_told_without_heavy_imports_is(arguments: list[str], missing: list[str], tmp_path: Path) -> None:
    program = (
        "import sys; from calm_cli.main import main\n"
        "try: main(sys.argv[1:])\n"
        f"finally: print(sorted({{*{missing}}} & {{*sys.modules}}))"
    )
    (tmp_path / "a.txt").write_text("Country 1 has rivers.\n\n" * 10)
    ended = subprocess.run(
        [sys.executable, "-c", program, "run", "--profile", MINI, *arguments],
        cwd=tmp_path,
        env={"CALM_HOME": str(tmp_path / "home"), "PYTHONPATH": str(Path(__file__).parents[2]), "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode in (1, 2)
    assert ended.stdout == "[]\n", ended.stderr
