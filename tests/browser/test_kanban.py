"""The board in a real chromium: made, done live, moved three ways, undone, narrowed, and without JavaScript."""

import re
import time
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PASSWORD
from tests.running import Up, running

WAIT_MS = 20_000
# A change is painted in another browser within this.
SEEN_MS = 1500


@pytest.fixture(scope="module")
def andon(tmp_path_factory) -> Iterator[Up]:
    with running(tmp_path_factory.mktemp("kanban")) as up:
        yield up


def task(up: Up, title: str, **fields) -> str:
    """Make a task over REST; nobody's, so that no worker takes it. Returns its id."""
    return up.post("/api/kanban/tasks", {"title": title, **fields})["task"]["id"]


def status(up: Up, task_id: str) -> str:
    return up.get(f"/api/kanban/tasks/{task_id}")["task"]["status"]


def board(page: Page, query: str = "") -> None:
    page.goto(f"/kanban/{query}")
    expect(page.locator("html")).to_have_attribute("data-live", "live", timeout=WAIT_MS)
    page.evaluate("window.stayed = true")


def card(page: Page, task_id: str):
    return page.locator(f"#{task_id}")


def is_in(page: Page, task_id: str, column: str, timeout: int = WAIT_MS) -> None:
    expect(page.locator(f"#column-{column} #{task_id}")).to_be_visible(timeout=timeout)


def stayed(page: Page) -> bool:
    return page.evaluate("window.stayed") is True


def drag(page: Page, task_id: str, column: str) -> None:
    """Drag a card as a hand does: press, pull past the threshold, over the column, let go."""
    start = card(page, task_id).locator(".task-foot").bounding_box()
    goal = page.locator(f"#column-{column} .tasks").first.bounding_box()
    page.mouse.move(start["x"] + 20, start["y"] + 4)
    page.mouse.down()
    page.mouse.move(start["x"] + 30, start["y"] + 12, steps=4)
    over = page.locator(f"#column-{column} #{task_id}")
    for turn in range(40):
        # A hand lets go once it sees the card where it is to be, however late that is.
        page.mouse.move(goal["x"] + goal["width"] / 2, goal["y"] + 10 + 4 * (turn % 2), steps=6)
        page.wait_for_timeout(50)
        if over.count():
            break
    page.mouse.up()


def test_an_empty_board_offers_a_sample_and_the_demo_worker_does_it_live(visit, andon: Up):
    page = visit()
    board(page)
    expect(page.locator("#board")).to_contain_text("The board is empty")
    page.get_by_role("button", name="Make a sample task").click()
    sample = page.locator(".task", has_text="A sample task")
    expect(sample).to_be_visible(timeout=WAIT_MS)
    page.evaluate("window.stayed = true")
    expect(page.locator("#column-running .task", has_text="A sample task")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#column-running .heard")).to_contain_text("last heard")
    expect(page.locator("#column-done .task", has_text="A sample task")).to_be_visible(timeout=2 * WAIT_MS)
    assert stayed(page)
    page.locator("#column-done .task-title").click()
    expect(page.locator("#task-head .status").first).to_have_text("Done")
    page.locator("#runs tbody a").click()
    expect(page.locator("#run-head .status").first).to_have_text("Completed")
    expect(page.locator(".log-lines")).to_contain_text("step 3 of 3")


def test_a_task_is_made_by_the_form_and_by_a_columns_plus_and_seen_elsewhere(visit, andon: Up):
    page, other = visit(), visit()
    board(other)
    board(page)
    page.get_by_role("link", name="New task").click()
    page.fill("#id_title", "Made by the form")
    page.fill("#id_body", "*Slowly*")
    page.get_by_role("button", name="Make the task").click()
    expect(page).to_have_url(re.compile("/kanban/"))
    expect(other.locator("#column-ready .task", has_text="Made by the form")).to_be_visible(timeout=WAIT_MS)
    board(page)
    page.locator("#column-triage summary", has_text="Add to Triage").click()
    title = page.get_by_label("Title of a new task in Triage")
    title.fill("Made by the plus")
    title.press("Enter")
    expect(other.locator("#column-triage .task", has_text="Made by the plus")).to_be_visible(timeout=WAIT_MS)
    expect(page.locator("#column-triage .task", has_text="Made by the plus")).to_be_visible(timeout=WAIT_MS)
    expect(title).to_have_value("")
    assert stayed(page)
    assert stayed(other)


def test_drag_menu_and_keyboard_move_alike_and_another_browser_sees_it(visit, andon: Up):
    one = task(andon, "Dragged")
    page, other = visit(), visit()
    board(other)
    board(page)
    is_in(page, one, "ready")
    drag(page, one, "triage")
    began = time.monotonic()
    is_in(other, one, "triage", SEEN_MS)
    assert time.monotonic() - began < SEEN_MS / 1000
    is_in(page, one, "triage")
    assert status(andon, one) == "triage"
    # The menu.
    card(page, one).get_by_role("link", name="Move").click()
    page.locator("dialog[open]").get_by_role("button", name="To do").click()
    is_in(other, one, "todo")
    expect(page.locator("#toasts")).to_contain_text("To do")
    # The keyboard: to the card, m, and the button that the focus comes to.
    board(page)
    card(page, one).locator(".task-title").focus()
    page.keyboard.press("m")
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("Move to")
    dialog.get_by_role("button", name="Ready").focus()
    page.keyboard.press("Enter")
    is_in(other, one, "ready")
    assert status(andon, one) == "ready"
    assert stayed(other)


def test_an_illegal_move_is_explained_and_the_card_goes_back(visit, andon: Up):
    one = task(andon, "Stays where it is")
    page = visit()
    page.watched.expected.append("409")
    board(page)
    drag(page, one, "running")
    expect(page.locator("#toasts [role=alert]")).to_contain_text("Work begins when the dispatcher claims it")
    is_in(page, one, "ready")
    # In the menu it says so before anybody tries.
    card(page, one).get_by_role("link", name="Move").click()
    expect(page.locator("dialog[open] .move-not[data-to=running]")).to_contain_text("when the dispatcher claims it")


def test_a_move_and_an_archive_are_undone(visit, andon: Up):
    one = task(andon, "Comes back")
    page = visit()
    board(page)
    drag(page, one, "todo")
    is_in(page, one, "todo")
    page.locator("#toasts [data-undo]").last.click()
    is_in(page, one, "ready")
    expect(page.locator("#toasts")).to_contain_text("Undone")
    card(page, one).get_by_role("link", name="Move").click()
    page.locator("dialog[open]").get_by_role("button", name="Archived").click()
    expect(card(page, one)).to_have_count(0, timeout=WAIT_MS)
    page.locator("#toasts [data-undo]").last.click()
    is_in(page, one, "ready")


def test_filters_stand_in_the_address_and_survive_back(visit, andon: Up):
    task(andon, "Painted red", tenant="colours")
    task(andon, "Something else")
    page = visit()
    board(page)
    page.fill(".board-filters input[name=q]", "painted RED")
    expect(page.locator(".task")).to_have_count(1, timeout=WAIT_MS)
    expect(page).to_have_url(re.compile("q=painted"))
    page.locator(".task-title").click()
    expect(page.locator("#task-title")).to_have_text("Painted red")
    page.go_back()
    expect(page.locator(".task")).to_have_count(1, timeout=WAIT_MS)
    expect(page.locator(".board-filters input[name=q]")).to_have_value("painted RED")
    other = visit()
    other.goto(page.url)
    expect(other.locator(".task")).to_have_count(1)
    expect(other.locator(".task")).to_contain_text("Painted red")


def test_several_at_once_with_a_result_for_each(visit, andon: Up):
    fine = task(andon, "Goes to triage")
    closed = task(andon, "Is closed")
    andon.post(f"/api/kanban/tasks/{closed}/complete", {})
    page = visit()
    board(page)
    expect(page.locator("#bulk")).to_be_hidden()
    card(page, fine).locator("input[name=ids]").check()
    # Nothing that is closed can be blocked.
    card(page, closed).locator("input[name=ids]").check()
    page.locator("#bulk-to").select_option("blocked")
    page.locator("#bulk").get_by_role("button", name="Move").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("1 of 2 was refused")
    expect(dialog.locator("tr[data-result=ok]")).to_contain_text(fine)
    expect(dialog.locator("tr[data-result=refused]")).to_contain_text("Only what is ready or runs can be blocked")
    is_in(page, fine, "blocked")
    assert status(andon, closed) == "done"
    dialog.get_by_role("button", name="Undo").click()
    is_in(page, fine, "ready")


def test_several_at_once_that_do_not_reach_the_server_are_told_and_stay_selected(visit, andon: Up):
    one = task(andon, "Cannot be reached")
    page = visit()
    page.watched.expected.append("ERR_FAILED")
    board(page)
    card(page, one).locator("input[name=ids]").check()
    page.route("**/kanban/bulk/", lambda route: route.abort())
    page.locator("#bulk").get_by_role("button", name="Archive").click()
    expect(page.locator("#toasts")).to_contain_text("did not reach the server")
    expect(card(page, one).locator("input[name=ids]")).to_be_checked()
    assert status(andon, one) == "ready"


def test_keys_walk_the_board(visit, andon: Up):
    task(andon, "First of two", priority=900)
    task(andon, "Second of two", priority=899)
    page = visit()
    board(page)
    page.locator("#column-ready .task-title").first.focus()
    page.keyboard.press("j")
    expect(page.locator("#column-ready .task-title").nth(1)).to_be_focused()
    page.keyboard.press("x")
    expect(page.locator("#bulk")).to_be_visible()
    expect(page.locator(".bulk-count")).to_have_text(re.compile("1$"))
    page.keyboard.press("k")
    expect(page.locator("#column-ready .task-title").first).to_be_focused()
    page.keyboard.press("?")
    expect(page.locator("#board-keys")).to_be_visible()
    page.keyboard.press("Escape")
    page.locator("#column-ready .task-title").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#task-title")).to_have_text("First of two")
    page.keyboard.press("g")
    page.keyboard.press("k")
    expect(page).to_have_url(re.compile("/kanban/$"))


def test_what_changed_since_is_shown_now_against_then(visit, andon: Up):
    one = task(andon, "Looked at twice")
    page = visit()
    page.watched.expected.append("409")
    page.goto(f"/kanban/tasks/{one}/block/")
    andon.post(f"/api/kanban/tasks/{one}/complete", {})
    page.get_by_role("button", name="Block").click()
    expect(page.locator("main")).to_contain_text("Changed since you looked")
    expect(page.locator("main tbody")).to_contain_text("Done")
    page.get_by_role("link", name="See it as it is now").click()
    expect(page.locator("#task-head .status").first).to_have_text("Done")


def test_without_javascript_everything_can_be_done(visit, andon: Up):
    page = visit(java_script_enabled=False)
    page.goto("/kanban/")
    page.get_by_role("link", name="New task").click()
    page.fill("#id_title", "Made without a script")
    page.get_by_role("button", name="Make the task").click()
    found = page.locator(".task", has_text="Made without a script")
    one = found.get_attribute("data-task")
    found.get_by_role("link", name="Move").click()
    page.get_by_role("button", name="Triage").click()
    expect(page.locator(f"#column-triage #{one}")).to_be_visible()
    page.locator("#toasts").get_by_role("button", name="Undo").click()
    expect(page.locator(f"#column-ready #{one}")).to_be_visible()
    page.locator(f"#{one} input[name=ids]").check()
    page.locator("#bulk").get_by_role("button", name="Archive").click()
    expect(page.locator("main")).to_contain_text("1 card done")
    page.goto(f"/kanban/tasks/{one}/")
    page.fill("#id_body", "Said **without** a script")
    page.get_by_role("button", name="Comment").click()
    expect(page.locator("#task-comments strong", has_text="without")).to_be_visible()


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}, {"java_script_enabled": False}],
    ids=["dark", "360px", "no-javascript"],
)
def test_every_page_can_be_read(visit, andon: Up, options):
    one = task(andon, "Read by everybody", body="x" * 300, tenant="t" * 60)
    page = visit(**options)
    for path, text in [
        ("/kanban/", "Read by everybody"),
        ("/kanban/?archived=1&lanes=1", "Archived"),
        ("/kanban/list/", "Read by everybody"),
        ("/kanban/profiles/", "demo"),
        (f"/kanban/tasks/{one}/", "What cannot be done now"),
        (f"/kanban/tasks/{one}/move/", "Move to"),
        (f"/kanban/tasks/{one}/edit/", "Edit"),
        ("/kanban/tasks/new/", "Limits and services"),
        ("/system/", "Dispatcher"),
    ]:
        page.goto(path)
        expect(page.locator("body")).to_contain_text(text)
        width = page.evaluate("document.documentElement.scrollWidth") if "java_script_enabled" not in options else 0
        assert width <= page.viewport_size["width"], f"{path} scrolls sideways: {width}"


def test_on_a_narrow_screen_tabs_lead_to_the_columns(visit, andon: Up):
    one = task(andon, "Far to the right", triage=False)
    andon.post(f"/api/kanban/tasks/{one}/block", {"reason": "which?"})
    page = visit(viewport={"width": 360, "height": 740}, has_touch=True)
    board(page)
    page.locator(".tabs a", has_text="Blocked").click()
    expect(card(page, one)).to_be_in_viewport(ratio=0.5)
    expect(page.locator(".tabs a[aria-current]")).to_contain_text("Blocked")
    card(page, one).get_by_role("link", name="Move").click()
    page.locator("dialog[open]").get_by_role("button", name="Ready").click()
    assert status(andon, one) == "ready"


def test_a_viewer_sees_no_verbs_and_a_direct_post_is_refused(open_page, andon: Up):
    one = task(andon, "Not theirs")
    andon.manage("shell", "-c", MAKE_VIEWER)
    page = open_page(signed_in=False)
    page.goto("/login/")
    page.fill("input[name=username]", "vito")
    page.fill("input[name=password]", PASSWORD)
    page.locator("main form button").click()
    for path in ("/kanban/", f"/kanban/tasks/{one}/", "/kanban/profiles/"):
        page.goto(path)
        assert page.locator("main :is(a[data-dialog], button[form=verb], input[name=ids], .add)").count() == 0
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "andon_csrf")
    for path in (f"tasks/{one}/move/", f"tasks/{one}/archive/", "bulk/", "tasks/new/", "dispatch/pause/"):
        answer = page.request.post(
            f"/kanban/{path}", form={"csrfmiddlewaretoken": token, "to": "todo"}, headers={"Referer": andon.url}
        )
        assert answer.status == 403, path
    assert status(andon, one) == "ready"


MAKE_VIEWER = (
    "from django.contrib.auth.models import User, Group; "
    f"u = User.objects.create_user('vito', password='{PASSWORD}'); u.groups.add(Group.objects.get(name='viewer'))"
)
