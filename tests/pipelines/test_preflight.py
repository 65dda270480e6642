"""What is known before a run: the room on the disk, and that nothing heavy is imported for what needs none of it."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from calm_core.config import AutoencoderConfig, resolve_config
from calm_core.data.mixture import mix_datasets
from calm_core.errors import CalmError
from calm_core.scaling.cost import parameters_by_kind
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts
from calm_core.weights.load import settings_of
from pipelines import profiles
from pipelines.local.home import Home
from pipelines.local.preflight import check_run, check_training, least_bytes

MINI = str(Path(__file__).with_name("mini.yaml"))


def test_the_room_that_a_run_needs_is_that_of_the_fullest_moment() -> None:
    """In bytes of a parameter: 4 for weights, 12 for each checkpoint, 16 with an average. Two checkpoints are kept, and
    one more lies there while it is written; the last step saves one."""
    config = resolve_config(
        profiles.load(MINI), ["autoencoder.checkpoint_interval=1", "calm.checkpoint_interval=2", "calm.steps=3"]
    )
    while_the_autoencoder_trains = 4 * 1000 + 3 * 12 * 1000
    while_calm_trains = 4 * 1000 + 4 * 2000 + 2 * 12 * 2000
    assert least_bytes(config, {"autoencoder": 1000, "calm": 10}, 0) == while_the_autoencoder_trains
    assert least_bytes(config, {"autoencoder": 1000, "calm": 10}, 5000) == 500 + while_the_autoencoder_trains
    assert least_bytes(config, {"autoencoder": 1000, "calm": 2000}, 0) == while_calm_trains
    settings = {
        ("ema_decay=0.9",): 3 * 16,
        ("checkpoints_kept=1",): 2 * 12,
        ("steps=100", "keep_every=10"): 10 * 12,
        ("steps=100", "keep_every=50"): 3 * 12,
    }
    for changes, checkpoints in settings.items():
        changed = [f"autoencoder.{change}" for change in ("checkpoint_interval=1", *changes)]
        config = resolve_config(profiles.load(MINI), changed)
        assert least_bytes(config, {"autoencoder": 1000}, 0) == (4 + checkpoints) * 1000


@pytest.mark.parametrize("kind", ["autoencoder", "calm", "transformer"])
def test_a_training_that_cannot_fit_on_its_disks_is_refused(
    kind: str, dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On one disk, model and checkpoints count together; what lies at their places counts as free."""
    mixture = mix_datasets({dataset_uri: 1}, str(tmp_path / "mixture")).uri
    autoencoder = model_uris[0] if kind == "calm" else ""
    config = resolve_config(profiles.load(MINI), [f"{kind}.checkpoint_interval=1"])
    output, root = tmp_path / "a" / "out", tmp_path / "checkpoints"
    root.mkdir()
    (root / "kept").write_bytes(bytes(1000))

    def check(free: int) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda place: SimpleNamespace(free=free))
        check_training(config, kind, mixture, autoencoder, str(output), str(root))

    if autoencoder:
        config = config.model_copy(
            update={"autoencoder": settings_of(Artifact(autoencoder, AutoencoderFacts), AutoencoderConfig)}
        )
    saved = min(getattr(config, kind).steps, 3)
    needed = (4 + saved * 12) * parameters_by_kind(config, 300)[kind]
    check(needed - 1000)
    with pytest.raises(CalmError) as refused:
        check(needed - 1001)
    assert f"{root} and {output}: this training writes " in str(refused.value)
    assert "are free; free space, give output_uri or checkpoint_root on another disk" in str(refused.value)


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
