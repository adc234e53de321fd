"""Spec files that agents leave behind: `agents/<agent id>/managed-spawn.json` below a root.

An agent may put anything there: links, FIFOs, endless files. Every component is opened without following links.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from services.specs.limits import MAX_BYTES
from services.specs.reasons import larger_than, shown, unreadable

FOLDER = "agents"
FILE = "managed-spawn.json"
MAX_LISTED = 200
# Agents' folders that are looked into for them: a folder outlives its file.
MAX_SCANNED = 5000

A_LINK = "a symlink"
NOT_REGULAR = "not a regular file"
NO_AGENT_ID = "not an agent id"

_AGENT_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Unreadable(Exception):
    """There is something in the file's place that cannot or must not be read; `reason` is the exact text."""

    def __init__(self, why: str) -> None:
        self.reason = unreadable(why)
        super().__init__(self.reason)


@dataclass(frozen=True, slots=True)
class Sidecar:
    """A file as it lies there: `size` in bytes, `mtime` in seconds since the epoch, `problem` the reason why it
    would not be read, else None.
    """

    agent: str
    size: int
    mtime: float
    problem: str | None


def is_agent_id(text: str) -> bool:
    """Tell whether a text may name an agent's folder."""
    return _AGENT_ID.fullmatch(text) is not None


def read_sidecar(root: Path, agent: str, *, limit: int = MAX_BYTES) -> bytes | None:
    """Return the bytes of an agent's spec file, at most `limit`; None only when there is none. Never blocks.

    Raises Unreadable for a bad agent id, a link anywhere below `root`, what is no regular file or too large, and
    every error of the system.
    """
    with _refusing(), _agent_folder(root, agent) as folder:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        with _closing(os.open(FILE, flags, dir_fd=folder)) as file:
            why = _problem(os.fstat(file), limit)
            if why is not None:
                raise Unreadable(why)
            # It may still grow.
            content = _read(file, limit + 1)
            if len(content) > limit:
                raise Unreadable(larger_than(limit))
            return content
    return None


def delete_sidecar(root: Path, agent: str) -> bool:
    """Remove an agent's spec file, or the link, FIFO or empty directory in its place.

    Returns whether there was one. Raises Unreadable as `read_sidecar` does for the folders above it, and for
    what cannot be removed.
    """
    with _refusing(), _agent_folder(root, agent) as folder:
        try:
            os.unlink(FILE, dir_fd=folder)
        except IsADirectoryError:
            os.rmdir(FILE, dir_fd=folder)
        return True
    return False


def list_sidecars(root: Path) -> list[Sidecar]:
    """List the spec files below a root without opening any: at most 200, by agent.

    An agent's folder that cannot be entered counts as a file with a problem. Raises Unreadable when `agents`
    itself is no directory.
    """
    with _refusing(), _opened(root, FOLDER) as agents, os.scandir(agents) as entries:
        names = sorted(entry.name for entry in itertools.islice(entries, MAX_SCANNED))
        found = (_look(name, agents) for name in names)
        return list(itertools.islice((sidecar for sidecar in found if sidecar is not None), MAX_LISTED))
    return []


def _look(name: str, agents: int) -> Sidecar | None:
    try:
        with _closing(os.open(name, _DIRECTORY, dir_fd=agents)) as folder:
            status = os.stat(FILE, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None
    except OSError as error:
        # A stray file is nobody's.
        return Sidecar(name, 0, 0.0, unreadable(_why(error))) if is_agent_id(name) else None
    why = _problem(status, MAX_BYTES) if is_agent_id(name) else NO_AGENT_ID
    return Sidecar(shown(name), status.st_size, status.st_mtime, None if why is None else unreadable(why))


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Leave the block when something does not exist; make every other error of the system an Unreadable."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Unreadable(_why(error)) from error


@contextlib.contextmanager
def _agent_folder(root: Path, agent: str) -> Iterator[int]:
    if not is_agent_id(agent):
        raise Unreadable(NO_AGENT_ID)
    with _opened(root, FOLDER) as agents, _closing(os.open(agent, _DIRECTORY, dir_fd=agents)) as folder:
        yield folder


@contextlib.contextmanager
def _opened(root: Path, name: str) -> Iterator[int]:
    """Open a directory of the root, which may itself be reached by a link: it is the installation's own choice."""
    with (
        _closing(os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as top,
        _closing(os.open(name, _DIRECTORY, dir_fd=top)) as folder,
    ):
        yield folder


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[int]:
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _problem(status: os.stat_result, limit: int) -> str | None:
    if stat.S_ISLNK(status.st_mode):
        return A_LINK
    if not stat.S_ISREG(status.st_mode):
        return NOT_REGULAR
    return larger_than(limit) if status.st_size > limit else None


def _read(descriptor: int, most: int) -> bytes:
    content = b""
    while len(content) < most and (chunk := os.read(descriptor, most - len(content))):
        content += chunk
    return content


def _why(error: OSError) -> str:
    match error.errno:
        case errno.ELOOP:
            return A_LINK
        case errno.ENOTDIR:
            return "a symlink or not a directory"
        case errno.ENXIO:
            # A socket cannot even be opened.
            return NOT_REGULAR
        case code:
            return os.strerror(code or errno.EIO).lower()
