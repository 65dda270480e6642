"""Mistakes in settings and profiles."""

from collections.abc import Callable
from pathlib import Path

from tests.cli.mistakes.frame import Mistake


def _set(setting: str, *says: str) -> Mistake:
    """A mistake in one --set."""
    return Mistake(f"--set {setting}"[:60], ("run", "--set", setting), says, exit_code=2)


def _profile(name: str, content: str | bytes, *says: str) -> Mistake:
    """A mistake in a profile's file."""
    content = content.replace("{", "{{").replace("}", "}}") if isinstance(content, str) else content
    return Mistake(f"profile: {name}", ("run", "--profile", "my.yaml"), says, exit_code=2, files={"my.yaml": content})


def _named(name: str, profile: str, *says: str, arrange: Callable[[Path], object] = lambda folder: None) -> Mistake:
    """A mistake in what --profile names."""
    command = ("config", "--profile", profile)
    return Mistake(f"profile: {name}", command, (f"--profile {profile}: ", *says), exit_code=2, arrange=arrange)


UNKNOWN = [
    _set("calm.lerning_rate=1", "unknown setting calm.lerning_rate; did you mean calm.learning_rate?"),
    _set("clam.steps=5", "unknown setting clam.steps; did you mean calm.steps?"),
    _set("Calm.Steps=5", "did you mean calm.steps?"),
    _set("calm steps=5", "did you mean calm.steps?"),
    _set("calm.learning-rate=1", "did you mean calm.learning_rate?"),
    _set("calm.lr=1", "did you mean calm.learning_rate?"),
    _set("calm.seed=5", "did you mean seed?"),
    _set("calm.head=flow", "did you mean calm.model.head?"),
    _set("calm.hidden_size=4", "did you mean calm.model.hidden_size?"),
    _set("calm.batch_size=4", "did you mean calm.global_batch_size or calm.micro_batch_size?"),
    _set("steps=5", "did you mean autoencoder.steps or calm.steps or transformer.steps?"),
    _set("vocab=300", "did you mean tokenizer.vocab_size?"),
    _set("dropout=0.1", "autoencoder.model.latent_dropout or autoencoder.model.token_dropout?"),
    _set("device=cuda", "unknown setting device; `calm config` lists all settings"),
    _set("calm.model.head.noise_size=3", "is a setting of another kind than the one that is chosen"),
    _set("calm.steps.more=3", "calm.steps: is one setting, nothing lies within it"),
    _set("calm=3", "calm: is a section; set what is in it, e.g. calm.steps (got 3)"),
]

VALUES = [
    _set("calm.steps=many", 'calm.steps: expected a whole number (got "many")'),
    _set("calm.steps=", "calm.steps: expected a whole number (got nothing)"),
    _set("calm.steps=1,000", 'calm.steps: expected a whole number, in digits alone, e.g. 1000 (got "1,000")'),
    _set("calm.steps=1.5", "calm.steps: expected a whole number (got 1.5)"),
    _set("calm.steps=true", "calm.steps: expected a value that is no switch (got true)"),
    _set("calm.steps=[5]", "calm.steps: expected a whole number (got [5])"),
    _set("calm.steps=0", "calm.steps: expected at least 1 (got 0)"),
    _set("calm.steps=1e12", "calm.steps: expected at most 1,000,000,000, which is beyond every published model"),
    _set("calm.learning_rate=1,5", "calm.learning_rate: expected a number, with a point before decimals"),
    _set("calm.learning_rate=.nan", "calm.learning_rate: expected a number, neither infinite nor NaN"),
    _set("calm.compile=maybe", 'calm.compile: expected true or false (got "maybe")'),
    _set("calm.precision=fp16", 'calm.precision: expected auto, fp32, bf16 or bf16-mixed (got "fp16")'),
    _set("calm.zero_stage=4", "calm.zero_stage: expected 0, 1, 2 or 3 (got 4)"),
    _set("calm.profile_steps=10:12", "calm.profile_steps: expected a list in brackets"),
    _set("calm.profile_steps=[10]", "calm.profile_steps: has too few values"),
    _set("calm.profile_steps=[12, 10]", "calm: profile_steps (12:10) must be A:B with A < B"),
    _set("calm.profile_steps=[0, 10000]", "B at most steps (8000)"),
    _set("calm.profile_steps=[0, 21]", "B - A at most 20"),
    _set("calm.peak_tflops=0", "calm.peak_tflops: expected more than 0 (got 0)"),
    _set("calm.schedule=linear", 'calm.schedule: expected constant, cosine or wsd (got "linear")'),
    _set(
        "calm.schedule=cosine", "calm: decay_fraction (0.4) is for schedule: wsd, and schedule is cosine; set decay_fr"
    ),
    _set("calm.ema_decay=1", "calm.ema_decay: expected less than 1 (got 1)"),
    _set("calm.head_learning_rate=0", "calm.head_learning_rate: expected at least 1e-12 (got 0)"),
    _set("transformer.head_learning_rate=1", "unknown setting transformer.head_learning_rate"),
    _set("calm.betas=0.9", "calm.betas: expected a list in brackets, e.g. [0.9] (got 0.9)"),
    _set("calm.betas=[0.9]", "calm.betas: has too few values (got [0.9])"),
    _set("calm.betas=[0.9,0.9,0.9]", "calm.betas: has 3 values, 2 are taken"),
    _set("data.sources=a.txt", 'data.sources (--source): expected a list in brackets, e.g. ["a.txt"]'),
    _set("data.sources=a.txt,b.txt", "data.sources (--source): expected a list in brackets, e.g. [a.txt,b.txt]"),
    _set("data.sources=[1]", "data.sources (--source).0: expected text; in quotes it is text: '\"1\"'"),
    _set("experiment=12", "experiment: expected text; in quotes it is text: '\"12\"' (got 12)"),
    _set("experiment=true", "experiment: expected text; in quotes it is text: '\"true\"' (got true)"),
    _set("experiment=", "experiment: expected text; ", "(got nothing)"),
    _set("experiment=''", "experiment: must not be empty"),
    _set("registry.model_name=a?b", "registry.model_name: holds ?; the name of a model may have no /"),
    _set("registry.alias=1st", "registry.alias: expected a letter, then letters, digits, _ or -"),
    _set("registry.alias=challenger", "alias and challenger_alias are both challenger; choose another one"),
    _set("registry.significance=0", "registry.significance: expected at least 0.001"),
    _set("registry.min_autoencoder_accuracy=99", "registry.min_autoencoder_accuracy: expected at most 1"),
    _set("registry.max_regression=0.1", "registry.max_regression: is a section; set what is in it, e.g. registry.max"),
    _set("registry.max_regression.brier1=0.1", "did you mean registry.max_regression.brier_1"),
    _set("registry.max_regression.brier_1=-0.1", "registry.max_regression.brier_1: expected at least 0"),
    _set("registry.alias=latest", "registry.alias: to MLflow latest is a version; choose another alias"),
    _set(
        "calm.model.head.kind=round",
        'calm.model.head: there is no "round"; there are energy, diffusion, flow, residual, mixture',
    ),
    _set("calm.steps", "--set calm.steps: expected section.key=value"),
    _set("calm.steps:5", "--set calm.steps:5: expected section.key=value, e.g. calm.steps=5"),
    _set("data.sequence_length=510", "sequence_length (510)"),
    _set("=5", "--set =5: expected section.key=value"),
    _set("seed=1,calm.steps=2", "is more than one setting; give calm.steps on its own"),
    _set("data.sources=[a.txt", "the value is not valid YAML (line 1, column ", "a comma is missing, or the bracket"),
    _set("experiment='a", "the value is not valid YAML (line 1, column ", "the quote that ends a text is missing"),
    _set("https://me:s3cr3t@host/a", "--set https://***@host/a: expected section.key=value"),
]

PROFILES = [
    _named("no such name", "tny", "no such profile; did you mean tiny? there are calm-l, "),
    _named("nothing like a name", "huge", "no such profile; there are calm-l, ", "or give the path of a .yaml file"),
    _named("no such file", "my.yaml", "no such file in {folder}"),
    _named(
        "no such file, a similar one",
        "mine.yaml",
        "; did you mean my.yaml?",
        arrange=lambda folder: (folder / "my.yaml").touch(),
    ),
    _named("a name with an ending", "tiny.yaml", "no such file in {folder}; did you mean tiny?"),
    _named("no such folder", "profiles/my.yaml", "no such file: there is no folder {folder}/profiles"),
    _named(
        "a folder",
        "./here",
        "is a folder; give the path of a .yaml file in it",
        arrange=lambda folder: (folder / "here").mkdir(),
    ),
    _named(
        "a folder that ends as a file", "my.yaml", "is a folder", arrange=lambda folder: (folder / "my.yaml").mkdir()
    ),
    _named("a device", "/dev/null", "cannot be read (it is a pipe or a device); name a file that can"),
    Mistake(
        "profile: a URL",
        ("config", "--profile", "https://me:s3cr3t@h/my.yaml"),
        ("https://***@h/my.yaml: is a URL; a profile is a file on this machine",),
        exit_code=2,
    ),
    Mistake(
        "registry.promote is another word",
        ("run", "--set", "registry.promote=sometimes"),
        ("registry.promote: expected better, always or never",),
        exit_code=2,
    ),
    Mistake(
        "registry.promote is a switch",
        ("register", "{calm}", "--evaluation", "{evaluation}", "--output", "out", "--set", "registry.promote=true"),
        ("registry.promote: ",),
        exit_code=2,
    ),
    _profile("empty", "", "my.yaml: is empty; `calm config > my.yaml` writes a profile to start from"),
    _profile("only a comment", "# mine\n", "my.yaml: is empty"),
    _profile("not UTF-8", b"seed: 1\n# caf\xe9\n", "my.yaml: is not UTF-8 text (byte 14); save it as UTF-8"),
    _profile("UTF-16", "seed: 1\n".encode("utf-16"), "my.yaml: is not UTF-8 text (byte 1)"),
    _profile("a list", "- seed: 1\n", "my.yaml: holds a list; expected sections with settings"),
    _profile("a word", "seed\n", "my.yaml: holds ", "expected sections with settings"),
    _profile("equals signs", "seed=1\n", "my.yaml: holds ", "expected sections with settings"),
    _profile("a tab", "calm:\n\tsteps: 3\n", "(line 2, column 1: a tab; indent with spaces)"),
    _profile("wrong indentation", "calm:\n  steps: 3\n seed: 4\n", "(line 3, column 2: the indentation does not fit"),
    _profile(
        "a name without a colon",
        "calm\n  steps: 3\n",
        "(line 2, column 8: a colon that does not belong here: the line above",
    ),
    _profile(
        "a colon in a text",
        "experiment: a: b\n",
        "(line 1, column 14: a colon that does not belong here",
        "text needs quotes",
    ),
    _profile(
        "an open bracket", "data:\n  sources: [a.txt\nseed: 1\n", "(line 3, ", "a comma is missing, or the bracket"
    ),
    _profile("an open quote", "experiment: 'a\n", "the quote that ends a text is missing"),
    _profile(
        "a text that needs quotes",
        "experiment: @a\n",
        "(line 1, column 13: text that begins with this character needs quotes",
    ),
    _profile("a key twice", "seed: 1\nseed: 2\n", "(line 2, column 1: seed is there twice; join both)"),
    _profile(
        "a section twice",
        "calm:\n  steps: 700\nseed: 1\ncalm:\n  steps: 800\n",
        "(line 4, column 1: calm is there twice; join both)",
    ),
    _profile("an anchor", "seed: &a 1\n", "(line 1, column 7: anchors and aliases"),
    _profile("two documents", "seed: 1\n---\nseed: 2\n", "has a second document (---); one is read"),
    _profile(
        "an unknown key",
        "seed: 1\ncalm:\n  stps: 3\n",
        "my.yaml, line 3: unknown setting calm.stps; did you mean calm.steps?",
    ),
    _profile(
        "an unknown section",
        "seed: 1\nclam:\n  steps: 3\n  compile: true\n",
        "my.yaml, line 2: unknown setting clam; did you mean calm?",
    ),
    _profile(
        "a wrong value", "calm:\n  # how long\n  steps: many\n", "my.yaml, line 3: calm.steps: expected a whole number"
    ),
    _profile("an empty section", "calm:\nseed: 1\n", "my.yaml, line 1: calm: is a section; set what is in it"),
    _profile(
        "settings that contradict",
        "calm:\n  steps: 50\n",
        "my.yaml, line 1: calm: warmup_steps (100) must not exceed steps (50)",
    ),
    _profile("a base that is not there", "base: other.yaml\n", "my.yaml: base other.yaml: no such file in {folder}"),
    _profile("a base that is itself", "base: my.yaml\n", "goes in a circle"),
    Mistake(
        "profile: a wrong value in its base",
        ("run", "--profile", "my.yaml"),
        ("base.yaml, line 2: calm.steps: expected at least 1 (got 0)",),
        exit_code=2,
        files={"my.yaml": "base: base.yaml\nseed: 3\n", "base.yaml": "calm:\n  steps: 0\n"},
    ),
    Mistake(
        "profile: a wrong value beside it",
        ("run", "--profile", "my.yaml", "--set", "calm.steps=0"),
        ("error calm.steps: expected at least 1 (got 0)",),
        exit_code=2,
        files={"my.yaml": "calm:\n  steps: 700\n"},
    ),
]

MISTAKES = [*UNKNOWN, *VALUES, *PROFILES]
