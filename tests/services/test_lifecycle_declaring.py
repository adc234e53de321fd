"""How processes come to be wanted: declare, reject, launch, start, erase."""

import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connections
from django.utils import timezone

from projects.errors import Conflict, DomainError, Unavailable
from projects.events import SWEEP
from projects.models import Event, Project
from services import lifecycle
from services.lifecycle import Quotas
from services.models import SPEC_FIELDS, ManagedProcess, WorkerHost
from services.processes import Identity
from services.states import ENDED, LIVE, Cause, Purpose, Status
from tests.services.fake import Program
from tests.services.world import ANNA, DEAF, QUOTAS, World, make_project


def refused(world: World, act: Callable[[], Any], code: str, kind: type[DomainError] = Conflict) -> DomainError:
    """Assert that a verb refuses with this code and changes and tells nothing."""
    before = world.everything()
    with pytest.raises(kind) as refusal:
        act()
    assert refusal.value.code == code
    assert world.everything() == before
    return refusal.value


class TestDeclare:
    def test_a_new_one_is_reserved_with_all_that_its_spec_says(self, world: World) -> None:
        spec = world.spec(
            "web", env={"APP": "1"}, ports=[3000, 3001], attrs={"a": [1]}, ttl_minutes=60, restart="always"
        )
        done = lifecycle.declare(world.project, [spec], agent="ada", wi="w-1", quotas=QUOTAS, by=ANNA, now=world.now)
        [row] = done.rows
        assert (done.fresh, done.warnings) == ([row], [])
        row = world.row(row)
        assert row.spec == spec
        assert (row.status, row.generation, row.pid, row.since) == (Status.STARTING, 1, None, world.now)
        assert (row.owner_agent, row.owner_wi, row.declared_by, row.declared_at) == (
            "ada",
            "w-1",
            "user:anna",
            world.now,
        )
        assert (row.node, row.purpose, row.position) == (settings.ANDON_NODE, Purpose.SERVICE, 0)
        assert row.expires_at == world.now + timedelta(minutes=60)
        assert row.warn_at == world.now + timedelta(minutes=55)
        assert world.kinds() == ["declared"]
        [payload] = world.payloads("service.declared")
        assert payload == {
            "generation": 1,
            "cmd": "bash",
            "ports": [3000, 3001],
            "owner": "w-1",
            "via": "page",
            "address": "10.0.0.1",
        }
        assert Event.objects.get(kind="service.declared").subject == "service:demo/web"

    def test_a_ttl_under_five_minutes_has_no_warning(self, world: World) -> None:
        [row] = world.declare(world.spec(ttl_minutes=5), acts=False)
        assert row.warn_at is None

    def test_those_of_one_file_are_one_batch_in_order(self, world: World) -> None:
        rows = world.declare(world.spec("b"), world.spec("a"), acts=False)
        assert [row.position for row in rows] == [0, 1]
        assert rows[0].batch == rows[1].batch != ""
        [other] = world.declare(world.spec("c"), acts=False)
        assert other.batch != rows[0].batch

    def test_all_or_none(self, world: World) -> None:
        wanted = [world.spec("a"), world.spec("b", ports=[3000]), world.spec("c", ports=[3000])]
        refusal = refused(world, lambda: world.declare(*wanted), "port-conflict")
        assert refusal.detail == "port-conflict (3000: demo/b)"

    def test_without_a_worker_nothing_is_changed(self, world: World) -> None:
        WorkerHost.objects.update(tick_at=world.now - timedelta(seconds=16))
        refused(world, lambda: world.declare(world.spec()), "no-worker", Unavailable)
        WorkerHost.objects.all().delete()
        refused(world, lambda: world.declare(world.spec()), "no-worker", Unavailable)

    def test_a_project_whose_directory_is_gone_takes_none(self, world: World) -> None:
        world.project.missing_since = world.now
        refused(world, lambda: world.declare(world.spec()), "project-missing")

    def test_the_same_spec_is_kept_as_it_runs(self, world: World) -> None:
        row = world.make(Status.HEALTHY, "web", ports=[3000])
        before = world.everything()
        done = lifecycle.declare(
            world.project, [world.spec("web", ports=[3000])], wi="other", quotas=QUOTAS, by=ANNA, now=world.now
        )
        assert (done.rows, done.fresh, done.warnings) == ([row], [], ["already-running (web)"])
        assert world.everything() == before

    def test_the_same_spec_is_kept_though_the_quota_was_lowered_since(self, world: World) -> None:
        world.make(Status.HEALTHY, "web")
        world.make(Status.HEALTHY, "api")
        [row] = world.declare(world.spec("web"), quotas=Quotas(project=1, host=1))
        assert row.status == Status.HEALTHY

    def test_a_kept_one_stands_beside_new_ones(self, world: World) -> None:
        world.make(Status.HEALTHY, "web", ports=[3000])
        done = lifecycle.declare(
            world.project,
            [world.spec("api", ports=[3001]), world.spec("web", ports=[3000])],
            quotas=QUOTAS,
            by=ANNA,
            now=world.now,
        )
        assert [row.name for row in done.rows] == ["api", "web"]
        assert [row.name for row in done.fresh] == ["api"]

    @pytest.mark.parametrize("order", [["new", "web"], ["web", "new"]])
    def test_a_port_of_a_kept_one_is_taken_whatever_the_order(self, world: World, order: list[str]) -> None:
        world.make(Status.HEALTHY, "web", ports=[3000])
        wanted = [world.spec(name, ports=[3000]) for name in order]
        refusal = refused(world, lambda: world.declare(*wanted), "port-conflict")
        assert refusal.detail == "port-conflict (3000: demo/web)"

    def test_a_port_of_another_live_service_is_taken(self, world: World, workspace: Path) -> None:
        world.make(Status.BACKOFF, "web", ports=[3000])
        refused(world, lambda: world.declare(world.spec("api", ports=[3000])), "port-conflict")
        world.project = make_project(workspace, "other")
        refused(world, lambda: world.declare(world.spec("api", ports=[3000])), "port-conflict")

    def test_a_port_of_one_that_ended_or_runs_on_another_node_is_free(self, world: World) -> None:
        world.make(Status.EXITED, "web", ports=[3000])
        away = world.make(Status.HEALTHY, "far", ports=[3001])
        ManagedProcess.objects.filter(pk=away.pk).update(node="n2")
        [row] = world.declare(world.spec("api", ports=[3000, 3001]))
        assert row.pid is not None

    @pytest.mark.parametrize("status", sorted(LIVE - {Status.RUNNING, Status.STOPPING}))
    def test_another_spec_of_the_same_owner_replaces_it(self, world: World, status: Status) -> None:
        world.script("web", DEAF)
        made = {"wi": "w-1"}
        [row] = self.owned(world, status, **made)
        old = row.identity
        [row] = world.declare(world.spec("web", args=["web", "-v"], ports=[3000], ttl_minutes=10), **made, acts=False)
        assert (row.status, row.outcome, row.exit_cause) == (Status.RESTARTING, Status.STARTING, Cause.REPLACED)
        assert (row.args, row.ports, row.crashes, row.batch) == (["web", "-v"], [3000], [], "")
        assert (row.retry_at, row.next_probe_at, row.health_by, row.last_health_at) == (None, None, None, None)
        assert row.expires_at == world.now + timedelta(minutes=10)
        assert world.payloads("service.declared")[-1]["cause"] == "replaced"
        world.prober.says.clear()
        world.tell([row])
        world.advance(15)
        row = world.row(row)
        assert (row.status, row.generation) == (Status.HEALTHY, 2)
        assert world.living(row) == [row.identity]
        assert row.identity != old

    def owned(self, world: World, status: Status, **made: Any) -> list[ManagedProcess]:
        declare = world.declare
        world.declare = lambda *wanted, **more: declare(*wanted, **more, **made)  # type: ignore[method-assign]
        try:
            return [world.make(status, "web", program=DEAF)]
        finally:
            world.declare = declare  # type: ignore[method-assign]

    @pytest.mark.parametrize("wi", ["", "w-2"])
    def test_another_spec_of_another_owner_is_refused(self, world: World, wi: str) -> None:
        world.declare(world.spec(), wi="w-1")
        other = world.spec(args=["web", "-v"])
        refusal = refused(world, lambda: world.declare(other, wi=wi), "name-already-active")
        assert refusal.detail == "name-already-active (web)"

    def test_two_without_an_owner_are_not_the_same_owner(self, world: World) -> None:
        world.declare(world.spec())
        refused(world, lambda: world.declare(world.spec(args=["x"])), "name-already-active")

    def test_one_that_is_being_stopped_is_neither_kept_nor_replaced(self, world: World) -> None:
        self.owned(world, Status.STOPPING, wi="w-1")
        refused(world, lambda: world.declare(world.spec("web"), wi="w-1"), "name-already-active")
        refused(world, lambda: world.declare(world.spec("web", ports=[3000]), wi="w-1"), "name-already-active")

    @pytest.mark.parametrize("status", sorted(ENDED))
    def test_the_row_of_one_that_ended_is_used_again(self, world: World, status: Status) -> None:
        row = world.make(status, "web")
        world.script("web", Program())
        [again] = world.declare(world.spec("web", ttl_minutes=9), wi="w-9", acts=False)
        assert (again.pk, again.generation) == (row.pk, row.generation + 1)
        assert (again.status, again.owner_wi, again.exits) == (Status.STARTING, "w-9", row.exits)
        fresh = {"ended_at", "exit_code", "retry_at", "term_at", "kill_at", "started_at", "health_by", "pid"}
        assert {name: getattr(again, name) for name in fresh} == dict.fromkeys(fresh)
        assert (again.last_error, again.exit_cause, again.crashes, again.restarts, again.strip) == ("", "", [], 0, [])

    def test_the_quota_of_a_project_and_of_a_host(self, world: World, workspace: Path) -> None:
        quotas = Quotas(project=2, host=3)
        world.declare(world.spec("a"), world.spec("b"), quotas=quotas)
        refusal = refused(world, lambda: world.declare(world.spec("c"), quotas=quotas), "quota-exceeded")
        assert refusal.detail == "quota-exceeded (2)"
        world.project = make_project(workspace, "other")
        world.declare(world.spec("a"), quotas=quotas)
        refusal = refused(world, lambda: world.declare(world.spec("b"), quotas=quotas), "quota-exceeded")
        assert refusal.detail == "quota-exceeded (3)"

    def test_workers_loops_and_what_ended_have_no_part_in_the_quota(self, world: World) -> None:
        world.launch(Purpose.WORKER)
        world.launch(Purpose.LOOP, "loop")
        world.make(Status.EXITED)
        [row] = world.declare(world.spec(), quotas=Quotas(project=1, host=1))
        assert row.pid is not None

    def test_a_rejected_file_is_told_with_its_reason(self, world: World) -> None:
        lifecycle.reject(world.project, "spec[0]: cmd-missing", wi="w-1", by=ANNA, now=world.now)
        [payload] = world.payloads("service.rejected")
        assert (payload["reason"], payload["owner"]) == ("spec[0]: cmd-missing", "w-1")
        assert Event.objects.get(kind="service.rejected").subject == "project:demo"


class TestLaunch:
    def test_a_loop_has_no_ttl_and_no_probe(self, world: World) -> None:
        row = world.launch(Purpose.LOOP, "loop", argv=["/x/loop.sh", "20"], env={"A": "b"}, stop_grace_s=3)
        assert (row.status, row.cmd, row.args, row.env) == (Status.RUNNING, "/x/loop.sh", ["20"], {"A": "b"})
        assert (row.expires_at, row.warn_at, row.health_by, row.next_probe_at) == (None,) * 4
        assert (row.stop_grace_s, row.restart) == (3, "never")
        told = Event.objects.filter(subject="project:demo").values_list("kind", flat=True)
        assert list(told) == ["loop.declared"]

    def test_of_a_kanban_worker_the_kanban_tells(self, world: World) -> None:
        world.launch(Purpose.WORKER)
        assert world.kinds() == []

    def test_a_live_one_of_the_name_is_refused(self, world: World) -> None:
        world.launch(Purpose.WORKER)
        refused(world, lambda: world.launch(Purpose.WORKER), "name-already-active")
        assert world.launch(Purpose.LOOP).pid is not None

    def test_one_that_ended_is_used_again(self, world: World) -> None:
        row = world.launch(Purpose.LOOP)
        world.crash(row, 0)
        again = world.launch(Purpose.LOOP)
        assert (again.pk, again.generation, again.status) == (row.pk, 2, Status.RUNNING)

    def test_without_a_worker_or_a_directory_nothing_is_changed(self, world: World) -> None:
        WorkerHost.objects.update(tick_at=world.now - timedelta(seconds=16))
        refused(world, world.launch, "no-worker", Unavailable)
        world.project.missing_since = world.now
        refused(world, world.launch, "project-missing")

    def test_without_a_project_it_runs_on_the_node_that_is_named(self, world: World) -> None:
        about: dict[str, Any] = {"argv": ["agent"], "cwd": "/", "env": {}, "by": ANNA, "now": world.now}
        row = lifecycle.launch(None, "t-1", Purpose.WORKER, node=world.kernel.host, **about)
        assert (row.project, row.node, row.status) == ("", world.kernel.host, Status.STARTING)
        world.tell([row])
        assert world.status(row) == Status.RUNNING
        refused(
            world,
            lambda: lifecycle.launch(None, "t-1", Purpose.WORKER, node=world.kernel.host, **about),
            "name-already-active",
        )
        refused(
            world, lambda: lifecycle.launch(None, "t-2", Purpose.WORKER, node="n9", **about), "no-worker", Unavailable
        )
        refused(world, lambda: lifecycle.launch(None, "t-2", Purpose.WORKER, **about), "no-worker", Unavailable)

    def test_a_projects_node_is_taken_whatever_is_named(self, world: World) -> None:
        assert world.launch(node="n9").node == world.kernel.host

    def test_its_start_and_its_end_are_told_upward_in_their_transaction(self, world: World) -> None:
        told: list[tuple[str, int, str]] = []
        on_start, on_end = lifecycle.on_start, lifecycle.on_end
        on_start[Purpose.WORKER] = lambda row, by, now: told.append(("start", row.pk, row.status))
        on_end[Purpose.WORKER] = lambda row, by, now: told.append(("end", row.pk, row.status))
        row = world.launch()
        world.declare(world.spec("web"))
        assert told == [("start", row.pk, "running")]
        world.crash(row)
        assert told[1:] == [("end", row.pk, "failed")]

    def test_who_is_told_and_fails_undoes_the_record_of_the_start(self, world: World) -> None:
        row = world.launch(name="t-9")
        world.crash(row)
        row = lifecycle.launch(
            world.project, "t-10", Purpose.WORKER, argv=["agent"], cwd="/", env={}, by=ANNA, now=world.now
        )

        def fails(*words: Any) -> None:
            raise OSError("disk")

        lifecycle.on_start[Purpose.WORKER] = fails
        with pytest.raises(OSError, match="disk"):
            lifecycle.spawned(row, Identity(row.node, "fake-boot", 900, 5), by=ANNA, now=world.now)
        assert world.row(row).pid is None


class TestStart:
    def start(self, world: World, row: ManagedProcess, **more: Any) -> ManagedProcess:
        return lifecycle.start(row, **{"quotas": QUOTAS, "by": ANNA, "now": world.now, **more})

    @pytest.mark.parametrize("status", sorted(ENDED))
    def test_what_has_ended_begins_a_new_life(self, world: World, status: Status) -> None:
        row = world.make(status, ttl_minutes=10)
        world.advance(60)
        again = world.row(self.start(world, row))
        assert (again.status, again.generation, again.batch) == (Status.STARTING, row.generation + 1, "")
        assert again.expires_at == world.now + timedelta(minutes=10)
        assert (again.crashes, again.attempt, again.restarts, again.exit_cause) == ([], 0, 0, "")
        assert world.kinds(row)[-1] == "declared"

    def test_one_in_back_off_is_tried_at_once_and_nothing_is_counted(self, world: World) -> None:
        row = world.make(Status.BACKOFF)
        world.crash(row)
        assert len(row.crashes) == row.attempt == 1
        again = world.row(self.start(world, row))
        assert (again.status, again.retry_at, again.crashes, again.attempt) == (Status.BACKOFF, world.now, [], 0)
        assert (world.kinds(row)[-1], world.payloads("service.restarting")[-1]["cause"]) == ("restarting", "user")
        world.tell([again])
        again = world.row(row)
        assert (again.status, again.generation) == (Status.STARTING, 2)
        assert again.pid is not None

    @pytest.mark.parametrize("status", sorted(LIVE - {Status.BACKOFF, Status.RUNNING}))
    def test_what_lives_is_refused(self, world: World, status: Status) -> None:
        row = world.make(status)
        refused(world, lambda: self.start(world, row), "already-live")

    def test_another_generation_than_expected_is_refused(self, world: World) -> None:
        row = world.make(Status.EXITED)
        refusal = refused(world, lambda: self.start(world, row, expected_generation=7), "generation-changed")
        assert refusal.extra == {"generation": 1}

    def test_a_port_that_another_took_meanwhile_is_refused(self, world: World) -> None:
        row = world.make(Status.EXITED, ports=[3000])
        other = world.make(Status.HEALTHY, ports=[3000])
        refusal = refused(world, lambda: self.start(world, row), "port-conflict")
        assert refusal.detail == f"port-conflict (3000: {other})"

    def test_the_quota_holds(self, world: World) -> None:
        row = world.make(Status.EXITED)
        world.make(Status.HEALTHY)
        refused(world, lambda: self.start(world, row, quotas=Quotas(project=1)), "quota-exceeded")
        refused(world, lambda: self.start(world, row, quotas=Quotas(host=1)), "quota-exceeded")
        assert self.start(world, row, quotas=Quotas(project=2, host=2)).status == Status.STARTING

    @pytest.mark.parametrize("purpose", [Purpose.LOOP, Purpose.WORKER])
    def test_loops_and_workers_are_started_by_what_they_work_for(self, world: World, purpose: Purpose) -> None:
        row = world.launch(purpose)
        refused(world, lambda: lifecycle.restart(row, by=ANNA, now=world.now), "not-a-service")
        world.crash(row)
        refused(world, lambda: self.start(world, row), "not-a-service")

    def test_without_a_worker_nothing_is_changed(self, world: World) -> None:
        row = world.make(Status.EXITED)
        WorkerHost.objects.update(tick_at=world.now - timedelta(seconds=16))
        refused(world, lambda: self.start(world, row), "no-worker", Unavailable)

    def test_a_row_that_was_erased_meanwhile_is_refused(self, world: World) -> None:
        row = world.make(Status.EXITED)
        lifecycle.erase(world.row(row), by=ANNA, now=world.now)
        refused(world, lambda: self.start(world, row), "generation-changed")


class TestErase:
    @pytest.mark.parametrize("status", Status)
    def test_only_what_has_ended_is_forgotten(self, world: World, status: Status) -> None:
        row = world.make(status)
        if status in LIVE:
            refused(world, lambda: lifecycle.erase(row, by=ANNA, now=world.now), "still-live")
        else:
            lifecycle.erase(row, by=ANNA, now=world.now)
            assert not ManagedProcess.objects.exists()
            assert world.kinds()[-1] == "erased"

    def test_one_that_was_started_meanwhile_is_not(self, world: World) -> None:
        row = world.make(Status.EXITED)
        lifecycle.start(world.row(row), quotas=QUOTAS, by=ANNA, now=world.now)
        refused(world, lambda: lifecycle.erase(row, by=ANNA, now=world.now), "still-live")


@pytest.mark.django_db(transaction=True)
class TestTwoAtOnce:
    """On a real database, with transactions that really commit."""

    @pytest.fixture
    def project(self, transactional_db: None, workspace: Path) -> Project:
        lifecycle.enlist(
            Identity(settings.ANDON_NODE, "b", 4242, 1), host_name="box", version="1", by=SWEEP, now=timezone.now()
        )
        return make_project(workspace)

    def spec(self, name: str, **more: Any) -> dict[str, Any]:
        check = {"type": "tcp", "port": 1, "timeout_s": 10}
        made = {**dict.fromkeys(SPEC_FIELDS), "name": name, "cmd": "bash", "args": [], "cwd": "/", "env": {}}
        return {
            **made,
            "ports": [],
            "ttl_minutes": 9,
            "attrs": {},
            "healthcheck": check,
            "restart": "never",
            "stop_grace_s": 1,
            **more,
        }

    def together(self, *acts: Callable[[], Any]) -> list[str]:
        """Run all at once, each in a thread; returns what they refused with, "" for what was done."""
        gate = threading.Barrier(len(acts))
        came = [""] * len(acts)

        def run(number: int) -> None:
            try:
                gate.wait(20)
                acts[number]()
            except DomainError as refusal:
                came[number] = refusal.code
            except BaseException as error:
                came[number] = repr(error)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(len(acts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return sorted(came)

    def test_of_two_who_declare_one_name_one_starts_it(self, project: Project) -> None:
        def declare(wi: str) -> Callable[[], Any]:
            spec = self.spec("web", args=[wi])
            return lambda: lifecycle.declare(project, [spec], wi=wi, quotas=QUOTAS, by=ANNA, now=timezone.now())

        came = self.together(*(declare(f"w-{number}") for number in range(4)))
        assert came == ["", *["name-already-active"] * 3]
        assert ManagedProcess.objects.count() == Event.objects.filter(kind="service.declared").count() == 1

    def test_the_quota_holds_for_many_at_once(self, project: Project) -> None:
        def declare(name: str) -> Callable[[], Any]:
            return lambda: lifecycle.declare(
                project, [self.spec(name)], quotas=Quotas(project=2), by=ANNA, now=timezone.now()
            )

        came = self.together(*(declare(f"s-{number}") for number in range(5)))
        assert came == ["", "", *["quota-exceeded"] * 3]

    def test_of_two_stops_one_is_told(self, project: Project) -> None:
        quotas, now = QUOTAS, timezone.now()
        [row] = lifecycle.declare(project, [self.spec("web")], quotas=quotas, by=ANNA, now=now).rows
        stop: Callable[[], Any] = lambda: lifecycle.stop(row, by=ANNA, now=timezone.now())  # noqa: E731
        assert self.together(stop, stop, stop) == ["", "", ""]
        assert Event.objects.filter(kind="service.stopping").count() == 1

    def test_an_end_and_a_restart_are_not_both_believed(self, project: Project) -> None:
        now = timezone.now()
        [row] = lifecycle.declare(project, [self.spec("web")], quotas=QUOTAS, by=ANNA, now=now).rows
        lifecycle.spawned(row, Identity(row.node, "b", 4243, 1), by=SWEEP, now=now)
        mine, theirs = ManagedProcess.objects.get(), ManagedProcess.objects.get()
        came = self.together(
            lambda: lifecycle.ended(mine, 1, members=[], jitter=0, by=SWEEP, now=timezone.now()),
            lambda: lifecycle.restart(theirs, by=ANNA, now=timezone.now()),
        )
        status = ManagedProcess.objects.get().status
        told = set(Event.objects.values_list("kind", flat=True))
        if status == Status.FAILED:
            assert came == ["", "not-live"]
            assert "service.restarting" not in told
        else:
            assert (status, came) == (Status.RESTARTING, ["", "illegal-transition"])
            assert "service.crashed" not in told
