"""A real chromium on a real `up`. Each journey also asserts: no console error, CSP report, foreign origin or 5xx."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import BrowserContext, Page, sync_playwright

from tests.running import Up, running

# The shell is the same engine without a browser's own pages and menus, and starts in half the time.
NAMES = ("chromium-headless-shell", "chromium", "chromium-browser")
CHROMIUM = os.environ.get("ANDON_TEST_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
PASSWORD = "a-long-enough-one-7"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    missing = pytest.mark.skip(
        reason="no chromium: apt-get install chromium, or name one in ANDON_TEST_CHROMIUM (.ci/run does it for you)"
    )
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.browser)
            if CHROMIUM is None:
                item.add_marker(missing)


@pytest.fixture(scope="session")
def chromium():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def andon(tmp_path_factory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("browser")) as up:
        yield up


class Watched:
    """What a context saw that it should not have seen."""

    def __init__(self, context: BrowserContext, origin: str) -> None:
        self.complaints: list[str] = []
        self.expected: list[str] = []
        self._origin = urlsplit(origin).netloc
        context.on("page", self._follow)
        context.on("request", self._request)
        context.on("response", self._response)

    def _follow(self, page: Page) -> None:
        page.on("console", lambda message: message.type == "error" and self._note(f"console: {message.text}"))
        page.on("pageerror", lambda error: self._note(f"page error: {error}"))

    def _request(self, request) -> None:
        parts = urlsplit(request.url)
        if parts.scheme in {"http", "https", "ws", "wss"} and parts.netloc != self._origin:
            self._note(f"off-origin: {request.url}")

    def _response(self, response) -> None:
        if response.status >= 500:
            self._note(f"{response.status}: {response.url}")

    def _note(self, text: str) -> None:
        if not any(part in text for part in self.expected):
            self.complaints.append(text)


@pytest.fixture
def open_page(chromium, andon: Up):
    """Return a function that opens a signed-in page; options are Playwright's context options."""
    contexts: list[tuple[BrowserContext, Watched]] = []

    def make(*, signed_in: bool = True, **options) -> Page:
        context = chromium.new_context(base_url=andon.url, **options)
        watched = Watched(context, andon.url)
        contexts.append((context, watched))
        page = context.new_page()
        page.set_default_timeout(10_000)
        page.watched = watched
        if signed_in:
            link = andon.manage("sign-in-link", "admin").stdout.strip()
            page.goto(link)
            page.get_by_role("button", name="Sign in").click()
            page.wait_for_url(lambda url: "/login/" not in url)
        return page

    yield make
    complaints = []
    for context, watched in contexts:
        context.close()
        complaints += watched.complaints
    assert complaints == []


@pytest.fixture(scope="module")
def admin(chromium, andon: Up) -> dict:
    """Signed in once: a context's storage state."""
    context = chromium.new_context(base_url=andon.url)
    page = context.new_page()
    page.goto(andon.link)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login/" not in url)
    state = context.storage_state()
    context.close()
    return state


@pytest.fixture
def visit(open_page, admin: dict):
    """Return a function that opens a page of the admin."""
    return lambda **options: open_page(signed_in=False, storage_state=admin, **options)
