"""`calm submit`: the pipeline, run by Kubeflow in a cluster."""

import time
from typing import Annotated

import typer

from calm_cli.board import stages_of
from calm_cli.cluster import (
    HostOption,
    NamespaceOption,
    PipelineRootOption,
    SourceOption,
    wait_for,
    warn_of_partitions,
)
from calm_cli.display import clock
from calm_cli.options import ProfileOption, SetOption, TextFieldOption, configuration
from calm_cli.screen import Screen, told
from calm_cli.tables import show_pairs
from calm_core.errors import CalmError
from pipelines.compile import TRAIN_PIPELINE

DEFAULT_PROFILE = "small"


def submit(
    host: HostOption = "",
    namespace: NamespaceOption = "",
    profile: ProfileOption = DEFAULT_PROFILE,
    source: SourceOption = None,
    text_field: TextFieldOption = None,
    set_: SetOption = None,
    pipeline_root: PipelineRootOption = "",
    wait: Annotated[bool, typer.Option("--wait", help="Watch the run until it ends, and end as it does.")] = False,
) -> None:
    """Run the pipeline in a cluster: upload it unless it is there, and start a run of it.

    Text has to lie where pods can read it. How to log in, and what else the cluster needs: docs/submitting.md.

    Examples:

      calm submit --host https://kubeflow.example/pipeline --source 's3://bucket/texts/*.jsonl' --wait

      calm submit --pipeline-root s3://bucket/calm --source s3://bucket/texts.jsonl --set calm.steps=20000
    """
    config = configuration(profile, set_, {"data.sources": source or None, "data.text_field": text_field})
    from pipelines.cluster.client import connect
    from pipelines.cluster.runs import reason_of
    from pipelines.cluster.submit import Package, arguments, checked_root
    from pipelines.cluster.submit import submit as submit_run

    package, root = Package(TRAIN_PIPELINE), checked_root(pipeline_root) if pipeline_root else ""
    values = arguments(config, root, package)
    warn_of_partitions(config)
    with told(Screen(stderr=True)) as tell:
        tell("reaching Kubeflow Pipelines")
        cluster = connect(host, namespace)
        tell(f"submitting {package.name} to {cluster.host}")
        run_id = submit_run(cluster, package, values, root)
    screen = Screen(soft_wrap=True)
    link = cluster.link(f"runs/details/{run_id}")
    show_pairs([("run", run_id), ("version", package.version), ("page", link)], screen)
    if not wait:
        screen.print(f"\nnext: calm runs show {run_id} {cluster.options}")
        return
    began = time.monotonic()
    run = wait_for(cluster, run_id, stages_of(config.train_baseline), Screen())
    if run.state == "done":
        screen.print(f"\ndone after {clock(time.monotonic() - began)}: {link}")
        return
    why = reason_of(cluster, run) if run.state == "failed" else f"somebody has stopped it ({run.state})"
    raise CalmError(
        f"{why or 'the run has failed before a stage began'} (all of it: calm runs logs {run_id} "
        f"{cluster.options}; {link})"
    )
