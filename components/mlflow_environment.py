"""What a pod's ConfigMap and Secret say of MLflow, under names that Kubeflow's MLflow plugin does not use.

A variable that both set would be refused by Kubernetes.
"""

import os

_PREFIX = "CALM_"
OF_THE_SERVER = ("MLFLOW_TRACKING_URI",)
OF_ITS_USER = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD")


def own(name: str) -> str:
    """The name under which a pod gets one of MLflow's variables from us."""
    return _PREFIX + name


def use_own_mlflow() -> None:
    """Use what our ConfigMap and Secret say, unless the plugin has named a server, and so how to log in there."""
    if not os.environ.get("MLFLOW_TRACKING_URI"):
        os.environ.update(
            {name: os.environ[own(name)] for name in OF_THE_SERVER + OF_ITS_USER if own(name) in os.environ}
        )
