"""The machines of tasks and notices, as data: verb -> (from, to); the words for how a run ended and why one waits."""

import re
from datetime import timedelta

from django.db import models

LEASE = timedelta(seconds=900)
# What the dispatcher claimed and nobody could start within this has failed to spawn.
LAUNCH_WITHIN = timedelta(seconds=60)
HEARTBEAT_TOLD_EVERY = timedelta(seconds=60)
RATE_LIMIT_COOLDOWN = timedelta(seconds=300)
# The waits of a transient block, one after the other; then it needs a person.
TRANSIENT_WAITS = (timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=60))
# How long a worker that has reported may take to end by itself.
END_WITHIN = timedelta(seconds=10)
STRANDED_AFTER = timedelta(minutes=30)
FAILURE_LIMIT = 5
VIOLATIONS_ALLOWED = 3
# As many tasks that fail alike within this pause their profile.
ALIKE = 3
ALIKE_WITHIN = timedelta(seconds=60)
QUOTA_EXIT = 75
# How the reason of a task begins whose runs have spent what it may cost.
OVER_BUDGET = "over budget"
# What an id of a task can be, also of one that another board gave it.
TASK_ID = re.compile(r"[A-Za-z0-9_-]{1,10}")


class Status(models.TextChoices):
    """Where a task stands; the order is the board's."""

    TRIAGE = "triage"
    TODO = "todo"
    READY = "ready"
    RUNNING = "running"
    REVIEW = "review"
    BLOCKED = "blocked"
    DONE = "done"
    ARCHIVED = "archived"


class WorkspaceKind(models.TextChoices):
    """Where a task's worker works."""

    SCRATCH = "scratch"
    DIR = "dir"
    WORKTREE = "worktree"


class BlockKind(models.TextChoices):
    """Why a task is blocked, and so what lifts it."""

    NEEDS_INPUT = "needs_input"
    CAPABILITY = "capability"
    DEPENDENCY = "dependency"
    TRANSIENT = "transient"
    BREAKER = "breaker"


class Outcome(models.TextChoices):
    """How a run ended."""

    COMPLETED = "completed"
    BLOCKED = "blocked"
    REVIEW_REQUESTED = "review_requested"
    CRASHED = "crashed"
    FAILED = "failed"
    TIMED_OUT = "timed_out"
    RATE_LIMITED = "rate_limited"
    PROTOCOL_VIOLATION = "protocol_violation"
    RELEASED = "released"
    SUPERSEDED = "superseded"
    SPAWN_FAILED = "spawn_failed"


class Phase(models.TextChoices):
    """What a running task waits for beside its worker; "" = nothing."""

    SERVICES = "services"
    # Its worker has ended and what it left is being read.
    READING = "reading"


class Reports(models.TextChoices):
    """How a profile's agent says what came of a task."""

    CLI = "cli"
    # Its last line of output is a result of `type: result`.
    ENVELOPE = "envelope"


CLOSED = frozenset({Status.DONE, Status.ARCHIVED})
OPEN = frozenset(Status) - CLOSED
# What lifts these is a person; the others lift themselves.
HUMAN_BLOCKS = frozenset({BlockKind.NEEDS_INPUT, BlockKind.CAPABILITY, BlockKind.BREAKER})


def is_question(kind: str, reason: str) -> bool:
    """Say whether a block, by its kind and reason, is one that a person lifts by saying something; "" is none."""
    return kind in HUMAN_BLOCKS - {BlockKind.BREAKER} and not reason.startswith(OVER_BUDGET)


# These count against a task's failure limit.
COUNTED = frozenset({Outcome.SPAWN_FAILED, Outcome.CRASHED, Outcome.TIMED_OUT, Outcome.PROTOCOL_VIOLATION})

_NOT_RUNNING = frozenset(Status) - {Status.RUNNING}

TASK_MOVES: dict[str, tuple[frozenset[Status], Status]] = {
    "promote": (frozenset({Status.TODO}), Status.READY),
    "demote": (frozenset({Status.READY}), Status.TODO),
    "claim": (frozenset({Status.READY}), Status.RUNNING),
    "complete": (frozenset({Status.RUNNING, Status.READY, Status.BLOCKED, Status.REVIEW}), Status.DONE),
    "block": (frozenset({Status.RUNNING, Status.READY}), Status.BLOCKED),
    "unblock": (frozenset({Status.BLOCKED}), Status.READY),
    "unblock_waiting": (frozenset({Status.BLOCKED}), Status.TODO),
    "request_review": (frozenset({Status.RUNNING}), Status.REVIEW),
    "approve": (frozenset({Status.REVIEW}), Status.DONE),
    "send_back": (frozenset({Status.REVIEW}), Status.READY),
    "archive": (frozenset(Status) - {Status.ARCHIVED}, Status.ARCHIVED),
    "reopen": (frozenset({Status.DONE, Status.ARCHIVED}), Status.READY),
    "reopen_waiting": (frozenset({Status.DONE, Status.ARCHIVED}), Status.TODO),
    "release": (frozenset({Status.RUNNING}), Status.READY),
    # A person's drag.
    "move_to_triage": (_NOT_RUNNING - {Status.TRIAGE}, Status.TRIAGE),
    "move_to_todo": (_NOT_RUNNING - {Status.TODO}, Status.TODO),
    "move_to_ready": (frozenset({Status.TRIAGE, Status.TODO}), Status.READY),
    # An administrator's last resort.
    "force_ready": (frozenset(Status) - {Status.READY}, Status.READY),
    "force_blocked": (frozenset(Status) - {Status.BLOCKED}, Status.BLOCKED),
}

# How long a sender may take before another may try the same delivery.
NOTICE_LEASE = timedelta(seconds=90)
NOTICE_BACKOFF = timedelta(seconds=10)
NOTICE_LONGEST_WAIT = timedelta(hours=1)
# As many failures in a row pause a subscription; as many of one delivery, while others go through, end that one.
NOTICE_FAILURES = 12


class Target(models.TextChoices):
    """Where notices of events go."""

    WEBHOOK = "webhook"
    EMAIL = "email"


class DeliveryStatus(models.TextChoices):
    """Where one notice is."""

    PENDING = "pending"
    DELIVERED = "delivered"
    DEAD = "dead"


DELIVERY_MOVES: dict[str, tuple[frozenset[DeliveryStatus], DeliveryStatus]] = {
    "deliver": (frozenset({DeliveryStatus.PENDING}), DeliveryStatus.DELIVERED),
    "give_up": (frozenset({DeliveryStatus.PENDING}), DeliveryStatus.DEAD),
    "send_again": (frozenset({DeliveryStatus.DEAD, DeliveryStatus.DELIVERED}), DeliveryStatus.PENDING),
}
