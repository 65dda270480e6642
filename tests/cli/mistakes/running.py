"""Mistakes that `calm run` finds before it trains, and what the machine cannot do."""

import json
from collections.abc import Callable
from pathlib import Path

from tests.cli.mistakes.frame import Mistake

_PROFILE = str(Path(__file__).parents[2] / "pipelines" / "mini.yaml")
_TEXT = {"a.jsonl": "".join(json.dumps({"text": f"Country {i} has rivers."}) + "\n" for i in range(40)).encode()}
_RUN = ("run", "--profile", _PROFILE, "--source", "a.jsonl")


def _refused(name: str, setting: str, *says: str) -> Mistake:
    """A setting that is refused as such."""
    return Mistake(name, (*_RUN, "--set", setting), says, exit_code=2, files=_TEXT)


_SWEEP = ("sweep", "--profile", _PROFILE, "--source", "a.jsonl", "--output", "out")


def _sweep(name: str, more: tuple[str, ...], *says: str, arrange: Callable[[Path], object] = lambda _: None) -> Mistake:
    return Mistake(f"sweep: {name}", (*_SWEEP, *more), says, exit_code=2, files=_TEXT, arrange=arrange)


def _place_of(name: str, folder: Path) -> None:
    """A file where a folder of the home belongs."""
    (folder / "home").mkdir()
    (folder / "home" / name).write_text("mine")


def _with_notes(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / "notes.txt").write_text("mine")


SWEEPS = [
    _sweep("a grid without values", ("--grid", "calm.steps"), "--grid calm.steps: expected section.key=value,value"),
    _sweep("an unknown setting", ("--grid", "calm.lerning_rate=1,2"), "did you mean calm.learning_rate"),
    _sweep("one bad value of three", ("--grid", "calm.steps=5,6,-7"), "calm.steps: expected at least 1"),
    _sweep("the text differs", ("--grid", "tokenizer.vocab_size=300,400"), "so they could not be compared"),
    _sweep("seeds that are text", ("--grid", "seed=a,b"), "seed: expected a whole number"),
    _sweep("no such model", ("--grid", "model=gpt"), "--grid model: expected calm or transformer"),
    _sweep(
        "a batch that does not divide",
        ("--grid", "calm.global_batch_size=4,6"),
        "global_batch_size (6) must be a multiple of micro_batch_size",
    ),
    _sweep("weights that are missing", ("--grid", "calm.initial_weights=nowhere"), "calm.initial_weights: nowhere"),
    _sweep("halving by one", ("--halving", "1"), "--halving 1: expected at least 2"),
    _sweep("a place of a cluster", ("--host", "http://h"), "are of a cluster; add --cluster"),
    Mistake(
        "sweep: MLflow is not named",
        ("sweep", "--cluster", "--source", "s3://b/a.jsonl", "--output", "out"),
        ("MLFLOW_TRACKING_URI: is not set; set it to the MLflow of the cluster",),
        exit_code=2,
    ),
    Mistake(
        "sweep: text that no pod sees",
        ("sweep", "--cluster", "--source", "a.jsonl", "--output", "out"),
        ("data.sources (--source): a.jsonl lies on this machine, which no pod sees",),
        exit_code=2,
    ),
    Mistake(
        "sweep: the Transformer in a cluster",
        ("sweep", "--cluster", "--source", "s3://b/a.jsonl", "--output", "out", "--grid", "model=transformer"),
        ("--grid model: a pipeline trains CALM",),
        exit_code=2,
    ),
    _sweep("other files", (), "holds other files (notes.txt); name a new", arrange=_with_notes),
    _sweep("a file", (), "out is a file; name a folder", arrange=lambda folder: (folder / "out").touch()),
]

MISTAKES = [
    *SWEEPS,
    *(
        Mistake(
            f"OMP_NUM_THREADS is {value!r}, {command[0]}",
            command,
            (f"OMP_NUM_THREADS is {value!r}: expected one number of threads",),
            exit_code=2,
            files=_TEXT,
            environment={"OMP_NUM_THREADS": value},
        )
        for value in ("4,2", "", "0", "-1", "two")
        for command in (_RUN, ("train", "autoencoder", "--dataset", "{dataset}", "--output", "out"))
    ),
    Mistake(
        "OMP_NUM_THREADS that torch would stumble over too",
        ("evaluate", "{transformer}", "--dataset", "{dataset}", "--output", "out"),
        ("OMP_NUM_THREADS is '0': expected one number of threads",),
        exit_code=2,
        environment={"OMP_NUM_THREADS": "0"},
        as_process=True,
    ),
    _refused("reserved alias", "registry.alias=latest", "registry.alias", "latest is a version"),
    _refused("reserved alias in capitals", "registry.alias=LATEST", "registry.alias"),
    _refused("alias like a version", "registry.alias=v1", "registry.alias", "v1 is a version"),
    _refused("alias with a space", "registry.alias=my model", "registry.alias"),
    _refused("model name with a question mark", "registry.model_name=a?b", "registry.model_name"),
    _refused("model name with a slash", "registry.model_name=a/b", "registry.model_name"),
    _refused("blank model name", "registry.model_name=' '", "registry.model_name"),
    _refused("confidence that leaves next to nothing in the interval", "evaluation.confidence=0.01", "confidence"),
    _refused("confidence in percent", "evaluation.confidence=95", "evaluation.confidence"),
    _refused(
        "confidence that so few resamples cannot tell",
        "evaluation.confidence=0.999",
        "confidence (0.999)",
        "bootstrap_resamples to 2000",
    ),
    _refused("texts at temperature 0", "evaluation.temperature=0", "evaluation.temperature"),
    _refused(
        "a prompt longer than is read", f"evaluation.prompts=['{'é' * 70_000}']", "evaluation.prompts.0", "131,072"
    ),
    _refused("chunks that straddle documents", "autoencoder.model.chunk_size=3", "data.document_alignment (8)"),
    _refused("positions between chunks", "evaluation.position_interval=6", "must be a multiple of K (4)"),
    _refused("positions beyond a sequence", "evaluation.position_interval=64", "leaves no position to score"),
    _refused("more warm-up than steps", "calm.warmup_steps=4", "warmup_steps (4) must not exceed steps (3)"),
    _refused(
        "a batch that ranks cannot share", "calm.processes=3", "must be a multiple of micro_batch_size x processes"
    ),
    Mistake(
        "nodes on one machine",
        (*_RUN, "--set", "calm.nodes=2", "--set", "calm.micro_batch_size=1"),
        ("calm.nodes is 2, this is one machine; submit the pipeline to a cluster, run `calm train` on each machine",),
        exit_code=2,
        files=_TEXT,
    ),
    _refused(
        "a TrainJob on one machine", "autoencoder.launcher=trainjob", "trainjob is for a pipeline in a cluster; submit"
    ),
    _refused("a batch that nodes cannot share", "calm.nodes=3", "of micro_batch_size x processes x nodes (4 x 1 x 3)"),
    _refused("more partitions than a pipeline has", "data.partitions=65", "data.partitions"),
    Mistake(
        "vocabulary smaller than its alphabet",
        (*_RUN, "--set", "data.start_of_text=true", "--set", "tokenizer.vocab_size=258"),
        ("tokenizer.vocab_size (258) must be 259 or more",),
        exit_code=2,
        files=_TEXT,
    ),
    Mistake(
        "everything is held out",
        (*_RUN, "--set", "data.validation_fraction=1", "--set", "tokenizer.source={dataset}/tokenizer.json"),
        ("data.validation_fraction: is 1, so a run has no text to train on",),
        exit_code=2,
        files=_TEXT,
    ),
    Mistake(
        "a source is missing",
        ("run", "--profile", _PROFILE, "--source", "nowhere/*.jsonl"),
        ("nowhere/*.jsonl: nothing matches, since there is no folder nowhere",),
    ),
    Mistake(
        "one of two sources is missing",
        (*_RUN, "--source", "b.jsonl"),
        ("b.jsonl: no such file",),
        files=_TEXT,
    ),
    Mistake(
        "no such text field",
        (*_RUN, "--text-field", "body"),
        ("a.jsonl, line 1", "--text-field"),
        files=_TEXT,
    ),
    Mistake(
        "no such tokenizer",
        (*_RUN, "--set", "tokenizer.source=nowhere"),
        ("nowhere: holds no tokenizer.json",),
        files=_TEXT,
    ),
    Mistake(
        "a special token that the tokenizer lacks",
        (*_RUN, "--set", "tokenizer.source={dataset}/tokenizer.json", "--set", "tokenizer.eos_token=<end>"),
        ("has no token <end>", "tokenizer.eos_token"),
        files=_TEXT,
    ),
    Mistake(
        "a model is extended instead of a dataset",
        (*_RUN, "--set", "data.extends={calm}"),
        ("{calm}: is a calm artifact, a dataset artifact was expected",),
        files=_TEXT,
    ),
    Mistake(
        "a dataset of another shape is extended",
        (*_RUN, "--set", "data.extends={dataset}", "--set", "data.sequence_length=64"),
        ("data.sequence_length", "{dataset} has 32, not 64"),
        exit_code=2,
        files=_TEXT,
    ),
    Mistake(
        "a model that no memory holds",
        (*_RUN, "--set", "calm.model.hidden_size=1048576"),
        ("calm: a model of ", "choose fewer layers or smaller sizes"),
        exit_code=2,
        files=_TEXT,
    ),
    Mistake(
        "compiling without a compiler",
        (*_RUN, "--set", "calm.compile=true"),
        ("calm.compile: needs a C++ compiler", "no-such-compiler"),
        exit_code=2,
        files=_TEXT,
        environment={"CXX": "no-such-compiler", "CUDA_VISIBLE_DEVICES": ""},
    ),
    *(
        Mistake(
            f"a file where the folder {name} belongs",
            _RUN,
            (f"{{folder}}/home/{name}: ",),
            files=_TEXT,
            arrange=lambda folder, name=name: _place_of(name, folder),
        )
        for name in ("pipeline", "cache", "plans", "checkpoints", "logs", "mlartifacts", "outbox")
    ),
]
