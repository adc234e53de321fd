"""Carry out rollbacks of this node: git's part, then the story. Runs on the second pool of the worker.

Between two verbs nothing is open; what a crash leaves is told by the row and the repository, and `sweep` goes on there
(docs/decisions/0007).
"""

import contextlib
import logging
from pathlib import Path
from typing import Any

from django.conf import settings
from django.utils import timezone

from projects import git, importer, jobs, lifecycle, pidfile, previews, ralph, rollback
from projects.errors import Conflict
from projects.models import Rollback
from projects.rollback import document
from projects.states import ROLLBACK_OPEN, RollbackStatus

log = logging.getLogger("andon.rollback")


def submit(row: Rollback) -> None:
    """Have a rollback carried out soon; one at a time for each project."""
    jobs.submit(f"rollback:{row.project}", act, row.pk)


def sweep() -> int:
    """Have every open rollback of this node gone on with: its job was lost, or its worker died. Returns how many.

    One that cannot be ended yet is tried less and less often, at most each five minutes.
    """
    now = timezone.now()
    rows = Rollback.objects.filter(node=settings.ANDON_NODE, status__in=ROLLBACK_OPEN)
    due = [row for row in rows if row.is_due(now)]
    for row in due:
        submit(row)
    return len(due)


def tidy() -> int:
    """Remove what killed processes have left of previews and rollbacks, once it is an hour old. Returns how much."""
    return rollback.sweep_scratch(previews.scratch(), 3600)


def act(pk: int) -> None:
    """Bring one rollback to its end, whatever its state; nothing for one that is over or another node's."""
    row = Rollback.objects.filter(pk=pk, node=settings.ANDON_NODE, status__in=ROLLBACK_OPEN).first()
    if row is None:
        return
    try:
        with contextlib.ExitStack() as stack:
            if _lock(row, stack):
                _begin(row) if row.status == RollbackStatus.ASKED else _go_on(row)
    except Conflict as changed:
        log.info("%s: %s", row, changed.detail)
    except Exception:
        # Nobody may wait for ever for a fault of ours.
        log.exception("%s failed", row)
        _stuck(row, "fault", "Something went wrong here. The log of the worker says what.")
    jobs.submit(f"import {row.path}", _import, row.path)


def _lock(row: Rollback, stack: contextlib.ExitStack) -> bool:
    """Hold the project's lock, which loops take too; says whether it is held."""
    try:
        stack.enter_context(ralph.project_lock(Path(row.path)))
    except ralph.ProjectBusy:
        _stuck(row, "loop-running", previews.loop_running(row.project).detail)
        return False
    except OSError as error:
        _stuck(row, "project-missing", f"The project's directory cannot be opened: {error.strerror or error}.")
        return False
    return True


def _stuck(row: Rollback, code: str, detail: str) -> None:
    """Refuse what was not begun; what was is tried again later, and its page says why it waits."""
    with contextlib.suppress(Conflict):
        if row.status == RollbackStatus.ASKED:
            _refuse(row, rollback.Refused(code, detail))
        else:
            lifecycle.note_wait(row, detail, now=timezone.now())


def _begin(row: Rollback) -> None:
    root, prd = Path(row.path), previews.prd_of(row.project, Path(row.path))
    if prd is None:
        refusal = rollback.Refused("story-unknown", "There is no prd.json any more, so no story can be opened again.")
        _refuse(row, refusal)
        return
    try:
        found = pidfile.look(root, prd.parent, row.node)
        if found.is_running or found.state is pidfile.State.UNKNOWN:
            raise previews.loop_running(row.project)
        wanted = rollback.Wanted(**row.wanted)
        own = previews.own_story(root, wanted)
        seen = rollback.preview(root, prd, wanted, own_story=own, scratch=previews.scratch())
        plan = rollback.build(root, prd, wanted, own_story=own, at=timezone.now(), scratch=previews.scratch())
    except rollback.Refused as refusal:
        _refuse(row, refusal)
        return
    except (git.GitError, OSError) as error:
        log.warning("%s: %s", row, error)
        _refuse(row, rollback.Refused("git-failed", f"git could not tell what to do: {error}"))
        return
    saved = settings.ANDON_HOME / "rollbacks" / f"{row.pk}-{plan.head[:12]}"
    lifecycle.intend(row, plan, saved, pushed=seen.pushed, files=len(plan.paths), now=timezone.now())
    try:
        rollback.save(root, plan, saved)
        rollback.carry_out(root, plan, saved, scratch=previews.scratch())
    except rollback.Refused as refusal:
        _take_back(row, plan, saved, refusal)
    except (git.GitError, OSError) as error:
        log.warning("%s is undone: %s", row, error)
        _take_back(row, plan, saved, rollback.Refused("git-failed", f"It could not be carried out: {error}"))
    else:
        _reopen(row, root)


def _go_on(row: Rollback) -> None:
    """Understand what a crash has left: HEAD tells whether to go on or to go back."""
    plan, saved = rollback.Plan.from_json(row.intent["plan"]), Path(row.intent["saved"])
    interrupted = rollback.Refused("interrupted", "Its worker died in the middle; everything is as it was.")
    _take_back(row, plan, saved, interrupted)


def _take_back(row: Rollback, plan: rollback.Plan, saved: Path, why: rollback.Refused) -> None:
    """Make it good that it was left in the middle, `why` says of what: HEAD tells whether there was anything left."""
    try:
        found = rollback.resume(Path(row.path), plan, saved)
    except (git.GitError, OSError, rollback.Refused) as error:
        log.warning("%s waits: %s", row, error)
        lifecycle.note_wait(row, f"It can neither go on nor back yet: {error}", now=timezone.now())
        return
    if found == "carried-out":
        _reopen(row, Path(row.path))
    elif found == "undone":
        lifecycle.undo(row, why.code, why.detail, _extra(why), now=timezone.now())
    else:
        detail = f"{why.detail} HEAD has moved since, so nothing more was touched. What was saved lies in {saved}."
        lifecycle.undo(row, "head-moved", detail, {"is_left": True}, now=timezone.now())


def _reopen(row: Rollback, root: Path) -> None:
    """Reopen the story once its commit is undone; that it could not be is told, not hidden."""
    said = ""
    try:
        if (prd := ralph.find_prd(root)) is None:
            raise FileNotFoundError("there is no prd.json any more")
        _reopen_on_disk(root, prd, row.story_key)
    except (OSError, ValueError) as error:
        said = f"{row.story_key} was not opened again: {error}"
        log.warning("%s: %s", row, said)
    lifecycle.finish(row, detail=said, now=timezone.now())


def _reopen_on_disk(root: Path, prd: Path, story: str, tries: int = 5) -> None:
    """Edit prd.json; an agent that writes at the same moment makes us read it again."""
    for _ in range(tries - 1):
        try:
            document.reopen_on_disk(root, prd, story)
        except document.Changed:
            continue
        return
    document.reopen_on_disk(root, prd, story)


def _refuse(row: Rollback, refusal: rollback.Refused) -> None:
    lifecycle.refuse(row, refusal.code, refusal.detail, _extra(refusal), now=timezone.now())


def _extra(refusal: rollback.Refused) -> dict[str, Any]:
    return {**previews.plain(refusal.extra), "status": refusal.status}


def _import(path: str) -> bool:
    return importer.import_project(path, now=timezone.now())
