"""Loops that Andon starts: one a project, what it runs, what it gets, how it is stopped, and who tells of it."""

import stat
import subprocess
from datetime import timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings as django_settings

from projects import lifecycle as projects
from projects import ralph
from projects.errors import Conflict, DomainError, Rejected, Unavailable, Unfinished, Unprocessable
from projects.models import Event, LoopStop, Project, Rollback
from projects.states import ROLLBACK_MOVES, RollbackStatus
from services import commands, lifecycle, loops, orders
from services.commands import Limits
from services.models import ManagedProcess, WorkerHost
from services.processes import MARKER
from services.states import Purpose, Status
from tests.services.fake import Program
from tests.services.world import ANNA, KILL, TERM, World

COMMAND = "/opt/ralph/ralph.sh {max_iterations}"


@pytest.fixture
def loop(world: World, settings) -> World:
    """A world whose project has a loop command, and in which nobody is told of stops but the supervisor."""
    settings.ANDON_LOOP_AGENT = ""
    Project.objects.update(loop_command=COMMAND)
    world.project.refresh_from_db()
    return world


def start(world: World, **limits: Any) -> ManagedProcess:
    row = loops.start(world.project, Limits(**limits), by=ANNA)
    return world.row(row)


def refused(act: Any, kind: type[DomainError], code: str) -> DomainError:
    with pytest.raises(kind) as refusal:
        act()
    assert refusal.value.code == code
    return refusal.value


class TestStart:
    def test_it_is_started_in_its_project(self, loop: World) -> None:
        assert loops.find(loop.project) is None
        row = start(loop, iterations=20)
        assert (loops.find(loop.project), loops.live(loop.project)) == (row, row)
        assert row.identity is not None
        process = loop.kernel.find(row.identity)
        assert process.argv == ("/opt/ralph/ralph.sh", "20")
        assert (row.purpose, row.name, row.status, row.cwd) == (
            Purpose.LOOP,
            "loop",
            Status.RUNNING,
            loop.project.path,
        )
        assert (row.stop_grace_s, row.restart, row.expires_at) == (loops.GRACE_S, "never", None)
        assert Event.objects.filter(subject="project:demo", kind="loop.declared").count() == 1

    def test_its_project_knows_its_process(self, loop: World) -> None:
        row = start(loop)
        loop.project.refresh_from_db()
        known = loop.project.loop_process
        assert (known["process"], known["pid"], known["start_ticks"]) == (row.pk, row.pid, row.start_ticks)
        assert known["by"] == ANNA.name
        assert loop.project.loop_is_ours

    def test_its_environment_has_what_is_named(self, loop: World, settings, monkeypatch: pytest.MonkeyPatch) -> None:
        settings.ANDON_LOOP_ENV = ["ANTHROPIC_API_KEY", "NOT_THERE"]
        monkeypatch.setenv("ANTHROPIC_API_KEY", "k-1")
        monkeypatch.setenv("OPENAI_API_KEY", "k-2")
        row = start(loop)
        assert row.identity is not None
        env = loop.kernel.find(row.identity).env
        assert env["ANTHROPIC_API_KEY"] == "k-1"
        assert not {"OPENAI_API_KEY", "NOT_THERE"} & set(env)
        assert env[MARKER] == f"test-node.{row.pk}.1"
        assert row.env == {}

    @pytest.mark.parametrize("running", ["ours", "somebody's"])
    def test_a_second_one_is_refused(self, loop: World, running: str) -> None:
        pid: int | None = 77
        if running == "ours":
            pid = start(loop).pid
        else:
            Project.objects.update(running=True, pid=77)
        before = loop.everything()
        refusal = refused(lambda: start(loop), Conflict, "already-running")
        assert refusal.extra == {"pid": pid}
        assert loop.everything() == before

    def test_a_rollback_under_way_comes_first(self, loop: World) -> None:
        row = projects.ask_rollback(loop.project, {}, by=ANNA, now=loop.now)
        before = loop.everything()
        refused(lambda: start(loop), Conflict, "rollback-in-progress")
        assert loop.everything() == before
        projects.refuse(row, "dirty-tree", "there are changes", now=loop.now)
        assert start(loop).pid

    def test_without_a_worker_nothing_is_changed(self, loop: World) -> None:
        WorkerHost.objects.all().delete()
        refused(lambda: start(loop), Unavailable, "no-worker")
        assert not ManagedProcess.objects.exists()

    def test_a_program_that_is_not_there_is_told(self, loop: World) -> None:
        loop.kernel.script("ralph.sh", Program(error=FileNotFoundError(2, "No such file or directory")))
        refusal = refused(lambda: start(loop), Conflict, "start-failed")
        assert "No such file" in refusal.detail
        assert loops.live(loop.project) is None

    @pytest.mark.parametrize("code", [0, 3])
    def test_one_that_ends_at_once(self, loop: World, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
        tell = orders.tell

        def ends(rows: list[ManagedProcess]) -> None:
            tell(rows)
            loop.crash(rows[0], code)

        monkeypatch.setattr(orders, "tell", ends)
        if code:
            assert "exit code 3" in refused(lambda: start(loop), Conflict, "start-failed").detail
        else:
            assert (start(loop).status, loops.live(loop.project)) == (Status.EXITED, None)

    def test_one_that_nobody_had_seen_yet(self, loop: World) -> None:
        """The row is a moment old; before anything is started the worker looks at the pid file and the lock."""
        root = Path(loop.project.path)
        (root / "scripts/ralph").mkdir(parents=True, exist_ok=True)
        (root / "scripts/ralph/prd.json").write_text("{}")
        with ralph.project_lock(root):
            refusal = refused(lambda: start(loop), Conflict, "already-running")
        assert "lock" in refusal.detail
        with subprocess.Popen(["sleep", "60"], cwd=root) as other:
            (root / "scripts/ralph/.ralph.pid").write_text(f"{other.pid}\n")
            refusal = refused(lambda: start(loop), Conflict, "already-running")
            other.kill()
        assert str(other.pid) in refusal.detail
        assert loop.kernel.alive() == []

    def test_one_that_is_being_stopped(self, loop: World) -> None:
        projects.ask_stop(loop.project, grace_s=10, by=ANNA, now=loop.now)
        refused(lambda: start(loop), Conflict, "already-running")

    def test_one_that_ended_is_started_again_by_a_person_only(self, loop: World) -> None:
        row = start(loop)
        loop.crash(row, 1)
        loop.advance(60, ticks=True)
        assert loop.status(row) == Status.FAILED
        again = start(loop)
        assert (again.pk, again.generation, again.status) == (row.pk, 2, Status.RUNNING)


class TestEnd:
    @pytest.mark.parametrize(("code", "cause"), [(0, ""), (3, "crash")])
    def test_how_it_ended_is_noted_for_the_importer(self, loop: World, code: int, cause: str) -> None:
        looked: list[str] = []
        lifecycle.on_loop.append(looked.append)
        try:
            row = start(loop)
            loop.crash(row, code)
        finally:
            lifecycle.on_loop.clear()
        loop.project.refresh_from_db()
        known = loop.project.loop_process
        assert (known["ended"], known["exit_code"], known["cause"]) == (True, code, cause)
        assert not loop.project.loop_is_ours
        assert Event.objects.filter(kind__in=["loop.crashed", "loop.stopped", "loop.exited"]).count() == 0

    def test_the_end_of_an_earlier_one_says_nothing_of_the_next(self, loop: World) -> None:
        row = start(loop)
        Project.objects.update(loop_process={"process": row.pk + 1, "pid": 5})
        loop.crash(row, 3)
        assert Project.objects.get().loop_process == {"process": row.pk + 1, "pid": 5}

    def test_its_end_is_told_by_the_importer_alone(self, loop: World) -> None:
        row = start(loop)
        loop.crash(row, 3)
        lifecycle.force(start(loop), "stuck", by=ANNA, now=loop.now)
        kinds = list(Event.objects.filter(subject="project:demo").order_by("pk").values_list("kind", flat=True))
        assert kinds == ["loop.declared", "loop.declared", "loop.forced"]
        assert f"generation {row.generation} starts" in (loop.logs / row.log_name).read_text()


class TestStop:
    def test_its_group_is_asked_and_the_agent_may_finish(self, loop: World) -> None:
        loop.kernel.script("ralph.sh", Program(children=(Program(own_session=True, ignores={TERM}),)))
        row = start(loop)
        leader, agent = loop.kernel.alive()
        stop = loops.ask_stop(loop.project, grace_s=30, by=ANNA)
        assert (stop.status, stop.pid, stop.process) == ("ending", row.pid, row.pk)
        loop.advance(20)
        assert (loop.sent(leader), loop.sent(agent)) == ([TERM], [])
        loop.kernel.kill(agent, 0)
        loop.advance()
        row = loop.row(row)
        assert (row.status, row.exit_code) == (Status.EXITED, -TERM)
        assert loop.sent(agent) == []
        stop.refresh_from_db()
        assert (stop.status, stop.ended_at is not None) == ("stopped", True)

    def test_it_is_answered_once_it_is_gone(self, loop: World) -> None:
        start(loop)
        stop = loops.stop(loop.project, by=ANNA)
        assert stop.state == "stopped"
        assert loop.kernel.alive() == []
        assert loops.live(loop.project) is None

    def test_one_that_ignores_term_is_killed_after_its_grace(self, loop: World) -> None:
        loop.kernel.script("ralph.sh", Program(ignores={TERM}))
        row = start(loop)
        began = loop.now
        stop = loops.stop(loop.project, grace_s=4, by=ANNA)
        assert stop.state == "killed"
        assert timedelta(seconds=4) <= loop.now - began < timedelta(seconds=6)
        assert loop.row(row).exit_code == -KILL

    def test_after_its_iteration_only_the_leader_is_asked(self, loop: World) -> None:
        """An agent in the loop's own group does not lose what it is at."""
        loop.kernel.script("ralph.sh", Program(children=(Program(),)))
        start(loop)
        leader, agent = loop.kernel.alive()
        stop = loops.ask_stop(loop.project, grace_s=3600, by=ANNA)
        loop.advance(60)
        assert (loop.sent(leader), loop.sent(agent)) == ([TERM], [])
        loop.kernel.kill(agent, 0)
        loop.advance(1)
        stop.refresh_from_db()
        assert stop.status == "stopped"

    def test_one_that_ends_meanwhile(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        row = start(loop)
        monkeypatch.setattr(loops, "live", lambda project: row)
        loop.crash(row, 0)
        sent: list[int] = []
        monkeypatch.setattr(orders, "send", lambda job, node, pk: sent.append(pk))
        assert loops.ask_stop(loop.project, by=ANNA).process is None
        assert len(sent) == 1

    def test_an_agent_that_does_not_finish_is_killed(self, loop: World) -> None:
        loop.kernel.script("ralph.sh", Program(children=(Program(own_session=True),)))
        start(loop)
        agent = loop.kernel.alive()[1]
        loops.stop(loop.project, grace_s=4, by=ANNA)
        assert loop.sent(agent) == [KILL]
        assert loop.kernel.alive() == []

    def test_a_shorter_second_one_brings_the_kill_nearer(self, loop: World) -> None:
        loop.kernel.script("ralph.sh", Program(ignores={TERM}))
        start(loop)
        loops.ask_stop(loop.project, grace_s=600, by=ANNA)
        loop.advance(1)
        began = loop.now
        second = loops.stop(loop.project, grace_s=2, by=ANNA)
        assert second.state == "killed"
        assert loop.now - began < timedelta(seconds=4)
        assert LoopStop.objects.count() == 1

    def test_a_shorter_second_one_before_anybody_was_asked(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        row = start(loop)
        with monkeypatch.context() as deaf:
            deaf.setattr(orders, "tell", lambda rows: None)
            loops.ask_stop(loop.project, grace_s=600, by=ANNA)
            loops.ask_stop(loop.project, grace_s=3, by=ANNA)
        assert (loop.row(row).stop_grace_s, loop.row(row).kill_at) == (3, None)
        assert loops.stop(loop.project, by=ANNA).state == "stopped"

    def test_a_longer_second_one_changes_nothing(self, loop: World) -> None:
        loop.kernel.script("ralph.sh", Program(ignores={TERM}))
        row = start(loop)
        first = loops.ask_stop(loop.project, grace_s=5, by=ANNA)
        loops.ask_stop(loop.project, grace_s=600, by=ANNA)
        assert loop.row(row).kill_at is not None
        loop.advance(6)
        first.refresh_from_db()
        assert first.status == "killed"

    def test_what_does_not_end_in_time_is_told(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        row = start(loop)
        monkeypatch.setattr(orders, "tell", lambda rows: None)
        refusal = refused(lambda: loops.stop(loop.project, grace_s=1, by=ANNA), Unfinished, "still-stopping")
        assert refusal.extra == {"pid": row.pid, "left": [row.pid]}
        assert loop.status(row) == Status.STOPPING

    def test_a_loop_of_somebody_else_is_its_workers(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        sent: list[tuple[str, int]] = []
        monkeypatch.setattr(orders, "send", lambda job, node, pk: sent.append((node, pk)))
        stop = loops.ask_stop(loop.project, by=ANNA)
        assert (stop.status, stop.process) == ("asked", None)
        assert sent == [(django_settings.ANDON_NODE, stop.pk)]

    @pytest.mark.parametrize("code", sorted(loops.STOP_REFUSALS))
    def test_what_the_worker_refused_has_its_status(
        self, loop: World, monkeypatch: pytest.MonkeyPatch, code: str
    ) -> None:
        from projects.lifecycle import stops

        def worker(job: Any, node: str, pk: int) -> None:
            stops.refuse(LoopStop.objects.get(pk=pk), code, "because", now=loop.now)

        monkeypatch.setattr(orders, "send", worker)
        with pytest.raises(DomainError) as refusal:
            loops.stop(loop.project, by=ANNA)
        assert (refusal.value.code, refusal.value.status) == (code, loops.STOP_REFUSALS[code])

    @pytest.mark.parametrize("grace_s", [-1, 86_401, True])
    def test_a_grace_that_is_none_is_refused(self, loop: World, grace_s: Any) -> None:
        start(loop)
        before = loop.everything()
        refused(lambda: loops.stop(loop.project, grace_s=grace_s, by=ANNA), Rejected, "grace-invalid")
        assert loop.everything() == before

    def test_without_a_worker_nothing_is_changed(self, loop: World) -> None:
        start(loop)
        WorkerHost.objects.all().delete()
        refused(lambda: loops.stop(loop.project, by=ANNA), Unavailable, "no-worker")
        assert not LoopStop.objects.exists()


class TestRollBack:
    @pytest.fixture
    def worker(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> list[int]:
        """A worker that refuses each rollback as dirty."""
        asked: list[int] = []

        def carry_out(job: Any, node: str, pk: int) -> None:
            asked.append(pk)
            row = Rollback.objects.get(pk=pk)
            projects.refuse(row, "dirty-tree", "a.py has changes", {"paths": ["a.py"], "status": 409}, now=loop.now)

        monkeypatch.setattr(orders, "send", carry_out)
        return asked

    def roll_back(self, world: World, **more: Any) -> Rollback:
        options = {"stop_first": False, **more}
        return loops.roll_back(world.project, {"expected_head": "abc"}, by=ANNA, **options)

    def test_a_refusal_has_what_belongs_to_it(self, loop: World, worker: list[int]) -> None:
        refusal = refused(lambda: self.roll_back(loop), DomainError, "dirty-tree")
        assert (refusal.status, refusal.detail, refusal.extra) == (409, "a.py has changes", {"paths": ["a.py"]})
        assert Rollback.objects.get().wanted == {"expected_head": "abc"}

    def test_the_same_key_answers_the_same_again(self, loop: World, worker: list[int]) -> None:
        for _ in range(2):
            refused(lambda: self.roll_back(loop, key="k-1"), DomainError, "dirty-tree")
        assert len(worker) == 1
        refused(lambda: self.roll_back(loop, key="k-2"), DomainError, "dirty-tree")
        assert len(worker) == 2

    def test_the_same_key_of_another_process_that_was_over_sooner(
        self, loop: World, worker: list[int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        refused(lambda: self.roll_back(loop, key="k-1"), DomainError, "dirty-tree")
        monkeypatch.setattr(loops.projects, "of_key", lambda project, key: None)
        refused(lambda: self.roll_back(loop, key="k-1"), DomainError, "dirty-tree")
        assert len(worker) == 1

    def test_a_running_loop_is_in_the_way(self, loop: World, worker: list[int]) -> None:
        start(loop)
        refused(lambda: self.roll_back(loop), Conflict, "loop-running")
        assert worker == []

    def test_a_running_loop_is_stopped_first(self, loop: World, worker: list[int]) -> None:
        start(loop)
        refused(lambda: self.roll_back(loop, stop_first=True), DomainError, "dirty-tree")
        assert loops.live(loop.project) is None
        assert len(worker) == 1

    def test_a_worker_that_does_not_hear_is_told_of(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(orders, "send", lambda job, node, pk: None)
        began = loop.now
        refusal = refused(lambda: self.roll_back(loop), Unfinished, "still-rolling-back")
        assert refusal.extra == {"id": Rollback.objects.get().pk}
        assert loop.now - began >= timedelta(seconds=loops.ROLLED_BACK_WITHIN_S)
        refused(lambda: self.roll_back(loop), Conflict, "rollback-in-progress")

    def test_it_is_carried_out_by_its_worker(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        submitted: list[int] = []
        monkeypatch.setattr(loops.undoing, "submit", lambda row: submitted.append(row.pk))
        row = projects.ask_rollback(loop.project, {}, by=ANNA, now=loop.now)
        monkeypatch.setattr("projects.jobs.close_old_connections", lambda: None)
        loops.carry_out.call_local(row.pk)
        loops.carry_out.call_local(row.pk + 1)
        assert submitted == [row.pk]

    def test_one_that_came_to_an_end_is_answered(self, loop: World, monkeypatch: pytest.MonkeyPatch) -> None:
        def carry_out(job: Any, node: str, pk: int) -> None:
            fields = {"head": "a", "new": "b", "backup_ref": "c", "status": "done"}
            Rollback.objects.filter(pk=pk).update(**fields)

        monkeypatch.setattr(orders, "send", carry_out)
        assert self.roll_back(loop).status == "done"

    def test_without_a_worker_nothing_is_changed(self, loop: World) -> None:
        WorkerHost.objects.all().delete()
        refused(lambda: self.roll_back(loop), Unavailable, "no-worker")
        assert not Rollback.objects.exists()

    def test_every_move_has_an_end(self) -> None:
        ends = set(RollbackStatus) - {source for sources, _ in ROLLBACK_MOVES.values() for source in sources}
        assert ends == {RollbackStatus.DONE, RollbackStatus.REFUSED, RollbackStatus.UNDONE}


class TestCommand:
    @pytest.fixture
    def project(self, loop: World) -> Project:
        Project.objects.update(loop_command="")
        loop.project.refresh_from_db()
        return loop.project

    def script(self, project: Project, mode: int = 0o755) -> Path:
        path = Path(project.path) / commands.SCRIPT
        path.parent.mkdir(parents=True)
        path.write_text("#!/bin/sh\n")
        path.chmod(mode)
        return path

    def test_nothing_says_what_to_run(self, project: Project) -> None:
        refusal = refused(lambda: commands.command(project, Limits()), Unprocessable, "no-loop-command")
        assert "ANDON_LOOP_AGENT" in refusal.detail

    @pytest.mark.parametrize("whose", ["the project's", "the installation's"])
    def test_our_runner_runs_an_agent(self, project: Project, settings, whose: str) -> None:
        agent = 'claude -p "do it"'
        if whose == "the project's":
            settings.ANDON_LOOP_AGENT = "another"
            project.loop_agent = agent
        else:
            settings.ANDON_LOOP_AGENT = agent
        made = commands.command(project, Limits(3, Decimal("2.50"), resume=True))
        assert made.argv[1:] == [
            str(commands.MANAGE),
            *("loop", project.path, "--max", "3", "--max-cost", "2.50", "--resume"),
        ]
        assert made.env == {"ANDON_HOME": str(settings.ANDON_HOME), "ANDON_LOOP_AGENT": agent}
        assert made.shown == agent
        assert commands.command(project, Limits()).argv[-2:] == ["--max", "10"]

    def test_a_script_of_the_project(self, project: Project) -> None:
        path = self.script(project)
        assert commands.command(project, Limits(7)).argv == [str(path), "7"]
        refused(lambda: commands.command(project, Limits(cost=Decimal(1))), Unprocessable, "limit-unsupported")

    @pytest.mark.parametrize("wrong", ["mode", "outside"])
    def test_a_script_that_will_not_do(self, project: Project, tmp_path: Path, wrong: str) -> None:
        path = self.script(project, 0o644 if wrong == "mode" else 0o755)
        if wrong == "outside":
            other = path.replace(tmp_path / "other.sh")
            path.symlink_to(other)
            assert other.stat().st_mode & stat.S_IXUSR
        refused(lambda: commands.command(project, Limits()), Unprocessable, "no-loop-command")

    def test_a_command_of_its_own(self, project: Project) -> None:
        project.loop_command = "ralph run --max={max_iterations} 'two words'"
        assert commands.command(project, Limits(4)).argv == ["ralph", "run", "--max=4", "two words"]
        assert commands.command(project, Limits(4)).shown == "ralph run --max=4 'two words'"
        refused(lambda: commands.command(project, Limits(cost=Decimal(1))), Unprocessable, "limit-unsupported")
        project.loop_command = "ralph run"
        assert commands.command(project, Limits()).argv == ["ralph", "run"]
        refused(lambda: commands.command(project, Limits(4)), Unprocessable, "limit-unsupported")

    @pytest.mark.parametrize(
        "limits",
        [Limits(0), Limits(10**6 + 1), Limits(cost=Decimal(0)), Limits(cost=Decimal("nan")), Limits(cost=Decimal(-1))],
    )
    def test_nonsense_is_refused(self, project: Project, limits: Limits) -> None:
        refused(lambda: commands.command(project, limits), Rejected, "limit-invalid")
