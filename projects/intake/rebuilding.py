"""Make the projections again from the lines that were read: the same rows, byte for byte."""

import json
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from django.db import models

from projects import history
from projects.events import writing
from projects.history import Run, Runs
from projects.intake import runs, tables, turns
from projects.journal import TurnState, turn_key
from projects.models import JournalFile, JournalRecord, LoopRun, Turn
from projects.states import JournalFamily, JournalState, RecordStatus

CHUNK = 2000


class Rebuilt(NamedTuple):
    """How many files were looked through, and how many rows were not as they should be."""

    files: int
    changed: int


def rebuild(tell: Callable[[int, int], object] = lambda done, total: None) -> Rebuilt:
    """Fold the records of every current file anew and mend the rows that differ; each file in its own transaction.

    `tell` hears (files done, of how many). Rows that are right are not touched.
    """
    files = JournalFile.objects.exclude(state=JournalState.SUPERSEDED).order_by("pk")
    keys = list(files.values_list("pk", flat=True))
    changed = 0
    for done, key in enumerate(keys, 1):
        with writing():
            # Read in the transaction that holds it: no line comes in meanwhile.
            file = JournalFile.objects.select_for_update().filter(pk=key).first()
            if file is not None:
                changed += _mend_turns(file) if file.family == JournalFamily.TURNS else _mend_runs(file)
        tell(done, len(keys))
    return Rebuilt(len(keys), changed)


def _events(file: JournalFile) -> Iterator[tuple[dict[str, Any], int]]:
    rows = JournalRecord.objects.filter(file=file, status=RecordStatus.EVENT).order_by("offset")
    for payload, line in rows.values_list("payload", "line_no").iterator(CHUNK):
        yield json.loads(payload.removeprefix("\ufeff")), line


def _mend_turns(file: JournalFile) -> int:
    states: dict[str, TurnState] = {}
    for event, line in _events(file):
        if key := turns.key_of(event):
            if key not in states:
                states[key] = TurnState(turn_key(event), line)
            # What a batch ends with is read again from its packed form: the same is done here, once.
            states[key].feed(event, line)
    wanted = {key: [file.name, *turns.values_of(state)] for key, state in states.items()}
    return _mend(Turn, file, "turn_id", ("session_id", *turns.COLUMNS), wanted)


def _mend_runs(file: JournalFile) -> int:
    found = Runs()
    for event, line in _events(file):
        found.feed(history.line_of(event), line)
    wanted = {run.key: [file.name, *_values(run)] for run in found.all}
    return _mend(LoopRun, file, "key", ("project", *runs.FOLDED), wanted)


def _values(run: Run) -> list[Any]:
    return runs.values_of(run)


def _mend(
    model: type[models.Model], file: JournalFile, name: str, columns: Sequence[str], wanted: dict[str, list[Any]]
) -> int:
    rows: Any = model._default_manager.filter(file=file)  # noqa: SLF001 (the manager of any model)
    known = {key: (pk, list(values)) for pk, key, *values in rows.values_list("pk", name, *columns)}
    extra = [pk for key, (pk, _) in known.items() if key not in wanted]
    rows.filter(pk__in=extra).delete()
    wrong = [(key, values) for key, values in wanted.items() if key in known and known[key][1] != values]
    tables.update(model, columns, ([*values, known[key][0]] for key, values in wrong))
    missing = [(key, values) for key, values in wanted.items() if key not in known]
    tables.insert(model, ([file.pk, values[0], key, *values[1:]] for key, values in missing))
    return len(extra) + len(wrong) + len(missing)
