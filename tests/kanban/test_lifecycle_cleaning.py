"""A clean-up is asked for, once at a time for each host, and finished once; who asked is told with what went."""

from datetime import datetime, timedelta

import pytest
from django.db import IntegrityError

from kanban import lifecycle
from kanban.models import CleanUp
from projects.errors import Conflict
from projects.models import Event
from projects.states import Via
from tests.kanban.rows import ANNA

pytestmark = pytest.mark.django_db


def events() -> list[Event]:
    return list(Event.objects.filter(kind__startswith="cleanup.").order_by("pk"))


def test_asking_commits_the_intent_and_tells_who(now: datetime) -> None:
    row = lifecycle.ask_clean_up("box", by=ANNA, now=now)
    assert (row.node, row.asked_by, row.asked_at, row.ended_at) == ("box", "user:anna", now, None)
    [event] = events()
    assert (event.kind, event.subject, event.actor) == ("cleanup.asked", "cleanup:box", "user:anna")
    assert event.payload == {"via": "page", "address": "10.0.0.1"}


def test_asking_twice_is_asking_once_until_it_is_over(now: datetime) -> None:
    row = lifecycle.ask_clean_up("box", by=ANNA, now=now)
    assert lifecycle.ask_clean_up("box", by=ANNA, now=now + timedelta(seconds=1)).pk == row.pk
    assert lifecycle.ask_clean_up("other", by=ANNA, now=now).pk != row.pk
    assert len(events()) == 2
    lifecycle.finish_clean_up(row, {}, now=now)
    assert lifecycle.ask_clean_up("box", by=ANNA, now=now).pk != row.pk


def test_who_asks_at_the_same_moment_gets_the_one_that_was_first(now: datetime, monkeypatch) -> None:
    lifecycle.ask_clean_up("box", by=ANNA, now=now)
    real, looks = CleanUp.objects.filter, []

    def look(**about):
        looks.append(about)
        return real(**about) if len(looks) > 1 else CleanUp.objects.none()

    monkeypatch.setattr(CleanUp.objects, "filter", look)
    row = lifecycle.ask_clean_up("box", by=ANNA, now=now + timedelta(seconds=1))
    assert row.asked_at == now
    assert len(events()) == 1
    assert CleanUp.objects.count() == 1


def test_two_open_ones_of_a_host_cannot_be(now: datetime) -> None:
    fields = {"node": "box", "asked_by": "a", "asked_via": "page", "asked_at": now}
    CleanUp.objects.create(**fields, ended_at=now)
    CleanUp.objects.create(**fields)
    with pytest.raises(IntegrityError):
        CleanUp.objects.create(**fields)


def test_its_end_tells_who_asked_and_what_went_in_a_small_flat_payload(now: datetime) -> None:
    row = lifecycle.ask_clean_up("box", by=ANNA, now=now)
    later = now + timedelta(seconds=3)
    removed = {"workspaces": 2, "bytes": 1000, "events": 0}
    row = lifecycle.finish_clean_up(row, removed, failed=["logs"], left=True, now=later)
    assert (row.ended_at, row.removed, row.failed, row.left) == (
        later,
        {"workspaces": 2, "bytes": 1000},
        ["logs"],
        True,
    )
    event = events()[-1]
    assert (event.kind, event.actor, event.at) == ("cleanup.completed", "user:anna", later)
    told = {"workspaces": 2, "bytes": 1000, "failed": ["logs"], "left": True}
    assert event.payload == {**told, "via": "page", "address": "10.0.0.1"}
    assert lifecycle.asker(row).via is Via.PAGE


def test_what_is_over_is_not_finished_again(now: datetime) -> None:
    row = lifecycle.ask_clean_up("box", by=ANNA, now=now)
    lifecycle.finish_clean_up(row, {"events": 1}, now=now)
    with pytest.raises(Conflict, match="over already"):
        lifecycle.finish_clean_up(row, {}, now=now)
    assert len(events()) == 2
    assert CleanUp.objects.get().removed == {"events": 1}
