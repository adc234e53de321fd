"""Read one batch of a file onward from where it was left, and tell whether it is still that file."""

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from projects import lines
from projects.journal.deriving import LATEST_S
from projects.lines import Line, Problem
from projects.lines.reading import RAW_SHOWN
from projects.models import JournalFile

BATCH_LINES = 1000
BATCH_BYTES = 1024 * 1024
HEAD_BYTES = 1024
TAIL_BYTES = 256
RACY_NS = 20_000_000
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(slots=True)
class Batch:
    """Whole lines and where they end; `more`: others wait behind them. `raw` are their bytes, none of one too long."""

    offset: int
    line: int
    lines: list[Line] = field(default_factory=list)
    more: bool = False
    raw: bytes = b""

    def agrees(self, prints: dict[str, Any]) -> bool:
        """Say whether the prints of a file are those of one that has these lines, as far as they reach into them."""
        begins, (_, tail) = len(self.raw) == self.offset, tail_of(self.offset)
        head_differs = begins and sha256(self.raw[: prints["fp_len"]]) != prints["fingerprint"]
        tail_differs = len(self.raw) >= tail and sha256(self.raw[-tail:]) != prints["tail_hash"]
        return not (head_differs or tail_differs)


def is_same(descriptor: int, row: JournalFile) -> bool:
    """Say whether a file still begins, and where it was left ends, as what was read of it."""
    if not row.committed_offset:
        return True
    if os.fstat(descriptor).st_size < row.committed_offset:
        return False
    return (
        digest(descriptor, 0, row.fp_len) == row.fingerprint
        and digest(descriptor, *tail_of(row.committed_offset)) == row.tail_hash
    )


def read_batch(descriptor: int, offset: int, line: int, check: Callable[[dict[str, Any]], str]) -> Batch:
    """Read at most 1,000 lines or 1 MiB from `offset`, before which `line` lines lie; only through the last LF.

    A line over 1 MiB is a batch of its own.
    """
    block = os.pread(descriptor, BATCH_BYTES + 1, offset)
    end = block.rfind(b"\n", 0, BATCH_BYTES) + 1
    if not end:
        return _overlong(descriptor, offset, line) if len(block) > BATCH_BYTES else Batch(offset, line)
    *ended, rest = block[:end].split(b"\n", BATCH_LINES)
    used = end - len(rest)
    read = list(lines.read_bytes(block[:used], check=check, start=offset, line=line))
    more = bool(rest) or len(block) > BATCH_BYTES
    return Batch(offset + used, line + len(ended), read, more=more, raw=block[:used])


def _overlong(descriptor: int, offset: int, line: int) -> Batch:
    """Pass over a line that is too long; without its LF it waits."""
    whole, place, kept = hashlib.sha256(), offset, b""
    while chunk := os.pread(descriptor, BATCH_BYTES, place):
        end = chunk.find(b"\n")
        text = chunk if end < 0 else chunk[:end]
        whole.update(text)
        kept = kept or text[:RAW_SHOWN]
        place += len(text)
        if end >= 0:
            length = place + 1 - offset
            found = Line(line + 1, offset, length, kept, None, Problem.OVERSIZE, True, whole.hexdigest())
            return Batch(place + 1, line + 1, [found], more=True)
    return Batch(offset, line)


def fingerprints(descriptor: int, offset: int) -> dict[str, Any]:
    """Return the columns by which the file is known again."""
    size = min(HEAD_BYTES, offset)
    return {
        "fp_len": size,
        "fingerprint": digest(descriptor, 0, size),
        "tail_hash": digest(descriptor, *tail_of(offset)),
    }


def mark_of(status: os.stat_result) -> str:
    """Return what the kernel says of a file, to compare with at the next look; "" when it changed just now.

    The kernel's clock ticks every few milliseconds, and a file may change twice within one tick.
    """
    if time.time_ns() - status.st_ctime_ns < RACY_NS:
        return ""
    return f"{status.st_size}:{status.st_mtime_ns}:{status.st_ctime_ns}:{status.st_ino}"


def facts(status: os.stat_result) -> dict[str, Any]:
    """Return the columns that tell where the file lies; the kernel's numbers may be wider than a column.

    A time of writing outside 1970 to 2100, which anybody may set, is none.
    """
    micros = status.st_mtime_ns // 1000
    written = EPOCH + timedelta(microseconds=micros) if 0 <= micros < LATEST_S * 1e6 else None
    return {"dev": status.st_dev % (1 << 63), "inode": status.st_ino % (1 << 63), "written_at": written}


def tail_of(offset: int) -> tuple[int, int]:
    size = min(TAIL_BYTES, offset)
    return offset - size, size


def digest(descriptor: int, start: int, size: int) -> str:
    return sha256(os.pread(descriptor, size, start))


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
