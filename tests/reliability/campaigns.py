"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

from campaign import Cases
from folder_cases import folder_cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {"folders": (folder_cases, 400)}
