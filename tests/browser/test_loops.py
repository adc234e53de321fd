"""Loops and rollbacks in a real chromium: stopped, previewed, rolled back, started, and the page says so by itself."""

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PASSWORD
from tests.running import Up, running, wait_for

WAIT_MS = 30_000
BOOKKEEPING = (":!scripts/ralph", ":!.ralph")


@pytest.fixture(scope="module")
def andon(tmp_path_factory) -> Iterator[Up]:
    """One `up --demo` for all, whose loop is stopped with two stories passed; what still runs is killed at the end."""
    up = None
    try:
        with running(tmp_path_factory.mktemp("loops"), "--demo", "--pace", "1") as up:
            wait_for(lambda: len(passed(up, "greenhouse")) >= 2, 90)
            yield up
    finally:
        for process in _ours(up) if up else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _ours(up: Up) -> list[int]:
    """Return what loops of this `up` still run: they carry its node's name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            marker = f"ANDON_SERVICE={up.env['ANDON_NODE']}.".encode()
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def project(up: Up, slug: str) -> dict:
    return next(each for each in up.get("/api/ralph/status")["projects"] if each["slug"] == slug)


def passed(up: Up, slug: str) -> list[str]:
    with contextlib.suppress(StopIteration):
        return [story["id"] for story in project(up, slug)["stories"] if story["passes"]]
    return []


def git(root: Path, *words: str) -> str:
    identity = ("-c", "user.name=A", "-c", "user.email=a@b")
    done = subprocess.run(["git", "-C", str(root), *identity, *words], check=True, capture_output=True, text=True)
    return done.stdout


def live(page: Page) -> None:
    expect(page.locator("html")).to_have_attribute("data-live", "live", timeout=WAIT_MS)
    page.evaluate("window.stayed = true")


def stayed(page: Page) -> bool:
    return page.evaluate("window.stayed") is True


def status(page: Page, word: str) -> None:
    expect(page.locator("#project-header .status").first).to_have_text(word, timeout=WAIT_MS)


def settle(up: Up) -> Path:
    """Stop the greenhouse's loop where it runs; returns its directory."""
    if project(up, "greenhouse")["running"]:
        up.post("/api/ralph/greenhouse/stop", {})
        wait_for(lambda: not project(up, "greenhouse")["running"], 20)
    return up.workspace / "greenhouse"


def ensure_running(up: Up) -> None:
    """Have the greenhouse's loop at work, also where this journey is walked a second time."""
    if not project(up, "greenhouse")["running"]:
        up.post("/api/ralph/greenhouse/start", {"max_iterations": 20})
        wait_for(lambda: project(up, "greenhouse")["running"], 20)


def test_the_loop_is_stopped_and_its_last_story_rolled_back(visit, andon: Up):
    ensure_running(andon)
    page = visit()
    page.goto("/projects/greenhouse/")
    status(page, "Running")
    live(page)
    other = visit()
    other.goto("/projects/greenhouse/")
    live(other)
    page.get_by_role("link", name="Stop…").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("Stop the loop of greenhouse?")
    dialog.get_by_label("Now:").check()
    # Answered once the agent has ended, which may take its grace.
    dialog.locator("button[data-needs-server]").click(timeout=WAIT_MS)
    status(page, "Idle")
    # The other browser was told by events alone.
    status(other, "Idle")
    assert stayed(other)
    root = andon.workspace / "greenhouse"
    wait_for(lambda: not _ours(andon), 20)
    # A story that was cut off may have been committed and not have passed, or the other way round.
    last = re.search(r"\[(US-\d+)\]", git(root, "log", "-1", "--format=%s"))[1]
    head = git(root, "rev-parse", "HEAD").strip()
    progress = (root / "scripts/ralph/progress.txt").read_bytes()
    git_tells = git(root, "diff", "--stat", "HEAD", "HEAD~1", "--", ".", *BOOKKEEPING)

    page.get_by_role("link", name="Roll back…").click()
    expect(page.locator("#rollback")).to_contain_text(head[:12])
    page.get_by_text("As git tells it").click()
    assert page.locator("#diffstat").inner_text().split() == git_tells.split()
    expect(page.locator("#rollback")).to_contain_text(last)
    page.get_by_role("link", name="Roll back…").click()
    expect(page.locator("dialog[open]")).to_contain_text("Roll back?")
    page.locator("dialog[open] [data-cancel]").click()
    assert git(root, "rev-parse", "HEAD").strip() == head
    page.get_by_role("link", name="Roll back…").click()
    page.locator("dialog[open] button.button-danger").click()
    expect(page).to_have_url(re.compile("/projects/greenhouse/rollback/\\d+/$"), timeout=WAIT_MS)
    expect(page.locator("#rollback-done .status")).to_have_text("Done")
    backup = page.locator("pre code").first.inner_text()
    assert git(root, "rev-parse", backup).strip() == head

    # The story flips where it is looked at, without a reload; the code is back, the log is not touched.
    row = other.locator("#stories tr", has_text=last)
    expect(row.locator(".status")).to_have_text("Pending", timeout=WAIT_MS)
    assert stayed(other)
    assert last not in passed(andon, "greenhouse")
    assert git(root, "diff", "--stat", "HEAD", "HEAD~2", "--", ".", *BOOKKEEPING) == ""
    assert git(root, "status", "--porcelain", "--", ".", *BOOKKEEPING) == ""
    assert (root / "scripts/ralph/progress.txt").read_bytes() == progress


def test_a_preview_that_is_out_of_date_is_refused_and_says_what_changed(visit, andon: Up):
    root = settle(andon)
    page = visit()
    page.watched.expected.append("409")
    page.goto("/projects/greenhouse/rollback/?commit=" + git(root, "rev-parse", "HEAD~1").strip())
    page.goto("/projects/birdsong/rollback/")
    birdsong = andon.workspace / "birdsong"
    seen = git(birdsong, "rev-parse", "HEAD").strip()
    (birdsong / "late.txt").write_text("late\n")
    git(birdsong, "add", "late.txt")
    git(birdsong, "commit", "-qm", "Somebody was faster")
    page.get_by_role("link", name="Roll back…").click()
    page.locator("dialog[open] button.button-danger").click()
    expect(page.locator("main")).to_contain_text("Changed since you looked", timeout=WAIT_MS)
    expect(page.locator("main")).to_contain_text(seen[:12])
    expect(page.locator("main")).to_contain_text(git(birdsong, "rev-parse", "HEAD").strip()[:12])
    assert (birdsong / "late.txt").exists()
    page.get_by_role("link", name="See it as it is now").click()
    expect(page.locator("#rollback")).to_contain_text("Somebody was faster")


def test_started_by_its_page_and_stopped_and_rolled_back_in_one(visit, andon: Up):
    root = settle(andon)
    page = visit()
    page.goto("/projects/greenhouse/")
    page.get_by_role("link", name="Start…").click()
    dialog = page.locator("dialog[open]")
    expect(dialog).to_contain_text("demo_agent.py")
    dialog.locator("[name=max_iterations]").fill("20")
    dialog.locator("button[data-needs-server]").click()
    status(page, "Running")
    live(page)
    before = git(root, "rev-parse", "HEAD").strip()
    wait_for(lambda: git(root, "rev-parse", "HEAD").strip() != before, 40)
    page.goto("/projects/greenhouse/rollback/")
    page.get_by_role("link", name="Stop and roll back…").click()
    expect(page.locator("dialog[open]")).to_contain_text("Stop the loop and roll back?")
    page.locator("dialog[open] button.button-danger").click()
    # Its last commit may have come between the preview and the question: then nothing is done but the stop.
    done = page.locator("#rollback-done .status, main .code")
    page.watched.expected.append("409")
    expect(done).to_be_visible(timeout=WAIT_MS)
    wait_for(lambda: not project(andon, "greenhouse")["running"], 20)
    assert _ours(andon) == []


def test_one_that_ignores_term_is_killed(visit, andon: Up):
    page = visit()
    page.goto("/projects/birdsong/loop/")
    page.fill("[name=agent]", "")
    page.fill("[name=command]", "sh -c 'trap \"\" TERM; while :; do sleep 1; done'")
    page.locator("main form button").last.click()
    expect(page).to_have_url(re.compile("/projects/birdsong/$"), timeout=WAIT_MS)
    page.get_by_role("link", name="Start…").click()
    page.locator("dialog[open] button[data-needs-server]").click()
    status(page, "Running")
    [*processes] = _ours(andon)
    assert processes
    page.get_by_role("link", name="Stop…").click()
    page.locator("dialog[open]").get_by_label("Kill it at once").check()
    page.locator("dialog[open] button[data-needs-server]").click()
    expect(page.locator("#toasts")).to_contain_text("had to be killed", timeout=WAIT_MS)
    status(page, "Blocked")
    assert _ours(andon) == []


def test_without_javascript_a_rollback_is_asked_for_by_a_page_of_its_own(visit, andon: Up):
    root = settle(andon)
    (root / "extra.py").write_text("extra = 1\n")
    git(root, "add", "extra.py")
    git(root, "commit", "-qm", "feat: [US-001] By hand")
    page = visit(java_script_enabled=False)
    page.goto("/projects/greenhouse/rollback/")
    expect(page.locator("#rollback")).to_contain_text("By hand")
    page.get_by_role("link", name="Roll back…").click()
    expect(page).to_have_url(re.compile("/rollback/confirm/"))
    page.locator("main form button.button-danger").click()
    expect(page.locator("#rollback-done .status")).to_have_text("Done", timeout=WAIT_MS)
    assert not (root / "extra.py").exists()
    assert "US-001" not in passed(andon, "greenhouse")
    page.goto("/projects/greenhouse/stories/US-002/")


def test_what_is_in_the_way_is_named_and_nothing_is_touched(visit, andon: Up):
    root = settle(andon)
    (root / "README.md").write_text("mine <b>alone</b>\n")
    try:
        page = visit()
        page.goto("/projects/greenhouse/rollback/")
        expect(page.locator("[data-blocker=dirty-tree]")).to_contain_text("README.md")
        expect(page.get_by_role("button", name="Roll back…")).to_be_disabled()
        assert (root / "README.md").read_text() == "mine <b>alone</b>\n"
    finally:
        git(root, "checkout", "-q", "--", "README.md")


def test_a_story_is_opened_again_and_a_budget_set(visit, andon: Up):
    page = visit()
    page.goto("/projects/birdsong/stories/US-005/")
    expect(page.locator(".status").first).to_have_text("Blocked")
    live(page)
    page.get_by_role("link", name="Open again…").click()
    page.locator("dialog[open] button[data-needs-server]").click()
    expect(page.locator(".title-row .status")).to_have_text("Pending", timeout=WAIT_MS)
    page.goto("/projects/birdsong/")
    page.get_by_role("link", name="Budget…").click()
    page.locator("dialog[open] [name=max_cost_usd]").fill("1.25")
    page.locator("dialog[open] button[data-needs-server]").click()
    expect(page.locator("#toasts")).to_contain_text("The budget is set", timeout=WAIT_MS)
    budget = json.loads((andon.workspace / "birdsong/.ralph/budget.json").read_text())
    assert budget == {"max_cost_usd": 1.25}


def test_costs_are_shown_and_saved_as_csv(visit, andon: Up):
    page = visit()
    page.goto("/costs/")
    expect(page.locator("main")).to_contain_text("greenhouse")
    expect(page.locator("main svg").first).to_be_visible()
    with page.expect_download() as download:
        page.get_by_role("link", name=re.compile("CSV")).first.click()
    text = Path(download.value.path()).read_text()
    assert text.splitlines()[0].count(",") > 4
    assert "US-001" in text


def roll_back(up: Up) -> int:
    """Return the number of a rollback of the greenhouse, made over REST when there is none yet."""
    if not up.events("rollback.asked"):
        up.post("/api/ralph/greenhouse/rollback", {})
    return up.events("rollback.asked")[-1]["payload"]["rollback"]


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}, {"java_script_enabled": False}],
    ids=["dark", "360px", "no-javascript"],
)
def test_every_page_of_loops_can_be_read(visit, andon: Up, options):
    settle(andon)
    rollback = roll_back(andon)
    page = visit(**options)
    for path, text in [
        ("/projects/", "Roll back…"),
        ("/projects/greenhouse/", "Start…"),
        ("/projects/greenhouse/start/", "Start the loop of greenhouse"),
        ("/projects/greenhouse/stop/", "Stop the loop of greenhouse?"),
        ("/projects/greenhouse/budget/", "Budget of greenhouse"),
        ("/projects/greenhouse/loop/", "What starts the loop of greenhouse"),
        ("/projects/greenhouse/rollback/", "Earlier"),
        (f"/projects/greenhouse/rollback/{rollback}/", f"Rollback {rollback}"),
        ("/costs/", "Costs"),
    ]:
        page.goto(path)
        expect(page.locator("body")).to_contain_text(text)
        width = page.evaluate("document.documentElement.scrollWidth") if "java_script_enabled" not in options else 0
        assert width <= page.viewport_size["width"], f"{path} scrolls sideways: {width}"


def test_a_viewer_sees_no_controls_and_a_direct_post_is_refused(open_page, andon: Up):
    root = settle(andon)
    andon.manage("shell", "-c", MAKE_VIEWER)
    page = open_page(signed_in=False)
    page.goto("/login/")
    page.fill("input[name=username]", "vera")
    page.fill("input[name=password]", PASSWORD)
    page.locator("main form button").click()
    for path in ("/projects/", "/projects/greenhouse/", "/projects/greenhouse/rollback/"):
        page.goto(path)
        assert page.locator("main :is(.actions a, a[data-dialog], button[form=verb])").count() == 0, path
    head = git(root, "rev-parse", "HEAD").strip()
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "andon_csrf")
    for verb in ("start", "stop", "budget", "loop", "rollback/confirm", "stories/US-001/requeue"):
        form = {"csrfmiddlewaretoken": token, "expected_head": head, "idempotency_key": "k", "grace_s": "0"}
        answer = page.request.post(f"/projects/greenhouse/{verb}/", form=form, headers={"Referer": andon.url})
        assert answer.status == 403, verb
    assert git(root, "rev-parse", "HEAD").strip() == head


MAKE_VIEWER = (
    "from django.contrib.auth.models import User, Group; "
    f"u = User.objects.create_user('vera', password='{PASSWORD}'); u.groups.add(Group.objects.get(name='viewer'))"
)
