"""The campaigns by name, each with the number of cases that docs/reliability.md reports."""

import manifest_cases
import prompt_cases
import setting_cases
from campaign import Cases
from folder_cases import folder_cases
from source_cases import source_cases

CAMPAIGNS: dict[str, tuple[Cases, int]] = {
    "manifests": (manifest_cases.cases, 2000),
    "folders": (folder_cases, 400),
    "settings": (setting_cases.cases, 2000),
    "prompts": (prompt_cases.cases, 1000),
    "sources": (source_cases, 1000),
}
