"""Anybody does anything in any order, processes and workers die anywhere: what must hold, holds."""

import random
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from projects.errors import DomainError
from projects.models import Event, Project
from services import lifecycle, starting, sweeps
from services.models import ManagedProcess
from services.processes import Identity
from services.states import ENDED, Restart, Status
from tests.services.fake import FakeKernel, Process, Program
from tests.services.world import ANNA, DEAF, QUOTAS, TERM, World, is_settled

NAMES = ("a", "b", "c")
MAX_EXAMPLES = 120
PROGRAMS = {
    "plain": Program(),
    "deaf": DEAF,
    "tree": Program(children=(Program(children=(Program(own_session=True),)),)),
    "deaf tree": Program(children=(Program(own_session=True, ignores={TERM}), Program(ignores={TERM}))),
    "daemon": Program(exits=0, children=(Program(own_session=True),)),
    "clean": Program(children=(Program(own_session=True, keeps=()),)),
    "brief": Program(exits=3),
    "done": Program(exits=0, after_s=2),
    "short": Program(exits=1, after_s=4),
    "missing": Program(error=FileNotFoundError(2, "No such file or directory")),
}
# What the last event of a row may be in each state; these say nothing of it.
SILENT = {"service.extended", "service.expiring", "service.adopted"}
LAST = {
    Status.STARTING: {"declared", "starting", "restarting", "stopped"},
    Status.HEALTHY: {"healthy"},
    Status.UNHEALTHY: {"unhealthy"},
    Status.STOPPING: {"stopping", "crashed", "exited"},
    Status.RESTARTING: {"restarting", "declared", "stopping", "crashed", "exited"},
    Status.BACKOFF: {"backoff", "restarting"},
    Status.EXITED: {"exited", "stopped"},
    Status.FAILED: {"failed", "crashed", "stopped"},
    Status.CRASH_LOOP: {"crash_loop"},
    Status.EXPIRED: {"expired"},
    Status.LOST: {"lost", "forced"},
}
MORTAL = ("spawn", "census", "signal", "signal_group", "verdict", "watch", "exit_code", "release", "listeners")


class WorkerDied(BaseException):
    """The worker was killed in the middle of what it did."""


def mortal(kernel: FakeKernel, after: int) -> None:
    """Kill the worker behind its n-th call of the kernel."""
    left = [after]

    def wrap(call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **more: Any) -> Any:
            found = call(*args, **more)
            left[0] -= 1
            if left[0] == 0:
                raise WorkerDied
            return found

        return wrapped

    for name in MORTAL:
        setattr(kernel, name, wrap(getattr(kernel, name)))


def immortal(kernel: FakeKernel) -> None:
    for name in MORTAL:
        vars(kernel).pop(name, None)


class Node(RuleBasedStateMachine):
    make_world: Callable[[], World]

    @initialize(seed=some.integers(0, 2**32))
    def begin(self, seed: int) -> None:
        self.world = self.make_world()
        self.chance = random.Random(seed)
        self.generations: dict[int, int] = defaultdict(int)
        self.written_off: set[tuple[int, int]] = set()
        self.world.kernel.stranger()

    # What people and agents do.

    @rule(
        names=some.lists(some.sampled_from(NAMES), min_size=1, max_size=2, unique=True),
        program=some.sampled_from(sorted(PROGRAMS)),
        restart=some.sampled_from(list(Restart)),
        wi=some.sampled_from(["", "w-1", "w-2"]),
        is_told=some.booleans(),
        ttl=some.sampled_from([1, 240]),
    )
    def declare(self, names: list[str], program: str, restart: Restart, wi: str, is_told: bool, ttl: int) -> None:
        specs = []
        for name in names:
            self.world.script(name, PROGRAMS[program])
            port = 3000 + NAMES.index(name)
            specs.append(
                self.world.spec(
                    name, restart=restart, ports=[port], ttl_minutes=ttl, stop_grace_s=self.chance.choice([0, 3])
                )
            )
        self.verb(lambda: self.world.declare(*specs, wi=wi, acts=is_told))

    @rule(name=some.sampled_from(NAMES), is_told=some.booleans())
    def start(self, name: str, is_told: bool) -> None:
        self.on(name, lambda row, about: lifecycle.start(row, quotas=QUOTAS, **about), is_told)

    @rule(name=some.sampled_from(NAMES), is_told=some.booleans())
    def stop(self, name: str, is_told: bool) -> None:
        self.on(name, lambda row, about: lifecycle.stop(row, **about), is_told)

    @rule(name=some.sampled_from(NAMES))
    def kill(self, name: str) -> None:
        self.on(name, lambda row, about: lifecycle.kill(row, **about), True)

    @rule(name=some.sampled_from(NAMES), is_told=some.booleans())
    def restart(self, name: str, is_told: bool) -> None:
        self.on(name, lambda row, about: lifecycle.restart(row, **about), is_told)

    @rule(name=some.sampled_from(NAMES), minutes=some.integers(1, 30))
    def extend(self, name: str, minutes: int) -> None:
        self.on(name, lambda row, about: lifecycle.extend(row, minutes, **about), False)

    @rule(name=some.sampled_from(NAMES))
    def erase(self, name: str) -> None:
        self.on(name, lambda row, about: lifecycle.erase(row, **about), True)

    @rule(name=some.sampled_from(NAMES))
    def force(self, name: str) -> None:
        def act(row: ManagedProcess, about: dict[str, Any]) -> None:
            lifecycle.force(row, "hangs", **about)
            self.written_off.add((row.pk, row.generation))

        self.on(name, act, True)

    # What happens by itself.

    @rule(code=some.sampled_from([0, 1, -9]), which=some.integers(0, 20))
    def end_somebody(self, code: int, which: int) -> None:
        alive = self.world.kernel.alive()
        if alive:
            self.world.kernel.kill(alive[which % len(alive)], code)

    @rule(name=some.sampled_from(NAMES), ok=some.booleans())
    def answer(self, name: str, ok: bool) -> None:
        for row in ManagedProcess.objects.filter(name=name):
            self.world.prober.says[row.pk] = ok

    @rule(seconds=some.sampled_from([0, 0.1, 1, 4, 11]))
    def wait(self, seconds: float) -> None:
        self.acting(lambda: self.world.advance(seconds, ticks=seconds <= 4))

    @rule()
    def sleep_long(self) -> None:
        self.acting(lambda: self.world.advance(700))

    @rule(after=some.integers(1, 12))
    def doom(self, after: int) -> None:
        """Let the worker die in the middle of what it does next."""
        if not vars(self.world.kernel).keys() & set(MORTAL):
            mortal(self.world.kernel, after)

    @rule(away_s=some.sampled_from([0, 1, 40]))
    def replace_worker(self, away_s: float) -> None:
        immortal(self.world.kernel)
        self.world.reborn(away_s=away_s)

    @rule()
    def reuse_a_number(self) -> None:
        """Give a dead process's number to a stranger, where the kernel may."""
        held = {each.pid for each in self.world.kernel.pinned}
        for pid, start_ticks in ManagedProcess.objects.filter(pid__isnull=False).values_list("pid", "start_ticks"):
            if pid not in self.world.machine.processes and pid not in held:
                identity = Identity(self.world.kernel.host, self.world.machine.boot_id, pid, start_ticks)
                self.world.kernel.reuse(identity)
                return

    def on(self, name: str, act: Callable[[ManagedProcess, dict[str, Any]], Any], is_told: bool) -> None:
        row = ManagedProcess.objects.filter(name=name).first()
        if row is not None:
            self.verb(lambda: act(row, {"by": ANNA, "now": self.world.now}))
            if is_told:
                self.acting(lambda: self.world.tell([row]))

    def verb(self, act: Callable[[], Any]) -> None:
        def run() -> None:
            try:
                act()
            except DomainError:
                return

        self.acting(run)

    def acting(self, act: Callable[[], Any]) -> None:
        try:
            act()
        except WorkerDied:
            self.world.reborn()

    # What always holds.

    @invariant()
    def holds(self) -> None:
        assert self.world.kernel.strangers_signalled() == []
        living = self.living()
        for row in ManagedProcess.objects.all():
            mine = living.pop(row.pk, [])
            assert sum(bool(process.argv) for process in mine) <= 1, (row.status, mine)
            if row.status in ENDED:
                assert mine == [], (row.status, row.last_error)
            assert row.generation >= self.generations[row.pk]
            self.generations[row.pk] = row.generation
            told = Event.objects.filter(subject=row.subject).exclude(kind__in=SILENT).order_by("-pk").first()
            assert told is not None
            assert told.kind.removeprefix("service.") in LAST[Status(row.status)], (row.status, told.kind)
            assert (row.status in ENDED) <= (row.expires_at is None)
        assert living == {}, "of rows that are not there"

    def living(self) -> dict[int, list[Process]]:
        """Return by row who carries its marker and was not written off."""
        found: dict[int, list[Process]] = {}
        for process in self.world.machine.processes.values():
            if process.code is None and process.marker:
                _, pk, generation = process.marker.split(".")
                if (int(pk), int(generation)) not in self.written_off:
                    found.setdefault(int(pk), []).append(process)
        return found

    def teardown(self) -> None:
        if not hasattr(self, "world"):
            return
        immortal(self.world.kernel)
        # From now on nothing that is started ends by itself.
        for name in NAMES:
            self.world.script(name, Program())
        for _ in range(40):
            self.world.advance(5)
            self.world.tick()
            sweeps.reconcile(self.world.supervisor, now=self.world.now)
            if all(is_settled(row) for row in ManagedProcess.objects.all()):
                break
        self.world.advance(1)
        rows = list(ManagedProcess.objects.all())
        assert [(str(row), row.status, row.last_error) for row in rows if not is_settled(row)] == []
        self.holds()
        live = {row.pk for row in rows if row.is_live}
        assert set(self.living()) <= live
        for row in rows:
            if row.is_live:
                assert row.identity in self.world.living(row)
        dead = [each for each in self.world.machine.processes.values() if each.code is not None]
        assert [each for each in dead if each.parent == self.world.kernel.pid] == [], "dead, and never reaped"


def test_what_must_hold_holds(demo_project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for hooks in (lifecycle.on_start, lifecycle.on_end, starting.prepare):
        for purpose in list(hooks):
            monkeypatch.delitem(hooks, purpose)
    worlds: list[World] = []

    def make_world() -> World:
        if worlds:
            worlds[-1].forget()
        worlds.append(World(monkeypatch, demo_project, tmp_path / "logs"))
        return worlds[-1]

    class Case(Node):
        pass

    Case.make_world = staticmethod(make_world)
    run_state_machine_as_test(
        Case,
        settings=settings(
            max_examples=MAX_EXAMPLES,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink],
            database=None,
        ),
    )
