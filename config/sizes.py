"""How much lies on the disk, while others write and remove there; and numbers that are dear, kept for a while."""

import os
import stat
import time
from collections.abc import Callable, Iterable
from functools import wraps
from pathlib import Path
from typing import TypeVar

Number = TypeVar("Number")
# Of every `kept` function: (when it was asked for, monotonic; what it said).
_kept: dict[Callable[[], object], tuple[float, object]] = {}


def of_tree(folder: Path) -> int:
    """Return how many bytes the regular files below a folder have; what goes meanwhile, or is no folder, counts 0."""
    # `walk` passes over directories that cannot be read, and follows no links.
    return of_files(Path(place, name) for place, _folders, names in os.walk(folder) for name in names)


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
