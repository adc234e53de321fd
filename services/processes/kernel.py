"""What the supervisor asks of an operating system; `linux.Linux` is the real one, tests bring a verified fake."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from services.processes.identity import Identity, Verdict

MARKER = "ANDON_SERVICE"


@dataclass(frozen=True, slots=True)
class Mark:
    """By what the processes of one service are recognised (spec: what is ours).

    `owner` is the row's id. `marker` is `<node>.<id>.`: the beginning of the value of ANDON_SERVICE, which ends with
    the generation. `session` is the leader's pid, None where that number may have come to mean another session.
    `log` is (st_dev, st_ino) of the log file. Only what started at `since_ticks` (clock ticks since boot) or later
    counts.
    """

    owner: int
    marker: str
    session: int | None = None
    log: tuple[int, int] | None = None
    since_ticks: int = 0


@dataclass(frozen=True, slots=True)
class Member:
    """One living process that is ours; `generation` as its marker says, None when it carries none."""

    identity: Identity
    parent: int
    group: int
    session: int
    generation: int | None
    signs: frozenset[str]
    """Of `marker`, `session`, `log`, `descendant`."""


@dataclass(frozen=True, slots=True)
class Census:
    """Who is there, by owner; owners without anybody are absent.

    `hidden`: pids that may be ours but could not be read; with such a one nobody may say that nothing is left.
    """

    members: Mapping[int, Sequence[Member]] = field(default_factory=dict)
    hidden: Mapping[int, Sequence[int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Holder:
    """Who listens on a port: `pid` None when that cannot be told (another user's, another namespace's).

    `start_ticks` of that process, None when not known.
    """

    port: int
    address: str
    pid: int | None
    name: str
    start_ticks: int | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Load:
    """What a group of processes uses: `cpu_s` seconds of processor time so far, `rss` bytes, `count` processes."""

    cpu_s: float
    rss: int
    count: int


class Kernel(Protocol):
    """Processes, as one worker sees them. Safe to call from any thread; nothing waits but `spawn` (milliseconds).

    `host` is the worker's node. `on_death` is called once for each watched identity that ends, from a thread of the
    kernel's own, and must not wait; an exception in it is logged.
    """

    host: str
    on_death: Callable[[Identity], None]

    def start(self) -> None:
        """Start to look for deaths and timers."""

    def stop(self) -> None:
        """Stop to look; let go of all pins. Processes are left alone."""

    def spawn(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], log_fd: int) -> Identity:
        """Start a process in a session of its own, watched from its first moment.

        Raises OSError or ValueError like `identity.spawn`; returns its identity even when it has ended already (then
        `on_death` follows).
        """

    def watch(self, identity: Identity) -> bool:
        """Pin a process and tell when it ends; a second call does nothing.

        False when it has ended already (`on_death` is not called). Raises Unknown when it cannot be seen.
        """

    def is_own(self, identity: Identity) -> bool:
        """Say whether it is a child of this process that is not reaped yet, dead or alive."""

    def verdict(self, identity: Identity) -> Verdict:
        """Say whether it lives; a zombie does not."""

    def exit_code(self, identity: Identity) -> int | None:
        """Return how a watched process ended: its code, or minus the signal; None while it lives or when unobservable.

        Reaps nothing. Of a child of ours by waitid with WNOWAIT, of an adopted one by PIDFD_GET_INFO.
        """

    def signal(self, identity: Identity, number: int) -> bool:
        """Signal one process, pinned for that; False when it has ended. Raises Unknown, Refused, PermissionError."""

    def signal_group(self, leader: Identity, number: int) -> bool:
        """Signal the process group of a child of ours that is not reaped; False for any other, nothing is done then."""

    def release(self, identity: Identity) -> None:
        """Reap a child of ours that has ended, and let go of the pin; nothing for one that is unknown here."""

    def census(self, marks: Collection[Mark]) -> Census:
        """Find the living processes of these services in one pass over /proc, descendants included."""

    def listeners(self, ports: Collection[int]) -> dict[int, Holder]:
        """Return who listens on which of these TCP ports, on any address of either family."""

    def loads(self, groups: Mapping[int, Collection[int]]) -> dict[int, Load]:
        """Return what groups of pids (by owner) use now, one read of /proc/PID/stat each; those gone are left out."""

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in so many seconds, from the kernel's own thread; must not wait."""
