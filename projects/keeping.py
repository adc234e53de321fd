"""Keep journals: append, delete, recover. Files are touched between two transactions, never inside one."""

import logging
import os
from collections.abc import Callable, Collection, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from django.conf import settings

from projects import history, intake, journal
from projects.errors import Conflict, DomainError, Missing, Rejected, Unavailable, Unprocessable
from projects.events import SWEEP, By
from projects.intake.places import Place, history_place, session_place
from projects.lifecycle import journals as lifecycle
from projects.lines import make_directory
from projects.models import JournalFile, Project, Tombstone
from projects.states import JournalFamily

log = logging.getLogger("andon.journals")
# Who knows which streams are being worked on now; other apps add themselves. Each returns stream ids.
live_streams: list[Callable[[], set[str]]] = []


class TooLarge(DomainError):
    """What was sent is over a cap."""

    status = 413


def append(session_id: str, event: Mapping[str, Any], *, by: By, now: datetime) -> dict[str, Any]:
    """Append one event to a session, in the root that has it, else the first; returns exactly what was written.

    Refuses (Unprocessable) `invalid-session-id` and `invalid-event`, (Conflict) `session-deleted`, over the cap
    `event-too-large` with 413, and (Unavailable) `journal-unavailable` with the reason when it could not be made
    durable: the turn must not be started then. Records turn.…
    """
    root = home_of(session_id)
    if Tombstone.objects.filter(node=settings.ANDON_NODE, session_id=session_id).exists():
        raise Conflict("session-deleted", f"The session {session_id} was deleted. Begin another.")
    try:
        written = journal.append_event(root, session_id, event, now=now.timestamp())
    except journal.InvalidEventError as error:
        raise Unprocessable("invalid-event", str(error)) from None
    except journal.TooLargeError as error:
        raise TooLarge("event-too-large", str(error)) from None
    except journal.SessionDeletedError:
        raise Conflict("session-deleted", f"The session {session_id} was deleted. Begin another.") from None
    except OSError as error:
        raise unavailable(error) from None
    _take_in(session_place(root, session_id), by=by, now=now)
    return written


def delete(session_id: str, *, by: By, now: datetime) -> None:
    """Delete a session with all that is known of it and leave a tombstone.

    Asked again it removes a file that was made since, else it changes nothing. Refuses (Unprocessable)
    `invalid-session-id`, (Missing) a session that never was, (Unavailable) when its file cannot be removed: it is shown
    no more, and its removal is tried again. Records session.deleted.
    """
    root = home_of(session_id)
    stones = {stone.root: stone for stone in Tombstone.objects.filter(node=settings.ANDON_NODE, session_id=session_id)}
    rows = JournalFile.objects.filter(family=JournalFamily.TURNS, name=session_id, node=settings.ANDON_NODE)
    try:
        is_there = _lies_in(root, session_id)
        # A second time too: a program that knows of no deletion may have made the file again.
        for known in {*rows.values_list("root", flat=True), *([str(root)] if is_there else [])}:
            stones[known] = lifecycle.bury(Path(known), session_id, by=by, now=now)
        if not stones:
            raise Missing("session-not-found", f"There is no session {session_id}.")
        for stone in stones.values():
            if stone.buried_at is None or (is_there and stone.root == str(root)):
                _bury(stone, now=now)
    except OSError as error:
        raise unavailable(error) from None


def finish_deletions(*, now: datetime) -> int:
    """Remove the files of deleted sessions that a crash, or the disk, has left; returns how many."""
    done = 0
    for stone in Tombstone.objects.filter(node=settings.ANDON_NODE, buried_at=None):
        try:
            _bury(stone, now=now)
            done += 1
        except OSError as error:
            log.warning("the journal of %s cannot be removed: %s", stone.session_id, error)
    return done


def recover(
    *,
    by: By,
    now: datetime,
    live: frozenset[str] = frozenset(),
    dry_run: bool = False,
    only: Collection[str] | None = None,
) -> dict[str, Any]:
    """Call turns interrupted that nobody works on: {added, by_session: {id: count}, failed: {id: why}}.

    `live` are streams that the caller knows to be worked on. `dry_run` only says what would be added. `only` names the
    sessions to look at. Raises Unavailable when a journal cannot be locked. Records turn.… and, when any was added,
    journal.recovered.
    """
    streams = live.union(*(known() for known in live_streams))
    told: dict[str, Any] = {"added": 0, "by_session": {}, "failed": {}}
    for root in settings.ANDON_JOURNAL_ROOTS:
        try:
            found = journal.recover(root, is_live=streams.__contains__, now=now.timestamp(), dry_run=dry_run, only=only)
        except OSError as error:
            raise unavailable(error) from None
        told["added"] += found.added
        told["by_session"].update({session: len(turns) for session, turns in found.by_session.items()})
        told["failed"].update(found.failed)
        for session in () if dry_run else found.by_session:
            _take_in(session_place(root, session), by=by, now=now)
    if not dry_run and (told["added"] or told["failed"]):
        lifecycle.tell_recovery(told["added"], len(told["by_session"]), sorted(told["failed"]), by=by, now=now)
    return told


def begin(*, now: datetime) -> dict[str, Any]:
    """Do what a worker does with the journals when it starts: finish deletions, read what is new, recover."""
    for root in settings.ANDON_JOURNAL_ROOTS[:1]:
        try:
            # Watched from the start, and not first from the next rescan on.
            make_directory(root / journal.DIRECTORY)
        except OSError as error:
            log.warning("%s cannot be made: %s. Turns are refused until it can.", root, error)
    finish_deletions(now=now)
    told = dict(intake.rescan(now=now)._asdict())
    if settings.ANDON_RECOVER:
        try:
            told["recovered"] = recover(by=SWEEP, now=now)["added"]
        except Unavailable as refusal:
            log.warning("%s", refusal.detail)
    return told


def append_history(
    project: Project, kind: str, fields: Mapping[str, Any], *, data: object | None, by: By, now: datetime, at: datetime
) -> bytes:
    """Append one event to the history of a project's loop and return its line.

    Refuses (Unprocessable `invalid-event`) what section 2 does not know, 413 `event-too-large`, (Unavailable
    `journal-unavailable`) when it could not be made durable. Records project.changed.
    """
    if wrong := history.wrong_with(kind, fields):
        raise Unprocessable("invalid-event", f"{wrong}.")
    ordered = {name: fields[name] for name in history.KINDS[kind]}
    try:
        line = history.append(Path(project.path) / history.HISTORY, kind, ordered, data=data, at=at)
    except ValueError as error:
        if "over the cap" in str(error):
            raise TooLarge("event-too-large", f"An event is at most {history.MAX_LINE} bytes as a line.") from None
        raise Unprocessable("invalid-event", f"It cannot be written: {error}.") from None
    except OSError as error:
        raise unavailable(error) from None
    _take_in(history_place(project.path, project.slug), by=by, now=now)
    return line


def home_of(session_id: str) -> Path:
    """Return the root that has a session, as far as that can be seen, else the first.

    Unprocessable `invalid-session-id`.
    """
    if not journal.is_session_id(session_id):
        raise Unprocessable(
            "invalid-session-id", "A session id is 1 to 128 of A-Z a-z 0-9 _ . - and begins with no dot."
        )
    roots = settings.ANDON_JOURNAL_ROOTS
    if not roots:
        raise Rejected("no-journal-root", "ANDON_JOURNAL_ROOTS names no directory.")
    paths = ((root, journal.path_of(root, session_id)) for root in roots)
    found: Path = next((root for root, path in paths if os.path.lexists(path)), roots[0])
    return found


def unavailable(error: OSError) -> Unavailable:
    """Return the refusal of what could not be made durable; it names no path."""
    why = error.strerror or str(error)
    return Unavailable("journal-unavailable", f"The journal cannot be written: {why.lower()}. Nothing was recorded.")


def _take_in(place: Place, *, by: By, now: datetime) -> None:
    """Bring what was appended into the database; when that fails the worker does it, since the file is the truth."""
    try:
        intake.look(place, by=by, now=now)
    except Exception:
        log.exception("%s was not taken in yet", place.path)


def _lies_in(root: Path, session_id: str) -> bool:
    """Say whether something has a session's name. Raises OSError when that cannot be seen."""
    try:
        journal.path_of(root, session_id).lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _bury(stone: Tombstone, *, now: datetime) -> None:
    journal.delete_session(Path(stone.root), stone.session_id)
    lifecycle.finish_burial(stone, now=now)
