"""How tasks come to be, and what is said of them: create edit assign prioritise comment link unlink."""

import secrets
from collections.abc import Sequence
from datetime import datetime
from decimal import Decimal
from pathlib import PurePosixPath
from typing import Any

from django.db import IntegrityError

from kanban import links
from kanban.lifecycle.moves import free, locked, need_current, storable, tell
from kanban.lifecycle.promotion import settle_one
from kanban.models import LONGEST_TEXT, LONGEST_TITLE, Comment, Link, Task
from kanban.states import CLOSED, TASK_ID, Status, WorkspaceKind
from projects.errors import Conflict, Missing, Rejected
from projects.events import By, writing
from projects.models import Project
from projects.ralph import is_slug

HIGHEST_PRIORITY = 1_000_000
MOST_PARENTS = 1000
LONGEST_NAME = 80
LONGEST_KEY = 200
LONGEST_PATH = 4096
LONGEST_RUNTIME_S = 365 * 86_400


def create(
    title: str,
    *,
    body: str = "",
    assignee: str = "",
    tenant: str = "",
    priority: int = 0,
    workspace_kind: str = WorkspaceKind.SCRATCH,
    workspace_path: str = "",
    parents: Sequence[str] = (),
    triage: bool = False,
    idempotency_key: str = "",
    project: str = "",
    max_runtime_s: int | None = None,
    max_cost_usd: Decimal | None = None,
    failure_limit: int | None = None,
    services_required: bool = False,
    by: By,
    now: datetime,
) -> Task:
    """Make a task: ready, todo while a parent is open, triage when asked.

    The same idempotency key on a task that is not archived returns that one untouched. Refuses (Rejected) a blank or
    endless title, an unknown workspace kind, parent or project, numbers out of bounds. Records task.created.
    """
    key = clean(idempotency_key.strip(), "idempotency key", LONGEST_KEY)
    if key and (known := _by_key(key)) is not None:
        return known
    about: dict[str, Any] = {
        "title": title_of(title),
        "body": clean(body, "body", LONGEST_TEXT),
        "assignee": clean(assignee.strip(), "assignee", LONGEST_NAME),
        "tenant": clean(tenant.strip(), "tenant", LONGEST_NAME),
        "priority": priority_of(priority),
        "workspace_path": clean(workspace_path.strip(), "workspace path", LONGEST_PATH),
        "workspace_kind": workspace_kind or WorkspaceKind.SCRATCH,
        "project": _project(project),
        "idempotency_key": key,
        **limits_of(max_runtime_s, max_cost_usd, failure_limit),
        "services_required": services_required,
    }
    _check_workspace(about["workspace_kind"], about["workspace_path"], project)
    wanted = list(dict.fromkeys(parents))
    with writing():
        waits = any(state not in CLOSED for state in _parents(wanted))
        # Of two at once with one key the second meets the constraint.
        try:
            with writing():
                task = Task.objects.create(
                    id=f"t_{secrets.token_hex(4)}",
                    status=Status.TRIAGE if triage else Status.TODO if waits else Status.READY,
                    created_by=by.name,
                    **dict.fromkeys(("created_at", "since", "active_at"), now),
                    **about,
                )
        except IntegrityError:
            if key and (known := _by_key(key)) is not None:
                return known
            raise
        Link.objects.bulk_create(Link(parent_id=parent, child=task) for parent in wanted)
        tell(
            task,
            "created",
            by=by,
            now=now,
            assignee=task.assignee or None,
            status=task.status,
            parents=wanted,
            tenant=task.tenant or None,
        )
        if task.status == Status.READY:
            free()
    return task


def edit(task: Task, *, title: str | None = None, body: str | None = None, by: By, now: datetime) -> Task:
    """Change what a task says; None leaves a field as it is. Rejected for a blank title. Records task.edited."""
    with writing():
        task = locked(task.pk)
        fields = {}
        if title is not None:
            fields["title"] = title_of(title)
        if body is not None:
            fields["body"] = clean(body, "body", LONGEST_TEXT)
        changed = {name: value for name, value in fields.items() if getattr(task, name) != value}
        if changed:
            update(task, now, **changed)
            tell(task, "edited", by=by, now=now, changed=sorted(changed))
    return task


def assign(task: Task, assignee: str, *, by: By, now: datetime) -> Task:
    """Give a task to a profile or a person, "" = nobody; Conflict `running` while it runs. Records task.assigned."""
    name = clean(assignee.strip(), "assignee", LONGEST_NAME)
    with writing():
        task = locked(task.pk)
        if task.assignee == name:
            return task
        if task.status == Status.RUNNING:
            raise Conflict("running", f"{task.id} runs. Release it before somebody else gets it.")
        update(task, now, assignee=name)
        tell(task, "assigned", by=by, now=now, assignee=name or None)
        free()
    return task


def prioritise(task: Task, priority: int, *, by: By, now: datetime) -> Task:
    """Set a task's priority, higher first. Records task.priority."""
    wanted = priority_of(priority)
    with writing():
        task = locked(task.pk)
        if task.priority != wanted:
            update(task, now, priority=wanted)
            tell(task, "priority", by=by, now=now, priority=wanted)
    return task


def comment(task: Task, body: str, *, author: str = "", by: By, now: datetime) -> Comment:
    """Say something about a task; a run is always its own author.

    Refuses (Rejected) a blank body or author, and a run that speaks of another task. Records task.commented.
    """
    text = clean(body.strip(), "body", LONGEST_TEXT)
    who = by.name if by.run else clean(author.strip(), "author", 200)
    if not text:
        raise Rejected("body-missing", "Write something.")
    if not who:
        raise Rejected("author-missing", "Say who says it.")
    with writing():
        task = locked(task.pk)
        need_current(task, by)
        made = Comment.objects.create(task=task, author=who, body=text, created_at=now)
        update(task, now)
        tell(task, "commented", by=by, now=now, author=who, len=len(text))
    return made


def link(parent: str, child: str, *, by: By, now: datetime) -> None:
    """Have a child wait for a parent; one that is there already is left alone.

    Refuses (Rejected) `self-link`, `cycle`, and tasks that nobody knows. Records task.linked, and what follows.
    """
    if parent == child:
        raise Rejected("self-link", "A task cannot wait for itself.")
    with writing():
        links.lock_graph()
        _known(parent)
        task = _known(child)
        if Link.objects.filter(parent=parent, child=child).exists():
            return
        if links.is_ancestor(child, of=parent):
            raise Rejected("cycle", f"{parent} waits for {child} already, so {child} cannot wait for {parent}.")
        Link.objects.create(parent_id=parent, child_id=child)
        tell(task, "linked", by=by, now=now, parent=parent, child=child)
        _edges_changed(task, by, now)


def unlink(parent: str, child: str, *, by: By, now: datetime) -> None:
    """Have a child wait for a parent no more. Rejected when there is no such link. Records task.unlinked."""
    with writing():
        links.lock_graph()
        task = _known(child)
        if not (TASK_ID.fullmatch(parent) and Link.objects.filter(parent=parent, child=child).delete()[0]):
            raise Rejected("no-such-link", f"{child} does not wait for {storable(parent, 40)}.")
        tell(task, "unlinked", by=by, now=now, parent=parent, child=child)
        _edges_changed(task, by, now)


def _edges_changed(task: Task, by: By, now: datetime) -> None:
    # What a person decided, he decided of the edges as they were.
    update(task, now, held=False, parents_waived=False)
    settle_one(task, by=by, now=now)


def update(task: Task, now: datetime, **fields: object) -> None:
    """Write fields of a task that no verb of the machine moves."""
    Task.objects.filter(pk=task.pk).update(active_at=now, **fields)
    for name, value in {**fields, "active_at": now}.items():
        setattr(task, name, value)


def _by_key(key: str) -> Task | None:
    return Task.objects.filter(idempotency_key=key).exclude(status=Status.ARCHIVED).first()


def _known(task_id: str) -> Task:
    try:
        return locked(task_id)
    except Missing:
        raise Rejected("unknown-task", f"There is no task {storable(task_id, 40)}.") from None


def _parents(wanted: Sequence[str]) -> list[str]:
    """Return the statuses of parents, none of which may close or open before the child is there."""
    if not wanted:
        return []
    if len(wanted) > MOST_PARENTS:
        raise Rejected("too-many-parents", f"A task has at most {MOST_PARENTS} parents.")
    sound = [name for name in wanted if TASK_ID.fullmatch(name)]
    rows = Task.objects.filter(pk__in=sound).order_by("pk").select_for_update()
    found = dict(rows.values_list("pk", "status"))
    missing = [name for name in wanted if name not in found]
    if missing:
        shown = missing[0][:40].encode("utf-8", "replace").decode()
        raise Rejected("unknown-parent", f"There is no task {shown} to wait for.")
    return list(found.values())


def title_of(text: str) -> str:
    """Return a title as it is kept; Rejected when it is blank or longer than 500 characters."""
    title = clean(" ".join(text.split()), "title", LONGEST_TITLE)
    if not title:
        raise Rejected("title-missing", "Give the task a title.")
    return title


def priority_of(number: int) -> int:
    """Return a priority; Rejected beyond a million either way."""
    if isinstance(number, bool) or not -HIGHEST_PRIORITY <= number <= HIGHEST_PRIORITY:
        raise Rejected("invalid-priority", f"A priority lies between -{HIGHEST_PRIORITY} and {HIGHEST_PRIORITY}.")
    return number


def clean(text: str, what: str, most: int) -> str:
    """Return a text as every database takes it; Rejected when it is longer than `most` characters."""
    if len(text) > most:
        raise Rejected(f"{what.replace(' ', '-')}-too-long", f"The {what} has at most {most} characters.")
    return text.replace("\x00", "").encode("utf-8", "replace").decode()


def _project(slug: str) -> str:
    if slug and not (is_slug(slug) and Project.objects.filter(slug=slug).exists()):
        raise Rejected("unknown-project", "No project has this slug.")
    return slug


def _within(number: int | None, name: str, most: int) -> int | None:
    if number is not None and not 1 <= number <= most:
        raise Rejected(f"invalid-{name}", f"{name} is a whole number from 1 to {most}.")
    return number


def limits_of(max_runtime_s: int | None, max_cost_usd: Decimal | None, failure_limit: int | None) -> dict[str, Any]:
    """Return the limits of a task as fields; Rejected out of bounds."""
    if max_cost_usd is not None and not (max_cost_usd.is_finite() and Decimal("0.000001") <= max_cost_usd < 999_999):
        raise Rejected("invalid-max_cost_usd", "max_cost_usd is more than 0 dollars and less than a million.")
    return {
        "max_runtime_s": _within(max_runtime_s, "max_runtime_s", LONGEST_RUNTIME_S),
        "max_cost_usd": max_cost_usd,
        "failure_limit": _within(failure_limit, "failure_limit", 1000),
    }


def _check_workspace(kind: str, path: str, project: str) -> None:
    if kind not in WorkspaceKind.values:
        raise Rejected("unknown-workspace-kind", f"A workspace is one of {', '.join(WorkspaceKind.values)}.")
    if path and (not PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts):
        raise Rejected("invalid-workspace-path", "A workspace path is absolute and has no .. in it.")
    if kind == WorkspaceKind.DIR and not path:
        raise Rejected("workspace-path-missing", "A workspace of kind dir needs a workspace_path.")
    if kind == WorkspaceKind.WORKTREE and not project:
        raise Rejected("project-missing", "A workspace of kind worktree needs a project whose repository it is of.")
