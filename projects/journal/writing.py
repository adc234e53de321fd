"""Append to a session's journal, and delete one."""

import errno
import json
import math
import os
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from projects import lines
from projects.journal.reading import check
from projects.journal.sessions import DELETED, path_of

VERSION = 1
# What we write ourselves comes first and in this order; the rest follows as it was given.
LEADING = ("event", "version", "session_id", "turn_id", "created_at", "stream_id")


class InvalidEventError(ValueError):
    """It cannot be an event; the text says why."""


class TooLargeError(ValueError):
    """Its line would be over 1 MiB."""


class SessionDeletedError(RuntimeError):
    """The session was deleted; nothing is appended to it any more."""


class UnknownStreamError(LookupError):
    """No line of the session has this stream."""


def append_event(root: Path, session_id: str, event: Mapping[str, Any], *, now: float | None = None) -> dict[str, Any]:
    """Append one event durably and return exactly what was written.

    A turn_id and a created_at (epoch seconds) are given where there is none; session_id and version are always ours.
    Makes `root` when it is not there. Raises InvalidSessionError, InvalidEventError, TooLargeError,
    SessionDeletedError, and OSError when the event is not on the disk; the file is then as before.
    """
    line = line_of(session_id, event, time.time() if now is None else now)
    with held(root, session_id) as file:
        file.append(line)
    return dict(json.loads(line))


def append_for_stream(
    root: Path, session_id: str, stream_id: str, event: Mapping[str, Any], *, now: float | None = None
) -> dict[str, Any]:
    """Append an event to the turn of the last line, in file order, that has this stream.

    Raises UnknownStreamError when no line has, else as `append_event`.
    """
    moment = time.time() if now is None else now
    with held(root, session_id) as file:
        turn = None
        for line in lines.read(file.descriptor, check=check):
            if line.value is not None and line.value.get("stream_id") == stream_id:
                turn = line.value.get("turn_id")
        if turn_text(turn) == "":
            raise UnknownStreamError(f"No turn of {session_id} has the stream {stream_id[:100]}.")
        written = line_of(session_id, {**event, "turn_id": turn, "stream_id": stream_id}, moment)
        file.append(written)
    return dict(json.loads(written))


def delete_session(root: Path, session_id: str) -> bool:
    """Delete a session's file and leave a tombstone that refuses late appends; says whether there was a file.

    The tombstone is on the disk before the file goes; again changes nothing. Raises InvalidSessionError, OSError.
    """
    path = path_of(root, session_id)
    with lines.locked(path, private=True) as file:
        _bury(path, file)
        there = os.fstat(file.descriptor).st_size > 0
        os.unlink(path.name, dir_fd=file.directory)
        os.fsync(file.directory)
    return there


def is_deleted(root: Path, session_id: str) -> bool:
    """Say whether a session has a tombstone. Raises InvalidSessionError."""
    return os.path.lexists(_tombstone(path_of(root, session_id)))


@contextmanager
def held(root: Path, session_id: str) -> Iterator[lines.Locked]:
    """Hold a session's file, made when it is not there. Raises SessionDeletedError, InvalidSessionError, OSError."""
    path = path_of(root, session_id)
    with lines.locked(path, private=True) as file:
        if _is_buried(path, file):
            # The file was made for nothing just now, unless a deletion was cut short.
            if not os.fstat(file.descriptor).st_size:
                os.unlink(path.name, dir_fd=file.directory)
            raise SessionDeletedError(f"{session_id} was deleted.")
        yield file


def line_of(session_id: str, event: Mapping[str, Any], now: float) -> bytes:
    """Return an event as the line that is written. Raises InvalidEventError and TooLargeError."""
    path_of(Path(), session_id)
    ready = {
        **event,
        "version": VERSION,
        "session_id": session_id,
        "turn_id": _turn_of(event.get("turn_id"), now),
        "created_at": _time_of(event.get("created_at"), now),
    }
    name, stream = event.get("event"), event.get("stream_id")
    if not isinstance(name, str) or not name.strip():
        raise InvalidEventError("event is required and is a text.")
    if stream is not None and not isinstance(stream, str):
        raise InvalidEventError("stream_id is a text.")
    if not stream:
        ready.pop("stream_id", None)
    try:
        line = lines.serialise({key: ready[key] for key in (*LEADING, *ready) if key in ready})
    except ValueError as error:
        if "over the cap" in str(error):
            raise TooLargeError(f"An event is at most {lines.MAX_LINE} bytes as a line.") from None
        raise InvalidEventError(f"It cannot be written as JSON: {error}.") from None
    value, problem = lines.parse(line[:-1])
    if value is None or check(value):
        raise InvalidEventError(f"It could not be read again: {problem or 'shape'}.")
    return line


def turn_text(turn: object) -> str:
    """Return a turn id as it is compared: stripped text, "" when it counts as not given."""
    if turn is None or isinstance(turn, dict | list):
        return ""
    return str(turn).strip()


def _turn_of(turn: object, now: float) -> str:
    if isinstance(turn, bool | dict | list | tuple):
        raise InvalidEventError("turn_id is a text.")
    return turn_text(turn) or f"{datetime.fromtimestamp(now, UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(6)}"


def _time_of(at: object, now: float) -> float:
    if isinstance(at, int | float) and not isinstance(at, bool):
        try:
            if math.isfinite(given := float(at)):
                return given
        except OverflowError:
            pass
    return now


def _tombstone(path: Path) -> Path:
    return path.with_name(path.stem + DELETED)


def _is_buried(path: Path, file: lines.Locked) -> bool:
    try:
        os.stat(path.stem + DELETED, dir_fd=file.directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _bury(path: Path, file: lines.Locked) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        stone = os.open(_tombstone(path).name, flags, 0o600, dir_fd=file.directory)
    except OSError as error:
        if error.errno != errno.EEXIST:
            raise
        return
    try:
        os.fsync(stone)
    finally:
        os.close(stone)
    os.fsync(file.directory)
