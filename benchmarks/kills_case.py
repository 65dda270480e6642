"""One case of `benchmarks.kills`: what is drawn, killed, started again, and compared with the undisturbed training."""

import json
import random
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from signal import SIGINT, SIGKILL, SIGTERM
from typing import Any, Self
from uuid import uuid4

import safetensors.torch

from benchmarks.kills_start import HANGS_AFTER, LOOK, VICTIMS, Start, environment, kill, marked
from calm_core.data.sources.factbook import write_factbook
from calm_core.errors import CalmError
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact
from calm_core.store.facts import Facts
from calm_core.weights.curves import CURVES_NAME
from calm_core.weights.load import WEIGHTS_NAME

KINDS = ("autoencoder", "calm energy", "calm flow", "transformer")
STEPS, LEARNING_RATE, CHECKPOINT_INTERVAL = 100, 5e-3, 10
TOLERANCE = 0.02 * STEPS * LEARNING_RATE
"""Of a weight where sums were in another order: a share of what AdamW can move it, the learning rate in each step."""
_MOST_KILLS = 4  # of a case
_CHANGED = 0.3  # share of the new starts with another setting
_WAITING = 0.5  # share of the new starts once all processes of the last one have gone; others begin at once
_LONGER_ON_S3 = 1.15
_RETRIES, _PAUSE = 10, 3.0  # of a start that says it may help; seconds before each

_TRAINING = {
    "steps": STEPS,
    "learning_rate": LEARNING_RATE,
    "global_batch_size": 4,
    "micro_batch_size": 2,
    "warmup_steps": 2,
    "log_interval": 5,
    "validation_interval": 50,
    "validation_sequences": 8,
}
_WIDTHS = {"hidden_size": 32, "intermediate_size": 48}
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2} | _WIDTHS
_HEADS: Mapping[str, Mapping[str, Any]] = {
    "energy": {"kind": "energy", "num_layers": 1, "model_samples": 2, "target_samples": 4},
    "flow": {"kind": "flow", "num_layers": 1, "sampling_steps": 4},
}
_DOCUMENTS, _CHARACTERS = 120, 400
_CALM = (sys.executable, "-m", "calm_cli.start")


def _profile(head: str) -> dict[str, Any]:
    """Settings of models so small that to start takes longer than to train."""
    return {
        "data": {"sequence_length": 32, "rows_per_group": 16, "rows_per_shard": 64, "validation_fraction": 0.2},
        "tokenizer": {"vocab_size": 300},
        "autoencoder": _TRAINING | {"model": {"chunk_size": 4, "latent_size": 8} | _WIDTHS},
        "calm": _TRAINING | {"model": _LAYERS | {"head": _HEADS[head]}},
        "transformer": _TRAINING | {"model": _LAYERS},
    }


@dataclass(frozen=True)
class Setup:
    """What is trained, and how."""

    kind: str
    zero_stage: int
    ranks: int
    checkpoint_interval: int = CHECKPOINT_INTERVAL

    def __str__(self) -> str:
        each = "" if self.checkpoint_interval == CHECKPOINT_INTERVAL else f", saved each {self.checkpoint_interval}"
        return f"{self.kind}, ZeRO {self.zero_stage}, ranks {self.ranks}{each}"

    def sums_like(self, other: "Setup") -> bool:
        """Whether the same numbers are summed in the same order; one rank of fp32 trains alike in every stage."""
        return self.ranks == other.ranks and (self.ranks == 1 or self.zero_stage == other.zero_stage)


@dataclass(frozen=True)
class Reference:
    """An undisturbed training.

    Attributes:
        artifact: What it has made.
        lives: From when to when each of VICTIMS is there, in seconds since the start.
        files: Those that it leaves beside the artifact.
    """

    artifact: Artifact[Facts]
    lives: Mapping[str, tuple[float, float]]
    files: frozenset[str]


@dataclass(frozen=True)
class Place:
    """Where a training works: a folder for what is of this machine, and the URL of its output and checkpoints."""

    folder: Path
    uri: str

    @property
    def output(self) -> str:
        return storage.join(self.uri, "output")

    @property
    def checkpoints(self) -> str:
        return storage.join(self.uri, "checkpoints")

    def newest_checkpoint(self) -> int:
        """The step of the newest complete one, 0 where there is none."""
        jobs = [storage.join(self.checkpoints, name) for name in storage.names_in(self.checkpoints)]
        steps = [(job, name) for job in jobs for name in storage.names_in(job) if name.startswith("step-")]
        complete = [name for job, name in steps if storage.exists(storage.join(job, name, MANIFEST_NAME))]
        return max((int(name.removeprefix("step-")) for name in complete), default=0)

    def files(self) -> frozenset[str]:
        """Temporary files, the files of the home, and what lies among the checkpoints; all logs count as one."""
        home = self.folder / "home"
        files = {f"home/{path.relative_to(home)}" for path in home.rglob("*") if path.is_file()}
        files |= {f"temporary/{path.name}" for path in (self.folder / "temporary").iterdir()}
        if storage.files_below(self.checkpoints):  # an object store may go on naming a folder that is empty
            files |= {f"checkpoints/{name}" for name in storage.names_in(self.checkpoints)}
        return frozenset(
            re.sub(r"^(home/logs|checkpoints)/.+\.(log|points\.jsonl)(\.1)?$", "a log", file) for file in files
        )

    def left(self, reference: "Reference") -> list[str]:
        """Files and folders that an undisturbed training does not leave."""
        output = storage.absolute(self.output) + "/"
        artifact = {MANIFEST_NAME, *(entry.path for entry in reference.artifact.manifest.files)}
        beside = {uri.removeprefix(output) for uri in storage.files_below(self.output)} - artifact
        return sorted((self.files() - reference.files) | {f"output/{path}" for path in beside})

    def remove(self) -> None:
        """Remove all of it."""
        storage.remove_folder(self.uri)
        storage.remove_folder(str(self.folder))


@dataclass
class Kill:
    """One that has met its victim.

    Attributes:
        victim: One of VICTIMS.
        seconds: When, since the start.
        orphans: The processes that it has left.
        anew: How the next start ignored a checkpoint; empty where it did not.
    """

    victim: str
    seconds: float
    orphans: list[str] = field(default_factory=list)
    anew: str = ""

    def __str__(self) -> str:
        return f"{self.victim} at {self.seconds:.2f} s"


@dataclass
class Outcome:
    """What became of a case.

    Attributes:
        kills: Those that met their victim.
        story: They, and what was changed between the starts, for people.
        exact: Whether sums were in one order all the time, so that the weights have to be equal bit for bit.
        ending: "survived", "diverged", or "lost": it did not finish.
        why: What is to be said of an ending.
        left: Files that are left.
        told: What was told badly.
    """

    number: int
    setup: Setup
    is_remote: bool
    kills: list[Kill] = field(default_factory=list)
    story: list[str] = field(default_factory=list)
    exact: bool = True
    ending: str = "survived"
    why: str = ""
    left: list[str] = field(default_factory=list)
    told: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        return "s3://" if self.is_remote else "local"

    @property
    def faults(self) -> list[str]:
        """All that is wrong, in words."""
        faults = [f"{self.ending}: {self.why}"] if self.ending != "survived" else []
        faults += [f"after {kill}: left {orphan}" for kill in self.kills for orphan in kill.orphans]
        faults += [f"after {kill}: {kill.anew}" for kill in self.kills if kill.anew]
        return [*faults, *(f"left: {path}" for path in self.left), *(f"told badly: {what}" for what in self.told)]

    def end(self, ending: str, why: str) -> None:
        self.ending, self.why = ending, why


class Laboratory:
    """What all cases share: data, an autoencoder, and the undisturbed trainings, which are made as they are needed.

    Args:
        folder: An empty folder for all of it.
        s3_folder: URL of one for the cases that work on S3; empty for no such cases.
        keep: Whether the folders of cases stay in which something was wrong.
    """

    def __init__(self, folder: Path, s3_folder: str, keep: bool) -> None:
        self._folder, self._s3_folder, self._keep = folder, s3_folder, keep
        self._campaign = uuid4().hex
        self._environment = environment() | {"CALM_CACHE": str(folder / "cache")}
        self._references: dict[Setup, Reference] = {}
        self._locks: dict[Setup, threading.Lock] = {}
        self._autoencoder = ""
        self._is_over = False
        for head in _HEADS:
            (folder / f"{head}.yaml").write_text(json.dumps(_profile(head)))  # JSON is YAML, too
        self._prepare()
        self._autoencoder = self.reference(Setup("autoencoder", 0, 1)).artifact.uri

    def _prepare(self) -> None:
        """Make the dataset, and in the same folder a home with MLflow's tables, which take longer than a training."""
        texts = self._folder / "texts.jsonl"
        write_factbook(texts)
        lines = [json.loads(line) for line in texts.read_text(encoding="utf-8").splitlines()[:_DOCUMENTS]]
        texts.write_text("".join(json.dumps({"text": line["text"][:_CHARACTERS]}) + "\n" for line in lines))
        (self._folder / "temporary").mkdir()
        command = ["prepare", "--source", str(texts), "--output", str(self._folder / "dataset")]
        command += ["--profile", str(self._folder / "energy.yaml")]
        _require(Start([*_CALM, *command], f"{self._campaign}/prepare", self._folder, self._environment))

    def _new_place(self, name: str, uri: str = "") -> Place:
        place = Place(self._folder / name, uri or str(self._folder / name))
        (place.folder / "temporary").mkdir(parents=True)
        shutil.copytree(self._folder / "home", place.folder / "home")
        return place

    def _start(self, setup: Setup, place: Place, number: int) -> Start:
        section, _, head = setup.kind.partition(" ")
        command = [*_CALM, "train", section, "--dataset", str(self._folder / "dataset")]
        command += ["--output", place.output, "--checkpoints", place.checkpoints]
        command += ["--profile", str(self._folder / f"{head or 'energy'}.yaml")]
        command += ["--autoencoder", self._autoencoder] if section == "calm" else []
        settings = {"zero_stage": setup.zero_stage, "processes": setup.ranks}
        settings |= {"checkpoint_interval": setup.checkpoint_interval}
        command += [word for name, value in settings.items() for word in ("--set", f"{section}.{name}={value}")]
        return Start(command, f"{self._campaign}/{place.folder.name}/{number}.", place.folder, self._environment)

    def reference(self, setup: Setup) -> Reference:
        """The undisturbed training of a setup; one rank trains alike in every stage."""
        setup = replace(setup, zero_stage=setup.zero_stage if setup.ranks > 1 else 0)
        with self._locks.setdefault(setup, threading.Lock()):
            if setup not in self._references:
                self._references[setup] = self._train_undisturbed(setup)
        return self._references[setup]

    def _train_undisturbed(self, setup: Setup) -> Reference:
        place = self._new_place(f"undisturbed-{setup.kind.replace(' ', '-')}-{setup.zero_stage}-{setup.ranks}")
        start = self._start(setup, place, 0)
        seen: dict[str, tuple[float, float]] = {}
        while start.process.poll() is None:
            now = start.seconds
            for victim in ("parent", "torchrun", "rank"):
                if start.victims(victim):
                    seen[victim] = (seen.get(victim, (now,))[0], now)
            time.sleep(LOOK)
        _require(start)
        lives = {victim: seen.get(victim.split()[0], seen["parent"]) for victim in VICTIMS}
        return Reference(Artifact.of_any_kind(place.output), lives, place.files())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End whatever is still running, and start nothing more."""
        self._is_over = True
        kill(marked(self._campaign))

    def try_case(self, number: int, seed: int) -> Outcome:
        """Draw a case, and see what becomes of it."""
        drawn = random.Random(f"{seed}/{number}")
        setup = Setup(drawn.choice(KINDS), drawn.randrange(4), drawn.choice((1, 2)))
        outcome = Outcome(number, setup, drawn.random() < 0.5 and bool(self._s3_folder))
        reference, name = self.reference(setup), f"case-{number}"
        place = self._new_place(name, f"{self._s3_folder}/{name}" if outcome.is_remote else "")
        starts: list[Start] = []
        try:
            self._kill_until_it_finishes(outcome, place, reference, drawn, starts)
        finally:
            for start in starts:
                start.close()
        if outcome.ending == "survived":
            _judge(outcome, place, reference)
        if not (self._keep and outcome.faults):
            place.remove()
        return outcome

    def _kill_until_it_finishes(
        self, outcome: Outcome, place: Place, reference: Reference, drawn: random.Random, starts: list[Start]
    ) -> None:
        setup, retries = outcome.setup, 0
        while True:
            saved = place.newest_checkpoint()
            start = self._start(setup, place, len(starts))
            starts.append(start)
            met = None
            if len(outcome.kills) < _MOST_KILLS and not retries:
                met = _strike(start, drawn, reference, _LONGER_ON_S3 if outcome.is_remote else 1.0)
            if not start.ends():
                outcome.end("lost", f"it hung for {HANGS_AFTER:.0f} s; last words: {start.last_words}")
                return
            if 0 < start.first_step <= saved:
                outcome.kills[-1].anew = f"step {saved} was saved, the next start told of step {start.first_step} first"
            if told := start.badly_told:
                outcome.told.append(told)
            if met:
                met.orphans = start.orphans
                outcome.kills.append(met)
                outcome.story.append(str(met))
            if start.process.returncode == 0 or self._is_over:
                return
            if met:
                retries = 0
                setup = _changed(setup, drawn, outcome)
                if drawn.random() < _WAITING:
                    start.close()
            elif start.can_pass and retries < _RETRIES:
                retries += 1
                time.sleep(_PAUSE)
            else:
                outcome.end("lost", start.last_words)
                return


def _require(start: Start) -> None:
    """Refuse to compare with what does not end well though nothing disturbs it."""
    start.ends()
    start.close()
    if start.process.returncode or start.orphans or start.badly_told:
        raise CalmError(f"undisturbed, `{' '.join(start.command)}` did not end well: {start.last_words}")


def _strike(start: Start, drawn: random.Random, reference: Reference, longer: float) -> Kill | None:
    """Kill what is drawn at a moment that is drawn from its life; None where the start has ended before."""
    victim = drawn.choice(VICTIMS)
    begins, ends = reference.lives[victim]
    moment, pause, which = drawn.uniform(begins, longer * ends), drawn.uniform(0.0, 1.5), drawn.random()
    with suppress(subprocess.TimeoutExpired):
        start.process.wait(moment)
    while not (victims := start.victims(victim)):
        if start.process.poll() is not None:
            return None
        time.sleep(LOOK)
    met = Kill(victim, start.seconds)
    if victim == "all SIGKILL":
        while victims:
            kill(victims)
            time.sleep(LOOK)
            victims = start.victims(victim)  # one may have been started meanwhile
        return met
    number = SIGINT if victim == "SIGINT" else SIGTERM if victim.startswith("SIGTERM") else SIGKILL
    kill([victims[int(which * len(victims))]], number)
    if victim == "SIGTERM twice":
        with suppress(subprocess.TimeoutExpired):
            start.process.wait(pause)
        kill(start.victims(victim), number)
    return met


def _changed(setup: Setup, drawn: random.Random, outcome: Outcome) -> Setup:
    """How the training is started next: mostly as before."""
    changes = {
        "ZeRO": replace(setup, zero_stage=drawn.randrange(4)),
        "ranks": replace(setup, ranks=3 - setup.ranks),
        "interval": replace(setup, checkpoint_interval=drawn.choice((7, 20))),
    }
    changed = changes[drawn.choice(list(changes))]
    if drawn.random() >= _CHANGED or changed == setup:
        return setup
    outcome.story.append(f"then {changed}")
    outcome.exact &= changed.sums_like(outcome.setup)
    return changed


def _judge(outcome: Outcome, place: Place, reference: Reference) -> None:
    """Compare what a finished training has made and left with the undisturbed one."""
    outcome.left = place.left(reference)
    try:
        made = Artifact.of_any_kind(place.output)
        ours, theirs = made.read(WEIGHTS_NAME), reference.artifact.read(WEIGHTS_NAME)
        same_curves = made.read(CURVES_NAME) == reference.artifact.read(CURVES_NAME)
    except CalmError as error:
        outcome.end("diverged", str(error))
        return
    if outcome.exact:
        if ours != theirs or not same_curves:
            outcome.end("diverged", f"the {'curves' if ours == theirs else 'weights'} are others")
        return
    weights, expected = safetensors.torch.load(ours), safetensors.torch.load(theirs)
    difference = max((weights[name] - expected[name]).abs().max().item() for name in expected)
    outcome.story.append(f"weights within {difference:.1g}")
    if not difference <= TOLERANCE:
        outcome.end("diverged", f"a weight differs by {difference:.3g}, more than {TOLERANCE:.3g}")
