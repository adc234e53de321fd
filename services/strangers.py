"""Loops that Andon did not start: their stops, brought one step further at a time.

Lives in the worker alone. As the supervisor does, `act` takes one row as far as it can go now and never waits: what
takes time stands on the row as a deadline, and deaths, timers and a sweep call again. Whom a signal goes to is pinned
one by one, never a process group by its number (spec/projects.md 4).
"""

import contextlib
import logging
import os
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path

from django.utils import timezone

from projects import importer, jobs, pidfile, ralph
from projects.errors import Conflict
from projects.lifecycle import stops
from projects.models import LoopStop, Project
from projects.pidfile import Found, State
from projects.states import STOP_OPEN, StopStatus
from services import kinship, signals
from services.models import ManagedProcess
from services.processes import Identity, Kernel, Refused, Unknown, Verdict, boot_id
from services.states import LIVE, Purpose
from services.timers import Timers

# How long a process that cannot be seen is looked for.
SEEN_WITHIN = timedelta(seconds=5)
LOOK_AGAIN_S = 0.1
KILL_AGAIN_S = 0.05
LEFT_AFTER = timedelta(seconds=1)
LEFT_AGAIN_S = 1.0
# A group whose last member ended so long ago may have left its number to another: all pids would have to be given out.
GROUP_SURE_S = 2.0
STEPS = 12
SEEN = ("path", "prd_path", "pid", "start_ticks", "boot_id", "loop_started_at")
REFUSALS = {
    State.ABSENT: ("no-pid-file", "There is no .ralph.pid, so nobody can tell which process the loop is."),
    State.INVALID: ("pid-file-invalid", "The .ralph.pid holds no process id."),
    State.OUTSIDE: ("pid-not-in-project", "The process that .ralph.pid names does not work in this project."),
    State.HIDDEN: ("permission-denied", "The loop runs as another user, so Andon may not stop it."),
}
log = logging.getLogger("andon.strangers")


@dataclass(slots=True)
class _Memory:
    """What this worker knows of one stop beyond its row: `known` belong to the loop, `asked` were sent TERM."""

    known: set[Identity] = field(default_factory=set)
    asked: set[Identity] = field(default_factory=set)
    # Monotonic seconds.
    group_seen_at: float | None = None
    killed_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Kin:
    """Who is there of a loop: its process `group`, and `everybody`; `exempt` are pids that are never signalled."""

    group: frozenset[Identity]
    everybody: frozenset[Identity]
    exempt: frozenset[int]


class Strangers:
    """Acts on the open stops of one node. `submit` runs a keyed call soon, once at a time for each key (jobs.submit).

    Hears of deaths beside whoever heard of them before: make it after the supervisor.
    """

    def __init__(self, kernel: Kernel, *, submit: Callable[..., object] = jobs.submit, born_at: datetime) -> None:
        self.kernel = kernel
        self.node = kernel.host
        self.born_at = born_at
        self._submit = submit
        self._memories: dict[int, _Memory] = defaultdict(_Memory)
        # Whose death matters to which row.
        self._owners: dict[Identity, int] = {}
        self._watched: dict[int, set[Identity]] = {}
        self.wake_in = Timers(kernel, self.wake).wake_in
        self._hears_first = kernel.on_death
        kernel.on_death = self._died

    def sweep(self) -> int:
        """Have every open stop looked at, in case a death or a timer was missed. Returns how many."""
        rows = LoopStop.objects.filter(node=self.node, process=None, status__in=sorted(STOP_OPEN))
        keys = list(rows.values_list("pk", flat=True))
        for pk in keys:
            self.wake(pk)
        return len(keys)

    def wake(self, pk: int) -> None:
        """Have a stop looked at soon."""
        self._submit(f"stop:{pk}", self.act, pk)

    def act(self, pk: int) -> None:
        """Bring one stop as far as it can go now."""
        for _ in range(STEPS):
            row = LoopStop.objects.filter(pk=pk, node=self.node, process=None, status__in=sorted(STOP_OPEN)).first()
            if row is None:
                self._let_go(pk)
                return
            try:
                if not (self._begin(row) if row.status == StopStatus.ASKED else self._end(row)):
                    return
            except Conflict as changed:
                # Somebody else moved the row between our look and our verb: look again.
                log.debug("%s: %s", row, changed.detail)
        self.wake_in(LOOK_AGAIN_S, pk)

    def _begin(self, row: LoopStop) -> bool:
        """Find out whom the stop is about, if anybody; says whether to look again at once."""
        now = timezone.now()
        found = self._look(row)
        # The loop that was meant has ended where Andon's own runs by now.
        if found.state == State.GONE or self._is_ours(found, row):
            self._settle(row, found, detail="already stopped")
        elif found.state in REFUSALS:
            stops.refuse(row, *REFUSALS[found.state], now=now)
        elif found.state == State.UNKNOWN or found.identity is None:
            return self._await_sight(row, now)
        elif _is_later(found, row):
            self._settle(row, found, detail="already stopped")
        else:
            return self._ask(row, found.identity, now)
        return True

    def _ask(self, row: LoopStop, leader: Identity, now: datetime) -> bool:
        """Pin the leader, and commit whom the stop is about before anybody is signalled."""
        try:
            self._own(row.pk, leader)
            if not self.kernel.watch(leader):
                return True
        except Unknown:
            return self._await_sight(row, now)
        kin = self._kin(row.pk, leader)
        if leader.pid in kin.exempt:
            self._refuse_signal(row, leader)
            return True
        stops.signal(row, leader, kin.everybody - {leader}, now + timedelta(seconds=row.grace_s), now)
        return True

    def _await_sight(self, row: LoopStop, now: datetime) -> bool:
        if now - max(row.asked_at, self.born_at) >= SEEN_WITHIN:
            text = "It cannot be told whether the process that .ralph.pid names is the loop: nothing was signalled."
            stops.refuse(row, "identity-unavailable", text, now=now)
            return True
        self.wake_in(LOOK_AGAIN_S, row.pk)
        return False

    def _end(self, row: LoopStop) -> bool:
        """See who is left of the loop, and hurry them when it is time; says whether to look again at once."""
        now = timezone.now()
        memory = self._memories[row.pk]
        leader = Identity(self.node, row.boot_id, row.pid or 0, row.start_ticks or 0)
        memory.known |= {Identity(self.node, row.boot_id, pid, ticks) for pid, ticks in row.members}
        kin = self._kin(row.pk, leader)
        seen = {each: self.kernel.verdict(each) for each in {leader, *memory.known, *kin.everybody}}
        there = {each for each, what in seen.items() if what is not Verdict.GONE}
        memory.known = there
        self._release_dead(row.pk)
        if not there:
            self._close(row)
            return True
        self._watch_all(row.pk, there)
        alive = {each for each in there if seen[each] is Verdict.ALIVE and each.pid not in kin.exempt}
        is_due = row.kill_at is None or row.kill_at <= now
        if seen[leader] is Verdict.ALIVE and leader.pid in kin.exempt and (is_due or not row.code):
            self._refuse_signal(row, leader)
            return True
        if row.kill_at is not None and not is_due:
            before = row.code
            self._hurry(row, leader, kin, seen, alive)
            self.wake_in((row.kill_at - now).total_seconds(), row.pk)
            return row.code != before
        is_sent = seen[leader] is Verdict.GONE
        if seen[leader] is Verdict.ALIVE:
            if row.code != stops.KILLING:
                stops.note_kill(row)
            is_sent = self._signal_leader(row, leader, signal.SIGKILL)
            if not row.is_open:
                return True
        if is_sent:
            signals.send(self.kernel, signal.SIGKILL, alive - {leader})
        self._await_end(row, memory, sorted(each.pid for each in there), now)
        return False

    def _hurry(
        self, row: LoopStop, leader: Identity, kin: _Kin, seen: Mapping[Identity, Verdict], alive: set[Identity]
    ) -> None:
        """Send TERM to those whose turn it is, and note it then: a worker killed between the two sends it again.

        The leader is first, its group with it or, where the grace is long, when it has ended: its agent may finish. All
        the others, such as an agent in a session of its own, come when nobody is left of those who were asked: what
        these began after that, perhaps to tidy up, is not asked while they live.
        """
        memory, is_gone = self._memories[row.pk], seen[leader] is Verdict.GONE
        turn = stops.LEADER_ASKED if row.grace_s > signals.PATIENT_S and not is_gone else stops.ASKED
        if row.code in {"", stops.LEADER_ASKED} - {turn}:
            if not (row.code or is_gone or self._signal_leader(row, leader, signal.SIGTERM)):
                self.wake_in(LEFT_AGAIN_S, row.pk)
                return
            if turn == stops.ASKED:
                first = (kin.group & alive if is_gone or leader in kin.group else alive) - {leader}
                signals.send(self.kernel, signal.SIGTERM, first)
                memory.asked |= first
            stops.note_asked(row, turn)
        # Who was asked, an earlier worker alone knew.
        waited_for = memory.asked or kin.group
        if is_gone and all(seen.get(each, Verdict.GONE) is Verdict.GONE for each in waited_for):
            signals.send(self.kernel, signal.SIGTERM, alive - memory.asked)
            memory.asked |= alive

    def _await_end(self, row: LoopStop, memory: _Memory, left: list[int], now: datetime) -> None:
        memory.killed_at = memory.killed_at or now
        if now - memory.killed_at < LEFT_AFTER:
            self.wake_in(KILL_AGAIN_S, row.pk)
            return
        if left != row.left:
            stops.note_left(row, left, now)
        self.wake_in(LEFT_AGAIN_S, row.pk)

    def _close(self, row: LoopStop) -> None:
        found = self._look(row)
        # The next loop may have written its own pid there.
        stale = found if found.pid == row.pid else Found(State.ABSENT)
        if row.code == stops.KILLING:
            why = f"It did not end within {row.grace_s} s." if row.grace_s else "It was to be killed at once."
            self._settle(row, stale, killed=True, detail=why)
        else:
            self._settle(row, stale)

    def _settle(self, row: LoopStop, found: Found, *, killed: bool = False, detail: str = "") -> None:
        """Settle a stop, then tidy up: without its pid file one that is still open would be refused."""
        stops.settle(row, killed=killed, detail=detail, now=timezone.now())
        if project := self._project(row):
            if found.state == State.GONE and found.content is not None:
                pidfile.remove_if(*_place(project), found.content)
            # The page is to show it at once.
            self._submit(f"import {project.path}", _import, project.path)

    def _signal_leader(self, row: LoopStop, leader: Identity, number: int) -> bool:
        """Signal the leader before all others; refuses the stop, and returns False, when that is not allowed."""
        try:
            self.kernel.signal(leader, number)
        except (PermissionError, Refused):
            self._refuse_signal(row, leader)
            return False
        except Unknown as unknown:
            log.warning("signal %s to %s: %s", number, leader.pid, unknown)
            return False
        return True

    def _refuse_signal(self, row: LoopStop, leader: Identity) -> None:
        text = (
            f"Process {leader.pid} may not be signalled: it is another user's, or Andon runs in its group or below it."
        )
        stops.refuse(row, "permission-denied", text, now=timezone.now())

    def _kin(self, pk: int, leader: Identity) -> _Kin:
        """Find who is there of a loop: the leader, its group, whoever is known, and the descendants of all these."""
        memory, table, boot = self._memories[pk], kinship.everybody(), boot_id()
        exempt = frozenset(
            {0, 1, *kinship.line(table, os.getpid()), *(pid for pid in table if table[pid].group == os.getpgrp())}
        )
        named = {
            pid: Identity(self.node, boot, pid, stat.start_ticks) for pid, stat in table.items() if pid not in exempt
        }
        roots = [each.pid for each in (leader, *memory.known) if named.get(each.pid) == each]
        if any(table[pid].group == leader.pid for pid in roots):
            memory.group_seen_at = time.monotonic()
        # While one of a group lives its number is not given out again; just after, it cannot have come round yet.
        is_sure = memory.group_seen_at is not None and time.monotonic() - memory.group_seen_at < GROUP_SURE_S
        is_sure &= leader.pid not in named or named[leader.pid] == leader
        group = {pid for pid in named if is_sure and table[pid].group == leader.pid}
        kin = group | set(kinship.descendants(table, {*roots, *group}, named))
        return _Kin(frozenset(named[pid] for pid in group), frozenset(named[pid] for pid in kin), exempt)

    def _look(self, row: LoopStop) -> Found:
        """Look at the pid file, and know whom the importer saw there before the clock was set, should it have been."""
        project = self._project(row)
        if project is None:
            return Found(State.ABSENT)
        known = None
        if project.pid is not None and project.start_ticks is not None:
            known = Identity(self.node, project.boot_id, project.pid, project.start_ticks)
        found = pidfile.look(*_place(project), self.node, known=known)
        is_known = known is not None and found.identity == known
        return replace(found, started_at=project.loop_started_at) if is_known else found

    def _is_ours(self, found: Found, row: LoopStop) -> bool:
        """Say whether it is a loop that Andon runs, which has a stop of another kind."""
        ours = ManagedProcess.objects.filter(project=row.project, node=self.node, purpose=Purpose.LOOP)
        return found.pid is not None and ours.filter(status__in=sorted(LIVE), pid=found.pid).exists()

    def _project(self, row: LoopStop) -> Project | None:
        return Project.objects.filter(slug=row.project, node=self.node).only(*SEEN).first()

    def _watch_all(self, pk: int, identities: Iterable[Identity]) -> None:
        for identity in identities:
            self._own(pk, identity)
            # Without a descriptor to spare they are still killed in time, and the sweep sees that they have gone.
            with contextlib.suppress(Unknown, OSError):
                if not self.kernel.watch(identity):
                    # It ended since it was seen, and nobody will tell.
                    self.wake_in(KILL_AGAIN_S, pk)

    def _own(self, pk: int, identity: Identity) -> None:
        self._watched.setdefault(pk, set()).add(identity)
        self._owners[identity] = pk

    def _release_dead(self, pk: int) -> None:
        """Let go of the dead; a child of this process is its starter's to reap."""
        for identity in list(self._watched.get(pk, ())):
            if self.kernel.verdict(identity) is Verdict.GONE:
                self._watched[pk].discard(identity)
                self._owners.pop(identity, None)
                if not self.kernel.is_own(identity):
                    self.kernel.release(identity)

    def _let_go(self, pk: int) -> None:
        """Forget a stop that is over; of those who live on, as after a refusal, the death is awaited."""
        self._memories.pop(pk, None)
        self._release_dead(pk)
        if not self._watched.get(pk):
            self._watched.pop(pk, None)

    def _died(self, identity: Identity) -> None:
        try:
            self._hears_first(identity)
        finally:
            pk = self._owners.get(identity)
            if pk is not None:
                self.wake(pk)


_current: list[Strangers] = []


def current() -> Strangers | None:
    """Return this process's; only a worker has one."""
    return _current[-1] if _current else None


def install(strangers: Strangers | None) -> None:
    """Make these this process's, or take them away (None)."""
    _current.clear()
    if strangers is not None:
        _current.append(strangers)


@jobs.job
def act(pk: int) -> None:
    """Run by the worker: look at one stop now."""
    if at_work := current():
        at_work.wake(pk)


def _import(path: str) -> bool:
    return importer.import_project(path, now=timezone.now())


def _place(project: Project) -> tuple[Path, Path]:
    """Return a project's directory and, relative to it, its Ralph folder."""
    root = Path(project.path)
    return root, (ralph.find_prd(root) or Path(project.prd_path)).parent


def _is_later(found: Found, row: LoopStop) -> bool:
    """Say whether this loop began after the stop was asked for: the one that was meant has ended."""
    slack = timedelta(seconds=pidfile.START_SLACK_S)
    return found.started_at is not None and found.started_at > row.asked_at + slack
