"""A board as one would write it first: FastAPI over sqlite3, rows to dicts to JSON. `python -m … DATABASE PORT`."""

import asyncio
import contextlib
import json
import secrets
import sqlite3
import sys
import time
from collections.abc import Iterator
from typing import Any

import uvicorn
from fastapi import FastAPI, HTTPException, WebSocket
from pydantic import BaseModel

COLUMNS = ("triage", "todo", "ready", "running", "blocked", "done")
POLL_S = 0.3
SCHEMA = """
CREATE TABLE tasks(id TEXT PRIMARY KEY, title TEXT NOT NULL, body TEXT, assignee TEXT, status TEXT NOT NULL,
  priority INTEGER NOT NULL DEFAULT 0, created_by TEXT, created_at INTEGER NOT NULL, started_at INTEGER,
  completed_at INTEGER, workspace_kind TEXT NOT NULL DEFAULT 'scratch', workspace_path TEXT, claim_lock TEXT,
  claim_expires INTEGER, tenant TEXT, result TEXT, idempotency_key TEXT, spawn_failures INTEGER NOT NULL DEFAULT 0,
  worker_pid INTEGER, last_spawn_error TEXT);
CREATE INDEX tasks_status ON tasks(status);
CREATE TABLE links(parent_id TEXT NOT NULL, child_id TEXT NOT NULL, PRIMARY KEY(parent_id, child_id));
CREATE INDEX links_child ON links(child_id);
CREATE TABLE comments(id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT, author TEXT, body TEXT, created_at INTEGER);
CREATE INDEX comments_task ON comments(task_id);
CREATE TABLE events(id INTEGER PRIMARY KEY AUTOINCREMENT, task_id TEXT, kind TEXT, payload TEXT, created_at INTEGER);
CREATE INDEX events_task ON events(task_id);
"""
app = FastAPI()
path = sys.argv[1] if len(sys.argv) > 1 else ":memory:"


@contextlib.contextmanager
def opened() -> Iterator[sqlite3.Connection]:
    database = sqlite3.connect(path, timeout=20)
    database.row_factory = sqlite3.Row
    try:
        yield database
    finally:
        database.close()


class Create(BaseModel):
    title: str
    assignee: str | None = None


@app.get("/board")
def board(limit: int | None = None) -> dict[str, Any]:
    now = int(time.time())
    with opened() as database:
        rows = database.execute("SELECT * FROM tasks WHERE status != 'archived' ORDER BY priority DESC, created_at")
        tasks = [dict(row) for row in rows]
        counts: dict[str, dict[str, int]] = {}
        progress: dict[str, dict[str, int]] = {}
        links = database.execute("SELECT l.*, t.status FROM links l JOIN tasks t ON t.id = l.child_id")
        for link in links:
            counts.setdefault(link["parent_id"], {"parents": 0, "children": 0})["children"] += 1
            counts.setdefault(link["child_id"], {"parents": 0, "children": 0})["parents"] += 1
            of = progress.setdefault(link["parent_id"], {"done": 0, "total": 0})
            of["total"] += 1
            of["done"] += link["status"] == "done"
        remarks = dict(map(tuple, database.execute("SELECT task_id, count(*) FROM comments GROUP BY task_id")))
        latest = database.execute("SELECT coalesce(max(id), 0) FROM events").fetchone()[0]
    piles: dict[str, list[dict[str, Any]]] = {name: [] for name in COLUMNS}
    for task in tasks:
        started, completed = task["started_at"], task["completed_at"]
        task["age"] = {
            "created_age_seconds": now - task["created_at"],
            "started_age_seconds": now - started if started else None,
            "time_to_complete_seconds": completed - (started or task["created_at"]) if completed else None,
        }
        task["link_counts"] = counts.get(task["id"], {"parents": 0, "children": 0})
        task["comment_count"] = remarks.get(task["id"], 0)
        task["progress"] = progress.get(task["id"])
        piles[task["status"]].append(task)
    return {
        "columns": [{"name": name, "tasks": pile[:limit]} for name, pile in piles.items()],
        "tenants": sorted({task["tenant"] for task in tasks if task["tenant"]}),
        "assignees": sorted({task["assignee"] for task in tasks if task["assignee"]}),
        "latest_event_id": latest,
        "now": now,
    }


@app.get("/tasks/{task_id}")
def detail(task_id: str) -> dict[str, Any]:
    with opened() as database:
        row = database.execute("SELECT * FROM tasks WHERE id = ?", [task_id]).fetchone()
        if row is None:
            raise HTTPException(404)

        def listed(sql: str) -> list[dict[str, Any]]:
            return [dict(found) for found in database.execute(sql, [task_id])]

        return {
            "task": dict(row),
            "comments": listed("SELECT * FROM comments WHERE task_id = ? ORDER BY id"),
            "events": listed("SELECT * FROM events WHERE task_id = ? ORDER BY id"),
            "links": {
                "parents": [link["parent_id"] for link in listed("SELECT * FROM links WHERE child_id = ?")],
                "children": [link["child_id"] for link in listed("SELECT * FROM links WHERE parent_id = ?")],
            },
        }


@app.post("/tasks")
def create(body: Create) -> dict[str, Any]:
    task_id, now = f"t_{secrets.token_hex(4)}", int(time.time())
    with opened() as database:
        with database:
            database.execute("BEGIN IMMEDIATE")
            database.execute(
                "INSERT INTO tasks(id, title, assignee, status, created_at) VALUES (?, ?, ?, 'ready', ?)",
                [task_id, body.title, body.assignee, now],
            )
            database.execute(
                "INSERT INTO events(task_id, kind, payload, created_at) VALUES (?, 'created', ?, ?)",
                [task_id, json.dumps({"assignee": body.assignee, "status": "ready"}), now],
            )
        return {"task": dict(database.execute("SELECT * FROM tasks WHERE id = ?", [task_id]).fetchone())}


@app.post("/dispatch")
def dispatch(max: int = 8) -> dict[str, Any]:  # noqa: A002 (the parameter's name on the wire)
    with opened() as database:
        ready = database.execute("SELECT * FROM tasks WHERE status = 'ready' ORDER BY priority DESC, created_at")
        rows = [dict(row) for row in ready]
    chosen = [row for row in rows if row["assignee"]][:max]
    return {
        "spawned": [[row["id"], row["assignee"], ""] for row in chosen],
        "skipped_unassigned": [row["id"] for row in rows if not row["assignee"]],
    }


@app.websocket("/events")
async def events(socket: WebSocket, since: int = 0) -> None:
    await socket.accept()
    while True:
        with opened() as database:
            rows = database.execute("SELECT * FROM events WHERE id > ? ORDER BY id LIMIT 200", [since])
            found = [dict(row) for row in rows]
        if found:
            since = found[-1]["id"]
            await socket.send_json({"events": found, "cursor": since})
        await asyncio.sleep(POLL_S)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[2]), log_level="error")
