"""What happens to a process while it lives and when it ends: every verb from every state, told with its payload."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import IntegrityError, transaction

from projects.errors import Conflict, DomainError, Rejected
from projects.events import SWEEP, By
from projects.models import Event
from services import lifecycle
from services.models import ManagedProcess
from services.processes import Identity, Member
from services.states import ENDED, GOING, LIVE, UP, Cause, Purpose, Restart, Status
from tests.services.world import ANNA, DEAF, TERM, World

VIA = {"via": "page", "address": "10.0.0.1"}
SOON = timedelta(seconds=30)
SERVICE = UP - {Status.RUNNING}


def member(pid: int = 900, ticks: int = 5) -> Member:
    return Member(Identity("test-node", "fake-boot", pid, ticks), 1, pid, pid, 1, frozenset({"marker"}))


def told(world: World, row: ManagedProcess, kind: str) -> dict[str, Any]:
    """Return the payload of the last event of a row, which has this kind."""
    event = Event.objects.filter(subject=row.subject).latest("pk")
    assert event.kind == f"service.{kind}"
    assert event.project == "demo"
    return event.payload


# Verb -> from which states it is accepted, and a call of it; all others refuse with Conflict.
Act = Callable[[ManagedProcess, datetime], Any]
VERBS: dict[str, tuple[frozenset[Status], Act]] = {
    "stop": (LIVE, lambda row, now: lifecycle.stop(row, by=ANNA, now=now)),
    "kill": (LIVE, lambda row, now: lifecycle.kill(row, by=ANNA, now=now)),
    "restart": (LIVE - {Status.STOPPING, Status.RUNNING}, lambda row, now: lifecycle.restart(row, by=ANNA, now=now)),
    "force": (LIVE, lambda row, now: lifecycle.force(row, "stuck", by=ANNA, now=now)),
    "extend": (
        LIVE - {Status.STOPPING, Status.RUNNING},
        lambda row, now: lifecycle.extend(row, 10, by=ANNA, now=now),
    ),
    "spawned": (
        frozenset({Status.STARTING}),
        lambda row, now: lifecycle.spawned(row, member().identity, by=SWEEP, now=now),
    ),
    # Only of what has no process yet, which `make` does not make.
    "fail": (frozenset(), lambda row, now: lifecycle.fail(row, "no", by=SWEEP, now=now)),
    "heal": (
        frozenset({Status.STARTING, Status.UNHEALTHY}),
        lambda row, now: lifecycle.heal(row, next_probe_at=now + SOON, by=SWEEP, now=now),
    ),
    "sicken": (
        frozenset({Status.HEALTHY}),
        lambda row, now: lifecycle.sicken(row, "no", misses=1, jitter=1, by=SWEEP, now=now),
    ),
    "ended": (
        UP | {Status.STOPPING},
        lambda row, now: lifecycle.ended(row, 1, members=[], jitter=1, by=SWEEP, now=now),
    ),
    "ended, one left": (
        UP | {Status.RESTARTING},
        lambda row, now: lifecycle.ended(row, 1, members=[member()], jitter=1, by=SWEEP, now=now),
    ),
    "settle": (GOING, lambda row, now: lifecycle.settle(row, -15, by=SWEEP, now=now)),
    "respawn": (frozenset({Status.BACKOFF}), lambda row, now: lifecycle.respawn(row, by=SWEEP, now=now + SOON)),
    "lose": (LIVE, lambda row, now: lifecycle.lose(row, "boot", by=SWEEP, now=now)),
}


@pytest.mark.parametrize("status", Status)
def test_a_verb_is_accepted_or_changes_and_tells_nothing(world: World, status: Status) -> None:
    row = world.make(status)
    before = world.everything()
    for verb, (accepted, act) in VERBS.items():
        mark = transaction.savepoint()
        if status in accepted:
            act(world.row(row), world.now)
        elif (status, verb) == (Status.BACKOFF, "ended, one left"):
            continue
        else:
            with pytest.raises(Conflict):
                act(world.row(row), world.now)
            assert world.everything() == before, verb
        transaction.savepoint_rollback(mark)


@pytest.mark.parametrize("verb", [lifecycle.stop, lifecycle.kill, lifecycle.restart])
@pytest.mark.parametrize("generation", [0, 2])
def test_another_generation_is_left_alone(world: World, verb: Any, generation: int) -> None:
    row = world.make(Status.HEALTHY)
    before = world.everything()
    with pytest.raises(Conflict, match="started again meanwhile") as refusal:
        verb(row, by=ANNA, now=world.now, expected_generation=generation)
    assert (refusal.value.code, refusal.value.extra) == ("generation-changed", {"generation": 1})
    with pytest.raises(Conflict, match="generation-changed"):
        lifecycle.extend(row, 5, by=ANNA, now=world.now, expected_generation=generation)
    assert world.everything() == before
    verb(row, by=ANNA, now=world.now, expected_generation=1)
    assert world.everything() != before


@pytest.mark.parametrize("verb", [lifecycle.stop, lifecycle.kill, lifecycle.restart])
def test_a_row_that_is_gone_is_a_conflict(world: World, verb: Any) -> None:
    row = world.make(Status.EXITED)
    lifecycle.erase(world.row(row), by=ANNA, now=world.now)
    with pytest.raises(Conflict, match="generation-changed"):
        verb(row, by=ANNA, now=world.now)


class TestStop:
    @pytest.mark.parametrize(
        ("cause", "outcome"),
        [
            (Cause.USER, Status.EXITED),
            (Cause.SHUTDOWN, Status.EXITED),
            (Cause.PROJECT_REMOVED, Status.EXITED),
            (Cause.REPLACED, Status.EXITED),
            (Cause.CRASH, Status.FAILED),
            (Cause.UNOBSERVED, Status.FAILED),
        ],
    )
    def test_every_cause_has_its_end(self, world: World, cause: Cause, outcome: Status) -> None:
        row = world.make(Status.HEALTHY)
        row = lifecycle.stop(row, cause=cause, reason="why", by=ANNA, now=world.now)
        assert (row.status, row.outcome, row.exit_cause, row.last_error) == (Status.STOPPING, outcome, cause, "why")
        assert told(world, row, "stopping") == {
            "generation": 1,
            "pid": row.pid,
            "cause": cause,
            "reason": "why",
            "grace_s": 10,
            **VIA,
        }
        world.tell([row])
        world.advance()
        assert world.status(row) == outcome

    def test_a_ttl_is_looked_at_again_before_it_stops_anything(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=10)
        late = world.now + timedelta(minutes=11)
        lifecycle.extend(world.row(row), 10, by=ANNA, now=world.now)
        before = world.everything()
        with pytest.raises(Conflict):
            lifecycle.stop(row, cause=Cause.TTL, by=SWEEP, now=late)
        assert world.everything() == before
        row = lifecycle.stop(row, cause=Cause.TTL, by=SWEEP, now=late + timedelta(minutes=10))
        assert (row.outcome, row.exit_cause) == (Status.EXPIRED, Cause.TTL)

    def test_it_waits_for_nothing_else_any_more(self, world: World) -> None:
        row = lifecycle.stop(world.make(Status.HEALTHY), by=ANNA, now=world.now)
        row = world.row(row)
        assert (row.next_probe_at, row.health_by, row.retry_at) == (None, None, None)
        assert row.expires_at is not None

    def test_a_second_stop_joins_the_first(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        before = world.everything()
        again = lifecycle.stop(row, cause=Cause.SHUTDOWN, by=ANNA, now=world.now)
        assert again == row
        assert world.everything() == before

    def test_of_a_restart_nothing_comes_when_it_is_stopped(self, world: World) -> None:
        row = lifecycle.stop(world.make(Status.RESTARTING), by=ANNA, now=world.now)
        assert (row.status, row.outcome) == (Status.STOPPING, Status.EXITED)
        assert row.term_at is not None
        world.advance(11)
        assert world.status(row) == Status.EXITED


class TestKill:
    def test_there_is_no_grace(self, world: World) -> None:
        row = lifecycle.kill(world.make(Status.HEALTHY), by=ANNA, now=world.now)
        assert (row.status, row.kill_at) == (Status.STOPPING, world.now)
        assert told(world, row, "stopping")["grace_s"] == 0

    def test_one_that_is_being_stopped_is_killed_now(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        world.advance(3)
        assert row.kill_at is not None
        assert row.kill_at > world.now
        killed = lifecycle.kill(row, by=ANNA, now=world.now)
        assert (killed.kill_at, killed.term_at) == (world.now, row.term_at)
        assert told(world, row, "stopping") == {
            "generation": 1, "pid": row.pid, "cause": "user", "grace_s": 0, **VIA
        }  # fmt: skip
        before = world.everything()
        lifecycle.kill(row, by=ANNA, now=world.now)
        assert world.everything() == before

    def test_one_whose_stop_nobody_has_seen_yet(self, world: World) -> None:
        row = lifecycle.stop(world.make(Status.HEALTHY), by=ANNA, now=world.now)
        row = lifecycle.kill(row, by=ANNA, now=world.now)
        assert row.kill_at == world.now


class TestRestart:
    def test_the_expiry_stays(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=10)
        world.advance(100)
        again = lifecycle.restart(row, by=ANNA, now=world.now)
        assert told(world, row, "restarting") == {"generation": 1, "pid": row.pid, "cause": "user", **VIA}
        world.tell([again])
        world.advance(1)
        again = world.row(row)
        assert (again.status, again.generation, again.restarts) == (Status.HEALTHY, 2, 1)
        assert (again.expires_at, again.warn_at) == (row.expires_at, row.warn_at)

    def test_a_persons_restart_forgives_crashes(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        for _ in range(4):
            world.crash(row)
            world.advance(20)
        assert len(world.row(row).crashes) == 4
        row = lifecycle.restart(row, by=ANNA, now=world.now)
        assert (row.crashes, row.attempt) == ([], 0)

    def test_a_second_restart_joins_the_first(self, world: World) -> None:
        row = world.make(Status.RESTARTING)
        events = world.head
        again = lifecycle.restart(row, by=ANNA, now=world.now)
        assert (again.status, again.outcome, world.head) == (Status.RESTARTING, Status.STARTING, events)
        world.advance(11)
        assert world.row(row).generation == 2

    def test_one_that_restarts_after_a_back_off_starts_at_once_now(self, world: World) -> None:
        row = world.make(Status.HEALTHY, program=DEAF, restart="always")
        lifecycle.sicken(row, "no", misses=1, jitter=1, by=SWEEP, now=world.now)
        assert world.row(row).outcome == Status.BACKOFF
        row = lifecycle.restart(row, by=ANNA, now=world.now)
        assert world.row(row).outcome == Status.STARTING

    @pytest.mark.parametrize(
        ("status", "code"), [(Status.STOPPING, "stopping"), *((status, "not-live") for status in sorted(ENDED))]
    )
    def test_refusals(self, world: World, status: Status, code: str) -> None:
        row = world.make(status)
        with pytest.raises(Conflict) as refusal:
            lifecycle.restart(row, by=ANNA, now=world.now)
        assert refusal.value.code == code


class TestExtend:
    def test_it_moves_the_expiry_and_its_warning(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=10)
        before = row.expires_at
        assert before is not None
        row = world.row(lifecycle.extend(row, 30, by=ANNA, now=world.now))
        assert row.expires_at == before + timedelta(minutes=30)
        assert row.warn_at == row.expires_at - timedelta(minutes=5)
        assert told(world, row, "extended") == {
            "generation": 1,
            "pid": row.pid,
            "before": before.isoformat(),
            "expires_at": row.expires_at.isoformat(),
            **VIA,
        }

    def test_never_beyond_a_day_from_now_and_never_back(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=1440)
        world.advance(60)
        row = lifecycle.extend(row, 1440, by=ANNA, now=world.now)
        assert row.expires_at == world.now + timedelta(minutes=1440)
        early = lifecycle.extend(row, 1, by=ANNA, now=world.now - timedelta(hours=1))
        assert early.expires_at == row.expires_at

    def test_an_expiry_that_is_over_counts_from_now(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=10)
        now = world.now + timedelta(minutes=60)
        assert lifecycle.extend(row, 2, by=ANNA, now=now).expires_at == now + timedelta(minutes=2)

    @pytest.mark.parametrize("minutes", [0, -1, True])
    def test_other_minutes_are_rejected(self, world: World, minutes: int) -> None:
        row = world.make(Status.HEALTHY)
        before = world.everything()
        with pytest.raises(Rejected, match="minutes-invalid"):
            lifecycle.extend(row, minutes, by=ANNA, now=world.now)
        assert world.everything() == before

    def test_what_has_no_ttl_has_nothing_to_extend(self, world: World) -> None:
        with pytest.raises(Conflict, match="no-ttl"):
            lifecycle.extend(world.make(Status.RUNNING), 5, by=ANNA, now=world.now)


class TestForce:
    @pytest.mark.parametrize("reason", ["", " \n\t"])
    def test_it_needs_a_reason(self, world: World, reason: str) -> None:
        row = world.make(Status.STOPPING)
        before = world.everything()
        with pytest.raises(Rejected, match="reason-missing"):
            lifecycle.force(row, reason, by=ANNA, now=world.now)
        assert world.everything() == before

    @pytest.mark.parametrize("status", sorted(LIVE - {Status.RUNNING}))
    def test_what_lives_is_written_off_and_nothing_signalled(self, world: World, status: Status) -> None:
        row = world.make(status)
        sent = len(world.machine.sent)
        row = world.row(lifecycle.force(row, " hangs \ud800 in D \x00 ", by=ANNA, now=world.now))
        assert (row.status, row.pid, row.last_error, row.ended_at) == (Status.LOST, None, "hangs ? in D", world.now)
        assert (row.expires_at, row.retry_at, row.kill_at, row.members, row.left) == (None, None, None, [], [])
        payload = told(world, row, "forced")
        assert (payload["reason"].strip(), payload["status"]) == ("hangs ? in D", status)
        world.tell([row])
        world.advance(60)
        assert len(world.machine.sent) == sent


class TestSpawned:
    def test_the_identity_stands_and_the_first_health_is_due(self, world: World) -> None:
        [row] = world.declare(world.spec(healthcheck={"timeout_s": 7}), acts=False)
        lifecycle.spawned(row, member().identity, by=SWEEP, now=world.now)
        row = world.row(row)
        assert row.identity == member().identity
        assert (row.started_at, row.health_by) == (world.now, world.now + timedelta(seconds=7))
        assert told(world, row, "starting") == {"generation": 1, "pid": 900, "via": "sweep"}

    def test_a_stop_that_came_between_wins(self, world: World) -> None:
        [row] = world.declare(world.spec(), acts=False)
        lifecycle.stop(row, by=ANNA, now=world.now)
        before = world.everything()
        with pytest.raises(Conflict):
            lifecycle.spawned(row, member().identity, by=SWEEP, now=world.now)
        assert world.everything() == before

    def test_a_worker_runs_without_a_first_health(self, world: World) -> None:
        row = world.launch()
        assert (row.status, row.health_by) == (Status.RUNNING, None)


class TestFail:
    def test_the_reason_is_kept_and_told(self, world: World) -> None:
        [row] = world.declare(world.spec(), acts=False)
        lifecycle.fail(row, "x" * 9000, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.last_error, row.ended_at) == (Status.FAILED, "x" * 2500, world.now)
        assert (row.expires_at, row.warn_at) == (None, None)
        assert told(world, row, "failed")["reason"] == "x" * 2000

    def test_those_declared_with_it_end_too(self, world: World) -> None:
        a, b, c, d = world.declare(*(world.spec(name) for name in "abcd"), acts=False)
        other = world.make(Status.HEALTHY)
        lifecycle.spawned(a, member().identity, by=SWEEP, now=world.now)
        lifecycle.stop(d, by=ANNA, now=world.now)
        lifecycle.fail(b, "no", by=SWEEP, now=world.now)
        assert lifecycle.roll_back(b, by=SWEEP, now=world.now) == [a]
        a, c, d = map(world.row, (a, c, d))
        reason = "rolled back: b could not be started"
        assert (a.status, a.outcome, a.last_error) == (Status.STOPPING, Status.FAILED, reason)
        assert (c.status, c.last_error) == (Status.FAILED, reason)
        assert (d.status, d.last_error) == (Status.STOPPING, "")
        assert world.status(other) == Status.HEALTHY

    @pytest.mark.parametrize("status", [Status.BACKOFF, Status.RESTARTING])
    def test_also_what_was_started_and_is_between_two_starts(self, world: World, status: Status) -> None:
        a, b = world.declare(world.spec("a", restart="always"), world.spec("b"), acts=False)
        lifecycle.spawned(a, member().identity, by=SWEEP, now=world.now)
        left = [member()] if status == Status.RESTARTING else []
        lifecycle.ended(a, 1, members=left, jitter=1, by=SWEEP, now=world.now)
        assert world.status(a) == status
        lifecycle.fail(b, "no", by=SWEEP, now=world.now)
        assert lifecycle.roll_back(b, by=SWEEP, now=world.now) == [a]
        assert world.status(a) == Status.STOPPING

    def test_one_that_was_started_once_takes_nobody_with_it(self, world: World) -> None:
        world.script("b", DEAF)
        a, b = world.declare(world.spec("a"), world.spec("b", restart="always"))
        world.crash(b)
        lifecycle.respawn(world.row(b), by=SWEEP, now=world.now + SOON)
        b = world.row(b)
        lifecycle.fail(b, "no", by=SWEEP, now=world.now)
        assert lifecycle.roll_back(b, by=SWEEP, now=world.now) == []
        assert world.status(a) == Status.STARTING

    def test_one_alone_takes_nobody_with_it(self, world: World) -> None:
        row = world.make(Status.EXITED)
        assert lifecycle.roll_back(row, by=SWEEP, now=world.now) == []


class TestHealth:
    def test_the_first_success(self, world: World) -> None:
        row = world.make(Status.STARTING)
        world.advance(3)
        lifecycle.heal(row, next_probe_at=world.now + SOON, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.health_by, row.last_error) == (Status.HEALTHY, None, "")
        assert (row.last_health_at, row.next_probe_at) == (world.now, world.now + SOON)
        assert told(world, row, "healthy")["after_s"] == 3

    def test_back_from_unhealthy(self, world: World) -> None:
        row = world.make(Status.UNHEALTHY)
        lifecycle.heal(row, passes=2, next_probe_at=world.now, by=SWEEP, now=world.now)
        assert "after_s" not in told(world, row, "healthy")
        assert (row.passes, row.misses) == (2, 0)

    def test_too_many_misses(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        lifecycle.sicken(row, "refused", misses=3, jitter=1, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.misses, row.passes, row.last_error) == (Status.UNHEALTHY, 3, 0, "refused")
        assert told(world, row, "unhealthy") == {
            "generation": 1, "pid": row.pid, "reason": "refused", "misses": 3, "via": "sweep"
        }  # fmt: skip

    @pytest.mark.parametrize("restart", [Restart.ALWAYS, Restart.ON_FAILURE])
    def test_one_that_restarts_itself_is_restarted(self, world: World, restart: Restart) -> None:
        row = world.make(Status.HEALTHY, restart=restart)
        lifecycle.sicken(row, "refused", misses=3, jitter=1, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.outcome, row.exit_cause) == (Status.RESTARTING, Status.BACKOFF, Cause.PROBE)
        assert row.retry_at == world.now + timedelta(seconds=0.25)
        assert (len(row.crashes), row.attempt) == (1, 1)
        assert world.kinds(row)[-2:] == ["unhealthy", "restarting"]

    def test_too_often(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        ManagedProcess.objects.update(crashes=[world.now.timestamp()] * 5)
        row = world.row(row)
        lifecycle.sicken(row, "refused", misses=3, jitter=1, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.outcome, row.exit_cause) == (Status.STOPPING, Status.CRASH_LOOP, Cause.PROBE)
        world.tell([row])
        world.advance()
        assert world.status(row) == Status.CRASH_LOOP
        assert world.kinds(row)[-4:] == ["unhealthy", "stopping", "stopped", "crash_loop"]


class TestEnded:
    @pytest.mark.parametrize(
        ("code", "cause", "status", "kind", "said"),
        [
            (0, "", Status.EXITED, "exited", ""),
            (3, Cause.CRASH, Status.FAILED, "crashed", "exit code 3\nlast words"),
            (-9, Cause.CRASH, Status.FAILED, "crashed", "killed by signal 9\nlast words"),
            (
                None,
                Cause.UNOBSERVED,
                Status.FAILED,
                "crashed",
                "ended while nobody watched; its exit code is not known\nlast words",
            ),
        ],
    )
    def test_how_it_ended(self, world: World, code, cause, status, kind, said) -> None:
        row = world.make(Status.HEALTHY)
        pid = row.pid
        world.advance(4)
        lifecycle.ended(row, code, members=[], tail="last words", jitter=1, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.exit_code, row.exit_cause, row.last_error) == (status, code, cause, said)
        assert (row.pid, row.ended_at, row.expires_at, row.next_probe_at) == (None, world.now, None, None)
        assert row.exits == [
            {"at": world.now.isoformat(), "generation": 1, "pid": pid, "code": code, "cause": cause, "up_s": 4.1}
        ]
        expected = {"generation": 1, "pid": pid, "exit_code": code, "cause": cause or None, "via": "sweep"}
        assert told(world, row, kind) == {name: value for name, value in expected.items() if value is not None}

    def test_a_policy_waits_before_the_next_start(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="on-failure")
        lifecycle.ended(row, 1, members=[], jitter=0.5, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.attempt, row.retry_at) == (
            Status.BACKOFF, 1, world.now + timedelta(seconds=0.125)
        )  # fmt: skip
        assert row.expires_at is not None
        assert told(world, row, "backoff")["attempt"] == 1

    def test_the_tenth_end_is_the_last_that_is_kept(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        ManagedProcess.objects.update(exits=[{"generation": number} for number in range(10)])
        row = world.row(row)
        lifecycle.ended(row, 1, members=[], jitter=1, by=SWEEP, now=world.now)
        assert [each["generation"] for each in world.row(row).exits] == [1, *range(9)]

    @pytest.mark.parametrize(("restart", "status"), [("never", Status.STOPPING), ("always", Status.RESTARTING)])
    @pytest.mark.parametrize("hidden", [False, True])
    def test_what_it_left_is_stopped_first(self, world: World, restart: str, status: Status, hidden: bool) -> None:
        row = world.make(Status.HEALTHY, restart=restart)
        left = {"members": [], "hidden": [901]} if hidden else {"members": [member()]}
        lifecycle.ended(row, 1, **left, jitter=1, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.members) == (status, [] if hidden else [[900, 5]])
        assert row.outcome == (Status.FAILED if restart == "never" else Status.BACKOFF)
        assert (row.pid is not None, row.exit_code, row.ended_at) == (True, 1, None)
        assert world.kinds(row)[-1] == "crashed"
        lifecycle.settle(row, 1, by=SWEEP, now=world.now)
        assert len(world.row(row).exits) == 1


class TestStopping:
    def test_who_is_to_go_is_noted_once(self, world: World) -> None:
        row = lifecycle.stop(world.make(Status.HEALTHY), by=ANNA, now=world.now)
        lifecycle.signalled(row, members=[member(), member(901)], kill_at=world.now + SOON, now=world.now)
        row = world.row(row)
        assert (row.term_at, row.kill_at, row.members) == (world.now, world.now + SOON, [[900, 5], [901, 5]])
        before = world.everything()
        with pytest.raises(Conflict):
            lifecycle.signalled(row, members=[], kill_at=world.now, now=world.now)
        assert world.everything() == before

    def test_of_thousands_some_hundred_are_noted(self, world: World) -> None:
        row = lifecycle.stop(world.make(Status.HEALTHY), by=ANNA, now=world.now)
        crowd = [member(900 + number) for number in range(2000)]
        lifecycle.signalled(row, members=crowd, kill_at=world.now, now=world.now)
        assert len(world.row(row).members) == 500

    def test_what_remains_is_told_when_it_changes(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        head = world.head
        for left in ([7], [7], [7, 8], []):
            lifecycle.remain(row, left, "still there", by=SWEEP, now=world.now)
        lefts = [event.payload["left"] for event in Event.objects.filter(pk__gt=head)]
        assert lefts == [[7], [7, 8], []]
        assert (world.row(row).left, world.row(row).last_error) == ([], "still there")

    def test_nothing_remains_of_another_generation(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        row.generation += 1
        before = world.everything()
        lifecycle.remain(row, [7], "still there", by=SWEEP, now=world.now)
        assert world.everything() == before

    def test_the_end_of_a_stop(self, world: World) -> None:
        row = world.make(Status.STOPPING)
        lifecycle.settle(row, -15, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.exit_code, row.exit_cause, row.pid) == (Status.EXITED, -15, Cause.USER, None)
        assert (row.outcome, row.term_at, row.kill_at, row.members) == ("", None, None, [])
        assert row.exits[0]["code"] == -15
        assert told(world, row, "stopped")["exit_code"] == -15

    def test_a_restart_begins_the_next_generation(self, world: World) -> None:
        row = world.make(Status.RESTARTING)
        lifecycle.settle(row, -15, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.generation, row.pid, row.exit_code) == (Status.STARTING, 2, None, None)
        assert (row.exits[0]["generation"], row.exits[0]["cause"], row.exit_cause) == (1, "user", "")

    def test_one_to_be_restarted_later_waits(self, world: World) -> None:
        row = world.make(Status.HEALTHY, restart="always")
        lifecycle.sicken(row, "no", misses=1, jitter=1, by=SWEEP, now=world.now)
        lifecycle.settle(row, -15, by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.generation, row.retry_at) == (Status.BACKOFF, 1, world.now + timedelta(seconds=0.25))
        assert world.kinds(row)[-2:] == ["stopped", "backoff"]

    def test_one_without_a_moment_to_wait_for_is_tried_now(self, world: World) -> None:
        row = world.make(Status.RESTARTING)
        ManagedProcess.objects.update(outcome=Status.BACKOFF)
        lifecycle.settle(world.row(row), None, by=SWEEP, now=world.now)
        assert world.row(row).retry_at == world.now

    def test_a_back_off_is_waited_for(self, world: World) -> None:
        row = world.make(Status.BACKOFF)
        before = world.everything()
        with pytest.raises(Conflict):
            lifecycle.respawn(row, by=SWEEP, now=world.now)
        assert world.everything() == before
        lifecycle.respawn(world.row(row), by=SWEEP, now=world.now + SOON)
        row = world.row(row)
        assert (row.status, row.generation, row.restarts, row.retry_at) == (Status.STARTING, 2, 1, None)
        payload = told(world, row, "restarting")
        assert (payload["cause"], payload["attempt"]) == ("crash", 1)


class TestOthers:
    def test_lost(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        lifecycle.lose(row, "the machine was restarted", by=SWEEP, now=world.now)
        row = world.row(row)
        assert (row.status, row.pid, row.exit_cause) == (Status.LOST, None, Cause.UNOBSERVED)
        assert (row.exits[0]["cause"], row.last_error) == ("unobserved", "the machine was restarted")
        assert told(world, row, "lost")["reason"] == "the machine was restarted"

    def test_a_warning_is_told_once(self, world: World) -> None:
        row = world.make(Status.HEALTHY, ttl_minutes=10)
        lifecycle.warn(row, by=SWEEP, now=world.now)
        assert world.kinds(row)[-1] == "healthy"
        late = world.now + timedelta(minutes=6)
        for _ in range(2):
            lifecycle.warn(row, by=SWEEP, now=late)
        assert row.expires_at is not None
        assert world.kinds(row)[-2:] == ["healthy", "expiring"]
        assert told(world, row, "expiring")["expires_at"] == row.expires_at.isoformat()

    def test_adopted_ones_are_what_they_were(self, world: World) -> None:
        rows = [world.make(Status.HEALTHY), world.make(Status.UNHEALTHY)]
        before = world.everything()[0]
        lifecycle.adopt(rows, by=SWEEP, now=world.now)
        assert world.everything()[0] == before
        assert [world.kinds(row)[-1] for row in rows] == ["adopted", "adopted"]

    def test_the_database_refuses_what_cannot_be(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        rows = ManagedProcess.objects.filter(pk=row.pk)
        for wrong in (
            {"pid": None},
            {"pid": 1},
            {"status": "odd"},
            {"purpose": "odd"},
            {"status": Status.EXITED},
            {"status": Status.STOPPING},
            {"status": Status.BACKOFF},
            {"pid": None, "start_ticks": None, "boot_id": ""},
        ):
            with pytest.raises(IntegrityError), transaction.atomic():
                rows.update(**wrong)


class TestOnEnd:
    """What the apps above hear of an end, in the transaction that records it."""

    @pytest.fixture
    def heard(self, world: World) -> list[tuple[str, str, str]]:
        found: list[tuple[str, str, str]] = []

        def hear(row: ManagedProcess, by: By, now: datetime) -> None:
            assert transaction.get_connection().in_atomic_block
            found.append((row.name, row.status, by.name))

        lifecycle.on_end[Purpose.WORKER] = hear
        return found

    def test_once_for_each_end_of_its_purpose(self, world: World, heard: list[Any]) -> None:
        worker, loop, service = world.launch(), world.launch(Purpose.LOOP), world.make(Status.HEALTHY)
        for row in (worker, loop, service):
            world.crash(row, 0)
        assert heard == [("t-1", Status.EXITED, "andon")]
        again = world.launch()
        lifecycle.stop(again, by=ANNA, now=world.now)
        assert len(heard) == 1
        world.tell([again])
        world.advance()
        world.tell([again])
        assert heard[1:] == [("t-1", Status.EXITED, "andon")]
        third = world.launch()
        lifecycle.force(third, "stuck", by=ANNA, now=world.now)
        assert heard[2:] == [("t-1", Status.LOST, "user:anna")]

    def test_a_start_that_fails_is_an_end(self, world: World, heard: list[Any]) -> None:
        world.launch(cwd="/nowhere")
        assert heard == [("t-1", Status.FAILED, "andon")]

    def test_when_it_raises_nothing_has_ended(self, world: World) -> None:
        def refuse(row: ManagedProcess, by: By, now: datetime) -> None:
            raise DomainError("no", "Not now.")

        row = world.launch()
        lifecycle.on_end[Purpose.WORKER] = refuse
        before = world.everything()
        with pytest.raises(DomainError):
            lifecycle.ended(row, 0, members=[], jitter=1, by=SWEEP, now=world.now)
        assert world.everything() == before


class TestLoop:
    def test_the_importer_tells_of_its_end(self, world: World) -> None:
        row = world.launch(Purpose.LOOP, "loop")
        lifecycle.stop(row, by=ANNA, now=world.now)
        world.tell([row])
        world.advance()
        assert world.status(row) == Status.EXITED
        kinds = list(Event.objects.filter(subject="project:demo").order_by("pk").values_list("kind", flat=True))
        assert kinds == ["loop.declared", "loop.stopping"]
        assert world.sent(Identity("test-node", "fake-boot", row.pid or 0, row.start_ticks or 0)) == [TERM]
