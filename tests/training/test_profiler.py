"""A trace holds the steps that were asked for, changes nothing, and replaces nothing."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from calm_core.config import AutoencoderConfig
from calm_core.store.artifact import Artifact
from calm_core.store.facts import AutoencoderFacts
from calm_core.training.profiler import StepProfiler
from calm_core.training.stage import train
from calm_core.weights.curves import CURVES_NAME
from calm_core.weights.load import WEIGHTS_NAME


def run(profiler: StepProfiler, first: int, last: int) -> None:
    with profiler:
        for done in range(first, last):
            profiler.begin_step(done)
            torch.ones(8) @ torch.ones(8)


def steps_in(trace: str) -> list[str]:
    events = json.loads(gzip.decompress(Path(trace).read_bytes()))["traceEvents"]
    return sorted({event["name"] for event in events if event.get("name", "").startswith("step ")})


def test_a_trace_holds_its_steps_and_the_table_their_operators(tmp_path: Path) -> None:
    told: list[str] = []
    profiler = StepProfiler((2, 4), str(tmp_path / "model"), told.append)
    run(profiler, 0, 6)
    assert profiler.trace_uri == str(tmp_path / "model.steps-3-4.trace.json.gz")
    assert told == [f"trace of steps 3 to 4: {profiler.trace_uri}"]
    assert steps_in(profiler.trace_uri) == ["step 3", "step 4"]
    assert "aten::dot" in (tmp_path / "model.steps-3-4.operators.txt").read_text()


def test_training_that_ends_before_leaves_what_was_traced(tmp_path: Path) -> None:
    profiler = StepProfiler((2, 9), str(tmp_path / "model"), lambda line: None)
    with pytest.raises(KeyboardInterrupt), profiler:
        for done in range(4):
            profiler.begin_step(done)
        raise KeyboardInterrupt
    assert steps_in(profiler.trace_uri) == ["step 3", "step 4"]


def test_an_earlier_trace_stays(tmp_path: Path) -> None:
    first, second = (StepProfiler((0, 1), str(tmp_path / "model"), lambda line: None) for _ in range(2))
    run(first, 0, 2)
    before = Path(first.trace_uri).read_bytes()
    run(second, 0, 2)
    assert second.trace_uri == str(tmp_path / "model.steps-1-1-2.trace.json.gz")
    assert Path(first.trace_uri).read_bytes() == before


def test_training_that_goes_on_beyond_the_steps_says_once_that_none_is_profiled(tmp_path: Path) -> None:
    told: list[str] = []
    run(StepProfiler((2, 4), str(tmp_path / "model"), told.append), 5, 8)
    assert told == ["no step is profiled: training goes on from step 5, beyond 4"]
    assert list(tmp_path.iterdir()) == []


def test_a_trace_that_cannot_be_written_is_told_and_ends_nothing(tmp_path: Path) -> None:
    told: list[str] = []
    (tmp_path / "file").write_text("no folder")
    profiler = StepProfiler((0, 1), str(tmp_path / "file" / "model"), told.append)
    run(profiler, 0, 4)
    assert profiler.trace_uri == ""
    (line,) = told
    assert line.startswith("the trace of steps 1 to 1 could not be written: ")


def test_without_steps_nothing_is_traced_and_nothing_said(tmp_path: Path) -> None:
    told: list[str] = []
    run(StepProfiler(None, str(tmp_path / "model"), told.append), 0, 3)
    assert (told, list(tmp_path.iterdir())) == ([], [])


def test_a_training_is_the_same_while_it_is_watched(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As the autoencoder of the other tests, but with a trace, a peak, and the points in a file."""
    capfd.readouterr()
    plain = Artifact(model_uris[0], AutoencoderFacts)
    settings = plain.manifest.config | {"profile_steps": [1, 3], "peak_tflops": 0.5, "log_interval": 1}
    settings.pop("seed")
    config = AutoencoderConfig.model_validate(settings)
    output, folder = str(tmp_path / "autoencoder"), tmp_path / "checkpoints"
    watched = train(config, dataset_uri, output, seed=0, checkpoint_root=str(folder), log_folder=str(tmp_path / "logs"))
    assert watched.read(WEIGHTS_NAME) == plain.read(WEIGHTS_NAME)
    printed = capfd.readouterr().err
    assert f"trace of steps 2 to 3: {output}.steps-2-3.trace.json.gz" in printed
    assert "profiler_start" not in printed  # which torch prints

    facts = watched.facts
    assert facts.trace_uri == f"{output}.steps-2-3.trace.json.gz"
    assert steps_in(facts.trace_uri) == ["step 2", "step 3"]
    assert facts.peak_tflops == 0.5 and facts.model_flops_utilisation is not None
    assert 0 < facts.model_flops_utilisation < 1
    assert facts.memory_bytes is not None and facts.memory_bytes > 50 << 20  # torch alone takes more
    assert plain.facts.model_flops_utilisation is None

    (file,) = (tmp_path / "logs").glob("*.points.jsonl")
    points = [json.loads(line) for line in file.read_text().splitlines()]
    curves = [json.loads(line) for line in watched.read(CURVES_NAME).splitlines()]
    assert [point["step"] for point in points] == [1, 2, 3, 4]
    assert [{name: point[name] for name in curve} for point, curve in zip(points, curves, strict=True)] == curves
    assert {"loss", "gradient_norm", "learning_rate"} < curves[0].keys()
    speed = {"time", "tokens_per_second", "recent_tokens_per_second", "model_flops_utilisation", "memory_bytes"}
    waits = {"loader_wait_seconds", "checkpoint_wait_seconds", "checkpoint_write_seconds", "sinks_seconds"}
    assert speed | waits <= points[-1].keys()
    assert not (speed | waits) & curves[-1].keys()
