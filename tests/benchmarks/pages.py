"""What every page weighs and how long it takes, in a real chromium against a furnished `up`."""

import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.benchmarks.table import Table

TURNS = 20
# What the budgets are for: 50 projects, three of which are the demonstration's; each 20th of 10,000 tasks.
PROJECTS, EACH = 47, 20


def pages(table: Table) -> None:
    """Bytes, requests and times of every page at 500 tasks and 50 projects, beside their budgets (p95 of 20, warm)."""
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import CHROMIUM
    from tests.browser.furnished import ENV, end, furnish
    from tests.browser.pages import PAGES
    from tests.projects.files import write_project
    from tests.running import running, wait_for

    words = ("--demo", "--pace", "0.4")
    with tempfile.TemporaryDirectory() as folder, running(Path(folder), *words, start=False, env=ENV) as up:
        for number in range(PROJECTS):
            write_project(up.workspace / f"p{number:02}", ("passed", "pending") * 10)
        up.start()
        wait_for(lambda: up.events("iteration."), 90)
        facts = furnish(up)
        with sync_playwright() as playwright:
            browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
            page = browser.new_page(base_url=up.url, viewport={"width": 1280, "height": 900})
            page.goto(up.link)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(lambda url: "/login/" not in url)
            # Nobody works while pages are measured.
            page.goto("/system/")
            page.locator("[formaction='/kanban/dispatch/pause/']").first.click()
            wait_for(lambda: up.events("loop.completed"), 120, 0.5)
            seeding = {**up.env, "DJANGO_SETTINGS_MODULE": "config.settings"}
            subprocess.run([sys.executable, "-m", "tests.benchmarks.seeding", str(EACH)], env=seeding, check=True)
            for walk in PAGES:
                if walk.signed_in and not walk.name.startswith("admin:"):
                    _one(table, page, walk.path.format(**facts))
            browser.close()
    end(up)


def _one(table: Table, page, path: str) -> None:
    from tests.browser.weights import CLS, LCP_MS, REQUESTS, TTFB_BOARD_MS, TTFB_MS, limits_of, weigh

    weights = [weigh(page, path) for _ in range(TURNS + 1)][1:]
    last = weights[-1]
    most, scripts = limits_of(path)
    ttfb, lcp = (_p95([getattr(weight, name) for weight in weights]) for name in ("ttfb", "lcp"))
    is_board = path.startswith("/kanban/?") or path == "/kanban/"
    table.row(
        path,
        f"{last.bytes / 1000:.1f} kB, JavaScript {last.scripts / 1000:.1f} kB, {last.requests} requests, "
        f"TTFB {ttfb:.0f} ms, LCP {lcp:.0f} ms, CLS {max(weight.cls for weight in weights):.3f}",
        f"{most // 1000} kB, {scripts // 1000} kB, {REQUESTS}, {TTFB_BOARD_MS if is_board else TTFB_MS} ms, "
        f"{LCP_MS} ms, {CLS}",
    )


def _p95(times: list[float]) -> float:
    return statistics.quantiles(times, n=20)[-1]
