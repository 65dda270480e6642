"""What Kubernetes says of the pods of a TrainJob's nodes."""

from collections.abc import Mapping
from typing import Any

from calm_core.shown import shortened

NODE = "node"
"""Kubeflow's Trainer calls the job of the nodes so, and its container."""
NODE_LABEL = "batch.kubernetes.io/job-completion-index"


def number_of(pod: Mapping[str, Any]) -> int:
    labels = pod["metadata"].get("labels") or {}
    number = str(labels.get(NODE_LABEL, "0"))
    return int(number) if number.isdigit() else 0


def is_running(pod: Mapping[str, Any]) -> bool:
    return (pod.get("status") or {}).get("phase") == "Running"


def has_begun(pod: Mapping[str, Any]) -> bool:
    return is_running(pod) or is_terminated(pod)


def why_not_running(pod: Mapping[str, Any]) -> str:
    """What keeps a pod from starting, in Kubernetes' words."""
    status = pod.get("status") or {}
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return shortened(f"node {number_of(pod)}: {waiting['reason']}: {waiting.get('message', '')}", 400)
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return shortened(f"node {number_of(pod)}: {condition.get('reason')}: {condition.get('message', '')}", 400)
    return ""


def why_lost(pod: Mapping[str, Any]) -> str:
    """What has ended a pod that was not its own doing."""
    status, ending = pod.get("status") or {}, ending_of(pod)
    if ending.get("reason") == "OOMKilled":
        return f"node {number_of(pod)} was killed for want of memory (OOMKilled); give the nodes more"
    for condition in status.get("conditions") or []:
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True":
            return shortened(
                f"node {number_of(pod)} was taken away ({condition.get('reason')}: {condition.get('message', '')})", 400
            )
    return ""


def is_terminated(pod: Mapping[str, Any]) -> bool:
    """Whether its container has ended."""
    return bool(ending_of(pod)) or (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def ending_of(pod: Mapping[str, Any]) -> dict[str, Any]:
    """How its container has ended, in Kubernetes' words; empty where it has not."""
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        if status.get("name") == NODE:
            return (status.get("state") or {}).get("terminated") or {}
    return {}
