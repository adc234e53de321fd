"""What a run has left when its process is gone: its agent's result, its services; whatever died in between."""

import json
from collections.abc import Callable
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from kanban import gate, lifecycle, sweeps
from kanban.gate import wake
from kanban.models import Run, Task
from kanban.states import LEASE, BlockKind, Outcome, Phase, Reports, Status
from projects.errors import Conflict
from projects.events import SWEEP
from projects.models import Event, Project
from services import lifecycle as services
from services import specs
from services.models import ManagedProcess, WorkerHost
from services.states import Purpose
from services.states import Status as ProcessStatus
from tests.kanban import rows
from tests.kanban.rows import ANNA, as_run
from tests.services import rows as processes
from tests.services.world import make_project

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


@pytest.fixture
def project(workspace: Path, db: None) -> Project:
    return make_project(workspace)


@pytest.fixture(autouse=True)
def logs(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = home / "logs" / "services"
    folder.mkdir(parents=True)
    monkeypatch.setattr(gate, "LOG_FOLDER", folder)
    return folder


def left(run: Run) -> Task:
    """Have what a run has left looked at."""
    rows.tick()
    gate.settle(run.pk)
    return rows.fresh(run.task)


class TestEnvelope:
    """An agent that says what came of it in the last line of its output."""

    def ended(self, logs: Path, output: object, code: int | None = 0, **fields: Any) -> Run:
        rows.profile(reports=Reports.ENVELOPE)
        run = rows.started(**fields)
        text = output if isinstance(output, bytes) else json.dumps(output).encode()
        (logs / rows.process_of(run).log_name).write_bytes(b"thinking\n" + text + b"\n")
        rows.ended(run, code)
        rows.commit()
        return rows.fresh_run(run)

    def success(self, **more: Any) -> dict[str, Any]:
        return {"type": "result", "subtype": "success", "is_error": False, "result": "Painted.", **more}

    def test_success(self, logs: Path, heard: rows.Heard) -> None:
        usage = {"input_tokens": 10, "output_tokens": 5, "cache_read_input_tokens": 2}
        run = self.ended(logs, self.success(total_cost_usd=0.25, usage=usage))
        assert heard.left == [run.pk]
        task = left(run)
        assert (task.status, task.result, task.phase) == (Status.DONE, "Painted.", "")
        run = rows.fresh_run(run)
        assert (run.outcome, run.cost_usd, run.tokens) == (Outcome.COMPLETED, Decimal("0.25"), 17)
        event = rows.last(task, "completed")
        assert (event.actor, event.run) == (f"run:{run}", str(run))

    @pytest.mark.parametrize("result", [None, 7, ["x"]])
    def test_success_without_a_text(self, logs: Path, result: object) -> None:
        task = left(self.ended(logs, self.success(result=result)))
        assert (task.status, task.result) == (Status.DONE, "")
        assert rows.run_of(task).tokens is None

    def test_a_result_beyond_all_bounds_is_cut(self, logs: Path) -> None:
        task = left(self.ended(logs, self.success(result="x" * 300_000)))
        assert (task.status, len(task.result)) == (Status.DONE, 262_144)

    def test_success_whose_services_are_to_be_seen(self, logs: Path) -> None:
        task = left(self.ended(logs, self.success(), services_required=True))
        assert (task.status, task.block_kind) == (Status.BLOCKED, BlockKind.CAPABILITY)
        assert task.block_reason.startswith("invalid-managed-spawn: sidecar-missing")
        assert rows.kinds(task)[-2:] == ["reported", "blocked"]

    @pytest.mark.parametrize("code", [0, 1])
    def test_an_error_is_a_crash_whatever_the_code(self, logs: Path, code: int) -> None:
        said = self.success(is_error=True, subtype="error_max_turns", result="It is stuck.", total_cost_usd=1.5)
        run = self.ended(logs, said, code)
        task = left(run)
        assert (task.status, task.failures) == (Status.READY, 1)
        assert task.last_error.startswith("It is stuck.")
        run = rows.fresh_run(run)
        assert (run.outcome, run.cost_usd) == (Outcome.CRASHED, Decimal("1.5"))
        assert rows.last(task, "crashed").payload["exit_code"] == code

    def test_an_error_without_words(self, logs: Path) -> None:
        task = left(self.ended(logs, {"type": "result", "is_error": True}))
        assert task.last_error == "its agent says that it failed"

    @pytest.mark.parametrize("code", [0, 1])
    def test_a_quota_is_waited_for_and_not_counted(self, logs: Path, code: int) -> None:
        said = self.success(is_error=True, result="You have hit your limit", total_cost_usd=0.1)
        run = self.ended(logs, said, code)
        task = left(run)
        assert (task.status, task.failures, rows.fresh_run(run).outcome) == (Status.READY, 0, Outcome.RATE_LIMITED)
        assert task.not_before is not None
        assert rows.fresh_run(run).cost_usd == Decimal("0.1")

    def test_who_spent_too_much_and_failed_waits_for_a_person(self, logs: Path) -> None:
        said = self.success(is_error=True, total_cost_usd=2)
        task = left(self.ended(logs, said, 1, max_cost_usd=Decimal(1)))
        assert (task.status, task.block_kind) == (Status.BLOCKED, BlockKind.NEEDS_INPUT)

    @pytest.mark.parametrize(
        "output",
        [b"", b"\xff\x00{", b'{"type": "result"', b'{"type": "assistant"}', b'{"type":"result","total_cost_usd":-1}'],
    )
    def test_none_or_garbage_breaks_the_protocol(self, logs: Path, output: bytes) -> None:
        run = self.ended(logs, output)
        task = left(run)
        assert (task.violations, rows.fresh_run(run).outcome) == (1, Outcome.PROTOCOL_VIOLATION)

    def test_an_error_code_without_one_has_crashed(self, logs: Path) -> None:
        run = self.ended(logs, b"Segmentation fault", 3)
        assert left(run).last_error == "exit code 3"
        assert rows.fresh_run(run).outcome == Outcome.CRASHED

    def test_an_end_that_nobody_saw_is_what_its_output_says(self, logs: Path) -> None:
        task = left(self.ended(logs, self.success(), None))
        assert (task.status, task.result) == (Status.DONE, "Painted.")

    def test_without_words_an_end_that_nobody_saw_is_a_crash(self, logs: Path) -> None:
        run = self.ended(logs, b"", None)
        ManagedProcess.objects.update(last_error="")
        task = left(run)
        assert (task.violations, task.failures, task.last_error) == (0, 1, "nobody saw how it ended")
        assert rows.fresh_run(run).outcome == Outcome.CRASHED

    def test_an_error_code_after_success_has_crashed_too(self, logs: Path) -> None:
        run = self.ended(logs, self.success(total_cost_usd=0.5), 3)
        assert left(run).last_error == "exit code 3"
        assert rows.fresh_run(run).cost_usd == Decimal("0.5")

    def test_without_a_log_nothing_was_said(self, logs: Path) -> None:
        run = self.ended(logs, b"")
        for file in logs.iterdir():
            file.unlink()
        assert left(run).violations == 1

    @pytest.mark.parametrize("code", [0, 3])
    def test_without_a_process_nothing_was_said(self, logs: Path, code: int) -> None:
        run = self.ended(logs, self.success(), code)
        ManagedProcess.objects.all().delete()
        assert left(run).last_error == (gate.NO_VERDICT if code == 0 else "exit code 3")

    def test_only_the_end_of_a_long_output_is_read(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(gate, "OUTPUT_READ", 200)
        run = self.ended(logs, b"x" * 5000 + b"\n" + json.dumps(self.success()).encode())
        assert left(run).status == Status.DONE
        run = self.ended(logs, json.dumps(self.success()).encode() + b"\n" + b"x" * 5000)
        assert left(run).violations == 1

    def test_who_was_taken_meanwhile_is_left_alone(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = self.ended(logs, b"")
        real = gate._output

        def output(of: Run) -> bytes:
            lifecycle.release(of.task, by=ANNA, now=timezone.now())
            rows.pulled(of.task)
            return real(of)

        monkeypatch.setattr(gate, "_output", output)
        task = left(run)
        assert (task.status, task.current_run, task.violations) == (Status.RUNNING, 2, 0)

    def test_nor_does_its_success_complete_the_next_attempt(self, logs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        run = self.ended(logs, self.success())
        real = gate._output

        def output(of: Run) -> bytes:
            lifecycle.release(of.task, by=ANNA, now=timezone.now())
            rows.pulled(of.task)
            return real(of)

        monkeypatch.setattr(gate, "_output", output)
        task = left(run)
        assert (task.status, task.current_run) == (Status.RUNNING, 2)


class Left:
    """A run that has reported and ended, and what lies in its folder."""

    def __init__(self, home: Path, *, code: int = 0, **fields: Any) -> None:
        run = rows.started(**fields)
        self.file = home / "agents" / run.agent / "managed-spawn.json"
        self.file.parent.mkdir(parents=True)
        lifecycle.complete(run.task, result="Up", has_sidecar=True, by=as_run(run), now=timezone.now())
        rows.ended(run, code)
        rows.commit()
        self.run = rows.fresh_run(run)

    def spec(self, name: str = "web", **fields: Any) -> dict[str, Any]:
        check = {"type": "tcp", "port": 1, "timeout_s": 10}
        return {"name": name, "cmd": "bash", "args": [name], "healthcheck": check, **fields}

    def declare(self, *names: str, **root: Any) -> "Left":
        about = {"written_by": self.run.agent, "wi_id": self.run.task_id, **root}
        self.file.write_text(json.dumps({"specs": [self.spec(name) for name in names or ("web",)], **about}))
        return self

    def look(self) -> Task:
        return left(self.run)

    @property
    def services(self) -> dict[str, ManagedProcess]:
        return {row.name: row for row in ManagedProcess.objects.filter(purpose=Purpose.SERVICE)}


@pytest.fixture
def leave(home: Path, project: Project) -> Callable[..., Left]:
    return lambda **fields: Left(home, **{"project": "demo", **fields})


class TestServices:
    def test_done_once_one_is_healthy(self, leave: Callable[..., Left], heard: rows.Heard) -> None:
        it = leave().declare()
        task = it.look()
        row = it.services["web"]
        assert (task.status, task.phase, row.status) == (Status.RUNNING, Phase.SERVICES, ProcessStatus.STARTING)
        assert (row.owner_agent, row.owner_wi, row.declared_by) == (it.run.agent, task.pk, f"run:{it.run}")
        assert [each.pk for each in heard.told] == [row.pk]
        assert not it.file.exists()
        run = rows.fresh_run(it.run)
        assert run.services == [{"process": row.pk, "generation": 1, "name": "web"}]
        assert it.look().phase == Phase.SERVICES
        processes.healed(processes.spawned(row))
        task = it.look()
        assert (task.status, task.result) == (Status.DONE, "Up")
        run = rows.fresh_run(it.run)
        assert (run.outcome, run.services_healthy, run.services_total, run.failure_class, run.error) == (
            Outcome.COMPLETED, 1, 1, "", ""
        )  # fmt: skip

    def test_its_lease_is_kept_meanwhile(self, leave: Callable[..., Left]) -> None:
        it = leave().declare()
        it.look()
        Task.objects.update(lease_until=timezone.now())
        task = it.look()
        assert task.lease_until is not None
        assert task.lease_until > timezone.now() + LEASE - 60 * SECOND

    def test_some_are_enough_and_why_not_all_is_kept(self, leave: Callable[..., Left]) -> None:
        it = leave().declare("web", "api", "gone")
        it.look()
        processes.healed(processes.spawned(it.services["web"]))
        services.fail(it.services["api"], "port-conflict (3000: x)", by=SWEEP, now=timezone.now())
        assert it.look().status == Status.RUNNING
        services.fail(it.services["gone"], "x", by=SWEEP, now=timezone.now())
        services.erase(it.services["gone"], by=ANNA, now=timezone.now())
        assert it.look().status == Status.DONE
        run = rows.fresh_run(it.run)
        assert (run.services_healthy, run.services_total, run.failure_class) == (1, 3, "partial")
        assert run.error == "api: port-conflict (3000: x)"

    def test_none_is_a_capability_that_lacks(self, leave: Callable[..., Left]) -> None:
        it = leave(services_required=True).declare("web", "api")
        it.look()
        services.fail(it.services["web"], "no such file", by=SWEEP, now=timezone.now())
        services.ended(processes.spawned(it.services["api"]), 0, members=[], jitter=0.0, by=SWEEP, now=timezone.now())
        task = it.look()
        reason = "managed-spawn-healthcheck-failed: web: no such file\napi: exited"
        assert (task.status, task.block_kind, task.block_reason) == (Status.BLOCKED, BlockKind.CAPABILITY, reason)
        run = rows.fresh_run(it.run)
        assert (run.outcome, run.failure_class, run.services_healthy) == (
            Outcome.FAILED, "managed-spawn-healthcheck-failed", 0
        )  # fmt: skip
        # Never retried by itself.
        assert task.failures == 0
        late = timezone.now() + timedelta(days=2)
        assert sweeps.lift_blocks(now=late) + sweeps.promote_ready(now=late) == 0

    def test_one_that_was_healthy_once_counts_while_it_lives(self, leave: Callable[..., Left]) -> None:
        it = leave().declare()
        it.look()
        row = processes.healed(processes.spawned(it.services["web"]))
        services.sicken(row, "no", misses=3, jitter=0.0, by=SWEEP, now=timezone.now())
        assert it.look().status == Status.DONE

    def test_what_already_runs_is_taken_as_it_is(self, leave: Callable[..., Left], project: Project) -> None:
        first = leave().declare()
        first.look()
        processes.healed(processes.spawned(first.services["web"]))
        second = leave().declare()
        assert second.look().status == Status.DONE
        assert len(second.services) == 1
        assert second.services["web"].generation == 1

    def test_what_is_replaced_was_never_healthy_yet(self, leave: Callable[..., Left], project: Project) -> None:
        first = leave().declare()
        first.look()
        processes.healed(processes.spawned(first.services["web"]))
        lifecycle.reopen(first.look(), by=ANNA, now=timezone.now())
        run = rows.started(rows.fresh(first.run.task))
        again = Left.__new__(Left)
        again.run, again.file = run, first.file.parent.parent / run.agent / first.file.name
        again.file.parent.mkdir()
        lifecycle.complete(run.task, has_sidecar=True, by=as_run(run), now=timezone.now())
        rows.ended(run, 0)
        again.run = rows.fresh_run(run)
        again.file.write_text(
            json.dumps({"specs": [again.spec(args=["web", "-v"])], "written_by": run.agent, "wi_id": run.task_id})
        )
        assert again.look().phase == Phase.SERVICES
        assert again.look().phase == Phase.SERVICES
        assert again.services["web"].status == ProcessStatus.RESTARTING

    def test_without_a_sidecar_where_none_is_required(self, leave: Callable[..., Left]) -> None:
        it = leave()
        assert it.look().status == Status.DONE
        run = rows.fresh_run(it.run)
        assert (run.services_healthy, run.services_total) == (0, 0)

    def test_an_error_of_its_process_after_its_report_is_nothing(self, leave: Callable[..., Left]) -> None:
        assert leave(code=-9).look().status == Status.DONE


class TestRejected:
    def assert_blocked(self, it: Left, reason: str) -> None:
        task = it.look()
        text = f"{reason}\n{specs.SCHEMA_HINT}"
        assert task.status == Status.BLOCKED
        assert rows.fresh_run(it.run).error == text
        assert task.block_reason == f"invalid-managed-spawn: {text}"[:2000]
        assert (task.block_kind, rows.fresh_run(it.run).failure_class) == ("capability", "invalid-managed-spawn")
        assert it.services == {}
        assert not it.file.exists()

    def test_absent(self, leave: Callable[..., Left]) -> None:
        self.assert_blocked(leave(services_required=True), "sidecar-missing")

    def test_of_another(self, leave: Callable[..., Left]) -> None:
        it = leave().declare(written_by="t_1-1")
        raw = it.file.read_text()
        self.assert_blocked(it, f"written-by-mismatch (expected {it.run.agent}, got t_1-1)\n{raw[:500]}")
        it = leave().declare(wi_id="w-1")
        raw = it.file.read_text()
        self.assert_blocked(it, f"wi-id-mismatch (expected {it.run.task_id}, got w-1)\n{raw[:500]}")

    def test_broken(self, leave: Callable[..., Left]) -> None:
        it = leave()
        it.file.write_text('{"specs": []}')
        self.assert_blocked(it, 'specs-empty\n{"specs": []}')

    def test_a_link(self, leave: Callable[..., Left], tmp_path: Path) -> None:
        it = leave()
        (tmp_path / "elsewhere").write_text("{}")
        it.file.symlink_to(tmp_path / "elsewhere")
        self.assert_blocked(it, "unreadable: a symlink")
        assert (tmp_path / "elsewhere").exists()

    def test_without_a_project_there_is_nobody_to_own_them(self, leave: Callable[..., Left]) -> None:
        it = leave(project="").declare()
        self.assert_blocked(it, "project-missing: the task has no project, and services belong to one")

    def test_whose_project_has_gone(self, leave: Callable[..., Left]) -> None:
        it = leave().declare()
        Project.objects.update(missing_since=timezone.now())
        task = it.look()
        assert task.status == Status.BLOCKED
        assert it.services == {}

    def test_a_name_that_is_taken_is_told_of_the_project_too(
        self, leave: Callable[..., Left], project: Project
    ) -> None:
        processes.declared(project, "web")
        it = leave().declare()
        task = it.look()
        assert task.block_reason.startswith("invalid-managed-spawn: name-already-active (web)\n")
        event = Event.objects.get(kind="service.rejected")
        assert (event.payload["reason"], event.payload["owner"]) == ("name-already-active (web)", task.pk)
        assert not it.file.exists()

    def test_a_folder_that_is_a_link_is_left_and_told(self, leave: Callable[..., Left], tmp_path: Path) -> None:
        it = leave(services_required=True)
        it.file.parent.rmdir()
        it.file.parent.symlink_to(tmp_path)
        task = it.look()
        assert task.block_reason.startswith("invalid-managed-spawn: unreadable: a symlink")
        assert it.file.parent.is_symlink()


class TestNotNow:
    def test_not_of_another_host(self, leave: Callable[..., Left]) -> None:
        it = leave().declare()
        Run.objects.update(host="n2")
        assert it.look().phase == Phase.SERVICES
        assert it.file.exists()

    def test_not_while_its_process_lingers(self, home: Path, project: Project, heard: rows.Heard) -> None:
        run = rows.started(services_required=True, project="demo")
        now = timezone.now()
        lifecycle.complete(run.task, by=as_run(run), now=now)
        assert left(run).phase == Phase.SERVICES
        assert sweeps.stop_superseded(now=now + 9 * SECOND) == 0
        assert sweeps.stop_superseded(now=now + 10 * SECOND) == 1
        assert left(run).phase == Phase.SERVICES
        heard.left.clear()
        rows.ended(run, -9)
        rows.commit()
        assert heard.left == [run.pk]
        # Stopped by us, not by somebody: what it reported counts.
        assert left(run).block_kind == BlockKind.CAPABILITY

    def test_not_of_a_run_that_is_over_or_was_never(self, leave: Callable[..., Left]) -> None:
        it = leave().declare()
        lifecycle.release(it.run.task, by=ANNA, now=timezone.now())
        it.look()
        gate.settle(10**9)
        assert it.services == {}
        # Shown on /services/ as unclaimed.
        assert it.file.exists()

    def test_not_of_what_is_at_work(self) -> None:
        run = rows.pulled()
        before = rows.everything()[:2]
        gate.settle(run.pk)
        assert rows.everything()[:2] == before

    def test_not_without_a_worker(self, leave: Callable[..., Left]) -> None:
        it = leave().declare()
        WorkerHost.objects.all().delete()
        gate.settle(it.run.pk)
        assert (rows.fresh(it.run.task).phase, it.file.exists()) == (Phase.SERVICES, True)
        it.look()
        assert len(it.services) == 1

    def test_a_conflict_that_passes_rejects_nothing(
        self, leave: Callable[..., Left], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        it = leave().declare()

        def declare(*words: Any, **about: Any) -> None:
            raise Conflict("illegal-transition", "It was changed meanwhile.")

        with monkeypatch.context() as patch:
            patch.setattr(services, "declare", declare)
            assert it.look().phase == Phase.SERVICES
        assert it.file.exists()
        it.look()
        assert len(it.services) == 1


class TestPullWorker:
    def test_whose_services_are_required_has_none_to_show(self, home: Path) -> None:
        run = rows.pulled(services_required=True)
        lifecycle.complete(run.task, by=as_run(run), now=timezone.now())
        task = left(run)
        assert (task.status, task.block_kind) == (Status.BLOCKED, BlockKind.CAPABILITY)
        assert task.block_reason.startswith("invalid-managed-spawn: sidecar-missing")


STEPS = ("declare", "declare_services", "delete", "tell", "services_known")


class Died(BaseException):
    """The worker was killed."""


@pytest.mark.parametrize("at", STEPS)
@pytest.mark.parametrize("is_after", [False, True])
def test_a_crash_between_any_two_steps_of_an_acceptance_loses_nothing(
    at: str, is_after: bool, leave: Callable[..., Left], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = leave(services_required=True).declare()
    if at == "services_known":
        it.look()
        processes.healed(processes.spawned(it.services["web"]))
    with monkeypatch.context() as patch:
        _deadly(patch, at, is_after)
        with pytest.raises(Died):
            it.look()
    it.look()
    assert len(it.services) == 1
    if it.services["web"].status == ProcessStatus.STARTING:
        processes.healed(processes.spawned(it.services["web"]))
    task = it.look()
    assert (task.status, it.file.exists()) == (Status.DONE, False)
    assert rows.fresh_run(it.run).services_healthy == 1
    assert rows.kinds(task).count("completed") == 1


@pytest.mark.parametrize("at", ["services_known", "delete"])
@pytest.mark.parametrize("is_after", [False, True])
def test_nor_of_a_rejection(
    at: str, is_after: bool, leave: Callable[..., Left], monkeypatch: pytest.MonkeyPatch
) -> None:
    it = leave()
    it.file.write_text('{"specs": []}')
    with monkeypatch.context() as patch:
        _deadly(patch, at, is_after)
        with pytest.raises(Died):
            it.look()
    task = it.look()
    assert (task.status, task.block_kind) == (Status.BLOCKED, BlockKind.CAPABILITY)
    assert "specs-empty" in task.block_reason
    assert rows.kinds(task).count("blocked") == 1


def _deadly(patch: pytest.MonkeyPatch, step: str, is_after: bool) -> None:
    """Let the worker die before or after a step."""
    place, name = {
        "declare": (services, "declare"),
        "declare_services": (lifecycle, "declare_services"),
        "delete": (gate, "_delete_sidecar"),
        "tell": (gate.orders, "tell"),
        "services_known": (lifecycle, "services_known"),
    }[step]
    real = getattr(place, name)

    def dying(*words: Any, **about: Any) -> None:
        if is_after:
            real(*words, **about)
        raise Died

    patch.setattr(place, name, dying)


def test_waking_it_is_one_job_a_run_of_a_worker_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    submitted: list[tuple[Any, ...]] = []
    monkeypatch.setattr(gate.jobs, "submit", lambda *words: submitted.append(words))
    monkeypatch.setattr(gate.supervisor, "current", lambda: None)
    wake(7)
    assert submitted == []
    monkeypatch.setattr(gate.supervisor, "current", object)
    wake(7)
    assert submitted == [("run:7", gate.settle, 7)]
