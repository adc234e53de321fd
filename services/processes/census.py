"""Whose process is whose: one pass over /proc (spec/services.md 3, "What is ours")."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from services.processes.identity import Identity, boot_id
from services.processes.kernel import MARKER, Census, Mark, Member
from services.processes.proc import Stat, control_group, pids, read_stat, real_uid

_KEY = os.fsencode(MARKER) + b"="
_BLOCK = 128 * 1024
# The kernel gives arguments and environment 6 MiB at most (fs/exec.c); what claims more is not read on.
_MOST_ENVIRONMENT = 8 * 1024 * 1024
_MOST_DIGITS = 18
_MOST_ROUNDS = 8


def take(marks: Collection[Mark], host: str) -> Census:
    """Find the living processes of these services, oldest first.

    A process is a member by the marker in its environment, by its session, by its output (descriptor 1 or 2) going to
    the log, or as the child of a member; only if it started at `since_ticks` or later. Members carry every sign that
    was seen. We ourselves and our ancestors are never members, and nothing is inherited from them.

    `hidden` is for whom it could be: an entry that may not be read, is no member of anybody, has our real user id
    (others' are strangers) and our control group, no readable stranger for a parent, started at `since_ticks` or
    later, and whose session was not founded before that. (A
    session is only ever inherited or founded, so one older than the service's first process holds nothing of it.)

    /proc is listed again until a listing brings nothing new (8 times at most), so that what is forked during the pass
    is seen too; what forks and ends on and on can still slip through, and a process in the middle of an exec shows no
    environment: only two empty answers in a row say that nothing is left. Raises OSError when /proc cannot be listed.
    """
    if not marks:
        return Census()
    view = _View(marks)
    view.look()
    view.inherit()
    boot = boot_id()
    return Census(
        members={owner: view.members_of(owner, host, boot) for owner in view.signs},
        hidden={owner: found for owner, found in view.hidden().items() if found},
    )


@dataclass(slots=True)
class _Sighting:
    signs: set[str] = field(default_factory=set)
    generation: int | None = None


class _View:
    """What one pass sees: `signs` by owner and pid, `stats` by pid, `unread` the pids not fully read."""

    def __init__(self, marks: Collection[Mark]) -> None:
        self.marks = marks
        self.since = min(mark.since_ticks for mark in marks)
        self.by_marker: dict[bytes, list[Mark]] = defaultdict(list)
        self.by_session: dict[int, list[Mark]] = defaultdict(list)
        self.by_log: dict[tuple[int, int], list[Mark]] = defaultdict(list)
        for mark in marks:
            self.by_marker[os.fsencode(mark.marker)].append(mark)
            if mark.session is not None:
                self.by_session[mark.session].append(mark)
            if mark.log is not None:
                self.by_log[mark.log].append(mark)
        self.stats: dict[int, Stat] = {}
        self.signs: dict[int, dict[int, _Sighting]] = {}
        self.unread: set[int] = set()
        self.exempt: set[int] = set()

    def look(self) -> None:
        """Read every process once, those that come meanwhile included."""
        self.exempt = set(_line_of(os.getpid()))
        seen: set[int] = set()
        for _ in range(_MOST_ROUNDS):
            # The newest first: what forks and ends on and on is gone before the old ones are read.
            fresh = sorted((pid for pid in pids() if pid not in seen), reverse=True)
            if not fresh:
                break
            seen.update(fresh)
            for pid in fresh:
                self._read(pid)

    def inherit(self) -> None:
        """Make the children of members members, however deep and in whatever session."""
        children: dict[int, list[int]] = defaultdict(list)
        for pid, stat in self.stats.items():
            parent = self.stats.get(stat.parent)
            # A "parent" younger than its child is another process with a reused pid; so children are never older than
            # `since_ticks` when their parents are not.
            if parent is not None and pid not in self.exempt and stat.start_ticks >= parent.start_ticks:
                children[stat.parent].append(pid)
        for found in self.signs.values():
            waiting = list(found)
            done = set(waiting)
            while waiting:
                for pid in children[waiting.pop()]:
                    found.setdefault(pid, _Sighting()).signs.add("descendant")
                    if pid not in done:
                        done.add(pid)
                        waiting.append(pid)

    def members_of(self, owner: int, host: str, boot: str) -> Sequence[Member]:
        """Name an owner's members, oldest first."""
        members = []
        for pid, sighting in self.signs[owner].items():
            stat = self.stats[pid]
            identity = Identity(host, boot, pid, stat.start_ticks)
            members.append(
                Member(identity, stat.parent, stat.group, stat.session, sighting.generation, frozenset(sighting.signs))
            )
        return sorted(members, key=lambda member: (member.identity.start_ticks, member.identity.pid))

    def hidden(self) -> dict[int, list[int]]:
        """Return for each owner the pids that could be its, for all that we can see."""
        known = {pid for found in self.signs.values() for pid in found}
        found: dict[int, list[int]] = defaultdict(list)
        # What we start stays in our control group; a login of our user has another, and must not keep us waiting.
        ours = control_group(os.getpid())
        for pid in sorted(self.unread - known - self.exempt):
            if not _is_of_our_user(pid) or control_group(pid) not in {None, ours}:
                continue
            stat = self.stats.get(pid)
            if stat is not None and self._is_a_strangers_child(stat, known):
                continue
            founder = self.stats.get(stat.session) if stat is not None else None
            for mark in self.marks:
                if stat is not None and (stat.start_ticks < mark.since_ticks or stat.session == 0):
                    continue
                if founder is None or founder.start_ticks >= mark.since_ticks:
                    found[mark.owner].append(pid)
        return found

    def _is_a_strangers_child(self, stat: Stat, known: set[int]) -> bool:
        """Say whether its parent can be read and is nobody's: what loses its parent goes to an ancestor or to init."""
        stranger = stat.parent > 1 and stat.parent in self.stats
        return stranger and stat.parent not in known | self.unread | self.exempt

    def _read(self, pid: int) -> None:
        try:
            stat = read_stat(pid)
        except (FileNotFoundError, ProcessLookupError):
            return
        except (OSError, ValueError, IndexError):
            self.unread.add(pid)
            return
        if stat.is_dead:
            return
        self.stats[pid] = stat
        if stat.start_ticks >= self.since and pid not in self.exempt:
            self._read_signs(pid, stat)

    def _read_signs(self, pid: int, stat: Stat) -> None:
        self._note("session", self.by_session.get(stat.session, ()), pid, stat)
        try:
            # One descriptor for all reads: they are surely of one process.
            folder = os.open(_folder(pid, stat), os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for prefix, generation in _markers(_environment(folder)):
                    self._note("marker", self.by_marker.get(prefix, ()), pid, stat, generation)
                if self.by_log:
                    for place in _outputs(folder):
                        self._note("log", self.by_log.get(place, ()), pid, stat)
            finally:
                os.close(folder)
        except (FileNotFoundError, ProcessLookupError):
            return
        except OSError:
            self.unread.add(pid)

    def _note(self, sign: str, marks: Iterable[Mark], pid: int, stat: Stat, generation: int | None = None) -> None:
        for mark in marks:
            if stat.start_ticks >= mark.since_ticks:
                sighting = self.signs.setdefault(mark.owner, {}).setdefault(pid, _Sighting())
                sighting.signs.add(sign)
                if sighting.generation is None:
                    sighting.generation = generation


def _line_of(pid: int) -> Iterator[int]:
    """Yield a pid and its ancestors."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        while pid > 0:
            yield pid
            pid = read_stat(pid).parent


def _folder(pid: int, stat: Stat) -> str:
    """Return where the memory and descriptors of a process show: a leader thread that left has none any more."""
    if stat.state != "Z":
        return f"/proc/{pid}"
    with os.scandir(f"/proc/{pid}/task") as threads:
        others = (thread.name for thread in threads if thread.name != str(pid))
        return f"/proc/{pid}/task/{next(others, pid)}"


def _environment(folder: int) -> bytes:
    fd = os.open("environ", os.O_RDONLY | os.O_CLOEXEC, dir_fd=folder)
    try:
        blocks, size = [], 0
        # A short read is not the end: the kernel reads by pages.
        while size < _MOST_ENVIRONMENT and (block := os.read(fd, _BLOCK)):
            blocks.append(block)
            size += len(block)
    finally:
        os.close(fd)
    return b"".join(blocks)


def _markers(environment: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield (`<node>.<id>.`, generation) of each well-formed marker in a NUL-separated environment."""
    if _KEY not in environment:
        return
    for entry in environment.split(b"\0"):
        if entry.startswith(_KEY):
            head, dot, generation = entry.removeprefix(_KEY).rpartition(b".")
            # isdigit of bytes knows the ASCII digits only.
            if generation.isdigit() and len(generation) <= _MOST_DIGITS:
                yield head + dot, int(generation)


def _outputs(folder: int) -> Iterator[tuple[int, int]]:
    """Yield (st_dev, st_ino) of what descriptors 1 and 2 lead to."""
    for output in ("fd/1", "fd/2"):
        with contextlib.suppress(FileNotFoundError):
            found = os.stat(output, dir_fd=folder)
            yield found.st_dev, found.st_ino


def _is_of_our_user(pid: int) -> bool:
    """Tell whether an unreadable process could be one that we started; also when that cannot be read."""
    try:
        return real_uid(pid) == os.getuid()
    except OSError:
        with contextlib.suppress(OSError):
            # hidepid hides the status but not whose the folder is.
            return Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
        return True
