"""The ranks of test_checkpoint: save, damage, and load checkpoints, and write what came of it.

Rank 0 writes results.json.
"""

import json
import os
import pickle
import resource
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import safetensors.torch
import torch
import torch.distributed as dist
from torch import Tensor

from calm_core.config import TrainingConfig
from calm_core.errors import CalmError, StorageError
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, FileEntry, publish
from calm_core.store.facts import CheckpointFacts
from calm_core.training import checkpoint, worker
from calm_core.training.checkpoint import Checkpointer
from calm_core.training.distributed import gathered
from calm_core.training.engine import Engine
from calm_core.weights.curves import CURVES_NAME
from tests.training.engine_worker import Case, batches, make_model, settings, state, step, values_for

SAVED_STEP = 2
ELASTIC = [Case(stage, precision) for precision in ("fp32", "bf16") for stage in (0, 1, 2, 3)]
CURVES = b'{"step": 1}\n'
PART = "rank-00001-part-00000.safetensors"


def rank() -> int:
    return dist.get_rank()


def facts(at: int, validation: float | None = None) -> CheckpointFacts:
    return CheckpointFacts(step=at, position=8 * at, optimizer_steps=at, validation=validation)


class Scene:
    """A folder of checkpoints, what is told of them, and an engine whose state is any.

    Attributes:
        said: What rank 0 was told.
        alive: How often who watches was told that there is progress.
    """

    def __init__(self, engine: Engine, folder: str, require: Callable[[], object] = lambda: None, **kept: Any) -> None:
        self.engine, self.folder = engine, folder
        self.said: list[str] = []
        self.alive = 0
        config = TrainingConfig.model_validate(settings(Case(2, "fp32")).model_dump() | kept)
        self.checkpointer = Checkpointer(
            folder, engine, config, tell=self.said.append, require=require, alive=self._live
        )

    def _live(self) -> None:
        self.alive += 1

    def fill(self, seed: int) -> None:
        """Give the engine a state of its own."""
        for key, value in values_for(self.engine, seed).items():
            self.engine.set(*key, value)

    def holds(self, seed: int) -> bool:
        return all(torch.equal(self.engine.get(*key), value) for key, value in values_for(self.engine, seed).items())

    def begin(self, at: int, validation: float | None = None) -> None:
        """Begin to save a state that is told by its step."""
        self.fill(at)
        self.checkpointer.save(facts(at, validation), CURVES)

    def save(self, at: int, validation: float | None = None) -> str:
        """Save it; returns why that has failed, the same on every rank."""
        self.begin(at, validation)
        self.checkpointer.finish()
        assert len({*gathered(self.checkpointer.failure)}) == 1
        return self.checkpointer.failure

    def load(self) -> int | None:
        """The step that is loaded, and is what its state says; all ranks have loaded the same."""
        self.fill(99)
        found = self.checkpointer.load_latest()
        steps = {*gathered(found and found[0].step)}
        assert len(steps) == 1
        if found:
            assert found[1] == CURVES
            assert self.holds(found[0].step)
            assert self.engine.optimizer_steps == found[0].step
        else:
            assert self.holds(99)
        return steps.pop()

    def again(self, **kept: Any) -> "Scene":
        """As another start sees it."""
        dist.barrier()
        return Scene(self.engine, self.folder, **kept)

    def there(self) -> list[str]:
        """Names of what lies there."""
        dist.barrier()
        return storage.names_in(self.folder)


# What happens to the newest checkpoint. Rank 0 alone calls these.


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change a manifest, and compute its checksum anew."""
    from calm_core.store.artifact import digest_of

    content = json.loads((folder / MANIFEST_NAME).read_text())
    change(content)
    content["checksum"] = digest_of({key: value for key, value in content.items() if key != "checksum"})
    (folder / MANIFEST_NAME).write_text(json.dumps(content))


def put(folder: Path, data: bytes, name: str = PART) -> None:
    """Put other bytes in the place of a file, with a manifest that vouches for them."""
    with storage.create(str(folder / name)) as file:
        file.write(data)
    entry = FileEntry(path=name, size=file.size, sha256=file.sha256)
    artifact = Artifact(str(folder), CheckpointFacts)
    others = [other for other in artifact.manifest.files if other.path != name]
    publish(str(folder), artifact.facts, [*others, entry])


def with_tensors(change: Callable[[dict[str, Tensor]], object]) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        tensors = safetensors.torch.load_file(folder / PART)
        change(tensors)
        put(folder, safetensors.torch.save(tensors))

    return damage


def first(tensors: dict[str, Tensor]) -> str:
    return min(tensors)


def as_type(dtype: torch.dtype) -> Callable[[Path], object]:
    return with_tensors(lambda tensors: tensors.update({first(tensors): tensors[first(tensors)].to(dtype)}))


def with_value(value: float) -> Callable[[Path], object]:
    return with_tensors(lambda tensors: tensors[first(tensors)].view(-1)[-1:].fill_(value))


def flipped(name: str, place: float) -> Callable[[Path], object]:
    """One bit, at a share of the file's length."""

    def damage(folder: Path) -> None:
        data = bytearray((folder / name).read_bytes())
        data[int(place * (len(data) - 1))] ^= 4
        (folder / name).write_bytes(data)

    return damage


def repeated(folder: Path) -> None:
    name, tensor = next(iter(safetensors.torch.load_file(folder / PART).items()))
    put(folder, safetensors.torch.save({name: tensor}), "rank-00001-part-00001.safetensors")


class Unpickled:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self._path,)


def pickled(folder: Path) -> None:
    put(folder, pickle.dumps(Unpickled(folder.parent / "unpickled")))


def torch_pickled(folder: Path) -> None:
    torch.save({"weights": Unpickled(folder.parent / "unpickled")}, folder / "saved")
    put(folder, (folder / "saved").read_bytes())


def linked_outside(folder: Path) -> None:
    (folder / PART).rename(folder.parent.parent / f"{folder.parent.name}.outside")
    (folder / PART).symlink_to(folder.parent.parent / f"{folder.parent.name}.outside")


def as_pipe(folder: Path) -> None:
    (folder / PART).unlink()
    os.mkfifo(folder / PART)


def as_folder(folder: Path) -> None:
    (folder / PART).unlink()
    (folder / PART).mkdir()


def rename_listed(path: str) -> Callable[[Path], object]:
    def change(content: dict[str, Any]) -> None:
        next(file for file in content["files"] if file["path"] == PART)["path"] = path

    return lambda folder: edit(folder, change)


def other_sha(content: dict[str, Any]) -> None:
    for file in content["files"]:
        file["sha256"] = "0" * 64


FILES = (MANIFEST_NAME, CURVES_NAME, PART, PART.replace("1-part", "0-part"))
DAMAGE: dict[str, Callable[[Path], object]] = {
    **{f"{name} is missing": lambda folder, name=name: (folder / name).unlink() for name in FILES[1:]},
    **{f"{name} is empty": lambda folder, name=name: (folder / name).write_bytes(b"") for name in FILES},
    **{
        f"{name} is cut": lambda folder, name=name: (folder / name).write_bytes((folder / name).read_bytes()[:-2])
        for name in FILES
    },
    **{
        f"{name} is flipped at {place}": flipped(name, place)
        for name in FILES
        for place in (0.0, 0.01, 0.3, 0.5, 0.7, 1.0)
    },
    "manifest of another step": lambda folder: edit(folder, lambda m: m["results"].update(step=3)),
    "manifest of more steps": lambda folder: edit(folder, lambda m: m["results"].update(optimizer_steps=99)),
    "manifest of another kind": lambda folder: edit(folder, lambda m: m.update(kind="calm")),
    "manifest without a file": lambda folder: edit(
        folder, lambda m: m.update(files=[file for file in m["files"] if file["path"] != PART])
    ),
    "manifest of other sums": lambda folder: edit(folder, other_sha),
    "manifest that leads outside": rename_listed("../step-00000001/" + PART),
    "manifest of an absolute path": rename_listed("/etc/passwd"),
    "manifest of an unknown file": rename_listed("rank-00009-part-00000.safetensors"),
    "a tensor is missing": with_tensors(lambda tensors: tensors.pop(first(tensors))),
    "a tensor is unknown": with_tensors(lambda tensors: tensors.update({"weights/other": torch.zeros(1)})),
    "a tensor is there twice": repeated,
    "a tensor has another shape": with_tensors(
        lambda tensors: tensors.update({first(tensors): torch.cat([tensors[first(tensors)]] * 2)})
    ),
    "a tensor is flat": with_tensors(
        lambda tensors: tensors.update({name: tensor.flatten() for name, tensor in tensors.items()})
    ),
    **{f"a tensor is {dtype}": as_type(dtype) for dtype in (torch.float16, torch.bfloat16, torch.float64, torch.int32)},
    **{f"a number is {value}": with_value(value) for value in (float("nan"), float("inf"))},
    "a part is pickled": pickled,
    "a part is pickled by torch": torch_pickled,
    "a part leads outside": linked_outside,
    "a part is a pipe": as_pipe,
    "a part is a folder": as_folder,
}


def damages(engine: Engine, folder: Path) -> dict[str, Any]:
    """Each damage of the newest of two: what is loaded, what is told, and what is there after the next save."""
    whole = Scene(engine, str(folder / "whole"))
    assert not whole.save(1)
    assert not whole.save(2)
    results: dict[str, Any] = {"none": {"loaded": whole.again().load()}}
    for number, (name, damage) in enumerate(DAMAGE.items()):
        place = folder / f"damage-{number}"
        if rank() == 0:
            shutil.copytree(folder / "whole", place)
            damage(place / "step-00000002")
        scene = whole.again()
        scene.folder = str(place)
        scene = scene.again()
        loaded = scene.load()
        results[name] = {"loaded": loaded, "said": scene.said[:], "there": scene.there()}
        assert not scene.save(3)
        results[name] |= {"after": scene.there(), "unpickled": (place / "unpickled").exists()}
        results[name]["again"] = scene.again().load()
    return results


def all_damaged(engine: Engine, folder: Path) -> dict[str, Any]:
    scene = Scene(engine, str(folder))
    assert not scene.save(1)
    assert not scene.save(2)
    if rank() == 0:
        for part in folder.rglob(PART):
            part.write_bytes(b"")
    scene = scene.again()
    return {"loaded": scene.load(), "said": scene.said, "there": scene.there(), "standing": scene.checkpointer.standing}


def retention(engine: Engine, folder: Path) -> dict[str, Any]:
    """What is there after each save, in one start and then in another; the third is the best."""
    kept = {"checkpoints_kept": 2, "keep_every": 4, "keep_best": True}
    scores = {1: None, 2: 3.0, 3: 1.0, 4: 2.0, 5: 1.0, 6: 1.5, 7: 2.5, 8: 1.25, 9: 0.5}
    there, scene = {}, Scene(engine, str(folder), **kept)
    for at, score in scores.items():
        if at == 7:
            scene = scene.again(**kept)
            assert scene.load() == 6
        assert not scene.save(at, score)
        there[at] = scene.there()
    return {"there": there}


def leftovers(engine: Engine, folder: Path) -> dict[str, Any]:
    """What else may lie there."""
    if rank() == 0:
        for name in ("step-00000007", "step-00000002", "spec", "step-", "step-x"):
            (folder / name).mkdir(parents=True)
            (folder / name / "file").touch()
        (folder / "step-00000009").touch()
    dist.barrier()
    scene = Scene(engine, str(folder))
    loaded, before = scene.load(), scene.there()
    failure = scene.save(1)
    return {"loaded": loaded, "before": before, "failure": failure, "after": scene.there(), "said": scene.said}


@contextmanager
def in_rank_1(target: str, name: str, value: Any) -> Iterator[None]:
    """Replace an attribute of a module in one rank."""
    with patch(f"{target}.{name}", value) if rank() == 1 else nullcontext():
        yield


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may have more than a few bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*arguments: Any, **keywords: Any) -> Any:
        raise error

    return fail


def failing_saves(engine: Engine, folder: Path) -> dict[str, Any]:
    """Each way to fail at step 2, after one of step 1; then one that is as it should be."""
    away = StorageError("s3://b/c: does not answer (timeout); try later")

    def refuse() -> None:
        if refusing:
            raise CalmError("another training has taken over this folder; end one of them")

    def not_finite() -> None:
        engine.set("exp_avg", "scale", torch.tensor([torch.nan]))

    ways: dict[str, Any] = {
        "the disk of one rank is full": lambda: full_disk() if rank() == 1 else nullcontext(),
        "the disk of all is full": full_disk,
        "the storage of one rank is away": lambda: in_rank_1("calm_core.store.storage", "create", raising(away)),
        "one rank raises anything": lambda: in_rank_1("calm_core.store.storage", "create", raising(KeyError("x"))),
        "the manifest cannot be written": lambda: patch("calm_core.training.checkpoint.publish", raising(away)),
        "the folder is another's": nullcontext,
        "a number is not finite": nullcontext,
    }
    results = {}
    for number, (name, way) in enumerate(ways.items()):
        refusing = False
        scene = Scene(engine, str(folder / str(number)), require=refuse)
        assert not scene.save(1)
        refusing = name == "the folder is another's"
        with way():
            if name == "a number is not finite":
                scene.fill(2)
                not_finite()
                scene.checkpointer.save(facts(2), CURVES)
                scene.checkpointer.finish()
                failure = scene.checkpointer.failure
            else:
                failure = scene.save(2)
        refusing = False
        results[name] = {
            "failure": failure,
            "said": scene.said[:],
            "standing": scene.checkpointer.standing,
            "there": scene.there(),
            "next": scene.save(3),
            "loaded": scene.again().load(),
        }
    never = Scene(engine, str(folder / "never"))
    with patch("calm_core.store.storage.create", raising(away)):
        never.save(1)
    results["none was ever saved"] = {"standing": never.checkpointer.standing, "loaded": never.again().load()}
    return results


def unreachable(engine: Engine, folder: Path) -> dict[str, Any]:
    """A storage that fails one rank while it reads."""
    scene = Scene(engine, str(folder))
    assert not scene.save(1)
    assert not scene.save(2)
    scene, said = scene.again(), ""
    with in_rank_1("calm_core.store.storage", "read", raising(StorageError("away; try later", can_pass=True))):
        try:
            scene.load()
        except StorageError as error:
            said = f"{error} {error.can_pass}"
    return {"raised": gathered(said), "there": scene.there(), "said": scene.said, "loaded": scene.again().load()}


def half_removed(engine: Engine, folder: Path) -> dict[str, Any]:
    """The best one is replaced, and cannot be removed whole."""
    kept = {"checkpoints_kept": 1, "keep_best": True}
    scene = Scene(engine, str(folder), **kept)
    assert not scene.save(1, 5.0)
    with patch("calm_core.store.storage.remove_folder", raising(StorageError("away"))):
        assert not scene.save(2, 4.0)
    there, scene = scene.there(), scene.again(**kept)
    marked = [name for name in there if (folder / name / MANIFEST_NAME).exists()]
    return {
        "there": there,
        "marked": marked,
        "loaded": scene.load(),
        "next": scene.save(3, 3.0),
        "after": scene.there(),
    }


def slow(engine: Engine, folder: Path) -> dict[str, Any]:
    """While one rank's storage blocks, then while rank 0's does: steps go on, and nobody believes that it is done."""
    scene, proceed = Scene(engine, str(folder)), threading.Event()
    create, real_publish = storage.create, checkpoint.publish

    def blocked(uri: str) -> Any:
        assert proceed.wait(60)
        return create(uri)

    def blocked_publish(*arguments: Any) -> None:
        assert proceed.wait(60)
        real_publish(*arguments)

    def stepped() -> list[Any]:
        """What each rank says after a step: whether it is busy, whether it is done."""
        step(engine, batches()[0])
        return gathered([scene.checkpointer.is_busy, scene.checkpointer.is_done])

    def wait_until_done(which: int) -> None:
        while not gathered(scene.checkpointer.is_done)[which]:
            pass

    with in_rank_1("calm_core.store.storage", "create", blocked):
        scene.begin(1)
        wait_until_done(0)
        writing = [stepped() for _ in range(3)]
        scene.checkpointer.leave_out(2)
        scene.checkpointer.leave_out(3)
        proceed.set()
        wait_until_done(1)
    before, marked = scene.there(), (folder / "step-00000001" / MANIFEST_NAME).exists()
    proceed.clear()
    with patch("calm_core.training.checkpoint.publish", blocked_publish):
        scene.checkpointer.settle()
        publishing = [stepped() for _ in range(3)]
        threading.Timer(0.3, proceed.set).start()
        scene.begin(4)  # has to wait
    scene.checkpointer.finish()
    return {
        "writing": writing,
        "publishing": publishing,
        "said": scene.said,
        "written": before,
        "counts": marked,
        "there": scene.there(),
        "alive": gathered(scene.alive > 0),
        "loaded": scene.again().load(),
        "loaded before": _without(4, scene),
    }


def _without(at: int, scene: Scene) -> int | None:
    """What is loaded where that one is not there."""
    if rank() == 0:
        shutil.rmtree(Path(scene.folder) / f"step-{at:08d}")
    return scene.again().load()


def share(engine: Engine, folder: str) -> dict[str, Any]:
    """What each rank writes, at any URL."""
    scene = Scene(engine, folder)
    assert not scene.save(1)
    artifact = Artifact(storage.join(folder, "step-00000001"), CheckpointFacts)
    parts = {
        file.path: {name: tensor.numel() for name, tensor in safetensors.torch.load(artifact.read(file.path)).items()}
        for file in artifact.manifest.files
        if file.path != CURVES_NAME
    }
    return {"parts": parts, "loaded": scene.again().load(), "there": storage.names_in(artifact.uri)}


def many(folder: Path) -> None:
    """Every scene, in one start."""
    worker._start_distributed()
    engine = Engine(make_model(), settings(Case(2, "fp32")))
    scenes: dict[str, Callable[[Engine, Path], dict[str, Any]]] = {
        scene.__name__: scene
        for scene in (damages, all_damaged, retention, leftovers, failing_saves, unreachable, half_removed, slow)
    }
    results = {name: scene(engine, folder / name) for name, scene in scenes.items()}
    with patch("calm_core.training.checkpoint._PART_BYTES", 200):
        results["share"] = share(engine, str(folder / "share"))
    if rank() == 0:
        (folder / "results.json").write_text(json.dumps(results))
    dist.destroy_process_group()


def elastic(folder: Path) -> None:
    """Save at stage 2 where nothing is saved, and go on without a break; then go on from there in each stage."""
    worker._start_distributed()
    for case in ELASTIC:
        place, saved_by = str(folder / f"saved-{case.precision}"), case._replace(stage=2)
        is_saved = Path(place).exists()
        dist.barrier()
        if not is_saved:
            engine = Engine(make_model(), settings(saved_by))
            for batch in batches()[:SAVED_STEP]:
                step(engine, batch)
            keeper = Checkpointer(place, engine, settings(saved_by))
            keeper.save(facts(SAVED_STEP), CURVES)
            keeper.finish()
            assert not keeper.failure
            for batch in batches()[SAVED_STEP:]:
                step(engine, batch)
            _write(folder / f"unbroken-{case.precision}.safetensors", engine)
        engine = Engine(make_model(), settings(case))
        found = Checkpointer(place, engine, settings(case)).load_latest()
        assert found
        for batch in batches()[found[0].step :]:
            step(engine, batch)
        _write(folder / f"{case.name}-{dist.get_world_size()}.safetensors", engine)
    dist.destroy_process_group()


def _write(path: Path, engine: Engine) -> None:
    tensors = {name: tensor.contiguous() for name, tensor in state(engine).items()}
    if rank() == 0:
        safetensors.torch.save_file(tensors, path)


def hangs(folder: str) -> None:
    """A rank fails while its storage never answers."""
    worker._start_distributed()
    checkpoint._PATIENCE_SECONDS = 0.2
    scene = Scene(Engine(make_model(), settings(Case(2, "fp32"))), folder)
    with (
        patch("calm_core.store.storage.create", lambda uri: threading.Event().wait()),
        scene.checkpointer,
    ):
        scene.begin(1)
        raise SystemExit(7)


def at_a_url(url: str, folder: Path) -> None:
    worker._start_distributed()
    with patch("calm_core.training.checkpoint._PART_BYTES", 200):
        found = share(Engine(make_model(), settings(Case(2, "fp32"))), url)
    if rank() == 0:
        (folder / "results.json").write_text(json.dumps(found))
    dist.destroy_process_group()
