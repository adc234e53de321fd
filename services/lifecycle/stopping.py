"""How a managed process ends, and what follows: stop kill restart ended signalled remain settle respawn lose force."""

from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from django.db.models import Q

from projects.errors import Conflict, Rejected
from projects.events import By, writing
from services.lifecycle.moves import exits_with, locked, move, need_service, storable, tell
from services.models import ManagedProcess
from services.processes import Member
from services.states import ENDED, GOING, Cause, Next, Restart, Status, after_end

NO_PROCESS: dict[str, Any] = {
    "pid": None,
    "start_ticks": None,
    "boot_id": "",
    "members": [],
    "left": [],
    "term_at": None,
    "kill_at": None,
    "next_probe_at": None,
    "health_by": None,
}
# What a row that is on its way out waits for no more.
NO_DEADLINES: dict[str, Any] = {"next_probe_at": None, "health_by": None, "retry_at": None}
OVER: dict[str, Any] = {"expires_at": None, "warn_at": None, "retry_at": None}
ENDING_VERBS = {
    Status.EXITED: "exit",
    Status.FAILED: "fail",
    Status.CRASH_LOOP: "give_up",
    Status.EXPIRED: "expire",
}
MEMBERS_KEPT = 500


def stop(
    row: ManagedProcess,
    *,
    cause: Cause = Cause.USER,
    reason: str = "",
    grace_s: int | None = None,
    by: By,
    now: datetime,
    expected_generation: int | None = None,
) -> ManagedProcess:
    """Have a process stopped: TERM, `grace_s` (its own by default), KILL, until nothing is left.

    A second stop joins the first, and shortens its grace where it is given a shorter one.

    Refuses what has ended (Conflict `not-live`), another generation than expected, for the cause `ttl` what was
    extended meanwhile (`not-expired`), for `probe` what does not wait for its first health (`not-waiting`). Records
    service.stopping, loop.stopping.
    """
    with writing():
        row = locked(row, expected_generation)
        if row.status == Status.STOPPING:
            _hasten(row, grace_s, now)
            return row
        if row.status in ENDED:
            raise Conflict("not-live", f"{row} is {row.status} already.", status_now=row.status)
        if grace_s is not None:
            ManagedProcess.objects.filter(pk=row.pk).update(stop_grace_s=grace_s)
            row.stop_grace_s = grace_s
        if cause == Cause.TTL and (row.expires_at is None or row.expires_at > now):
            raise Conflict("not-expired", f"{row} does not expire before {_iso(row.expires_at)}.")
        if cause == Cause.PROBE and row.status != Status.STARTING:
            raise Conflict("not-waiting", f"{row} waits for no first health, it is {row.status}.")
        _begin_stop(row, cause, reason, by=by, now=now)
    return row


def _hasten(row: ManagedProcess, grace_s: int | None, now: datetime) -> None:
    """Bring the kill of what is being stopped nearer; never further."""
    if grace_s is None:
        return
    fields: dict[str, Any] = {"stop_grace_s": min(grace_s, row.stop_grace_s)}
    if row.kill_at is not None:
        fields["kill_at"] = min(row.kill_at, now + timedelta(seconds=grace_s))
    ManagedProcess.objects.filter(pk=row.pk).update(**fields)
    for name, value in fields.items():
        setattr(row, name, value)


def kill(
    row: ManagedProcess, *, cause: Cause = Cause.USER, by: By, now: datetime, expected_generation: int | None = None
) -> ManagedProcess:
    """Have a process killed at once, without grace; also one that is being stopped or restarted already.

    Refuses what has ended (Conflict `not-live`). Records service.stopping with grace_s 0.
    """
    with writing():
        row = locked(row, expected_generation)
        if row.status in ENDED:
            raise Conflict("not-live", f"{row} is {row.status} already.", status_now=row.status)
        if row.status == Status.STOPPING:
            if row.kill_at is None or row.kill_at > now:
                ManagedProcess.objects.filter(pk=row.pk).update(term_at=row.term_at or now, kill_at=now)
                row.term_at, row.kill_at = row.term_at or now, now
                tell(row, "stopping", by=by, now=now, cause=row.exit_cause or None, grace_s=0)
        else:
            _begin_stop(row, cause, "", grace_s=0, by=by, now=now)
    return row


def _begin_stop(
    row: ManagedProcess, cause: Cause, reason: str, *, grace_s: int | None = None, by: By, now: datetime
) -> None:
    failed = cause in {Cause.PROBE, Cause.CRASH, Cause.UNOBSERVED}
    then = _decide(row, cause, None, 0.0, now).status
    # What is replaced is restarted instead; one that is stopped for it does not come back.
    outcome = Status.FAILED if failed else Status.EXITED if then == Status.STARTING else then
    fields: dict[str, Any] = {**NO_DEADLINES, "outcome": outcome, "exit_cause": cause}
    if grace_s == 0:
        fields |= {"term_at": now, "kill_at": now}
    if reason:
        fields["last_error"] = reason
    move(row, "stop", now=now, by=by, **fields)
    grace = row.stop_grace_s if grace_s is None else grace_s
    # The log's tail, which may follow in the reason, is the row's.
    tell(row, "stopping", by=by, now=now, cause=cause, reason=reason.partition("\n")[0] or None, grace_s=grace)


def restart(row: ManagedProcess, *, by: By, now: datetime, expected_generation: int | None = None) -> ManagedProcess:
    """Have a process stopped, verified, and started again as the next generation; its absolute expiry stays.

    A second restart joins the first. Refuses (Conflict) workers and loops (`not-a-service`), what is being stopped
    (`stopping`) or has ended (`not-live`). Records service.restarting.
    """
    need_service(row)
    with writing():
        row = locked(row, expected_generation)
        if row.status == Status.STOPPING:
            raise Conflict("stopping", f"{row} is being stopped. Start it when it has ended.")
        if row.status in ENDED:
            raise Conflict("not-live", f"{row} is {row.status}. Start it instead.", status_now=row.status)
        asked: dict[str, Any] = {"outcome": Status.STARTING, "exit_cause": Cause.USER, "crashes": [], "attempt": 0}
        if row.status == Status.RESTARTING:
            ManagedProcess.objects.filter(pk=row.pk).update(**asked)
            return row
        move(row, "restart", now=now, by=by, **NO_DEADLINES, **asked)
        tell(row, "restarting", by=by, now=now, cause=Cause.USER)
    return row


def again(row: ManagedProcess, *, reason: str, jitter: float, by: By, now: datetime) -> None:
    """Have an unhealthy service that restarts itself stopped, and started again after its back-off; inside writing().

    Records service.restarting, or service.stopping when it failed too often.
    """
    then = _decide(row, Cause.PROBE, None, jitter, now)
    fields: dict[str, Any] = {**NO_DEADLINES, "exit_cause": Cause.PROBE, "crashes": list(then.crashes)}
    fields |= {"attempt": then.attempt, "outcome": then.status}
    if then.status == Status.BACKOFF:
        fields["retry_at"] = now + timedelta(seconds=then.delay_s)
        move(row, "restart", now=now, by=by, **fields)
        tell(row, "restarting", by=by, now=now, cause=Cause.PROBE, reason=reason)
    else:
        move(row, "stop", now=now, by=by, **fields)
        tell(row, "stopping", by=by, now=now, cause=Cause.PROBE, reason=reason)


def again_later(row: ManagedProcess, reason: str, *, jitter: float, by: By, now: datetime, only: Q) -> None:
    """Have a start that its policy asked for and that failed tried again, or give up; inside writing()."""
    then = _decide(row, Cause.CRASH, None, jitter, now)
    fields: dict[str, Any] = {"last_error": reason, "crashes": list(then.crashes), "attempt": then.attempt}
    if then.status == Status.BACKOFF:
        fields["retry_at"] = now + timedelta(seconds=then.delay_s)
    tell(row, "failed", by=by, now=now, reason=reason)
    _finish(row, then.status, fields, by=by, now=now, only=only)


def ended(
    row: ManagedProcess,
    code: int | None,
    *,
    members: Sequence[Member],
    hidden: Sequence[int] = (),
    tail: str = "",
    jitter: float,
    by: By,
    now: datetime,
) -> None:
    """Record that a process has ended unasked, and what follows by its policy.

    `code` None = not observable. With `members` still there, or `hidden` ones that may be, they are stopped first.
    Records service.exited for code 0, else service.crashed; then service.backoff or service.crash_loop.
    """
    cause = Cause.UNOBSERVED if code is None else Cause.CRASH if code else ""
    then = _decide(row, cause or Cause.CRASH, code, jitter, now)
    what = "exited" if code == 0 else "crashed"
    said = _exit_words(code) + (f"\n{tail}" if tail and code != 0 else "")
    fields: dict[str, Any] = {
        "exit_code": code,
        "exit_cause": cause,
        "exits": exits_with(row, code=code, cause=cause, now=now),
        "crashes": list(then.crashes),
        "attempt": then.attempt,
        "last_error": said if code != 0 else "",
        **NO_DEADLINES,
    }
    if then.status == Status.BACKOFF:
        fields["retry_at"] = now + timedelta(seconds=then.delay_s)
    with writing():
        tell(row, what, by=by, now=now, exit_code=code, cause=cause or None)
        if members or hidden:
            fields["members"] = [[each.identity.pid, each.identity.start_ticks] for each in members][:MEMBERS_KEPT]
            verb = "restart" if then.status == Status.BACKOFF else "stop"
            move(row, verb, now=now, by=by, outcome=then.status, **fields)
            return
        _finish(row, then.status, fields, by=by, now=now)


def signalled(row: ManagedProcess, *, members: Sequence[Member], kill_at: datetime, now: datetime) -> None:
    """Note before the first signal who is to go and when what remains is killed; Conflict when somebody else did."""
    known = [[each.identity.pid, each.identity.start_ticks] for each in members][:MEMBERS_KEPT]
    rows = ManagedProcess.objects.filter(pk=row.pk, generation=row.generation, status__in=GOING, term_at__isnull=True)
    if not rows.update(term_at=now, kill_at=kill_at, members=known):
        raise Conflict("illegal-transition", f"{row} was changed meanwhile.")
    row.term_at, row.kill_at, row.members = now, kill_at, known


def remain(row: ManagedProcess, left: Sequence[int], reason: str, *, by: By, now: datetime) -> None:
    """Note who outlived KILL or cannot be seen; records service.stopping with `left` when that changed."""
    if list(left) == row.left:
        return
    with writing():
        rows = ManagedProcess.objects.filter(pk=row.pk, generation=row.generation, status__in=GOING)
        if rows.update(left=list(left), last_error=storable(reason)):
            row.left = list(left)
            tell(row, "stopping", by=by, now=now, left=list(left), reason=reason)


def settle(row: ManagedProcess, code: int | None, *, warning: str = "", by: By, now: datetime) -> None:
    """Record that nothing is left of a process that was being stopped; one to be restarted is started or waits.

    `code`: of its leader, when it ended in this stop; `warning`: what a person should know of it. Records
    service.stopped or .expired (then .crash_loop, .backoff).
    """
    ended_now = row.pid is not None and not _is_told(row)
    fields: dict[str, Any] = {}
    if ended_now:
        fields = {"exit_code": code, "exits": exits_with(row, code=code, cause=row.exit_cause, now=now)}
    if warning:
        fields["last_error"] = warning
    # Somebody may have asked for another one while we looked.
    still = Q(outcome=row.outcome)
    with writing():
        # That it expired is told as such.
        if not (row.status == Status.STOPPING and row.outcome == Status.EXPIRED):
            tell(row, "stopped", by=by, now=now, cause=row.exit_cause or None, exit_code=code)
        if row.status == Status.STOPPING:
            _finish(row, Status(row.outcome), fields, by=by, now=now, only=still)
        elif row.outcome == Status.BACKOFF:
            _finish(row, Status.BACKOFF, {"retry_at": row.retry_at or now, **fields}, by=by, now=now, only=still)
        else:
            _respawn(row, fields, by=by, now=now, only=Q(status=Status.RESTARTING) & still)


def respawn(row: ManagedProcess, *, by: By, now: datetime) -> None:
    """Have a process started whose back-off is over. Records service.restarting."""
    with writing():
        tell(row, "restarting", by=by, now=now, cause=row.exit_cause or None, attempt=row.attempt)
        _respawn(row, {}, by=by, now=now, only=Q(retry_at__lte=now))


def _respawn(row: ManagedProcess, fields: dict[str, Any], *, by: By, now: datetime, only: Q) -> None:
    cleared = {**NO_PROCESS, "outcome": "", "retry_at": None, "restarts": row.restarts + 1, "exit_code": None}
    # What was declared together stands or falls together only once.
    cleared |= {"started_at": None, "batch": ""}
    move(row, "respawn", now=now, by=by, only=only, start=True, **{**fields, **cleared, "exit_cause": ""})


def _finish(
    row: ManagedProcess, status: Status, fields: dict[str, Any], *, by: By, now: datetime, only: Q | None = None
) -> None:
    gone = {**fields, **NO_PROCESS, "outcome": "", "ended_at": now}
    if status == Status.BACKOFF:
        move(row, "back_off", now=now, by=by, only=only, **gone)
        tell(row, "backoff", by=by, now=now, retry_at=_iso(row.retry_at), attempt=row.attempt)
        return
    move(row, ENDING_VERBS[status], now=now, by=by, only=only, **{**gone, **OVER})
    if status == Status.CRASH_LOOP:
        tell(row, "crash_loop", by=by, now=now, crashes=len(row.crashes))
    elif status == Status.EXPIRED:
        tell(row, "expired", by=by, now=now, exit_code=row.exit_code)


def lose(row: ManagedProcess, reason: str, *, by: By, now: datetime) -> None:
    """Give up a process that another boot took with it. Records service.lost."""
    fields = {**NO_PROCESS, **OVER, "outcome": "", "last_error": reason, "ended_at": now}
    with writing():
        exits = exits_with(row, code=None, cause=Cause.UNOBSERVED, now=now)
        tell(row, "lost", by=by, now=now, reason=reason)
        move(row, "lose", now=now, by=by, exits=exits, exit_cause=Cause.UNOBSERVED, **fields)


def force(row: ManagedProcess, reason: str, *, by: By, now: datetime) -> ManagedProcess:
    """Write a process off as lost though it may live: the last resort of an administrator, who says why.

    Nothing is signalled; its node's worker ends what is left of it when it next starts. Records service.forced.
    Refuses an empty reason (Rejected) and what has ended (Conflict).
    """
    if not reason.strip():
        raise Rejected("reason-missing", "Say why: the reason is kept in the log.")
    with writing():
        row = locked(row)
        if row.status in ENDED:
            raise Conflict("not-live", f"{row} is {row.status} already.", status_now=row.status)
        tell(row, "forced", by=by, now=now, reason=reason.strip(), status=row.status)
        fields = {**NO_PROCESS, **OVER, "outcome": "", "last_error": reason.strip(), "ended_at": now}
        move(row, "force", now=now, by=by, **fields)
    return row


def _decide(row: ManagedProcess, cause: str, code: int | None, jitter: float, now: datetime) -> Next:
    return after_end(
        cause,
        code,
        row.restart or Restart.NEVER,
        crashes=row.crashes,
        attempt=row.attempt,
        up_s=(now - row.started_at).total_seconds() if row.started_at else 0.0,
        at=now.timestamp(),
        jitter=jitter,
    )


def _is_told(row: ManagedProcess) -> bool:
    """Say whether this generation's end stands in the list of ends already."""
    return bool(row.exits) and row.exits[0]["generation"] == row.generation


def _exit_words(code: int | None) -> str:
    if code is None:
        return "ended while nobody watched; its exit code is not known"
    return f"killed by signal {-code}" if code < 0 else f"exit code {code}"


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None
