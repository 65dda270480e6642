"""Settings of the pods that run a pipeline's tasks in a cluster."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from calm_core.config.base import Section

_QUANTITY = r"^[0-9]+(\.[0-9]+)?(m|k|M|G|T|Ki|Mi|Gi|Ti)?$"
_NAME = r"^[a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?$"
_LABEL = r"^([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_VALUE = r"^([A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?)?$"

Quantity = Annotated[str, Field(pattern=_QUANTITY)]
ObjectName = Annotated[str, Field(pattern=_NAME)]
LabelKey = Annotated[str, Field(pattern=_LABEL)]
LabelValue = Annotated[str, Field(pattern=_VALUE)]


class Toleration(Section):
    """A taint of nodes that pods tolerate, in Kubernetes' own words."""

    key: LabelKey
    operator: Literal["Exists", "Equal"] = "Exists"
    value: LabelValue = ""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None

    @model_validator(mode="after")
    def _value_is_compared(self) -> Self:
        if self.value and self.operator == "Exists":
            raise ValueError("value: is compared by the operator Equal only; set operator, or leave it out")
        return self


class ClusterConfig(Section):
    """The pods of a pipeline's tasks; one machine reads none of it.

    Kubeflow takes no empty text for any of them: a Secret or ConfigMap that does not exist is passed over.
    """

    image: str = Field("", max_length=500, pattern=r"^\S*$", description="unset: the one that was compiled in")
    environment: ObjectName = Field("calm-environment", description="ConfigMap of storage's endpoint and MLflow's URI")
    credentials: ObjectName = Field("calm-credentials", description="Secret of storage's keys and MLflow's password")
    cpu: Quantity = Field("2", description="of tasks that prepare data, register or report")
    memory: Quantity = Field("8Gi", description="of the same, which is the most that they get")
    training_cpu: Quantity = Field("4", description="of tasks that train or evaluate")
    training_memory: Quantity = Field("32Gi", description="of the same, likewise")
    accelerator: LabelKey = Field("nvidia.com/gpu", description="resource that a node offers")
    accelerators: int = Field(0, ge=0, le=1024, description="for each task that trains or evaluates")
    node_selector: dict[LabelKey, LabelValue] = Field({}, description="labels of the nodes for training and evaluating")
    tolerations: list[Toleration] = Field([], max_length=32, description="of the same")
