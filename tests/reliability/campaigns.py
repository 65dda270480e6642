"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

import setting_cases
from campaign import Cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {"settings": (setting_cases.cases, 2000)}
