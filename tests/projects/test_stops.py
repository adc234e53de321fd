"""Verbs on the stops of loops: every move along STOP_MOVES and none beside it."""

import itertools
from datetime import timedelta

import pytest
from django.db import IntegrityError, transaction

from projects.errors import Conflict, Rejected
from projects.events import By
from projects.lifecycle import stops
from projects.models import Event, LoopStop, Project
from projects.states import STOP_MOVES, STOP_OPEN, StopStatus
from services.processes import Identity

ANNA = By("user:anna", "page", "10.0.0.1")
BEN = By("token:ben", "api", "10.0.0.2")
LEADER = Identity("test-node", "boot-1", 400, 77)
MEMBERS = [Identity("test-node", "boot-1", 402, 79), Identity("test-node", "boot-1", 401, 78)]


@pytest.fixture
def project(db, now) -> Project:
    return Project.objects.create(slug="demo", name="demo", node="test-node", path="/demo", found_at=now)


@pytest.fixture
def make(project, now):
    """Return a stop that came to a state by the real verbs."""

    def one(status: StopStatus = StopStatus.ASKED, grace_s: int = 10) -> LoopStop:
        row = stops.ask(project, grace_s=grace_s, by=ANNA, now=now)
        if status == StopStatus.STOPPED:
            stops.settle(row, killed=False, detail="already stopped", now=now)
        elif status == StopStatus.REFUSED:
            stops.refuse(row, "no-pid-file", "There is none.", now=now)
        elif status != StopStatus.ASKED:
            stops.signal(row, LEADER, MEMBERS, now + timedelta(seconds=grace_s), now)
        if status == StopStatus.KILLED:
            stops.note_kill(row)
            stops.settle(row, killed=True, now=now)
        assert fresh(row).status == row.status == status
        return row

    return one


def fresh(row: LoopStop) -> LoopStop:
    return LoopStop.objects.get(pk=row.pk)


def told() -> list[tuple[str, str, str, str]]:
    rows = Event.objects.order_by("id")
    return list(rows.values_list("kind", "subject", "project", "actor"))


def call(verb: str, row: LoopStop, now) -> None:
    match verb:
        case "signal":
            stops.signal(row, LEADER, MEMBERS, now + timedelta(seconds=row.grace_s), now)
        case "settle":
            stops.settle(row, killed=False, now=now)
        case "settle_killed":
            stops.settle(row, killed=True, now=now)
        case "refuse":
            stops.refuse(row, "no-pid-file", "There is none.", now=now)


@pytest.mark.parametrize(("verb", "status"), [*itertools.product(STOP_MOVES, StopStatus)])
def test_every_move_of_the_table_and_no_other(make, now, verb, status):
    row = make(status)
    before, events = LoopStop.objects.filter(pk=row.pk).values().get(), told()
    sources, target = STOP_MOVES[verb]
    if status in sources:
        call(verb, row, now)
        assert (fresh(row).status, fresh(row).is_open) == (target, target in STOP_OPEN)
        return
    with pytest.raises(Conflict, match="illegal-transition"):
        call(verb, row, now)
    assert (LoopStop.objects.filter(pk=row.pk).values().get(), told()) == (before, events)


class TestAsk:
    def test_one(self, project, now):
        row = fresh(stops.ask(project, grace_s=10, by=ANNA, now=now))
        assert (row.project, row.node, row.status, row.grace_s, row.process) == ("demo", "test-node", "asked", 10, None)
        assert (row.asked_by, row.asked_via, row.asked_from, row.asked_at) == ("user:anna", "page", "10.0.0.1", now)
        assert stops.by_of(row) == ANNA
        event = Event.objects.get()
        assert (event.kind, event.subject, event.project, event.actor, event.at) == (
            *("loop.stop_asked", "project:demo", "demo", "user:anna"),
            now,
        )
        assert event.payload == {"grace_s": 10, "via": "page", "address": "10.0.0.1"}

    def test_of_a_loop_that_is_known(self, project, now):
        project.pid = 400
        stops.ask(project, grace_s=0, by=ANNA, now=now)
        assert Event.objects.get().payload["pid"] == 400

    def test_of_a_managed_process_its_own_verb_tells(self, project, now):
        row = stops.ask(project, grace_s=10, process=7, by=ANNA, now=now)
        assert stops.ask(project, grace_s=1, process=7, by=BEN, now=now) == row
        assert (fresh(row).process, fresh(row).grace_s, told()) == (7, 1, [])

    @pytest.mark.parametrize("grace_s", [-1, 86_401, 1.5, "10", True, None])
    def test_a_grace_that_is_none(self, project, now, grace_s):
        with pytest.raises(Rejected, match="grace-invalid"):
            stops.ask(project, grace_s=grace_s, by=ANNA, now=now)
        assert (LoopStop.objects.count(), told()) == (0, [])

    @pytest.mark.parametrize("grace_s", [0, 86_400])
    def test_the_shortest_and_the_longest(self, project, now, grace_s):
        assert fresh(stops.ask(project, grace_s=grace_s, by=ANNA, now=now)).grace_s == grace_s

    def test_a_second_one_joins_and_shortens_the_grace(self, project, make, now):
        row = make()
        assert stops.ask(project, grace_s=3, by=BEN, now=now) == row
        assert (fresh(row).grace_s, fresh(row).asked_by, fresh(row).kill_at) == (3, "user:anna", None)
        assert [(event.actor, event.payload["grace_s"]) for event in Event.objects.order_by("id")] == [
            ("user:anna", 10),
            ("token:ben", 3),
        ]

    @pytest.mark.parametrize("grace_s", [10, 11])
    def test_a_second_one_never_lengthens_it(self, project, make, now, grace_s):
        row = make()
        assert stops.ask(project, grace_s=grace_s, by=BEN, now=now) == row
        assert (fresh(row).grace_s, len(told())) == (10, 1)

    def test_a_second_one_brings_the_kill_nearer(self, project, make, now):
        row = make(StopStatus.ENDING)
        later = now + timedelta(seconds=4)
        stops.ask(project, grace_s=1, by=BEN, now=later)
        assert (fresh(row).kill_at, fresh(row).grace_s) == (now + timedelta(seconds=5), 1)
        assert (told()[-1], Event.objects.last() is not None) == (
            ("loop.stop_asked", "project:demo", "demo", "token:ben"),
            True,
        )

    @pytest.mark.parametrize("grace_s", [6, 7, 9])
    def test_a_second_one_never_puts_the_kill_off(self, project, make, now, grace_s):
        row = make(StopStatus.ENDING)
        stops.ask(project, grace_s=grace_s, by=BEN, now=now + timedelta(seconds=4))
        assert (fresh(row).kill_at, fresh(row).grace_s, len(told())) == (now + timedelta(seconds=10), 10, 1)

    @pytest.mark.parametrize("status", sorted(set(StopStatus) - STOP_OPEN))
    def test_after_one_that_is_over_a_new_one(self, project, make, now, status):
        row = make(status)
        assert stops.ask(project, grace_s=10, by=BEN, now=now) != row

    def test_of_another_project(self, project, make, now):
        make()
        other = Project.objects.create(slug="other", name="other", node="test-node", path="/other", found_at=now)
        assert stops.ask(other, grace_s=5, by=BEN, now=now).project == "other"
        assert LoopStop.objects.count() == 2

    def test_two_open_ones_cannot_be(self, make, now):
        row = make()
        row.pk = None
        with pytest.raises(IntegrityError), transaction.atomic():
            row.save(force_insert=True)


class TestOutcomes:
    def test_signal_keeps_whom_it_is_about(self, make, now):
        row = fresh(make(StopStatus.ENDING))
        assert (row.pid, row.start_ticks, row.boot_id) == (400, 77, "boot-1")
        assert row.members == [[401, 78], [402, 79]]
        assert (row.term_at, row.kill_at, row.ended_at) == (now, now + timedelta(seconds=10), None)
        assert len(told()) == 1

    def test_without_grace_there_is_no_term(self, make, now):
        row = fresh(make(StopStatus.ENDING, grace_s=0))
        assert (row.term_at, row.kill_at) == (None, now)

    def test_signal_with_a_grace_that_was_shortened_meanwhile(self, project, make, now):
        row = make()
        stops.ask(project, grace_s=2, by=BEN, now=now)
        with pytest.raises(Conflict, match="illegal-transition"):
            call("signal", row, now)
        assert fresh(row).status == StopStatus.ASKED

    def test_settle_tells_nothing(self, make, now):
        row = fresh(make(StopStatus.STOPPED))
        assert (row.ended_at, row.detail, row.code) == (now, "already stopped", "")
        assert [kind for kind, *_ in told()] == ["loop.stop_asked"]

    def test_settle_of_one_that_was_killed(self, make, now):
        row = make(StopStatus.ENDING)
        stops.note_kill(row)
        assert (fresh(row).code, row.code) == (stops.KILLING, stops.KILLING)
        stops.note_left(row, {402, 400}, now + timedelta(seconds=11))
        assert fresh(row).left == [400, 402]
        stops.settle(row, killed=True, detail="late", now=now)
        row = fresh(row)
        assert (row.status, row.code, row.detail, row.left, row.ended_at) == ("killed", "", "late", [], now)

    def test_how_far_it_has_come_is_noted(self, make, now):
        row = make(StopStatus.ENDING)
        assert row.code == ""
        for code in (stops.LEADER_ASKED, stops.ASKED, stops.KILLING):
            stops.note_kill(row) if code == stops.KILLING else stops.note_asked(row, code)
            assert (fresh(row).code, row.code) == (code, code)
        stops.settle(row, killed=True, now=now)
        assert (fresh(row).code, len(told())) == ("", 1)

    def test_refuse_says_why(self, make, now):
        row = fresh(make(StopStatus.REFUSED))
        assert (row.code, row.detail, row.ended_at) == ("no-pid-file", "There is none.", now)
        assert told()[1] == ("loop.stop_refused", "project:demo", "demo", "user:anna")
        assert Event.objects.order_by("id")[1].payload == {
            "code": "no-pid-file",
            "reason": "There is none.",
            "via": "page",
            "address": "10.0.0.1",
        }

    def test_a_detail_that_no_database_takes(self, make, now):
        row = make()
        stops.refuse(row, "no-pid-file", "a\x00b\udc80" + "x" * 600, now=now)
        assert fresh(row).detail.startswith("ab?x")
        assert len(fresh(row).detail) == 500

    @pytest.mark.parametrize("status", sorted(set(StopStatus) - {StopStatus.ENDING}))
    def test_only_what_is_ending_is_noted(self, make, now, status):
        row = make(status)
        with pytest.raises(Conflict):
            stops.note_kill(row)
        with pytest.raises(Conflict):
            stops.note_asked(row, stops.ASKED)
        with pytest.raises(Conflict):
            stops.note_left(row, [400], now + timedelta(days=1))
        assert (fresh(row).code in {stops.KILLING, stops.ASKED}, fresh(row).left) == (False, [])

    def test_nobody_is_left_before_the_kill(self, make, now):
        row = make(StopStatus.ENDING)
        with pytest.raises(Conflict):
            stops.note_left(row, [400], now + timedelta(seconds=9))
        assert fresh(row).left == []
