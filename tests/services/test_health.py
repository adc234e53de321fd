"""Probes of services: the first success, the rounds after it, and how little is written."""

import time
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from projects.models import Event
from services import lifecycle, sweeps
from services.health import MOST_S, STRIP
from services.models import ManagedProcess
from services.probes import Prober
from services.states import Status
from tests.services.world import ANNA, World


def probe(world: World, **more: Any) -> dict[str, int]:
    return sweeps.probe_due(world.supervisor, now=world.now, **more)


def round_of(world: World, said: dict[int, bool] | None = None) -> None:
    """Let a period pass, probe all that is due and write what was found."""
    world.prober.says.update(said or {})
    world.advance(40)
    probe(world)
    world.advance(0.02)
    probe(world)


def key(row: ManagedProcess) -> tuple[int, int]:
    return row.pk, row.generation


class TestRounds:
    def test_one_write_for_all_whatever_their_number(self, world: World) -> None:
        counts = []
        for number in (1, 19):
            for _ in range(number):
                world.make(Status.HEALTHY)
            world.advance(40)
            assert probe(world)["started"] == ManagedProcess.objects.count()
            world.advance(0.02)
            events = world.head
            with CaptureQueriesContext(
                connection,
            ) as seen:
                assert probe(world) == {"written": ManagedProcess.objects.count(), "started": 0}
            counts.append(len(seen))
            assert world.head == events
        assert counts[0] == counts[1] <= 6

    def test_a_success_is_noted_and_the_next_is_due_in_a_period(self, world: World) -> None:
        row = world.make(Status.HEALTHY, healthcheck={"period_s": 10})
        first = row.last_health_at
        round_of(world)
        row = world.row(row)
        assert row.last_health_at is not None
        assert first is not None
        assert row.last_health_at == world.now > first
        assert row.next_probe_at == world.now + timedelta(seconds=11 - 0.02)
        assert (row.passes, row.misses) == (2, 0)

    def test_a_period_has_a_jitter_of_ten_percent(self, world: World) -> None:
        row = world.make(Status.HEALTHY, healthcheck={"period_s": 10})
        world.jitter = 0.0
        round_of(world)
        assert world.row(row).next_probe_at == world.now + timedelta(seconds=9 - 0.02)

    def test_a_miss_leaves_the_last_success(self, world: World) -> None:
        row = world.make(Status.HEALTHY, healthcheck={"failure_threshold": 3})
        seen = row.last_health_at
        round_of(world, {row.pk: False})
        row = world.row(row)
        assert (row.status, row.misses, row.last_health_at) == (Status.HEALTHY, 1, seen)

    def test_only_what_is_due_and_ours(self, world: World) -> None:
        due, later, away, unwell = (world.make(Status.HEALTHY) for _ in range(4))
        world.advance(40)
        ManagedProcess.objects.filter(pk=later.pk).update(next_probe_at=world.now + timedelta(seconds=1))
        ManagedProcess.objects.filter(pk=away.pk).update(node="n2")
        ManagedProcess.objects.filter(pk=unwell.pk).update(status=Status.UNHEALTHY)
        world.prober.asked.clear()
        assert probe(world)["started"] == 2
        assert {asked for asked, _ in world.prober.asked} == {key(due), key(unwell)}

    def test_at_most_one_in_flight(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.prober.says[row.pk] = None
        world.advance(40)
        assert [probe(world)["started"] for _ in range(3)] == [1, 0, 0]
        world.prober.answer(key(row), ok=True)
        # Told, and not written yet.
        assert world.supervisor.health.probe(node=world.supervisor.node, now=world.now) == 0
        assert probe(world) == {"written": 1, "started": 0}

    def test_a_prober_that_does_not_take_it_is_asked_again(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.advance(40)
        world.prober.is_over = True
        assert probe(world)["started"] == 0
        world.prober.is_over = False
        assert probe(world)["started"] == 1
        assert world.prober.asked[-1][0] == key(row)

    def test_a_total_deadline(self, world: World) -> None:
        quick, slow = world.make(Status.STARTING, healthcheck={"timeout_s": 2}), world.make(Status.STARTING)
        deadlines = {asked: flight[1] for asked, flight in world.prober.flights.items()}
        assert deadlines == {key(quick): 2, key(slow): MOST_S}

    def test_a_check_that_cannot_be_made_is_a_miss_and_stops_no_other(self, world: World) -> None:
        poison = world.make(Status.HEALTHY, restart="never")
        good = world.make(Status.HEALTHY)
        broken = {**poison.healthcheck, "type": "odd"}
        ManagedProcess.objects.filter(pk=poison.pk).update(healthcheck=broken)
        ManagedProcess.objects.filter(pk=poison.pk).update(next_probe_at=world.now)
        round_of(world)
        assert world.row(good).last_health_at == world.now
        assert (world.status(poison), world.row(poison).last_error) == (
            Status.UNHEALTHY, "no such type of healthcheck"
        )  # fmt: skip

    def test_nor_one_that_waits_for_its_first_success(self, world: World) -> None:
        row = world.make(Status.STARTING)
        ManagedProcess.objects.update(healthcheck={**row.healthcheck, "type": "odd"})
        world.advance(1)
        world.reborn()
        world.advance(11)
        assert world.row(row).last_error.startswith("not healthy within 10 s: no such type of healthcheck")

    def test_a_row_that_cannot_be_moved_stops_no_other(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        poison, good = world.make(Status.HEALTHY), world.make(Status.HEALTHY)
        real = lifecycle.sicken

        def sicken(row: ManagedProcess, *args: Any, **more: Any) -> None:
            if row.pk == poison.pk:
                raise OSError("database is locked")
            real(row, *args, **more)

        monkeypatch.setattr(lifecycle, "sicken", sicken)
        round_of(world, {poison.pk: False, good.pk: False})
        assert (world.status(poison), world.status(good)) == (Status.HEALTHY, Status.UNHEALTHY)
        monkeypatch.undo()


class TestThresholds:
    def test_down_and_up_again(self, world: World) -> None:
        row = world.make(Status.HEALTHY, healthcheck={"failure_threshold": 3, "success_threshold": 2})
        found = []
        for ok in (False, False, True, False, False, False, True, False, True, True):
            round_of(world, {row.pk: ok})
            found.append(world.status(row) == Status.HEALTHY)
        assert found == [True] * 5 + [False] * 4 + [True]
        assert world.kinds(row) == ["declared", "starting", "healthy", "unhealthy", "healthy"]
        assert world.payloads("service.unhealthy")[0]["misses"] == 3
        row = world.row(row)
        assert (row.passes, row.misses, row.last_error) == (2, 0, "")

    @pytest.mark.parametrize("restart", ["on-failure", "always"])
    def test_one_that_restarts_itself(self, world: World, restart: str) -> None:
        row = world.make(Status.HEALTHY, restart=restart)
        round_of(world, {row.pk: False})
        world.prober.says.clear()
        world.advance(1)
        row = world.row(row)
        assert (row.status, row.generation, row.restarts, row.attempt) == (Status.HEALTHY, 2, 1, 1)
        assert world.kernel.alive() == [row.identity]

    def test_restarted_too_often_it_is_given_up(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        ManagedProcess.objects.update(crashes=[world.now.timestamp() + 30] * 5)
        round_of(world, {row.pk: False})
        world.advance()
        assert world.status(row) == Status.CRASH_LOOP
        assert world.kernel.alive() == []


class TestStale:
    """Results that come when another life has begun."""

    def restarted_with_a_probe_in_flight(self, world: World, ok: bool) -> ManagedProcess:
        row = world.make(Status.HEALTHY, healthcheck={"failure_threshold": 1})
        world.prober.says[row.pk] = None
        world.advance(40)
        probe(world)
        world.is_held = True
        world.prober.answer(key(row), ok)
        return row

    def test_a_result_of_an_older_generation_is_dropped(self, world: World) -> None:
        row = self.restarted_with_a_probe_in_flight(world, ok=False)
        ManagedProcess.objects.update(generation=2)
        before = world.everything()
        assert probe(world)["written"] == 1
        assert world.everything() == before
        assert world.status(row) == Status.HEALTHY

    def test_so_is_one_of_a_row_that_is_gone_or_being_stopped(self, world: World) -> None:
        row = self.restarted_with_a_probe_in_flight(world, ok=False)
        lifecycle.stop(row, by=ANNA, now=world.now)
        before = world.head
        probe(world)
        assert (world.row(row).misses, world.row(row).next_probe_at, world.head) == (0, None, before)
        world.is_held = False
        world.tell([row])
        world.advance()
        assert world.status(row) == Status.EXITED

    def test_and_one_whose_service_was_forgotten(self, world: World) -> None:
        row = self.restarted_with_a_probe_in_flight(world, ok=True)
        world.supervisor.health.forget(row.pk)
        assert probe(world)["written"] == 0

    def test_a_first_success_of_an_older_generation(self, world: World) -> None:
        row = world.make(Status.STARTING)
        world.is_held = True
        world.prober.answer(key(row), ok=True)
        ManagedProcess.objects.update(generation=2)
        world.is_held = False
        world.drain()
        assert world.status(row) == Status.STARTING
        assert "healthy" not in world.kinds(row)

    def test_an_answer_after_the_wait_was_given_up(self, world: World) -> None:
        row = world.make(Status.STARTING)
        _, _, on_result = world.prober.flights[key(row)]
        world.supervisor.health.forget(row.pk)
        from services.probes import Result

        on_result(key(row), Result(ok=True, reason="", took_ms=1))
        assert world.status(row) == Status.STARTING

    def test_the_success_of_a_new_life_is_not_lost_behind_that_of_the_old(self, world: World) -> None:
        """Two calls of one key are one call: the first one's."""
        row = world.make(Status.STARTING)
        world.is_held = True
        world.prober.answer(key(row), ok=True)
        ManagedProcess.objects.update(generation=2)
        row = world.row(row)
        world.supervisor.health.first(row)
        world.prober.answer(key(row), ok=True)
        world.is_held = False
        world.drain()
        assert world.status(row) == Status.HEALTHY


def test_without_a_budget_there_is_no_timer(world: World) -> None:
    [row] = world.declare(world.spec(), acts=False)
    assert row.health_by is None
    timers = len(world.machine.timers)
    world.prober.says[row.pk] = None
    world.supervisor.health.first(row)
    assert (len(world.machine.timers), len(world.prober.flights)) == (timers, 1)


class TestStrip:
    def test_the_last_sixty_written_each_ten_seconds_at_most(self, world: World) -> None:
        row = world.make(Status.HEALTHY, healthcheck={"period_s": 1, "failure_threshold": 1000})
        world.prober.says[row.pk] = False
        written: list[int] = []
        world.jitter = 0.0
        for _ in range(80):
            world.advance(1)
            probe(world)
            strip = world.row(row).strip
            if not written or len(strip) != written[-1]:
                written.append(len(strip))
        assert len(written) <= 9
        strip = world.row(row).strip
        assert len(strip) == STRIP
        at, ok, took = strip[-1]
        assert (ok, took) == (0, 1)
        assert abs(at / 1000 - world.now.timestamp()) < 15

    def test_another_declaration_begins_another(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        round_of(world)
        assert len(world.row(row).strip) == 2
        world.crash(row)
        [row] = world.declare(world.spec(row.name))
        world.advance(1)
        assert (world.row(row).status, len(world.row(row).strip)) == (Status.HEALTHY, 1)
        round_of(world)
        # Written at most each ten seconds, or when it ends.
        world.crash(row)
        assert len(world.row(row).strip) == 2

    def test_it_goes_on_over_restarts_and_over_the_worker(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        round_of(world)
        assert len(world.row(row).strip) == 2
        world.crash(row)
        world.advance(5)
        assert (world.row(row).generation, len(world.row(row).strip)) == (2, 3)
        world.reborn()
        world.advance(20)
        round_of(world)
        assert len(world.row(row).strip) == 4

    def test_misses_before_the_first_success_are_kept(self, world: World) -> None:
        row = world.make(Status.STARTING)
        world.prober.says[row.pk] = False
        world.prober.answer(key(row), ok=False)
        world.advance(30)
        assert world.row(row).status == Status.FAILED
        assert {ok for _, ok, _ in world.row(row).strip} == {0}


def test_with_the_real_prober(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real connection to a real port, from its own thread."""
    import socket

    from services.health import Health

    prober = Prober()
    prober.start()
    listening = socket.create_server(("127.0.0.1", 0))
    try:
        port = listening.getsockname()[1]
        [row] = world.declare(world.spec(healthcheck={"port": port}), acts=False)
        row.health_by = world.now + timedelta(seconds=9)
        submitted: list[Any] = []
        health = Health(
            prober, world.kernel, lambda pk: None, lambda name, call, *args: submitted.append((name, call, args))
        )
        health.first(row)
        health.first(row)
        until = time.monotonic() + 20
        while not submitted and time.monotonic() < until:
            time.sleep(0.01)
        assert [(name, args) for name, _, args in submitted] == [(f"health:{row.pk}:1", (row,))]
    finally:
        listening.close()
        prober.stop()
    assert not Event.objects.filter(kind="service.healthy").exists()


def test_the_wait_for_the_first_success_outlives_a_probe_that_is_not_taken(world: World, monkeypatch) -> None:
    """The prober refuses a key whose last child is not reaped yet."""
    row = world.make(Status.STARTING)
    real, refused = world.prober.submit, []

    def submit(*args: Any) -> bool:
        if len(refused) < 3:
            refused.append(args)
            return False
        return real(*args)

    monkeypatch.setattr(world.prober, "submit", submit)
    world.prober.answer(key(row), ok=False)
    world.prober.says[row.pk] = True
    world.advance(8)
    assert (world.status(row), len(refused)) == (Status.HEALTHY, 3)
