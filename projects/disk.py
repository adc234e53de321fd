"""What pages and REST read from a project's files when asked; everything is capped and stays inside."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from projects import ralph
from projects.models import Iteration, Project
from services import logs

MAX_LINES = 1000
COMPARED = 64


@dataclass(frozen=True, slots=True)
class _Count:
    """How far a file was counted (`end`, bytes), the line ends up to there, and the last bytes before."""

    end: int = 0
    lines: int = 0
    tail: bytes = b""


_counted: dict[tuple[int, int], _Count] = {}


@dataclass(frozen=True, slots=True)
class Tail:
    """The last lines of a text file, without line ends, and how many it has in all."""

    lines: list[str]
    total: int
    exists: bool


def folder_of(project: Project) -> Path:
    """Return the Ralph folder, relative to the project's root."""
    return Path(project.prd_path).parent


@contextlib.contextmanager
def opened(project: Project, relative: Path) -> Iterator[int | None]:
    """Open a file inside a project for reading; None when it is absent or not a plain file inside."""
    try:
        descriptor = ralph.open_inside(Path(project.path), relative)
    except OSError:
        yield None
        return
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def progress(project: Project, lines: int) -> Tail:
    """Return the tail of progress.txt; its lines are counted from where the last count ended."""
    with opened(project, folder_of(project) / "progress.txt") as descriptor:
        if descriptor is None:
            return Tail([], 0, exists=False)
        chunk = logs.tail_lines(descriptor, lines=lines)
        text = chunk.text.removesuffix("\n")
        return Tail(text.split("\n") if text else [], _count(descriptor), exists=True)


def iteration_path(project: Project, number: int) -> Path | None:
    """Return an iteration's log, relative to the project's root; it may be named with leading zeros."""
    folder = folder_of(project) / "logs"
    plain = folder / f"iteration-{number}.log"
    root = Path(project.path)
    if (root / plain).is_file():
        return plain
    with contextlib.suppress(OSError), os.scandir(root / folder) as entries:
        for entry in entries:
            if ralph.iteration_number(entry.name) == number:
                return folder / entry.name
    return None


@contextlib.contextmanager
def opened_log(iteration: Iteration) -> Iterator[int | None]:
    """Open an iteration's log for reading; None when it is gone."""
    path = iteration_path(iteration.project, iteration.number)
    if path is None:
        yield None
        return
    with opened(iteration.project, path) as descriptor:
        yield descriptor


def _count(descriptor: int) -> int:
    """Count a file's lines, reading only what was appended since it was last counted here."""
    status = os.fstat(descriptor)
    key = status.st_dev, status.st_ino
    last = _counted.get(key, _Count())
    # The last bytes counted are still there, unless the file was written anew.
    if last.end > status.st_size or os.pread(descriptor, len(last.tail), last.end - len(last.tail)) != last.tail:
        last = _Count()
    lines = last.lines + logs.count_lines(descriptor, start_offset=last.end, end=status.st_size)
    start = max(0, status.st_size - COMPARED)
    tail = os.pread(descriptor, status.st_size - start, start)
    if len(_counted) > 1000:
        _counted.clear()
    _counted[key] = _Count(start + len(tail), lines, tail)
    return lines + (bool(tail) and not tail.endswith(b"\n"))
