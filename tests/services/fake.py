"""A machine that is not there: the verified fake of `services.processes.Kernel` (verified by test_kernel.py).

    fake = FakeKernel()
    fake.script("npm", Program(ignores={SIGTERM}, children=(Program(own_session=True, keeps={"log"}),)))
    web = fake.spawn(["npm", "start"], cwd=…, env={MARKER: "node-a.7.1"}, log_fd=fd)
    fake.advance(10)                    # timers due within, and all deaths until then, are told in here
    fake.kill(web, 1)                   # it ends by itself; told at the next `advance`, of 0 seconds too
    fake = fake.reborn()                # the worker was killed: the same machine, everything is adopted now
    assert fake.strangers_signalled() == []

Nothing happens on its own: time stands still and nobody is told anything but in `advance`, in the caller's thread.
Unlike the real one it lets an exception in a callback through, so that the test sees it.
"""

import heapq
import itertools
import os
import signal
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from services.processes import MARKER, Census, Holder, Identity, Load, Mark, Member, Refused, Unknown, Verdict

HARMLESS = {0, signal.SIGSTOP, signal.SIGCONT, signal.SIGCHLD, signal.SIGWINCH}
TICKS = 100
INIT = 1


@dataclass(frozen=True)
class Program:
    """What a process does after its start.

    It fails to start with `error`; ends with code `exits` after `after_s` seconds (None: runs on); `ignores` signals;
    starts `children`, in a session of their own if they say so, which keep only these of its signs (`marker`, `log`);
    listens on `ports` of 127.0.0.1. A double fork is a child of a program that exits.
    """

    error: OSError | None = None
    exits: int | None = None
    after_s: float = 0.0
    ignores: Collection[int] = ()
    children: "Sequence[Program]" = ()
    own_session: bool = False
    keeps: Collection[str] = ("marker", "log")
    ports: Collection[int] = ()


@dataclass
class Process:
    """One simulated process; `code` None while it lives. `uid_is_ours` and `is_hidden` as /proc would show it."""

    identity: Identity
    parent: int
    group: int
    session: int
    program: Program
    argv: Sequence[str] = ()
    env: Mapping[str, str] = field(default_factory=dict)
    marker: str = ""
    log: tuple[int, int] | None = None
    is_stranger: bool = False
    uid_is_ours: bool = True
    is_hidden: bool = False
    code: int | None = None
    ended_at: float = 0.0


@dataclass(frozen=True)
class Sent:
    """One signal that reached one process."""

    identity: Identity
    number: int
    is_stranger: bool


class Machine:
    """What outlives a worker: the processes by pid (zombies too), the clock, the ports and the signals so far."""

    def __init__(self) -> None:
        self.boot_id = "fake-boot"
        self.clock = 1000.0
        self.processes: dict[int, Process] = {}
        self.listening: dict[int, Holder] = {}
        self.sent: list[Sent] = []
        self.programs: dict[str, Program] = {}
        self.timers: list[tuple[float, int, object, Callable[[], None]]] = []
        self.numbers = itertools.count()
        self.pids = itertools.count(200)
        self.workers: set[int] = set()
        self.tells_adopted_codes = True
        self.adopted_code_delay_s = 0.0

    def fork(self, program: Program, host: str, parent: int, like: Process | None = None, **more: object) -> Process:
        pid = next(self.pids)
        identity = Identity(host, self.boot_id, pid, int(self.clock * TICKS))
        process = Process(identity, parent, pid, pid, program)
        if like is not None:
            if not program.own_session:
                process.group, process.session = like.group, like.session
            process.marker = like.marker if "marker" in program.keeps else ""
            process.log = like.log if "log" in program.keeps else None
            process.is_stranger = like.is_stranger
        process = replace(process, **more)
        self.processes[pid] = process
        for port in program.ports:
            self.listening[port] = Holder(port, "127.0.0.1", pid, "fake")
        for child in program.children:
            self.fork(child, host, pid, process)
        code = program.exits
        if code is not None and program.after_s:
            self.at(program.after_s, None, lambda: self.end(process, code))
        elif code is not None:
            self.end(process, code)
        return process

    def end(self, process: Process, code: int) -> None:
        if process.code is not None:
            return
        pid = process.identity.pid
        process.code, process.ended_at = code, self.clock
        self.listening = {port: holder for port, holder in self.listening.items() if holder.pid != pid}
        self.orphan(pid)
        # Only a worker leaves its dead unreaped; init and all others collect them at once.
        if process.parent not in self.workers:
            self.processes.pop(pid, None)

    def orphan(self, pid: int) -> None:
        for process in list(self.processes.values()):
            if process.parent == pid:
                process.parent = INIT
                if process.code is not None:
                    del self.processes[process.identity.pid]

    def deliver(self, process: Process, number: int) -> None:
        if process.code is not None:
            return
        self.sent.append(Sent(process.identity, number, process.is_stranger))
        if number == signal.SIGKILL or (number not in HARMLESS and number not in process.program.ignores):
            self.end(process, -number)

    def at(self, seconds: float, owner: object, callback: Callable[[], None]) -> None:
        heapq.heappush(self.timers, (self.clock + max(seconds, 0.0), next(self.numbers), owner, callback))


class FakeKernel:
    """Implement `Kernel` on a `Machine`; see the module's example. Not for several threads at once."""

    def __init__(self, host: str = "node-a", machine: Machine | None = None) -> None:
        self.host = host
        self.machine = machine or Machine()
        self.on_death: Callable[[Identity], None] = lambda identity: None
        self.pid = next(self.machine.pids)
        self.machine.workers.add(self.pid)
        self.pinned: dict[Identity, Process] = {}
        self.told: set[Identity] = set()
        self.unseen: set[int] = set()
        self.is_started = False
        self.is_over = False

    # What a test does to the machine.

    def script(self, command: str, program: Program) -> None:
        """Say what `command` does: a whole command line, or the base name of argv[0]. All else runs until signalled."""
        self.machine.programs[command] = program

    def advance(self, seconds: float) -> None:
        """Let so much time pass: ends, deaths and timers come in their order."""
        end = self.machine.clock + seconds
        self._tell()
        while self.machine.timers and self.machine.timers[0][0] <= end:
            due, _, owner, callback = heapq.heappop(self.machine.timers)
            if owner is None or (owner is self and self.is_started and not self.is_over):
                self.machine.clock = max(self.machine.clock, due)
                callback()
                self._tell()
            elif owner is self and not self.is_over:
                raise AssertionError("a timer is due and the kernel was never started")
        self.machine.clock = end

    def kill(self, identity: Identity, code: int = -signal.SIGKILL) -> None:
        """End a process from outside, with an exit code or minus a signal."""
        self.machine.end(self.find(identity), code)

    def find(self, identity: Identity) -> Process:
        """Return a process, dead or alive. Raises KeyError when it is gone altogether."""
        process = self.machine.processes[identity.pid]
        if process.identity != identity:
            raise KeyError(identity)
        return process

    def alive(self) -> list[Identity]:
        """List the living that are no strangers, oldest first."""
        everybody = self.machine.processes.values()
        return [each.identity for each in everybody if each.code is None and not each.is_stranger]

    def adopt(self, **more: object) -> Identity:
        """Start a process that is nobody's child here, such as one of an earlier worker."""
        return self.machine.fork(Program(), self.host, INIT, **more).identity

    def stranger(self, **more: object) -> Identity:
        """Start a process that has nothing to do with us; `more` are fields of Process."""
        return self.adopt(is_stranger=True, **more)

    def reuse(self, identity: Identity) -> Identity:
        """End this process and give its pid to a stranger."""
        if identity.pid in self.machine.processes:
            self.kill(identity)
        later = replace(identity, start_ticks=max(int(self.machine.clock * TICKS), identity.start_ticks + 1))
        stranger = Process(later, INIT, later.pid, later.pid, Program(), is_stranger=True)
        self.machine.processes[later.pid] = stranger
        return later

    def hide(self, identity: Identity) -> None:
        """Make its environment and descriptors unreadable, with our user id or not as its `uid_is_ours` says."""
        self.find(identity).is_hidden = True

    def occupy(self, port: int, pid: int | None = None, since: int | None = 0) -> None:
        """Let somebody listen on a port, who started `since` (ticks)."""
        self.machine.listening[port] = Holder(port, "127.0.0.1", pid, "somebody" if pid else "", since)

    def reborn(self) -> "FakeKernel":
        """Kill the worker and start another: its children are init's now, its zombies reaped, its timers gone."""
        self.stop()
        self.machine.workers.discard(self.pid)
        self.machine.orphan(self.pid)
        return FakeKernel(self.host, self.machine)

    def strangers_signalled(self) -> list[Sent]:
        """List the signals that reached processes which were not ours; must be empty."""
        return [sent for sent in self.machine.sent if sent.is_stranger]

    # What the supervisor asks.

    def start(self) -> None:
        self.is_started = True

    def stop(self) -> None:
        self.is_over = True
        self.pinned.clear()

    def spawn(self, argv: Sequence[str], *, cwd: str, env: Mapping[str, str], log_fd: int) -> Identity:
        if not argv:
            raise ValueError("nothing to start")
        programs = self.machine.programs
        program = programs.get(" ".join(argv)) or programs.get(os.path.basename(argv[0])) or Program()
        if program.error is not None:
            raise program.error
        found = os.fstat(log_fd)
        process = self.machine.fork(
            program,
            self.host,
            self.pid,
            argv=tuple(argv),
            env=dict(env),
            marker=env.get(MARKER, ""),
            log=(found.st_dev, found.st_ino),
        )
        self.pinned[process.identity] = process
        return process.identity

    def watch(self, identity: Identity) -> bool:
        if identity in self.pinned:
            return self.pinned[identity].code is None
        match self.verdict(identity):
            case Verdict.UNKNOWN:
                raise Unknown(f"process {identity.pid} cannot be pinned")
            case Verdict.GONE:
                return False
        self.pinned[identity] = self.find(identity)
        return True

    def is_own(self, identity: Identity) -> bool:
        process = self.pinned.get(identity)
        return process is not None and process.parent == self.pid

    def verdict(self, identity: Identity) -> Verdict:
        if identity.host != self.host or identity.pid <= 1 or identity.pid in self.unseen:
            return Verdict.UNKNOWN
        process = self.machine.processes.get(identity.pid)
        is_alive = process is not None and process.identity == identity and process.code is None
        return Verdict.ALIVE if is_alive else Verdict.GONE

    def exit_code(self, identity: Identity) -> int | None:
        process = self.pinned.get(identity)
        if process is None or process.code is None or self.is_own(identity):
            return None if process is None else process.code
        is_known = self.machine.clock >= process.ended_at + self.machine.adopted_code_delay_s
        return process.code if self.machine.tells_adopted_codes and is_known else None

    def signal(self, identity: Identity, number: int) -> bool:
        if identity.pid == self.pid:
            raise Refused(f"process {self.pid} is never signalled")
        match self.verdict(identity):
            case Verdict.UNKNOWN:
                raise Unknown(f"process {identity.pid} cannot be pinned")
            case Verdict.GONE:
                return False
        process = self.find(identity)
        if not process.uid_is_ours:
            raise PermissionError(1, "Operation not permitted")
        if process.group == self.pid:
            raise Refused(f"process {identity.pid} is in our own process group")
        self.machine.deliver(process, number)
        return True

    def signal_group(self, leader: Identity, number: int) -> bool:
        if not self.is_own(leader):
            return False
        for process in list(self.machine.processes.values()):
            if process.group == leader.pid:
                self.machine.deliver(process, number)
        return True

    def release(self, identity: Identity) -> None:
        process = self.pinned.get(identity)
        if process is None or process.code is None:
            return
        if self.is_own(identity):
            del self.machine.processes[identity.pid]
        del self.pinned[identity]

    def census(self, marks: Collection[Mark]) -> Census:
        living = [each for each in self.machine.processes.values() if each.code is None]
        members = {mark.owner: found for mark in marks if (found := self._members(mark, living))}
        known = {member.identity.pid for found in members.values() for member in found}
        hidden: dict[int, list[int]] = {}
        for process in living:
            pid, founder = process.identity.pid, self.machine.processes.get(process.session)
            if not process.is_hidden or not process.uid_is_ours or pid in known:
                continue
            for mark in marks:
                oldest = process if founder is None or founder.code is not None else founder
                if min(process.identity.start_ticks, oldest.identity.start_ticks) >= mark.since_ticks:
                    hidden.setdefault(mark.owner, []).append(pid)
        return Census(members, hidden)

    def listeners(self, ports: Collection[int]) -> dict[int, Holder]:
        return {port: holder for port, holder in self.machine.listening.items() if port in ports}

    def loads(self, groups: Mapping[int, Collection[int]]) -> dict[int, Load]:
        living = {pid for pid, process in self.machine.processes.items() if process.code is None}
        counts = {owner: len(living & set(pids)) for owner, pids in groups.items()}
        return {owner: Load(0.01 * count, count << 20, count) for owner, count in counts.items() if count}

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        if not self.is_over:
            self.machine.at(seconds, self, callback)

    def _tell(self) -> None:
        if not self.is_started:
            return
        for identity, process in list(self.pinned.items()):
            if process.code is not None and identity not in self.told and identity in self.pinned:
                self.told.add(identity)
                self.on_death(identity)

    def _members(self, mark: Mark, living: Sequence[Process]) -> list[Member]:
        signs: dict[int, set[str]] = {}
        generations: dict[int, int] = {}
        for process in living:
            pid = process.identity.pid
            if process.identity.start_ticks < mark.since_ticks:
                continue
            seen = {"session"} if process.session == mark.session else set()
            generation = process.marker.removeprefix(mark.marker)
            if not process.is_hidden and process.marker.startswith(mark.marker) and generation.encode().isdigit():
                seen.add("marker")
                generations[pid] = int(generation)
            if not process.is_hidden and mark.log is not None and process.log == mark.log:
                seen.add("log")
            if seen:
                signs[pid] = seen
        # Pids only grow here, so parents come before their children.
        for process in living:
            pid = process.identity.pid
            if process.parent in signs and process.identity.start_ticks >= mark.since_ticks:
                signs.setdefault(pid, set()).add("descendant")
        found = {process.identity.pid: process for process in living}
        return [
            Member(each.identity, each.parent, each.group, each.session, generations.get(pid), frozenset(signs[pid]))
            for pid in sorted(signs)
            for each in (found[pid],)
        ]
