"""What people decide: unblock approve send_back archive reopen move_to force patch, and by whom it may be."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from kanban import lifecycle
from kanban.models import Task
from kanban.states import HUMAN_BLOCKS, BlockKind, Outcome, Status
from projects.errors import Conflict, Forbidden, Rejected
from projects.events import SWEEP, By, writing
from services.states import Status as ProcessStatus
from tests.kanban import rows
from tests.kanban.rows import ANNA, as_run

pytestmark = pytest.mark.django_db
VIA = {"via": "page", "address": "10.0.0.1"}
LATER = timedelta(days=1)


def others(*statuses: Status) -> list[Status]:
    return sorted(set(Status) - set(statuses))


class TestUnblock:
    @pytest.mark.parametrize("kind", BlockKind)
    def test_a_person_lifts_every_kind_and_forgives(self, kind: BlockKind, now: datetime, heard: rows.Heard) -> None:
        task = rows.blocked(kind, now=now)
        Task.objects.filter(pk=task.pk).update(failures=4, violations=2, not_before=now + LATER)
        rows.commit()
        heard.freed = 0
        task = lifecycle.unblock(task, by=ANNA, now=now)
        kept = rows.fresh(task)
        target = Status.TODO if kind == BlockKind.DEPENDENCY else Status.READY
        assert (task.status, kept.status) == (target, target)
        assert (kept.failures, kept.violations, kept.transient_blocks, kept.not_before) == (0, 0, 0, None)
        assert (kept.block_kind, kept.block_reason, kept.blocked_by, kept.unblock_at) == ("", "", "", None)
        assert rows.last(task, "unblocked").payload == {"status": target, "block_kind": kind, **VIA}
        rows.commit()
        assert heard.freed == 1

    @pytest.mark.parametrize("kind", BlockKind)
    @pytest.mark.parametrize("who", [SWEEP, By("run:x", "run", "", "t_00000000/1")])
    def test_human_blocks_only_by_a_human(self, kind: BlockKind, who: By, now: datetime) -> None:
        task = rows.blocked(kind, now=now)
        if kind in HUMAN_BLOCKS:
            refusal = rows.unchanged(lambda: lifecycle.unblock(task, by=who, now=now + LATER))
            assert (type(refusal), refusal.code) == (Forbidden, "forbidden")
        else:
            Task.objects.filter(pk=task.pk).update(failures=4)
            lifecycle.unblock(task, by=who, now=now + LATER)
            assert rows.fresh(task).failures == 4

    def test_not_while_nothing_is_left_of_its_budget(self, now: datetime) -> None:
        run = rows.pulled(max_cost_usd=Decimal(1), now=now)
        lifecycle.heartbeat(run.task, cost_usd=Decimal(2), by=rows.as_run(run), now=now)
        refusal = rows.unchanged(lambda: lifecycle.unblock(run.task, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "over-budget")
        assert "Raise the limit" in refusal.detail
        Task.objects.filter(pk=run.task_id).update(max_cost_usd=Decimal("2.01"))
        assert lifecycle.unblock(run.task, by=ANNA, now=now).status == Status.READY

    def test_to_todo_while_a_parent_is_open_unless_that_was_waived(self, now: datetime) -> None:
        task = rows.task(parents=[rows.task().pk])
        lifecycle.move_to(task, Status.READY, by=ANNA, now=now)
        lifecycle.block(task, by=ANNA, now=now)
        assert lifecycle.unblock(task, by=ANNA, now=now).status == Status.READY
        other = rows.task()
        lifecycle.block(other, by=ANNA, now=now)
        lifecycle.link(rows.task().pk, other.pk, by=ANNA, now=now)
        assert lifecycle.unblock(other, by=ANNA, now=now).status == Status.TODO

    @pytest.mark.parametrize("status", others(Status.BLOCKED))
    def test_only_what_is_blocked(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: lifecycle.unblock(task, by=ANNA, now=now)).code == "illegal-transition"


class TestReview:
    def test_approved_is_done_with_its_children(self, now: datetime) -> None:
        task = rows.in_status(Status.REVIEW)
        child = rows.task(parents=[task.pk])
        done = lifecycle.approve(task, by=ANNA, now=now)
        assert (done.status, done.completed_at, rows.fresh(child).status) == (Status.DONE, now, Status.READY)
        assert rows.last(task, "approved").payload == {"result_len": 0, **VIA}

    def test_what_its_run_had_found_is_kept(self, now: datetime) -> None:
        task = rows.in_status(Status.REVIEW)
        Task.objects.filter(pk=task.pk).update(result="As before")
        assert lifecycle.approve(task, by=ANNA, now=now).result == "As before"

    def test_sent_back_is_ready_or_waits(self, now: datetime, heard: rows.Heard) -> None:
        task, other = rows.in_status(Status.REVIEW), rows.in_status(Status.REVIEW)
        lifecycle.link(rows.task().pk, other.pk, by=ANNA, now=now)
        rows.commit()
        before, heard.freed = rows.head(), 0
        assert lifecycle.send_back(task, by=ANNA, now=now).status == Status.READY
        rows.commit()
        assert (rows.kinds(task, before), heard.freed) == (["sent_back"], 1)
        assert lifecycle.send_back(other, by=ANNA, now=now).status == Status.TODO
        assert rows.kinds(other, before) == ["sent_back", "status"]

    @pytest.mark.parametrize("status", others(Status.REVIEW))
    @pytest.mark.parametrize("verb", [lifecycle.approve, lifecycle.send_back])
    def test_only_what_was_handed_in(self, verb: Callable[..., Task], status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: verb(task, by=ANNA, now=now)).code == "illegal-transition"


class TestArchive:
    @pytest.mark.parametrize("status", others(Status.ARCHIVED))
    def test_from_wherever_it_is(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status, idempotency_key="k")
        child = rows.task(parents=[task.pk])
        rows.commit()
        before = rows.head()
        archived = lifecycle.archive(task, by=ANNA, now=now)
        kept = rows.fresh(task)
        assert (archived.status, kept.status, kept.lease_until, kept.current_run) == (
            Status.ARCHIVED, Status.ARCHIVED, None, None
        )  # fmt: skip
        assert rows.kinds(task, before) == ["archived"]
        assert rows.fresh(child).status == Status.READY
        assert rows.task(idempotency_key="k").pk != task.pk
        rows.commit()
        if status == Status.RUNNING:
            run = rows.run_of(task)
            assert (run.outcome, run.process.status) == (Outcome.SUPERSEDED, ProcessStatus.STOPPING)
            assert rows.last(task, "archived").run == str(run)

    def test_twice(self, now: datetime) -> None:
        task = rows.in_status(Status.ARCHIVED)
        assert rows.unchanged(lambda: lifecycle.archive(task, by=ANNA, now=now)).code == "illegal-transition"


class TestReopen:
    @pytest.mark.parametrize("status", [Status.DONE, Status.ARCHIVED])
    def test_its_counters_begin_anew_and_its_children_wait_again(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        ready, waived = rows.task(parents=[task.pk]), rows.task(parents=[task.pk])
        running = rows.started(parents=[task.pk])
        Task.objects.filter(pk=waived.pk).update(parents_waived=True)
        Task.objects.filter(pk=task.pk).update(failures=3, parents_waived=True, held=True)
        before = rows.head()
        assert lifecycle.reopen(task, by=ANNA, now=now).status == Status.READY
        kept = rows.fresh(task)
        assert (kept.completed_at, kept.failures, kept.parents_waived, kept.held) == (None, 0, False, False)
        assert rows.last(task, "reopened").payload == {"status": "ready", **VIA}
        assert [rows.fresh(child).status for child in (ready, waived, running.task)] == [
            Status.TODO, Status.READY, Status.RUNNING
        ]  # fmt: skip
        assert [event.kind for event in rows.events(since=before)] == ["task.reopened", "task.status"]

    def test_it_waits_itself_when_a_parent_is_open(self, now: datetime) -> None:
        parent = rows.in_status(Status.DONE)
        task = rows.task(parents=[parent.pk])
        lifecycle.complete(task, by=ANNA, now=now)
        lifecycle.reopen(parent, by=ANNA, now=now)
        assert lifecycle.reopen(task, by=ANNA, now=now).status == Status.TODO
        assert rows.last(task, "reopened").payload["status"] == "todo"

    @pytest.mark.parametrize("status", others(Status.DONE, Status.ARCHIVED))
    def test_only_what_is_closed(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: lifecycle.reopen(task, by=ANNA, now=now)).code == "illegal-transition"

    @pytest.mark.parametrize(
        "verb",
        [
            lifecycle.reopen,
            lambda task, **about: lifecycle.move_to(task, Status.TRIAGE, **about),
            lambda task, **about: lifecycle.force(task, Status.BLOCKED, reason="x", **about),
            lambda task, **about: lifecycle.patch(task, status="ready", **about),
        ],
    )
    def test_not_with_a_key_that_another_bears_by_now(self, verb: Callable[..., Task], now: datetime) -> None:
        task = rows.in_status(Status.ARCHIVED, idempotency_key="k")
        rows.task(idempotency_key="k")
        refusal = rows.unchanged(lambda: verb(task, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "idempotency-key-taken")

    def test_a_rollback_leaves_nothing(self, now: datetime) -> None:
        task = rows.in_status(Status.DONE)
        rows.task(parents=[task.pk])

        def fails() -> None:
            with writing():
                lifecycle.reopen(task, by=ANNA, now=now)
                raise OSError("disk")

        assert isinstance(rows.unchanged(fails), OSError)


class TestMoveTo:
    @pytest.mark.parametrize("status", others(Status.RUNNING, Status.TRIAGE))
    def test_to_triage_from_anywhere(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        child = rows.task(parents=[task.pk])
        assert lifecycle.move_to(task, Status.TRIAGE, by=ANNA, now=now).status == Status.TRIAGE
        kept = rows.fresh(task)
        assert (kept.completed_at, kept.block_kind, kept.held) == (None, "", False)
        assert rows.last(task, "status").payload == {"status": "triage", **VIA}
        assert rows.fresh(child).status == Status.TODO

    def test_to_ready_with_open_parents_is_forced_and_waived(self, now: datetime) -> None:
        parent = rows.task()
        task = rows.task(parents=[parent.pk])
        moved = lifecycle.move_to(task, Status.READY, by=ANNA, now=now)
        assert (moved.status, moved.parents_waived) == (Status.READY, True)
        assert rows.last(task, "forced").payload == {"status": "ready", "parents": [parent.pk], **VIA}
        rows.pulled(task)

    def test_to_ready_without_them_is_a_move_as_any(self, now: datetime, heard: rows.Heard) -> None:
        task = rows.in_status(Status.TRIAGE)
        rows.commit()
        heard.freed = 0
        assert lifecycle.move_to(task, Status.READY, by=ANNA, now=now).parents_waived is False
        assert rows.last(task, "status").payload == {"status": "ready", **VIA}
        rows.commit()
        assert heard.freed == 1

    def test_to_todo_without_open_parents_it_is_held(self, now: datetime) -> None:
        from kanban import sweeps

        parent = rows.in_status(Status.DONE)
        task = rows.task(parents=[parent.pk])
        assert lifecycle.move_to(task, Status.TODO, by=ANNA, now=now).held is True
        sweeps.promote_ready(now=now)
        assert rows.fresh(task).status == Status.TODO
        moved = lifecycle.move_to(task, Status.READY, by=ANNA, now=now)
        assert (moved.status, moved.held) == (Status.READY, False)

    def test_to_todo_with_open_parents_it_waits_as_any(self, now: datetime) -> None:
        task = rows.task(parents=[rows.task().pk])
        lifecycle.move_to(task, Status.READY, by=ANNA, now=now)
        moved = lifecycle.move_to(task, Status.TODO, by=ANNA, now=now)
        assert (moved.held, moved.parents_waived) == (False, False)

    def test_what_was_blocked_is_forgiven(self, now: datetime) -> None:
        task = rows.blocked("breaker", now=now)
        assert rows.fresh(task).failures == 1
        lifecycle.move_to(task, Status.TODO, by=ANNA, now=now)
        kept = rows.fresh(task)
        assert (kept.failures, kept.block_kind, kept.blocked_by) == (0, "", "")

    def test_what_is_forced_is_held_no_more(self, now: datetime) -> None:
        task = rows.task()
        lifecycle.move_to(task, Status.TODO, by=ANNA, now=now)
        assert lifecycle.force(task, Status.BLOCKED, reason="x", by=ANNA, now=now).held is False

    @pytest.mark.parametrize("target", [Status.TRIAGE, Status.TODO, Status.READY])
    def test_not_what_runs(self, target: Status, now: datetime) -> None:
        task = rows.in_status(Status.RUNNING)
        refusal = rows.unchanged(lambda: lifecycle.move_to(task, target, by=ANNA, now=now))
        assert (refusal.code, refusal.extra) == ("illegal-transition", {"from": "running", "to": str(target)})

    @pytest.mark.parametrize("status", others(Status.TRIAGE, Status.TODO))
    def test_to_ready_only_from_before_it(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: lifecycle.move_to(task, Status.READY, by=ANNA, now=now)).code == (
            "illegal-transition"
        )


class TestForce:
    @pytest.mark.parametrize("target", [Status.READY, Status.BLOCKED])
    @pytest.mark.parametrize("status", Status)
    def test_from_anywhere_with_a_reason(self, status: Status, target: Status, now: datetime) -> None:
        task = rows.in_status(status)
        if status == target:
            refusal = rows.unchanged(lambda: lifecycle.force(task, target, reason="stuck", by=ANNA, now=now))
            assert refusal.code == "illegal-transition"
            return
        child = rows.task(parents=[task.pk])
        rows.commit()
        before = rows.head()
        forced = lifecycle.force(task, target, reason=" st\x00uck ", by=ANNA, now=now)
        kept = rows.fresh(task)
        assert (forced.status, kept.status, kept.completed_at, kept.current_run) == (target, target, None, None)
        assert (kept.block_kind, kept.block_reason) == (
            ("needs_input", "stuck") if target == Status.BLOCKED else ("", "")
        )
        [event] = rows.events(task, before)
        assert event.payload == {"reason": "stuck", "was": status, "status": target, **VIA}
        assert rows.fresh(child).status == Status.TODO
        rows.commit()
        if status == Status.RUNNING:
            run = rows.run_of(task)
            assert (run.outcome, run.error, run.process.status) == (
                Outcome.RELEASED, "stuck", ProcessStatus.STOPPING
            )  # fmt: skip
            assert event.run == str(run)

    def test_open_parents_are_waived_so_that_it_stays(self, now: datetime) -> None:
        task = rows.in_status(Status.TODO)
        lifecycle.force(task, Status.READY, reason="now", by=ANNA, now=now)
        rows.pulled(task)

    @pytest.mark.parametrize(
        ("target", "reason", "code"),
        [
            ("ready", " ", "reason-missing"),
            ("ready", "\x00", "reason-missing"),
            ("ready", "x" * 262_145, "reason-too-long"),
            ("done", "x", "unknown-status"),
            ("running", "x", "unknown-status"),
        ],
    )
    def test_what_is_refused(self, target: str, reason: str, code: str, now: datetime) -> None:
        task = rows.in_status(Status.TODO)
        refusal = rows.unchanged(lambda: lifecycle.force(task, target, reason=reason, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, code)


# What PATCH {"status": …} does: from, to -> the event that tells it; all other pairs are refused.
PATCHED: dict[tuple[Status, Status], str] = {
    **{(each, Status.TRIAGE): "status" for each in others(Status.TRIAGE, Status.RUNNING)},
    **{(each, Status.TODO): "status" for each in others(Status.TODO, Status.RUNNING)},
    **{(each, Status.ARCHIVED): "archived" for each in others(Status.ARCHIVED)},
    **{(each, Status.DONE): "completed" for each in (Status.READY, Status.RUNNING, Status.BLOCKED, Status.REVIEW)},
    (Status.TRIAGE, Status.READY): "status",
    (Status.TODO, Status.READY): "forced",
    (Status.BLOCKED, Status.READY): "unblocked",
    (Status.REVIEW, Status.READY): "sent_back",
    (Status.DONE, Status.READY): "reopened",
    (Status.ARCHIVED, Status.READY): "reopened",
    (Status.RUNNING, Status.READY): "reclaimed",
    (Status.READY, Status.BLOCKED): "blocked",
    (Status.RUNNING, Status.BLOCKED): "blocked",
    (Status.RUNNING, Status.REVIEW): "review_requested",
}


class TestPatch:
    @pytest.mark.parametrize("source", Status)
    @pytest.mark.parametrize("target", Status)
    def test_every_pair_of_statuses(self, source: Status, target: Status, now: datetime) -> None:
        task = rows.in_status(source)
        before = rows.everything()
        if source == target:
            assert lifecycle.patch(task, status=target, by=ANNA, now=now).status == target
            assert rows.everything() == before
        elif (source, target) in PATCHED:
            assert lifecycle.patch(task, status=target, by=ANNA, now=now).status == target
            assert rows.fresh(task).status == target
            assert rows.kinds(task, before[-1]) == [PATCHED[source, target]]
        else:
            refusal = rows.unchanged(lambda: lifecycle.patch(task, status=target, by=ANNA, now=now))
            code = "claim-only" if target == Status.RUNNING else "illegal-transition"
            assert (type(refusal), refusal.code) == (Conflict, code)
            assert refusal.extra == {"from": str(source), "to": str(target)}

    def test_several_things_in_their_order(self, now: datetime) -> None:
        task = rows.task("One", assignee="")
        about: dict[str, Any] = {"assignee": "demo", "status": "done", "priority": 5, "title": "Two", "body": "b"}
        before = rows.head()
        done = lifecycle.patch(task, result="All", by=ANNA, now=now, **about)
        assert rows.kinds(task, before) == ["assigned", "completed", "priority", "edited"]
        kept = rows.fresh(task)
        for each in (done, kept):
            assert {name: getattr(each, name) for name in about} == about
            assert each.result == "All"

    def test_all_or_nothing(self, now: datetime) -> None:
        task = rows.task("One")
        for bad in ({"title": " "}, {"priority": 10**9}, {"status": "moon"}, {"status": "review"}):
            about: dict[str, Any] = {"assignee": "bruno", "priority": 5, "title": "Two", **bad}
            rows.unchanged(lambda a=about: lifecycle.patch(task, by=ANNA, now=now, **a))
            assert rows.fresh(task).assignee == "demo"

    def test_nothing_is_no_change(self, now: datetime) -> None:
        task = rows.task("One", body="b", priority=3)
        before = rows.everything()
        lifecycle.patch(task, by=ANNA, now=now)
        lifecycle.patch(task, assignee="demo", status="ready", priority=3, title="One", body="b", by=ANNA, now=now)
        assert rows.everything() == before

    def test_an_empty_assignee_is_nobody(self, now: datetime) -> None:
        assert lifecycle.patch(rows.task(), assignee="", by=ANNA, now=now).assignee == ""

    def test_a_block_says_why_and_how(self, now: datetime) -> None:
        task = lifecycle.patch(
            rows.task(), status="blocked", block_reason="503", block_kind="transient", by=ANNA, now=now
        )
        assert (task.block_reason, task.block_kind) == ("503", "transient")

    def test_not_given_to_another_while_it_runs(self, now: datetime) -> None:
        task = rows.in_status(Status.RUNNING)
        refusal = rows.unchanged(lambda: lifecycle.patch(task, assignee="x", status="ready", by=ANNA, now=now))
        assert refusal.code == "running"

    def test_it_answers_with_where_the_task_went(self, now: datetime) -> None:
        run = rows.started()
        lifecycle.link(rows.task().pk, run.task_id, by=ANNA, now=now)
        assert lifecycle.patch(run.task, status="ready", by=ANNA, now=now).status == Status.TODO

    def test_a_run_that_is_over_may_not_either(self, now: datetime) -> None:
        run = rows.pulled()
        lifecycle.release(run.task, by=ANNA, now=now)
        refusal = rows.unchanged(lambda: lifecycle.patch(run.task, status="done", by=as_run(run), now=now))
        assert refusal.code == "superseded"
