"""How tasks come to be and what is said of them: what each verb does, refuses and tells."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest
from django.db import IntegrityError, connection

from kanban import lifecycle
from kanban.models import Comment, Link, Task
from kanban.states import CLOSED, Status
from projects.errors import Conflict, DomainError, Forbidden, Missing, Rejected
from projects.events import writing
from projects.models import Event
from projects.states import Via
from tests.kanban import rows
from tests.kanban.rows import ANNA
from tests.services.world import make_project

pytestmark = pytest.mark.django_db
VIA = {"via": "page", "address": "10.0.0.1"}


class TestCreate:
    def test_a_task_is_ready_and_tells_of_itself(self, now: datetime, heard: rows.Heard) -> None:
        task = lifecycle.create(
            "  Paint \n the  shed ", body="Red.", assignee=" demo ", tenant="home", priority=3, by=ANNA, now=now
        )
        kept = rows.fresh(task)
        assert (kept.title, kept.body, kept.assignee, kept.tenant, kept.priority) == (
            "Paint the shed", "Red.", "demo", "home", 3
        )  # fmt: skip
        assert (kept.status, kept.since, kept.created_at, kept.active_at) == (Status.READY, now, now, now)
        assert (kept.created_by, kept.started_at, kept.completed_at) == ("user:anna", None, None)
        assert kept.id.startswith("t_")
        assert len(kept.id) == 10
        [event] = rows.events(task)
        assert (event.kind, event.actor, event.run, event.at) == ("task.created", "user:anna", "", now)
        assert event.payload == {"assignee": "demo", "status": "ready", "parents": [], "tenant": "home", **VIA}
        rows.commit()
        assert heard.freed == 1

    def test_it_waits_while_a_parent_is_open(self, now: datetime, heard: rows.Heard) -> None:
        parent, closed = rows.in_status(Status.READY), rows.in_status(Status.DONE)
        rows.commit()
        heard.freed = 0
        task = rows.task(parents=[parent.pk, closed.pk, parent.pk], now=now)
        assert task.status == Status.TODO
        assert rows.events(task)[0].payload["parents"] == [parent.pk, closed.pk]
        assert Link.objects.filter(child=task).count() == 2
        rows.commit()
        assert heard.freed == 0

    @pytest.mark.parametrize("status", sorted(CLOSED))
    def test_closed_parents_are_waited_for_by_nobody(self, status: Status) -> None:
        assert rows.task(parents=[rows.in_status(status).pk]).status == Status.READY

    def test_triage_when_asked_whatever_its_parents(self) -> None:
        assert rows.task(triage=True).status == Status.TRIAGE
        assert rows.task(triage=True, parents=[rows.task().pk]).status == Status.TRIAGE

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"title": " \n "}, "title-missing"),
            ({"title": "\x00"}, "title-missing"),
            ({"title": "x" * 501}, "title-too-long"),
            ({"body": "x" * 262_145}, "body-too-long"),
            ({"assignee": "x" * 81}, "assignee-too-long"),
            ({"tenant": "x" * 81}, "tenant-too-long"),
            ({"idempotency_key": "x" * 201}, "idempotency-key-too-long"),
            ({"priority": 1_000_001}, "invalid-priority"),
            ({"priority": True}, "invalid-priority"),
            ({"workspace_kind": "moon"}, "unknown-workspace-kind"),
            ({"workspace_kind": "dir"}, "workspace-path-missing"),
            ({"workspace_kind": "dir", "workspace_path": "a/b"}, "invalid-workspace-path"),
            ({"workspace_kind": "dir", "workspace_path": "/a/../b"}, "invalid-workspace-path"),
            ({"workspace_path": "/" + "x" * 4096}, "workspace-path-too-long"),
            ({"workspace_kind": "worktree"}, "project-missing"),
            ({"project": "nowhere"}, "unknown-project"),
            ({"max_runtime_s": 0}, "invalid-max_runtime_s"),
            ({"failure_limit": 1001}, "invalid-failure_limit"),
            ({"max_cost_usd": Decimal(0)}, "invalid-max_cost_usd"),
            ({"max_cost_usd": Decimal("1e-9")}, "invalid-max_cost_usd"),
            ({"max_cost_usd": Decimal("NaN")}, "invalid-max_cost_usd"),
            ({"max_cost_usd": Decimal("Infinity")}, "invalid-max_cost_usd"),
            ({"parents": ["t_00000000"]}, "unknown-parent"),
            ({"parents": ["t_00000000' OR 1=1"]}, "unknown-parent"),
            ({"parents": [f"t_{n:08x}" for n in range(1001)]}, "too-many-parents"),
        ],
    )
    def test_what_is_refused_makes_nothing(self, fields: dict[str, Any], code: str, now: datetime) -> None:
        given = {"title": "Paint", **fields}
        refusal = rows.unchanged(lambda: lifecycle.create(given.pop("title"), by=ANNA, now=now, **given))
        assert isinstance(refusal, Rejected)
        assert refusal.code == code
        assert Task.objects.count() == 0

    def test_everything_else_is_kept(self, workspace: Any, now: datetime) -> None:
        make_project(workspace)
        about = {
            "workspace_kind": "dir", "workspace_path": "/srv/x", "project": "demo", "max_runtime_s": 60,
            "max_cost_usd": Decimal("2.5"), "failure_limit": 2, "services_required": True,
        }  # fmt: skip
        task = rows.fresh(rows.task(now=now, **about))
        assert {name: getattr(task, name) for name in about} == about
        assert rows.events(task)[0].project == "demo"
        assert rows.task(project="demo", workspace_kind="worktree").workspace_kind == "worktree"
        assert rows.task(workspace_kind="").workspace_kind == "scratch"

    def test_no_text_can_break_a_database(self) -> None:
        task = rows.fresh(rows.task("a\x00b\ud800", body="\ud800\x00", tenant="\x00"))
        assert (task.title, task.body, task.tenant) == ("ab?", "?", "")

    def test_a_rollback_leaves_nothing(self, now: datetime) -> None:
        def fails() -> None:
            with writing():
                rows.task(parents=[rows.task().pk])
                raise OSError("disk")

        assert isinstance(rows.unchanged(fails), OSError)


class TestKey:
    def test_the_same_key_returns_that_one_untouched(self, now: datetime) -> None:
        first = rows.task("One", idempotency_key=" k ", now=now)
        before = rows.everything()
        again = lifecycle.create("", idempotency_key="k", by=ANNA, now=now + timedelta(days=1))
        assert (again.pk, again.title) == (first.pk, "One")
        assert rows.everything() == before

    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.ARCHIVED}))
    def test_it_is_taken_in_every_status_but_archived(self, status: Status) -> None:
        first = rows.in_status(status, idempotency_key="k")
        assert rows.task("Two", idempotency_key="k").pk == first.pk

    def test_archiving_frees_it(self) -> None:
        first = rows.in_status(Status.ARCHIVED, idempotency_key="k")
        assert rows.task("Two", idempotency_key="k").pk != first.pk

    def test_who_looked_too_early_meets_the_constraint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        first = rows.task("One", idempotency_key="k")
        real, looks = lifecycle.creating._by_key, []

        def by_key(key: str) -> Task | None:
            looks.append(key)
            return None if len(looks) == 1 else real(key)

        monkeypatch.setattr(lifecycle.creating, "_by_key", by_key)
        before = rows.everything()
        assert rows.task("Two", idempotency_key="k", parents=[first.pk]).pk == first.pk
        assert rows.everything() == before

    def test_another_constraint_is_nobody_elses_task(self, monkeypatch: pytest.MonkeyPatch) -> None:
        taken = rows.task().pk
        monkeypatch.setattr(lifecycle.creating.secrets, "token_hex", lambda n: taken[2:])
        assert isinstance(rows.unchanged(lambda: rows.task(idempotency_key="k")), IntegrityError)
        assert isinstance(rows.unchanged(rows.task), IntegrityError)

    @pytest.mark.django_db(transaction=True)
    def test_of_many_at_once_one_is_made(self) -> None:
        made, gate = [], threading.Barrier(6)

        def run() -> None:
            gate.wait()
            try:
                made.append(rows.task("At once", idempotency_key="k").pk)
            finally:
                connection.close()

        at_once([run] * 6)
        assert len(made) == 6
        assert len(set(made)) == 1
        assert Task.objects.count() == 1
        assert rows.kinds(made[0]) == ["created"]


def at_once(runs: list[Callable[[], None]]) -> None:
    threads = [threading.Thread(target=run) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


class TestEdit:
    def test_what_changed_is_told(self, now: datetime) -> None:
        task = rows.task("One", body="x", now=now)
        edited = lifecycle.edit(task, title=" Two ", body="x", by=ANNA, now=now + timedelta(seconds=9))
        assert (edited.title, edited.body, edited.active_at) == ("Two", "x", now + timedelta(seconds=9))
        assert rows.last(task, "edited").payload == {"changed": ["title"], **VIA}
        lifecycle.edit(task, title="Three", body="", by=ANNA, now=now)
        assert rows.last(task, "edited").payload["changed"] == ["body", "title"]
        assert (rows.fresh(task).title, rows.fresh(task).body) == ("Three", "")

    def test_the_same_is_no_change(self, now: datetime) -> None:
        task = rows.task("One", body="x")
        before = rows.everything()
        lifecycle.edit(task, title="One", body="x", by=ANNA, now=now)
        lifecycle.edit(task, by=ANNA, now=now)
        assert rows.everything() == before

    def test_a_blank_title_is_refused_and_the_body_with_it(self, now: datetime) -> None:
        task = rows.task()
        refusal = rows.unchanged(lambda: lifecycle.edit(task, title=" ", body="new", by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, "title-missing")

    def test_a_task_that_is_not_there(self, now: datetime) -> None:
        task = rows.task()
        Task.objects.all().delete()
        for verb in (
            lambda: lifecycle.edit(task, title="x", by=ANNA, now=now),
            lambda: lifecycle.assign(task, "x", by=ANNA, now=now),
            lambda: lifecycle.prioritise(task, 3, by=ANNA, now=now),
            lambda: lifecycle.archive(task, by=ANNA, now=now),
        ):
            refusal = rows.unchanged(verb)
            assert (type(refusal), refusal.code) == (Missing, "not-found")


class TestAssignAndPrioritise:
    def test_somebody_and_nobody(self, now: datetime, heard: rows.Heard) -> None:
        task = rows.task(assignee="")
        rows.commit()
        heard.freed = 0
        assert lifecycle.assign(task, " demo ", by=ANNA, now=now).assignee == "demo"
        assert rows.last(task, "assigned").payload == {"assignee": "demo", **VIA}
        rows.commit()
        assert heard.freed == 1
        lifecycle.assign(task, "", by=ANNA, now=now)
        assert rows.last(task, "assigned").payload == VIA
        before = rows.everything()
        lifecycle.assign(task, "", by=ANNA, now=now)
        assert rows.everything() == before

    def test_not_while_it_runs_but_to_whom_it_has_it_may(self, now: datetime) -> None:
        task = rows.in_status(Status.RUNNING)
        refusal = rows.unchanged(lambda: lifecycle.assign(task, "codex", by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "running")
        before = rows.everything()
        lifecycle.assign(task, "demo", by=ANNA, now=now)
        assert rows.everything() == before

    def test_a_priority_also_while_it_runs(self, now: datetime) -> None:
        task = rows.in_status(Status.RUNNING)
        assert lifecycle.prioritise(task, -7, by=ANNA, now=now).priority == -7
        assert rows.last(task, "priority").payload == {"priority": -7, **VIA}
        before = rows.everything()
        lifecycle.prioritise(task, -7, by=ANNA, now=now)
        assert rows.everything() == before
        refusal = rows.unchanged(lambda: lifecycle.prioritise(task, -1_000_001, by=ANNA, now=now))
        assert refusal.code == "invalid-priority"


class TestLimit:
    def test_limits_are_set_and_taken_away(self, now: datetime) -> None:
        task = rows.task()
        given = {"max_runtime_s": 60, "max_cost_usd": Decimal("2.5"), "failure_limit": 3}
        lifecycle.limit(task, **given, by=ANNA, now=now)
        found = rows.fresh(task)
        assert (found.max_runtime_s, found.max_cost_usd, found.failure_limit) == (60, Decimal("2.5"), 3)
        assert rows.last(task, "edited").payload == {"changed": sorted(given), **VIA}
        before = rows.everything()
        lifecycle.limit(task, **given, by=ANNA, now=now)
        assert rows.everything() == before
        lifecycle.limit(task, **dict.fromkeys(given), by=ANNA, now=now)
        assert rows.fresh(task).max_runtime_s is None

    def test_a_run_that_goes_on_has_the_new_time_from_its_start(self, now: datetime) -> None:
        run = rows.started(now=now, max_runtime_s=10)
        limits: dict[str, Any] = {"max_cost_usd": None, "failure_limit": None, "by": ANNA, "now": now}
        lifecycle.limit(run.task, max_runtime_s=100, **limits)
        assert rows.fresh_run(run).timeout_at == now + timedelta(seconds=100)
        lifecycle.limit(run.task, max_runtime_s=None, **limits)
        assert rows.fresh_run(run).timeout_at is None

    def test_what_was_over_budget_goes_on_with_a_greater_one(self, now: datetime) -> None:
        run = rows.pulled(max_cost_usd=Decimal(1), now=now)
        lifecycle.heartbeat(run.task, cost_usd=Decimal(2), by=rows.as_run(run), now=now)
        task = rows.fresh(run.task)
        assert (task.status, task.block_kind) == (Status.BLOCKED, "needs_input")
        lifecycle.limit(task, max_runtime_s=None, max_cost_usd=Decimal(9), failure_limit=None, by=ANNA, now=now)
        assert (rows.fresh(task).status, rows.last(task, "unblocked").actor) == (Status.READY, ANNA.name)
        again = rows.pulled(rows.fresh(task), now=now)
        lifecycle.heartbeat(again.task, cost_usd=Decimal(3), by=rows.as_run(again), now=now)
        assert rows.fresh(task).status == Status.RUNNING

    def test_what_is_still_over_budget_or_waits_for_something_else_stays_blocked(self, now: datetime) -> None:
        run = rows.pulled(max_cost_usd=Decimal(1), now=now)
        lifecycle.heartbeat(run.task, cost_usd=Decimal(2), by=rows.as_run(run), now=now)
        limits: dict[str, Any] = {"max_runtime_s": None, "failure_limit": None, "by": ANNA, "now": now}
        lifecycle.limit(run.task, max_cost_usd=Decimal(2), **limits)
        assert rows.fresh(run.task).status == Status.BLOCKED
        other = rows.in_status("blocked")
        lifecycle.limit(other, max_cost_usd=Decimal(9), **limits)
        assert rows.fresh(other).status == Status.BLOCKED

    @pytest.mark.parametrize(
        ("name", "value"),
        [("max_runtime_s", 0), ("max_cost_usd", Decimal(0)), ("max_cost_usd", Decimal("NaN")), ("failure_limit", 1001)],
    )
    def test_nonsense_is_refused(self, now: datetime, name: str, value: Any) -> None:
        task = rows.task()
        given = {**dict.fromkeys(("max_runtime_s", "max_cost_usd", "failure_limit")), name: value}
        refusal = rows.unchanged(lambda: lifecycle.limit(task, **given, by=ANNA, now=now))
        assert refusal.code == f"invalid-{name}"


class TestComment:
    def test_a_person_says_who_says_it(self, now: datetime) -> None:
        task = rows.task()
        made = lifecycle.comment(task, "  Blue, please. ", author=" Anna ", by=ANNA, now=now)
        assert (made.author, made.body, made.created_at) == ("Anna", "Blue, please.", now)
        assert rows.last(task, "commented").payload == {"author": "Anna", "len": 13, **VIA}
        assert rows.fresh(task).active_at == now

    @pytest.mark.parametrize(
        ("body", "author", "code"),
        [(" ", "Anna", "body-missing"), ("\x00", "Anna", "body-missing"), ("Hm", " ", "author-missing")],
    )
    def test_blank_is_refused(self, body: str, author: str, code: str, now: datetime) -> None:
        task = rows.task()
        refusal = rows.unchanged(lambda: lifecycle.comment(task, body, author=author, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, code)
        assert Comment.objects.count() == 0

    def test_a_run_is_its_own_author_and_speaks_of_its_own_task(self, now: datetime) -> None:
        run, other = rows.started(), rows.started()
        made = lifecycle.comment(run.task, "At work", author="user:boss", by=rows.as_run(run), now=now)
        assert made.author == f"run:{run}"
        event = rows.last(run.task, "commented")
        assert (event.run, event.actor) == (str(run), f"run:{run}")
        with pytest.raises(Forbidden):
            lifecycle.comment(other.task, "Hm", by=rows.as_run(run), now=now)
        lifecycle.release(run.task, by=ANNA, now=now)
        with pytest.raises(Conflict, match="superseded"):
            lifecycle.comment(run.task, "Hm", by=rows.as_run(run), now=now)


class TestLink:
    def test_a_ready_child_waits_from_then_on(self, now: datetime) -> None:
        parent, child = rows.task(), rows.task()
        before = rows.head()
        lifecycle.link(parent.pk, child.pk, by=ANNA, now=now)
        assert rows.fresh(child).status == Status.TODO
        assert rows.kinds(child, before) == ["linked", "status"]
        linked, status = rows.events(child, before)
        assert linked.payload == {"parent": parent.pk, "child": child.pk, **VIA}
        assert status.payload == {"status": "todo", **VIA}

    def test_twice_is_once(self, now: datetime) -> None:
        parent, child = rows.task(), rows.task()
        lifecycle.link(parent.pk, child.pk, by=ANNA, now=now)
        before = rows.everything()
        lifecycle.link(parent.pk, child.pk, by=ANNA, now=now)
        assert rows.everything() == before

    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.READY}))
    def test_whatever_else_the_child_is_it_stays(self, status: Status, now: datetime) -> None:
        child = rows.in_status(status)
        lifecycle.link(rows.task().pk, child.pk, by=ANNA, now=now)
        assert rows.fresh(child).status == status

    def test_what_is_refused(self, now: datetime) -> None:
        one, two = rows.task(), rows.task()
        lifecycle.link(one.pk, two.pk, by=ANNA, now=now)
        for parent, child, code in [
            (one.pk, one.pk, "self-link"),
            (two.pk, one.pk, "cycle"),
            (one.pk, "t_00000000", "unknown-task"),
            ("t_00000000", one.pk, "unknown-task"),
        ]:
            refusal = rows.unchanged(lambda p=parent, c=child: lifecycle.link(p, c, by=ANNA, now=now))
            assert (type(refusal), refusal.code) == (Rejected, code)
        refusal = rows.unchanged(lambda: lifecycle.unlink(two.pk, one.pk, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, "no-such-link")

    def test_unlinked_from_its_last_open_parent_it_is_ready(self, now: datetime, heard: rows.Heard) -> None:
        one, two = rows.task(), rows.task()
        child = rows.task(parents=[one.pk, two.pk])
        lifecycle.unlink(one.pk, child.pk, by=ANNA, now=now)
        assert rows.fresh(child).status == Status.TODO
        rows.commit()
        before, heard.freed = rows.head(), 0
        lifecycle.unlink(two.pk, child.pk, by=ANNA, now=now)
        assert rows.fresh(child).status == Status.READY
        assert rows.kinds(child, before) == ["unlinked", "ready"]
        rows.commit()
        assert heard.freed == 1

    def test_what_a_person_decided_of_the_edges_is_over_when_they_change(self, now: datetime) -> None:
        waived = rows.task(parents=[rows.task().pk])
        lifecycle.move_to(waived, Status.READY, by=ANNA, now=now)
        held = rows.task()
        lifecycle.move_to(held, Status.TODO, by=ANNA, now=now)
        other = rows.in_status(Status.DONE)
        lifecycle.link(other.pk, waived.pk, by=ANNA, now=now)
        lifecycle.link(other.pk, held.pk, by=ANNA, now=now)
        assert (rows.fresh(waived).status, rows.fresh(waived).parents_waived) == (Status.TODO, False)
        assert (rows.fresh(held).status, rows.fresh(held).held) == (Status.READY, False)

    def test_a_dependency_that_was_unlinked_blocks_nobody(self, now: datetime) -> None:
        task = rows.blocked("dependency")
        [parent] = Link.objects.filter(child=task).values_list("parent_id", flat=True)
        lifecycle.unlink(parent, task.pk, by=ANNA, now=now)
        kept = rows.fresh(task)
        assert (kept.status, kept.block_kind, kept.block_reason, kept.blocked_by) == (Status.READY, "", "", "")
        assert rows.last(task, "unblocked").payload == {"status": "ready", "block_kind": "dependency", **VIA}


def test_every_refusal_of_a_verb_is_a_refusal_and_never_an_error_of_the_database() -> None:
    for title in ("\x00", "\ud800" * 501, "x" * 10_000):
        with pytest.raises(DomainError):
            rows.task(title)


def test_the_sweep_gives_no_address() -> None:
    rows.started()
    assert {event.payload.get("address") for event in Event.objects.filter(payload__via=Via.SWEEP)} == {None}
