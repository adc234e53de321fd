"""The machine of tasks, walked: every pair of a verb and a status is allowed or refused."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from kanban.lifecycle import moves
from kanban.models import Run, Task
from kanban.states import (
    CLOSED,
    COUNTED,
    HUMAN_BLOCKS,
    OPEN,
    OVER_BUDGET,
    TASK_MOVES,
    BlockKind,
    Outcome,
    Phase,
    Status,
    is_question,
)
from projects.errors import Conflict
from projects.events import writing
from tests.kanban import rows

LEASE: dict[str, Any] = {"current_run": 1, "lease_owner": "somebody"}


def needed(target: Status, now: datetime) -> dict[str, Any]:
    """Return the fields without which no task may be in a status."""
    if target == Status.RUNNING:
        return {**LEASE, "lease_until": now}
    return {"block_kind": BlockKind.CAPABILITY} if target == Status.BLOCKED else {}


@pytest.mark.django_db
@pytest.mark.parametrize("status", Status)
def test_every_pair_is_allowed_or_refused(status: Status, now: datetime) -> None:
    task = rows.in_status(status, now=now)
    for verb, (sources, target) in TASK_MOVES.items():
        mark = transaction.savepoint()
        later = now + timedelta(seconds=5)
        moved = rows.fresh(task)
        if status in sources:
            with writing():
                moves.step(moved, verb, now=later, **needed(target, later))
            kept = rows.fresh(task)
            assert (moved.status, kept.status, kept.since, kept.active_at) == (target, target, later, later), verb
            assert (kept.current_run is None) is (target != Status.RUNNING)
            assert (kept.block_kind == "") is (target != Status.BLOCKED)
        else:
            with pytest.raises(Conflict) as refusal, writing():
                moves.step(moved, verb, now=later, **needed(target, later))
            assert refusal.value.code == "illegal-transition"
            assert refusal.value.extra == {"from": str(status), "to": str(target)}
            assert rows.fresh(task).since == now
        transaction.savepoint_rollback(mark)


@pytest.mark.django_db
def test_who_comes_second_changes_nothing(now: datetime) -> None:
    task = rows.in_status(Status.READY, now=now)
    seen = rows.fresh(task)
    with writing():
        moves.step(task, "demote", now=now)
    with pytest.raises(Conflict, match="changed meanwhile"), writing():
        moves.step(seen, "block", now=now, block_kind=BlockKind.CAPABILITY)
    assert rows.fresh(task).status == Status.TODO


@pytest.mark.django_db
def test_another_run_of_a_running_task_is_another_state(now: datetime) -> None:
    task = rows.in_status(Status.RUNNING, now=now)
    seen = rows.fresh(task)
    Task.objects.filter(pk=task.pk).update(current_run=7)
    with pytest.raises(Conflict, match="changed meanwhile"), writing():
        moves.step(seen, "release", now=now)


@pytest.mark.django_db
def test_a_condition_that_does_not_hold_any_more_wins_nothing(now: datetime) -> None:
    from django.db.models import Q

    task = rows.in_status(Status.READY, now=now)
    with writing():
        assert moves.move([task], "demote", now=now, only=Q(assignee="another")) == 0
        assert moves.move([], "demote", now=now) == 0
    assert (task.status, rows.fresh(task).status) == (Status.READY, Status.READY)


@pytest.mark.pure
def test_the_sets_divide_the_statuses() -> None:
    assert set(Status) == CLOSED | OPEN
    assert not CLOSED & OPEN
    assert set(BlockKind) - HUMAN_BLOCKS == {BlockKind.DEPENDENCY, BlockKind.TRANSIENT}
    assert Outcome.RATE_LIMITED not in COUNTED
    assert all(target not in sources for sources, target in TASK_MOVES.values())


@pytest.mark.pure
def test_only_a_claim_leads_to_running_and_every_status_is_left_and_reached() -> None:
    assert [verb for verb, (_, target) in TASK_MOVES.items() if target == Status.RUNNING] == ["claim"]
    assert {target for _, target in TASK_MOVES.values()} == set(Status)
    assert {source for sources, _ in TASK_MOVES.values() for source in sources} == set(Status)


@pytest.mark.django_db
class TestConstraints:
    """What no code path may write, no code path can."""

    @pytest.mark.parametrize(
        "fields",
        [
            {"status": "running"},
            {"status": "running", **LEASE},
            {"status": "running", "current_run": 1, "lease_until": datetime(2026, 1, 1).astimezone()},
            {"current_run": 1},
            {"lease_owner": "x"},
            {"lease_until": datetime(2026, 1, 1).astimezone()},
            {"phase": Phase.SERVICES},
            {"status": "blocked"},
            {"block_kind": "breaker"},
            {"status": "asleep"},
            {"title": ""},
        ],
    )
    def test_of_a_task(self, fields: dict[str, Any]) -> None:
        task = rows.task()
        with pytest.raises(IntegrityError), transaction.atomic():
            Task.objects.filter(pk=task.pk).update(**fields)

    @pytest.mark.parametrize("fields", [{"outcome": "crashed"}, {"ended_at": datetime(2026, 1, 1).astimezone()}])
    def test_of_a_run(self, fields: dict[str, Any]) -> None:
        run = rows.pulled()
        with pytest.raises(IntegrityError), transaction.atomic():
            Run.objects.filter(pk=run.pk).update(**fields)

    def test_of_two_live_runs(self, now: datetime) -> None:
        run = rows.pulled()
        with pytest.raises(IntegrityError), transaction.atomic():
            Run.objects.create(task=run.task, number=2, owner="x", started_at=now)


@pytest.mark.parametrize("kind", ["", *BlockKind])
def test_a_question_is_what_somebody_can_answer(kind: str) -> None:
    assert is_question(kind, "Peat or coir?") == (kind in {BlockKind.NEEDS_INPUT, BlockKind.CAPABILITY})
    assert not is_question(kind, f"{OVER_BUDGET}: 2.00 of 1.00 dollars")
