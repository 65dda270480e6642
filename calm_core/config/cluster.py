"""Settings of the pods that run a pipeline's tasks in a cluster."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from calm_core.config.base import Section
from calm_core.shown import brief

_IMAGE = r"^([A-Za-z0-9][A-Za-z0-9._/:@+-]*)?$"
_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_LABEL = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"
_TAINT = re.compile(rf"({_LABEL[1:-1]})(=({_VALUE[1:-1]}))?(:(NoSchedule|PreferNoSchedule|NoExecute))?")


def _of_kubectl(taint: str) -> str:
    if not _TAINT.fullmatch(taint):
        raise ValueError(
            f"{brief(taint)} is no taint; write it as kubectl does, e.g. nvidia.com/gpu=present:NoSchedule"
        )
    return taint


Taint = Annotated[str, Field(max_length=400), AfterValidator(_of_kubectl)]

Quantity = Annotated[str, Field(pattern=_QUANTITY)]
ObjectName = Annotated[str, Field(pattern=_NAME)]
LabelKey = Annotated[str, Field(pattern=_LABEL)]
LabelValue = Annotated[str, Field(pattern=_VALUE)]


class ClusterConfig(Section):
    """The pods of a pipeline's tasks; one machine reads none of it.

    Kubeflow takes no empty text for any of them: a Secret or ConfigMap that does not exist is passed over.
    """

    image: str = Field("", max_length=500, pattern=_IMAGE, description="unset: the one that was compiled in")
    environment: ObjectName = Field("calm-environment", description="ConfigMap of storage's endpoint and MLflow's URI")
    credentials: ObjectName = Field("calm-credentials", description="Secret of storage's keys and MLflow's password")
    cpu: Quantity = Field("2", description="of tasks that prepare data, register or report")
    memory: Quantity = Field("8Gi", description="of the same, which is the most that they get")
    training_cpu: Quantity = Field("4", description="of tasks that train or evaluate")
    training_memory: Quantity = Field("32Gi", description="of the same, likewise")
    accelerator: LabelKey = Field("nvidia.com/gpu", description="resource that a node offers")
    accelerators: int = Field(0, ge=0, le=1024, description="for each task that trains or evaluates")
    node_selector: dict[LabelKey, LabelValue] = Field({}, description="labels of the nodes for training and evaluating")
    node_resources: dict[LabelKey, Quantity] = Field(
        {}, description="of each node of a training over several; unset: those of the task that waits for it"
    )
    queue: LabelValue = Field("", description="Kueue's LocalQueue for such a training")
    tolerations: list[Taint] = Field([], max_length=32, description="taints of such nodes: key=value:effect")

    @property
    def kubernetes_tolerations(self) -> list[dict[str, str]]:
        """`tolerations` in the form of a pod's."""
        found = []
        for taint in self.tolerations:
            key, _, effect = taint.partition(":")
            key, equals, value = key.partition("=")
            tolerated = {"key": key, "operator": "Equal" if equals else "Exists", "value": value, "effect": effect}
            found.append({name: text for name, text in tolerated.items() if text})
        return found
