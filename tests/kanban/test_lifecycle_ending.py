"""How attempts end without a verdict, and what follows: one counter, one breaker, the quotas, the leases."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from kanban import lifecycle
from kanban.models import Profile, Run, Task
from kanban.states import (
    FAILURE_LIMIT,
    LEASE,
    RATE_LIMIT_COOLDOWN,
    VIOLATIONS_ALLOWED,
    BlockKind,
    Outcome,
    Phase,
    Reports,
    Status,
)
from projects.errors import Conflict
from projects.events import SWEEP, writing
from projects.models import ApiToken
from services import lifecycle as services
from services.models import ManagedProcess
from services.states import Status as ProcessStatus
from tests.kanban import rows
from tests.kanban.rows import ANNA, NODE, as_run

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


def crash(task: Task, now: datetime, code: int = 3) -> Task:
    return rows.ended(rows.started(task, now=now), code, now=now)


class TestCrash:
    def test_it_is_told_counted_and_tried_again(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        from kanban.workers import issue_token

        issue_token(run, run.task, by=SWEEP, now=now)
        rows.commit()
        heard.freed = 0
        task = rows.ended(run, 3, tail="Traceback\nboom", now=now + SECOND)
        error = "exit code 3\nTraceback\nboom"
        assert (task.status, task.failures, task.violations, task.last_error) == (Status.READY, 1, 0, error)
        ended = rows.fresh_run(run)
        assert (ended.outcome, ended.exit_code, ended.error, ended.ended_at) == (
            Outcome.CRASHED, 3, error, now + SECOND
        )  # fmt: skip
        assert len(ended.signature) == 16
        event = rows.last(task, "crashed")
        assert (event.run, event.actor) == (str(run), "andon")
        assert event.payload == {
            "pid": run.pid, "claimer": f"{NODE}:{run}", "exit_code": 3, "error": error, "failures": 1, "via": "sweep"
        }  # fmt: skip
        assert not ApiToken.objects.filter(revoked_at=None).exists()
        rows.commit()
        assert heard.freed == 1
        assert heard.told == []

    @pytest.mark.parametrize("code", [1, 74, -9, 137, None])
    def test_whatever_the_code(self, code: int | None, now: datetime) -> None:
        run = rows.started(now=now)
        assert rows.ended(run, code, now=now).failures == 1
        assert rows.fresh_run(run).outcome == Outcome.CRASHED

    def test_the_breaker_opens_at_the_limit(self, now: datetime) -> None:
        task = rows.task(now=now)
        for n in range(1, FAILURE_LIMIT):
            crash(task, now)
            assert (rows.fresh(task).status, rows.fresh(task).failures) == (Status.READY, n)
        before = rows.head()
        crash(task, now)
        kept = rows.fresh(task)
        assert (kept.status, kept.block_kind, kept.blocked_by) == (Status.BLOCKED, BlockKind.BREAKER, "andon")
        assert (kept.failures, kept.block_reason, kept.last_error) == (5, "exit code 3", "exit code 3")
        assert rows.kinds(task, before) == ["claimed", "spawned", "crashed", "gave_up"]
        assert rows.last(task, "gave_up").payload == {"error": "exit code 3", "failures": 5, "via": "sweep"}
        assert rows.last(task, "gave_up").run == f"{task.pk}/5"

    @pytest.mark.parametrize(("own", "of_profile", "limit"), [(2, 4, 2), (None, 3, 3), (1, None, 1), (None, None, 5)])
    def test_whose_limit_it_is(self, own: int | None, of_profile: int | None, limit: int, now: datetime) -> None:
        rows.profile("demo", failure_limit=of_profile)
        task = rows.task(failure_limit=own, now=now)
        for _ in range(limit):
            assert rows.fresh(task).status == Status.READY
            crash(task, now)
        assert rows.fresh(task).block_kind == BlockKind.BREAKER

    def test_one_counter_for_all_that_counts(self, now: datetime) -> None:
        task = rows.task(failure_limit=4, max_runtime_s=60, now=now)
        rows.not_started(rows.claimed(task, now=now), now=now)
        crash(task, now)
        rows.ended(rows.started(task, now=now), 0, now=now)
        assert rows.fresh(task).failures == 3
        run = rows.started(task, now=now)
        lifecycle.time_out(run.task, by=SWEEP, now=now + 60 * SECOND)
        kept = rows.fresh(task)
        assert (kept.failures, kept.block_kind) == (4, BlockKind.BREAKER)

    def test_only_a_completion_or_a_person_resets_it(self, now: datetime) -> None:
        task = rows.task(now=now)
        crash(task, now)
        run = rows.started(task, now=now)
        lifecycle.release(task, by=ANNA, now=now)
        rows.commit()
        rows.ended(run, -15, now=now)
        assert rows.fresh(task).failures == 1
        lifecycle.block(task, kind="transient", by=ANNA, now=now)
        lifecycle.unblock(task, by=SWEEP, now=now + timedelta(hours=1))
        assert rows.fresh(task).failures == 1
        lifecycle.block(task, by=ANNA, now=now)
        assert lifecycle.unblock(task, by=ANNA, now=now).failures == 0

    def test_it_waits_for_parents_that_opened_meanwhile(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.link(rows.task().pk, run.task_id, by=ANNA, now=now)
        before = rows.head()
        assert rows.ended(run, 3, now=now).status == Status.TODO
        assert rows.kinds(run.task, before) == ["crashed", "status"]

    def test_no_text_can_break_a_database(self, now: datetime) -> None:
        run = rows.started(now=now)
        task = rows.ended(run, 1, tail="\x00\ud800" + "x" * 5000, now=now)
        assert len(task.last_error) == 500
        assert len(rows.fresh_run(run).error) <= 3000

    def test_a_rollback_leaves_nothing(self, now: datetime) -> None:
        run = rows.started(now=now)

        def fails() -> None:
            with writing():
                rows.ended(run, 3, now=now)
                raise OSError("disk")

        assert isinstance(rows.unchanged(fails), OSError)

    def test_of_a_process_that_is_no_runs_nothing_follows(self, now: datetime) -> None:
        run = rows.started(now=now)
        process = rows.process_of(run)
        Run.objects.all().delete()
        before = rows.head()
        with writing():
            lifecycle.exited(process, SWEEP, now)
        assert rows.head() == before

    def test_of_a_run_that_is_over_the_code_is_kept_and_its_end_told(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        lifecycle.complete(run.task, by=as_run(run), now=now)
        rows.commit()
        before, heard.freed = rows.head(), 0
        task = rows.ended(run, 3, now=now)
        assert (task.status, rows.fresh_run(run).exit_code, rows.fresh_run(run).outcome) == (
            Status.DONE, 3, Outcome.COMPLETED
        )  # fmt: skip
        assert rows.kinds(since=before) == ["exited"]
        rows.commit()
        # Its task may be claimed again, had it been released.
        assert heard.freed == 1

    def test_the_new_run_is_not_blamed_for_the_old_ones_end(self, now: datetime) -> None:
        old = rows.started(now=now)
        lifecycle.release(old.task, by=ANNA, now=now)
        Run.objects.filter(pk=old.pk).update(process=None)
        process = ManagedProcess.objects.get(pk=old.process_id)
        new = rows.pulled(old.task, now=now)
        Run.objects.filter(pk=old.pk).update(process=process)
        before = rows.head()
        with writing():
            lifecycle.exited(process, SWEEP, now)
        assert (rows.kinds(since=before), rows.fresh(old.task).current_run) == (["exited"], new.number)

    def test_an_end_that_is_told_twice_counts_once(self, now: datetime) -> None:
        run = rows.started(now=now)
        rows.ended(run, 3, now=now)
        before = rows.everything()
        with writing():
            lifecycle.exited(rows.process_of(run), SWEEP, now)
        assert rows.everything() == before


class TestOtherEnds:
    def test_what_never_started_is_spawn_failed(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        task = rows.not_started(run, "workspace: no space", now=now)
        assert (task.status, task.failures, task.last_error) == (Status.READY, 1, "workspace: no space")
        assert rows.fresh_run(run).outcome == Outcome.SPAWN_FAILED
        event = rows.last(task, "spawn_failed")
        assert event.payload == {"error": "workspace: no space", "failures": 1, "via": "sweep"}
        assert event.run == str(run)

    def test_at_the_limit_it_is_told_as_such(self, now: datetime) -> None:
        task = rows.blocked("breaker", now=now)
        assert rows.last(task, "spawn_auto_blocked").payload == {
            "error": "no such program", "failures": 1, "via": "sweep"
        }  # fmt: skip
        assert "spawn_failed" not in rows.kinds(task)

    def test_a_long_error_is_cut_to_500(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        task = rows.not_started(run, "x" * 2000, now=now)
        assert len(task.last_error) == len(rows.last(task, "spawn_failed").payload["error"]) == 500
        assert len(rows.fresh_run(run).error) == 2000

    def test_code_75_waits_for_the_quota_and_is_not_counted(self, now: datetime) -> None:
        run = rows.started(now=now)
        task = rows.ended(run, 75, now=now)
        until = now + RATE_LIMIT_COOLDOWN
        assert (task.status, task.failures, task.not_before) == (Status.READY, 0, until)
        assert rows.fresh_run(run).outcome == Outcome.RATE_LIMITED
        event = rows.last(task, "rate_limited")
        assert (event.payload, event.run) == ({"until": int(until.timestamp()), "via": "sweep"}, str(run))

    def test_code_0_without_a_word_breaks_the_protocol(self, now: datetime) -> None:
        run = rows.started(now=now)
        task = rows.ended(run, 0, now=now)
        assert (task.status, task.failures, task.violations) == (Status.READY, 1, 1)
        assert rows.fresh_run(run).outcome == Outcome.PROTOCOL_VIOLATION
        assert rows.last(task, "protocol_violation").payload["error"].startswith("it ended with code 0 and said")

    def test_three_of_them_are_enough_whatever_the_limit(self, now: datetime) -> None:
        task = rows.task(failure_limit=100, now=now)
        for n in range(VIOLATIONS_ALLOWED):
            assert rows.fresh(task).violations == n
            crash(task, now)
            crash(task, now, 0)
        kept = rows.fresh(task)
        assert (kept.block_kind, kept.failures, kept.violations) == (BlockKind.BREAKER, 6, 3)
        assert rows.kinds(task)[-2:] == ["protocol_violation", "gave_up"]
        lifecycle.unblock(task, by=ANNA, now=now)
        assert rows.fresh(task).violations == 0

    def test_what_somebody_stopped_is_released_and_not_counted(self, now: datetime) -> None:
        run = rows.started(now=now)
        task = rows.stopped(run, now=now)
        assert (task.status, task.failures) == (Status.READY, 0)
        assert rows.fresh_run(run).outcome == Outcome.RELEASED
        event = rows.last(task, "reclaimed")
        assert event.payload["stale_lock"] == f"{NODE}:{run}"
        assert event.payload["reason"] == "its process was stopped (user)"

    def test_also_before_it_had_started(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        services.stop(rows.process_of(run), by=ANNA, now=now)
        task = rows.ended(run, None, now=now)
        assert (task.status, task.failures, rows.fresh_run(run).outcome) == (Status.READY, 0, Outcome.RELEASED)

    def test_what_another_boot_took_with_it_has_crashed(self, now: datetime) -> None:
        run = rows.started(now=now)
        services.lose(rows.process_of(run), "the machine was restarted", by=SWEEP, now=now)
        task = rows.fresh(run.task)
        assert (task.status, task.last_error) == (Status.READY, "the machine was restarted")

    @pytest.mark.parametrize("code", [0, 1])
    def test_an_agent_that_leaves_its_result_in_its_output_is_read_first(
        self, code: int, now: datetime, heard: rows.Heard
    ) -> None:
        rows.profile("demo", reports=Reports.ENVELOPE)
        run = rows.started(now=now)
        before = rows.head()
        task = rows.ended(run, code, now=now + SECOND)
        assert (task.status, task.phase, task.lease_until) == (Status.RUNNING, Phase.READING, now + SECOND + LEASE)
        assert rows.events(since=before) == []
        assert heard.left == []
        rows.commit()
        assert heard.left == [run.pk]

    @pytest.mark.parametrize(("code", "outcome"), [(-9, Outcome.CRASHED), (75, Outcome.RATE_LIMITED)])
    def test_not_when_it_was_killed_or_said_so_by_its_code(self, code: int, outcome: str, now: datetime) -> None:
        rows.profile("demo", reports=Reports.ENVELOPE)
        run = rows.started(now=now)
        rows.ended(run, code, now=now)
        assert rows.fresh_run(run).outcome == outcome

    @pytest.mark.parametrize("code", [0, 3, 75, -9])
    def test_what_has_reported_and_ends_is_looked_at(self, code: int, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(services_required=True, now=now)
        lifecycle.complete(run.task, by=as_run(run), now=now)
        task = rows.ended(run, code, now=now)
        rows.commit()
        assert (task.status, task.phase, heard.left) == (Status.RUNNING, Phase.SERVICES, [run.pk])
        assert rows.fresh_run(run).exit_code == code

    def test_an_old_worker_that_is_gone_is_told_of(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.release(run.task, by=ANNA, now=now)
        rows.commit()
        task = rows.ended(run, -15, now=now)
        event = rows.last(task, "exited")
        assert (event.run, event.payload["exit_code"], event.actor) == (str(run), -15, "andon")

    def test_without_its_profile_it_is_judged_by_its_code(self, now: datetime) -> None:
        run = rows.started(now=now)
        Profile.objects.all().delete()
        assert rows.ended(run, 0, now=now).violations == 1

    def test_a_pull_worker_that_fails_has_no_profile_to_blame(self, now: datetime) -> None:
        run = rows.pulled(now=now)
        with writing():
            lifecycle.fail(lifecycle.locked(run.task_id), Outcome.CRASHED, "gone", by=SWEEP, now=now)
        assert rows.fresh(run.task).failures == 1
        rows.commit()


class TestRelease:
    def test_an_operator_takes_it_back(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        task = lifecycle.release(run.task, reason=" wrong branch", by=ANNA, now=now)
        kept = rows.fresh(task)
        assert (kept.status, kept.failures, kept.lease_owner, kept.lease_until) == (Status.READY, 0, "", None)
        ended = rows.fresh_run(run)
        assert (ended.outcome, ended.error) == (Outcome.RELEASED, " wrong branch")
        event = rows.last(task, "reclaimed")
        assert (event.run, event.payload["stale_lock"]) == (str(run), f"{NODE}:{run}")
        rows.commit()
        assert [row.pk for row in heard.told] == [run.process_id]
        assert rows.process_of(run).last_error == "its run is over"

    def test_a_run_gives_its_own_task_back(self, now: datetime) -> None:
        run = rows.pulled(now=now)
        assert lifecycle.release(run.task, by=as_run(run), now=now).status == Status.READY

    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.RUNNING}))
    def test_only_what_runs(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: lifecycle.release(task, by=ANNA, now=now)).code == "illegal-transition"

    def test_what_it_returns_is_where_it_went(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.link(rows.task().pk, run.task_id, by=ANNA, now=now)
        assert lifecycle.release(run.task, by=ANNA, now=now).status == Status.TODO


class TestStopProcess:
    """What is left of a run that is over is stopped after the commit, in a transaction of its own."""

    def test_not_what_ended_by_itself(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        rows.ended(run, 3, now=now)
        assert lifecycle.stop_process(run.process_id, now) is False
        assert heard.told == []

    def test_not_twice(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        assert lifecycle.stop_process(run.process_id, now) is True
        assert lifecycle.stop_process(run.process_id, now) is False
        assert len(heard.told) == 1

    def test_not_what_ends_between_look_and_stop(self, now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
        run = rows.started(now=now)
        real = services.stop

        def stop(row: ManagedProcess, **about: Any) -> ManagedProcess:
            rows.ended(run, 3, now=now)
            return real(row, **about)

        monkeypatch.setattr(services, "stop", stop)
        assert lifecycle.stop_process(run.process_id, now) is False

    def test_not_after_a_rollback(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        rows.commit()

        def fails() -> None:
            with writing():
                lifecycle.release(run.task, by=ANNA, now=now)
                raise OSError("disk")

        assert isinstance(rows.unchanged(fails), OSError)
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.RUNNING


class TestExpire:
    def test_while_its_process_is_alive_the_lease_goes_on(self, now: datetime) -> None:
        run = rows.started(now=now)
        late = rows.expired(run)
        before = rows.head()
        assert lifecycle.expire(run.task, is_alive=True, by=SWEEP, now=late) is False
        assert (rows.fresh(run.task).lease_until, rows.head()) == (late + LEASE, before)

    def test_else_it_is_released_but_not_claimable_while_nobody_knows(self, now: datetime) -> None:
        run = rows.started(now=now)
        late = rows.expired(run)
        assert lifecycle.expire(run.task, is_alive=False, by=SWEEP, now=late) is True
        assert (rows.fresh(run.task).status, rows.fresh(run.task).failures) == (Status.READY, 0)
        assert rows.last(run.task, "reclaimed").payload["stale_lock"] == f"{NODE}:{run}"
        for _ in range(2):
            refusal = rows.unchanged(lambda: rows.pulled(run.task, now=late))
            assert refusal.code == "still-stopping"
            rows.commit()
        assert rows.process_of(run).status == ProcessStatus.STOPPING

    def test_not_one_that_was_extended_meanwhile(self, now: datetime) -> None:
        run = rows.started(now=now)
        late = rows.expired(run)
        lifecycle.heartbeat(run.task, by=as_run(run), now=late)
        refusal = rows.unchanged(lambda: lifecycle.expire(run.task, is_alive=False, by=SWEEP, now=late))
        assert (type(refusal), refusal.code) == (Conflict, "not-expired")

    def test_not_what_does_not_run(self, now: datetime) -> None:
        task = rows.task()
        assert rows.unchanged(lambda: lifecycle.expire(task, is_alive=False, by=SWEEP, now=now)).code == "not-expired"


class TestTimeOut:
    def test_a_worker_that_takes_too_long_is_stopped(self, now: datetime) -> None:
        run = rows.started(max_runtime_s=60, now=now)
        early = now + 59 * SECOND
        assert rows.unchanged(lambda: lifecycle.time_out(run.task, by=SWEEP, now=early)).code == "not-due"
        lifecycle.time_out(run.task, by=SWEEP, now=now + 60 * SECOND)
        task = rows.fresh(run.task)
        assert (task.status, task.failures, task.last_error) == (Status.READY, 1, "longer than 60 s")
        assert rows.fresh_run(run).outcome == Outcome.TIMED_OUT
        assert rows.last(task, "timed_out").payload["pid"] == run.pid
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.STOPPING

    def test_a_verdict_that_waits_is_kept(self, now: datetime) -> None:
        run = rows.started(max_runtime_s=60, services_required=True, now=now)
        lifecycle.complete(run.task, result="Up", by=rows.as_run(run), now=now)
        late = now + 60 * SECOND
        assert rows.unchanged(lambda: lifecycle.time_out(run.task, by=SWEEP, now=late)).code == "not-due"

    def test_not_while_what_it_left_is_read(self, now: datetime) -> None:
        rows.profile(reports=Reports.ENVELOPE)
        run = rows.started(max_runtime_s=60, now=now)
        rows.ended(run, 0, now=now)
        late = now + 60 * SECOND
        assert rows.unchanged(lambda: lifecycle.time_out(run.task, by=SWEEP, now=late)).code == "not-due"

    def test_not_without_a_limit_and_not_what_does_not_run(self, now: datetime) -> None:
        run, task = rows.started(now=now), rows.task()
        assert rows.unchanged(lambda: lifecycle.time_out(run.task, by=SWEEP, now=now)).code == "not-due"
        assert rows.unchanged(lambda: lifecycle.time_out(task, by=SWEEP, now=now)).code == "no-run"


class TestGiveUpLaunch:
    def test_what_nobody_started_within_a_minute(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        early = now + 59 * SECOND
        assert rows.unchanged(lambda: lifecycle.give_up_launch(run.task, by=SWEEP, now=early)).code == "not-due"
        lifecycle.give_up_launch(run.task, by=SWEEP, now=now + 60 * SECOND)
        task = rows.fresh(run.task)
        assert (task.status, task.failures, rows.fresh_run(run).outcome) == (Status.READY, 1, Outcome.SPAWN_FAILED)
        # Its host's worker may come back: the row that it would start is stopped.
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.STOPPING

    def test_not_what_has_started(self, now: datetime) -> None:
        run = rows.started(now=now)
        late = now + timedelta(hours=1)
        assert rows.unchanged(lambda: lifecycle.give_up_launch(run.task, by=SWEEP, now=late)).code == "not-due"


class TestServicesKnown:
    def known(self, run: Run, now: datetime, **fields: Any) -> None:
        about: dict[str, Any] = {"healthy": 0, "total": 0, "by": as_run(run), "now": now, **fields}
        lifecycle.services_known(run.task, **about)

    def reported(self, now: datetime, **fields: Any) -> Run:
        run = rows.started(services_required=True, now=now, **fields)
        lifecycle.complete(run.task, result="Up", by=as_run(run), now=now)
        rows.ended(run, 0, now=now)
        return rows.fresh_run(run)

    @pytest.mark.parametrize(("healthy", "total", "said"), [(2, 2, ""), (1, 2, "partial"), (0, 0, "")])
    def test_done(self, healthy: int, total: int, said: str, now: datetime) -> None:
        run = self.reported(now)
        self.known(run, now, healthy=healthy, total=total)
        task = rows.fresh(run.task)
        assert (task.status, task.result, task.phase) == (Status.DONE, "Up", "")
        run = rows.fresh_run(run)
        assert (run.outcome, run.failure_class, run.services_healthy, run.services_total) == (
            Outcome.COMPLETED, said, healthy, total
        )  # fmt: skip
        assert rows.last(task, "completed").run == str(run)

    def test_refused_and_never_retried_by_itself(self, now: datetime) -> None:
        run = self.reported(now)
        self.known(run, now, failure="invalid-managed-spawn", reason="sidecar-missing\nhint")
        task = rows.fresh(run.task)
        text = "invalid-managed-spawn: sidecar-missing\nhint"
        assert (task.status, task.block_kind, task.block_reason, task.failures) == (
            Status.BLOCKED, BlockKind.CAPABILITY, text, 0
        )  # fmt: skip
        run = rows.fresh_run(run)
        assert (run.outcome, run.failure_class, run.error) == (
            Outcome.FAILED, "invalid-managed-spawn", "sidecar-missing\nhint"
        )  # fmt: skip
        event = rows.last(task, "blocked")
        assert (event.payload["reason"], event.payload["block_kind"], event.run) == (text, "capability", str(run))

    def test_of_a_run_that_is_over_it_says_nothing_about_the_next(self, now: datetime) -> None:
        old = self.reported(now)
        lifecycle.release(old.task, by=ANNA, now=now)
        rows.pulled(old.task, now=now)
        refusal = rows.unchanged(lambda: self.known(old, now, healthy=1, total=1))
        assert (type(refusal), refusal.code) == (Conflict, "superseded")

    def test_what_was_declared_is_kept_on_a_live_run_only(self, now: datetime) -> None:
        run, over = self.reported(now), self.reported(now)
        lifecycle.release(over.task, by=ANNA, now=now)
        for each in (run, over):
            lifecycle.declare_services(each, [{"process": 7, "generation": 1, "name": "web"}], now=now)
        assert rows.fresh_run(run).services_total == 1
        assert rows.fresh_run(over).services_total is None

    def test_the_lease_is_kept_while_they_are_waited_for(self, now: datetime) -> None:
        run, task = self.reported(now), rows.task()
        lifecycle.still_waiting(run.task, now=now + 9 * SECOND)
        lifecycle.still_waiting(task, now=now)
        assert rows.fresh(run.task).lease_until == now + 9 * SECOND + LEASE
        assert rows.fresh(task).lease_until is None


def test_a_run_that_vanished_is_a_conflict(now: datetime) -> None:
    run = rows.pulled(now=now)
    Run.objects.all().delete()
    assert rows.unchanged(lambda: lifecycle.archive(run.task, by=ANNA, now=now)).code == "no-run"


def test_of_two_ends_at_once_the_second_is_refused(now: datetime, monkeypatch: pytest.MonkeyPatch) -> None:
    run = rows.pulled(now=now)
    real = lifecycle.moves.current_run

    def current_run(task: Task) -> Run:
        found = real(task)
        Run.objects.filter(pk=found.pk).update(ended_at=now, outcome=Outcome.RELEASED)
        return found

    monkeypatch.setattr(lifecycle.moves, "current_run", current_run)
    with pytest.raises(Conflict, match="has ended meanwhile"):
        lifecycle.archive(run.task, by=ANNA, now=now)
