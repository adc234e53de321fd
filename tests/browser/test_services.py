"""Services in a real chromium: declared, killed, restarted, extended and stopped, and the page says so by itself."""

import contextlib
import json
import os
import re
import signal
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.browser.conftest import PASSWORD
from tests.running import Up, free_port, running, wait_for

WAIT_MS = 20_000
SERVER = """
import http.server, sys
print("listening <script>document.title='owned'</script>", flush=True)
class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
    def log_message(self, *words):
        print("asked for \\x1b[32m%s\\x1b[0m" % self.path, flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Page).serve_forever()
"""


@pytest.fixture(scope="module")
def andon(tmp_path_factory) -> Iterator[Up]:
    """One `up` for all, with a project and its service `phoenix`; whatever it started is killed at the end."""
    up = None
    try:
        with running(tmp_path_factory.mktemp("services")) as up:
            shop = up.workspace / "shop"
            shop.mkdir()
            subprocess.run(["git", "init", "-q", str(shop)], check=True)
            (shop / "server.py").write_text(SERVER)
            wait_for(lambda: up.events("project.found"), 15)
            port = free_port()
            check = {"type": "http", "url": f"http://127.0.0.1:{port}/", "expect_status": 200, "timeout_s": 60}
            spec = {"name": "phoenix", "cmd": "python3", "args": ["server.py", str(port)], "ports": [port]}
            spec |= {"healthcheck": check, "restart": "always"}
            _post(up, "/api/managed-processes?project=shop", {"specs": [spec]})
            yield up
    finally:
        # Only now: while the worker lives it would start them again.
        for process in _ours(up) if up else []:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


def _post(up: Up, path: str, body: dict) -> None:
    headers = {"Authorization": f"Bearer {up.token()}", "Content-Type": "application/json"}
    request = urllib.request.Request(up.url + path, json.dumps(body).encode(), headers)
    urllib.request.urlopen(request, timeout=20).close()


def _ours(up: Up) -> list[int]:
    """Return what services of this `up` still run: they carry its node's name."""
    found = []
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            marker = f"ANDON_SERVICE={up.env['ANDON_NODE']}.".encode()
            if entry.name.isdigit() and marker in (entry / "environ").read_bytes():
                found.append(int(entry.name))
    return found


def live(page: Page) -> None:
    expect(page.locator("html")).to_have_attribute("data-live", "live", timeout=WAIT_MS)
    page.evaluate("window.stayed = true")


def stayed(page: Page) -> bool:
    return page.evaluate("window.stayed") is True


def status(page: Page, word: str) -> None:
    expect(page.locator("#service-header .status").first).to_have_text(word, timeout=WAIT_MS)


def pid(page: Page) -> int:
    return int(page.locator("#service-header dt:text-is('Process') + dd").inner_text())


def fill(page: Page, name: str, port: int, **changed: str) -> None:
    typed = {"name": name, "cmd": "python3", "args": f"server.py\n{port}", "ports": str(port), "stop_grace_s": "5"}
    typed |= {"url": f"http://127.0.0.1:{port}/", "ttl_minutes": "30", **changed}
    for field, text in typed.items():
        page.fill(f".spec-form [name={field}]", text)


def declare(page: Page, name: str) -> int:
    """Declare a real web server by the form; returns its port."""
    port = free_port()
    page.goto("/services/new/?project=shop")
    fill(page, name, port)
    page.locator(".spec-form button[value=declare]").click()
    expect(page).to_have_url(re.compile(f"/services/shop/{name}/$"), timeout=WAIT_MS)
    status(page, "Healthy")
    return port


def test_a_mistake_is_told_beside_its_field_and_then_it_turns_healthy_without_a_reload(visit, andon: Up):
    page = visit()
    page.watched.expected.append("422")
    page.goto("/services/")
    page.get_by_role("link", name="Declare a service").first.click()
    port = free_port()
    fill(page, "web", port, cmd="vim")
    page.locator(".spec-form button[value=declare]").click()
    expect(page.locator("#id_cmd_error")).to_have_text("cmd-not-on-allowlist (vim)")
    expect(page.locator("#id_cmd")).to_have_attribute("aria-invalid", "true")
    page.locator("#refused a[href='#id_cmd']").click()
    expect(page.locator("#id_cmd")).to_be_focused()
    expect(page.locator("#id_args")).to_have_value(f"server.py\n{port}")
    page.fill("#id_cmd", "python3")
    page.locator(".spec-form button[value=check]").click()
    expect(page.locator("#checked")).to_contain_text("would be accepted in shop")
    other = visit()
    other.goto("/services/")
    live(other)
    page.locator(".spec-form button[value=declare]").click()
    expect(page).to_have_url(re.compile("/services/shop/web/$"), timeout=WAIT_MS)
    status(page, "Healthy")
    # The other browser was told by an event alone.
    expect(other.locator("#services tr", has_text="web").locator(".status")).to_have_text("Healthy", timeout=WAIT_MS)
    assert stayed(other)


def test_a_killed_process_is_shown_and_restarted_live_and_its_log_goes_on_and_is_inert(visit, andon: Up):
    page = visit()
    page.goto("/services/shop/phoenix/")
    status(page, "Healthy")
    port = int(page.locator("#service-header dt:text-is('Ports') + dd").inner_text())
    live(page)
    lines = page.locator(".log-lines")
    expect(lines).to_contain_text("<script>document.title='owned'</script>", timeout=WAIT_MS)
    ask(port, "/hello")
    expect(lines.locator(".ansi-fg-2", has_text="/hello")).to_have_count(1, timeout=WAIT_MS)
    first = pid(page)
    os.kill(first, signal.SIGKILL)
    expect(page.locator("#exits")).to_contain_text("SIGKILL", timeout=WAIT_MS)
    expect(page.locator("#service-header dt:text-is('Generation') + dd")).to_have_text("2", timeout=WAIT_MS)
    status(page, "Healthy")
    assert pid(page) != first
    expect(lines).to_contain_text("generation 2 starts", timeout=WAIT_MS)
    expect(page.locator("#service-facts")).to_contain_text("shop/phoenix crashed: SIGKILL")
    assert stayed(page)
    assert "owned" not in page.title()
    assert page.locator(".log-lines script").count() == 0


def ask(port: int, path: str) -> None:
    urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10).close()


def test_restart_extend_and_stop_ask_and_move_what_they_should(visit, andon: Up):
    page = visit()
    declare(page, "till")
    live(page)
    expiry = page.locator("#ttl time")
    before = expiry.get_attribute("datetime")
    page.get_by_role("button", name="+1 h").click()
    expect(page.locator("#toasts")).to_contain_text("now runs until", timeout=WAIT_MS)
    assert expiry.get_attribute("datetime") > before
    live(page)

    generation = page.locator("#service-header dt:text-is('Generation') + dd")
    page.get_by_role("link", name="Restart", exact=True).click()
    expect(page.locator("dialog[open]")).to_contain_text("Restart shop/till?")
    page.locator("dialog[open] [data-cancel]").click()
    expect(page.locator("dialog[open]")).to_have_count(0)
    expect(generation).to_have_text("1")
    page.get_by_role("link", name="Restart", exact=True).click()
    page.locator("dialog[open] button[data-needs-server]").click()
    expect(generation).to_have_text("2", timeout=WAIT_MS)
    status(page, "Healthy")
    extended = expiry.get_attribute("datetime")
    assert extended > before

    # A page that was left open from before the restart.
    page.watched.expected.append("409")
    page.goto("/services/shop/till/stop/?generation=1&seen=healthy")
    page.locator("main form button.button-danger").click()
    expect(page.locator("main")).to_contain_text("Changed since you looked")
    page.get_by_role("link", name="See it as it is now").click()
    status(page, "Healthy")

    process = pid(page)
    page.get_by_role("link", name="Stop", exact=True).click()
    page.locator("dialog[open] button.button-danger").click()
    status(page, "Exited")
    expect(page.locator("#exits")).to_contain_text("stopped by a person")
    assert not Path(f"/proc/{process}").exists()
    page.get_by_role("button", name="Start", exact=True).click()
    status(page, "Healthy")
    expect(generation).to_have_text("3")


def test_without_javascript_it_is_stopped_by_a_page_of_its_own(visit, andon: Up):
    declare(visit(), "plain")
    page = visit(java_script_enabled=False)
    page.goto("/services/shop/plain/")
    page.get_by_role("link", name="Stop", exact=True).click()
    expect(page).to_have_url(re.compile("/services/shop/plain/stop/"))
    page.locator("main form button.button-danger").click()
    expect(page).to_have_url(re.compile("/services/shop/plain/$"), timeout=WAIT_MS)
    status(page, "Exited")
    expect(page.locator("#toasts")).to_contain_text("shop/plain is stopped.")
    page.get_by_role("button", name="Start", exact=True).click()
    expect(page.locator("#toasts")).to_contain_text("shop/plain is started.", timeout=WAIT_MS)


@pytest.mark.parametrize(
    "options",
    [{"color_scheme": "dark"}, {"viewport": {"width": 360, "height": 740}}, {"java_script_enabled": False}],
    ids=["dark", "360px", "no-javascript"],
)
def test_every_page_of_services_can_be_read(visit, andon: Up, options):
    page = visit(**options)
    for path, text in [
        ("/services/", "phoenix"),
        ("/services/?status=healthy&project=shop", "Healthy"),
        ("/services/new/?project=shop", "policy, not a sandbox"),
        ("/services/shop/phoenix/", "Last ends"),
        ("/services/shop/phoenix/kill/", "Kill shop/phoenix?"),
        ("/projects/shop/", "phoenix"),
        ("/system/", "Managed processes"),
        ("/events/?subject=service%3Ashop%2Fphoenix", "shop/phoenix declared"),
        ("/", "Needs you"),
    ]:
        page.goto(path)
        expect(page.locator("body")).to_contain_text(text)
        width = page.evaluate("document.documentElement.scrollWidth") if "java_script_enabled" not in options else 0
        assert width <= page.viewport_size["width"], f"{path} scrolls sideways: {width}"


def test_a_viewer_sees_no_verbs_and_a_direct_post_is_refused(open_page, andon: Up):
    andon.manage("shell", "-c", MAKE_VIEWER)
    page = open_page(signed_in=False)
    page.goto("/login/")
    page.fill("input[name=username]", "vera")
    page.fill("input[name=password]", PASSWORD)
    page.locator("main form button").click()
    page.goto("/services/shop/phoenix/")
    status(page, "Healthy")
    assert page.locator("main :is(.actions a[data-dialog], button[form=verb])").count() == 0
    process = pid(page)
    token = next(cookie["value"] for cookie in page.context.cookies() if cookie["name"] == "andon_csrf")
    for verb in ("start", "restart", "stop", "kill", "extend", "erase"):
        answer = page.request.post(
            f"/services/shop/phoenix/{verb}/", form={"csrfmiddlewaretoken": token}, headers={"Referer": andon.url}
        )
        assert answer.status == 403
    answer = page.request.post("/services/new/", form={"csrfmiddlewaretoken": token}, headers={"Referer": andon.url})
    assert answer.status == 403
    assert Path(f"/proc/{process}").exists()


MAKE_VIEWER = (
    "from django.contrib.auth.models import User, Group; "
    f"u = User.objects.create_user('vera', password='{PASSWORD}'); u.groups.add(Group.objects.get(name='viewer'))"
)


def test_home_offers_the_remedy_and_keys_lead_to_services(visit, andon: Up):
    page = visit()
    port = declare(page, "victim")
    page.goto("/")
    live(page)
    process = int(andon.get("/api/managed-processes/by-name/victim?project=shop")["pid"])
    os.kill(process, signal.SIGKILL)
    need = page.locator("#needs .need", has_text="shop/victim has failed")
    expect(need).to_be_visible(timeout=WAIT_MS)
    assert stayed(page)
    need.get_by_role("button", name="Start", exact=True).click()
    expect(page).to_have_url(re.compile("/services/shop/victim/$"), timeout=WAIT_MS)
    status(page, "Healthy")
    ask(port, "/back")
    page.keyboard.press("g")
    page.keyboard.press("s")
    expect(page).to_have_url(re.compile("/services/$"))
