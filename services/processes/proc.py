"""Reading of /proc/PID: what proc(5) says of one process."""

import contextlib
import os
from collections.abc import Collection
from pathlib import Path
from typing import NamedTuple

CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")


class Stat(NamedTuple):
    """The fields of /proc/PID/stat that we use, by their numbers in proc(5).

    `state` (3), `parent` (4) the parent's pid, `threads` (20), `start_ticks` (22) clock ticks since boot, `group` (5),
    `session` (6), `cpu_ticks` user and system time (14 + 15) in clock ticks, `rss_pages` (24).
    """

    state: str
    parent: int
    threads: int
    start_ticks: int
    group: int = 0
    session: int = 0
    cpu_ticks: int = 0
    rss_pages: int = 0

    @property
    def is_dead(self) -> bool:
        # A leader that left by pthread_exit is "Z" while its other threads still run and hold the ports; the
        # pidfd stays silent until the last of them ends, and so do we.
        return self.state in "Xx" or (self.state == "Z" and self.threads <= 1)


def read_stat(pid: int) -> Stat:
    """Read /proc/PID/stat (about 11 µs).

    Raises FileNotFoundError or ProcessLookupError when there is no such entry, PermissionError or another OSError when
    it cannot be read, ValueError or IndexError when it is not understood.
    """
    fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
    try:
        line = os.read(fd, 4096)
    finally:
        os.close(fd)
    # The name (field 2) is the process's own choice and may hold spaces and brackets; later fields cannot.
    fields = line[line.rindex(b")") + 2 :].split()
    return Stat(
        state=fields[0].decode("ascii"),
        parent=int(fields[1]),
        threads=int(fields[17]),
        start_ticks=int(fields[19]),
        group=int(fields[2]),
        session=int(fields[3]),
        cpu_ticks=int(fields[11]) + int(fields[12]),
        rss_pages=int(fields[21]),
    )


def pids() -> list[int]:
    """List the pids in /proc, in no order, zombies included, threads not. Raises OSError without /proc."""
    with os.scandir("/proc") as entries:
        return [int(entry.name) for entry in entries if entry.name.isdecimal()]


def real_uid(pid: int) -> int | None:
    """Read a process's real user id (Uid of /proc/PID/status); None when it is gone, OSError when it cannot be read."""
    try:
        with Path(f"/proc/{pid}/status").open("rb") as status:
            for line in status:
                if line.startswith(b"Uid:"):
                    return int(line.split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return None
    raise OSError(f"/proc/{pid}/status has no Uid")


def control_group(pid: int) -> bytes | None:
    """Read which control groups a process is in (/proc/PID/cgroup, readable of any process); None when it cannot be."""
    try:
        return Path(f"/proc/{pid}/cgroup").read_bytes()
    except OSError:
        return None


def name_of(pid: int) -> str:
    """Read a process's name (/proc/PID/comm: at most 15 bytes of its choice), made printable; "" when unreadable."""
    name = b""
    with contextlib.suppress(OSError):
        name = Path(f"/proc/{pid}/comm").read_bytes()
    text = name.removesuffix(b"\n").decode("utf-8", "replace")
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)


def use(pids: Collection[int]) -> tuple[int, int, int]:
    """Add up what these processes use: (cpu ticks, resident pages, processes seen), without the dead and unreadable."""
    ticks = pages = count = 0
    for pid in pids:
        with contextlib.suppress(OSError, ValueError, IndexError):
            stat = read_stat(pid)
            if not stat.is_dead:
                ticks, pages, count = ticks + stat.cpu_ticks, pages + stat.rss_pages, count + 1
    return ticks, pages, count
