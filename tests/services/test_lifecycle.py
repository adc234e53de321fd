"""The lease of a node: one worker, seen when it ticks and when it does not."""

import os
import subprocess
from datetime import timedelta

import pytest

from projects.errors import Conflict
from projects.events import SWEEP
from projects.models import Event, Project
from services import lifecycle, processes, sweeps
from services.models import WorkerHost
from services.processes import Identity

pytestmark = pytest.mark.django_db


def me() -> Identity:
    return processes.identify(os.getpid(), "n1")


def enlist(identity: Identity, now):
    return lifecycle.enlist(identity, host_name="box", version="1", by=SWEEP, now=now)


def kinds() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


def test_a_worker_takes_the_lease_ticks_and_leaves(now):
    host = enlist(me(), now)
    lifecycle.beat(host, jobs={"a": 1}, watching="inotify", by=SWEEP, now=now + timedelta(seconds=5))
    host.refresh_from_db()
    assert (host.status, host.jobs, host.watching) == ("ticking", {"a": 1}, "inotify")
    lifecycle.leave(host, by=SWEEP, now=now)
    assert kinds() == ["worker.started", "worker.heartbeat", "worker.stopped"]
    with pytest.raises(Conflict):
        lifecycle.leave(host, by=SWEEP, now=now)


def test_heartbeats_are_told_once_a_minute(now):
    host = enlist(me(), now)
    for second in range(0, 130, 5):
        lifecycle.beat(host, jobs={}, watching="", by=SWEEP, now=now + timedelta(seconds=second))
    assert kinds().count("worker.heartbeat") == 2


def test_another_live_worker_on_the_node_is_refused(now):
    other = subprocess.Popen(["sleep", "30"])
    try:
        enlist(processes.identify(other.pid, "n1"), now)
        with pytest.raises(Conflict, match="ANDON_NODE"):
            enlist(me(), now + timedelta(seconds=5))
        assert WorkerHost.objects.get().pid == other.pid
        # Silent for 15 s it has lost the lease, alive or not.
        enlist(me(), now + timedelta(seconds=16))
    finally:
        other.kill()
        other.wait()


def test_a_killed_workers_lease_is_free_at_once(now):
    other = subprocess.Popen(["sleep", "30"])
    enlist(processes.identify(other.pid, "n1"), now)
    other.kill()
    other.wait()
    assert enlist(me(), now + timedelta(seconds=1)).pid == os.getpid()


def test_a_worker_of_another_boot_that_ticks_is_not_taken_for_dead(now):
    real = me()
    elsewhere = Identity("n1", "00000000-0000-0000-0000-000000000000", 4242, 1)
    enlist(elsewhere, now)
    with pytest.raises(Conflict):
        enlist(real, now + timedelta(seconds=5))
    assert enlist(real, now + timedelta(seconds=15)).pid == os.getpid()


def test_silence_is_told_once_and_recovery_too(now):
    host = enlist(me(), now)
    assert sweeps.find_silent(now=now + timedelta(seconds=15)) == 0
    later = now + timedelta(seconds=16)
    assert [sweeps.find_silent(now=later), sweeps.find_silent(now=later)] == [1, 0]
    lifecycle.beat(host, jobs={}, watching="", by=SWEEP, now=later)
    assert kinds() == ["worker.started", "worker.silent", "worker.recovered"]
    assert WorkerHost.objects.get().status == "ticking"


def test_a_beat_costs_few_queries(now, django_assert_max_num_queries):
    host = enlist(me(), now)
    with django_assert_max_num_queries(6):
        lifecycle.beat(host, jobs={}, watching="", by=SWEEP, now=now)


def test_a_tick_that_came_just_before_is_no_silence(now):
    host = enlist(me(), now)
    lifecycle.beat(host, jobs={}, watching="", by=SWEEP, now=now + timedelta(seconds=10))
    # Found late by a web process that looked before the beat.
    assert lifecycle.silence(host, by=SWEEP, now=now + timedelta(seconds=20)) is False
    assert WorkerHost.objects.get().status == "ticking"
    assert lifecycle.silence(host, by=SWEEP, now=now + timedelta(seconds=26)) is True


def test_a_worker_that_lost_its_lease_ticks_no_more(now):
    first = enlist(Identity("n1", processes.boot_id(), 4_000_001, 1), now)
    second = enlist(me(), now + timedelta(seconds=16))
    with pytest.raises(Conflict, match="taken the lease"):
        lifecycle.beat(first, jobs={}, watching="", by=SWEEP, now=now + timedelta(seconds=17))
    with pytest.raises(Conflict):
        lifecycle.leave(first, by=SWEEP, now=now + timedelta(seconds=17))
    lifecycle.beat(second, jobs={}, watching="", by=SWEEP, now=now + timedelta(seconds=18))
    assert WorkerHost.objects.get().status == "ticking"


@pytest.mark.parametrize("how", ["stopped", "silent"])
def test_a_host_that_will_not_come_back_is_forgotten_with_its_projects(now, how):
    host = enlist(me(), now)
    for slug, node in (("a", "n1"), ("b", "n1"), ("c", "n2")):
        Project.objects.create(slug=slug, node=node, path=f"/{slug}", name=slug, found_at=now)
    if how == "stopped":
        lifecycle.leave(host, by=SWEEP, now=now)
    late = now + timedelta(seconds=0 if how == "stopped" else 16)
    assert lifecycle.forget(host, by=SWEEP, now=late) == 2
    assert not WorkerHost.objects.exists()
    assert [project.slug for project in Project.objects.all()] == ["c"]
    event = Event.objects.latest("id")
    assert (event.kind, event.subject, event.payload["projects"]) == ("worker.forgotten", "worker:n1", 2)


def test_a_host_that_ticks_is_not_forgotten(now):
    host = enlist(me(), now)
    with pytest.raises(Conflict, match="host-ticks"):
        lifecycle.forget(host, by=SWEEP, now=now + timedelta(seconds=15))
    assert WorkerHost.objects.exists()
