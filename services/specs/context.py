"""What validation may ask of the machine it runs on."""

import contextlib
import os
import socket
import stat
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

Kind = Literal["dir", "file", "missing", "other", "unreadable"]

HEAD_BYTES = 64
RESOLVE_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """Say what lies at a path.

    `real` is the path with all links resolved, as far as it exists; `head` the first 64 bytes of a regular file,
    empty when they could not be read.
    """

    kind: Kind
    real: str
    head: bytes = b""


class Context(Protocol):
    """Answer what a spec alone cannot; none of these raises."""

    def resolve(self, host: str) -> list[str]:
        """Return all addresses of a host name; [] when it has none or they are not known in time."""

    def stat(self, path: str) -> Found:
        """Look at an absolute path, following links."""

    def which(self, cmd: str) -> str | None:
        """Find an executable file: a bare name in the trusted directories, an absolute path's real path."""


def trusted_dirs(path: str) -> tuple[str, ...]:
    """Return the real directories of a PATH in its order, without those that everybody may write to."""
    return tuple(dict.fromkeys(_trusted(path)))


def _trusted(path: str) -> Iterator[str]:
    for entry in path.split(os.pathsep):
        if not entry.startswith("/"):
            continue
        with contextlib.suppress(OSError, ValueError):
            real = os.path.realpath(entry)
            mode = Path(real).stat().st_mode
            if stat.S_ISDIR(mode) and not mode & stat.S_IWOTH:
                yield real


@dataclass(frozen=True, slots=True)
class System:
    """The machine we run on; `trusted_dirs` as in `Limits`."""

    trusted_dirs: tuple[str, ...] = ()

    def resolve(self, host: str) -> list[str]:
        """Ask the system's resolver, for at most 2 s: a hostile name server may take its time."""
        found: list[str] = []

        def ask() -> None:
            with contextlib.suppress(OSError, ValueError):
                answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
                found.extend(dict.fromkeys(str(answer[4][0]) for answer in answers))

        # RuntimeError: no more threads.
        with contextlib.suppress(RuntimeError):
            asking = threading.Thread(target=ask, name="resolve", daemon=True)
            asking.start()
            asking.join(RESOLVE_SECONDS)
        return list(found)

    def stat(self, path: str) -> Found:
        """Look at a path without ever blocking on it."""
        real = path
        try:
            real = os.path.realpath(path)
            mode = Path(real).stat().st_mode
        except (FileNotFoundError, NotADirectoryError, ValueError):
            return Found("missing", real)
        except OSError:
            return Found("unreadable", real)
        if stat.S_ISDIR(mode):
            return Found("dir", real)
        if stat.S_ISREG(mode):
            return Found("file", real, _head(real))
        return Found("other", real)

    def which(self, cmd: str) -> str | None:
        """Find a bare name in the trusted directories, or resolve an absolute path."""
        if cmd.startswith("/"):
            real = self.stat(cmd).real
            return real if _is_executable(real) else None
        if "/" in cmd or not cmd:
            return None
        candidates = (f"{folder}/{cmd}" for folder in self.trusted_dirs)
        return next((path for path in candidates if _is_executable(path)), None)


def _is_executable(path: str) -> bool:
    try:
        return stat.S_ISREG(Path(path).stat().st_mode) and os.access(path, os.X_OK)
    except (OSError, ValueError):
        return False


def _head(path: str) -> bytes:
    with contextlib.suppress(OSError):
        # It may have become a FIFO since it was looked at.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            return os.read(descriptor, HEAD_BYTES)
        finally:
            os.close(descriptor)
    return b""
