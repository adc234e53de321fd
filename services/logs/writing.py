"""Log files that children append to: opened so that no link, pipe or second name is ever written through."""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

LONGEST_NOTE = 500


def open_log(folder: Path, name: str) -> int:
    """Open a log for appending, as a child's standard output; the caller closes the descriptor.

    Missing folders are made 0700, a missing file 0600, and wider modes of these two are narrowed. Raises
    OSError when `name` is no plain file name, the folder is a link, or the file is a link, not a regular file,
    or has another name beside this one.
    """
    for parent in reversed(folder.parents):
        parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with opened_folder(folder) as directory:
        if stat.S_IMODE(os.fstat(directory).st_mode) & 0o077:
            os.fchmod(directory, 0o700)
        fd = open_plain(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, directory=directory, links=1)
        try:
            if stat.S_IMODE(os.fstat(fd).st_mode) & 0o077:
                os.fchmod(fd, 0o600)
            os.set_blocking(fd, True)
        except OSError:
            os.close(fd)
            raise
        return fd


def open_for_reading(folder: Path, name: str) -> int:
    """Open a log for reading; the caller closes the descriptor. Raises OSError as `open_log`, or if it is missing."""
    with opened_folder(folder) as directory:
        return open_plain(name, os.O_RDONLY, directory=directory)


def boundary(fd: int, text: str) -> None:
    """Append the line `--- andon: <text> ---` in one write, on a line of its own.

    `fd` is one of `open_log`. What a terminal would act on becomes U+FFFD, and the text is cut after 500
    characters. Raises OSError (a full disk).
    """
    os.write(fd, (b"" if _ends_a_line(fd) else b"\n") + note(text))


def note(text: str) -> bytes:
    """Return the line with which Andon speaks in a log, ended by LF."""
    inert = "".join(character if character.isprintable() else "\ufffd" for character in text[:LONGEST_NOTE])
    return f"--- andon: {inert} ---\n".encode()


@contextlib.contextmanager
def opened_folder(folder: Path) -> Iterator[int]:
    """Open a folder, so that all that follows happens in this one whatever is renamed meanwhile."""
    directory = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        yield directory
    finally:
        os.close(directory)


def open_plain(name: str, flags: int, *, directory: int, links: int | None = None) -> int:
    """Open a regular file of an opened folder without following a link; `links` = the names it may have.

    The descriptor is non-blocking, which means nothing to a regular file. Raises OSError.
    """
    # Without O_NONBLOCK a FIFO laid where the log should be would hold us for ever.
    flags |= os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    fd = os.open(checked(name), flags, 0o600, dir_fd=directory)
    status = os.fstat(fd)
    if stat.S_ISREG(status.st_mode) and links in {None, status.st_nlink}:
        return fd
    os.close(fd)
    if stat.S_ISREG(status.st_mode):
        raise OSError(errno.EMLINK, f"the file has {status.st_nlink} names", name)
    raise OSError(errno.EINVAL, "not a regular file", name)


def checked(name: str) -> str:
    """Return a name of a file in a folder; raises OSError for a path and for what no file can be called."""
    try:
        bytes_ = os.fsencode(name)
    except UnicodeEncodeError:
        bytes_ = b""
    if bytes_ in {b"", b".", b".."} or b"/" in bytes_ or b"\0" in bytes_:
        raise OSError(errno.EINVAL, "not a file name", ascii(name))
    return name


def _ends_a_line(fd: int) -> bool:
    size = os.fstat(fd).st_size
    if size == 0:
        return True
    try:
        # The descriptor is for writing alone; the link leads to the very same file, even if it was renamed.
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return os.pread(again, 1, size - 1) == b"\n"
    finally:
        os.close(again)
