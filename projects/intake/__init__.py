"""Bring journals into the database: every line once, whoever reads, whenever a process dies (spec/journal.md 3).

The watcher only triggers; `rescan` needs no memory and is what is correct. A line is read exactly once: the place up
to which a file was read moves by compare-and-swap in the transaction that writes the lines and what follows from them.
"""

import contextlib
import logging
import os
from collections import defaultdict
from collections.abc import Callable
from datetime import datetime
from threading import Lock
from typing import Any, NamedTuple

from django.conf import settings
from django.db import IntegrityError
from django.utils import timezone

from projects import history, journal
from projects.events import SWEEP, By, record, writing
from projects.intake import places, runs, tables, turns
from projects.intake.batches import Batch, facts, fingerprints, is_same, mark_of, read_batch
from projects.intake.places import Place
from projects.journal.deriving import KNOWN
from projects.lifecycle import journals as lifecycle
from projects.lines import Line, escaped
from projects.models import JournalFile, JournalRecord, Tombstone
from projects.ralph.text import clean, storable
from projects.states import JournalFamily, JournalState, RecordStatus

__all__ = ["Counts", "look", "notice", "places", "rescan"]

log = logging.getLogger("andon.intake")
# Of the threads of one process one reads a file at a time; of processes the swap lets one win.
_locks: dict[tuple[str, str], Lock] = defaultdict(Lock)


class Counts(NamedTuple):
    """What a rescan met: files, lines that were new, files that are gone, files that could not be taken in."""

    files: int
    lines: int
    missing: int
    failed: int


def rescan(*, now: datetime) -> Counts:
    """Compare all journals of this node with their rows; one that fails is logged and does not stop the rest."""
    rows = JournalFile.objects.filter(node=settings.ANDON_NODE).exclude(state=JournalState.SUPERSEDED)
    known = {(row.root, row.relpath): row for row in rows}
    deleted = set(Tombstone.objects.filter(node=settings.ANDON_NODE).values_list("root", "session_id"))
    files = added = failed = missing = 0
    for place in places.found():
        files += 1
        row = known.pop(place.key, None)
        if (place.root, place.name) in deleted and place.family == JournalFamily.TURNS:
            if row is not None:
                # Taken in by whoever began before its deletion was committed.
                JournalFile.objects.filter(pk=row.pk).delete()
            continue
        try:
            if row is None or not _is_as_it_was(place, row):
                added += look(place, now=now)
        except Exception:
            failed += 1
            log.exception("%s was not taken in", place.path)
    for row in (row for row in known.values() if row.state != JournalState.MISSING):
        missing += lifecycle.lose(row, JournalState.MISSING, "", by=SWEEP, now=now)
    return Counts(files, added, missing, failed)


def look(place: Place, *, by: By = SWEEP, now: datetime) -> int:
    """Take in all whole lines of one file that are new; returns how many. What lies on disk raises nothing.

    Of a session that was deleted nothing is taken in, whoever has made its file again.
    """
    with _locks[place.key]:
        try:
            descriptor = place.open()
        except FileNotFoundError:
            if (row := _row(place)) is not None:
                lifecycle.lose(row, JournalState.MISSING, "", by=by, now=now)
            return 0
        except OSError as error:
            if (row := _ready(place, now)) is not None:
                lifecycle.lose(row, JournalState.UNREADABLE, _why(error), by=by, now=now)
            return 0
        try:
            return _take_in(place, descriptor, by, now)
        finally:
            os.close(descriptor)


def notice(path: str) -> None:
    """Have the second pool take in a file that has changed, when it is a journal.

    Whose it is is asked there: the thread that watches has no connection that anybody closes.
    """
    # The queue's file is made at import; commands that need none load this too.
    from projects import jobs

    if path.endswith(".jsonl"):
        jobs.submit(f"intake {path}", _look, path)


def _look(path: str) -> int:
    place = places.place_of(path)
    return 0 if place is None else look(place, now=timezone.now())


def _take_in(place: Place, descriptor: int, by: By, now: datetime) -> int:
    row, added = _ready(place, now), 0
    # Without a row it was deleted, maybe while we read; or somebody else has read on, and we go on from there.
    while row is not None:
        # Asked before reading: what is appended meanwhile makes it another.
        status = os.fstat(descriptor)
        if not is_same(descriptor, row):
            row = _renewed(place, row, by, now)
            continue
        batch = read_batch(descriptor, row.committed_offset, row.committed_line, _check(row))
        mark = "" if batch.more else mark_of(status)
        if batch.offset == row.committed_offset:
            _settle(row, mark, status)
            return added
        prints = fingerprints(descriptor, batch.offset)
        if not is_same(descriptor, row) or not batch.agrees(prints):
            # Another file by now: its prints beside these lines would vouch for lines that nobody read. To the next
            # look it is one; where somebody writes it anew all the time, this one would never end.
            return added
        if _commit(row, batch, {**facts(status), **prints, "mark": mark}, by, now):
            added += len(batch.lines)
        row = _row(place)
    return added


def _renewed(place: Place, row: JournalFile, by: By, now: datetime) -> JournalFile | None:
    """Return the next generation of a row; None when it was deleted meanwhile."""
    try:
        return lifecycle.supersede(row, by=by, now=now)
    except JournalFile.DoesNotExist:
        return None


def _commit(row: JournalFile, batch: Batch, columns: dict[str, Any], by: By, now: datetime) -> bool:
    """Write one batch and what follows from it in one transaction; False when the place had moved."""
    with writing():
        there = JournalFile.objects.filter(pk=row.pk, committed_offset=row.committed_offset)
        bad = sum(line.value is None for line in batch.lines)
        moved = there.exclude(state=JournalState.SUPERSEDED).update(
            committed_offset=batch.offset,
            committed_line=batch.line,
            malformed=row.malformed + bad,
            state=JournalState.READ,
            last_error="",
            **columns,
        )
        if not moved:
            return False
        events = [(line.value, line.number) for line in batch.lines if line.value is not None]
        if row.family == JournalFamily.TURNS:
            keys = [turns.key_of(event) for event, _ in events]
            tables.insert(JournalRecord, _records(row, batch.lines, keys, turns.event_time, _turn_kind))
            turns.project(row, events, keys, by=by, now=now)
        else:
            keys = runs.project(row, events)
            tables.insert(JournalRecord, _records(row, batch.lines, keys, _history_time, _history_kind))
            if not batch.more:
                subject = f"project:{row.name}"
                record("project.changed", subject, by=by, now=now, project=row.name, changed=["history"])
    return True


def _records(
    row: JournalFile,
    lines: list[Line],
    keys: list[str],
    time_of: Callable[[dict[str, Any]], tuple[datetime | None, str]],
    kind_of: Callable[[dict[str, Any]], str],
) -> list[list[Any]]:
    """Return the rows of a batch in the order of JournalRecord's columns; `keys` are those of its events."""
    rows, key = [], iter(keys)
    for line in lines:
        if line.value is None:
            said: list[Any] = [RecordStatus.MALFORMED.value, line.problem, "", None, "", escaped(line.text)]
        else:
            at, raw = time_of(line.value)
            # Valid UTF-8 without NUL, and so what any database holds.
            said = [RecordStatus.EVENT.value, kind_of(line.value), next(key), at, raw, line.text.decode()]
        rows.append([row.pk, line.offset, line.length, line.number, line.sha256, *said])
    return rows


def _turn_kind(event: dict[str, Any]) -> str:
    said = event["event"]
    return said if said in KNOWN else clean(said.strip(), 64)


def _history_kind(event: dict[str, Any]) -> str:
    return clean(event["type"]["kind"], 64)


def _history_time(event: dict[str, Any]) -> tuple[datetime | None, str]:
    said = event.get("ts")
    return history.time_of(said), "" if said is None else clean(str(storable(said)), 64)


def _check(row: JournalFile) -> Callable[[dict[str, Any]], str]:
    return journal.check if row.family == JournalFamily.TURNS else history.check


def _settle(row: JournalFile, mark: str, status: os.stat_result) -> None:
    """Note that there is nothing new, so that the next look need not open the file."""
    if (row.mark, row.state) == (mark, JournalState.READ):
        return
    there = JournalFile.objects.filter(pk=row.pk, committed_offset=row.committed_offset)
    there.exclude(state=JournalState.SUPERSEDED).update(
        mark=mark, state=JournalState.READ, last_error="", **facts(status)
    )


def _is_as_it_was(place: Place, row: JournalFile) -> bool:
    with contextlib.suppress(OSError):
        return bool(row.mark) and row.mark == mark_of(place.stat())
    return False


def _row(place: Place) -> JournalFile | None:
    rows = JournalFile.objects.filter(node=settings.ANDON_NODE, root=place.root, relpath=place.relpath)
    return rows.exclude(state=JournalState.SUPERSEDED).first()


def _ready(place: Place, now: datetime) -> JournalFile | None:
    """Return the current row of a place, made when there is none; None for that of a deleted session."""
    if (row := _row(place)) is not None:
        return row
    with contextlib.suppress(IntegrityError), writing():
        if place.family == JournalFamily.TURNS and _is_deleted(place):
            return None
        return JournalFile.objects.create(
            node=settings.ANDON_NODE,
            family=place.family,
            root=place.root,
            relpath=place.relpath,
            name=place.name,
            found_at=now,
        )
    # Another made it first; when it is gone again, it was deleted.
    return _row(place)


def _is_deleted(place: Place) -> bool:
    stones = Tombstone.objects.filter(node=settings.ANDON_NODE, root=place.root, session_id=place.name)
    return stones.exists()


def _why(error: OSError) -> str:
    return clean(error.strerror or str(error), 300)
