"""The machines of what runs, as data: verb -> (from, to); and the restart policy, a pure function of why it ended."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from django.db import models

# Three missed ticks of five seconds.
SILENT_AFTER = timedelta(seconds=15)


class HostStatus(models.TextChoices):
    """What the board knows of a host's worker."""

    TICKING = "ticking"
    SILENT = "silent"
    STOPPED = "stopped"


HOST_MOVES: dict[str, tuple[frozenset[HostStatus], HostStatus]] = {
    "enlist": (frozenset(HostStatus), HostStatus.TICKING),
    "recover": (frozenset({HostStatus.SILENT}), HostStatus.TICKING),
    "silence": (frozenset({HostStatus.TICKING}), HostStatus.SILENT),
    "leave": (frozenset({HostStatus.TICKING, HostStatus.SILENT}), HostStatus.STOPPED),
}


class Purpose(models.TextChoices):
    """What a managed process is for."""

    SERVICE = "service"
    WORKER = "worker"
    LOOP = "loop"


class Status(models.TextChoices):
    """Where a managed process is in its life."""

    STARTING = "starting"
    RUNNING = "running"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    BACKOFF = "backoff"
    STOPPING = "stopping"
    EXITED = "exited"
    FAILED = "failed"
    CRASH_LOOP = "crash_loop"
    EXPIRED = "expired"
    LOST = "lost"


class Cause(models.TextChoices):
    """Why a managed process ended; "" = of itself and in order, or not at all."""

    CRASH = "crash"
    PROBE = "probe"
    USER = "user"
    TTL = "ttl"
    SHUTDOWN = "shutdown"
    REPLACED = "replaced"
    PROJECT_REMOVED = "project-removed"
    UNOBSERVED = "unobserved"


class Restart(models.TextChoices):
    """When a service that ended is started again."""

    NEVER = "never"
    ON_FAILURE = "on-failure"
    ALWAYS = "always"


LIVE = frozenset(
    {
        Status.STARTING,
        Status.RUNNING,
        Status.HEALTHY,
        Status.UNHEALTHY,
        Status.RESTARTING,
        Status.BACKOFF,
        Status.STOPPING,
    }
)
ENDED = frozenset(Status) - LIVE
# A process is meant to be there.
UP = frozenset({Status.STARTING, Status.RUNNING, Status.HEALTHY, Status.UNHEALTHY})
# On the way to nothing being left.
GOING = frozenset({Status.STOPPING, Status.RESTARTING})

PROCESS_MOVES: dict[str, tuple[frozenset[Status], Status]] = {
    "start": (ENDED, Status.STARTING),
    "spawn": (frozenset({Status.STARTING}), Status.STARTING),
    "run": (frozenset({Status.STARTING}), Status.RUNNING),
    "heal": (frozenset({Status.STARTING, Status.UNHEALTHY}), Status.HEALTHY),
    "sicken": (frozenset({Status.HEALTHY}), Status.UNHEALTHY),
    "stop": (UP | {Status.BACKOFF, Status.RESTARTING}, Status.STOPPING),
    "restart": (UP | {Status.BACKOFF}, Status.RESTARTING),
    "respawn": (frozenset({Status.RESTARTING, Status.BACKOFF}), Status.STARTING),
    "back_off": (UP | {Status.RESTARTING}, Status.BACKOFF),
    "exit": (UP | {Status.STOPPING}, Status.EXITED),
    "fail": (UP | {Status.STOPPING}, Status.FAILED),
    "give_up": (UP | {Status.STOPPING}, Status.CRASH_LOOP),
    "expire": (frozenset({Status.STOPPING}), Status.EXPIRED),
    "lose": (LIVE, Status.LOST),
    "force": (LIVE, Status.LOST),
}

BACKOFF_FIRST_S = 0.25
BACKOFF_CAP_S = 60.0
CRASH_WINDOW_S = 600.0
CRASHES_ALLOWED = 5


@dataclass(frozen=True, slots=True)
class Next:
    """What follows an end: `status`, for BACKOFF after `delay_s` seconds; the counters as they are then."""

    status: Status
    delay_s: float = 0.0
    crashes: tuple[float, ...] = ()
    attempt: int = 0


def after_end(
    cause: str,
    exit_code: int | None,
    restart: str,
    *,
    crashes: Sequence[float],
    attempt: int,
    up_s: float,
    at: float,
    jitter: float,
) -> Next:
    """Say what follows when a process has ended.

    `crashes`: when it ended unasked before (epoch seconds), `attempt`: how often in a row; `up_s`: how long it was
    up now; `jitter` 0..1 spreads the delay of 0.25 s · 2^attempt, at most 60 s. Ten stable minutes forgive all.
    More than 5 unasked ends in 10 minutes are a crash loop: no more tries.
    """
    asked = {
        Cause.USER: Status.EXITED,
        Cause.SHUTDOWN: Status.EXITED,
        Cause.PROJECT_REMOVED: Status.EXITED,
        Cause.TTL: Status.EXPIRED,
        Cause.REPLACED: Status.STARTING,
    }
    if cause in asked:
        return Next(asked[Cause(cause)])
    failed = cause == Cause.PROBE or exit_code != 0
    if restart == Restart.NEVER or (restart == Restart.ON_FAILURE and not failed):
        return Next(Status.FAILED if failed else Status.EXITED)
    stable = up_s >= CRASH_WINDOW_S
    recent = () if stable else tuple(each for each in crashes if at - each < CRASH_WINDOW_S)
    recent = (*recent, at)
    if len(recent) > CRASHES_ALLOWED:
        return Next(Status.CRASH_LOOP, crashes=recent, attempt=attempt)
    tries = 0 if stable else attempt
    delay = jitter * min(BACKOFF_CAP_S, BACKOFF_FIRST_S * 2 ** min(tries, 16))
    return Next(Status.BACKOFF, delay, recent, tries + 1)
