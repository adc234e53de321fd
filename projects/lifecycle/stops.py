"""Verbs on the stops of loops: ask signal settle refuse, and three notes. None touches a process.

That a loop has ended is told by the importer alone (loop.stopped), from its files and process.
"""

from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from projects.errors import Conflict, Rejected
from projects.events import By, record, writing
from projects.models import LoopStop, Project
from projects.states import STOP_MOVES, STOP_OPEN, StopStatus, Via
from services.processes import Identity

LONGEST_GRACE_S = 86_400
LONGEST_DETAIL = 500
# The `code` of an open stop, how far it has come: TERM went to the leader alone, to all whose turn it was with it, and
# the leader has to be killed. Of an ended one the status says it.
LEADER_ASKED = "leader-asked"
ASKED = "asked"
KILLING = "killing"


def ask(project: Project, *, grace_s: int, process: int | None = None, by: By, now: datetime) -> LoopStop:
    """Have a project's loop stopped: TERM, and KILL after `grace_s` seconds (0: at once).

    `process` is the managed process of a loop that Andon started itself. While a stop is open, a second ask joins it:
    a KILL that would come earlier is brought forward, never put off. Refuses (Rejected `grace-invalid`) what is not an
    integer from 0 to 86,400. Records loop.stop_asked, but not of a managed process, whose own verb
    tells (loop.stopping), nor of one that changes nothing.
    """
    if isinstance(grace_s, bool) or not isinstance(grace_s, int) or not 0 <= grace_s <= LONGEST_GRACE_S:
        raise Rejected("grace-invalid", f"grace_s is a whole number of seconds from 0 to {LONGEST_GRACE_S}.")
    asked = {
        "node": project.node,
        "asked_by": by.name,
        "asked_via": by.via,
        "asked_from": by.address,
        "asked_at": now,
        "grace_s": grace_s,
        "process": process,
    }
    with writing():
        row, is_new = LoopStop.objects.select_for_update().get_or_create(
            defaults=asked, project=project.slug, status__in=sorted(STOP_OPEN)
        )
        if (is_new or _hasten(row, grace_s, now)) and process is None:
            _tell(row, "asked", by=by, now=now, grace_s=grace_s, pid=row.pid or project.pid)
    return row


def signal(stop: LoopStop, identity: Identity, members: Iterable[Identity], kill_at: datetime, now: datetime) -> None:
    """Commit whom the stop is about, before anybody is signalled: `identity` leads, `members` are to go with it.

    `kill_at` = `now` means that no TERM is sent. Refuses (Conflict) one that is not `asked` any more, or whose grace
    was shortened since it was read.
    """
    fields = {
        "pid": identity.pid,
        "start_ticks": identity.start_ticks,
        "boot_id": identity.boot_id,
        "members": sorted([each.pid, each.start_ticks] for each in members),
        "term_at": now if kill_at > now else None,
        "kill_at": kill_at,
    }
    with writing():
        _move(stop, "signal", only=Q(grace_s=stop.grace_s), **fields)


def settle(stop: LoopStop, *, killed: bool, detail: str = "", now: datetime) -> None:
    """Record that nothing of the loop is left; `killed` when its leader did not go on its own.

    Refuses (Conflict) one that is over, and `killed` of one to whom no signal was committed. Records nothing: the
    importer tells that the loop has stopped.
    """
    verb = "settle_killed" if killed else "settle"
    with writing():
        _move(stop, verb, ended_at=now, code="", detail=_storable(detail), left=[])


def refuse(stop: LoopStop, code: str, detail: str, *, now: datetime) -> None:
    """Record that the loop is not stopped, and why. Refuses (Conflict) one that is over. Records loop.stop_refused."""
    with writing():
        _move(stop, "refuse", ended_at=now, code=code, detail=_storable(detail))
        _tell(stop, "refused", by=by_of(stop), now=now, code=code, reason=stop.detail)


def note_asked(stop: LoopStop, code: str) -> None:
    """Note that TERM was sent: LEADER_ASKED or ASKED. A stop without the note is to send it still.

    Refuses (Conflict) one that is not `ending`. Records nothing.
    """
    _note(stop, code=code)


def note_kill(stop: LoopStop) -> None:
    """Note that the leader is about to be killed, since after a crash nothing else could tell.

    Refuses (Conflict) one that is not `ending`. Records nothing.
    """
    _note(stop, code=KILLING)


def note_left(stop: LoopStop, left: Collection[int], now: datetime) -> None:
    """Note the pids that are still there after KILL.

    Refuses (Conflict) one that is not `ending`, or is not to be killed yet. Records nothing.
    """
    _note(stop, only=Q(kill_at__lte=now), left=sorted(left))


def by_of(stop: LoopStop) -> By:
    """Return who asked for it."""
    return By(stop.asked_by, Via(stop.asked_via), stop.asked_from)


def _hasten(stop: LoopStop, grace_s: int, now: datetime) -> bool:
    """Bring the KILL of an open stop forward; says whether that changed anything."""
    kill_at = now + timedelta(seconds=grace_s)
    if stop.kill_at is None:
        if grace_s >= stop.grace_s:
            return False
    elif kill_at >= stop.kill_at:
        return False
    else:
        stop.kill_at = kill_at
    stop.grace_s = min(stop.grace_s, grace_s)
    stop.save(update_fields=["kill_at", "grace_s"])
    return True


def _note(stop: LoopStop, *, only: Q | None = None, **fields: Any) -> None:
    rows = LoopStop.objects.filter(only or Q(), pk=stop.pk, status=StopStatus.ENDING)
    if not rows.update(**fields):
        raise Conflict("illegal-transition", f"{stop} is not under way any more, or was changed meanwhile.")
    for name, value in fields.items():
        setattr(stop, name, value)


def _move(stop: LoopStop, verb: str, *, only: Q | None = None, **fields: Any) -> None:
    sources, target = STOP_MOVES[verb]
    rows = LoopStop.objects.filter(only or Q(), pk=stop.pk, status__in=sources)
    if not rows.update(status=target, **fields):
        raise Conflict("illegal-transition", f"{stop} cannot {verb} as {stop.status}, or was changed meanwhile.")
    stop.status = target
    for name, value in fields.items():
        setattr(stop, name, value)


def _tell(stop: LoopStop, what: str, *, by: By, now: datetime, **payload: Any) -> None:
    record(f"loop.stop_{what}", f"project:{stop.project}", by=by, now=now, project=stop.project, **payload)


def _storable(detail: str) -> str:
    return detail.replace("\x00", "")[:LONGEST_DETAIL].encode("utf-8", "replace").decode()
