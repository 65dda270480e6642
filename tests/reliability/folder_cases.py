"""Public checkpoints with something wrong in them, given to `calm import`."""

import copy
import json
import os
import pickle
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from calm_core.errors import CalmError
from calm_core.weights.huggingface import import_checkpoint
from calm_core.weights.load import load_autoencoder, load_calm, load_weights
from tests.reliability.campaign import Case, Lie
from tests.weights.public_folders import (
    AUTOENCODER_CONFIG,
    CALM_CONFIG,
    autoencoder_shapes,
    calm_shapes,
    random_weights,
    write_folder,
    write_tokenizer,
)

Weights = dict[str, torch.Tensor]

_VALUES: list[Any] = [
    None, True, False, -1, 0, 1, 2, 3, 1.5, 10**7, 10**12, 10**30, 1e-300, 1e308, "16", "", "silu", "gelu", "\x1b[2J",
    "../..", "/etc/passwd", [], [[]], {}, {"type": "linear", "factor": 2.0}, [1, 2], ["1"], [10**12], [None],
]  # fmt: skip
_EXTRA = {
    "num_key_value_heads": 1, "head_dim": 7, "rope_scaling": {"type": "linear", "factor": 2.0}, "attention_bias": True,
    "mlp_bias": True, "hidden_act": "gelu_new", "model_type": "flow", "architectures": ["DiffusionTransformer"],
}  # fmt: skip
_NO_EFFECT = {"architectures", "model_type", "ae_path", "initializer_range", "torch_dtype", "bos_token_id"}
# Theirs -> the path to ours, and the value where none is given.
_TRUTH: dict[str, dict[str, tuple[tuple[str, ...], Any]]] = {
    "autoencoder": {
        "ae_dropout": (("token_dropout",), 0.15),
        "kl_clamp": (("kl_clip",), 0.5),
        "kl_weight": (("kl_weight",), 1e-3),
        "rms_norm_eps": (("rms_norm_eps",), 1e-6),
    },
    "calm": {
        "rope_theta": (("rope_theta",), 10000.0),
        "rms_norm_eps": (("rms_norm_eps",), 1e-6),
        "num_attention_heads": (("num_attention_heads",), 0),
        "num_samples": (("head", "model_samples"), 8),
        "beta": (("head", "alpha"), 1.0),
    },
}
_LAYOUTS = ("safetensors", "bin", "sharded safetensors", "sharded bin")


@dataclass
class _Folders:
    """What is written before an import: configs and weights by folder, and what is done to the files afterwards."""

    configs: dict[str, dict[str, Any]]
    weights: dict[str, Weights]
    layout: str = "safetensors"
    spoil: list[Callable[[Path], object]] = field(default_factory=list)
    weights_are_known: bool = True
    must_refuse: bool = False

    def import_below(self, place: Path, tokenizer: Path) -> None:
        shutil.rmtree(place, ignore_errors=True)
        for name in self.configs:
            write_folder(place / name, self.configs[name], self.weights[name], self.layout)
        shutil.copytree(tokenizer, place / "tokenizer")
        for spoil in self.spoil:
            spoil(place)
        output = place / "out"
        try:
            artifacts = import_checkpoint(str(place / "calm"), str(output), tokenizer_folder=str(place / "tokenizer"))
        except CalmError:
            if output.exists():
                raise Lie("a refused import left something behind") from None
            raise
        finally:
            if (place / "run-by-unpickling").exists():
                raise Lie("a pickle has run code")
        if self.must_refuse:
            raise Lie("accepted")
        self._compare(artifacts)

    def _compare(self, artifacts: dict[str, Any]) -> None:
        """What was accepted is what the folders said."""
        load_calm(artifacts["calm"], artifacts["autoencoder"])
        load_autoencoder(artifacts["autoencoder"])
        for kind, artifact in artifacts.items():
            facts, settings = artifact.facts, artifact.manifest.config["model"]
            if max(facts.pad_id, facts.eos_id) >= facts.vocab_size:
                raise Lie(f"{kind}: special tokens outside the vocabulary")
            for theirs, (path, default) in _TRUTH[kind].items():
                said, value = self.configs[kind].get(theirs), settings
                for step in path:
                    value = value[step]
                if value != float(default if said is None else said) or isinstance(said, bool):
                    raise Lie(f"{kind}: {theirs} is {said!r}, the model has {value!r}")
            stored = load_weights(artifact)
            if not all(value.isfinite().all() for value in stored.values()):
                raise Lie(f"{kind}: numbers that are none")
            if self.weights_are_known:
                given = self.weights[kind]
                for name, value in stored.items():
                    alias = name.replace("mlp_generator.", "generative_head.")
                    if not torch.equal(value, given[name] if name in given else given[alias]):
                        raise Lie(f"{kind}: {name} has other numbers")


@dataclass(frozen=True)
class _Runs:
    place: Path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place / "run-by-unpickling"),)


def folder_cases(inside: Path, rng: random.Random) -> Iterator[Case]:
    """Endless folders with one to three things wrong."""
    tokenizer = write_tokenizer(inside / "tokenizer")
    inner = random_weights(autoencoder_shapes(), 1)
    outer = random_weights(calm_shapes(), 2) | {f"ae_model.{name}": value for name, value in inner.items()}
    base = _Folders({"autoencoder": AUTOENCODER_CONFIG, "calm": CALM_CONFIG}, {"autoencoder": inner, "calm": outer})
    edits, spoils = (_edit_config, _edit_weights), (_spoil_json, _spoil_weights, _spoil_index, _replace_pickle,
                                                    _edit_tokenizer)  # fmt: skip
    while True:
        folders = copy.deepcopy(base)
        folders.layout = rng.choice(_LAYOUTS)
        chosen = [rng.choice(edits) for _ in range(rng.choice((0, 1, 1, 1, 2)))]
        if not chosen or rng.random() < 0.2:
            chosen.append(rng.choice(spoils))
        name = "; ".join(edit(folders, rng) for edit in chosen)

        def act(folders: _Folders = folders) -> None:
            folders.import_below(inside / "case", tokenizer)

        yield Case(f"{folders.layout}: {name}", act)


def _edit_config(folders: _Folders, rng: random.Random) -> str:
    kind = rng.choice(("autoencoder", "calm"))
    config = folders.configs[kind]
    if rng.random() < 0.2:
        key = rng.choice(sorted(_EXTRA))
        config[key] = _EXTRA[key]
        folders.must_refuse |= kind == "calm" or key in ("mlp_bias", "hidden_act", "model_type", "architectures")
        return f"{kind}: {key} {config[key]!r}"
    key = rng.choice(sorted(config))
    if rng.random() < 0.2:
        del config[key]
        return f"{kind}: no {key}"
    before, config[key] = config[key], rng.choice(_VALUES)
    sizes = key.endswith(("_size", "_layers"))
    wrong_token = key.endswith("token_id") and config[key] not in (None, 0, 1, 2, 3, [1, 2])
    folders.must_refuse |= (sizes and config[key] != before) or wrong_token or isinstance(config[key], bool)
    if key in _NO_EFFECT and not wrong_token:
        folders.must_refuse = False
    return f"{kind}: {key} {config[key]!r:.40}"


def _edit_weights(folders: _Folders, rng: random.Random) -> str:
    kind = rng.choice(("autoencoder", "calm"))
    weights = folders.weights[kind]
    name = rng.choice(sorted(weights))
    value, is_inner = weights[name], name.startswith("ae_model.") or kind == "autoencoder"
    edit = rng.choice(("drop", "rename", "add", "transpose", "shorten", "integers", "nan", "infinite", "half",
                       "alias", "other alias", "alias alone"))  # fmt: skip
    must_refuse = True
    if edit in ("drop", "rename"):
        weights[f"{name}\x1b[2J" if edit == "rename" else ""] = weights.pop(name)
        weights.pop("", None)
    elif edit == "add":
        weights[f"{rng.choice(('', 'transformer.', 'encoder.'))}extra.weight"] = torch.zeros(2)
    elif edit == "transpose":
        must_refuse = value.ndim == 2 and value.shape[0] != value.shape[1]
        weights[name] = value.t().contiguous() if value.ndim == 2 else value
        folders.must_refuse |= must_refuse
        folders.weights_are_known &= must_refuse  # a square one of the inner copy is refused for other reasons
        return f"{kind}: {edit} {name}"
    elif edit == "shorten":
        weights[name] = value[:-1].clone()
    elif edit == "integers":
        weights[name] = (value * 100).to(rng.choice((torch.int64, torch.uint8, torch.bool)))
    elif edit in ("nan", "infinite"):
        weights[name] = value.clone()
        weights[name].view(-1)[rng.randrange(value.numel())] = float("nan" if edit == "nan" else "-inf")
    elif edit == "half":
        weights[name] = value.half()
        must_refuse = is_inner and kind == "autoencoder"  # the copy in the CALM folder has more bits
    else:
        head = rng.choice(sorted(n for n in folders.weights["calm"] if n.startswith("mlp_generator.")) or [""])
        weights = folders.weights["calm"]
        if not head:
            return "no head is left"
        alias = head.replace("mlp_generator.", "generative_head.")
        must_refuse = edit == "other alias"
        weights[alias] = weights.pop(head) if edit == "alias alone" else weights[head] + float(must_refuse)
        name = head
    folders.must_refuse |= must_refuse
    return f"{kind}: {edit} {name}"


def _spoil_json(folders: _Folders, rng: random.Random) -> str:
    place = rng.choice(("autoencoder", "calm")) + "/config.json"
    edits: dict[str, Callable[[bytes], bytes]] = {
        "empty": lambda data: b"",
        "no UTF-8": lambda data: data[:20] + b"\xff\xfe" + data[20:],
        "UTF-16": lambda data: data.decode().encode("utf-16"),
        "nested": lambda data: b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
        "a list": lambda data: b"[" + data + b"]",
        "a number": lambda data: b"17",
        "null": lambda data: b"null",
        "NaN": lambda data: data.replace(b'"hidden_size": 16', b'"hidden_size": NaN'),
        "infinite": lambda data: data.replace(b'"rms_norm_eps": 1e-', b'"rms_norm_eps": 1e999, "x": 1e-'),
        "digits": lambda data: data.replace(b'"hidden_size": 16', b'"hidden_size": 1' + b"0" * 5000),
        "half": lambda data: data[: len(data) // 2],
    }
    edit = rng.choice(sorted(edits))
    folders.spoil.append(lambda root: (root / place).write_bytes(edits[edit]((root / place).read_bytes())))
    folders.must_refuse = True
    return f"{place}: {edit}"


def _weights_file(root: Path, kind: str, rng: random.Random) -> Path:
    files = [path for path in sorted((root / kind).iterdir()) if path.suffix in (".safetensors", ".bin")]
    return rng.choice(files)


def _spoil_weights(folders: _Folders, rng: random.Random) -> str:
    kind, seed = rng.choice(("autoencoder", "calm")), rng.randrange(1 << 30)
    edit = rng.choice(
        ("cut", "flip the head", "flip", "empty", "grow", "header length", "other header", "link", "folder")
    )
    folders.weights_are_known = False

    def spoil(root: Path) -> None:
        own = random.Random(seed)
        path = _weights_file(root, kind, own)
        data = bytearray(path.read_bytes())
        if edit == "cut":
            del data[own.randrange(len(data)) :]
        elif edit.startswith("flip"):
            end = min(2000, len(data)) if edit == "flip the head" else len(data)
            for _ in range(own.choice((1, 3, 20))):
                data[own.randrange(end)] ^= 1 << own.randrange(8)
        elif edit == "empty":
            data.clear()
        elif edit == "grow":
            data += bytes(1000)
        elif edit == "header length":
            data[:8] = struct.pack("<Q", own.choice((0, 1, 10**6, 10**8, 2**40, 2**63, 2**64 - 1)))
        elif edit == "other header":
            header = json.dumps({"a": {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
            data = bytearray(struct.pack("<Q", len(header)) + header + bytes(4))
        path.unlink()
        if edit == "link":
            path.symlink_to(root.parent.parent / "victim.txt")
        elif edit == "folder":
            path.mkdir()
        else:
            path.write_bytes(data)

    folders.spoil.append(spoil)
    # Without weights of its own, the autoencoder is read from its copy in the CALM folder.
    folders.must_refuse |= edit in ("empty", "other header", "link") or (edit == "folder" and kind == "calm")
    return f"{kind}: {edit} {seed}"


def _spoil_index(folders: _Folders, rng: random.Random) -> str:
    folders.layout = rng.choice(_LAYOUTS[2:])
    outside = (
        "../autoencoder/config.json",
        "/etc/passwd",
        "..\\x",
        "a\x00b",
        ".",
        "",
        "../../../victim.txt",
        "x" * 300,
    )
    values: list[Any] = [None, [], {}, "text", 3, {"weight_map": []}, {"weight_map": {"a": 3}}, {"weight_map": {}},
                         {"weight_map": {"a": ["x"]}}, *({"weight_map": {"a": name}} for name in outside)]  # fmt: skip
    value, kind = rng.choice(values), rng.choice(("autoencoder", "calm"))

    def spoil(root: Path) -> None:
        next((root / kind).glob("*.index.json")).write_text(json.dumps(value))

    folders.spoil.append(spoil)
    folders.must_refuse = True
    return f"{kind}: index {value!r:.60}"


def _replace_pickle(folders: _Folders, rng: random.Random) -> str:
    folders.layout, kind = "bin", rng.choice(("autoencoder", "calm"))
    edit = rng.choice(("code", "plain pickle", "packed", "views", "a list", "numbers for names", "numbers for weights",
                       "sparse", "no storage", "other storage"))  # fmt: skip
    weights = folders.weights[kind]

    def spoil(root: Path) -> None:
        path = root / kind / "pytorch_model.bin"
        big = torch.zeros(1).expand(10**6, 10**6)
        contents: dict[str, Any] = {
            "code": weights | {"run": _Runs(root)},
            "views": {name: torch.zeros(1).expand(value.shape) for name, value in weights.items()} | {"big": big},
            "a list": list(weights.values()),
            "numbers for names": dict(enumerate(weights.values())),
            "numbers for weights": dict.fromkeys(weights, 1.0),
            "sparse": {name: value.to_sparse() for name, value in weights.items()},
            "no storage": {name: value.to("meta") for name, value in weights.items()},
        }
        if edit == "plain pickle":
            path.write_bytes(pickle.dumps({"run": _Runs(root)}))
        elif edit in contents:
            torch.save(contents[edit], path)
        else:
            with zipfile.ZipFile(path) as archive:
                files = {name: archive.read(name) for name in archive.namelist()}
            packing = zipfile.ZIP_DEFLATED if edit == "packed" else zipfile.ZIP_STORED
            with zipfile.ZipFile(path, "w", packing) as archive:
                for name, data in files.items():
                    archive.writestr(name, data if edit == "packed" or "/data/" not in name else data[:1])

    folders.spoil.append(spoil)
    folders.must_refuse = True
    return f"{kind}: {edit}"


def _edit_tokenizer(folders: _Folders, rng: random.Random) -> str:
    edit = rng.choice(("none", "half", "a list", "a link", "more tokens", "names", "a link to names"))

    def spoil(root: Path) -> None:
        path, names = root / "tokenizer" / "tokenizer.json", root / "tokenizer" / "tokenizer_config.json"
        data = path.read_bytes()
        if edit == "names":
            names.write_text("[1, 2]")
        elif edit == "a link to names":
            names.unlink()
            names.symlink_to(root.parent.parent / "victim.txt")
        elif edit == "more tokens":
            settings = json.loads(data)
            settings["model"]["vocab"] |= {f"more{number}": 1000 + number for number in range(9)}
            path.write_text(json.dumps(settings))
        else:
            path.unlink()
            if edit == "a link":
                path.symlink_to(root.parent.parent / "victim.txt")
            elif edit != "none":
                path.write_bytes(data[: len(data) // 2] if edit == "half" else b"[]")

    folders.spoil.append(spoil)
    folders.must_refuse = True
    return f"tokenizer: {edit}"
