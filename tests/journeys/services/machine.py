"""A small machine for journeys: a real worker that can be killed and started again at once, on a home of its own.

What the tests assert they look up themselves, in /proc and in the ledgers of the programs, without `services`.
"""

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.running import ROOT, own_database, wait_for

HERE = Path(__file__).parent
SHAPE = HERE / "shape.py"
UP = {"starting", "running", "healthy", "unhealthy"}
ENDED = {"exited", "failed", "crash_loop", "expired", "lost"}
ALWAYS_WELL = {"type": "command", "cmd": "sh -c 'echo well'", "shell": False, "expect_regex": "well"}


class Refused(Exception):
    """A verb was refused: `code` and `detail`."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code, self.detail = code, detail


@dataclass(frozen=True)
class Seen:
    """A living process as /proc shows it."""

    pid: int
    ticks: int
    parent: int
    session: int
    argv: tuple[str, ...]
    marker: str
    outputs: frozenset[tuple[int, int]]


@dataclass(frozen=True)
class Entry:
    """One process of a ledger."""

    role: str
    pid: int
    ticks: int
    generation: int
    shape: str

    @property
    def is_alive(self) -> bool:
        return ticks_of(self.pid) == self.ticks


def ticks_of(pid: int) -> int | None:
    """Return when a process started, None for a dead one."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
    return None if fields[0] in {b"Z", b"X"} else int(fields[19])


def census() -> list[Seen]:
    """Return all living processes."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            if fields[0] in {b"Z", b"X"}:
                continue
            words = Path(f"/proc/{entry}/cmdline").read_bytes().split(b"\0")
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
            markers = [each[14:].decode() for each in environ if each.startswith(b"ANDON_SERVICE=")]
            outputs = set()
            for output in (1, 2):
                with contextlib.suppress(OSError):
                    place = os.stat(f"/proc/{entry}/fd/{output}")
                    outputs.add((place.st_dev, place.st_ino))
            found.append(
                Seen(
                    pid=int(entry),
                    ticks=int(fields[19]),
                    parent=int(fields[1]),
                    session=int(fields[3]),
                    argv=tuple(os.fsdecode(word) for word in words),
                    marker=markers[0] if markers else "",
                    outputs=frozenset(outputs),
                )
            )
    return found


def is_of(marker: str, prefix: str) -> bool:
    """Say whether a marker is a service's: `<node>.<id>.` and a generation."""
    return marker.startswith(prefix) and marker.removeprefix(prefix).isdigit()


class Machine:
    """One home, one node, one init, one driver, and a worker while it is up."""

    def __init__(self, folder: Path, database: dict[str, str], *, node: str = "", env: dict[str, str] | None = None):
        self.folder = folder
        self.home = folder / "home"
        self.workspace = folder / "workspace"
        self.workspace.mkdir(parents=True, exist_ok=True)
        self.log = folder / "worker.log"
        self.node = node or f"journey-{uuid.uuid4().hex[:8]}"
        self.env = {
            **os.environ,
            "ANDON_HOME": str(self.home),
            "ANDON_WORKSPACE": str(self.workspace),
            "ANDON_NODE": self.node,
            "PYTHONPATH": str(ROOT),
            **database,
            **(env or {}),
        }
        self.worker = 0
        self._numbers = itertools.count()
        self._asked: dict[int, Future[Any]] = {}
        self._lock = threading.Lock()
        self._init = self._open(HERE / "init.py")
        self._driver = self._open(HERE / "driver.py")
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def _open(self, program: Path) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, str(program)],
            cwd=ROOT,
            env=self.env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def _listen(self) -> None:
        for line in self._driver.stdout:
            answer = json.loads(line)
            future = self._asked.pop(answer["id"])
            if "error" in answer:
                future.set_exception(Refused(answer["error"], answer["detail"]))
            else:
                future.set_result(answer["is"])

    def send(self, verb: str, **arguments: Any) -> "Future[Any]":
        """Give an order and do not wait for its outcome."""
        future: Future[Any] = Future()
        with self._lock:
            number = next(self._numbers)
            self._asked[number] = future
            self._driver.stdin.write(json.dumps({"id": number, "ask": verb, **arguments}) + "\n")
            self._driver.stdin.flush()
        return future

    def ask(self, verb: str, **arguments: Any) -> Any:
        """Give an order and return its outcome; Refused."""
        return self.send(verb, **arguments).result(90)

    def begin(self) -> int:
        """Start a worker and return its pid, at once."""
        words = [sys.executable, str(ROOT / "manage.py"), "worker"]
        self._init.stdin.write(json.dumps([words, str(self.log)]) + "\n")
        self._init.stdin.flush()
        self.worker = int(self._init.stdout.readline())
        return self.worker

    def up(self, within_s: float = 60) -> "Machine":
        """Start a worker and wait until it takes orders."""
        before = self.adoptions()
        self.begin()

        def is_ready() -> bool:
            assert ticks_of(self.worker) is not None, self.words()
            return self.adoptions() > before

        wait_for(is_ready, within_s, 0.01)
        return self

    def adoptions(self) -> int:
        return self.words().count("adopted:")

    def words(self) -> str:
        """Return what the workers said."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def kill_worker(self) -> None:
        """Kill the worker; its init reaps it."""
        os.kill(self.worker, signal.SIGKILL)
        wait_for(lambda: ticks_of(self.worker) is None, 10, 0.001)

    def project(self, slug: str) -> Path:
        """Make a project and wait until the worker knows it; returns its directory."""
        root = self.workspace / slug
        (root / ".git").mkdir(parents=True)
        self.wait_project(slug)
        return root

    def wait_project(self, slug: str) -> None:
        wait_for(lambda: slug in self.ask("projects"), 30)

    def ledger(self, name: str) -> list[Entry]:
        """Return all processes that a service ever had, as they entered themselves."""
        path = self.folder / f"{name}.ledger"
        entries = []
        for line in path.read_text().splitlines() if path.exists() else []:
            role, pid, ticks, generation, shape = line.split()
            entries.append(Entry(role, int(pid), int(ticks), int(generation), shape))
        return entries

    def living(self, name: str) -> list[Entry]:
        return [entry for entry in self.ledger(name) if entry.is_alive]

    def spec(self, name: str, shape: str, *rest: object, **fields: Any) -> dict[str, Any]:
        """Return a spec of a program of shape.py that is named for its service."""
        check = fields.pop("healthcheck", ALWAYS_WELL)
        return {
            "name": name,
            "cmd": "python3",
            "args": ["-IS", str(SHAPE), str(self.folder / f"{name}.ledger"), self.token(name), shape, *map(str, rest)],
            "healthcheck": {"timeout_s": 30, "interval_s": 0.1, **check},
            "stop_grace_s": 1,
            **fields,
        }

    def token(self, name: str) -> str:
        """Return a word that stands in the arguments of a service's processes and nowhere else."""
        return f"{self.node}/{name}"

    def wait_status(self, project: str, name: str, *statuses: str, within_s: float = 30) -> dict[str, Any]:
        row: dict[str, Any] = {}

        def is_there() -> bool:
            row.update(self.ask("row", project=project, name=name))
            return row["status"] in statuses

        try:
            wait_for(is_there, within_s, 0.02)
        except AssertionError:
            raise AssertionError(f"{name} is {row}, not {statuses}\n{self.words()[-4000:]}") from None
        return row

    def kinds(self, project: str, name: str) -> list[str]:
        return [event["kind"] for event in self.ask("events", subject=f"service:{project}/{name}")]

    def left(self, row: dict[str, Any]) -> list[Seen | Entry]:
        """Return what lives of a service by any sign: its marker, sessions, log, arguments and ledger."""
        entries = self.ledger(row["name"])
        found: list[Seen | Entry] = [entry for entry in entries if entry.is_alive]
        sessions = {entry.pid: entry.ticks for entry in entries if entry.role == "leader"}
        with contextlib.suppress(OSError):
            log = (self.home / "logs/services" / row["log_name"]).stat()
            place = (log.st_dev, log.st_ino)
            found += [seen for seen in census() if place in seen.outputs]
        for seen in census():
            began = sessions.get(seen.session)
            in_session = began is not None and seen.ticks >= began
            if is_of(seen.marker, row["marker"]) or in_session or self.token(row["name"]) in seen.argv:
                found.append(seen)
        return found

    def end(self) -> None:
        """Kill everything that was started here."""
        for program in (self._driver, self._init):
            if program.stdin is not None and not program.stdin.closed:
                program.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._init.wait(20)
        self._driver.kill()
        self._driver.wait(10)
        self._listener.join(10)
        if self._init.poll() is None:
            self._init.kill()
            self._init.wait(10)
        for program in (self._driver, self._init):
            program.stdout.close()
        for future in list(self._asked.values()):
            future.cancel()
        left = [seen for seen in census() if seen.marker.startswith(f"{self.node}.")]
        for seen in left:
            with contextlib.suppress(OSError):
                os.kill(seen.pid, signal.SIGKILL)
        assert not left


@contextlib.contextmanager
def machine(folder: Path, **options: Any) -> Iterator[Machine]:
    """Set up a machine with an empty board; no worker is up yet."""
    with own_database() as database:
        made = Machine(folder, database, **options)
        try:
            made.ask("migrate")
            yield made
        finally:
            made.end()


def pause(seconds: float) -> None:
    """Wait because a moment is what is tested."""
    time.sleep(seconds)
