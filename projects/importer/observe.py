"""Look at one project's files and say what is new since the last look; touches no database.

Unchanged files (size, mtime_ns, ctime_ns) are not read, a file that was only touched has the same hash.
"""

import contextlib
import hashlib
import os
import stat
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from projects import pidfile, ralph
from services.processes import Identity

PROGRESS_CAP = 64 * 1024 * 1024
KEPT_ITERATIONS = 1000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
RACY_NS = 20_000_000


@dataclass(frozen=True, slots=True)
class Log:
    """One iteration's log file: `written_at` is its mtime, `size` in bytes."""

    number: int
    size: int
    written_at: datetime


@dataclass(frozen=True, slots=True)
class Loop:
    """The live process that .ralph.pid names; not `ours` = another user's, seen but not touchable."""

    pid: int
    start_ticks: int
    boot_id: str
    started_at: datetime
    ours: bool


@dataclass(slots=True)
class Spent:
    """One batch of usage.jsonl: the columns of its entries, and whether more whole lines wait behind them."""

    entries: list[dict[str, Any]] = field(default_factory=list)
    more: bool = False


@dataclass(slots=True)
class Observation:
    """What one look found. `document` and `error` are None where prd.json is as it was."""

    is_ralph: bool = False
    prd_path: str = ""
    document: ralph.Document | None = None
    error: str | None = None
    progress_changed: bool = False
    logs: list[Log] | None = None
    loop: Loop | None = None
    pid_file: bool = False
    ending: str = ""
    written_at: datetime | None = None
    spent: Spent = field(default_factory=Spent)
    fingerprints: dict[str, Any] = field(default_factory=dict)


def observe(root: Path, known: dict[str, Any], *, node: str, loop: Identity | None = None) -> Observation:
    """Look at the project in `root`; `known` is the fingerprints of the last look (the JSON that it returned).

    `loop` is the process that the last look found, which a clock set on since must not end.

    Raises nothing for what a project's files may be: a file that cannot be read is the observation's `error`.
    """
    seen = Observation(fingerprints=dict(known))
    prd = ralph.find_prd(root)
    if prd is None:
        seen.fingerprints = {}
        return seen
    seen.is_ralph = True
    seen.prd_path = str(prd)
    folder = root / prd.parent
    times = [_look_at_prd(seen, root, prd, known), _look_at_progress(seen, folder, known)]
    times.append(_look_at_logs(seen, folder, known))
    seen.written_at = max((time for time in times if time), default=None)
    _look_at_loop(seen, root, prd.parent, node, loop)
    return seen


def moment(nanoseconds: int) -> datetime:
    """Return a time since the epoch as UTC; a nonsense clock becomes the epoch."""
    try:
        return EPOCH + timedelta(microseconds=nanoseconds // 1000)
    except OverflowError:
        return EPOCH


def _mark(path: Path) -> list[int] | None:
    """Return size, mtime and ctime of a file (nanoseconds), None when it is absent."""
    try:
        status = path.lstat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns]


def _settled(mark: list[int] | None) -> list[int] | None:
    """Return a mark to compare with at the next look; of a file that changed just now it matches nothing then.

    The kernel's clock ticks every few milliseconds, and a file may change twice within one tick.
    """
    return mark if mark is None or time.time_ns() - mark[2] >= RACY_NS else [*mark[:2], 0]


def _written(mark: list[int] | None) -> datetime | None:
    return moment(mark[1]) if mark else None


def _look_at_prd(seen: Observation, root: Path, prd: Path, known: dict[str, Any]) -> datetime | None:
    mark = _mark(root / prd)
    before = known.get("prd", {})
    if mark and before.get("mark") == mark and before.get("path") == str(prd):
        return _written(mark)
    digest = ""
    try:
        data = ralph.read_inside(root, prd, ralph.MAX_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        if digest != before.get("sha256") or before.get("path") != str(prd):
            seen.document = ralph.parse_prd(data)
            seen.error = ""
    except ralph.PrdError as error:
        seen.error = f"prd.json: {error}"
    except OSError as error:
        seen.error = f"prd.json cannot be read: {error}"
        digest = ""
    seen.fingerprints["prd"] = {"path": str(prd), "mark": _settled(mark), "sha256": digest}
    return _written(mark)


def _look_at_progress(seen: Observation, folder: Path, known: dict[str, Any]) -> datetime | None:
    mark = _mark(folder / "progress.txt")
    seen.progress_changed = mark != known.get("progress")
    seen.fingerprints["progress"] = mark
    return _written(mark)


def _look_at_logs(seen: Observation, folder: Path, known: dict[str, Any]) -> datetime | None:
    logs = folder / "logs"
    try:
        folder_mark = logs.lstat().st_mtime_ns if not logs.is_symlink() else None
    except OSError:
        folder_mark = None
    before = known.get("logs") or {}
    if folder_mark is None:
        seen.logs = [] if before else None
        seen.fingerprints["logs"] = None
        return None
    marks = before.get("marks", {})
    if before.get("folder") == folder_mark and all(_mark(logs / name) == mark for name, mark in marks.items()):
        return max((moment(mark[1]) for mark in marks.values()), default=None)
    seen.logs, names = _list_logs(logs)
    newest = max(seen.logs, key=written_order, default=None)
    if newest is None:
        marks = {}
    else:
        # Where the next writing shows: in the newest, or, where a new run counts from 1 again, in one that is there.
        likely = (newest.number, newest.number + 1, seen.logs[0].number)
        marks = {name: mark for name in map(names.get, likely) if name and (mark := _settled(_mark(logs / name)))}
    if time.time_ns() - folder_mark < RACY_NS:
        folder_mark = 0
    seen.fingerprints["logs"] = {"folder": folder_mark, "marks": marks}
    return newest.written_at if newest else None


def written_order(log: Log) -> tuple[datetime, int]:
    """Order logs by when they were written last; of two at the same moment the higher number is newer."""
    return log.written_at, log.number


def _list_logs(logs: Path) -> tuple[list[Log], dict[int, str]]:
    numbered: dict[int, str] = {}
    try:
        with os.scandir(logs) as entries:
            for entry in entries:
                number = ralph.iteration_number(entry.name)
                if number is not None:
                    numbered[number] = entry.name
    except OSError:
        return [], {}
    found: list[Log] = []
    for number in sorted(numbered)[-KEPT_ITERATIONS:]:
        with contextlib.suppress(OSError):
            status = (logs / numbered[number]).lstat()
            if stat.S_ISREG(status.st_mode):
                found.append(Log(number, status.st_size, moment(status.st_mtime_ns)))
    return found, numbered


def _look_at_loop(seen: Observation, root: Path, folder: Path, node: str, loop: Identity | None) -> None:
    found = pidfile.look(root, folder, node, known=loop)
    seen.pid_file = found.content is not None
    if found.is_running and found.identity is not None and found.started_at is not None:
        identity, ours = found.identity, found.state == pidfile.State.THERE
        seen.loop = Loop(identity.pid, identity.start_ticks, identity.boot_id, found.started_at, ours)
