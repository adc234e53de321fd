"""Verbs as people give them: the intent, the worker told, the outcome awaited; here in the machine's own time."""

from datetime import timedelta
from typing import Any

import pytest
from django.conf import settings

from projects.errors import Conflict, DomainError, Unavailable, Unfinished
from services import lifecycle, orders, queries, supervisor
from services.models import ManagedProcess, WorkerHost
from services.states import ENDED, LIVE, Status
from tests.services.fake import Program
from tests.services.world import ANNA, DEAF, World

MISSING = Program(error=FileNotFoundError(2, "No such file or directory"))


@pytest.fixture
def deaf_worker(world: World, monkeypatch: pytest.MonkeyPatch) -> World:
    """A worker that ticks and hears nothing."""
    monkeypatch.setattr(orders, "tell", lambda rows: None)
    return world


def declare(world: World, *specs: dict[str, Any], **more: Any) -> orders.Placed:
    return orders.declare(world.project, list(specs), by=ANNA, **more)


def refused(act: Any, kind: type[DomainError], code: str) -> DomainError:
    with pytest.raises(kind) as refusal:
        act()
    assert refusal.value.code == code
    return refusal.value


class TestDeclare:
    def test_it_answers_when_all_have_their_process(self, world: World) -> None:
        placed = declare(world, world.spec("a"), world.spec("b"), agent="ada", wi="w-1")
        assert [row.name for row in placed.rows] == ["a", "b"]
        assert all(row.pid for row in placed.rows)
        assert (placed.is_started, placed.warnings) == (True, [])
        assert {(row.owner_agent, row.owner_wi) for row in placed.rows} == {("ada", "w-1")}

    def test_a_worker_that_does_not_hear_is_waited_for_five_seconds(self, deaf_worker: World) -> None:
        began = deaf_worker.now
        placed = declare(deaf_worker, deaf_worker.spec())
        assert (placed.is_started, placed.rows[0].status) == (False, Status.STARTING)
        assert timedelta(seconds=5) <= deaf_worker.now - began < timedelta(seconds=5.5)

    def test_a_kept_one_is_named(self, world: World) -> None:
        world.make(Status.HEALTHY, "web")
        placed = declare(world, world.spec("web"))
        assert (placed.warnings, placed.is_started) == (["already-running (web)"], True)

    def test_a_replaced_one_is_waited_for(self, world: World) -> None:
        world.script("web", Program(ignores={15}))
        [old] = declare(world, world.spec("web", stop_grace_s=2), wi="w-1").rows
        placed = declare(world, world.spec("web", ports=[3000], stop_grace_s=2), wi="w-1")
        [row] = placed.rows
        assert (row.generation, placed.is_started) == (2, True)
        assert row.pid not in {None, old.pid}

    def test_a_replacement_that_cannot_be_started_is_no_success(self, world: World) -> None:
        declare(world, world.spec("web"), wi="w-1")
        world.kernel.occupy(3999, 77)
        wanted = world.spec("web", ports=[3999])
        refusal = refused(lambda: declare(world, wanted, wi="w-1"), Conflict, "port-conflict")
        assert refusal.detail.startswith("port-conflict (3999: ")

    def test_a_port_that_a_stranger_holds(self, world: World) -> None:
        world.kernel.occupy(3001, 77)
        error = refused(
            lambda: declare(world, world.spec("a"), world.spec("b", ports=[3001])), Conflict, "port-conflict"
        )
        assert error.detail == "port-conflict (3001: somebody 77 on 127.0.0.1)"
        world.advance()
        assert {row.status for row in ManagedProcess.objects.all()} == {Status.FAILED}
        assert world.kernel.alive() == []

    @pytest.mark.parametrize("broken", ["a", "b", "c"])
    def test_the_reason_is_that_of_the_one_that_failed(self, world: World, broken: str) -> None:
        world.script(broken, MISSING)
        specs = [world.spec(name) for name in "abc"]
        error = refused(lambda: declare(world, *specs), Conflict, "start-failed")
        assert error.detail == "bash could not be started: No such file or directory"

    def test_one_that_started_and_ended_at_once_was_started(self, world: World) -> None:
        world.script("web", Program(exits=1))
        placed = declare(world, world.spec("web"))
        assert placed.is_started

    def test_without_a_worker(self, world: World) -> None:
        WorkerHost.objects.all().delete()
        refused(lambda: declare(world, world.spec()), Unavailable, "no-worker")
        assert not ManagedProcess.objects.exists()


class TestStart:
    @pytest.mark.parametrize("status", sorted(ENDED))
    def test_what_has_ended(self, world: World, status: Status) -> None:
        row = world.make(status)
        world.script(row.name, Program())
        row = orders.start(row, by=ANNA, expected_generation=row.generation)
        assert row.pid is not None

    def test_one_in_back_off(self, world: World) -> None:
        row = orders.start(world.make(Status.BACKOFF), by=ANNA)
        assert (row.status, row.generation) == (Status.STARTING, 2)

    def test_one_that_cannot_be_started(self, world: World) -> None:
        row = world.make(Status.EXITED, ports=[3000])
        world.kernel.occupy(3000)
        error = refused(lambda: orders.start(row, by=ANNA), Conflict, "port-conflict")
        assert error.detail == "port-conflict (3000: a process of another user on 127.0.0.1)"
        del world.machine.listening[3000]
        world.script(row.name, MISSING)
        refused(lambda: orders.start(row, by=ANNA), Conflict, "start-failed")

    def test_not_known_within_five_seconds(self, deaf_worker: World) -> None:
        row = deaf_worker.make(Status.EXITED)
        assert orders.start(row, by=ANNA).pid is None


class TestRestart:
    def test_it_answers_with_the_next_generation(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=DEAF, stop_grace_s=3)
        again = orders.restart(row, by=ANNA)
        assert (again.generation, again.pid not in {None, row.pid}) == (2, True)

    def test_what_has_ended_is_started(self, world: World) -> None:
        row = orders.restart(world.make(Status.EXITED), by=ANNA)
        assert (row.generation, row.pid is not None) == (2, True)

    def test_one_that_does_not_come_back(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.script(row.name, MISSING)
        refused(lambda: orders.restart(row, by=ANNA), Conflict, "start-failed")

    def test_not_known_in_time(self, deaf_worker: World) -> None:
        row = deaf_worker.make(Status.HEALTHY)
        deaf_worker.is_held = True
        began = deaf_worker.now
        assert orders.restart(row, by=ANNA).status == Status.RESTARTING
        assert deaf_worker.now - began >= timedelta(seconds=15)

    def test_without_a_worker_nothing_is_changed(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        WorkerHost.objects.update(tick_at=world.now - timedelta(seconds=16))
        before = world.everything()
        refused(lambda: orders.restart(row, by=ANNA), Unavailable, "no-worker")
        assert world.everything() == before

    def test_another_generation(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        refused(lambda: orders.restart(row, by=ANNA, expected_generation=3), Conflict, "generation-changed")


class TestStop:
    @pytest.mark.parametrize("at_once", [False, True])
    def test_it_answers_once_nothing_is_left(self, world: World, at_once: bool) -> None:
        row = world.make(Status.HEALTHY, program=DEAF, stop_grace_s=3)
        began = world.now
        done = orders.stop(row, at_once=at_once, by=ANNA, expected_generation=1)
        assert (done.row.status, done.pid, done.was_live) == (Status.EXITED, row.pid, True)
        assert (world.now - began < timedelta(seconds=1)) == at_once
        assert world.kernel.alive() == []

    @pytest.mark.parametrize("status", sorted(ENDED))
    def test_of_what_has_ended_nothing_is_done(self, world: World, status: Status) -> None:
        row = world.make(status)
        before = world.everything()
        done = orders.stop(row, by=ANNA)
        assert (done.row, done.pid, done.was_live) == (row, None, False)
        assert world.everything() == before

    @pytest.mark.parametrize("status", sorted(LIVE))
    def test_in_every_live_state(self, world: World, status: Status) -> None:
        row = world.make(status)
        assert orders.stop(row, by=ANNA).row.status == Status.EXITED
        assert world.kernel.alive() == []

    def test_still_stopping(self, deaf_worker: World) -> None:
        row = deaf_worker.make(Status.HEALTHY, stop_grace_s=1)
        began = deaf_worker.now
        error = refused(lambda: orders.stop(row, by=ANNA), Unfinished, "still-stopping")
        assert error.extra == {"left": [row.pid]}
        assert timedelta(seconds=6) <= deaf_worker.now - began < timedelta(seconds=6.5)

    def test_still_stopping_one_that_has_no_process(self, deaf_worker: World) -> None:
        row = deaf_worker.make(Status.BACKOFF)
        deaf_worker.is_held = True
        error = refused(lambda: orders.stop(row, at_once=True, by=ANNA), Unfinished, "still-stopping")
        assert error.extra == {"left": []}

    def test_what_survives_is_named(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(Program(own_session=True),)))
        setuid = world.kernel.alive()[1]
        world.kernel.find(setuid).uid_is_ours = False
        error = refused(lambda: orders.stop(row, at_once=True, by=ANNA), Unfinished, "still-stopping")
        assert error.extra == {"left": [setuid.pid]}
        world.kernel.kill(setuid)
        assert orders.stop(row, by=ANNA).row.status == Status.EXITED

    def test_what_cannot_be_seen(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.kernel.adopt(is_hidden=True)
        refused(lambda: orders.stop(row, at_once=True, by=ANNA), Conflict, "identity-unavailable")

    @pytest.mark.parametrize("status", [Status.HEALTHY, Status.EXITED])
    def test_another_generation(self, world: World, status: Status) -> None:
        row = world.make(status)
        before = world.everything()
        error = refused(lambda: orders.stop(row, by=ANNA, expected_generation=9), Conflict, "generation-changed")
        assert error.extra == {"generation": 1}
        assert world.everything() == before

    def test_another_generation_that_came_meanwhile(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        lifecycle.restart(row, by=ANNA, now=world.now)
        world.tell([row])
        world.advance(1)
        refused(lambda: orders.stop(row, by=ANNA, expected_generation=1), Conflict, "generation-changed")
        assert world.status(row) == Status.HEALTHY

    def test_without_a_worker_nothing_is_changed(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        WorkerHost.objects.update(tick_at=world.now - timedelta(seconds=16))
        before = world.everything()
        refused(lambda: orders.stop(row, by=ANNA), Unavailable, "no-worker")
        assert world.everything() == before


class TestTell:
    """The message to the worker of a row; the world's own is put aside."""

    @pytest.fixture
    def tell(self, world: World, monkeypatch: pytest.MonkeyPatch) -> Any:
        import importlib

        real = importlib.util.find_spec("services.orders")
        assert real is not None
        assert real.loader is not None
        fresh = importlib.util.module_from_spec(real)
        monkeypatch.setattr("projects.jobs.job", lambda function: function)
        real.loader.exec_module(fresh)
        return fresh

    def test_our_own_worker_is_told_through_its_queue(self, world: World, tell: Any, monkeypatch) -> None:
        row = world.make(Status.EXITED)
        sent: list[int] = []
        monkeypatch.setattr(tell, "act", sent.append)
        tell.tell([row])
        assert sent == [row.pk]

    def test_another_nodes_only_where_there_is_redis(self, world: World, tell: Any, monkeypatch) -> None:
        row = world.make(Status.EXITED)
        row.node = "n2"
        monkeypatch.setattr(settings, "REDIS_URL", "")
        tell.tell([row])
        named: list[Any] = []

        class Away:
            def __init__(self, name: str, url: str) -> None:
                named.append((name, url))
                self.storage = self

            def enqueue(self, message: bytes) -> None:
                named.append(message)

        class Job:
            def s(self, pk: int) -> int:
                return pk

        monkeypatch.setattr(settings, "REDIS_URL", "redis://there")
        monkeypatch.setattr(tell, "RedisHuey", Away)
        monkeypatch.setattr(tell, "act", Job())
        monkeypatch.setattr(tell.jobs.queue, "serialize_task", lambda task: f"task {task}".encode())
        tell.tell([row])
        assert named == [("andon-n2", "redis://there"), f"task {row.pk}".encode()]

    def test_the_job_wakes_the_supervisor_where_there_is_one(self, world: World, tell: Any) -> None:
        [row] = world.declare(world.spec(), acts=False)
        tell.act(row.pk)
        assert world.row(row).pid is None
        supervisor.install(world.supervisor)
        tell.act(row.pk)
        assert world.row(row).pid is not None


def test_waiting_looks_seldom_and_never_waits_for_what_is_gone(world: World) -> None:
    row = world.make(Status.HEALTHY)
    gone = ManagedProcess(pk=987654, name="gone")
    looks: list[Any] = []

    def is_settled(fresh: ManagedProcess) -> bool:
        looks.append(world.now)
        return len(looks) > 20

    assert queries.awaited([gone], lambda _: False, within_s=60) == [gone]
    began = world.now
    assert queries.awaited([row, gone], is_settled, within_s=60) == [row, gone]
    steps = [(after - before).total_seconds() for before, after in zip([began, *looks], looks, strict=False)]
    assert steps[:2] == pytest.approx([0, 0.02])
    assert max(steps) == pytest.approx(0.2)
