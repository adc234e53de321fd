"""Append a line durably: all of it, on the disk, or an exception and the file as it was.

The order is what makes it safe (spec/journal.md 1): open, lock, see that the name still means this file, mend a torn
tail, one write, fsync of the file, fsync of the directory when the file is new. Only then does the caller hear yes.
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
from pathlib import Path
from typing import Any

from projects.lines.reading import CHUNK, MAX_LINE, parse

# Line separators to some reader, and lone surrogates, which UTF-8 cannot hold.
_UNSAFE = re.compile("[\u0085\u2028\u2029\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Locked:
    """A file that nobody else appends to for now: its descriptor, its name, its directory's descriptor."""

    descriptor: int
    name: str
    directory: int

    def append(self, line: bytes) -> None:
        """Append one line with its LF. A torn tail is mended first: an LF when it is an object, else it moves to
        `<file>.torn-<offset>`. Raises OSError when the line is not on the disk; the file has its old size then.
        """
        file = self.descriptor
        size = os.fstat(file).st_size
        # Empty also means: made by an append that died before the directory was on the disk.
        is_new = size == 0
        start = _tail_start(file, size)
        if start < size:
            tail = os.pread(file, size - start, start)
            if parse(tail)[0] is not None:
                line = b"\n" + line
            else:
                _set_aside(tail, f"{self.name}.torn-{start}", self.directory)
                os.ftruncate(file, start)
                size = start
        try:
            _write_once(file, line)
            os.fsync(file)
        except OSError:
            os.ftruncate(file, size)
            raise
        if is_new:
            os.fsync(self.directory)


def append_line(path: Path, record: Mapping[str, Any], *, lock: Path | None = None) -> bytes:
    """Append one JSON object as a line and return it with its LF.

    Locks the sidecar `lock`, else the file itself. Makes the directory. Raises ValueError for what cannot be a line,
    OSError when it could not be made durable; the file is then as before.
    """
    line = serialise(record)
    with locked(path, lock=lock) as file:
        file.append(line)
    return line


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


@contextmanager
def locked(path: Path, *, lock: Path | None = None, private: bool = False) -> Iterator[Locked]:
    """Hold a file, made when it is not there, so that nobody else appends to it.

    Locks the sidecar `lock`, else the file itself. `private`: the file is made 0600, its directory is, and stays, 0700,
    and those above are made; else the directory above has to be there. Refuses (OSError) a link, a second link, what is
    not a regular file, and a file or directory that somebody has made read-only, whoever asks.
    """
    directory = _open_directory(path.parent, private=private)
    mode = 0o600 if private else 0o644
    try:
        made = os.fstat(directory).st_mode
        _need_writable(made, path.parent.name)
        if private and made & 0o077:
            os.fchmod(directory, 0o700)
        with _held(lock.name if lock else path.name, directory, mode) as held:
            file = held if lock is None else _open(path.name, directory, mode)
            try:
                yield Locked(file, path.name, directory)
            finally:
                if file != held:
                    os.close(file)
    finally:
        os.close(directory)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory and those above it that are not there, each on the disk before the next. Raises OSError."""
    if path.is_dir():
        return
    make_directory(path.parent, mode)
    path.mkdir(mode, exist_ok=True)
    _sync_directory(path.parent)


def _open_directory(path: Path, *, private: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        if private:
            make_directory(path)
        else:
            path.mkdir(exist_ok=True)
            _sync_directory(path.parent)
    return os.open(path, flags)


def _open(name: str, directory: int, mode: int) -> int:
    flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK
    file = os.open(name, flags, mode, dir_fd=directory)
    try:
        _need_plain(os.fstat(file), name)
    except OSError:
        os.close(file)
        raise
    return file


def _write_once(file: int, line: bytes) -> None:
    written = os.write(file, line)
    if written != len(line):
        raise OSError(errno.ENOSPC, f"only {written} of {len(line)} bytes were written")


def _need_plain(status: os.stat_result, name: str) -> None:
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        raise OSError(errno.EINVAL, "not a regular file with one link", name)
    _need_writable(status.st_mode, name)


def _need_writable(mode: int, name: str) -> None:
    """Refuse what its owner has made read-only: to root the kernel would let it pass."""
    if not mode & stat.S_IWUSR:
        raise PermissionError(errno.EACCES, "read-only", name)


@contextmanager
def _held(name: str, directory: int, mode: int) -> Iterator[int]:
    """Hold an exclusive lock on the file that has this name now; yields its descriptor."""
    while True:
        file = _open(name, directory, mode)
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


def _tail_start(file: int, size: int) -> int:
    """Return the offset after the last LF: the size when nothing is torn."""
    if size and os.pread(file, 1, size - 1) == b"\n":
        return size
    end = size
    while end > 0:
        begin = max(0, end - CHUNK)
        found = os.pread(file, end - begin, begin).rfind(b"\n")
        if found >= 0:
            return begin + found + 1
        end = begin
    return 0


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
