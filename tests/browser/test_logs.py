"""A log of 50 MB at 2,000 lines a second: the page stays small and quick, and nothing in the log does anything."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.furnished import end
from tests.browser.test_first_steps import live
from tests.projects.files import write_log, write_project
from tests.running import Up, running, wait_for

KEPT = 2_000
SECONDS = 12
SIZE = 50 * 1024 * 1024
HEAP = 60 * 1024 * 1024
# Each line as long as it takes for 2,000 a second to be 50 MB in that time.
WRITER = f"""
import sys, time
hostile = "<script>document.title='owned'</script><img src=x onerror=document.title='owned'>"
link = "\\x1b]8;;https://evil.example/\\x1b\\\\click\\x1b]8;;\\x1b\\\\ \\x1b[31mred\\x1b[0m"
width = {SIZE} // ({SECONDS} * 2000)
with open(sys.argv[1], "a", buffering=1 << 20) as log:
    began = time.monotonic()
    for second in range({SECONDS} * 10):
        for number in range(200):
            line = f"line {{second * 200 + number:06}} {{hostile}} {{link}} "
            log.write(line + "x" * (width - len(line) - 1) + "\\n")
        log.flush()
        time.sleep(max(0, began + (second + 1) / 10 - time.monotonic()))
    log.write("the very last line\\n")
"""


@pytest.fixture(scope="module")
def andon(tmp_path_factory) -> Iterator[Up]:
    up = None
    try:
        with running(tmp_path_factory.mktemp("logs")) as up:
            yield up
    finally:
        if up:
            end(up)


@pytest.fixture
def log(andon: Up) -> Iterator[Path]:
    """A live iteration's log: its loop is a process that sleeps."""
    root = write_project(andon.workspace / "chatty", ("pending",))
    loop = subprocess.Popen(["sleep", "300"], cwd=root)
    try:
        (root / "scripts/ralph/.ralph.pid").write_text(str(loop.pid))
        path = write_log(root, 1, "first line\n")
        wait_for(lambda: _has_iteration(andon), 30)
        yield path
    finally:
        loop.kill()
        loop.wait()


def _has_iteration(andon: Up) -> bool:
    with contextlib.suppress(OSError):
        return andon.get("/api/ralph/chatty/iterations")["total"] > 0
    return False


def heap(page: Page) -> int:
    """Return the bytes that live on the page's heap, after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used: int = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return used


def lines(page: Page) -> int:
    count: int = page.locator(".log-lines").evaluate("view => view.children.length")
    return count


def test_fifty_megabytes_at_two_thousand_lines_a_second(visit, log: Path):
    page = visit()
    page.goto("/projects/chatty/iterations/1/")
    live(page)
    expect(page.locator(".log-state")).to_have_text("Following")
    # Whoever follows sees the newest lines, and never more than the page keeps.
    writer = subprocess.Popen([sys.executable, "-c", WRITER, str(log)])
    try:
        most = 0
        while writer.poll() is None:
            page.wait_for_timeout(500)
            most = max(most, lines(page))
        assert writer.returncode == 0
    finally:
        writer.kill()
        writer.wait()
    assert log.stat().st_size > SIZE * 0.95
    expect(page.locator(".log-lines .line").last).to_have_text("the very last line", timeout=30_000)
    assert 100 < most <= KEPT
    assert lines(page) <= KEPT
    assert heap(page) < HEAP
    # What the log says is only shown.
    assert "owned" not in page.title()
    view = page.locator(".log-lines")
    assert view.locator("a, script, img").count() == 0
    expect(view.locator(".line", has_text="<script>").first).to_be_attached()
    expect(view.locator(".ansi-fg-1").last).to_have_text("red")
    assert page.watched.complaints == []


def test_scrolling_up_pauses_and_new_lines_are_counted(visit, log: Path):
    page = visit()
    with log.open("a") as out:
        out.write("".join(f"line {number}\n" for number in range(300)))
    page.goto("/projects/chatty/iterations/1/")
    view = page.locator(".log-lines")
    expect(page.locator(".log-state")).to_have_text("Following")
    view.evaluate("view => { view.scrollTop = 200 }")
    with log.open("a") as out:
        out.write("one more\nand another\n")
    expect(page.locator(".log-more")).to_have_text("2 new lines")
    assert view.evaluate("view => Math.abs(view.scrollTop - 200) < 2")
    page.locator(".log-more").click()
    expect(view.locator(".line").last).to_have_text("and another")
    expect(page.locator(".log-more")).to_be_hidden()
    assert view.evaluate("view => view.scrollHeight - view.scrollTop - view.clientHeight < 24")
    with log.open("a") as out:
        out.write("it follows again\n")
    expect(view.locator(".line").last).to_have_text("it follows again")


def test_a_line_has_an_address_that_leads_back_to_it(visit, log: Path):
    page = visit()
    with log.open("a") as out:
        out.write("".join(f"numbered {number:04}\n" for number in range(500)))
    page.goto("/projects/chatty/iterations/1/")
    line = page.locator(".log-lines .line", has_text="numbered 0123")
    line.click()
    address = page.url
    assert "#b" in address
    page.goto("/")
    page.goto(address)
    expect(page.locator(".log-lines .is-target")).to_have_text("numbered 0123")
    expect(page.locator(".log-lines .is-target")).to_be_in_viewport()


def test_the_whole_log_is_one_download_away(visit, log: Path):
    page = visit()
    page.goto("/projects/chatty/iterations/1/")
    with page.expect_download() as caught:
        page.get_by_role("link", name="Download").click()
    assert caught.value.path().read_bytes() == log.read_bytes()
