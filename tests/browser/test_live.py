"""What a person is in the middle of survives an update; keys lead everywhere, and never while somebody writes."""

import json
import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, Route, expect

from tests.browser.test_first_steps import live
from tests.projects.files import write_prd, write_project
from tests.running import Up, wait_for


@pytest.fixture(scope="module")
def garden(andon: Up) -> Path:
    """A project with more stories than a screen holds."""
    root = write_project(andon.workspace / "garden", ("passed", *["pending"] * 39))
    wait_for(lambda: [e for e in andon.events("project.found") if e["project"] == "garden"], 30)
    return root


def let_pass(root: Path, **document: str) -> int:
    """Let two more stories pass, so that a second try sees a change as well; returns how many then do."""
    path = root / "scripts/ralph/prd.json"
    passed = sum(story["passes"] for story in json.loads(path.read_text(encoding="utf-8"))["userStories"]) + 2
    write_prd(root, *["passed"] * passed, *["pending"] * (40 - passed), **document)
    return passed


def change(root: Path, page: Page, **document: str) -> None:
    """Let stories pass, and wait until both fragments that tell of it say so."""
    passed = let_pass(root, **document)
    expect(page.locator("#stories [data-status=passed]")).to_have_count(passed, timeout=10_000)
    expect(page.locator("#project-header .progress")).to_contain_text(f"{passed}/40", timeout=10_000)


def with_something_to_open(route: Route) -> None:
    """Let the server send a header with something to open, closed each time: this one has nothing of its own."""
    answer = route.fetch()
    more = '<details id="more"><summary>More</summary><p>inside</p></details><dl class="figures">'
    route.fulfill(response=answer, body=answer.text().replace('<dl class="figures">', more))


def top(page: Page) -> float:
    """Return where on the screen the focused element is."""
    return page.evaluate("document.activeElement.getBoundingClientRect().top")


def test_focus_selection_scroll_and_what_is_open_survive_a_morph(visit, garden: Path):
    page = visit()
    page.goto("/projects/garden/")
    live(page)
    # Fragments alone: a page that did not come from the server itself may not open a socket to it.
    page.route("**/projects/garden/", with_something_to_open)
    header = page.locator("#project-header")
    header.evaluate("node => node.dispatchEvent(new CustomEvent('andon:refresh', {bubbles: true}))")
    page.locator("#more summary").click()
    page.locator("#stories a", has_text="Story 9").first.focus()
    page.evaluate("window.scrollTo(0, 400)")
    page.evaluate("""() => {
      const text = document.querySelectorAll("#stories .title-link")[20].firstChild;
      getSelection().setBaseAndExtent(text, 0, text, text.length);
    }""")
    page.locator(".menu summary").evaluate("node => { node.parentElement.open = true }")
    selected = page.evaluate("getSelection().toString()")
    before = top(page)
    change(garden, page)
    assert page.evaluate("document.activeElement.textContent").startswith("Story 9")
    assert page.evaluate("getSelection().toString()") == selected != ""
    # What closes above moves the page: it is named first.
    assert page.locator("#more").evaluate("node => node.open")
    assert page.evaluate("window.scrollY") == 400
    assert top(page) == before
    assert page.locator(".menu").evaluate("node => node.open")
    page.unroute_all(behavior="wait")


def test_what_is_read_stays_in_place_while_something_above_it_grows(visit, garden: Path):
    page = visit()
    page.goto("/projects/garden/")
    live(page)
    # Whatever an earlier try described is gone before anything is measured.
    change(garden, page)
    page.locator("#stories a", has_text="Story 9").first.focus()
    page.evaluate("window.scrollTo(0, 400)")
    before = top(page)
    change(garden, page, description="What it is for. " * 20)
    expect(page.locator("#project-header .lead")).to_be_attached()
    assert page.evaluate("window.scrollY") > 400
    assert abs(top(page) - before) < 1


def test_what_somebody_types_is_not_written_over(visit, garden: Path):
    page = visit()
    page.goto("/projects/")
    live(page)
    page.fill("main [data-search]", "gard")
    expect(page).to_have_url(re.compile(r"\?q=gard$"))
    expect(page.locator("#projects article")).to_have_count(1)
    passed = let_pass(garden)
    expect(page.locator("#projects")).to_contain_text(f"{passed}/40", timeout=10_000)
    assert page.input_value("main [data-search]") == "gard"
    assert page.evaluate("document.activeElement.matches('[data-search]')")


def test_keys_lead_everywhere(visit, andon: Up, garden: Path):
    page = visit()
    page.goto("/")
    for second, path in (("p", "/projects/"), ("s", "/services/"), ("e", "/events/"), ("k", "/kanban/"), ("h", "/")):
        page.keyboard.press("g")
        page.keyboard.press(second)
        page.wait_for_url(lambda url, path=path: url.partition("?")[0] == andon.url + path)
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.matches('header [data-find]')")
    page.keyboard.type("garden g p ?")
    assert page.locator("dialog[open]").count() == 0
    page.keyboard.press("Enter")
    page.wait_for_url(re.compile(r"/search/\?q=garden"))
    page.locator("h1").click()
    page.keyboard.press("?")
    expect(page.locator("#keys")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.locator("#keys")).to_be_hidden()
    page.goto("/projects/")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.matches('main [data-search]')")
    page.locator("h1").click()
    page.keyboard.press("g")
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.matches('header [data-find]')")


def test_keys_can_be_switched_off(visit):
    page = visit()
    page.goto("/settings/")
    page.uncheck("input[name=shortcuts]")
    page.locator("form[action='/settings/'] button").click()
    expect(page.locator("body")).to_have_attribute("data-shortcuts", "off")
    for key in ("?", "/", "g", "p"):
        page.keyboard.press(key)
    assert page.locator("dialog[open]").count() == 0
    assert not page.evaluate("document.activeElement.matches('input')")
    assert page.url.endswith("/settings/")
    page.check("input[name=shortcuts]")
    page.locator("form[action='/settings/'] button").click()
    expect(page.locator("body")).to_have_attribute("data-shortcuts", "on")


def test_success_is_told_in_the_status_region_and_a_refusal_stays(visit):
    page = visit()
    page.goto("/projects/")
    page.get_by_role("button", name="Look again").click()
    toast = page.get_by_role("status").filter(has_text="The worker looks at all projects now.")
    expect(toast).to_be_visible()
    toast.get_by_role("button", name="Dismiss").click()
    expect(toast).to_have_count(0)
    page.watched.expected.append("404")
    page.goto("/projects/no-such-project/")
    expect(page.get_by_role("heading", name="Nothing is here")).to_be_visible()
    expect(page.locator("main")).to_contain_text("There is no project no-such-project.")


def test_motion_stops_for_those_who_asked_for_none(visit, garden: Path):
    page = visit(reduced_motion="reduce")
    page.goto("/help/")
    page.wait_for_timeout(300)
    assert page.evaluate("document.getAnimations().length") == 0
    page.emulate_media(reduced_motion="no-preference")
    assert page.evaluate("document.getAnimations().length") > 0


def test_at_twice_the_size_nothing_is_cut_off(visit, garden: Path):
    """1,280 pixels at 200 % are 640: what fits there fits when zoomed."""
    page = visit(viewport={"width": 640, "height": 450})
    for path in ("/", "/projects/garden/", "/services/", "/kanban/", "/events/", "/help/", "/settings/", "/system/"):
        page.goto(path)
        assert page.evaluate("document.documentElement.scrollWidth") <= 640, path


def test_forced_colours_leave_every_state_its_shape_and_word(visit):
    page = visit(forced_colors="active")
    page.goto("/help/")
    for badge in page.locator("#legend .status").all()[:12]:
        assert badge.inner_text().strip()
        box = badge.locator("svg").bounding_box()
        assert box is not None
        assert box["width"] >= 10


def test_a_finger_finds_everything(visit, garden: Path):
    """44 pixels for whatever is pressed, on a phone; links in running text and lists are 24."""
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True, is_mobile=True)
    small = {}
    for path in ("/", "/projects/", "/projects/garden/", "/services/new/", "/settings/", "/events/", "/search/"):
        page.goto(path)
        found = page.evaluate("""() => [...document.querySelectorAll(
            ".button, .nav a, summary, button, select, input:not([type=hidden], [type=checkbox], [type=radio])")]
          .filter((one) => one.checkVisibility() && !one.closest("details:not([open]) > :not(summary)"))
          .map((one) => [one, one.getBoundingClientRect()])
          .filter(([, {height, width}]) => width && height < 43.5)
          .map(([one, {height}]) => `${one.outerHTML.slice(0, 80)} ${height}`)""")
        if found:
            small[path] = found
    assert small == {}
