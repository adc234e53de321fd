"""Project the events of a loop's history to LoopRun rows."""

from collections.abc import Iterable
from typing import Any

from django.db.models import Max, Q

from projects import history
from projects.history import Run, Runs
from projects.history.runs import run_id_of
from projects.intake import tables
from projects.models import JournalFile, LoopRun
from projects.models.journals import RUN_COLUMNS

FOLDED = tuple(name for name in RUN_COLUMNS if name != "key")


def project(file: JournalFile, events: Iterable[tuple[dict[str, Any], int]]) -> list[str]:
    """Fold (event, line) pairs that follow what was folded before; returns each one's run. Inside `writing()`."""
    pairs = [(history.line_of(event), line) for event, line in events]
    named = {run_id_of(event) for event, _ in pairs}
    rows = LoopRun.objects.filter(file=file)
    newest = rows.aggregate(newest=Max("first_line"))["newest"]
    # Those that an event may still be counted to.
    open_now = Q(ended_by="", ambiguous=False)
    touched = {row.key: row for row in rows.filter(open_now | Q(first_line=newest) | Q(key__in=named))}
    runs = Runs(row.run() for row in touched.values())
    keys = [runs.feed(event, line).key for event, line in pairs]
    tables.insert(
        LoopRun,
        ([file.pk, file.name, run.key, *values_of(run)] for run in runs.all if run.key not in touched),
    )
    tables.update(LoopRun, FOLDED, ([*values_of(run), touched[run.key].pk] for run in runs.all if run.key in touched))
    return keys


def values_of(run: Run) -> list[Any]:
    """Return the values of FOLDED."""
    return [getattr(run, name) for name in FOLDED]
