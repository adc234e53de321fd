"""Say of turns that nobody works on any more that they were interrupted. Never an answer, never a silent resume."""

import fcntl
import os
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from projects.journal.deriving import TurnState, fold, good_time
from projects.journal.reading import open_session, read_open
from projects.journal.sessions import DIRECTORY, session_ids
from projects.journal.writing import SessionDeletedError, held, line_of

RECOVERED = "server_startup_recovery"
MIN_AGE_S = 30.0
OWNER_LOCK = ".recovery.lock"


@dataclass(slots=True)
class Recovery:
    """What one recovery did, or would do: turn ids by session, and the sessions that could not be mended with why."""

    by_session: dict[str, list[str]] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)

    @property
    def added(self) -> int:
        return sum(map(len, self.by_session.values()))


def recover(
    root: Path,
    *,
    is_live: Callable[[str], bool] = lambda stream: False,
    now: float | None = None,
    min_age_s: float = MIN_AGE_S,
    dry_run: bool = False,
    only: Collection[str] | None = None,
) -> Recovery:
    """Append one `interrupted` to every turn that has not ended, whose stream is not live, quiet for 30 s.

    It says {reason: server_startup_recovery, recovered_from: <phase>}. A turn is looked at again under its file's lock,
    so a second run, at once or later, adds nothing. `dry_run` only says what would be added, `only` names the sessions
    to look at. A file that cannot be read or written is told in `failed`. Raises OSError when the owner lock cannot be
    had.
    """
    found = Recovery()
    if not (root / DIRECTORY).is_dir():
        return found
    with _owner(root, dry_run=dry_run):
        for session_id in session_ids(root):
            if only is not None and session_id not in only:
                continue
            moment = time.time() if now is None else now
            try:
                due = _look(root, session_id, is_live, moment, min_age_s)
                if due and not dry_run:
                    due = _mend(root, session_id, is_live, moment, min_age_s)
            except FileNotFoundError:
                continue
            except SessionDeletedError:
                continue
            except OSError as error:
                found.failed[session_id] = error.strerror or str(error)
                continue
            if due:
                found.by_session[session_id] = [turn.turn_id for turn in due]
    return found


def _look(root: Path, session_id: str, is_live: Callable[[str], bool], now: float, min_age_s: float) -> list[TurnState]:
    with os.fdopen(open_session(root, session_id), "rb", buffering=0) as file:
        return _due(file.fileno(), is_live, now, min_age_s)


def _mend(root: Path, session_id: str, is_live: Callable[[str], bool], now: float, min_age_s: float) -> list[TurnState]:
    with held(root, session_id) as file:
        due = _due(file.descriptor, is_live, now, min_age_s)
        for turn in due:
            event: dict[str, Any] = {
                "event": "interrupted",
                "turn_id": turn.turn_id,
                "stream_id": turn.stream_id or None,
                "reason": RECOVERED,
                "recovered_from": turn.effective_state,
            }
            file.append(line_of(session_id, event, now))
    return due


def _due(descriptor: int, is_live: Callable[[str], bool], now: float, min_age_s: float) -> list[TurnState]:
    """Return the turns of an open file that are to be called interrupted."""
    written = os.fstat(descriptor).st_mtime
    journal = read_open(descriptor)
    turns = fold(zip(journal.events, journal.numbers, strict=True))
    heard: dict[str, float] = {}
    for event in journal.events:
        at = good_time(event.get("created_at"))
        key = str(event.get("turn_id")).strip()
        # Nothing in a file is younger than its last writing; what says so, or says no time, is as old as that.
        heard[key] = max(heard.get(key, 0.0), written if at is None else min(at, written))
    return [
        turn
        for key, turn in turns.items()
        if turn.is_pending
        and now - heard.get(key, written) >= min_age_s
        and not (turn.stream_id and is_live(turn.stream_id))
    ]


@contextmanager
def _owner(root: Path, *, dry_run: bool) -> Iterator[None]:
    """Hold the owner lock: one recovery at a time, whichever process runs it."""
    if dry_run:
        yield
        return
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    lock = os.open(root / DIRECTORY / OWNER_LOCK, flags, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
    finally:
        os.close(lock)
