"""A real browser, without a screen, that looks at a page as people do."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, sync_playwright

PHONE, DESK = 390, 1280  # pixels
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")


@contextmanager
def browser() -> Iterator[Browser]:
    """Chromium; where there is none the test is skipped, but never in CI."""
    found = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if found is None:
        message = "no browser is installed; Debian: apt-get install chromium"
        pytest.fail(message) if os.environ.get("CI") else pytest.skip(message)
    alone = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-component-update", "--disable-sync"]
    with sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=found, args=alone)
        try:
            yield running
        finally:
            running.close()


@dataclass
class Seen:
    """A page that is open.

    Attributes:
        complaints: Errors of its scripts, and all that it wrote to the console.
        requests: URLs that it asked for, beside its own.
    """

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    @property
    def overflow(self) -> int:
        """Pixels that the page is wider than the screen."""
        width = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        return int(self.page.evaluate(width))

    def violations(self) -> list[str]:
        """What axe-core finds that is serious or critical: the rule, and the first element that breaks it."""
        found: list[dict[str, Any]] = Axe().run(self.page).response["violations"]
        serious = [each for each in found if each["impact"] in ("serious", "critical")]
        return [f"{each['id']}: {each['nodes'][0]['html']}" for each in serious]


@contextmanager
def opened(
    running: Browser,
    file: Path,
    *,
    width: int = DESK,
    scheme: Literal["light", "dark"] = "light",
    bypass_csp: bool = True,
) -> Iterator[Seen]:
    """A file as a page, with all its details open.

    Unless it is asked for, its own security policy is out of force, so that a request which it would block is made, and
    seen.
    """
    context = running.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=bypass_csp)
    page = context.new_page()
    seen = Seen(page)
    page.on("pageerror", lambda error: seen.complaints.append(str(error)))
    page.on("console", lambda message: seen.complaints.append(message.text))
    page.on("request", lambda request: seen.requests.append(request.url))
    page.goto(file.as_uri())
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    seen.requests.remove(file.as_uri())
    try:
        yield seen
    finally:
        context.close()
