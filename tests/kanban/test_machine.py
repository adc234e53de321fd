"""Anybody does anything with tasks in any order, workers die anywhere: what must hold, holds."""

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from hypothesis import HealthCheck, settings
from hypothesis import Phase as Stage
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from kanban import gate, lifecycle, sweeps
from kanban.lifecycle.moves import VERDICTS
from kanban.links import HAS_OPEN_PARENT
from kanban.models import LINGERING, Comment, Link, Profile, Run, Task
from kanban.states import FAILURE_LIMIT, VIOLATIONS_ALLOWED, BlockKind, Outcome, Phase, Reports, Status
from kanban.workers import issue_token
from projects.errors import DomainError
from projects.events import SWEEP, By
from projects.models import ApiToken, Event
from services.models import ManagedProcess, WorkerHost
from services.states import LIVE
from services.states import Status as ProcessStatus
from tests.kanban import rows
from tests.kanban.rows import ANNA, NODE, as_run

MAX_EXAMPLES = 20
STEPS = 40
EPOCH = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
NUMBER = some.integers(0, 5)

S = Status
ANY = frozenset(Status)
# Kind of an event -> from which statuses it tells a change, and to which (None: its payload says).
TOLD: dict[str, tuple[frozenset[Status], Status | None]] = {
    "ready": (frozenset({S.TODO}), S.READY),
    "claimed": (frozenset({S.READY}), S.RUNNING),
    **{
        kind: (frozenset({S.RUNNING}), S.READY)
        for kind in ("reclaimed", "crashed", "timed_out", "protocol_violation", "spawn_failed", "rate_limited")
    },
    "spawn_auto_blocked": (frozenset({S.RUNNING}), S.BLOCKED),
    # Beside what it gave up for, which alone would have been a step to ready.
    "gave_up": (frozenset({S.READY}), S.BLOCKED),
    "blocked": (frozenset({S.RUNNING, S.READY}), S.BLOCKED),
    "unblocked": (frozenset({S.BLOCKED}), None),
    "completed": (frozenset({S.RUNNING, S.READY, S.BLOCKED, S.REVIEW}), S.DONE),
    "review_requested": (frozenset({S.RUNNING}), S.REVIEW),
    "approved": (frozenset({S.REVIEW}), S.DONE),
    "sent_back": (frozenset({S.REVIEW}), S.READY),
    "archived": (ANY - {S.ARCHIVED}, S.ARCHIVED),
    "reopened": (frozenset({S.DONE, S.ARCHIVED}), None),
    "status": (ANY - {S.RUNNING}, None),
    "forced": (ANY, None),
}

Verb = Callable[..., Any]
VERBS: dict[str, Verb] = {
    "complete": partial(lifecycle.complete, result="Done"),
    "complete, a sidecar there": partial(lifecycle.complete, has_sidecar=True),
    **{f"block {kind}": partial(lifecycle.block, kind=kind) for kind in BlockKind},
    "review": lifecycle.request_review,
    "heartbeat": lifecycle.heartbeat,
    "heartbeat, dear": partial(lifecycle.heartbeat, cost_usd=Decimal(5)),
    "comment": partial(lifecycle.comment, body="Hm", author="Anna"),
    "unblock": lifecycle.unblock,
    "approve": lifecycle.approve,
    "send back": lifecycle.send_back,
    "archive": lifecycle.archive,
    "reopen": lifecycle.reopen,
    "release": lifecycle.release,
    "prioritise": partial(lifecycle.prioritise, priority=3),
    "give away": partial(lifecycle.assign, assignee="bruno"),
    "give": partial(lifecycle.assign, assignee="demo"),
    **{f"move to {to}": partial(lifecycle.move_to, target=to) for to in (S.TRIAGE, S.TODO, S.READY)},
    **{f"force to {to}": partial(lifecycle.force, target=to, reason="stuck") for to in (S.READY, S.BLOCKED)},
    **{f"patch to {to}": partial(lifecycle.patch, status=to, title="New", assignee="demo") for to in Status},
    "pull": lifecycle.claim,
}
# Only these are a sweep's own to call, and of a run's token the fence lets no more through.
BY_SWEEP = ("unblock",)
SAID = ("complete", "complete, a sidecar there", "review", "heartbeat", "heartbeat, dear", "comment", "release")
BY_RUN = (*SAID, *(f"block {kind}" for kind in BlockKind))


class Workshop(RuleBasedStateMachine):
    begin_anew: Callable[["Workshop"], rows.Heard]

    @initialize()
    def begin(self) -> None:
        self.now = EPOCH
        self.heard = self.begin_anew()
        rows.tick(self.now)
        rows.profile("demo", concurrency=3)
        rows.profile("agent", argv=["agent"], concurrency=2, reports=Reports.ENVELOPE, failure_limit=3)
        for assignee in ("demo", "agent"):
            self.create("demo" if assignee == "demo" else "agent", [], False, None, False, False)

    def verb(self, act: Callable[[], Any]) -> Any:
        """Have somebody do something; a refusal leaves everything as it was."""
        before = rows.everything()
        try:
            found = act()
        except DomainError:
            assert rows.everything() == before
            return None
        rows.commit()
        return found

    def wait_until(self, moment: datetime) -> None:
        self.now = moment
        WorkerHost.objects.update(tick_at=moment)

    def task(self, which: int) -> Task:
        found = list(Task.objects.order_by("created_at", "pk"))
        return found[which % len(found)]

    def process(self, which: int, *statuses: str) -> Run | None:
        found = list(Run.objects.filter(process__status__in=statuses).order_by("pk"))
        return found[which % len(found)] if found else None

    # What people and programs do.

    @rule(
        assignee=some.sampled_from(["demo", "agent"]),
        parents=some.lists(NUMBER, max_size=2),
        triage=some.booleans(),
        limit=some.sampled_from([None, 1, 2]),
        is_costly=some.booleans(),
        needs=some.booleans(),
    )
    def create(
        self, assignee: str, parents: list[int], triage: bool, limit: int | None, is_costly: bool, needs: bool
    ) -> None:
        if Task.objects.count() >= 5:
            return
        about: dict[str, Any] = {"failure_limit": limit, "services_required": needs, "idempotency_key": ""}
        if is_costly:
            about |= {"max_cost_usd": Decimal(8), "max_runtime_s": 600, "idempotency_key": "k"}
        keys = [self.task(each).pk for each in parents]
        self.verb(lambda: rows.task(assignee=assignee, parents=keys, triage=triage, now=self.now, **about))

    @rule(which=NUMBER, name=some.sampled_from(sorted(VERBS)))
    def person(self, which: int, name: str) -> None:
        self.verb(lambda: VERBS[name](self.task(which), by=ANNA, now=self.now))

    @rule(which=NUMBER, name=some.sampled_from(BY_SWEEP))
    def sweep(self, which: int, name: str) -> None:
        self.verb(lambda: VERBS[name](self.task(which), by=SWEEP, now=self.now))

    @rule(which=NUMBER, name=some.sampled_from(BY_RUN))
    def current_run(self, which: int, name: str) -> None:
        runs = list(Run.objects.filter(ended_at=None).select_related("task").order_by("pk"))
        if runs:
            run = runs[which % len(runs)]
            self.verb(lambda: VERBS[name](run.task, by=as_run(run), now=self.now))

    @rule(which=NUMBER, whose=NUMBER, name=some.sampled_from(BY_RUN))
    def stale_or_strange_run(self, which: int, whose: int, name: str) -> None:
        """Nobody but the current run of a task speaks for it."""
        task = self.task(which)
        known = list(Run.objects.order_by("pk"))
        others = [str(run) for run in known if str(run) != task.run_name] or ["t_00000000/1"]
        who = By("run:x", "run", "", others[whose % len(others)])
        before = rows.everything()
        with pytest.raises(DomainError):
            VERBS[name](task, by=who, now=self.now)
        assert rows.everything() == before

    @rule(parent=NUMBER, child=NUMBER, adds=some.booleans())
    def edges(self, parent: int, child: int, adds: bool) -> None:
        verb = lifecycle.link if adds else lifecycle.unlink
        self.verb(lambda: verb(self.task(parent).pk, self.task(child).pk, by=ANNA, now=self.now))

    @rule(name=some.sampled_from(["demo", "agent"]), on=some.booleans())
    def profile(self, name: str, on: bool) -> None:
        verb = lifecycle.resume if on else lifecycle.pause
        self.verb(lambda: verb(Profile.objects.get(name=name), by=ANNA, now=self.now))

    # What happens by itself.

    @rule(limit=some.integers(1, 4), fails=some.sampled_from([False, False, False, True]), is_told=some.booleans())
    def dispatch(self, limit: int, fails: bool, is_told: bool) -> None:
        self.verb(lambda: sweeps.run_pass([NODE], limit=limit, by=SWEEP, now=self.now))
        if is_told:
            self.start(fails)

    @rule(fails=some.booleans())
    def start(self, fails: bool) -> None:
        """Have the worker start what is to be started."""
        for run in Run.objects.filter(process__status=ProcessStatus.STARTING, process__pid=None).select_related("task"):
            if fails:
                self.verb(partial(rows.not_started, run, now=self.now))
                continue
            self.verb(partial(issue_token, run, run.task, by=SWEEP, now=self.now))
            self.verb(partial(rows.spawned, run, now=self.now))

    @rule(which=NUMBER, code=some.sampled_from([0, 0, 3, 3, 75, -9, None]))
    def end(self, which: int, code: int | None) -> None:
        run = self.process(which, ProcessStatus.RUNNING, ProcessStatus.STOPPING)
        if run is not None:
            self.verb(lambda: rows.ended(run, code, now=self.now))

    @rule(which=NUMBER)
    def somebody_stops_a_worker(self, which: int) -> None:
        run = self.process(which, ProcessStatus.RUNNING)
        if run is not None:
            self.verb(lambda: rows.stopped(run, now=self.now))

    @rule()
    def look_at_what_was_left(self) -> None:
        for pk in self.heard.left:
            self.verb(partial(gate.settle, pk))
        self.heard.left.clear()

    @rule(seconds=some.sampled_from([1, 11, 61, 301, 901, 4000]))
    def wait(self, seconds: int) -> None:
        self.wait_until(self.now + timedelta(seconds=seconds))
        self.sweeps()

    def sweeps(self) -> None:
        for each in (
            sweeps.release_expired,
            sweeps.detect_crashed,
            sweeps.time_out,
            sweeps.promote_ready,
            sweeps.lift_blocks,
            sweeps.stop_superseded,
        ):
            each(now=self.now)
            rows.commit()
        sweeps.settle_left()

    # What always holds, looked at after each step.

    @invariant()
    def holds(self) -> None:
        live = {run.task_id: run for run in Run.objects.filter(ended_at=None)}
        lingering = Counter(Run.objects.filter(LINGERING).values_list("task_id", flat=True))
        assert all(count == 1 for count in lingering.values()), "two workers of one task"
        told: dict[str, list[Event]] = {}
        for event in Event.objects.filter(subject__startswith="task:").order_by("pk"):
            told.setdefault(event.subject, []).append(event)
        for task in Task.objects.annotate(waits=HAS_OPEN_PARENT):
            run = live.pop(task.pk, None)
            assert (task.status == S.RUNNING) == (task.lease_until is not None) == (run is not None)
            if run is not None:
                assert (run.number, run.owner) == (task.current_run, task.lease_owner)
                assert (task.phase == Phase.SERVICES) == (run.verdict == Outcome.COMPLETED)
            if task.status == S.READY:
                assert task.parents_waived or not task.waits
            if task.status == S.TODO:
                assert task.held or task.waits
            if task.block_kind == BlockKind.DEPENDENCY:
                assert task.waits
            assert (task.unblock_at is not None) == (task.block_kind == BlockKind.TRANSIENT)
            assert (task.completed_at is not None) <= (task.status in {S.DONE, S.ARCHIVED})
            if task.status in {S.READY, S.RUNNING, S.TODO, S.REVIEW}:
                assert task.failures < (task.failure_limit or FAILURE_LIMIT)
                assert task.violations < VIOLATIONS_ALLOWED
            assert folded(told[task.subject]) == task.status
        assert live == {}, "of tasks that do not run"
        for run in Run.objects.filter(ended_at__isnull=False).exclude(outcome__in=VERDICTS).select_related("process"):
            assert run.process is None or run.process.status not in {ProcessStatus.RUNNING, ProcessStatus.STARTING}
        for name in ApiToken.objects.filter(revoked_at=None).values_list("run", flat=True):
            task_id, _, number = name.rpartition("/")
            assert Run.objects.filter(task=task_id, number=number, ended_at=None).exists(), "a token outlived its run"

    def teardown(self) -> None:
        """However it was left: once its workers are gone, no task is stuck in what nobody will end."""
        if not hasattr(self, "now"):
            return
        for _ in range(12):
            for run in Run.objects.filter(process__status__in=sorted(LIVE)):
                self.verb(partial(rows.ended if run.process.pid else rows.stopped, run, now=self.now))
            self.look_at_what_was_left()
            self.wait_until(self.now + timedelta(seconds=901))
            self.sweeps()
            if not Run.objects.filter(ended_at=None).exists():
                break
        assert list(Run.objects.filter(ended_at=None)) == []
        self.holds()


def folded(events: list[Event]) -> Status:
    """Return the status that a task's events tell, each of them from one that it can follow on."""
    assert events[0].kind == "task.created"
    status = Status(events[0].payload["status"])
    for event in events[1:]:
        kind = event.kind.removeprefix("task.")
        if kind in TOLD:
            sources, target = TOLD[kind]
            after = target or Status(event.payload["status"])
            assert status in sources, (status, kind)
            assert status != after, (status, kind)
            status = after
    return status


def test_what_must_hold_holds(db: None, home: Path, monkeypatch: pytest.MonkeyPatch, heard: rows.Heard) -> None:
    monkeypatch.setattr(gate, "LOG_FOLDER", home)
    clock = [EPOCH]
    monkeypatch.setattr("django.utils.timezone.now", lambda: clock[0])

    def begin_anew(machine: Workshop) -> rows.Heard:
        for model in (Link, Comment, Run, Task, ManagedProcess, WorkerHost, ApiToken, Profile, Event):
            model.objects.all().delete()
        connection.run_on_commit.clear()
        heard.left.clear()
        heard.told.clear()
        return heard

    class Case(Workshop):
        def __setattr__(self, name: str, value: Any) -> None:
            if name == "now":
                clock[0] = value
            super().__setattr__(name, value)

    Case.begin_anew = begin_anew
    run_state_machine_as_test(
        Case,
        settings=settings(
            max_examples=MAX_EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Stage.generate, Stage.shrink],
            database=None,
        ),
    )
