"""REST: every row of the table, every refusal's shape, and who sees what."""

import itertools
import json
from datetime import timedelta
from pathlib import Path

import pytest
from django.middleware.csrf import get_token
from django.test import Client, RequestFactory
from django.utils import timezone
from ninja.errors import AuthenticationError

from config.api import Door
from projects import access, queries, ralph
from projects.access import Identity
from projects.errors import Forbidden
from projects.events import SWEEP, By, record, writing
from projects.models import ApiToken, Event, EventFloor, Iteration, Project
from projects.states import Role
from tests.projects.files import write_log

pytestmark = pytest.mark.django_db
BAD_SLUGS = [
    "..",
    "%2e%2e",
    "a%20b",
    "x" * 65,
    "demo%0A",
    "demo%00",
    "d%C3%A9mo",
    "demo.json",
    "absent",
    "-%F0%9F%98%80",
]


@pytest.fixture
def viewer(client_of) -> Client:
    return client_of("viewer")


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo", states=("passed", "failed", "pending"))


def folder(project: Project) -> Path:
    return Path(project.path) / "scripts/ralph"


def refused(response, status: int, error: str) -> dict:
    """Assert the one shape of errors; returns the body."""
    body = response.json()
    assert (response.status_code, body["error"]) == (status, error)
    assert response["Content-Type"].startswith("application/json")
    assert set(body) >= {"error", "detail"}
    if isinstance(body["detail"], str):
        assert body["detail"].strip()
        assert "Traceback" not in body["detail"]
    return body


class TestStatus:
    def test_of_nothing(self, viewer, workspace):
        body = viewer.get("/api/ralph/status").json()
        assert (body["projects"], body["count"], set(body)) == ([], 0, {"projects", "fetchedAt", "count"})

    def test_is_the_snapshot(self, viewer, demo):
        body = viewer.get("/api/ralph/status").json()
        expected = json.loads(json.dumps(queries.snapshot(timezone.now())))
        assert body["projects"] == expected["projects"]
        assert body["fetchedAt"].endswith("+00:00")
        assert [story["id"] for story in body["projects"][0]["stories"]] == ["US-001", "US-002", "US-003"]

    def test_costs_the_same_for_many(self, viewer, imported, make_project, django_assert_max_num_queries):
        viewer.get("/api/me")
        for number in range(5):
            make_project(f"p{number}")
        imported("demo")
        # The token, and two for the document.
        with django_assert_max_num_queries(3):
            assert viewer.get("/api/ralph/status").json()["count"] == 6


class TestProgressLog:
    @pytest.fixture
    def long(self, demo):
        (folder(demo) / "progress.txt").write_text("".join(f"line {number}\n" for number in range(1, 1501)))

    @pytest.mark.parametrize(
        ("query", "count"),
        [
            ("", 100),
            ("?lines=1", 1),
            ("?lines=7", 7),
            ("?lines=1000", 1000),
            ("?lines=1001", 1000),
            ("?lines=5000", 1000),
            ("?lines=0", 100),
            ("?lines=00", 100),
            ("?lines=-1", 100),
            ("?lines=words", 100),
            ("?lines=1.5", 100),
            ("?lines=", 100),
            ("?lines=%20", 100),
            ("?lines=%C2%B2", 100),
            ("?lines=%D9%A3", 100),
            ("?lines=null", 100),
        ],
    )
    def test_lines(self, viewer, long, query, count):
        body = viewer.get(f"/api/ralph/demo/log{query}").json()
        assert (body["slug"], body["total"], len(body["lines"])) == ("demo", 1500, count)
        assert (body["lines"][0], body["lines"][-1]) == (f"line {1501 - count}", "line 1500")

    def test_without_a_file(self, viewer, demo):
        (folder(demo) / "progress.txt").unlink()
        assert viewer.get("/api/ralph/demo/log").json() == {"slug": "demo", "lines": [], "total": 0}

    def test_bytes_that_are_not_utf_8(self, viewer, demo):
        (folder(demo) / "progress.txt").write_bytes(b"\xff\xed\xa0\x80\x00\n")
        [line] = viewer.get("/api/ralph/demo/log").json()["lines"]
        assert line.strip("\ufffd") == "\x00"

    def test_a_link_out_is_not_followed(self, viewer, demo, workspace):
        (workspace.parent / "secret").write_text("secret\n")
        (folder(demo) / "progress.txt").unlink()
        (folder(demo) / "progress.txt").symlink_to(workspace.parent / "secret")
        assert viewer.get("/api/ralph/demo/log").json()["lines"] == []


class TestPrd:
    def test_as_it_is(self, viewer, demo):
        data = b'{ "userStories" : [ ],\r\n  "odd": 1.50, "\xc3\xa4": "\\u00e4" }\n'
        (folder(demo) / "prd.json").write_bytes(data)
        response = viewer.get("/api/ralph/demo/prd")
        assert (response.status_code, response.content) == (200, data)
        assert response["Content-Type"] == "application/json"

    def test_without_its_bom(self, viewer, demo):
        (folder(demo) / "prd.json").write_bytes(b"\xef\xbb\xbf[]")
        assert viewer.get("/api/ralph/demo/prd").content == b"[]"

    def test_gone(self, viewer, demo):
        (folder(demo) / "prd.json").unlink()
        body = refused(viewer.get("/api/ralph/demo/prd"), 404, "prd-not-found")
        assert "scripts/ralph/prd.json" in body["detail"]

    @pytest.mark.parametrize(
        ("data", "place"),
        [(b'{\n  "a": oops}', (2, 8)), (b"", (1, 1)), (b'{"a": "\xff"}', (1, 8)), (b'{"a": NaN}', (1, 7))],
    )
    def test_invalid(self, viewer, demo, data, place):
        (folder(demo) / "prd.json").write_bytes(data)
        body = refused(viewer.get("/api/ralph/demo/prd"), 500, "prd-invalid")
        assert body["detail"].startswith(f"scripts/ralph/prd.json:{place[0]}:{place[1]}: ")
        assert (body["line"], body["column"]) == place

    @pytest.mark.parametrize("kind", ["link", "huge", "directory"])
    def test_not_to_be_read(self, viewer, demo, workspace, kind):
        prd = folder(demo) / "prd.json"
        secret = workspace.parent / "secret.json"
        prd.rename(secret)
        if kind == "link":
            prd.symlink_to(secret)
        elif kind == "directory":
            prd.mkdir()
        else:
            with prd.open("wb") as file:
                file.truncate(ralph.MAX_BYTES + 1)
        body = refused(viewer.get("/api/ralph/demo/prd"), 500, "prd-invalid")
        assert str(workspace) not in body["detail"]
        assert "userStories" not in body["detail"]


class TestIterations:
    @pytest.fixture
    def many(self, demo, now):
        Iteration.objects.bulk_create(
            Iteration(
                project=demo,
                number=number,
                written_at=now,
                ended_at=None if number == 205 else now,
                started_at=now - timedelta(seconds=90),
                size=number,
                story_key="US-001" if number == 205 else "",
            )
            for number in range(1, 206)
        )

    @pytest.mark.parametrize(
        ("query", "page", "numbers"),
        [
            ("", 1, range(205, 105, -1)),
            ("?page=2", 2, range(105, 5, -1)),
            ("?page=3", 3, range(5, 0, -1)),
            ("?page=4", 4, []),
            ("?page=100000", 100_000, []),
        ],
    )
    def test_pages(self, viewer, many, query, page, numbers):
        body = viewer.get(f"/api/ralph/demo/iterations{query}").json()
        assert [row["number"] for row in body["iterations"]] == list(numbers)
        assert {**body, "iterations": 0} == {"slug": "demo", "iterations": 0, "page": page, "pages": 3, "total": 205}

    def test_a_row(self, viewer, many):
        open_, ended = viewer.get("/api/ralph/demo/iterations").json()["iterations"][:2]
        assert open_ == {
            "number": 205,
            "story": "US-001",
            "started_at": "2026-11-20T11:58:30+00:00",
            "ended_at": None,
            "written_at": "2026-11-20T12:00:00+00:00",
            "duration_s": None,
            "size_bytes": 205,
            "running": True,
            "cost_usd": None,
            "tokens": None,
        }
        assert (ended["duration_s"], ended["running"], ended["story"]) == (90.0, False, None)

    def test_none(self, viewer, demo):
        body = viewer.get("/api/ralph/demo/iterations").json()
        assert body == {"slug": "demo", "iterations": [], "page": 1, "pages": 1, "total": 0}

    @pytest.mark.parametrize("page", ["0", "-1", "words", "1.5", "100001", "9" * 30, ""])
    def test_no_such_page(self, viewer, demo, page):
        body = refused(viewer.get(f"/api/ralph/demo/iterations?page={page}"), 422, "invalid-request")
        assert body["detail"][0]["loc"] == ["query", "page"]

    def test_takes_few_queries(self, viewer, many, django_assert_max_num_queries):
        viewer.get("/api/me")
        with django_assert_max_num_queries(5):
            viewer.get("/api/ralph/demo/iterations")


class TestIterationLog:
    @pytest.fixture
    def logged(self, imported, make_project):
        write_log(make_project("demo"), 3, "".join(f"line {number}\n" for number in range(100_000)))
        return imported("demo")

    def get(self, client, query="", number="3"):
        return client.get(f"/api/ralph/demo/iterations/{number}/log{query}")

    def test_the_tail(self, viewer, logged):
        size = (folder(logged) / "logs/iteration-3.log").stat().st_size
        body = self.get(viewer).json()
        assert body["content"].endswith("line 99999\n")
        assert body["content"].startswith("line ")
        assert {**body, "content": ""} == {
            "slug": "demo",
            "number": 3,
            "exists": True,
            "content": "",
            "offset": size - len(body["content"]),
            "next_offset": size,
            "size_bytes": size,
            "truncated": True,
        }
        assert 65_000 < len(body["content"]) <= 65_536

    @pytest.mark.parametrize(("tail", "content"), [(11, "line 99999\n"), (15, "line 99999\n"), (1, "\n")])
    def test_a_tail_of_some_bytes(self, viewer, logged, tail, content):
        assert self.get(viewer, f"?tail={tail}").json()["content"] == content

    def test_from_an_offset_on(self, viewer, logged):
        first = self.get(viewer, "?offset=0").json()
        assert (first["offset"], first["next_offset"]) == (0, 262_144)
        assert first["content"].startswith("line 0\n")
        text, offset = "", 0
        while (body := self.get(viewer, f"?offset={offset}").json())["content"]:
            text += body["content"]
            offset = body["next_offset"]
        assert text == (folder(logged) / "logs/iteration-3.log").read_text()
        assert offset == body["size_bytes"]

    def test_from_beyond_the_end(self, viewer, logged):
        for offset in (10**9, 1 << 62):
            body = self.get(viewer, f"?offset={offset}").json()
            assert (body["offset"], body["truncated"]) == (0, True)

    def test_of_a_log_that_went(self, viewer, logged):
        (folder(logged) / "logs/iteration-3.log").unlink()
        assert self.get(viewer).json() == {
            "slug": "demo",
            "number": 3,
            "exists": False,
            "content": "",
            "offset": 0,
            "next_offset": 0,
            "size_bytes": 0,
            "truncated": False,
        }

    def test_of_a_log_that_became_a_link(self, viewer, logged, workspace):
        log = folder(logged) / "logs/iteration-3.log"
        log.rename(workspace.parent / "secret")
        log.symlink_to(workspace.parent / "secret")
        assert self.get(viewer).json()["exists"] is False

    @pytest.mark.parametrize(
        ("query", "name"),
        [
            ("?tail=0", "tail"),
            ("?tail=-5", "tail"),
            ("?tail=1048577", "tail"),
            ("?tail=all", "tail"),
            ("?offset=-1", "offset"),
            ("?offset=4611686018427387905", "offset"),
            ("?offset=x", "offset"),
        ],
    )
    def test_bounds(self, viewer, logged, query, name):
        body = refused(self.get(viewer, query), 422, "invalid-request")
        assert [item["loc"] for item in body["detail"]] == [["query", name]]

    @pytest.mark.parametrize(
        ("number", "status", "error"),
        [
            ("4", 404, "iteration-not-found"),
            ("2147483647", 404, "iteration-not-found"),
            ("2147483648", 400, "invalid-iteration"),
            ("-1", 400, "invalid-iteration"),
            ("9" * 40, 400, "invalid-iteration"),
            ("three", 422, "invalid-request"),
        ],
    )
    def test_no_such_iteration(self, viewer, logged, number, status, error):
        refused(self.get(viewer, number=number), status, error)


class TestSlugs:
    @pytest.mark.parametrize("slug", BAD_SLUGS)
    @pytest.mark.parametrize("rest", ["log", "prd", "iterations", "iterations/1/log"])
    def test_malformed_and_unknown_are_refused_alike(self, viewer, demo, slug, rest):
        body = refused(viewer.get(f"/api/ralph/{slug}/{rest}"), 400, "invalid-project-slug")
        assert body["detail"] == "No Ralph project has this slug."

    def test_what_is_no_ralph_project(self, viewer, imported, workspace):
        (workspace / "plain/.git").mkdir(parents=True)
        imported("demo")
        refused(viewer.get("/api/ralph/plain/log"), 400, "invalid-project-slug")

    @pytest.mark.parametrize("path", ["a%2Fb/log", "../../etc/log", "/log", "demo/", "demo/nothing"])
    def test_what_is_no_slug_at_all(self, viewer, demo, path):
        refused(viewer.get(f"/api/ralph/{path}"), 404, "not-found")


class TestMe:
    def test_a_token(self, make_token):
        raw = make_token("operator", project="demo")
        body = Client(headers={"Authorization": f"Bearer {raw}"}).get("/api/me").json()
        assert body == {"name": f"token:{ApiToken.objects.get().name}", "role": "operator", "project": "demo"}

    def test_a_session(self, make_user):
        client = Client()
        client.force_login(make_user("anna", "admin"))
        assert client.get("/api/me").json() == {"name": "user:anna", "role": "admin", "project": ""}


class TestEvents:
    @pytest.fixture
    def log(self, db, now):
        for number in range(3):
            with writing():
                record("story.passed", f"story:demo/US-{number}", by=SWEEP, now=now, project="demo", n=number)
                record("loop.started", "project:other", by=By("user:anna", "page"), now=now, project="other")
        return list(Event.objects.order_by("id").values_list("id", flat=True))

    @pytest.fixture
    def reader(self, log, client_of):
        """Return a viewer whose own token is already part of the log."""
        client = client_of("viewer")
        client.get("/api/me")
        return client

    def test_only_the_cursor(self, reader):
        last = Event.objects.latest("id").id
        assert reader.get("/api/events").json() == {"events": [], "cursor": last}

    def test_a_frame(self, reader, log):
        body = reader.get(f"/api/events?since={log[4]}").json()
        last = body["events"][0]
        assert last == {
            "id": log[5],
            "at": "2026-11-20T12:00:00Z",
            "kind": "loop.started",
            "subject": "project:other",
            "project": "other",
            "actor": "user:anna",
            "run": "",
            "payload": {"via": "page"},
        }
        assert body["cursor"] == Event.objects.latest("id").id

    @pytest.mark.parametrize(
        ("query", "kinds"),
        [
            ("kind=story.", ["story.passed"] * 3),
            ("kind=loop.&project=oth", ["loop.started"] * 3),
            ("subject=story:demo/US-1", ["story.passed"]),
            ("project=demo", ["story.passed"] * 3),
            ("project=nobody", []),
            ("kind=%00", []),
        ],
    )
    def test_filters_are_prefixes(self, reader, log, query, kinds):
        body = reader.get(f"/api/events?since={log[0] - 1}&{query}").json()
        assert [event["kind"] for event in body["events"]] == kinds
        assert body["cursor"] == Event.objects.latest("id").id

    def test_pages_of_two_hundred(self, reader, now):
        start = Event.objects.latest("id").id
        with writing():
            for _ in range(450):
                record("test.told", "test:1", by=SWEEP, now=now)
        sizes, since = [], start
        while events := (body := reader.get(f"/api/events?since={since}").json())["events"]:
            sizes.append(len(events))
            since = body["cursor"]
        assert sizes == [200, 200, 50]

    def test_a_place_that_is_not_in_the_log(self, reader, log):
        last = Event.objects.latest("id").id
        assert reader.get(f"/api/events?since={last + 1}").json() == {"reset": True, "cursor": last}
        EventFloor.objects.create(pruned_through=log[2])
        assert reader.get(f"/api/events?since={log[1]}").json() == {"reset": True, "cursor": last}
        assert reader.get(f"/api/events?since={log[2]}").json()["events"][0]["id"] == log[3]

    @pytest.mark.parametrize("since", ["-1", "words", "1e3", str((1 << 62) + 1), "9" * 40])
    def test_no_place_at_all(self, viewer, since):
        body = refused(viewer.get(f"/api/events?since={since}"), 422, "invalid-request")
        assert [set(item) for item in body["detail"]] == [{"type", "loc", "msg"}]


class TestErrors:
    @pytest.mark.parametrize(
        "path", ["/api/ralph/status", "/api/me", "/api/events", "/api/nothing", "/api/openapi.json"]
    )
    def test_nobody_is_401(self, db, path):
        refused(Client().get(path), 401, "unauthenticated")

    @pytest.mark.parametrize("header", ["Bearer wrong", "Bearer ", "Bearer", "Basic YTpi", "", "Bearer andon_\xe4"])
    @pytest.mark.parametrize("signed_in", [True, False])
    def test_a_wrong_header_is_401_whatever_the_session(self, sign_in, header, signed_in):
        client = sign_in("admin") if signed_in else Client()
        if signed_in:
            assert client.get("/api/me").status_code == 200
        refused(client.get("/api/me", headers={"Authorization": header}), 401, "unauthenticated")

    def test_a_token_that_was_revoked_or_expired_is_401(self, client_of):
        by = By("user:anna", "page")
        revoked, expired = client_of("admin"), client_of("admin", life=timedelta(seconds=-1))
        refused(expired.get("/api/me"), 401, "unauthenticated")
        assert revoked.get("/api/me").status_code == 200
        access.revoke(ApiToken.objects.order_by("id").first(), by=by, now=timezone.now())
        refused(revoked.get("/api/me"), 401, "unauthenticated")

    def test_a_user_without_a_role_is_403(self, make_user):
        client = Client()
        client.force_login(make_user("nobody", ""))
        refused(client.get("/api/me"), 403, "forbidden")

    @pytest.mark.parametrize("path", ["/api/nothing", "/api/", "/api/ralph/", "/api/ralph/demo/nothing", "/api/me/"])
    def test_an_unknown_path_is_404(self, viewer, path):
        refused(viewer.get(path), 404, "not-found")

    @pytest.mark.parametrize("method", ["post", "put", "patch", "delete"])
    def test_another_method_is_405(self, client_of, method):
        response = getattr(client_of("operator"), method)("/api/ralph/status")
        refused(response, 405, "method-not-allowed")
        assert response["Allow"] == "GET"

    def test_a_failure_is_500_and_does_not_tell_why(self, viewer, monkeypatch, caplog):
        def fail(*args):
            raise RuntimeError("password=hunter2 in /srv/secret")

        monkeypatch.setattr(queries, "snapshot", fail)
        response = viewer.get("/api/ralph/status")
        refused(response, 500, "internal")
        assert b"hunter2" not in response.content
        assert b"secret" not in response.content
        assert "hunter2" in caplog.text

    def test_a_file_system_that_fails_does_not_tell_why(self, viewer, demo, monkeypatch):
        def fail(*args):
            raise OSError(5, "Input/output error", "/srv/secret")

        monkeypatch.setattr(ralph, "read_inside", fail)
        response = viewer.get("/api/ralph/demo/prd")
        assert refused(response, 500, "prd-invalid")["detail"] == "scripts/ralph/prd.json cannot be read."


class TestBoundToken:
    @pytest.fixture
    def bound(self, imported, make_project, client_of):
        write_log(make_project("mine"), 1)
        write_log(make_project("other"), 1)
        imported("demo")
        return client_of("operator", project="mine")

    def test_sees_its_project(self, bound):
        assert [row["slug"] for row in bound.get("/api/ralph/status").json()["projects"]] == ["mine"]
        for rest in ("log", "prd", "iterations", "iterations/1/log"):
            assert bound.get(f"/api/ralph/mine/{rest}").status_code == 200

    @pytest.mark.parametrize("slug", ["other", "demo", "absent"])
    def test_and_no_other(self, bound, slug):
        for rest in ("log", "prd", "iterations", "iterations/1/log", "iterations/9/log", "iterations/1/log-stream"):
            response = bound.get(f"/api/ralph/{slug}/{rest}")
            refused(response, 400, "invalid-project-slug")

    def test_hears_its_project(self, bound):
        for query in ("", "&project=other", "&kind=project.", "&subject=project:"):
            body = bound.get(f"/api/events?since=0{query}").json()
            assert {event["project"] for event in body["events"]} <= {"mine"}
        assert {event["project"] for event in bound.get("/api/events?since=0").json()["events"]} == {"mine"}
        assert bound.get("/api/events").json()["cursor"] == Event.objects.latest("id").id


class TestDoor:
    """No REST route writes yet, so the door itself is asked."""

    def request(self, method="POST", *, role="operator", token_id=None, csrf=None, cookie=None):
        factory = RequestFactory()
        request = getattr(factory, method.lower())("/api/ralph/demo/start")
        request.identity = Identity("user:anna", Role(role), token_id=token_id)
        secret = get_token(request)
        if cookie is not False:
            request.COOKIES["andon_csrf"] = cookie or request.META["CSRF_COOKIE"]
        if csrf is not False:
            request.META["HTTP_X_CSRFTOKEN"] = csrf or secret
        return request

    def test_a_session_with_its_csrf_token_may_write(self):
        assert Door()(self.request()).name == "user:anna"

    @pytest.mark.parametrize("options", [{"csrf": False}, {"csrf": "x" * 64}, {"cookie": False}, {"cookie": "y" * 32}])
    def test_a_session_without_it_may_not(self, options):
        with pytest.raises(Forbidden) as refusal:
            Door()(self.request(**options))
        assert refusal.value.code == "csrf"

    @pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
    def test_no_method_that_writes_goes_without(self, method):
        with pytest.raises(Forbidden):
            Door()(self.request(method, csrf=False))

    @pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
    def test_reading_needs_none(self, method):
        assert Door()(self.request(method, csrf=False, cookie=False, role="viewer"))

    def test_a_token_needs_none(self):
        assert Door()(self.request(csrf=False, cookie=False, token_id=1))

    def test_roles(self):
        held_needed = list(itertools.product(Role, [None, *Role]))
        for held, needed in held_needed:
            request = self.request(role=held, token_id=1)
            if held.includes(needed or Role.OPERATOR):
                assert Door(needed)(request)
            else:
                with pytest.raises(Forbidden) as refusal:
                    Door(needed)(request)
                assert refusal.value.code == "forbidden"
        assert len(held_needed) == 12

    def test_nobody_is_let_in(self):
        request = self.request()
        request.identity = None
        with pytest.raises(AuthenticationError):
            Door()(request)
        del request.identity
        with pytest.raises(AuthenticationError):
            Door()(request)
