"""The limits that a running loop reads before each iteration: `.ralph/budget.json` (spec/projects.md 8)."""

import json
import os
import secrets
from contextlib import suppress
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from projects import ralph

FOLDER = ".ralph"
NAME = "budget.json"
BUDGET = Path(FOLDER) / NAME
MAX_BYTES = 64 * 1024
MOST = 10**9
KEYS = ("max_iterations", "max_cost_usd")


@dataclass(frozen=True, slots=True)
class Budget:
    """What the budget file sets; None leaves the limit as it is. `cost` is US dollars."""

    iterations: int | None = None
    cost: Decimal | None = None


def mark(root: Path | str) -> tuple[int, ...] | None:
    """Return what is another whenever the budget file is written anew: inode, size, mtime in ns; None without one."""
    try:
        found = (Path(root) / BUDGET).lstat()
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


def read(root: Path | str, *, unless: tuple[int, ...] | None = None) -> tuple[Budget, str]:
    """Return the budget file's limits and a warning: "" unless something in it cannot be used.

    A file with the mark `unless` sets nothing.
    """
    if unless is not None and mark(root) == unless:
        return Budget(), ""
    try:
        document = _document(Path(root))
    except FileNotFoundError:
        return Budget(), ""
    except (OSError, ValueError, RecursionError) as error:
        return Budget(), f"{BUDGET} is ignored: {error}"
    iterations, cost = (document.get(key) for key in KEYS)
    odd = []
    if iterations is not None and (type(iterations) is not int or not 0 <= iterations <= MOST):
        odd.append(KEYS[0])
        iterations = None
    # Compared before anything is converted: an integer of 400 digits is no float, and NaN is within nothing.
    if cost is not None and (type(cost) not in (int, float) or not 0 <= cost <= MOST):
        odd.append(KEYS[1])
        cost = None
    warning = f"{BUDGET}: {' and '.join(odd)} ignored: not a number from 0 to {MOST}" if odd else ""
    return Budget(iterations, None if cost is None else Decimal(str(cost))), warning


def write(root: Path | str, iterations: int | None, cost: Decimal | None) -> None:
    """Set both limits; None removes one, and the file goes when nothing is left in it.

    Other keys of the document stay; a document that cannot be read is replaced. All of it is on the disk, or
    the file is as before and OSError is raised. `.ralph` must be a directory, not a link to one, and a link
    named budget.json is replaced, not followed. Raises ValueError for a limit that `read` would not take.
    """
    root = Path(root)
    limits: dict[str, Any] = dict(zip(KEYS, (iterations, None if cost is None else float(cost)), strict=True))
    for key, limit in limits.items():
        if limit is not None and not 0 <= limit <= MOST:
            raise ValueError(f"{key} is not a number from 0 to {MOST}")
    document = {**_kept(root), **{key: limit for key, limit in limits.items() if limit is not None}}
    try:
        directory = _open_folder(root, make=bool(document))
    except FileNotFoundError:
        if document:
            raise
        return
    try:
        if document:
            _replace(directory, json.dumps(document, allow_nan=False, indent=2).encode() + b"\n")
        else:
            with suppress(FileNotFoundError):
                os.unlink(NAME, dir_fd=directory)
        os.fsync(directory)
    finally:
        os.close(directory)


def _document(root: Path) -> dict[str, Any]:
    document = json.loads(ralph.read_inside(root, BUDGET, MAX_BYTES))
    if not isinstance(document, dict):
        raise ValueError("not an object")  # noqa: TRY004 - what a file says, not a caller's mistake
    return document


def _kept(root: Path) -> dict[str, Any]:
    """Return the keys that are not ours, {} when they cannot be read or written again."""
    try:
        document = _document(root)
        json.dumps(document, allow_nan=False)
    except (OSError, ValueError, RecursionError):
        return {}
    return {key: value for key, value in document.items() if key not in KEYS}


def _open_folder(root: Path, *, make: bool) -> int:
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC
    parent = os.open(root, flags)
    try:
        if make:
            with suppress(FileExistsError):
                os.mkdir(FOLDER, 0o755, dir_fd=parent)
                os.fsync(parent)
        return os.open(FOLDER, flags | os.O_NOFOLLOW, dir_fd=parent)
    finally:
        os.close(parent)


def _replace(directory: int, content: bytes) -> None:
    fresh = f".{NAME}.{secrets.token_hex(8)}"
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    file = os.open(fresh, flags, 0o644, dir_fd=directory)
    try:
        with os.fdopen(file, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(file)
        os.replace(fresh, NAME, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        with suppress(OSError):
            os.unlink(fresh, dir_fd=directory)
        raise
