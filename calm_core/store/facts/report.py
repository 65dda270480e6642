"""Facts of the page about a run."""

from typing import Annotated

from calm_core.store.facts.base import ORIGIN, TIMING, Facts, FileEntry, Number, Record


class StageTime(Record):
    """How long a stage of a run has worked.

    Attributes:
        seconds: None where nothing says it.
        cached: Whether it was answered from the cache, so that the seconds are of an earlier run.
    """

    stage: str
    seconds: Number | None = None
    cached: bool = False


class ReportFacts(Facts, kind="report"):
    """A page about a run.

    Attributes:
        headline: What has become of the model, for people.
        reason: Why.
        page: The file, which tells of times too: so it is no part of the artifact's digest.
        stages: In their order.
        command: That started the run, where it is known.
    """

    headline: str
    reason: str = ""
    page: Annotated[FileEntry, TIMING]
    stages: Annotated[list[StageTime], TIMING] = []
    command: Annotated[str, ORIGIN] = ""

    @property
    def aside(self) -> list[FileEntry]:
        return [self.page]
