"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

from tests.reliability import manifest_cases, prompt_cases, setting_cases
from tests.reliability.campaign import Cases
from tests.reliability.folder_cases import folder_cases
from tests.reliability.source_cases import source_cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {
    "manifests": (manifest_cases.cases, 2000),
    "folders": (folder_cases, 400),
    "settings": (setting_cases.cases, 2000),
    "prompts": (prompt_cases.cases, 1000),
    "sources": (source_cases, 1000),
}
