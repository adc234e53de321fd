"""Verbs on a host's clean-up: people ask for it, its worker finishes it."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from django.db import IntegrityError

from kanban.models import CleanUp
from projects.errors import Conflict
from projects.events import By, record, writing
from projects.states import Via


def ask_clean_up(node: str, *, by: By, now: datetime) -> CleanUp:
    """Have the worker of a node remove now what retention lets go; one that is under way already is returned.

    Records cleanup.asked.
    """
    while True:
        if (row := CleanUp.objects.filter(node=node, ended_at=None).first()) is not None:
            return row
        try:
            with writing():
                asked = {"asked_by": by.name, "asked_via": by.via, "asked_from": by.address, "asked_at": now}
                row = CleanUp.objects.create(node=node, **asked)
                record("cleanup.asked", row.subject, by=by, now=now)
        except IntegrityError:
            # Somebody else asked at the same moment.
            continue
        return row


def asker(row: CleanUp) -> By:
    """Return who asked for a clean-up: what it removes is told as theirs."""
    return By(row.asked_by, Via(row.asked_via), row.asked_from)


def finish_clean_up(
    row: CleanUp, removed: Mapping[str, int], *, failed: Sequence[str] = (), left: bool = False, now: datetime
) -> CleanUp:
    """Say what a clean-up removed, and what of it failed. Conflict when it is over. Records cleanup.completed."""
    told: dict[str, Any] = {kind: number for kind, number in removed.items() if number}
    with writing():
        fields = {"ended_at": now, "removed": dict(told), "failed": list(failed), "left": left}
        if not CleanUp.objects.filter(pk=row.pk, ended_at=None).update(**fields):
            raise Conflict("clean-up-over", f"The {row} is over already.")
        told |= {"failed": list(failed) or None, "left": left or None}
        record("cleanup.completed", row.subject, by=asker(row), now=now, **told)
    row.refresh_from_db()
    return row
