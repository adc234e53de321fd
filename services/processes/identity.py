"""Processes as the kernel sees them: who one is, whether it lives, how to signal it and not a stranger.

A pure leaf: Linux only, no Django, no settings. A process is (host, boot id, pid, start ticks), never a bare
pid: pids are reused, and the start ticks (field 22 of /proc/PID/stat, clock ticks since boot) do not move
with the clock.
"""

import contextlib
import enum
import functools
import math
import os
import select
import signal
import subprocess
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from services.processes.proc import Stat as _Stat
from services.processes.proc import pids as _pids
from services.processes.proc import read_stat as _read_stat

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_MAX_POLL_MS = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Identity:
    """Name one process for good.

    `host` is the node that saw it, `boot_id` that machine's boot, `start_ticks` its start in clock ticks
    since boot.
    """

    host: str
    boot_id: str
    pid: int
    start_ticks: int


class Verdict(enum.StrEnum):
    """Say what was seen of a process; on `UNKNOWN` nothing may be signalled, freed or dropped."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"


class Gone(Exception):
    """The process of this identity has ended; whatever bears its pid now is a stranger."""


class Unknown(Exception):
    """What bears this pid could not be seen, so it must not be touched."""


class Refused(Exception):
    """Andon never signals this one: pid 1 or less, itself, or a member of its own process group."""


def _is_surely_absent(pid: int) -> bool:
    """Tell whether no process has this pid.

    Called when /proc shows none: under hidepid a stranger's entry is missing there while the process lives.
    """
    try:
        os.close(os.pidfd_open(pid))
    except (ProcessLookupError, OverflowError):  # a number from a file can exceed every pid
        return True
    except OSError:
        return False
    return False


def _find_stat(pid: int) -> _Stat | None:
    """Read /proc/PID/stat; None when there is surely no such process, OSError for all that is unclear."""
    try:
        return _read_stat(pid)
    except ProcessLookupError:
        return None
    except FileNotFoundError as missing:
        if _is_surely_absent(pid):
            return None
        raise PermissionError(missing.errno, "hidden in /proc", f"/proc/{pid}/stat") from missing
    except (ValueError, IndexError) as broken:
        raise OSError(f"/proc/{pid}/stat is not understood") from broken


@functools.cache
def boot_id() -> str:
    """Read the id of the running boot (proc(5), random/boot_id), once per process. Raises OSError."""
    return _BOOT_ID.read_text(encoding="ascii").strip()


def read_start_ticks(pid: int) -> int:
    """Read a process's start in clock ticks since boot (proc(5), field 22 of /proc/PID/stat).

    Raises ProcessLookupError when there is no such process, PermissionError or another OSError when it cannot
    be seen. A zombie still has its start ticks.
    """
    stat = _find_stat(pid)
    if stat is None:
        raise ProcessLookupError(f"no process {pid}")
    return stat.start_ticks


def identify(pid: int, host: str) -> Identity | None:
    """Name the process that bears this pid now, on this host (the caller's node).

    Returns None only when it is surely gone: no such process, or a zombie. Raises PermissionError when the
    process is hidden from us, OSError when /proc cannot be read or understood (treat both as unknown),
    ValueError for pid < 1.
    """
    if pid < 1:
        raise ValueError(f"not a process id: {pid}")
    stat = _find_stat(pid)
    if stat is None or stat.is_dead:
        return None
    return Identity(host=host, boot_id=boot_id(), pid=pid, start_ticks=stat.start_ticks)


def verdict(identity: Identity, host: str) -> Verdict:
    """Say whether the process of this identity lives, as seen from `host` (the caller's node). Never raises.

    `GONE`: another boot, no such process, other start ticks, a zombie or dead state. `UNKNOWN`: another
    host's process, pid <= 1, no permission, any other error.
    """
    if identity.host != host or identity.pid <= 1:
        return Verdict.UNKNOWN
    try:
        if identity.boot_id != boot_id():
            return Verdict.GONE
        stat = _find_stat(identity.pid)
    except OSError:
        return Verdict.UNKNOWN
    if stat is None or stat.is_dead or stat.start_ticks != identity.start_ticks:
        return Verdict.GONE
    return Verdict.ALIVE


class Pin:
    """Hold one process by a pidfd, which never comes to mean another one; made by `pin`.

    A context manager; closing it lets go of the descriptor and does nothing to the process.
    """

    __slots__ = ("_fd", "identity")

    def __init__(self, identity: Identity, fd: int) -> None:
        """Own `fd`, a pidfd of the process of `identity`."""
        self.identity = identity
        self._fd = fd

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        self.close()

    def fileno(self) -> int:
        """Return the pidfd, readable once the process has ended. Raises ValueError after `close`."""
        if self._fd < 0:
            raise ValueError("the pin is closed")
        return self._fd

    def signal(self, sig: int) -> None:
        """Send a signal to this process alone (pidfd_send_signal(2)).

        Raises Refused for pid <= 1, for ourselves and for a member of our own process group, Gone when it has
        been reaped, PermissionError when it is another user's. Signalling a zombie does nothing.
        """
        pid = self.identity.pid
        fd = self.fileno()
        if pid <= 1 or pid == os.getpid():
            raise Refused(f"process {pid} is never signalled")
        try:
            if os.getpgid(pid) == os.getpgrp():
                raise Refused(f"process {pid} is in our own process group")
            signal.pidfd_send_signal(fd, sig)
        except ProcessLookupError as missing:
            raise Gone(f"process {pid} has ended") from missing

    def wait(self, timeout_s: float) -> bool:
        """Wait up to `timeout_s` seconds (0 or less: only look) and tell whether the process has ended.

        Reaps nothing: of a child the exit code stays to be collected.
        """
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(min(max(math.ceil(timeout_s * 1000), 0), _MAX_POLL_MS)))

    def close(self) -> None:
        """Let go of the pidfd; a second call does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


def pin(identity: Identity, host: str) -> Pin:
    """Take hold of the process of this identity.

    The pidfd is opened first and the identity compared afterwards, so that the descriptor surely means this
    process. Raises Gone when the process has ended, Unknown when that cannot be told (see `verdict`).
    """
    if identity.host != host or identity.pid <= 1:
        raise Unknown(f"process {identity.pid} of {identity.host!r} is not ours to pin")
    fd = -1
    # Without a descriptor (gone, none left, a thread's id) the comparison alone tells what to raise.
    with contextlib.suppress(OSError, OverflowError):
        fd = os.pidfd_open(identity.pid)
    seen = verdict(identity, host)
    if fd >= 0 and seen is Verdict.ALIVE:
        return Pin(identity, fd)
    if fd >= 0:
        os.close(fd)
    if seen is Verdict.GONE:
        raise Gone(f"process {identity.pid} has ended")
    raise Unknown(f"process {identity.pid} cannot be pinned")


def working_directory(pid: int) -> Path | None:
    """Return the real path of a process's working directory (/proc/PID/cwd), None when the process is gone.

    The kernel writes the path resolved; of a directory deleted since, it ends in " (deleted)". Raises
    PermissionError when the process is another user's, OSError when it cannot be told.
    """
    try:
        return Path(f"/proc/{pid}/cwd").readlink()
    except (FileNotFoundError, ProcessLookupError):
        # A zombie has no working directory any more, and a hidden process shows none.
        stat = _find_stat(pid)
        if stat is None or stat.is_dead:
            return None
        raise


def is_inside(path: Path, root: Path) -> bool:
    """Tell whether `path` is `root` or lies in it, component by component.

    Both must be absolute and resolved: with a relative path or a ".." in either the answer is no.
    """
    if not (path.is_absolute() and root.is_absolute()) or ".." in path.parts or ".." in root.parts:
        return False
    return path.is_relative_to(root)


def started_at(identity: Identity) -> float:
    """Return when a process of this boot started, in seconds since the epoch, approximately.

    Boot time (btime of /proc/stat: whole seconds, and moved whenever the clock is set) plus the start ticks:
    for people and for "started after", never for identity. Raises ValueError for another boot's process,
    OSError without /proc.
    """
    if identity.boot_id != boot_id():
        raise ValueError("a process of another boot")
    for line in Path("/proc/stat").read_text(encoding="ascii").splitlines():
        if line.startswith("btime "):
            return int(line.split()[1]) + identity.start_ticks / os.sysconf("SC_CLK_TCK")
    raise OSError("/proc/stat has no btime")


def descendants(pid: int) -> list[int]:
    """List the living descendants of a process, nearest first; the process itself is not among them.

    A snapshot from one pass over /proc: what is forked or re-parented meanwhile can be missed, and a pid may
    mean another process a moment later, so pin before signalling. Raises OSError when an entry cannot be
    read.
    """
    children: dict[int, list[int]] = {}
    for each in _pids():
        try:
            stat = _read_stat(each)
        except (FileNotFoundError, ProcessLookupError):
            continue
        if not stat.is_dead:
            children.setdefault(stat.parent, []).append(each)
    # Pids reused during the pass can close a circle.
    found = {pid: None}
    queue = deque([pid])
    while queue:
        for child in children.get(queue.popleft(), ()):
            if child not in found:
                found[child] = None
                queue.append(child)
    return list(found)[1:]


def spawn(
    argv: Sequence[str], *, cwd: str | os.PathLike[str], env: Mapping[str, str], log_fd: int
) -> subprocess.Popen[bytes]:
    """Start a process in a session of its own, with `env` and nothing else, its output appended to `log_fd`.

    No shell, no pipe: it reads from /dev/null and survives us. `argv[0]` is an absolute path, or is looked up
    in the PATH of `env`. `log_fd` stays the caller's to close. Raises OSError when the executable or `cwd` is
    missing or may not be used, ValueError for an empty `argv` or a NUL in it.

    Keep the object until the process is reaped: one that is dropped early warns, and is then waited for by
    whichever Popen comes next, which takes the exit code away from the watch.
    """
    if not argv:
        raise ValueError("nothing to start")
    return subprocess.Popen(
        list(argv),
        cwd=cwd,
        env=dict(env),
        stdin=subprocess.DEVNULL,
        stdout=log_fd,
        stderr=log_fd,
        start_new_session=True,
    )
