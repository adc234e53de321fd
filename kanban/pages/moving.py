"""Where a card can go: the columns of the "Move to" menu, with the verb that each means or why not."""

from dataclasses import dataclass

from django.utils.translation import gettext as _

from kanban.models import Task
from kanban.pages.board import NAMES
from kanban.pages.verbs import why_not
from kanban.states import Status

# What a column means for a card that comes from another: the verb of verbs.py.
_TO_READY = {
    Status.TRIAGE: "ready",
    Status.TODO: "ready",
    Status.BLOCKED: "unblock",
    Status.REVIEW: "send_back",
    Status.DONE: "reopen",
    Status.ARCHIVED: "reopen",
    Status.RUNNING: "release",
}
_TO: dict[str, str] = {
    Status.TRIAGE: "triage",
    Status.TODO: "todo",
    Status.REVIEW: "review",
    Status.BLOCKED: "block",
    Status.DONE: "complete",
    Status.ARCHIVED: "archive",
}


@dataclass(frozen=True, slots=True)
class Target:
    """A column to move to; `why` says why not, "" when it can; `ends` when a worker is stopped by it."""

    status: str
    name: str
    why: str = ""
    ends: bool = False


def targets(task: Task) -> list[Target]:
    """Return every other column, in the board's order."""
    return [target(task, status) for status in Status.values if status != task.status]


def target(task: Task, status: str) -> Target:
    """Return one column as a target of a task."""
    return Target(status, str(NAMES[status][0]), _why(task, status), task.status == Status.RUNNING)


def _why(task: Task, status: str) -> str:
    if status == task.status:
        return _("It is there already.")
    if status == Status.RUNNING:
        return _("Work begins when the dispatcher claims it: make it ready, and it is taken by priority.")
    if status == Status.DONE and task.status == Status.REVIEW:
        return ""
    name = _TO_READY[Status(task.status)] if status == Status.READY else _TO[status]
    return why_not(task, name)
