"""Mistakes in commands: names, options, arguments, standard input."""

import os
from pathlib import Path

from tests.cli.mistakes.frame import Mistake


def _usage(name: str, command: tuple[str, ...], *says: str, stdin: bytes = b"") -> Mistake:
    return Mistake(name, command, says, exit_code=2, stdin=stdin)


def _leave(folder: Path) -> None:
    """Delete the current folder."""
    gone = folder / "gone"
    gone.mkdir()
    os.chdir(gone)
    gone.rmdir()


def _folder_of_another_library(folder: Path) -> None:
    (folder / "public").mkdir()
    (folder / "public" / "config.json").write_text("{}")
    (folder / "public" / "model.safetensors").write_bytes(b"")


_NO_COMMAND = "no such command of `calm`; "
_MANY = "takes one value, and "

NAMES = [
    _usage("unknown command", ("rnu",), f"rnu: {_NO_COMMAND}did you mean `calm run`?"),
    _usage("command in capitals", ("RUN",), f"RUN: {_NO_COMMAND}did you mean `calm run`?"),
    _usage("command of a group", ("mix", "a=1"), f"mix: {_NO_COMMAND}did you mean `calm data mix`?"),
    _usage("unknown command of a group", ("data", "prepair"), "`calm data`; did you mean `calm data prepare`?"),
    _usage("nothing like a command", ("zzz",), f"zzz: {_NO_COMMAND}there are run, ", "generate"),
    _usage("help as a command", ("help",), "did you mean `calm --help`?"),
    _usage("version as a command", ("version",), "did you mean `calm --version`?"),
    _usage("command and options in quotes", ("run --set seed=1",), "leave out the quotes around command and options"),
    _usage("a URL with a password as a command", ("https://me:pw@host/x",), f"https://***@host/x: {_NO_COMMAND}"),
    _usage("no command behind two hyphens", ("--",), "`calm`: a command is missing; `calm --help` lists them"),
    _usage("an empty command", ("",), _NO_COMMAND),
    _usage("a program's name twice", ("calm", "run"), f"calm: {_NO_COMMAND}"),
    _usage("a file as a command", ("texts/a.txt",), f"texts/a.txt: {_NO_COMMAND}"),
    _usage("a misspelt version option", ("--verson",), "--verson: no such option of `calm`; did you mean --version?"),
    _usage("an option before its command", ("--profile", "small", "run"), "`calm run --profile ...`"),
]

OPTIONS = [
    _usage(
        "misspelt option", ("run", "--sorce", "a.txt"), "--sorce: no such option of `calm run`; did you mean --source?"
    ),
    _usage(
        "option with an underscore", ("run", "--text_field", "a"), "--text_field: no such", "did you mean --text-field?"
    ),
    _usage("option in capitals", ("run", "--Source", "a.txt"), "--Source: no such", "did you mean --source?"),
    _usage("option with one hyphen", ("run", "-source", "a.txt"), "-source: no such", "did you mean --source?"),
    _usage(
        "option with a long dash",
        ("run", "\u2013profile", "tiny"),
        "\u2013profile: begins with a long dash",
        "--profile",
    ),
    _usage("setting as an option", ("run", "--vocab-size", "9"), "did you mean --set tokenizer.vocab_size=...?"),
    _usage("dotted setting as an option", ("run", "--calm.steps=5"), "did you mean --set calm.steps=...?"),
    _usage(
        "setting of several sections as an option", ("run", "--steps", "5"), "--set autoencoder.steps=... or --set calm"
    ),
    _usage("nothing like an option", ("run", "--zzz"), "--zzz: no such option of `calm run`; `calm run --help` lists"),
    _usage("option without value", ("run", "--source"), "--source: has no value; write --source PATH"),
    _usage(
        "option without value before another",
        ("run", "--source", "--profile", "tiny"),
        "--source: has no value, --prof",
    ),
    _usage(
        "option with an empty value", ("run", "--source", ""), "--source: is empty; give it a value, or leave it out"
    ),
    _usage("needed option with an empty value", ("prepare", "--output", ""), "--output: is empty; give it a value"),
    _usage("empty autoencoder", ("generate", "a", "--autoencoder", ""), "--autoencoder: is empty"),
    _usage("empty stop string", ("generate", "a", "--stop", ""), "--stop: is empty"),
    _usage("empty profile", ("config", "--profile="), "--profile: is empty"),
    _usage(
        "option given twice",
        ("run", "--profile", "tiny", "--profile", "small"),
        "--profile: is given 2 times; give it once",
    ),
    _usage("switch with a value", ("generate", "a", "--exact=yes"), "--exact: is a switch, it takes no value"),
    _usage("option that is missing", ("train", "calm"), "`calm train`: --dataset URI is missing", "calm train --help"),
    _usage("evaluate without a dataset", ("evaluate", "{calm}", "--output", "o"), "--dataset URI is missing"),
    _usage("text for a whole number", ("estimate", "--gpus", "many"), "--gpus many: expected a whole number"),
    _usage("fraction for a whole number", ("estimate", "--gpus", "1.5"), "--gpus 1.5: expected a whole number"),
    _usage(
        "number with a comma",
        ("generate", "a", "--samples", "1,000"),
        "--samples 1,000: expected a whole number, in digits",
    ),
    _usage(
        "decimal comma", ("generate", "a", "--temperature", "0,5"), "--temperature 0,5: expected a number, with a point"
    ),
    _usage("number below the least", ("estimate", "--gpus", "0"), "--gpus 0: expected at least 1"),
    _usage("number beyond a range", ("ui", "--port", "99999"), "--port 99999: expected 1 to 65535"),
    _usage(
        "no such choice",
        ("train", "calm", "--head", "round", "--dataset", "d", "--output", "o"),
        "--head round: expected en",
    ),
    _usage(
        "steps that are no A:B",
        ("train", "transformer", "--profile-steps", "10", "--dataset", "d", "--output", "o"),
        "--profile-steps: expected A:B, two numbers of steps, e.g. 10:12 (got",
    ),
]

ARGUMENTS = [
    Mistake("a run that is not there", ("runs", "7"), ("7: no run has this number", "`calm runs` lists them")),
    _usage("help of a command behind a mistake", ("run", "--zzz", "--help"), "--zzz: no such option of `calm run`"),
    _usage("mixture without weights", ("data", "mix", "a", "--output", "o"), "a: give each dataset its weight"),
    _usage("comparing an empty name", ("compare", ""), "EVALUATION: is empty; give it a value"),
    _usage("mixture of nothing", ("data", "mix", "", "--output", "o"), "URI=WEIGHT: is empty; give it a value"),
    _usage("argument that is missing", ("inspect",), "`calm inspect`: URI is missing (Folder of the artifact)"),
    _usage("empty argument", ("inspect", ""), "URI: is empty; give it a value"),
    _usage("one argument too many", ("inspect", "a", "b"), "b: `calm inspect` does not take this", "it takes one URI"),
    _usage("argument of a command without", ("ui", "now"), "now: `calm ui` does not take this; ", "it takes nothing"),
    _usage(
        "no such kind",
        ("train", "house", "--dataset", "d", "--output", "o"),
        "KIND house: expected autoencoder, calm or",
    ),
    _usage(
        "unquoted pattern",
        ("run", "--source", "t/a.jsonl", "t/b.jsonl", "t/c.jsonl"),
        f"--source: {_MANY}t/b.jsonl",
        "--source 't/*.jsonl'",
    ),
    _usage(
        "unquoted pattern of compressed files", ("run", "--source", "a.jsonl.gz", "b.jsonl.gz"), "--source '*.jsonl.gz'"
    ),
    _usage(
        "unquoted pattern over folders",
        ("run", "--source", "t/a.txt", "u/b.txt"),
        "quote a pattern",
        "--source 'texts/*.jsonl'",
    ),
    _usage("unquoted pattern after an equals sign", ("run", "--source=t/a.txt", "t/b.txt"), "--source 't/*.txt'"),
    _usage(
        "setting with spaces", ("run", "--set", "calm.steps", "=", "5"), "write it without spaces: --set calm.steps=5"
    ),
    _usage("setting with a space before its value", ("run", "--set", "calm.steps=", "5"), "--set calm.steps=5"),
    _usage(
        "two settings for one option",
        ("run", "--set", "seed=1", "calm.steps=2"),
        "repeat the option: --set seed=1 --set calm.steps=2",
    ),
    _usage("value with an unquoted space", ("prepare", "--output", "my", "data"), "--output 'my data'"),
    _usage("setting without its option", ("run", "seed=1"), "did you mean --set seed=1?"),
    _usage("profile without its option", ("run", "small"), "did you mean --profile small?"),
    _usage("profile's file without its option", ("config", "my.yaml"), "did you mean --profile my.yaml?"),
    _usage("source without its option", ("run", "a.txt"), "did you mean --source a.txt?"),
    Mistake("deleted current folder", ("inspect", "a"), ("the current folder has been deleted",), arrange=_leave),
]


def _generate(*more: str) -> tuple[str, ...]:
    return ("generate", "a", "--model", "{calm}", *more)


GENERATE = [
    _usage("temperature 0", _generate("--temperature", "0"), "--temperature 0: expected 0.001 to 1", "There is no 0"),
    _usage("temperature above 1", _generate("--temperature", "2"), "--temperature 2: expected 0.001 to 1"),
    _usage("temperature below 0", _generate("--temperature", "-1"), "--temperature -1: expected 0.001 to 1"),
    _usage("temperature NaN", _generate("--temperature", "nan"), "--temperature nan: expected 0.001 to 1"),
    _usage("temperature without end", _generate("--temperature", "inf"), "--temperature inf: expected 0.001 to 1"),
    _usage("seed of 31 digits", _generate("--seed", "1" + "0" * 30), "--seed 1000", "expected at most 92"),
    _usage("seed below 0", _generate("--seed", "-1"), "--seed -1: expected at least 0"),
    _usage("no tokens", _generate("--max-new-tokens", "0"), "--max-new-tokens 0: expected 1 to"),
    _usage("more tokens than anybody reads", _generate("--max-new-tokens", "99999999"), "expected 1 to 1048576"),
    _usage(
        "a budget without its sampler", _generate("--budget", "9"), "--budget: is the budget of --exact", "add --exact"
    ),
    _usage("no such sampler", _generate("--sampler", "warm"), "--sampler warm: expected path, noise-scale, "),
    _usage(
        "samples of another sampler",
        _generate("--sampler", "path", "--samples", "9"),
        "--samples: is of --sampler batch, and not of path",
    ),
    _usage("two samplers", _generate("--sampler", "path", "--exact"), "--exact: is --sampler exact, and not path"),
    _usage("no samples", _generate("--samples", "0"), "--samples 0: expected 1 to"),
    _usage(
        "bytes that are no text",
        ("generate", "a\udcffb", "--model", "{calm}"),
        "prompt 1: is not UTF-8 text (byte \\xff at 1)",
    ),
    _usage(
        "half a character",
        ("generate", "a", "\ud83d", "--model", "{calm}"),
        "prompt 2: is not UTF-8 text (\\ud83d at 0)",
    ),
    _usage(
        "stop string that is no text", _generate("--stop", "\udcff"), "--stop 1: is not UTF-8 text (byte \\xff at 0)"
    ),
    _usage("empty standard input", ("generate", "-", "--model", "{calm}"), "standard input: holds no prompt"),
    _usage("no prompt and nothing piped in", ("generate", "--model", "{calm}"), "standard input: holds no prompt"),
    _usage(
        "standard input twice",
        ("generate", "-", "-", "--model", "{calm}"),
        "standard input (-) is named twice",
        stdin=b"a",
    ),
    Mistake(
        "prompt of too many tokens",
        ("generate", "--model", "{calm}"),
        ("prompt 1: has ", " tokens, and at most 131,072 are read; give its end"),
        stdin=b"0 1 2 3 4 5 6 7 8 9 " * 20_000,
    ),
    _usage(
        "standard input beyond reason",
        ("generate", "--model", "{calm}"),
        "standard input: has more than 16,777,216 bytes; give the end of the prompt",
        stdin=bytes(20 << 20),
    ),
    _usage(
        "standard input that is no text",
        ("generate", "-"),
        "standard input: is not UTF-8 text (byte 2)",
        stdin=b"a\xffb",
    ),
    _usage(
        "a program as standard input", ("generate",), "standard input: is not UTF-8 text", stdin=b"\x7fELF\x02\x01\x80"
    ),
    _usage(
        "prompt that begins with a hyphen",
        ("generate", "-5 degrees"),
        "write -- before an argument that begins with a hyphen",
    ),
    Mistake(
        "no such model",
        ("generate", "a", "--model", "nothere"),
        ("nothere: the calm or transformer artifact is missing",),
    ),
    Mistake(
        "dataset as a model",
        ("generate", "a", "--model", "{dataset}"),
        ("{dataset}: is a dataset artifact, a calm or tr",),
    ),
    Mistake(
        "autoencoder as a model",
        ("generate", "a", "--model", "{autoencoder}"),
        ("is an autoencoder artifact, a calm or tr",),
    ),
    Mistake(
        "evaluation as a model",
        ("generate", "a", "--model", "{evaluation}"),
        ("is an evaluation artifact, a calm or tr",),
    ),
    Mistake(
        "dataset as an autoencoder", _generate("--autoencoder", "{dataset}"), ("is a dataset artifact, an autoencoder",)
    ),
    Mistake(
        "another library's checkpoint as a model",
        ("generate", "a", "--model", "public"),
        ("public: is a checkpoint of another library; `calm import`",),
        arrange=_folder_of_another_library,
    ),
    _usage(
        "autoencoder of a Transformer",
        ("generate", "a", "--model", "{transformer}", "--autoencoder", "{autoencoder}"),
        "is of kind transformer, which has no autoencoder; leave out --autoencoder",
    ),
    _usage(
        "autoencoder of a registered model",
        ("generate", "a", "--autoencoder", "{autoencoder}"),
        "--autoencoder: a registered model brings its autoencoder",
    ),
]

STAGES = [
    _usage(
        "CALM without an autoencoder",
        ("train", "calm", "--dataset", "{dataset}", "--output", "o"),
        "--autoencoder: CALM is trained on an autoencoder",
    ),
    Mistake(
        "training on a model",
        ("train", "autoencoder", "--dataset", "{calm}", "--output", "o"),
        ("{calm}: is a calm artifact, a dataset or mixture",),
    ),
    Mistake(
        "scoring a dataset",
        ("evaluate", "{dataset}", "--dataset", "{dataset}", "--output", "o"),
        ("is a dataset artifact, a calm or tr",),
    ),
    Mistake(
        "scoring on a model",
        ("evaluate", "{calm}", "--dataset", "{calm}", "--output", "o"),
        ("is a calm artifact, a dataset or mixture",),
    ),
    Mistake(
        "registering an evaluation",
        ("register", "{evaluation}", "--evaluation", "{evaluation}", "--output", "o"),
        ("is an evaluation artifact, a calm",),
    ),
    Mistake(
        "registering with a dataset for scores",
        ("register", "{calm}", "--evaluation", "{dataset}", "--output", "o"),
        ("is a dataset artifact, an evaluation",),
    ),
    Mistake(
        "registering with scores for a dataset",
        ("register", "{calm}", "--evaluation", "{evaluation}", "--dataset", "{evaluation}", "--output", "o"),
        ("--dataset {evaluation}: is an evaluation artifact, a dataset or mixture",),
    ),
    Mistake("comparing models", ("compare", "{calm}", "{transformer}"), ("{calm}: is a calm artifact, an evaluation",)),
    Mistake(
        "exporting a Transformer",
        ("export", "{transformer}", "--output", "o"),
        ("is a transformer artifact, a calm or autoencoder",),
    ),
]

_SUBMIT = ("submit", "--host", "http://127.0.0.1:9", "--source")
_SCHEDULE = ("schedule", "create", "--source", "s3://b/a.jsonl", "--cron")

CLUSTER = [
    _usage("a schedule without its times", ("schedule", "create"), "--cron FIELDS is missing (When, in six fields"),
    _usage("a schedule of five fields", (*_SCHEDULE, "0 3 * * *"), "--cron: ", "did you mean '0 0 3 * * *'?"),
    _usage("stopping a run of this machine", ("runs", "stop", "1"), "--host: is missing; a run of this machine"),
    _usage("text that no pod sees", (*_SUBMIT, "texts/a.txt"), "data.sources (--source): texts/a.txt lies on this"),
    _usage(
        "a password in Kubeflow's address", ("runs", "list", "--host", "http://me:pw@h"), "--host: an address holds"
    ),
    Mistake("a Kubeflow that is away", (*_SUBMIT, "s3://b/a.jsonl"), ("http://127.0.0.1:9: nothing answers there",)),
]

MISTAKES = [*NAMES, *OPTIONS, *ARGUMENTS, *GENERATE, *STAGES, *CLUSTER]
