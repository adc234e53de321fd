"""Read one session's journal; the file is never changed."""

import errno
import os
import stat
from pathlib import Path
from typing import Any, NamedTuple

from projects import lines
from projects.journal.sessions import path_of


class Journal(NamedTuple):
    """What a file says: its events as they stand there, with the line of each, and what is none.

    `malformed`: {line, offset, raw, sha256, kind}. `unterminated`: the last event has no LF yet.
    """

    events: list[dict[str, Any]]
    malformed: list[dict[str, Any]]
    numbers: list[int]
    unterminated: bool


def check(event: dict[str, Any]) -> str:
    """Return "" for an event of a turn, else what is wrong with it."""
    said = event.get("event")
    return "" if isinstance(said, str) and said.strip() else lines.Problem.SHAPE


def open_session(root: Path, session_id: str) -> int:
    """Open a session's file for reading and return its descriptor, which the caller closes.

    Follows no link and does not block. Raises InvalidSessionError, FileNotFoundError and OSError.
    """
    path = path_of(root, session_id)
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        descriptor = os.open(path.name, flags, dir_fd=directory)
    finally:
        os.close(directory)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "not a regular file", path.name)
    return descriptor


def read_journal(root: Path, session_id: str) -> Journal:
    """Return the events of a session and its malformed lines. Raises as `open_session`."""
    with os.fdopen(open_session(root, session_id), "rb", buffering=0) as file:
        return read_open(file.fileno())


def read_open(descriptor: int) -> Journal:
    """Return what an open file says."""
    events, malformed, numbers = [], [], []
    unterminated = False
    for line in lines.read(descriptor, check=check):
        if line.value is None:
            malformed.append(line.malformed())
        else:
            events.append(line.value)
            numbers.append(line.number)
            unterminated = not line.terminated
    return Journal(events, malformed, numbers, unterminated)
