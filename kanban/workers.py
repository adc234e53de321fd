"""What a run's host makes before its worker starts: workspace, context file, token, command line. Worker only."""

import contextlib
import os
from datetime import datetime
from pathlib import Path

from django.conf import settings
from django.db.models.functions import Substr
from django.utils import timezone

from kanban import context, profiles, workspaces
from kanban.models import Profile, Run, Task
from kanban.states import Status
from projects import access
from projects.errors import Conflict
from projects.events import SWEEP, By, writing
from projects.models import ApiToken, Project
from projects.states import Role, Via
from services import queries as services
from services.blocks import live_block
from services.models import ManagedProcess
from services.specs.sidecars import FILE, FOLDER
from services.starting import CannotStart, Prepared

CONTEXT_FILE = "context.md"
MOST_COMMENTS = 30
MOST_ATTEMPTS = 10


def prepare(process: ManagedProcess) -> Prepared:
    """Make what the worker of a process needs and say how it is started; CannotStart with the reason.

    Idempotent: after a crash between this and the start everything is made again, and the token anew.
    """
    run = Run.objects.select_related("task").filter(process=process, ended_at=None).first()
    if run is None:
        raise CannotStart("its run is over")
    profile = Profile.objects.filter(name=run.profile).first()
    if profile is None:
        raise CannotStart(f"there is no profile {run.profile} any more")
    task, now = run.task, timezone.now()
    workspace = _workspace(task)
    folder = settings.ANDON_HOME / FOLDER / run.agent
    cli = str(profiles.CLI)
    brief = brief_of(task, run, workspace=str(workspace), cli=cli, sidecar=str(folder / FILE))
    try:
        file = _write(folder, context.render(brief))
    except OSError as error:
        raise CannotStart(f"its context file cannot be written: {error.strerror or error}") from None
    Run.objects.filter(pk=run.pk).update(workspace=str(workspace))
    values = {
        "task_id": task.pk,
        "title": task.title,
        "workspace": str(workspace),
        "context_file": str(file),
    }
    env = {
        **{str(key): str(value) for key, value in profile.env.items()},
        "ANDON_TASK": task.pk,
        "ANDON_RUN": str(run),
        "ANDON_WORKSPACE": str(workspace),
        "ANDON_TENANT": task.tenant,
        "ANDON_PROJECT": task.project,
        "ANDON_URL": settings.ANDON_URL,
        "ANDON_TOKEN": _token(run, task, now=now),
        "ANDON_CONTEXT": str(file),
        "ANDON_SIDECAR": str(folder / FILE),
        "ANDON_CLI": cli,
    }
    return Prepared(profiles.fill(profile.argv, values), str(workspace), env)


def _token(run: Run, task: Task, *, now: datetime) -> str:
    try:
        return issue_token(run, task, by=SWEEP, now=now)
    except Conflict as refusal:
        raise CannotStart(refusal.detail) from None


def issue_token(run: Run, task: Task, *, by: By, now: datetime) -> str:
    """Make the token of a run, in place of one that was made before; its text is not kept anywhere.

    Refuses (Conflict) `superseded`, a run that is over: its token would outlive it.
    """
    who = By(by.name, by.via, by.address, str(run))
    with writing():
        if Run.objects.select_for_update().filter(pk=run.pk, ended_at=None).first() is None:
            raise Conflict("superseded", f"The run {run} is over.")
        for token in ApiToken.objects.filter(run=str(run), revoked_at=None):
            access.revoke(token, by=who, now=now)
        _, raw = access.issue(f"run {run}", role=Role.OPERATOR, project=task.project, run=str(run), by=who, now=now)
    return raw


def as_run(run: Run) -> By:
    """Return who acts when a run's own report is carried out for it."""
    return By(f"run:{run}", Via.RUN, run=str(run))


def _workspace(task: Task) -> Path:
    project = Project.objects.filter(slug=task.project).first() if task.project else None
    try:
        return workspaces.make(
            task.workspace_kind,
            task_id=task.pk,
            home=settings.ANDON_HOME,
            path=task.workspace_path,
            roots=[Path(root) for root in settings.ANDON_WORKSPACE],
            repository=Path(project.path) if project else None,
        )
    except workspaces.CannotMake as refusal:
        raise CannotStart(f"workspace: {refusal}") from None
    except OSError as error:
        raise CannotStart(f"workspace: {error.strerror or error}") from None


def brief_of(task: Task, run: Run | None, *, workspace: str, cli: str, sidecar: str) -> context.Brief:
    """Return what a worker is told of a task; five queries however much there is."""
    parents = _results(task)
    remarks = task.comments.order_by("-pk")[:MOST_COMMENTS]
    earlier = task.runs.filter(ended_at__isnull=False).order_by("-number")[:MOST_ATTEMPTS]
    block = live_block([services.item(row) for row in services.healthy(task.project)]) if task.project else ""
    return context.Brief(
        task_id=task.pk,
        title=task.title,
        assignee=task.assignee,
        tenant=task.tenant,
        project=task.project,
        workspace=workspace,
        body=task.body,
        attempt=run.number if run else 0,
        services_required=task.services_required,
        parents=[context.ParentResult(*row) for row in parents],
        comments=[context.Remark(row.author, row.body, row.created_at) for row in reversed(remarks)],
        attempts=[context.Attempt(row.number, row.outcome, row.error, row.summary) for row in reversed(earlier)],
        services_block=block,
        cli=cli,
        sidecar=sidecar,
    )


def _results(task: Task) -> list[tuple[str, str, str, datetime | None]]:
    """Return id, title, as much of its result as is told, and end of the parents that were done last."""
    done = Task.objects.filter(child_links__child=task, status=Status.DONE).order_by("-completed_at", "-pk")
    told = done.annotate(begins=Substr("result", 1, 2 * context.FIELD_BYTES + 2))
    return list(told.values_list("pk", "title", "begins", "completed_at")[: context.MOST_PARENTS])


def _write(folder: Path, text: str) -> Path:
    """Write the context file anew, never through a link that an earlier attempt may have left below the home."""
    with contextlib.ExitStack() as opened:
        place = os.open(folder.parent.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        opened.callback(os.close, place)
        for name in (folder.parent.name, folder.name):
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o700, dir_fd=place)
            place = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=place)
            opened.callback(os.close, place)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(CONTEXT_FILE, dir_fd=place)
        made = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(CONTEXT_FILE, made, 0o600, dir_fd=place), "w", encoding="utf-8") as file:
            file.write(text)
    return folder / CONTEXT_FILE


def has_sidecar(run: Run) -> bool:
    """Say whether a run may have left a sidecar: it did, or it ran on another host, which alone can tell."""
    if not run.has_process:
        return False
    return run.host != settings.ANDON_NODE or os.path.lexists(settings.ANDON_HOME / FOLDER / run.agent / FILE)
