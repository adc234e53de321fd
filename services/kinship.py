"""Who is whose in one reading of all processes: {pid: what /proc/PID/stat says}."""

import contextlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping

from services.processes import Identity
from services.processes.proc import Stat, pids, read_stat


def everybody() -> dict[int, Stat]:
    """Read all living processes that can be read."""
    found = {}
    for pid in pids():
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = read_stat(pid)
            if not stat.is_dead:
                found[pid] = stat
    return found


def line(table: Mapping[int, Stat], pid: int) -> Iterator[int]:
    """Yield a process and its ancestors."""
    while pid in table:
        yield pid
        pid = table[pid].parent


def descendants(table: Mapping[int, Stat], roots: Iterable[int], allowed: Mapping[int, Identity]) -> Iterator[int]:
    """Yield these pids and those below them, not below one that is not allowed."""
    children: dict[int, list[int]] = defaultdict(list)
    for pid in allowed:
        parent = table.get(table[pid].parent)
        # A "parent" younger than its child is another process with a reused pid.
        if parent is not None and table[pid].start_ticks >= parent.start_ticks:
            children[table[pid].parent].append(pid)
    waiting, done = list(roots), set(roots)
    while waiting:
        pid = waiting.pop()
        yield pid
        fresh = [child for child in children[pid] if child not in done]
        done.update(fresh)
        waiting += fresh
