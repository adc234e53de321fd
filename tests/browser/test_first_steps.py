"""The newcomer: a sign-in link, a password, a project appears, its story turns green without a reload."""

import os
import re
import signal

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PASSWORD, Watched
from tests.projects.files import write_log, write_prd, write_project
from tests.running import Up, running, wait_for


def live(page: Page, state: str = "live", within_s: float = 10) -> None:
    expect(page.locator("html")).to_have_attribute("data-live", state, timeout=within_s * 1000)


def test_the_link_of_the_first_start_leads_to_a_password_and_works_once(open_page, andon: Up):
    page = open_page(signed_in=False)
    page.goto("/")
    expect(page).to_have_url(re.compile("/login/"))
    page.goto(andon.link)
    page.get_by_role("button", name="Sign in").click()
    expect(page).to_have_url(re.compile("/settings/password/"))
    for field in page.locator("input[type=password]").all():
        field.fill(PASSWORD)
    page.locator("main button").click()
    expect(page).to_have_url(andon.url + "/")
    page.watched.expected.append("404")
    page.goto(andon.link)
    expect(page.locator("main")).to_contain_text("used")

    other = open_page(signed_in=False)
    other.watched.expected.append("401")
    other.goto("/projects/")
    other.fill("input[name=username]", "admin")
    other.fill("input[name=password]", "wrong")
    other.locator("main form button").click()
    expect(other.locator("main")).to_contain_text("do not match")
    other.fill("input[name=username]", "admin")
    other.fill("input[name=password]", PASSWORD)
    other.locator("main form button").click()
    expect(other).to_have_url(andon.url + "/projects/")
    expect(other.locator("main")).to_contain_text("manage.py demo")


def test_a_project_appears_and_its_story_turns_green_without_a_reload(open_page, andon: Up):
    page = open_page()
    page.goto("/projects/")
    live(page)
    page.evaluate("window.stayed = true")
    root = write_project(andon.workspace / "garden", ("passed", "pending", "pending"))
    page.get_by_role("link", name=re.compile("garden")).first.wait_for()
    page.get_by_role("link", name=re.compile("garden")).first.click()
    live(page)
    page.evaluate("window.stayed = true")
    stories = page.locator("#stories")
    expect(stories.locator("[data-status=passed]")).to_have_count(1)
    write_prd(root, "passed", "passed", "failed")
    expect(stories.locator("[data-status=passed]")).to_have_count(2, timeout=2500)
    expect(stories.locator("[data-status=failed]")).to_have_count(1)
    expect(page.locator("#project-header")).to_contain_text("2/3")
    assert page.evaluate("window.stayed") is True


def test_an_iteration_appears_and_focus_stays(open_page, andon: Up):
    root = write_project(andon.workspace / "focus", ("pending",))
    wait_for(lambda: [e for e in andon.events("project.found") if e["project"] == "focus"], 5)
    page = open_page()
    page.goto("/projects/focus/")
    live(page)
    page.locator("#stories a").first.focus()
    write_log(root, 1)
    expect(page.locator("#iterations")).to_contain_text("1", timeout=3000)
    expect(page.locator("#iterations a[href$='/iterations/1/']").first).to_be_visible(timeout=3000)
    assert page.evaluate("document.activeElement.closest('#stories') !== null")


def test_a_corrupt_prd_leaves_others_alone_and_says_where(open_page, andon: Up):
    broken = write_project(andon.workspace / "broken", ("passed", "pending"))
    wait_for(lambda: [e for e in andon.events("project.found") if e["project"] == "broken"], 5)
    page = open_page()
    page.goto("/projects/broken/")
    live(page)
    (broken / "scripts/ralph/prd.json").write_text('{"userStories": [\n  {"id": oops\n')
    expect(page.locator("#project-header")).to_contain_text("line 2", timeout=3000)
    expect(page.locator("#stories [data-status=passed]")).to_have_count(1)
    page.goto("/projects/")
    expect(page.locator("#projects")).to_contain_text("garden")


def test_a_live_log_grows_and_is_inert(open_page, andon: Up):
    root = write_project(andon.workspace / "chatty", ("pending",))
    import subprocess

    loop = subprocess.Popen(["sleep", "120"], cwd=root)
    try:
        (root / "scripts/ralph/.ralph.pid").write_text(str(loop.pid))
        log = write_log(root, 1, "first line\n")
        wait_for(lambda: andon.get("/api/ralph/status") and _has_iteration(andon, "chatty"), 6)
        page = open_page()
        page.goto("/projects/chatty/iterations/1/")
        expect(page.locator(".log-lines")).to_contain_text("first line")
        with log.open("a") as out:
            out.write("\x1b[31mred\x1b[0m <script>document.title='owned'</script>\n")
            out.write("\x1b]8;;https://evil.example/\x1b\\click\x1b]8;;\x1b\\\n")
        expect(page.locator(".log-lines")).to_contain_text("<script>document.title='owned'</script>", timeout=3000)
        expect(page.locator(".log-lines .ansi-fg-1")).to_have_text("red")
        expect(page.locator(".log-lines")).to_contain_text("click")
        assert page.locator(".log-lines a").count() == 0
        assert "owned" not in page.title()
    finally:
        loop.kill()
        loop.wait()


def _has_iteration(andon: Up, slug: str) -> bool:
    try:
        return andon.get(f"/api/ralph/{slug}/iterations")["total"] > 0
    except OSError:
        return False


def test_the_badge_falls_to_polling_and_comes_back_without_losing_an_event(open_page, andon: Up):
    root = write_project(andon.workspace / "polled", ("pending", "pending"))
    wait_for(lambda: [e for e in andon.events("project.found") if e["project"] == "polled"], 5)
    page = open_page()
    page.watched.expected += ["WebSocket", "ERR_"]
    blocked = {"on": False}
    page.context.route_web_socket("**/ws/events*", lambda ws: ws.close() if blocked["on"] else ws.connect_to_server())
    page.goto("/projects/polled/")
    live(page)
    blocked["on"] = True
    # Every socket ends, and no new one is let through.
    os.kill(andon.children("web")[0], signal.SIGKILL)
    live(page, "polling", 30)
    write_prd(root, "passed", "pending")
    expect(page.locator("#stories [data-status=passed]")).to_have_count(1, timeout=8000)
    blocked["on"] = False
    live(page, "live", 20)
    write_prd(root, "passed", "passed")
    expect(page.locator("#stories [data-status=passed]")).to_have_count(2, timeout=2500)


def test_the_badge_says_offline_while_the_server_is_down_and_recovers(open_page, tmp_path, chromium):
    with running(tmp_path) as up:
        root = write_project(up.workspace / "away", ("pending", "pending"))
        wait_for(lambda: up.events("project.found"), 5)
        context = chromium.new_context(base_url=up.url)
        page = context.new_page()
        page.goto(up.link)
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(lambda url: "/login/link" not in url)
        page.goto("/projects/away/")
        live(page)
        page.evaluate("window.stayed = true")
        up.stop()
        live(page, "offline", 20)
        write_prd(root, "passed", "pending")
        up.start()
        live(page, "live", 20)
        expect(page.locator("#stories [data-status=passed]")).to_have_count(1, timeout=8000)
        assert page.evaluate("window.stayed") is True
        context.close()


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}, {"java_script_enabled": False}],
    ids=["dark", "360px", "no-javascript"],
)
def test_every_page_can_be_read(open_page, andon: Up, options):
    root = write_project(andon.workspace / "read", ("passed", "failed", "blocked", "pending"))
    write_log(root, 1)
    wait_for(lambda: [e for e in andon.events("project.found") if e["project"] == "read"], 5)
    page = open_page(**options)
    for path, text in [
        ("/", "Needs you"),
        ("/projects/", "read"),
        ("/projects/read/", "Story 2"),
        ("/projects/read/stories/US-002/", "criterion 2"),
        ("/projects/read/iterations/", "1"),
        ("/projects/read/iterations/1/", "working"),
        ("/events/", "project.found"),
        ("/events/1/", "via"),
        ("/system/", andon.env["ANDON_NODE"]),
        ("/settings/", "Theme"),
        ("/api/docs", ""),
    ]:
        page.goto(path)
        expect(page.locator("body")).to_contain_text(text)
        width = page.evaluate("document.documentElement.scrollWidth") if "java_script_enabled" not in options else 0
        assert width <= page.viewport_size["width"], f"{path} scrolls sideways: {width}"


def test_theme_and_density_persist(open_page):
    page = open_page()
    page.goto("/settings/")
    page.select_option("select[name=theme]", "dark")
    page.select_option("select[name=density]", "compact")
    page.locator("form[action='/settings/'] button").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    page.goto("/projects/")
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    expect(page.locator("html")).to_have_attribute("data-density", "compact")


def test_a_token_is_shown_once_and_revoked_after_a_question(open_page, andon: Up):
    page = open_page()
    page.goto("/settings/")
    page.fill("input[name=name]", "browser-made")
    page.locator("form[action='/settings/tokens/'] button").click()
    raw = page.locator("#new-token").inner_text().strip()
    assert raw.startswith("andon_")
    page.goto("/settings/")
    assert raw not in page.content()
    page.get_by_role("link", name="Revoke browser-made").click()
    page.locator("dialog[open] button.button-danger, main form button.button-danger").first.click()
    expect(page.locator("body")).to_contain_text("browser-made is revoked")


def test_a_viewer_sees_no_verbs_and_a_direct_post_is_refused(open_page, andon: Up):
    andon.manage("shell", "-c", MAKE_VIEWER)
    page = open_page(signed_in=False)
    page.watched.expected.append("403")
    page.goto("/login/")
    page.fill("input[name=username]", "vera")
    page.fill("input[name=password]", PASSWORD)
    page.locator("main form button").click()
    expect(page).to_have_url(andon.url + "/")
    page.goto("/settings/")
    assert page.locator("form[action='/settings/tokens/']").count() == 0
    page.goto("/projects/")
    assert page.locator("form[action='/projects/rescan']").count() == 0
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "andon_csrf")
    for path in ("/projects/rescan", "/settings/tokens/"):
        answer = page.request.post(path, form={"csrfmiddlewaretoken": token}, headers={"Referer": andon.url})
        assert answer.status == 403
    assert page.request.get("/admin/").status == 403


MAKE_VIEWER = (
    "from django.contrib.auth.models import User, Group; "
    f"u = User.objects.create_user('vera', password='{PASSWORD}'); u.groups.add(Group.objects.get(name='viewer'))"
)


def test_the_demo_shows_a_real_loop_whose_stories_turn_green(tmp_path, chromium):
    """What the README's first command promises, from the sign-in link on."""
    with running(tmp_path, "--demo", "--pace", "0.4") as up:
        context = chromium.new_context(base_url=up.url)
        watched = Watched(context, up.url)
        page = context.new_page()
        page.goto(up.link)
        page.get_by_role("button", name="Sign in").click()
        expect(page).to_have_url(re.compile("/settings/password/"))
        page.goto("/projects/")
        page.get_by_role("link", name=re.compile("greenhouse")).first.click()
        live(page)
        page.evaluate("window.stayed = true")
        stories = page.locator("#stories")
        green = stories.locator("[data-status=passed]")
        before = green.count()
        expect(green).not_to_have_count(before, timeout=30_000)
        expect(page.locator("#project-header")).to_contain_text("6/6", timeout=60_000)
        expect(page.locator("#project-header [data-status=complete]")).to_be_visible(timeout=10_000)
        expect(page.locator("#iterations tbody tr")).to_have_count(6)
        assert page.evaluate("window.stayed") is True
        page.goto("/projects/greenhouse/iterations/1/")
        expect(page.locator(".log-lines")).to_contain_text("commit")
        context.close()
        assert watched.complaints == []
        kinds = [event["kind"] for event in up.events() if event["project"] == "greenhouse"]
        assert kinds.count("story.passed") == 6
        assert kinds.count("iteration.finished") == 6
        assert kinds.count("loop.started") == kinds.count("loop.completed") == 1
