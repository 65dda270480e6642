"""What lies at a place that was taken for an artifact, and is none."""

import re

from calm_core.shown import listed
from calm_core.store import nearby, storage
from calm_core.store.facts import MANIFEST_NAME, UNFINISHED_NAME
from calm_core.store.lock import is_lock

_WEIGHTS = re.compile(r"(model|pytorch_model)([.-].*)?\.(safetensors|bin)(\.index\.json)?")
_PARTS = re.compile(r"(scan|shards)-\d{5}")
_OF_RUNS = {"mlflow.db", "mlartifacts", "pipeline"}
_OF_CHECKPOINTS = re.compile(r"job\.json|step-\d+")
_OF_ARTIFACTS = {"weights.safetensors", "tokenizer.json", "curves.jsonl", "evaluation.json", "registration.json"}
_SHARD = re.compile(r"(train|validation)-\d+\.parquet")
_TEXT = re.compile(r".*\.(jsonl|jsonl\.gz|jsonl\.zst|txt|parquet|csv|arrow)|(state|dataset_dict|dataset_info)\.json")
_MOST_FOLDERS, _SHOWN = 200, 4
_REGISTERED = re.compile(r"(models|runs):/")


def with_article(kind: str) -> str:
    """A kind of artifact with "a" or "an" before it."""
    return f"{'an' if kind.startswith(tuple('aeiou')) else 'a'} {kind}"


def why_no_artifact(uri: str, expected: str) -> str:
    """A message that says what is at a place without a manifest, and what to do.

    Args:
        uri: The place.
        expected: The kinds that were expected, in words; empty for any.
    """
    name = f"the {expected} artifact" if expected else "the artifact"
    if _REGISTERED.match(uri):
        return f"{uri}: is a registered model, and {name} is a folder; `calm runs` lists those of each run"
    if not storage.exists(uri):
        return f"{uri}: {name} is missing, no such folder; {nearby.hint(uri)}"
    if not storage.is_folder(uri):
        if uri.rstrip("/").endswith(f"/{MANIFEST_NAME}"):
            return f"{uri}: is the manifest alone; name its folder, {uri.rpartition('/')[0]}"
        return f"{uri}: is a file; {name} is a folder with a {MANIFEST_NAME}"
    kinds = storage.kinds_in(uri)
    return f"{uri}: {_why_not(uri, kinds, name)}"


def _why_not(uri: str, kinds: dict[str, bool], name: str) -> str:
    if kinds.get(MANIFEST_NAME):
        return f"its {MANIFEST_NAME} is a folder; name another folder"
    if UNFINISHED_NAME in kinds or any(map(is_lock, kinds)):
        return f"{name} is half-written (its stage did not finish): no {MANIFEST_NAME}; run its stage again"
    if not kinds:
        return f"{name} is missing, the folder is empty; name another one, or run its stage"
    if _OF_RUNS & kinds.keys():
        return "is the folder where runs are kept; `calm runs` lists them with their artifacts"
    if any(_PARTS.fullmatch(part) for part in kinds):
        whole = uri.rstrip("/").removesuffix(".parts")
        return f"holds the parts of a dataset; the dataset is {whole} once `calm prepare` has finished"
    if "config.json" in kinds or any(_WEIGHTS.fullmatch(file) for file in kinds):
        return "is a checkpoint of another library; `calm import` makes artifacts of a public CALM model"
    if any(_OF_CHECKPOINTS.fullmatch(file) for file in kinds):
        return "holds the checkpoints of a training, which are no artifact; name what `calm train --output` has written"
    inner = [folder for folder, is_folder in list(kinds.items())[:_MOST_FOLDERS] if is_folder]
    if found := [folder for folder in inner if storage.exists(storage.join(uri, folder, MANIFEST_NAME))]:
        places = [storage.join(uri, folder) for folder in found]
        return f"is no artifact, but holds some; name one of {listed(places, _SHOWN, limit=200)}"
    files = [file for file, is_folder in kinds.items() if not is_folder]
    if files and all(_TEXT.fullmatch(file) and not _SHARD.fullmatch(file) for file in files):
        return (
            f"{nearby.holds(kinds)}, files of text and no {MANIFEST_NAME}; make a dataset of them with `calm prepare`"
        )
    if _OF_ARTIFACTS & kinds.keys():
        return (
            f"{name} is half-written (its stage did not finish), or another folder is meant: no {MANIFEST_NAME}, it "
            f"{nearby.holds(kinds)}; name another folder, or run its stage again"
        )
    return f"is no artifact: it has no {MANIFEST_NAME}, it {nearby.holds(kinds)}; name another folder"
