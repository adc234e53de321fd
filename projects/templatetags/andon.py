"""Filters of our templates; built in, so no template loads them."""

from datetime import datetime, timedelta

from django import template
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from projects.sentences import length

register = template.Library()

# The words of states; their shapes are in static/img/status.svg.
WORDS = {
    "queued": gettext_lazy("Queued"),
    "ready": gettext_lazy("Ready"),
    "running": gettext_lazy("Running"),
    "review": gettext_lazy("Review"),
    "blocked": gettext_lazy("Blocked"),
    "waiting": gettext_lazy("Waiting"),
    "done": gettext_lazy("Done"),
    "complete": gettext_lazy("Complete"),
    "passed": gettext_lazy("Passed"),
    "failed": gettext_lazy("Failed"),
    "breaker": gettext_lazy("Breaker open"),
    "stopped": gettext_lazy("Stopped"),
    "idle": gettext_lazy("Idle"),
    "pending": gettext_lazy("Pending"),
    "in_progress": gettext_lazy("In progress"),
    "error": gettext_lazy("Error"),
    "missing": gettext_lazy("Missing"),
    "ticking": gettext_lazy("Ticking"),
    "silent": gettext_lazy("Silent"),
    "stalled": gettext_lazy("Stalled"),
    "starting": gettext_lazy("Starting"),
    "healthy": gettext_lazy("Healthy"),
    "unhealthy": gettext_lazy("Unhealthy"),
    "restarting": gettext_lazy("Restarting"),
    "backoff": gettext_lazy("Backing off"),
    "stopping": gettext_lazy("Stopping"),
    "exited": gettext_lazy("Exited"),
    "crash_loop": gettext_lazy("Crash loop"),
    "expired": gettext_lazy("Expired"),
    "lost": gettext_lazy("Lost"),
    "asked": gettext_lazy("Asked"),
    "ending": gettext_lazy("Ending"),
    "killed": gettext_lazy("Killed"),
    "applying": gettext_lazy("Being done"),
    "refused": gettext_lazy("Refused"),
    "undone": gettext_lazy("Undone"),
    "triage": gettext_lazy("Triage"),
    "todo": gettext_lazy("To do"),
    "archived": gettext_lazy("Archived"),
    "paused": gettext_lazy("Paused"),
    "disabled": gettext_lazy("Disabled"),
    "completed": gettext_lazy("Completed"),
    "review_requested": gettext_lazy("In review"),
    "crashed": gettext_lazy("Crashed"),
    "timed_out": gettext_lazy("Timed out"),
    "rate_limited": gettext_lazy("Met a quota"),
    "protocol_violation": gettext_lazy("Said nothing"),
    "released": gettext_lazy("Released"),
    "superseded": gettext_lazy("Overtaken"),
    "spawn_failed": gettext_lazy("Did not start"),
}

# Signs that show nothing, or turn the text around them: what agents wrote is shown as it is.
INVISIBLE = {
    **{code: 0x2400 + code for code in range(32)},
    127: 0x2421,
    **dict.fromkeys(
        (*range(0x80, 0xA0), *range(0x200B, 0x2010), *range(0x202A, 0x202F), *range(0x2060, 0x206A)), 0xFFFD
    ),
    0xFEFF: 0xFFFD,
}


@register.filter
def visible(text: str) -> str:
    """A name or line of somebody else's, in which no sign is invisible and no byte unreadable; line ends stay."""
    text = str(text)
    if text.isascii() and text.isprintable():
        # As a plain text again: a mark of safety is not handed on.
        return text + ""
    return "\n".join(line.translate(INVISIBLE).encode("utf-8", "replace").decode() for line in text.split("\n"))


@register.filter
def status_word(status: str) -> str:
    """The word of a state; an unknown one stands for itself."""
    return str(WORDS.get(status, status))


@register.filter
def age(at: datetime, now: datetime) -> str:
    """How long ago, or in how long, in one unit; live.js says the same each second."""
    away = now - at
    if timedelta(seconds=-5) < away < timedelta(seconds=2):
        return _("just now")
    seconds = int(abs(away.total_seconds()))
    for size, unit in ((86400, _("d")), (3600, _("h")), (60, _("min"))):
        if seconds >= size:
            text = f"{seconds // size} {unit}"
            break
    else:
        text = f"{seconds} {_('s')}"
    return _("%s ago") % text if away > timedelta(0) else _("in %s") % text


@register.filter
def duration(seconds: float) -> str:
    """A length of time in seconds, in words."""
    return length(float(seconds))
