"""The files of a registered model, brought to this machine; nothing of them is run.

MLflow's own loader imports the module that a model names, with the code that lies beside it, and unpickles what it
finds: whoever may write to a registry could run code wherever somebody loads from it. So MLflow is only asked where the
files lie. Those of a CALM model are data, which `calm_core.registry.load` reads.
"""

import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from calm_core.config import text
from calm_core.errors import ArtifactError, CalmError, StorageError
from calm_core.store import storage
from calm_core.store.artifact import MANIFEST_NAME, Artifact, Manifest
from calm_core.store.facts import AutoencoderFacts, CalmFacts, EvaluationFacts
from calm_core.telemetry.mlflow_store import MlflowUnreachable, reach_mlflow, reason_of, tracking_place
from calm_core.weights.versions import exact_uri

if TYPE_CHECKING:
    from mlflow.entities import FileInfo
    from mlflow.store.artifact.artifact_repo import ArtifactRepository

LOADER_MODULE = "calm_core.registry.load"
"""What a registered CALM model names as its loader."""
DATA_FOLDER = "data/model"
"""Where a model's data lie in its files; those of earlier versions of this library elsewhere below `data`."""
AUTOENCODER_FOLDER, CALM_FOLDER, EVALUATION_FOLDER = "autoencoder", "calm", "evaluation"

_MLMODEL = "MLmodel"
_LARGEST_MLMODEL = 1 << 17  # bytes; ours has about 2,000
_LARGEST_MODEL_MANIFEST = 16 << 20  # a model has a handful of files


@contextmanager
def registered_artifacts(
    uri: str, *, files: bool = True
) -> Iterator[tuple[Artifact[AutoencoderFacts], Artifact[CalmFacts]]]:
    """The artifacts inside a registered CALM model, on this machine while the block lasts.

    Args:
        uri: As MLflow resolves it: models:/calm@champion, runs:/... or mlflow-artifacts:/...
        files: Whether their files are brought, or the manifests alone.

    Raises:
        CalmError: There is no such model, it is none of ours, or its files are missing or damaged.
    """
    with _registered(uri, _Files.bring_model if files else _Files.bring_manifests) as data:
        autoencoder = Artifact(storage.child(data, AUTOENCODER_FOLDER), AutoencoderFacts)
        yield autoencoder, Artifact(storage.child(data, CALM_FOLDER), CalmFacts)


@contextmanager
def registered_evaluation(uri: str) -> Iterator[Artifact[EvaluationFacts] | None]:
    """The evaluation that a registered CALM model carries, on this machine while the block lasts.

    Its files are checked when they are read.

    Args:
        uri: As that of `registered_artifacts`.

    Yields:
        The evaluation; None where the version carries none, as those of earlier versions of this library.

    Raises:
        CalmError: There is no such model, it is none of ours, its files are missing or damaged, or it carries the
            evaluation of another model.
    """
    with _registered(uri, _Files.bring_evaluation) as data:
        place = storage.child(data, EVALUATION_FOLDER)
        if not storage.exists(storage.child(place, MANIFEST_NAME)):
            yield None
            return
        evaluation = Artifact(place, EvaluationFacts)
        for name in (AUTOENCODER_FOLDER, CALM_FOLDER):
            if evaluation.manifest.parents.get(name) != Manifest.read(storage.child(data, name)).digest:
                raise CalmError(f"{uri}: carries the evaluation of another {name}; register the model again")
        yield evaluation


def registered_signature(uri: str) -> Any:
    """How a registered CALM model is called, as MLflow wrote it: JSON of `inputs`, `outputs` and `params`.

    Args:
        uri: As that of `registered_artifacts`.

    Raises:
        CalmError: There is no such model, it is none of ours, or its files are missing or damaged.
    """
    found: list[Any] = []
    with _registered(uri, lambda files, data: found.append(files.description.get("signature"))):
        return found[0]


@contextmanager
def _registered(uri: str, bring: "Callable[[_Files, str], None]") -> Iterator[str]:
    """The local folder with a registered model's data, while the block lasts.

    Args:
        uri: Of the model.
        bring: Brings what is needed of the data to this machine.
    """
    data = ""
    with tempfile.TemporaryDirectory(prefix="calm-registered-") as empty:
        try:
            data = _data_folder(uri, empty, bring)
            yield data
        except ArtifactError as error:
            if data not in str(error):  # of another artifact that is read in the block
                raise
            reason = str(error).partition(";")[0]  # what it says to do is for an artifact where its stage wrote it
            raise CalmError(f"{uri}: its files are missing or damaged ({reason}); register the model again") from None


def _data_folder(uri: str, empty: str, bring: "Callable[[_Files, str], None]") -> str:
    """The local folder with a model's data: where MLflow keeps it, or a copy in a folder that is empty so far."""
    reach_mlflow(to_read=True)
    exact = exact_uri(uri)
    try:
        files = _located(exact, empty)
        data = _data_path(uri, files.description)
        bring(files, data)
        return storage.child(files.folder, data)
    except StorageError as error:
        raise CalmError(f"{uri}: is not a CALM model, or cannot be read ({error})", can_pass=error.can_pass) from None
    except CalmError:
        raise
    except FileNotFoundError as error:
        raise CalmError(
            f"{uri}: its files are gone ({error.filename}); register the model again, or choose another version"
        ) from None
    except Exception as error:  # what MLflow and its clients of object stores raise has no common base
        raise MlflowUnreachable(
            f"{uri}: cannot be loaded from {tracking_place()} ({reason_of(error)}); "
            "check that it is there, and that its files can be reached"
        ) from None


def _data_path(uri: str, description: "dict[str, Any]") -> str:
    """Where in a model's folder its data lie, if the model says that this library loads it.

    Raises:
        CalmError: It says something else.
    """
    try:
        flavor = description["flavors"]["python_function"]
        loader, data, code = flavor["loader_module"], flavor["data"], flavor.get("code")
    except (KeyError, TypeError, AttributeError):
        loader, data, code = None, None, None
    if loader != LOADER_MODULE or code is not None or not isinstance(data, str):
        raise CalmError(f"{uri}: is not a CALM model; it is not loaded, since that might run what it brings along")
    return data


class _Files:
    """The files of a model that lies on this machine.

    Attributes:
        folder: The model's local folder.
    """

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def read(self, path: str, limit: int) -> bytes:
        """The bytes of one file, no more than a limit of them."""
        self.bring(path, limit)
        return storage.read(storage.child(self.folder, path), 0, limit)

    @cached_property
    def description(self) -> dict[str, Any]:
        """What the model says of itself; nothing, if that cannot be read."""
        data = self.read(_MLMODEL, _LARGEST_MLMODEL)
        try:
            told = text.read(data.decode())
        except Exception:  # a file from anywhere: no YAML, nested too deeply, numbers too long
            return {}
        return told if isinstance(told, dict) else {}

    def bring_model(self, data: str) -> None:
        """Bring the artifacts of the weights from the folder with the model's data."""
        for name in (AUTOENCODER_FOLDER, CALM_FOLDER):
            self.bring_artifact(f"{data}/{name}")

    def bring_manifests(self, data: str) -> None:
        """Bring the manifests of the weights' artifacts."""
        for name in (AUTOENCODER_FOLDER, CALM_FOLDER):
            self.bring(f"{data}/{name}/{MANIFEST_NAME}", _LARGEST_MODEL_MANIFEST)

    def bring_evaluation(self, data: str) -> None:
        """Bring the evaluation, if there is one, and the manifests of what it has to be the evaluation of."""
        self.bring_manifests(data)
        if self.has(f"{data}/{EVALUATION_FOLDER}"):
            self.bring_artifact(f"{data}/{EVALUATION_FOLDER}")

    def bring_artifact(self, path: str) -> None:
        """Bring the files of an artifact into the folder; they are checked when they are read."""
        self.bring(f"{path}/{MANIFEST_NAME}", _LARGEST_MODEL_MANIFEST)
        for entry in Manifest.read(storage.child(self.folder, path)).files:
            self.bring(f"{path}/{entry.path}", entry.size)

    def has(self, folder: str) -> bool:
        """Whether the model has a folder."""
        return storage.is_folder(storage.child(self.folder, folder))

    def bring(self, path: str, limit: int) -> None:
        """Bring one file into the folder, where it is already."""


class _RemoteFiles(_Files):
    """The files of a model that lies elsewhere.

    Args:
        target: An empty folder on this machine.
        repository: Where MLflow finds the files.
        place: The model's path in there, with a "/" at its end; empty if it is the root.
    """

    def __init__(self, target: str, repository: "ArtifactRepository", place: str) -> None:
        super().__init__(f"{target}/{place}".rstrip("/"))
        self._target, self._repository, self._place = target, repository, place

    def has(self, folder: str) -> bool:
        entry = self._entry(folder)
        return entry is not None and entry.is_dir

    def bring(self, path: str, limit: int) -> None:
        """Copy one file into the folder.

        Raises:
            StorageError: The path leaves the folder.
            ArtifactError: The file is missing, or longer than the limit or what the disk can take.
        """
        entry = self._entry(path)
        if entry is None or entry.is_dir:
            raise ArtifactError(f"{path} is missing")
        size = entry.file_size or 0
        if size > min(limit, shutil.disk_usage(self._target).free):
            raise ArtifactError(f"{path} has {size:,} bytes, more than expected or than the disk has left")
        self._repository.download_artifacts(self._place + path, self._target)

    def _entry(self, path: str) -> "FileInfo | None":
        """What the repository lists of one path."""
        storage.child(self.folder, path)  # refuses one that leaves the folder
        place = self._place + path
        listed = self._repository.list_artifacts(place.rpartition("/")[0] or None)
        return next((info for info in listed if info.path == place), None)


def _located(uri: str, empty: str) -> _Files:
    """The files of a model, wherever MLflow says that they lie."""
    from mlflow.store.artifact.artifact_repository_registry import get_artifact_repository
    from mlflow.store.artifact.local_artifact_repo import LocalArtifactRepository
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

    if not uri.startswith("models:"):  # files of runs are listed from the run's root
        root, _, name = uri.rstrip("/").rpartition("/")
        return _RemoteFiles(empty, get_artifact_repository(root), f"{name}/")
    repository = ModelsArtifactRepository(uri).repo
    if isinstance(repository, LocalArtifactRepository):
        return _Files(str(Path(repository.artifact_dir).absolute()))
    return _RemoteFiles(empty, repository, "")
