"""The browser that tests drive: where a Chromium and axe-core lie, and how they are asked (`tools/browser.sh`)."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

NAMES = "chromium-headless-shell chromium chromium-browser google-chrome".split()
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
AXE = Path(sys.prefix) / "node_modules" / "axe-core" / "axe.min.js"
WIDE, PHONE = {"width": 1200, "height": 900}, {"width": 375, "height": 740}
DARK, LIGHT = "rgb(23, 21, 19)", "rgb(253, 252, 249)"
needs_axe = pytest.mark.skipif(not AXE.is_file(), reason="axe-core is missing: tools/browser.sh brings it, with npm")


def chromium() -> Iterator[Any]:
    """A headless Chromium under Playwright; a skip where one of them is missing."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is missing: make install brings it")
    path = next(filter(None, map(shutil.which, NAMES)), MAC if Path(MAC).is_file() else None)
    if path is None:
        pytest.skip(f"none of {', '.join(NAMES)} is installed: tools/browser.sh brings one")
    with playwright.sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield opened
        opened.close()


def violations(page: Any) -> list[tuple[str, list[str]]]:
    """What axe-core finds on a page: each rule, with some of what breaks it."""
    page.evaluate(AXE.read_text(encoding="utf-8"))
    options = "{preload: false, resultTypes: ['violations']}"  # it would fetch style sheets, and a page may be a file
    found = page.evaluate(f"axe.run(document, {options}).then((result) => result.violations)")
    return [(one["id"], [node["html"][:120] for node in one["nodes"]][:3]) for one in found]
