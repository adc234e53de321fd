"""Level-triggered repairs: each finds what is wrong whatever was lost, and costs the same for one row as for many."""

import contextlib
import inspect
import os
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.test.utils import CaptureQueriesContext

from projects.models import Event, Project
from services import lifecycle, logs, supervisor, sweeps, tasks
from services.logs import rotation
from services.models import ManagedProcess
from services.states import ENDED, LIVE, Cause, Purpose, Status
from tests.services.fake import Program
from tests.services.world import ANNA, DEAF, World


def queries_of(act: Any) -> int:
    with CaptureQueriesContext(connection) as seen:
        act()
    return len(seen)


@pytest.mark.parametrize(
    "name", ["detect_crashed", "reconcile", "expire_due", "probe_due", "sample_usage", "rotate_logs", "adopt"]
)
def test_a_sweep_costs_the_same_for_many_as_for_one(world: World, name: str) -> None:
    def run() -> None:
        sweep = getattr(sweeps, name)
        world.is_held = True
        if name == "rotate_logs":
            sweep(node=world.supervisor.node, now=world.now)
        else:
            sweep(world.supervisor, now=world.now)

    counts = []
    for number in (1, 19):
        world.is_held = False
        for _ in range(number):
            world.make(Status.HEALTHY)
        counts.append(queries_of(run))
    assert counts[0] == counts[1] <= 7


class TestAdopt:
    def test_of_all_states(self, world: World) -> None:
        slow = [Status.UNHEALTHY, Status.HEALTHY, Status.RUNNING]
        order = [*sorted(ENDED, key=lambda status: status != Status.EXPIRED), *slow, *sorted(LIVE - set(slow))]
        rows = {status: world.make(status) for status in order}
        before = {row.pk: row.identity for row in rows.values()}
        assert world.reborn() == {"adopted": 4, "lost": 0, "strays": 1}
        for status, row in rows.items():
            if status in ENDED:
                assert world.status(row) == status
                assert world.living(row) == []
            else:
                assert world.row(row).identity == before[row.pk]
        # What was stopping, restarting or waiting goes on.
        world.advance(20)
        assert world.status(rows[Status.STOPPING]) == Status.EXITED
        assert [world.status(rows[status]) for status in (Status.RESTARTING, Status.BACKOFF)] == [Status.HEALTHY] * 2

    def test_probes_go_on(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.reborn()
        world.prober.says[row.pk] = False
        world.advance(40, ticks=True)
        assert world.status(row) == Status.UNHEALTHY

    def test_rows_of_other_nodes_are_others(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        ManagedProcess.objects.update(node="n2")
        assert world.reboot() == {"adopted": 0, "lost": 0, "strays": 0}
        assert world.status(row) == Status.HEALTHY

    def test_one_poison_row_does_not_stop_the_rest(self, world: World, monkeypatch, caplog) -> None:
        poison, other = world.make(Status.HEALTHY), world.make(Status.HEALTHY)
        real = lifecycle.lose

        def lose(row: ManagedProcess, *args: Any, **more: Any) -> None:
            if row.pk == poison.pk:
                raise ValueError("odd \x00 row")
            real(row, *args, **more)

        monkeypatch.setattr(lifecycle, "lose", lose)
        assert world.reboot()["lost"] == 1
        assert world.status(other) == Status.LOST
        assert "ValueError: odd" in caplog.text


class TestDetectCrashed:
    def test_what_the_watch_missed(self, world: World) -> None:
        rows = [world.make(Status.HEALTHY), world.launch(), world.make(Status.HEALTHY)]
        for row in rows[:2]:
            assert row.identity is not None
            world.machine.end(world.kernel.find(row.identity), 3)
        assert sweeps.detect_crashed(world.supervisor, now=world.now) == 2
        assert [world.status(row) for row in rows] == [Status.FAILED, Status.FAILED, Status.HEALTHY]

    def test_never_what_cannot_be_seen(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.kernel.unseen.add(row.pid or 0)
        assert sweeps.detect_crashed(world.supervisor, now=world.now) == 0


class TestExpireDue:
    def test_what_the_timer_missed(self, world: World) -> None:
        rows = [world.make(Status.HEALTHY, ttl_minutes=1), world.make(Status.HEALTHY, ttl_minutes=2), world.launch()]
        world.is_held = True
        world.advance(61)
        assert sweeps.expire_due(world.supervisor, now=world.now) == 1
        world.is_held = False
        world.drain()
        world.advance()
        assert [world.status(row) for row in rows] == [Status.EXPIRED, Status.HEALTHY, Status.RUNNING]
        assert sweeps.expire_due(world.supervisor, now=world.now) == 0

    @pytest.mark.parametrize("status", sorted(LIVE - {Status.RUNNING, Status.STOPPING}))
    def test_in_every_live_state(self, world: World, status: Status) -> None:
        row = world.make(status)
        ManagedProcess.objects.update(expires_at=world.now)
        assert sweeps.expire_due(world.supervisor, now=world.now) == 1
        world.advance(11)
        row = world.row(row)
        assert (row.status, row.exit_cause) == (Status.EXPIRED, Cause.TTL)
        assert world.kernel.alive() == []

    def test_what_is_being_stopped_is_left_to_it(self, world: World) -> None:
        world.make(Status.STOPPING)
        ManagedProcess.objects.update(expires_at=world.now)
        before = world.everything()
        assert sweeps.expire_due(world.supervisor, now=world.now) == 0
        assert world.everything() == before

    def test_five_minutes_before_it_is_told_once(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=10)
        world.advance(299, ticks=True)
        assert "expiring" not in world.kinds(row)
        world.advance(3, ticks=True)
        assert world.kinds(row).count("expiring") == 1
        lifecycle.extend(row, 10, by=ANNA, now=world.now)
        world.advance(3, ticks=True)
        assert world.kinds(row).count("expiring") == 1
        world.advance(600, ticks=True)
        assert world.kinds(row).count("expiring") == 2


class TestReconcile:
    def run(self, world: World) -> dict[str, int]:
        return sweeps.reconcile(world.supervisor, now=world.now)

    def test_a_lost_job_is_healed(self, world: World) -> None:
        """Nobody was told of a declaration, a stop, a restart and a start."""
        [declared] = world.declare(world.spec(), acts=False)
        stopping, restarting = world.make(Status.HEALTHY), world.make(Status.HEALTHY)
        waiting = world.make(Status.BACKOFF)
        lifecycle.stop(stopping, by=ANNA, now=world.now)
        lifecycle.restart(restarting, by=ANNA, now=world.now)
        lifecycle.start(waiting, quotas=lifecycle.Quotas(), by=ANNA, now=world.now)
        healthy = world.make(Status.HEALTHY)
        assert self.run(world) == {"woken": 4, "removed": 0}
        world.advance(1)
        assert world.status(stopping) == Status.EXITED
        assert {world.status(row) for row in (declared, restarting, waiting, healthy)} == {Status.HEALTHY}

    def test_a_back_off_that_is_not_over_is_waited_for(self, world: World) -> None:
        world.make(Status.BACKOFF)
        assert self.run(world) == {"woken": 0, "removed": 0}

    @pytest.mark.parametrize("how", ["missing", "deleted"])
    def test_a_removed_project_takes_all_with_it(self, world: World, how: str) -> None:
        rows = [world.make(status) for status in (Status.HEALTHY, Status.UNHEALTHY, Status.BACKOFF)]
        rows += [world.launch(), world.launch(Purpose.LOOP, "loop")]
        if how == "missing":
            Project.objects.update(missing_since=world.now)
            world.advance(29)
            assert self.run(world)["removed"] == 0
            world.advance(2)
        else:
            Project.objects.all().delete()
            world.supervisor.born_at = world.now
            assert self.run(world)["removed"] == 0, "a new worker has to read the workspace first"
            world.supervisor.born_at -= timedelta(seconds=15)
        assert self.run(world)["removed"] == 5
        world.advance(11)
        assert {world.status(row) for row in rows} == {Status.EXITED}
        assert {world.row(row).exit_cause for row in rows} == {Cause.PROJECT_REMOVED}
        assert world.kernel.alive() == []
        assert self.run(world) == {"woken": 0, "removed": 0}

    def test_a_directory_that_came_back_in_time_took_nothing(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        Project.objects.update(missing_since=world.now)
        world.advance(20)
        Project.objects.update(missing_since=None)
        world.advance(20, ticks=True)
        assert world.status(row) == Status.HEALTHY

    def test_one_poison_row_does_not_stop_the_rest(self, world: World, monkeypatch, caplog) -> None:
        poison, moved, other = (world.make(Status.HEALTHY) for _ in range(3))
        Project.objects.all().delete()
        world.advance(15)
        real = lifecycle.stop

        def stop(row: ManagedProcess, **more: Any) -> ManagedProcess:
            if row.pk == poison.pk:
                raise ValueError("KEY=top-value")
            if row.pk == moved.pk:
                lifecycle.force(row, "meanwhile", by=ANNA, now=world.now)
            return real(row, **more)

        monkeypatch.setattr(lifecycle, "stop", stop)
        assert self.run(world)["removed"] == 1
        world.advance()
        assert world.status(other) == Status.EXITED
        assert world.status(poison) == Status.HEALTHY
        assert world.row(poison).last_error == "internal: ValueError; the worker's log says more"
        assert "top-value" in caplog.text


class TestLogs:
    def write(self, world: World, row: ManagedProcess, size: int) -> Path:
        path = world.logs / row.log_name
        with path.open("ab") as log:
            log.write((b"x" * 1023 + b"\n") * (size // 1024))
        return path

    def test_what_has_grown_over_its_limit_is_rotated(self, world: World, monkeypatch) -> None:
        rows = [world.make(Status.HEALTHY) for _ in range(3)]
        (world.logs / rows[2].log_name).unlink()
        path = self.write(world, rows[0], rotation.LIMIT + 10_000)
        submitted: list[Any] = []
        monkeypatch.setattr(sweeps.jobs, "submit", lambda key, act, *args: submitted.append((key, act, args)))
        assert sweeps.rotate_logs(node=settings.ANDON_NODE, now=world.now) == 1
        [(name, act, args)] = submitted
        assert (name, args) == (f"rotate:{rows[0].pk}", (rows[0].pk,))
        act(*args)
        row = world.row(rows[0])
        assert row.log_head > 0 or row.log_mode == "truncate"
        assert row.log_mode
        assert logs.size(world.logs, row.log_name, row.log_head) <= rotation.LIMIT
        assert path.exists()
        assert sweeps.rotate_logs(node=settings.ANDON_NODE, now=world.now) == 0

    def test_one_that_was_erased_or_is_small_is_left(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        sweeps.rotate(row.pk)
        assert (world.row(row).log_head, world.row(row).log_mode) == (0, "")
        ManagedProcess.objects.all().delete()
        sweeps.rotate(row.pk)

    def test_a_log_that_cannot_be_rotated_is_told(self, world: World, caplog) -> None:
        row = world.make(Status.HEALTHY)
        path = self.write(world, row, 3000)
        path.unlink()
        path.symlink_to("/etc/passwd")
        assert sweeps.rotate_logs(node=settings.ANDON_NODE, now=world.now) == 0
        sweeps.rotate(row.pk)
        assert row.log_name in caplog.text
        assert (world.row(row).log_head, world.row(row).log_mode) == (0, "")

    def test_logs_of_removed_projects_are_removed(self, world: World) -> None:
        ended, live = world.make(Status.EXITED), world.make(Status.HEALTHY)
        kept = {row.log_name for row in (ended, live)}
        assert {path.name for path in world.logs.iterdir()} == kept
        self.age(world)
        assert sweeps.remove_logs(world.supervisor, now=world.now) == 0
        assert not sweeps.forgettable(world.now).exists()
        Project.objects.all().delete()
        world.advance(15)
        assert list(sweeps.forgettable(world.now)) == [ended]
        assert sweeps.remove_logs(world.supervisor, now=world.now) == 1
        assert not sweeps.forgettable(world.now).exists()
        assert [path.name for path in world.logs.iterdir()] == [live.log_name]
        assert list(ManagedProcess.objects.all()) == [live]
        assert world.kinds()[-1] == "erased"

    def age(self, world: World, seconds: float = 61) -> None:
        for path in world.logs.iterdir():
            at = world.now.timestamp() - seconds
            os.utime(path, (at, at), follow_symlinks=False)

    def test_hostile_and_young_files_are_no_obstacle(self, world: World, caplog) -> None:
        world.logs.mkdir()
        (world.logs / "1-gone.log").write_text("")
        (world.logs / "link.log").symlink_to("/nowhere")
        (world.logs / "folder.log").mkdir()
        os.mkfifo(world.logs / "fifo.log")
        (world.logs / "note.txt").write_text("")
        self.age(world)
        (world.logs / "2-young.log").write_text("")
        os.utime(world.logs / "2-young.log", (world.now.timestamp() - 59,) * 2)
        assert sweeps.remove_logs(world.supervisor, now=world.now) == 3
        assert {path.name for path in world.logs.iterdir()} == {"note.txt", "folder.log", "2-young.log"}
        assert "folder.log" in caplog.text

    def test_a_file_that_goes_while_we_look(self, world: World, monkeypatch) -> None:
        world.logs.mkdir()
        gone = world.logs / "1-gone.log"
        entry = SimpleNamespace(name=gone.name, stat=gone.stat)
        monkeypatch.setattr(sweeps, "os", SimpleNamespace(scandir=lambda _: contextlib.nullcontext([entry])))
        assert sweeps.remove_logs(world.supervisor, now=world.now) == 0

    def test_without_a_folder_there_is_nothing(self, world: World) -> None:
        assert sweeps.remove_logs(world.supervisor, now=world.now) == 0


class TestUsage:
    def test_what_each_group_uses(self, world: World) -> None:
        rows = [world.make(Status.HEALTHY, program=Program(children=(Program(own_session=True),))), world.launch()]
        world.make(Status.EXITED)
        assert sweeps.sample_usage(world.supervisor, now=world.now) == 2
        stamp = int(world.now.timestamp())
        assert [world.row(row).usage for row in rows] == [[[stamp, 0.0, 2 << 20]], [[stamp, 0.0, 1 << 20]]]

    def test_processor_time_is_of_the_time_between(self, world: World, monkeypatch) -> None:
        row = world.make(Status.HEALTHY)
        real = world.kernel.loads
        spent = [1.0, 6.0, 5.0]

        def loads(groups: Any) -> Any:
            from dataclasses import replace

            return {owner: replace(load, cpu_s=spent[0]) for owner, load in real(groups).items()}

        monkeypatch.setattr(world.kernel, "loads", loads)
        for _ in range(3):
            sweeps.sample_usage(world.supervisor, now=world.now)
            world.advance(10)
            spent.pop(0)
        assert [cpu for _, cpu, _ in world.row(row).usage] == [0.0, 50.0, 0.0]

    def test_another_life_begins_at_nothing(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        sweeps.sample_usage(world.supervisor, now=world.now)
        world.crash(row)
        world.advance(1)
        sweeps.sample_usage(world.supervisor, now=world.now)
        assert [cpu for _, cpu, _ in world.row(row).usage][-1] == 0.0
        assert world.supervisor.loads[row.pk][0] == 2

    def test_the_last_120(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        ManagedProcess.objects.update(usage=[[number, 0, 0] for number in range(120)])
        sweeps.sample_usage(world.supervisor, now=world.now)
        usage = world.row(row).usage
        assert (len(usage), usage[0][0], usage[-1][0]) == (120, 1, int(world.now.timestamp()))

    def test_who_is_gone_is_forgotten(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        sweeps.sample_usage(world.supervisor, now=world.now)
        identity = row.identity
        assert identity is not None
        world.machine.end(world.kernel.find(identity), 0)
        assert sweeps.sample_usage(world.supervisor, now=world.now) == 0
        assert world.row(row).status == Status.HEALTHY
        world.tell([row])
        assert sweeps.sample_usage(world.supervisor, now=world.now) == 0
        assert world.supervisor.loads == {}


class TestJobs:
    JOBS = ("probe_due", "detect_crashed", "expire_due", "reconcile", "rotate_logs", "remove_logs", "sample_usage")

    @pytest.mark.parametrize("name", JOBS)
    def test_a_job_is_its_sweep_where_a_supervisor_is(self, world: World, name: str) -> None:
        world.make(Status.HEALTHY, program=DEAF)
        # Without what closes database connections around it.
        job = inspect.unwrap(getattr(tasks, name).func)
        assert job() is None
        supervisor.install(world.supervisor)
        assert job() is not None

    def test_every_job_is_a_tick(self) -> None:
        from projects import jobs

        rhythm = {name.removeprefix("services."): tick.seconds for name, tick in jobs.ticks.items()}
        assert {name: rhythm[name] for name in self.JOBS} == {
            "probe_due": 1,
            "detect_crashed": 5,
            "expire_due": 1,
            "reconcile": 5,
            "rotate_logs": 1,
            "remove_logs": 30,
            "sample_usage": 10,
        }


def test_a_day_of_jobs_leaves_a_quiet_node_quiet(world: World) -> None:
    row = world.make(Status.HEALTHY, ttl_minutes=1440)
    head = world.head
    world.advance(120, ticks=True)
    assert world.head == head
    assert world.row(row).identity == row.identity
    assert Event.objects.filter(subject=row.subject).count() == 3
    assert world.row(row).expires_at == row.expires_at
    assert timedelta(0) < (row.expires_at or world.now) - world.now


def test_a_loop_that_began_or_ended_has_its_project_looked_at(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Any] = []
    monkeypatch.setattr(sweeps.jobs, "submit", lambda key, call, path: looked.append((key, call(path))))
    monkeypatch.setattr(sweeps.importer, "import_project", lambda path, now: f"read {path}")
    sweeps.import_loop("demo")
    sweeps.import_loop("nobody")
    path = world.project.path
    assert looked == [(f"import {path}", f"read {path}")]
