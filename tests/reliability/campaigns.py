"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

from campaign import Cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {}
