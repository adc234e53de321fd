"""Huey's jobs of this app, one line each; without a supervisor (no worker runs here) they do nothing."""

from django.utils import timezone

from projects.jobs import every
from services import loops, orders, strangers, sweeps
from services.supervisor import current


@every(seconds=1)
def probe_due() -> dict[str, int] | None:
    return sweeps.probe_due(supervisor, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=5)
def detect_crashed() -> int | None:
    return sweeps.detect_crashed(supervisor, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=1)
def expire_due() -> int | None:
    return sweeps.expire_due(supervisor, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=5)
def reconcile() -> dict[str, int] | None:
    return sweeps.reconcile(supervisor, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=1)
def rotate_logs() -> int | None:
    return sweeps.rotate_logs(node=supervisor.node, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=30)
def remove_logs() -> int | None:
    return sweeps.remove_logs(supervisor, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=10)
def sample_usage() -> int | None:
    return sweeps.sample_usage(supervisor, now=timezone.now()) if (supervisor := current()) else None


@every(seconds=1)
def stop_loops() -> int | None:
    return at_work.sweep() if (at_work := strangers.current()) else None


# The worker runs what orders and loops enqueue.
act, act_on_stop, carry_out = orders.act, strangers.act, loops.carry_out
