"""The event log: every change of state is told in the transaction that makes it (docs/decisions/0001)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from datetime import datetime
from threading import RLock
from typing import Any

import orjson
from django.db import connection, transaction

from projects import nudge
from projects.models import Event
from projects.states import Via

# Any constant that no other program on the same PostgreSQL server takes.
ORDER_LOCK = 0x414E444F4E
MAX_TEXT = 2000
COLUMNS = "at, kind, subject, project, actor, run, payload"

# Re-entrant: what `after` calls at the commit may write itself.
_one_writer = RLock()
_open: ContextVar["_Writing | None"] = ContextVar("andon_writing", default=None)


@dataclass(eq=False)
class _Writing:
    """The outermost `writing()` of this thread."""

    wrote: bool = False


@dataclass(eq=False)
class _Collected:
    """One event waiting for the end of its transaction.

    It waits in Django's own list of commit callbacks, because that list already forgets what a rolled-back
    savepoint had added; being called at commit does nothing.
    """

    owner: _Writing
    row: dict[str, Any] = field(default_factory=dict)

    def __call__(self) -> None:
        return None


@contextmanager
def writing() -> Iterator[None]:
    """Open a transaction that may record events; a nested one is a savepoint.

    The outermost writes all events that survived in one INSERT as its last statement, on PostgreSQL directly
    behind the order lock, so that the order of ids is the order of commits. Raises RuntimeError inside a plain
    `atomic()`, where the INSERT could not be last.
    """
    if _open.get() is not None:
        with transaction.atomic():
            yield
        return
    mine = _Writing()
    with _turn(), transaction.atomic(durable=True):
        # Over before the commit: what `after` calls may open a writing() of its own.
        mark = _open.set(mine)
        try:
            yield
            _flush(mine)
        finally:
            _open.reset(mark)


@contextmanager
def _turn() -> Iterator[None]:
    """Queue the writers of this process: waiting for SQLite's lock means sleeping up to 100 ms at a time."""
    if connection.vendor != "sqlite":
        yield
        return
    with _one_writer:
        yield


@dataclass(frozen=True, slots=True)
class By:
    """Who did it: `name` is `user:anna`, `token:ci` or `andon`; `via` the door, `address` the peer's."""

    name: str
    via: str
    address: str = ""
    run: str = ""


SWEEP = By("andon", Via.SWEEP)


def record(kind: str, subject: str, *, by: By, now: datetime, project: str = "", **payload: Any) -> None:
    """Collect one event for the end of the transaction; texts over 2,000 characters are cut.

    The payload is flat, leaves out what is None, and always says `via` and, of a person or token, `address`.
    Raises RuntimeError outside `writing()`: an event without its change, or a change that can commit without
    its event, must not be possible.
    """
    owner = _open.get()
    if owner is None:
        raise RuntimeError(f"record({kind!r}) outside writing()")
    row = {
        "at": now,
        "kind": kind,
        "subject": _text(subject, 200),
        "project": project,
        "actor": _text(by.name, 200),
        "run": by.run,
        "payload": {
            key: _small(value)
            for key, value in {**payload, "via": str(by.via), "address": by.address or None}.items()
            if value is not None
        },
    }
    transaction.on_commit(_Collected(owner, row))


def after(callback: Callable[[], object]) -> None:
    """Call back once the transaction has committed; nobody is called after a rollback."""
    transaction.on_commit(callback, robust=True)


def frame_row(event: Event | dict[str, Any]) -> dict[str, Any]:
    """Return an event as it stands on the wire; `at` is ISO 8601 UTC."""
    row = event if isinstance(event, dict) else {name: getattr(event, name) for name in WIRE}
    return {**{name: row[name] for name in WIRE}, "at": row["at"].isoformat().replace("+00:00", "Z")}


WIRE = ("id", "at", "kind", "subject", "project", "actor", "run", "payload")


def _text(value: str, limit: int) -> str:
    """Cut a text and take out what no database or JSON holds: NUL and lone surrogates."""
    return value.replace("\x00", "")[:limit].encode("utf-8", "replace").decode()


def _small(value: Any) -> Any:
    if isinstance(value, str):
        return _text(value, MAX_TEXT)
    if isinstance(value, list | tuple):
        return [_small(item) for item in value[:50]]
    return value


def _flush(owner: _Writing) -> None:
    rows = [
        callback.row
        for callback in (entry[1] for entry in connection.run_on_commit)
        if isinstance(callback, _Collected) and callback.owner is owner
    ]
    if not rows:
        return
    adapt = connection.ops.adapt_datetimefield_value
    # One parameter whatever the number of rows: SQLite caps how many a statement may have.
    document = orjson.dumps([{**row, "at": str(adapt(row["at"]))} for row in rows]).decode()
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            # Foreign keys are checked at COMMIT and may wait for a row there: not while others wait for the lock.
            cursor.execute("SET CONSTRAINTS ALL IMMEDIATE")
            cursor.execute("SELECT pg_advisory_xact_lock(%s)", [ORDER_LOCK])
            cursor.execute(_INSERT_POSTGRESQL, [document])
            nudge.in_transaction(cursor)
        else:
            cursor.execute(_INSERT_SQLITE, [document])
    transaction.on_commit(nudge.after_commit, robust=True)


_TABLE = Event._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
_INSERT_SQLITE = (
    f"INSERT INTO {_TABLE} ({COLUMNS}) "  # noqa: S608 (constants only)
    "SELECT value->>'at', value->>'kind', value->>'subject', value->>'project', value->>'actor', value->>'run', "
    "value->'payload' FROM json_each(%s) ORDER BY key"
)
_INSERT_POSTGRESQL = (
    f"INSERT INTO {_TABLE} ({COLUMNS}) "  # noqa: S608 (constants only)
    "SELECT (v->>'at')::timestamptz, v->>'kind', v->>'subject', v->>'project', v->>'actor', v->>'run', v->'payload' "
    "FROM jsonb_array_elements(%s::jsonb) WITH ORDINALITY AS rows(v, n) ORDER BY n"
)
