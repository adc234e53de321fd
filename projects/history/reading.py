"""Read the loop history: its end for a few questions, all of it for the rest (spec/journal.md 2)."""

import fcntl
import os
import re
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from projects import lines, ralph
from projects.history.line import Line, check, line_of
from projects.history.runs import Run, Runs
from projects.history.summing import Summary
from projects.ralph.text import one_line

HISTORY = Path(".ralph/history.jsonl")
LOCK = Path(".ralph/history.jsonl.lock")
MAX_MALFORMED = 100
# An append takes a millisecond; a lock that is held for longer is held by somebody else for other reasons.
READ_TRIES = 20
READ_PAUSE_S = 0.01
MAX_ENDING = 256 * 1024
MAX_COMMITS = 4 * 1024 * 1024
MAX_REASON = 64
MAX_STORY = 200
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What ends a run, and the field that says how.
_ENDS = {"loop_completed": "reason", "loop_terminated": "signal"}


@dataclass(frozen=True, slots=True)
class History:
    """What a history says: its newest events as they stand there, what is none, and what follows from all of them."""

    events: list[dict[str, Any]]
    malformed: list[dict[str, Any]]
    summary: Summary
    runs: list[Run]


@dataclass(frozen=True, slots=True)
class Ending:
    """How a loop ended: the reason of a `loop_completed` or the signal of a `loop_terminated`, or ""."""

    reason: str
    kind: str
    at: datetime


def last_ending(root: Path, since: datetime) -> Ending | None:
    """Return how a loop in the project at `root` ended last, at or after `since`.

    None when the last 256 KiB of the history do not tell. The reason is a hostile text of at most 64
    characters on one line.
    """
    try:
        for line in newest(root, MAX_ENDING):
            if line.kind in _ENDS and line.at is not None and line.at >= since:
                return Ending(_short(line.fields.get(_ENDS[line.kind]), MAX_REASON), line.kind, line.at)
    except OSError:
        pass
    return None


def story_of_commit(root: Path, commit: str) -> str:
    """Return the id of the story in whose iteration our runner saw a commit being made, else "".

    `commit` is a whole object name. Read from the last 4 MiB, the newest iteration first.
    """
    if not _COMMIT.fullmatch(commit):
        return ""
    try:
        for line in newest(root, MAX_COMMITS, containing=commit.encode()):
            commits = line.data.get("commits")
            if line.kind == "iteration_completed" and isinstance(commits, list) and commit in commits:
                return _short(line.data.get("story"), MAX_STORY)
    except OSError:
        pass
    return ""


def newest(root: Path, limit: int, *, containing: bytes = b"") -> Iterator[Line]:
    """Yield the events in the last `limit` bytes of the history, the newest first.

    Only those whose line has the bytes `containing`. What is not an event is passed over. Raises
    FileNotFoundError and ralph.Unreadable.
    """
    for text in reversed(last_lines(root, HISTORY, limit)):
        if containing in text and (line := _read_line(text)) is not None:
            yield line


def last_lines(root: Path, relative: Path, limit: int) -> list[bytes]:
    """Return the whole lines in the last `limit` bytes of a file inside `root`; a last one may lack its LF.

    Raises FileNotFoundError and ralph.Unreadable.
    """
    file = ralph.open_inside(root, relative)
    try:
        size = os.fstat(file).st_size
        # One byte more than asked: it tells whether the first line is whole.
        begin = max(0, size - limit - 1)
        content = bytearray()
        while chunk := os.pread(file, size - begin - len(content), begin + len(content)):
            content += chunk
    finally:
        os.close(file)
    whole = bytes(content) if begin == 0 else bytes(content).partition(b"\n")[2]
    return [line for line in whole.split(b"\n") if line]


def read(root: Path, keep: int) -> "History":
    """Read the whole history of the project at `root`; of its events the last `keep` are kept.

    Waits a moment for whoever appends, not for ever: what is half written then is a torn line. Raises
    FileNotFoundError and ralph.Unreadable.
    """
    kept: deque[dict[str, Any]] = deque(maxlen=keep)
    malformed: deque[dict[str, Any]] = deque(maxlen=MAX_MALFORMED)
    runs, seen = Runs(), Summary()
    with _shared(root), os.fdopen(ralph.open_inside(root, HISTORY), "rb") as file:
        for line in lines.read(file.fileno(), check=check):
            if line.value is None:
                malformed.append(line.malformed())
                continue
            kept.append(line.value)
            event = line_of(line.value)
            runs.feed(event, line.number)
            seen.feed(event)
    return History(list(kept), list(malformed), seen, runs.all)


@contextmanager
def _shared(root: Path) -> Iterator[None]:
    try:
        lock = ralph.open_inside(root, LOCK)
    except OSError:
        # Nobody of ours has ever appended.
        yield
        return
    try:
        for _ in range(READ_TRIES):
            try:
                fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                time.sleep(READ_PAUSE_S)
        yield
    finally:
        os.close(lock)


def _read_line(text: bytes) -> Line | None:
    event, _ = lines.parse(text.removeprefix(lines.BOM))
    return None if event is None or check(event) else line_of(event)


def _short(text: object, limit: int) -> str:
    return one_line(text, limit) if isinstance(text, str) else ""
