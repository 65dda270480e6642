"""Short texts in Markdown, for places that show little: what data is, and what has become of a model.

Strings that come from outside are code there, in which nothing acts.
"""

import re

import jinja2

from calm_core.evaluation.report import Verdict
from calm_core.shown import shortened
from calm_core.store.facts import DatasetFacts, RegistrationFacts

_MOST = 5  # of sources and examples that are named
_LONGEST = 200


def data_card(data: DatasetFacts) -> str:
    """What became of the documents, and what the dataset holds."""
    return _template("data.md").render(data=data, most=_MOST)


def decision_card(decided: RegistrationFacts) -> str:
    """Whether a version became champion, and why."""
    return _template("decision.md").render(verdict=Verdict.of(decided), decided=decided)


def _template(name: str) -> jinja2.Template:
    loader = jinja2.PackageLoader("calm_core.report")
    environment = jinja2.Environment(
        loader=loader, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"code": _as_code, "number": "{:,}".format}
    return environment.get_template(name)


def _as_code(value: object) -> str:
    """Anything as a code span; its fence is longer than any inside."""
    text = shortened(str(value), _LONGEST)
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence} {text} {fence}"
