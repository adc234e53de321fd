"""Stops of loops that Andon did not start, on a fake machine; what only real processes can say is in the journey."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from projects.events import By
from projects.lifecycle import stops
from projects.models import Event, LoopStop, Project
from projects.states import StopStatus
from services import signals, strangers
from services.models import ManagedProcess
from services.processes import Identity, Linux, Unknown
from services.processes.proc import Stat
from services.states import Purpose
from services.strangers import Strangers
from tests.services.fake import INIT, TICKS, FakeKernel, Process, Program
from tests.services.world import ANNA, DEAF, EPOCH, KILL, TERM, World

BEN = By("token:ben", "api", "10.0.0.2")
SHELL = Program()


class Yard:
    """A project whose loops somebody else starts, and the one who stops them."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.project = world.project
        self.root = Path(world.project.path)
        self.file = self.root / ".ralph.pid"
        self.directories: dict[int, Path] = {}
        self.unreadable: set[int] = set()
        self.imported: list[str] = []
        self.begin()

    def begin(self) -> None:
        self.strangers = Strangers(self.world.kernel, submit=self.world.submit, born_at=self.world.now)

    @property
    def kernel(self) -> FakeKernel:
        return self.world.kernel

    def loop(self, program: Program = SHELL, *, parent: int = INIT, writes: bool = True, **more: Any) -> Process:
        """Start a loop outside of Andon; it leads a group unless `more` says otherwise."""
        process = self.world.machine.fork(program, self.kernel.host, parent, **more)
        if writes:
            self.write(process.identity.pid)
        return process

    def write(self, content: object) -> None:
        self.file.write_text(f"{content}\n")
        os.utime(self.file, (self.world.now.timestamp(), self.world.now.timestamp()))

    def below(self, process: Process) -> list[Process]:
        """Return the living children of a process."""
        everybody = self.world.machine.processes.values()
        return [each for each in everybody if each.parent == process.identity.pid and each.code is None]

    def ask(self, grace_s: int = 10, *, by: By = ANNA, acts: bool = True) -> LoopStop:
        row = stops.ask(self.project, grace_s=grace_s, by=by, now=self.world.now)
        if acts:
            self.strangers.wake(row.pk)
        return self.row(row)

    def row(self, row: LoopStop) -> LoopStop:
        return LoopStop.objects.get(pk=row.pk)

    def sent(self, process: Process) -> list[int]:
        return self.world.sent(process.identity)

    def run(self, seconds: float) -> None:
        """Let time pass with the worker's sweep each second."""
        for _ in range(int(seconds)):
            self.world.advance(1)
            self.strangers.sweep()

    def reborn(self, away_s: float = 0.0) -> None:
        """Kill the worker and start another."""
        self.world.reborn(away_s=away_s)
        self.begin()
        self.strangers.sweep()


@pytest.fixture
def yard(world: World, monkeypatch: pytest.MonkeyPatch) -> Yard:
    made = Yard(world)
    machine = world.machine

    def identify(pid: int, host: str) -> Identity | None:
        if pid in made.unreadable:
            raise PermissionError(13, "hidden in /proc")
        process = machine.processes.get(pid)
        return process.identity if process is not None and process.code is None else None

    def everybody() -> dict[int, Stat]:
        return {
            pid: Stat("S", each.parent, 1, each.identity.start_ticks, each.group, each.session)
            for pid, each in machine.processes.items()
            if each.code is None
        }

    def imported(path: str, *, now: object) -> bool:
        made.imported.append(path)
        return True

    monkeypatch.setattr("services.processes.identify", identify)
    monkeypatch.setattr("services.processes.working_directory", lambda pid: made.directories.get(pid, made.root))
    monkeypatch.setattr(
        "services.processes.started_at", lambda identity: EPOCH.timestamp() + identity.start_ticks / TICKS - 1000
    )
    us = SimpleNamespace(getpid=lambda: made.kernel.pid, getpgrp=lambda: made.kernel.pid)
    monkeypatch.setattr(strangers, "os", us)
    monkeypatch.setattr(strangers, "time", SimpleNamespace(monotonic=lambda: machine.clock))
    monkeypatch.setattr(strangers, "boot_id", lambda: machine.boot_id)
    monkeypatch.setattr(strangers.kinship, "everybody", everybody)
    monkeypatch.setattr(strangers.importer, "import_project", imported)
    return made


class Killed(BaseException):
    """The worker dies here."""


def die(*given: object, **more: object) -> None:
    raise Killed


def told(row: LoopStop) -> list[str]:
    return list(Event.objects.filter(subject=f"project:{row.project}").order_by("id").values_list("kind", flat=True))


def outcome(row: LoopStop) -> tuple[str, str]:
    row.refresh_from_db()
    return row.status, row.code


class TestWhom:
    def test_a_leader_goes_with_its_group_and_its_agent_afterwards(self, yard: Yard) -> None:
        agent = Program(own_session=True, children=(Program(),))
        loop = yard.loop(Program(ignores={TERM}, children=(Program(), agent)))
        tool, agent_ = yard.below(loop)
        [below] = yard.below(agent_)
        row = yard.ask()
        assert (row.status, row.pid, row.start_ticks) == ("ending", loop.identity.pid, loop.identity.start_ticks)
        assert row.members == [[each.identity.pid, each.identity.start_ticks] for each in (tool, agent_, below)]
        assert (row.term_at, row.kill_at) == (yard.world.now, yard.world.now + timedelta(seconds=10))
        assert [yard.sent(each) for each in (loop, tool, agent_, below)] == [[TERM], [TERM], [], []]
        yard.run(3)
        assert yard.sent(agent_) == []
        yard.kernel.kill(loop.identity, 0)
        yard.world.advance()
        assert [yard.sent(each) for each in (agent_, below)] == [[TERM], [TERM]]
        yard.world.advance()
        assert outcome(row) == ("stopped", "")
        assert (row.ended_at, row.detail, row.left) == (yard.world.now, "", [])

    def test_the_agent_is_not_hurried_while_one_of_the_group_lives(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(DEAF, Program(own_session=True))))
        deaf, agent = yard.below(loop)
        row = yard.ask()
        yard.run(9)
        assert (yard.sent(loop), yard.sent(deaf), yard.sent(agent)) == ([TERM], [TERM], [])
        yard.run(1)
        assert (yard.sent(deaf), yard.sent(agent)) == ([TERM, KILL], [KILL])
        assert outcome(row) == ("stopped", "")

    def test_an_agent_that_is_deaf_is_asked_once_and_killed_in_the_end(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(replace(DEAF, own_session=True),)))
        [agent] = yard.below(loop)
        row = yard.ask(5)
        yard.run(4)
        assert (yard.sent(agent), outcome(row)) == ([TERM], ("ending", stops.ASKED))
        yard.run(1)
        assert (yard.sent(agent), outcome(row)) == ([TERM, KILL], ("stopped", ""))

    def test_in_a_shells_group_only_it_and_its_descendants(self, yard: Yard) -> None:
        shell = yard.loop(writes=False)
        group = {"parent": shell.identity.pid, "group": shell.identity.pid, "session": shell.identity.pid}
        children = (Program(ignores={TERM}), Program(own_session=True))
        loop = yard.loop(Program(ignores={TERM}, children=children), **group)
        beside = yard.loop(writes=False, **group)
        below = yard.below(loop)
        row = yard.ask()
        assert [yard.sent(each) for each in (loop, *below)] == [[TERM]] * 3
        yard.world.advance(10)
        assert [yard.sent(each) for each in (loop, *below)] == [[TERM, KILL], [TERM, KILL], [TERM]]
        assert outcome(row) == ("killed", "")
        assert (shell.code, beside.code, yard.sent(shell), yard.sent(beside)) == (None, None, [], [])

    def test_the_rest_of_a_pipe_is_of_the_group(self, yard: Yard) -> None:
        shell = yard.loop(writes=False)
        same = {"parent": shell.identity.pid, "session": shell.identity.pid}
        loop = yard.loop(**same)
        tee = yard.loop(Program(children=(DEAF,)), **same, group=loop.identity.pid, writes=False)
        [below] = yard.below(tee)
        below.group = below.session = below.identity.pid
        row = yard.ask(5)
        assert [yard.sent(each) for each in (loop, tee, below, shell)] == [[TERM], [TERM], [TERM], []]
        yard.world.advance(5)
        assert (outcome(row), yard.sent(below), shell.code) == (("stopped", ""), [TERM, KILL], None)

    def test_what_is_forked_after_the_signal_goes_too(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(5)
        late = yard.world.machine.fork(Program(own_session=True), yard.kernel.host, loop.identity.pid, loop)
        yard.run(2)
        # Its parent is init now, and only our memory says whose it was.
        yard.kernel.kill(loop.identity, 0)
        yard.world.advance()
        assert yard.sent(late) == [TERM]
        yard.world.advance()
        assert outcome(row) == ("stopped", "")

    def test_one_of_the_group_that_nobody_noted(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(5)
        yard.run(4)
        late = yard.world.machine.fork(DEAF, yard.kernel.host, loop.identity.pid, loop)
        yard.kernel.kill(loop.identity, 0)
        yard.world.advance()
        assert outcome(row) == ("ending", stops.ASKED)
        yard.run(1)
        assert (yard.sent(late), outcome(row)) == ([KILL], ("stopped", ""))

    def test_a_group_of_a_number_that_was_used_again_is_a_strangers(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(replace(DEAF, own_session=True),)))
        [agent] = yard.below(loop)
        row = yard.ask(5)
        later = yard.kernel.reuse(loop.identity)
        mate = yard.kernel.stranger(group=later.pid)
        yard.run(6)
        assert (outcome(row), agent.code) == (("stopped", ""), -KILL)
        assert yard.kernel.verdict(later) == yard.kernel.verdict(mate) == "alive"

    def test_an_empty_group_is_not_trusted_for_long(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(replace(DEAF, own_session=True),)))
        row = yard.ask(10)
        yard.run(5)
        stranger = yard.kernel.stranger(group=loop.identity.pid)
        yard.run(6)
        assert (outcome(row), yard.kernel.verdict(stranger)) == (("stopped", ""), "alive")

    def test_nobody_younger_than_its_parents_number(self, yard: Yard) -> None:
        older = yard.kernel.stranger()
        yard.world.advance(1)
        loop = yard.loop()
        yard.world.machine.processes[older.pid].parent = loop.identity.pid
        row = yard.ask()
        assert (row.members, yard.kernel.verdict(older)) == ([], "alive")

    def test_ourselves_and_those_above_us_never(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop(Program(children=(Program(children=(Program(),)), Program())))
        parent, tool = yard.below(loop)
        [us] = yard.below(parent)
        monkeypatch.setattr(strangers.os, "getpid", lambda: us.identity.pid)
        monkeypatch.setattr(strangers.os, "getpgrp", lambda: 999)
        row = yard.ask()
        assert outcome(row) == ("refused", "permission-denied")
        assert [yard.sent(each) for each in (loop, parent, us, tool)] == [[]] * 4
        # One of the group only is above us: all but it and what is below it.
        yard.write(tool.identity.pid)
        tool.group = tool.identity.pid
        parent.group = us.group = tool.identity.pid
        row = yard.ask()
        assert [yard.sent(each) for each in (loop, parent, us, tool)] == [[], [], [], [TERM]]

    def test_a_loop_that_andon_came_to_run_below_meanwhile(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(5)
        monkeypatch.setattr(strangers.os, "getpid", lambda: loop.identity.pid)
        yard.run(5)
        assert (outcome(row), yard.sent(loop)) == (("refused", "permission-denied"), [TERM])

    def test_with_a_long_grace_only_the_leader_is_asked(self, yard: Yard) -> None:
        """A script and its agent in one group: the agent finishes, and the script does not begin another iteration."""
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF, Program(own_session=True))))
        agent, other = yard.below(loop)
        row = yard.ask(signals.PATIENT_S + 1)
        yard.run(30)
        assert [yard.sent(each) for each in (loop, agent, other)] == [[TERM], [], []]
        assert outcome(row) == ("ending", stops.LEADER_ASKED)
        yard.kernel.kill(loop.identity, 0)
        yard.world.advance()
        assert [yard.sent(each) for each in (agent, other)] == [[TERM], []]
        yard.kernel.kill(agent.identity, 0)
        yard.world.advance()
        assert yard.sent(other) == [TERM]
        yard.world.advance()
        assert outcome(row) == ("stopped", "")

    def test_with_a_long_grace_its_group_is_killed_at_the_end(self, yard: Yard) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(Program(),)))
        [agent] = yard.below(loop)
        row = yard.ask(600)
        yard.run(599)
        assert (yard.sent(loop), yard.sent(agent)) == ([TERM], [])
        yard.run(1)
        assert (outcome(row), yard.sent(loop), yard.sent(agent)) == (("killed", ""), [TERM, KILL], [KILL])

    def test_a_grace_that_is_cut_short_asks_the_group_too(self, yard: Yard) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF,)))
        [agent] = yard.below(loop)
        row = yard.ask(600)
        assert (yard.sent(loop), yard.sent(agent)) == ([TERM], [])
        yard.ask(signals.PATIENT_S, by=BEN)
        assert (yard.sent(loop), yard.sent(agent), outcome(row)) == ([TERM], [TERM], ("ending", stops.ASKED))


class TestDeadlines:
    def test_a_deaf_loop_is_killed_when_its_grace_is_over(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(10)
        yard.world.advance(9.9)
        assert (outcome(row), yard.sent(loop)) == (("ending", stops.ASKED), [TERM])
        yard.world.advance(0.1)
        assert (outcome(row), yard.sent(loop)) == (("killed", ""), [TERM, KILL])
        assert row.detail == "It did not end within 10 s."
        assert not yard.file.exists()

    def test_without_grace_at_once(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(Program(own_session=True),)))
        [agent] = yard.below(loop)
        row = yard.ask(0)
        yard.world.advance()
        assert (yard.sent(loop), yard.sent(agent)) == ([KILL], [KILL])
        assert (outcome(row), row.term_at, row.detail) == (("killed", ""), None, "It was to be killed at once.")

    def test_a_second_ask_kills_at_once(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(600)
        yard.world.advance(3)
        assert yard.ask(0, by=BEN) == row
        yard.world.advance()
        assert (outcome(row), yard.sent(loop)) == (("killed", ""), [TERM, KILL])

    def test_two_at_once_are_one(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        assert yard.ask(acts=False) == yard.ask(by=BEN)
        yard.strangers.sweep()
        assert yard.sent(loop) == [TERM]

    def test_sweeps_add_no_timers(self, yard: Yard) -> None:
        yard.loop(DEAF)
        row = yard.ask(600)
        for _ in range(20):
            yard.strangers.wake(row.pk)
        assert len(yard.world.machine.timers) == 1
        yard.world.advance(601)
        assert outcome(row) == ("killed", "")
        yard.world.advance(60)
        assert yard.world.machine.timers == []

    def test_an_earlier_deadline_has_a_timer_of_its_own(self, yard: Yard) -> None:
        yard.loop(DEAF)
        row = yard.ask(20)
        yard.ask(5)
        yard.world.advance(5)
        assert outcome(row) == ("killed", "")
        yard.world.advance(20)
        assert yard.world.machine.timers == []


class TestRefusals:
    @pytest.mark.parametrize("content", ["0", "1", "-5", "abc", "99999999999"])
    def test_what_is_no_pid(self, yard: Yard, content: str) -> None:
        yard.write(content)
        row = yard.ask()
        assert outcome(row) == ("refused", "pid-file-invalid")
        assert (yard.file.read_text(), yard.imported) == (f"{content}\n", [])
        assert told(row) == ["loop.stop_asked", "loop.stop_refused"]

    def test_no_pid_file(self, yard: Yard) -> None:
        yard.loop(writes=False)
        assert outcome(yard.ask()) == ("refused", "no-pid-file")

    def test_no_project(self, yard: Yard) -> None:
        row = yard.ask(acts=False)
        Project.objects.all().delete()
        yard.strangers.act(row.pk)
        assert outcome(row) == ("refused", "no-pid-file")

    def test_the_file_is_looked_for_where_the_stories_are(self, yard: Yard) -> None:
        loop = yard.loop(writes=False)
        folder = yard.root / "plans"
        folder.mkdir()
        yard.file = folder / ".ralph.pid"
        yard.write(loop.identity.pid)
        Project.objects.update(prd_path="plans/prd.json")
        row = yard.ask()
        yard.world.advance()
        assert outcome(row) == ("stopped", "")

    def test_a_stranger_outside_of_the_project(self, yard: Yard) -> None:
        stranger = yard.kernel.stranger()
        yard.directories[stranger.pid] = yard.root.parent / "demolition"
        yard.write(stranger.pid)
        assert outcome(yard.ask()) == ("refused", "pid-not-in-project")

    def test_one_of_another_user(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        def forbidden(pid: int) -> Path:
            raise PermissionError(13, "not yours")

        loop = yard.loop()
        monkeypatch.setattr("services.processes.working_directory", forbidden)
        assert (outcome(yard.ask()), yard.sent(loop)) == (("refused", "permission-denied"), [])

    @pytest.mark.parametrize("grace_s", [0, 10])
    def test_one_that_the_kernel_protects(self, yard: Yard, grace_s: int) -> None:
        loop = yard.loop(Program(children=(Program(),)), uid_is_ours=False)
        [below] = yard.below(loop)
        row = yard.ask(grace_s)
        assert outcome(row) == ("refused", "permission-denied")
        assert (yard.sent(loop), yard.sent(below), yard.imported) == ([], [], [])
        assert told(row) == ["loop.stop_asked", "loop.stop_refused"]
        # Its death is heard of, and forgotten.
        assert loop.identity in yard.kernel.pinned
        for each in (loop, below):
            yard.kernel.kill(each.identity)
        yard.world.advance()
        assert (yard.kernel.pinned, outcome(row)) == ({}, ("refused", "permission-denied"))

    def test_one_in_our_own_group(self, yard: Yard) -> None:
        loop = yard.loop(group=yard.kernel.pid)
        row = yard.ask()
        assert (outcome(row), row.pid, yard.sent(loop)) == (("refused", "permission-denied"), None, [])

    def test_one_that_joins_our_group_in_that_moment(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop()
        really = yard.kernel.signal

        def join(identity: Identity, number: int) -> bool:
            loop.group = yard.kernel.pid
            return really(identity, number)

        monkeypatch.setattr(yard.kernel, "signal", join)
        assert (outcome(yard.ask()), yard.sent(loop)) == (("refused", "permission-denied"), [])

    def test_one_of_another_user_among_the_members_is_left(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(Program(),)))
        [below] = yard.below(loop)
        below.uid_is_ours = False
        row = yard.ask(2)
        yard.run(4)
        assert (outcome(row), row.left) == (("ending", stops.ASKED), [below.identity.pid])
        yard.kernel.kill(below.identity)
        yard.world.advance()
        assert (outcome(row), row.left) == (("stopped", ""), [])


class TestAlreadyStopped:
    def test_a_stale_pid(self, yard: Yard) -> None:
        yard.write(4242)
        row = yard.ask()
        assert (outcome(row), row.detail, row.pid) == (("stopped", ""), "already stopped", None)
        assert not yard.file.exists()
        assert yard.imported == [str(yard.root)]
        assert told(row) == ["loop.stop_asked"]

    def test_a_number_that_was_used_again_elsewhere(self, yard: Yard) -> None:
        loop = yard.loop()
        yard.world.advance(60)
        later = yard.kernel.reuse(loop.identity)
        yard.directories[later.pid] = yard.root.parent
        row = yard.ask()
        assert (outcome(row), row.detail) == (("stopped", ""), "already stopped")
        assert (yard.kernel.verdict(later), yard.file.exists()) == ("alive", False)

    @pytest.mark.parametrize("is_settled", [False, True])
    def test_a_worker_killed_before_it_is_recorded(
        self, yard: Yard, monkeypatch: pytest.MonkeyPatch, is_settled: bool
    ) -> None:
        """What is left by it is tidied up, and never called `no-pid-file`."""
        yard.write(4242)
        row = yard.ask(acts=False)
        with monkeypatch.context() as patch:
            patch.setattr(*((strangers.pidfile, "remove_if") if is_settled else (stops, "settle")), die)
            with pytest.raises(Killed):
                yard.strangers.act(row.pk)
        assert yard.file.exists()
        yard.reborn()
        assert (outcome(row), row.detail, yard.file.exists()) == (("stopped", ""), "already stopped", is_settled)
        assert (outcome(yard.ask()), yard.file.exists()) == (
            ("stopped", "") if is_settled else ("refused", "no-pid-file"),
            False,
        )

    @pytest.mark.parametrize("status", ["live", "ended"])
    def test_a_loop_that_andon_started_meanwhile_has_stops_of_its_own(self, yard: Yard, status: str) -> None:
        row = yard.ask(acts=False)
        ours = yard.world.launch(Purpose.LOOP, "loop")
        assert ours.identity is not None
        if status == "ended":
            ManagedProcess.objects.update(status="exited", pid=None, start_ticks=None, boot_id="")
        yard.write(ours.pid)
        yard.strangers.act(row.pk)
        sent = yard.world.sent(ours.identity)
        assert (outcome(row)[0], sent) == ("stopped", [] if status == "live" else [TERM])
        assert yard.file.exists() is (status == "live")

    def test_a_loop_that_began_after_it_was_asked_for(self, yard: Yard) -> None:
        row = yard.ask(acts=False)
        yard.world.advance(10)
        loop = yard.loop()
        yard.strangers.sweep()
        assert (outcome(row), row.detail) == (("stopped", ""), "already stopped")
        assert (loop.code, yard.file.read_text()) == (None, f"{loop.identity.pid}\n")

    def test_the_pid_file_of_a_new_loop_stays(self, yard: Yard) -> None:
        yard.loop(DEAF)
        row = yard.ask(5)
        yard.world.advance(1)
        new = yard.loop()
        yard.world.advance(4)
        assert outcome(row) == ("killed", "")
        assert (new.code, yard.sent(new), yard.file.read_text()) == (None, [], f"{new.identity.pid}\n")

    def test_nor_does_anybody_elses_stale_one_go(self, yard: Yard) -> None:
        yard.loop(DEAF)
        row = yard.ask(5)
        yard.write(4242)
        yard.world.advance(5)
        assert (outcome(row), yard.file.read_text()) == (("killed", ""), "4242\n")

    def test_the_project_is_imported_at_once(self, yard: Yard) -> None:
        yard.loop(DEAF)
        yard.ask()
        assert yard.imported == []
        yard.world.advance(10)
        assert (yard.imported, yard.file.exists()) == ([str(yard.root)], False)

    def test_of_a_project_that_is_gone_meanwhile(self, yard: Yard) -> None:
        yard.loop(DEAF)
        row = yard.ask()
        Project.objects.all().delete()
        yard.world.advance(10)
        assert (outcome(row), yard.imported) == (("killed", ""), [])


class TestUnknown:
    def test_it_is_looked_for_and_found(self, yard: Yard) -> None:
        loop = yard.loop()
        yard.unreadable.add(loop.identity.pid)
        row = yard.ask()
        yard.world.advance(4)
        assert (outcome(row), yard.sent(loop)) == (("asked", ""), [])
        yard.unreadable.clear()
        yard.world.advance(1)
        assert (outcome(row), yard.sent(loop)) == (("stopped", ""), [TERM])

    @pytest.mark.parametrize("where", ["file", "kernel"])
    def test_it_is_given_up_after_five_seconds(self, yard: Yard, where: str) -> None:
        loop = yard.loop()
        (yard.unreadable if where == "file" else yard.kernel.unseen).add(loop.identity.pid)
        row = yard.ask()
        yard.world.advance(4.9)
        assert outcome(row) == ("asked", "")
        yard.world.advance(0.2)
        assert (outcome(row), yard.sent(loop)) == (("refused", "identity-unavailable"), [])

    def test_one_that_started_after_the_file_was_written_unless_the_clock_was_set(self, yard: Yard) -> None:
        loop = yard.loop()
        yard.world.advance(60)
        later = yard.kernel.reuse(loop.identity)
        row = yard.ask()
        yard.world.advance(4.9)
        assert outcome(row) == ("asked", "")
        yard.world.advance(0.2)
        assert outcome(row) == ("refused", "identity-unavailable")
        assert (yard.kernel.verdict(later), yard.file.exists()) == ("alive", True)

    @pytest.mark.parametrize("is_known", [False, True])
    def test_a_clock_that_is_set_on_ends_no_loop(
        self, yard: Yard, monkeypatch: pytest.MonkeyPatch, is_known: bool
    ) -> None:
        loop = yard.loop()
        row = yard.ask(acts=False)
        if is_known:
            who = loop.identity
            Project.objects.update(pid=who.pid, start_ticks=who.start_ticks, boot_id=who.boot_id, loop_started_at=EPOCH)
        monkeypatch.setattr("services.processes.started_at", lambda identity: yard.world.now.timestamp() + 3600)
        os.utime(yard.file, (EPOCH.timestamp() - 3600, EPOCH.timestamp() - 3600))
        yard.strangers.act(row.pk)
        yard.world.advance(10)
        assert yard.sent(loop) == ([TERM] if is_known else [])
        assert outcome(row) == (("stopped", "") if is_known else ("refused", "identity-unavailable"))

    def test_a_new_worker_takes_its_five_seconds(self, yard: Yard) -> None:
        loop = yard.loop()
        yard.unreadable.add(loop.identity.pid)
        row = yard.ask(acts=False)
        yard.reborn(away_s=60)
        yard.world.advance(4)
        assert outcome(row) == ("asked", "")

    def test_one_that_ends_before_it_is_pinned(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop()

        def gone(identity: Identity) -> bool:
            yard.kernel.kill(identity)
            return False

        monkeypatch.setattr(yard.kernel, "watch", gone)
        row = yard.ask()
        assert (outcome(row), row.detail, yard.sent(loop)) == (("stopped", ""), "already stopped", [])

    def test_one_that_is_there_and_not_there(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop()
        with monkeypatch.context() as patch:
            patch.setattr(yard.kernel, "watch", lambda identity: False)
            row = yard.ask()
        assert (outcome(row), yard.sent(loop)) == (("asked", ""), [])
        yard.world.advance(1)
        assert outcome(row) == ("stopped", "")

    @pytest.mark.parametrize("number", [TERM, KILL])
    def test_the_signal_finds_it_unseen(self, yard: Yard, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF,)))
        [below] = yard.below(loop)
        really = yard.kernel.signal

        def unseen(identity: Identity, sig: int) -> bool:
            if sig == number:
                raise Unknown("no descriptor is left")
            return really(identity, sig)

        with monkeypatch.context() as patch:
            patch.setattr(yard.kernel, "signal", unseen)
            row = yard.ask(5)
            yard.run(4 if number == TERM else 7)
        assert outcome(row)[0] == "ending"
        assert yard.sent(loop) == yard.sent(below) == ([] if number == TERM else [TERM])
        yard.run(3)
        assert (outcome(row), yard.sent(loop)[-1]) == (("killed", ""), KILL)

    def test_nobody_is_signalled_while_the_leader_is_unseen(self, yard: Yard) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(Program(own_session=True),)))
        [agent] = yard.below(loop)
        row = yard.ask(5)
        yard.kernel.unseen.add(loop.identity.pid)
        yard.run(9)
        assert (yard.sent(loop), yard.sent(agent)) == ([TERM], [])
        assert (outcome(row), row.left) == (("ending", stops.ASKED), [loop.identity.pid, agent.identity.pid])
        yard.kernel.unseen.clear()
        yard.run(2)
        assert (outcome(row), yard.sent(agent)) == (("killed", ""), [KILL])

    def test_a_member_that_is_unseen_is_waited_for(self, yard: Yard) -> None:
        loop = yard.loop(Program(children=(Program(own_session=True),)))
        [agent] = yard.below(loop)
        yard.kernel.unseen.add(agent.identity.pid)
        row = yard.ask(5)
        yard.run(9)
        assert (outcome(row), row.left, yard.sent(agent)) == (("ending", stops.ASKED), [agent.identity.pid], [])
        yard.kernel.unseen.clear()
        yard.run(2)
        assert (outcome(row), yard.sent(agent)) == (("stopped", ""), [KILL])


class TestWorkers:
    def test_killed_between_term_and_kill(self, yard: Yard) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(replace(DEAF, own_session=True),)))
        [agent] = yard.below(loop)
        row = yard.ask(10)
        yard.world.advance(3)
        yard.reborn(away_s=3)
        assert (outcome(row), yard.sent(loop), yard.sent(agent)) == (("ending", stops.ASKED), [TERM], [])
        yard.world.advance(4)
        assert (outcome(row), yard.sent(loop), yard.sent(agent)) == (("killed", ""), [TERM, KILL], [KILL])

    @pytest.mark.parametrize("grace_s", [10, 600])
    def test_killed_before_term(self, yard: Yard, monkeypatch: pytest.MonkeyPatch, grace_s: int) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF,)))
        [below] = yard.below(loop)
        row = yard.ask(grace_s, acts=False)
        with monkeypatch.context() as patch:
            patch.setattr(yard.kernel, "signal", die)
            with pytest.raises(Killed):
                yard.strangers.act(row.pk)
        assert (*outcome(row), row.term_at) == ("ending", "", yard.world.now)
        yard.reborn(away_s=3)
        yard.reborn(away_s=3)
        yard.run(1)
        assert yard.sent(loop) == [TERM]
        assert yard.sent(below) == ([TERM] if grace_s == 10 else [])

    def test_killed_before_term_and_the_loop_has_ended_since(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop(Program(children=(Program(),)))
        [below] = yard.below(loop)
        row = yard.ask(acts=False)
        with monkeypatch.context() as patch:
            patch.setattr(yard.kernel, "signal", die)
            with pytest.raises(Killed):
                yard.strangers.act(row.pk)
        yard.kernel.kill(loop.identity, 0)
        yard.reborn()
        yard.world.advance()
        assert (outcome(row), yard.sent(below)) == (("stopped", ""), [TERM])

    def test_killed_before_term_and_the_next_one_runs_below_the_loop(
        self, yard: Yard, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        loop = yard.loop()
        row = yard.ask(acts=False)
        with monkeypatch.context() as patch:
            patch.setattr(yard.kernel, "signal", die)
            with pytest.raises(Killed):
                yard.strangers.act(row.pk)
        monkeypatch.setattr(strangers.os, "getpid", lambda: loop.identity.pid)
        yard.reborn()
        assert (outcome(row), yard.sent(loop)) == (("refused", "permission-denied"), [])

    def test_away_when_the_grace_was_over(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(10)
        yard.reborn(away_s=60)
        yard.world.advance()
        assert (outcome(row), yard.sent(loop)) == (("killed", ""), [TERM, KILL])

    def test_away_when_the_loop_ended(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(10)
        yard.world.die()
        yard.kernel.kill(loop.identity, 0)
        yard.world.machine.clock += 60
        yard.world.rise()
        yard.begin()
        yard.strangers.sweep()
        assert outcome(row) == ("stopped", "")

    def test_killed_between_kill_and_its_outcome(self, yard: Yard) -> None:
        yard.loop(DEAF)
        row = yard.ask(10)
        yard.world.is_held = True
        yard.kernel.advance(10)
        yard.strangers.act(row.pk)
        assert outcome(row) == ("ending", stops.KILLING)
        yard.world.is_held = False
        yard.reborn()
        assert outcome(row) == ("killed", "")

    def test_the_machine_is_restarted(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(10)
        yard.world.reboot()
        later = yard.kernel.reuse(replace(loop.identity, boot_id=yard.world.machine.boot_id, start_ticks=0))
        yard.begin()
        yard.strangers.sweep()
        assert (outcome(row), yard.kernel.verdict(later)) == (("stopped", ""), "alive")

    def test_a_number_that_was_used_again_between_term_and_kill(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(5)
        yard.world.is_held = True
        later = yard.kernel.reuse(loop.identity)
        yard.kernel.advance(10)
        yard.world.is_held = False
        yard.world.drain()
        assert (outcome(row), yard.kernel.verdict(later)) == (("stopped", ""), "alive")

    def test_a_death_that_nobody_told_is_swept_up(self, yard: Yard) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(600)
        yard.kernel.told.add(loop.identity)
        yard.kernel.kill(loop.identity, 0)
        yard.world.advance()
        assert outcome(row) == ("ending", stops.LEADER_ASKED)
        assert yard.strangers.sweep() == 1
        assert outcome(row) == ("stopped", "")
        assert yard.strangers.sweep() == 0

    def test_one_that_dies_as_it_is_watched(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF,)))
        [below] = yard.below(loop)
        really = yard.kernel.watch

        def watch(identity: Identity) -> bool:
            if identity == below.identity and below.code is None:
                yard.kernel.kill(identity)
            return really(identity)

        monkeypatch.setattr(yard.kernel, "watch", watch)
        row = yard.ask(600)
        yard.kernel.kill(loop.identity, 0)
        yard.world.advance(1)
        assert outcome(row) == ("stopped", "")

    def test_no_descriptor_is_left_to_watch_with(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF,)))
        row = yard.ask(5)

        def full(identity: Identity) -> bool:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(yard.kernel, "watch", full)
        yard.run(7)
        assert (outcome(row), yard.sent(loop)) == (("killed", ""), [TERM, KILL])

    def test_others_stops_are_others(self, yard: Yard) -> None:
        loop = yard.loop()
        away = Project.objects.create(slug="away", name="away", node="node-b", path="/away", found_at=yard.world.now)
        ours = stops.ask(yard.project, grace_s=10, process=7, by=ANNA, now=yard.world.now)
        theirs = stops.ask(away, grace_s=10, by=ANNA, now=yard.world.now)
        assert yard.strangers.sweep() == 0
        for row in (ours, theirs):
            yard.strangers.act(row.pk)
            assert outcome(row) == ("asked", "")
        assert yard.sent(loop) == []

    def test_who_listened_before_still_hears(self, yard: Yard) -> None:
        service = yard.world.make()
        yard.loop()
        row = yard.ask()
        assert service.identity is not None
        yard.kernel.kill(service.identity, 0)
        yard.world.advance()
        assert (outcome(row), yard.world.status(service)) == (("stopped", ""), "exited")

    def test_a_child_of_ours_is_left_to_its_starter(self, yard: Yard) -> None:
        log = os.open(os.devnull, os.O_WRONLY)
        identity = yard.kernel.spawn(["agent"], cwd="/", env={}, log_fd=log)
        os.close(log)
        yard.write(identity.pid)
        row = yard.ask()
        yard.world.advance()
        assert outcome(row) == ("stopped", "")
        assert yard.kernel.exit_code(identity) == -TERM

    def test_the_dead_are_not_kept_until_the_end(self, yard: Yard) -> None:
        loop = yard.loop(Program(ignores={TERM}, children=(DEAF,)))
        [below] = yard.below(loop)
        yard.ask(600)
        assert set(yard.kernel.pinned) == {loop.identity, below.identity}
        yard.kernel.kill(below.identity)
        yard.world.advance()
        assert set(yard.kernel.pinned) == set(yard.strangers._owners) == {loop.identity}

    def test_nothing_is_kept_of_what_is_over(self, yard: Yard) -> None:
        yard.loop(Program(children=(Program(), Program(own_session=True))))
        yard.ask()
        yard.world.advance(1)
        assert (yard.kernel.pinned, yard.strangers._owners, yard.strangers._watched) == ({}, {}, {})
        assert dict(yard.strangers._memories) == {}

    def test_a_row_that_moves_between_the_look_and_the_verb(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = yard.loop(DEAF)
        row = yard.ask(600, acts=False)
        really = yard.kernel.watch

        def shorten(identity: Identity) -> bool:
            stops.ask(yard.project, grace_s=5, by=BEN, now=yard.world.now)
            return really(identity)

        monkeypatch.setattr(yard.kernel, "watch", shorten)
        yard.strangers.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.kill_at) == (StopStatus.ENDING, yard.world.now + timedelta(seconds=5))
        assert yard.sent(loop) == [TERM]

    def test_a_job_of_the_worker_wakes_it(self, yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("projects.jobs.close_old_connections", lambda: None)
        loop = yard.loop()
        row = yard.ask(acts=False)
        strangers.act.call_local(row.pk)
        assert (strangers.current(), yard.sent(loop)) == (None, [])
        strangers.install(yard.strangers)
        try:
            assert strangers.current() is yard.strangers
            strangers.act.call_local(row.pk)
        finally:
            strangers.install(None)
        assert (strangers.current(), yard.sent(loop)) == (None, [TERM])


@pytest.fixture
def kernel() -> Iterator[Linux]:
    made = Linux("test-node")
    made.start()
    yield made
    made.stop()


@pytest.mark.parametrize("named", [os.getpid, os.getppid])
def test_a_pid_file_that_names_andon_itself(
    demo_project: Project, kernel: Linux, monkeypatch: pytest.MonkeyPatch, named: Callable[[], int]
) -> None:
    """On the real machine: were it signalled, the tests would end here."""
    root = Path(demo_project.path)
    monkeypatch.setattr("services.processes.working_directory", lambda pid: root)
    (root / ".ralph.pid").write_text(str(named()))
    row = stops.ask(demo_project, grace_s=0, by=ANNA, now=EPOCH)
    monkeypatch.setattr("django.utils.timezone.now", lambda: EPOCH)
    monkeypatch.setattr("services.processes.started_at", lambda identity: 0.0)
    Strangers(kernel, submit=lambda *given: None, born_at=EPOCH).act(row.pk)
    assert outcome(row) == ("refused", "permission-denied")
