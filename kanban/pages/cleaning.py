"""The words of /system/'s clean-up: what retention keeps, why something stays, what was removed."""

from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from kanban import notices, retention
from kanban.leftovers import Preview
from kanban.models import CleanUp
from projects import sweeps as projects
from projects.sentences import cleaned
from services import sweeps as services

SHOWN = 3
REASONS = {
    "open": gettext_lazy("The task is not closed"),
    "recent": gettext_lazy("Closed less than 30 days ago"),
    "child": gettext_lazy("A task that waits for it is not closed and may read it"),
    "at_work": gettext_lazy("The old worker is not verified gone"),
    "somebodys": gettext_lazy("A directory or worktree of somebody: never touched"),
    "not_ours": gettext_lazy("Without Andon's marker, or gone already: never touched"),
}


def rules() -> list[tuple[str, str]]:
    """Return what retention keeps for how long, as (what, how long)."""
    days = {"tasks": _days(retention.KEPT.days), "events": _days(projects.EVENTS_KEPT.days)}
    return [
        (
            _("Events"),
            _("%(days)s, at most %(most)s") % {"days": days["events"], "most": f"{projects.EVENTS_AT_MOST:,}"},
        ),
        (_("Events of closed tasks"), days["tasks"]),
        (
            _("Scratch workspaces of closed tasks"),
            _("%s, and as long as a child is open; files that the result names for good") % days["tasks"],
        ),
        (_("Logs and run folders of closed tasks"), days["tasks"]),
        (_("What ended in projects that are gone"), _("%d s") % services.REMOVED_AFTER.seconds),
        (
            _("Deliveries of notices"),
            _("%(arrived)s, given up %(dead)s")
            % {"arrived": _days(notices.KEPT.days), "dead": _days(notices.DEAD_KEPT.days)},
        ),
    ]


def _days(number: int) -> str:
    return ngettext("%d day", "%d days", number) % number


def reasons(preview: Preview) -> list[tuple[str, int]]:
    """Return why workspaces stay, as (reason, how many), without those that none stays for."""
    return [(str(word), preview.kept[kind]) for kind, word in REASONS.items() if preview.kept[kind]]


def last() -> list[dict[str, Any]]:
    """Return the newest clean-ups, each with what it `said`; one query."""
    return [{"row": row, "said": said(row)} for row in CleanUp.objects.all()[:SHOWN]]


def said(row: CleanUp) -> str:
    """Return what came of a clean-up; "" while it is under way."""
    if row.ended_at is None:
        return ""
    told = cleaned(row.removed) or _("nothing was to go")
    if row.left:
        told = _("%s; the rest goes by itself") % told
    if row.failed:
        told = _("%(told)s; not all of %(failed)s") % {"told": told, "failed": ", ".join(row.failed)}
    return told
