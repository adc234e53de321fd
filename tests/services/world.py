"""One node that is not there: a fake machine, the real supervisor on it, a prober that answers as told, one clock."""

import itertools
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.db import connection

from projects.events import By
from projects.models import Event, Project
from services import lifecycle, orders, rules, specs, sweeps
from services.models import ManagedProcess, WorkerHost
from services.probes import Check, Result
from services.processes import Identity
from services.states import LIVE, Purpose, Restart, Status
from services.supervisor import Supervisor
from tests.services.fake import FakeKernel, Program

ANNA = By("user:anna", "page", "10.0.0.1")
WORKER = By("worker", "sweep")
EPOCH = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
TERM, KILL = 15, 9
DEAF = Program(ignores={TERM})
QUOTAS = lifecycle.Quotas()


@dataclass
class FakeProber:
    """Answers probes `after_s` seconds after they were asked for; `says` by row id, True where nothing is said.

    None never answers: `answer` does. One probe of a key at a time, as the real one.
    """

    world: "World"
    says: dict[int, bool | None] = field(default_factory=dict)
    after_s: float = 0.01
    flights: dict[Hashable, tuple[Check, float, Callable[[Any, Result], None]]] = field(default_factory=dict)
    asked: list[tuple[Any, float]] = field(default_factory=list)
    is_over: bool = False

    def submit(self, key: Any, check: Check, deadline_s: float, on_result: Callable[[Any, Result], None]) -> bool:
        if self.is_over or key in self.flights:
            return False
        flight = self.flights[key] = (check, deadline_s, on_result)
        self.asked.append((key, self.world.machine.clock))
        if self.says.get(key[0], True) is not None:
            self.world.machine.at(self.after_s, None, lambda: self._answer(key, flight))
        return True

    def cancel(self, key: Hashable) -> None:
        self.flights.pop(key, None)

    def answer(self, key: Any, ok: bool, reason: str = "refused") -> None:
        """Answer one that waits."""
        _, _, on_result = self.flights.pop(key)
        on_result(key, Result(ok=ok, reason="" if ok else reason, took_ms=1.4))

    def _answer(self, key: Any, flight: object) -> None:
        said = self.says.get(key[0], True)
        if not self.is_over and self.flights.get(key) is flight and said is not None:
            self.answer(key, said)


class World:
    """`advance` is the only thing that lets time pass; what the supervisor submits runs at once, one at a time.

    While `is_held`, it waits for `drain`.
    """

    def __init__(self, patch: pytest.MonkeyPatch, project: Project, logs: Path) -> None:
        self.project = project
        self.kernel = FakeKernel(settings.ANDON_NODE)
        self.machine = self.kernel.machine
        self.jitter = 1.0
        self.is_held = False
        self._waiting: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {}
        self._is_busy = False
        self._names = itertools.count(1)
        clock = SimpleNamespace(monotonic=lambda: self.machine.clock, time=self._epoch, sleep=self.advance)
        for module in ("supervisor", "timers", "health", "sweeps", "queries"):
            patch.setattr(f"services.{module}.time", clock)
        for module in ("supervisor", "sweeps"):
            patch.setattr(f"services.{module}.boot_id", lambda: self.machine.boot_id)
        for module in ("supervisor", "health"):
            patch.setattr(f"services.{module}.random", SimpleNamespace(random=lambda: self.jitter))
        for module in ("starting", "sweeps", "models"):
            patch.setattr(f"services.{module}.LOG_FOLDER", logs)
        patch.setattr("django.utils.timezone.now", lambda: self.now)
        patch.setattr(orders, "tell", self.tell)
        self.logs = logs
        self.bash = rules.system().which("bash")
        self.host = lifecycle.enlist(
            Identity(settings.ANDON_NODE, "fake-boot", 4242, 1), host_name="box", version="1", by=WORKER, now=self.now
        )
        self._begin()

    def _begin(self) -> None:
        self.prober = FakeProber(self)
        self.supervisor = Supervisor(self.kernel, self.prober, submit=self.submit, born_at=self.now)  # type: ignore[arg-type]
        self.kernel.start()

    # Time and who runs in it.

    @property
    def now(self) -> datetime:
        return EPOCH + timedelta(seconds=self.machine.clock - 1000)

    def _epoch(self) -> float:
        return self.now.timestamp()

    def submit(self, key: str, function: Callable[..., Any], *args: Any) -> None:
        self._waiting.setdefault(key, (function, args))
        if not self.is_held and not self._is_busy:
            self.drain()

    def drain(self) -> None:
        """Run all that was submitted."""
        self._is_busy = True
        try:
            while self._waiting:
                function, args = self._waiting.pop(next(iter(self._waiting)))
                function(*args)
        finally:
            self._is_busy = False

    def advance(self, seconds: float = 0.0, *, ticks: bool = False) -> None:
        """Let time pass; with `ticks` the worker's jobs run, each in its rhythm."""
        end = self.machine.clock + seconds
        while ticks and self.machine.clock + 1 <= end:
            self.kernel.advance(1.0)
            self.tick()
        self.kernel.advance(end - self.machine.clock)
        self.beat()

    def tick(self) -> None:
        """Run the jobs of a second."""
        self.beat()
        sweeps.probe_due(self.supervisor, now=self.now)
        sweeps.expire_due(self.supervisor, now=self.now)
        if int(self.machine.clock) % 5 == 0:
            sweeps.detect_crashed(self.supervisor, now=self.now)
            sweeps.reconcile(self.supervisor, now=self.now)

    def beat(self) -> None:
        WorkerHost.objects.update(tick_at=self.now)

    def reborn(self, *, adopts: bool = True, away_s: float = 0.0) -> dict[str, int]:
        """Kill the worker and start another, which adopts."""
        self.die()
        self.machine.clock += away_s
        return self.rise(adopts=adopts)

    def die(self) -> None:
        self._waiting.clear()
        self.prober.is_over = True
        self.kernel = self.kernel.reborn()

    def rise(self, *, adopts: bool = True) -> dict[str, int]:
        self.beat()
        self._begin()
        return sweeps.adopt(self.supervisor, now=self.now) if adopts else {}

    def reboot(self) -> dict[str, int]:
        """Have the whole machine restarted."""
        self.die()
        for process in list(self.machine.processes.values()):
            self.machine.end(process, -KILL)
        self.machine.boot_id += "-again"
        return self.rise()

    # What people do.

    def spec(self, name: str = "web", **fields: Any) -> dict[str, Any]:
        """Return a normalized spec; its healthcheck can be given in part."""
        check = {"type": "tcp", "port": 1, "timeout_s": 10, "failure_threshold": 1, **fields.pop("healthcheck", {})}
        document = {"specs": [{"name": name, "cmd": "bash", "args": [name], "healthcheck": check, **fields}]}
        found = specs.validate_document(document, rules.limits(self.project), rules.system())
        assert isinstance(found, specs.Accepted), found
        return found.specs[0]

    def script(self, name: str, program: Program) -> None:
        """Say what the service of this name does when it is started."""
        self.kernel.script(f"{self.bash} {name}", program)

    def declare(self, *wanted: dict[str, Any], acts: bool = True, **context: Any) -> list[ManagedProcess]:
        """Declare, and have the worker act unless told otherwise."""
        context = {"quotas": QUOTAS, "by": ANNA, "now": self.now, **context}
        rows = lifecycle.declare(self.project, list(wanted), **context).rows
        if acts:
            self.tell(rows)
        return [self.row(each) for each in rows]

    def launch(self, purpose: Purpose = Purpose.WORKER, name: str = "t-1", **more: Any) -> ManagedProcess:
        about = {"argv": ["agent"], "cwd": self.project.path, "env": {}, "by": ANNA, "now": self.now, **more}
        row = lifecycle.launch(self.project, name, purpose, **about)
        self.tell([row])
        return self.row(row)

    def tell(self, rows: Any) -> None:
        for row in rows:
            self.supervisor.wake(row.pk)

    def make(
        self, status: Status = Status.HEALTHY, name: str = "", *, program: Program | None = None, **fields: Any
    ) -> ManagedProcess:
        """Return a service that came to a state by the real verbs and a worker."""
        name = name or f"s-{next(self._names)}"
        needed = {Status.BACKOFF: Restart.ALWAYS, Status.CRASH_LOOP: Restart.ALWAYS}
        fields.setdefault("restart", needed.get(status, Restart.NEVER))
        if status == Status.RUNNING:
            if program:
                self.kernel.script("agent", program)
            return self.launch(name=name)
        going = {Status.STOPPING, Status.RESTARTING}
        program = program or (DEAF if status in going else None)
        if status == Status.FAILED:
            program = Program(error=FileNotFoundError(2, "No such file or directory"))
        if program:
            self.script(name, program)
        [row] = self.declare(self.spec(name, **fields), acts=False)
        if status == Status.STARTING:
            self.prober.says[row.pk] = None
        self.tell([row])
        if status not in {Status.STARTING, Status.FAILED}:
            self.advance(0.1)
        self._bring(row, status)
        row = self.row(row)
        assert row.status == status, (row.status, row.last_error)
        return row

    def _bring(self, row: ManagedProcess, status: Status) -> None:
        about: dict[str, Any] = {"by": ANNA, "now": self.now}
        match status:
            case Status.UNHEALTHY:
                self.prober.says[row.pk] = False
                self.advance(40, ticks=True)
            case Status.RESTARTING:
                lifecycle.restart(row, **about)
                self.tell([row])
            case Status.STOPPING:
                lifecycle.stop(row, **about)
                self.tell([row])
            case Status.BACKOFF:
                self.crash(row)
            case Status.EXITED:
                self.crash(row, 0)
            case Status.CRASH_LOOP:
                for _ in range(6):
                    self.crash(row)
                    self.advance(20)
            case Status.EXPIRED:
                self.advance((self.row(row).expires_at - self.now).total_seconds() + 1)  # type: ignore[operator]
            case Status.LOST:
                lifecycle.force(row, "does not answer", **about)
                self.tell([row])

    def crash(self, row: ManagedProcess, code: int = 3) -> None:
        """End a row's leader from outside, and let that be seen."""
        identity = self.row(row).identity
        if identity is not None:
            self.kernel.kill(identity, code)
        self.kernel.advance(0)

    # What there is to see.

    def row(self, row: ManagedProcess | int) -> ManagedProcess:
        return ManagedProcess.objects.get(pk=row if isinstance(row, int) else row.pk)

    def status(self, row: ManagedProcess) -> str:
        return ManagedProcess.objects.values_list("status", flat=True).get(pk=row.pk)

    def kinds(self, row: ManagedProcess | None = None, since: int = 0) -> list[str]:
        """Return the kinds of events in order, of one row or of all, without `service.`."""
        rows = Event.objects.filter(pk__gt=since).exclude(kind="worker.started").order_by("pk")
        if row is not None:
            rows = rows.filter(subject=row.subject)
        return [kind.removeprefix("service.") for kind in rows.values_list("kind", flat=True)]

    def payloads(self, kind: str) -> list[dict[str, Any]]:
        rows = Event.objects.filter(kind=kind).order_by("pk")
        return list(rows.values_list("payload", flat=True))

    @property
    def head(self) -> int:
        return Event.objects.order_by("-pk").values_list("pk", flat=True).first() or 0

    def living(self, row: ManagedProcess) -> list[Identity]:
        """Return the living processes that carry this row's marker, log or session."""
        leaders = {
            pid
            for pid, process in self.machine.processes.items()
            if process.marker.startswith(row.marker) and process.session == pid
        }
        return [
            process.identity
            for process in self.machine.processes.values()
            if process.code is None and (process.marker.startswith(row.marker) or process.session in leaders)
        ]

    def sent(self, identity: Identity) -> list[int]:
        """Return the signals that one process got."""
        return [int(each.number) for each in self.machine.sent if each.identity == identity]

    def everything(self) -> tuple[Any, ...]:
        """Return all rows and the number of events: what a refusal must leave as it was."""
        return list(ManagedProcess.objects.order_by("pk").values()), self.head

    def forget(self) -> None:
        """Empty the tables, for another world in the same test."""
        ManagedProcess.objects.all().delete()
        WorkerHost.objects.all().delete()
        Event.objects.all().delete()
        connection.run_on_commit.clear()


def make_project(root: Path, slug: str = "demo") -> Project:
    """Return a project whose directory is a git work tree under a workspace root."""
    (root / slug / ".git").mkdir(parents=True)
    about = {"name": slug, "node": settings.ANDON_NODE, "path": str(root / slug), "found_at": EPOCH}
    return Project.objects.create(slug=slug, **about)


def is_settled(row: ManagedProcess) -> bool:
    return row.status not in LIVE or row.status in {Status.HEALTHY, Status.UNHEALTHY, Status.RUNNING}
