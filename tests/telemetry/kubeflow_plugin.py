"""What Kubeflow Pipelines' MLflow plugin does before a task's pod starts, and the environment that it starts with.

Its source (2.17) is backend/src/v2/common/plugins/mlflow/handler.go: `OnTaskStart` makes a run for the task below that
of the pipeline run; `RetrieveUserContainerEnvVars` names it, where the plugin has `injectUserEnvVars: true`.
"""

from mlflow import MlflowClient
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID


def task_environment(endpoint: str, workspace: str = "") -> dict[str, str]:
    """The variables of a new task of a new pipeline run.

    Args:
        endpoint: URL of MLflow's server.
        workspace: That MLflow has for the task's namespace, where its workspaces are in use; MLFLOW_WORKSPACE names it
            for this call too.
    """
    client = MlflowClient(endpoint)
    experiment = client.get_experiment_by_name("KFP-Default")
    experiment_id = experiment.experiment_id if experiment else client.create_experiment("KFP-Default")
    pipeline = client.create_run(experiment_id, run_name="calm-train")
    parent = {MLFLOW_PARENT_RUN_ID: pipeline.info.run_id}
    task = client.create_run(experiment_id, run_name="train-calm", tags=parent)
    environment = {
        "MLFLOW_RUN_ID": task.info.run_id,
        "MLFLOW_TRACKING_URI": endpoint,
        "MLFLOW_EXPERIMENT_ID": experiment_id,
    }
    return environment | ({"MLFLOW_WORKSPACE": workspace} if workspace else {})
