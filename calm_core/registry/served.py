"""A registered model as MLflow calls it, on this machine and in its server: prompts and parameters in, texts out.

MLflow checks what the signature tells before the model sees it, and makes a frame of it, with null as text in some
forms. Whoever calls the model without MLflow has all of its forms: plain texts, lists and arrays too. So everything is
checked here.
"""

import math
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import DEADLINE_EXCEEDED, INVALID_PARAMETER_VALUE
from mlflow.types.schema import ColSpec, DataType, ParamSchema, ParamSpec, Schema

from calm_core.errors import CalmError
from calm_core.generation.arguments import (
    described,
    seeds_of,
    stop_strings_of,
    text_of,
    whole_number,
)
from calm_core.generation.sampling import Sampling
from calm_core.generation.text import TextGenerator
from calm_core.models.noise import derive_seed
from calm_core.shown import brief

COLUMN = "prompt"
"""The column, or key, that holds the prompts."""

PARAMETERS = (
    ParamSpec("max_new_tokens", DataType.long, 64),
    ParamSpec("temperature", DataType.double, 1.0),
    ParamSpec("seed", DataType.long, 0),
    ParamSpec("stop", DataType.string, [], (-1,)),
    ParamSpec("samples", DataType.long, None),
    ParamSpec("n", DataType.long, 1),
    ParamSpec("sampler", DataType.string, None),
)
"""What a call may set, and what it is unless set."""

_PARAMETER_NAMES = {spec.name for spec in PARAMETERS}

SIGNATURE = ModelSignature(
    Schema([ColSpec(DataType.string, COLUMN)]), Schema([ColSpec(DataType.string)]), ParamSchema([*PARAMETERS])
)

MAX_SAMPLES = 2_000
MAX_TEXTS = 64
"""Texts for one prompt."""
MAX_REQUEST_CHARACTERS = 1_000_000

_TOKENS_VARIABLE, _TOKENS = "CALM_MAX_NEW_TOKENS", 4_096
_REQUEST_VARIABLE, _REQUEST_TOKENS = "CALM_MAX_REQUEST_TOKENS", 65_536
_SERVING = "_MLFLOW_IS_IN_SERVING_ENVIRONMENT"  # what MLflow's server sets, as "true"
_TIMEOUT, _SECONDS = "MLFLOW_SCORING_SERVER_REQUEST_TIMEOUT", 60  # after which its server answers without the model


class Refused(MlflowException):
    """What MLflow's server answers, with the reason alone as its message."""

    def serialize_as_json(self) -> str:
        self.message = str(self)  # the server has put the whole request before it
        return str(super().serialize_as_json())  # type: ignore[no-untyped-call]  # MLflow's


class CalmTextModel:
    """What `mlflow.pyfunc.load_model` wraps: prompts in, their continuations out."""

    def __init__(self, generator: TextGenerator) -> None:
        self.generator = generator

    def get_raw_model(self) -> TextGenerator:
        """The generator itself, for callers that know it."""
        return self.generator

    def predict(self, model_input: object, params: Mapping[str, Any] | None = None) -> list[str]:
        """The continuations: n of the first prompt, then n of the second one, and so on.

        The first text of a prompt is what it gets with n = 1; seeds of the others are derived from the given one.

        Args:
            model_input: A text, a list or array or column of texts, or a frame or dictionary with the column `prompt`.
            params: As in `PARAMETERS`.

        Raises:
            Refused: Something is no text, unknown or out of range, or the server has given up waiting.
        """
        started = time.monotonic()
        try:
            return self._answer(prompts_of(model_input), params or {}, started)
        except CalmError as error:
            raise Refused(str(error), INVALID_PARAMETER_VALUE) from None

    def _answer(self, prompts: list[str], params: Mapping[str, Any], started: float) -> list[str]:
        if unknown := params.keys() - _PARAMETER_NAMES:
            raise CalmError(_unknown(unknown))
        settings = {spec.name: spec.default for spec in PARAMETERS} | dict(params)
        length = whole_number("max_new_tokens", settings["max_new_tokens"], 1, *_limit(_TOKENS_VARIABLE, _TOKENS))
        samples = settings["samples"]
        if samples is not None:
            samples = whole_number("samples", samples, 1, MAX_SAMPLES)
        number = whole_number("n", settings["n"], 1, MAX_TEXTS)
        (seed,) = seeds_of(settings["seed"], 1)
        seeds = [seed, *(derive_seed(seed, "text", i) for i in range(1, number))]
        sampling = Sampling(settings["temperature"], samples, sampler=settings["sampler"])
        stop = stop_strings_of(settings["stop"])
        deadline = math.inf
        if os.environ.get(_SERVING) == "true":
            _check_request(prompts, number, length)
            deadline = started + float(os.environ.get(_TIMEOUT) or _SECONDS)
        texts = [""] * (len(prompts) * number)
        repeated = [prompt for prompt in prompts for _ in range(number)]
        for i, piece in self.generator.stream(
            repeated, max_new_tokens=length, sampling=sampling, seed=seeds * len(prompts), stop=stop
        ):
            texts[i] += piece
            if time.monotonic() > deadline:
                raise Refused(f"not finished within the server's limit ({_TIMEOUT})", DEADLINE_EXCEEDED)
        return texts


def prompts_of(model_input: object) -> list[str]:
    """The prompts of a call.

    Args:
        model_input: As `CalmTextModel.predict` takes it.

    Raises:
        CalmError: There are none, or one is no text.
    """
    if isinstance(model_input, pd.DataFrame):
        if COLUMN not in model_input.columns:
            raise CalmError(f"there is no column {COLUMN} (columns: {_names(model_input.columns)})")
        _refuse_parameters(model_input.columns)
        values = model_input[COLUMN]
        if isinstance(values, pd.Series) and len(values) == 1:  # MLflow makes one row of a list under the key
            (values,) = values
    elif isinstance(model_input, Mapping):
        values = _prompt_of(model_input)
    else:
        values = model_input
    return [_checked(value, number) for number, value in enumerate(_listed(values), 1)]


def _listed(values: object) -> Iterable[object]:
    """One text, or some."""
    if isinstance(values, pd.DataFrame):
        raise CalmError(f"there are several columns {COLUMN}; give one")
    if hasattr(values, "tolist"):  # a column, index or array of numpy or pandas
        values = values.tolist()
    if isinstance(values, Sequence) and not isinstance(values, str | bytes | bytearray):
        return values
    return [values]


def _checked(value: object, number: int) -> str:
    """A prompt, which may have come in a dictionary of its own."""
    where = f"{COLUMN} {number}"
    if isinstance(value, Mapping):
        value = _prompt_of(value)
    text = text_of(where, None if value is pd.NA else value)
    if (place := text.find("\0")) >= 0:
        raise CalmError(f"{where}: holds a NUL character (at {place}); take it out")
    return text


def _prompt_of(row: Mapping[Any, object]) -> object:
    _refuse_parameters(row)
    if unknown := row.keys() - {COLUMN}:
        raise CalmError(_unknown(unknown))
    if COLUMN not in row:
        raise CalmError(f"there is no {COLUMN}")
    return row[COLUMN]


def _refuse_parameters(names: Iterable[object]) -> None:
    if misplaced := _PARAMETER_NAMES & {*names}:
        raise CalmError(f"{_names(misplaced)}: is no column but a parameter; give it in params")


def _unknown(names: Iterable[object]) -> str:
    return f"{_names(names)}: unknown; beside {COLUMN} there are the parameters {', '.join(sorted(_PARAMETER_NAMES))}"


def _names(names: Iterable[object]) -> str:
    return ", ".join(sorted(brief(name) if isinstance(name, str) else described(name) for name in names)) or "none"


def _check_request(prompts: Sequence[str], number: int, length: int) -> None:
    """Refuse what a server would work on for too long."""
    if (characters := number * sum(map(len, prompts))) > MAX_REQUEST_CHARACTERS:
        raise CalmError(
            f"the prompts hold {characters:,} characters, counted n times; one request may hold "
            f"{MAX_REQUEST_CHARACTERS:,}: send several"
        )
    most, hint = _limit(_REQUEST_VARIABLE, _REQUEST_TOKENS)
    if (tokens := len(prompts) * number * length) > most:
        raise CalmError(
            f"{len(prompts):,} prompts x n {number} x max_new_tokens {length:,} are {tokens:,} tokens; one request may "
            f"ask for {most:,}: send several{hint}"
        )


def _limit(variable: str, default: int) -> tuple[int, str]:
    """A limit that whoever runs the model may set, and a hint of that."""
    text = os.environ.get(variable) or str(default)
    if not text.isdecimal() or not int(text):
        raise CalmError(f"{variable} must be a whole number from 1 (got {brief(text)}); whoever runs the model sets it")
    return int(text), f"; {variable} sets this limit where the model runs"
