"""Artifacts that come from outside: real ones, whose manifests and files are damaged, or edited by somebody who knows
of the checksum. Each is then used as its consumers do."""

import hashlib
import json
import os
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import safetensors.torch
import torch

from calm_cli.data import verify
from calm_cli.inspect import inspect
from calm_core.config import AutoencoderConfig, CalmConfig, DataConfig, TokenizerConfig, TransformerConfig
from calm_core.data.mixture import mix_datasets
from calm_core.data.preparing.duplicates import find_duplicates
from calm_core.data.preparing.merge import Prepared, merge_partitions
from calm_core.data.preparing.plan import plan_partitions
from calm_core.data.preparing.scan import scan_partition
from calm_core.data.preparing.tokenize import tokenize_partition
from calm_core.data.preparing.train_tokenizer import train_tokenizer
from calm_core.data.reading.dataset import open_dataset
from calm_core.data.sources.partitions import Partition
from calm_core.evaluation.documents import DocumentScores
from calm_core.models.autoencoders.make import make_autoencoder
from calm_core.models.calm import Calm
from calm_core.models.transformer import Transformer
from calm_core.store.artifact import MANIFEST_NAME, Artifact, ArtifactWriter, digest_of
from calm_core.store.facts import (
    SPLITS,
    AutoencoderFacts,
    CalmFacts,
    DatasetFacts,
    EvaluationFacts,
    Facts,
    References,
    RegistrationFacts,
    ScanFacts,
    TextSample,
    TransformerFacts,
)
from calm_core.weights.lineage import autoencoder_of
from calm_core.weights.load import load_autoencoder, load_calm, load_tokenizer, load_transformer
from tests.reliability.campaign import Case, Lie

Json = Any
Place = tuple[str | int, ...]
_RAW = "what json.dumps cannot write"
_ONLY_THE_MANIFEST_SAYS = {"pad_id", "eos_id"}


@dataclass(frozen=True)
class _World:
    """One artifact of each kind, and what they were made from."""

    folder: Path
    config: DataConfig
    partitions: list[Partition]

    def uri(self, name: str) -> str:
        return str(self.folder / name)

    @property
    def names(self) -> list[str]:
        """Of the artifacts that are edited; the others are only used beside them."""
        found = [path.parent.name for path in sorted(self.folder.glob(f"*/{MANIFEST_NAME}"))]
        return [name for name in found if name not in ("twin", "scan-1", "shards-1")]


def cases(folder: Path, numbers: random.Random) -> Iterator[Case]:
    """Half of them damage, half of them edits with a right checksum."""
    with redirect_stdout(StringIO()):
        world = _make_world(folder / "world")
        truths = {name: _answer(world, name, Path(world.uri(name)), folder / "made") for name in world.names}
    while True:
        name = numbers.choice(world.names)
        target = folder / "case" / name
        edit = numbers.choice([_damaged, _damaged, _edited, _edited, _edited_twice, _other_path, _other_file])
        use = numbers.choice([_compared, _compared, _compared, _shown, _checked, _replaced, _copied])

        def prepared(target: Path = target, name: str = name) -> Path:
            for old in (target.parent, folder / "made"):
                shutil.rmtree(old, ignore_errors=True)
            _link_tree(Path(world.uri(name)), target)
            return target

        edited = edit(prepared(), numbers)
        what, excused = edited.what, edited.excused
        must_refuse = {
            "always": use is not _replaced,  # a damaged one may be replaced
            "if all files are read": use in (_checked, _copied),
            "": False,
        }[edited.refuse]

        def act(
            use: Callable[..., object] = use, name: str = name, target: Path = target, excused: bool = excused
        ) -> None:
            with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
                use(world, name, target, folder / "made", None if excused else truths[name])

        yield Case(f"{name}: {what}; {use.__name__.strip('_')}", act, must_refuse)


def _link_tree(source: Path, target: Path) -> None:
    for path in source.rglob("*"):
        if path.is_file():
            place = target / path.relative_to(source)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.link(path, place)


# The consumers.


def _compared(world: _World, name: str, target: Path, made: Path, truth: Json) -> None:
    answer = _answer(world, name, target, made)
    if truth is not None and answer != truth:
        raise Lie(f"{answer} instead of {truth}"[:500])


def _shown(world: _World, name: str, target: Path, made: Path, truth: Json) -> None:
    inspect(str(target), sequences=2, split="validation")


def _checked(world: _World, name: str, target: Path, made: Path, truth: Json) -> None:
    verify(str(target))


def _replaced(world: _World, name: str, target: Path, made: Path, truth: Json) -> None:
    kind = type(Artifact.of_any_kind(world.uri(name)).facts)
    with ArtifactWriter(str(target), kind, {}, {}, overwrite=True) as writer:
        writer.write("new", b"new")
        writer.facts = Artifact.of_any_kind(world.uri(name)).facts.model_copy()


def _copied(world: _World, name: str, target: Path, made: Path, truth: Json) -> None:
    source = Artifact.of_any_kind(str(target))
    with ArtifactWriter(str(made), ScanFacts, {}, {}) as writer:
        writer.copy(source, {entry.path: entry.path for entry in source.manifest.files})
        writer.facts = ScanFacts(partition=0, documents=0, text_bytes=0, normalized=0, rejected={})
    Artifact(str(made), ScanFacts).check_files()


def _answer(world: _World, name: str, target: Path, made: Path) -> Json:
    """What whoever relies on an artifact gets from it."""
    uri = str(target)
    match name:
        case "dataset" | "mixture":
            return _rows(uri)
        case "autoencoder":
            autoencoder = Artifact(uri, AutoencoderFacts)
            return _model(load_autoencoder(autoencoder)), load_tokenizer(autoencoder).encode("the river")
        case "calm":
            calm = Artifact(uri, CalmFacts)
            return _model(load_calm(calm, autoencoder_of(calm))), load_tokenizer(calm).encode("the river")
        case "transformer":
            transformer = Artifact(uri, TransformerFacts)
            return _model(load_transformer(transformer)), load_tokenizer(transformer).encode("the river")
        case "evaluation":
            evaluation = Artifact(uri, EvaluationFacts)
            facts, documents = evaluation.facts, DocumentScores.read(evaluation)
            terms = [facts.brierlm.value, *(term.value for term in facts.brier.values())]
            return terms, documents.counts_D.tolist(), documents.sums_DT.tolist()
        case "registration":
            return Artifact(uri, RegistrationFacts).facts.model_uri
        case "scan-0":
            scans = [uri, world.uri("scan-1")]
            find_duplicates(scans, world.config, str(made / "duplicates"))
            return _merged(world, made, scan_uris=scans), Artifact(
                str(made / "duplicates"), Facts.of_kind["duplicates"]
            ).facts
        case "shards-0":
            return _merged(world, made, shards_uris=[uri, world.uri("shards-1")])
        case "duplicates" | "tokenizer":
            inputs = {kind: world.uri(kind) for kind in ("tokenizer", "duplicates")} | {name: uri}
            shards = tokenize_partition(
                world.partitions[0], world.config, inputs["tokenizer"], inputs["duplicates"], str(made / "shards")
            )
            return [(entry.path, entry.sha256) for entry in shards.manifest.files]
    raise AssertionError(name)


def _merged(world: _World, made: Path, **inputs: list[str]) -> Json:
    names = {kind: [world.uri(f"{kind}-{i}") for i in (0, 1)] for kind in ("scan", "shards")}
    prepared = Prepared(
        partitions=world.partitions,
        scan_uris=inputs.get("scan_uris", names["scan"]),
        shards_uris=inputs.get("shards_uris", names["shards"]),
        duplicates_uri=world.uri("duplicates"),
        tokenizer_uri=world.uri("tokenizer"),
    )
    return _rows(merge_partitions(world.config, prepared, str(made / "dataset")).uri)


def _rows(uri: str) -> Json:
    opened = [open_dataset(uri, split) for split in SPLITS]
    rows = [dataset.rows(np.arange(dataset.num_sequences)) for dataset in opened]
    shapes = [(dataset.sequence_length, dataset.vocab_size, list(dataset.weights)) for dataset in opened]
    return [hashlib.sha256(part.tobytes()).hexdigest() for part in rows], shapes


def _model(model: torch.nn.Module) -> str:
    return hashlib.sha256(safetensors.torch.save(model.state_dict())).hexdigest()


# The edits.


class Edit(NamedTuple):
    """What was changed.

    Attributes:
        refuse: When it must be refused; "" where it may also do no harm.
        excused: Whether what consumers get may be something else: then the manifest alone says what is right.
    """

    what: str
    refuse: Literal["always", "if all files are read", ""] = ""
    excused: bool = True


def _write(target: Path, text: str | bytes) -> None:
    path = target / MANIFEST_NAME
    path.unlink()  # it is a second name of the good one
    path.write_bytes(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text)


def _signed(target: Path, content: Json, raw: str = "") -> None:
    if isinstance(content, dict):
        content.pop("checksum", None)
        content["checksum"] = digest_of(content)
    _write(target, json.dumps(content, indent=1).replace(json.dumps(_RAW), raw))


def _damaged(target: Path, numbers: random.Random) -> Edit:
    """Bytes that changed on their own, or a value that was changed by hand."""
    good = (target / MANIFEST_NAME).read_bytes()
    match numbers.randrange(5):
        case 0:
            place = numbers.randrange(len(good))
            bad, what = (
                good[:place] + bytes([good[place] ^ (1 << numbers.randrange(8))]) + good[place + 1 :],
                f"bit {place}",
            )
        case 1:
            bad, what = good[: (cut := numbers.randrange(len(good)))], f"cut at {cut}"
        case 2:
            place = numbers.randrange(len(good))
            bad, what = good[:place] + numbers.randbytes(numbers.randrange(1, 9)) + good[place:], f"inserted at {place}"
        case 3:
            first, second = sorted(numbers.sample(range(len(good)), 2))
            bad, what = good[:first] + good[second:], f"lost [{first}, {second})"
        case _:
            content = json.loads(good)
            changed, raw = _with_leaf_changed(content, numbers)
            bad, what = json.dumps(content, indent=1).replace(json.dumps(_RAW), raw).encode(), f"unsigned {changed}"
    _write(target, bad)
    try:
        same = json.dumps(json.loads(bad)) == json.dumps(json.loads(good))
    except (ValueError, RecursionError):
        same = False
    return Edit(what, "" if same else "always")


def _edited(target: Path, numbers: random.Random) -> Edit:
    content = json.loads((target / MANIFEST_NAME).read_text())
    what, raw = _with_leaf_changed(content, numbers)
    _signed(target, content, raw)
    return Edit(what, excused=any(name in what for name in _ONLY_THE_MANIFEST_SAYS))


def _edited_twice(target: Path, numbers: random.Random) -> Edit:
    """Two numbers that agree with each other, and with nothing else."""
    content = json.loads((target / MANIFEST_NAME).read_text())
    leaves = [place for place in _places(content) if type(_at(content, place)) is int]
    first, second = numbers.sample(leaves, 2) if len(leaves) > 1 else leaves * 2
    by = numbers.choice([1, -1, 8, -8, 10**6, 10**12])
    for place in (first, second):
        _set(content, place, _at(content, place) + by)
    _signed(target, content)
    what = f"{_told(first)} and {_told(second)} + {by}"
    return Edit(what, excused=any(name in what for name in _ONLY_THE_MANIFEST_SAYS))


def _other_path(target: Path, numbers: random.Random) -> Edit:
    """Entries that name files elsewhere; what lies there has the size and the hash that they say."""
    content = json.loads((target / MANIFEST_NAME).read_text())
    victim = target.parents[2] / "victim.txt"
    data = victim.read_bytes()
    entry = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    path = numbers.choice(
        [
            "../../../victim.txt", "../../../outside/victim.txt", "../../../outside/deeper/victim.txt", str(victim),
            f"file://{victim}", f"/{victim}", f"x/../../../../{victim.name}", "./x", "a//b", "a\\..\\b", "a\0b", "",
            ".", "..", "a/.", "x" * 5000, "a\nb", "\x1b[2J", "\u202e", "C:\\x", "s3://bucket/x", MANIFEST_NAME, "~/x",
            " ", "out/victim.txt", "%2e%2e/victim.txt", "::", "file::x", "memory://x", "\udcff",
        ]
    )  # fmt: skip
    if path.startswith("out/"):
        (target / "out").symlink_to(victim.parent)
    places = [place for place in _places(content) if place and place[-1] in ("path", "sha256", "uri")]
    if content["files"] and numbers.random() < 0.3:  # one that the facts name, too
        old = numbers.choice(content["files"])["path"]
        for place in places:
            if _at(content, place) == old:
                _set(content, place, path)
        what = f"moved to {path[:80]!a}"
    elif numbers.random() < 0.3 and places:
        _set(content, place := numbers.choice(places), path)
        what = f"{_told(place)} = {path[:80]!a}"
    else:
        content["files"].append({"path": path, **entry})
        what = f"added {path[:80]!a}"
    _signed(target, content)
    if path == " " or path.startswith(("~", "%")) or "uri =" in what:
        return Edit(what)
    return Edit(what, "if all files are read" if path.startswith("out/") else "always")


def _other_file(target: Path, numbers: random.Random) -> Edit:
    """Files that are something else; the manifest says that it has to be so."""
    content = json.loads((target / MANIFEST_NAME).read_text())
    if not content["files"]:
        return _edited(target, numbers)
    entry = numbers.choice(content["files"])
    path, victim = target / entry["path"], target.parents[2] / "victim.txt"
    good = path.read_bytes()
    path.unlink()
    kind = numbers.choice(["link", "folder link", "folder", "pipe", "empty", "cut", "other", "noise", "huge", "grown"])
    must_refuse = kind in ("link", "folder link", "folder", "pipe", "huge")
    bad: bytes | None = None
    match kind:
        case "link":
            path.symlink_to(victim)
            bad = victim.read_bytes()
        case "folder link":
            folder = target / "elsewhere"
            folder.symlink_to(victim.parent)
            content["files"].append(dict(entry, path="elsewhere/victim.txt"))
            path.write_bytes(good)
        case "folder":
            path.mkdir()
        case "pipe":
            os.mkfifo(path)
        case "huge":
            with open(path, "wb") as file:
                file.truncate(10**13)
        case "empty":
            bad = b""
        case "cut":
            bad = good[: numbers.randrange(max(len(good), 1))]
        case "other":
            others = [target / other["path"] for other in content["files"] if other is not entry]
            bad = numbers.choice(others).read_bytes() if others else b"{}"
        case "grown":
            bad = good + b"\0"
        case _:
            bad = bytearray(good) or bytearray(1)
            for _ in range(numbers.randrange(1, 9)):
                bad[numbers.randrange(len(bad))] ^= 1 << numbers.randrange(8)
    if bad is not None and kind != "link":
        path.write_bytes(bad)
    if bad is not None:
        entry |= {"size": len(bad), "sha256": hashlib.sha256(bad).hexdigest()}
    _signed(target, content)
    return Edit(f"{entry['path']} is {kind}", "if all files are read" if must_refuse else "")


def _with_leaf_changed(content: Json, numbers: random.Random) -> tuple[str, str]:
    """Change one value; returns what, and text that takes the place of `_RAW`."""
    place = numbers.choice([place for place in _places(content) if place and place[0] != "checksum"])
    old, raw = _at(content, place), ""
    values: list[Json] = [
        None, True, False, -1, 0, 1, 2, 7, 2**16, 2**31, 2**53, 2**53 + 1, 10**12, 2**64, 10**30, -(2**63), 0.5, -0.0,
        1e308, float("nan"), float("inf"), "", "0", "1", "NaN", "x" * 100_000, "\0", "\x1b[2J\x07", "\udc80", "{{$.x}}",
        "../../../victim.txt", "file::x", "https://user:secret@host/x", [], {}, [[]], {"a": {}}, [old], {"": old},
    ]  # fmt: skip
    match numbers.randrange(8):
        case 0 | 1 | 2:
            new = numbers.choice(values)
            what = f"{_told(place)} = {str(new)[:40]!a}"
        case 3 if isinstance(old, int | float) and not isinstance(old, bool):
            new = old + numbers.choice([-1, 1, 2, -2, old, 1000])
            what = f"{_told(place)} = {new}"
        case 4:
            new = _RAW
            raw = numbers.choice(
                ["9" * 5000, "1" + "0" * 400, "[" * 5000 + "]" * 5000, '{"a":' * 150 + "1" + "}" * 150, "1e999"]
            )
            what = f"{_told(place)} = {raw[:20]}..."
        case 5 if isinstance(old, list | str):
            new = old[:-1] if numbers.random() < 0.5 else old + old
            what = f"{_told(place)} shortened or doubled"
        case 6:
            other = numbers.choice(_places(content)[1:])
            new = _at(content, other)
            what = f"{_told(place)} = {_told(other)}"
        case _:
            container = _at(content, place[:-1])
            if isinstance(container, dict) and numbers.random() < 0.3:
                container[numbers.choice(["unheard", "", "kind", "__class__", "x" * 3000])] = old
                return f"{_told(place)} once more by another name", ""
            del container[place[-1]]
            return f"{_told(place)} left out", ""
    _set(content, place, json.loads(json.dumps(new)))
    return what, raw


def _places(value: Json, place: Place = ()) -> list[Place]:
    """Of a JSON value and all values in it."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place, *(found for key, item in inner for found in _places(item, (*place, key)))]


def _at(content: Json, place: Place) -> Json:
    for key in place:
        content = content[key]
    return content


def _set(content: Json, place: Place, value: Json) -> None:
    _at(content, place[:-1])[place[-1]] = value


def _told(place: Place) -> str:
    return ".".join(map(str, place))


# What is edited.


def _make_world(folder: Path) -> _World:
    numbers = random.Random(0)
    folder.mkdir()
    for i in range(2):
        texts = [" ".join(numbers.choices(["the river", "a town", "flows past", "lies near"], k=30)) for _ in range(40)]
        (folder / f"{i}.jsonl").write_text(
            "".join(json.dumps({"text": text}) + "\n" for text in [*texts, texts[0], ""])
        )
    config = DataConfig(
        sources=(f"{folder}/*.jsonl",), sequence_length=32, rows_per_group=4, rows_per_shard=16, validation_fraction=0.3
    )
    world = _World(folder, config, plan_partitions(config, f"{folder}/plan"))
    scans = [scan_partition(part, config, world.uri(f"scan-{i}")).uri for i, part in enumerate(world.partitions)]
    find_duplicates(scans, config, world.uri("duplicates"))
    train_tokenizer(world.partitions, TokenizerConfig(vocab_size=270), config, world.uri("tokenizer"))
    shards = [
        tokenize_partition(part, config, world.uri("tokenizer"), world.uri("duplicates"), world.uri(f"shards-{i}")).uri
        for i, part in enumerate(world.partitions)
    ]
    prepared = Prepared(
        partitions=world.partitions,
        scan_uris=scans,
        shards_uris=shards,
        duplicates_uri=world.uri("duplicates"),
        tokenizer_uri=world.uri("tokenizer"),
    )
    dataset = merge_partitions(config, prepared, world.uri("dataset"))
    shutil.copytree(world.uri("dataset"), world.uri("twin"))
    mix_datasets({world.uri("dataset"): 1, world.uri("twin"): 3}, world.uri("mixture"))
    _make_models(world, dataset)
    _make_scores(world)
    return world


def _make_models(world: _World, dataset: Artifact[DatasetFacts]) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 8, "intermediate_size": 12}
    backbone = shape | {"num_hidden_layers": 1, "num_attention_heads": 2}
    head = {"num_layers": 1, "model_samples": 2, "target_samples": 4, "noise_size": 4}
    vocab_size = dataset.facts.vocab_size
    encoder = AutoencoderConfig.model_validate({"model": {"chunk_size": 4, "latent_size": 6, **shape}})
    calm = CalmConfig.model_validate({"model": {"head": head, **backbone}})
    plain = TransformerConfig.model_validate({"model": backbone})
    chunks = {"chunk_size": 4, "latent_size": 6}

    def write(name: str, kind: type[Facts], config: Any, model: torch.nn.Module, **own: Any) -> Artifact[Facts]:
        parents = {"dataset": dataset.digest, **own.pop("parents", {})}
        with ArtifactWriter(world.uri(name), kind, config.model_dump(mode="json") | {"seed": 0}, parents) as writer:
            writer.write("weights.safetensors", safetensors.torch.save(model.state_dict()))
            writer.write("tokenizer.json", dataset.read("tokenizer.json"))
            writer.write("curves.jsonl", b"")
            writer.facts = kind(
                parameters=sum(p.numel() for p in model.parameters()),
                **dataset.facts.model_dump(include={"vocab_size", "pad_id", "eos_id"}),
                trained_tokens=7,
                validation={"loss": 2.5},
                **own,
            )
        return Artifact(world.uri(name), kind)

    autoencoder = write("autoencoder", AutoencoderFacts, encoder, make_autoencoder(encoder.model, vocab_size))
    own = {"autoencoder_uri": autoencoder.uri, "parents": {"autoencoder": autoencoder.digest}, **chunks}
    write("calm", CalmFacts, calm, Calm(calm.model, vocab_size, 4, 6), **own)
    write("transformer", TransformerFacts, plain, Transformer(plain.model, vocab_size))


def _make_scores(world: _World) -> None:
    counts_D = np.arange(1.0, 9.0)
    shares_DT = np.random.default_rng(0).uniform(0.1, 0.3, (len(counts_D), 4))
    documents = DocumentScores(np.arange(len(counts_D)), counts_D, shares_DT * counts_D[:, None])
    scores = documents.scores(resamples=100, confidence=0.9, seed=0)
    parents = {name: Artifact.of_any_kind(world.uri(name)).digest for name in ("autoencoder", "calm", "dataset")}
    with ArtifactWriter(world.uri("evaluation"), EvaluationFacts, {"seed": 0}, parents) as writer:
        writer.write("report.html", b"<p>")
        documents.write(writer)
        writer.facts = EvaluationFacts(
            model="CALM",
            autoencoder_accuracy=0.5,
            brierlm=scores.brierlm,
            brier=scores.brier,
            protocol={"samples": 2, "split": "validation", "positions": documents.positions},
            references=References(untrained=scores, unigram=scores),
            samples=[TextSample(prompt="the", text=" river")],
        )
    with ArtifactWriter(world.uri("registration"), RegistrationFacts, {"alias": "a"}, parents) as writer:
        writer.facts = RegistrationFacts(model_name="calm", version="3", alias="a", model_uri="models:/calm/3")
