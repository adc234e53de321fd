"""The machines as data, the walk along the table, and what the restart policy makes of an end."""

from datetime import timedelta
from typing import Any

import pytest
from django.db import transaction
from hypothesis import given
from hypothesis import strategies as some

from projects.errors import Conflict
from projects.events import writing
from services.lifecycle import moves
from services.models import ManagedProcess
from services.states import (
    CRASHES_ALLOWED,
    ENDED,
    GOING,
    LIVE,
    PROCESS_MOVES,
    UP,
    Cause,
    Next,
    Restart,
    Status,
    after_end,
)
from tests.services.world import ANNA, World

NOT_ASKED = ["", Cause.CRASH, Cause.PROBE, Cause.UNOBSERVED]
AT = 1_800_000_000.0


def after(cause: str, code: int | None, restart: str, **about: Any) -> Next:
    about = {"crashes": (), "attempt": 0, "up_s": 5.0, "at": AT, "jitter": 1.0, **about}
    return after_end(cause, code, restart, **about)


class TestTable:
    def test_every_status_is_live_or_ended(self) -> None:
        assert set(Status) == LIVE | ENDED
        assert not LIVE & ENDED
        assert UP | GOING | {Status.BACKOFF} == LIVE

    @pytest.mark.parametrize("verb", ["stop", "lose", "force"])
    def test_every_live_state_can_be_left_by(self, verb: str) -> None:
        assert PROCESS_MOVES[verb][0] | GOING == LIVE

    def test_every_state_is_reached_by_a_verb_and_left_by_one(self) -> None:
        assert {target for _, target in PROCESS_MOVES.values()} == set(Status)
        assert frozenset().union(*(sources for sources, _ in PROCESS_MOVES.values())) == set(Status)

    @pytest.mark.parametrize("status", Status)
    def test_move_goes_along_the_table_or_not_at_all(self, world: World, status: Status) -> None:
        row = world.make(status)
        before = world.everything()
        for verb, (sources, target) in PROCESS_MOVES.items():
            mark = transaction.savepoint()
            if status in sources:
                with writing():
                    moves.move(row, verb, now=world.now, by=ANNA, start=verb == "start", **fitting(row, target))
                assert world.status(row) == target, verb
                assert row.generation == before[0][0]["generation"] + (verb == "start")
            else:
                with pytest.raises(Conflict, match="illegal-transition"), writing():
                    moves.move(row, verb, now=world.now, by=ANNA, **fitting(row, target))
                assert world.everything() == before, verb
            transaction.savepoint_rollback(mark)
            row.refresh_from_db()

    def test_another_generation_moves_nothing(self, world: World) -> None:
        row = world.make(Status.HEALTHY)
        row.generation += 1
        before = world.everything()
        with pytest.raises(Conflict, match="changed meanwhile"), writing():
            moves.move(row, "stop", now=world.now, by=ANNA, outcome=Status.EXITED)
        assert world.everything() == before

    def test_since_is_when_the_status_changed(self, world: World) -> None:
        row = world.make(Status.STARTING)
        since = row.since
        world.advance(3)
        with writing():
            moves.move(row, "spawn", now=world.now, by=ANNA)
        assert world.row(row).since == since
        with writing():
            moves.move(row, "heal", now=world.now, by=ANNA)
        assert world.row(row).since == world.now == since + timedelta(seconds=3)


def fitting(row: ManagedProcess, target: Status) -> dict[str, Any]:
    """Return fields with which a row may be in a state."""
    fields: dict[str, Any] = {"outcome": Status.EXITED if target in GOING else ""}
    if target in UP - {Status.STARTING}:
        return {**fields, "pid": 77, "start_ticks": 1, "boot_id": "b"}
    if target in GOING:
        return fields
    return {**fields, "pid": None, "start_ticks": None, "boot_id": "", "retry_at": row.since}


class TestPolicy:
    @pytest.mark.parametrize(
        ("cause", "status"),
        [
            (Cause.USER, Status.EXITED),
            (Cause.SHUTDOWN, Status.EXITED),
            (Cause.PROJECT_REMOVED, Status.EXITED),
            (Cause.TTL, Status.EXPIRED),
            (Cause.REPLACED, Status.STARTING),
        ],
    )
    @pytest.mark.parametrize("restart", Restart)
    def test_what_was_asked_for_comes_whatever_the_policy(self, cause: Cause, status: Status, restart: Restart) -> None:
        for code in (0, 1, -9, None):
            assert after(cause, code, restart, crashes=[AT] * 9, attempt=9) == Next(status)

    @pytest.mark.parametrize(
        ("cause", "code", "never", "on_failure", "always"),
        [
            ("", 0, Status.EXITED, Status.EXITED, Status.BACKOFF),
            (Cause.CRASH, 0, Status.EXITED, Status.EXITED, Status.BACKOFF),
            (Cause.CRASH, 1, Status.FAILED, Status.BACKOFF, Status.BACKOFF),
            (Cause.CRASH, -9, Status.FAILED, Status.BACKOFF, Status.BACKOFF),
            (Cause.UNOBSERVED, None, Status.FAILED, Status.BACKOFF, Status.BACKOFF),
            (Cause.PROBE, None, Status.FAILED, Status.BACKOFF, Status.BACKOFF),
            (Cause.PROBE, 0, Status.FAILED, Status.BACKOFF, Status.BACKOFF),
        ],
    )
    def test_what_was_not_follows_the_policy(self, cause, code, never, on_failure, always) -> None:
        found = [after(cause, code, restart).status for restart in ("never", "on-failure", "always")]
        assert found == [never, on_failure, always]

    def test_the_delay_doubles_up_to_a_minute(self) -> None:
        delays = [after(Cause.CRASH, 1, Restart.ALWAYS, attempt=attempt).delay_s for attempt in range(12)]
        assert delays == [0.25, 0.5, 1, 2, 4, 8, 16, 32, 60, 60, 60, 60]

    def test_jitter_is_full(self) -> None:
        delays = [after(Cause.CRASH, 1, Restart.ALWAYS, attempt=4, jitter=part).delay_s for part in (0.0, 0.5, 1.0)]
        assert delays == [0, 2, 4]

    def test_the_sixth_end_within_ten_minutes_is_a_crash_loop(self) -> None:
        crashes: tuple[float, ...] = ()
        found = []
        for number in range(6):
            then = after(Cause.CRASH, 1, Restart.ON_FAILURE, crashes=crashes, at=AT + 60 * number, attempt=number)
            crashes = then.crashes
            found.append(then.status)
        assert found == [Status.BACKOFF] * 5 + [Status.CRASH_LOOP]

    def test_what_is_ten_minutes_old_counts_no_more(self) -> None:
        young = [AT - 599, AT - 500, AT - 400, AT - 300, AT - 200]
        assert after(Cause.CRASH, 1, Restart.ALWAYS, crashes=young).status == Status.CRASH_LOOP
        old = [AT - 600, *young[1:]]
        then = after(Cause.CRASH, 1, Restart.ALWAYS, crashes=old)
        assert (then.status, then.crashes) == (Status.BACKOFF, (*young[1:], AT))

    def test_ten_stable_minutes_forgive_all(self) -> None:
        crashes = [AT - 5] * 5
        almost = after(Cause.CRASH, 1, Restart.ALWAYS, crashes=crashes[:4], attempt=7, up_s=599.9)
        assert (almost.delay_s, almost.attempt, len(almost.crashes)) == (32, 8, 5)
        assert after(Cause.CRASH, 1, Restart.ALWAYS, crashes=crashes, attempt=7, up_s=600) == Next(
            Status.BACKOFF, 0.25, (AT,), 1
        )

    @given(
        cause=some.sampled_from(NOT_ASKED),
        code=some.none() | some.integers(-64, 255),
        restart=some.sampled_from(list(Restart)),
        ages=some.lists(some.floats(0, 2000), max_size=12),
        attempt=some.integers(0, 10**6),
        up_s=some.floats(0, 10**6),
        jitter=some.floats(0, 1),
    )
    def test_in_any_case(self, cause, code, restart, ages, attempt, up_s, jitter) -> None:
        crashes = [AT - age for age in ages]
        then = after(cause, code, restart, crashes=crashes, attempt=attempt, up_s=up_s, jitter=jitter)
        failed = cause == Cause.PROBE or code != 0
        recent = [] if up_s >= 600 else [each for each in crashes if AT - each < 600]
        if restart == Restart.NEVER or (restart == Restart.ON_FAILURE and not failed):
            assert then == Next(Status.FAILED if failed else Status.EXITED)
        elif len(recent) >= CRASHES_ALLOWED:
            assert then.status == Status.CRASH_LOOP
        else:
            assert then.status == Status.BACKOFF
            tries = 0 if up_s >= 600 else attempt
            assert 0 <= then.delay_s <= min(60, 0.25 * 2 ** min(tries, 10))
            assert then.attempt == tries + 1
            assert then.crashes == (*recent, AT)
