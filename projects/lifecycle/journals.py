"""What happens to a journal as a whole: another file has its name, it is gone, it was deleted, it was mended."""

from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db.models import QuerySet

from projects.events import By, record, writing
from projects.models import JournalFile, JournalRecord, LoopRun, Tombstone, Turn
from projects.states import RECORD_MOVES, JournalFamily, JournalState


def supersede(file: JournalFile, *, by: By, now: datetime) -> JournalFile:
    """Begin a new generation of a path whose file is not the one that was read; returns its row.

    The records of the old one stay, marked superseded; its projections go. Does nothing, and returns what stands there,
    when somebody else was first. Records journal.rewritten. Inside `writing()` or alone.
    """
    with writing():
        won = JournalFile.objects.filter(pk=file.pk).exclude(state=JournalState.SUPERSEDED)
        if not won.update(state=JournalState.SUPERSEDED):
            return JournalFile.objects.filter(node=file.node, root=file.root, relpath=file.relpath).latest("generation")
        _move(JournalRecord.objects.filter(file=file), "supersede")
        Turn.objects.filter(file=file).delete()
        LoopRun.objects.filter(file=file).delete()
        fresh = JournalFile.objects.create(
            node=file.node,
            family=file.family,
            root=file.root,
            relpath=file.relpath,
            name=file.name,
            generation=file.generation + 1,
            found_at=now,
        )
        project = file.name if file.family == JournalFamily.HISTORY else ""
        record(
            "journal.rewritten",
            file.subject,
            by=by,
            now=now,
            project=project,
            generation=fresh.generation,
            lines=file.committed_line,
        )
    return fresh


def lose(file: JournalFile, state: JournalState, error: str, *, by: By, now: datetime) -> bool:
    """Note that a journal is missing, or cannot be read and why; its records are kept. Says whether that was new.

    Records journal.missing or journal.unreadable.
    """
    with writing():
        rows = JournalFile.objects.filter(pk=file.pk).exclude(state__in=[state, JournalState.SUPERSEDED])
        if not rows.update(state=state, last_error=error[:300], mark=""):
            return False
        project = file.name if file.family == JournalFamily.HISTORY else ""
        record(f"journal.{state}", file.subject, by=by, now=now, project=project, reason=error[:300] or None)
    return True


def look_again(files: QuerySet[JournalFile]) -> int:
    """Have the next look open some files although they seem as they were; returns how many. Tells nobody."""
    return files.exclude(state=JournalState.SUPERSEDED).update(mark="")


def bury(root: Path, session_id: str, *, by: By, now: datetime) -> Tombstone:
    """Delete what is known of a session and leave a tombstone; its file goes next, by whoever holds it.

    Asked again it changes nothing. Records session.deleted.
    """
    with writing():
        stone, is_new = Tombstone.objects.get_or_create(
            node=settings.ANDON_NODE,
            root=str(root),
            session_id=session_id,
            defaults={"deleted_by": by.name, "deleted_at": now},
        )
        files = JournalFile.objects.filter(family=JournalFamily.TURNS, root=str(root), name=session_id)
        files.filter(node=settings.ANDON_NODE).delete()
        if is_new:
            record("session.deleted", f"session:{session_id}", by=by, now=now)
    return stone


def finish_burial(stone: Tombstone, *, now: datetime) -> None:
    """Note that the file of a deleted session is gone."""
    Tombstone.objects.filter(pk=stone.pk, buried_at=None).update(buried_at=now)


def tell_recovery(added: int, sessions: int, failed: list[str], *, by: By, now: datetime) -> None:
    """Record journal.recovered: how many turns of how many sessions were called interrupted, and where it failed."""
    with writing():
        record(
            "journal.recovered", "session:", by=by, now=now, added=added, sessions=sessions, failed=failed[:20] or None
        )


def _move(records: QuerySet[JournalRecord], verb: str) -> int:
    sources, target = RECORD_MOVES[verb]
    return records.filter(status__in=sorted(sources)).update(status=target)
