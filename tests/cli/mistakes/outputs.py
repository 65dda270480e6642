"""Mistakes in where results go: places that hold something else, or cannot be written."""

import shutil
from pathlib import Path

from tests.cli.mistakes.frame import Mistake

_TEXT = "A text that is long enough to be kept. " * 20
_TEXTS = {"texts.jsonl": "".join(f'{{{{"text": "{i} {_TEXT}"}}}}\n' for i in range(8))}
_PREPARE = ("prepare", "--source", "texts.jsonl", "--output")
_TRAIN = ("train", "autoencoder", "--dataset", "{dataset}", "--output")
_EVALUATE = ("evaluate", "{calm}", "--autoencoder", "{autoencoder}", "--dataset", "{dataset}", "--output")
_REGISTER = ("register", "{calm}", "--autoencoder", "{autoencoder}", "--evaluation", "{evaluation}", "--output")
_MIX = ("data", "mix", "{dataset}=1", "twin=1", "--output")
_EXPORT = ("export", "{calm}", "--autoencoder", "{autoencoder}", "--output")
_IMPORT = ("import", "public/autoencoder", "--output")
_COMMANDS = {command[0]: command for command in (_PREPARE, _TRAIN, _EVALUATE, _REGISTER, _MIX, _EXPORT)}
_NOTES = {"out/notes.txt": "mine", **_TEXTS}


def _artifact(folder: Path, kind: str) -> str:
    return str(folder.parent / "artifacts" / kind)


def _export(output: str, *, without: str = "") -> object:
    """Arranges an export of the CALM model, less a file."""

    def arranged(folder: Path) -> None:
        from calm_core.weights.huggingface import export_checkpoint

        place, autoencoder = folder / output, _artifact(folder, "autoencoder")
        export_checkpoint(_artifact(folder, "calm"), str(place), autoencoder_uri=autoencoder)
        if without:
            (place / without).unlink()

    return arranged


def _export_of_another(folder: Path) -> None:
    from calm_core.weights.huggingface import export_checkpoint

    export_checkpoint(_artifact(folder, "autoencoder"), str(folder / "out"))


def _twin(folder: Path) -> None:
    """A second dataset to mix, which other commands do not look at."""
    shutil.copytree(_artifact(folder, "dataset"), folder / "twin")


def _mixture_of_other_weights(folder: Path) -> None:
    from calm_core.data.mixture import mix_datasets

    _twin(folder)
    mix_datasets({_artifact(folder, "dataset"): 1, str(folder / "twin"): 2}, str(folder / "out"))


def _dataset_of(settings: str, *, parts: bool = True) -> object:
    """Arranges a dataset of texts.jsonl in `out`."""

    def arranged(folder: Path) -> None:
        from calm_cli.options import configuration
        from calm_core.data.stage import prepare_data

        options = {"data.sources": ["texts.jsonl"]}
        config = configuration("tiny", [settings], options)
        prepare_data(config.data, config.tokenizer, "out")
        if not parts:
            shutil.rmtree("out.parts")

    return arranged


def _copied(kind: str, *, damaged: bool = False, beside: str = "") -> object:
    """Arranges an artifact in `out`."""

    def arranged(folder: Path) -> None:
        shutil.copytree(_artifact(folder, kind), folder / "out")
        if damaged:
            path = folder / "out" / "manifest.json"
            path.write_bytes(path.read_bytes()[:-9])
        if beside:
            (folder / "out" / beside).write_text("mine")

    return arranged


MISTAKES = [
    *(
        Mistake(
            f"{name} into a folder with files{' and --overwrite' * bool(flag)}",
            (*command, "out", *flag),
            ("out: holds other files (notes.txt); name another output, a new or an empty folder",),
            files=_NOTES,
            arrange=_twin,
        )
        for name, command in _COMMANDS.items()
        for flag in ((), ("--overwrite",))
    ),
    *(
        Mistake(
            f"{name} into an artifact of another kind",
            (*command, "{transformer}", "--overwrite"),
            ("transformer: holds an artifact of kind transformer, not ", "; name another output"),
            files=_TEXTS,
            arrange=_twin,
        )
        for name, command in _COMMANDS.items()
    ),
    *(
        Mistake(
            f"{command[0]} into another {kind}",
            (*command, "{" + kind + "}"),
            (
                f"holds another {kind}, of other settings or inputs; name another output, or",
                "replace it with --overwrite",
            ),
            files=_TEXTS,
        )
        for kind, command in (("dataset", _PREPARE), ("autoencoder", _TRAIN), ("evaluation", _EVALUATE))
    ),
    *(
        Mistake(
            f"{name} inside an artifact",
            (*command, "{dataset}/deep/out"),
            ("dataset/deep/out: lies inside the artifact", "dataset; name another output"),
            files=_TEXTS,
            arrange=_twin,
        )
        for name, command in _COMMANDS.items()
    ),
    *(
        Mistake(
            f"output is {name}",
            (*_TRAIN, place),
            (f"{place}: {says}",),
            files={"file": "mine"},
            arrange=lambda folder: (folder / "link").symlink_to("nowhere"),
        )
        for name, place, says in (
            ("a file", "file", "is no folder; name another output"),
            ("below a file", "file/a/b", "cannot be written, {folder}/file is no folder; name another place"),
            ("a device", "/dev/null", "is no folder; name another output"),
            ("below a device", "/dev/null/a", "cannot be written, /dev/null is no folder; name another place"),
            ("a link to nothing", "link", "cannot be written, {folder}/link is a link that leads nowhere; name"),
            (
                "below a link to nothing",
                "link/a",
                "cannot be written, {folder}/link is a link that leads nowhere; name",
            ),
            ("too long a name", "n" * 300, "the name is too long for the disk; name another place"),
            ("where nobody writes", "/proc/out", "cannot be written, /proc may not be written to; name another place"),
        )
    ),
    Mistake("output is no storage", (*_TRAIN, "nope://a/b"), ("nope://a/b: cannot be used",)),
    Mistake("output without a name", (*_TRAIN, ""), ("--output: is empty",), exit_code=2),
    Mistake(
        "prepare over its own dataset with other texts",
        ("prepare", "--source", "more.jsonl", "--output", "out"),
        ("out: holds another dataset, of other settings or inputs",),
        files=_TEXTS | {"more.jsonl": _TEXTS["texts.jsonl"] * 2},
        arrange=_dataset_of("data.partitions=2"),
    ),
    Mistake(
        "prepare over its own dataset with another shape",
        (*_PREPARE, "out", "--set", "data.sequence_length=64"),
        ("out: holds another dataset, of other settings or inputs",),
        files=_TEXTS,
        arrange=_dataset_of("data.partitions=2", parts=False),
    ),
    Mistake(
        "prepare over its own dataset with another tokenizer",
        (*_PREPARE, "out", "--set", "tokenizer.vocab_size=300"),
        ("out: holds another dataset, of other settings or inputs",),
        files=_TEXTS,
        arrange=_dataset_of("data.partitions=2"),
    ),
    Mistake(
        "prepare over the dataset that is extended",
        ("prepare", "--source", "texts.jsonl", "--extends", "{dataset}", "--output", "{dataset}/", "--overwrite"),
        ("is the dataset that is extended",),
        exit_code=2,
        files=_TEXTS,
    ),
    *(
        Mistake(
            f"the parts of a dataset go where {name}",
            (*_PREPARE, "out", "--overwrite"),
            (says, "the parts of the dataset go there; name another output"),
            files=_TEXTS | {path: "mine"},
        )
        for name, path, says in (
            ("a file is", "out.parts", "out.parts: is no folder"),
            ("files are", "out.parts/chapter-1.txt", "out.parts: holds other files (chapter-1.txt)"),
            ("folders of such names are", "out.parts/scan-00001/page.txt", "out.parts: holds other files (scan-00001)"),
            ("a plan is", "out.parts/plan/week.txt", "out.parts: holds other files (plan)"),
        )
    ),
    *(
        Mistake(f"checkpoints {name}", (*_TRAIN, "out", "--checkpoints", place), says, code, files={"file": "mine"})
        for name, place, says, code in (
            ("in the output", "out", ("out and the checkpoints in out/autoencoder-", "give --checkpoints"), 2),
            ("below the output", "out/checkpoints", ("out and the checkpoints in out/checkpoints/autoencoder-",), 2),
            ("in an input", "{dataset}", ("lies inside the artifact",), 1),
            ("below a file", "file", ("cannot be written, {folder}/file is no folder",), 1),
        )
    ),
    Mistake(
        "mix over one of the datasets",
        (*_MIX, "{dataset}", "--overwrite"),
        ("dataset: is an input of what is to be written there; name another output",),
        arrange=_twin,
    ),
    Mistake(
        "mix the same datasets with other weights",
        ("data", "mix", "{dataset}=2", "twin=1", "--output", "out"),
        ("out: holds another mixture, of other settings or inputs", "--overwrite"),
        arrange=_mixture_of_other_weights,
    ),
    Mistake(
        "export over the export of another model",
        (*_EXPORT, "out"),
        ("out: holds another export, of other settings or inputs", "--overwrite"),
        arrange=_export_of_another,
    ),
    Mistake(
        "export over a public checkpoint",
        (*_EXPORT, "out", "--overwrite"),
        ("out: holds other files (autoencoder, config.json, model.safetensors and 3 more)",),
        arrange=_export("out", without="manifest.json"),
    ),
    Mistake(
        "export over an artifact",
        ("export", "{autoencoder}", "--output", "{autoencoder}", "--overwrite"),
        ("autoencoder: is an input of what is to be written there",),
    ),
    Mistake(
        "import over another model",
        (*_IMPORT, "{autoencoder}"),
        ("autoencoder: holds another autoencoder, of other settings or inputs", "--overwrite"),
        arrange=_export("public"),
    ),
    Mistake(
        "import into a folder with files",
        (*_IMPORT, "out", "--overwrite"),
        ("out: holds other files (notes.txt)",),
        files=_NOTES,
        arrange=_export("public"),
    ),
    Mistake(
        "import where one of two places has files",
        ("import", "public", "--output", "out", "--overwrite"),
        ("out/calm: holds other files (notes.txt)",),
        files={"out/calm/notes.txt": "mine"},
        arrange=_export("public"),
    ),
    Mistake(
        "import into the folder that is read",
        ("import", "public", "--output", "public", "--overwrite"),
        ("public/autoencoder: is the folder that is read; name another output",),
        arrange=_export("public"),
    ),
    Mistake(
        "--overwrite with a file beside the artifact's own",
        (*_TRAIN, "out", "--overwrite"),
        ("out: also holds notes.txt, not listed in its manifest.json; move what is yours away",),
        arrange=_copied("autoencoder", beside="notes.txt"),
    ),
    Mistake(
        "a damaged artifact of the same kind",
        (*_TRAIN, "out"),
        ("out/manifest.json: damaged manifest", "name another output"),
        arrange=_copied("autoencoder", damaged=True),
    ),
    Mistake(
        "a half-written artifact of another kind",
        (*_TRAIN, "out", "--overwrite"),
        ("out: holds an artifact of kind calm, not autoencoder; name another output",),
        files={"out/.calm-unfinished": "calm", "out/weights.safetensors": "half"},
    ),
    Mistake(
        "another program's manifest",
        (*_TRAIN, "out", "--overwrite"),
        ("out/manifest.json: ", "name another output"),
        files={"out/manifest.json": '{{"name": "app"}}'},
    ),
    Mistake(
        "an empty manifest beside other files",
        (*_TRAIN, "out", "--overwrite"),
        ("out/manifest.json: damaged manifest", "name another output"),
        files={"out/manifest.json": "", "out/weights.safetensors": "mine"},
    ),
    Mistake(
        "a folder called manifest.json",
        (*_TRAIN, "out", "--overwrite"),
        ("out: holds other files (manifest.json); name another output",),
        files={"out/manifest.json/notes.txt": "mine"},
    ),
]
