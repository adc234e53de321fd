"""Pages of services: what they say, who may, what a stale page hears, and what they cost."""

import asyncio
import json
import os
import re
from datetime import timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from projects.events import SWEEP
from projects.models import Event, Project
from projects.ralph import is_slug
from services import lifecycle
from services.models import LOG_FOLDER, ManagedProcess, WorkerHost
from services.states import Cause, Purpose, Status
from tests.services.rows import (
    declared,
    failed,
    healthy,
    launched,
    make_spec,
    play_worker,
    spawned,
    tick,
    with_git,
)

pytestmark = pytest.mark.django_db
FRAME = 6  # session, user, groups, preference, log head, hosts
HOSTILE = "<script>alert(1)</script>"
VERBS = ["start", "restart", "stop", "kill", "extend", "erase"]
ASKING = ["restart", "stop", "kill", "erase"]


@pytest.fixture
def demo(imported) -> Project:
    return with_git(imported("demo"))


@pytest.fixture
def worker(monkeypatch) -> list[ManagedProcess]:
    return play_worker(monkeypatch)


@pytest.fixture
def log_of():
    """Write a row's log; removed afterwards."""
    written: list[Path] = []

    def write(row: ManagedProcess, content: bytes) -> Path:
        LOG_FOLDER.mkdir(parents=True, exist_ok=True, mode=0o700)
        path = LOG_FOLDER / row.log_name
        path.write_bytes(content)
        written.append(path)
        return path

    yield write
    for path in written:
        path.unlink(missing_ok=True)


def text_of(answer) -> str:
    return answer.content.decode()


def now_of(row: ManagedProcess) -> ManagedProcess:
    return ManagedProcess.objects.get(pk=row.pk)


def fragment(client, path: str, name: str):
    return client.get(path, headers={"HX-Request": "true", "HX-Target": name})


def url(row: ManagedProcess, verb: str = "") -> str:
    return row.get_absolute_url() + (f"{verb}/" if verb else "")


class TestList:
    def test_says_how_to_declare_one_when_there_is_none(self, sign_in):
        text = text_of(sign_in().get("/services/"))
        assert "No service yet" in text
        assert "&quot;healthcheck&quot;" in text
        assert 'href="/services/new/"' in text
        assert 'href="/services/new/"' not in text_of(sign_in("viewer").get("/services/"))

    def test_groups_by_project_and_filters_by_the_address(self, sign_in, demo, imported):
        other = imported("other")
        healthy(demo, "web", ports=[3000])
        failed(demo, "api")
        healthy(other, "db", cmd="postgres")
        launched(demo, Purpose.LOOP, "loop")
        client = sign_in()

        def names(query: str) -> list[str]:
            groups = client.get(f"/services/?{query}").context["groups"]
            return [f"{item['row'].project}/{item['row'].name}" for group in groups for item in group["rows"]]

        assert names("") == ["demo/api", "demo/web", "other/db"]
        assert names("status=failed") == ["demo/api"]
        assert names("project=other") == ["other/db"]
        assert names("q=POSTG") == ["other/db"]
        assert names("purpose=loop") == ["demo/loop"]
        assert names("purpose=all&project=demo") == ["demo/api", "demo/loop", "demo/web"]
        assert names("project=unknown") == []
        assert names("status=nonsense&purpose=nonsense&page=999") == ["demo/api", "demo/web", "other/db"]
        text = text_of(client.get("/services/?status=failed&q=zzz"))
        assert "No service matches" in text
        assert '<option value="failed" selected>' in text

    def test_counts_by_status_within_the_project(self, sign_in, demo, imported):
        healthy(demo, "web")
        healthy(demo, "api")
        failed(imported("other"), "db")
        client = sign_in()
        assert dict(client.get("/services/").context["statuses"])["healthy"] == 2
        only = dict(client.get("/services/?project=other").context["statuses"])
        assert (only["healthy"], only["failed"]) == (0, 1)

    def test_costs_the_same_however_many_and_pages(self, sign_in, demo, django_assert_max_num_queries):
        tick()
        specs = [make_spec(demo, f"s{number:03}") for number in range(130)]
        lifecycle.declare(demo, specs, quotas=lifecycle.Quotas(project=999), by=SWEEP, now=timezone.now())
        client = sign_in()
        with django_assert_max_num_queries(FRAME + 4):
            answer = client.get("/services/")
        assert answer.context["page"].paginator.num_pages == 2
        assert "s099" in text_of(answer)
        assert "s100" not in text_of(answer)
        assert "s129" in text_of(client.get("/services/?page=2"))

    @pytest.fixture
    def several(self, demo, imported):
        other, now = imported("other"), timezone.now()
        healthy(demo, "b")
        failed(demo, "d")
        healthy(other, "a", ttl_minutes=30)
        healthy(other, "c", ttl_minutes=3)
        for name, minutes, restarts in (("b", 4, 0), ("d", 1, 3), ("a", 3, 1)):
            row = ManagedProcess.objects.filter(name=name)
            row.update(started_at=now - timedelta(minutes=minutes), restarts=restarts)
        ManagedProcess.objects.filter(name="c").update(started_at=None)

    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            ("project", "bdac"),
            ("-project", "cadb"),
            ("name", "abcd"),
            ("-name", "dcba"),
            ("status", "dbac"),
            ("-status", "cabd"),
            ("started", "badc"),
            ("-started", "dabc"),
            ("expires", "cabd"),
            ("-expires", "bacd"),
            ("-restarts", "dabc"),
            *((sort, "bdac") for sort in ("", "-", "--name", "nonsense", "env", "-owner_wi", "%22%3E%3Cscript%3E")),
        ],
    )
    def test_has_the_order_that_is_asked_for(self, sign_in, several, sort, names):
        answer = sign_in().get(f"/services/?sort={sort}")
        groups = answer.context["groups"]
        assert "".join(item["row"].name for group in groups for item in group["rows"]) == names
        # By project there is a head for each; in another order each row says of which project it is.
        of_projects = {"bdac": ["demo", "other"], "cadb": ["other", "demo"]}
        assert [group["project"] for group in groups] == of_projects.get(names, [""])
        heads = 1 if names in of_projects else 2
        assert (
            text_of(answer).count('href="/projects/demo/"') == text_of(answer).count('href="/projects/other/"') == heads
        )
        assert "><script>" not in text_of(answer)

    def test_filter_order_and_page_keep_each_other(self, sign_in, several, monkeypatch):
        monkeypatch.setattr("services.views.listing.ROWS", 1)
        client = sign_in()
        pages = [client.get(f"/services/?status=healthy&sort=-name&page={number}") for number in (1, 2, 3)]
        assert "".join(each.context["groups"][0]["rows"][0]["row"].name for each in pages) == "cba"
        text = text_of(fragment(client, "/services/?status=healthy&sort=-name&page=2", "services"))
        for part in (
            'data-live-url="/services/?status=healthy&amp;sort=-name&amp;page=2"',
            'href="?status=healthy&amp;sort=-name&amp;page=3"',
            'aria-sort="descending"><a class="sort" href="?status=healthy&amp;sort=name">',
            'href="?status=healthy&amp;sort=-restarts">',
            'href="?status=failed&amp;sort=-name"',
        ):
            assert part in text, part
        assert text.count("aria-sort=") == 1
        form = text_of(client.get("/services/?status=healthy&sort=-name"))
        assert '<option value="-name" selected>Name ↓</option>' in form
        assert 'href="/services/?sort=-name">Clear' in form

    @pytest.mark.parametrize("sort", ["status", "-started", "-restarts"])
    def test_rows_that_are_alike_are_each_on_one_page(self, sign_in, demo, monkeypatch, sort):
        for number in range(6):
            declared(demo, f"s{number}")
        ManagedProcess.objects.update(since=timezone.now())
        monkeypatch.setattr("services.views.listing.ROWS", 2)
        client = sign_in()
        pages = [client.get(f"/services/?sort={sort}&page={number}").context["groups"] for number in (1, 2, 3)]
        shown = [item["row"].name for groups in pages for item in groups[0]["rows"]]
        assert shown == [f"s{number}" for number in range(6)]

    @pytest.mark.parametrize("query", ["q=" + "x" * 900, "page=x", "page=-1", "project=%22%3E%3Cscript%3E", "purpose="])
    def test_nonsense_is_no_error(self, sign_in, demo, query):
        healthy(demo)
        answer = sign_in().get(f"/services/?{query}")
        assert answer.status_code == 200
        assert "><script>" not in text_of(answer)

    def test_a_nul_is_refused(self, sign_in):
        assert sign_in().get("/services/?q=%00").status_code == 400

    @pytest.mark.parametrize("name", ["services", "unclaimed", "project-services"])
    def test_each_fragment_alone(self, sign_in, demo, name):
        healthy(demo)
        client = sign_in()
        answer = fragment(client, "/services/?project=demo", name)
        assert f'id="{name}"' in text_of(answer)
        assert "<html" not in text_of(answer)
        again = client.get(
            "/services/?project=demo",
            headers={"HX-Request": "true", "HX-Target": name, "If-None-Match": answer["ETag"]},
        )
        assert again.status_code == 304

    def test_what_expires_soon_is_marked(self, sign_in, demo):
        healthy(demo, "late", ttl_minutes=3)
        healthy(demo, "later", ttl_minutes=30)
        [group] = sign_in().get("/services/").context["groups"]
        assert [item["is_expiring"] for item in group["rows"]] == [True, False]


class TestUnclaimed:
    @pytest.fixture
    def leave(self, home):
        def make(agent: str, content: bytes | str) -> Path:
            folder = home / "agents" / agent
            folder.mkdir(parents=True)
            path = folder / "managed-spawn.json"
            if isinstance(content, str):
                path.symlink_to(content)
            else:
                path.write_bytes(content)
            return path

        return make

    def test_shows_files_without_values_of_environments(self, sign_in, leave):
        document = {"specs": [{"name": HOSTILE, "env": {"KEY": "top-value"}}]}
        leave("t_1-1", json.dumps(document).encode())
        leave("t_2-1", b"\xff\x00not json \x1b[31m" + b"y" * 9000)
        leave("t_3-1", "/etc/passwd")
        leave("t_4-1", b"z" * 70_000)
        leave("t_5-1", json.dumps({"specs": [{"name": "y" * 9000}]}).encode())
        text = text_of(sign_in().get("/services/"))
        assert all(agent in text for agent in ("t_1-1", "t_2-1", "t_3-1", "t_4-1"))
        assert "KEY" in text
        assert "top-value" not in text
        assert HOSTILE not in text
        assert "\x1b" not in text
        assert "root:" not in text
        assert "unreadable: a symlink" in text
        assert "larger than 65536 bytes" in text
        assert "not json" not in text
        assert text.count("cut here") == 1
        assert 900 < text.count("yyyy") < 1100
        assert not ManagedProcess.objects.exists()

    @pytest.mark.parametrize(
        "content",
        [
            b'{"specs": [7, "KEY=top-value", ["top-value"], null, {"name": "seen", "env": {"KEY": "top-value"}}]}',
            b'{"specs": [{"name": "seen", "env": "KEY=top-value"}, {"env": ["top-value"]}, {"env": 7}]}',
            b'{"specs": [{"name": "seen", "env": {"KEY": {"env": "top-value"}}}], "env": {"KEY": "top-value"}}',
            b'{"specs": [{"name": "seen", "healthcheck": {"a": [{" Env ": {"KEY": "top-value"}}]}}]}',
            b'{"specs": [{"name": "seen", "environment": {"KEY": "top-value"}}], "wi_id": "\\ud800"}',
        ],
    )
    def test_odd_files_show_no_values_either(self, sign_in, leave, content):
        leave("t_1-1", content)
        text = text_of(sign_in().get("/services/"))
        assert "seen" in text
        assert "top-value" not in text

    @pytest.mark.parametrize(
        "content",
        [
            b'{"specs": [{"env": {"KEY": "top-value"}}',
            b'[{"name": "web", "env": {"KEY": "top-value"}}]',
            b'{"specs": {"web": {"x": "top-value"}}}',
            b'{"spec": [{"x": "top-value"}]}',
            b'{"specs": [], "x": "top-value", "deep": ' + b"[" * 9000 + b"]" * 9000 + b"}",
            b'{"specs": [], "x": "top-value", "long": ' + b"9" * 9000 + b"}",
            b'"top-value"',
            b"KEY=top-value",
            b"\xff\xfe\x00top-value",
            b"",
        ],
    )
    def test_of_what_is_no_spec_file_nothing_is_shown(self, sign_in, leave, content):
        leave("t_1-1", content)
        text = text_of(sign_in().get("/services/"))
        assert "no spec file, so its content is not shown" in text
        assert "top-value" not in text
        assert 'href="/services/~/unclaimed/t_1-1/discard/"' in text

    def test_viewers_see_who_left_one_but_no_content_and_no_verb(self, sign_in, leave):
        leave("t_1-1", b'{"specs": [{"name": "inner"}]}')
        text = text_of(sign_in("viewer").get("/services/"))
        assert "t_1-1" in text
        assert "inner" not in text
        assert "/discard/" not in text

    def test_is_discarded_after_a_question(self, sign_in, leave):
        path = leave("t_1-1", b"{}")
        client = sign_in()
        assert "cannot be undone" in text_of(client.get("/services/~/unclaimed/t_1-1/discard/"))
        assert path.exists()
        assert client.post("/services/~/unclaimed/t_1-1/discard/")["Location"] == "/services/"
        assert not path.exists()
        assert Event.objects.get(kind="sidecar.discarded").subject == "agent:t_1-1"
        assert client.post("/services/~/unclaimed/t_1-1/discard/").status_code == 404
        assert client.post("/services/~/unclaimed/-x/discard/").status_code == 404
        assert client.post("/services/~/unclaimed/..%2f..%2fetc/discard/").status_code == 404

    @pytest.mark.parametrize("method", ["get", "post"])
    def test_discarding_is_an_operators(self, sign_in, leave, method):
        path = leave("t_1-1", b"{}")
        assert getattr(sign_in("viewer"), method)("/services/~/unclaimed/t_1-1/discard/").status_code == 403
        assert path.exists()

    def test_agents_that_is_no_directory_is_told(self, sign_in, home):
        (home / "agents").symlink_to("/etc")
        assert "unreadable:" in text_of(sign_in().get("/services/"))


class TestOne:
    def test_shows_all_of_it_but_no_values(self, sign_in, demo):
        row = healthy(
            demo,
            ports=[3000, 3001],
            env={"SITE": "top-value"},
            attrs={"url": "http://localhost:3000/"},
            restart="always",
            agent="t_1-1",
            wi="t_1",
        )
        at = int(timezone.now().timestamp())
        ManagedProcess.objects.filter(pk=row.pk).update(
            strip=[[at * 1000 - 2000, 0, 12], [at * 1000, 1, 34]],
            usage=[[at - 10, 12.5, 1 << 20], [at, 50.0, 3 << 20]],
            exits=[
                {"at": timezone.now().isoformat(), "generation": 1, "pid": 9, "code": -9, "cause": "crash", "up_s": 61}
            ],
        )
        text = text_of(sign_in().get(url(row)))
        shown = ["Healthy", str(row.pid), "3000, 3001", "SITE", "node server.js", demo.path, "t_1-1", "user:anna"]
        shown += ["http://localhost:3000/", "1 of the last 2 probes", "34 ms", "50.0 %", "3.0", "SIGKILL", "1 min 1 s"]
        shown += ["GET http://127.0.0.1:3000/", "/events/?subject=service%3Ademo%2Fweb", "10 s between TERM and KILL"]
        assert [part for part in shown if part not in text] == []
        assert "top-value" not in text

    def test_costs_few_queries(self, sign_in, demo, django_assert_max_num_queries):
        row = healthy(demo)
        client = sign_in("admin")
        with django_assert_max_num_queries(FRAME + 2):
            client.get(url(row))
        with django_assert_max_num_queries(FRAME + 1):
            fragment(client, url(row), "service-header")

    @pytest.mark.parametrize("name", ["service-header", "service-charts", "service-facts"])
    def test_each_fragment_is_stable(self, sign_in, demo, name):
        row = healthy(demo)
        client = sign_in()
        answer = fragment(client, url(row), name)
        assert f'id="{name}"' in text_of(answer)
        assert "<html" not in text_of(answer)
        # Nothing of whoever looks, such as a form's token: it would never be the same twice.
        assert "csrfmiddlewaretoken" not in text_of(answer)

    def test_what_agents_wrote_is_inert_everywhere(self, sign_in, demo, log_of):
        spec = {"cmd": HOSTILE, "args": [HOSTILE], "attrs": {HOSTILE: [HOSTILE]}, "env": {"A": HOSTILE}}
        spec["healthcheck"] = {
            "type": "command",
            "cmd": HOSTILE,
            "args": [HOSTILE],
            "expect_regex": HOSTILE,
            "timeout_s": 9,
        }
        row = spawned(declared(demo, agent=HOSTILE, wi=HOSTILE, **spec))
        lifecycle.stop(row, cause=Cause.PROBE, reason=f"{HOSTILE}\n{HOSTILE}", by=SWEEP, now=timezone.now())
        lifecycle.settle(now_of(row), 1, by=SWEEP, now=timezone.now())
        log_of(row, f"{HOSTILE}\n\x1b]8;;http://evil.example/\x07link\x1b]8;;\x07\n\x1b[32mgreen\x1b[0m\n".encode())
        client = sign_in("admin")
        for path in (url(row), "/services/", "/", "/events/", "/projects/demo/", "/system/", url(row, "start")):
            text = text_of(client.get(path))
            assert HOSTILE not in text, path
            assert "\x1b" not in text, path
            assert 'href="http://evil' not in text, path
        assert 'class="ansi-fg-2"' in text_of(client.get(url(row)))

    def test_its_log_starts_where_rotation_left_it(self, sign_in, demo, log_of):
        row = healthy(demo)
        log_of(row, b"old line\nnew line\n")
        ManagedProcess.objects.filter(pk=row.pk).update(log_head=9, log_mode="punch")
        client = sign_in("viewer")
        text = text_of(client.get(url(row)))
        assert "new line" in text
        assert "old line" not in text
        assert "Rotated:" in text
        assert 'data-start="9"' in text
        answer = client.get(url(row) + "log")
        assert asyncio.run(whole(answer)) == b"new line\n"
        assert answer["Content-Disposition"].startswith("attachment")
        assert answer["Content-Type"].startswith("text/plain")
        ManagedProcess.objects.filter(pk=row.pk).update(log_head=0, log_mode="copytruncate")
        assert "copied and truncated" in text_of(client.get(url(row)))

    def test_a_long_log_is_cut_and_says_so(self, sign_in, demo, log_of):
        row = healthy(demo)
        log_of(row, b"".join(b"line %06d\n" % number for number in range(30_000)))
        text = text_of(sign_in().get(url(row)))
        assert "line 029999" in text
        assert "line 000001" not in text
        assert "are not shown here" in text

    def test_without_a_log_or_with_something_else_in_its_place(self, sign_in, demo, log_of):
        row = healthy(demo)
        client = sign_in()
        assert "There is no log file yet" in text_of(client.get(url(row)))
        path = log_of(row, b"")
        path.unlink()
        path.symlink_to("/etc/passwd")
        assert "root:" not in text_of(client.get(url(row)))
        assert client.get(url(row) + "log").status_code == 404
        path.unlink()
        os.mkfifo(path)
        assert "There is no log file yet" in text_of(client.get(url(row)))

    def test_says_what_it_waits_for(self, sign_in, demo):
        client = sign_in()
        row = healthy(demo, restart="always")
        lifecycle.ended(row, 3, members=[], tail="boom", jitter=1.0, by=SWEEP, now=timezone.now())
        text = text_of(client.get(url(row)))
        assert "is tried again" in text
        assert "exit code 3" in text
        assert "boom" in text
        assert "Try now" in text
        going = healthy(demo, "going")
        lifecycle.stop(going, by=SWEEP, now=timezone.now())
        lifecycle.signalled(going, members=[], kill_at=timezone.now() + timedelta(seconds=9), now=timezone.now())
        assert "what is left is killed" in text_of(client.get(url(going)))
        lifecycle.remain(going, [4711, 4712], "still there after SIGKILL", by=SWEEP, now=timezone.now())
        assert "Still there: 4711, 4712" in text_of(client.get(url(going)))

    @pytest.mark.parametrize(
        ("status", "verbs"),
        [
            ("healthy", ["restart", "stop", "kill"]),
            ("stopping", ["kill"]),
            ("failed", ["start", "erase"]),
            ("backoff", ["start", "stop"]),
        ],
    )
    def test_offers_what_can_be_done_now(self, sign_in, demo, status, verbs):
        row = failed(demo) if status == "failed" else healthy(demo, restart="always")
        if status == "stopping":
            lifecycle.stop(row, by=SWEEP, now=timezone.now())
        if status == "backoff":
            lifecycle.ended(row, 3, members=[], jitter=1.0, by=SWEEP, now=timezone.now())
        text = text_of(sign_in().get(url(row)))
        assert [verb for verb in VERBS if f'"{url(row, verb)}' in text and verb != "extend"] == [
            verb for verb in VERBS if verb in verbs
        ]
        viewers = text_of(sign_in("viewer").get(url(row)))
        assert [verb for verb in VERBS if url(row, verb) in viewers] == []

    def test_a_loop_and_a_worker_share_the_page(self, sign_in, demo):
        client = sign_in()
        for purpose, name in ((Purpose.LOOP, "loop"), (Purpose.WORKER, "t-1a2b3c4d-1")):
            row = launched(demo, purpose, name)
            assert url(row) == f"/services/~/{row.pk}/"
            text = text_of(client.get(url(row)))
            assert "Running" in text
            assert f"{url(row)}log-stream" in text
            assert url(row, "restart") not in text
            assert client.get(f"/services/demo/{name}/").status_code == 404

    def test_no_project_and_no_name_leads_to_another_process(self, sign_in, worker, imported, demo):
        other = healthy(demo)
        mine = healthy(with_git(imported("processes")), str(other.pk))
        client = sign_in()
        assert client.get(url(mine)).context["s"].pk == mine.pk
        client.post(url(mine, "stop"), {"expected_generation": "1"})
        assert [now_of(row).status for row in (mine, other)] == ["exited", "healthy"]
        unclaimed = healthy(with_git(imported("unclaimed")))
        assert client.get(f"{url(unclaimed)}discard/").status_code == 404
        assert not is_slug("~")

    @pytest.mark.parametrize(
        "path",
        [
            *(
                "/services/demo/none/",
                "/services/none/web/",
                "/services/~/999/",
                "/services/~/9999999999/",
            ),
            *(
                "/services/demo/web/log",
                "/services/demo/none/log",
                "/services/demo/web/fly/",
                "/services/demo/none/stop/",
            ),
        ],
    )
    def test_what_is_not_there_is_404_with_a_page(self, sign_in, demo, path):
        healthy(demo)
        answer = sign_in().get(path)
        assert (answer.status_code, "<main" in text_of(answer)) == (404, True)


async def whole(response) -> bytes:
    return b"".join([piece async for piece in response])


class TestVerbs:
    @pytest.mark.parametrize("verb", VERBS)
    @pytest.mark.parametrize("method", ["get", "post"])
    def test_are_an_operators(self, sign_in, demo, worker, verb, method):
        row = healthy(demo)
        before = Event.objects.count()
        assert getattr(sign_in("viewer"), method)(url(row, verb)).status_code == 403
        assert (now_of(row).status, worker, Event.objects.count()) == ("healthy", [], before)

    @pytest.mark.parametrize("verb", ["start", "extend"])
    def test_what_does_not_ask_is_only_posted(self, sign_in, demo, worker, verb):
        assert sign_in().get(url(healthy(demo), verb)).status_code == 405
        assert worker == []

    @pytest.mark.parametrize("verb", ASKING)
    def test_what_cannot_be_taken_back_asks_first(self, sign_in, demo, worker, verb):
        row = healthy(demo)
        answer = sign_in().get(f"{url(row, verb)}?generation=1&seen=healthy")
        assert 'id="confirm"' in text_of(answer)
        assert 'name="expected_generation" value="1"' in text_of(answer)
        assert (now_of(row).status, worker) == ("healthy", [])

    def test_stop_start_restart_kill_and_erase(self, sign_in, demo, worker):
        row = healthy(demo)
        client = sign_in()

        def post(verb: str, expected: int) -> str:
            answer = client.post(url(row, verb), {"expected_generation": expected}, follow=True)
            assert answer.redirect_chain == [("/services/" if verb == "erase" else url(row), 302)]
            return text_of(answer)

        assert "demo/web is stopped." in post("stop", 1)
        assert now_of(row).status == Status.EXITED
        assert "demo/web is started." in post("start", 1)
        assert (now_of(row).status, now_of(row).generation) == ("starting", 2)
        assert "demo/web is started again." in post("restart", 2)
        assert now_of(row).generation == 3
        assert "demo/web is killed." in post("kill", 3)
        assert "demo/web is forgotten." in post("erase", 3)
        assert not ManagedProcess.objects.exists()
        told = Event.objects.filter(subject="service:demo/web", actor__startswith="user:operator")
        assert {event.payload["via"] for event in told} == {"page"}

    def test_extend_moves_the_expiry_and_tells_until_when(self, sign_in, demo, worker):
        row = healthy(demo, ttl_minutes=30)
        client = sign_in()
        one, four = re.findall(r'formaction="([^"]+/extend/[^"]*)"', text_of(client.get(url(row))))
        client.post(one, {"expected_generation": "1"})
        assert now_of(row).expires_at - row.expires_at == timedelta(minutes=60)
        ManagedProcess.objects.filter(pk=row.pk).update(expires_at=row.expires_at)
        answer = client.post(four, {"expected_generation": "1"}, follow=True)
        moved = now_of(row).expires_at - row.expires_at
        assert moved == timedelta(minutes=240)
        assert now_of(row).expires_at.strftime("%H:%M") in text_of(answer)
        assert client.post(url(row, "extend"), {"minutes": "-5"}).status_code == 400
        assert now_of(row).expires_at - row.expires_at == timedelta(minutes=240)

    @pytest.mark.parametrize("verb", [verb for verb in VERBS if verb != "start"])
    def test_a_stale_page_hears_what_changed(self, sign_in, demo, worker, verb):
        row = healthy(demo) if verb != "erase" else failed(demo)
        ManagedProcess.objects.filter(pk=row.pk).update(generation=5)
        status = now_of(row).status
        answer = sign_in().post(url(row, verb), {"expected_generation": "4", "seen": "starting"})
        text = text_of(answer)
        assert (answer.status_code, "Changed since you looked" in text) == (409, True)
        assert "<td>4</td><td><strong>5</strong></td>" in text
        assert "<td>Starting</td>" in text
        assert f'href="{url(row)}"' in text
        assert (now_of(row).status, now_of(row).generation, worker) == (status, 5, [])

    def test_a_stale_start_hears_it_too(self, sign_in, demo, worker):
        row = failed(demo)
        ManagedProcess.objects.filter(pk=row.pk).update(generation=5)
        assert sign_in().post(url(row, "start"), {"expected_generation": "1"}).status_code == 409
        assert (now_of(row).status, worker) == ("failed", [])

    @pytest.mark.parametrize("number", ["x", "1.5", "-1", "9" * 30, "١"])
    def test_nonsense_for_a_generation_is_400(self, sign_in, demo, worker, number):
        row = healthy(demo)
        assert sign_in().post(url(row, "stop"), {"expected_generation": number}).status_code == 400
        assert (now_of(row).status, worker) == ("healthy", [])

    @pytest.mark.parametrize("verb", ["start", "restart", "stop", "kill"])
    def test_without_a_worker_nothing_is_changed_and_the_page_says_so(self, sign_in, demo, worker, verb):
        row = failed(demo) if verb == "start" else healthy(demo)
        before = now_of(row).status
        WorkerHost.objects.update(tick_at=timezone.now() - timedelta(seconds=60))
        text = text_of(sign_in().post(url(row, verb), follow=True))
        assert "No worker ticks on test-node" in text
        assert (now_of(row).status, worker) == (before, [])

    def test_what_does_not_end_in_time_is_told_and_goes_on(self, sign_in, demo, monkeypatch):
        play_worker(monkeypatch, act=lambda row: None)
        row = healthy(demo, stop_grace_s=0)
        text = text_of(sign_in().post(url(row, "stop"), follow=True))
        assert "still being stopped" in text
        assert now_of(row).status == "stopping"

    def test_a_refusal_is_told_on_the_page(self, sign_in, demo, worker):
        row = failed(demo)
        healthy(demo, "other", ports=[3000])
        ManagedProcess.objects.filter(pk=row.pk).update(ports=[3000])
        text = text_of(sign_in().post(url(row, "start"), follow=True))
        assert "port-conflict (3000: demo/other)" in text
        assert "still-live" not in text
        assert "is healthy. Stop it first." in text_of(sign_in().post("/services/demo/other/erase/", follow=True))

    def test_a_post_without_a_token_of_the_form_is_refused(self, sign_in, demo, worker):
        row = healthy(demo)
        client = sign_in(enforce_csrf_checks=True)
        assert client.post(url(row, "stop")).status_code == 403
        assert (now_of(row).status, worker) == ("healthy", [])

    def test_a_loop_is_stopped_by_its_number(self, sign_in, demo, worker):
        row = launched(demo, Purpose.LOOP, "loop")
        sign_in().post(url(row, "stop"), {"expected_generation": "1"})
        assert now_of(row).status == "exited"


class TestOtherPages:
    def test_home_says_what_needs_somebody_with_a_remedy(self, sign_in, demo, worker):
        failed(demo, "broken")
        looping = healthy(demo, "looping", restart="always")
        for _ in range(6):
            if now_of(looping).status == "backoff":
                lifecycle.respawn(now_of(looping), by=SWEEP, now=timezone.now())
            row = now_of(looping)
            if row.pid is None and row.status == "starting":
                spawned(row)
            lifecycle.ended(now_of(looping), 1, members=[], jitter=0.0, by=SWEEP, now=timezone.now())
        sick = healthy(demo, "sick")
        lifecycle.sicken(sick, "answered 500", misses=3, jitter=0.0, by=SWEEP, now=timezone.now())
        gone = healthy(demo, "gone")
        lifecycle.lose(gone, "the machine was restarted", by=SWEEP, now=timezone.now())
        healthy(demo, "short", ttl_minutes=3)
        stuck = healthy(demo, "stuck")
        lifecycle.stop(stuck, by=SWEEP, now=timezone.now())
        lifecycle.remain(now_of(stuck), [4711], "still there after SIGKILL", by=SWEEP, now=timezone.now())
        healthy(demo, "fine")
        client = sign_in()
        text = text_of(fragment(client, "/", "needs"))
        said = ["demo/broken has failed", "crashes again and again", "demo/sick is unhealthy", "answered 500"]
        said += [
            "demo/gone is lost",
            "the machine was restarted",
            "demo/short expires soon",
            "demo/stuck cannot be stopped",
        ]
        said += ["/services/demo/broken/start/", "/services/demo/looping/start/", "/services/demo/sick/restart/"]
        said += ["/services/demo/short/extend/?minutes=60", "/services/demo/stuck/kill/", "/services/demo/gone/start/"]
        assert [part for part in said if part not in text] == []
        assert "demo/fine" not in text
        assert text.index("again and again") < text.index("has failed") < text.index("is unhealthy")
        assert "/start/" not in text_of(fragment(sign_in("viewer"), "/", "needs"))
        client.post("/services/demo/broken/start/", {"expected_generation": "1"})
        assert "demo/broken has failed" not in text_of(fragment(client, "/", "needs"))

    def test_system_counts_by_node_and_status(self, sign_in, demo, django_assert_max_num_queries):
        for name in ("a", "b"):
            healthy(demo, name)
        failed(demo, "c")
        launched(demo, Purpose.LOOP, "loop")
        client = sign_in()
        with django_assert_max_num_queries(FRAME + 6):
            [node] = client.get("/system/").context["processes"]
        assert (node["node"], node["total"]) == ("test-node", 4)
        assert {(row["purpose"], row["status"]): row["number"] for row in node["rows"]} == {
            ("loop", "running"): 1,
            ("service", "healthy"): 2,
            ("service", "failed"): 1,
        }
        assert 'id="processes"' in text_of(fragment(client, "/system/", "processes"))

    def test_a_projects_page_links_its_services(self, sign_in, demo, imported):
        healthy(demo, "web", ports=[3000])
        healthy(imported("other"), "db")
        text = text_of(sign_in().get("/projects/demo/"))
        assert 'href="/services/demo/web/"' in text
        assert "/services/other/db/" not in text
        assert 'href="/services/new/?project=demo"' not in text_of(sign_in("viewer").get("/projects/demo/"))

    def test_events_lead_to_what_they_are_about(self, sign_in, demo):
        healthy(demo)
        launched(demo, Purpose.LOOP, "loop")
        urls = {event.subject: event.url for event in Event.objects.all()}
        assert urls["service:demo/web"] == "/services/demo/web/"
        assert urls["project:demo"] == "/projects/demo/"
        assert urls["worker:test-node"] == "/system/"
        for subject in ("service:", "service:x", "story:x", "iteration:a/b", "strange:x", "loop:", "service:a/b/c"):
            assert isinstance(Event(subject=subject, kind="x").url, str)

    def test_the_menu_and_the_keys_name_them(self, sign_in):
        text = text_of(sign_in().get("/services/"))
        assert '<a href="/services/" aria-current="page">' in text
        assert "<kbd>g</kbd> <kbd>s</kbd>" in text
