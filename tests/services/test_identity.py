"""Real processes: identity, verdict, pin, and what /proc tells about them."""

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.processes import Gone, Identity, Pin, Refused, Unknown, Verdict, identify, pin, verdict
from services.processes import identity as processes

pytestmark = pytest.mark.pure

HOST = "node-a"
SLEEP = ["/bin/sleep", "60"]
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin"}

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "out.log"


@pytest.fixture
def start(tmp_path: Path, log: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[bytes]] = []

    def _start(argv: list[str] = SLEEP, **options: object) -> subprocess.Popen[bytes]:
        fd = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            child = processes.spawn(argv, **{"cwd": tmp_path, "env": ENV, "log_fd": fd, **options})
        finally:
            os.close(fd)
        started.append(child)
        return child

    yield _start
    for child in started:
        if child.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        child.wait()


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Act without the rights over other users' processes."""
    if os.geteuid() != 0:
        yield
        return
    os.setresuid(65534, 65534, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


def named(child: subprocess.Popen[bytes]) -> Identity:
    identity = identify(child.pid, HOST)
    assert identity is not None
    return identity


def eventually(question: Callable[[], object], seconds: float = 5.0) -> object:
    end = time.monotonic() + seconds
    while not (answer := question()):
        assert time.monotonic() < end, "it never came"
        time.sleep(0.005)
    return answer


def become_zombie(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


def test_a_running_process_is_alive_and_names_itself_alike_each_time(start: Start) -> None:
    child = start()
    identity = named(child)
    assert identity == identify(child.pid, HOST)
    assert identity.boot_id == Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    assert identity.start_ticks == processes.read_start_ticks(child.pid)
    assert verdict(identity, HOST) is Verdict.ALIVE


def test_a_killed_and_reaped_process_is_gone(start: Start) -> None:
    child = start()
    identity = named(child)
    child.kill()
    child.wait()
    assert verdict(identity, HOST) is Verdict.GONE
    assert identify(child.pid, HOST) is None
    with pytest.raises(ProcessLookupError):
        processes.read_start_ticks(child.pid)
    with pytest.raises(Gone):
        pin(identity, HOST)


def test_a_zombie_is_gone(start: Start) -> None:
    child = start()
    identity = named(child)
    become_zombie(child)
    assert processes.read_start_ticks(child.pid) == identity.start_ticks
    assert verdict(identity, HOST) is Verdict.GONE
    assert identify(child.pid, HOST) is None
    with pytest.raises(Gone):
        pin(identity, HOST)
    assert child.wait() == -signal.SIGKILL, "looking has reaped nothing"


def test_a_process_whose_leader_thread_ended_lives_until_its_last_thread(start: Start) -> None:
    code = (
        "import ctypes, os, threading, time\n"
        "threading.Thread(target=time.sleep, args=(60,)).start()\n"
        "ctypes.CDLL(None).syscall({'x86_64': 60}.get(os.uname().machine, 93), 0)\n"
    )
    child = start([sys.executable, "-c", code])
    identity = named(child)
    stat = Path(f"/proc/{child.pid}/stat")
    eventually(lambda: stat.read_text().rpartition(")")[2].split()[0] == "Z")
    assert verdict(identity, HOST) is Verdict.ALIVE
    with pin(identity, HOST) as held:
        assert not held.wait(0)
        held.signal(signal.SIGKILL)
        assert held.wait(5)
    assert verdict(identity, HOST) is Verdict.GONE


@pytest.mark.parametrize("name", [") R 1 (", "a b", ")))", "x) Z 1 1 ("])
def test_a_process_chooses_its_name_but_not_how_it_is_read(start: Start, tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/bin/sleep")
    child = start([str(tmp_path / name), "60"])
    eventually(lambda: Path(f"/proc/{child.pid}/comm").read_text().rstrip("\n") == name)
    plain = start()
    identity = named(child)
    assert 0 <= processes.read_start_ticks(plain.pid) - identity.start_ticks < 1000
    assert verdict(identity, HOST) is Verdict.ALIVE
    assert child.pid in processes.descendants(os.getpid())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"start_ticks": 1}, Verdict.GONE),
        ({"boot_id": "00000000-0000-0000-0000-000000000000"}, Verdict.GONE),
        ({"host": "node-b"}, Verdict.UNKNOWN),
        ({"host": "node-b", "boot_id": "another"}, Verdict.UNKNOWN),
        ({"pid": 1}, Verdict.UNKNOWN),
        ({"pid": 0}, Verdict.UNKNOWN),
        ({"pid": -1}, Verdict.UNKNOWN),
    ],
)
def test_an_identity_that_differs_in_one_part_is_another_process(
    start: Start, change: dict[str, int | str], expected: Verdict
) -> None:
    child = start()
    other = dataclasses.replace(named(child), **change)
    assert verdict(other, HOST) is expected
    with pytest.raises(Gone if expected is Verdict.GONE else Unknown):
        pin(other, HOST)
    assert child.poll() is None


@pytest.mark.parametrize("beyond", [2**22 + 1, 2**31, 2**80])
def test_a_pid_that_was_never_given_out_is_gone(beyond: int) -> None:
    identity = Identity(HOST, processes.boot_id(), beyond, 1)
    assert verdict(identity, HOST) is Verdict.GONE
    with pytest.raises(Gone):
        pin(identity, HOST)
    assert identify(beyond, HOST) is None
    assert processes.working_directory(beyond) is None


@pytest.mark.parametrize("pid", [0, -1])
def test_identify_refuses_what_is_no_pid(pid: int) -> None:
    with pytest.raises(ValueError):
        identify(pid, HOST)


def test_a_process_hidden_in_proc_is_unknown(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    child = start()
    identity = named(child)

    def hidden(pid: int) -> object:
        raise FileNotFoundError(2, "No such file or directory")

    monkeypatch.setattr(processes, "_read_stat", hidden)
    assert verdict(identity, HOST) is Verdict.UNKNOWN
    with pytest.raises(PermissionError):
        identify(child.pid, HOST)
    with pytest.raises(Unknown):
        pin(identity, HOST)
    child.kill()
    child.wait()
    assert verdict(identity, HOST) is Verdict.GONE


@pytest.mark.parametrize("error", [PermissionError(13, "no"), OSError(24, "too many"), ValueError("odd")])
def test_what_cannot_be_read_or_understood_is_unknown(
    start: Start, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    child = start()
    identity = named(child)

    def fails(pid: int) -> object:
        raise error

    monkeypatch.setattr(processes, "_read_stat", fails)
    assert verdict(identity, HOST) is Verdict.UNKNOWN
    with pytest.raises(OSError):
        identify(child.pid, HOST)


def test_without_a_boot_id_all_is_unknown(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = named(start())

    def fails() -> str:
        raise PermissionError(13, "no")

    monkeypatch.setattr(processes, "boot_id", fails)
    assert verdict(identity, HOST) is Verdict.UNKNOWN


def test_without_a_pidfd_a_living_process_is_not_pinned(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = named(start())

    def full(pid: int) -> int:
        raise OSError(24, "too many open files")

    monkeypatch.setattr(os, "pidfd_open", full)
    assert verdict(identity, HOST) is Verdict.ALIVE
    with pytest.raises(Unknown):
        pin(identity, HOST)


def test_the_pidfd_is_opened_before_the_identity_is_compared(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = named(start())
    order: list[str] = []
    read, opened = processes._read_stat, os.pidfd_open

    def reading(pid: int) -> object:
        order.append("compare")
        return read(pid)

    def opening(pid: int) -> int:
        order.append("open")
        return opened(pid)

    monkeypatch.setattr(processes, "_read_stat", reading)
    monkeypatch.setattr(os, "pidfd_open", opening)
    with pin(identity, HOST):
        assert order == ["open", "compare"]


def test_a_refused_pin_leaves_no_descriptor(start: Start) -> None:
    other = dataclasses.replace(named(start()), start_ticks=1)
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(10):
        with pytest.raises(Gone):
            pin(other, HOST)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_pin_signals_and_waits(start: Start) -> None:
    child = start()
    with pin(named(child), HOST) as held:
        assert not held.wait(0)
        before = time.monotonic()
        assert not held.wait(0.05)
        assert time.monotonic() - before >= 0.049
        assert not held.wait(-1)
        held.signal(signal.SIGTERM)
        assert held.wait(5)
        held.signal(signal.SIGTERM)
        assert child.wait() == -signal.SIGTERM
        assert held.wait(0), "an ended process stays ended"
        with pytest.raises(Gone):
            held.signal(signal.SIGTERM)
    with pytest.raises(ValueError):
        held.fileno()
    held.close()


def test_a_stop_and_go_process_is_alive(start: Start) -> None:
    identity = named(start())
    with pin(identity, HOST) as held:
        held.signal(signal.SIGSTOP)
        assert verdict(identity, HOST) is Verdict.ALIVE
        assert not held.wait(0.02)
        held.signal(signal.SIGCONT)


def test_a_grandchild_that_is_not_ours_to_reap_can_be_pinned(start: Start, tmp_path: Path) -> None:
    start(["/bin/sh", "-c", "setsid sleep 60 & echo $! > pid; exec sleep 60"])
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    identity = identify(int((tmp_path / "pid").read_text()), HOST)
    assert identity is not None
    with pin(identity, HOST) as held:
        held.signal(signal.SIGKILL)
        assert held.wait(5)
    assert verdict(identity, HOST) is Verdict.GONE


def test_a_pin_never_signals_ourselves_pid_1_or_our_own_group() -> None:
    with subprocess.Popen(SLEEP) as mate:
        try:
            ourselves = identify(os.getpid(), HOST)
            assert ourselves is not None
            with pin(ourselves, HOST) as held, pytest.raises(Refused):
                held.signal(0)
            with pin(named(mate), HOST) as held, pytest.raises(Refused):
                held.signal(signal.SIGTERM)
            assert mate.poll() is None
        finally:
            mate.kill()
    for pid in (1, 0, -1):
        with (
            Pin(Identity(HOST, processes.boot_id(), pid, 0), os.open("/dev/null", os.O_RDONLY)) as held,
            pytest.raises(Refused),
        ):
            held.signal(0)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_users_process_is_alive_but_neither_signalled_nor_located(start: Start) -> None:
    child = start()
    with nobody():
        identity = named(child)
        assert verdict(identity, HOST) is Verdict.ALIVE
        with pin(identity, HOST) as held, pytest.raises(PermissionError):
            held.signal(signal.SIGTERM)
        with pytest.raises(PermissionError):
            processes.working_directory(child.pid)
    assert child.poll() is None


def test_working_directory_is_the_real_path_or_none_when_gone(start: Start, tmp_path: Path) -> None:
    real = tmp_path / "real"
    real.mkdir()
    (tmp_path / "link").symlink_to(real)
    child = start(cwd=tmp_path / "link")
    assert processes.working_directory(child.pid) == real.resolve()
    become_zombie(child)
    assert processes.working_directory(child.pid) is None
    child.wait()
    assert processes.working_directory(child.pid) is None


@pytest.mark.parametrize(
    ("path", "inside"),
    [
        ("/ws/demo", True),
        ("/ws/demo/sub/dir", True),
        ("/ws/demo-2", False),
        ("/ws", False),
        ("/", False),
        ("/ws/demo/../other", False),
        ("ws/demo", False),
        ("/ws/demo (deleted)", False),
    ],
)
def test_is_inside_compares_components(path: str, inside: bool) -> None:
    assert processes.is_inside(Path(path), Path("/ws/demo")) is inside


def test_is_inside_refuses_a_root_that_is_not_resolved() -> None:
    assert not processes.is_inside(Path("/ws/demo"), Path("/ws/../ws"))
    assert not processes.is_inside(Path("demo/x"), Path("demo"))
    assert processes.is_inside(Path("/ws"), Path("/"))


def test_started_at_is_the_clock_time_of_the_start(start: Start) -> None:
    before = time.time()
    identity = named(start())
    assert before - 2 <= processes.started_at(identity) <= time.time() + 2
    with pytest.raises(ValueError):
        processes.started_at(dataclasses.replace(identity, boot_id="another"))


def test_descendants_are_found_across_sessions_nearest_first(start: Start, tmp_path: Path) -> None:
    child = start(["/bin/sh", "-c", "setsid sh -c 'sleep 60 & echo $! > pid; wait' & sleep 60 & wait"])
    eventually(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text().endswith("\n"))
    grandchild = int((tmp_path / "pid").read_text())
    eventually(lambda: len(processes.descendants(child.pid)) == 3)
    found = processes.descendants(child.pid)
    assert child.pid not in found
    assert found[-1] == grandchild
    for pid in found:
        os.kill(pid, signal.SIGKILL)
    eventually(lambda: processes.descendants(child.pid) == [])


def test_a_zombie_is_no_descendant(start: Start) -> None:
    child = start()
    assert child.pid in processes.descendants(os.getpid())
    become_zombie(child)
    assert child.pid not in processes.descendants(os.getpid())


def test_a_circle_of_reused_pids_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_read_stat", lambda pid: processes._Stat("S", os.getpid(), 1, 1))
    assert os.getpid() not in processes.descendants(os.getpid())


def test_spawn_gives_a_session_the_log_and_nothing_else_of_ours(
    start: Start, log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANDON_SECRET_KEY", "s3cret")
    ours = os.open("/dev/null", os.O_RDONLY)
    os.set_inheritable(ours, True)
    try:
        child = start(
            ["/bin/sh", "-c", 'env; echo "in: $(cat)"; pwd; echo oops >&2; ls -l /proc/$$/fd; exec sleep 60'],
            env={**ENV, "MINE": "1; echo injected"},
        )
    finally:
        os.close(ours)
    eventually(lambda: "pipe" in log.read_text() or log.read_text().count("->") >= 3)
    assert os.getsid(child.pid) == os.getpgid(child.pid) == child.pid
    text = log.read_text()
    assert "s3cret" not in text
    assert "MINE=1; echo injected\n" in text
    assert "in: \n" in text
    assert f"{tmp_path.resolve()}\n" in text
    assert "oops\n" in text
    # While the last program is being loaded, it has its libraries open.
    eventually(lambda: sorted(path.name for path in Path(f"/proc/{child.pid}/fd").iterdir()) == ["0", "1", "2"])
    assert os.readlink(f"/proc/{child.pid}/fd/1") == os.readlink(f"/proc/{child.pid}/fd/2") == str(log)


def test_spawn_takes_arguments_as_they_are(start: Start, log: Path) -> None:
    child = start(["/bin/echo", "$HOME", "a;b", "`id`", "*"])
    assert child.wait() == 0
    assert log.read_text() == "$HOME a;b `id` *\n"


def test_spawn_says_what_is_missing(start: Start, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        start(["/nonexistent/tool"])
    with pytest.raises(FileNotFoundError):
        start(cwd=tmp_path / "nowhere")
    (tmp_path / "data").write_text("not a program")
    with pytest.raises(PermissionError):
        start([str(tmp_path / "data")])
    with pytest.raises(ValueError):
        start([])
    with pytest.raises(ValueError):
        start(["/bin/echo", "a\0b"])


def test_the_cost_of_a_verdict(start: Start, capsys: pytest.CaptureFixture[str]) -> None:
    identity = named(start())
    begin = time.perf_counter()
    for _ in range(2000):
        verdict(identity, HOST)
    with capsys.disabled():
        cost = (time.perf_counter() - begin) / 2000
        print(f" [verdict: {cost * 1e6:.1f} µs, wanted < 50] ", end="")  # noqa: T201 - a measurement
