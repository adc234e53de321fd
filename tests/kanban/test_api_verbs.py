"""Verbs over REST: what workers report, what people decide, and every pair of statuses that PATCH knows."""

import itertools
from decimal import Decimal

import pytest
from django.test import Client
from django.utils import timezone

from kanban import lifecycle, workers
from kanban.models import Run, Task
from kanban.schemas import ClaimedOut, OneTaskOut
from kanban.states import Status
from projects.models import ApiToken, Event
from services.specs.sidecars import FILE, FOLDER
from tests.kanban import rows
from tests.kanban.asking import Asker, refused, speaking

ILLEGAL, CLAIM_ONLY = "illegal-transition", "claim-only"
# What spec/kanban.md 4 says of PATCH: from -> to -> the event that tells of it, or the code of the refusal.
# "" = the same status, of which nothing is told.
PAIRS: dict[str, dict[str, str]] = {
    "triage": {"triage": "", "todo": "status", "ready": "status", "running": CLAIM_ONLY, "review": ILLEGAL,
               "blocked": ILLEGAL, "done": ILLEGAL, "archived": "archived"},
    "todo": {"triage": "status", "todo": "", "ready": "forced", "running": CLAIM_ONLY, "review": ILLEGAL,
             "blocked": ILLEGAL, "done": ILLEGAL, "archived": "archived"},
    "ready": {"triage": "status", "todo": "status", "ready": "", "running": CLAIM_ONLY, "review": ILLEGAL,
              "blocked": "blocked", "done": "completed", "archived": "archived"},
    "running": {"triage": ILLEGAL, "todo": ILLEGAL, "ready": "reclaimed", "running": "", "review": "review_requested",
                "blocked": "blocked", "done": "completed", "archived": "archived"},
    "review": {"triage": "status", "todo": "status", "ready": "sent_back", "running": CLAIM_ONLY, "review": "",
               "blocked": ILLEGAL, "done": "completed", "archived": "archived"},
    "blocked": {"triage": "status", "todo": "status", "ready": "unblocked", "running": CLAIM_ONLY, "review": ILLEGAL,
                "blocked": "", "done": "completed", "archived": "archived"},
    "done": {"triage": "status", "todo": "status", "ready": "reopened", "running": CLAIM_ONLY, "review": ILLEGAL,
             "blocked": ILLEGAL, "done": "", "archived": "archived"},
    "archived": {"triage": "status", "todo": "status", "ready": "reopened", "running": CLAIM_ONLY, "review": ILLEGAL,
                 "blocked": ILLEGAL, "done": ILLEGAL, "archived": ""},
}  # fmt: skip


@pytest.mark.parametrize(("source", "target"), list(itertools.product(Status.values, Status.values)))
def test_patch_means_a_verb_for_each_pair_of_statuses(ask, source, target):
    made = rows.in_status(source)
    head = Event.objects.latest("id").pk
    answer = ask().patch(f"/tasks/{made.pk}", {"status": target})
    meant = PAIRS[source][target]
    kinds = [kind.removeprefix("task.") for kind in Event.objects.filter(
        id__gt=head, subject=made.subject).order_by("id").values_list("kind", flat=True)]  # fmt: skip
    if meant in {ILLEGAL, CLAIM_ONLY}:
        body = refused(answer, 409, meant)
        assert (body["from"], body["to"]) == (source, target)
        assert rows.fresh(made).status == source
        assert kinds == []
        return
    assert answer.status_code == 200, answer.content
    OneTaskOut.model_validate(answer.json())
    assert answer.json()["task"]["status"] == rows.fresh(made).status == target
    assert kinds == ([meant] if meant else [])


def test_the_table_is_whole():
    assert set(PAIRS) == set(Status.values)
    assert all(set(row) == set(Status.values) for row in PAIRS.values())


def test_nothing_asked_for_is_nothing_done(ask):
    made = rows.task()
    count = Event.objects.count()
    asker = ask()
    assert asker.patch(f"/tasks/{made.pk}", {}).json()["task"]["status"] == "ready"
    assert asker.patch(f"/tasks/{made.pk}", {"assignee": None, "status": None}).status_code == 200
    same = {"status": "ready", "assignee": "demo", "priority": 0, "title": made.title, "body": ""}
    assert asker.patch(f"/tasks/{made.pk}", same).status_code == 200
    # The token of the one who asks is an event too.
    assert Event.objects.count() == count + 1


def test_a_patch_is_all_or_nothing(ask):
    made = rows.task()
    asker = ask()
    count = Event.objects.filter(kind__startswith="task.").count()
    for wrong, status in (
        ({"title": " "}, 400),
        ({"status": "running"}, 409),
        ({"status": "paused"}, 400),
        ({"priority": 10**9}, 400),
        ({"status": "blocked", "block_kind": "mood"}, 400),
        ({"status": "blocked", "block_kind": "breaker"}, 400),
    ):
        body = {"assignee": "anna", "priority": 7, "title": "New", "body": "New", **wrong}
        assert asker.patch(f"/tasks/{made.pk}", body).status_code == status, wrong
        now = rows.fresh(made)
        assert (now.assignee, now.priority, now.title, now.status) == ("demo", 0, made.title, "ready")
    assert Event.objects.filter(kind__startswith="task.").count() == count


def test_a_patch_of_everything_is_done_in_order(ask):
    made = rows.task()
    head = Event.objects.latest("id").pk
    body = {"assignee": "", "status": "done", "priority": 7, "title": "New", "body": "More", "result": "Well"}
    found = ask().patch(f"/tasks/{made.pk}", body).json()["task"]
    assert found["assignee"] is None
    assert (found["status"], found["priority"], found["title"], found["result"]) == ("done", 7, "New", "Well")
    kinds = Event.objects.filter(id__gt=head, subject=made.subject).order_by("id").values_list("kind", flat=True)
    assert list(kinds) == ["task.assigned", "task.completed", "task.priority", "task.edited"]


def test_nobody_else_gets_a_task_while_it_runs(ask):
    made = rows.in_status("running")
    refused(ask().patch(f"/tasks/{made.pk}", {"assignee": "anna"}), 409, "running")
    assert ask().patch(f"/tasks/{made.pk}", {"assignee": "demo"}).status_code == 200


def test_a_block_says_why(ask):
    made = rows.task()
    body = {"status": "blocked", "block_reason": "Which?", "block_kind": "capability"}
    found = ask().patch(f"/tasks/{made.pk}", body).json()["task"]
    assert (found["block_kind"], found["block_reason"]) == ("capability", "Which?")
    assert found["blocked_by"].startswith("token:")


# The verbs by name


@pytest.mark.parametrize(
    ("verb", "source", "target"),
    [
        ("complete", "ready", "done"),
        ("block", "ready", "blocked"),
        ("unblock", "blocked", "ready"),
        ("release", "running", "ready"),
        ("review", "running", "review"),
        ("approve", "review", "done"),
        ("send-back", "review", "ready"),
        ("reopen", "done", "ready"),
    ],
)
def test_each_verb_moves_a_task_and_refuses_what_it_cannot(ask, verb, source, target):
    asker, made = ask(), rows.in_status(source)
    answer = asker.post(f"/tasks/{made.pk}/{verb}")
    assert answer.status_code == 200, answer.content
    OneTaskOut.model_validate(answer.json())
    assert answer.json()["task"]["status"] == target
    refused(asker.post(f"/tasks/{rows.in_status('triage').pk}/{verb}"), 409, ILLEGAL)
    refused(asker.post(f"/tasks/t_ffffffff/{verb}"), 404, "not-found")


@pytest.mark.parametrize("verb", ["complete", "block", "review", "release", "heartbeat"])
def test_the_body_of_a_verb_is_read_strictly(ask, verb):
    made = rows.in_status("running")
    field = {"complete": "result", "block": "reason", "review": "summary", "release": "reason", "heartbeat": "note"}
    refused(ask().post(f"/tasks/{made.pk}/{verb}", {field[verb]: 1}), 422, "invalid-request")
    assert rows.fresh(made).status == Status.RUNNING


def test_an_unknown_kind_of_block_is_refused(ask):
    for kind in ("mood", "breaker", ""):
        refused(ask().post(f"/tasks/{rows.task().pk}/block", {"kind": kind}), 400, "unknown-block-kind")
    refused(ask().post(f"/tasks/{rows.task().pk}/block", {"kind": "dependency"}), 409, "no-open-parents")


# Workers elsewhere


def test_a_worker_elsewhere_claims_works_and_completes(ask):
    asker = ask()
    made = asker.task(assignee="anna")["id"]
    answer = asker.post(f"/tasks/{made}/claim").json()
    ClaimedOut.model_validate(answer)
    assert answer["task"]["status"] == "running"
    assert answer["run"]["number"] == 1
    token = answer["run"]["token"]
    worker = Asker(Client(headers={"Authorization": f"Bearer {token}"}))
    spent = {"note": "half", "cost_usd": 0.25, "tokens": 12}
    assert worker.post(f"/tasks/{made}/heartbeat", spent).json()["task"]["status"] == "running"
    assert worker.get(f"/tasks/{made}").status_code == 200
    assert "half" in str(asker.get(f"/tasks/{made}").json()["events"])
    assert token not in asker.get(f"/tasks/{made}").content.decode()
    assert worker.post(f"/tasks/{made}/complete", {"result": "Well", "cost_usd": 1}).json()["task"]["status"] == "done"
    run = Run.objects.get()
    assert (run.outcome, float(run.cost_usd or 0), run.tokens) == ("completed", 1.0, 12)
    refused(worker.post(f"/tasks/{made}/heartbeat"), 401, "unauthenticated")
    refused(asker.post(f"/tasks/{made}/claim"), 409, "task-not-ready")


def test_of_two_who_claim_one_wins_and_a_failed_claim_leaves_no_token(ask, monkeypatch):
    made = rows.task()
    assert ask().post(f"/tasks/{made.pk}/claim").status_code == 200
    refused(ask().post(f"/tasks/{made.pk}/claim"), 409, "task-not-ready")
    assert ApiToken.objects.exclude(run="").count() == 1
    waits = rows.in_status("todo")
    refused(ask().post(f"/tasks/{waits.pk}/claim"), 409, "task-not-ready")

    def broken(*_: object, **__: object) -> str:
        raise OSError

    other = rows.task()
    monkeypatch.setattr(workers, "issue_token", broken)
    refused(ask().post(f"/tasks/{other.pk}/claim"), 500, "internal")
    assert rows.fresh(other).status == Status.READY


def test_only_a_run_has_a_heartbeat(ask):
    refused(ask().post(f"/tasks/{rows.in_status('running').pk}/heartbeat"), 400, "not-a-run")


@pytest.mark.parametrize("body", [{"cost_usd": -1}, {"tokens": -1}, {"tokens": 10**30}, {"cost_usd": 1e300}])
def test_what_nobody_can_have_spent_is_refused(db, body):
    run = rows.pulled()
    worker = speaking(run)
    assert worker.post(f"/tasks/{run.task_id}/heartbeat", body).status_code == 400
    assert worker.post(f"/tasks/{run.task_id}/complete", body).status_code == 400


def test_a_run_whose_attempt_is_over_hears_it(ask):
    run = rows.pulled()
    worker = speaking(run)
    # Its token dies with it; one that was not revoked yet would hear `superseded`.
    lifecycle.release(run.task, by=rows.ANNA, now=timezone.now())
    ApiToken.objects.filter(run=str(run)).update(revoked_at=None)
    for verb in ("heartbeat", "complete", "block", "review", "comments"):
        refused(worker.post(f"/tasks/{run.task_id}/{verb}", {"body": "x"}), 409, "superseded")


def test_a_run_that_left_a_sidecar_waits_for_its_services(home, db):
    run = rows.started()
    worker = speaking(run)
    folder = home / FOLDER / run.agent
    folder.mkdir(parents=True)
    (folder / FILE).write_text("{}")
    found = worker.post(f"/tasks/{run.task_id}/complete", {"result": "Well"}).json()["task"]
    assert (found["status"], found["phase"]) == ("running", "services")


# What a run may do beside


def test_a_run_makes_only_tasks_that_wait_for_its_own(ask, imported):
    imported("demo")
    run = rows.pulled(project="demo")
    other = rows.task(project="demo")
    worker = speaking(run)
    made = worker.post("/tasks", {"title": "Next", "parents": [run.task_id]}).json()["task"]
    assert (made["status"], made["project"], made["created_by"]) == ("todo", "demo", f"run:{run}")
    for parents in ([], [other.pk]):
        refused(worker.post("/tasks", {"title": "Next", "parents": parents}), 403, "forbidden")
    both = {"title": "Next", "parents": [other.pk, run.task_id]}
    assert worker.post("/tasks", both).status_code == 200


def test_a_run_keeps_to_its_project_and_one_of_none_to_none(imported):
    imported("demo")
    elsewhere = rows.task(project="demo", idempotency_key="k")
    run = rows.pulled()
    worker = speaking(run)
    mine = {"title": "Next", "parents": [run.task_id]}
    refused(worker.post("/tasks", {**mine, "project": "demo"}), 400, "unknown-project")
    refused(worker.post("/tasks", {**mine, "parents": [run.task_id, elsewhere.pk]}), 400, "unknown-parent")
    refused(worker.post("/tasks", {**mine, "idempotency_key": "k"}), 409, "idempotency-key-taken")
    assert worker.post("/tasks", mine).json()["task"]["project"] is None


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/board"), ("GET", "/stats"), ("GET", "/config"), ("GET", "/tasks/{other}"),
        ("GET", "/tasks/{own}/log"),
        ("GET", "/tasks/{other}/context"), ("PATCH", "/tasks/{own}"), ("POST", "/tasks/bulk"), ("POST", "/links"),
        ("DELETE", "/links"), ("POST", "/dispatch"), ("POST", "/tasks/{own}/claim"), ("POST", "/tasks/{own}/release"),
        ("POST", "/tasks/{own}/approve"), ("POST", "/tasks/{own}/unblock"), ("POST", "/tasks/{other}/comments"),
        ("POST", "/tasks/{other}/complete"), ("POST", "/tasks/{own}/reopen"), ("POST", "/tasks/{own}/send-back"),
    ],
)  # fmt: skip
def test_a_run_may_do_nothing_else(db, method, path):
    run, other = rows.pulled(), rows.task()
    worker = speaking(run)
    address = path.format(own=run.task_id, other=other.pk)
    answer = worker.client.generic(method, f"/api/kanban{address}", "{}", content_type="application/json")
    refused(answer, 403, "forbidden")


# Whose token is bound to one project


@pytest.fixture
def two(imported):
    imported("demo")
    imported("other")
    return rows.task(project="demo"), rows.task(project="other"), rows.task()


def test_a_token_of_a_project_sees_and_touches_that_project_alone(ask, two):
    mine, other, free = two
    asker = ask(project="demo")
    cards = [card["id"] for column in asker.get("/board").json()["columns"] for card in column["tasks"]]
    assert cards == [mine.pk]
    assert [column for column in asker.get("/board?project=other").json()["columns"] if column["tasks"]] == []
    assert asker.get("/stats").json()["by_status"] == {"ready": 1}
    for hidden in (other, free):
        for path in ("", "/context", "/log"):
            refused(asker.get(f"/tasks/{hidden.pk}{path}"), 404, "not-found")
        refused(asker.patch(f"/tasks/{hidden.pk}", {"priority": 1}), 404, "not-found")
        for verb in ("claim", "complete", "block", "comments"):
            refused(asker.post(f"/tasks/{hidden.pk}/{verb}", {"body": "x"}), 404, "not-found")
        refused(asker.post("/links", {"parent_id": hidden.pk, "child_id": mine.pk}), 400, "unknown-task")
        refused(asker.delete(f"/links?parent_id={mine.pk}&child_id={hidden.pk}"), 400, "unknown-task")
        [result] = asker.post("/tasks/bulk", {"ids": [hidden.pk], "priority": 1}).json()["results"]
        assert result["error"] == "not-found"
        refused(asker.post("/tasks", {"title": "x", "parents": [hidden.pk]}), 400, "unknown-parent")
    assert Task.objects.filter(priority=1).count() == 0
    assert asker.patch(f"/tasks/{mine.pk}", {"priority": 1}).status_code == 200


def test_a_token_of_a_project_makes_tasks_there_alone(ask, two):
    mine, other, _ = two
    asker = ask(project="demo")
    assert asker.task(parents=[mine.pk])["project"] == "demo"
    assert asker.task(project="demo")["project"] == "demo"
    refused(asker.post("/tasks", {"title": "x", "project": "other"}), 400, "unknown-project")
    rows.task(project="other", idempotency_key="k")
    refused(asker.post("/tasks", {"title": "x", "idempotency_key": "k"}), 409, "idempotency-key-taken")
    assert rows.fresh(other).title == other.title


@pytest.mark.parametrize("path", ["/board", "/stats", "/config", "/tasks/{task}", "/tasks/{task}/log"])
def test_a_viewer_reads_and_changes_nothing(ask, path):
    made = rows.task()
    viewer = ask("viewer")
    assert viewer.get(path.format(task=made.pk)).status_code == 200
    refused(viewer.patch(f"/tasks/{made.pk}", {"priority": 1}), 403, "forbidden")
    refused(viewer.post(f"/tasks/{made.pk}/comments", {"body": "x"}), 403, "forbidden")


def test_a_session_needs_the_csrf_token(sign_in):
    client = sign_in("operator", enforce_csrf_checks=True)
    refused(Asker(client).post("/tasks", {"title": "One"}), 403, "csrf")
    assert Asker(client).get("/board").status_code == 200


class TestLimit:
    def test_what_is_absent_stays_and_null_takes_a_limit_away(self, ask):
        task = rows.task(max_runtime_s=60, max_cost_usd=Decimal("2.5"), failure_limit=3)
        answer = ask().post(f"/tasks/{task.pk}/limit", {"max_cost_usd": 4.25, "failure_limit": None})
        assert answer.status_code == 200, answer.content
        OneTaskOut.model_validate(answer.json())
        told = answer.json()["task"]
        assert (told["max_runtime_s"], told["max_cost_usd"], told["failure_limit"]) == (60, 4.25, None)
        told_of = Event.objects.filter(subject=task.subject).count()
        assert ask().post(f"/tasks/{task.pk}/limit", {}).status_code == 200
        assert Event.objects.filter(subject=task.subject).count() == told_of

    def test_what_was_over_budget_goes_on(self, ask):
        run = rows.pulled(max_cost_usd=Decimal(1))
        lifecycle.heartbeat(run.task, cost_usd=Decimal(2), by=rows.as_run(run), now=timezone.now())
        assert rows.fresh(run.task).status == "blocked"
        answer = ask().post(f"/tasks/{run.task_id}/limit", {"max_cost_usd": 5})
        assert answer.json()["task"]["status"] == "ready"

    @pytest.mark.parametrize(
        ("body", "status", "code"),
        [
            ({"max_cost_usd": -1}, 400, "invalid-max_cost_usd"),
            ({"max_runtime_s": 0}, 400, "invalid-max_runtime_s"),
            ({"failure_limit": 1001}, 400, "invalid-failure_limit"),
            ({"max_cost_usd": "much"}, 422, "invalid-request"),
        ],
    )
    def test_nonsense_is_refused(self, ask, body, status, code):
        task = rows.task()
        refused(ask().post(f"/tasks/{task.pk}/limit", body), status, code)
        assert rows.fresh(task).max_cost_usd is None

    def test_is_an_operators(self, ask):
        task = rows.task()
        refused(ask("viewer").post(f"/tasks/{task.pk}/limit", {"failure_limit": 2}), 403, "forbidden")
        run = rows.pulled()
        answer = speaking(run).post(f"/tasks/{run.task_id}/limit", {"max_cost_usd": 900})
        assert answer.status_code == 403
