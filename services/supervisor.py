"""The one who acts: brings each process of this node one step further, between two verbs that say so.

Lives in the worker alone. `act` is called for one row at a time (never twice at once) whenever something may have
changed: a death, a deadline, a verb, a sweep. It does what the row asks for and never waits: what takes time stands
on the row as a deadline, and the kernel's timers call again.
"""

import logging
import random
import signal
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta

from django.utils import timezone

from projects import jobs
from projects.errors import Conflict
from projects.events import SWEEP, writing
from services import lifecycle, signals, starting
from services.censuses import Censuses
from services.health import MOST_S, Health
from services.models import ManagedProcess
from services.probes import Prober
from services.processes import Census, Identity, Kernel, Mark, Unknown, Verdict, boot_id
from services.states import GOING, LIVE, UP, Cause, Purpose, Status
from services.timers import Timers

# A start that nobody made good of by then has failed.
START_WITHIN = timedelta(seconds=30)
# How long the exit code of one who is not our child may take to appear.
CODE_WITHIN_S = 0.25
LOOK_AGAIN_S = 0.02
KILL_AGAIN_S = 0.05
# Ports of which nobody can tell who holds them are waited for so long after the kill.
PORTS_WITHIN = timedelta(seconds=5)
STEPS = 12
log = logging.getLogger("andon.supervisor")


class Supervisor:
    """Acts for one node. `submit` runs a keyed call soon, once at a time for each key (jobs.submit)."""

    def __init__(
        self, kernel: Kernel, prober: Prober, *, submit: Callable[..., object] = jobs.submit, born_at: datetime
    ) -> None:
        self.kernel = kernel
        self.node = kernel.host
        self.born_at = born_at
        self.health = Health(prober, kernel, self.wake, submit)
        self._censuses = Censuses(kernel)
        self._submit = submit
        # Whom a watched identity belongs to, and the leader last known of a row.
        self._owners: dict[Identity, int] = {}
        self._watched: dict[int, set[Identity]] = {}
        self._leaders: dict[int, tuple[int, Identity]] = {}
        self._died_at: dict[Identity, float] = {}
        # Leaders that were seen alive here: while their session has members its number is no other's.
        self._sure: set[Identity] = set()
        self.wake_in = Timers(kernel, self.wake).wake_in
        # Until when a timer is set for a row.
        self._expiries: dict[int, datetime] = {}
        # Generation, monotonic seconds and processor seconds of a row's last sample.
        self.loads: dict[int, tuple[int, float, float]] = {}
        kernel.on_death = self._died

    def wake(self, pk: int) -> None:
        """Have a row looked at soon."""
        self._submit(f"process:{pk}", self.act, pk)

    def _watch_expiry(self, row: ManagedProcess) -> None:
        """Have a row looked at when its TTL is over; the sweep each second is the backstop."""
        if row.expires_at is not None and self._expiries.get(row.pk) != row.expires_at:
            self._expiries[row.pk] = row.expires_at
            seconds = (row.expires_at - timezone.now()).total_seconds() + 0.005
            self.kernel.after(max(0.0, seconds), lambda: self.wake(row.pk))

    def take_over(self, row: ManagedProcess, identity: Identity) -> bool:
        """Watch a process, whoever started it; says whether it lives and is seen. One that just died is looked at."""
        self._own(row, identity)
        try:
            is_there = self.kernel.watch(identity)
        except Unknown:
            return False
        if is_there:
            self._sure.add(identity)
            self._watch_expiry(row)
        else:
            self.wake(row.pk)
        return is_there

    def end_strays(self, strays: Iterable[Identity]) -> list[int]:
        """Kill what no row speaks for any more, one by one; returns the pids signalled."""
        return [each.pid for each in strays if signals.send(self.kernel, signal.SIGKILL, [each])]

    def act(self, pk: int) -> None:
        """Bring one row as far as it can go now."""
        for _ in range(STEPS):
            row = ManagedProcess.objects.filter(pk=pk).defer("usage", "strip").first()
            if row is None or row.node != self.node:
                self._let_go(pk)
                return
            try:
                if not self._step(row):
                    return
            except Conflict as changed:
                # Somebody else moved the row between our look and our verb: look again.
                log.debug("%s: %s", row, changed.detail)
        self.wake_in(LOOK_AGAIN_S, pk)

    def _step(self, row: ManagedProcess) -> bool:
        """Do the next thing for a row; says whether to look at it again at once."""
        if row.status == Status.STARTING and row.pid is None:
            return self._start(row)
        if row.status in UP:
            return self._look(row)
        self.health.forget(row.pk)
        if row.status in GOING:
            return self._stop(row)
        self._let_go(row.pk)
        return row.status == Status.BACKOFF and self._retry(row)

    def _start(self, row: ManagedProcess) -> bool:
        now = timezone.now()
        if (earlier := starting.earlier(row)) is not None:
            self.wake(earlier)
            return False
        identity = self._leader(row)
        if identity is None and row.since <= self.born_at:
            # The worker before us may have started it and died before it could say so.
            found = self._census(row).members.get(row.pk, ())
            identity = starting.leader_among([each for each in found if each.generation == row.generation])
            if found and identity is None:
                # It has ended already and left some behind, whom no row would speak for after a new start.
                self.end_strays(each.identity for each in found)
                self.wake_in(KILL_AGAIN_S, row.pk)
                return False
        if identity is None and now - row.since > START_WITHIN:
            return self._fail(row, f"not started within {START_WITHIN.seconds} s")
        if identity is None:
            # Looked at after those before it: with the first that fails, all behind it have failed.
            if not ManagedProcess.objects.filter(pk=row.pk, generation=row.generation, status=row.status).exists():
                return True
            try:
                identity = starting.spawn(row, self.kernel, now=now)
            except starting.CannotStart as refusal:
                return self._fail(row, str(refusal))
        self._own(row, identity)
        self._sure.add(identity)
        try:
            lifecycle.spawned(row, identity, by=SWEEP, now=now)
        except Conflict:
            self._take_back(row, identity)
            raise
        if row.batch:
            for pk in starting.later(row):
                self.wake(pk)
        return True

    def _take_back(self, row: ManagedProcess, identity: Identity) -> None:
        """Kill what was started for a row that has ended meanwhile; one that is being stopped is stopped in order."""
        if ManagedProcess.objects.filter(pk=row.pk, generation=row.generation, status__in=LIVE).exists():
            return
        members = [each.identity for each in self._census(row).members.get(row.pk, ())]
        signals.send(self.kernel, signal.SIGKILL, {identity, *members}, leader=identity)

    def _fail(self, row: ManagedProcess, reason: str) -> bool:
        now = timezone.now()
        # At once, so that nobody sees a failure and takes it for its turn.
        with writing():
            lifecycle.fail(row, reason, jitter=random.random(), by=SWEEP, now=now)  # noqa: S311
            going = lifecycle.roll_back(row, by=SWEEP, now=now)
        for each in going:
            self.wake(each.pk)
        return row.status == Status.BACKOFF

    def _look(self, row: ManagedProcess) -> bool:
        identity = row.identity
        if identity is None:  # the constraints forbid it
            return False
        self._own(row, identity)
        seen = self.kernel.verdict(identity)
        if seen is Verdict.GONE:
            return self._ended(row, identity)
        if seen is Verdict.UNKNOWN or not self.take_over(row, identity):
            return False
        now = timezone.now()
        if row.expires_at is not None and row.expires_at <= now:
            lifecycle.stop(row, cause=Cause.TTL, by=SWEEP, now=now)
            return True
        if row.status == Status.STARTING and row.purpose == Purpose.SERVICE:
            return self._await_health(row, now)
        return False

    def _await_health(self, row: ManagedProcess, now: datetime) -> bool:
        if row.health_by is not None and row.started_at is not None and row.started_at < self.born_at:
            # Its time may have run out while no worker was there: it is probed at least once.
            row.health_by = max(row.health_by, self.born_at + timedelta(seconds=2 * MOST_S))
        if row.health_by is None or row.health_by > now:
            self.health.first(row)
            return False
        reason = f"not healthy within {row.healthcheck['timeout_s']:g} s: {self.health.last_reason(row) or 'no answer'}"
        if tail := starting.tail(row):
            reason += f"\n{tail}"
        lifecycle.stop(row, cause=Cause.PROBE, reason=reason, by=SWEEP, now=now)
        return True

    def _ended(self, row: ManagedProcess, identity: Identity) -> bool:
        code = self.kernel.exit_code(identity)
        if code is None and self._is_code_due(identity):
            self.wake_in(LOOK_AGAIN_S, row.pk)
            return False
        self.health.forget(row.pk)
        census = self._census(row)
        lifecycle.ended(
            row,
            code,
            members=census.members.get(row.pk, ()),
            hidden=census.hidden.get(row.pk, ()),
            tail=starting.tail(row) if code != 0 else "",
            jitter=random.random(),  # noqa: S311 (spreads restarts, guards nothing)
            by=SWEEP,
            now=timezone.now(),
        )
        return True

    def _retry(self, row: ManagedProcess) -> bool:
        now = timezone.now()
        if row.retry_at is not None and row.retry_at > now:
            self.wake_in((row.retry_at - now).total_seconds(), row.pk)
            return False
        lifecycle.respawn(row, by=SWEEP, now=now)
        return True

    def _stop(self, row: ManagedProcess) -> bool:
        now = timezone.now()
        leader = self._leader(row)
        census = self._census(row)
        members = {each.identity: each for each in census.members.get(row.pk, ())}
        hidden = census.hidden.get(row.pk, ())
        there = {*members, *self._remembered(row, leader)}
        if not there and not hidden:
            return self._settle(row, leader, now)
        self._watch_all(row.pk, there)
        if row.term_at is None:
            kill_at = now + timedelta(seconds=row.stop_grace_s)
            lifecycle.signalled(row, members=list(members.values()), kill_at=kill_at, now=now)
            signals.ask(self.kernel, row, leader, members)
            self.wake_in(row.stop_grace_s, row.pk)
        elif row.kill_at is not None and row.kill_at > now:
            self.wake_in((row.kill_at - now).total_seconds(), row.pk)
        else:
            signals.send(self.kernel, signal.SIGKILL, there, leader=leader)
            late_s = (now - (row.kill_at or now)).total_seconds()
            if late_s > 1:
                left = sorted({each.pid for each in there} | set(hidden))
                reason = "identity-unavailable: some could not be seen" if hidden else "still there after SIGKILL"
                lifecycle.remain(row, left, reason, by=SWEEP, now=now)
            self.wake_in(KILL_AGAIN_S if late_s < 1 else 1.0, row.pk)
        return False

    def _settle(self, row: ManagedProcess, leader: Identity | None, now: datetime) -> bool:
        held = starting.still_held(self.kernel, row, leader)
        if held and now < (row.kill_at or row.since) + PORTS_WITHIN:
            self.wake_in(10 * LOOK_AGAIN_S, row.pk)
            return False
        code = self.kernel.exit_code(leader) if leader else None
        if leader and code is None and self._is_code_due(leader):
            self.wake_in(LOOK_AGAIN_S, row.pk)
            return False
        # One that was forked while we looked may have been missed once, hardly twice.
        again = self._census(row)
        if again.members.get(row.pk) or again.hidden.get(row.pk):
            return True
        lifecycle.settle(row, code, warning=held, by=SWEEP, now=now)
        self._let_go(row.pk)
        return True

    def _census(self, row: ManagedProcess) -> Census:
        mark = self.mark(row)
        census = self._censuses.take(mark)
        leader = self._leader(row)
        others = (each.identity for each in census.members.get(row.pk, ()) if each.identity != leader)
        if leader is not None and any(each.pid == mark.session for each in others):
            # A stranger has founded a session of this number since ours was empty.
            self._sure.discard(leader)
            census = self._censuses.take(self.mark(row))
        # Without a leader nothing says since when to look: anything unreadable of this user would count for ever.
        return census if leader is not None else Census(census.members)

    def mark(self, row: ManagedProcess) -> Mark:
        """Return by what the processes of a row are recognised; its session only while that number is surely its."""
        leader = self._leader(row)
        is_sure = leader is not None and (
            self.kernel.is_own(leader) or leader in self._sure or self.kernel.verdict(leader) is Verdict.ALIVE
        )
        return Mark(
            owner=row.pk,
            marker=row.marker,
            session=leader.pid if leader is not None and is_sure else None,
            log=starting.log_file(row),
            since_ticks=leader.start_ticks if leader is not None else 0,
        )

    def _leader(self, row: ManagedProcess) -> Identity | None:
        if row.identity is not None:
            return row.identity
        known = self._leaders.get(row.pk)
        return known[1] if known and known[0] == row.generation else None

    def _remembered(self, row: ManagedProcess, leader: Identity | None) -> list[Identity]:
        """Return who was seen of this life when or since the stop began, and still lives."""
        boot = row.boot_id or boot_id()
        noted = {Identity(self.node, boot, pid, ticks) for pid, ticks in row.members}
        if leader is not None:
            # What was written off in an earlier life must not hold up the end of this one.
            noted |= {each for each in self._watched.get(row.pk, ()) if each.start_ticks >= leader.start_ticks}
        return [each for each in noted if self.kernel.verdict(each) is Verdict.ALIVE]

    def _watch_all(self, pk: int, identities: Iterable[Identity]) -> None:
        for identity in identities:
            self._owners[identity] = pk
            self._watched.setdefault(pk, set()).add(identity)
            try:
                if not self.kernel.watch(identity):
                    # It ended since the census, and nobody will tell.
                    self.wake_in(LOOK_AGAIN_S, pk)
            except Unknown:
                continue

    def _own(self, row: ManagedProcess, identity: Identity) -> None:
        # First: a death that is told in between must find out that it was the leader's.
        self._leaders[row.pk] = (row.generation, identity)
        self._watched.setdefault(row.pk, set()).add(identity)
        self._owners[identity] = row.pk

    def _let_go(self, pk: int) -> None:
        """Reap what ended and forget it; what still lives is reaped when its death is told."""
        self.health.forget(pk)
        self._leaders.pop(pk, None)
        self._expiries.pop(pk, None)
        for identity in self._watched.pop(pk, ()):
            self._sure.discard(identity)
            if self.kernel.verdict(identity) is not Verdict.ALIVE:
                self.kernel.release(identity)
                self._owners.pop(identity, None)
                self._died_at.pop(identity, None)

    def _is_code_due(self, identity: Identity) -> bool:
        """Say whether an exit code may yet appear: a stranger's child is reaped a moment after its death."""
        died = self._died_at.get(identity)
        return died is not None and not self.kernel.is_own(identity) and time.monotonic() - died < CODE_WITHIN_S

    def _died(self, identity: Identity) -> None:
        pk = self._owners.get(identity)
        if pk is None:
            return
        known = self._leaders.get(pk)
        if known is not None and known[1] == identity:
            self._died_at[identity] = time.monotonic()
        else:
            # Nobody will ask how it ended; it may be our child still, written off in an earlier life.
            self.kernel.release(identity)
            self._owners.pop(identity, None)
        self.wake(pk)


_current: list[Supervisor] = []


def current() -> Supervisor | None:
    """Return this process's supervisor; only a worker has one."""
    return _current[-1] if _current else None


def install(supervisor: Supervisor | None) -> None:
    """Make a supervisor this process's, or take it away (None)."""
    _current.clear()
    if supervisor is not None:
        _current.append(supervisor)
