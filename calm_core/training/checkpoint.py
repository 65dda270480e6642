"""Checkpoints of a training, in a folder named by what is trained; a retried or resubmitted task finds them.

A checkpoint is an artifact: whole tensors by name as safetensors, whatever the ZeRO stage and the number of ranks; the
loop's state as facts; the curves. It counts once its manifest is there, and its files are checked before they are
believed. Each rank writes its share of the tensors, and reads a share of the files.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, wait
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeVar

import safetensors.torch
import torch
import torch.distributed as dist
from safetensors import SafetensorError
from torch import Tensor

from calm_core.config import TrainingConfig
from calm_core.errors import ArtifactError, CalmError, ConfigError, StorageError, first_line
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, FileEntry, publish
from calm_core.store.facts import CheckpointFacts
from calm_core.store.lock import LockLostError
from calm_core.training.distributed import all_reduce_sum, gathered
from calm_core.training.engine import Engine
from calm_core.weights.curves import CURVES_NAME

_PART_BYTES = 256 << 20  # of a file; what a thread holds twice while it writes
_TAG = "step-"
_LOOK_SECONDS = 0.5  # between two looks at whether all ranks have written
_PATIENCE_SECONDS = 10.0  # of a process that ends, with a storage that does not answer

ResultT = TypeVar("ResultT")
Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]


class _Written(NamedTuple):
    """What the thread of a rank has done: its files, or why it could not write them."""

    files: list[FileEntry]
    failure: str = ""


class _Read(NamedTuple):
    """What a rank has of a checkpoint, checked.

    Attributes:
        facts, curves: Of the whole.
        files: The tensors of its share of the files.
    """

    facts: CheckpointFacts
    curves: bytes
    files: dict[str, Tensors]


class Checkpointer:
    """Saves and finds the checkpoints of one training. Every rank calls every method, at the same step.

    A save waits for the copy out of the device's memory. Then a thread of each rank writes its share; when all have,
    one of rank 0 makes the checkpoint count, and removes what need not be kept any more. Whether all are done with the
    one or the other is summed up with what ranks tell each other in a step anyway (`is_done`), and `settle` goes on
    from there. What cannot be saved stops nothing: it is told, and tried again at the next interval.

    As a context it ends with the process: it waits a little for a thread, but for ever for none.

    Args:
        uri: Folder of the training's checkpoints, on any fsspec URL that all nodes see.
        engine: Whose state it is.
        config: Which are kept.
        tell: Shows one line to whoever watches; rank 0 calls it.
        require: Raises a LockLostError where another training works there by now; asked before anything is written, or
            counts. This one then ends.
        alive: Called while a rank waits for what is being saved, whenever some of it has been, and after each file that
            it reads.

    Attributes:
        latest: Step of the last checkpoint that counts; None where there is none.
        failure: Why the last one that was tried does not count; empty where it does.
        waited, wrote: Seconds that steps have waited for copies, and that this rank's thread has written, in all.
    """

    def __init__(
        self,
        uri: str,
        engine: Engine,
        config: TrainingConfig,
        *,
        tell: Callable[[str], object] = lambda line: None,
        require: Callable[[], object] = lambda: None,
        alive: Callable[[], object] = lambda: None,
    ) -> None:
        self._uri, self._engine, self._config = uri, engine, config
        self._tell, self._require, self._alive = tell, require, alive
        self._rank, self._ranks = dist.get_rank(), dist.get_world_size()
        self._saving: CheckpointFacts | None = None  # the same on every rank, as is the next
        self._is_publishing = False
        self._written: Future[_Written] = Future()
        self._published: Future[str] = Future()  # of rank 0
        self._kept: dict[int, CheckpointFacts] = {}  # of rank 0: those that count
        self._useless: set[int] = set()  # of rank 0: those that never will
        self._files = 0  # that this rank has written
        self._has_told_left_out = False
        self.latest: int | None = None
        self.failure = ""
        self.waited = self.wrote = 0.0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, error_type: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.is_busy:
            wait([self._running], _PATIENCE_SECONDS)

    @property
    def is_busy(self) -> bool:
        """Whether one is being saved; the same on every rank."""
        return self._saving is not None

    @property
    def is_done(self) -> bool:
        """Whether this rank has done, or failed to do, its part of what has to be done before `settle`."""
        return self.is_busy and self._running.done()

    @property
    def _running(self) -> Future[Any]:
        return self._published if self._is_publishing and self._rank == 0 else self._written

    @property
    def standing(self) -> str:
        """What a training that ends leaves to go on from, for people."""
        why = f" (the last one could not be saved: {self.failure})" if self.failure else ""
        there = "there is no checkpoint" if self.latest is None else f"the checkpoint of step {self.latest:,} stands"
        return f"{there}{why}"

    def save(self, facts: CheckpointFacts, curves: bytes) -> None:
        """Begin to save the engine's state, and with it the loop's; one that is being saved is waited for.

        Raises:
            LockLostError: Another training works there by now.
        """
        self.finish()
        started = time.monotonic()
        share = self._own_share()
        self.waited += time.monotonic() - started
        more = {CURVES_NAME: curves} if self._rank == 0 else {}
        self._saving, self._has_told_left_out = facts, False
        self._written = _in_background(lambda: self._write(self._folder(facts.step), share, more))

    def leave_out(self, step: int) -> None:
        """Say that none is saved at a step, since one is being saved still."""
        if self._rank == 0 and self._saving and not self._has_told_left_out:
            self._has_told_left_out = True
            self._tell(
                f"no checkpoint of step {step:,}: that of step {self._saving.step:,} is being written still; a longer "
                "checkpoint_interval leaves none out"
            )

    def _own_share(self) -> Tensors:
        """A copy of the tensors that this rank writes: each goes to the one that has least so far."""
        share: Tensors = {}
        loads = [0] * self._ranks
        for (kind, name), shape in self._engine.shapes().items():
            owner = loads.index(min(loads))
            loads[owner] += max(shape.numel(), 1)
            tensor = self._engine.get(kind, name)
            if owner == self._rank:
                share[f"{kind}/{name}"] = tensor.detach().to("cpu", torch.float32, copy=True).contiguous()
        return share

    def _write(self, folder: str, share: Tensors, more: dict[str, bytes]) -> _Written:
        started, files = time.monotonic(), []

        def write(name: str, data: bytes) -> None:
            with storage.create(storage.join(folder, name)) as file:
                file.write(data)
            files.append(FileEntry(path=name, size=file.size, sha256=file.sha256))
            self._files += 1

        try:
            self._require()
            if wrong := next((name for name, tensor in share.items() if not _is_finite(tensor)), ""):
                return _Written([], f"{wrong} is not finite")
            for number, part in enumerate(_parts(share)):
                write(f"rank-{self._rank:05d}-part-{number:05d}.safetensors", safetensors.torch.save(part))
            for name, data in more.items():
                write(name, data)
        except Exception as error:  # whatever it was, training goes on
            return _Written([], _reason(error))
        self.wrote += time.monotonic() - started
        return _Written(files)

    def settle(self) -> None:
        """Go on where all ranks are done: make count what they have written, or tell why it does not.

        Raises:
            LockLostError: Another training works there by now.
        """
        facts = self._saving
        assert facts is not None
        if not self._is_publishing:
            written = gathered(self._written.result())
            files = [file for one in written for file in one.files]
            failure = next((one.failure for one in written if one.failure), "")
            if self._rank == 0:
                self._published = _in_background(lambda: self._publish(facts, files, failure))
            self._is_publishing = True
        else:
            self.failure = _of_first(lambda: self._published.result())
            self._saving, self._is_publishing = None, False
            if not self.failure:
                self.latest = facts.step

    def finish(self) -> None:
        """Wait for what is being saved; `failure` says whether it counts.

        Who watches is told as long as there is progress.
        """
        before = -1.0
        while self.is_busy:
            done, files = all_reduce_sum(
                torch.tensor([self.is_done, self._files], dtype=torch.float64), self._engine.device
            ).tolist()
            if done == self._ranks:
                self.settle()
                continue
            if files != before:
                self._alive()
            before = files
            wait([self._running], _LOOK_SECONDS)

    def _publish(self, facts: CheckpointFacts, files: list[FileEntry], failure: str) -> str:
        """Make one count, and remove those that need not be kept any more; returns why it does not count."""
        try:
            self._require()
            if not failure:
                publish(self._folder(facts.step), facts, files)
        except LockLostError:  # nothing of what lies there is touched; all ranks end with it
            raise
        except Exception as error:  # whatever it was, training goes on
            failure = _reason(error)
        if failure:
            self._tell(f"the checkpoint of step {facts.step:,} could not be saved: {failure}")
            self._useless.add(facts.step)
            self._remove([facts.step])
        else:
            self._useless.discard(facts.step)
            self._kept[facts.step] = facts
            self._remove([*self._useless, *(self._kept.keys() - set(self._worth_keeping()))])
        return failure

    def _remove(self, steps: Iterable[int]) -> None:
        for step in steps:
            with suppress(StorageError):  # tried again after the next one
                folder = self._folder(step)
                storage.remove([storage.join(folder, MANIFEST_NAME)])  # first: what is half removed does not count
                storage.remove_folder(folder)
                self._useless.discard(step)
                self._kept.pop(step, None)

    def _worth_keeping(self) -> Iterator[int]:
        yield from sorted(self._kept)[-self._config.checkpoints_kept :]
        if every := self._config.keep_every:
            yield from (step for step in self._kept if step % every == 0)
        scores = {step: facts.validation for step, facts in self._kept.items() if facts.validation is not None}
        newest = self._kept[max(self._kept)].guards
        yield from (step for step in (newest.saved, newest.followed) if step in self._kept)
        if self._config.keep_best and scores:
            yield min(scores, key=lambda step: (scores[step], step))

    def load_latest(
        self, until: int | None = None, *, is_required: bool = False
    ) -> tuple[CheckpointFacts, bytes] | None:
        """Restore the engine from the latest checkpoint; one that is damaged gives way to the one before.

        Args:
            until: The last step to go back to; what was saved after it is removed.
            is_required: Whether there shall be one.

        Returns:
            The loop's state, and the curves; None where there is no checkpoint.

        Raises:
            ConfigError: None can be used, and one is required.
            StorageError: The storage failed, so nobody knows whether one is whole.
        """
        steps: list[int] = _of_first(self._steps)
        if until is None:
            self._tell_unfinished(steps)
        for step in steps:
            if until is not None and step > until:
                continue
            try:
                read = self._read(step)
            except ArtifactError as error:
                if self._rank == 0:
                    self._useless.add(step)
                    self._tell(f"the checkpoint of step {step:,} is left out: {_reason(error)}")
                continue
            self.latest = step
            if self._rank == 0:
                self._remember(steps)
                if until is not None:
                    self._remove([later for later in steps if later > until])
            return read.facts, read.curves
        if is_required:
            raise ConfigError(f"resume=True: no checkpoint in {self._uri} can be used; leave it out to begin anew")
        if until is None and self._rank == 0 and (steps or self._useless):
            self._tell("no checkpoint can be used; training starts anew")
        return None

    def _tell_unfinished(self, steps: list[int]) -> None:
        """Tell of those that would be the latest ones, had they been saved to their end."""
        for step in sorted(self._useless, reverse=True):  # of rank 0
            if step > max(steps, default=-1):
                self._tell(
                    f"the checkpoint of step {step:,} is left out: {self._folder(step)} has no {MANIFEST_NAME}, which "
                    "is written last"
                )

    def _steps(self) -> list[int]:
        """Steps of which there is a checkpoint that counts, the latest first."""
        names = [name.removeprefix(_TAG) for name in storage.names_in(self._uri) if name.startswith(_TAG)]
        steps = {int(name) for name in names if name.isdecimal()}
        complete = {step for step in steps if storage.exists(storage.join(self._folder(step), MANIFEST_NAME))}
        self._useless |= steps - complete
        return sorted(complete, reverse=True)

    def _remember(self, steps: list[int]) -> None:
        for step in set(steps) - self._useless:
            try:
                self._kept[step] = Artifact(self._folder(step), CheckpointFacts).facts
            except ArtifactError:
                self._useless.add(step)
            except StorageError:
                continue  # it stays, for a later start to look at

    def _read(self, step: int) -> _Read:
        """Check a checkpoint, and restore the engine from it; all ranks do, or all raise the same.

        Raises:
            ArtifactError: It is damaged, or of another model.
            StorageError: The storage failed.
        """
        read: _Read | None = None
        failure: CalmError | None = None
        try:
            read = self._own_files(step)
        except (ArtifactError, StorageError) as error:
            failure = error
        shapes = {path: _shapes(tensors) for path, tensors in read.files.items()} if read else {}
        of_ranks = gathered((failure, shapes))
        for failed, _ in of_ranks:
            if failed:
                raise failed
        assert read is not None
        files = {path: (rank, held) for rank, (_, paths) in enumerate(of_ranks) for path, held in paths.items()}
        self._require_whole(step, [held for _, held in files.values()])
        for path, (owner, held) in files.items():
            for name, shape in held.items():
                own = read.files[path][name] if owner == self._rank else torch.empty(shape)
                tensor = own.to(self._engine.device)
                if self._ranks > 1:
                    dist.broadcast(tensor, owner)
                kind, _, parameter = name.partition("/")
                self._engine.set(kind, parameter, tensor)
        self._engine.optimizer_steps = read.facts.optimizer_steps
        return read

    def _own_files(self, step: int) -> _Read:
        artifact = Artifact(self._folder(step), CheckpointFacts)
        if artifact.facts.step != step:
            raise ArtifactError(f"{artifact.uri}: is of step {artifact.facts.step:,}, and another one was saved there")
        paths = sorted(file.path for file in artifact.manifest.files if file.path != CURVES_NAME)
        files = {}
        for path in paths[self._rank :: self._ranks]:
            files[path] = _tensors(artifact, path)
            self._alive()
        return _Read(artifact.facts, _bytes(artifact, CURVES_NAME), files)

    def _require_whole(self, step: int, files: list[Shapes]) -> None:
        """Raise an ArtifactError where the tensors are not those of this training."""
        shapes = {f"{kind}/{name}": tuple(shape) for (kind, name), shape in self._engine.shapes().items()}
        found: Shapes = {}
        for name, shape in (item for held in files for item in held.items()):
            if name in found or shape != shapes.get(name):
                expected = f", {list(shapes[name])} was expected" if name in shapes else ", which this training has not"
                wrong = f"{name} twice" if name in found else f"{name} of shape {list(shape)}{expected}"
                raise ArtifactError(f"{self._folder(step)}: holds {wrong}")
            found[name] = shape
        if missing := sorted(shapes.keys() - found.keys()):
            raise ArtifactError(f"{self._folder(step)}: lacks {missing[0]}")

    def _folder(self, step: int) -> str:
        return storage.join(self._uri, f"{_TAG}{step:08d}")


def _parts(share: Tensors) -> Iterator[Tensors]:
    """Tensors together up to the size of a file."""
    part: Tensors = {}
    size = 0
    for name, tensor in share.items():
        if part and size + tensor.nbytes > _PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = tensor
        size += tensor.nbytes
    if part:
        yield part


def _tensors(artifact: Artifact[CheckpointFacts], path: str) -> Tensors:
    """The tensors of a file, checked.

    Raises:
        ArtifactError: It is damaged.
        StorageError: The storage failed.
    """
    try:
        tensors = safetensors.torch.load(_bytes(artifact, path))
    except (SafetensorError, KeyError) as error:  # KeyError: of a type that torch does not have
        raise artifact.damaged(path, first_line(error)) from None
    for name, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise artifact.damaged(path, f"{name} is {tensor.dtype}".replace("torch.", ""))
        if not _is_finite(tensor):
            raise artifact.damaged(path, f"{name} is not finite")
    return tensors


def _is_finite(tensor: Tensor) -> bool:
    """Whether all numbers are: as `isfinite`, for a thirtieth of its time."""
    return not tensor.numel() or all(math.isfinite(end) for end in tensor.aminmax())


def _bytes(artifact: Artifact[CheckpointFacts], path: str) -> bytes:
    """A file's bytes, checked; what lies there and is no file of the folder, or leads out of it, is damage as well."""
    try:
        artifact.uri_of(path)
    except StorageError as error:
        raise ArtifactError(str(error)) from None
    return artifact.read(path)


def _shapes(tensors: Tensors) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _in_background(function: Callable[[], ResultT]) -> Future[ResultT]:
    """Call a function in a thread that the end of the process does not wait for: a storage may never answer."""
    future: Future[ResultT] = Future()

    def call() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # for whoever asks for the result
            future.set_exception(error)

    Thread(target=call, name="checkpoint", daemon=True).start()
    return future


def _reason(error: Exception) -> str:
    """What an error says, without what its message advises whoever reads it."""
    text = str(error) if isinstance(error, CalmError) else f"{type(error).__name__}: {first_line(error)}"
    return text.partition("; ")[0]


def _of_first(function: Callable[[], Any]) -> Any:
    """What a function returns on rank 0, for all ranks; what it raises there, all of them raise."""
    told: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            told = [function(), None]
        except CalmError as error:
            told = [None, error]
    dist.broadcast_object_list(told)
    value, failed = told
    if failed:
        raise failed
    return value
