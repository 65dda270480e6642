"""Mistakes in texts, artifacts and storage that are read."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import safetensors.torch
import tokenizers
import torch

from calm_core.store.artifact import Manifest
from tests.cli.mistakes.frame import Mistake
from tests.weights.public_folders import (
    AUTOENCODER_CONFIG,
    CALM_CONFIG,
    Weights,
    autoencoder_shapes,
    calm_shapes,
    random_weights,
    write_folder,
    write_tokenizer,
)

PREPARE = ("prepare", "--output", "out", "--source")
TEXT = '{{"text": "some words"}}\n'  # doubled, since a text's names of artifacts are replaced
BODY = '{{"id": 7, "body": "some words", "tags": ["a"]}}\n'


def _source(name: str, source: str, *says: str, exit_code: int = 1, **more: Any) -> Mistake:
    return Mistake(f"a source: {name}", (*PREPARE, source), (*says,), exit_code=exit_code, **more)


def _table(**columns: Any) -> Callable[[Path], object]:
    return lambda folder: pq.write_table(pa.table(columns), folder / "a.parquet")


def _without_columns(folder: Path) -> None:
    pq.write_table(pa.table({"a": [1]}).drop_columns(["a"]), folder / "a.parquet")


def _unnameable(folder: Path) -> None:
    Path(os.fsdecode(os.fsencode(folder) + b"/caf\xe9.jsonl")).write_text('{"text": "a"}')


SOURCES = [
    _source("misspelled", "texst/a.jsonl", "texst/a.jsonl: no such file; did you mean texts/a.jsonl?",
            files={"texts/a.jsonl": TEXT}),
    _source("missing in a folder", "texts/books.jsonl", "no such file; texts holds a.jsonl and b.csv",
            files={"texts/a.jsonl": TEXT, "texts/b.csv": "a"}),
    _source("with a space that came along", " a.jsonl", "did you mean a.jsonl, without the spaces or quotes around it?",
            files={"a.jsonl": TEXT}),
    _source("in quotes that came along", "'a.jsonl'", "did you mean a.jsonl, without", files={"a.jsonl": TEXT}),
    _source("with a variable", "$HOME/a.jsonl", "no such file; the shell replaces variables like $HOME, but not in"),
    _source("a pattern that matches nothing", "texts/*.txt",
            "texts/*.txt: nothing matches; texts holds 2 .jsonl and 1 .md",
            files={"texts/a.jsonl": TEXT, "texts/b.jsonl": TEXT, "texts/c.md": "c"}),
    _source("a pattern in no folder", "text/*.jsonl", "there is no folder text; did you mean texts?",
            files={"texts/a.jsonl": TEXT}),
    _source("a folder", "texts", "is a folder; name its files, e.g. 'texts/*.jsonl' (it holds 2 .jsonl and 1 folder)",
            files={"texts/a.jsonl": TEXT, "texts/b.jsonl": TEXT, "texts/c/d.jsonl": TEXT}),
    _source("a folder of other files", "texts", "is a folder that holds 1 .csv; .jsonl, .jsonl.gz",
            files={"texts/a.csv": "a"}),
    _source("an empty folder", "texts", "is a folder that holds nothing", arrange=lambda f: (f / "texts").mkdir()),
    _source("CSV", "a.csv", "a.csv: unknown kind of source; write it as .jsonl or .parquet",
            files={"a.csv": "text\na"}),
    _source("JSON", "a.json", "unknown kind of source; write one object a line and name it .jsonl",
            files={"a.json": "[]"}),
    _source("in capital letters", "A.JSONL", "write its end in small letters, .jsonl", files={"A.JSONL": TEXT}),
    _source("PDF", "a.pdf", "unknown kind of source; .jsonl, .jsonl.gz, .jsonl.zst, .parquet, .txt files are read",
            files={"a.pdf": "%PDF"}),
    _source("an empty file", "a.jsonl", "a.jsonl: is empty; there is nothing else in the sources",
            files={"a.jsonl": ""}),
    _source("without its field", "a.jsonl",
            "a.jsonl, line 1: has no field text (it has id, body, tags; body looks like",
            "name the field that holds the text with data.text_field (--text-field)", files={"a.jsonl": BODY}),
    _source("a field inside an object", "a.jsonl",
            "line 1: has no field text (it has meta; what is in meta is not read)",
            files={"a.jsonl": '{{"meta": {{"text": "a"}}}}'}),
    Mistake("a source: a path as the field", (*PREPARE, "a.jsonl", "--text-field", "meta.text"),
            ("has no field meta.text (meta is an object, whose inner fields are not read",),
            files={"a.jsonl": '{{"meta": {{"text": "a"}}}}'}),
    _source("a field of lists", "a.jsonl", "line 1: its field text holds no text (it is a list)",
            files={"a.jsonl": '{{"text": ["a", "b"]}}'}),
    _source("a field of numbers", "a.jsonl", "its field text holds no text (it is a number)",
            files={"a.jsonl": '{{"text": 3}}'}),
    _source("one JSON list", "a.jsonl", "line 1: has no field text (it is a list; write one object a line)",
            files={"a.jsonl": '[{{"text": "a"}}, {{"text": "b"}}]'}),
    _source("a JSON list over lines", "a.jsonl",
            "line 1: is no JSON object (a list begins there; write one object a line",
            files={"a.jsonl": '[\n{{"text": "a"}},\n{{"text": "b"}}\n]'}),
    _source("indented JSON", "a.jsonl", "an object begins there and does not end in its line", exit_code=1,
            files={"a.jsonl": '{{\n  "text": "a"\n}}'}),
    _source("CSV named .jsonl", "a.jsonl", "a.jsonl, line 1: is no JSON object; mend it, or leave it out",
            files={"a.jsonl": "id,text\n1,a\n"}),
    _source("UTF-16", "a.txt", "a.txt, line 1: is no UTF-8 (it is UTF-16); save it as UTF-8",
            files={"a.txt": "a text".encode("utf-16")}),
    _source("UTF-16 lines", "a.jsonl", "is no UTF-8 (it looks like UTF-16)",
            files={"a.jsonl": '{"text": "a"}\n'.encode("utf-16")}),
    _source("Latin-1", "a.jsonl", "is no UTF-8 (it may be Latin-1 or Windows-1252)",
            files={"a.jsonl": '{"text": "caf\u00e9"}\n'.encode("latin-1")}),
    _source("no gzip", "a.jsonl.gz", "no gzip file; name it .jsonl if it is not compressed",
            files={"a.jsonl.gz": TEXT}),
    _source("no Zstandard", "a.jsonl.zst", "no Zstandard file; name it .jsonl if", files={"a.jsonl.zst": TEXT}),
    _source("a cut gzip", "a.jsonl.gz", "is truncated or damaged", "data.damaged_files=reject",
            files={"a.jsonl.gz": gzip.compress(b'{"text": "a"}\n' * 100, mtime=0)[:20]}),
    _source("no Parquet", "a.parquet", "a.parquet: is truncated or damaged (Parquet", files={"a.parquet": "text"}),
    _source("Parquet without the field", "a.parquet", "has no field text (it has id, body; body looks like the text)",
            arrange=_table(id=[1], body=["a"])),
    _source("Parquet with bytes", "a.parquet", "holds no text (it holds bytes; write it as a column of strings)",
            arrange=_table(text=[b"a"])),
    _source("Parquet with lists", "a.parquet", "holds no text (it holds lists or records",
            arrange=_table(text=[["a"]])),
    _source("Parquet with numbers", "a.parquet", "holds no text (it holds int64, not strings)",
            arrange=_table(text=[1])),
    _source("Parquet without columns", "a.parquet", "a.parquet: empty (no records)", arrange=_without_columns),
    _source("Parquet without rows", "a.parquet", "a.parquet: empty (no records)", arrange=_table(text=pa.array([],
            "str"))),
    _source("a name that is no UTF-8", "*.jsonl", "is no UTF-8; rename it", arrange=_unnameable),
    _source("a pipe", "a.jsonl", "is no file that can be read again and again",
            arrange=lambda folder: os.mkfifo(folder / "a.jsonl")),
    _source("a broken state.json", "saved", "saved/state.json: is damaged", files={"saved/state.json": "{{"}),
    _source("a state.json without files", "saved", "state.json: does not name the files of the dataset",
            files={"saved/state.json": '{{"_data_files": []}}'}),
    _source("a missing file of a state.json", "saved", "gone.arrow: is missing; restore it",
            files={"saved/state.json": '{{"_data_files": [{{"filename": "gone.arrow"}}]}}'}),
    _source("a broken dataset_dict.json", "saved", "dataset_dict.json: is damaged",
            files={"saved/dataset_dict.json": "x"}),
    _source("a dataset of ours", "{dataset}", "is an artifact and holds no text to prepare; --dataset takes a dataset"),
    _source("the shards of a dataset", "{dataset}/train/*.parquet", "is a file of the artifact", "it holds no text"),
    Mistake("a source: the second of two", (*PREPARE, "a.jsonl", "--source", "b.jsonl"),
            ("b.jsonl, line 1: has no field text",), files={"a.jsonl": TEXT, "b.jsonl": BODY}),
]  # fmt: skip

KEYS = {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_ENDPOINT_URL": "http://127.0.0.1:9"}
NO_KEYS = {
    "AWS_ACCESS_KEY_ID": None, "AWS_SECRET_ACCESS_KEY": None, "AWS_PROFILE": None, "AWS_EC2_METADATA_DISABLED": "true",
    "AWS_SHARED_CREDENTIALS_FILE": "/nowhere", "AWS_CONFIG_FILE": "/nowhere", "AWS_ENDPOINT_URL": "http://127.0.0.1:9",
}  # fmt: skip

STORAGE = [
    Mistake("storage: no credentials", ("verify", "s3://bucket/a"),
            ("s3://bucket/a: there are no credentials for the object store; set AWS_ACCESS_KEY_ID and",),
            environment=NO_KEYS),
    Mistake("storage: an endpoint that is not there", (*PREPARE, "s3://bucket/*.jsonl"),
            ("s3://bucket/*.jsonl: the object store does not answer (Could not connect", "check AWS_ENDPOINT_URL"),
            environment=KEYS),
    Mistake("storage: an endpoint that is no URL", ("inspect", "s3://bucket/a"),
            ("Invalid endpoint: localhost; set AWS_ENDPOINT_URL to a URL, e.g. http://host:9000",),
            environment=KEYS | {"AWS_ENDPOINT_URL": "localhost"}),
    Mistake("storage: an unknown profile", ("verify", "s3://bucket/a"),
            ("the settings of the object store are wrong (The config profile (nobody) could not be found)",),
            environment=KEYS | {"AWS_PROFILE": "nobody"}),
    Mistake("storage: no name of a bucket", ("verify", "s3://my_bucket%/a"), ("no bucket can have this name",),
            environment=KEYS),
    Mistake("storage: a web address", (*PREPARE, "https://example.com/a.jsonl"),
            ("https://example.com/a.jsonl: lies on the web, where nothing is read; download it",)),
    Mistake("storage: a web address of an artifact", ("verify", "http://example.com/a"), ("lies on the web",)),
    Mistake("storage: a package that is not installed", (*PREPARE, "gs://bucket/*.jsonl"),
            ("gs://bucket/*.jsonl: cannot be used without the package gcsfs; install it: pip install gcsfs",)),
    Mistake("storage: another package", ("verify", "abfs://box@account/a"), ("without the package adlfs",)),
    Mistake("storage: a misspelled scheme", ("verify", "s4://bucket/a"),
            ("nothing is known of s4://; did you mean s3://?",)),
    Mistake("storage: one slash", (*PREPARE, "s3:/bucket/*.jsonl"), ("one slash behind s3:",
            "write s3://bucket/*.jsonl")),
    Mistake("storage: one slash of file", ("verify", "file:/tmp/a"), ("write file:///tmp/a",)),
    Mistake("storage: a path of Windows", (*PREPARE, "C:\\texts\\a.jsonl"),
            ("is a path of Windows; write it as here",)),
    Mistake("storage: a URL in quotes", ("verify", "'s3://bucket/a'"),
            ("has spaces or quotes around it; write s3://",)),
]  # fmt: skip


def _copied(kind: str, name: str, *lost: str) -> Callable[[Path], object]:
    """Copies an artifact that the test has made beside the current folder into it, without some of its files."""

    def arrange(folder: Path) -> None:
        shutil.copytree(folder.parent / "artifacts" / kind, folder / name)
        for file in lost:
            (folder / name / file).unlink()

    return arrange


def _moved_autoencoder(folder: Path) -> None:
    _changed(folder, "calm", lambda manifest: manifest["origins"].update(autoencoder_uri=f"{folder}/gone"))


def _newer(folder: Path) -> None:
    _changed(folder, "dataset", lambda manifest: manifest.update(schema_version=99))


def _changed(folder: Path, kind: str, change: Callable[[dict[str, Any]], object]) -> None:
    """A copy of an artifact, with another manifest that vouches for itself."""
    _copied(kind, kind)(folder)
    path = folder / kind / "manifest.json"
    values = json.loads(path.read_text())
    change(values)
    manifest = Manifest.model_validate(values)
    path.write_text(manifest.model_copy(update={"checksum": manifest.own_checksum}).model_dump_json(exclude_unset=True))


def _verify(name: str, uri: str, *says: str, **more: Any) -> Mistake:
    return Mistake(f"an artifact: {name}", ("verify", uri), (*says,), **more)


TRAIN = ("train", "calm", "--output", "out")
EVALUATE = ("evaluate", "--output", "out")

ARTIFACTS = [
    _verify("misspelled", "datset", "the artifact is missing, no such folder; did you mean dataset?",
            arrange=_copied("dataset", "dataset")),
    _verify("missing", "out/dataset", "the artifact is missing",
            "this folder has no folder out; this folder holds a.txt",
            files={"a.txt": "a"}),
    _verify("a file", "a.txt", "a.txt: is a file; the artifact is a folder with a manifest.json", files={"a.txt": "a"}),
    _verify("its manifest", "calm/manifest.json", "is the manifest alone; name its folder, calm",
            arrange=_copied("calm", "calm")),
    _verify("an empty folder", "out", "the artifact is missing, the folder is empty",
            arrange=lambda f: (f / "out").mkdir()),
    _verify("the folder of several", "out", "is no artifact, but holds some; name one of out/calm",
            arrange=_copied("calm", "out/calm")),
    _verify("half-written", "calm", "the artifact is half-written (its stage did not finish)", "run its stage again",
            arrange=_copied("calm", "calm", "manifest.json")),
    _verify("a manifest that is a folder", "out", "its manifest.json is a folder; name another folder",
            arrange=lambda folder: (folder / "out/manifest.json").mkdir(parents=True)),
    _verify("a public checkpoint", "hub", "is a checkpoint of another library; `calm import` makes artifacts",
            files={"hub/config.json": "{{}}", "hub/model.safetensors": "x"}),
    _verify("the home of runs", ".calm", "is the folder where runs are kept; `calm runs` lists them",
            files={".calm/mlflow.db": "x", ".calm/pipeline/a": "x"}),
    _verify("files of text", "texts", "holds a.jsonl, files of text and no manifest.json", "`calm prepare`",
            files={"texts/a.jsonl": TEXT}),
    _verify("the parts of a dataset", "out.parts", "holds the parts of a dataset; the dataset is out once",
            files={"out.parts/scan-00000/manifest.json": "x"}),
    _verify("checkpoints", "steps", "holds the checkpoints of a training",
            files={"steps/step-00000004/complete": "{{}}"}),
    _verify("other files", "photos", "photos: is no artifact: it has no manifest.json, it holds a.png and b.png; name",
            files={"photos/a.png": "x", "photos/b.png": "x"}),
    _verify("a link to itself", "loop", "loop: is a link that leads to itself; name another place",
            arrange=lambda folder: (folder / "loop").symlink_to("loop")),
    _verify("hidden files", "me", "me: is no artifact: it has no manifest.json, it holds hidden files alone; name",
            files={"me/.profile": "x"}),
    _verify("logs of runs", "logs", "logs: is no artifact: it has no manifest.json, it holds run-1/; name another",
            files={"logs/run-1/pipeline.log": "x"}),
    _verify("of a newer version", "dataset", "was written by a newer version of this library (schema 99",
            arrange=_newer),
    _verify("a registered model", "models:/calm@champion", "is a registered model, and the artifact is a folder"),
    Mistake("inspect a folder of text", ("inspect", "texts"), ("files of text",), files={"texts/a.jsonl": TEXT}),
    Mistake("a model as the dataset", (*TRAIN, "--dataset", "{calm}", "--autoencoder", "{autoencoder}"),
            ("--dataset {calm}: is a calm artifact, a dataset or mixture artifact was expected",)),
    Mistake("a misspelled dataset", ("train", "transformer", "--output", "out", "--dataset", "datset"),
            ("--dataset datset: the dataset or mixture artifact is missing", "did you mean dataset?"),
            arrange=_copied("dataset", "dataset")),
    Mistake("a transformer as the autoencoder", (*TRAIN, "--dataset", "{dataset}", "--autoencoder", "{transformer}"),
            ("--autoencoder {transformer}: is a transformer artifact, an autoencoder artifact was expected",)),
    Mistake("no autoencoder for CALM", (*TRAIN, "--dataset", "{dataset}"),
            ("--autoencoder: CALM is trained on an autoencoder",), exit_code=2),
    Mistake("an autoencoder for a transformer",
            ("train", "transformer", "--output", "out", "--dataset", "{dataset}", "--autoencoder", "{autoencoder}"),
            ("--autoencoder: is CALM's, transformer has none",), exit_code=2),
    Mistake("evaluate an autoencoder", (*EVALUATE, "{autoencoder}", "--dataset", "{dataset}"),
            ("MODEL {autoencoder}: is an autoencoder artifact, a calm or transformer artifact was expected",)),
    Mistake("evaluate on a model", (*EVALUATE, "{calm}", "--dataset", "{transformer}"),
            ("--dataset {transformer}: is a transformer artifact",)),
    Mistake("evaluate a registered model before any run",
            (*EVALUATE, "models:/calm@champion", "--dataset", "{dataset}"),
            ("home: no run here yet; `calm run` trains and registers a model",)),
    Mistake("evaluate with an autoencoder that has moved", (*EVALUATE, "calm", "--dataset", "{dataset}"),
            ("calm: its autoencoder is not where it was in training; name it with --autoencoder",),
            arrange=_moved_autoencoder),
    Mistake("evaluate with another autoencoder",
            (*EVALUATE, "{transformer}", "--dataset", "{dataset}", "--autoencoder", "{autoencoder}"),
            ("is of kind transformer, which has no autoencoder; leave out --autoencoder",), exit_code=2),
    Mistake("register a transformer",
            ("register", "{transformer}", "--evaluation", "{evaluation}", "--output", "out"),
            ("MODEL {transformer}: is a transformer artifact, a calm artifact was expected",)),
    Mistake("register with a dataset as the scores",
            ("register", "{calm}", "--evaluation", "{dataset}", "--output", "out"),
            ("--evaluation {dataset}: is a dataset artifact, an evaluation artifact was expected",)),
    Mistake("compare a model", ("compare", "{calm}"), ("is a calm artifact, an evaluation artifact was expected",)),
    Mistake("extend a model", (*PREPARE, "a.jsonl", "--extends", "{calm}"),
            ("--extends {calm}: is a calm artifact, a dataset artifact was expected",), files={"a.jsonl": TEXT}),
    Mistake("write like a dataset", ("generate", "a", "--model", "{dataset}"), ("is a dataset artifact",)),
]  # fmt: skip


def _mix(name: str, *arguments: str, says: str, **more: Any) -> Mistake:
    return Mistake(f"a mixture: {name}", ("data", "mix", "--output", "out", *arguments), (says,), **more)


MIXTURES = [
    _mix("no weight", "{dataset}", says="give each dataset its weight, e.g. out/web=0.8", exit_code=2),
    _mix("weight 0", "{dataset}=1", "other=0", says="other: its weight is 0; give a number above 0", exit_code=2),
    _mix("a negative weight", "{dataset}=1", "other=-1", says="other: its weight is -1", exit_code=2),
    _mix("no number", "{dataset}=1", "other=nan", says="other: its weight is nan", exit_code=2),
    _mix("a percentage", "{dataset}=50%", says="is no number; write", exit_code=2),
    _mix("infinity", "{dataset}=inf", "other=1", says="its weight is inf", exit_code=2),
    _mix("too little", "{dataset}=1", "other=1e-9", says="other: weight 1e-09 is not 0.1% of the mixture", exit_code=2),
    _mix("twice", "{dataset}=1", "{dataset}/=1", says="is the same dataset as {dataset}; give it one", exit_code=2),
    _mix("a link to one", "{dataset}=1", "link=1", says="link: is the same dataset as {dataset}", exit_code=2,
         arrange=lambda folder: (folder / "link").symlink_to(folder.parent / "artifacts" / "dataset")),
    _mix("a model", "{dataset}=1", "{calm}=1", says="{calm}: is a calm artifact, a dataset artifact was expected"),
    _mix("one that is missing", "{dataset}=1", "other=1", says="other: the dataset artifact is missing"),
]  # fmt: skip


def _checkpoint(folder: Path) -> None:
    """A public CALM model, its autoencoder and tokenizer."""
    inner = random_weights(autoencoder_shapes(), 1)
    write_folder(folder / "autoencoder", AUTOENCODER_CONFIG, inner)
    write_folder(folder / "hub", CALM_CONFIG, random_weights(calm_shapes(), 2))
    write_tokenizer(folder / "hub")


def _import(name: str, says: str, arrange: Callable[[Path], object], *arguments: str) -> Mistake:
    """Of a whole checkpoint that is changed."""

    def arrange_all(folder: Path) -> None:
        _checkpoint(folder)
        arrange(folder / "hub")

    return Mistake(
        f"import: {name}", ("import", *(arguments or ("hub",)), "--output", "out"), (says,), arrange=arrange_all
    )


def _config(**changes: Any) -> Callable[[Path], object]:
    return lambda folder: (folder / "config.json").write_text(json.dumps(CALM_CONFIG | changes))


def _file(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_bytes(data)


def _weights(change: Callable[[Weights], object]) -> Callable[[Path], object]:
    def arrange(folder: Path) -> None:
        weights = random_weights(calm_shapes(), 2)
        change(weights)
        safetensors.torch.save_file(weights, folder / "model.safetensors")

    return arrange


def _index(content: Any) -> Callable[[Path], object]:
    def arrange(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return arrange


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:50])


def _of_few_tokens(folder: Path) -> None:
    words = tokenizers.models.WordPiece({"[UNK]": 0, "a": 1, "b": 2}, unk_token="[UNK]")
    tokenizers.Tokenizer(words).save(str(folder / "tokenizer.json"))


GATE = "transformer.layers.0.mlp.gate_proj.weight"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 3\n"

IMPORTS = [
    _import("a config that is no UTF-8", "config.json: is no text in UTF-8", _file("config.json", b'{"a": "\xff"}')),
    _import("a nested config", "config.json: is nested too deep", _file("config.json", b"[" * 100_000)),
    _import("an empty config", "config.json: is no JSON", _file("config.json", b"")),
    _import("a config that is a list", "config.json: is no JSON object", _file("config.json", b"[]")),
    _import("a config of another model", "is no config of a CALM model or autoencoder", _file("config.json", b"{}")),
    _import("a pointer of Git", "config.json: is a pointer of Git LFS, not the file itself", _file("config.json",
            POINTER)),
    _import("a pointer for weights", "model.safetensors: is a pointer of Git LFS", _file("model.safetensors", POINTER)),
    _import("a size that is null", "config.json: has no hidden_size", _config(hidden_size=None)),
    _import("a switch for a number", "hidden_size is True, expected is a whole number", _config(hidden_size=True)),
    _import("a fraction for a size", "hidden_size is 16.0, expected is a whole number", _config(hidden_size=16.0)),
    _import("text for a size", "hidden_size is '16', expected is a whole number", _config(hidden_size="16")),
    _import("a list for a size", "hidden_size is [16], expected is a whole number", _config(hidden_size=[16])),
    _import("a size of 0", "patch_size is 0, expected is 1 or more", _config(patch_size=0)),
    _import("text for a number", "rope_theta is 'x', expected is a number", _config(rope_theta="x")),
    _import("a number out of range", "beta is 3, expected is less than 2", _config(beta=3)),
    _import("no end of text", "eos_token_id is []", _config(eos_token_id=[])),
    _import("an end of text beyond the vocabulary", "eos_token_id is 1000000000000, the vocabulary has 320",
            _config(eos_token_id=10**12)),
    _import("a padding of -1", "pad_token_id is -1, expected is 0 or more", _config(pad_token_id=-1)),
    _import("a padding of 1.5", "pad_token_id is 1.5, expected is a whole number", _config(pad_token_id=1.5)),
    _import("a wrong ae_path",
            "its autoencoder '../gone' is no folder here; download it and name it with --autoencoder",
            _config(ae_path="../gone")),
    _import("no ae_path", "does not say which autoencoder is its own (ae_path)", _config(ae_path=None)),
    _import("other heads", "num_key_value_heads is 2, these models have 16", _config(num_attention_heads=16)),
    _import("a tensor that is missing", f"do not fit the config: missing: {GATE}", _weights(lambda w: w.pop(GATE))),
    _import("a tensor too many", "do not fit the config: unexpected: more",
            _weights(lambda w: w.update(more=torch.zeros(2)))),
    _import("a tensor of another shape", f"intermediate_size is 24, {GATE} of the weights is of shape [3, 3]",
            _weights(lambda w: w.update({GATE: torch.zeros(3, 3)}))),
    _import("weights in int8", f"'{GATE}' holds int8; weights are dense and of float32",
            _weights(lambda w: w.update({GATE: w[GATE].to(torch.int8)}))),
    _import("weights that are no numbers", "weights hold infinite numbers or none at all",
            _weights(lambda w: w.update({GATE: w[GATE] * float("nan")}))),
    _import("a cut header", "model.safetensors: is truncated, or no such file", _cut),
    _import("empty weights", "model.safetensors: cannot be read", _file("model.safetensors", b"")),
    _import("no weights", "hub: holds no weights", lambda folder: (folder / "model.safetensors").unlink()),
    _import("an index without a map", "index.json: has no weight_map", _index({})),
    _import("an index of numbers", "index.json: has no weight_map", _index({"weight_map": {"a": 1}})),
    _import("an index with a missing file", "files are missing: gone.safetensors",
            _index({"weight_map": {"a": "gone.safetensors"}})),
    _import("an index with a file outside", "'../../a', which is no plain path inside the folder",
            _index({"weight_map": {"a": "../../a"}})),
    _import("a pickle that is none", "pytorch_model.bin: is no file of torch.save",
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin")),
    _import("no tokenizer", "holds no tokenizer.json; name a folder in Hugging Face's format (it holds",
            lambda folder: (folder / "tokenizer.json").unlink()),
    _import("a broken tokenizer", "is no tokenizer.json that can be used", _file("tokenizer.json", b"{}")),
    _import("another tokenizer", "the model knows 320 tokens, the tokenizer 3; name the model's own", _of_few_tokens),
    _import("a name of the hub", "download it first: hf download cccczshao/CALM-M --local-dir CALM-M",
            lambda folder: None, "cccczshao/CALM-M"),
    _import("an address of the hub", "download it first: hf download cccczshao/CALM-M --local-dir CALM-M",
            lambda folder: None, "https://huggingface.co/cccczshao/CALM-M"),
    _import("misspelled", "hubb: there is no such folder; did you mean hub?", lambda folder: None, "hubb"),
    _import("a file", "hub/config.json: is a file; name its folder, hub", lambda folder: None, "hub/config.json"),
    _import("the folder above", "holds no config.json; name one of its folders: autoencoder, hub",
            lambda folder: None, "."),
    _import("an artifact of ours", "is an artifact already", lambda folder: None, "{calm}"),
    _import("a folder of nothing as the autoencoder", "--autoencoder autoencodr: there is no such folder; did you mean",
            lambda folder: None, "hub", "--autoencoder", "autoencodr"),
    _import("a CALM model as the autoencoder", "hub: is no autoencoder; name that of hub with --autoencoder",
            lambda folder: None, "hub", "--autoencoder", "hub"),
]  # fmt: skip

MISTAKES = [*SOURCES, *STORAGE, *ARTIFACTS, *MIXTURES, *IMPORTS]
