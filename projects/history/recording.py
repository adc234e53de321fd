"""Append to the loop history, durably, under the lock that its readers know: `<name>.lock`."""

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from projects.history.reading import HISTORY
from projects.lines import append_line

# Each kind's fields in the order in which they are written, and what they are.
KINDS: dict[str, dict[str, type]] = {
    "loop_started": {"prompt": str},
    "iteration_started": {"iteration": int},
    "event_published": {"topic": str, "payload": str},
    "iteration_completed": {"iteration": int, "success": bool},
    "loop_completed": {"reason": str},
    "loop_resumed": {"from_iteration": int},
    "loop_terminated": {"signal": str},
    "merge_queued": {},
    "merge_started": {"pid": int},
    "merge_completed": {"commit": str},
    "merge_failed": {"reason": str},
    "loop_discarded": {"reason": str},
}


WORDS = {str: "a text", int: "a number", bool: "true or false"}


def append(path: Path, kind: str, fields: Mapping[str, Any], *, data: object | None, at: datetime) -> bytes:
    """Append one event durably under the lock `<name>.lock` and return the line written, with its LF.

    Raises ValueError for what cannot be a line (NaN, over 1 MiB, `at` without an offset), OSError when it
    could not be made durable; the file is then as before.
    """
    if at.tzinfo is None:
        raise ValueError("at has no offset")
    if "kind" in fields:
        raise ValueError("kind is not a field")
    event: dict[str, Any] = {
        "ts": at.astimezone(UTC).isoformat().replace("+00:00", "Z"),
        "type": {"kind": kind, **fields},
    }
    if data is not None:
        event["data"] = data
    return append_line(path, event, lock=path.with_name(f"{path.name}.lock"))


def wrong_with(kind: str, fields: Mapping[str, Any]) -> str:
    """Return in words what is wrong with an event, "" when it is one of section 2 with the fields of its kind."""
    known = KINDS.get(kind)
    if known is None:
        return f"its kind is none of {', '.join(KINDS)}"
    for name, kind_of in known.items():
        value = fields.get(name)
        # A bool is an int to Python alone.
        if not isinstance(value, kind_of) or (kind_of is int and isinstance(value, bool)):
            return f"{kind} needs {name}, {WORDS[kind_of]}"
    more = sorted(set(fields) - set(known))
    return f"{kind} has no {', '.join(more)}" if more else ""


def record_loop_started(root: Path, prompt: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record in the project at `root` that a loop starts; as all of these: returns the line, raises as `append`."""
    return append(root / HISTORY, "loop_started", {"prompt": prompt}, data=data, at=at)


def record_iteration_started(root: Path, iteration: int, *, at: datetime, data: object | None = None) -> bytes:
    """Record that an iteration begins."""
    return append(root / HISTORY, "iteration_started", {"iteration": iteration}, data=data, at=at)


def record_event_published(root: Path, topic: str, payload: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record what an agent published."""
    return append(root / HISTORY, "event_published", {"topic": topic, "payload": payload}, data=data, at=at)


def record_iteration_completed(
    root: Path, iteration: int, *, success: bool, at: datetime, data: object | None = None
) -> bytes:
    """Record that an iteration ended, well or not."""
    return append(root / HISTORY, "iteration_completed", {"iteration": iteration, "success": success}, data=data, at=at)


def record_loop_completed(root: Path, reason: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a loop ended by itself, and why."""
    return append(root / HISTORY, "loop_completed", {"reason": reason}, data=data, at=at)


def record_loop_resumed(root: Path, from_iteration: int, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a run goes on."""
    return append(root / HISTORY, "loop_resumed", {"from_iteration": from_iteration}, data=data, at=at)


def record_loop_terminated(root: Path, signal: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a signal ended a loop."""
    return append(root / HISTORY, "loop_terminated", {"signal": signal}, data=data, at=at)


def record_merge_queued(root: Path, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a loop's work waits to be merged."""
    return append(root / HISTORY, "merge_queued", {}, data=data, at=at)


def record_merge_started(root: Path, pid: int, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a merge has begun, and in which process."""
    return append(root / HISTORY, "merge_started", {"pid": pid}, data=data, at=at)


def record_merge_completed(root: Path, commit: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record the commit of a merge."""
    return append(root / HISTORY, "merge_completed", {"commit": commit}, data=data, at=at)


def record_merge_failed(root: Path, reason: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a merge needs somebody."""
    return append(root / HISTORY, "merge_failed", {"reason": reason}, data=data, at=at)


def record_loop_discarded(root: Path, reason: str, *, at: datetime, data: object | None = None) -> bytes:
    """Record that a loop's work was thrown away."""
    return append(root / HISTORY, "loop_discarded", {"reason": reason}, data=data, at=at)
