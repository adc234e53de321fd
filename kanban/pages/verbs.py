"""What can be done with a task now, and why the rest cannot."""

from collections.abc import Callable
from dataclasses import dataclass

from django.urls import reverse
from django.utils.functional import Promise
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from kanban.models import Task
from kanban.states import CLOSED, TASK_MOVES, BlockKind, Status, is_question


@dataclass(frozen=True, slots=True)
class Verb:
    """One button: `asks` when a page asks first; `why` says why it cannot be done now, "" when it can."""

    name: str
    label: str
    url: str
    asks: bool = False
    danger: bool = False
    primary: bool = False
    why: str = ""


LABELS: dict[str, Promise] = {
    "approve": gettext_lazy("Approve"),
    "send_back": gettext_lazy("Send back"),
    "unblock": gettext_lazy("Unblock"),
    "ready": gettext_lazy("Make ready"),
    "complete": gettext_lazy("Complete…"),
    "block": gettext_lazy("Block…"),
    "release": gettext_lazy("Release…"),
    "review": gettext_lazy("Send to review…"),
    "todo": gettext_lazy("Hold"),
    "triage": gettext_lazy("Back to triage"),
    "reopen": gettext_lazy("Reopen"),
    "assign": gettext_lazy("Assign…"),
    "prioritise": gettext_lazy("Priority…"),
    "limit": gettext_lazy("Limits…"),
    "edit": gettext_lazy("Edit…"),
    "archive": gettext_lazy("Archive"),
}
# Each verb's row in the table of moves.
_MOVES = {
    "approve": "approve",
    "send_back": "send_back",
    "unblock": "unblock",
    "ready": "move_to_ready",
    "complete": "complete",
    "block": "block",
    "release": "release",
    "review": "request_review",
    "todo": "move_to_todo",
    "triage": "move_to_triage",
    "reopen": "reopen",
    "archive": "archive",
}
_FORMS = frozenset({"complete", "block", "assign", "prioritise", "limit", "edit"})


def of(task: Task) -> list[Verb]:
    """Return every verb a person has, the likeliest first; those that cannot be done say why."""
    return [verb(task, name) for name in LABELS]


def verb(task: Task, name: str) -> Verb:
    """Return one verb of a task."""
    runs = task.status == Status.RUNNING
    label = str(LABELS[name])
    if name == "unblock" and task.block_kind == BlockKind.BREAKER:
        label = _("Retry")
    if name == "unblock" and is_question(task.block_kind, task.block_reason):
        label = _("Answer…")
    return Verb(
        name,
        label,
        reverse("task-verb", args=[task.pk, name]),
        # What ends a worker asks first; what a worker asked is answered before it goes on.
        asks=name in _FORMS
        or (name == "unblock" and is_question(task.block_kind, task.block_reason))
        or (runs and name in {"release", "review", "archive"}),
        danger=runs and name in {"release", "archive", "complete"},
        primary=name in {"approve", "unblock"} or (name == "ready" and task.status == Status.TRIAGE),
        why=why_not(task, name),
    )


def why_not(task: Task, name: str) -> str:
    """Say why a verb cannot be done with a task as it is, "" when it can."""
    if name == "assign":
        return _("It runs: release it before somebody else gets it.") if task.status == Status.RUNNING else ""
    move = _MOVES.get(name)
    if move is None or task.status in TASK_MOVES[move][0]:
        if name == "todo" and task.held:
            return _("It is held already.")
        return ""
    return _WHY[name](task)


def _only(text: Promise) -> Callable[[Task], str]:
    return lambda task: str(text)


def _moving(task: Task) -> str:
    if task.status == Status.RUNNING:
        return _("It runs: release it, complete it or block it.")
    if task.status == Status.READY:
        return _("It is ready already.")
    if task.status == Status.BLOCKED:
        return _("It is blocked: unblock it.")
    if task.status == Status.REVIEW:
        return _("It is in review: send it back.")
    return _("It is closed: reopen it.") if task.status in CLOSED else _("It is there already.")


def _completing(task: Task) -> str:
    if task.status in CLOSED:
        return _("It is closed already.")
    return _("It was not begun: make it ready first, or archive it.")


def _blocking(task: Task) -> str:
    if task.status == Status.BLOCKED:
        return _("It is blocked already.")
    return _("Only what is ready or runs can be blocked. Hold it instead, or make it ready first.")


_WHY: dict[str, Callable[[Task], str]] = {
    "approve": _only(gettext_lazy("Only what is in review can be approved.")),
    "send_back": _only(gettext_lazy("Only what is in review can be sent back.")),
    "unblock": _only(gettext_lazy("It is not blocked.")),
    "ready": _moving,
    "complete": _completing,
    "block": _blocking,
    "release": _only(gettext_lazy("It does not run.")),
    "review": _only(gettext_lazy("Only what runs can be sent to review.")),
    "todo": _moving,
    "triage": _moving,
    "reopen": _only(gettext_lazy("It is not closed.")),
    "archive": _only(gettext_lazy("It is archived already.")),
}
