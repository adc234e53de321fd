"""The machine of a worker's host, every verb from every state."""

import contextlib
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest

from projects.errors import Conflict
from projects.events import By
from projects.models import Event
from services import lifecycle
from services.models import WorkerHost
from services.processes import Identity
from services.states import HOST_MOVES, HostStatus

BY = By("worker:n1", "sweep")
WORKER = Identity(host="n1", boot_id="b" * 36, pid=4242, start_ticks=7)
# What a beat writes whatever the state.
BEATS = {"tick_at", "told_at", "jobs", "watching"}

Verb = Callable[[WorkerHost, datetime], Any]


def enlist(host: WorkerHost | None, now: datetime) -> WorkerHost:
    return lifecycle.enlist(WORKER, host_name="loom", version="1", by=BY, now=now)


VERBS: dict[str, tuple[Verb, str]] = {
    "enlist": (enlist, "worker.started"),
    "recover": (
        lambda host, now: lifecycle.beat(host, jobs={}, watching=host.watching, by=BY, now=now),
        "worker.recovered",
    ),
    "silence": (lambda host, now: lifecycle.silence(host, by=BY, now=now), "worker.silent"),
    "leave": (lambda host, now: lifecycle.leave(host, by=BY, now=now), "worker.stopped"),
}


def make_host(status: HostStatus, now: datetime) -> WorkerHost:
    """Return a host that came to a state by the real verbs; its last tick is 20 s old."""
    host = enlist(None, now - timedelta(seconds=20))
    match status:
        case HostStatus.SILENT:
            assert lifecycle.silence(host, by=BY, now=now)
        case HostStatus.STOPPED:
            lifecycle.leave(host, by=BY, now=now)
    host.refresh_from_db()
    assert host.status == status
    return host


def fields_of(host: WorkerHost) -> dict[str, Any]:
    return WorkerHost.objects.filter(pk=host.pk).values().get()


def test_the_walk_knows_every_verb() -> None:
    assert set(VERBS) == set(HOST_MOVES)


@pytest.mark.django_db
@pytest.mark.parametrize("status", HostStatus)
@pytest.mark.parametrize("verb", HOST_MOVES)
def test_a_verb_moves_along_the_table_or_not_at_all(verb: str, status: HostStatus, now: datetime) -> None:
    host = make_host(status, now)
    before, head = fields_of(host), Event.objects.latest("id").pk
    act, kind = VERBS[verb]
    sources, target = HOST_MOVES[verb]
    with contextlib.nullcontext() if status in sources else contextlib.suppress(Conflict):
        act(host, now)
    told = list(Event.objects.filter(pk__gt=head).values_list("kind", "subject"))
    if status in sources:
        assert fields_of(host)["status"] == target
        assert told == [(kind, "worker:n1")]
    else:
        unmoved = {name for name in before if verb != "recover" or name not in BEATS}
        assert {name: fields_of(host)[name] for name in unmoved} == {name: before[name] for name in unmoved}
        assert told == []


@pytest.mark.django_db
def test_a_stopped_host_cannot_leave_again(now: datetime) -> None:
    with pytest.raises(Conflict, match="illegal-transition"):
        lifecycle.leave(make_host(HostStatus.STOPPED, now), by=BY, now=now)
