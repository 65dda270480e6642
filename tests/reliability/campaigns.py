"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

from campaign import Cases
from source_cases import source_cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {
    "sources": (source_cases, 1000),
}
