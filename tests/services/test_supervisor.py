"""The one who acts, on a machine that is not there."""

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from projects.errors import Conflict
from projects.models import Event
from services import lifecycle, starting, supervisor, sweeps
from services.censuses import Censuses
from services.models import ManagedProcess
from services.processes import MARKER, Census, Identity, Mark
from services.states import LIVE, Cause, Purpose, Restart, Status
from tests.services.fake import INIT, FakeKernel, Program
from tests.services.world import ANNA, DEAF, KILL, QUOTAS, TERM, World

KEEPS_NONE = Program(own_session=True, keeps=())
ESCAPEE = Program(own_session=True)


def identity_of(row: ManagedProcess) -> Identity:
    assert row.identity is not None
    return row.identity


def stop(world: World, row: ManagedProcess, **more: Any) -> ManagedProcess:
    lifecycle.stop(row, **{"by": ANNA, "now": world.now, **more})
    world.tell([row])
    return world.row(row)


def kill(world: World, row: ManagedProcess) -> ManagedProcess:
    lifecycle.kill(row, by=ANNA, now=world.now)
    world.tell([row])
    return world.row(row)


def restart(world: World, row: ManagedProcess) -> ManagedProcess:
    lifecycle.restart(row, by=ANNA, now=world.now)
    world.tell([row])
    return world.row(row)


def assert_nothing_left(world: World, row: ManagedProcess) -> None:
    assert world.row(row).status not in LIVE
    assert world.kernel.alive() == []
    assert world.kernel.pinned == {}
    assert [each for each in world.machine.processes.values() if not each.is_stranger] == []


class TestStart:
    def test_a_process_with_our_marker_whose_output_is_its_log(self, world: World) -> None:
        [row] = world.declare(world.spec("web", args=["web"], env={"APP": "1"}))
        process = world.kernel.find(identity_of(row))
        assert process.argv == (world.bash, "web")
        assert process.env[MARKER] == process.marker == f"test-node.{row.pk}.1"
        assert process.env["APP"] == "1"
        assert process.log == starting.log_file(row)
        assert (world.logs / row.log_name).read_text() == "--- andon: generation 1 starts 2026-11-20T12:00:00Z ---\n"
        assert (row.status, row.started_at) == (Status.STARTING, world.now)
        assert world.kinds(row) == ["declared", "starting"]

    def test_it_is_healthy_at_its_first_success(self, world: World) -> None:
        [row] = world.declare(world.spec())
        world.advance(0.02)
        assert world.status(row) == Status.HEALTHY
        assert world.kinds(row) == ["declared", "starting", "healthy"]

    @pytest.mark.parametrize(
        ("error", "said"),
        [
            (FileNotFoundError(2, "No such file or directory"), "bash could not be started: No such file or directory"),
            (PermissionError(13, "Permission denied"), "bash could not be started: Permission denied"),
            (OSError("odd"), "bash could not be started: odd"),
        ],
    )
    def test_one_that_cannot_be_started_has_failed(self, world: World, error: OSError, said: str) -> None:
        world.script("web", Program(error=error))
        [row] = world.declare(world.spec())
        assert (row.status, row.last_error, row.generation) == (Status.FAILED, said, 1)
        assert world.kinds(row) == ["declared", "failed"]
        assert said in (world.logs / row.log_name).read_text()
        assert_nothing_left(world, row)

    @pytest.mark.parametrize(("pid", "who"), [(None, "a process of another user"), (77, "somebody 77")])
    def test_a_port_that_is_held(self, world: World, pid: int | None, who: str) -> None:
        world.kernel.occupy(3001, pid)
        [row] = world.declare(world.spec(ports=[3000, 3001]))
        assert (row.status, row.last_error) == (Status.FAILED, f"port-conflict (3001: {who} on 127.0.0.1)")
        assert world.machine.processes == {}

    def test_one_that_ends_at_once(self, world: World) -> None:
        world.script("web", Program(exits=7))
        [row] = world.declare(world.spec())
        world.advance()
        row = world.row(row)
        assert (row.status, row.exit_code, row.exit_cause) == (Status.FAILED, 7, Cause.CRASH)
        assert world.kinds(row) == ["declared", "starting", "crashed"]
        assert_nothing_left(world, row)

    def test_a_row_that_waited_half_a_minute_is_not_started_any_more(self, world: World) -> None:
        [row] = world.declare(world.spec(), acts=False)
        world.advance(31)
        world.tell([row])
        assert world.row(row).last_error == "not started within 30 s"
        assert world.machine.processes == {}

    def test_a_row_of_another_node_is_not_ours(self, world: World) -> None:
        [row] = world.declare(world.spec(), acts=False)
        ManagedProcess.objects.update(node="n2")
        world.tell([row])
        assert world.status(row) == Status.STARTING
        assert world.machine.processes == {}

    def test_a_row_that_is_not_there_is_nothing(self, world: World) -> None:
        world.supervisor.act(12345)

    def test_worker_and_loop_run_without_a_probe(self, world: World) -> None:
        rows = [world.launch(), world.launch(Purpose.LOOP, "loop")]
        world.advance(60, ticks=True)
        assert [world.status(row) for row in rows] == [Status.RUNNING] * 2
        assert world.prober.asked == []

    def test_a_record_that_fails_leaves_one_process(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        world.advance(1)
        [row] = world.declare(world.spec(), acts=False)
        real, calls = lifecycle.spawned, []

        def spawned(*args: Any, **more: Any) -> None:
            calls.append(1)
            if len(calls) == 1:
                raise OSError("database is locked")
            real(*args, **more)

        monkeypatch.setattr(lifecycle, "spawned", spawned)
        with pytest.raises(OSError):
            world.supervisor.act(row.pk)
        world.tell([row])
        assert len(world.living(row)) == 1
        assert world.row(row).identity in world.living(row)


class TestBatch:
    def test_in_file_order(self, world: World) -> None:
        rows = world.declare(*(world.spec(name) for name in ("c", "a", "b")), acts=False)
        world.tell(reversed(rows))
        started = [process.argv[1] for process in world.machine.processes.values()]
        assert started == ["c", "a", "b"]

    @pytest.mark.parametrize("order", [1, -1])
    def test_the_first_that_fails_takes_the_others_with_it(self, world: World, order: int) -> None:
        world.script("b", Program(error=FileNotFoundError(2, "No such file or directory")))
        world.script("a", Program(children=(ESCAPEE,)))
        rows = world.declare(*(world.spec(name) for name in "abcd"), acts=False)
        world.tell(rows[::order])
        world.advance()
        a, b, c, d = map(world.row, rows)
        rolled = "rolled back: b could not be started"
        assert [row.status for row in (a, b, c, d)] == [Status.FAILED] * 4
        assert [row.last_error for row in (a, c, d)] == [rolled] * 3
        assert world.kinds(a) == ["declared", "starting", "stopping", "stopped"]
        assert world.kinds(c) == ["declared", "failed"]
        assert_nothing_left(world, a)

    def test_nobody_sees_a_failure_without_what_follows_from_it(self, world: World, monkeypatch) -> None:
        world.script("a", Program(error=FileNotFoundError(2, "gone")))
        a, _ = world.declare(world.spec("a"), world.spec("b"), acts=False)
        before = world.everything()
        monkeypatch.setattr(lifecycle, "roll_back", lambda *_args, **_more: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            world.supervisor.act(a.pk)
        assert world.everything() == before

    def test_first_health_is_each_ones_own(self, world: World) -> None:
        a, b = world.declare(world.spec("a"), world.spec("b"), acts=False)
        world.prober.says[a.pk] = False
        world.tell([a, b])
        world.advance(12)
        assert (world.status(a), world.status(b)) == (Status.FAILED, Status.HEALTHY)

    def test_one_that_cannot_be_started_again_later_leaves_the_others_alone(self, world: World) -> None:
        a, b = world.declare(world.spec("a"), world.spec("b", restart="always"))
        world.advance(1)
        world.script("b", Program(error=FileNotFoundError(2, "gone")))
        world.crash(b)
        world.advance(5)
        assert (world.status(a), world.status(b)) == (Status.HEALTHY, Status.BACKOFF)
        # By the same policy as if it had crashed.
        world.advance(60)
        assert (world.status(a), world.status(b)) == (Status.HEALTHY, Status.CRASH_LOOP)
        assert "gone" in world.row(b).last_error

    def test_one_whose_turn_came_while_all_were_rolled_back(self, world: World, monkeypatch) -> None:
        """The second looks at its row before, and starts after, the first has failed for both."""
        a, b = world.declare(world.spec("a"), world.spec("b"), acts=False)

        def fail_both(row: ManagedProcess) -> None:
            monkeypatch.undo()
            lifecycle.fail(world.row(a), "no", by=ANNA, now=world.now)
            lifecycle.roll_back(world.row(a), by=ANNA, now=world.now)

        world.kernel.spawn = between(world.kernel.spawn, lambda: fail_both(b))  # type: ignore[method-assign]
        monkeypatch.setattr(starting, "earlier", lambda row: None)
        world.tell([b])
        world.advance()
        assert [world.status(row) for row in (a, b)] == [Status.FAILED] * 2
        assert_nothing_left(world, b)

    def test_one_that_looked_before_and_asks_for_its_turn_after(self, world: World, monkeypatch) -> None:
        a, b = world.declare(world.spec("a"), world.spec("b"), acts=False)

        def fail_both() -> None:
            lifecycle.fail(world.row(a), "no", by=ANNA, now=world.now)
            lifecycle.roll_back(world.row(a), by=ANNA, now=world.now)

        def earlier(row: ManagedProcess) -> None:
            if world.status(row) == Status.STARTING:
                fail_both()

        monkeypatch.setattr(starting, "earlier", earlier)
        world.tell([b])
        assert world.status(b) == Status.FAILED
        assert world.machine.processes == {}


def between(call: Callable[..., Any], then: Callable[[], Any]) -> Callable[..., Any]:
    """Return a call after which, the first time, something else happens."""
    done: list[int] = []

    def wrapped(*args: Any, **more: Any) -> Any:
        found = call(*args, **more)
        if not done:
            done.append(1)
            then()
        return found

    return wrapped


class TestFirstHealth:
    def test_every_interval_until_the_budget_is_over(self, world: World) -> None:
        [row] = world.declare(world.spec(healthcheck={"timeout_s": 5, "interval_s": 2}), acts=False)
        world.prober.says[row.pk] = False
        (world.logs / row.log_name).parent.mkdir(exist_ok=True)
        world.tell([row])
        with (world.logs / row.log_name).open("a") as log:
            log.writelines(f"line {number}\n" for number in range(40))
        world.advance(4.9)
        assert world.status(row) == Status.STARTING
        assert [at - 1000 for _, at in world.prober.asked] == pytest.approx([0, 2.01, 4.02])
        world.advance(0.2)
        row = world.row(row)
        assert (row.status, row.exit_cause, row.exit_code) == (Status.FAILED, Cause.PROBE, -TERM)
        said = row.last_error.splitlines()
        assert said[0] == "not healthy within 5 s: refused"
        assert said[1:] == [f"line {number}" for number in range(20, 40)]
        assert world.kinds(row) == ["declared", "starting", "stopping", "stopped"]
        assert_nothing_left(world, row)

    def test_one_that_never_answers(self, world: World) -> None:
        row = world.make(Status.STARTING)
        world.advance(11)
        assert world.row(row).last_error.splitlines()[0] == "not healthy within 10 s: no answer"
        assert world.prober.flights == {}

    def test_without_a_log_there_is_no_tail(self, world: World) -> None:
        row = world.make(Status.STARTING)
        (world.logs / row.log_name).unlink()
        world.advance(11)
        assert world.row(row).last_error == "not healthy within 10 s: no answer"

    def test_an_exit_ends_the_wait_at_once(self, world: World) -> None:
        row = world.make(Status.STARTING)
        with (world.logs / row.log_name).open("a") as log:
            log.write("boom\n")
        world.crash(row, 2)
        assert world.row(row).last_error == "exit code 2\nboom"
        assert world.prober.flights == {}

    def test_the_policy_holds_before_it_was_ever_healthy(self, world: World) -> None:
        row = world.make(Status.STARTING, restart="on-failure")
        world.crash(row)
        assert world.status(row) == Status.BACKOFF
        world.advance(1)
        assert world.row(row).generation == 2

    def test_a_stop_ends_the_wait(self, world: World) -> None:
        row = world.make(Status.STARTING)
        stop(world, row)
        world.advance()
        assert (world.status(row), world.prober.flights) == (Status.EXITED, {})

    def test_one_whose_worker_was_away_is_probed_before_it_is_judged(self, world: World) -> None:
        row = world.make(Status.STARTING)
        world.prober.says.clear()
        world.reborn(away_s=300)
        world.advance(1)
        assert world.status(row) == Status.HEALTHY

    def test_and_judged_then(self, world: World) -> None:
        row = world.make(Status.STARTING)
        world.die()
        world.machine.clock += 300
        world.rise(adopts=False)
        world.prober.says[row.pk] = False
        sweeps.adopt(world.supervisor, now=world.now)
        world.advance(11)
        assert (world.status(row), world.row(row).exit_cause) == (Status.FAILED, Cause.PROBE)


class TestCrash:
    @pytest.mark.parametrize(
        ("restart_", "code", "status"),
        [
            (Restart.NEVER, 0, Status.EXITED),
            (Restart.NEVER, 1, Status.FAILED),
            (Restart.ON_FAILURE, 0, Status.EXITED),
            (Restart.ON_FAILURE, -9, Status.BACKOFF),
            (Restart.ALWAYS, 0, Status.BACKOFF),
            (Restart.ALWAYS, 1, Status.BACKOFF),
        ],
    )
    def test_by_its_policy(self, world: World, restart_: Restart, code: int, status: Status) -> None:
        row = world.make(Status.HEALTHY, restart=restart_)
        old = row.identity
        world.crash(row, code)
        row = world.row(row)
        assert (row.status, row.exit_code, row.pid) == (status, code, None)
        assert world.machine.processes == {}
        if status == Status.BACKOFF:
            world.advance(0.24)
            assert world.status(row) == Status.BACKOFF
            world.advance(0.1)
            row = world.row(row)
            assert (row.status, row.generation, row.restarts) == (Status.HEALTHY, 2, 1)
            assert row.identity != old

    def test_six_in_ten_minutes_are_the_last(self, world: World) -> None:
        row = world.make(Status.CRASH_LOOP)
        assert (row.generation, row.restarts) == (6, 5)
        world.advance(3600, ticks=False)
        world.tell([row])
        assert world.status(row) == Status.CRASH_LOOP
        assert world.kinds(row).count("crash_loop") == 1
        assert world.machine.processes == {}

    def test_until_a_person_starts_it(self, world: World) -> None:
        row = world.make(Status.CRASH_LOOP)
        lifecycle.start(row, quotas=QUOTAS, by=ANNA, now=world.now)
        world.tell([row])
        world.advance(1)
        world.crash(row)
        assert world.status(row) == Status.BACKOFF

    @pytest.mark.parametrize("restart_", [Restart.NEVER, Restart.ALWAYS])
    def test_what_it_leaves_is_stopped_first(self, world: World, restart_: Restart) -> None:
        deaf_child = Program(ignores={TERM}, own_session=True)
        row = world.make(Status.HEALTHY, program=Program(children=(Program(), deaf_child)), restart=restart_)
        world.crash(row)
        row = world.row(row)
        assert row.status == (Status.STOPPING if restart_ == Restart.NEVER else Status.RESTARTING)
        [left] = world.living(row)
        world.advance(9.9)
        assert world.living(row) == [left]
        world.advance(0.2)
        row = world.row(row)
        assert left not in world.living(row)
        assert world.sent(left) == [TERM, KILL]
        if restart_ == Restart.NEVER:
            assert (row.status, row.exit_code, len(row.exits)) == (Status.FAILED, 3, 1)
            assert_nothing_left(world, row)
        else:
            world.advance(1)
            row = world.row(row)
            assert (row.status, row.generation, len(row.exits)) == (Status.HEALTHY, 2, 1)
            assert row.identity in world.living(row)

    def test_a_group_outlives_its_leader(self, world: World) -> None:
        """The leader stays unreaped as long as its group is not empty, so that the group's id cannot be reused."""
        deaf_child = Program(ignores={TERM})
        row = world.make(Status.HEALTHY, program=Program(children=(deaf_child,)))
        leader = identity_of(row)
        world.crash(row)
        assert world.kernel.is_own(leader)
        world.advance(11)
        assert_nothing_left(world, row)

    @pytest.mark.parametrize("purpose", [Purpose.WORKER, Purpose.LOOP])
    @pytest.mark.parametrize(("code", "status"), [(0, Status.EXITED), (1, Status.FAILED)])
    def test_worker_and_loop_are_never_started_again(self, world: World, purpose, code, status) -> None:
        row = world.launch(purpose)
        world.crash(row, code)
        world.advance(100)
        assert (world.status(row), world.row(row).exit_code) == (status, code)
        assert_nothing_left(world, row)


class TestStop:
    def test_the_whole_group_is_asked_once(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(Program(), ESCAPEE, KEEPS_NONE)))
        everybody = world.kernel.alive()
        assert len(everybody) == 4
        stop(world, row)
        world.advance()
        row = world.row(row)
        assert (row.status, row.exit_code, row.exit_cause) == (Status.EXITED, -TERM, Cause.USER)
        assert [world.sent(each) for each in everybody] == [[TERM]] * 4
        assert world.kinds(row)[-2:] == ["stopping", "stopped"]
        assert_nothing_left(world, row)

    def test_who_ignores_it_is_killed_when_the_grace_is_over(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=DEAF, stop_grace_s=3)
        leader = identity_of(row)
        row = stop(world, row)
        assert (row.term_at, row.kill_at) == (world.now, world.now + timedelta(seconds=3))
        assert row.members == [[leader.pid, leader.start_ticks]]
        world.advance(2.9)
        assert world.sent(leader) == [TERM]
        world.advance(0.2)
        assert world.sent(leader) == [TERM, KILL]
        assert (world.status(row), world.row(row).exit_code) == (Status.EXITED, -KILL)

    def test_without_grace(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=DEAF, stop_grace_s=0)
        stop(world, row)
        world.advance(0.01)
        assert world.status(row) == Status.EXITED

    def test_kill_at_once(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=DEAF)
        leader = identity_of(row)
        kill(world, row)
        world.advance()
        assert (world.sent(leader), world.status(row)) == ([KILL], Status.EXITED)

    def test_kill_while_it_is_being_stopped(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        kill(world, row)
        world.advance()
        assert world.status(row) == Status.EXITED

    @pytest.mark.parametrize("at_once", [False, True])
    def test_who_escaped_all_signs_is_remembered(self, world: World, at_once: bool) -> None:
        """A descendant without marker, session and log is nobody's once its parent is dead."""
        row = world.make(
            Status.HEALTHY, program=Program(children=(replace(KEEPS_NONE, ignores={TERM}),)), stop_grace_s=2
        )
        child = world.kernel.alive()[1]
        if at_once:
            # As if it were stuck in the kernel: SIGKILL comes, and nothing happens.
            process = world.kernel.find(child)
            process.uid_is_ours = False
            kill(world, row)
            world.advance(5)
            row = world.row(row)
            assert (row.status, row.left) == (Status.STOPPING, [child.pid])
            process.uid_is_ours = True
        else:
            stop(world, row)
        world.advance(3)
        assert world.status(row) == Status.EXITED
        assert_nothing_left(world, row)

    def test_what_survives_is_told_and_tried_again(self, world: World) -> None:
        row = world.make(Status.HEALTHY, stop_grace_s=1, program=Program(children=(Program(ignores={TERM}),)))
        stuck = world.kernel.alive()[1]
        world.kernel.find(stuck).program = Program(ignores={TERM, KILL})
        world.machine.deliver = immortal(world.machine.deliver, stuck)  # type: ignore[method-assign]
        stop(world, row)
        world.advance(4)
        row = world.row(row)
        assert (row.status, row.left, row.last_error) == (Status.STOPPING, [stuck.pid], "still there after SIGKILL")
        assert world.payloads("service.stopping")[-1]["left"] == [stuck.pid]
        assert len(world.payloads("service.stopping")) == 2
        del world.machine.deliver
        world.advance(2)
        assert world.status(row) == Status.EXITED
        assert_nothing_left(world, row)

    def test_a_hidden_process_is_never_taken_for_nothing(self, world: World) -> None:
        row = world.make(Status.HEALTHY, stop_grace_s=1)
        leader = identity_of(row)
        hidden = world.kernel.adopt(is_hidden=True)
        stop(world, row)
        world.advance(60)
        row = world.row(row)
        assert (row.status, row.left) == (Status.STOPPING, [hidden.pid])
        assert row.last_error.startswith("identity-unavailable")
        assert world.sent(leader)[0] == TERM
        assert world.sent(hidden) == []
        world.kernel.kill(hidden)
        world.advance(2)
        assert world.status(row) == Status.EXITED

    @pytest.mark.parametrize("fields", [{"uid_is_ours": False}, {}])
    def test_hidden_ones_that_cannot_be_ours_do_not_count(self, world: World, fields: dict[str, Any]) -> None:
        if not fields:
            world.kernel.adopt(is_hidden=True)
            world.advance(1)
        row = world.make(Status.HEALTHY)
        if fields:
            world.kernel.adopt(is_hidden=True, **fields)
        stop(world, row)
        world.advance()
        assert world.status(row) == Status.EXITED

    def test_what_was_never_started_has_nothing_hidden(self, world: World) -> None:
        """Any desktop runs something unreadable of ours, such as an ssh-agent."""
        world.kernel.adopt(is_hidden=True)
        world.advance(1)
        [row] = world.declare(world.spec(), acts=False)
        stop(world, row)
        back_off = world.make(Status.BACKOFF)
        stop(world, back_off)
        assert [world.status(each) for each in (row, back_off)] == [Status.EXITED] * 2

    def test_a_crash_with_something_hidden_is_not_over(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        hidden = world.kernel.adopt(is_hidden=True)
        world.crash(row)
        assert world.status(row) == Status.STOPPING
        world.kernel.kill(hidden)
        world.advance(11)
        assert (world.status(row), world.row(row).exit_code) == (Status.FAILED, 3)

    def test_what_cannot_be_seen_is_not_acted_on(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.kernel.unseen.add(row.pid or 0)
        world.tell([row])
        world.advance(30, ticks=True)
        assert world.status(row) == Status.HEALTHY
        assert world.machine.sent == []

    def test_a_listener_whom_nobody_can_name_is_waited_for(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ports=[3000])
        world.kernel.occupy(3000)
        stop(world, row)
        world.advance(4)
        assert world.status(row) == Status.STOPPING
        del world.machine.listening[3000]
        world.advance(1)
        assert world.status(row) == Status.EXITED

    def test_but_not_for_ever_and_not_for_a_known_stranger(self, world: World) -> None:
        rows = [world.make(Status.HEALTHY, ports=[3000], stop_grace_s=2), world.make(Status.HEALTHY, ports=[3001])]
        world.kernel.occupy(3000)
        world.kernel.occupy(3001, 77)
        for row in rows:
            stop(world, row)
        world.advance()
        assert [world.status(row) for row in rows] == [Status.STOPPING, Status.EXITED]
        world.advance(8)
        assert world.status(rows[0]) == Status.EXITED

    def test_of_a_loop_only_its_group_is_asked(self, world: World) -> None:
        world.kernel.script("agent", Program(children=(Program(), Program(own_session=True, ignores={TERM}))))
        row = world.launch(Purpose.LOOP, stop_grace_s=5)
        leader, inner, agent = world.kernel.alive()
        stop(world, row)
        world.advance(4)
        assert [world.sent(each) for each in (leader, inner, agent)] == [[TERM], [TERM], []]
        assert world.status(row) == Status.STOPPING
        world.advance(2)
        assert world.sent(agent) == [KILL]
        assert_nothing_left(world, row)

    def test_one_that_forks_while_we_look(self, world: World) -> None:
        """Two empty answers in a row say that nothing is left; one does not."""
        row = world.make(Status.HEALTHY)
        leader, marker = world.kernel.find(identity_of(row)), f"test-node.{row.pk}.1"
        real, passes = world.kernel.census, []

        def census(marks: Any) -> Any:
            found = real(marks)
            passes.append(found)
            if leader.code is not None and not [each for each in passes[:-1] if not each.members]:
                world.kernel.adopt(marker=marker)
            return found

        world.kernel.census = census  # type: ignore[method-assign]
        stop(world, row)
        world.advance()
        world.advance(11)
        assert_nothing_left(world, row)

    def test_a_signal_that_is_refused_stops_nobody(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(ESCAPEE, ESCAPEE)), stop_grace_s=1)
        _, setuid, other = world.kernel.alive()
        world.kernel.find(setuid).uid_is_ours = False
        stop(world, row)
        world.advance(4)
        assert world.sent(other) == [TERM]
        assert (world.status(row), world.row(row).left) == (Status.STOPPING, [setuid.pid])

    def test_a_member_that_cannot_be_pinned_is_waited_for(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(ESCAPEE,)), stop_grace_s=1)
        child = world.kernel.alive()[1]
        world.kernel.unseen.add(child.pid)
        stop(world, row)
        world.advance(3)
        assert world.status(row) == Status.STOPPING
        world.kernel.unseen.clear()
        world.advance(3)
        assert_nothing_left(world, row)


def immortal(deliver: Callable[..., None], who: Identity) -> Callable[..., None]:
    """Let signals reach everybody but one."""

    def wrapped(process: Any, number: int) -> None:
        if process.identity != who:
            deliver(process, number)

    return wrapped


class TestRestart:
    def test_verified_stop_then_the_next_generation(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(ignores={TERM}, children=(ESCAPEE,)), stop_grace_s=2)
        old = world.kernel.alive()
        restart(world, row)
        world.advance(1.9)
        assert world.row(row).generation == 1
        world.advance(1)
        row = world.row(row)
        assert (row.status, row.generation, row.restarts) == (Status.HEALTHY, 2, 1)
        assert not set(old) & set(world.kernel.alive())
        assert len(world.living(row)) == 2
        assert world.kinds(row)[-5:] == ["healthy", "restarting", "stopped", "starting", "healthy"]

    @pytest.mark.parametrize("act", [stop, kill])
    def test_a_stop_while_it_restarts(self, world: World, act: Callable[..., Any]) -> None:
        row = world.make(Status.RESTARTING)
        act(world, row)
        world.advance(11)
        row = world.row(row)
        assert (row.status, row.generation) == (Status.EXITED, 1)
        assert_nothing_left(world, row)

    @pytest.mark.parametrize("act", [stop, kill])
    def test_a_stop_in_back_off(self, world: World, act: Callable[..., Any]) -> None:
        row = world.make(Status.BACKOFF)
        act(world, row)
        assert world.status(row) == Status.EXITED
        world.advance(5)
        assert world.row(row).generation == 1

    def test_a_restart_in_back_off_or_before_the_first_health(self, world: World) -> None:
        rows = [world.make(Status.BACKOFF), world.make(Status.STARTING)]
        for row in rows:
            restart(world, row)
        world.prober.says.clear()
        world.advance(1)
        found = [world.row(row) for row in rows]
        assert [(row.status, row.generation) for row in found] == [(Status.HEALTHY, 2)] * 2

    def test_one_that_is_unhealthy_and_restarts_itself(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="on-failure", healthcheck={"failure_threshold": 2, "period_s": 5})
        world.prober.says[row.pk] = False
        world.advance(14, ticks=True)
        world.prober.says.clear()
        world.advance(3, ticks=True)
        row = world.row(row)
        assert (row.status, row.generation, row.exits[0]["cause"]) == (Status.HEALTHY, 2, "probe")
        told = ["unhealthy", "restarting", "stopped", "backoff", "restarting", "starting", "healthy"]
        assert world.kinds(row)[-7:] == told

    def test_a_port_that_a_stranger_took_meanwhile(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ports=[3000])
        world.kernel.occupy(3000, 77)
        restart(world, row)
        world.advance(1)
        row = world.row(row)
        assert (row.status, row.generation) == (Status.FAILED, 2)
        assert row.last_error.startswith("port-conflict (3000:")
        assert_nothing_left(world, row)


class TestExpiry:
    def test_within_a_second_of_its_deadline(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=1)
        assert row.expires_at is not None
        world.advance((row.expires_at - world.now).total_seconds() - 0.1)
        assert world.status(row) == Status.HEALTHY
        world.advance(0.2)
        row = world.row(row)
        assert (row.status, row.exit_cause) == (Status.EXPIRED, Cause.TTL)
        assert world.kinds(row)[-2:] == ["stopping", "expired"]
        assert_nothing_left(world, row)

    def test_one_that_was_extended_goes_on(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=1)
        lifecycle.extend(row, 1, by=ANNA, now=world.now)
        world.advance(90)
        assert world.status(row) == Status.HEALTHY
        world.advance(31)
        assert world.status(row) == Status.EXPIRED

    def test_one_that_restarts_keeps_it(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=1)
        restart(world, row)
        world.advance(61)
        row = world.row(row)
        assert (row.status, row.generation) == (Status.EXPIRED, 2)


class TestAdoption:
    def test_a_living_one_is_the_same_process_as_before(self, world: World) -> None:
        rows = [world.make(Status.HEALTHY), world.make(Status.UNHEALTHY), world.launch(), world.make(Status.STARTING)]
        before = [world.row(row).identity for row in rows]
        events = world.head
        assert world.reborn() == {"adopted": 4, "lost": 0, "strays": 0}
        after = [world.row(row) for row in rows]
        assert [row.identity for row in after] == before
        assert [row.generation for row in after] == [1] * 4
        assert world.kinds(since=events) == ["adopted", "adopted", "adopted"]
        assert len(world.kernel.alive()) == 4

    @pytest.mark.parametrize(("delay", "code"), [(0.0, 7), (0.1, 7), (9.0, None)])
    def test_the_exit_code_of_an_adopted_one(self, world: World, delay: float, code: int | None) -> None:
        """It appears when its new parent has reaped it."""
        row = world.make(Status.HEALTHY)
        world.machine.adopted_code_delay_s = delay
        world.reborn()
        world.crash(row, 7)
        world.advance(0.5)
        row = world.row(row)
        assert (row.status, row.exit_code) == (Status.FAILED, code)
        assert row.exit_cause == (Cause.CRASH if code else Cause.UNOBSERVED)
        assert_nothing_left(world, row)

    def test_one_that_died_while_nobody_watched(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        identity = identity_of(row)
        world.die()
        world.kernel.kill(identity, 7)
        assert world.rise() == {"adopted": 0, "lost": 0, "strays": 0}
        row = world.row(row)
        assert (row.status, row.exit_code, row.exit_cause) == (Status.BACKOFF, None, Cause.UNOBSERVED)
        world.advance(1)
        assert world.row(row).generation == 2

    def test_its_pid_may_be_a_strangers_by_now(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        identity = identity_of(row)
        world.die()
        world.machine.clock += 1
        stranger = world.kernel.reuse(identity)
        world.rise()
        assert world.status(row) == Status.FAILED
        assert world.kernel.find(stranger).code is None

    def test_a_strangers_session_of_a_reused_number_is_not_ours(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(replace(ESCAPEE, ignores={TERM}),)))
        world.crash(row)
        assert world.status(row) == Status.STOPPING
        identity = identity_of(world.row(row))
        world.die()
        stranger = world.kernel.reuse(identity)
        world.rise()
        world.advance(11)
        assert world.kernel.find(stranger).code is None
        assert world.status(row) == Status.FAILED

    def test_a_session_that_a_stranger_founds_while_we_stop_the_rest(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(replace(ESCAPEE, ignores={TERM}),)))
        identity = identity_of(row)
        world.reborn()
        world.crash(row)
        world.advance(1)
        assert world.status(row) == Status.STOPPING
        stranger = world.kernel.reuse(identity)
        world.advance(11)
        assert world.kernel.find(stranger).code is None
        assert world.status(row) == Status.FAILED

    def test_the_exit_code_of_one_that_was_adopted_and_stopped(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.reborn()
        world.machine.adopted_code_delay_s = 0.1
        stop(world, row)
        world.advance(1)
        assert (world.status(row), world.row(row).exit_code) == (Status.EXITED, -TERM)

    def test_killed_before_the_spawn(self, world: World) -> None:
        [row] = world.declare(world.spec(), acts=False)
        world.reborn(away_s=3)
        world.advance(1)
        assert world.status(row) == Status.HEALTHY
        assert len(world.kernel.alive()) == 1

    def unrecorded(self, world: World, program: Program | None = None) -> ManagedProcess:
        """Return a row whose worker died between the spawn and its record."""
        if program:
            world.script("web", program)
        [row] = world.declare(world.spec("web"), acts=False)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(lifecycle, "spawned", lambda *_args, **_more: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                world.supervisor.act(row.pk)
        return row

    def test_killed_between_spawn_and_record(self, world: World) -> None:
        row = self.unrecorded(world)
        [spawned] = world.kernel.alive()
        world.reborn()
        world.advance(1)
        row = world.row(row)
        assert (row.identity, row.status) == (spawned, Status.HEALTHY)
        assert world.kernel.alive() == [spawned]

    def test_killed_between_spawn_and_record_of_one_that_died_meanwhile(self, world: World) -> None:
        """What it left is ended before it is started again."""
        row = self.unrecorded(world, Program(children=(DEAF,)))
        leader, child = world.kernel.alive()
        world.die()
        world.kernel.kill(leader)
        world.rise()
        world.advance(2)
        row = world.row(row)
        assert row.status == Status.HEALTHY
        assert child not in world.kernel.alive()
        assert row.identity in world.living(row)

    def test_killed_between_spawn_and_record_and_stopped_meanwhile(self, world: World) -> None:
        row = self.unrecorded(world, Program(children=(ESCAPEE,)))
        world.die()
        lifecycle.stop(world.row(row), by=ANNA, now=world.now)
        world.rise()
        world.advance(11)
        assert_nothing_left(world, row)

    @pytest.mark.parametrize("status", [Status.STOPPING, Status.RESTARTING])
    @pytest.mark.parametrize("when", ["before TERM", "after TERM", "while dead"])
    def test_killed_while_stopping(self, world: World, status: Status, when: str) -> None:
        row = world.make(Status.HEALTHY, program=Program(ignores={TERM}, children=(KEEPS_NONE, ESCAPEE)))
        old = world.kernel.alive()
        verb = lifecycle.stop if status == Status.STOPPING else lifecycle.restart
        verb(row, by=ANNA, now=world.now)
        if when != "before TERM":
            world.tell([row])
        world.die()
        if when == "while dead":
            for identity in old:
                if identity in world.kernel.alive():
                    world.kernel.kill(identity)
        world.rise()
        world.advance(12)
        row = world.row(row)
        assert not set(old) & set(world.kernel.alive())
        if status == Status.STOPPING:
            assert row.status == Status.EXITED
            assert_nothing_left(world, row)
        else:
            assert (row.status, row.generation) == (Status.HEALTHY, 2)

    def test_killed_in_back_off(self, world: World) -> None:
        row = world.make(Status.BACKOFF)
        world.reborn()
        assert world.status(row) == Status.BACKOFF
        world.advance(1)
        assert (world.status(row), world.row(row).generation) == (Status.HEALTHY, 2)

    def test_an_adopted_group_is_signalled_one_by_one(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=Program(children=(Program(), ESCAPEE)))
        everybody = world.kernel.alive()
        world.reborn()
        stop(world, row)
        world.advance()
        assert [world.sent(each) for each in everybody] == [[TERM]] * 3
        assert_nothing_left(world, row)

    def test_another_boot_has_taken_all_with_it(self, world: World) -> None:
        rows = [world.make(status) for status in (Status.HEALTHY, Status.STOPPING)]
        waiting = world.make(Status.BACKOFF)
        assert world.reboot() == {"adopted": 0, "lost": 2, "strays": 0}
        assert [world.status(row) for row in rows] == [Status.LOST] * 2
        assert world.row(rows[0]).last_error == "the machine was restarted"
        world.advance(1)
        assert world.status(waiting) == Status.HEALTHY

    def test_strays_are_ended(self, world: World) -> None:
        """What lives while its row says that nothing does, or of a generation before the present one."""
        over = world.make(Status.EXITED)
        waiting = world.make(Status.BACKOFF, restart="always")
        running = world.make(Status.HEALTHY)
        strays = [
            world.kernel.adopt(marker=f"test-node.{over.pk}.1"),
            world.kernel.adopt(marker=f"test-node.{waiting.pk}.1"),
            world.kernel.adopt(log=starting.log_file(over)),
        ]
        other_node = world.kernel.stranger(marker=f"other-node.{over.pk}.1")
        similar = world.kernel.stranger(marker=f"test-node.{over.pk}1.1")
        assert world.reborn() == {"adopted": 1, "lost": 0, "strays": 3}
        assert not set(strays) & set(world.kernel.alive())
        assert world.kernel.find(other_node).code is world.kernel.find(similar).code is None
        assert world.status(running) == Status.HEALTHY

    def test_what_was_written_off_is_ended_when_the_worker_next_starts(self, world: World) -> None:
        """Also when another generation runs by then."""
        row = world.make(Status.HEALTHY, "web", program=DEAF)
        old = identity_of(row)
        lifecycle.force(row, "hangs", by=ANNA, now=world.now)
        world.tell([row])
        world.advance(5)
        lifecycle.start(world.row(row), quotas=QUOTAS, by=ANNA, now=world.now)
        world.tell([row])
        world.advance(5)
        new = identity_of(world.row(row))
        assert set(world.kernel.alive()) == {old, new}
        assert world.reborn() == {"adopted": 1, "lost": 0, "strays": 1}
        assert world.kernel.alive() == [new]
        assert world.status(row) == Status.HEALTHY

    def test_what_was_written_off_is_reaped_when_it_ends(self, world: World) -> None:
        row = world.make(Status.HEALTHY, "web", program=DEAF)
        old = identity_of(row)
        lifecycle.force(row, "hangs", by=ANNA, now=world.now)
        world.tell([row])
        world.advance(1)
        lifecycle.start(world.row(row), quotas=QUOTAS, by=ANNA, now=world.now)
        world.tell([row])
        world.kernel.kill(old)
        world.advance(1)
        assert world.status(row) == Status.HEALTHY
        assert old.pid not in world.machine.processes
        assert set(world.kernel.pinned) == {world.row(row).identity}

    def test_nothing_is_started_twice_by_two_adoptions(self, world: World) -> None:
        rows = [world.make(status) for status in (Status.HEALTHY, Status.STARTING, Status.BACKOFF)]
        world.reborn()
        sweeps.adopt(world.supervisor, now=world.now)
        world.advance(1)
        assert [len(world.living(row)) for row in rows] == [1, 1, 1]

    def test_one_that_cannot_be_seen_is_left_as_it_is(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.die()
        world.kernel.unseen.add(row.pid or 0)
        assert world.rise()["adopted"] == 0
        assert world.status(row) == Status.HEALTHY
        assert world.machine.sent == []


class TestRaces:
    """A verb of somebody else between what the supervisor sees and what it writes."""

    def test_a_stop_between_spawn_and_record(self, world: World) -> None:
        world.script("web", Program(children=(ESCAPEE,)))
        [row] = world.declare(world.spec("web"), acts=False)
        world.kernel.spawn = between(  # type: ignore[method-assign]
            world.kernel.spawn, lambda: lifecycle.stop(row, by=ANNA, now=world.now)
        )
        world.tell([row])
        world.advance()
        assert world.status(row) == Status.EXITED
        assert_nothing_left(world, row)
        assert "starting" not in world.kinds(row)

    def test_a_restart_between_spawn_and_record(self, world: World) -> None:
        [row] = world.declare(world.spec("web"), acts=False)
        world.kernel.spawn = between(  # type: ignore[method-assign]
            world.kernel.spawn, lambda: lifecycle.restart(row, by=ANNA, now=world.now)
        )
        world.tell([row])
        world.advance(1)
        row = world.row(row)
        assert (row.status, row.generation) == (Status.HEALTHY, 2)
        assert world.kernel.alive() == [row.identity]

    def test_written_off_between_spawn_and_record(self, world: World) -> None:
        [row] = world.declare(world.spec("web"), acts=False)
        world.kernel.spawn = between(  # type: ignore[method-assign]
            world.kernel.spawn, lambda: lifecycle.force(row, "wrong", by=ANNA, now=world.now)
        )
        world.tell([row])
        world.advance()
        assert world.status(row) == Status.LOST
        assert_nothing_left(world, row)

    @pytest.mark.parametrize(("verb", "status"), [(lifecycle.stop, Status.EXITED), (lifecycle.restart, Status.HEALTHY)])
    def test_a_verb_while_a_death_is_looked_into(self, world: World, verb: Any, status: Status) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        world.kernel.census = between(  # type: ignore[method-assign]
            world.kernel.census, lambda: verb(world.row(row), by=ANNA, now=world.now)
        )
        world.crash(row)
        world.advance(2)
        assert world.status(row) == status
        assert len(world.living(row)) == (status == Status.HEALTHY)

    def test_an_extension_while_the_expiry_is_acted_on(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=1)
        world.kernel.watch = between(  # type: ignore[method-assign]
            world.kernel.watch, lambda: lifecycle.extend(row, 9, by=ANNA, now=world.now)
        )
        world.advance(61)
        assert world.status(row) == Status.HEALTHY

    def test_a_kill_while_the_grace_runs_out(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        world.kernel.census = between(  # type: ignore[method-assign]
            world.kernel.census, lambda: lifecycle.kill(row, by=ANNA, now=world.now)
        )
        world.tell([row])
        world.advance(11)
        assert_nothing_left(world, row)

    def test_a_row_that_changes_on_and_on_is_looked_at_later(self, world: World, monkeypatch) -> None:
        row = world.make(Status.HEALTHY)
        looks = []

        def always_changed(row: ManagedProcess) -> bool:
            looks.append(row)
            raise Conflict("illegal-transition", "It was changed meanwhile.")

        monkeypatch.setattr(world.supervisor, "_step", always_changed)
        world.supervisor.act(row.pk)
        assert len(looks) == supervisor.STEPS
        monkeypatch.undo()
        world.advance(0.1)
        assert len(looks) == supervisor.STEPS

    def test_strangers_are_never_signalled(self, world: World) -> None:
        strangers = [
            world.kernel.stranger(),
            world.kernel.stranger(marker="other.1.1"),
            world.kernel.stranger(session=999, group=999),
        ]
        rows = [world.make(Status.HEALTHY, program=DEAF), world.make(Status.HEALTHY, restart="always")]
        stop(world, rows[0])
        world.crash(rows[1])
        world.reborn()
        world.advance(30)
        assert world.kernel.strangers_signalled() == []
        assert all(world.kernel.find(each).code is None for each in strangers)
        assert world.kernel.find(strangers[0]).parent == INIT


class TestCensuses:
    """Those who ask at the same time share one pass, which begins after they asked."""

    def ask(self, censuses: Censuses, owners: list[int]) -> tuple[list[threading.Thread], dict[int, Any]]:
        found: dict[int, Any] = {}

        def take(owner: int) -> None:
            try:
                found[owner] = censuses.take(Mark(owner, f"n.{owner}."))
            except OSError as error:
                found[owner] = error

        threads = [threading.Thread(target=take, args=(owner,)) for owner in owners]
        for thread in threads:
            thread.start()
        return threads, found

    @pytest.mark.parametrize("fails", [False, True])
    def test_one_pass_for_all_who_waited(self, fails: bool) -> None:
        passes: list[list[int]] = []
        first, gate = threading.Event(), threading.Event()

        def census(marks: Any) -> Census:
            passes.append(sorted(mark.owner for mark in marks))
            if len(passes) == 1:
                first.set()
                assert gate.wait(30)
            if fails and len(passes) == 2:
                raise OSError("no /proc")
            return Census()

        kernel = FakeKernel()
        kernel.census = census  # type: ignore[method-assign]
        censuses = Censuses(kernel)
        threads, found = self.ask(censuses, [1])
        assert first.wait(30)
        others, more = self.ask(censuses, [2, 3, 4])
        until = time.monotonic() + 30
        while len(censuses._waiting) < 3 and time.monotonic() < until:
            time.sleep(0.005)
        gate.set()
        for thread in (*threads, *others):
            thread.join(30)
        assert found == {1: Census()}
        assert passes[:2] == [[1], [2, 3, 4]]
        if fails:
            # Who was taken along by a pass that failed asks for one of its own.
            assert sorted(type(each).__name__ for each in more.values()) == ["Census", "Census", "OSError"]
            assert len(passes) == 4
        else:
            assert more == {2: Census(), 3: Census(), 4: Census()}
            assert len(passes) == 2


def test_a_row_that_the_database_would_refuse_is_left_alone(world: World) -> None:
    assert world.supervisor._look(ManagedProcess(pk=7, status=Status.HEALTHY)) is False


def test_the_death_of_somebody_unknown_wakes_nobody(world: World) -> None:
    world.kernel.on_death(Identity("test-node", "fake-boot", 4711, 1))
    assert world.supervisor._died_at == {}


def test_a_worker_has_one_supervisor(world: World) -> None:
    assert supervisor.current() is None
    supervisor.install(world.supervisor)
    assert supervisor.current() is world.supervisor
    supervisor.install(None)
    assert supervisor.current() is None


def test_every_event_says_who(world: World) -> None:
    row = world.make(Status.HEALTHY, restart="always")
    world.crash(row)
    world.advance(1)
    stop(world, row)
    world.advance()
    events = Event.objects.filter(subject=row.subject)
    assert {(event.actor, event.payload["via"]) for event in events} == {("andon", "sweep"), ("user:anna", "page")}
    assert all(event.payload["generation"] in {1, 2} for event in events)
    assert signal.SIGTERM == TERM


class TestMonths:
    """What a worker must not gather while it runs for months."""

    def test_a_row_that_does_not_end_has_one_chain_of_timers(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.machine.deliver = immortal(world.machine.deliver, identity_of(row))  # type: ignore[method-assign]
        stop(world, row)
        world.advance(15)
        acted: list[float] = []
        real = world.supervisor.act
        world.supervisor.act = lambda pk: (acted.append(world.machine.clock), real(pk))  # type: ignore[method-assign, assignment, func-returns-value]
        counts = []
        for _ in range(4):
            acted.clear()
            world.advance(60, ticks=True)
            counts.append(len(acted))
        assert world.status(row) == Status.STOPPING
        # One a second, and one with each sweep.
        assert max(counts) <= 80
        assert len(world.machine.timers) < 20

    def test_a_timer_that_was_lost_is_made_good(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        world.supervisor.wake_in(10, row.pk)
        timers = len(world.machine.timers)
        world.supervisor.wake_in(20, row.pk)
        assert len(world.machine.timers) == timers, "one that fires before that will do"
        world.supervisor.wake_in(1, row.pk)
        assert len(world.machine.timers) == timers + 1
        world.machine.timers.clear()
        world.advance(30)
        world.supervisor.wake_in(1, row.pk)
        assert len(world.machine.timers) == 1


class TestLateNews:
    def test_healthy_at_the_last_moment(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Between the look that finds the budget over and the stop, the first success is recorded."""
        row = world.make(Status.STARTING)
        real = lifecycle.stop

        def late(row: ManagedProcess, **more: Any) -> ManagedProcess:
            monkeypatch.setattr(lifecycle, "stop", real)
            lifecycle.heal(world.row(row), next_probe_at=world.now, by=ANNA, now=world.now)
            return real(row, **more)

        monkeypatch.setattr(lifecycle, "stop", late)
        world.advance(12)
        assert world.status(row) == Status.HEALTHY

    def test_a_restart_asked_for_while_the_back_off_is_settled(self, world: World, monkeypatch) -> None:
        program = Program(children=(DEAF,))
        row = world.make(Status.HEALTHY, program=program, restart="always")
        real = lifecycle.settle

        def late(row: ManagedProcess, *args: Any, **more: Any) -> None:
            monkeypatch.setattr(lifecycle, "settle", real)
            lifecycle.restart(row, by=ANNA, now=world.now)
            real(row, *args, **more)

        monkeypatch.setattr(lifecycle, "settle", late)
        world.crash(row)
        assert world.status(row) == Status.RESTARTING
        world.advance(11)
        row = world.row(row)
        assert (row.generation, row.attempt, row.crashes) == (2, 0, [])
        assert row.status in {Status.STARTING, Status.HEALTHY}

    def test_a_member_that_dies_after_the_census_is_not_waited_for(self, world: World, monkeypatch) -> None:
        row = world.make(Status.HEALTHY, program=DEAF)
        real = world.kernel.watch

        def watch(identity: Identity) -> bool:
            return False if world.status(row) == Status.STOPPING else real(identity)

        monkeypatch.setattr(world.kernel, "watch", watch)
        woken: list[float] = []
        monkeypatch.setattr(world.supervisor, "wake_in", lambda seconds, pk: woken.append(seconds))
        stop(world, row)
        assert min(woken) < 1

    def test_a_group_that_may_not_be_signalled_is_asked_one_by_one(self, world: World, monkeypatch) -> None:
        row = world.make(Status.HEALTHY)

        def refused(leader: Identity, number: int) -> bool:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr(world.kernel, "signal_group", refused)
        stop(world, row)
        world.advance(1)
        assert world.status(row) == Status.EXITED
        assert world.sent(identity_of(row)) == [TERM]


class TestPortsLeftBehind:
    def held_by(self, world: World, since: int | None) -> ManagedProcess:
        row = world.make(Status.HEALTHY, ports=[3000])
        world.kernel.occupy(3000, 77, since)
        stop(world, row)
        world.advance()
        return world.row(row)

    def test_by_who_may_come_from_it(self, world: World) -> None:
        """It bears no sign of ours, so it is not signalled; but nobody is told that all is gone without being told."""
        row = self.held_by(world, 10**9)
        assert row.status == Status.STOPPING
        world.advance(20)
        row = world.row(row)
        assert row.status == Status.EXITED
        said = "port 3000 is still held by somebody 77 on 127.0.0.1, which bears no sign of ours"
        assert row.last_error == said

    def test_by_who_was_there_before(self, world: World) -> None:
        row = self.held_by(world, 0)
        assert (row.status, row.last_error) == (Status.EXITED, "")


def test_one_that_its_policy_brings_back_and_that_cannot_be_started_is_tried_again(world: World) -> None:
    row = world.make(Status.HEALTHY, restart="on-failure", ports=[3000])
    world.kernel.occupy(3000, 77)
    world.crash(row)
    world.advance(2)
    assert world.status(row) == Status.BACKOFF
    assert world.row(row).attempt > 1
    assert world.row(row).last_error.startswith("port-conflict (3000")
    del world.machine.listening[3000]
    world.advance(30)
    assert world.status(row) == Status.HEALTHY
