"""Datasets that are packed as the public code does it, from their preparing to the models that are trained on them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers

from calm_core.config import DataConfig, EvaluationConfig, TokenizerConfig, TransformerConfig, resolve_config
from calm_core.data.mixture import mix_datasets
from calm_core.data.reading.dataset import TokenDataset
from calm_core.data.stage import prepare_data
from calm_core.errors import CalmError, ConfigError, SourceError
from calm_core.evaluation.comparison import require_same_protocol
from calm_core.evaluation.stage import evaluate
from calm_core.registry.load import load_generator
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import DatasetFacts, EvaluationFacts, TransformerFacts
from calm_core.training.stage import train
from tests.conftest import sentences

DOCUMENTS = list(dict.fromkeys(sentences(seed, 1 + seed % 5) for seed in range(60)))
PUBLIC = {"packing": "contiguous", "start_of_text": True}
T = 32


def prepare(folder: Path, *, tokenizer: str = "", **settings: Any) -> Artifact[DatasetFacts]:
    source = folder / "texts.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in DOCUMENTS))
    values = {"sources": [str(source)], "sequence_length": T, "rows_per_group": 4, "rows_per_shard": 8, "partitions": 1}
    data = DataConfig.model_validate({**values, "validation_fraction": 0.3, **settings})
    return prepare_data(data, TokenizerConfig(vocab_size=280, source=tokenizer), str(folder / "dataset"))


@pytest.fixture(scope="module")
def public(tmp_path_factory: pytest.TempPathFactory) -> Artifact[DatasetFacts]:
    return prepare(tmp_path_factory.mktemp("public"), **PUBLIC)


def plain_sequences(dataset: Artifact[DatasetFacts], texts: list[str]) -> list[list[int]]:
    """The public code's: each text after BOS, all in a row, cut into blocks; what is left over is dropped."""
    tokenizer = TokenDataset(dataset.uri, "train").tokenizer
    stream = [token for text in texts for token in [dataset.facts.bos_id, *tokenizer.encode(text)]]
    return [stream[i : i + T] for i in range(0, len(stream) - T + 1, T)]


def test_a_test_set_holds_the_sequences_that_the_public_code_scores(
    public: Artifact[DatasetFacts], tmp_path: Path
) -> None:
    """All of it is held out; the tokenizer is the model's, and says itself which token begins a text."""
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(public.read("tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"bos_token": {"content": "<|startoftext|>"}}))
    held_out = prepare(tmp_path, tokenizer=str(folder), validation_fraction=1, **PUBLIC)
    expected = plain_sequences(held_out, DOCUMENTS)
    dataset = TokenDataset(held_out.uri, "validation")
    assert dataset.rows(np.arange(dataset.num_sequences)).tolist() == expected
    counts = held_out.facts.splits["validation"]
    assert (counts.padding, counts.tokens) == (0, len(expected) * T)
    spelled = sum(1 + len(dataset.tokenizer.encode(text)) for text in DOCUMENTS)
    assert counts.left_out == spelled - counts.tokens < T
    assert held_out.facts.splits["train"].sequences == 0
    with pytest.raises(CalmError, match="has no training text, all of it is held out"):
        train(TransformerConfig(), held_out.uri, str(tmp_path / "out"), seed=0, checkpoint_root=str(tmp_path / "c"))


def test_a_contiguous_dataset_is_extended_with_its_own_settings(public: Artifact[DatasetFacts], tmp_path: Path) -> None:
    sources = []
    for number, texts in enumerate((DOCUMENTS[:40], DOCUMENTS[40:])):
        sources.append(str(tmp_path / f"{number}.jsonl"))
        Path(sources[-1]).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    values = {"sequence_length": T, "rows_per_group": 4, "rows_per_shard": 8, "partitions": 1, **PUBLIC}
    values["validation_fraction"] = 0.3
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_bytes(public.read("tokenizer.json"))
    tokenizer = TokenizerConfig(source=str(folder))
    first = DataConfig.model_validate(values | {"sources": sources[:1]})
    base = prepare_data(first, tokenizer, str(tmp_path / "base"))
    both = DataConfig.model_validate(values | {"sources": sources, "extends": base.uri})
    grown = prepare_data(both, tokenizer, str(tmp_path / "grown"))
    assert grown.facts.documents_out == len(DOCUMENTS) > base.facts.documents_out
    assert (grown.facts.packing, grown.facts.document_alignment) == ("contiguous", 1)


def test_unknown_tokens_of_what_fills_no_sequence_are_counted_too(tmp_path: Path) -> None:
    """Partitions so small that more tokens are unknown than there are in sequences."""
    vocabulary = {"[UNK]": 0, "<pad>": 1, "</s>": 2, "<s>": 3, "river": 4}
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    backend.add_special_tokens(["<pad>", "</s>", "<s>"])
    backend.save(str(tmp_path / "tokenizer.json"))
    names = {"pad_token": "<pad>", "eos_token": "</s>", "bos_token": "<s>", "unk_token": "[UNK]"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    source = tmp_path / "short.jsonl"
    source.write_text("".join(json.dumps({"text": f"unheard of number {i}"}) + "\n" for i in range(40)))
    data = {"sources": [str(source)], "sequence_length": T, "rows_per_group": 4, "rows_per_shard": 8, "partitions": 2}
    config = DataConfig.model_validate({**data, **PUBLIC, "validation_fraction": 0.5})
    facts = prepare_data(config, TokenizerConfig(source=str(tmp_path)), str(tmp_path / "dataset")).facts
    assert facts.unknown_tokens == 160 > facts.tokens


def test_packing_is_part_of_what_a_dataset_is(public: Artifact[DatasetFacts], tmp_path: Path) -> None:
    facts = public.facts
    assert (facts.packing, facts.document_alignment) == ("contiguous", 1)
    assert facts.bos_id not in (None, facts.eos_id, facts.pad_id)
    ours = prepare(tmp_path)
    assert (ours.facts.packing, ours.facts.bos_id) == ("documents", None)
    with pytest.raises(ConfigError, match="has another"):
        mix_datasets({public.uri: 1, ours.uri: 1}, str(tmp_path / "mixture"))
    with pytest.raises(ConfigError, match=r"data\.packing: the dataset .* has contiguous, not documents"):
        prepare(tmp_path, extends=public.uri)


def test_a_dataset_of_before_has_our_packing(public: Artifact[DatasetFacts]) -> None:
    old = {name: value for name, value in public.facts.part("results").items() if name not in ("packing", "bos_id")}
    facts = DatasetFacts.read({"results": old})
    assert (facts.packing, facts.bos_id) == ("documents", None)


def test_a_split_that_fills_no_sequence_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"the train split fills no sequence: its \d+ documents have \d+ tokens"):
        prepare(tmp_path, sequence_length=4096, validation_fraction=0.01, **PUBLIC)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (["data.packing=contiguous"], "packing contiguous needs start_of_text=true"),
        (["tokenizer.bos_token=<s>"], r"tokenizer\.bos_token \(<s>\) begins documents with data\.start_of_text=true"),
        (["data.validation_fraction=1"], "leaves no text to learn a tokenizer from"),
        (
            ["data.packing=contiguous", "data.start_of_text=true", "autoencoder.model.chunk_size=3"],
            r"data\.sequence_length \(512\) must be a multiple of autoencoder\.model\.chunk_size \(3\)",
        ),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(settings: list[str], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        resolve_config({}, settings)


def test_an_alignment_that_does_not_apply_does_not_refuse() -> None:
    settings = ["data.packing=contiguous", "data.start_of_text=true", "data.document_alignment=3"]
    assert resolve_config({}, settings).data.packing == "contiguous"


def test_a_model_remembers_the_packing_that_it_was_trained_on(public: Artifact[DatasetFacts], tmp_path: Path) -> None:
    """Its text begins with BOS, its score says so, and is not compared with one of the other packing."""
    shape = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    training = {"steps": 1, "warmup_steps": 0, "global_batch_size": 2, "micro_batch_size": 2}
    protocol = EvaluationConfig(samples=2, max_sequences=2, prompts=("the",), prompt_tokens=4, bootstrap_resamples=100)
    scores = []
    for name, dataset in {"public": public, "ours": prepare(tmp_path)}.items():
        model = train(
            TransformerConfig.model_validate({**training, "model": shape}),
            dataset.uri,
            str(tmp_path / name),
            seed=0,
            checkpoint_root=str(tmp_path / "checkpoints"),
        )
        facts = Artifact(model.uri, TransformerFacts).facts
        assert (facts.packing, facts.bos_id) == (dataset.facts.packing, dataset.facts.bos_id)
        generator = load_generator(model.uri)
        assert (generator.packing, generator.tokenizer.bos_id) == (facts.packing, facts.bos_id)
        score = evaluate(protocol, dataset.uri, model.uri, str(tmp_path / f"{name}-score"), seed=0)
        scores.append(Artifact(score.uri, EvaluationFacts))
        start = "none" if facts.bos_id is None else facts.bos_id
        assert (scores[-1].facts.protocol["packing"], scores[-1].facts.protocol["start_of_text"]) == (
            facts.packing,
            start,
        )
    with pytest.raises(CalmError, match=r"packing contiguous against documents; .*start_of_text 2 against none"):
        require_same_protocol(scores)


def test_a_tokenizer_without_that_token_is_refused(public: Artifact[DatasetFacts], tmp_path: Path) -> None:
    plain = tokenizers.Tokenizer.from_buffer(public.read("tokenizer.json")).to_str()
    (tmp_path / "tokenizer.json").write_text(plain.replace("<|startoftext|>", "<|other|>"))
    with pytest.raises(CalmError, match=r"has no token <\|startoftext\|>; name one with tokenizer\.bos_token"):
        prepare(tmp_path, tokenizer=str(tmp_path / "tokenizer.json"), **PUBLIC)


@pytest.mark.parametrize("partitions", [0, 10**12])
def test_a_dataset_that_lies_about_its_partitions_is_not_extended(
    public: Artifact[DatasetFacts], tmp_path: Path, partitions: int
) -> None:
    with ArtifactWriter(str(tmp_path / "lie"), DatasetFacts, public.manifest.config, public.manifest.parents) as writer:
        writer.copy(public, {entry.path: entry.path for entry in public.manifest.files})
        writer.facts = public.facts.model_copy(update={"partitions": partitions})
    with pytest.raises(CalmError, match=f"{partitions:,} partitions, not 1"):
        prepare(tmp_path, extends=str(tmp_path / "lie"), **PUBLIC)
