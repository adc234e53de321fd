"""The one edit of a project's files that people ask for directly: a story is opened again."""

import hashlib
from datetime import datetime
from pathlib import Path

from projects import lifecycle, queries, ralph
from projects.errors import Broken, Conflict, Missing, Unprocessable
from projects.events import By, record, writing
from projects.models import Project
from projects.rollback import document


def requeue(project: Project, key: str, *, by: By, now: datetime) -> bool:
    """Open a story again in prd.json: not passed, not failed, not blocked, no retries; nothing else changes.

    Says whether it was not open already. Refuses Conflict `elsewhere`, `rollback-in-progress` and `changed-meanwhile`,
    Missing `prd-not-found`, Unprocessable `story-unknown`, Broken `prd-invalid`. Records story.requeue_asked; that it
    is open again the importer tells.
    """
    queries.need_here(project)
    lifecycle.refuse_while_open(project)
    root = Path(project.path)
    prd = ralph.find_prd(root)
    if prd is None:
        raise Missing("prd-not-found", f"{project.slug} has no prd.json any more.")
    try:
        before = hashlib.sha256(ralph.read_inside(root, prd, ralph.MAX_BYTES)).hexdigest()
        if document.reopen_on_disk(root, prd, key) == before:
            return False
    except document.Changed:
        raise Conflict("changed-meanwhile", f"{prd} was written by somebody else just now. Try again.") from None
    except ValueError as error:
        raise Unprocessable("story-unknown", str(error)) from None
    except OSError as error:
        raise Broken("prd-invalid", f"{prd} cannot be written: {error.strerror or error}.") from None
    with writing():
        subject = f"story:{project.slug}/{key}"
        record("story.requeue_asked", subject, by=by, now=now, project=project.slug)
    return True
