"""The schemas that a Kubernetes API has for our objects, made strict: a field that it does not know is an error."""

import functools
from typing import Any

import jsonschema
import kubernetes_validate
from kubeflow_trainer_api import models

from tests.k8s.rendered import Object

kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)
"""It reads megabytes, and for each object anew."""

KUBERNETES = ("1.31", "1.37")
"""The oldest version that docs/cluster.md names, and the newest whose schemas there are."""

_LOCAL_QUEUE = {  # https://kueue.sigs.k8s.io/docs/reference/kueue.v1beta2/#kueue-x-k8s-io-v1beta2-LocalQueue
    "type": "object",
    "properties": {
        "apiVersion": {"const": "kueue.x-k8s.io/v1beta2"},
        "kind": {"const": "LocalQueue"},
        "metadata": {"type": "object"},
        "spec": {
            "type": "object",
            "properties": {
                "clusterQueue": {"type": "string", "pattern": r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$"},
                "stopPolicy": {"enum": ["None", "Hold", "HoldAndDrain"]},
            },
            "required": ["clusterQueue"],
            "additionalProperties": False,
        },
    },
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "additionalProperties": False,
}
_SCALARS = {  # which the models have as objects
    "IoK8sApimachineryPkgApiResourceQuantity": {"type": ["string", "number"]},
    "IoK8sApimachineryPkgUtilIntstrIntOrString": {"type": ["string", "integer"]},
}
_ENUMERATIONS = {  # which the models have in words alone
    ("JobsetV1alpha2FailurePolicyRule", "action"): (
        "FailJobSet RestartJobSet RestartJobSetAndIgnoreMaxRestarts RestartJob RestartJobAndIgnoreMaxRestarts"
    ),
    ("JobsetV1alpha2FailurePolicy", "restartStrategy"): "Recreate BlockingRecreate InPlaceRestart",
}


@functools.cache
def training_runtime() -> dict[str, Any]:
    """Of a TrainingRuntime, from the models of its own API."""
    schema: dict[str, Any] = models.TrainerV1alpha1TrainingRuntime.model_json_schema(by_alias=True)
    schema["$defs"] |= _SCALARS
    for name, each in [("", schema), *schema["$defs"].items()]:
        if "properties" in each:
            each["additionalProperties"] = False
        for (model, field), values in _ENUMERATIONS.items():
            if model == name:
                each["properties"][field] = {"enum": values.split()}
    return schema


def errors(found: Object) -> list[str]:
    """What an API would refuse of an object."""
    where = f"{found['kind']}/{found['metadata']['name']}"
    if found["kind"] == "TrainingRuntime":
        told = list(_said(where, training_runtime(), found))
        for job in found["spec"]["template"]["spec"]["replicatedJobs"]:  # Kubernetes' own words for what is in it
            metadata = {"name": job["name"], **job["template"].get("metadata", {})}
            made = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job["template"]["spec"]}
            told += errors(made)
        return told
    if found["kind"] == "LocalQueue":
        return list(_said(where, _LOCAL_QUEUE, found))
    told = []
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(found, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            told.append(f"{where} ({version}): {'.'.join(map(str, error.path))}: {error.message}")
    return told


def _said(where: str, schema: dict[str, Any], found: Object) -> list[str]:
    validator = jsonschema.Draft202012Validator(schema)
    told = []
    for error in validator.iter_errors(found):
        best = jsonschema.exceptions.best_match([error]) or error
        told.append(f"{where}: {'.'.join(map(str, best.absolute_path))}: {best.message}")
    return told
