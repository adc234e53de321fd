"""Tasks over REST: made, read, changed, linked, spoken of."""

import json
from datetime import timedelta
from decimal import Decimal

import pytest
from django.db import connection
from django.test import Client
from django.utils import timezone

from kanban import lifecycle, queries
from kanban.models import Comment, Link, Task
from kanban.schemas import DetailOut, TaskOut
from kanban.states import Status
from projects.events import SWEEP, record, writing
from projects.models import Event
from tests.kanban import rows
from tests.kanban.asking import HOME, Asker, refused, speaking

HOSTILE = '</script><img src=x onerror=alert(1)>\x1b[2J"\\{{7*7}}\u2028\u202e'


def test_a_task_is_made_with_nothing_but_a_title(ask):
    made = ask().task("  One \n more  ")
    assert made["title"] == "One more"
    assert (made["status"], made["priority"], made["workspace_kind"], made["body"]) == ("ready", 0, "scratch", "")
    nothing = {name for name, value in made.items() if value is None}
    assert nothing >= {"assignee", "tenant", "project", "result", "workspace_path", "idempotency_key", "last_error"}
    assert nothing >= {"block_kind", "blocked_by", "lease_owner", "phase", "claim_lock", "claim_expires", "worker_pid"}
    assert isinstance(made["created_at"], int)
    assert made["created_by"].startswith("token:")


def test_a_task_is_made_with_everything(ask, imported):
    imported("demo")
    asker = ask()
    parent = asker.task()["id"]
    fields = {
        "body": "Do it",
        "assignee": "demo",
        "tenant": "north",
        "priority": -3,
        "workspace_kind": "dir",
        "workspace_path": "/srv/x",
        "idempotency_key": "k",
        "project": "demo",
        "max_runtime_s": 60,
        "max_cost_usd": 1.5,
        "failure_limit": 2,
        "services_required": True,
    }
    made = asker.task(parents=[parent, parent], **fields)
    assert {name: made[name] for name in fields} == fields
    assert made["status"] == "todo"
    assert list(Link.objects.values_list("parent_id", "child_id")) == [(parent, made["id"])]


def test_null_is_the_same_as_absent(ask):
    nothing = dict.fromkeys(["body", "assignee", "tenant", "workspace_kind", "parents", "project", "max_runtime_s"])
    assert ask().task(**nothing)["status"] == "ready"


def test_triage_waits_to_be_sorted(ask):
    assert ask().task(triage=True)["status"] == "triage"


def test_the_same_key_answers_with_the_same_task_untouched(ask):
    asker = ask()
    one, two = asker.task(idempotency_key="k"), asker.task("Another", idempotency_key="k", priority=5)
    assert one == two
    assert asker.patch(f"/tasks/{one['id']}", {"status": "archived"}).status_code == 200
    assert asker.task("Another", idempotency_key="k")["id"] != one["id"]


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"title": "  "}, "title-missing"),
        ({"title": "\x00"}, "title-missing"),
        ({"title": "x" * 501}, "title-too-long"),
        ({"body": "x" * 262_145}, "body-too-long"),
        ({"assignee": "x" * 81}, "assignee-too-long"),
        ({"tenant": "x" * 81}, "tenant-too-long"),
        ({"workspace_kind": "vm"}, "unknown-workspace-kind"),
        ({"workspace_kind": "dir"}, "workspace-path-missing"),
        ({"workspace_path": "../x"}, "invalid-workspace-path"),
        ({"parents": ["t_ffffffff"]}, "unknown-parent"),
        ({"parents": ["\x00"]}, "unknown-parent"),
        ({"parents": ["\ud800"]}, "unknown-parent"),
        ({"project": "nowhere"}, "unknown-project"),
        ({"project": "\x00"}, "unknown-project"),
        ({"priority": 10**30}, "invalid-priority"),
        ({"max_runtime_s": 0}, "invalid-max_runtime_s"),
        ({"max_cost_usd": -1}, "invalid-max_cost_usd"),
    ],
)
def test_what_cannot_be_is_refused(ask, fields, code):
    asker = ask()
    refused(asker.post("/tasks", {"title": "One", **fields}), 400, code)
    assert not Task.objects.exists()


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"title": None},
        {"title": 1},
        {"title": "One", "priority": "1"},
        {"title": "One", "priority": True},
        {"title": "One", "priority": 1.0},
        {"title": "One", "triage": "yes"},
        {"title": "One", "triage": 1},
        {"title": "One", "parents": "t_ffffffff"},
        {"title": "One", "parents": [1]},
        {"title": "One", "max_cost_usd": "1"},
        [],
        "title",
    ],
)
def test_no_type_is_ever_converted(ask, body):
    details = refused(ask().post("/tasks", body), 422, "invalid-request")["detail"]
    assert isinstance(details, list)


def test_a_body_that_is_no_json_or_endless_is_refused(ask):
    client = ask().client
    refused(client.post(f"{HOME}/tasks", data="{", content_type="application/json"), 400, "invalid-request")
    endless = json.dumps({"title": "One", "body": "x" * 3_000_000})
    refused(client.post(f"{HOME}/tasks", data=endless, content_type="application/json"), 413, "invalid-request")


def test_what_nobody_knows_is_overlooked(ask):
    assert ask().task(skills=["x"])["title"] == "One"


def test_making_a_task_takes_few_queries(ask, django_assert_max_num_queries):
    asker = ask()
    parents = [asker.task()["id"] for _ in range(3)]
    # The token, a savepoint and its end around the row, the row, the events; PostgreSQL has two before those.
    more = 2 if connection.vendor == "postgresql" else 0
    with django_assert_max_num_queries(7 + more):
        asker.task()
    with django_assert_max_num_queries(10 + more):
        asker.task(parents=parents, idempotency_key="k")


def test_every_public_field_is_told_alike_by_the_database_and_by_a_verb(db):
    for status in Status:
        made = rows.in_status(status, tenant="north", max_cost_usd=Decimal("2.5"))
        told = queries.document(made)
        assert told == queries.read_document(made.pk)
        assert set(told) == set(TaskOut.model_fields)
        TaskOut.model_validate(told)
    assert queries.read_document("t_ffffffff") is None


def test_a_moment_is_told_alike_whatever_its_fraction(db):
    for micros in (0, 499, 500, 999_499, 999_500, 999_999):
        now = timezone.now().replace(microsecond=micros)
        made = rows.task(now=now)
        assert queries.document(rows.fresh(made)) == queries.read_document(made.pk)


def test_names_of_other_boards_stand_beside_ours(ask):
    run = rows.started()
    found = ask().get(f"/tasks/{run.task_id}").json()["task"]
    assert found["claim_lock"] == found["lease_owner"] == run.owner
    assert found["claim_expires"] == found["lease_until"]
    assert found["worker_pid"] == run.pid
    assert found["spawn_failures"] == found["failures"] == 0
    assert found["last_spawn_error"] is found["last_error"] is None
    assert found["current_run"] == 1


# One task


def test_a_task_is_read_with_all_that_belongs_to_it(ask, django_assert_num_queries):
    asker = ask()
    parent = rows.task()
    run = rows.started()
    child = rows.task(parents=[run.task_id])
    rows.linked(parent, rows.fresh(run.task))
    lifecycle.comment(run.task, "Well", author="anna", by=rows.ANNA, now=timezone.now())
    asker.get("/config")
    # The token, the task, and one for each list, of links for each direction.
    with django_assert_num_queries(7):
        answer = asker.get(f"/tasks/{run.task_id}")
    found = answer.json()
    DetailOut.model_validate(found)
    assert set(found) == {"task", "comments", "events", "links", "runs"}
    assert found["links"] == {"parents": [parent.pk], "children": [child.pk]}
    [remark] = found["comments"]
    assert set(remark) == {"id", "task_id", "author", "body", "created_at"}
    assert [event["kind"] for event in found["events"]][:3] == ["created", "claimed", "spawned"]
    assert all(set(event) == {"id", "task_id", "kind", "payload", "created_at"} for event in found["events"])
    [attempt] = found["runs"]
    assert (attempt["number"], attempt["profile"], attempt["pid"], attempt["outcome"]) == (1, "demo", run.pid, None)


def test_lists_of_a_task_are_bounded_and_events_are_paged(ask, db):
    made = rows.task()
    with writing():
        for number in range(450):
            record("task.heartbeat", made.subject, by=SWEEP, now=timezone.now(), n=number)
    Comment.objects.bulk_create(
        Comment(task=made, author="a", body=str(number), created_at=timezone.now()) for number in range(505)
    )
    asker = ask()
    found = asker.get(f"/tasks/{made.pk}").json()
    assert [remark["body"] for remark in found["comments"]] == [str(number) for number in range(5, 505)]
    seen = [event["id"] for event in found["events"]]
    assert len(seen) == 200
    while page := asker.get(f"/tasks/{made.pk}?events_before={seen[0]}").json()["events"]:
        assert len(page) <= 200
        seen = [event["id"] for event in page] + seen
    assert seen == list(Event.objects.filter(subject=made.subject).order_by("id").values_list("id", flat=True))


def test_a_payload_always_has_the_keys_that_clients_read(ask):
    run = rows.started()
    found = ask().get(f"/tasks/{run.task_id}").json()["events"]
    payloads = {event["kind"]: event["payload"] for event in found}
    assert (
        payloads["created"] | {"tenant": None, "assignee": "demo", "parents": [], "status": "ready"}
        == payloads["created"]
    )
    assert {"lock", "expires"} <= set(payloads["claimed"])
    made = rows.task()
    lifecycle.assign(made, "", by=rows.ANNA, now=timezone.now())
    last = ask().get(f"/tasks/{made.pk}").json()["events"][-1]
    assert (last["kind"], last["payload"]["assignee"]) == ("assigned", None)


@pytest.mark.parametrize("task_id", ["t_ffffffff", "x", "t_" + "0" * 60, "%00", "é", "..", "%F0%9F%92%A9"])
@pytest.mark.parametrize("rest", ["", "/context", "/log"])
def test_a_task_that_is_not_there_is_missing(ask, task_id, rest):
    refused(ask().get(f"/tasks/{task_id}{rest}"), 404, "not-found")


@pytest.mark.parametrize("before", ["0", "-1", "x", str(1 << 62)])
def test_a_page_begins_at_an_event(ask, before):
    made = rows.task()
    refused(ask().get(f"/tasks/{made.pk}?events_before={before}"), 422, "invalid-request")


def test_what_hostile_hands_wrote_comes_back_as_it_was_written(ask):
    asker = ask()
    made = asker.task(HOSTILE, body=HOSTILE + "\ud800\x00", tenant=HOSTILE, assignee=HOSTILE)
    for found in (
        made,
        asker.get(f"/tasks/{made['id']}").json()["task"],
        {
            key: value
            for key, value in next(
                card for column in asker.get("/board").json()["columns"] for card in column["tasks"]
            ).items()
            if key in made
        },
    ):
        assert found["body"] == HOSTILE + "?"
        assert found["tenant"] == HOSTILE
        assert found == made


def test_context_is_what_a_worker_would_be_told(ask):
    run = rows.started(body="Paint it `blue`")
    answer = ask().get(f"/tasks/{run.task_id}/context")
    assert answer["Content-Type"] == "text/markdown; charset=utf-8"
    text = answer.content.decode()
    assert "Paint it `blue`" in text
    assert "attempt 1" in text


# Comments


def test_a_comment_has_the_author_that_its_body_names(ask):
    asker, made = ask(), rows.task()
    assert asker.post(f"/tasks/{made.pk}/comments", {"body": " Well "}).json() == {"ok": True}
    asker.post(f"/tasks/{made.pk}/comments", {"body": "Well", "author": "anna"})
    assert list(Comment.objects.values_list("author", "body")) == [("dashboard", "Well"), ("anna", "Well")]


def test_a_run_is_always_its_own_author(db):
    run = rows.pulled()
    assert speaking(run).post(f"/tasks/{run.task_id}/comments", {"body": "x", "author": "anna"}).status_code == 200
    assert Comment.objects.get().author == f"run:{run}"


@pytest.mark.parametrize(
    ("body", "code"), [({"body": " "}, "body-missing"), ({"body": "x", "author": " "}, "author-missing")]
)
def test_a_blank_comment_is_refused(ask, body, code):
    refused(ask().post(f"/tasks/{rows.task().pk}/comments", body), 400, code)


# Links


def test_links_are_made_and_unmade(ask):
    asker, parent, child = ask(), rows.task(), rows.task()
    body = {"parent_id": parent.pk, "child_id": child.pk}
    assert asker.post("/links", body).json() == {"ok": True}
    assert asker.post("/links", body).json() == {"ok": True}
    assert rows.fresh(child).status == Status.TODO
    address = f"/links?parent_id={parent.pk}&child_id={child.pk}"
    assert asker.delete(address).json() == {"ok": True}
    assert rows.fresh(child).status == Status.READY
    assert asker.delete(address).json() == {"ok": False}


def test_links_that_cannot_be_are_refused(ask):
    asker, parent, child = ask(), rows.task(), rows.task()
    rows.linked(parent, child)
    for one, other, code in (
        (parent.pk, parent.pk, "self-link"),
        (child.pk, parent.pk, "cycle"),
        (parent.pk, "t_ffffffff", "unknown-task"),
        ("\x00", child.pk, "unknown-task"),
        ("\ud800", child.pk, "unknown-task"),
    ):
        refused(asker.post("/links", {"parent_id": one, "child_id": other}), 400, code)
    refused(asker.delete(f"/links?parent_id={parent.pk}&child_id=nobody"), 400, "unknown-task")
    refused(asker.delete(f"/links?parent_id={parent.pk}"), 422, "invalid-request")
    refused(asker.post("/links", {"parent_id": parent.pk}), 422, "invalid-request")


# Many at once


def test_many_are_changed_each_for_itself_in_the_order_asked_for(ask):
    asker = ask()
    done, ready, running = rows.in_status("done"), rows.task(), rows.in_status("running")
    ids = [done.pk, "t_ffffffff", ready.pk, running.pk, ready.pk, "\ud800"]
    found = asker.post("/tasks/bulk", {"ids": ids, "assignee": "anna", "status": "blocked"}).json()["results"]
    assert [(each["id"], each["ok"], each.get("error")) for each in found] == [
        (done.pk, False, "illegal-transition"),
        ("t_ffffffff", False, "not-found"),
        (ready.pk, True, None),
        (running.pk, False, "running"),
        ("?", False, "not-found"),
    ]
    assert rows.fresh(done).assignee == "demo"
    assert (rows.fresh(ready).assignee, rows.fresh(ready).status) == ("anna", "blocked")


def test_a_status_that_nobody_knows_is_each_ones_result(ask):
    one, two = rows.task(), rows.in_status("running")
    found = ask().post("/tasks/bulk", {"ids": [one.pk, "x", two.pk], "status": "paused"})
    assert found.status_code == 200
    assert [each["error"] for each in found.json()["results"]] == ["unknown-status", "not-found", "unknown-status"]


def test_archive_archives_whatever_the_status_says(ask):
    one, two = rows.task(), rows.in_status("archived")
    body = {"ids": [one.pk, two.pk], "archive": True, "status": "done"}
    assert [each["ok"] for each in ask().post("/tasks/bulk", body).json()["results"]] == [True, True]
    assert rows.fresh(one).status == Status.ARCHIVED


def test_one_poison_row_stops_nobody(ask, monkeypatch):
    one, two = rows.task(), rows.task()
    verb = lifecycle.patch

    def poisoned(task, **rest):
        if task.pk == one.pk:
            raise OSError("boom")
        return verb(task, **rest)

    monkeypatch.setattr(lifecycle, "patch", poisoned)
    found = ask().post("/tasks/bulk", {"ids": [one.pk, two.pk], "priority": 3}).json()["results"]
    assert [each["ok"] for each in found] == [False, True]
    assert "boom" not in str(found)
    assert rows.fresh(two).priority == 3


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({"ids": []}, 400, "ids-missing"),
        ({"ids": "x"}, 422, "invalid-request"),
        ({"ids": ["x"] * 1001}, 422, "invalid-request"),
        ({}, 422, "invalid-request"),
    ],
)
def test_nonsense_for_many_is_refused_as_a_whole(ask, body, status, code):
    refused(ask().post("/tasks/bulk", body), status, code)


def test_a_leap_of_the_clock_gives_no_negative_age(ask):
    rows.task(now=timezone.now() + timedelta(hours=1))
    [card] = [card for column in ask().get("/board").json()["columns"] for card in column["tasks"]]
    assert card["age"]["created_age_seconds"] == 0


def test_a_client_without_credentials_gets_nothing(db):
    refused(Asker(Client()).get("/board"), 401, "unauthenticated")
