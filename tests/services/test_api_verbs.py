"""REST: kill, restart, start and extend."""

import json
from datetime import datetime, timedelta

import pytest
from django.test import Client
from django.utils import timezone

from projects.events import SWEEP
from projects.models import Event, Project
from services import lifecycle
from services.models import ManagedProcess, WorkerHost
from services.states import Cause, Purpose, Status
from tests.services.rows import declared, failed, healthy, launched, play_worker, refused, serve, spawned

pytestmark = pytest.mark.django_db
URL = "/api/managed-processes"
VERBS = ["kill", "restart", "start", "extend"]
EVERY = pytest.mark.parametrize("verb", VERBS)


@pytest.fixture
def operator(client_of) -> Client:
    return client_of("operator")


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


@pytest.fixture
def worker(monkeypatch) -> list[ManagedProcess]:
    return play_worker(monkeypatch)


def post(client: Client, verb: str, name: object = "web", **body):
    if verb == "extend":
        body.setdefault("minutes", 10)
    return client.post(f"{URL}/{verb}", data={"name": name, **body}, content_type="application/json")


def now_of(row: ManagedProcess) -> ManagedProcess:
    return ManagedProcess.objects.get(pk=row.pk)


class TestEvery:
    @EVERY
    def test_what_is_no_name(self, operator, demo, worker, verb):
        healthy(demo)
        for name in ("Web", "", "a b", "web\n", "we\x00b", "x" * 65, "web/../x", "wéb"):
            refused(post(operator, verb, name), 400, "invalid-name")
        assert worker == []

    @EVERY
    def test_whom_nobody_knows(self, operator, demo, imported, worker, verb):
        imported("other")
        healthy(demo)
        launched(demo, Purpose.LOOP, "loop")
        for name, project in (("api", None), ("web", "other"), ("web", "absent"), ("web", "a\x00"), ("loop", "demo")):
            refused(post(operator, verb, name, project=project), 404, "not-found")
        assert worker == []

    @EVERY
    def test_whom_several_projects_have(self, operator, demo, imported, worker, verb):
        healthy(demo)
        healthy(imported("other"))
        assert refused(post(operator, verb), 409, "ambiguous-name")["projects"] == ["demo", "other"]
        assert worker == []

    @EVERY
    def test_of_another_life_than_expected(self, operator, demo, worker, verb):
        row = failed(demo) if verb == "start" else healthy(demo)
        before = row.status
        body = refused(post(operator, verb, expected_generation=row.generation + 1), 409, "generation-changed")
        assert body["generation"] == row.generation
        assert now_of(row).status == before
        assert post(operator, verb, expected_generation=row.generation).status_code == 200

    @pytest.mark.parametrize("verb", ["kill", "restart", "start"])
    def test_without_a_worker_nothing_is_changed(self, operator, demo, worker, verb):
        row = failed(demo) if verb == "start" else healthy(demo)
        WorkerHost.objects.update(tick_at=timezone.now() - timedelta(seconds=60))
        refused(post(operator, verb), 503, "no-worker")
        assert now_of(row).status == row.status
        assert worker == []

    @EVERY
    def test_of_another_shape(self, operator, demo, worker, verb):
        healthy(demo)
        wrong = [{}, [], "web", {"name": None}, {"name": 7}, {"name": ["web"]}, {"name": "web", "project": 7}]
        wrong += [{"name": "web", "expected_generation": value} for value in ("1", True, 1.5)]
        for body in wrong:
            given = {"minutes": 5, **body} if isinstance(body, dict) else body
            response = operator.post(f"{URL}/{verb}", data=json.dumps(given), content_type="application/json")
            refused(response, 422, "invalid-request")
        assert worker == []

    @EVERY
    def test_that_is_no_json(self, operator, demo, worker, verb):
        for content in (b"", b"{", b"\xff", b'{"name": "\\ud800", "minutes": 5}', b"[" * 100_000):
            response = operator.post(f"{URL}/{verb}", data=content, content_type="application/json")
            assert response.status_code in {400, 422}
            assert response.json()["error"] in {"invalid-request", "invalid-name"}

    @EVERY
    def test_who_may(self, client_of, demo, imported, worker, verb):
        row = failed(demo) if verb == "start" else healthy(demo)
        theirs = healthy(imported("other"), "theirs")
        refused(post(Client(), verb), 401, "unauthenticated")
        refused(post(client_of("viewer"), verb), 403, "forbidden")
        refused(post(client_of("operator", project="demo", run="t_1/1"), verb), 403, "forbidden")
        bound = client_of("operator", project="demo")
        refused(post(bound, verb, "theirs"), 404, "not-found")
        refused(post(bound, verb, "theirs", project="other"), 404, "not-found")
        assert now_of(theirs).status == theirs.status
        assert now_of(row).status == row.status
        assert worker == []
        assert post(bound, verb).status_code == 200

    @EVERY
    def test_is_told_with_who_and_whence(self, operator, demo, worker, verb):
        row = failed(demo) if verb == "start" else healthy(demo)
        assert post(operator, verb, project="demo").status_code == 200
        kinds = {"kill": "stopping", "restart": "restarting", "start": "declared", "extend": "extended"}
        event = Event.objects.filter(kind=f"service.{kinds[verb]}").latest("id")
        assert (event.subject, event.payload["via"]) == (row.subject, "api")
        assert event.actor.startswith("token:")


class TestKill:
    def test_answers_once_it_is_gone(self, operator, demo, worker):
        row = healthy(demo)
        response = post(operator, "kill")
        assert response.json() == {"ok": True, "name": "web", "killed_pid": row.pid, "killed": True}
        assert (now_of(row).status, now_of(row).exit_cause) == (Status.EXITED, Cause.USER)
        assert [row.status for row in worker] == [Status.EXITED]

    def test_with_grace_or_without(self, operator, demo, monkeypatch):
        seen = []
        play_worker(monkeypatch, lambda row: (seen.append(row.kill_at), serve(row)))
        healthy(demo, "a")
        healthy(demo, "b")
        post(operator, "kill", "a")
        post(operator, "kill", "b", force=True)
        assert seen[0] is None
        assert isinstance(seen[1], datetime)
        graces = [event.payload["grace_s"] for event in Event.objects.filter(kind="service.stopping")]
        assert graces == [10, 0]

    @pytest.mark.parametrize("force", ["yes", 1, None])
    def test_force_is_true_or_false(self, operator, demo, force):
        refused(post(operator, "kill", force=force), 422, "invalid-request")

    def test_of_what_has_ended_does_nothing(self, operator, demo, worker):
        row = failed(demo)
        WorkerHost.objects.all().delete()
        before = Event.objects.count()
        expected = {"ok": True, "name": "web", "killed_pid": None, "killed": False}
        response = post(operator, "kill")
        assert (response.status_code, response.json()) == (200, expected)
        assert (now_of(row).status, Event.objects.count(), worker) == (Status.FAILED, before, [])

    def test_of_what_ends_meanwhile_is_no_conflict(self, operator, demo, worker, monkeypatch):
        row = healthy(demo)
        stop = lifecycle.stop

        def late(given, **options):
            lifecycle.ended(now_of(row), 0, members=[], jitter=0.0, by=SWEEP, now=timezone.now())
            return stop(given, **options)

        monkeypatch.setattr(lifecycle, "stop", late)
        expected = {"ok": True, "name": "web", "killed_pid": None, "killed": False}
        assert post(operator, "kill").json() == expected

    def test_of_one_that_waits_to_be_tried_again(self, operator, demo, worker):
        row = failed(demo, restart="always")
        assert now_of(row).status == Status.BACKOFF
        body = post(operator, "kill").json()
        assert body == {"ok": True, "name": "web", "killed_pid": None, "killed": True}
        assert now_of(row).status == Status.EXITED

    def test_of_one_that_does_not_go(self, operator, demo, monkeypatch):
        play_worker(monkeypatch, lambda row: lifecycle.remain(row, [77, 78], "they stay", by=SWEEP, now=timezone.now()))
        row = healthy(demo, stop_grace_s=0)
        body = refused(post(operator, "kill"), 504, "still-stopping")
        assert body["left"] == [77, 78]
        assert now_of(row).status == Status.STOPPING

    def test_of_one_that_nobody_has_looked_at(self, operator, demo, monkeypatch):
        play_worker(monkeypatch, lambda row: None)
        row = healthy(demo, stop_grace_s=0)
        assert refused(post(operator, "kill"), 504, "still-stopping")["left"] == [row.pid]

    def test_of_one_that_cannot_be_seen(self, operator, demo, monkeypatch):
        def hide(row):
            lifecycle.remain(row, [77], "identity-unavailable: 77 cannot be read", by=SWEEP, now=timezone.now())

        play_worker(monkeypatch, hide)
        healthy(demo, stop_grace_s=0)
        refused(post(operator, "kill"), 409, "identity-unavailable")

    def test_twice_joins_the_first(self, operator, demo, worker):
        row = healthy(demo)
        lifecycle.stop(row, by=SWEEP, now=timezone.now())
        assert post(operator, "kill").json()["killed"] is True
        assert now_of(row).status == Status.EXITED


class TestRestart:
    def test_answers_with_the_next_life(self, operator, demo, worker):
        row = healthy(demo)
        expiry = row.expires_at
        response = post(operator, "restart")
        fresh = now_of(row)
        assert (response.status_code, fresh.generation, fresh.expires_at) == (200, 2, expiry)
        assert fresh.pid != row.pid
        assert response.json() == {
            "ok": True,
            "name": "web",
            "pid": fresh.pid,
            "started_at": int(fresh.started_at.timestamp() * 1000),
            "log_path": f"logs/services/{row.pk}-web.log",
            "generation": 2,
        }

    def test_starts_what_has_ended(self, operator, demo, worker):
        row = failed(demo)
        body = post(operator, "restart").json()
        assert (body["ok"], body["generation"], body["pid"]) == (True, 2, now_of(row).pid)

    def test_that_takes_longer(self, operator, demo, monkeypatch):
        play_worker(monkeypatch, lambda row: None)
        healthy(demo, stop_grace_s=0)
        response = post(operator, "restart")
        body = response.json()
        assert response.status_code == 202
        assert (body["ok"], body["pid"], body["started_at"], body["generation"]) == (True, None, None, 1)

    def test_of_one_that_cannot_be_started_again(self, operator, demo, monkeypatch):
        def act(row):
            lifecycle.settle(row, -15, by=SWEEP, now=timezone.now())
            lifecycle.fail(row, "port-conflict (3000: nc 7 on ::1)", by=SWEEP, now=timezone.now())

        play_worker(monkeypatch, act)
        healthy(demo)
        body = refused(post(operator, "restart"), 409, "port-conflict")
        assert body["detail"] == "port-conflict (3000: nc 7 on ::1)"

    def test_of_one_that_is_being_stopped(self, operator, demo, worker):
        row = healthy(demo)
        lifecycle.stop(row, by=SWEEP, now=timezone.now())
        refused(post(operator, "restart"), 409, "stopping")

    def test_of_one_that_somebody_stops_meanwhile(self, operator, demo, monkeypatch):
        def act(row):
            row = lifecycle.stop(row, by=SWEEP, now=timezone.now())
            lifecycle.settle(row, -15, by=SWEEP, now=timezone.now())

        play_worker(monkeypatch, act)
        row = healthy(demo)
        refused(post(operator, "restart"), 409, "not-live")
        assert now_of(row).status == Status.EXITED


class TestStart:
    def test_answers_with_the_item(self, operator, demo, worker):
        row = failed(demo)
        response = post(operator, "start")
        body = response.json()
        assert response.status_code == 200
        assert (body["state"], body["alive"], body["generation"], body["pid"]) == (
            *("starting", True, 2, now_of(row).pid),
        )
        assert body == operator.get(f"{URL}/by-name/web").json()

    def test_that_takes_longer(self, operator, demo, monkeypatch):
        play_worker(monkeypatch, lambda row: None)
        failed(demo)
        response = post(operator, "start")
        assert (response.status_code, response.json()["alive"]) == (202, False)

    def test_of_what_lives(self, operator, demo, worker):
        healthy(demo)
        refused(post(operator, "start"), 409, "already-live")

    def test_of_one_in_back_off_is_at_once(self, operator, demo, worker):
        row = failed(demo, restart="always")
        body = post(operator, "start").json()
        assert (body["state"], body["generation"], now_of(row).crashes) == ("starting", 2, [])

    def test_on_a_port_that_is_taken_meanwhile(self, operator, demo, worker):
        failed(demo, "web", ports=[3000])
        spawned(declared(demo, "api", ports=[3000]))
        body = refused(post(operator, "start"), 409, "port-conflict")
        assert body["detail"] == "port-conflict (3000: demo/api)"

    def test_over_the_quota(self, operator, demo, worker, settings):
        settings.ANDON_SERVICES_PER_PROJECT = 1
        failed(demo)
        spawned(declared(demo, "api"))
        assert refused(post(operator, "start"), 409, "quota-exceeded")["detail"] == "quota-exceeded (1)"


class TestExtend:
    @pytest.fixture(autouse=True)
    def told(self, worker) -> list[ManagedProcess]:
        return worker

    def test_moves_the_expiry_and_tells_the_worker(self, operator, demo, told):
        row = healthy(demo)
        body = post(operator, "extend", minutes=30).json()
        fresh = now_of(row)
        assert fresh.expires_at - row.expires_at == timedelta(minutes=30)
        assert body["ttl_expires_at"] == int(fresh.expires_at.timestamp() * 1000)
        assert body["name"] == "web"
        assert told == [row]

    def test_to_at_most_a_day_from_now(self, operator, demo):
        healthy(demo)
        body = post(operator, "extend", minutes=1440).json()
        ahead = body["ttl_expires_at"] - timezone.now().timestamp() * 1000
        assert 1439 * 60_000 < ahead <= 1440 * 60_000

    @pytest.mark.parametrize("minutes", [0, -1])
    def test_by_what_is_out_of_bounds(self, operator, demo, minutes):
        row = healthy(demo)
        refused(post(operator, "extend", minutes=minutes), 400, "minutes-invalid")
        assert now_of(row).expires_at == row.expires_at

    @pytest.mark.parametrize("minutes", ["5", True, 1.5, None])
    def test_by_what_is_no_number(self, operator, demo, minutes):
        healthy(demo)
        refused(post(operator, "extend", minutes=minutes), 422, "invalid-request")

    def test_of_what_has_ended_or_never_expires(self, operator, demo):
        row = failed(demo)
        refused(post(operator, "extend"), 409, "not-live")
        healthy(demo, "api")
        ManagedProcess.objects.exclude(pk=row.pk).update(expires_at=None)
        refused(post(operator, "extend", "api"), 409, "no-ttl")


def test_a_verb_takes_few_queries(operator, demo, worker, django_assert_max_num_queries):
    healthy(demo)
    operator.get("/api/me")
    # The token, the row, the worker's lease; twelve for the transactions; one look.
    with django_assert_max_num_queries(18):
        post(operator, "kill", project="demo")
