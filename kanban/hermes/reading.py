"""A Hermes kanban.db as rows, whatever its age: read-only, from one moment, also while its own dispatcher runs.

Knows no Django. The format: spec/kanban.md section 7. All that is read is hostile: types are checked by
translating.py, views and virtual tables are not touched, and nothing of the schema is run.
"""

import contextlib
import sqlite3
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

MAX_BYTES = 8 * 1024**3
# One value; longer ones are refused by SQLite itself.
MAX_VALUE = 64 * 1024**2
WAIT_S = 5.0
BATCH = 500
# The tables and columns of which something is made here; any of the columns but the first may be missing.
KNOWN: dict[str, tuple[str, ...]] = {
    "tasks": (
        *("id", "title", "body", "assignee", "status", "priority", "created_by", "created_at", "started_at"),
        *("completed_at", "workspace_kind", "workspace_path", "claim_lock", "claim_expires", "tenant", "result"),
        *("idempotency_key", "spawn_failures", "worker_pid", "last_spawn_error"),
    ),
    "task_links": ("parent_id", "child_id"),
    "task_comments": ("task_id", "id", "author", "body", "created_at"),
    "task_events": ("task_id", "id", "kind", "payload", "created_at"),
}

Row: TypeAlias = dict[str, Any]


class Unreadable(Exception):
    """This is no board that can be read; the text says why and what to do."""


@dataclass(slots=True)
class Board:
    """A copy of a board. `extra` are columns of `tasks` that are not known here, `beside` other tables.

    `beside` maps a table's name to its number of rows; those of `attached` have a task_id.
    """

    db: sqlite3.Connection
    columns: dict[str, list[str]] = field(default_factory=dict)
    extra: list[str] = field(default_factory=list)
    beside: dict[str, int] = field(default_factory=dict)
    attached: dict[str, list[str]] = field(default_factory=dict)

    def count(self, table: str) -> int:
        """Return how many rows a known table has, 0 without it."""
        return int(self.db.execute(f"SELECT count(*) FROM {table}").fetchone()[0]) if table in self.columns else 0  # noqa: S608 (a name of KNOWN)

    def tasks(self) -> Iterator[list[Row]]:
        """Yield batches of tasks by age; a parent is mostly before its children."""
        order = "created_at, id" if "created_at" in self.columns["tasks"] else "id"
        yield from self._batches("tasks", [*self.columns["tasks"], *self.extra], order)

    def links(self) -> Iterator[list[Row]]:
        """Yield batches of (parent_id, child_id)."""
        if {"parent_id", "child_id"} <= set(self.columns.get("task_links", ())):
            yield from self._batches("task_links", self.columns["task_links"], "parent_id, child_id")

    def events(self) -> Iterator[list[Row]]:
        """Yield batches of events in their order."""
        if {"id", "kind"} <= set(self.columns.get("task_events", ())):
            yield from self._batches("task_events", self.columns["task_events"], "id")

    def of_tasks(self, table: str, ids: Sequence[Any], kinds: Sequence[str] = ()) -> list[Row]:
        """Return what a table has of these tasks, of these kinds only when some are named."""
        names = self.columns.get(table) or self.attached.get(table) or []
        if not names or not ids or (kinds and "kind" not in names):
            return []
        where = f"task_id IN ({', '.join('?' * len(ids))})"
        if kinds:
            where += f" AND kind IN ({', '.join('?' * len(kinds))})"
        query = f"SELECT {_list(names)} FROM {_quoted(table)} WHERE {where} ORDER BY {_order(names)}"  # noqa: S608 (quoted)
        return [dict(zip(names, row, strict=True)) for row in self.db.execute(query, [*ids, *kinds])]

    def _batches(self, table: str, names: list[str], order: str) -> Iterator[list[Row]]:
        rows = self.db.execute(f"SELECT {_list(names)} FROM {_quoted(table)} ORDER BY {order}")  # noqa: S608 (quoted)
        while batch := rows.fetchmany(BATCH):
            yield [dict(zip(names, row, strict=True)) for row in batch]


@contextlib.contextmanager
def opened(path: Path, scratch: Path) -> Iterator[Board]:
    """Copy a board into a folder under `scratch` and read that: its dispatcher waits for nothing but the copying.

    Raises Unreadable, with a sentence, for what is no board; also when reading on finds damage.
    """
    _check_file(path)
    try:
        with (
            tempfile.TemporaryDirectory(prefix="hermes-", dir=scratch) as folder,
            contextlib.closing(sqlite3.connect(Path(folder) / "copy.db", isolation_level=None)) as copy,
        ):
            _copy(path, copy)
            yield _look(copy)
    except sqlite3.Error as error:
        raise Unreadable(_why(path, error)) from None


def _check_file(path: Path) -> None:
    try:
        if not path.is_file():
            what = "is a directory: name the file kanban.db in it" if path.is_dir() else "is not there"
            raise Unreadable(f"{path} {what}.")
        size = path.stat().st_size
        with path.open("rb") as file:
            begins = file.read(16)
    except OSError as error:
        raise Unreadable(f"{path} cannot be read: {(error.strerror or 'unknown').lower()}.") from None
    if begins != b"SQLite format 3\x00":
        raise Unreadable(f"{path} is no SQLite database.")
    if size > MAX_BYTES:
        raise Unreadable(f"{path} is larger than {MAX_BYTES // 1024**3} GiB.")


def _copy(path: Path, copy: sqlite3.Connection) -> None:
    """Copy within one read transaction: begun first, since `backup` would wait for a locked file for ever."""
    address = f"{path.resolve().as_uri()}?mode=ro"
    try:
        source = _begun(address)
    except sqlite3.OperationalError as error:
        # One in WAL needs a -shm beside it, which a folder that cannot be written denies; without a -wal nobody writes.
        if "unable to open" not in str(error) or path.with_name(f"{path.name}-wal").exists():
            raise
        source = _begun(f"{address}&immutable=1")
    with contextlib.closing(source):
        source.backup(copy)


def _begun(address: str) -> sqlite3.Connection:
    source = sqlite3.connect(address, uri=True, timeout=WAIT_S, isolation_level=None)
    try:
        source.execute("BEGIN")
        source.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.Error:
        source.close()
        raise
    return source


def _look(copy: sqlite3.Connection) -> Board:
    copy.text_factory = lambda raw: raw.decode("utf-8", "replace")
    copy.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, MAX_VALUE)
    copy.execute("PRAGMA trusted_schema=OFF")
    copy.execute("PRAGMA synchronous=OFF")
    found = str(copy.execute("PRAGMA quick_check(1)").fetchone()[0])
    if found != "ok":
        raise Unreadable(
            f"the file is damaged ({found.splitlines()[0][:120]}). Mend it with `sqlite3 kanban.db .recover`."
        )
    board = Board(copy)
    for name, text in copy.execute("SELECT name, sql FROM sqlite_master WHERE type = 'table'").fetchall():
        if name.startswith("sqlite_") or (text or "").lstrip().upper().startswith("CREATE VIRTUAL"):
            continue
        columns = [row[1] for row in copy.execute(f"PRAGMA table_info({_quoted(name)})")]
        if name in KNOWN and KNOWN[name][0] in columns:
            board.columns[name] = [column for column in KNOWN[name] if column in columns]
            if name == "tasks":
                board.extra = [column for column in columns if column not in KNOWN["tasks"]]
        elif count := int(copy.execute(f"SELECT count(*) FROM {_quoted(name)}").fetchone()[0]):  # noqa: S608 (quoted)
            board.beside[name] = count
            if "task_id" in columns:
                board.attached[name] = columns
        if "task_id" in columns:
            copy.execute(f"CREATE INDEX {_quoted(f'andon {name}')} ON {_quoted(name)} (task_id)")
    missing = {"id", "title", "status"} - set(board.columns.get("tasks", ()))
    if missing:
        raise Unreadable(f"this is no board: its table tasks lacks {', '.join(sorted(missing))}.")
    copy.execute("PRAGMA query_only=ON")
    return board


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _list(names: Sequence[str]) -> str:
    return ", ".join(_quoted(name) for name in names)


def _order(names: Sequence[str]) -> str:
    return "id" if "id" in names else _quoted(names[0])


def _why(path: Path, error: sqlite3.Error) -> str:
    text = str(error)
    if "locked" in text or "busy" in text:
        return f"{path} is locked by another program for longer than {WAIT_S:.0f} s. Try again when it is idle."
    if isinstance(error, sqlite3.OperationalError) and "unable to open" in text:
        return f"{path} cannot be opened ({text}). Copy it, with its -wal file, to where it can be read."
    return f"{path} cannot be read: {text}."
