"""What Kubeflow's local runner lacks of a cluster: images that are parameters, and artifacts on object storage.

Where a task's artifacts lie is a folder on S3 here, as its driver says in a cluster, and what it leaves at the paths of
its outputs is uploaded, as its launcher does. The rest of it is Kubeflow's own DockerRunner.
"""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import docker
import pytest
from kfp import local
from kfp.local import docker_task_handler, status

from calm_core.store import storage

_PARAMETER = re.compile(r"\{\{\$\.inputs\.parameters\['(.+?)'\]\}\}")
_INPUT = "--executor_input"


@contextmanager
def docker_runner(root: Path, s3_root: str, **container: Any) -> Iterator[None]:
    """Let pipelines run in containers.

    Args:
        root: A folder for what tasks tell Kubeflow, which their user may write to.
        s3_root: Where their artifacts lie: ``s3://bucket/...``.
        container: Arguments of `containers.run`.
    """

    class Task(docker_task_handler.DockerTaskHandler):  # type: ignore[misc]
        def __init__(self, image: str, full_command: list[str], **others: Any) -> None:
            argument = full_command.index(_INPUT) + 1
            told = json.loads(full_command[argument])
            given = told["inputs"].get("parameterValues", {})
            self.outputs = [each for key in told["outputs"].get("artifacts", {}).values() for each in key["artifacts"]]
            for artifact in self.outputs:
                artifact["uri"] = s3_root + artifact["uri"].removeprefix(str(root))
            full_command[argument] = json.dumps(told)
            super().__init__(_PARAMETER.sub(lambda found: given[found[1]], image), full_command, **others)

        def get_volumes_to_mount(self, client: docker.DockerClient | None = None) -> dict[str, Any]:
            seen_at = "/" + s3_root.replace("://", "/")  # by the SDK, in every pod
            return {str(root): {"bind": str(root), "mode": "rw"}, f"{root}/": {"bind": seen_at, "mode": "rw"}}

        def run(self) -> status.Status:
            ended = super().run()
            for artifact in self.outputs:
                file = root / artifact["uri"].removeprefix(f"{s3_root}/")
                if file.is_file():
                    storage.write(artifact["uri"], file.read_bytes())
            return ended

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(docker_task_handler, "DockerTaskHandler", Task)
        local.init(runner=local.DockerRunner(**container), pipeline_root=str(root))
        yield
