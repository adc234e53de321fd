"""What only a real /proc can show of a census: hidden entries, ourselves, odd environments, forks during the pass."""

import contextlib
import ctypes
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.processes import MARKER, Census, Mark, census, identify, proc, read_start_ticks
from services.processes.census import take
from services.processes.proc import Stat

pytestmark = pytest.mark.pure

HOST = f"node-{os.getpid()}"
MARKER_OF_7 = f"{HOST}.7."
BEYOND = 2**22
# Runs as another user where we are root, readable by nobody without rights over it.
UNREADABLE = """
import ctypes, os, sys, time
if os.getuid() == 0:
    os.setgid(65534)
    os.setuid(65534)
ctypes.CDLL(None).prctl(4, 0, 0, 0, 0)
print("ready", flush=True)
time.sleep(60)
"""
# Founds a session, and forks the unreadable one into it when told.
FOUNDER = f"""
import subprocess, sys
sys.stdin.readline()
child = subprocess.Popen([sys.executable, "-S", "-E", "-c", {UNREADABLE!r}], env={{}}, stdout=subprocess.PIPE)
child.stdout.readline()
print(child.pid, flush=True)
child.wait()
"""
# Counts as what it is: the worker, itself marked and below a marked shell, with children of each kind.
WORKER = """
import json, os, subprocess, sys
from services.processes import Mark
from services.processes.census import take
marker, since = sys.argv[1], int(sys.argv[2])
sleep = ["/bin/sleep", "60"]
marked = subprocess.Popen(sleep, start_new_session=True)
bare = subprocess.Popen(sleep, start_new_session=True, env={})
mate = subprocess.Popen(sleep, env={})
found = take([Mark(7, marker, os.getsid(0), None, since)], "here")
members = {member.identity.pid: sorted(member.signs) for member in found.members.get(7, ())}
for child in (marked, bare, mate):
    child.kill()
    child.wait()
print(json.dumps({"seen": members, "marked": marked.pid, "mate": mate.pid}))
"""
# Always alive, under another pid each time.
HOPPER = """
import os, time
end = time.monotonic() + 60
while time.monotonic() < end:
    if os.fork():
        os._exit(0)
    time.sleep(0.002)
"""

Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start() -> Iterator[Start]:
    with contextlib.ExitStack() as cleanup:

        def _start(argv: list[str], **options: object) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "start_new_session": True, "text": True}
            child = subprocess.Popen(argv, **{**pipes, **options})
            cleanup.callback(child.communicate)
            cleanup.callback(kill_session, child.pid)
            return child

        yield _start


def kill_session(session: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(session, signal.SIGKILL)


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-E", "-c", code]


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Look without the rights over everybody that root has, as the user of UNREADABLE."""
    if os.geteuid() != 0:
        yield
        return
    os.setresgid(65534, 65534, 0)
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)
        os.setresgid(0, 0, 0)
        # Else our own /proc/self stays closed to us.
        ctypes.CDLL(None).prctl(4, 1, 0, 0, 0)


def look(*marks: Mark) -> Census:
    # What Python loads late it loads now: that user may not be let in to where it lies.
    take(marks, HOST)
    with without_rights():
        return take(marks, HOST)


def eventually(question: Callable[[], object], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not question():
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)


def unreadable(start: Start) -> tuple[int, int]:
    child = start(python(UNREADABLE), env={})
    assert child.stdout is not None
    child.stdout.readline()
    return child.pid, read_start_ticks(child.pid)


def test_an_unreadable_process_of_our_user_is_hidden_for_whom_it_could_be(start: Start) -> None:
    pid, since = unreadable(start)
    earlier, later = Mark(7, MARKER_OF_7, since_ticks=since), Mark(8, f"{HOST}.8.", since_ticks=since + 1)
    assert pid in look(earlier).hidden[7]
    assert look(later).hidden.get(8, []).count(pid) == 0
    both = look(earlier, later)
    assert pid in both.hidden[7]
    assert pid not in both.hidden.get(8, [])
    assert both.members == {}


def test_an_unreadable_process_of_another_control_group_is_a_stranger(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A login of our own user, say: sshd and ssh-agent are unreadable, and live until somebody logs out."""
    pid, since = unreadable(start)
    mark = Mark(7, MARKER_OF_7, since_ticks=since)
    assert pid in look(mark).hidden[7]
    groups = {pid: b"0::/user.slice/session-3.scope\n"}
    monkeypatch.setattr(census, "control_group", lambda pid: groups.get(pid, b"0::/user.slice/session-2.scope\n"))
    assert pid not in look(mark).hidden.get(7, [])
    groups[pid] = None
    assert pid in look(mark).hidden[7]


def test_an_unreadable_child_of_a_readable_stranger_is_a_stranger(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    pid, since = unreadable(start)
    mark = Mark(7, MARKER_OF_7, since_ticks=since)
    assert pid in look(mark).hidden[7], "a child of ours could have come to us again when its parent died"
    stranger = start(["/bin/sleep", "60"], **({"user": 65534, "group": 65534} if os.geteuid() == 0 else {}))
    real = proc.read_stat
    monkeypatch.setattr(
        census, "read_stat", lambda each: real(each)._replace(parent=stranger.pid) if each == pid else real(each)
    )
    assert pid not in look(mark).hidden.get(7, [])


def test_an_unreadable_member_is_a_member_and_hidden_for_nobody(start: Start) -> None:
    pid, since = unreadable(start)
    found = look(Mark(7, MARKER_OF_7, session=pid, since_ticks=since), Mark(8, f"{HOST}.8.", since_ticks=since))
    (member,) = found.members[7]
    assert (member.identity.pid, member.signs, member.generation) == (pid, {"session"}, None)
    assert all(pid not in pids for pids in found.hidden.values())


def test_a_session_that_is_older_than_the_service_hides_nothing_of_it(start: Start) -> None:
    founder = start(python(FOUNDER))
    assert founder.stdin is not None
    assert founder.stdout is not None
    founded = read_start_ticks(founder.pid)
    time.sleep(0.05)
    founder.stdin.write("go\n")
    founder.stdin.flush()
    pid = int(founder.stdout.readline())
    since = read_start_ticks(pid)
    assert founded < since
    assert pid not in look(Mark(7, MARKER_OF_7, since_ticks=since)).hidden.get(7, [])
    assert pid in look(Mark(7, MARKER_OF_7, since_ticks=founded)).hidden[7]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_users_process_is_a_stranger(start: Start) -> None:
    child = start(["/bin/sleep", "60"])
    found = look(Mark(7, MARKER_OF_7, since_ticks=read_start_ticks(child.pid)))
    assert child.pid not in found.hidden.get(7, [])


def test_an_entry_without_stat_is_hidden_for_all_but_another_users(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    child = start(["/bin/sleep", "60"])
    since = read_start_ticks(child.pid)

    def closed(pid: int) -> Stat:
        if pid == child.pid:
            raise PermissionError(13, "Permission denied")
        return proc.read_stat(pid)

    monkeypatch.setattr(census, "read_stat", closed)
    mark = Mark(7, MARKER_OF_7, session=child.pid, since_ticks=since + 10**9)
    assert take([mark], HOST).hidden == {7: [child.pid]}
    monkeypatch.setattr(census, "real_uid", lambda pid: os.getuid() + 1)
    assert take([mark], HOST).hidden == {}

    def no_status(pid: int) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(census, "real_uid", no_status)
    assert take([mark], HOST).hidden == {7: [child.pid]}
    monkeypatch.setattr(os, "geteuid", lambda: 1 if os.getuid() != 1 else 2)
    assert take([mark], HOST).hidden == {}


def test_we_and_our_ancestors_are_never_members(start: Start) -> None:
    since = read_start_ticks(os.getpid())
    env = {**os.environ, MARKER: f"{MARKER_OF_7}1"}
    worker = f"{sys.executable} -c '{WORKER}' {MARKER_OF_7} {since}; true"
    above = start(["/bin/sh", "-c", worker], env=env)
    assert above.stdout is not None
    answer = json.loads(above.stdout.readline())
    assert answer["seen"] == {str(answer["marked"]): ["marker"], str(answer["mate"]): ["session"]}


def test_a_marker_at_the_end_of_a_huge_environment_is_found(start: Start) -> None:
    env = {f"K{number}": "x" * 120_000 for number in range(12)} | {MARKER: f"{MARKER_OF_7}5"}
    child = start(["/bin/sleep", "60"], env=env)
    mark = Mark(7, MARKER_OF_7, since_ticks=read_start_ticks(child.pid))
    # Popen returns in the middle of the exec, when there is no environment yet.
    eventually(lambda: take([mark], HOST).members)
    (member,) = take([mark], HOST).members[7]
    assert (member.identity, member.generation) == (identify(child.pid, HOST), 5)


def test_a_log_is_known_by_its_inode_whatever_its_name(start: Start, tmp_path: Path) -> None:
    log = tmp_path / "out.log"
    with log.open("ab") as output:
        child = start(["/bin/sleep", "60"], stderr=output)
    since = read_start_ticks(child.pid)
    found = log.stat()
    log.rename(tmp_path / "moved.log")
    (tmp_path / "moved.log").unlink()
    mark = Mark(7, MARKER_OF_7, log=(found.st_dev, found.st_ino), since_ticks=since)
    (member,) = take([mark], HOST).members[7]
    assert (member.identity.pid, member.signs) == (child.pid, {"log"})


def test_a_process_that_forks_on_and_on_is_not_twice_missed(start: Start) -> None:
    child = start(python(HOPPER), env={MARKER: f"{MARKER_OF_7}1"})
    mark = Mark(7, MARKER_OF_7, session=child.pid, since_ticks=read_start_ticks(child.pid))
    eventually(lambda: any(member.identity.pid != child.pid for member in take([mark], HOST).members.get(7, ())))
    seen = [bool(take([mark], HOST).members) for _ in range(60)]
    assert any(seen)
    assert all(one or other for one, other in itertools.pairwise(seen))


def test_reused_pids_neither_inherit_backwards_nor_turn_in_circles(monkeypatch: pytest.MonkeyPatch) -> None:
    table = {
        BEYOND + 1: Stat("S", BEYOND + 2, 1, 50, session=BEYOND + 1),
        BEYOND + 2: Stat("S", BEYOND + 1, 1, 50, session=1),
        BEYOND + 3: Stat("S", BEYOND + 1, 1, 40, session=1),
        BEYOND + 4: Stat("Z", BEYOND + 1, 1, 60, session=BEYOND + 1),
        BEYOND + 5: Stat("S", BEYOND + 4, 1, 70, session=1),
        BEYOND + 6: Stat("S", BEYOND + 2, 1, 80, session=1),
    }
    monkeypatch.setattr(census, "pids", lambda: list(table))
    monkeypatch.setattr(census, "read_stat", lambda pid: table.get(pid) or proc.read_stat(pid))
    found = take([Mark(7, MARKER_OF_7, session=BEYOND + 1, since_ticks=10)], HOST)
    assert [member.identity.pid - BEYOND for member in found.members[7]] == [1, 2, 6]


@settings(max_examples=100, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=6), st.integers(0, 10**17), st.binary(max_size=6))
def test_any_environment_is_read_exactly(others: list[bytes], generation: int, before: bytes) -> None:
    key = MARKER.encode() + b"="
    wanted = key + b"n.7.%d" % generation
    strangers = [other.replace(b"\0", b"") for other in others]
    strangers = [other for other in strangers if not other.startswith(key)]
    before = before.replace(b"\0", b"") or b"X"
    block = b"\0".join([*strangers, before + wanted, wanted, wanted + b"x", key, *strangers]) + b"\0"
    assert list(census._markers(block)) == [(b"n.7.", generation)]
    assert list(census._markers(b"\0".join([*strangers, before + wanted]))) == []


def test_what_a_census_costs_is_said(start: Start, record_property: Callable[[str, object], None]) -> None:
    children = [start(["/bin/sleep", "60"], env={MARKER: f"{HOST}.{number}.1"}) for number in range(100)]
    since = read_start_ticks(children[0].pid)
    marks = [Mark(number, f"{HOST}.{number}.", child.pid, (1, number), since) for number, child in enumerate(children)]
    eventually(lambda: len(take(marks, HOST).members) == 100)
    begin = time.process_time()
    found = take(marks, HOST)
    spent_ms = (time.process_time() - begin) * 1000
    assert len(found.members) == 100
    record_property("summary", f"census: {spent_ms:.1f} ms CPU, {len(proc.pids())} processes, 100 of them ours")
