"""A registered model as others call it: every form of prompts and of payloads, parameters, and what is refused."""

import json
import os
import re
import shlex
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow.exceptions import MlflowException

from calm_core.config import RegistryConfig
from calm_core.generation.text import Sampling, TextGenerator
from calm_core.models.noise import derive_seed
from calm_core.registry.load import load_generator
from calm_core.registry.served import CalmTextModel
from calm_core.registry.stage import register_model
from tests.mlflow_tables import new_store
from tests.registry.test_consumer import server

PROMPTS = ["the river", "the old port"]
FRAME = pd.DataFrame({"prompt": PROMPTS})
PARAMETERS = {"max_new_tokens": 6, "temperature": 0.5, "seed": 1, "samples": 16}


@pytest.fixture(scope="module")
def model_folder(model_uris: tuple[str, str], evaluation_uri: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The files of a registered model."""
    folder = tmp_path_factory.mktemp("served")
    store = new_store(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)  # where MLflow puts its files
        patch.setenv("MLFLOW_TRACKING_URI", store)
        mlflow.set_tracking_uri(store)
        try:
            registration = register_model(RegistryConfig(), model_uris[1], evaluation_uri, str(folder / "registration"))
            return mlflow.artifacts.download_artifacts(registration.facts.model_uri, dst_path=str(folder / "model"))
        finally:
            mlflow.set_tracking_uri(None)  # type: ignore[arg-type] # unset, or it would count for all tests after these


@pytest.fixture(scope="module")
def model(model_folder: str) -> mlflow.pyfunc.PyFuncModel:
    return mlflow.pyfunc.load_model(model_folder)


@pytest.fixture(scope="module")
def generator(model_uris: tuple[str, str]) -> TextGenerator:
    autoencoder, calm = model_uris
    return load_generator(calm, autoencoder)


@pytest.fixture(scope="module")
def address(model_folder: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Where MLflow serves the model."""
    command = [sys.executable, "-m", "mlflow", "models", "serve", f"--model-uri={model_folder}", "--env-manager=local"]
    programs = str(Path(sys.executable).parent)
    environment = os.environ | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}
    with server(command, environment, tmp_path_factory.mktemp("log") / "log") as where:
        yield where


def expected(generator: TextGenerator, prompts: list[str], **changed: Any) -> list[str]:
    settings = PARAMETERS | changed
    sampling = Sampling(settings["temperature"], samples=settings["samples"])
    return generator.generate(prompts, max_new_tokens=6, sampling=sampling, seed=1, stop=settings.get("stop", ()))


FORMS = {
    "one text": PROMPTS[0],
    "a list": PROMPTS,
    "a tuple": tuple(PROMPTS),
    "a dictionary with a text": {"prompt": PROMPTS[0]},
    "a dictionary with a list": {"prompt": PROMPTS},
    "a dictionary with an array": {"prompt": np.array(PROMPTS)},
    "a list of dictionaries": [{"prompt": prompt} for prompt in PROMPTS],
    "a frame": pd.DataFrame({"prompt": PROMPTS}),
    "a frame of objects": pd.DataFrame({"prompt": PROMPTS}, dtype=object),
    "a frame with another column": pd.DataFrame({"id": [1, 2], "prompt": PROMPTS}),
    "a frame with an index": pd.DataFrame({"prompt": PROMPTS}, index=[7, 7]),
    "a column": pd.Series(PROMPTS),
    "a column with a name": pd.Series(PROMPTS, name="prompt"),
    "the values of a column": pd.Series(PROMPTS).array,
    "an index": pd.Index(PROMPTS),
    "a column of categories": pd.DataFrame({"prompt": PROMPTS}, dtype="category"),
    "an array": np.array(PROMPTS),
    "an array of objects": np.array(PROMPTS, dtype=object),
    "no prompt in a list": [],
    "no prompt under the key": {"prompt": []},
    "no prompt in a frame": pd.DataFrame({"prompt": []}, dtype=object),
    "empty texts": ["", ""],
    "empty texts in a frame": pd.DataFrame({"prompt": ["", ""]}),
}


@pytest.mark.parametrize("form", FORMS)
def test_prompts_come_in_every_form(generator: TextGenerator, form: str) -> None:
    assert CalmTextModel(generator).predict(FORMS[form], PARAMETERS) == expected(generator, prompts_in(form))


COLUMNS = {
    *("a dictionary with a text", "a dictionary with a list", "a dictionary with an array", "a list of dictionaries"),
    *("a frame", "a frame of objects", "a frame with another column", "a frame with an index", "a column with a name"),
    *("no prompt under the key", "no prompt in a frame", "empty texts in a frame"),
}
"""Forms that name the signature's column."""


@pytest.mark.parametrize("form", FORMS)
def test_what_names_the_column_passes_through_mlflow(
    model: mlflow.pyfunc.PyFuncModel, generator: TextGenerator, form: str
) -> None:
    if form in COLUMNS:
        assert model.predict(FORMS[form], params=PARAMETERS) == expected(generator, prompts_in(form))
    else:
        with pytest.raises(MlflowException, match="prompt"):
            model.predict(FORMS[form], params=PARAMETERS)


def prompts_in(form: str) -> list[str]:
    if "empty" in form:
        return ["", ""]
    return PROMPTS[: 0 if form.startswith("no prompt") else 1 if form.endswith("a text") or form == "one text" else 2]


PAYLOADS: dict[str, dict[str, Any]] = {
    "dataframe_split": {"dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in PROMPTS]}},
    "dataframe_records": {"dataframe_records": [{"prompt": prompt} for prompt in PROMPTS]},
    "instances": {"instances": PROMPTS},
    "instances, dictionaries": {"instances": [{"prompt": prompt} for prompt in PROMPTS]},
    "inputs": {"inputs": PROMPTS},
    "inputs, dictionary": {"inputs": {"prompt": PROMPTS}},
    "inputs, dictionaries": {"inputs": [{"prompt": prompt} for prompt in PROMPTS]},
    "inputs, dictionary with one text": {"inputs": {"prompt": PROMPTS[0]}},
    "inputs, none": {"inputs": []},
    "instances, none": {"instances": []},
    "dataframe_split, none": {"dataframe_split": {"columns": ["prompt"], "data": []}},
}


def ask(address: str, body: str | bytes, kind: str = "application/json") -> tuple[int, Any]:
    """The status and answer of a request."""
    data = body if isinstance(body, bytes) else body.encode()
    request = urllib.request.Request(f"{address}/invocations", data, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


@pytest.mark.parametrize("form", PAYLOADS)
def test_every_payload_is_answered(address: str, generator: TextGenerator, form: str) -> None:
    prompts = PROMPTS[: 0 if "none" in form else 1 if "one text" in form else 2]
    texts = expected(generator, prompts)
    assert ask(address, json.dumps(PAYLOADS[form] | {"params": PARAMETERS})) == (200, {"predictions": texts})
    plain = generator.generate(prompts)
    assert ask(address, json.dumps(PAYLOADS[form])) == (200, {"predictions": plain})


def test_csv_is_answered(address: str, generator: TextGenerator) -> None:
    for table in ("prompt\nthe river\nthe old port\n", pd.DataFrame({"prompt": PROMPTS}).to_csv()):
        assert ask(address, table, "text/csv") == (200, {"predictions": generator.generate(PROMPTS)})


def test_parquet_is_answered(address: str, generator: TextGenerator) -> None:
    table = pd.DataFrame({"prompt": PROMPTS}).to_parquet()
    answer = ask(address, table, "application/vnd.apache.parquet")
    assert answer == (200, {"predictions": generator.generate(PROMPTS)})


def test_requests_at_the_same_time_do_not_meet(address: str, generator: TextGenerator) -> None:
    seeds = [*range(6)]
    bodies = [json.dumps({"inputs": PROMPTS, "params": {"max_new_tokens": 8, "seed": seed}}) for seed in seeds]
    with ThreadPoolExecutor(len(bodies)) as threads:
        answers = [answer["predictions"] for _, answer in threads.map(partial(ask, address), bodies)]
    assert answers == [generator.generate(PROMPTS, max_new_tokens=8, seed=seed) for seed in seeds]


def test_a_text_without_its_column_is_refused_by_mlflow(address: str) -> None:
    status, answer = ask(address, json.dumps({"inputs": PROMPTS[0]}))
    assert status == 400 and "missing inputs ['prompt']" in answer["message"]


@pytest.mark.parametrize("prompt", [PROMPTS[0], PROMPTS])
def test_prompt_and_parameters_side_by_side(address: str, generator: TextGenerator, prompt: str | list[str]) -> None:
    """MLflow's form for language models; its answer is the list alone."""
    texts = expected(generator, [prompt] if isinstance(prompt, str) else prompt)
    assert ask(address, json.dumps({"prompt": prompt} | PARAMETERS)) == (200, texts)


def blocks(language: str) -> list[str]:
    """What docs/serving.md shows in a language."""
    page = (Path(__file__).parents[2] / "docs/serving.md").read_text()
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.DOTALL | re.MULTILINE)


def test_documented_requests_are_answered_alike(address: str) -> None:
    """Each curl of the page; CSV has no place for parameters, so its texts are longer."""
    commands = re.findall(r"curl -s localhost:5001/invocations (.*?)\n(?=curl|$)", "".join(blocks("sh")), re.DOTALL)
    answers = []
    for words in map(shlex.split, commands):
        body = words[words.index("-d") + 1] if "-d" in words else "prompt\nThe climate of\nThe economy\n"
        status, answer = ask(address, body, words[words.index("-H") + 1].removeprefix("Content-Type: "))
        assert status == 200
        answers.append(answer["predictions"] if isinstance(answer, dict) else answer)
    assert len(answers) == 8
    assert all(answer == answers[0] for answer in answers[:-1])
    assert len(answers[-1]) == 2


def test_the_documented_programs_run(
    model_folder: str, generator: TextGenerator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{Path(model_folder).parent}/mlflow.db")
    monkeypatch.setenv("MLFLOW_ALLOW_PICKLE_DESERIALIZATION", "false")
    pd.DataFrame({"id": [7, 8], "prompt": PROMPTS}).to_csv("prompts.csv", index=False)
    calls: dict[str, Any] = {}
    batch: dict[str, Any] = {}
    safe: dict[str, Any] = {}
    for program, names in zip(blocks("python"), (calls, batch, safe), strict=True):
        exec(program, names)
    texts = generator.generate(["The climate of"], max_new_tokens=16, sampling=Sampling(0.5), seed=1)
    assert calls["model"].predict({"prompt": "The climate of"}, params=calls["settings"]) == texts
    assert list(batch["rows"]["text"]) == generator.generate(PROMPTS, max_new_tokens=16, seed=1)
    assert list(batch["rows"]["id"]) == [7, 8]
    assert safe["texts"] == generator.generate(["The climate of", "The economy"], max_new_tokens=16, seed=1)


BAD_PROMPTS: dict[str, tuple[object, str]] = {
    "null": ([None], "prompt 1: is null or NaN, and not a text"),
    "null among texts": (["the", None], "prompt 2: is null or NaN, and not a text"),
    "a number": ([5], "prompt 1: is the number 5, and not a text"),
    "a fraction": (["the", 1.5], "prompt 2: is the number 1.5, and not a text"),
    "NaN": ([float("nan")], "prompt 1: is null or NaN, and not a text"),
    "true": ([True], "prompt 1: is true, and not a text"),
    "a list": (["the", ["old"]], "prompt 2: is a list, and not a text"),
    "a dictionary": (["the", {"text": "x"}], "'text': unknown; beside prompt there are the parameters max_new_tokens"),
    "half a character": (["the", "x\ud800"], "prompt 2: holds half a character (\\ud800 at 1)"),
    "NUL": (["a\0b"], "prompt 1: holds a NUL character (at 1); take it out"),
}
BAD_FORMS: dict[str, tuple[object, str]] = {
    "nothing": (None, "prompt 1: is null or NaN, and not a text"),
    "bytes": (b"the river", "prompt 1: is bytes, and not a text"),
    "bytes in a list": ([b"the river"], "prompt 1: is bytes, and not a text"),
    "an array of bytes": (np.array([b"the"]), "prompt 1: is bytes, and not a text"),
    "a number": (5, "prompt 1: is the number 5, and not a text"),
    "numpy's truth": ([np.bool_(True)], "prompt 1: is true, and not a text"),
    "numpy's number": ([np.float32(0.5)], "prompt 1: is the number 0.5, and not a text"),
    "numbers": (np.array([1, 2]), "prompt 1: is the number 1, and not a text"),
    "an array of arrays": (np.array([["the"], ["old"]]), "prompt 1: is a list, and not a text"),
    "missing in a column": (pd.Series(["the", None]), "prompt 2: is null or NaN, and not a text"),
    "missing in an array": (pd.array(["the", None], dtype="string"), "prompt 2: is null or NaN, and not a text"),
    "missing in a list": (["the", pd.NA], "prompt 2: is null or NaN, and not a text"),
    "missing in a frame": (pd.DataFrame({"prompt": ["the", pd.NA]}), "prompt 2: is null or NaN, and not a text"),
    "lists in a frame": (pd.DataFrame({"prompt": [["a", "b"], ["c"]]}), "prompt 1: is a list, and not a text"),
    "another column": (pd.DataFrame({"text": ["the"]}), "there is no column prompt (columns: 'text')"),
    "no column": (pd.DataFrame(), "there is no column prompt (columns: none)"),
    "a column twice": (pd.DataFrame([["a", "b"]], columns=["prompt"] * 2), "there are several columns prompt"),
    "a parameter as a column": (
        pd.DataFrame({"prompt": ["the"], "temperature": [0.5]}),
        "'temperature': is no column but a parameter; give it in params",
    ),
    "another key": ({"text": "the"}, "'text': unknown; beside prompt there are"),
    "a key too many": ({"prompt": "the", "max_tokens": 3}, "'max_tokens': unknown; beside prompt there are"),
    "no key": ({}, "there is no prompt"),
    "something else": ({1, 2}, "prompt 1: is something else, and not a text"),
}


@pytest.mark.parametrize("name", [*BAD_PROMPTS, *BAD_FORMS])
def test_what_is_no_text_is_refused(generator: TextGenerator, name: str) -> None:
    given, reason = (BAD_PROMPTS | BAD_FORMS)[name]
    refused(CalmTextModel(generator), reason, given)


@pytest.mark.parametrize("name", [name for name in BAD_PROMPTS if name != "half a character"])  # pandas refuses that
def test_what_is_no_text_is_refused_through_mlflow(model: mlflow.pyfunc.PyFuncModel, name: str) -> None:
    prompts, reason = BAD_PROMPTS[name]
    refused(model, reason, pd.DataFrame({"prompt": prompts}, dtype=object))


def refused(model: mlflow.pyfunc.PyFuncModel | CalmTextModel, reason: str, given: object, **params: Any) -> None:
    with pytest.raises(MlflowException) as caught:
        model.predict(given, params=params)
    assert str(caught.value).startswith(reason)
    assert caught.value.error_code == "INVALID_PARAMETER_VALUE"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", BAD_PROMPTS)
def test_a_served_prompt_that_is_no_text_is_refused(address: str, name: str) -> None:
    """By this model, or before by MLflow: a column of numbers alone, half a character."""
    prompts, reason = BAD_PROMPTS[name]
    bodies: list[dict[str, Any]] = [{"prompt": prompts}]
    if name not in ("a dictionary", "half a character"):  # of which pandas makes columns, or nothing
        bodies += [{"dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in prompts]}}]
    for status, answer in map(partial(ask, address), map(json.dumps, bodies)):
        assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
        assert "stack_trace" not in answer
        its_own = ("Incompatible input types for column prompt", "'utf-8' codec can't encode character")
        assert answer["message"].startswith(reason) or any(words in answer["message"] for words in its_own)


@pytest.mark.parametrize("form", ["inputs", "instances"])
def test_mlflow_makes_texts_of_what_stands_in_a_list(address: str, generator: TextGenerator, form: str) -> None:
    answer = ask(address, json.dumps({form: [None, 5]}))
    assert answer == (200, {"predictions": generator.generate(["None", "5"])})


@pytest.mark.parametrize(
    "body",
    [
        "",
        "{",
        "[]",
        '"the"',
        "null",
        "{}",
        '{"inputs": ["the", ["old"]]}',
        '{"dataframe_records": [{"prompt": "\\ud800"}]}',
    ],
)
def test_what_mlflow_cannot_read_is_refused_by_mlflow(address: str, body: str) -> None:
    status, answer = ask(address, body)
    assert status == 400 and answer["message"]
    assert "stack_trace" not in answer


def test_an_unknown_parameter_that_reaches_the_model_is_refused(generator: TextGenerator) -> None:
    """MLflow leaves it out of what a signature knows, and warns; the model itself knows no such thing."""
    with pytest.raises(MlflowException, match=r"^'max_tokens': unknown; beside prompt there are the parameters"):
        CalmTextModel(generator).predict("the", {"max_tokens": 3})


def check_refusal(answered: tuple[int, Any], reason: str) -> None:
    status, answer = answered
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert answer["message"].startswith(reason)
    assert "\n" not in answer["message"]
    assert "stack_trace" not in answer


BAD_PARAMETERS: dict[str, tuple[dict[str, Any], str]] = {
    "temperature 0": ({"temperature": 0}, "temperature must be above 0 and at most 1, not below 0.001 (got 0.0)"),
    "temperature 2": ({"temperature": 2}, "temperature must be above 0"),
    "temperature NaN": ({"temperature": float("nan")}, "temperature must be above 0"),
    "temperature null": ({"temperature": None}, "temperature must be above 0 and at most 1"),
    "no tokens": ({"max_new_tokens": 0}, "max_new_tokens must be a whole number from 1 to 4,096 (got 0)"),
    "less than none": ({"max_new_tokens": -1}, "max_new_tokens must be a whole number from 1 to 4,096 (got -1)"),
    "too many tokens": (
        {"max_new_tokens": 100_000},
        "max_new_tokens must be a whole number from 1 to 4,096 (got 100,000); CALM_MAX_NEW_TOKENS sets this limit",
    ),
    "a seed below 0": ({"seed": -1}, "seed must be a whole number from 0 to 9,223,372,036,854,775,807 (got -1)"),
    "a seed of 100 bits": ({"seed": 10**30}, "seed must be a whole number from 0 to 9,223,372,036,854,775,807 (got 1,"),
    "no sample": ({"samples": 0}, "samples must be a whole number from 1 to 2,000 (got 0)"),
    "too many samples": ({"samples": 10**6}, "samples must be a whole number from 1 to 2,000 (got 1,000,000)"),
    "no such sampler": ({"sampler": "warm"}, "there is no sampler the text 'warm'; there are path, noise-scale, "),
    "samples of another sampler": (
        {"samples": 9, "sampler": "path"},
        "samples: is of the sampler batch, and not of path; leave one of them out",
    ),
    "no text": ({"n": 0}, "n must be a whole number from 1 to 64 (got 0)"),
    "too many texts": ({"n": 1000}, "n must be a whole number from 1 to 64 (got 1,000)"),
    "an empty stop string": ({"stop": [".", ""]}, "a stop string must not be empty"),
    "no stop string": ({"stop": [None]}, "stop string 1: is null or NaN, and not a text"),
    "a long stop string": ({"stop": ["x" * 1001]}, "stop string 1: has 1,001 characters; give at most 1,000"),
    "many stop strings": ({"stop": ["x"] * 65}, "there are 65 stop strings; give at most 64"),
}


@pytest.mark.parametrize("name", BAD_PARAMETERS)
def test_a_parameter_out_of_range_is_refused(model: mlflow.pyfunc.PyFuncModel, address: str, name: str) -> None:
    params, reason = BAD_PARAMETERS[name]
    refused(model, reason, FRAME, **params)
    check_refusal(ask(address, json.dumps({"inputs": PROMPTS, "params": params})), reason)


@pytest.mark.parametrize(
    "params", [{"temperature": "hot"}, {"max_new_tokens": 1.5}, {"max_new_tokens": True}, {"seed": "1"}, {"stop": "."}]
)
def test_a_parameter_of_another_type_is_refused_by_mlflow(address: str, params: dict[str, Any]) -> None:
    """It compares types with the signature before the model is asked; the answer is its own."""
    status, answer = ask(address, json.dumps({"inputs": PROMPTS, "params": params}))
    assert (status, answer["error_code"]) == (400, "INVALID_PARAMETER_VALUE")
    assert next(iter(params)) in answer["message"]
    assert "stack_trace" not in answer


def test_what_a_server_would_work_on_for_too_long_is_refused(address: str) -> None:
    many = {"inputs": ["the"] * 100, "params": {"n": 2, "max_new_tokens": 4096}}
    check_refusal(
        ask(address, json.dumps(many)),
        "100 prompts x n 2 x max_new_tokens 4,096 are 819,200 tokens; one request may ask for 65,536: send several; "
        "CALM_MAX_REQUEST_TOKENS sets this limit where the model runs",
    )
    long = {"inputs": ["the " * 250_001]}
    check_refusal(ask(address, json.dumps(long)), "the prompts hold 1,000,004 characters")


def test_limits_are_set_by_whoever_runs_the_model(
    model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CALM_MAX_NEW_TOKENS", "5")
    assert model.predict(FRAME, params={"max_new_tokens": 5})
    refused(model, "max_new_tokens must be a whole number from 1 to 5 (got 6)", FRAME, max_new_tokens=6)
    monkeypatch.setenv("CALM_MAX_NEW_TOKENS", "many")
    refused(model, "CALM_MAX_NEW_TOKENS must be a whole number from 1 (got 'many')", FRAME)


def test_work_ends_when_the_server_waits_no_longer(
    model: mlflow.pyfunc.PyFuncModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_MLFLOW_IS_IN_SERVING_ENVIRONMENT", "true")
    monkeypatch.setenv("MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", "-1")  # which any work takes longer than
    with pytest.raises(MlflowException, match="not finished within the server's limit") as caught:
        model.predict(FRAME, params={"max_new_tokens": 4096})
    assert caught.value.get_http_status_code() == 504


def test_several_texts_of_a_prompt(model: mlflow.pyfunc.PyFuncModel, generator: TextGenerator) -> None:
    texts = model.predict(FRAME, params=PARAMETERS | {"n": 3})
    assert len(texts) == 6
    assert [texts[0], texts[3]] == model.predict(FRAME, params=PARAMETERS)
    assert len(set(texts)) == 6
    second = generator.generate(
        ["the old port"], max_new_tokens=6, sampling=Sampling(0.5, samples=16), seed=derive_seed(1, "text", 2)
    )
    assert second == [texts[5]]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_equal_prompts_get_equal_texts(model: mlflow.pyfunc.PyFuncModel, temperature: float) -> None:
    params = PARAMETERS | {"temperature": temperature, "max_new_tokens": 24}
    texts = model.predict({"prompt": ["the river", "the", "the river", "a small town"]}, params=params)
    assert texts[0] == texts[2] == model.predict({"prompt": "the river"}, params=params)[0]
    assert len({*texts}) > 1


def test_a_text_ends_before_a_stop_string(model: mlflow.pyfunc.PyFuncModel, generator: TextGenerator) -> None:
    (text,) = model.predict({"prompt": "the river"}, params=PARAMETERS)
    stop = text[len(text) // 2]
    assert model.predict({"prompt": "the river"}, params=PARAMETERS | {"stop": [stop]}) == [text[: text.index(stop)]]


def test_a_sampler_is_chosen_by_name(model: mlflow.pyfunc.PyFuncModel, generator: TextGenerator) -> None:
    params = {"max_new_tokens": 6, "temperature": 0.5, "seed": 1}
    for name in (None, "branch", "batch"):
        texts = generator.generate(PROMPTS, max_new_tokens=6, sampling=Sampling(0.5, sampler=name), seed=1)
        assert model.predict(FRAME, params=params | {"sampler": name}) == texts


def test_more_samples_write_another_text(model: mlflow.pyfunc.PyFuncModel) -> None:
    params = PARAMETERS | {"max_new_tokens": 32}
    assert model.predict({"prompt": "the river"}, params=params) != model.predict(
        {"prompt": "the river"}, params=params | {"samples": 200}
    )


def test_the_signature_tells_texts_and_parameters(model: mlflow.pyfunc.PyFuncModel) -> None:
    signature = model.metadata.signature
    assert signature.inputs.to_dict() == [{"type": "string", "name": "prompt", "required": True}]
    assert signature.outputs.to_dict() == [{"type": "string", "required": True}]
    assert {spec.name: spec.default for spec in model.metadata.get_params_schema()} == {
        "max_new_tokens": 64,
        "temperature": 1.0,
        "seed": 0,
        "stop": [],
        "samples": None,
        "n": 1,
        "sampler": None,
    }
    assert list(model.input_example.columns) == ["prompt"]
