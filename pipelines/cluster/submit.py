"""A run in the cluster: the pipeline uploaded once, its version named by content, and the run of it."""

import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from kfp_server_api import (
    V2beta1Experiment,
    V2beta1Pipeline,
    V2beta1PipelineVersion,
    V2beta1PipelineVersionReference,
    V2beta1Run,
    V2beta1RuntimeConfig,
)

from calm_core.config import Config, TrainingConfig
from calm_core.errors import CalmError, ConfigError
from calm_core.shown import holds_secret, shortened
from calm_core.store import storage
from calm_core.telemetry.mlflow_run import REGISTERED
from components.quoting import is_safe
from pipelines.arguments import arguments_of, pods_of, retraining_of
from pipelines.cluster.client import Cluster
from pipelines.cluster.connection import Refused

SERVICE_ACCOUNT = "calm-pipeline"
"""Of the pods: k8s/ makes it, with the right to create TrainJobs."""
EXPERIMENT = "calm"
_OWN_FOLDER = "calm"
_LOCAL_SCHEMES = ("file", "local", "memory")
_DIGEST_CHARACTERS = 12
_BY_DIGEST = "@sha256:"
_SCHEMES = ("s3://", "minio://")
_LONGEST_ROOT = 200  # it is in every URI of the 128 KiB that a task gets
FEW_PARTITIONS, FEW_SOURCE_BYTES = 32, 128 << 10
"""That any Kubeflow runs: partitions, and bytes of the names of sources, which each of them gets. What Argo keeps of a
run is 1 MiB at most, unless an administrator lets it keep that in a database."""
_RETRAINING = "retraining"
"""What `calm-retrain` alone takes."""


@dataclass(frozen=True)
class Package:
    """A compiled pipeline.

    Attributes:
        path: The file.
    """

    path: Path

    @cached_property
    def _content(self) -> bytes:
        return self.path.read_bytes()

    @cached_property
    def _spec(self) -> dict[str, Any]:
        spec: dict[str, Any] = next(yaml.load_all(self._content, yaml.CSafeLoader))
        return spec

    @property
    def name(self) -> str:
        """Of the pipeline."""
        return str(self._spec["pipelineInfo"]["name"])

    @property
    def description(self) -> str:
        """Of the pipeline."""
        return str(self._spec["pipelineInfo"].get("description", ""))

    @property
    def version(self) -> str:
        """Name of this content's version, which is free for Kubernetes' objects too."""
        return f"{self.name}-{hashlib.sha256(self._content).hexdigest()[:_DIGEST_CHARACTERS]}"

    @property
    def parameters(self) -> dict[str, Any]:
        """What it takes, as it was compiled."""
        return dict(self._spec["root"].get("inputDefinitions", {}).get("parameters", {}))


def checked_root(root: str) -> str:
    """A folder that all pods see.

    Raises:
        ConfigError: It is on this machine, holds a secret, or is none that Kubeflow and our code take alike.
    """
    if holds_secret(root):
        raise ConfigError(
            "--pipeline-root: a URL holds no password or key; pods get them from the Secret calm-credentials"
        )
    scheme, _, rest = root.partition("://")
    if not rest or scheme.lower() in _LOCAL_SCHEMES:
        raise ConfigError(
            f"--pipeline-root: {shortened(root)} is a folder of this machine, which no pod sees; write --pipeline-root "
            "s3://bucket/folder"
        )
    root, (bucket, *folders) = root.rstrip("/"), rest.rstrip("/").split("/")
    is_plain = is_safe(root) and all(32 < ord(sign) < 127 and sign not in "?#" for sign in root)
    if not (root.startswith(_SCHEMES) and bucket and is_plain) or {"", ".", ".."} & {*folders}:
        raise ConfigError(
            f"--pipeline-root: Kubeflow does not take {shortened(root)}; write s3:// or minio://, a bucket and "
            "folders, in plain letters"
        )
    if len(root) > _LONGEST_ROOT:
        raise ConfigError(f"--pipeline-root: has {len(root)} characters; Kubeflow hands on {_LONGEST_ROOT}; shorten it")
    return root


def arguments(config: Config, root: str, package: Package, by_the_clock: bool = False) -> dict[str, Any]:
    """The arguments of a run in the cluster.

    An image that is named by digest has its code's version in itself. One that is named by a tag may change, and
    Kubeflow's cache would not notice: then this library's version takes part. A schedule would freeze it.

    Args:
        config: Every setting.
        root: Where Kubeflow keeps what pipelines make, as `checked_root` gives it; empty: as Kubeflow is set up.
        package: What takes them.
        by_the_clock: Whether a schedule uses them, again and again.

    Raises:
        ConfigError: Something is missing, lies where no pod sees it, or would not arrive.
    """
    _require_visible_places(config)
    plans, checkpoints = (storage.join(root, _OWN_FOLDER, name) if root else "" for name in ("plans", "checkpoints"))
    values = arguments_of(config, plans, checkpoints) | pods_of(config)
    if _RETRAINING in package.parameters:
        values |= {_RETRAINING: retraining_of(config)}
    if by_the_clock or is_by_digest(config, package):
        del values["code_version"]
    return {name: value for name, value in values.items() if value != ""}


def is_by_digest(config: Config, package: Package) -> bool:
    """Whether the image of a run is named by its digest."""
    image = config.cluster.image or str(package.parameters["image"].get("defaultValue", ""))
    return _BY_DIGEST in image


def _require_visible_places(config: Config) -> None:
    """Refuse inputs that lie on this machine.

    Raises:
        ConfigError: One does, or there is no text.
    """
    if not config.data.sources and not config.data.extends:
        raise ConfigError("data.sources: is empty; name text that pods can read, e.g. s3://bucket/texts/*.jsonl")
    for name, place in (
        *(("data.sources", source) for source in config.data.sources),
        ("data.extends", config.data.extends),
        ("tokenizer.source", config.tokenizer.source),
        *((f"{kind}.initial_weights", getattr(config, kind).initial_weights) for kind in TrainingConfig.of_kind),
    ):
        scheme, _, rest = place.partition("://")
        if place and not place.startswith(REGISTERED) and (not rest or scheme.lower() in _LOCAL_SCHEMES):
            raise ConfigError(
                f"{name}: {shortened(place)} lies on this machine, which no pod sees; copy it to the object store, and "
                "name it there: s3://bucket/..."
            )


def submit(cluster: Cluster, package: Package, values: Mapping[str, Any], root: str, name: str = "") -> str:
    """Start a run; returns its id.

    Args:
        cluster: Where.
        package: The pipeline, which is uploaded unless it is there.
        values: Its arguments.
        root: Where Kubeflow keeps what it makes; empty: as it is set up.
        name: Of the run; empty: the pipeline's and the time.

    Raises:
        CalmError: Kubeflow refuses it, or does not answer.
    """
    pipeline_id, version_id = upload(cluster, package)
    run = cluster.call(
        "creating the run",
        cluster.kfp.runs.run_service_create_run,
        run=V2beta1Run(
            experiment_id=experiment_id(cluster),
            display_name=name or f"{package.name} {time.strftime('%Y-%m-%d %H:%M:%S')}",
            pipeline_version_reference=V2beta1PipelineVersionReference(
                pipeline_id=pipeline_id, pipeline_version_id=version_id
            ),
            runtime_config=runtime_config(values, root),
            service_account=SERVICE_ACCOUNT,
        ),
    )
    return required(cluster, run.run_id)


def runtime_config(values: Mapping[str, Any], root: str) -> V2beta1RuntimeConfig:
    """What a run is given."""
    return V2beta1RuntimeConfig(parameters=dict(values), pipeline_root=root or None)


def required(cluster: Cluster, value: Any) -> str:
    """An id of an answer, which has one unless it is damaged."""
    if not isinstance(value, str) or not value:
        raise CalmError(f"{cluster.host}: an answer lacks an id; what was made can be seen on its page")
    return value


def upload(cluster: Cluster, package: Package) -> tuple[str, str]:
    """Have the pipeline's version in Kubeflow, once; returns both ids.

    Two who do so at the same time end with the same version.

    Raises:
        CalmError: Kubeflow refuses it, or another pipeline has its name.
    """
    pipeline_id = _pipeline(cluster, package)
    if version := _version(cluster, package, pipeline_id):
        return pipeline_id, version
    try:
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"{package.version}.yaml"
            file.write_bytes(package._content)
            made: V2beta1PipelineVersion = cluster.call(
                "uploading the pipeline",
                cluster.kfp.pipeline_uploads.upload_pipeline_version,
                str(file),
                name=package.version,
                pipelineid=pipeline_id,
            )
        return pipeline_id, required(cluster, made.pipeline_version_id)
    except Refused as error:
        version = _version(cluster, package, pipeline_id) if error.status == 409 else None
        if error.status == 400:  # its upload has one answer for all, also for want of a right
            raise Refused(
                f"{error}; it says so too of whom it does not let upload there: ask for the right", 400
            ) from None
        if not version:
            raise
        return pipeline_id, version


def _pipeline(cluster: Cluster, package: Package) -> str:
    found = _pipeline_named(cluster, package)
    if found:
        return found
    namespace = cluster.asked_namespace or None
    try:
        made = cluster.call(
            "creating the pipeline",
            cluster.kfp.pipelines.pipeline_service_create_pipeline,
            pipeline=V2beta1Pipeline(
                name=package.name, display_name=package.name, description=package.description, namespace=namespace
            ),
        )
        return required(cluster, made.pipeline_id)
    except Refused as error:
        found = _pipeline_named(cluster, package) if error.status == 409 else None
        if error.status == 409 and not found:
            raise CalmError(
                f"{cluster.host}: the name {package.name} is taken by a pipeline that cannot be read"
            ) from None
        if not found:
            raise
        return found


def _pipeline_named(cluster: Cluster, package: Package) -> str | None:
    namespace = {"namespace": cluster.asked_namespace} if cluster.asked_namespace else {}
    get = cluster.kfp.pipelines.pipeline_service_get_pipeline_by_name
    try:
        found = cluster.call("looking for the pipeline", get, package.name, **namespace)
    except Refused as error:
        if error.status == 404:
            return None
        raise
    pipeline_id = required(cluster, found.pipeline_id)
    _require_ours(cluster, package, pipeline_id)
    return pipeline_id


def _require_ours(cluster: Cluster, package: Package, pipeline_id: str) -> None:
    """Refuse a pipeline of the same name that is another one, as its newest version says."""
    versions = cluster.kfp.pipelines.pipeline_service_list_pipeline_versions
    newest = next(
        cluster.pages(
            "reading the pipeline",
            versions,
            "pipeline_versions",
            most=1,
            pipeline_id=pipeline_id,
            sort_by="created_at desc",
        ),
        None,
    )
    spec = (newest and newest.pipeline_spec) or {}
    info = spec.get("pipelineInfo") or spec.get("pipeline_spec", {}).get("pipelineInfo") or {}
    if info.get("name", package.name) != package.name:
        raise CalmError(
            f"{cluster.host}: a pipeline {package.name} is there already and is another one "
            f"({shortened(info['name'])}); delete or rename it there, or use another namespace"
        )


def _version(cluster: Cluster, package: Package, pipeline_id: str) -> str | None:
    listing = cluster.kfp.pipelines.pipeline_service_list_pipeline_versions
    doing, of_page = "looking for the version", "pipeline_versions"
    found = _first_named(cluster, package.version, doing, listing, of_page, pipeline_id=pipeline_id)
    return required(cluster, found.pipeline_version_id) if found else None


def _first_named(cluster: Cluster, name: str, doing: str, listing: Callable[..., Any], of_page: str, **of: str) -> Any:
    """The first entry of a listing that has a name; None without one."""
    return next(cluster.pages(doing, listing, of_page, most=1, filter=named(name), **of), None)


def named(name: str) -> str:
    """A filter of Kubeflow's listings."""
    return json.dumps({"predicates": [{"operation": "EQUALS", "key": "display_name", "string_value": name}]})


def experiment_id(cluster: Cluster) -> str:
    """The experiment that holds all of our runs, made if need be."""
    name = _experiment_name()
    if found := _experiment(cluster, name):
        return found
    try:
        made = cluster.call(
            "creating the experiment",
            cluster.kfp.experiments.experiment_service_create_experiment,
            experiment=V2beta1Experiment(display_name=name, namespace=cluster.asked_namespace or None),
        )
        return required(cluster, made.experiment_id)
    except Refused as error:
        found = _experiment(cluster, name) if error.status == 409 else None
        if not found:
            raise
        return found


def _experiment_name() -> str:
    """As the SDK chooses it."""
    return (
        os.environ.get("KF_PIPELINES_OVERRIDE_EXPERIMENT_NAME")
        or os.environ.get("KF_PIPELINES_DEFAULT_EXPERIMENT_NAME")
        or EXPERIMENT
    )


def _experiment(cluster: Cluster, name: str) -> str | None:
    namespace = {"namespace": cluster.asked_namespace} if cluster.asked_namespace else {}
    listing = cluster.kfp.experiments.experiment_service_list_experiments
    found = _first_named(cluster, name, "looking for the experiment", listing, "experiments", **namespace)
    return required(cluster, found.experiment_id) if found else None


def find_experiment(cluster: Cluster) -> str | None:
    """The experiment that holds all of our runs, if there is one."""
    return _experiment(cluster, _experiment_name())
