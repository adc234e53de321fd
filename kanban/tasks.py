"""Huey's jobs of this app, one line each."""

from django.utils import timezone

from kanban import cleaning, dispatch, notices, retention, sweeps
from projects.jobs import every


@every(seconds=5)
def run_pass() -> dict[str, int] | None:
    return sweeps.tick()


@every(seconds=1)
def settle_left() -> int:
    return sweeps.settle_left()


@every(seconds=1)
def deliver_notices() -> dict[str, int]:
    return notices.tick(now=timezone.now())


@every(seconds=60)
def prune_notices() -> int:
    return notices.prune(now=timezone.now())


@every(seconds=30)
def find_profiles() -> int:
    return sweeps.find_profiles(now=timezone.now())


@every(seconds=60)
def prune_events() -> int:
    return retention.prune_events(now=timezone.now())


@every(seconds=60)
def prune_logs() -> int:
    return len(retention.prune_logs(now=timezone.now()).gone)


@every(seconds=60)
def prune_workspaces() -> int:
    return len(retention.prune_workspaces(now=timezone.now()).gone)


@every(seconds=5)
def clean_up() -> int:
    return cleaning.sweep()


# The worker runs what commits and orders enqueue.
look, act = dispatch.look, cleaning.act
