"""What dispatcher and runs do: claim spawned heartbeat complete block request_review; by whom, twice, too late."""

from collections.abc import Callable
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any

import pytest

from kanban import lifecycle
from kanban.models import Profile, Run, Task
from kanban.states import LAUNCH_WITHIN, LEASE, TRANSIENT_WAITS, BlockKind, Outcome, Phase, Status
from kanban.workers import issue_token
from projects.errors import Conflict, Forbidden, Rejected, Unavailable
from projects.events import SWEEP, By, writing
from projects.models import ApiToken, Event, Project
from projects.states import Via
from services.models import ManagedProcess
from services.states import Purpose
from services.states import Status as ProcessStatus
from tests.kanban import rows
from tests.kanban.rows import AGENT, ANNA, NODE, as_run
from tests.services.world import make_project

pytestmark = pytest.mark.django_db
VIA = {"via": "page", "address": "10.0.0.1"}
SECOND = timedelta(seconds=1)
DOLLAR = Decimal(1)
Verb = Callable[..., Task]
# What a run may say of its task.
SAID: list[Verb] = [lifecycle.complete, lifecycle.block, lifecycle.request_review, lifecycle.heartbeat]


def by_dispatcher(task: Task, now: datetime, *, node: str = NODE, per_host: int = 8) -> Run:
    return lifecycle.claim(
        task, profile=Profile.objects.get(name=task.assignee), node=node, per_host=per_host, by=SWEEP, now=now
    )


class TestClaim:
    def test_a_worker_is_reserved_with_it(self, now: datetime, heard: rows.Heard) -> None:
        task = rows.task(max_runtime_s=60, now=now)
        profile = rows.profile("demo", stop_grace_s=3)
        rows.tick(now)
        run = by_dispatcher(task, now)
        kept = rows.fresh(task)
        assert (kept.status, kept.current_run, kept.lease_owner) == (Status.RUNNING, 1, f"{NODE}:{task.id}/1")
        assert (kept.lease_until, kept.started_at, kept.since) == (now + LEASE, now, now)
        run = rows.fresh_run(run)
        assert (run.number, run.profile, run.host, run.owner) == (1, "demo", NODE, kept.lease_owner)
        assert (run.started_at, run.launch_by, run.timeout_at) == (now, now + LAUNCH_WITHIN, now + 60 * SECOND)
        assert (run.has_process, run.spawned_at, run.ended_at, run.outcome) == (True, None, None, "")
        process = run.process
        assert process is not None
        assert (process.status, process.purpose, process.node) == (ProcessStatus.STARTING, Purpose.WORKER, NODE)
        assert (process.name, process.project, process.stop_grace_s) == (f"t-{task.id[2:]}-1", "", 3)
        assert [process.cmd, *process.args] == profile.argv
        assert process.env == {}
        event = rows.last(task, "claimed")
        assert (event.actor, event.run) == ("andon", f"{task.id}/1")
        expires = int((now + LEASE).timestamp())
        assert event.payload == {"lock": kept.lease_owner, "expires": expires, "profile": "demo", "via": "sweep"}

    def test_a_pull_worker_has_a_lease_and_no_process(self, now: datetime) -> None:
        run = lifecycle.claim(rows.task(assignee="", now=now), by=AGENT, now=now)
        kept = rows.fresh(run.task)
        assert (kept.status, kept.lease_owner, kept.lease_until) == (Status.RUNNING, "token:agent", now + LEASE)
        assert (run.has_process, run.process, run.host, run.profile, run.launch_by) == (False, None, "", "", None)
        assert ManagedProcess.objects.count() == 0
        assert rows.last(run.task, "claimed").payload["lock"] == "token:agent"
        assert "profile" not in rows.last(run.task, "claimed").payload

    def test_attempts_are_counted_and_the_first_start_is_kept(self, now: datetime) -> None:
        run = rows.pulled(now=now)
        lifecycle.release(run.task, by=ANNA, now=now + SECOND)
        again = rows.pulled(run.task, now=now + 2 * SECOND)
        assert (again.number, rows.fresh(run.task).current_run, rows.fresh(run.task).started_at) == (2, 2, now)

    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.READY}))
    def test_only_what_is_ready(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status, now=now)
        rows.tick(now)
        for claim in (lambda: by_dispatcher(task, now), lambda: rows.pulled(task, now=now)):
            refusal = rows.unchanged(claim)
            assert (type(refusal), refusal.code) == (Conflict, "task-not-ready")

    def test_parents_are_looked_at_again(self, now: datetime) -> None:
        task, parent = rows.task(now=now), rows.task(now=now)
        from kanban.models import Link

        # Behind the verbs' back.
        Link.objects.create(parent=parent, child=task)
        refusal = rows.unchanged(lambda: rows.pulled(task, now=now))
        assert (refusal.code, refusal.extra) == ("parents-open", {"parents": [parent.pk]})
        Task.objects.filter(pk=task.pk).update(parents_waived=True)
        assert rows.pulled(task, now=now).number == 1

    def test_not_while_the_old_worker_is_not_verified_gone(self, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.release(run.task, by=ANNA, now=now)
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.STOPPING
        refusal = rows.unchanged(lambda: rows.pulled(run.task, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "still-stopping")
        rows.ended(run, -15, now=now)
        assert rows.pulled(run.task, now=now).number == 2

    def test_not_while_its_quota_cools_down(self, now: datetime) -> None:
        run = rows.started(now=now)
        rows.ended(run, 75, now=now)
        refusal = rows.unchanged(lambda: rows.pulled(run.task, now=now + 299 * SECOND))
        assert (type(refusal), refusal.code) == (Conflict, "cooling-down")
        rows.pulled(run.task, now=now + 300 * SECOND)
        assert rows.fresh(run.task).not_before is None

    def test_not_beyond_the_caps(self, now: datetime) -> None:
        rows.profile("demo", concurrency=2)
        rows.profile("codex", concurrency=9)
        rows.tick(now, NODE, "n2")
        for _ in range(2):
            by_dispatcher(rows.task(now=now), now)
        task, other = rows.task(now=now), rows.task(assignee="codex", now=now)
        assert rows.unchanged(lambda: by_dispatcher(task, now, node="n2")).code == "over-cap"
        assert rows.unchanged(lambda: by_dispatcher(other, now, per_host=2)).code == "over-cap"
        assert by_dispatcher(other, now, node="n2", per_host=1).host == "n2"
        rows.pulled(task, now=now)

    def test_a_run_that_ended_makes_room(self, now: datetime) -> None:
        rows.profile("demo", concurrency=1)
        rows.tick(now)
        run = by_dispatcher(rows.task(now=now), now)
        lifecycle.release(run.task, by=ANNA, now=now)
        assert by_dispatcher(rows.task(now=now), now).number == 1

    @pytest.mark.parametrize("fields", [{"enabled": False}, {"argv": []}, {"enabled": None, "found_on": ["n2"]}])
    def test_not_for_a_profile_that_cannot_be_started_here(self, fields: dict[str, Any], now: datetime) -> None:
        task = rows.task(now=now)
        rows.profile("demo", **fields)
        rows.tick(now)
        refusal = rows.unchanged(lambda: by_dispatcher(task, now))
        assert (type(refusal), refusal.code) == (Conflict, "profile-paused")

    def test_not_for_one_that_is_paused(self, now: datetime) -> None:
        task = rows.task(now=now)
        lifecycle.pause(rows.profile("demo"), by=ANNA, now=now)
        rows.tick(now)
        assert rows.unchanged(lambda: by_dispatcher(task, now)).code == "profile-paused"

    def test_not_for_whom_it_was_given_to_before(self, now: datetime) -> None:
        task = rows.task(now=now)
        seen = Profile.objects.get(name="demo")
        lifecycle.assign(task, "bruno", by=ANNA, now=now)
        rows.tick(now)
        refusal = rows.unchanged(lambda: lifecycle.claim(task, profile=seen, node=NODE, per_host=8, by=SWEEP, now=now))
        assert refusal.code == "task-not-ready"

    def test_not_for_a_host_whose_worker_is_silent(self, now: datetime) -> None:
        task = rows.task(now=now)
        rows.profile("demo")
        assert isinstance(rows.unchanged(lambda: by_dispatcher(task, now)), Unavailable)
        rows.tick(now)
        refusal = rows.unchanged(lambda: by_dispatcher(task, now + timedelta(minutes=1)))
        assert (type(refusal), refusal.code) == (Unavailable, "no-worker")

    def test_not_when_its_project_has_gone(self, now: datetime, workspace: Any) -> None:
        make_project(workspace)
        task, other = rows.task(project="demo", now=now), rows.task(project="demo", now=now)
        rows.profile("demo")
        rows.tick(now)
        run = by_dispatcher(other, now)
        assert rows.process_of(run).project == "demo"
        Project.objects.update(missing_since=now)
        assert rows.unchanged(lambda: by_dispatcher(task, now)).code == "project-missing"
        Project.objects.all().delete()
        assert rows.unchanged(lambda: by_dispatcher(task, now)).code == "project-missing"


class TestSpawned:
    def test_the_lease_begins_anew_and_the_launch_is_over(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        run = rows.spawned(run, now=now + 9 * SECOND)
        process = rows.process_of(run)
        assert (run.pid, run.spawned_at, run.launch_by) == (process.pid, now + 9 * SECOND, None)
        assert (run.heartbeat_at, run.log_path) == (now + 9 * SECOND, process.log_path)
        assert rows.fresh(run.task).lease_until == now + 9 * SECOND + LEASE
        event = rows.last(run.task, "spawned")
        assert (event.payload, event.run) == ({"pid": process.pid, "via": "sweep"}, str(run))
        assert not Event.objects.filter(kind__startswith="worker.t").exists()
        assert not Event.objects.filter(kind__startswith="service.").exists()

    def test_of_a_run_that_is_over_nothing_is_told(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        lifecycle.archive(run.task, by=ANNA, now=now)
        before = rows.head()
        rows.spawned(run, now=now)
        assert rows.events(since=before) == []
        assert rows.fresh_run(run).spawned_at is None

    def test_of_a_run_that_is_not_the_current_one_the_task_hears_nothing(self, now: datetime) -> None:
        run = rows.claimed(now=now)
        Task.objects.filter(pk=run.task_id).update(current_run=9)
        before = rows.head()
        rows.spawned(run, now=now + SECOND)
        assert (rows.events(since=before), rows.fresh(run.task).lease_until) == ([], now + LEASE)


class TestFence:
    """Whoever speaks for a run is the current one of its own task, or is refused and changes nothing."""

    @pytest.mark.parametrize("verb", SAID)
    def test_another_tasks_run(self, verb: Verb, now: datetime) -> None:
        run, other = rows.started(), rows.started()
        refusal = rows.unchanged(lambda: verb(run.task, by=as_run(other), now=now))
        assert (type(refusal), refusal.code) == (Forbidden, "forbidden")

    @pytest.mark.parametrize("verb", [*SAID, lifecycle.release])
    def test_a_run_that_was_superseded(self, verb: Verb, now: datetime) -> None:
        old = rows.pulled()
        lifecycle.release(old.task, by=ANNA, now=now)
        rows.pulled(old.task)
        refusal = rows.unchanged(lambda: verb(old.task, by=as_run(old), now=now))
        assert (type(refusal), refusal.code) == (Conflict, "superseded")

    @pytest.mark.parametrize("verb", SAID)
    @pytest.mark.parametrize("after", [lifecycle.archive, lifecycle.complete, lifecycle.block, lifecycle.release])
    def test_a_run_whose_task_a_person_has_taken(self, verb: Verb, after: Verb, now: datetime) -> None:
        run = rows.started()
        after(run.task, by=ANNA, now=now)
        assert rows.fresh_run(run).outcome in {Outcome.SUPERSEDED, Outcome.RELEASED}
        refusal = rows.unchanged(lambda: verb(run.task, by=as_run(run), now=now))
        assert (type(refusal), refusal.code) == (Conflict, "superseded")

    @pytest.mark.parametrize("name", ["", "{task}", "{task}/01", "{task}/1/1", "{task}/-1", "x{task}/1"])
    def test_a_name_that_is_nearly_right(self, name: str, now: datetime) -> None:
        run = rows.started()
        who = By("run:x", Via.RUN, "", name.format(task=run.task_id) or "?")
        assert isinstance(rows.unchanged(lambda: lifecycle.heartbeat(run.task, by=who, now=now)), Conflict | Forbidden)

    def test_a_token_is_made_for_a_run_and_dies_with_it(self, now: datetime) -> None:
        run = rows.started(now=now)
        issue_token(run, run.task, by=SWEEP, now=now)
        issue_token(run, run.task, by=SWEEP, now=now)
        assert list(ApiToken.objects.order_by("pk").values_list("run", "revoked_at")) == [
            (str(run), now), (str(run), None)
        ]  # fmt: skip
        lifecycle.complete(run.task, by=as_run(run), now=now + SECOND)
        assert not ApiToken.objects.filter(revoked_at=None).exists()
        with pytest.raises(Conflict, match="superseded"):
            issue_token(run, run.task, by=SWEEP, now=now)


class TestHeartbeat:
    def test_it_extends_the_lease_and_is_told_once_a_minute(self, now: datetime) -> None:
        run = rows.started(now=now)
        task = lifecycle.heartbeat(run.task, note=" Step 1 ", by=as_run(run), now=now + SECOND)
        assert (task.lease_until, rows.fresh(task).lease_until) == (now + SECOND + LEASE,) * 2
        assert rows.fresh(task).active_at == now + SECOND
        event = rows.last(task, "heartbeat")
        assert event.payload == {"note": "Step 1", "via": "run", "address": "127.0.0.1"}
        before = rows.head()
        lifecycle.heartbeat(task, note="Step 2", by=as_run(run), now=now + 60 * SECOND)
        assert rows.events(since=before) == []
        assert rows.fresh_run(run).heartbeat_at == now + 60 * SECOND
        lifecycle.heartbeat(task, by=as_run(run), now=now + 61 * SECOND)
        assert "note" not in rows.last(task, "heartbeat").payload

    def test_nobody_but_a_run_has_one(self, now: datetime) -> None:
        run = rows.started()
        refusal = rows.unchanged(lambda: lifecycle.heartbeat(run.task, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, "not-a-run")

    def test_what_was_spent_only_grows(self, now: datetime) -> None:
        run = rows.started()
        for cost, tokens in [("0.5", 10), ("0.25", 5), ("1.2345678", 20)]:
            lifecycle.heartbeat(run.task, cost_usd=Decimal(cost), tokens=tokens, by=as_run(run), now=now)
        run = rows.fresh_run(run)
        assert (run.cost_usd, run.tokens) == (Decimal("1.234567"), 20)

    @pytest.mark.parametrize(
        ("fields", "code"),
        [
            ({"cost_usd": Decimal(-1)}, "invalid-cost_usd"),
            ({"cost_usd": Decimal("NaN")}, "invalid-cost_usd"),
            ({"cost_usd": Decimal("Infinity")}, "invalid-cost_usd"),
            ({"cost_usd": Decimal(1_000_000)}, "invalid-cost_usd"),
            ({"tokens": -1}, "invalid-tokens"),
            ({"tokens": 10**15 + 1}, "invalid-tokens"),
            ({"note": "x" * 2001}, "note-too-long"),
        ],
    )
    def test_nonsense_is_refused(self, fields: dict[str, Any], code: str, now: datetime) -> None:
        run = rows.started()
        refusal = rows.unchanged(lambda: lifecycle.heartbeat(run.task, by=as_run(run), now=now, **fields))
        assert (type(refusal), refusal.code) == (Rejected, code)

    def test_the_dearest_there_is_fits_its_column(self, now: datetime) -> None:
        run = rows.started()
        lifecycle.heartbeat(run.task, cost_usd=Decimal("999999.9999999"), by=as_run(run), now=now)
        assert rows.fresh_run(run).cost_usd == Decimal("999999.999999")


class TestBudget:
    def test_beyond_it_a_person_decides(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(max_cost_usd=DOLLAR, now=now)
        task = lifecycle.heartbeat(run.task, cost_usd=DOLLAR, by=as_run(run), now=now)
        assert task.status == Status.RUNNING
        task = lifecycle.heartbeat(task, cost_usd=DOLLAR + Decimal("0.01"), by=as_run(run), now=now)
        reason = "over budget: 1.01 of 1.00 dollars are spent"
        assert (task.status, task.block_kind, task.block_reason) == (Status.BLOCKED, BlockKind.NEEDS_INPUT, reason)
        run = rows.fresh_run(run)
        assert (run.outcome, run.ended_at, task.blocked_by) == (Outcome.BLOCKED, now, "andon")
        event = rows.last(task, "blocked")
        assert (event.actor, event.run) == ("andon", str(run))
        # It did not say so itself: it is stopped at once.
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.STOPPING
        assert heard.told[-1].pk == run.process_id

    def test_all_attempts_count(self, now: datetime) -> None:
        first = rows.pulled(max_cost_usd=DOLLAR)
        lifecycle.heartbeat(first.task, cost_usd=Decimal("0.9"), by=as_run(first), now=now)
        lifecycle.release(first.task, by=ANNA, now=now)
        second = rows.pulled(first.task)
        task = lifecycle.heartbeat(second.task, cost_usd=Decimal("0.2"), by=as_run(second), now=now)
        assert task.status == Status.BLOCKED

    def test_who_spent_too_much_and_failed_is_not_started_again(self, now: datetime) -> None:
        run = rows.started(max_cost_usd=DOLLAR, now=now)
        Run.objects.filter(pk=run.pk).update(cost_usd=2)
        before = rows.head()
        task = rows.ended(run, 3, now=now)
        assert (task.status, task.block_kind, task.failures) == (Status.BLOCKED, BlockKind.NEEDS_INPUT, 1)
        assert rows.kinds(task, before) == ["crashed", "blocked"]

    def test_nor_who_met_a_quota(self, now: datetime) -> None:
        run = rows.started(max_cost_usd=DOLLAR, now=now)
        Run.objects.filter(pk=run.pk).update(cost_usd=2)
        assert rows.ended(run, 75, now=now).block_kind == BlockKind.NEEDS_INPUT

    def test_a_breaker_that_opens_is_enough(self, now: datetime) -> None:
        run = rows.started(max_cost_usd=DOLLAR, failure_limit=1, now=now)
        Run.objects.filter(pk=run.pk).update(cost_usd=2)
        assert rows.ended(run, 3, now=now).block_kind == BlockKind.BREAKER


class TestComplete:
    def test_by_its_run(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started(now=now)
        Task.objects.filter(pk=run.task_id).update(failures=2, violations=1, transient_blocks=1, last_error="x")
        done = now + SECOND
        task = lifecycle.complete(
            run.task, result="Painted.", summary="Red", cost_usd=DOLLAR, tokens=7, by=as_run(run), now=done
        )
        kept = rows.fresh(task)
        assert (kept.status, kept.result, kept.completed_at) == (Status.DONE, "Painted.", done)
        assert (kept.failures, kept.violations, kept.transient_blocks, kept.last_error) == (0, 0, 0, "")
        assert (kept.current_run, kept.lease_owner, kept.lease_until, kept.phase) == (None, "", None, "")
        run = rows.fresh_run(run)
        assert (run.outcome, run.ended_at, run.result, run.summary) == (Outcome.COMPLETED, done, "Painted.", "Red")
        assert (run.cost_usd, run.tokens, run.error) == (DOLLAR, 7, "")
        event = rows.last(task, "completed")
        assert (event.payload["result_len"], event.run, event.actor) == (8, str(run), f"run:{run}")
        # It may end by itself.
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.RUNNING
        assert heard.told == []

    @pytest.mark.parametrize("status", [Status.RUNNING, Status.READY, Status.BLOCKED, Status.REVIEW])
    def test_by_a_person(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        rows.commit()
        done = lifecycle.complete(task, result="By hand", by=ANNA, now=now)
        assert (done.status, rows.fresh(task).result, done.block_kind) == (Status.DONE, "By hand", "")
        rows.commit()
        if status == Status.RUNNING:
            run = rows.run_of(task)
            assert (run.outcome, rows.process_of(run).status) == (Outcome.SUPERSEDED, ProcessStatus.STOPPING)

    @pytest.mark.parametrize("status", [Status.TRIAGE, Status.TODO, Status.DONE, Status.ARCHIVED])
    def test_not_from_elsewhere(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        refusal = rows.unchanged(lambda: lifecycle.complete(task, by=ANNA, now=now))
        assert (refusal.code, refusal.extra) == ("illegal-transition", {"from": str(status), "to": "done"})

    def test_an_empty_result_leaves_the_one_there_was(self, now: datetime) -> None:
        task = rows.in_status(Status.DONE)
        lifecycle.reopen(task, by=ANNA, now=now)
        assert lifecycle.complete(task, by=ANNA, now=now).result == "All well"

    def test_children_are_promoted_with_it(self, now: datetime) -> None:
        parent = rows.task()
        children = [rows.task(parents=[parent.pk]) for _ in range(3)]
        before = rows.head()
        lifecycle.complete(parent, by=ANNA, now=now)
        assert {rows.fresh(child).status for child in children} == {Status.READY}
        assert [event.kind for event in rows.events(since=before)] == ["task.completed", *["task.ready"] * 3]

    def test_too_much_is_refused(self, now: datetime) -> None:
        run = rows.started()
        for fields in ({"result": "x" * 262_145}, {"summary": "x" * 262_145}, {"cost_usd": Decimal(-1)}):
            refusal = rows.unchanged(lambda f=fields: lifecycle.complete(run.task, by=as_run(run), now=now, **f))
            assert isinstance(refusal, Rejected)

    @pytest.mark.parametrize("how", [{"services_required": True}, {}])
    def test_while_services_are_to_be_seen_the_verdict_is_only_kept(self, how: dict[str, Any], now: datetime) -> None:
        run = rows.started(now=now, **how)
        said = now + SECOND
        task = lifecycle.complete(run.task, result="Up", has_sidecar=not how, by=as_run(run), now=said)
        kept = rows.fresh(task)
        assert (kept.status, kept.phase, kept.lease_until, kept.result) == (
            Status.RUNNING, Phase.SERVICES, said + LEASE, ""
        )  # fmt: skip
        run = rows.fresh_run(run)
        assert (run.verdict, run.reported_at, run.result, run.ended_at) == (Outcome.COMPLETED, said, "Up", None)
        event = rows.last(task, "reported")
        assert (event.payload["verdict"], event.run) == ("completed", str(run))
        before = rows.everything()
        again = lifecycle.complete(task, result="Other", by=as_run(run), now=said)
        assert again.phase == Phase.SERVICES
        assert rows.everything() == before

    def test_a_person_need_not_wait_for_services(self, now: datetime) -> None:
        run = rows.started(services_required=True)
        lifecycle.complete(run.task, by=as_run(run), now=now)
        assert lifecycle.complete(run.task, by=ANNA, now=now).status == Status.DONE
        assert rows.fresh_run(run).outcome == Outcome.SUPERSEDED

    def test_a_rollback_leaves_nothing(self, now: datetime) -> None:
        parent = rows.in_status(Status.RUNNING)
        rows.task(parents=[parent.pk])
        run = rows.run_of(parent)
        issue_token(run, run.task, by=SWEEP, now=now)

        def fails() -> None:
            with writing():
                lifecycle.complete(run.task, by=as_run(run), now=now)
                raise OSError("disk")

        assert isinstance(rows.unchanged(fails), OSError)
        assert ApiToken.objects.filter(revoked_at=None).count() == 1


class TestBlock:
    def test_a_person_is_asked(self, now: datetime, heard: rows.Heard) -> None:
        run = rows.started()
        task = lifecycle.block(run.task, " Which red? ", by=as_run(run), now=now)
        assert (task.status, task.block_kind, task.block_reason, task.blocked_by) == (
            Status.BLOCKED, BlockKind.NEEDS_INPUT, "Which red?", f"run:{run}"
        )  # fmt: skip
        run = rows.fresh_run(run)
        assert (run.outcome, run.summary) == (Outcome.BLOCKED, "Which red?")
        event = rows.last(task, "blocked")
        assert event.run == str(run)
        assert event.payload == {
            "reason": "Which red?", "block_kind": "needs_input", "via": "run", "address": "127.0.0.1"
        }  # fmt: skip
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.RUNNING

    def test_by_a_person_the_worker_is_stopped(self, now: datetime) -> None:
        run = rows.started()
        lifecycle.block(run.task, "Wait", by=ANNA, now=now)
        rows.commit()
        assert rows.fresh_run(run).outcome == Outcome.SUPERSEDED
        assert rows.process_of(run).status == ProcessStatus.STOPPING

    @pytest.mark.parametrize("kind", ["breaker", "moon", ""])
    def test_these_kinds_are_nobodys(self, kind: str, now: datetime) -> None:
        task = rows.task()
        refusal = rows.unchanged(lambda: lifecycle.block(task, kind=kind, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, "unknown-block-kind")

    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.READY, Status.RUNNING}))
    def test_not_from_elsewhere(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: lifecycle.block(task, by=ANNA, now=now)).code == "illegal-transition"

    def test_a_dependency_on_nothing(self, now: datetime) -> None:
        task = rows.task(parents=[rows.in_status(Status.DONE).pk])
        refusal = rows.unchanged(lambda: lifecycle.block(task, kind="dependency", by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Conflict, "no-open-parents")

    def test_a_dependency_lifts_itself_when_its_last_parent_closes(self, now: datetime, heard: rows.Heard) -> None:
        task = rows.blocked("dependency")
        [link] = task.parent_links.all()
        rows.commit()
        before, heard.freed = rows.head(), 0
        lifecycle.archive(link.parent, by=ANNA, now=now)
        assert (rows.fresh(task).status, rows.fresh(task).block_kind) == (Status.READY, "")
        assert rows.kinds(task, before) == ["unblocked"]
        rows.commit()
        assert heard.freed == 1

    def test_transient_blocks_wait_longer_each_time_and_then_need_a_person(self, now: datetime) -> None:
        task = rows.task()
        for wait in TRANSIENT_WAITS:
            lifecycle.block(task, "503", kind="transient", by=ANNA, now=now)
            kept = rows.fresh(task)
            assert (kept.block_kind, kept.unblock_at) == (BlockKind.TRANSIENT, now + wait)
            early = now + wait - SECOND
            refusal = rows.unchanged(lambda at=early: lifecycle.unblock(task, by=SWEEP, now=at))
            assert (type(refusal), refusal.code) == (Conflict, "not-due")
            now += wait
            assert lifecycle.unblock(task, by=SWEEP, now=now).status == Status.READY
            assert rows.fresh(task).unblock_at is None
        lifecycle.block(task, "503", kind="transient", by=ANNA, now=now)
        assert (rows.fresh(task).block_kind, rows.fresh(task).unblock_at) == (BlockKind.NEEDS_INPUT, None)
        assert rows.last(task, "blocked").payload["block_kind"] == "needs_input"
        with pytest.raises(Forbidden):
            lifecycle.unblock(task, by=SWEEP, now=now + timedelta(days=9))

    def test_a_person_or_a_completion_makes_the_waits_begin_anew(self, now: datetime) -> None:
        task = rows.blocked("transient")
        lifecycle.unblock(task, by=ANNA, now=now)
        assert rows.fresh(task).transient_blocks == 0


class TestReview:
    def test_a_run_hands_in(self, now: datetime) -> None:
        run = rows.started()
        task = lifecycle.request_review(run.task, summary="See the branch", by=as_run(run), now=now)
        assert (task.status, rows.fresh(task).current_run) == (Status.REVIEW, None)
        run = rows.fresh_run(run)
        assert (run.outcome, run.summary) == (Outcome.REVIEW_REQUESTED, "See the branch")
        event = rows.last(task, "review_requested")
        assert (event.payload["summary"], event.run) == ("See the branch", str(run))
        rows.commit()
        assert rows.process_of(run).status == ProcessStatus.RUNNING

    def test_a_person_takes_it_for_review(self, now: datetime) -> None:
        run = rows.started()
        lifecycle.request_review(run.task, by=ANNA, now=now)
        rows.commit()
        assert rows.fresh_run(run).outcome == Outcome.SUPERSEDED
        assert rows.process_of(run).status == ProcessStatus.STOPPING
        assert "summary" not in rows.last(run.task, "review_requested").payload

    @pytest.mark.parametrize("status", sorted(set(Status) - {Status.RUNNING}))
    def test_only_of_what_runs(self, status: Status, now: datetime) -> None:
        task = rows.in_status(status)
        assert rows.unchanged(lambda: lifecycle.request_review(task, by=ANNA, now=now)).code == "illegal-transition"
