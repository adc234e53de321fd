"""Make the pictures of the README's guided tour from a real, furnished demonstration: `uv run python -m docs.tour`.

Needs chromium, like the browser tests. Writes docs/img/<name>-<theme>.png.
"""

import os
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

from tests.browser.conftest import CHROMIUM
from tests.browser.furnished import ENV, end, furnish
from tests.running import Up, running, wait_for

PICTURES = Path(__file__).with_name("img")
SIZE = {"width": 1200, "height": 760}
# Name, theme and address of each picture.
TOUR = (
    ("home", "dark", "/"),
    ("project", "light", "/projects/greenhouse/"),
    ("board", "light", "/kanban/"),
    ("task", "dark", "/kanban/tasks/{blocked}/"),
    ("services", "light", "/services/"),
    ("rollback", "dark", "/projects/greenhouse/rollback/"),
)


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="andon-tour-") as folder:
        up = None
        try:
            with running(Path(folder), "--demo", "--pace", "3", env=ENV) as up, sync_playwright() as playwright:
                # Some stories are green, and the next one is under way.
                wait_for(lambda: len(up.events("story.passed")) >= 2, 300, 0.5)
                addresses = furnish(up, within_s=120)
                browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
                page = _signed_in(browser, up)
                for name, theme, path in TOUR:
                    _picture(page, name, theme, path.format(**addresses))
                browser.close()
        finally:
            if up:
                end(up)
    sizes = {path.name: path.stat().st_size for path in sorted(PICTURES.glob("*.png"))}
    sys.stdout.write("".join(f"{size / 1000:8.1f} kB  {name}{os.linesep}" for name, size in sizes.items()))


def _signed_in(browser: Browser, up: Up) -> Page:
    page = browser.new_page(base_url=up.url, viewport=SIZE, reduced_motion="reduce")
    page.goto(up.link)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login/" not in url)
    return page


def _picture(page: Page, name: str, theme: str, path: str) -> None:
    page.emulate_media(color_scheme="dark" if theme == "dark" else "light", reduced_motion="reduce")
    page.goto(path)
    page.locator("html[data-live=live]").wait_for()
    page.wait_for_timeout(500)
    page.screenshot(path=PICTURES / f"{name}-{theme}.png")


if __name__ == "__main__":
    main()
