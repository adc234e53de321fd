"""Hermes boards as they lie on disk: made from the documented schema, older, today's and newer."""

import sqlite3
from pathlib import Path

T0 = 1_750_000_000
OLD = (
    "id TEXT PRIMARY KEY, title TEXT NOT NULL, body TEXT, assignee TEXT, status TEXT NOT NULL, "
    "priority INTEGER DEFAULT 0, created_by TEXT, created_at INTEGER NOT NULL, started_at INTEGER, "
    "completed_at INTEGER, workspace_kind TEXT NOT NULL DEFAULT 'scratch', workspace_path TEXT, claim_lock TEXT, "
    "claim_expires INTEGER"
)
TODAY = (
    f"{OLD}, tenant TEXT, result TEXT, idempotency_key TEXT, spawn_failures INTEGER NOT NULL DEFAULT 0, "
    "worker_pid INTEGER, last_spawn_error TEXT"
)
NEWER = f"{TODAY}, skills TEXT, current_run_id INTEGER"
BESIDE = """
CREATE TABLE task_links (parent_id TEXT NOT NULL, child_id TEXT NOT NULL, PRIMARY KEY (parent_id, child_id));
CREATE TABLE task_comments (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, author TEXT NOT NULL,
  body TEXT NOT NULL, created_at INTEGER NOT NULL);
CREATE TABLE task_events (id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT NOT NULL, kind TEXT NOT NULL,
  payload TEXT, created_at INTEGER NOT NULL);
CREATE TABLE kanban_notify_subs (task_id TEXT NOT NULL, platform TEXT NOT NULL, chat_id TEXT NOT NULL,
  thread_id TEXT NOT NULL DEFAULT '', user_id TEXT, created_at INTEGER NOT NULL,
  last_event_id INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (task_id, platform, chat_id, thread_id));
"""


class Hermes:
    """A board at `path`; `task`, `link`, `comment` and `event` write rows."""

    def __init__(self, path: Path, columns: str = TODAY, beside: str = BESIDE, *, wal: bool = False) -> None:
        self.path = path
        self.db = sqlite3.connect(path, isolation_level=None)
        if wal:
            self.db.execute("PRAGMA journal_mode=WAL")
        self.db.executescript(f"CREATE TABLE tasks ({columns}); {beside}")

    def task(self, number: int, status: str = "ready", **fields) -> str:
        name = fields.pop("id", f"t_{number:08x}")
        row = {"id": name, "title": f"task {number}", "status": status, "created_at": T0 + number, **fields}
        self.insert("tasks", **row)
        return name

    def link(self, parent: str, child: str) -> None:
        self.insert("task_links", parent_id=parent, child_id=child)

    def comment(self, task_id: str, body: str = "hello", author: str = "anna", at: int = T0 + 50) -> None:
        self.insert("task_comments", task_id=task_id, author=author, body=body, created_at=at)

    def event(self, task_id: str, kind: str, payload: str | None = None, at: int = T0 + 60) -> None:
        self.insert("task_events", task_id=task_id, kind=kind, payload=payload, created_at=at)

    def insert(self, table: str, **row) -> None:
        marks = ", ".join("?" * len(row))
        self.db.execute(f"INSERT INTO {table} ({', '.join(row)}) VALUES ({marks})", list(row.values()))
