"""README's picture of a row, as `python tools/site/picture.py [SITE]`: from the built site, by a real browser.

Writes docs/images/twins.png, which notes the code that it shows; a test holds it against the twins.
"""

import hashlib
import io
import shutil
import sys
from pathlib import Path

from book import FOLDER, book
from build_site import EXAMPLE
from definitions import ROOT
from pairs import Row
from PIL import Image, PngImagePlugin

PICTURE = ROOT / "docs" / "images" / "twins.png"
BROWSERS = "chromium-headless-shell chromium chromium-browser google-chrome".split()
MAC = "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome"
ALONE = ".sidebar-drawer, .content-icon-container, .back-to-top, .faults { display: none !important; }"
COLOURS, MARGIN, WIDTH = 64, 14, 1320


def shown_code(row: Row) -> str:
    """A hash of a row's code, whatever lines it stands on."""
    texts = [text for twin in row.twins if twin for _, text in twin.lines]
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def draw(site: Path, browser: str) -> bytes:
    """The row of EXAMPLE with its heading, as a PNG."""
    from playwright.sync_api import sync_playwright  # only the picture needs it

    chapter, anchor = EXAMPLE
    with sync_playwright() as driver:
        opened = driver.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        page = opened.new_page(viewport={"width": WIDTH, "height": 1200}, color_scheme="light", device_scale_factor=1.5)
        page.goto((site / FOLDER / f"{chapter}.html").as_uri())
        page.add_style_tag(content=ALONE)
        row = page.locator(f"section:has(> [id='{anchor}']) > .row")
        head = row.locator("xpath=..").bounding_box()
        body = row.bounding_box()
        page.set_viewport_size({"width": WIDTH, "height": int(body["y"] + body["height"]) + 100})
        clip = {"x": body["x"] - MARGIN, "y": head["y"] - MARGIN, "width": body["width"] + 2 * MARGIN}
        png = page.screenshot(
            clip={**clip, "height": body["y"] + body["height"] - head["y"] + 2 * MARGIN}, full_page=True
        )
        opened.close()
    return png


def main(argv: list[str]) -> int:
    """Draw it; 1 where there is no browser or no site."""
    site = Path(argv[0]) if argv else ROOT / "build" / "site" / "html"
    browser = next(filter(None, map(shutil.which, BROWSERS)), MAC if Path(MAC).is_file() else None)
    if browser is None or not (site / "index.html").is_file():
        print(f"needs a Chromium (tools/browser.sh) and a site in {site} (make docs)", file=sys.stderr)
        return 1
    note = PngImagePlugin.PngInfo()
    note.add_text("code", shown_code(next(row for row in book()[EXAMPLE[0]][1] if row.anchor == EXAMPLE[1])))
    picture = Image.open(io.BytesIO(draw(site.resolve(), browser))).convert("RGB").quantize(COLOURS)
    picture.save(PICTURE, pnginfo=note, optimize=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
