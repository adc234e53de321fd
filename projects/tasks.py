"""Huey's jobs of this app, one line each."""

from django.utils import timezone

from projects import keeping, sweeps, undoing
from projects.jobs import every, job


@every(seconds=30)
def rescan() -> bool:
    return sweeps.look_again()


@every(seconds=1)
def detect_ended() -> int:
    return sweeps.detect_ended(now=timezone.now())


@every(seconds=5)
def find_stalled() -> int:
    return sweeps.find_stalled(now=timezone.now())


@every(seconds=10)
def prune_events() -> int:
    return sweeps.prune_events(now=timezone.now())


@every(seconds=5)
def roll_back_open() -> int:
    return undoing.sweep()


@every(seconds=10)
def read_journals() -> bool:
    return sweeps.read_journals()


@every(seconds=5)
def judge_registries() -> bool:
    return sweeps.judge_registries()


@every(seconds=30)
def finish_deletions() -> int:
    return keeping.finish_deletions(now=timezone.now())


@job
def rescan_now() -> bool:
    return sweeps.look_again()
