"""What an event says to a person: one sentence a kind, from its payload."""

import signal
from collections.abc import Callable
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

Payload = dict[str, Any]


def length(seconds: float) -> str:
    """Return a duration in words: `42 s`, `6 min 12 s`, `3 h 5 min`, `4 d`."""
    whole = int(seconds)
    if whole < 60:
        return _("%d s") % whole
    if whole < 3600:
        minutes, rest = divmod(whole, 60)
        return _("%(m)d min %(s)d s") % {"m": minutes, "s": rest} if rest else _("%d min") % minutes
    if whole < 86400:
        hours, rest = divmod(whole // 60, 60)
        return _("%(h)d h %(m)d min") % {"h": hours, "m": rest} if rest else _("%d h") % hours
    return _("%d d") % (whole // 86400)


def sentence(kind: str, subject: str, payload: Payload) -> str:
    """Return the sentence; a kind that has none is told by its payload."""
    _family, _colon, name = subject.partition(":")
    slug, _slash, part = name.partition("/")
    context = {"name": name, "slug": slug, "part": part}
    tell = SENTENCES.get(kind)
    return tell(context, payload) if tell else plain(payload)


def plain(payload: Payload) -> str:
    """Return a payload as `key: value` pairs, without what every event says."""
    told = {key: value for key, value in payload.items() if key not in {"via", "address"}}
    return " · ".join(
        f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}" for key, value in told.items()
    )


def _says(text: str, *, reason: str = "") -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told = _(text) % context
        because = payload.get(reason) if reason else None
        return f"{told}: {because}" if because else told

    return tell


def _changed(context: dict[str, str], payload: Payload) -> str:
    what = ", ".join(str(item) for item in payload.get("changed", []))
    return _("%(name)s changed: %(what)s") % {**context, "what": what}


def _found(context: dict[str, str], payload: Payload) -> str:
    return _("%(name)s found, %(passed)s of %(total)s stories passed") % {
        **context,
        "passed": payload.get("passed", 0),
        "total": payload.get("total", 0),
    }


def _iteration(context: dict[str, str], payload: Payload) -> str:
    took = payload.get("duration_s")
    if not isinstance(took, int | float):
        return _("Iteration %(part)s of %(slug)s finished") % context
    return _("Iteration %(part)s of %(slug)s took %(took)s") % {**context, "took": length(took)}


def _stalled(context: dict[str, str], payload: Payload) -> str:
    quiet = payload.get("quiet_s")
    return _("%(name)s has been quiet for %(quiet)s") % {
        **context,
        "quiet": length(quiet) if isinstance(quiet, int | float) else "?",
    }


def exit_words(code: Any) -> str:
    """Return how a process ended: `exit code 3`, `SIGKILL`; "" when that is not known."""
    if not isinstance(code, int):
        return ""
    if code >= 0:
        return _("exit code %d") % code
    try:
        return signal.Signals(-code).name
    except ValueError:
        return _("signal %d") % -code


def _ended(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told, how = _(text) % context, exit_words(payload.get("exit_code"))
        return f"{told}: {how}" if how else told

    return tell


def _until(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        at = payload.get("expires_at")
        return _(text) % {**context, "at": at[:16].replace("T", " ") if isinstance(at, str) else "?"}

    return tell


def _ends(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told, ends = _(text) % context, payload.get("ends")
        return f"{told}: {', '.join(map(str, ends))}" if isinstance(ends, list) else told

    return tell


def _recovered(context: dict[str, str], payload: Payload) -> str:
    added = payload.get("added")
    count = added if isinstance(added, int) else 0
    told = ngettext(
        "%d turn without an end was called interrupted", "%d turns without an end were called interrupted", count
    )
    failed = payload.get("failed")
    return (
        _("%(told)s; not in %(failed)s") % {"told": told % count, "failed": ", ".join(failed)}
        if failed
        else told % count
    )


def _stopping(who: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        left = payload.get("left")
        if isinstance(left, list) and left:
            told = _(f"{who} is not gone yet: %(left)s")
            return told % {**context, "left": ", ".join(map(str, left))}
        told = _(f"{who} is being stopped") % context
        because = payload.get("reason") or payload.get("cause")
        return f"{told}: {because}" if because else told

    return tell


def _of_process(family: str, who: str) -> dict[str, Callable[[dict[str, str], Payload], str]]:
    """Return the sentences that services and loops share."""
    return {
        f"{family}.declared": _says(f"{who} declared", reason="cmd"),
        f"{family}.starting": _says(f"{who} starts"),
        f"{family}.failed": _says(f"{who} could not be started", reason="reason"),
        f"{family}.restarting": _says(f"{who} is started again", reason="cause"),
        f"{family}.stopping": _stopping(who),
        f"{family}.adopted": _says(f"{who} was taken over by a new worker"),
        f"{family}.lost": _says(f"{who} is lost", reason="reason"),
        f"{family}.forced": _says(f"{who} was written off as lost", reason="reason"),
        f"{family}.erased": _says(f"{who} is forgotten"),
    }


# Why a loop of our runner, or of ralph-orchestrator, ended: the reasons of spec/journal.md 2.
REASONS = {
    "completion_promise": gettext_lazy("it says that all is done"),
    "max_iterations": gettext_lazy("the limit of iterations is reached"),
    "max_runtime": gettext_lazy("the limit of time is reached"),
    "max_cost": gettext_lazy("the limit of cost is reached"),
    "consecutive_failures": gettext_lazy("too many iterations failed one after another"),
    "stopped": gettext_lazy("it was asked to"),
    "workspace_gone": gettext_lazy("its directory is gone"),
}


def _loop_ended(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told, reason = _(text) % context, payload.get("reason")
        if payload.get("killed"):
            told = _("%s: it had to be killed") % told
        elif isinstance(reason, str) and reason:
            told = f"{told}: {REASONS.get(reason, reason)}"
        elif code := payload.get("exit_code"):
            told = f"{told}: {exit_words(code)}"
        return told

    return tell


def _budget(context: dict[str, str], payload: Payload) -> str:
    most, cost = payload.get("max_iterations"), payload.get("max_cost_usd")
    said = [_("%s iterations") % most] if most is not None else []
    said += [f"${cost}"] if cost is not None else []
    return _("Budget of %(name)s set: %(said)s") % {**context, "said": ", ".join(said) or _("as it is started")}


def _rolled(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told = _(text) % {**context, "commit": str(payload.get("commit", "?"))[:12]}
        if because := payload.get("reason"):
            return f"{told}: {because}"
        story = payload.get("story")
        return _("%(told)s, %(story)s is open again") % {"told": told, "story": story} if story else told

    return tell


def _token(text: str) -> Callable[[dict[str, str], Payload], str]:
    return lambda context, payload: _(text) % {**context, "token": payload.get("name", context["name"])}


def _tested(context: dict[str, str], payload: Payload) -> str:
    if payload.get("ok"):
        return _("A test of notice %(name)s arrived") % context
    return _("A test of notice %(name)s did not arrive: %(reason)s") % {**context, "reason": payload.get("reason", "?")}


# Why a task is blocked.
BLOCKS = {
    "needs_input": gettext_lazy("%(name)s needs an answer"),
    "capability": gettext_lazy("%(name)s needs what its worker cannot do"),
    "dependency": gettext_lazy("%(name)s waits for its parents"),
    "transient": gettext_lazy("%(name)s waits before it is tried again"),
    "breaker": gettext_lazy("The breaker of %(name)s is open"),
}
# What a status is called in a sentence about a move.
PLACES = {
    "triage": gettext_lazy("triage"),
    "todo": gettext_lazy("to do"),
    "ready": gettext_lazy("ready"),
    "blocked": gettext_lazy("blocked"),
}


def _place(payload: Payload) -> str:
    status = str(payload.get("status", "?"))
    return str(PLACES.get(status, status))


def _made(context: dict[str, str], payload: Payload) -> str:
    place = _place(payload)
    who = payload.get("assignee")
    told = _("%(name)s made for %(who)s: %(place)s") if who else _("%(name)s made: %(place)s")
    return told % {**context, "who": who, "place": place}


def _placed(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told = _(text) % {**context, "place": _place(payload)}
        because, parents = payload.get("reason"), payload.get("parents")
        if isinstance(parents, list) and parents:
            because = _("it does not wait for %s") % ", ".join(map(str, parents))
        return f"{told}: {because}" if because else told

    return tell


def _blocked(context: dict[str, str], payload: Payload) -> str:
    told = str(BLOCKS.get(str(payload.get("block_kind")), _("%(name)s is blocked"))) % context
    because = payload.get("reason")
    return f"{told}: {because}" if because else told


def _failed(text: str) -> Callable[[dict[str, str], Payload], str]:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told, failures = _(text) % context, payload.get("failures")
        if isinstance(failures, int) and failures > 1:
            told = _("%(told)s (failure %(n)d)") % {"told": told, "n": failures}
        because = payload.get("error")
        return f"{told}: {because}" if because else told

    return tell


def _about(text: str, **keys: str) -> Callable[[dict[str, str], Payload], str]:
    """Return a sentence with parts of the payload in it: `keys` name them, with what stands for a missing one."""
    return lambda context, payload: _(text) % {**context, **{key: payload.get(key) or _(keys[key]) for key in keys}}


_OF_TASKS: dict[str, Callable[[dict[str, str], Payload], str]] = {
    "task.created": _made,
    "task.ready": _says("%(name)s is ready"),
    "task.claimed": _about("%(name)s is claimed for %(profile)s", profile="a worker elsewhere"),
    "task.spawned": _about("The worker of %(name)s has started, process %(pid)s", pid="?"),
    "task.heartbeat": _says("%(name)s is being worked on", reason="note"),
    "task.reclaimed": _says("%(name)s is taken back", reason="reason"),
    "task.crashed": _failed("The worker of %(name)s crashed"),
    "task.timed_out": _failed("The worker of %(name)s took too long"),
    "task.spawn_failed": _failed("No worker could be started for %(name)s"),
    "task.spawn_auto_blocked": _failed("%(name)s is given up, no worker could be started"),
    "task.gave_up": _failed("%(name)s is given up, its breaker is open"),
    "task.rate_limited": _says("%(name)s waits for its agent's quota"),
    "task.protocol_violation": _failed("The worker of %(name)s ended without a verdict"),
    "task.reported": _says("%(name)s is reported done; its services are looked at"),
    "task.exited": _says("The old worker of %(name)s has ended"),
    "task.imported": _says("The history of %(name)s was brought in"),
    "task.completed": _says("%(name)s is done"),
    "task.blocked": _blocked,
    "task.unblocked": _says("%(name)s goes on"),
    "task.review_requested": _says("%(name)s is handed in for review", reason="summary"),
    "task.approved": _says("%(name)s is approved"),
    "task.sent_back": _says("%(name)s is sent back"),
    "task.archived": _says("%(name)s is archived"),
    "task.reopened": _says("%(name)s is open again"),
    "task.assigned": _about("%(name)s is given to %(assignee)s", assignee="nobody"),
    "task.linked": _about("%(child)s waits for %(parent)s", child="?", parent="?"),
    "task.unlinked": _about("%(child)s no longer waits for %(parent)s", child="?", parent="?"),
    "task.commented": _about("%(author)s commented on %(name)s", author="?"),
    "task.status": _placed("%(name)s moved to %(place)s"),
    "task.priority": _about("Priority of %(name)s set to %(priority)s", priority="0"),
    "task.edited": _changed,
    "task.forced": _placed("%(name)s is forced to %(place)s"),
    "task.pruned": _says("The workspace of %(name)s is removed: it was closed long ago"),
    "profile.paused": _says("Profile %(name)s is paused", reason="reason"),
    "profile.resumed": _says("Profile %(name)s works again"),
    "profile.found": _about("The agent of profile %(name)s was found on %(node)s", node="?"),
    "profile.gone": _about("The agent of profile %(name)s is gone from %(node)s", node="?"),
    "board.paused": _says("The dispatcher is paused"),
    "board.resumed": _says("The dispatcher runs again"),
}


SENTENCES: dict[str, Callable[[dict[str, str], Payload], str]] = {
    **_OF_TASKS,
    **_of_process("service", "%(name)s"),
    **_of_process("loop", "Loop of %(name)s"),
    "loop.declared": _says("Loop of %(name)s is to be started"),
    "service.rejected": _says("A declaration in %(slug)s was refused", reason="reason"),
    "service.healthy": _says("%(name)s is healthy"),
    "service.unhealthy": _says("%(name)s is unhealthy", reason="reason"),
    "service.crashed": _ended("%(name)s crashed"),
    "service.exited": _ended("%(name)s ended"),
    "service.stopped": _ended("%(name)s stopped"),
    "service.backoff": _says("%(name)s waits before it is tried again"),
    "service.crash_loop": _says("%(name)s crashes again and again; nothing more is tried"),
    "service.expiring": _until("%(name)s expires at %(at)s UTC"),
    "service.expired": _says("%(name)s has expired"),
    "service.extended": _until("%(name)s extended until %(at)s UTC"),
    "service.partial": _says("Only some services of %(slug)s came up", reason="reason"),
    "sidecar.discarded": _says("Spec file of %(name)s discarded"),
    "project.found": _found,
    "project.changed": _changed,
    "project.error": _says("%(name)s cannot be read", reason="error"),
    "project.missing": _says("%(name)s is gone", reason="path"),
    "story.passed": _says("%(part)s passed in %(slug)s"),
    "story.failed": _says("%(part)s failed in %(slug)s", reason="reason"),
    "story.blocked": _says("%(part)s is blocked in %(slug)s", reason="reason"),
    "story.requeue_asked": _says("%(part)s of %(slug)s is to be opened again"),
    "story.reopened": _says("%(part)s is open again in %(slug)s"),
    "story.added": _says("%(part)s was added to %(slug)s", reason="title"),
    "story.removed": _says("%(part)s was removed from %(slug)s", reason="title"),
    "loop.started": _says("Loop of %(name)s started"),
    "loop.stopped": _loop_ended("Loop of %(name)s stopped"),
    "loop.crashed": _loop_ended("Loop of %(name)s crashed"),
    "loop.completed": _loop_ended("Loop of %(name)s completed"),
    "loop.stop_asked": _says("Loop of %(name)s is to be stopped"),
    "loop.stop_refused": _says("Loop of %(name)s could not be stopped", reason="reason"),
    "loop.configured": _says("What starts the loop of %(name)s was set"),
    "loop.budget_set": _budget,
    "rollback.asked": _says("Rollback in %(name)s asked for"),
    "rollback.started": _says("A rollback in %(name)s has begun"),
    "rollback.completed": _rolled("Rolled back %(commit)s in %(name)s"),
    "rollback.forced": _says("Rollback in %(name)s written off", reason="reason"),
    "rollback.refused": _says("Rollback in %(name)s refused", reason="reason"),
    "rollback.undone": _says("Rollback in %(name)s came to nothing", reason="reason"),
    "loop.stalled": _stalled,
    "iteration.finished": _iteration,
    "turn.submitted": _says("Turn %(part)s of %(slug)s was submitted"),
    "turn.worker_started": _says("A worker began turn %(part)s of %(slug)s"),
    "turn.assistant_started": _says("Turn %(part)s of %(slug)s is being answered"),
    "turn.completed": _says("Turn %(part)s of %(slug)s completed"),
    "turn.interrupted": _says("Turn %(part)s of %(slug)s was interrupted", reason="reason"),
    "turn.collided": _ends("Turn %(part)s of %(slug)s ended more than once"),
    "session.deleted": _says("Session %(name)s deleted"),
    "journal.rewritten": _says("The journal of %(name)s is another file than before"),
    "journal.missing": _says("The journal of %(name)s is gone"),
    "journal.unreadable": _says("The journal of %(name)s cannot be read", reason="reason"),
    "journal.recovered": _recovered,
    "worker.started": _says("Worker of %(name)s started"),
    "worker.heartbeat": _says("Worker of %(name)s ticks"),
    "worker.silent": _says("Worker of %(name)s is silent"),
    "worker.recovered": _says("Worker of %(name)s ticks again"),
    "worker.stopped": _says("Worker of %(name)s stopped"),
    "worker.forgotten": _says("%(name)s is forgotten"),
    "board.imported": _says("%(name)s was brought in", reason="said"),
    "notice.subscribed": _says("Notice %(name)s set up", reason="host"),
    "notice.unsubscribed": _says("Notice %(name)s deleted", reason="host"),
    "notice.paused": _says("Notice %(name)s is paused", reason="reason"),
    "notice.resumed": _says("Notice %(name)s goes on"),
    "notice.test_asked": _says("A test of notice %(name)s was asked for"),
    "notice.tested": _tested,
    "notice.sent_again": _says("Something of notice %(name)s is sent again"),
    "notice.undeliverable": _says("Something of notice %(name)s could not be delivered", reason="reason"),
    "notice.missed": _says("Notice %(name)s went on behind events that are deleted already"),
    "user.password_set": _says("%(name)s set a password"),
    "user.signed_out": _says("%(name)s signed out"),
    "user.changed": _says("Account %(name)s changed", reason="role"),
    "user.deleted": _says("Account %(name)s deleted"),
    "user.link_expired": _says("Sign-in link of %(name)s expired"),
    "token.issued": _token("Token %(token)s made"),
    "token.revoked": _token("Token %(token)s revoked"),
    "user.invited": _says("Sign-in link made for %(name)s"),
    "user.signed_in": _says("%(name)s signed in", reason="means"),
    "user.sign_in_failed": _says("Sign-in failed for %(name)s"),
}
