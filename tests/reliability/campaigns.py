"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

from campaign import Cases
from prompt_cases import prompt_cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {
    "prompts": (prompt_cases, 1000),
}
