"""Kubernetes' API, as kubectl's settings or a pod's service account reach it, for the few objects that are ours."""

from typing import Any

from calm_core.errors import CalmError, ConfigError
from calm_core.shown import shortened
from pipelines.cluster.connection import Pool, Refused

TRAINER_API = "trainer.kubeflow.org/v1alpha1"
RUN_LABEL = "calm-pipelines/run"
"""Of a TrainJob: the run of Kubeflow that it belongs to."""
_LOG_IN = "log in again, as for kubectl"


class Kubernetes:
    """A cluster's API.

    Attributes:
        host: Its address.
    """

    def __init__(self, client: Any) -> None:
        self._client = client
        self.host = shortened(client.configuration.host, 200)
        client.rest_client.pool_manager = Pool(client.rest_client.pool_manager, client.configuration.host, _LOG_IN)

    def get(self, path: str, accept: str = "application/json", **query: str) -> dict[str, Any]:
        """An object or a list of them.

        Raises:
            Refused: There is none, or it may not be read; `status` says which.
            CalmError: Nothing answers.
        """
        return self._ask("GET", path, accept=accept, query=query)

    def create(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """Make an object.

        Raises:
            CalmError: As `get`.
        """
        return self._ask("POST", path, body=body)

    def delete(self, path: str, **query: str) -> dict[str, Any]:
        """Delete an object, or all of a list that a query chooses.

        Raises:
            CalmError: As `get`.
        """
        return self._ask("DELETE", path, query=query)

    def log(self, namespace: str, pod: str) -> str:
        """What a pod has printed.

        Raises:
            CalmError: As `get`.
        """
        path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
        return str(self._call("GET", path, "text/plain, */*", {"limitBytes": str(1 << 20)}, None, "str"))

    def _ask(
        self, method: str, path: str, *, accept: str = "application/json", query: Any = None, body: Any = None
    ) -> dict[str, Any]:
        answer = self._call(method, path, accept, query or {}, body, "object")
        if not isinstance(answer, dict):
            raise CalmError(f"{self.host}: an answer is damaged (no JSON object for {path})")
        return answer

    def _call(self, method: str, path: str, accept: str, query: dict[str, str], body: Any, kind: str) -> Any:
        try:
            return self._client.call_api(
                path,
                method,
                query_params=list(query.items()),
                header_params={"Accept": accept, "Content-Type": "application/json"},
                body=body,
                response_type=kind,
                auth_settings=["BearerToken"],
                _return_http_data_only=True,
            )
        except CalmError:
            raise
        except Exception as error:  # the texts of the client's may hold headers
            raise CalmError(f"{self.host}: an answer is damaged ({type(error).__name__} for {path})") from None


def connect_kubernetes() -> Kubernetes:
    """Reach Kubernetes' API.

    Raises:
        ConfigError: Neither a pod's service account nor kubectl's settings are here.
        CalmError: They cannot be used.
    """
    from kubernetes import client, config

    configuration = client.Configuration()
    try:
        try:
            config.load_incluster_config(client_configuration=configuration)
        except config.ConfigException:
            config.load_kube_config(client_configuration=configuration)
    except config.ConfigException:
        raise ConfigError(
            "Kubernetes: neither kubectl's settings nor a pod's service account are here; name a file: KUBECONFIG"
        ) from None
    except Exception as error:  # of login plug-ins; their texts may hold tokens
        raise CalmError(f"Kubernetes: kubectl's settings cannot be used ({type(error).__name__})") from None
    return Kubernetes(client.ApiClient(configuration))


def delete_train_jobs(kubernetes: Kubernetes, namespace: str, run_id: str) -> int:
    """Delete the TrainJobs of a run, which Kubeflow leaves at work when the run is ended; returns how many there were.

    Raises:
        CalmError: They may not be deleted, or nothing answers.
    """
    path = f"/apis/{TRAINER_API}/namespaces/{namespace}/trainjobs"
    try:
        found = kubernetes.get(path, labelSelector=f"{RUN_LABEL}={run_id}").get("items") or []
        for job in found:
            kubernetes.delete(f"{path}/{job['metadata']['name']}", propagationPolicy="Background")
    except Refused as error:
        if error.status == 404:  # there is no Trainer, or the job has just gone
            return 0
        raise
    except (AttributeError, KeyError, TypeError):
        raise CalmError(f"{kubernetes.host}: the list of TrainJobs is damaged") from None
    return len(found)
