"""REST: declaring services, and having a spec file looked at."""

import json
from datetime import timedelta

import pytest
from django.conf import settings as django_settings
from django.middleware.csrf import get_token
from django.test import Client, RequestFactory
from django.utils import timezone

from projects.events import SWEEP
from projects.models import Event, Project
from services import lifecycle, orders
from services.models import ManagedProcess, WorkerHost
from services.processes import Identity
from services.states import Status
from tests.services.rows import (
    BOOT,
    NODE,
    as_file,
    declared,
    healthy,
    make_spec,
    play_worker,
    refused,
    serve,
    spawned,
    tick,
    with_git,
)

pytestmark = pytest.mark.django_db
URL = "/api/managed-processes"
CHECK = {"type": "tcp", "port": 4000, "timeout_s": 5}
BOTH = pytest.mark.parametrize("url", [URL, f"{URL}/validate"], ids=["declare", "validate"])


@pytest.fixture
def operator(client_of) -> Client:
    return client_of("operator")


@pytest.fixture
def demo(imported) -> Project:
    project = with_git(imported("demo"))
    tick()
    return project


def small(name: str = "web", **fields) -> dict:
    return {"name": name, "cmd": "git", "healthcheck": CHECK, **fields}


def post(client: Client, content: bytes, url: str = URL, query: str = "?project=demo", **options):
    options.setdefault("content_type", "application/json")
    return client.post(f"{url}{query}", data=content, **options)


def told(kind: str) -> list[Event]:
    return list(Event.objects.filter(kind=kind).order_by("id"))


class TestDeclare:
    def test_answers_when_all_are_started(self, operator, demo, monkeypatch):
        rows = play_worker(monkeypatch)
        specs = [small("web", ports=[4000], env={"KEY": "sesame"}, extra=1), small("api")]
        response = post(operator, as_file(*specs, written_by="agent-1", wi_id="US-001"))
        body = response.json()
        assert response.status_code == 201
        assert set(body) == {"items", "warnings"}
        assert [(item["name"], item["state"], item["alive"]) for item in body["items"]] == [
            ("web", "starting", True),
            ("api", "starting", True),
        ]
        web = body["items"][0]
        assert (web["owner_agent"], web["owner_wi"], web["owner_project"]) == ("agent-1", "US-001", "demo")
        assert (web["ports"], web["env_keys"], web["cwd"]) == ([4000], ["KEY"], demo.path)
        assert body["warnings"] == ['spec[0]: unknown key "extra"']
        assert b"sesame" not in response.content
        assert [row.name for row in rows] == ["web", "api"]
        [first, _] = told("service.declared")
        assert (first.subject, first.payload["via"], first.actor[:6]) == ("service:demo/web", "api", "token:")

    def test_answers_202_when_they_are_not_there_in_time(self, operator, demo, monkeypatch):
        play_worker(monkeypatch, lambda row: spawned(row) if row.name == "web" else None)
        response = post(operator, as_file(small("web"), small("api")))
        assert response.status_code == 202
        assert [item["alive"] for item in response.json()["items"]] == [True, False]

    def test_the_same_again_is_kept(self, operator, demo, monkeypatch):
        play_worker(monkeypatch)
        first = post(operator, as_file(small())).json()["items"][0]
        response = post(operator, as_file(small()))
        assert response.status_code == 201
        assert response.json()["warnings"] == ["already-running (web)"]
        assert response.json()["items"] == [first]

    def test_another_spec_of_the_same_work_item_replaces_it(self, operator, demo, monkeypatch):
        play_worker(monkeypatch)
        post(operator, as_file(small(), wi_id="US-1"))
        response = post(operator, as_file(small(args=["version"]), wi_id="US-1"))
        assert response.status_code == 201
        [item] = response.json()["items"]
        assert (item["generation"], item["args"]) == (2, ["version"])

    def test_is_told_of_who_did_it(self, make_user, demo, monkeypatch):
        play_worker(monkeypatch)
        client = Client(enforce_csrf_checks=True)
        client.force_login(make_user("anna", "operator"))
        assert refused(post(client, as_file(small())), 403, "csrf")
        assert not ManagedProcess.objects.exists()
        token = get_token(RequestFactory().get("/"))
        client.cookies[django_settings.CSRF_COOKIE_NAME] = token
        assert post(client, as_file(small()), headers={"X-CSRFToken": token}).status_code == 201
        assert told("service.declared")[0].actor == "user:anna"


class TestBody:
    @pytest.mark.parametrize(
        ("content", "reason"),
        [
            (b"", "json-parse: Expecting value: line 1 column 1 (char 0)"),
            (b"[]", "not-an-object"),
            (b"{}", "specs-missing"),
            (b'{"specs": []}', "specs-empty"),
            (as_file(*[small()] * 6), "specs-too-many (>5)"),
            (as_file(small(), small()), "spec[1]: duplicate-name (web)"),
            (as_file(small("Web")), "spec[0]: name-not-kebab-case (Web)"),
            (as_file(small(cmd="rm")), "spec[0]: cmd-not-on-allowlist (rm)"),
            (as_file(small(env={"MY_TOKEN": "sesame"})), "spec[0]: env-key-denied (MY_TOKEN)"),
            (as_file(small(ports=["3000"])), "spec[0]: port-invalid (3000)"),
            (as_file(small(cwd="/")), "invalid-workdir: spec[0]: cwd-outside-allowed-root"),
            (as_file(small(), written_by=7), "written_by-not-string"),
            (as_file(small(), written_by="a" * 129), "written_by-too-long (>128)"),
            (as_file(small(), wi_id="a" * 201), "wi_id-too-long (>200)"),
        ],
    )
    @BOTH
    def test_refused_with_the_exact_reason(self, operator, demo, url, content, reason):
        body = refused(post(operator, content, url), 422, "invalid-managed-spawn")
        assert body["detail"] == reason
        assert not ManagedProcess.objects.exists()
        events = told("service.rejected")
        assert len(events) == (url == URL)
        for event in events:
            assert (event.subject, event.project, event.payload["reason"]) == ("project:demo", "demo", reason)
            assert "sesame" not in json.dumps(event.payload)

    @BOTH
    def test_that_is_no_json(self, operator, demo, url):
        bom = b"\xef\xbb\xbf" + as_file(small())
        wide = as_file(small()).decode().encode("utf-16")
        for content in (bom, wide, b'{"specs": NaN}', b"[" * 60_000, b'{"specs": "\xff"}', b"\x00"):
            body = refused(post(operator, content, url), 422, "invalid-managed-spawn")
            assert body["detail"].startswith("json-parse: ")

    @BOTH
    def test_with_lone_surrogates(self, operator, demo, url):
        content = b'{"specs": [{"name": "web", "cmd": "\\ud800"}]}'
        body = refused(post(operator, content, url), 422, "invalid-managed-spawn")
        assert body["detail"] == "spec[0]: cmd-not-on-allowlist (\\ud800)"

    @BOTH
    def test_as_large_as_may_be(self, operator, demo, url, monkeypatch):
        play_worker(monkeypatch)
        content = as_file(small())
        fits = content + b" " * (65_536 - len(content))
        assert post(operator, fits, url).status_code in {200, 201}
        for size in (65_537, 1_000_000, 3_000_000):
            body = refused(post(operator, b" " * size, url), 422, "invalid-managed-spawn")
            assert body["detail"] == "unreadable: larger than 65536 bytes"

    @pytest.mark.parametrize(
        "content_type", ["application/x-www-form-urlencoded", "text/plain", "multipart/form-data; boundary=x", ""]
    )
    def test_is_raw_whatever_its_type_is_said_to_be(self, operator, demo, content_type):
        response = post(operator, as_file(small()), f"{URL}/validate", content_type=content_type)
        assert response.status_code == 200


class TestProject:
    @BOTH
    def test_must_be_named(self, operator, demo, url):
        for query in ("", "?project="):
            body = refused(post(operator, as_file(small()), url, query), 422, "invalid-request")
            assert body["detail"] == [{"type": "missing", "loc": ["query", "project"], "msg": "Field required"}]

    @BOTH
    def test_must_be_known(self, operator, demo, url):
        for slug in ("absent", "..", "%00", "a%2Fb"):
            refused(post(operator, as_file(small()), url, f"?project={slug}"), 404, "not-found")

    @BOTH
    def test_is_a_tokens_own(self, client_of, demo, imported, url, monkeypatch):
        play_worker(monkeypatch)
        with_git(imported("other"))
        bound = client_of("operator", project="demo")
        refused(post(bound, as_file(small()), url, "?project=other"), 404, "not-found")
        assert not ManagedProcess.objects.exists()
        assert post(bound, as_file(small()), url, "").status_code in {200, 201}
        assert {row.project for row in ManagedProcess.objects.all()} <= {"demo"}

    def test_must_be_there(self, operator, demo):
        Project.objects.update(missing_since=timezone.now())
        refused(post(operator, as_file(small())), 409, "project-missing")


class TestRefusals:
    def test_another_owner_has_the_name(self, operator, demo):
        healthy(demo, "web", wi="US-1")
        body = refused(post(operator, as_file(small(), wi_id="US-2")), 409, "name-already-active")
        assert body["detail"] == "name-already-active (web)"
        [event] = told("service.rejected")
        assert (event.payload["reason"], event.payload["owner"]) == ("name-already-active (web)", "US-2")
        assert ManagedProcess.objects.get().owner_wi == "US-1"

    def test_another_service_declares_the_port(self, operator, demo):
        healthy(demo, "api", ports=[4001])
        body = refused(post(operator, as_file(small(ports=[4001]))), 409, "port-conflict")
        assert body["detail"] == "port-conflict (4001: demo/api)"
        assert [event.payload["reason"] for event in told("service.rejected")] == [body["detail"]]
        assert ManagedProcess.objects.count() == 1

    def test_a_quota_is_full(self, operator, demo, settings):
        settings.ANDON_SERVICES_PER_PROJECT = 1
        body = refused(post(operator, as_file(small("a"), small("b"))), 409, "quota-exceeded")
        assert body["detail"] == "quota-exceeded (1)"
        assert not ManagedProcess.objects.exists()
        assert len(told("service.rejected")) == 1

    @pytest.mark.parametrize(
        ("reason", "code"),
        [("port-conflict (4000: nc 77 on 127.0.0.1)", "port-conflict"), ("git was not found in /bin", "start-failed")],
    )
    def test_it_cannot_be_started(self, operator, demo, monkeypatch, reason, code):
        play_worker(monkeypatch, lambda row: lifecycle.fail(row, reason, by=SWEEP, now=timezone.now()))
        assert refused(post(operator, as_file(small())), 409, code)["detail"] == reason
        assert ManagedProcess.objects.get().status == Status.FAILED

    @pytest.mark.parametrize("there", [False, True], ids=["never", "silent"])
    def test_no_worker_ticks(self, operator, demo, there):
        WorkerHost.objects.all().delete()
        if there:
            long_ago = timezone.now() - timedelta(seconds=60)
            lifecycle.enlist(Identity(NODE, BOOT, 9, 9), host_name="b", version="1", by=SWEEP, now=long_ago)
        refused(post(operator, as_file(small())), 503, "no-worker")
        assert not ManagedProcess.objects.exists()
        assert told("service.rejected") == []


class TestValidate:
    def test_gives_the_normalized_specs_and_changes_nothing(self, operator, demo):
        WorkerHost.objects.all().delete()
        operator.get("/api/me")
        before = Event.objects.count()
        response = post(operator, as_file(small(ports=[4000.0], extra=1)), f"{URL}/validate")
        body = response.json()
        assert (response.status_code, body["ok"], body["warnings"]) == (200, True, ['spec[0]: unknown key "extra"'])
        [spec] = body["specs"]
        assert set(spec) == set(make_spec(demo))
        assert (spec["ports"], spec["ttl_minutes"], spec["cwd"]) == ([4000], 240, demo.path)
        assert not ManagedProcess.objects.exists()
        assert Event.objects.count() == before

    def test_with_numbers_of_any_size(self, operator, demo):
        response = post(operator, as_file(small(attrs={"n": 10**100})), f"{URL}/validate")
        assert response.json()["specs"][0]["attrs"] == {"n": 10**100}

    def test_says_nothing_of_what_only_a_worker_knows(self, operator, demo):
        healthy(demo, "web", wi="US-1")
        assert post(operator, as_file(small()), f"{URL}/validate").status_code == 200


class TestWhoMay:
    @BOTH
    def test_a_stranger_and_a_viewer_may_not(self, client_of, demo, url):
        refused(post(Client(), as_file(small()), url), 401, "unauthenticated")
        refused(post(client_of("viewer"), as_file(small()), url), 403, "forbidden")
        assert not ManagedProcess.objects.exists()

    def test_a_kanban_run_has_its_file_checked_but_declares_nothing(self, client_of, demo):
        run = client_of("operator", project="demo", run="t_1a2b3c4d/1")
        assert post(run, as_file(small()), f"{URL}/validate", "").status_code == 200
        body = refused(post(run, as_file(small())), 403, "forbidden")
        assert "ANDON_SIDECAR" in body["detail"]
        assert not ManagedProcess.objects.exists()


def test_what_is_declared_together_stands_or_falls_together(operator, demo, monkeypatch):
    def act(row):
        if row.name == "web":
            spawned(row)
        else:
            lifecycle.fail(row, "port-conflict (4000: nc 7 on ::1)", by=SWEEP, now=timezone.now())
            for sibling in lifecycle.roll_back(row, by=SWEEP, now=timezone.now()):
                sibling.refresh_from_db()
                serve(sibling)

    play_worker(monkeypatch, act)
    refused(post(operator, as_file(small("web"), small("api"))), 409, "port-conflict")
    assert set(ManagedProcess.objects.values_list("status", flat=True)) == {Status.FAILED}


def test_the_worker_is_told_through_the_queue(operator, demo, monkeypatch):
    monkeypatch.setattr(orders, "STARTED_WITHIN_S", 0.0)
    sent = []
    monkeypatch.setattr(orders, "act", sent.append)
    assert post(operator, as_file(small())).status_code == 202
    assert sent == [ManagedProcess.objects.get().pk]


def test_a_declaration_takes_few_queries(operator, demo, monkeypatch, django_assert_max_num_queries):
    play_worker(monkeypatch, lambda row: None)
    monkeypatch.setattr(orders, "STARTED_WITHIN_S", 0.0)
    declared(demo, "other")
    operator.get("/api/me")
    with django_assert_max_num_queries(26):
        post(operator, as_file(*[small(f"s-{number}") for number in range(5)]))
