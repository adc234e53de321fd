"""Open what an agent may have put in a project or its `.git`: a plain file of a bounded size, or a refusal."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from errno import ELOOP
from pathlib import Path

from projects.ralph.text import one_line
from projects.rollback.refusal import Refused

INDEX_BYTES = 512 * 1024 * 1024
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC
_CHUNK = 1024 * 1024


@contextmanager
def opened(path: Path, limit: int) -> Iterator[tuple[int, os.stat_result]]:
    """Give a descriptor of a plain file, and its status; never waits and follows no link at the end.

    Raises Refused (unsafe-file: a link, a pipe, a device, more than `limit` bytes), and OSError.
    """
    try:
        descriptor = os.open(path, _FLAGS)
    except OSError as error:
        if error.errno == ELOOP:
            raise unsafe(path) from None
        raise
    try:
        status = plain(descriptor, path)
        if status.st_size > limit:
            raise Refused("unsafe-file", f"{one_line(path.name, 100)} is larger than {limit} bytes.")
        yield descriptor, status
    finally:
        os.close(descriptor)


def plain(descriptor: int, path: Path) -> os.stat_result:
    """Return what is open there. Raises Refused (unsafe-file) unless it is a plain file."""
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise unsafe(path)
    return status


def chunks(descriptor: int, size: int) -> Iterator[bytes]:
    """Yield at most `size` bytes: a file that somebody writes meanwhile has no end."""
    while size and (chunk := os.read(descriptor, min(_CHUNK, size))):
        size -= len(chunk)
        yield chunk


def read(path: Path, limit: int) -> bytes:
    """Return the bytes of a plain file. Raises what `opened` does."""
    with opened(path, limit) as (descriptor, status):
        return b"".join(chunks(descriptor, status.st_size))


def copy(path: Path, to: Path, limit: int) -> None:
    """Copy a plain file with its time to the new file `to`, fsynced; what lay there is removed.

    Raises what `opened` does, before `to` is touched.
    """
    with opened(path, limit) as (descriptor, status):
        to.unlink(missing_ok=True)
        with to.open("xb") as target:
            for chunk in chunks(descriptor, status.st_size):
                target.write(chunk)
            target.flush()
            os.utime(target.fileno(), ns=(status.st_mtime_ns, status.st_mtime_ns))
            os.fsync(target.fileno())


def unsafe(path: Path) -> Refused:
    return Refused("unsafe-file", f"{one_line(path.name, 100)} in .git is not a plain file.")
