"""Settings as text: what YAML 1.2 and JSON say, within bounds; and what is printed is read back."""

import json
import math
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calm_cli.settings import settings_lines
from calm_core.config import Config, resolve_config, setting_names
from calm_core.config import text as settings_text
from calm_core.errors import ConfigError
from calm_core.shown import visible
from pipelines import profiles

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e8", 1e8),
        ("1:30", "1:30"),
        ("0777", 777),
        ("0o17", 15),
        ("no", "no"),
        ("Off", "Off"),
        ("2024-01-31", "2024-01-31"),
        ("1_000", "1_000"),
        ("0b11", "0b11"),
        ("190:20:30.15", "190:20:30.15"),
        ("=", "="),
        ("{<<: {a: 1}}", {"<<": {"a": 1}}),
        ("+12", 12),
        (".5", 0.5),
        ("-.inf", -math.inf),
        ("TRUE", True),
        ("tRUE", "tRUE"),
        ("~", None),
        ('{"a":[1,2.5e3,null,true,"\\ud83d\\ude00"]}', {"a": [1, 2500.0, None, True, "😀"]}),
    ],
)
def test_a_text_means_what_yaml_1_2_says(text: str, value: Any) -> None:
    found = settings_text.read(text)
    assert found == value
    assert type(found) is type(value)


@given(JSON)
def test_every_json_value_comes_back(value: Any) -> None:
    printed = settings_text.write(value)
    assert settings_text.read(printed) == json.loads(json.dumps(value))
    assert visible(printed) == printed


@given(JSON)
def test_json_in_ascii_is_read_as_json(value: Any) -> None:
    """As every library for JSON writes it: characters beyond the BMP are two escapes."""
    assert settings_text.read(json.dumps(value)) == json.loads(json.dumps(value))


BOMB = "[" + ", ".join([f"a0: &a0 {'x' * 50}", *(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}]" for i in range(1, 30))]) + "]"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (BOMB, "anchors and aliases"),
        ("[" * 100_000, "more than 20 values lie within each other"),
        ("{a: " * 30_000, "more than 20 values lie within each other"),
        ("9" * 5000, "a number has 5,000 digits"),
        ("!!float x", "tags (!) are not read"),
        ("!!python/object/apply:os.system [ls]", "tags (!) are not read"),
        ("a" * 10_000_000, "has 10,000,000 characters"),
        ("%YAML 1." + "9" * 5000 + "\n--- a", "out of range"),
        ('"\\UFFFFFFFF"', "out of range"),
        ('"\\ud83d"', "an escape names half a character"),
        ("a\x1b[2Jb", "no text, U+001B"),
        ("a: 1\nb: 2\na: 3", "line 3, column 1: a is there twice; join both"),
        ("{a: 1, 'a': 3}", "a is there twice"),
        ("1: a", "the name of a setting is text, not 1"),
        ("a\n---\nb", "second document"),
        ("a\u2028b", 'U+2028; write "\\u2028" in its place'),
    ],
    ids=lambda value: value[:20],
)
def test_what_goes_beyond_is_one_short_line_at_once(text: str, message: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ConfigError) as caught:
            resolve_config({}, [f"data.sources={text}"])
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()
    assert peak < 100_000_000


def test_a_section_that_a_profile_has_twice_is_refused_with_its_line(tmp_path: Path) -> None:
    profile = tmp_path / "mine.yaml"
    profile.write_text("calm:\n  steps: 700\nseed: 3\ncalm:\n  warmup_steps: 9\n")
    with pytest.raises(
        ConfigError, match=r"mine.yaml: unreadable YAML \(line 4, column 1: calm is there twice; join both\)$"
    ):
        profiles.load(str(profile))


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"a: \xe9", b"\x00", b"- a", b"", b"x" * 600_000])
def test_a_profile_that_is_no_text_is_one_line(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"mine.yaml: "):
        profiles.load(str(tmp_path / "mine.yaml"))


@pytest.mark.parametrize("base", ["a\x00.yaml", "loop.yaml", "zero.yaml", "folder.yaml", "x" * 5000])
def test_a_base_that_is_no_file_is_one_line(base: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(json.dumps({"base": base}))
    (tmp_path / "loop.yaml").symlink_to("loop.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError) as caught:
        profiles.load(str(tmp_path / "mine.yaml"))
    assert str(caught.value).isprintable()


def test_bases_without_end_are_refused(tmp_path: Path) -> None:
    for number in range(30):
        (tmp_path / f"{number}.yaml").write_text(f"base: {number + 1}.yaml\n")
    with pytest.raises(ConfigError, match="more than 20 profiles"):
        profiles.load(str(tmp_path / "0.yaml"))


@pytest.mark.parametrize("name", [name for name in setting_names(Config) if not name.endswith("kind")])
def test_no_setting_takes_any_size(name: str) -> None:
    """Each number has a bound below what no machine could count, and each text below what no message could show."""
    head = {"diffusion_steps": "diffusion", "sampling_steps": "flow", "linear_path": "flow", "components": "mixture"}
    kinds = [f"calm.model.head.kind={head.get(name.rpartition('.')[2], 'energy')}", "calm.decoder_loss.kind=brier"]
    for value in (10**18, 10**30, 1e300, math.inf, math.nan, "x" * 1_000_000, ["x" * 1_000_000], ["x"] * 100_000):
        with pytest.raises(ConfigError) as caught:
            resolve_config({}, kinds, {name: value})
        assert str(caught.value).startswith(name)
        assert "another kind" not in str(caught.value)
        assert len(str(caught.value)) < 400


def test_a_switch_is_no_number_and_minus_zero_is_zero() -> None:
    for override in ("calm.steps=true", "calm.betas=[false, 0.9]", "calm.learning_rate=true", "calm.zero_stage=true"):
        with pytest.raises(ConfigError, match="is no switch"):
            resolve_config({}, [override])
    assert str(resolve_config({}, ["calm.weight_decay=-0.0"]).calm.weight_decay) == "0.0"
    assert resolve_config({}, ["train_baseline=yes"]).train_baseline is True


def test_options_are_taken_as_they_are_and_not_read() -> None:
    given = {"data.sources": ["😀/*.jsonl", "a: b", "[x]", "1:30"], "data.extends": "日本", "data.text_field": "𐐀ext"}
    data = resolve_config({}, [], given).data
    assert (list(data.sources), data.extends, data.text_field) == tuple(given.values())


def test_what_config_prints_is_read_back(tmp_path: Path) -> None:
    prompts = [
        "a\x1b[2J\x85\u2028\u202e\ufeff\x7f\x00",
        "no",
        "1:30",
        "# a",
        '"',
        "\\",
        "{{$}}",
        "",
        " a ",
        "😀\n\t",
        "x" * 5000,
    ]
    given = {"evaluation.prompts": prompts, "data.sources": ["~", "no", "- a", "é: #"], "data.text_field": "null"}
    config = resolve_config({}, ["calm.learning_rate=1e-7", "calm.model.head=diffusion", "calm.steps=1e6"], given)
    printed = "\n".join(settings_lines(config))
    assert printed.replace("\n", "").isprintable()
    (tmp_path / "printed.yaml").write_text(printed, encoding="utf-8")
    assert resolve_config(profiles.load(str(tmp_path / "printed.yaml"))) == config
