"""Verbs on profiles and the dispatcher's switch: trip pause resume note_found pause_dispatch resume_dispatch."""

from collections.abc import Collection
from datetime import datetime
from typing import Any

from kanban.lifecycle.moves import free, move, storable, tell
from kanban.lifecycle.promotion import settle
from kanban.models import Board, Profile, Run, Task
from kanban.states import ALIKE, ALIKE_WITHIN, COUNTED, BlockKind, Outcome, Status
from projects.errors import Conflict
from projects.events import SWEEP, By, record, writing


def trip(run_pk: int, now: datetime) -> bool:
    """Pause a profile when this failure is the third task's within a minute with one error; says whether it did.

    Not when another of its tasks came out well since the first of them. The failures that they had in common are taken
    back: the agent is to blame, not the tasks. Records profile.paused, and task.edited of each.
    """
    run = Run.objects.get(pk=run_pk)
    with writing():
        profile = Profile.objects.select_for_update().filter(name=run.profile, paused_at=None).first()
        if profile is None or not run.signature:
            return False
        recent = Run.objects.filter(profile=run.profile, ended_at__gt=now - ALIKE_WITHIN)
        alike = recent.filter(signature=run.signature, outcome__in=sorted(COUNTED))
        ends = list(alike.order_by("ended_at").values_list("task_id", "outcome", "ended_at"))
        tasks = sorted({task_id for task_id, *_ in ends})
        # What came out well before says nothing of an agent that is broken now.
        if len(tasks) < ALIKE or recent.filter(outcome=Outcome.COMPLETED, ended_at__gt=ends[0][2]).exists():
            return False
        reason = f"{len(tasks)} tasks failed alike: {run.error.partition(chr(10))[0]}"
        _pause(profile, reason, by=SWEEP, now=now, tasks=tasks)
        mine = Task.objects.select_for_update().filter(pk__in=tasks, failures__gt=0).order_by("pk")
        for task in mine.defer("body", "result"):
            if task.block_kind == BlockKind.BREAKER:
                Task.objects.filter(pk=task.pk).update(blocked_by=profile.subject)
                changed = ["blocked_by"]
            else:
                _forgive(task, [outcome for task_id, outcome, _ in ends if task_id == task.pk])
                changed = ["failures", "violations"]
            tell(task, "edited", by=SWEEP, now=now, changed=changed, reason=f"{profile.name} is paused")
    return True


def _forgive(task: Task, outcomes: Collection[str]) -> None:
    """Take back these failures of a task, which may have been claimed again since."""
    violations = sum(outcome == Outcome.PROTOCOL_VIOLATION for outcome in outcomes)
    Task.objects.filter(pk=task.pk).update(
        failures=max(0, task.failures - len(outcomes)), violations=max(0, task.violations - violations)
    )


def pause(profile: Profile, *, reason: str = "", by: By, now: datetime) -> Profile:
    """Start no more workers of a profile; those at work go on. Conflict when it is paused. Records profile.paused."""
    with writing():
        profile = Profile.objects.select_for_update().get(pk=profile.pk)
        if profile.paused_at is not None:
            raise Conflict("already-paused", f"{profile.name} is paused already.")
        _pause(profile, reason.strip(), by=by, now=now)
    return profile


def _pause(profile: Profile, reason: str, *, by: By, now: datetime, tasks: Collection[str] = ()) -> None:
    profile.paused_at, profile.paused_by, profile.paused_reason = now, by.name, storable(reason)
    profile.save(update_fields=["paused_at", "paused_by", "paused_reason"])
    told: dict[str, Any] = {"reason": profile.paused_reason or None, "tasks": list(tasks) or None}
    record("profile.paused", profile.subject, by=by, now=now, **told)


def resume(profile: Profile, *, by: By, now: datetime) -> Profile:
    """Start workers of a profile again, and unblock what its pause had blocked. Conflict when it is not paused.

    Records profile.resumed and task.unblocked.
    """
    with writing():
        profile = Profile.objects.select_for_update().get(pk=profile.pk)
        if profile.paused_at is None:
            raise Conflict("not-paused", f"{profile.name} is not paused.")
        profile.paused_at, profile.paused_by, profile.paused_reason = None, "", ""
        profile.save(update_fields=["paused_at", "paused_by", "paused_reason"])
        record("profile.resumed", profile.subject, by=by, now=now)
        tripped = Task.objects.filter(status=Status.BLOCKED, blocked_by=profile.subject).order_by("pk")
        tasks = list(tripped.select_for_update().defer("body", "result"))
        move(tasks, "unblock", now=now, failures=0, violations=0)
        for task in tasks:
            tell(task, "unblocked", by=by, now=now, status=task.status, block_kind=BlockKind.BREAKER)
        settle(Task.objects.filter(pk__in=[task.pk for task in tasks]), by=by, now=now)
        free()
    return profile


def note_found(profile: Profile, node: str, *, is_there: bool, by: By, now: datetime) -> None:
    """Note whether a profile's executable is on a node. Records profile.found, profile.gone when that changed."""
    with writing():
        profile = Profile.objects.select_for_update().get(pk=profile.pk)
        nodes = set(profile.found_on)
        if (node in nodes) == is_there:
            return
        profile.found_on = sorted(nodes | {node} if is_there else nodes - {node})
        profile.save(update_fields=["found_on"])
        record("profile.found" if is_there else "profile.gone", profile.subject, by=by, now=now, node=node)


def pause_dispatch(*, by: By, now: datetime) -> None:
    """Stop the periodic pass, on every host; POST /dispatch still runs one. Records board.paused."""
    with writing():
        board = the_board()
        if board.paused_at is not None:
            raise Conflict("already-paused", "The dispatcher is paused already.")
        Board.objects.filter(pk=board.pk).update(paused_at=now, paused_by=by.name)
        record("board.paused", "board:dispatch", by=by, now=now)


def resume_dispatch(*, by: By, now: datetime) -> None:
    """Let the periodic pass run again. Records board.resumed."""
    with writing():
        board = the_board()
        if board.paused_at is None:
            raise Conflict("not-paused", "The dispatcher is not paused.")
        Board.objects.filter(pk=board.pk).update(paused_at=None, paused_by="")
        record("board.resumed", "board:dispatch", by=by, now=now)
        free()


def the_board() -> Board:
    """Return the one row of the board, made when it is not there yet."""
    return Board.objects.get_or_create(id=1)[0]
