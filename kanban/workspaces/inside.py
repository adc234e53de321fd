"""Directories below the managed root, opened component by component without following a link."""

import contextlib
import os
import re
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

FOLDER = "workspaces"
MARKER = ".andon-workspace"
TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class CannotMake(Exception):
    """There is no workspace; the text says why, for a person. What lay there is untouched."""


@contextlib.contextmanager
def managed(home: Path, *, make: bool = False) -> Iterator[int]:
    """Open the managed root. The home may itself be reached by a link: it is the installation's own choice."""
    top = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with (made if make else opened)(FOLDER, top) as folder:
            yield folder
    finally:
        os.close(top)


@contextlib.contextmanager
def opened(name: str, parent: int) -> Iterator[int]:
    folder = os.open(name, DIRECTORY, dir_fd=parent)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def made(name: str, parent: int, mode: int = 0o700) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
    try:
        with opened(name, parent) as folder:
            yield folder
    except NotADirectoryError:
        # A link to a directory is none either.
        raise CannotMake(f"{name} is in the way: it is a link or not a directory") from None


def owner_of(folder: int) -> str | None:
    """Return whose workspace this is, None when it has no marker; OSError when it is a link or unreadable."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        marker = os.open(MARKER, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(marker, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(marker).st_mode):
            return None
        return (file.read(256) or b"").decode("utf-8", "replace")


def names_in(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def empty(top: int, spare: str = "") -> None:
    """Remove all that is in a directory, links themselves and never what they point to.

    A directory's own directories are moved up to the top, so that neither depth nor descriptors run out.
    """
    while names := [name for name in names_in(top) if name != spare]:
        for name in names:
            if _unlinked(name, top):
                continue
            with _entered(name, top) as folder:
                for inner in names_in(folder):
                    if not _unlinked(inner, folder):
                        with _entered(inner, folder):
                            os.rename(inner, uuid.uuid4().hex, src_dir_fd=folder, dst_dir_fd=top)
            os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


@contextlib.contextmanager
def _entered(name: str, parent: int) -> Iterator[int]:
    """Open a directory that its owner may have closed to himself."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        with opened(".", handle) as folder:
            yield folder
    finally:
        os.close(handle)
