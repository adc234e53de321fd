"""Profiles that are paused, by a person or because tasks fail alike; the dispatcher's own switch."""

from datetime import datetime, timedelta

import pytest

from kanban import lifecycle
from kanban.lifecycle.profiles import trip
from kanban.models import Board, Profile, Run
from kanban.states import BlockKind, Status
from projects.errors import Conflict
from projects.events import SWEEP
from projects.models import Event
from tests.kanban import rows
from tests.kanban.rows import ANNA

pytestmark = pytest.mark.django_db
VIA = {"via": "page", "address": "10.0.0.1"}
SECOND = timedelta(seconds=1)


def demo() -> Profile:
    return Profile.objects.get(name="demo")


def fail_alike(count: int, now: datetime, *, limit: int = 5, error: str = "no such model") -> list[Run]:
    """Have the workers of several tasks crash within a second, and all that follows from each commit."""
    runs = [rows.started(failure_limit=limit, now=now) for _ in range(count)]
    for run in runs:
        rows.ended(run, 1, tail=error, now=now + SECOND)
        rows.commit()
    return runs


class TestTrip:
    def test_three_tasks_that_fail_alike_pause_their_profile(self, now: datetime) -> None:
        runs = fail_alike(3, now)
        profile = demo()
        assert (profile.paused_at, profile.paused_by) == (now + SECOND, "andon")
        assert profile.paused_reason == "3 tasks failed alike: exit code 1"
        event = Event.objects.get(kind="profile.paused")
        assert (event.subject, event.actor) == ("profile:demo", "andon")
        assert event.payload["tasks"] == sorted(run.task_id for run in runs)
        # The agent is to blame, not the tasks.
        assert [rows.fresh(run.task).failures for run in runs] == [0, 0, 0]
        assert {rows.fresh(run.task).status for run in runs} == {Status.READY}

    def test_two_do_not_nor_one_three_times(self, now: datetime) -> None:
        fail_alike(2, now)
        task = rows.task(now=now)
        for _ in range(3):
            rows.ended(rows.started(task, now=now), 1, tail="another", now=now)
            rows.commit()
        assert demo().paused_at is None

    def test_nor_errors_that_differ(self, now: datetime) -> None:
        for error in ("no such model", "no disk", "no luck"):
            fail_alike(1, now, error=error)
        assert demo().paused_at is None

    def test_numbers_and_ids_do_not_make_them_differ(self, now: datetime) -> None:
        for n in range(3):
            fail_alike(1, now, error=f"t_0000000{n} at 0x{n:04x}: line {n} of t-1234567{n}")
        assert demo().paused_at is not None

    def test_nor_within_more_than_a_minute(self, now: datetime) -> None:
        for n in range(3):
            fail_alike(1, now + n * 31 * SECOND)
        assert demo().paused_at is None

    def test_nor_while_another_of_its_tasks_comes_out_well(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.complete(run.task, by=rows.as_run(run), now=now + 2 * SECOND)
        fail_alike(3, now)
        assert demo().paused_at is None

    def test_what_came_out_well_before_the_first_of_them_says_nothing(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.complete(run.task, by=rows.as_run(run), now=now)
        fail_alike(3, now)
        assert demo().paused_at is not None

    def test_each_task_is_told_of(self, now: datetime) -> None:
        forgiven = fail_alike(2, now)
        [broken] = fail_alike(1, now, limit=1)
        told = {"reason": "demo is paused", "via": "sweep"}
        for run in forgiven:
            assert rows.last(run.task, "edited").payload == {"changed": ["failures", "violations"], **told}
        assert rows.last(broken.task, "edited").payload == {"changed": ["blocked_by"], **told}

    def test_nor_ends_that_do_not_count(self, now: datetime) -> None:
        for _ in range(3):
            rows.ended(rows.started(now=now), 75, now=now)
            rows.stopped(rows.started(now=now), now=now)
            rows.commit()
        assert demo().paused_at is None

    def test_what_failed_twice_alike_gets_both_back_also_when_it_runs_again(self, now: datetime) -> None:
        task = rows.task(now=now)
        rows.ended(rows.started(task, now=now), 4, now=now)
        for _ in range(2):
            rows.ended(rows.started(task, now=now), 0, now=now)
            rows.commit()
        assert (rows.fresh(task).failures, rows.fresh(task).violations) == (3, 2)
        rows.started(task, now=now)
        for _ in range(2):
            rows.ended(rows.started(now=now), 0, now=now)
            rows.commit()
        assert demo().paused_at is not None
        kept = rows.fresh(task)
        assert (kept.status, kept.failures, kept.violations) == (Status.RUNNING, 1, 0)

    def test_what_a_person_has_forgiven_is_not_forgiven_twice(self, now: datetime) -> None:
        run = rows.started(now=now)
        rows.ended(run, 1, now=now)
        lifecycle.block(run.task, by=ANNA, now=now)
        lifecycle.unblock(run.task, by=ANNA, now=now)
        rows.commit()
        fail_alike(2, now, error="")
        assert demo().paused_at is not None
        assert rows.fresh(run.task).failures == 0

    def test_the_breakers_it_opened_are_the_profiles(self, now: datetime, heard: rows.Heard) -> None:
        runs = fail_alike(3, now, limit=1)
        tasks = [rows.fresh(run.task) for run in runs]
        assert {(task.status, task.block_kind, task.blocked_by) for task in tasks} == {
            (Status.BLOCKED, BlockKind.BREAKER, "profile:demo")
        }
        own = rows.blocked("breaker", assignee="codex", now=now)
        lifecycle.link(rows.task().pk, tasks[0].pk, by=ANNA, now=now)
        rows.commit()
        before, heard.freed = rows.head(), 0
        lifecycle.resume(demo(), by=ANNA, now=now)
        assert [rows.fresh(task).status for task in tasks] == [Status.TODO, Status.READY, Status.READY]
        assert {(rows.fresh(task).failures, rows.fresh(task).block_kind) for task in tasks} == {(0, "")}
        assert rows.fresh(own).status == Status.BLOCKED
        assert rows.kinds(tasks[0], before) == ["unblocked", "status"]
        assert rows.last(tasks[1], "unblocked").payload == {"status": "ready", "block_kind": "breaker", **VIA}
        rows.commit()
        assert heard.freed == 1

    def test_it_is_told_once(self, now: datetime) -> None:
        runs = fail_alike(4, now)
        assert Event.objects.filter(kind="profile.paused").count() == 1
        assert rows.fresh(runs[3].task).failures == 1
        Profile.objects.all().delete()
        assert trip(runs[0].pk, now) is False

    def test_a_run_without_an_error_is_like_nobody(self, now: datetime) -> None:
        run = rows.started(now=now)
        rows.ended(run, 75, now=now)
        assert trip(run.pk, now) is False


class TestPause:
    def test_and_resume(self, now: datetime) -> None:
        profile = lifecycle.pause(rows.profile(), reason=" quota\x00 ", by=ANNA, now=now)
        kept = demo()
        assert (profile.paused_at, kept.paused_at, kept.paused_by) == (now, now, "user:anna")
        assert kept.paused_reason == "quota"
        assert kept.can_spawn("test-node") is False
        event = Event.objects.latest("pk")
        assert (event.kind, event.subject, event.payload) == (
            "profile.paused", "profile:demo", {"reason": "quota", **VIA}
        )  # fmt: skip
        refusal = rows.unchanged(lambda: lifecycle.pause(profile, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "already-paused")
        lifecycle.resume(profile, by=ANNA, now=now)
        kept = demo()
        assert (kept.paused_at, kept.paused_by, kept.paused_reason) == (None, "", "")
        assert Event.objects.latest("pk").kind == "profile.resumed"
        refusal = rows.unchanged(lambda: lifecycle.resume(profile, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "not-paused")

    def test_those_at_work_go_on(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.pause(demo(), by=ANNA, now=now)
        rows.commit()
        assert rows.process_of(run).is_live
        assert rows.fresh(run.task).status == Status.RUNNING

    def test_what_a_person_blocked_is_not_lifted_with_it(self, now: datetime) -> None:
        task = rows.blocked("capability")
        lifecycle.pause(rows.profile(), by=ANNA, now=now)
        lifecycle.resume(demo(), by=ANNA, now=now)
        assert rows.fresh(task).status == Status.BLOCKED


class TestFound:
    def test_a_change_is_told_once(self, now: datetime) -> None:
        profile = Profile.objects.create(name="other", argv=["other"])
        for is_there in (False, True, True):
            lifecycle.note_found(profile, "n1", is_there=is_there, by=SWEEP, now=now)
        lifecycle.note_found(profile, "n2", is_there=True, by=SWEEP, now=now)
        profile.refresh_from_db()
        assert (profile.found_on, profile.can_spawn("n1"), profile.can_spawn("n3")) == (["n1", "n2"], True, False)
        lifecycle.note_found(profile, "n1", is_there=False, by=SWEEP, now=now)
        profile.refresh_from_db()
        assert profile.found_on == ["n2"]
        told = Event.objects.filter(subject="profile:other").order_by("pk").values_list("kind", "payload__node")
        assert list(told) == [("profile.found", "n1"), ("profile.found", "n2"), ("profile.gone", "n1")]


class TestDispatchSwitch:
    def test_off_and_on(self, now: datetime, heard: rows.Heard) -> None:
        lifecycle.pause_dispatch(by=ANNA, now=now)
        board = Board.objects.get()
        assert (board.paused_at, board.paused_by) == (now, "user:anna")
        assert rows.unchanged(lambda: lifecycle.pause_dispatch(by=ANNA, now=now)).code == "already-paused"
        rows.commit()
        heard.freed = 0
        lifecycle.resume_dispatch(by=ANNA, now=now)
        board = lifecycle.the_board()
        assert (board.paused_at, board.paused_by) == (None, "")
        assert rows.unchanged(lambda: lifecycle.resume_dispatch(by=ANNA, now=now)).code == "not-paused"
        told = Event.objects.filter(subject="board:dispatch").order_by("pk").values_list("kind", flat=True)
        assert list(told) == ["board.paused", "board.resumed"]
        rows.commit()
        assert heard.freed == 1
