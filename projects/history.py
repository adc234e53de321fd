"""The loop history, one line for each thing that happened in a loop (spec/journal.md 2).

Appending, durably, and the few things that are read from its end.
"""

import errno
import fcntl
import json
import os
import re
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from projects import ralph
from projects.ralph.text import one_line

HISTORY = Path(".ralph/history.jsonl")
MAX_LINE = 1024 * 1024
MAX_ENDING = 256 * 1024
MAX_COMMITS = 4 * 1024 * 1024
MAX_REASON = 64
MAX_STORY = 200
# Line separators to some reader, and lone surrogates, which UTF-8 cannot hold.
_UNSAFE = re.compile("[\u0085\u2028\u2029\ud800-\udfff]")
_CHUNK = 64 * 1024
_COMMIT = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
# What ends a run, and the field that says how.
_ENDS = {"loop_completed": "reason", "loop_terminated": "signal"}


@dataclass(frozen=True, slots=True)
class Line:
    """One line as it was read: `fields` are those beside `kind`; `at` is UTC, None when it is no time."""

    kind: str
    fields: dict[str, Any]
    data: dict[str, Any]
    at: datetime | None


@dataclass(frozen=True, slots=True)
class Ending:
    """How a loop ended: the reason of a `loop_completed` or the signal of a `loop_terminated`, or ""."""

    reason: str
    kind: str
    at: datetime


def append(path: Path, kind: str, fields: Mapping[str, Any], *, data: object | None, at: datetime) -> bytes:
    """Append one event durably under the lock `<name>.lock` and return the line written, with its LF.

    Raises ValueError for what cannot be a line (NaN, over 1 MiB, `at` without an offset), OSError when it
    could not be made durable; the file is then as before.
    """
    if at.tzinfo is None:
        raise ValueError("at has no offset")
    if "kind" in fields:
        raise ValueError("kind is not a field")
    event: dict[str, Any] = {
        "ts": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "type": {"kind": kind, **fields},
    }
    if data is not None:
        event["data"] = data
    return append_line(path, event, lock=path.with_name(f"{path.name}.lock"))


def append_line(path: Path, record: Mapping[str, Any], *, lock: Path | None = None) -> bytes:
    """Append one JSON object as a line: all of it, on the disk, or an exception and the file as before.

    Locks the sidecar `lock`, else the file itself. A torn tail is mended first: an LF when it is an object,
    else it moves to `<file>.torn-<offset>`. Makes the directory. Raises ValueError and OSError as `append`.
    """
    line = serialise(record)
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
        _sync_directory(path.parent.parent)
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        with _locked(lock.name if lock else path.name, directory) as locked:
            file = locked if lock is None else _open(path.name, directory)
            try:
                _write(file, line, path.name, directory)
            finally:
                if file != locked:
                    os.close(file)
    finally:
        os.close(directory)
    return line


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


def serialise(record: Mapping[str, Any]) -> bytes:
    """Return a record as one compact UTF-8 line with its LF. Raises ValueError for NaN or more than 1 MiB."""
    try:
        text = json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}") from None
    line = _UNSAFE.sub(lambda match: f"\\u{ord(match.group()):04x}", text).encode() + b"\n"
    if len(line) > MAX_LINE:
        raise ValueError(f"a line of {len(line)} bytes is over the cap of {MAX_LINE}")
    return line


def _open(name: str, directory: int) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(name, flags, 0o644, dir_fd=directory)
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(file)
        raise OSError(errno.EINVAL, "not a regular file with one link", name)
    return file


@contextmanager
def _locked(name: str, directory: int) -> Iterator[int]:
    """Hold an exclusive lock on the file that has this name now; yields its descriptor."""
    while True:
        file = _open(name, directory)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            if _still_names(file, name, directory):
                yield file
                return
        finally:
            os.close(file)


def _still_names(file: int, name: str, directory: int) -> bool:
    try:
        return os.path.samestat(os.fstat(file), os.stat(name, dir_fd=directory, follow_symlinks=False))
    except FileNotFoundError:
        return False


def _write(file: int, line: bytes, name: str, directory: int) -> None:
    size = os.fstat(file).st_size
    # Empty also means: made by an append that died before the directory was on the disk.
    is_new = size == 0
    start = _tail_start(file, size)
    if start < size:
        tail = os.pread(file, size - start, start)
        if _is_object(tail):
            line = b"\n" + line
        else:
            _set_aside(tail, f"{name}.torn-{start}", directory)
            os.ftruncate(file, start)
            size = start
    try:
        _write_once(file, line)
        os.fsync(file)
    except OSError:
        os.ftruncate(file, size)
        raise
    if is_new:
        os.fsync(directory)


def _write_once(file: int, line: bytes) -> None:
    written = os.write(file, line)
    if written != len(line):
        raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written")


def _tail_start(file: int, size: int) -> int:
    """Return the offset after the last LF: the size when nothing is torn."""
    end = size
    while end > 0:
        begin = max(0, end - _CHUNK)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


def _is_object(tail: bytes) -> bool:
    return _object(tail) is not None


def _object(text: bytes) -> dict[str, Any] | None:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _read_line(text: bytes) -> Line | None:
    event = _object(text) or {}
    said, data = event.get("type"), event.get("data")
    if not isinstance(said, dict) or not isinstance(said.get("kind"), str):
        return None
    fields = {name: value for name, value in said.items() if name != "kind"}
    return Line(said["kind"], fields, data if isinstance(data, dict) else {}, _time(event.get("ts")))


def _time(text: object) -> datetime | None:
    try:
        at = datetime.fromisoformat(text) if isinstance(text, str) else None
        # Without an offset it is read as UTC: it has to mean the same thing everywhere.
        return at and (at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC))
    except (ValueError, OverflowError):
        return None


def _short(text: object, limit: int) -> str:
    return one_line(text, limit) if isinstance(text, str) else ""


def _set_aside(tail: bytes, name: str, directory: int) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for number in range(1000):
        try:
            aside = os.open(f"{name}.{number}" if number else name, flags, 0o600, dir_fd=directory)
        except FileExistsError:
            continue
        with os.fdopen(aside, "wb") as stream:
            stream.write(tail)
            stream.flush()
            os.fsync(aside)
        os.fsync(directory)
        return
    raise OSError(errno.EEXIST, "too many torn tails set aside", name)


def _sync_directory(path: Path) -> None:
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
