"""Level-triggered repairs: each finds what is wrong with the rows as they are, and doing it twice is doing it once."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from kanban import lifecycle, sweeps
from kanban.models import Board, Link, Profile, Run, Task
from kanban.states import LEASE, Outcome, Phase, Reports, Status
from projects.events import SWEEP
from services import lifecycle as services
from services.models import ManagedProcess, WorkerHost
from services.states import Status as ProcessStatus
from tests.kanban import rows
from tests.kanban.rows import ANNA, NODE, as_run, task

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)
MINUTE = timedelta(minutes=1)


def lost(run: Run) -> Run:
    """Have a run's process end behind the verbs' back, as if nobody had told the kanban."""
    gone: dict[str, Any] = {"pid": None, "start_ticks": None, "boot_id": ""}
    ManagedProcess.objects.filter(pk=run.process_id).update(status=ProcessStatus.FAILED, exit_code=3, **gone)
    return rows.fresh_run(run)


def reported(now: datetime, **fields: Any) -> Run:
    run = rows.started(services_required=True, now=now, **fields)
    lifecycle.complete(run.task, by=as_run(run), now=now)
    return rows.fresh_run(run)


class TestReleaseExpired:
    def test_the_living_are_extended_the_others_released(self, now: datetime) -> None:
        living, silent, pulled = rows.started(now=now), rows.started(now=now), rows.pulled(now=now)
        fresh = rows.started(now=now)
        ManagedProcess.objects.filter(pk=silent.process_id).update(node="n2")
        late = now + LEASE
        lifecycle.heartbeat(fresh.task, by=as_run(fresh), now=late)
        rows.tick(late)
        assert sorted(sweeps.release_expired(now=late)) == sorted([silent.task_id, pulled.task_id])
        assert rows.fresh(living.task).lease_until == late + LEASE
        assert {rows.fresh(each.task).status for each in (silent, pulled)} == {Status.READY}
        assert sweeps.release_expired(now=late) == []

    @pytest.mark.parametrize("count", [1, 5])
    def test_who_ticks_is_asked_once(self, count: int, now: datetime, django_assert_num_queries: Any) -> None:
        for _ in range(count):
            rows.started(now=now)
        rows.tick(now + LEASE)
        with django_assert_num_queries(2):
            found = sweeps._expired(now + LEASE)
            hosts = sweeps.dispatch.ticking(now + LEASE)
            assert all(sweeps.is_alive(run, hosts) for run in found)
        with CaptureQueriesContext(connection) as queries:
            assert sweeps.release_expired(now=now + LEASE) == []
        assert sum("services_workerhost" in each["sql"] for each in queries) == 1

    def test_of_a_silent_host_nobody_knows(self, now: datetime) -> None:
        run = rows.started(now=now)
        assert sweeps.release_expired(now=now + LEASE) == [run.task_id]
        rows.commit()
        refusal = rows.unchanged(lambda: rows.pulled(run.task, now=now + LEASE))
        assert refusal.code == "still-stopping"

    def test_what_waits_for_its_services_goes_on_while_its_host_ticks(self, now: datetime) -> None:
        run = reported(now)
        rows.ended(run, 0, now=now)
        late = now + LEASE
        rows.tick(late)
        assert sweeps.release_expired(now=late) == []
        assert sweeps.release_expired(now=late + LEASE) == [run.task_id]

    def test_of_a_pull_worker_too(self, now: datetime) -> None:
        run = rows.pulled(services_required=True, now=now)
        lifecycle.complete(run.task, by=as_run(run), now=now)
        assert sweeps.release_expired(now=now + LEASE) == []

    def test_one_poison_row_stops_nobody(
        self, now: datetime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        runs = [rows.pulled(now=now) for _ in range(3)]
        real = lifecycle.expire

        def poisoned(of: Task, **about: Any) -> bool:
            if of.pk == runs[0].task_id:
                raise OSError("poison")
            return real(of, **about)

        monkeypatch.setattr(lifecycle, "expire", poisoned)
        assert sorted(sweeps.release_expired(now=now + LEASE)) == sorted(run.task_id for run in runs[1:])
        assert runs[0].task_id in caplog.text

    def test_who_was_faster_is_left_alone(self, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
        run = rows.pulled(now=now)
        seen = sweeps._expired(now + LEASE)
        lifecycle.heartbeat(run.task, by=as_run(run), now=now + LEASE)
        monkeypatch.setattr(sweeps, "_expired", lambda at: seen)
        assert sweeps.release_expired(now=now + LEASE) == []


class TestDetectCrashed:
    def test_what_ended_and_nobody_told(self, now: datetime) -> None:
        run = lost(rows.started(now=now))
        living = rows.started(now=now)
        assert sweeps.detect_crashed(now=now) == [run.task_id]
        assert (rows.fresh(run.task).failures, rows.fresh_run(run).outcome) == (1, Outcome.CRASHED)
        assert rows.fresh(living.task).status == Status.RUNNING
        assert sweeps.detect_crashed(now=now) == []

    def test_what_was_erased(self, now: datetime) -> None:
        run = rows.started(now=now)
        ManagedProcess.objects.all().delete()
        assert sweeps.detect_crashed(now=now) == [run.task_id]
        assert rows.fresh(run.task).last_error == "its process was erased"

    def test_what_was_erased_and_claimed_anew_is_not_blamed(self, now: datetime) -> None:
        run = rows.started(now=now)
        ManagedProcess.objects.all().delete()
        Task.objects.filter(pk=run.task_id).update(current_run=9)
        before = rows.everything()
        assert sweeps.detect_crashed(now=now) == []
        assert rows.everything() == before

    @pytest.mark.parametrize("is_erased", [False, True])
    def test_what_has_left_something_is_looked_at_first(
        self, is_erased: bool, now: datetime, heard: rows.Heard
    ) -> None:
        run = lost(reported(now))
        if is_erased:
            ManagedProcess.objects.all().delete()
        assert sweeps.detect_crashed(now=now) == []
        assert heard.left == [run.pk]

    def test_what_nobody_started_within_a_minute(self, now: datetime) -> None:
        run, other = rows.claimed(now=now), rows.started(now=now)
        assert sweeps.detect_crashed(now=now + 59 * SECOND) == []
        assert sweeps.detect_crashed(now=now + MINUTE) == [run.task_id]
        assert rows.fresh_run(run).outcome == Outcome.SPAWN_FAILED
        assert rows.fresh(other.task).status == Status.RUNNING

    def test_a_pull_worker_has_no_process_to_lose(self, now: datetime) -> None:
        rows.pulled(now=now)
        assert sweeps.detect_crashed(now=now + MINUTE) == []


class TestTimeOut:
    def test_who_is_too_long_under_way(self, now: datetime) -> None:
        run, free = rows.started(max_runtime_s=60, now=now), rows.started(now=now)
        pulled = rows.pulled(max_runtime_s=30, now=now)
        assert sweeps.time_out(now=now + 59 * SECOND) == [pulled.task_id]
        assert sweeps.time_out(now=now + MINUTE) == [run.task_id]
        assert sweeps.time_out(now=now + MINUTE) == []
        assert rows.fresh(free.task).status == Status.RUNNING

    def test_not_who_has_said_what_came_of_it(self, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
        reported(now, max_runtime_s=60)
        rows.profile(reports=Reports.ENVELOPE)
        rows.ended(rows.started(max_runtime_s=60, now=now), 0, now=now)
        asked: list[Task] = []
        monkeypatch.setattr(lifecycle, "time_out", lambda of, **about: asked.append(of))
        assert sweeps.time_out(now=now + MINUTE) == []
        assert asked == []


class TestPromoteReady:
    def test_whatever_was_missed_in_both_directions(self, now: datetime) -> None:
        waits = task(parents=[task().pk])
        blocked = rows.blocked("dependency")
        Link.objects.all().delete()
        early = task()
        Link.objects.create(parent=task(), child=early)
        held = task()
        lifecycle.move_to(held, Status.TODO, by=ANNA, now=now)
        waived = task(parents=[task().pk])
        lifecycle.move_to(waived, Status.READY, by=ANNA, now=now)
        before = rows.head()
        # What was unblocked or demoted is no promotion.
        assert sweeps.promote_ready(now=now) == 1
        assert [rows.fresh(each).status for each in (waits, blocked, early, held, waived)] == [
            Status.READY, Status.READY, Status.TODO, Status.TODO, Status.READY
        ]  # fmt: skip
        assert [rows.kinds(each, before) for each in (waits, blocked, early)] == [["ready"], ["unblocked"], ["status"]]
        assert sweeps.promote_ready(now=now) == 0


class TestLiftBlocks:
    def test_whose_time_is_over(self, now: datetime) -> None:
        short, later = rows.blocked("transient", now=now), rows.blocked("transient", now=now + MINUTE)
        human = rows.blocked(now=now)
        assert sweeps.lift_blocks(now=now + 5 * MINUTE - SECOND) == 0
        assert sweeps.lift_blocks(now=now + 5 * MINUTE) == 1
        assert [rows.fresh(each).status for each in (short, later, human)] == [
            Status.READY, Status.BLOCKED, Status.BLOCKED
        ]  # fmt: skip
        assert rows.last(short, "unblocked").actor == "andon"

    def test_what_became_a_persons_meanwhile_is_left_to_him(
        self, now: datetime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = rows.blocked("transient", now=now)
        Task.objects.filter(pk=made.pk).update(block_kind="needs_input")
        assert sweeps.lift_blocks(now=now + 5 * MINUTE) == 0
        assert rows.fresh(made).status == Status.BLOCKED


class TestStopSuperseded:
    def test_at_once_or_after_ten_seconds_who_gave_its_verdict(self, now: datetime, heard: rows.Heard) -> None:
        spoken = {
            verb: rows.started(now=now) for verb in (lifecycle.complete, lifecycle.block, lifecycle.request_review)
        }
        for verb, run in spoken.items():
            verb(run.task, by=as_run(run), now=now)
        taken = rows.started(now=now)
        lifecycle.archive(taken.task, by=ANNA, now=now)
        waits = reported(now)
        at_work = rows.started(now=now)
        connection.run_on_commit.clear()
        assert sweeps.stop_superseded(now=now) == 1
        assert rows.process_of(taken).status == ProcessStatus.STOPPING
        assert sweeps.stop_superseded(now=now + 10 * SECOND - SECOND) == 0
        assert sweeps.stop_superseded(now=now + 10 * SECOND) == 4
        for run in (*spoken.values(), waits):
            assert rows.process_of(run).status == ProcessStatus.STOPPING
        assert rows.process_of(at_work).status == ProcessStatus.RUNNING
        assert sweeps.stop_superseded(now=now + 10 * SECOND) == 0
        assert len(heard.told) == 5

    def test_who_ended_by_itself_is_left_alone(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.complete(run.task, by=as_run(run), now=now)
        rows.ended(run, 0, now=now)
        assert sweeps.stop_superseded(now=now + MINUTE) == 0


class TestSettleLeft:
    def test_those_of_this_host_and_of_none(self, now: datetime, heard: rows.Heard) -> None:
        rows.profile(reports=Reports.ENVELOPE)
        reading = rows.started(now=now)
        rows.ended(reading, 0, now=now)
        mine, away = reported(now), reported(now)
        pulled = rows.pulled(services_required=True, now=now)
        lifecycle.complete(pulled.task, by=as_run(pulled), now=now)
        Run.objects.filter(pk=away.pk).update(host="n2")
        rows.started(now=now)
        rows.in_status(Status.DONE, now=now)
        assert rows.fresh(reading.task).phase == Phase.READING
        assert sweeps.settle_left() == 3
        assert sorted(heard.left) == sorted([reading.pk, mine.pk, pulled.pk])


class TestFindProfiles:
    def test_what_is_on_the_path_and_what_is_not_any_more(
        self, now: datetime, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("codex", "demo", "gone", "same"):
            rows.profile(name, argv=[name], enabled=None)
        (tmp_path / "codex").write_text("#!/bin/sh\n")
        (tmp_path / "codex").chmod(0o755)
        Profile.objects.filter(name="demo").update(argv=["{python}"])
        Profile.objects.filter(name="gone").update(found_on=[NODE])
        Profile.objects.exclude(name__in=["codex", "demo", "gone", "same"]).delete()
        monkeypatch.setattr(sweeps, "search_path", lambda: str(tmp_path))
        before = rows.head()
        assert sweeps.find_profiles(now=now) == 2
        assert dict(Profile.objects.values_list("name", "found_on")) == {
            "codex": [NODE], "demo": [NODE], "gone": [], "same": []
        }  # fmt: skip
        told = [(event.kind, event.subject) for event in rows.events(since=before)]
        assert sorted(told) == [
            ("profile.found", "profile:codex"), ("profile.found", "profile:demo"), ("profile.gone", "profile:gone")
        ]  # fmt: skip
        assert sweeps.find_profiles(now=now) == 2
        assert len(rows.events(since=before)) == 3


class TestPass:
    def test_it_mends_first_and_then_claims(self, now: datetime, heard: rows.Heard) -> None:
        late = now + LEASE
        expired = rows.pulled(now=now)
        crashed = lost(rows.started(failure_limit=1, now=late))
        slow = rows.started(max_runtime_s=1, now=late - MINUTE)
        waits = task(parents=[task(assignee="", now=late).pk], now=late)
        Link.objects.all().delete()
        rows.tick(late)
        done, runs = sweeps.run_pass([NODE], limit=8, by=SWEEP, now=late)
        assert (done.reclaimed, done.promoted, done.dry_run) == (1, 1, False)
        assert (done.crashed, done.timed_out, done.auto_blocked) == (
            [crashed.task_id], [slow.task_id], [crashed.task_id]
        )  # fmt: skip
        # The one that timed out still has a process to be stopped.
        assert {run.task_id for run in runs} == {waits.pk, expired.task_id}
        assert {task_id for task_id, _, _ in done.spawned} == {run.task_id for run in runs}
        assert len(done.skipped_unassigned) == 1
        board = Board.objects.get()
        assert board.last_pass_at == late
        assert (board.last_pass["spawned"], board.last_pass["crashed"], board.last_pass["reclaimed"]) == (2, 1, 1)

    def test_the_periodic_one_claims_for_its_own_host(self, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
        settings.ANDON_DISPATCH = True
        rows.tick(None, NODE, "n2")
        settings.ANDON_WORKERS_PER_HOST = 1
        rows.profile(concurrency=9)
        made = [task() for _ in range(3)]
        assert sweeps.tick() == {"claimed": 1, "reclaimed": 0, "promoted": 0}
        assert Run.objects.get().host == NODE
        assert sum(rows.fresh(each).status == Status.RUNNING for each in made) == 1

    def test_not_while_it_is_switched_off(self, settings: Any) -> None:
        rows.tick()
        task()
        settings.ANDON_DISPATCH = False
        expired = rows.started(now=timezone.now() - timedelta(hours=1)).task
        rows.tick()
        ManagedProcess.objects.update(node="gone")
        assert sweeps.tick() is None
        # What is lost is still taken back.
        assert rows.fresh(expired).status == Status.READY
        lifecycle.archive(expired, by=ANNA, now=timezone.now())
        settings.ANDON_DISPATCH = True
        lifecycle.pause_dispatch(by=ANNA, now=timezone.now())
        assert sweeps.tick() is None
        lifecycle.resume_dispatch(by=ANNA, now=timezone.now())
        assert sweeps.tick() == {"claimed": 1, "reclaimed": 0, "promoted": 0}

    def test_without_its_worker_nobody_is_claimed(self, settings: Any) -> None:
        settings.ANDON_DISPATCH = True
        made = task()
        WorkerHost.objects.all().delete()
        assert sweeps.tick() == {"claimed": 0, "reclaimed": 0, "promoted": 0}
        assert rows.fresh(made).status == Status.READY

    @pytest.mark.parametrize("count", [1, 40])
    def test_its_queries_do_not_grow_with_what_waits(self, count: int, now: datetime) -> None:
        rows.tick(now)
        rows.profile()
        for _ in range(count):
            task(assignee="bruno", now=now)
            rows.in_status(Status.BLOCKED, now=now)
        for sweep in (sweeps.release_expired, sweeps.detect_crashed, sweeps.time_out, sweeps.promote_ready,
                      sweeps.lift_blocks, sweeps.stop_superseded):  # fmt: skip
            with CaptureQueriesContext(connection) as queries:
                sweep(now=now)
            assert len(queries) <= 2, sweep
        with CaptureQueriesContext(connection) as queries:
            sweeps.run_pass([NODE], limit=8, by=SWEEP, now=now)
        assert len(queries) <= 20, [each["sql"][:80] for each in queries.captured_queries]


def test_a_crash_between_claim_and_launch_is_mended_by_the_next_pass(now: datetime) -> None:
    """Nobody was told of the claim: its host's own sweep starts it, or its launch lease ends it."""
    run = rows.claimed(now=now)
    rows.tick(now + MINUTE)
    done, runs = sweeps.run_pass([NODE], limit=8, by=SWEEP, now=now + MINUTE)
    assert done.crashed == [run.task_id]
    assert runs == []
    rows.commit()
    process = rows.process_of(run)
    assert process.status == ProcessStatus.STOPPING
    services.settle(process, None, by=SWEEP, now=now + MINUTE)
    _, runs = sweeps.run_pass([NODE], limit=8, by=SWEEP, now=now + MINUTE)
    assert [str(each) for each in runs] == [f"{run.task_id}/2"]
