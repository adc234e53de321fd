"""A row of a Hermes board in the words of this one: what fits, and a note of what does not. Knows no Django models."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import PurePosixPath
from typing import Any

from kanban.states import BlockKind, Status, WorkspaceKind

LONGEST_TITLE = 500
LONGEST_TEXT = 262_144
LONGEST_NOTE = 32_768
NOTE_BEGINS = "Brought in from a Hermes board."
LONGEST_VALUE = 4000
ID = re.compile(r"t_[0-9a-f]{8}")
KIND = re.compile(r"[a-z][a-z0-9_]{0,50}")
FIELD = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,39}")
# Nothing before Unix time, and nothing after 2100.
LATEST = 4_102_444_800
UNKNOWN_TIME = datetime(1970, 1, 1, tzinfo=UTC)
# What events.record says itself.
TAKEN = frozenset({"kind", "subject", "by", "now", "project", "via", "address", "imported", "source"})


@dataclass(slots=True)
class Card:
    """A task as it will be made: `source` is its id there, `notes` what did not fit, in sentences."""

    source: str
    fields: dict[str, Any]
    notes: list[str] = field(default_factory=list)

    @property
    def created_at(self) -> datetime:
        at: datetime = self.fields["created_at"]
        return at

    def ids(self) -> list[str]:
        """Return the ids that it may have here, the best first: its own, then ones that its origin gives it."""
        own = [self.source] if ID.fullmatch(self.source) else []
        seed = f"{self.source}|{int(self.created_at.timestamp())}"
        made = [hashlib.sha256(f"{seed}|{number}".encode("utf-8", "replace")).hexdigest()[:8] for number in range(8)]
        return own + [f"t_{each}" for each in made]


def text(value: Any, most: int = LONGEST_TEXT) -> str:
    """Return a value as text that every database takes, "" for NULL and binary."""
    if value is None or isinstance(value, bytes):
        return ""
    return str(value).replace("\x00", "")[:most].encode("utf-8", "replace").decode()


def number(value: Any, low: int, high: int) -> int:
    """Return a whole number within bounds, 0 for anything else."""
    try:
        return max(low, min(high, int(value)))
    except (TypeError, ValueError, OverflowError):
        return 0


def moment(value: Any) -> datetime | None:
    """Return whole seconds since the epoch as a time, None for anything else."""
    try:
        seconds = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return datetime.fromtimestamp(seconds, UTC) if 0 < seconds < LATEST else None


def card(row: Mapping[str, Any], extra: list[str]) -> Card:
    """Translate a task; everything that does not fit is kept in its notes."""
    notes: list[str] = []
    title = " ".join(text(row["title"]).split())
    if len(title) > LONGEST_TITLE:
        notes.append(f"Its whole title: {title[:LONGEST_VALUE]}")
    if not title:
        notes.append("It had no title.")
    created = moment(row.get("created_at"))
    if created is None:
        notes.append("When it was made is not known.")
    created = created or UNKNOWN_TIME
    started, completed = moment(row.get("started_at")), moment(row.get("completed_at"))
    status = _status(text(row["status"], 40).strip().lower(), row, notes)
    kind, path = _workspace(row, notes)
    long = (name for name in ("body", "result") if isinstance(row.get(name), str) and len(row[name]) > LONGEST_TEXT)
    notes += [f"Its {name} had {len(row[name])} characters and was cut." for name in long]
    kept = (name for name in extra if row.get(name) not in {None, ""})
    notes += [f"{text(name, 80)}: {text(row[name], LONGEST_VALUE) or 'binary'}" for name in kept]
    active = max(at for at in (created, started, completed) if at is not None)
    fields: dict[str, Any] = {
        "title": title[:LONGEST_TITLE] or "(untitled)",
        "body": text(row.get("body")),
        "assignee": text(row.get("assignee"), 80).strip(),
        "status": status,
        "since": active,
        "active_at": active,
        "priority": number(row.get("priority"), -1_000_000, 1_000_000),
        "tenant": text(row.get("tenant"), 80).strip(),
        "created_by": text(row.get("created_by"), 200),
        "created_at": created,
        "started_at": started,
        "completed_at": completed or (active if status == Status.DONE else None),
        "workspace_kind": kind,
        "workspace_path": path,
        "result": text(row.get("result")),
        "idempotency_key": text(row.get("idempotency_key"), 200).strip(),
        "failures": number(row.get("spawn_failures"), 0, 1000),
        "last_error": text(row.get("last_spawn_error"), 500),
    }
    if status == Status.BLOCKED:
        fields |= {"block_kind": BlockKind.NEEDS_INPUT, "blocked_by": "import"}
    return Card(text(row["id"], 200), fields, notes)


def _status(named: str, row: Mapping[str, Any], notes: list[str]) -> Status:
    if named == Status.RUNNING:
        who = text(row.get("claim_lock"), 200) or "an unknown worker"
        pid = f", process {row['worker_pid']}" if row.get("worker_pid") else ""
        notes.append(
            f"It was running there, claimed by {who}{pid}. That worker is not this board's: see that it ended."
        )
        return Status.READY
    if named in Status.values:
        return Status(named)
    notes.append(f"Its status was {named or 'empty'}, which this board does not have.")
    return Status.TRIAGE


def _workspace(row: Mapping[str, Any], notes: list[str]) -> tuple[str, str]:
    """Return kind and path; a scratch folder or worktree of the other board is not this one's to keep or remove."""
    kind, path = text(row.get("workspace_kind"), 40), text(row.get("workspace_path"), 4096).strip()
    if kind == WorkspaceKind.DIR and PurePosixPath(path).is_absolute() and ".." not in PurePosixPath(path).parts:
        return WorkspaceKind.DIR, path
    if path or kind not in {"", WorkspaceKind.SCRATCH}:
        notes.append(
            f"Its workspace was {kind or 'scratch'} {path or 'without a path'}; here it gets a scratch folder."
        )
    return WorkspaceKind.SCRATCH, ""


def payload(raw: Any) -> dict[str, Any]:
    """Return an event's payload flat and small; what is nested becomes text, what is no JSON is kept as `text`."""
    if raw is None:
        return {}
    raw = raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw
    try:
        document = json.loads(raw) if isinstance(raw, str) else raw
    except (ValueError, RecursionError):
        return {"text": text(raw, 500)}
    if not isinstance(document, dict):
        return {"value": _flat(document)}
    kept: dict[str, Any] = {}
    for key, value in list(document.items())[:30]:
        name = key if FIELD.fullmatch(key) else f"field_{len(kept)}"
        kept[f"{name}_" if name in TAKEN else name] = _flat(value)
    return kept


def _flat(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return value if abs(value) < 2**53 else str(value)[:40]
    if isinstance(value, list) and all(isinstance(each, str | int) for each in value):
        return [_flat(each) for each in value[:50]]
    return text(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False), 2000)


def note(lines: list[str]) -> str:
    """Return what did not fit as the text of a comment."""
    return f"{NOTE_BEGINS}\n\n" + "\n".join(f"- {line}" for line in lines)[:LONGEST_NOTE]
