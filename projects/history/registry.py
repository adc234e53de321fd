"""Who runs, and what waits to be merged, as ralph-orchestrator notes it beside the history."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from projects import lines, ralph
from projects.history.line import time_of
from projects.history.runs import MAX_TEXT, MergeState
from projects.history.summing import number_of
from projects.ralph.text import one_line

REGISTRY = Path(".ralph/loops.json")
MERGE_QUEUE = Path(".ralph/merge-queue.jsonl")
MAX_REGISTRY = 1024 * 1024
MAX_LOOPS = 200
MAX_FINDINGS = 100
STATES = {
    "queued": MergeState.QUEUED,
    "merging": MergeState.MERGING,
    "merged": MergeState.MERGED,
    "needs_review": MergeState.NEEDS_REVIEW,
    "discarded": MergeState.DISCARDED,
}


@dataclass(frozen=True, slots=True)
class Loop:
    """One entry of the registry; `state` is running, crashed (its process is gone) or unknown (it cannot be told)."""

    id: str
    pid: int | None
    started_at: datetime | None
    prompt: str
    worktree: str
    state: str

    @classmethod
    def of(cls, told: Mapping[str, Any]) -> "Loop":
        """Return the loop that `told` has told of."""
        at = told["started_at"]
        return cls(**{**told, "started_at": None if at is None else datetime.fromisoformat(at)})

    def told(self) -> dict[str, Any]:
        """Return it as JSON can hold it; times are ISO 8601."""
        return {**asdict(self), "started_at": None if self.started_at is None else self.started_at.isoformat()}


@dataclass(slots=True)
class Merge:
    """Where the work of one loop is on its way."""

    loop: str
    state: MergeState
    commit: str = ""
    reason: str = ""
    at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Merges:
    """The merge queue, oldest first, and the lines of its file that say nothing."""

    entries: list[Merge]
    malformed: list[dict[str, Any]]


def read_registry(
    root: Path, *, booted_at: datetime, is_alive: Callable[[int, datetime | None], bool | None]
) -> tuple[list[Loop], str]:
    """Return (the loops of `.ralph/loops.json`, what is wrong with the file or "").

    A pid of another boot, before `booted_at`, is nobody's now. `is_alive(pid, started)` says whether the process which
    had that pid then is still there, None when that cannot be told, as where no start is known. A dead loop stays in
    the list.
    """
    try:
        content = ralph.read_inside(root, REGISTRY, MAX_REGISTRY)
        document = json.loads(content.removeprefix(lines.BOM))
    except FileNotFoundError:
        return [], ""
    except (OSError, ValueError, RecursionError) as error:
        return [], one_line(f"{REGISTRY} cannot be read: {error}", 300)
    entries = document.get("loops") if isinstance(document, dict) else document
    if not isinstance(entries, list):
        return [], f"{REGISTRY} holds no list of loops"
    return [_loop(entry, booted_at, is_alive) for entry in entries[:MAX_LOOPS] if isinstance(entry, dict)], ""


def read_merges(root: Path) -> Merges:
    """Return what `.ralph/merge-queue.jsonl` says; without the file nothing waits. Raises ralph.Unreadable."""
    found: dict[str, Merge] = {}
    malformed: list[dict[str, Any]] = []
    try:
        descriptor = ralph.open_inside(root, MERGE_QUEUE)
    except FileNotFoundError:
        return Merges([], [])
    with os.fdopen(descriptor, "rb", buffering=0) as file:
        for line in lines.read(file.fileno(), check=_check):
            if line.value is None:
                malformed.append(line.malformed())
                continue
            loop, said = _text(line.value["loop_id"]), line.value["event"]
            merge = found.pop(loop, None) or Merge(loop, MergeState.QUEUED)
            merge.state, merge.at = STATES[said["type"]], time_of(line.value.get("ts")) or merge.at
            merge.commit = _text(said.get("commit")) or merge.commit
            # A later success clears the failure.
            merge.reason = "" if merge.state is MergeState.MERGED else _text(said.get("reason")) or merge.reason
            found[loop] = merge
    return Merges(list(found.values())[-MAX_LOOPS:], malformed[:MAX_FINDINGS])


def _check(event: dict[str, Any]) -> str:
    said = event.get("event")
    is_one = isinstance(event.get("loop_id"), str) and isinstance(said, dict) and isinstance(said.get("type"), str)
    return "" if is_one and said["type"] in STATES else lines.Problem.SHAPE  # type: ignore[index]


def _loop(entry: dict[str, Any], booted_at: datetime, is_alive: Callable[[int, datetime | None], bool | None]) -> Loop:
    pid, started = number_of(entry.get("pid")), time_of(entry.get("started") or entry.get("started_at"))
    is_of_another_boot = started is not None and started < booted_at
    alive = False if pid is None or pid < 2 or is_of_another_boot else is_alive(pid, started)
    return Loop(
        id=_text(entry.get("id")),
        pid=pid,
        started_at=started,
        prompt=_text(entry.get("prompt")),
        worktree=_text(entry.get("worktree_path") or entry.get("workspace")),
        state="unknown" if alive is None else "running" if alive else "crashed",
    )


def _text(value: object) -> str:
    return one_line(value, MAX_TEXT) if isinstance(value, str) else ""
