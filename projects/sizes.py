"""How much lies on the disk, while others write and remove there; and numbers that are dear, kept for a while."""

import contextlib
import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number")
# Of every `kept` function: (when it was asked for, monotonic; what it said).
_kept: dict[Callable[[], object], tuple[float, object]] = {}


@dataclass(slots=True)
class Measure:
    """Sizes of trees, together over no more entries than `left`: agents may have made millions."""

    left: int

    def of(self, folder: Path) -> int | None:
        """Return how many bytes the regular files below a folder have; None when that was too much to look at.

        What goes meanwhile, or is no folder, or lies too deep to be named, counts 0.
        """
        size, waiting = 0, [folder]
        # No recursion: agents make directories in directories by the thousand.
        while waiting:
            for entry in _entries(waiting.pop()):
                if self.left <= 0:
                    return None
                self.left -= 1
                with contextlib.suppress(OSError):
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        waiting.append(Path(entry.path))
                    elif stat.S_ISREG(status.st_mode):
                        size += status.st_size
        return size


def _entries(folder: Path) -> Iterator["os.DirEntry[str]"]:
    """Yield what a directory holds; of a link to one, and of what is none or may not be read, nothing."""
    with contextlib.suppress(OSError):
        if stat.S_ISDIR(folder.lstat().st_mode):
            with os.scandir(folder) as found:
                yield from found


def of_tree(folder: Path) -> int:
    """Return how many bytes the regular files below a folder have; what goes meanwhile, or is no folder, counts 0."""
    return Measure(1 << 62).of(folder) or 0


def of_files(paths: Iterable[Path]) -> int:
    """Return how many bytes the regular files among the paths have; what is gone by now counts 0."""
    return sum(map(_size, paths))


def _size(path: Path) -> int:
    try:
        status = path.lstat()
    except OSError:
        return 0
    return status.st_size if stat.S_ISREG(status.st_mode) else 0


def kept(*, seconds: float) -> Callable[[Callable[[], Number]], Callable[[], Number]]:
    """Have a function without arguments asked again only once its answer is so old; each process keeps its own."""

    def decorate(ask: Callable[[], Number]) -> Callable[[], Number]:
        @wraps(ask)
        def answer() -> Number:
            now = time.monotonic()
            at, number = _kept.get(ask, (now - seconds, None))
            if now - at >= seconds:
                _kept[ask] = (now, number := ask())
            return number  # type: ignore[return-value]

        return answer

    return decorate
