"""What evaluation.json holds, as JSON Schema; run as a module, it writes docs/evaluation.schema.json."""

import json
from pathlib import Path
from typing import Any

from calm_core.store.facts import EvaluationFacts

SCHEMA = Path(__file__).parents[2] / "docs" / "evaluation.schema.json"


def evaluation_schema() -> dict[str, Any]:
    """The schema of an evaluation's results (draft 2020-12); what is of one run stands in the manifest alone."""
    schema = EvaluationFacts.model_json_schema()
    results = EvaluationFacts.names_of("results")
    schema["properties"] = {name: value for name, value in schema["properties"].items() if name in results}
    schema["$defs"] = _used(schema)
    version = EvaluationFacts.schema_version
    return (
        {"$schema": "https://json-schema.org/draft/2020-12/schema"}
        | schema
        | {"title": f"evaluation.json of schema version {version}"}
    )


def _used(schema: dict[str, Any]) -> dict[str, Any]:
    """The definitions that the properties need, and those that these need."""
    definitions, used = schema["$defs"], dict[str, Any]()
    left = [json.dumps(schema["properties"])]
    while left:
        text = left.pop()
        for name, definition in definitions.items():
            if f'"#/$defs/{name}"' in text and name not in used:
                used[name] = definition
                left.append(json.dumps(definition))
    return {name: used[name] for name in sorted(used)}


def text() -> str:
    """The schema as the file holds it."""
    return json.dumps(evaluation_schema(), indent=1) + "\n"


if __name__ == "__main__":
    SCHEMA.write_text(text(), encoding="utf-8")
    print(f"wrote {SCHEMA}")
