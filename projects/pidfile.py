"""The pid file of a Ralph loop: whom it names, and its removal once it is stale.

A pure leaf. The file is the loop's own and may say anything: nothing here signals, and whoever does pins first.
"""

import contextlib
import enum
import os
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from projects import ralph
from services import processes
from services.processes import Identity

NAME = ".ralph.pid"
MOST_BYTES = 64
# /proc tells a start in ticks since a boot time that is rounded to seconds.
START_SLACK_S = 5.0
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class State(enum.StrEnum):
    """What a pid file and the process that it names amount to."""

    ABSENT = "absent"
    INVALID = "invalid"
    """Not a decimal above 1 that Linux could give out; or a link, a directory, a FIFO, too large, not readable."""
    GONE = "gone"
    """The process has ended, or whoever bears its number started after the file was written and works elsewhere."""
    OUTSIDE = "outside"
    """It works in a directory that is not in the project."""
    HIDDEN = "hidden"
    """It is another user's, who does not let us see where it works: running, not ours."""
    UNKNOWN = "unknown"
    """It cannot be told: nothing may be signalled, removed or called ended. It cannot be seen now; or it works in the
    project, or who knows where, and started after the file was written, unless the clock was set on since."""
    THERE = "there"


@dataclass(frozen=True, slots=True)
class Found:
    """One look at a pid file.

    `content` is None where no file was read, `pid` where it names none; `identity` and `started_at` (UTC, to the
    second) are those of the process wherever one was seen.
    """

    state: State
    content: bytes | None = None
    pid: int | None = None
    identity: Identity | None = None
    started_at: datetime | None = None

    @property
    def is_running(self) -> bool:
        """Say whether a loop was seen to run, ours to stop or not; not so while that is unknown."""
        return self.state in {State.THERE, State.HIDDEN}


def look(root: Path, folder: Path, node: str, *, known: Identity | None = None) -> Found:
    """Read the pid file in `folder`, relative to the project's directory `root`, and look at whom it names.

    `known` is who was seen there before, if anybody: of that very process its start raises no doubt. Nothing else can
    lift it: the kernel dates files by the wall clock alone, so a clock that is set on makes every file older than the
    process which wrote it, and its age says no more than its date.

    The identity is read before the working directory: whoever pins it afterwards and finds it the same may trust both.
    Reads at most 64 bytes and follows no link. Raises nothing for what lies on disk.
    """
    try:
        content, written = _read(root, folder)
    except FileNotFoundError:
        return Found(State.ABSENT)
    except OSError:
        return Found(State.INVALID)
    pid = ralph.parse_pid(content)
    if pid is None:
        return Found(State.INVALID, content)
    identity = started_at = None
    try:
        identity = processes.identify(pid, node)
        if identity is None:
            return Found(State.GONE, content, pid)
        started = processes.started_at(identity)
        started_at = EPOCH + timedelta(seconds=started)
        state = _where(pid, root)
        if started > written + START_SLACK_S and identity != known:
            state = State.GONE if state in {State.GONE, State.OUTSIDE} else State.UNKNOWN
    except OSError:
        state = State.UNKNOWN
    return Found(state, content, pid, identity, started_at)


def remove_if(root: Path, folder: Path, content: bytes) -> bool:
    """Remove the pid file if it still holds `content`; says whether it did.

    Follows no link. A race of some microseconds is left, since no system call compares and removes: a loop that writes
    its pid between our last look and the removal loses its file, and with it is shown as not running.
    """
    try:
        descriptor = ralph.open_inside(root, folder / NAME)
    except OSError:
        return False
    with contextlib.ExitStack() as stack:
        stack.callback(os.close, descriptor)
        try:
            directory = _directory_of(root, folder)
            stack.callback(os.close, directory)
            there = os.stat(NAME, dir_fd=directory, follow_symlinks=False)
            if not os.path.samestat(there, os.fstat(descriptor)) or _content(descriptor) != content:
                return False
            os.unlink(NAME, dir_fd=directory)
        except OSError:
            return False
    return True


def _read(root: Path, folder: Path) -> tuple[bytes, float]:
    """Return the content and when it was written, in seconds since the epoch."""
    descriptor = ralph.open_inside(root, folder / NAME)
    try:
        content = _content(descriptor)
        if len(content) > MOST_BYTES:
            raise ralph.Unreadable(f"{NAME} is larger than {MOST_BYTES} bytes")
        return content, os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _content(descriptor: int) -> bytes:
    """Return what the file holds; one byte more than allowed shows that it is too large."""
    return os.pread(descriptor, MOST_BYTES + 1, 0)


def _directory_of(root: Path, folder: Path) -> int:
    """Return a descriptor of the file's directory, which lies in the project."""
    real_root = root.resolve(strict=True)
    descriptor = os.open(real_root / folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not processes.is_inside(Path(f"/proc/self/fd/{descriptor}").readlink(), real_root):
        os.close(descriptor)
        raise ralph.Unreadable(f"{folder} leads out of the project")
    return descriptor


def _where(pid: int, root: Path) -> State:
    """Tell where a process works. One that is just ending has let go of its directory: raises FileNotFoundError."""
    try:
        directory = processes.working_directory(pid)
    except PermissionError:
        return State.HIDDEN
    if directory is None:
        return State.GONE
    return State.THERE if processes.is_inside(directory, root.resolve()) else State.OUTSIDE
