"""What the events of tasks, profiles and the board say."""

from django.template.defaultfilters import filesizeformat
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from projects.sentences.words import Payload, Tell, changed, says

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


def _placed(text: str) -> Tell:
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


def _failed(text: str) -> Tell:
    def tell(context: dict[str, str], payload: Payload) -> str:
        told, failures = _(text) % context, payload.get("failures")
        if isinstance(failures, int) and failures > 1:
            told = _("%(told)s (failure %(n)d)") % {"told": told, "n": failures}
        because = payload.get("error")
        return f"{told}: {because}" if because else told

    return tell


def _commented(context: dict[str, str], payload: Payload) -> str:
    author = str(payload.get("author") or "?")
    if author.startswith("run:"):
        return _("The worker of %(name)s commented") % context
    return _("%(author)s commented on %(name)s") % {**context, "author": author}


def _about(text: str, **keys: str) -> Tell:
    """Return a sentence with parts of the payload in it: `keys` name them, with what stands for a missing one."""
    return lambda context, payload: _(text) % {**context, **{key: payload.get(key) or _(keys[key]) for key in keys}}


def cleaned(removed: Payload) -> str:
    """Return what a clean-up removed: `2 workspaces, 40 events; 12.5 MB of files`; "" when that was nothing."""
    count = {kind: number for kind, number in removed.items() if isinstance(number, int)}
    n = count.get("workspaces", 0)
    parts = [ngettext("%d workspace", "%d workspaces", n) % n] if n else []
    n = count.get("processes", 0)
    parts += [ngettext("%d process that had ended", "%d processes that had ended", n) % n] if n else []
    n = count.get("logs", 0)
    parts += [ngettext("%d log", "%d logs", n) % n] if n else []
    n = count.get("events", 0) + count.get("task_events", 0)
    parts += [ngettext("%d event", "%d events", n) % n] if n else []
    n = count.get("deliveries", 0)
    parts += [ngettext("%d delivery", "%d deliveries", n) % n] if n else []
    told = ", ".join(parts)
    size = count.get("bytes", 0)
    return _("%(told)s; %(size)s of files") % {"told": told, "size": filesizeformat(size)} if told and size else told


def _cleaned(context: dict[str, str], payload: Payload) -> str:
    told = _("%(name)s is cleaned up: %(told)s") % {**context, "told": cleaned(payload) or _("nothing was to go")}
    failed = payload.get("failed")
    return _("%(told)s; not all of %(failed)s") % {"told": told, "failed": ", ".join(failed)} if failed else told


OF_TASKS: dict[str, Tell] = {
    "task.created": _made,
    "task.ready": says("%(name)s is ready"),
    "task.claimed": _about("%(name)s is claimed for %(profile)s", profile="a worker elsewhere"),
    "task.spawned": _about("The worker of %(name)s has started, process %(pid)s", pid="?"),
    "task.heartbeat": says("%(name)s is being worked on", reason="note"),
    "task.reclaimed": says("%(name)s is taken back", reason="reason"),
    "task.crashed": _failed("The worker of %(name)s crashed"),
    "task.timed_out": _failed("The worker of %(name)s took too long"),
    "task.spawn_failed": _failed("No worker could be started for %(name)s"),
    "task.spawn_auto_blocked": _failed("%(name)s is given up, no worker could be started"),
    "task.gave_up": _failed("%(name)s is given up, its breaker is open"),
    "task.rate_limited": says("%(name)s waits for its agent's quota"),
    "task.protocol_violation": _failed("The worker of %(name)s ended without a verdict"),
    "task.reported": says("%(name)s is reported done; its services are looked at"),
    "task.exited": says("The old worker of %(name)s has ended"),
    "task.imported": says("The history of %(name)s was brought in"),
    "task.completed": says("%(name)s is done"),
    "task.blocked": _blocked,
    "task.unblocked": says("%(name)s goes on"),
    "task.review_requested": says("%(name)s is handed in for review", reason="summary"),
    "task.approved": says("%(name)s is approved"),
    "task.sent_back": says("%(name)s is sent back"),
    "task.archived": says("%(name)s is archived"),
    "task.reopened": says("%(name)s is open again"),
    "task.assigned": _about("%(name)s is given to %(assignee)s", assignee="nobody"),
    "task.linked": _about("%(child)s waits for %(parent)s", child="?", parent="?"),
    "task.unlinked": _about("%(child)s no longer waits for %(parent)s", child="?", parent="?"),
    "task.commented": _commented,
    "task.status": _placed("%(name)s moved to %(place)s"),
    "task.priority": _about("Priority of %(name)s set to %(priority)s", priority="0"),
    "task.edited": changed,
    "task.forced": _placed("%(name)s is forced to %(place)s"),
    "task.pruned": says("The workspace of %(name)s is removed: it was closed long ago"),
    "profile.paused": says("Profile %(name)s is paused", reason="reason"),
    "profile.resumed": says("Profile %(name)s works again"),
    "profile.found": _about("The agent of profile %(name)s was found on %(node)s", node="?"),
    "profile.gone": _about("The agent of profile %(name)s is gone from %(node)s", node="?"),
    "board.paused": says("The dispatcher is paused"),
    "board.resumed": says("The dispatcher runs again"),
    "cleanup.asked": says("%(name)s is to be cleaned up"),
    "cleanup.completed": _cleaned,
}
