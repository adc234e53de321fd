"""REST: the list of what runs, and one by its name."""

import gzip
import json
import time
from datetime import timedelta

import pytest
from django.test import Client
from django.utils import timezone

from projects.events import SWEEP
from projects.models import Project
from services import lifecycle, queries
from services.models import ManagedProcess
from services.schemas import ProcessOut
from services.states import Purpose
from tests.services.rows import HTTP, declared, failed, healthy, launched, refused, spawned

pytestmark = pytest.mark.django_db
URL = "/api/managed-processes"
BAD_NAMES = [
    "Web",
    "a_b",
    "-web",
    "web-",
    "a--b",
    "web.js",
    "a%20b",
    "web%0A",
    "web%00",
    "%ff",
    "w%C3%ABb",
    "x" * 65,
    "..",
]


@pytest.fixture
def viewer(client_of) -> Client:
    return client_of("viewer")


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


@pytest.fixture
def other(imported) -> Project:
    return imported("other")


def names(response) -> list[str]:
    return [item["name"] for item in response.json()["items"]]


def ms(moment) -> int:
    return round(moment.timestamp() * 1000)


class TestItem:
    def test_of_a_healthy_service(self, viewer, demo):
        row = healthy(
            demo,
            agent="a-1",
            wi="US-1",
            ports=[3000],
            env={"B_KEY": "sesame", "A_KEY": "open"},
            attrs={"what": "häh"},
        )
        response = viewer.get(URL)
        assert response.json()["items"] == [
            {
                "name": "web",
                "project": "demo",
                "purpose": "service",
                "state": "healthy",
                "pid": row.pid,
                "alive": True,
                "healthy": True,
                "generation": 1,
                "owner_agent": "a-1",
                "owner_wi": "US-1",
                "owner_project": "demo",
                "attrs": {"what": "häh"},
                "ports": [3000],
                "started_at": pytest.approx(ms(row.started_at), abs=1),
                "ttl_expires_at": pytest.approx(ms(row.expires_at), abs=1),
                "last_health_at": pytest.approx(ms(row.last_health_at), abs=1),
                "last_error": None,
                "exit_code": None,
                "exit_cause": None,
                "restarts": 0,
                "log_path": f"logs/services/{row.pk}-web.log",
                "cmd": "node",
                "args": ["server.js"],
                "cwd": demo.path,
                "healthcheck": HTTP,
                "env_keys": ["A_KEY", "B_KEY"],
            }
        ]
        assert b"sesame" not in response.content
        assert all(isinstance(response.json()["items"][0][key], int) for key in ("started_at", "ttl_expires_at"))

    def test_of_one_that_waits_for_its_process(self, viewer, demo):
        declared(demo)
        [item] = viewer.get(URL).json()["items"]
        absent = ("pid", "started_at", "last_health_at", "last_error", "exit_code", "exit_cause")
        assert [item[key] for key in (*absent, "owner_agent", "owner_wi")] == [None] * 8
        assert (item["state"], item["alive"], item["healthy"]) == ("starting", False, False)

    def test_of_one_that_failed(self, viewer, demo):
        failed(demo)
        [item] = viewer.get(URL).json()["items"]
        told = ("state", "alive", "healthy", "pid", "exit_code", "exit_cause", "last_error", "ttl_expires_at")
        assert [item[key] for key in told] == [
            *("failed", False, False, None, 3, "crash", "exit code 3\nboom", None),
        ]

    def test_of_one_that_is_not_healthy_any_more(self, viewer, demo):
        row = healthy(demo)
        lifecycle.sicken(row, "refused", misses=3, jitter=0.5, by=SWEEP, now=timezone.now())
        [item] = viewer.get(URL).json()["items"]
        assert (item["state"], item["alive"], item["healthy"]) == ("unhealthy", True, False)
        assert item["last_error"] == "refused"

    def test_has_the_documented_fields_in_their_order(self, viewer, demo):
        healthy(demo)
        [item] = viewer.get(URL).json()["items"]
        assert list(item) == list(ProcessOut.model_fields)
        ProcessOut.model_validate(item, strict=True)

    def test_with_attrs_that_few_programs_can_read(self, viewer, demo):
        healthy(demo, attrs={"n": 10**40, "text": "\u2028<b>"})
        [item] = viewer.get(URL).json()["items"]
        assert item["attrs"] == {"n": 10**40, "text": "\u2028<b>"}
        assert viewer.get(f"{URL}/by-name/web").json()["attrs"]["n"] == 10**40


class TestList:
    def test_of_nothing(self, viewer, demo):
        body = viewer.get(URL).json()
        assert (set(body), body["items"]) == ({"items", "generatedAt"}, [])
        assert body["generatedAt"].endswith("+00:00")

    def test_is_sorted_by_name(self, viewer, demo, other):
        for project, name in ((demo, "web"), (other, "api"), (other, "web"), (demo, "a-1"), (demo, "a")):
            spawned(declared(project, name))
        found = [(item["name"], item["project"]) for item in viewer.get(URL).json()["items"]]
        assert found == [("a", "demo"), ("a-1", "demo"), ("api", "other"), ("web", "demo"), ("web", "other")]

    @pytest.mark.parametrize(
        ("purpose", "expected"),
        [
            ("", ["web"]),
            ("service", ["web"]),
            ("worker", ["t-1-1"]),
            ("loop", ["loop"]),
            ("all", ["loop", "t-1-1", "web"]),
        ],
    )
    def test_by_purpose(self, viewer, demo, purpose, expected):
        spawned(declared(demo))
        launched(demo, Purpose.WORKER, "t-1-1")
        launched(demo, Purpose.LOOP, "loop")
        response = viewer.get(URL, {"purpose": purpose} if purpose else {})
        assert names(response) == expected

    @pytest.mark.parametrize("purpose", ["", "services", "ALL", "\x00"])
    def test_of_no_such_purpose(self, viewer, demo, purpose):
        refused(viewer.get(URL, {"purpose": purpose}), 422, "invalid-request")

    def test_of_one_project(self, viewer, demo, other):
        spawned(declared(demo, "here"))
        spawned(declared(other, "there"))
        assert names(viewer.get(URL, {"project": "demo"})) == ["here"]

    @pytest.mark.parametrize("slug", ["absent", "..", "a b", "\x00", "é", "x" * 999])
    def test_of_no_such_project(self, viewer, demo, slug):
        refused(viewer.get(URL, {"project": slug}), 404, "not-found")

    def test_of_a_project_that_is_known_by_its_services_alone(self, viewer, demo):
        spawned(declared(demo))
        Project.objects.all().delete()
        assert names(viewer.get(URL, {"project": "demo"})) == ["web"]

    def test_is_bounded_and_keeps_what_lives(self, viewer, demo, monkeypatch):
        monkeypatch.setattr(queries, "MOST_LISTED", 3)
        spawned(declared(demo, "old"))
        for name in ("a", "b", "c"):
            failed(demo, name)
        assert names(viewer.get(URL)) == ["b", "c", "old"]

    def test_of_500_costs_two_queries_and_little_time(self, viewer, demo, django_assert_num_queries):
        row = healthy(demo, attrs={"url": "http://localhost:3000/", "what": "dev server"}, env={"A": "b"})
        columns = [field.attname for field in ManagedProcess._meta.concrete_fields if not field.primary_key]
        fields = {name: getattr(row, name) for name in columns}
        ManagedProcess.objects.bulk_create(ManagedProcess(**{**fields, "name": f"s-{n}"}) for n in range(499))
        viewer.get("/api/me")
        # The token, and the rows.
        with django_assert_num_queries(2):
            begun = time.perf_counter()
            response = viewer.get(URL)
            took = time.perf_counter() - begun
        assert len(response.json()["items"]) == 500
        assert took < 2
        with django_assert_num_queries(3):
            viewer.get(URL, {"project": "demo"})


class TestEtag:
    def test_is_strong_and_quoted(self, viewer, demo):
        healthy(demo)
        tag = viewer.get(URL)["ETag"]
        assert tag.startswith('"')
        assert tag.endswith('"')
        assert tag == viewer.get(URL)["ETag"]

    @pytest.mark.parametrize(
        "sent",
        ["{tag}", '"other", {tag}', "W/{tag}", '"a" , W/{tag},"b"', "*"],
        ids=["one", "list", "weak", "all", "*"],
    )
    def test_that_matches_brings_nothing(self, viewer, demo, sent):
        healthy(demo)
        tag = viewer.get(URL)["ETag"]
        response = viewer.get(URL, headers={"If-None-Match": sent.format(tag=tag)})
        assert (response.status_code, response.content, response["ETag"]) == (304, b"", tag)

    @pytest.mark.parametrize("sent", ['"other"', "", "{bare}", "nonsense,,", '"unclosed', "W/"])
    def test_that_does_not_match(self, viewer, demo, sent):
        tag = viewer.get(URL)["ETag"]
        response = viewer.get(URL, headers={"If-None-Match": sent.format(bare=tag.strip('"'))})
        assert response.status_code == 200

    def test_stays_when_only_a_probe_came(self, viewer, demo):
        row = healthy(demo)
        tag = viewer.get(URL)["ETag"]
        later = timezone.now() + timedelta(seconds=30)
        ManagedProcess.objects.filter(pk=row.pk).update(last_health_at=later, next_probe_at=later, misses=1, passes=9)
        assert viewer.get(URL)["ETag"] == tag
        assert viewer.get(URL).json()["items"][0]["last_health_at"] == pytest.approx(ms(later), abs=1)
        assert viewer.get(URL, headers={"If-None-Match": tag}).status_code == 304

    def test_changes_with_what_is_shown(self, viewer, demo, other):
        row = healthy(demo)
        tags = [viewer.get(URL)["ETag"]]
        lifecycle.sicken(row, "refused", misses=3, jitter=0.5, by=SWEEP, now=timezone.now())
        tags.append(viewer.get(URL)["ETag"])
        lifecycle.stop(row, by=SWEEP, now=timezone.now())
        tags.append(viewer.get(URL)["ETag"])
        declared(other)
        tags.append(viewer.get(URL)["ETag"])
        tags.append(viewer.get(URL, {"project": "other"})["ETag"])
        assert len(set(tags)) == 5

    @pytest.mark.parametrize("count", [0, 1, 5])
    def test_is_strong_for_who_takes_compressed_answers_too(self, viewer, demo, count):
        for number in range(count):
            healthy(demo, f"web-{number}")
        plain = viewer.get(URL)
        packed = viewer.get(URL, headers={"Accept-Encoding": "gzip, deflate"})
        assert packed.get("Content-Encoding") == ("gzip" if count else None)
        assert packed["Vary"].count("Accept-Encoding") == 1
        content = gzip.decompress(packed.content) if count else packed.content
        assert json.loads(content)["items"] == plain.json()["items"]
        assert packed["ETag"].startswith('"')
        assert (packed["ETag"] != plain["ETag"]) is (count > 0)
        again = viewer.get(URL, headers={"Accept-Encoding": "gzip", "If-None-Match": packed["ETag"]})
        assert (again.status_code, again.content) == (304, b"")


class TestByName:
    def test_is_the_item(self, viewer, demo):
        healthy(demo)
        assert viewer.get(f"{URL}/by-name/web").json() == viewer.get(URL).json()["items"][0]

    @pytest.mark.parametrize("name", BAD_NAMES)
    def test_of_what_is_no_name(self, viewer, demo, name):
        refused(viewer.get(f"{URL}/by-name/{name}"), 400, "invalid-name")

    def test_that_nobody_has(self, viewer, demo, other):
        healthy(demo)
        launched(demo, Purpose.LOOP, "loop")
        body = refused(viewer.get(f"{URL}/by-name/api"), 404, "not-found")
        assert "api" in body["detail"]
        refused(viewer.get(f"{URL}/by-name/web?project=other"), 404, "not-found")
        refused(viewer.get(f"{URL}/by-name/web?project=absent"), 404, "not-found")
        refused(viewer.get(f"{URL}/by-name/loop"), 404, "not-found")

    def test_that_several_have(self, viewer, demo, other):
        healthy(demo)
        failed(other)
        body = refused(viewer.get(f"{URL}/by-name/web"), 409, "ambiguous-name")
        assert body["projects"] == ["demo", "other"]
        assert viewer.get(f"{URL}/by-name/web?project=other").json()["state"] == "failed"


class TestWhoMayLook:
    def test_a_stranger_may_not(self, demo):
        healthy(demo)
        for path in (URL, f"{URL}/by-name/web"):
            refused(Client().get(path), 401, "unauthenticated")

    def test_a_token_of_a_project_sees_that_alone(self, client_of, demo, other):
        healthy(demo, "here")
        healthy(other, "there")
        healthy(demo, "web")
        healthy(other, "web")
        bound = client_of("viewer", project="demo")
        assert names(bound.get(URL)) == ["here", "web"]
        assert names(bound.get(URL, {"project": "demo", "purpose": "all"})) == ["here", "web"]
        refused(bound.get(URL, {"project": "other"}), 404, "not-found")
        assert bound.get(f"{URL}/by-name/web").json()["project"] == "demo"
        refused(bound.get(f"{URL}/by-name/there"), 404, "not-found")
        refused(bound.get(f"{URL}/by-name/there?project=other"), 404, "not-found")

    def test_a_kanban_run_sees_its_project(self, client_of, demo, other):
        healthy(demo, "here")
        healthy(other, "there")
        assert names(client_of("operator", project="demo", run="t_1/1").get(URL)) == ["here"]


def test_one_by_name_takes_few_queries(viewer, demo, django_assert_num_queries):
    healthy(demo)
    viewer.get("/api/me")
    # The token, whether the project is known, the row.
    with django_assert_num_queries(3):
        viewer.get(f"{URL}/by-name/web?project=demo")
