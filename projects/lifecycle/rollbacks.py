"""Verbs on rollbacks: ask intend finish refuse undo force. None touches a repository; `projects.undoing` does."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from django.db import IntegrityError, transaction

from projects import queries
from projects.errors import Conflict, Rejected
from projects.events import By, record, writing
from projects.models import Project, Rollback
from projects.rollback.plan import Plan
from projects.states import ROLLBACK_MOVES, ROLLBACK_OPEN, RollbackStatus, Via

LONGEST_KEY = 200


def ask(project: Project, wanted: Mapping[str, Any], *, key: str = "", by: By, now: datetime) -> Rollback:
    """Have a project's last commit, or the one that `wanted` names, rolled back.

    The same idempotency key gives the row that it gave first. Refuses (Conflict) `rollback-in-progress`, and (Rejected)
    a key of more than 200 characters, and text that cannot be stored. Records rollback.asked.
    """
    if len(key) > LONGEST_KEY or storable(key, LONGEST_KEY) != key:
        raise Rejected("idempotency-key-invalid", f"A key is plain text of at most {LONGEST_KEY} characters.")
    if any(isinstance(text, str) and storable(text) != text for text in wanted.values()):
        raise Rejected("rollback-invalid", "commit, story and expected_head are plain text.")
    with writing():
        if key and (earlier := of_key(project, key)):
            return earlier
        if (other := queries.open_rollback(project)) is not None:
            if key and other.idempotency_key == key:
                return other
            raise _in_progress(project.slug)
        try:
            with transaction.atomic():
                row = Rollback.objects.create(
                    project=project.slug,
                    node=project.node,
                    path=project.path,
                    asked_by=by.name,
                    asked_via=by.via,
                    asked_from=by.address,
                    asked_at=now,
                    idempotency_key=key,
                    wanted=dict(wanted),
                )
        except IntegrityError:
            if key and (earlier := of_key(project, key)):
                return earlier
            raise _in_progress(project.slug) from None
        _tell(row, "asked", by=by, now=now, story=wanted.get("story") or None, commit=wanted.get("commit") or None)
    return row


def of_key(project: Project, key: str) -> Rollback | None:
    """Return the rollback that was asked for with this idempotency key."""
    return Rollback.objects.filter(project=project.slug, idempotency_key=key).first()


def release_key(row: Rollback) -> None:
    """Let the next rollback have the idempotency key of one that was refused. Records nothing."""
    Rollback.objects.filter(pk=row.pk, status=RollbackStatus.REFUSED).update(idempotency_key="")


def refuse_while_open(project: Project) -> None:
    """Raise Conflict `rollback-in-progress` while one of the project is open."""
    if queries.open_rollback(project) is not None:
        raise _in_progress(project.slug)


def intend(row: Rollback, plan: Plan, saved: Path, *, pushed: bool, files: int, now: datetime) -> None:
    """Commit what is about to be done, so that a crash can be understood. Records rollback.started."""
    fields = {
        "head": plan.head,
        "new": plan.new,
        "intent": {"plan": plan.to_json(), "saved": str(saved)},
        "backup_ref": plan.backup_ref,
        "reverted_commit": plan.commit,
        "subject_line": storable(plan.subject, 500),
        "story_key": storable(plan.story, 200),
        "method": "revert",
        "pushed": pushed,
        "files": files,
    }
    with writing():
        _move(row, "intend", **fields)
        _tell(row, "started", by=by_of(row), now=now, commit=plan.commit, story=plan.story, backup_ref=plan.backup_ref)


def finish(row: Rollback, *, detail: str = "", now: datetime) -> None:
    """Record that a commit is rolled back, and its story open again unless `detail` says why not.

    Records rollback.completed.
    """
    with writing():
        _move(row, "finish", ended_at=now, detail=storable(detail), extra={})
        _tell(
            row,
            "completed",
            by=by_of(row),
            now=now,
            commit=row.reverted_commit,
            story=row.story_reverted,
            new_commit=row.new,
            backup_ref=row.backup_ref,
            reason=detail or None,
        )


def refuse(row: Rollback, code: str, detail: str, extra: Mapping[str, Any] | None = None, *, now: datetime) -> None:
    """Record that nothing was done, and why. Records rollback.refused."""
    with writing():
        _move(row, "refuse", ended_at=now, code=code, detail=storable(detail), extra=dict(extra or {}))
        _tell(row, "refused", by=by_of(row), now=now, code=code, reason=row.detail)


def undo(row: Rollback, code: str, detail: str, extra: Mapping[str, Any] | None = None, *, now: datetime) -> None:
    """Record that it was begun and came to nothing. Records rollback.undone."""
    with writing():
        _move(row, "undo", ended_at=now, code=code, detail=storable(detail), extra=dict(extra or {}))
        _tell(row, "undone", by=by_of(row), now=now, code=code, reason=row.detail)


def force(row: Rollback, reason: str, *, by: By, now: datetime) -> None:
    """Write an open rollback off: the last resort of an administrator, who says why. Nothing on disk is touched.

    Refuses an empty reason (Rejected) and one that is over (Conflict). Records rollback.forced.
    """
    if not reason.strip():
        raise Rejected("reason-missing", "Say why: the reason is kept in the log.")
    with writing():
        _move(row, "force", ended_at=now, code="forced", detail=storable(reason.strip()), extra={"is_left": True})
        _tell(row, "forced", by=by, now=now, reason=row.detail)


def note_wait(row: Rollback, why: str, *, now: datetime) -> None:
    """Note why one that was begun cannot be ended yet; it is tried again later and later. Conflict when it is over."""
    tries = int(row.extra.get("tries", 0)) + 1
    again = now + min(timedelta(minutes=5), timedelta(seconds=5 * 2 ** min(tries - 1, 8)))
    extra = {"waits_for": storable(why, 500), "tries": tries, "again_at": again.isoformat()}
    if not Rollback.objects.filter(pk=row.pk, status__in=ROLLBACK_OPEN).update(extra=extra):
        raise Conflict("illegal-transition", f"{row} is over.")
    row.extra = extra


def by_of(row: Rollback) -> By:
    """Return who asked for it."""
    return By(row.asked_by, Via(row.asked_via), row.asked_from)


def storable(text: str, limit: int = 2000) -> str:
    """Return a text as every database takes it: without NUL and lone surrogates, cut."""
    return text.replace("\x00", "")[:limit].encode("utf-8", "replace").decode()


def _move(row: Rollback, verb: str, **fields: Any) -> None:
    sources, target = ROLLBACK_MOVES[verb]
    if not Rollback.objects.filter(pk=row.pk, status__in=sources).update(status=target, **fields):
        raise Conflict("illegal-transition", f"{row} cannot {verb} any more.")
    row.status = target
    for name, value in fields.items():
        setattr(row, name, value)


def _tell(row: Rollback, what: str, *, by: By, now: datetime, **payload: Any) -> None:
    record(
        f"rollback.{what}", f"project:{row.project}", by=by, now=now, project=row.project, rollback=row.pk, **payload
    )


def _in_progress(slug: str) -> Conflict:
    return Conflict("rollback-in-progress", f"A rollback of {slug} is under way. Wait until it is over.")
