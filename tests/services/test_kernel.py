"""One suite for the real kernel and its fake: what the supervisor may rely on."""

import abc
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from services.processes import (
    MARKER,
    Holder,
    Identity,
    Kernel,
    Linux,
    Mark,
    Member,
    Refused,
    Unknown,
    Verdict,
    boot_id,
    descendants,
    exits,
    identify,
    read_start_ticks,
)
from services.processes.watch import Watch
from tests.services.fake import FakeKernel, Program

# Of this process alone: another one of the suite looks at the same /proc.
HOST = f"node-{os.getpid()}"
OWNER = 7
MARKED = {MARKER: f"{HOST}.{OWNER}.3"}
PATH = {"PATH": "/usr/local/bin:/usr/bin:/bin"}
TERM, KILL = signal.SIGTERM, signal.SIGKILL

# Overwrites its environment in place, as programs do that write their title there.
ERASER = """
import ctypes, time
fields = open("/proc/self/stat").read().rpartition(")")[2].split()
start, end = int(fields[47]), int(fields[48])
ctypes.memset(start, 120, end - start)
ctypes.CDLL(None).prctl(15, b") R 1 (", 0, 0, 0)
time.sleep(60)
"""
# Leaves its first thread by exit(2): a zombie by its state, alive by its second thread.
HEADLESS = """
import ctypes, os, threading, time
threading.Thread(target=time.sleep, args=(60,)).start()
ctypes.CDLL(None).syscall({"x86_64": 60}.get(os.uname().machine, 93), 0)
"""
NURSERY = """
import subprocess, sys
for line in sys.stdin:
    if line == "start\\n":
        child = subprocess.Popen(
            ["/bin/sh", "-c", "read code; exit $code"], stdin=subprocess.PIPE, start_new_session=True
        )
        print(child.pid, flush=True)
    elif line == "reap\\n":
        child.wait()
        print("reaped", flush=True)
    else:
        child.stdin.write(line.encode())
        child.stdin.close()
"""


def sh(script: str) -> list[str]:
    return ["/bin/sh", "-c", script]


def nested(script: str) -> list[str]:
    return sh(f"sh -c '{script} & wait' & wait")


# What runs for real, and what the fake is told that it does.
SCENES: dict[str, tuple[list[str], Program]] = {
    "sleeper": (["/bin/sleep", "60"], Program()),
    "exits": (sh("exit 7"), Program(exits=7)),
    "stubborn": (sh('trap "" TERM; : > ready; exec sleep 60'), Program(ignores={TERM})),
    "tree": (
        nested(f'{sys.executable} -S -E -c "import time; time.sleep(60)"'),
        Program(children=[Program(children=[Program()])]),
    ),
    "headless group": (sh("sleep 60 & exit 3"), Program(exits=3, children=[Program()])),
    "escapee": (sh("setsid sleep 60 & wait"), Program(children=[Program(own_session=True)])),
    "double fork": (sh("(setsid sleep 60 &)"), Program(exits=0, children=[Program(own_session=True)])),
    "log only": (
        sh("env -i /usr/bin/setsid /bin/sleep 60 &"),
        Program(exits=0, children=[Program(own_session=True, keeps=["log"])]),
    ),
    "marker only": (
        sh("setsid sleep 60 > /dev/null 2>&1 &"),
        Program(exits=0, children=[Program(own_session=True, keeps=["marker"])]),
    ),
    "session only": (
        sh("env -i /bin/sleep 60 > /dev/null 2>&1 &"),
        Program(exits=0, children=[Program(keeps=[])]),
    ),
    "descendant only": (
        sh("env -i /usr/bin/setsid /bin/sleep 60 > /dev/null 2>&1 & wait"),
        Program(children=[Program(own_session=True, keeps=[])]),
    ),
    "deep": (
        sh("env -i /usr/bin/setsid /bin/sh -c 'setsid sleep 60 & wait' > /dev/null 2>&1 & wait"),
        Program(children=[Program(own_session=True, keeps=[], children=[Program(own_session=True)])]),
    ),
}


class Nursery:
    """A process that is not our child: it ends with a code when told, and its parent reaps it when told."""

    def __init__(self, rig: "Rig") -> None:
        self._parent = subprocess.Popen(
            [sys.executable, "-S", "-E", "-c", NURSERY], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        identity = identify(int(self._ask("start")), HOST)
        assert identity is not None
        self.identity = identity
        rig.cleanup.callback(self._close)

    def end(self, code: int) -> None:
        self._tell(str(code))

    def reap(self) -> None:
        self._ask("reap")

    def _tell(self, line: str) -> None:
        assert self._parent.stdin is not None
        self._parent.stdin.write(line + "\n")
        self._parent.stdin.flush()

    def _ask(self, line: str) -> str:
        self._tell(line)
        assert self._parent.stdout is not None
        return self._parent.stdout.readline()

    def _close(self) -> None:
        with contextlib.suppress(OSError):
            os.killpg(self.identity.pid, KILL)
        self._parent.communicate(timeout=20)


@dataclass
class FakeNursery:
    fake: FakeKernel

    def __post_init__(self) -> None:
        self.fake.machine.adopted_code_delay_s = 1e6
        self.identity = self.fake.adopt()

    def end(self, code: int) -> None:
        self.fake.kill(self.identity, code)

    def reap(self) -> None:
        self.fake.machine.adopted_code_delay_s = 0


class Rig(abc.ABC):
    """A kernel under test, the log of its processes, and what it told."""

    def __init__(self, folder: Path, cleanup: contextlib.ExitStack) -> None:
        self.folder = folder
        self.cleanup = cleanup
        self.deaths: list[Identity] = []
        self.log_fd = os.open(folder / "out.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        cleanup.callback(os.close, self.log_fd)
        self.kernel: Kernel = self.make()
        cleanup.callback(lambda: self.kernel.stop())  # noqa: PLW0108 (`renew` puts another one there)
        self.begin()

    def begin(self) -> None:
        self.kernel.on_death = self.deaths.append
        self.kernel.start()

    @abc.abstractmethod
    def spawn(self, scene: str = "sleeper", **env: str) -> Identity:
        """Start the program of a scene."""

    @abc.abstractmethod
    def make(self) -> Kernel:
        """Return a kernel of this world."""

    def mark(self, leader: Identity, **change: object) -> Mark:
        found = os.fstat(self.log_fd)
        mark = Mark(OWNER, f"{HOST}.{OWNER}.", leader.pid, (found.st_dev, found.st_ino), leader.start_ticks)
        return dataclasses.replace(mark, **change)

    def members(self, leader: Identity, **change: object) -> list[Member]:
        census = self.kernel.census([self.mark(leader, **change)])
        assert not census.hidden
        return list(census.members.get(OWNER, ()))

    def signs(self, leader: Identity, **change: object) -> list[set[str]]:
        """Return the signs of each member but the leader, oldest first."""
        return [set(each.signs) for each in self.members(leader, **change) if each.identity != leader]

    def told(self, identity: Identity) -> None:
        self.eventually(lambda: identity in self.deaths)


class RealRig(Rig):
    def make(self) -> Kernel:
        return Linux(HOST)

    def spawn(self, scene: str = "sleeper", **env: str) -> Identity:
        argv = SCENES[scene][0]
        identity = self.kernel.spawn(argv, cwd=str(self.folder), env={**PATH, **MARKED, **env}, log_fd=self.log_fd)
        self.cleanup.callback(self._sweep, identity)
        self.eventually(lambda: self._has_begun(identity))
        if "ready" in argv[-1]:
            self.eventually((self.folder / "ready").exists)
        return identity

    def adopt(self) -> Nursery:
        return Nursery(self)

    def kill(self, identity: Identity) -> None:
        os.kill(identity.pid, KILL)

    def renew(self) -> None:
        self.kernel.stop()
        self.kernel = Linux(HOST)
        self.begin()

    def eventually(self, question: Callable[[], object], seconds: float = 20) -> None:
        end = time.monotonic() + seconds
        while not question():
            assert time.monotonic() < end, "it never came"
            time.sleep(0.003)

    def _has_begun(self, identity: Identity) -> bool:
        # `spawn` returns in the middle of the exec, when there is no environment yet.
        with contextlib.suppress(OSError):
            if Path(f"/proc/{identity.pid}/environ").read_bytes():
                return True
        return self.kernel.verdict(identity) is Verdict.GONE

    def _sweep(self, leader: Identity) -> None:
        with Linux_(HOST) as kernel:
            end = time.monotonic() + 20
            while found := kernel.census([self.mark(leader)]).members:
                assert time.monotonic() < end
                for member in found[OWNER]:
                    kernel.signal(member.identity, KILL)
        with contextlib.suppress(ChildProcessError):
            os.waitpid(leader.pid, 0)


@contextlib.contextmanager
def Linux_(host: str) -> Iterator[Linux]:  # noqa: N802
    kernel = Linux(host)
    try:
        yield kernel
    finally:
        kernel.stop()


class FakeRig(Rig):
    kernel: FakeKernel

    def make(self) -> FakeKernel:
        fake = FakeKernel(HOST)
        for argv, program in SCENES.values():
            fake.script(" ".join(argv), program)
        fake.script("missing", Program(error=FileNotFoundError(2, "No such file or directory", "missing")))
        return fake

    def spawn(self, scene: str = "sleeper", **env: str) -> Identity:
        identity = self.kernel.spawn(
            SCENES[scene][0], cwd=str(self.folder), env={**PATH, **MARKED, **env}, log_fd=self.log_fd
        )
        self.kernel.machine.clock += 1
        return identity

    def adopt(self) -> FakeNursery:
        return FakeNursery(self.kernel)

    def kill(self, identity: Identity) -> None:
        self.kernel.kill(identity)

    def renew(self) -> None:
        self.kernel.stop()
        machine = self.kernel.machine
        self.kernel = self.kernel.reborn()
        assert self.kernel.machine is machine
        self.begin()

    def eventually(self, question: Callable[[], object], seconds: float = 20) -> None:
        for _ in range(100):
            if question():
                return
            self.kernel.advance(seconds / 100)
        raise AssertionError("it never came")


@pytest.fixture(params=["real", "fake"])
def rig(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Rig]:
    with contextlib.ExitStack() as cleanup:
        yield (RealRig if request.param == "real" else FakeRig)(tmp_path, cleanup)


@pytest.fixture
def real(tmp_path: Path) -> Iterator[RealRig]:
    with contextlib.ExitStack() as cleanup:
        yield RealRig(tmp_path, cleanup)


# Start, death, code


def test_a_spawned_process_lives_is_ours_and_has_no_code(rig: Rig) -> None:
    identity = rig.spawn()
    assert identity.host == HOST
    assert rig.kernel.verdict(identity) is Verdict.ALIVE
    assert rig.kernel.is_own(identity)
    assert rig.kernel.exit_code(identity) is None
    assert rig.kernel.watch(identity), "a second watch does nothing"
    rig.kernel.release(identity)
    assert rig.kernel.is_own(identity), "the living are not released"
    assert rig.deaths == []


def test_an_exit_is_told_once_with_its_code_until_release(rig: Rig) -> None:
    identity = rig.spawn("exits")
    rig.told(identity)
    assert rig.kernel.verdict(identity) is Verdict.GONE
    assert rig.kernel.is_own(identity), "dead, not reaped"
    assert not rig.kernel.watch(identity)
    assert [rig.kernel.exit_code(identity) for _ in range(2)] == [7, 7], "asking reaps nothing"
    rig.kernel.release(identity)
    assert not rig.kernel.is_own(identity)
    assert rig.kernel.exit_code(identity) is None
    assert not rig.kernel.watch(identity)
    rig.kernel.release(identity)
    other = rig.spawn("exits")
    rig.told(other)
    assert rig.deaths == [identity, other]


@pytest.mark.parametrize("number", [KILL, TERM, signal.SIGUSR1])
def test_a_signal_is_told_as_minus_its_number(rig: Rig, number: int) -> None:
    identity = rig.spawn()
    assert rig.kernel.signal(identity, number)
    rig.told(identity)
    assert rig.kernel.exit_code(identity) == -number
    assert not rig.kernel.signal(identity, number), "it has ended"


def test_a_death_from_outside_is_told(rig: Rig) -> None:
    identity, other = rig.spawn(), rig.spawn()
    rig.kill(identity)
    rig.told(identity)
    assert rig.deaths == [identity]
    assert rig.kernel.verdict(other) is Verdict.ALIVE


def test_one_that_is_released_before_it_is_told_is_not_told(rig: Rig) -> None:
    first, second = rig.spawn(), rig.spawn()

    def release_second(identity: Identity) -> None:
        rig.deaths.append(identity)
        rig.kill(second)
        end = time.monotonic() + 20
        while rig.kernel.is_own(second) and time.monotonic() < end:
            rig.kernel.release(second)

    rig.kernel.on_death = release_second
    rig.kill(first)
    rig.told(first)
    rig.eventually(lambda: not rig.kernel.is_own(second))
    third = rig.spawn()
    rig.kernel.on_death = rig.deaths.append
    rig.kill(third)
    rig.told(third)
    assert rig.deaths == [first, third]


def test_what_cannot_start_raises_and_leaves_nothing(rig: Rig) -> None:
    for argv, error in (([], ValueError), (["missing"], OSError)):
        with pytest.raises(error):
            rig.kernel.spawn(argv, cwd=str(rig.folder), env=PATH, log_fd=rig.log_fd)
    assert rig.deaths == []


# Signals


def test_the_whole_group_is_signalled(rig: Rig) -> None:
    leader = rig.spawn("tree")
    rig.eventually(lambda: len(rig.members(leader)) == 3)
    assert {member.group for member in rig.members(leader)} == {leader.pid}
    assert rig.kernel.signal_group(leader, TERM)
    rig.told(leader)
    rig.eventually(lambda: rig.members(leader) == [])
    assert rig.kernel.exit_code(leader) == -TERM


def test_the_group_of_a_dead_leader_is_signalled_until_it_is_reaped(rig: Rig) -> None:
    leader = rig.spawn("headless group")
    rig.told(leader)
    assert rig.kernel.exit_code(leader) == 3
    rig.eventually(lambda: len(rig.members(leader)) == 1)
    (left,) = rig.members(leader)
    assert left.identity != leader
    assert left.group == leader.pid
    assert rig.kernel.signal_group(leader, TERM)
    rig.eventually(lambda: rig.members(leader) == [])
    rig.kernel.release(leader)
    assert not rig.kernel.signal_group(leader, TERM)


def test_who_ignores_term_is_killed(rig: Rig) -> None:
    identity = rig.spawn("stubborn")
    assert rig.kernel.signal_group(identity, TERM)
    assert rig.kernel.signal(identity, TERM)
    assert rig.kernel.verdict(identity) is Verdict.ALIVE
    assert rig.kernel.signal_group(identity, KILL)
    rig.told(identity)
    assert rig.kernel.exit_code(identity) == -KILL


def test_a_stranger_with_a_reused_pid_is_never_signalled(rig: Rig) -> None:
    stranger = rig.spawn()
    ours = dataclasses.replace(stranger, start_ticks=stranger.start_ticks - 1)
    assert rig.kernel.verdict(ours) is Verdict.GONE
    assert not rig.kernel.watch(ours)
    assert not rig.kernel.signal(ours, KILL)
    assert not rig.kernel.signal_group(ours, KILL)
    assert not rig.kernel.is_own(ours)
    rig.kernel.release(ours)
    another_boot = dataclasses.replace(stranger, boot_id="another")
    assert not rig.kernel.signal(another_boot, KILL)
    assert rig.kernel.verdict(stranger) is Verdict.ALIVE


@pytest.mark.parametrize("change", [{"host": "node-b"}, {"pid": 1}, {"pid": 0}, {"pid": -1}])
def test_what_cannot_be_seen_is_not_touched(rig: Rig, change: dict[str, object]) -> None:
    identity = dataclasses.replace(rig.spawn(), **change)
    assert rig.kernel.verdict(identity) is Verdict.UNKNOWN
    with pytest.raises(Unknown):
        rig.kernel.signal(identity, KILL)
    with pytest.raises(Unknown):
        rig.kernel.watch(identity)
    assert not rig.kernel.signal_group(identity, KILL)


# Adoption


def test_an_adopted_process_is_watched_but_not_ours(rig: Rig) -> None:
    child = rig.adopt()
    assert rig.kernel.watch(child.identity)
    assert rig.kernel.watch(child.identity)
    assert not rig.kernel.is_own(child.identity)
    assert not rig.kernel.signal_group(child.identity, KILL)
    assert rig.kernel.verdict(child.identity) is Verdict.ALIVE
    child.end(5)
    rig.told(child.identity)
    assert rig.kernel.verdict(child.identity) is Verdict.GONE
    assert rig.deaths == [child.identity]


def test_an_adopted_process_has_its_code_once_its_parent_reaped_it(rig: Rig) -> None:
    child = rig.adopt()
    rig.kernel.watch(child.identity)
    child.end(5)
    rig.told(child.identity)
    # Of a zombie /proc tells as well.
    assert rig.kernel.exit_code(child.identity) == (5 if isinstance(rig, RealRig) else None)
    child.reap()
    if isinstance(rig, RealRig) and not tells_adopted_codes():
        pytest.skip("this kernel does not tell how another's child ended (6.15)")
    assert rig.kernel.exit_code(child.identity) == 5
    rig.kernel.release(child.identity)
    assert rig.kernel.exit_code(child.identity) is None


def test_an_adopted_process_that_was_signalled_has_minus_the_number(rig: Rig) -> None:
    child = rig.adopt()
    rig.kernel.watch(child.identity)
    assert rig.kernel.signal(child.identity, KILL)
    rig.told(child.identity)
    child.reap()
    if isinstance(rig, RealRig) and not tells_adopted_codes():
        pytest.skip("this kernel does not tell how another's child ended (6.15)")
    assert rig.kernel.exit_code(child.identity) == -KILL


def test_what_has_ended_before_it_is_watched_is_not_told(rig: Rig) -> None:
    child = rig.adopt()
    child.end(0)
    rig.eventually(lambda: rig.kernel.verdict(child.identity) is Verdict.GONE)
    assert not rig.kernel.watch(child.identity)
    assert not rig.kernel.signal(child.identity, KILL)
    assert rig.kernel.exit_code(child.identity) is None
    assert rig.deaths == []


def tells_adopted_codes() -> bool:
    version = tuple(int(part) for part in os.uname().release.split("-")[0].split(".")[:2])
    return version >= (6, 15)


def test_a_stopped_kernel_leaves_processes_alone_and_the_next_takes_over(rig: Rig) -> None:
    identity = rig.spawn()
    rig.renew()
    assert rig.kernel.verdict(identity) is Verdict.ALIVE
    assert rig.kernel.exit_code(identity) is None
    assert rig.kernel.watch(identity)
    assert rig.kernel.signal(identity, KILL)
    rig.told(identity)
    rig.kernel.stop()
    rig.kernel.stop()


# Census


def test_a_leader_shows_every_sign_and_its_generation(rig: Rig) -> None:
    leader = rig.spawn()
    rig.eventually(lambda: [each.generation for each in rig.members(leader)] == [3])
    (member,) = rig.members(leader)
    assert member.identity == leader
    assert member.signs == {"marker", "session", "log"}
    assert (member.group, member.session) == (leader.pid, leader.pid)


@pytest.mark.parametrize(
    ("scene", "signs"),
    [
        ("escapee", [{"marker", "log", "descendant"}]),
        ("double fork", [{"marker", "log"}]),
        ("log only", [{"log"}]),
        ("marker only", [{"marker"}]),
        ("session only", [{"session"}]),
        ("descendant only", [{"descendant"}]),
        ("deep", [{"descendant"}, {"descendant"}]),
        ("tree", [{"marker", "session", "log", "descendant"}] * 2),
    ],
)
def test_each_sign_alone_suffices(rig: Rig, scene: str, signs: list[set[str]]) -> None:
    leader = rig.spawn(scene)
    rig.eventually(lambda: rig.signs(leader) == signs)


def test_whoever_escaped_is_signalled_singly(rig: Rig) -> None:
    leader = rig.spawn("escapee")
    rig.eventually(lambda: rig.signs(leader) == [{"marker", "log", "descendant"}])
    escapee = rig.members(leader)[-1].identity
    assert rig.kernel.signal_group(leader, KILL)
    rig.told(leader)
    rig.eventually(lambda: rig.signs(leader) == [{"marker", "log"}])
    assert rig.kernel.signal(escapee, 0), "watched or not"
    assert rig.kernel.watch(escapee)
    assert not rig.kernel.is_own(escapee)
    assert rig.kernel.signal(escapee, KILL)
    rig.told(escapee)
    rig.eventually(lambda: rig.members(leader) == [])


def test_nobody_is_ours_without_a_sign_or_from_before(rig: Rig) -> None:
    leader = rig.spawn("escapee")
    rig.eventually(lambda: len(rig.signs(leader)) == 1)
    unlike = {"marker": f"{HOST}.{OWNER + 1}.", "session": None, "log": None}
    assert rig.members(leader, **unlike) == []
    assert rig.members(leader, since_ticks=leader.start_ticks + 10**6) == []
    assert rig.members(leader, session=None, log=None)[0].signs == {"marker"}
    assert rig.kernel.census([]).members == {}


@pytest.mark.parametrize(
    ("value", "generation"),
    [
        ("7.12", 12),
        ("71.3", None),
        ("7.", None),
        ("7.x", None),
        ("7.-1", None),
        ("7.1.2", None),
        ("7. 1", None),
        ("7.1\u0663", None),
        ("x.7.1", None),
        ("7", None),
        ("", None),
    ],
)
def test_a_marker_must_be_exact(rig: Rig, value: str, generation: int | None) -> None:
    value = f"{HOST}.{value}" if value else value
    leader = rig.spawn(**{MARKER: value, f"X{MARKER}": f"{HOST}.{OWNER}.9", "OTHER": f"{MARKER}={HOST}.{OWNER}.9"})
    (member,) = rig.members(leader)
    assert ("marker" in member.signs, member.generation) == (generation is not None, generation)


def test_owners_are_told_apart_in_one_census(rig: Rig) -> None:
    leaders = {number: rig.spawn(**{MARKER: f"{HOST}.{number}.1"}) for number in (1, 12, 123)}
    since = min(leader.start_ticks for leader in leaders.values())
    marks = [Mark(number, f"{HOST}.{number}.", since_ticks=since) for number in (1, 12, 123, 1234)]

    def seen() -> dict[int, list[Identity]]:
        members = rig.kernel.census(marks).members
        return {owner: [member.identity for member in found] for owner, found in members.items()}

    rig.eventually(lambda: seen() == {number: [leader] for number, leader in leaders.items()})
    marks[1] = dataclasses.replace(marks[1], since_ticks=since + 10**6)
    assert seen() == {1: [leaders[1]], 123: [leaders[123]]}


# The rest


def test_timers_come_in_their_order_and_none_after_stop(rig: Rig) -> None:
    came: list[str] = []
    rig.kernel.after(0.06, lambda: came.append("last"))
    rig.kernel.after(0.02, lambda: came.append("second"))
    rig.kernel.after(0.02, lambda: came.append("third"))

    def first() -> None:
        came.append("first")
        rig.kernel.after(0, lambda: came.append("nested"))

    rig.kernel.after(-1, first)
    rig.eventually(lambda: came == ["first", "nested", "second", "third", "last"])
    rig.kernel.after(0.01, lambda: came.append("never"))
    rig.kernel.stop()
    rig.kernel.after(0, lambda: came.append("never"))
    time.sleep(0.03)
    assert came[-1] == "last"


def test_loads_leave_out_who_is_gone(rig: Rig) -> None:
    alive, dead = rig.spawn(), rig.spawn()
    rig.kill(dead)
    rig.told(dead)
    loads = rig.kernel.loads({1: [alive.pid, dead.pid], 2: [dead.pid], 3: []})
    assert list(loads) == [1]
    assert loads[1].count == 1
    assert loads[1].rss > 0
    assert loads[1].cpu_s >= 0


# What only the real one can show


def test_an_environment_that_was_overwritten_and_a_name_full_of_brackets(real: RealRig) -> None:
    argv = [sys.executable, "-S", "-E", "-c", ERASER]
    leader = real.kernel.spawn(argv, cwd=str(real.folder), env={**PATH, **MARKED}, log_fd=real.log_fd)
    real.cleanup.callback(real._sweep, leader)
    real.eventually(lambda: Path(f"/proc/{leader.pid}/comm").read_text() == ") R 1 (\n")
    (member,) = real.members(leader)
    assert (member.identity, member.signs, member.generation) == (leader, {"session", "log"}, None)


def test_a_leader_thread_that_left_lives_on_and_keeps_all_signs(real: RealRig) -> None:
    argv = [sys.executable, "-S", "-E", "-c", HEADLESS]
    leader = real.kernel.spawn(argv, cwd=str(real.folder), env={**PATH, **MARKED}, log_fd=real.log_fd)
    real.cleanup.callback(real._sweep, leader)
    real.eventually(lambda: Path(f"/proc/{leader.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z")
    (member,) = real.members(leader)
    assert member.signs == {"marker", "session", "log"}
    assert real.kernel.verdict(leader) is Verdict.ALIVE
    assert real.deaths == []
    assert real.kernel.exit_code(leader) is None
    real.kernel.signal_group(leader, KILL)
    real.told(leader)
    assert real.kernel.exit_code(leader) == -KILL


def test_two_hundred_deaths_at_once_are_told_once_each(
    real: RealRig, record_property: Callable[[str, object], None]
) -> None:
    group = [real.kernel.spawn(["/bin/sleep", "60"], cwd="/", env={}, log_fd=real.log_fd) for _ in range(200)]
    begin = time.perf_counter()
    for identity in group:
        os.kill(identity.pid, KILL)
    real.eventually(lambda: len(real.deaths) == 200)
    record_property("told_200_ms", round((time.perf_counter() - begin) * 1000, 1))
    assert sorted(identity.pid for identity in real.deaths) == sorted(identity.pid for identity in group)
    for identity in group:
        assert real.kernel.exit_code(identity) == -KILL
        real.kernel.release(identity)
    with pytest.raises(ChildProcessError):
        os.waitpid(group[0].pid, os.WNOHANG)


def test_no_descriptor_is_left_behind(tmp_path: Path) -> None:
    before = sorted(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as cleanup:
        rig = RealRig(tmp_path, cleanup)
        for _ in range(5):
            rig.spawn("exits")
        living = rig.spawn()
        rig.eventually(lambda: len(rig.deaths) == 5)
        for identity in rig.deaths:
            rig.kernel.release(identity)
        rig.kernel.listeners([1])
        rig.members(living)
        with pytest.raises(OSError):
            rig.kernel.spawn(["missing"], cwd="/", env=PATH, log_fd=rig.log_fd)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_a_failing_callback_is_logged_and_stops_nothing(real: RealRig, caplog: pytest.LogCaptureFixture) -> None:
    def fails(identity: Identity) -> None:
        real.deaths.append(identity)
        raise RuntimeError("broken")

    real.kernel.on_death = fails
    for identity in (real.spawn("exits"), real.spawn("exits")):
        real.told(identity)
    real.eventually(lambda: caplog.text.count("RuntimeError: broken") == 2)


def test_a_number_that_was_given_again_tells_no_death(real: RealRig) -> None:
    living = real.spawn()
    assert isinstance(real.kernel, Linux)
    # As if the event of an earlier owner of this descriptor were delivered late.
    real.kernel._on_ready(real.kernel._pins[living].fileno())
    real.kernel._on_ready(10**6)
    assert real.deaths == []
    real.kill(living)
    real.told(living)


def test_a_child_that_cannot_be_watched_is_killed(real: RealRig, monkeypatch: pytest.MonkeyPatch) -> None:
    pids: list[int] = []

    def full(pid: int) -> int:
        pids.append(pid)
        raise OSError(24, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pidfd_open", full)
        with pytest.raises(OSError, match="Too many"):
            real.kernel.spawn(["/bin/sleep", "60"], cwd="/", env={}, log_fd=real.log_fd)
    with pytest.raises(ProcessLookupError):
        read_start_ticks(pids[0])


def test_a_child_that_was_reaped_by_somebody_else_gives_its_group_away(real: RealRig) -> None:
    leader = real.spawn("headless group")
    real.told(leader)
    real.eventually(lambda: len(real.members(leader)) == 1)
    os.waitpid(leader.pid, 0)
    assert not real.kernel.is_own(leader)
    assert not real.kernel.signal_group(leader, KILL)
    assert len(real.members(leader)) == 1
    if tells_adopted_codes():
        assert real.kernel.exit_code(leader) == 3
    real.kernel.release(leader)


def test_we_never_signal_ourselves(real: RealRig) -> None:
    ourselves = identify(os.getpid(), HOST)
    assert ourselves is not None
    with pytest.raises(Refused):
        real.kernel.signal(ourselves, 0)
    assert not real.kernel.signal_group(ourselves, 0)
    assert real.kernel.watch(ourselves)
    with pytest.raises(Refused):
        real.kernel.signal(ourselves, 0)


def test_a_stopped_kernel_starts_and_watches_nothing(tmp_path: Path) -> None:
    before = descendants(os.getpid())
    kernel = Linux(HOST)
    kernel.stop()
    with pytest.raises(RuntimeError):
        kernel.start()
    with (tmp_path / "out.log").open("ab") as log, pytest.raises(RuntimeError):
        kernel.spawn(["/bin/sleep", "60"], cwd="/", env={}, log_fd=log.fileno())
    assert descendants(os.getpid()) == before


def test_a_kernel_may_be_stopped_by_its_own_callback(tmp_path: Path) -> None:
    kernel = Linux(HOST)
    came: list[str] = []
    kernel.after(0, kernel.stop)
    kernel.after(0, lambda: came.append("never"))
    kernel.start()
    thread = kernel._watch._thread
    assert thread is not None
    thread.join(20)
    assert not thread.is_alive()
    assert came == []


def test_timers_for_the_same_moment_keep_their_order(monkeypatch: pytest.MonkeyPatch) -> None:
    watch = Watch("watch", lambda fd: None)
    try:
        callbacks = [lambda number=number: number for number in range(20)]
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", lambda: 0.0)
            for callback in callbacks:
                watch.after(0, callback)
        assert watch._due() == callbacks
    finally:
        watch.stop()


# What only the fake can show


def test_a_fake_worker_is_born_again_over_the_same_machine(tmp_path: Path) -> None:
    with (tmp_path / "out.log").open("ab") as log:
        old = FakeKernel(HOST)
        old.start()
        old.script("web", Program(ports=[3000]))
        web = old.spawn(["/usr/bin/web"], cwd="/", env=MARKED, log_fd=log.fileno())
    old.after(1, lambda: pytest.fail("the timers of a dead worker"))
    new = old.reborn()
    new.start()
    deaths: list[Identity] = []
    new.on_death = deaths.append
    assert new.watch(web)
    assert not new.is_own(web)
    assert new.listeners([3000, 3001]) == {3000: Holder(3000, "127.0.0.1", web.pid, "fake")}
    new.machine.adopted_code_delay_s = 2
    new.kill(web, 4)
    new.advance(1)
    assert (deaths, new.exit_code(web)) == ([web], None)
    new.advance(1)
    assert new.exit_code(web) == 4
    assert new.listeners([3000]) == {}
    stranger = new.reuse(web)
    assert not new.signal(web, KILL)
    assert new.strangers_signalled() == []
    assert new.signal(stranger, KILL)
    assert [sent.identity for sent in new.strangers_signalled()] == [stranger]


def test_a_fake_hidden_process_is_hidden_for_whom_it_could_be() -> None:
    fake = FakeKernel(HOST)
    hidden = fake.stranger()
    fake.hide(hidden)
    fake.hide(fake.stranger(uid_is_ours=False))
    since = hidden.start_ticks
    marks = [Mark(1, "a.1.", since_ticks=since), Mark(2, "a.2.", since_ticks=since + 1)]
    assert fake.census(marks).hidden == {1: [hidden.pid]}
    fake.unseen.add(hidden.pid)
    with pytest.raises(Unknown):
        fake.signal(hidden, KILL)
    assert boot_id() != hidden.boot_id


def test_a_child_that_somebody_else_started_here_is_not_reaped() -> None:
    """A command probe, say: its starter still needs its number and its code."""
    kernel = Linux("node")
    kernel.start()
    try:
        child = subprocess.Popen(["sh", "-c", "read x; exit 7"], stdin=subprocess.PIPE, start_new_session=True)
        identity = Identity("node", boot_id(), child.pid, read_start_ticks(child.pid))
        assert kernel.watch(identity)
        assert child.stdin is not None
        child.stdin.close()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert kernel.exit_code(identity) == 7
        assert not kernel.is_own(identity)
        assert not kernel.signal_group(identity, signal.SIGKILL)
        kernel.release(identity)
        assert child.wait() == 7
    finally:
        kernel.stop()


@pytest.mark.parametrize("code", [0, 7])
def test_a_zombie_that_is_not_ours_tells_its_code(code: int) -> None:
    script = (
        f"import os, sys, time; pid = os.fork()\nif not pid: os._exit({code})\nprint(pid, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        ticks = read_start_ticks(pid)
        deadline = time.monotonic() + 20
        while exits.code_of_zombie(pid, ticks) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert exits.code_of_zombie(pid, ticks) == code
        assert exits.code_of_zombie(pid, ticks + 1) is None
        assert exits.code_of_zombie(os.getpid(), read_start_ticks(os.getpid())) is None
        assert parent.stdin is not None
        parent.stdin.close()
