"""REST of loops: start, stop, the preview of a rollback and the rollback itself, on real repositories."""

import json
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from projects import lifecycle as lifecycles
from projects import undoing
from projects.events import SWEEP
from projects.models import Event, LoopStop, Project, Rollback
from services import lifecycle, loops, orders
from services.models import ManagedProcess, WorkerHost
from services.states import Status
from tests.services.repository import commit, everything, git
from tests.services.rows import play_worker, refused, tick

pytestmark = pytest.mark.django_db
URL = "/api/ralph"
POSTS = ["start", "stop", "rollback"]


@pytest.fixture
def operator(client_of) -> Client:
    return client_of("operator")


def post(client: Client, verb: str, slug: str = "demo", **body: Any):
    return client.post(f"{URL}/{slug}/{verb}", data=body, content_type="application/json")


class TestDoors:
    @pytest.mark.parametrize("verb", POSTS)
    def test_who_may(self, demo, client_of, verb):
        for client, status, error in (
            (Client(), 401, "unauthenticated"),
            (client_of("viewer"), 403, "forbidden"),
            (client_of("operator", project="other"), 400, "invalid-project-slug"),
        ):
            body = refused(post(client, verb), status, error)
            assert body["success"] is False
            if verb == "rollback":
                assert (body["reverted_commit"], body["story_reverted"]) == (None, None)
                assert body["message"] == body["detail"]

    @pytest.mark.parametrize("verb", POSTS)
    def test_a_run_may_not(self, demo, client_of, verb):
        refused(post(client_of("operator", run="t_1/1"), verb), 403, "forbidden")

    @pytest.mark.parametrize("verb", POSTS)
    @pytest.mark.parametrize("slug", ["unknown", "a%20b", "..demo", "x" * 65])
    def test_whom_nobody_knows(self, demo, operator, verb, slug):
        refused(post(operator, verb, slug), 400, "invalid-project-slug")

    def test_the_preview_is_for_who_may_read(self, root, client_of):
        assert client_of("viewer").get(f"{URL}/demo/rollback").status_code == 200
        refused(Client().get(f"{URL}/demo/rollback"), 401, "unauthenticated")

    def test_a_session_needs_the_token_of_its_form(self, commanded, worker, sign_in):
        client = sign_in("operator", enforce_csrf_checks=True)
        body = refused(post(client, "start"), 403, "csrf")
        assert body["success"] is False
        assert worker == []


class TestStart:
    def test_it_answers_with_the_process(self, commanded, worker, operator):
        answer = post(operator, "start", max_iterations=3)
        row = ManagedProcess.objects.get()
        assert answer.status_code == 200
        assert answer.json() == {"success": True, "message": "The loop of demo is started.", "pid": row.pid}
        assert row.args == ["3"]
        assert Event.objects.get(kind="loop.declared").payload["via"] == "api"

    def test_without_a_body(self, commanded, worker, operator):
        answer = operator.generic("POST", f"{URL}/demo/start")
        assert (answer.status_code, answer.json()["success"]) == (200, True)

    def test_twice(self, commanded, worker, operator):
        post(operator, "start")
        body = refused(post(operator, "start"), 409, "already-running")
        assert (body["success"], ManagedProcess.objects.count()) == (False, 1)

    def test_a_worker_that_is_slow(self, commanded, operator, monkeypatch):
        play_worker(monkeypatch, act=lambda row: None)
        answer = post(operator, "start", resume=True)
        assert (answer.status_code, answer.json()["pid"]) == (202, None)
        assert answer.json()["message"] == "The loop of demo is resumed."

    def test_what_cannot_be_started_is_told(self, commanded, operator, monkeypatch):
        play_worker(
            monkeypatch, act=lambda row: lifecycle.fail(row, "ralph was not found", by=SWEEP, now=timezone.now())
        )
        body = refused(post(operator, "start"), 409, "start-failed")
        assert body["detail"] == "ralph was not found"

    def test_nothing_says_what_to_run(self, demo, operator, settings):
        settings.ANDON_LOOP_AGENT = ""
        tick()
        refused(post(operator, "start"), 422, "no-loop-command")

    def test_a_limit_that_would_not_hold(self, commanded, worker, operator):
        refused(post(operator, "start", max_cost_usd=2), 422, "limit-unsupported")
        assert worker == []

    @pytest.mark.parametrize(
        "body",
        [{"max_iterations": 0}, {"max_iterations": "x"}, {"max_cost_usd": -1}, {"max_cost_usd": 0}, {"resume": 7}],
    )
    def test_nonsense(self, commanded, worker, operator, body):
        answer = refused(post(operator, "start", **body), 422, "invalid-request")
        assert answer["success"] is False
        assert worker == []

    def test_without_a_worker(self, commanded, operator):
        WorkerHost.objects.all().delete()
        refused(post(operator, "start"), 503, "no-worker")
        assert not ManagedProcess.objects.exists()

    def test_a_rollback_comes_first(self, commanded, worker, operator):
        Rollback.objects.create(
            project="demo", node="n", path="/x", asked_by="a", asked_via="api", asked_at="2026-11-20T00:00Z"
        )
        refused(post(operator, "start"), 409, "rollback-in-progress")


class TestStop:
    def test_one_of_ours(self, commanded, worker, operator):
        pid = post(operator, "start").json()["pid"]
        answer = post(operator, "stop", grace_s=1)
        assert answer.status_code == 200
        assert answer.json() == {
            "success": True,
            "message": "The loop of demo has stopped.",
            "pid": pid,
            "state": "stopped",
        }
        assert LoopStop.objects.get().grace_s == 1
        assert ManagedProcess.objects.get().status == Status.EXITED

    def test_one_that_does_not_end(self, commanded, operator, monkeypatch):
        play_worker(monkeypatch)
        pid = post(operator, "start").json()["pid"]
        play_worker(monkeypatch, act=lambda row: None)
        monkeypatch.setattr(loops, "BEYOND_GRACE_S", 0.1)
        body = refused(post(operator, "stop", grace_s=0), 504, "still-stopping")
        assert (body["success"], body["pid"], body["left"]) == (False, pid, [pid])

    @pytest.mark.parametrize("grace_s", [-1, 86_401, "soon", 1.5])
    def test_nonsense(self, commanded, operator, worker, grace_s):
        refused(post(operator, "stop", grace_s=grace_s), 422, "invalid-request")
        assert not LoopStop.objects.exists()

    def test_without_a_worker(self, demo, operator):
        refused(post(operator, "stop"), 503, "no-worker")


class TestPreview:
    def test_it_shows_what_would_be_done_and_changes_nothing(self, root, operator, django_assert_max_num_queries):
        before = everything(root)
        with django_assert_max_num_queries(6):
            answer = operator.get(f"{URL}/demo/rollback")
        assert answer.status_code == 200
        body = answer.json()
        head = git(root, "rev-parse", "HEAD")
        assert (body["head"], body["commit"], body["branch"]) == (head, head, "main")
        assert (body["subject"], body["story"]) == ("feat: [US-002] Story 2", "US-002")
        assert [(each["path"], each["status"]) for each in body["files"]] == [("a.py", "M"), ("b.py", "D")]
        assert (body["added"], body["removed"], body["blockers"], body["pushed"]) == (0, 2, [], False)
        assert body["diffstat"].strip().splitlines()[-1].strip() == git(root, "diff", "--shortstat", "HEAD", "HEAD~1")
        assert everything(root) == before

    def test_everything_in_the_way_is_told(self, root, operator):
        (root / "a.py").write_text("one = 1\ntwo = 2\nmine\n")
        Project.objects.update(running=True, pid=77)
        body = operator.get(f"{URL}/demo/rollback").json()
        assert [each["code"] for each in body["blockers"]] == ["loop-running", "dirty-tree"]
        assert body["blockers"][1]["paths"] == ["a.py"]
        assert body["running"] is True

    def test_where_there_is_no_repository(self, demo, operator):
        refused(operator.get(f"{URL}/demo/rollback"), 400, "not-a-git-repository")

    @pytest.mark.parametrize("query", ["mainline=x", "mainline=0", "mainline=65"])
    def test_nonsense(self, root, operator, query):
        refused(operator.get(f"{URL}/demo/rollback?{query}"), 400, "mainline-invalid")

    def test_a_commit_that_is_not_there(self, root, operator):
        answer = operator.get(f"{URL}/demo/rollback?commit=deadbeef")
        assert answer.status_code in {200, 409}
        assert answer.status_code == 409 or answer.json()["blockers"]


class TestRollBack:
    def test_the_ordinary_one(self, root, worker, operator):
        head = git(root, "rev-parse", "HEAD")
        progress = (root / "scripts/ralph/progress.txt").read_bytes()
        answer = post(operator, "rollback", expected_head=head)
        assert answer.status_code == 200, answer.content
        body = answer.json()
        assert body["success"] is True
        assert (body["reverted_commit"], body["story_reverted"], body["method"]) == (head, "US-002", "revert")
        assert body["new_commit"] == git(root, "rev-parse", "HEAD") != head
        assert git(root, "rev-parse", body["backup_ref"]) == head
        assert (root / "a.py").read_text() == "one = 1\n"
        assert not (root / "b.py").exists()
        assert (root / "scripts/ralph/progress.txt").read_bytes() == progress
        stories = {
            each["id"]: each for each in json.loads((root / "scripts/ralph/prd.json").read_text())["userStories"]
        }
        assert (stories["US-001"]["passes"], stories["US-002"]["passes"]) == (True, False)
        row = Rollback.objects.get()
        assert (row.status, row.head, row.files, row.pushed) == ("done", head, 2, False)
        kinds = [*Event.objects.filter(kind__startswith="rollback.").values_list("kind", flat=True)]
        assert kinds == ["rollback.asked", "rollback.started", "rollback.completed"]
        told = Event.objects.get(kind="rollback.completed")
        assert (told.actor, told.payload["story"]) == (row.asked_by, "US-002")

    def test_the_same_key_answers_the_same_and_does_it_once(self, root, worker, operator):
        first = post(operator, "rollback", idempotency_key="k").json()
        assert post(operator, "rollback", idempotency_key="k").json() == first
        assert git(root, "rev-list", "--count", "HEAD") == "3"
        refused(post(operator, "rollback"), 409, "already-rolled-back")

    def test_a_refusal_changes_nothing_and_is_told(self, root, worker, operator):
        (root / "a.py").write_text("mine\n")
        before = everything(root)
        body = refused(post(operator, "rollback", idempotency_key="k"), 409, "dirty-tree")
        assert body["paths"] == ["a.py"]
        assert (body["success"], body["reverted_commit"], body["story_reverted"]) == (False, None, None)
        assert body["message"] == body["detail"]
        assert everything(root) == before
        assert Event.objects.get(kind="rollback.refused").payload["code"] == "dirty-tree"
        (root / "a.py").write_text("one = 1\ntwo = 2\n")
        # The key answers what it answered first.
        assert refused(post(operator, "rollback", idempotency_key="k"), 409, "dirty-tree")["paths"] == ["a.py"]

    def test_head_moved_since_the_preview(self, root, worker, operator):
        seen = operator.get(f"{URL}/demo/rollback").json()["head"]
        now = commit(root, "something else", c__py="c\n")
        before = everything(root)
        body = refused(post(operator, "rollback", expected_head=seen), 409, "head-moved")
        assert body["head"] == now
        assert everything(root) == before

    def test_no_repository(self, demo, worker, operator):
        tick()
        body = refused(post(operator, "rollback"), 400, "not-a-git-repository")
        assert body["success"] is False

    def test_a_loop_of_ours_is_stopped_first(self, root, worker, operator):
        Project.objects.update(loop_command="ralph")
        post(operator, "start")
        refused(post(operator, "rollback"), 409, "loop-running")
        assert post(operator, "rollback", stop_first=True).status_code == 200
        assert ManagedProcess.objects.get().status == Status.EXITED

    def test_the_lock_of_somebody_else(self, root, worker, operator):
        from projects import ralph

        before = everything(root)
        with ralph.project_lock(root):
            refused(post(operator, "rollback"), 409, "loop-running")
        assert everything(root) == before

    @pytest.mark.parametrize(
        "body",
        [{"mainline": 0}, {"mainline": "x"}, {"expected_head": "a" * 65}, {"idempotency_key": "k" * 201}, {"story": 7}],
    )
    def test_nonsense(self, root, worker, operator, body):
        answer = refused(post(operator, "rollback", **body), 422, "invalid-request")
        assert (answer["success"], answer["story_reverted"]) == (False, None)
        assert not Rollback.objects.exists()

    @pytest.mark.parametrize("wanted", ["--help", "HEAD; rm -rf /", "\x00", "é", "HEAD~1^{tree}"])
    def test_hostile_revisions(self, root, worker, operator, wanted):
        before = everything(root)
        answer = post(operator, "rollback", commit=wanted)
        assert answer.status_code in {400, 409, 422}
        assert answer.json()["success"] is False
        assert everything(root) == before


class TestBodies:
    """What is not understood is never taken for nothing."""

    @pytest.mark.parametrize("verb", POSTS)
    @pytest.mark.parametrize(
        "body", ["[]", '"x"', "null", "7", "{", "{}x", '{"expectedHead": "00"}', '{"dryRun": true}']
    )
    def test_refused(self, root, worker, operator, verb, body):
        Project.objects.update(loop_command="ralph")
        before = everything(root)
        answer = operator.generic("POST", f"{URL}/demo/{verb}", body, content_type="application/json")
        assert refused(answer, 422, "invalid-request")["success"] is False
        assert (Rollback.objects.count(), LoopStop.objects.count(), ManagedProcess.objects.count()) == (0, 0, 0)
        assert everything(root) == before

    @pytest.mark.parametrize("verb", POSTS)
    def test_too_large(self, root, operator, verb):
        body = json.dumps({"story": "x" * 3_000_000})
        refused(
            operator.generic("POST", f"{URL}/demo/{verb}", body, content_type="application/json"),
            413,
            "invalid-request",
        )


def test_a_loop_that_nobody_had_seen_yet_is_stopped_first(root, worker, operator, monkeypatch):
    """The board's row is a moment old; the worker finds the loop, and it is stopped then."""
    from projects.lifecycle import stops

    asked: list[str] = []

    def send(job: Any, node: str, pk: int) -> None:
        if job is not loops.carry_out:
            asked.append("stop")
            stops.settle(LoopStop.objects.get(pk=pk), killed=False, now=timezone.now())
        elif asked:
            undoing.act(pk)
        else:
            asked.append("rollback")
            row = Rollback.objects.get(pk=pk)
            lifecycles.refuse(row, "loop-running", "there", {"status": 409}, now=timezone.now())

    monkeypatch.setattr(orders, "send", send)
    answer = post(operator, "rollback", stop_first=True, idempotency_key="k")
    assert (answer.status_code, asked) == (200, ["rollback", "stop"])
    assert post(operator, "rollback", stop_first=True, idempotency_key="k").json() == answer.json()


def test_one_of_ours_that_has_ended_is_stopped_already(commanded, worker, operator, monkeypatch):
    from projects.lifecycle import stops

    post(operator, "start")
    post(operator, "stop")

    def nothing(job: Any, node: str, pk: int) -> None:
        stops.refuse(LoopStop.objects.get(pk=pk), "no-pid-file", "none", now=timezone.now())

    monkeypatch.setattr(orders, "send", nothing)
    body = post(operator, "stop").json()
    assert (body["success"], body["state"], body["pid"]) == (True, "stopped", None)
    assert "already stopped" in body["message"]


def test_a_service_of_the_same_name_is_another_matter(commanded, worker, operator):
    """A loop is not one of the services that the other routes act on."""
    post(operator, "start")
    answer = operator.post(
        "/api/managed-processes/kill", data={"name": "loop", "project": "demo"}, content_type="application/json"
    )
    refused(answer, 404, "not-found")
