"""The configuration: defaults < profile < --set, and every mistake is one line that names the key."""

import re
import subprocess
import sys
from typing import Any

import pytest
import yaml

from calm_core.config import (
    CalmConfig,
    Config,
    EnergyHeadConfig,
    FlowHeadConfig,
    MlpAutoencoderConfig,
    TrainingConfig,
    parse_section,
    resolve_config,
    setting_names,
)
from calm_core.errors import ConfigError


def test_defaults_then_profile_then_overrides() -> None:
    default = Config()
    profile = {"seed": 7, "calm": {"steps": 900, "model": {"head": {"noise_size": 8}}}}
    config = resolve_config(profile, ["calm.steps=901", "calm.model.head.model_samples=4", "calm.steps=902"])
    assert config.seed == 7  # of the profile
    head: Any = config.calm.model.head
    assert config.calm.steps == 902  # of the last override
    assert (head.noise_size, head.model_samples) == (8, 4)  # both, in one section
    assert config.calm.learning_rate == default.calm.learning_rate
    assert config.autoencoder == default.autoencoder
    assert profile == {"seed": 7, "calm": {"steps": 900, "model": {"head": {"noise_size": 8}}}}  # not written to


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("calm.learning_rate=1e-3", 1e-3),  # YAML reads it as a string
        ("calm.learning_rate=2", 2.0),
        ("calm.betas=[0.8, 0.99]", (0.8, 0.99)),
        ("calm.processes=null", None),
        ("data.sources=[a=b.jsonl, 's3://bucket/*.txt']", ("a=b.jsonl", "s3://bucket/*.txt")),
        ("experiment=a b", "a b"),
        ("evaluation.prompts=['The sea: ']", ("The sea: ",)),
        ("data.sequence_length=512.0", 512),  # Kubeflow turns every number into a double
    ],
)
def test_a_value_is_read_as_yaml(override: str, expected: Any) -> None:
    value: Any = resolve_config({}, [override])
    for name in override.partition("=")[0].split("."):
        value = getattr(value, name)
    assert value == expected
    assert type(value) is type(expected)


def test_a_configuration_comes_back_from_yaml_and_json_unchanged() -> None:
    config = resolve_config({}, ["data.sources=[a.txt]", "calm.learning_rate=1e-5"])
    assert parse_section(Config, yaml.safe_load(yaml.safe_dump(config.model_dump(mode="json")))) == config
    assert Config.model_validate_json(config.model_dump_json()) == config


MISTAKES = [
    # unknown keys
    ("calm.learnig_rate=1", "unknown setting calm.learnig_rate; did you mean calm.learning_rate?"),
    (
        "calm.model.head.nose_size=1",
        "unknown setting calm.model.head.nose_size; did you mean calm.model.head.noise_size?",
    ),
    ("calm.model.noise_size=1", "unknown setting calm.model.noise_size; did you mean calm.model.head.noise_size?"),
    ("zzz=1", "unknown setting zzz; `calm config` lists all settings"),
    ("calm..steps=1", "unknown setting calm."),
    # impossible values
    ("calm.steps=0", "calm.steps: expected at least 1 (got 0)"),
    ("calm.steps=many", 'calm.steps: expected a whole number (got "many")'),
    ("calm.steps=2.5", "calm.steps: expected a whole number (got 2.5)"),
    ("calm.steps=", "calm.steps: expected a whole number (got nothing)"),
    ("calm.learning_rate=.nan", "calm.learning_rate: expected a number, neither infinite nor NaN (got NaN)"),
    ("calm.learning_rate=.inf", "calm.learning_rate: expected a number, neither infinite nor NaN (got Infinity)"),
    ("calm.zero_stage=4", "calm.zero_stage: expected 0, 1, 2 or 3 (got 4)"),
    ("calm.precision=fp64", 'calm.precision: expected auto, fp32, bf16 or bf16-mixed (got "fp64")'),
    ("calm.betas=[0.9]", "calm.betas: has too few values (got [0.9])"),
    ("calm.betas=[0.9, 1]", "calm.betas.1: expected less than 1 (got 1)"),
    ("calm.model.head.alpha=2", "calm.model.head.alpha: expected less than 2 (got 2)"),
    ("calm=3", "calm: is a section; set what is in it, e.g. calm.steps (got 3)"),
    ("data.sources=a.jsonl", 'data.sources: expected a list in brackets, e.g. ["a.jsonl"] (got "a.jsonl")'),
    ("data.validation_fraction=2", "data.validation_fraction: expected at most 1 (got 2)"),
    ("registry.model_name=a/b", "registry.model_name: holds /; the name of a model may have no"),
    ("seed=-1", "seed: expected at least 0 (got -1)"),
    # settings that contradict each other
    ("data.sequence_length=100", "data: sequence_length (100) must be a multiple of document_alignment (8)"),
    ("calm.steps=50", "calm: warmup_steps (100) must not exceed steps (50)"),
    ("calm.schedule=wsd", "calm: decay_fraction (0) must be above 0 with schedule: wsd, e.g. 0.2"),
    (
        "calm={schedule: cosine, decay_fraction: 0.4}",
        "calm: decay_fraction (0.4) is for schedule: wsd, and schedule is cosine; set decay_fraction: 0.0, or schedule",
    ),
    (
        "calm={schedule: constant, decay_fraction: 0.4}",
        "calm: decay_fraction (0.4) is for schedule: wsd, and schedule is constant",
    ),
    ("calm.decay_shape=sqrt", "calm: decay_shape (sqrt) is for schedule: wsd, and schedule is constant; set decay_s"),
    (
        "calm.final_learning_rate_fraction=0.1",
        "calm: final_learning_rate_fraction (0.1) is for schedule: cosine or wsd, and schedule is constant; set final",
    ),
    (
        "calm.micro_batch_size=3",
        "calm: global_batch_size (16) must be a multiple of micro_batch_size x processes (3 x 1",
    ),
    ("calm.processes=2", "calm: global_batch_size (16) must be a multiple of micro_batch_size x processes (16 x 2"),
    (
        "calm.model.num_attention_heads=3",
        "calm.model: hidden_size (1024) must be num_attention_heads (3) times an even",
    ),
    (
        "autoencoder.model.chunk_size=3",
        "data.document_alignment (8) must be a multiple of autoencoder.model.chunk_size (3)",
    ),
    # kinds
    (
        "calm.model.head=other",
        'calm.model.head: there is no "other"; there are energy, diffusion, flow, residual, mixture',
    ),
    ("calm.model.head=3", "calm.model.head: expected a kind with its settings, e.g. {kind: energy}"),
    ("calm.decoder_loss=other", 'calm.decoder_loss: there is no "other"; there are cross_entropy, brier'),
    ("calm.decoder_loss.until=0", "calm.decoder_loss.until: expected more than 0 (got 0)"),
    ("calm.decoder_loss.joint=true", "calm.decoder_loss.joint: is a setting of another kind than the one"),
    ("calm.decoder_loss.unitl=0.2", "unknown setting calm.decoder_loss.unitl; did you mean calm.decoder_loss.until?"),
    (
        "calm.model.head.kind=[1]",
        "calm.model.head: its kind is a name (got [1]); there are energy, diffusion, flow, residual, mixture",
    ),
    ("calm.model.head.kind=", "calm.model.head: its kind is a name (got nothing)"),
    ("calm.model.head.sampling_steps=3", "calm.model.head.sampling_steps: is a setting of another kind than the one"),
    ("autoencoder.model.kind=other", 'autoencoder.model: there is no "other"; there are mlp, reading'),
    ('cluster.image="calm\\0:1"', "cluster.image: string should match pattern"),
    ("cluster.image=cälm", "cluster.image: string should match pattern"),
    # no key=value
    ("calm.steps", "override calm.steps: expected section.key=value, e.g. calm."),
    ("=3", "override =3: expected section.key=value"),
    ("calm.steps=[", "override calm.steps=[: the value is not valid YAML"),
    ("calm.steps={a: b: c}", "override calm.steps={a: b: c}: the value is not valid YAML"),
]


@pytest.mark.parametrize(("override", "message"), MISTAKES, ids=[override for override, _ in MISTAKES])
def test_a_mistake_is_one_line_that_names_the_key(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^{re.escape(message)}") as caught:
        resolve_config({}, [override])
    assert "\n" not in str(caught.value)


def test_a_sequence_must_hold_two_chunks() -> None:
    with pytest.raises(ConfigError, match=r"^data.sequence_length \(8\) must hold two chunks .*chunk_size \(8\)"):
        resolve_config({}, ["data.sequence_length=8", "autoencoder.model.chunk_size=8"])


@pytest.mark.parametrize("profile", [{1: 2}, {"calm": {"steps": 900, 1: 2}}, {"calm": ["steps"]}])
def test_a_profile_of_the_wrong_form_is_one_line_too(profile: dict[Any, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        resolve_config(profile)
    assert "\n" not in str(caught.value)


def test_every_setting_has_one_dotted_name() -> None:
    names = list(setting_names(Config))
    assert len(names) == len(set(names))
    assert {"seed", "data.sources", "calm.steps", "calm.model.head.noise_size", "registry.alias"} <= set(names)
    assert not {"calm", "calm.model"} & set(names)


def test_sections_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().calm.steps = 3  # type: ignore[misc]  # the assignment is the point


def test_a_stage_takes_its_own_section_alone() -> None:
    section: TrainingConfig = parse_section(CalmConfig, {"steps": 200, "model": {"head": {"noise_size": 3}}})
    assert section.steps == 200
    with pytest.raises(ConfigError, match=r"^unknown setting noise_size"):
        parse_section(CalmConfig, {"noise_size": 3})


def test_a_loss_of_decoded_samples_is_chosen_by_name_changed_and_taken_back() -> None:
    profile = {"calm": {"decoder_loss": {"kind": "brier", "joint": True, "weight": 0.5}}}
    config = resolve_config(profile, ["calm.decoder_loss=cross_entropy", "calm.decoder_loss.until=0.2"])
    assert config.calm.model_dump()["decoder_loss"] == {
        "kind": "cross_entropy",
        "weight": 0.5,
        "until": 0.2,
        "positions": 1.0,
        "samples": None,
    }
    assert parse_section(CalmConfig, config.calm.model_dump(mode="json")) == config.calm
    assert resolve_config(profile, ["calm.decoder_loss="]).calm == CalmConfig()


@pytest.mark.parametrize("override", ["calm.model.head=flow", "calm.model.head.kind=flow"])
def test_another_kind_keeps_what_all_kinds_share_and_drops_the_rest(override: str) -> None:
    """A profile sets an energy head up; whoever asks for a flow head must not have to take that back."""
    profile = {"calm": {"model": {"head": {"num_layers": 2, "target_samples": 16}}}}
    config = resolve_config(profile, [override, "calm.model.head.sampling_steps=3"])
    assert config.calm.model_dump()["model"]["head"] == {
        "kind": "flow",
        "num_layers": 2,
        "model_samples": FlowHeadConfig().model_samples,
        "sampling_steps": 3,
        "linear_path": False,
    }


@pytest.mark.parametrize(("before", "after", "draws"), [("energy", "flow", 2), ("flow", "energy", 8)])
def test_another_kind_has_as_many_draws_as_is_best_for_it(before: str, after: str, draws: int) -> None:
    profile = {"calm": {"model": {"head": {"kind": before, "num_layers": 3, "model_samples": 5}}}}
    head = resolve_config(profile, [f"calm.model.head={after}"]).calm.model.head
    assert (head.kind, head.num_layers, head.model_samples) == (after, 3, draws)


def test_kinds_that_extend_one_shape_keep_it() -> None:
    """The paper's autoencoder in place of one that reads is as large; what it does not have is dropped."""
    shape = {"kind": "reading", "hidden_size": 24, "num_decoder_layers": 3, "chunk_size": 2, "context_size": 5}
    model = resolve_config({"autoencoder": {"model": shape}}, ["autoencoder.model=mlp"]).autoencoder.model
    kept = {name: value for name, value in shape.items() if name != "context_size"}
    assert model.model_dump() == MlpAutoencoderConfig.model_validate(kept | {"kind": "mlp"}).model_dump()


def test_the_same_kind_keeps_its_settings() -> None:
    profile = {"calm": {"model": {"head": {"target_samples": 16}}}}
    config = resolve_config(profile, ["calm.model.head=energy"])
    assert config.calm.model.head == EnergyHeadConfig(target_samples=16)


def test_settings_are_read_without_torch() -> None:
    """Its import takes seconds, and each start of the command line would wait for it."""
    program = (
        "import sys; from calm_core.config import resolve_config; resolve_config({}, ['calm.model.head=flow']); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_student_has_no_other_loss_of_decoded_samples() -> None:
    with pytest.raises(ConfigError, match=r"decoder_loss is of a training without a teacher"):
        resolve_config({}, ["calm.teacher=/models/a", "calm.decoder_loss=brier"])


def test_a_loss_of_decoded_samples_is_of_heads_that_it_reaches() -> None:
    with pytest.raises(
        ConfigError, match=r"decoder_loss needs a head whose samples pass a gradient on, which mixture is"
    ):
        resolve_config({}, ["calm.model.head=mixture", "calm.decoder_loss=brier"])


@pytest.mark.parametrize(
    ("overrides", "given"),
    [
        (["calm.model.head.noise_size=3", "calm.model.head=energy"], {}),
        (["calm.model.head.noise_size=3"], {"calm.model.head": "energy"}),
        (["calm.model.head.noise_size=3", "calm.model.head.kind=energy"], {}),
    ],
)
def test_a_kind_keeps_its_settings_wherever_it_is_chosen(overrides: list[str], given: dict[str, str]) -> None:
    config = resolve_config({"calm": {"model": {"head": {"kind": "flow", "sampling_steps": 3}}}}, overrides, given)
    assert config.calm.model.head == EnergyHeadConfig(noise_size=3)
