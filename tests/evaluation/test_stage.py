"""The evaluation stage on a model of a few steps."""

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import jsonschema
import pytest
import torch

from calm_core.config import DataConfig, EvaluationConfig, TokenizerConfig, resolve_config
from calm_core.data.stage import prepare_data
from calm_core.errors import ArtifactError, CalmError, ConfigError
from calm_core.evaluation import schema, scored
from calm_core.evaluation.comparison import require_same_protocol
from calm_core.evaluation.documents import DocumentScores
from calm_core.evaluation.evaluator import Evaluator
from calm_core.evaluation.schema import SCHEMA, evaluation_schema
from calm_core.evaluation.stage import evaluate, score_documents
from calm_core.models.transformer import Transformer
from calm_core.store.artifact import Artifact, ArtifactWriter
from calm_core.store.facts import AutoencoderFacts, DatasetFacts, EvaluationFacts, TransformerFacts
from calm_core.telemetry.progress import PROGRESS_FILE_VARIABLE, parse
from calm_core.telemetry.stage import Stage
from calm_core.weights.load import load_transformer

Evaluation = Artifact[EvaluationFacts]

CONFIG = EvaluationConfig(samples=3, max_sequences=6, batch_size=4, prompts=("the river",), prompt_tokens=5)


def evaluate_calm(
    dataset_uri: str, model_uris: tuple[str, str], output: Path, config: EvaluationConfig = CONFIG
) -> Evaluation:
    autoencoder, calm = model_uris
    return evaluate(config, dataset_uri, calm, str(output), seed=0, autoencoder_uri=autoencoder)


@pytest.fixture(scope="module")
def evaluation(dataset_uri: str, model_uris: tuple[str, str], tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluate_calm(dataset_uri, model_uris, tmp_path_factory.mktemp("evaluation"))


@pytest.fixture(scope="module")
def baseline(dataset_uri: str, transformer_uri: str, tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return evaluate(CONFIG, dataset_uri, transformer_uri, str(tmp_path_factory.mktemp("baseline")), seed=0)


def test_a_finished_evaluation_can_be_run_again_and_is_not_lost_to_another_one(
    baseline: Evaluation, dataset_uri: str, transformer_uri: str, model_uris: tuple[str, str]
) -> None:
    assert evaluate(CONFIG, dataset_uri, transformer_uri, baseline.uri, seed=0).digest == baseline.digest
    with pytest.raises(ArtifactError, match="holds another evaluation, of other settings or inputs"):
        evaluate(CONFIG, dataset_uri, transformer_uri, baseline.uri, seed=1)
    with pytest.raises(ArtifactError, match="holds another evaluation, of other settings or inputs"):
        evaluate_calm(dataset_uri, model_uris, Path(baseline.uri))
    assert Artifact(baseline.uri, EvaluationFacts).digest == baseline.digest


def test_inputs_that_do_not_belong_together_are_refused_before_the_stage_begins(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PROGRESS_FILE_VARIABLE, str(tmp_path / "progress.jsonl"))
    with pytest.raises(ConfigError, match="leaves no position to score in sequences of 32 tokens"):
        evaluate_calm(dataset_uri, model_uris, tmp_path / "out", EvaluationConfig(position_interval=1000))
    with ArtifactWriter(str(tmp_path / "other"), AutoencoderFacts, {}, {}) as writer:
        writer.facts = Artifact(model_uris[0], AutoencoderFacts).facts
    with pytest.raises(ArtifactError, match="was trained on another autoencoder"):
        evaluate_calm(dataset_uri, (str(tmp_path / "other"), model_uris[1]), tmp_path / "out")
    events = [parse(line) for line in (tmp_path / "progress.jsonl").read_text().splitlines()]
    assert [event.state for event in events] == ["failed", "failed"]


def test_every_number_has_its_interval_and_its_protocol(evaluation: Evaluation) -> None:
    facts = evaluation.facts
    for scores in (facts, facts.references.untrained, facts.references.unigram):
        assert list(scores.brier) == ["1", "2", "3", "4"]
        for score in [scores.brierlm, *scores.brier.values()]:
            assert score.low <= score.value <= score.high
    protocol = facts.protocol
    assert protocol["samples"] == 3 and protocol["sequences"] == 6 and protocol["sequence_length"] == 32
    assert int(protocol["positions"]) <= 6 * 7  # 8 chunks a sequence, the first is never predicted
    assert protocol["dataset"] == evaluation.manifest.parents["dataset"]


def test_the_numbers_can_be_read_as_json_too(evaluation: Evaluation, baseline: Evaluation) -> None:
    """The same ones as in the manifest, as the schema says; those of an autoencoder only where there is one."""
    common = {"brier", "brierlm", "inference_flops_per_token", "language_model", "model", "protocol", "references"}
    common |= {"samples", "written"}
    for artifact, names in ((evaluation, {"autoencoder", "autoencoder_accuracy"}), (baseline, set[str]())):
        numbers = artifact.read_json("evaluation.json")
        assert numbers == artifact.manifest.results
        assert numbers.keys() == common | names
        assert numbers["brierlm"].keys() == {"value", "low", "high"}
        jsonschema.validate(numbers, evaluation_schema(), cls=jsonschema.Draft202012Validator)
        three = {n: term for n, term in numbers["brier"].items() if n != "4"}
        for key, value in (
            *(("brierlm", {"value": "high"}), ("brierlm", {"value": 1, "low": 0}), ("unheard", 1), ("samples", None)),
            *(("brier", three), ("brier", three | {"5": {"value": 1}})),
        ):
            with pytest.raises(jsonschema.ValidationError):
                jsonschema.validate(numbers | {key: value}, evaluation_schema())


def test_the_published_schema_is_that_of_the_facts() -> None:
    """`make compile` writes it."""
    assert SCHEMA.read_text(encoding="utf-8") == schema.text()
    jsonschema.Draft202012Validator.check_schema(evaluation_schema())


def test_the_untrained_reference_does_not_depend_on_what_was_built_before(
    baseline: Evaluation, dataset_uri: str, transformer_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the baseline: it starts with weights that show in its score, CALM's head with zeros."""

    def build_another_first(artifact: Artifact[TransformerFacts]) -> Transformer:
        torch.nn.Linear(64, 64)  # draws its weights from the same stream of random numbers
        return load_transformer(artifact)

    monkeypatch.setattr(scored, "load_transformer", build_another_first)
    again = evaluate(CONFIG, dataset_uri, transformer_uri, str(tmp_path / "again"), seed=0)
    assert again.facts.references.untrained == baseline.facts.references.untrained


def test_scores_and_report_repeat_byte_for_byte_in_any_batch_size(
    evaluation: Evaluation, dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    again = evaluate_calm(dataset_uri, model_uris, tmp_path / "again")
    assert again.digest == evaluation.digest
    assert again.read("report.html") == evaluation.read("report.html")
    smaller = evaluate_calm(dataset_uri, model_uris, tmp_path / "smaller", CONFIG.model_copy(update={"batch_size": 1}))
    ours, theirs = (one.facts.part("results") for one in (smaller, evaluation))
    # The only numbers that are no counts, sums of counts, or shares: matrix products of other shapes round otherwise.
    found, expected = (one["language_model"].pop("distances") for one in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-5)
    found, expected = (one["language_model"].pop("perplexity") for one in (ours, theirs))
    assert found == pytest.approx(expected, rel=1e-5)
    stds, expected = (one["autoencoder"].pop("latent_std") for one in (ours, theirs))
    assert stds == pytest.approx(expected, rel=1e-3)
    assert ours == theirs


def test_the_report_needs_nothing_from_outside(evaluation: Evaluation) -> None:
    html = evaluation.read("report.html").decode()
    assert html.count("<svg ") == html.count('<svg role="img" aria-label="') > 3
    assert not re.findall(r'(?:src|href)="(?!#)', html)
    assert "the river" in html


def test_a_model_of_another_autoencoder_is_refused(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(model_uris[0], other)
    original = Artifact(str(other), AutoencoderFacts)
    files = {entry.path: original.read(entry.path) for entry in original.manifest.files}
    again = ArtifactWriter(
        str(other), AutoencoderFacts, original.manifest.config, {"dataset": "another"}, overwrite=True
    )
    with again as writer:
        writer.facts = original.facts
        for path, data in files.items():
            writer.write(path, data)
    with pytest.raises(ArtifactError, match="was trained on another autoencoder"):
        evaluate_calm(dataset_uri, (str(other), model_uris[1]), tmp_path / "out")


def test_the_baseline_is_scored_at_the_same_positions_and_can_be_compared(
    evaluation: Evaluation, baseline: Evaluation
) -> None:
    require_same_protocol([evaluation, baseline])
    assert baseline.facts.references.unigram == evaluation.facts.references.unigram


def test_scores_of_different_protocols_are_not_compared(
    evaluation: Evaluation, dataset_uri: str, transformer_uri: str, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"position_interval": 1, "confidence": 0.954})
    other = evaluate(config, dataset_uri, transformer_uri, str(tmp_path / "other"), seed=0)
    with pytest.raises(CalmError, match="position_interval 4 against 1"):
        require_same_protocol([evaluation, other])
    assert other.facts.protocol["interval"] == "95.4% bootstrap over documents"  # which is not 95%


def test_one_sequence_gives_numbers_without_intervals_wherever_they_are_shown(
    dataset_uri: str, transformer_uri: str, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"max_sequences": 1})
    evaluation = evaluate(config, dataset_uri, transformer_uri, str(tmp_path / "out"), seed=0)
    for scores in (evaluation.facts, evaluation.facts.references.unigram):
        assert {(score.low, score.high) for score in [scores.brierlm, *scores.brier.values()]} == {(None, None)}
    assert evaluation.read_json("evaluation.json")["brierlm"].keys() == {"value"}
    assert evaluation.read("report.html").decode().count("<td>[unknown]</td>") == 5
    assert evaluation.facts.brierlm.interval() == "[unknown]"


def test_text_in_which_no_position_counts_is_refused_before_it_is_scored(
    transformer_uri: str, dataset_uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of documents of three tokens, each at the beginning of eight."""
    source = tmp_path / "short.jsonl"
    source.write_text("".join(json.dumps({"text": f"{a}{b}"}) + "\n" for a in "abcdefgh" for b in "stuvwxyz"))
    data = DataConfig(sources=(str(source),), sequence_length=32, document_alignment=8, validation_fraction=0.3)
    same_tokens = TokenizerConfig(source=f"{dataset_uri}/tokenizer.json")
    short = prepare_data(data, same_tokens, str(tmp_path / "dataset")).uri
    monkeypatch.setattr(Evaluator, "score", lambda *_: pytest.fail("it was scored"))
    with pytest.raises(CalmError, match=r"none of the first \d+ of \d+ held-out sequences has a position"):
        evaluate(CONFIG, short, transformer_uri, str(tmp_path / "out"), seed=0)
    assert not (tmp_path / "out").exists()


def test_a_score_of_nothing_from_an_earlier_version_is_not_compared(evaluation: Evaluation, tmp_path: Path) -> None:
    with ArtifactWriter(str(tmp_path / "old"), EvaluationFacts, {}, {"dataset": "another"}) as writer:
        writer.facts = evaluation.facts.model_copy(update={"protocol": evaluation.facts.protocol | {"positions": 0}})
    old = Artifact(str(tmp_path / "old"), EvaluationFacts)
    with pytest.raises(CalmError, match="no position counted"):
        require_same_protocol([old])


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["evaluation.position_interval=6"], r"evaluation.position_interval \(6\) must be a multiple of K \(4\)"),
        (["evaluation.position_interval=512"], r"leaves no position to score in sequences of 512 tokens"),
        (["data.sequence_length=16", "data.document_alignment=8", "autoencoder.model.chunk_size=8"], ""),
        (
            ["data.sequence_length=4", "data.document_alignment=2", "autoencoder.model.chunk_size=2"],
            "leaves no position",
        ),
    ],
)
def test_settings_that_leave_nothing_to_score_are_refused_before_the_training(
    overrides: list[str], message: str
) -> None:
    settings = ["data.sequence_length=512", *overrides]
    if not message:
        resolve_config({}, settings)
        return
    with pytest.raises(ConfigError, match=message):
        resolve_config({}, settings)


def test_a_score_of_before_is_one_of_our_packing(evaluation: Evaluation) -> None:
    """Its protocol does not say so: there was no other."""

    def with_protocol(**changes: str) -> Evaluation:
        protocol = {k: v for k, v in evaluation.facts.protocol.items() if k not in ("packing", "start_of_text")}
        facts = evaluation.facts.model_copy(update={"protocol": protocol | changes})
        return cast(Evaluation, SimpleNamespace(uri="old", facts=facts))

    require_same_protocol([evaluation, with_protocol()])
    with pytest.raises(CalmError, match="packing contiguous against documents"):
        require_same_protocol([with_protocol(packing="contiguous"), with_protocol()])


def test_chunks_that_would_straddle_packed_documents_are_refused(
    dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path
) -> None:
    data = Artifact(dataset_uri, DatasetFacts)
    with ArtifactWriter(str(tmp_path / "data"), DatasetFacts, data.manifest.config, data.manifest.parents) as writer:
        writer.copy(data, {entry.path: entry.path for entry in data.manifest.files})
        writer.facts = data.facts.model_copy(update={"document_alignment": 2})
    with pytest.raises(CalmError, match="begin on multiples of 2 tokens, which is no multiple of the chunk size 4"):
        evaluate_calm(str(tmp_path / "data"), model_uris, tmp_path / "out")


def test_positions_inside_a_chunk_are_refused(dataset_uri: str, model_uris: tuple[str, str], tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"position_interval": 6})
    with pytest.raises(CalmError, match=r"position_interval \(6\) must be a multiple of K \(4\)"):
        evaluate_calm(dataset_uri, model_uris, tmp_path / "out", config)


def test_an_evaluation_says_when_it_was_made_and_one_of_earlier_code_does_not(
    evaluation: Evaluation, tmp_path: Path
) -> None:
    """The time takes no part in the digest."""
    manifest = evaluation.manifest
    assert datetime.fromisoformat(manifest.timings["evaluated"]).tzinfo is UTC
    earlier = {name: value for name, value in manifest.timings.items() if name != "evaluated"}
    without = manifest.model_copy(update={"timings": earlier})
    assert without.digest == manifest.digest
    without = without.model_copy(update={"schema_version": 2})
    without = without.model_copy(update={"checksum": without.own_checksum})
    (tmp_path / "manifest.json").write_text(without.model_dump_json(exclude_unset=True))
    old = Artifact(str(tmp_path), EvaluationFacts)
    assert old.facts.evaluated == "" and old.facts.brierlm == evaluation.facts.brierlm


def test_without_prompts_the_model_continues_held_out_text_of_the_data_set(
    dataset_uri: str, transformer_uri: str, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(update={"prompts": None})
    facts = evaluate(config, dataset_uri, transformer_uri, str(tmp_path / "out"), seed=0).facts
    held_out = "".join(
        json.loads(line)["text"] + "\n" for line in Path(dataset_uri, "../texts.jsonl").read_text().splitlines()
    )
    assert len(facts.samples) == 3
    assert all(f"\n{sample.prompt} " in f"\n{held_out}" and sample.text for sample in facts.samples)


def test_another_model_is_scored_as_an_evaluation_was(
    evaluation: Evaluation, baseline: Evaluation, dataset_uri: str, model_uris: tuple[str, str], transformer_uri: str
) -> None:
    """As the gate does it with the champion: the same numbers that an evaluation of its own has."""
    with Stage("register", {}) as stage:
        scores = score_documents(transformer_uri, dataset_uri, evaluation, stage)
        again = score_documents(model_uris[1], dataset_uri, evaluation, stage, autoencoder_uri=model_uris[0])
    for found, own in ((scores, baseline), (again, evaluation)):
        expected = DocumentScores.read(own)
        assert found.documents_D.tolist() == expected.documents_D.tolist()
        assert (found.sums_DT == expected.sums_DT).all() and (found.counts_D == expected.counts_D).all()


@pytest.mark.parametrize(
    ("settings", "protocol", "told"),
    [
        ({"seed": None}, {}, "its settings are not understood"),
        ({"samples": "many"}, {}, "its settings are not understood"),
        ({}, {"dataset": "0" * 64}, "is not the dataset of the evaluation"),
        ({}, {"samples": 4}, "cannot be scored by the protocol of .*: samples 4 against 3"),
        ({}, {"packing": "contiguous"}, "packing contiguous against documents"),
    ],
)
def test_what_cannot_be_scored_as_an_evaluation_was_is_refused(
    settings: dict[str, Any],
    protocol: dict[str, Any],
    told: str,
    evaluation: Evaluation,
    dataset_uri: str,
    transformer_uri: str,
    tmp_path: Path,
) -> None:
    config = {name: value for name, value in (evaluation.manifest.config | settings).items() if value is not None}
    with ArtifactWriter(str(tmp_path / "like"), EvaluationFacts, config, evaluation.manifest.parents) as writer:
        writer.facts = evaluation.facts.model_copy(update={"protocol": evaluation.facts.protocol | protocol})
    like = Artifact(str(tmp_path / "like"), EvaluationFacts)
    with Stage("register", {}) as stage, pytest.raises(CalmError, match=told):
        score_documents(transformer_uri, dataset_uri, like, stage)


def test_texts_are_written_at_each_temperature_and_the_shown_ones_are_among_them(
    dataset_uri: str, transformer_uri: str, tmp_path: Path
) -> None:
    config = CONFIG.model_copy(
        update={"prompts": ("the river", "a small town"), "temperatures": (1.0, 0.25), "texts_per_prompt": 2}
    )
    facts = evaluate(config, dataset_uri, transformer_uri, str(tmp_path / "out"), seed=3).facts
    assert [one.temperature for one in facts.written] == [0.25, 0.5, 1.0]
    for one in facts.written:
        assert [text.prompt for text in one.texts] == ["the river", "a small town"] * 2
    assert facts.samples == facts.written[1].texts[:2]
    # The seed of each is its own: what is written for a prompt does not depend on how many texts there are.
    alone = config.model_copy(update={"texts_per_prompt": 1, "temperatures": ()})
    facts_alone = evaluate(alone, dataset_uri, transformer_uri, str(tmp_path / "alone"), seed=3).facts
    assert facts_alone.samples == facts.samples and len(facts_alone.written) == 1
    assert facts.speed is not None and facts.speed.tokens_per_second > 0
    assert set(facts.costs) == {"transformer"}


def test_an_evaluation_of_the_third_schema_version_is_read(evaluation: Evaluation, tmp_path: Path) -> None:
    """It had BrierLM, an accuracy and texts; and its protocol is another, since it drew sequences."""
    manifest = evaluation.manifest
    known = {"model", "autoencoder_accuracy", "protocol", "references", "samples", "brier", "brierlm"}
    results = {name: value for name, value in manifest.results.items() if name in known}
    results["protocol"] = results["protocol"] | {"interval": "95% bootstrap over sequences"}
    earlier = manifest.model_copy(update={"schema_version": 3, "results": results, "timings": {}})
    earlier = earlier.model_copy(update={"checksum": earlier.own_checksum})
    (tmp_path / "manifest.json").write_text(earlier.model_dump_json(exclude_unset=True))
    old: Evaluation = Artifact(str(tmp_path), EvaluationFacts)
    assert old.facts.brierlm == evaluation.facts.brierlm and old.facts.language_model is None
    with pytest.raises(CalmError, match="interval 95% bootstrap over sequences against 95% bootstrap over documents"):
        require_same_protocol([old, evaluation])
