"""Every page, light and dark, wide and 360 px, with dialogs open: no violation of WCAG 2.2 AA, and its weight."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.furnished import ENV, end, furnish
from tests.browser.pages import PAGES, Walk
from tests.browser.weights import limits_of, weigh
from tests.running import Up, running, wait_for

AXE = Path(__file__).with_name("vendor") / "axe-core-4.14.1.min.js"
WIDE, NARROW = {"width": 1280, "height": 900}, {"width": 360, "height": 740}
# Only colours differ between the themes: the second theme is asked about those alone.
COLOURS = ["color-contrast", "link-in-text-block"]
RUN = """async (rules) => {
  const only = rules.length ? {type: "rule", values: rules}
    : {type: "tag", values: ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa"]};
  // Nobody reads a page in the middle of a pulse or a fade.
  for (const animation of document.getAnimations()) animation.cancel();
  const found = await axe.run(document, {runOnly: only, resultTypes: ["violations"]});
  return found.violations.flatMap(({id, nodes}) => nodes.map((node) =>
    `${id}: ${node.target.join(" ")} ${node.html.slice(0, 160)} (${node.failureSummary.split("\\n").at(-1).trim()})`));
}"""


@pytest.fixture(scope="module")
def andon(tmp_path_factory) -> Iterator[Up]:
    """One `up --demo` for all; what it started is killed at the end."""
    up = None
    try:
        with running(tmp_path_factory.mktemp("axe"), "--demo", "--pace", "0.1", env=ENV) as up:
            yield up
    finally:
        if up:
            end(up)


@pytest.fixture(scope="module")
def facts(andon: Up) -> dict[str, Any]:
    # A rollback is offered once nothing works on the files any more.
    wait_for(lambda: andon.events("loop.completed"), 120)
    return furnish(andon)


@pytest.fixture(scope="module")
def pages(chromium, andon: Up) -> Iterator[dict[bool, Page]]:
    """Two pages for all walks: one of the admin, one of somebody who is not signed in."""
    contexts = {name: chromium.new_context(base_url=andon.url, viewport=WIDE) for name in (True, False)}
    both = {name: context.new_page() for name, context in contexts.items()}
    for page in both.values():
        page.set_default_timeout(10_000)
    page = both[True]
    page.goto(andon.link)
    page.get_by_role("button", name="Sign in").click()
    page.wait_for_url(lambda url: "/login/" not in url)
    yield both
    for context in contexts.values():
        context.close()


def violations(page: Page, *rules: str) -> list[str]:
    found: list[str] = page.evaluate(RUN, list(rules))
    return found


@pytest.mark.parametrize("walk", PAGES, ids=str)
def test_no_page_violates_wcag(pages: dict[bool, Page], facts: dict[str, Any], walk: Walk) -> None:
    page = pages[walk.signed_in]
    page.set_viewport_size(WIDE)
    page.emulate_media(color_scheme="light")
    answer = page.goto(walk.path.format(**facts))
    assert answer is not None
    assert answer.status in ({200} if walk.signed_in else {200, 404})
    page.evaluate(AXE.read_text(encoding="utf-8"))
    found = _in_both_themes_and_widths(page)
    for opener in walk.dialogs:
        page.set_viewport_size(WIDE)
        page.locator(opener).first.click()
        page.locator("dialog[open]").wait_for()
        found += [f"dialog of {opener}: {each}" for each in _in_both_themes_and_widths(page)]
        page.keyboard.press("Escape")
        page.locator("dialog[open]").wait_for(state="detached")
    assert found == []


def _in_both_themes_and_widths(page: Page) -> list[str]:
    found = [f"light, wide: {each}" for each in violations(page)]
    page.emulate_media(color_scheme="dark")
    found += [f"dark, wide: {each}" for each in violations(page, *COLOURS)]
    page.set_viewport_size(NARROW)
    found += [f"dark, 360 px: {each}" for each in violations(page)]
    page.emulate_media(color_scheme="light")
    found += [f"light, 360 px: {each}" for each in violations(page, *COLOURS)]
    return found


def test_the_list_of_shortcuts_does_not_either(pages: dict[bool, Page]) -> None:
    page = pages[True]
    page.set_viewport_size(WIDE)
    page.goto("/")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.keyboard.press("?")
    page.locator("dialog[open]").wait_for()
    assert _in_both_themes_and_widths(page) == []


def test_axe_finds_what_is_wrong(pages: dict[bool, Page]) -> None:
    page = pages[True]
    page.goto("/help/")
    page.evaluate(AXE.read_text(encoding="utf-8"))
    page.evaluate("document.querySelector('main').append(document.createElement('button'))")
    assert any("button-name" in each for each in violations(page))


def test_no_page_is_heavier_than_its_budget(pages: dict[bool, Page], facts: dict[str, Any]) -> None:
    pages[True].set_viewport_size(WIDE)
    over = {}
    for walk in PAGES:
        if not walk.name.startswith("admin:"):
            page = pages[walk.signed_in]
            found = weigh(page, walk.path.format(**facts), timed=False).excess(limits_of(walk.path))
            if found:
                over[walk.path] = found
    assert over == {}
