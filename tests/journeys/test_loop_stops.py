"""Stopping loops that somebody else started: real processes, the real kernel, and a real worker that is killed.

The tests are run as root, who may signal everybody: where a loop is another user's, they become nobody for that moment.
"""

import contextlib
import json
import os
import queue
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.utils import timezone

from projects import importer
from projects.events import By
from projects.lifecycle import stops
from projects.models import Event, LoopStop, Project
from services.processes import Linux
from services.strangers import Strangers
from tests.projects.files import write_project
from tests.running import ROOT, own_database, wait_for

pytestmark = pytest.mark.journey

ANNA = By("user:anna", "page", "10.0.0.1")
NOBODY = 65534
WITHIN_S = 60
PID = "scripts/ralph/.ralph.pid"
# Each writes its pid file last: then its traps are set.
SAYS = f"echo $$ > {PID}; while :; do sleep 300 & wait $!; done"
PLAIN = f"trap 'echo loop >> ended; exit 0' TERM; {SAYS}"
DEAF = f"trap 'echo term >> terms' TERM; {SAYS}"
AGENT = "trap 'echo agent >> ended; exit 0' TERM; echo $$ > agent; while :; do sleep 300 & wait $!; done"
DEAF_AGENT = "trap '' TERM; echo $$ > agent; while :; do sleep 300 & wait $!; done"


class Yard:
    """A worker's part in this process: what it submits is run by `until`, in the test's thread."""

    def __init__(self, project: Project) -> None:
        self.project = project
        self.root = Path(project.path)
        self.file = self.root / PID
        self.kernel = Linux(django_settings.ANDON_NODE)
        self.waiting: queue.SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...]]] = queue.SimpleQueue()
        self.strangers = Strangers(self.kernel, submit=self.submit, born_at=timezone.now())
        self.kernel.start()
        self.started: list[subprocess.Popen[bytes]] = []

    def submit(self, key: str, function: Callable[..., Any], *args: Any) -> None:
        self.waiting.put((function, args))

    def until(self, condition: Callable[[], Any]) -> Any:
        deadline = time.monotonic() + WITHIN_S
        while not (value := condition()):
            assert time.monotonic() < deadline
            with contextlib.suppress(queue.Empty):
                function, args = self.waiting.get(timeout=0.02)
                function(*args)
        return value

    def start(self, *argv: str, cwd: Path | None = None, **options: Any) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, cwd=cwd or self.root, **{"start_new_session": True, **options})
        self.started.append(process)
        return process

    def loop(self, script: str, **options: Any) -> subprocess.Popen[bytes]:
        """Start a loop and wait until it has written its pid file."""
        self.file.unlink(missing_ok=True)
        process = self.start("sh", "-c", script, **options)
        self.pid(PID)
        return process

    def pid(self, name: str) -> int:
        """Return the pid that a program writes into a file."""
        path = self.root / name
        return int(wait_for(lambda: path.is_file() and path.read_text().strip(), WITHIN_S))

    def lines(self, name: str) -> list[str]:
        path = self.root / name
        return path.read_text().split() if path.exists() else []

    def ask(self, grace_s: int = 300) -> LoopStop:
        row = stops.ask(self.project, grace_s=grace_s, by=ANNA, now=timezone.now())
        self.strangers.wake(row.pk)
        return row

    def outcome(self, row: LoopStop) -> tuple[str, str]:
        """Wait until a stop is over and say how."""

        def is_over() -> bool:
            row.refresh_from_db()
            return not row.is_open

        self.until(is_over)
        return row.status, row.code

    def close(self) -> None:
        self.kernel.stop()
        for process in self.started:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()
            process.wait()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
            os.killpg(int((self.root / "agent").read_text()), signal.SIGKILL)


@pytest.fixture
def yard(imported) -> Iterator[Yard]:
    made = Yard(imported("demo"))
    yield made
    made.close()


def is_alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0]
    except OSError:
        return False
    return state not in {b"Z", b"X"}


def test_a_loop_finishes_and_then_its_agent(yard: Yard) -> None:
    loop = yard.loop(f"setsid sh -c {shlex.quote(AGENT)} & {PLAIN}")
    agent = yard.pid("agent")
    importer.rescan(now=timezone.now())
    yard.project.refresh_from_db()
    assert (yard.project.running, yard.project.pid, os.getpgid(agent)) == (True, loop.pid, agent)
    row = yard.ask()
    assert yard.outcome(row) == ("stopped", "")
    assert row.pid == loop.pid
    assert agent in [pid for pid, _ in row.members]
    assert yard.lines("ended") == ["loop", "agent"]
    assert (is_alive(loop.pid), is_alive(agent), yard.file.exists()) == (False, False, False)
    # The importer was asked to look, and tells that it has ended.
    yard.until(lambda: Event.objects.filter(kind__in=["loop.stopped", "loop.crashed"]).exists())
    yard.project.refresh_from_db()
    assert yard.project.running is False


def test_the_shell_that_it_was_typed_in_lives_on(yard: Yard) -> None:
    (yard.root / "ralph.sh").write_text(PLAIN)
    shell = yard.start("sh", "-c", "sleep 300 & sh ralph.sh; echo back > after; sleep 300")
    loop = yard.pid(PID)
    assert os.getpgid(loop) == shell.pid
    assert yard.outcome(yard.ask()) == ("stopped", "")
    wait_for(lambda: yard.lines("after"), WITHIN_S)
    assert (shell.poll(), yard.lines("ended"), is_alive(loop)) == (None, ["loop"], False)


def test_one_that_does_not_listen_is_killed_with_all_that_is_below_it(yard: Yard) -> None:
    loop = yard.loop(f"setsid sh -c {shlex.quote(DEAF_AGENT)} & {DEAF}")
    agent = yard.pid("agent")
    row = yard.ask(1)
    assert yard.outcome(row) == ("killed", "")
    assert (is_alive(loop.pid), is_alive(agent), yard.file.exists()) == (False, False, False)
    assert yard.lines("terms") == ["term"]
    assert row.ended_at >= row.kill_at > row.term_at


def test_two_stops_at_once(yard: Yard) -> None:
    yard.loop(DEAF)
    row, other = yard.ask(2), yard.ask(1)
    yard.strangers.sweep()
    assert row == other
    assert yard.outcome(row) == ("killed", "")
    assert yard.lines("terms") == ["term"]


def test_a_stranger_elsewhere_is_not_signalled(yard: Yard, workspace: Path) -> None:
    beside = workspace / "demolition"
    beside.mkdir()
    stranger = yard.start("sleep", "300", cwd=beside)
    yard.file.write_text(str(stranger.pid))
    assert yard.outcome(yard.ask(0)) == ("refused", "pid-not-in-project")
    assert (stranger.poll(), yard.file.read_text()) == (None, str(stranger.pid))


def test_a_stale_pid(yard: Yard) -> None:
    dead = yard.start("true")
    dead.wait()
    yard.file.write_text(f"{dead.pid}\n")
    row = yard.ask()
    assert (*yard.outcome(row), row.detail) == ("stopped", "", "already stopped")
    assert not yard.file.exists()


@pytest.mark.parametrize("is_inside", [False, True])
def test_a_number_that_another_process_bears_by_now(yard: Yard, is_inside: bool) -> None:
    """In the project it may as well be the loop, on a machine whose clock was set on."""
    other = yard.start("sleep", "300", cwd=yard.root if is_inside else yard.root.parent)
    yard.file.write_text(str(other.pid))
    os.utime(yard.file, (time.time() - 3600, time.time() - 3600))
    assert yard.outcome(yard.ask(0)) == (("refused", "identity-unavailable") if is_inside else ("stopped", ""))
    assert (other.poll(), yard.file.exists()) == (None, is_inside)


def test_with_a_long_grace_an_agent_in_the_scripts_group_finishes(yard: Yard) -> None:
    loop = yard.loop(
        f"sh -c {shlex.quote(AGENT)} & trap 'is_asked=1; echo loop >> ended' TERM; "
        f'echo $$ > {PID}; while [ -z "$is_asked" ]; do sleep 0.05; done; '
        "while [ ! -e finished ]; do sleep 0.05; done"
    )
    agent = yard.pid("agent")
    assert os.getpgid(agent) == loop.pid
    row = yard.ask(3600)
    yard.until(lambda: yard.lines("ended"))
    assert (yard.lines("ended"), is_alive(agent), loop.poll()) == (["loop"], True, None)
    (yard.root / "finished").touch()
    assert yard.outcome(row) == ("stopped", "")
    assert (yard.lines("ended"), is_alive(agent)) == (["loop", "agent"], False)


@pytest.mark.parametrize("grace_s", [30, 3600])
@pytest.mark.parametrize("alone", ["", "setsid "])
def test_what_an_agent_begins_when_it_is_asked_tidies_up_in_peace(yard: Yard, alone: str, grace_s: int) -> None:
    tidy = "trap 'echo hurt >> hurt' TERM; sleep 1; echo tidy >> ended"
    agent = (
        f"trap {shlex.quote(f'sh -c {shlex.quote(tidy)}; exit 0')} TERM; echo $$ > agent; while :; do sleep 0.1; done"
    )
    yard.loop(f"{alone}sh -c {shlex.quote(agent)} & {PLAIN}")
    yard.pid("agent")
    row = yard.ask(grace_s)
    # As each sweep does.
    wakes = threading.Timer(0.5, yard.strangers.wake, [row.pk])
    wakes.start()
    assert yard.outcome(row) == ("stopped", "")
    wakes.join()
    assert ("tidy" in yard.lines("ended"), yard.lines("hurt")) == (True, [])


def test_what_an_agent_leaves_behind_is_asked_once_it_is_gone(yard: Yard) -> None:
    agent = "trap 'sleep 300 & echo $! > heir; exit 0' TERM; echo $$ > agent; while :; do sleep 0.1; done"
    yard.loop(f"sh -c {shlex.quote(agent)} & {PLAIN}")
    yard.pid("agent")
    assert yard.outcome(yard.ask(3600)) == ("stopped", "")
    assert not is_alive(yard.pid("heir"))


@pytest.mark.parametrize(
    "content", ["0", "1", "-5", "abc", "99999999999", "link", "fifo", "directory", "socket", "a megabyte"]
)
def test_what_is_no_pid_file(yard: Yard, content: str) -> None:
    loop = yard.loop(PLAIN)
    yard.file.unlink()
    match content:
        case "link":
            (yard.root / "pid").write_text(str(loop.pid))
            yard.file.symlink_to(yard.root / "pid")
        case "fifo":
            os.mkfifo(yard.file)
        case "directory":
            yard.file.mkdir()
        case "socket":
            os.mknod(yard.file, 0o140600)
        case "a megabyte":
            yard.file.write_text(str(loop.pid).ljust(1_000_000))
        case _:
            yard.file.write_text(content)
    assert yard.outcome(yard.ask(0)) == ("refused", "pid-file-invalid")
    assert (loop.poll(), os.path.lexists(yard.file)) == (None, True)


def test_a_new_loop_is_not_touched(yard: Yard) -> None:
    old = yard.loop(DEAF)
    row = yard.ask(2)
    yard.until(lambda: yard.lines("terms"))
    new = yard.loop(PLAIN)
    assert yard.outcome(row) == ("killed", "")
    assert (is_alive(old.pid), new.poll(), yard.file.read_text()) == (False, None, f"{new.pid}\n")
    assert yard.lines("ended") == []
    assert yard.outcome(yard.ask()) == ("stopped", "")
    assert yard.lines("ended") == ["loop"]


@contextlib.contextmanager
def nobody() -> Iterator[None]:
    """Be another user than the loop's, who is root."""
    os.setresuid(NOBODY, NOBODY, 0)
    try:
        yield
    finally:
        os.setresuid(0, 0, 0)


@pytest.mark.skipif(os.getuid() != 0, reason="Only root can become another user.")
@pytest.mark.parametrize("shows", [False, True])
def test_a_loop_of_another_user(db, settings, monkeypatch: pytest.MonkeyPatch, shows: bool) -> None:
    """It is refused by where it works, which the kernel hides, and, were that shown, by the kernel at the signal."""
    # pytest's own folders are root's alone.
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    settings.ANDON_WORKSPACE = [folder]
    root = write_project(folder / "demo")
    importer.rescan(now=timezone.now())
    yard = Yard(Project.objects.get(path=str(root)))
    try:
        loop = yard.loop(PLAIN)
        row = yard.ask(0)
        if shows:
            monkeypatch.setattr("services.processes.working_directory", lambda pid: root)
        with nobody():
            assert yard.outcome(row) == ("refused", "permission-denied")
        assert (loop.poll(), yard.lines("ended"), yard.file.exists()) == (None, [], True)
        assert (row.pid is None) is not shows
    finally:
        yard.close()
        shutil.rmtree(folder)


# One who asks, and looks how it went.
OFFICE = """
import json, sys
import django
django.setup()
from django.core.management import call_command
from django.utils import timezone
from projects import importer
from projects.events import By
from projects.lifecycle import stops
from projects.models import Event, LoopStop, Project
call_command("migrate", verbosity=0, interactive=False)
importer.rescan(now=timezone.now())
for line in sys.stdin:
    if line.strip() == "ask":
        stops.ask(Project.objects.get(), grace_s=5, by=By("user:anna", "page"), now=timezone.now())
    row = LoopStop.objects.get()
    print(json.dumps([row.status, row.code, Event.objects.filter(kind="loop.stop_asked").count()]), flush=True)
"""


@pytest.fixture
def programs(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start programs of Andon on a home of their own."""
    started: list[subprocess.Popen[str]] = []
    with own_database() as database:
        env = {
            **os.environ,
            "ANDON_HOME": str(tmp_path / "home"),
            "ANDON_WORKSPACE": str(tmp_path / "workspace"),
            "ANDON_NODE": "journey-loops",
            "PYTHONPATH": str(ROOT),
            **database,
        }

        def start(*words: str) -> subprocess.Popen[str]:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            started.append(subprocess.Popen([sys.executable, *words], cwd=ROOT, env=env, **pipes))
            return started[-1]

        yield start
        for process in started:
            process.kill()
            process.communicate()


def test_a_worker_killed_between_term_and_kill(programs, tmp_path: Path) -> None:
    root = write_project(tmp_path / "workspace/demo")
    office = programs("-c", OFFICE)

    def told(word: str) -> list[Any]:
        office.stdin.write(f"{word}\n")
        office.stdin.flush()
        return json.loads(office.stdout.readline())

    script = f"setsid sh -c {shlex.quote(DEAF_AGENT)} & {DEAF}"
    loop = subprocess.Popen(["sh", "-c", script], cwd=root, start_new_session=True)
    try:
        wait_for(lambda: (root / PID).exists() and (root / "agent").exists(), WITHIN_S)
        agent = int(wait_for((root / "agent").read_text, WITHIN_S))
        assert told("ask") == ["asked", "", 1]
        worker = programs("manage.py", "worker")
        wait_for((root / "terms").exists, WITHIN_S)
        # Killed before it has noted that it asked, the next one asks again.
        wait_for(lambda: told("look")[1] == stops.ASKED, WITHIN_S)
        worker.kill()
        worker.wait()
        assert (told("look")[0], loop.poll(), is_alive(agent)) == ("ending", None, True)
        programs("manage.py", "worker")
        wait_for(lambda: told("look")[0] != "ending", WITHIN_S)
        assert told("look") == ["killed", "", 1]
        assert (loop.wait(WITHIN_S), is_alive(agent)) == (-signal.SIGKILL, False)
        assert (root / "terms").read_text() == "term\n"
        # It is removed once the outcome stands.
        wait_for(lambda: not (root / PID).exists(), WITHIN_S)
    finally:
        for pid in (loop.pid, agent):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
        loop.wait()
