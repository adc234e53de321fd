"""What an event says to a person: one sentence a kind, from its payload."""

from django.utils.text import Truncator
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from projects.sentences.tasks import OF_TASKS, cleaned
from projects.sentences.words import Payload, Tell, changed, exit_words, length, plain, says

__all__ = ["SENTENCES", "cleaned", "length", "sentence"]

TITLE_SHOWN = 80


def sentence(kind: str, subject: str, payload: Payload, title: str = "") -> str:
    """Return the sentence; a kind that has none is told by its payload. With a title the subject goes by that."""
    _family, _colon, name = subject.partition(":")
    slug, _slash, part = name.partition("/")
    # What happened is to be seen behind any title.
    called = _("“%s”") % Truncator(title).chars(TITLE_SHOWN) if title else name
    context = {"name": called, "slug": slug, "part": part}
    tell = SENTENCES.get(kind)
    return tell(context, payload) if tell else plain(payload)


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


def _ended(text: str) -> Tell:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told, how = _(text) % context, exit_words(payload.get("exit_code"))
        return f"{told}: {how}" if how else told

    return tell


def _until(text: str) -> Tell:
    def tell(context: dict[str, str], payload: Payload) -> str:
        at = payload.get("expires_at")
        return _(text) % {**context, "at": at[:16].replace("T", " ") if isinstance(at, str) else "?"}

    return tell


def _ends(text: str) -> Tell:
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


def _stopping(who: str) -> Tell:
    def tell(context: dict[str, str], payload: Payload) -> str:
        left = payload.get("left")
        if isinstance(left, list) and left:
            told = _(f"{who} is not gone yet: %(left)s")
            return told % {**context, "left": ", ".join(map(str, left))}
        told = _(f"{who} is being stopped") % context
        because = payload.get("reason") or payload.get("cause")
        return f"{told}: {because}" if because else told

    return tell


def _of_process(family: str, who: str) -> dict[str, Tell]:
    """Return the sentences that services and loops share."""
    return {
        f"{family}.declared": says(f"{who} declared", reason="cmd"),
        f"{family}.starting": says(f"{who} starts"),
        f"{family}.failed": says(f"{who} could not be started", reason="reason"),
        f"{family}.restarting": says(f"{who} is started again", reason="cause"),
        f"{family}.stopping": _stopping(who),
        f"{family}.adopted": says(f"{who} was taken over by a new worker"),
        f"{family}.lost": says(f"{who} is lost", reason="reason"),
        f"{family}.forced": says(f"{who} was written off as lost", reason="reason"),
        f"{family}.erased": says(f"{who} is forgotten"),
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


def _loop_ended(text: str) -> Tell:
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


def _rolled(text: str) -> Tell:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told = _(text) % {**context, "commit": str(payload.get("commit", "?"))[:12]}
        if because := payload.get("reason"):
            return f"{told}: {because}"
        story = payload.get("story")
        return _("%(told)s, %(story)s is open again") % {"told": told, "story": story} if story else told

    return tell


def _token(text: str) -> Tell:
    return lambda context, payload: _(text) % {**context, "token": payload.get("name", context["name"])}


def _tested(context: dict[str, str], payload: Payload) -> str:
    if payload.get("ok"):
        return _("A test of notice %(name)s arrived") % context
    return _("A test of notice %(name)s did not arrive: %(reason)s") % {**context, "reason": payload.get("reason", "?")}


SENTENCES: dict[str, Tell] = {
    **OF_TASKS,
    **_of_process("service", "%(name)s"),
    **_of_process("loop", "Loop of %(name)s"),
    "loop.declared": says("Loop of %(name)s is to be started"),
    "service.rejected": says("A declaration in %(slug)s was refused", reason="reason"),
    "service.healthy": says("%(name)s is healthy"),
    "service.unhealthy": says("%(name)s is unhealthy", reason="reason"),
    "service.crashed": _ended("%(name)s crashed"),
    "service.exited": _ended("%(name)s ended"),
    "service.stopped": _ended("%(name)s stopped"),
    "service.backoff": says("%(name)s waits before it is tried again"),
    "service.crash_loop": says("%(name)s crashes again and again; nothing more is tried"),
    "service.expiring": _until("%(name)s expires at %(at)s UTC"),
    "service.expired": says("%(name)s has expired"),
    "service.extended": _until("%(name)s extended until %(at)s UTC"),
    "service.partial": says("Only some services of %(slug)s came up", reason="reason"),
    "sidecar.discarded": says("Spec file of %(name)s discarded"),
    "project.found": _found,
    "project.changed": changed,
    "project.error": says("%(name)s cannot be read", reason="error"),
    "project.missing": says("%(name)s is gone", reason="path"),
    "story.passed": says("%(part)s passed in %(slug)s", reason="title"),
    "story.failed": says("%(part)s failed in %(slug)s", reason="reason"),
    "story.blocked": says("%(part)s is blocked in %(slug)s", reason="reason"),
    "story.requeue_asked": says("%(part)s of %(slug)s is to be opened again"),
    "story.reopened": says("%(part)s is open again in %(slug)s"),
    "story.added": says("%(part)s was added to %(slug)s", reason="title"),
    "story.removed": says("%(part)s was removed from %(slug)s", reason="title"),
    "loop.started": says("Loop of %(name)s started"),
    "loop.stopped": _loop_ended("Loop of %(name)s stopped"),
    "loop.crashed": _loop_ended("Loop of %(name)s crashed"),
    "loop.completed": _loop_ended("Loop of %(name)s completed"),
    "loop.stop_asked": says("Loop of %(name)s is to be stopped"),
    "loop.stop_refused": says("Loop of %(name)s could not be stopped", reason="reason"),
    "loop.configured": says("What starts the loop of %(name)s was set"),
    "loop.budget_set": _budget,
    "rollback.asked": says("Rollback in %(name)s asked for"),
    "rollback.started": says("A rollback in %(name)s has begun"),
    "rollback.completed": _rolled("Rolled back %(commit)s in %(name)s"),
    "rollback.forced": says("Rollback in %(name)s written off", reason="reason"),
    "rollback.refused": says("Rollback in %(name)s refused", reason="reason"),
    "rollback.undone": says("Rollback in %(name)s came to nothing", reason="reason"),
    "loop.stalled": _stalled,
    "iteration.finished": _iteration,
    "turn.submitted": says("Turn %(part)s of %(slug)s was submitted"),
    "turn.worker_started": says("A worker began turn %(part)s of %(slug)s"),
    "turn.assistant_started": says("Turn %(part)s of %(slug)s is being answered"),
    "turn.completed": says("Turn %(part)s of %(slug)s completed"),
    "turn.interrupted": says("Turn %(part)s of %(slug)s was interrupted", reason="reason"),
    "turn.collided": _ends("Turn %(part)s of %(slug)s ended more than once"),
    "session.deleted": says("Session %(name)s deleted"),
    "journal.rewritten": says("The journal of %(name)s is another file than before"),
    "journal.missing": says("The journal of %(name)s is gone"),
    "journal.unreadable": says("The journal of %(name)s cannot be read", reason="reason"),
    "journal.recovered": _recovered,
    "worker.started": says("Worker of %(name)s started"),
    "worker.heartbeat": says("Worker of %(name)s ticks"),
    "worker.silent": says("Worker of %(name)s is silent"),
    "worker.recovered": says("Worker of %(name)s ticks again"),
    "worker.stopped": says("Worker of %(name)s stopped"),
    "worker.forgotten": says("%(name)s is forgotten"),
    "board.imported": says("%(name)s was brought in", reason="said"),
    "notice.subscribed": says("Notice %(name)s set up", reason="host"),
    "notice.unsubscribed": says("Notice %(name)s deleted", reason="host"),
    "notice.paused": says("Notice %(name)s is paused", reason="reason"),
    "notice.resumed": says("Notice %(name)s goes on"),
    "notice.test_asked": says("A test of notice %(name)s was asked for"),
    "notice.tested": _tested,
    "notice.sent_again": says("Something of notice %(name)s is sent again"),
    "notice.undeliverable": says("Something of notice %(name)s could not be delivered", reason="reason"),
    "notice.missed": says("Notice %(name)s went on behind events that are deleted already"),
    "user.password_set": says("%(name)s set a password"),
    "user.signed_out": says("%(name)s signed out"),
    "user.changed": says("Account %(name)s changed", reason="role"),
    "user.deleted": says("Account %(name)s deleted"),
    "user.link_expired": says("Sign-in link of %(name)s expired"),
    "token.issued": _token("Token %(token)s made"),
    "token.revoked": _token("Token %(token)s revoked"),
    "user.invited": says("Sign-in link made for %(name)s"),
    "user.signed_in": says("%(name)s signed in", reason="means"),
    "user.sign_in_failed": says("Sign-in failed for %(name)s"),
}
