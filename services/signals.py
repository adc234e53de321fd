"""Whom a stop signals, and how: the group of our own child at once, all others one by one."""

import logging
import signal
from collections.abc import Collection, Iterable, Mapping

from services.models import ManagedProcess
from services.processes import Gone, Identity, Kernel, Member, Refused, Unknown
from services.states import Purpose

# Beyond so many seconds of grace a loop is to end by itself, with what its agent does.
PATIENT_S = 60
log = logging.getLogger("andon.supervisor")


def send(
    kernel: Kernel,
    number: int,
    whom: Iterable[Identity],
    *,
    leader: Identity | None = None,
    group: Collection[Identity] = (),
) -> int:
    """Signal the leader's group when it is our own child's, and each of `whom` only while they are who they were.

    Those of `whom` who are in `group` were reached with the group then, and are not signalled twice: to many programs
    a second TERM says not to tidy up. Returns how many were signalled singly.
    """
    alone = set(whom)
    try:
        if leader is not None and kernel.signal_group(leader, number):
            alone -= set(group)
    except (Refused, OSError) as refusal:
        log.warning("signal %s to the group of %s: %s", number, leader.pid if leader else None, refusal)
    count = 0
    # The older first: a shell whose child ends before it hears goes on with its next line.
    for identity in sorted(alone, key=lambda one: (one.start_ticks, one.pid)):
        try:
            count += kernel.signal(identity, number)
        except (Gone, Unknown, Refused, OSError) as refusal:
            log.warning("signal %s to %s: %s", number, identity.pid, refusal)
    return count


def group_of(leader: Identity | None, members: Mapping[Identity, Member]) -> list[Identity]:
    """Return the members in the process group of their leader."""
    return [identity for identity, member in members.items() if leader is not None and member.group == leader.pid]


def ask(kernel: Kernel, row: ManagedProcess, leader: Identity | None, members: Mapping[Identity, Member]) -> None:
    """Send the TERM of a stop. Of a loop that may take its time only the leader is asked: its agent finishes."""
    if leader is not None and row.purpose == Purpose.LOOP and row.stop_grace_s > PATIENT_S:
        send(kernel, signal.SIGTERM, [leader])
    else:
        whom = asked_first(row, leader, members)
        send(kernel, signal.SIGTERM, whom, leader=leader, group=group_of(leader, members))


def asked_first(row: ManagedProcess, leader: Identity | None, members: Mapping[Identity, Member]) -> list[Identity]:
    """Return whom TERM goes to: all, but of a loop only its own group, since its agent may finish what it does."""
    is_loop = row.purpose == Purpose.LOOP and leader is not None
    return group_of(leader, members) if is_loop else list(members)
