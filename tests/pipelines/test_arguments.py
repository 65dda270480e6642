"""What a user writes in the settings arrives as it was written, or is refused with one line."""

import json
import os
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import get_args

import pytest
from kfp import dsl

from calm_core.config import Config, EvaluationConfig, Section, resolve_config
from calm_core.errors import ConfigError
from components.body import settings
from components.quoting import is_safe, quoted, unquoted
from components.training.template import TrainJobSettings
from pipelines.arguments import arguments_of, pods_of

PARTS = [
    "{{$}}",
    "{{$.inputs.parameters['seed']}}",
    "{{$.inputs.parameters['evaluation']}}",
    "{{$.outputs.artifacts['report'].uri}}",
    "{{$.outputs.output_file}}",
    "{{$.json_escape[1]}}",
    "{{$.workspace_path}}",
    "{{$.pipeline_job_name}}",
    "{{channel:task=plan;name=Output;type=List;}}",
    "{{workflow.name}}",
    "{{=sprig.env('HOME')}}",
    "pipelinechannel--for-loop-1-loop-item",
    "/kfp-workspace/x",
    '{"Concat": ["a"]}',
    '{"IfPresent": {"InputName": "seed", "Then": "x"}}',
    "{{{",
    "{",
    "}}",
    "%7B%7B$}}",
    "100 %",
    "%25",
    "python3",
    '"$program_path/ephemeral_component.py" "$@"',
    "pip install x",
    "$(touch here) `id` $HOME ${HOME}",
    "$$(AWS_SECRET_ACCESS_KEY) $$$",
    "'\"\\",
    "\t\r\n\x00\x1b[2J",
    "ümläut 日本 🙂 \u2028",
    " ",
    "",
]


def prompts() -> Iterator[str]:
    """Each part, and 300 mixtures."""
    yield from PARTS
    chance = random.Random(0)
    for _ in range(300):
        yield "".join(chance.choices(PARTS, k=chance.randrange(2, 6)))


@dsl.component(base_image="python", install_kfp_package=False)
def told(evaluation: dict, file: str) -> None:  # type: ignore[type-arg]  # a parameter of Kubeflow
    """Write down what has arrived."""
    import json
    from pathlib import Path

    from calm_core.config import EvaluationConfig
    from components.body import settings

    Path(file).write_text(json.dumps(settings(EvaluationConfig, evaluation).prompts))


@dsl.pipeline(name="tell")
def tell(evaluation: dict, file: str) -> None:  # type: ignore[type-arg]  # a parameter of Kubeflow
    """One task, which gets a parameter of the pipeline."""
    told(evaluation=evaluation, file=file)


RUN = """
import json, sys
from pathlib import Path
from kfp import components, local
sys.executable = "python3"
local.init(local.SubprocessRunner(use_venv=False), pipeline_root=sys.argv[1])
components.load_component_from_file(f"{sys.argv[1]}/tell.yaml")(**json.loads(Path(f"{sys.argv[1]}/arguments").read_text()))
"""


def test_every_prompt_comes_through_kubeflow_as_it_was_written(tmp_path: Path) -> None:
    from kfp import compiler

    written = list(prompts())
    assert sum(not is_safe(prompt) for prompt in written) > 100
    config = Config(evaluation=EvaluationConfig(prompts=tuple(written)))
    evaluation = arguments_of(config, "plans", "checkpoints")["evaluation"]
    compiler.Compiler().compile(tell, f"{tmp_path}/tell.yaml")
    (tmp_path / "arguments").write_text(json.dumps({"evaluation": evaluation, "file": f"{tmp_path}/told"}))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "TMPDIR": str(tmp_path),
    }
    run = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr[-2000:]
    assert json.loads((tmp_path / "told").read_text()) == written


def test_quoted_text_has_nothing_that_kubeflow_replaces_and_comes_back() -> None:
    for prompt in prompts():
        once = quoted({"evaluation": [prompt, 3, None, True]})
        assert is_safe(once["evaluation"][0])
        assert unquoted(once) == {"evaluation": [prompt, 3, None, True]}
        assert quoted(prompt) == prompt or "%" in prompt or not is_safe(prompt)


@pytest.mark.parametrize(
    "override", ['data.text_field="{{$.x}}"', 'data.sources=["/kfp-workspace/{{$}}.jsonl", "%41"]']
)
def test_every_section_is_quoted(override: str) -> None:
    config = resolve_config({}, [override])
    data = arguments_of(config, "plans", "checkpoints")["data"]
    assert all(is_safe(text) for text in [data["text_field"], *data["sources"]])
    assert settings(type(config.data), data) == config.data


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("evaluation.prompts=" + json.dumps(["word " * 20_000]), r"^evaluation: these settings are 100,\d+ bytes"),
        ("data.partitions=65", r"^data\.partitions: a pipeline has at most 64, not 65"),
    ],
)
def test_what_kubeflow_cannot_hand_on_is_refused(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        arguments_of(resolve_config({}, [override]), "plans", "checkpoints")
    assert "\n" not in str(caught.value)


def sections(section: type[Section] = Config) -> Iterator[type[Section]]:
    """All sections, of every kind."""
    yield section
    for nested in (field.annotation for field in section.model_fields.values()):
        if isinstance(nested, type) and issubclass(nested, Section):
            for kind in (nested, *nested.__subclasses__()):
                yield from sections(kind)


def test_every_number_and_every_unset_value_can_be_handed_on() -> None:
    """Kubeflow's numbers are those of JavaScript, exact up to 2^53, and it has no null: unset is absent."""
    numbers = 0
    for section in sections():
        for name, field in section.model_fields.items():
            if field.annotation is int or field.annotation == int | None:
                [bound] = [mark.le if hasattr(mark, "le") else mark.lt for mark in field.metadata if has_bound(mark)]
                assert bound <= 2**53, f"{section.__name__}.{name}"
                numbers += 1
            if type(None) in get_args(field.annotation):
                assert field.default is None, f"{section.__name__}.{name}"
    assert numbers > 30


def has_bound(mark: object) -> bool:
    return hasattr(mark, "le") or hasattr(mark, "lt")


@pytest.mark.parametrize("folder", ["/data/{{$}}", "/kfp-workspace/x", "/a/pipelinechannel--x"])
def test_a_folder_whose_name_kubeflow_would_replace_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="use another folder"):
        arguments_of(Config(), folder, "checkpoints")


def test_pods_get_what_the_settings_say_and_nothing_empty() -> None:
    config = resolve_config({}, ["cluster.accelerators=8", "cluster.training_memory=200Gi"])
    pods = pods_of(config)
    assert (pods["accelerators"], pods["training_memory"]) == ("8", "200Gi")
    assert "image" not in pods and "" not in pods.values()
    assert pods_of(resolve_config({}, ["cluster.image=r.example/calm@sha256:1"]))["image"] == "r.example/calm@sha256:1"
    assert pods.keys().isdisjoint(arguments_of(config, "plans", "checkpoints"))
    assert pods["trainjob"] == {}
    nodes = resolve_config({}, ["cluster.queue=calm", "cluster.node_resources={nvidia.com/gpu: '8', memory: 64Gi}"])
    assert pods_of(nodes)["trainjob"] == {"resources": {"nvidia.com/gpu": "8", "memory": "64Gi"}, "queue": "calm"}
    TrainJobSettings.model_validate(pods_of(nodes)["trainjob"])


def test_taints_are_tolerated_as_kubectl_writes_them() -> None:
    config = resolve_config({}, ["cluster.tolerations=[nvidia.com/gpu, spot=true:NoSchedule, 'dedicated:NoExecute']"])
    assert pods_of(config)["tolerations"] == [
        {"key": "nvidia.com/gpu", "operator": "Exists"},
        {"key": "spot", "operator": "Equal", "value": "true", "effect": "NoSchedule"},
        {"key": "dedicated", "operator": "Exists", "effect": "NoExecute"},
    ]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("cluster.memory=8 GB", "cluster.memory"),
        ("cluster.memory=''", "cluster.memory"),
        ("cluster.cpu=-1", "cluster.cpu"),
        ("cluster.credentials=''", "cluster.credentials"),
        ("cluster.credentials=Our_Secret", "cluster.credentials"),
        ("cluster.accelerators=-1", "cluster.accelerators"),
        ("cluster.node_selector={a b: c}", "cluster.node_selector"),
        ("cluster.tolerations=[gpu:NeverSchedule]", "cluster.tolerations.0: 'gpu:NeverSchedule' is no taint"),
        ("cluster.tolerations=['']", "cluster.tolerations.0"),
    ],
)
def test_what_kubernetes_would_refuse_is_refused_here(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        resolve_config({}, [override])
