"""The real kernel: pidfds, /proc and one thread."""

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Callable, Collection, Mapping, Sequence

from services.processes import census, exits, ports
from services.processes.identity import (
    Gone,
    Identity,
    Pin,
    Refused,
    Verdict,
    boot_id,
    pin,
    read_start_ticks,
    spawn,
    verdict,
)
from services.processes.kernel import Census, Holder, Load, Mark
from services.processes.proc import CLOCK_TICKS, PAGE_SIZE, use
from services.processes.watch import Watch


class Linux:
    """Implement `kernel.Kernel` on Linux >= 5.4.

    Every watched process is held by a pidfd from `spawn` or `watch` to `release`, one descriptor each. Nobody else may
    reap our children: no waitpid(-1), no SIGCHLD set to be ignored (then codes come from the kernel's record only).
    """

    def __init__(self, host: str) -> None:
        """See processes as the worker of the node `host`."""
        self.host = host
        self.on_death: Callable[[Identity], None] = _nobody_asks
        self._lock = threading.Lock()
        self._pins: dict[Identity, Pin] = {}
        # Whom `spawn` made and nobody has reaped: other children of this process are their own starters' to reap.
        self._children: set[Identity] = set()
        self._waiting: dict[int, Identity] = {}
        self._watch = Watch("andon-watch", self._on_ready)

    def start(self) -> None:
        """Start to look for deaths and timers; raises the limit of open files to the hard one (spec 3)."""
        hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        self._watch.start()

    def stop(self) -> None:
        """Stop to look for good, join the thread, let go of all pins. Processes are left alone, children unreaped."""
        self._watch.stop()
        with self._lock:
            for held in self._pins.values():
                held.close()
            self._pins.clear()
            self._children.clear()
            self._waiting.clear()

    def spawn(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], log_fd: int) -> Identity:
        """Start a process in a session of its own, watched from its first moment.

        Raises like `identity.spawn`; OSError also when the process cannot be watched: it is killed then. `on_death` may
        be called before this returns.
        """
        child = spawn(argv, cwd=cwd, env=env, log_fd=log_fd)
        # Else a dropped Popen warns and hands the child to whichever Popen comes next, which would reap it.
        child.returncode = 0
        try:
            # Nobody but us reaps the child, so neither its pid nor its start ticks can be another's.
            identity = Identity(self.host, boot_id(), child.pid, read_start_ticks(child.pid))
            with self._lock:
                self._children.add(identity)
            self._keep(Pin(identity, os.pidfd_open(child.pid)))
        except BaseException:
            os.killpg(child.pid, signal.SIGKILL)
            os.waitid(os.P_PID, child.pid, os.WEXITED)
            raise
        return identity

    def watch(self, identity: Identity) -> bool:
        """Pin a process and tell when it ends; False when it has ended already. Raises Unknown."""
        with self._lock:
            held = self._pins.get(identity)
            if held is not None:
                return not held.wait(0)
        try:
            self._keep(pin(identity, self.host))
        except Gone:
            return False
        return True

    def is_own(self, identity: Identity) -> bool:
        """Say whether it was spawned here and is not reaped yet, dead or alive."""
        with self._lock:
            return self._is_own(identity)

    def verdict(self, identity: Identity) -> Verdict:
        """Say whether it lives; a zombie does not."""
        return verdict(identity, self.host)

    def exit_code(self, identity: Identity) -> int | None:
        """Return how a watched process ended; None while it lives or when that cannot be observed.

        Of an adopted one the zombie tells while it lasts, then the kernel's record; in between, and for one that runs
        as another user, ask again a moment later before calling it unobserved (see `exits`).
        """
        with self._lock:
            held = self._pins.get(identity)
            code = None if held is None else exits.exit_code(held.fileno())
        return exits.code_of_zombie(identity.pid, identity.start_ticks) if held is not None and code is None else code

    def signal(self, identity: Identity, number: int) -> bool:
        """Signal one process, pinned for that; False when it has ended. Raises Unknown, Refused, PermissionError."""
        with self._lock:
            kept = self._pins.get(identity)
            if kept is not None:
                return _signal(kept, number)
        try:
            with pin(identity, self.host) as held:
                return _signal(held, number)
        except Gone:
            return False

    def signal_group(self, leader: Identity, number: int) -> bool:
        """Signal the process group of a child of ours that is not reaped, be it dead; False for any other.

        Raises PermissionError when no member may be signalled, Refused for our own group.
        """
        with self._lock:
            # Unreaped, and reaped only under this lock: the number cannot come to mean another group meanwhile.
            if not self._is_own(leader):
                return False
            if leader.pid <= 1 or leader.pid == os.getpgrp():
                raise Refused(f"process group {leader.pid} is never signalled")
            try:
                os.killpg(leader.pid, number)
            except ProcessLookupError:
                return False
            return True

    def release(self, identity: Identity) -> None:
        """Reap a child of ours that has ended, and let go of the pin; nothing for one that lives or is unknown here.

        One that is released before its death was told is not told any more.
        """
        with self._lock:
            held = self._pins.get(identity)
            if held is None or not held.wait(0):
                return
            del self._pins[identity]
            if identity in self._children:
                self._children.discard(identity)
                exits.reap(held.fileno())
            self._let_go(held.fileno())
            held.close()

    def census(self, marks: Collection[Mark]) -> Census:
        """Find the living processes of these services in one pass over /proc, see `census.take`."""
        return census.take(marks, self.host)

    def listeners(self, ports_: Collection[int]) -> dict[int, Holder]:
        """Return who listens on which of these TCP ports, see `ports.listeners`."""
        return ports.listeners(ports_)

    def loads(self, groups: Mapping[int, Collection[int]]) -> dict[int, Load]:
        """Return what groups of pids (by owner) use now; pids that are gone are left out, and owners without any."""
        found = {}
        for owner, pids in groups.items():
            ticks, pages, count = use(pids)
            if count:
                found[owner] = Load(ticks / CLOCK_TICKS, pages * PAGE_SIZE, count)
        return found

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in so many seconds, from the watch's thread; must not wait. Nothing after `stop`."""
        self._watch.after(seconds, callback)

    def _is_own(self, identity: Identity) -> bool:
        held = self._pins.get(identity)
        return identity in self._children and held is not None and exits.is_child(held.fileno())

    def _keep(self, held: Pin) -> None:
        """Wait for the end of this process; closes the pin where it is not kept."""
        try:
            with self._lock:
                if held.identity not in self._pins:
                    self._watch.add(held.fileno())
                    self._pins[held.identity] = held
                    self._waiting[held.fileno()] = held.identity
        finally:
            if self._pins.get(held.identity) is not held:
                held.close()

    def _let_go(self, fd: int) -> None:
        if self._waiting.pop(fd, None) is not None:
            self._watch.drop(fd)

    def _on_ready(self, fd: int) -> None:
        with self._lock:
            identity = self._waiting.get(fd)
            # The event may be about an earlier process, released since, whose descriptor's number was given again.
            if identity is None or not self._pins[identity].wait(0):
                return
            self._let_go(fd)
        self.on_death(identity)


def _nobody_asks(identity: Identity) -> None:
    """Stand in for `on_death` until it is set."""


def _signal(held: Pin, number: int) -> bool:
    if held.wait(0):
        return False
    try:
        held.signal(number)
    except Gone:
        return False
    return True
