"""What is put by before a tree is touched: the index, the state of every path concerned, and the loop's own files.

In the folder `saved` (0700): `index`, `manifest.json`, `raw/N` (files whose bytes are not those of their blob, such as
other line ends), `bookkeeping/…`, and after an undo `found/…` (what lay there and was neither before nor after).
"""

import json
import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from urllib.parse import quote, unquote_to_bytes

from projects import git
from projects.rollback import reading
from projects.rollback.plan import Plan
from projects.rollback.refusal import over_paths
from projects.rollback.repository import Repository, open_repository
from projects.rollback.states import algorithm
from projects.rollback.trees import Change, changes
from projects.rollback.worktree import copy_out, folders_above, fsync_folder, look, write_new

MAX_BOOKKEEPING_FILES = 2000
MAX_BOOKKEEPING_BYTES = 64 * 1024 * 1024
_LEFT_OUT_SHOWN = 1000
_LOOKED_AT = 20_000


@dataclass(frozen=True)
class Was:
    """What lay at a path; `raw` is the name of its copy in `raw/`, "" when its blob has the same bytes."""

    mode: int
    size: int
    mtime_ns: int
    ino: int
    oid: str
    raw: str


@dataclass(frozen=True)
class Manifest:
    """`paths`: what lay at the paths that a rollback writes or removes; `folders` above them, with their modes."""

    paths: dict[bytes, Was]
    folders: dict[bytes, int]
    index_mtime_ns: int

    def dump(self) -> bytes:
        told = {
            "paths": {_text(path): asdict(was) for path, was in self.paths.items()},
            "folders": {_text(path): mode for path, mode in self.folders.items()},
            "index_mtime_ns": self.index_mtime_ns,
        }
        return json.dumps(told, indent=1).encode()

    @classmethod
    def load(cls, saved: Path) -> "Manifest":
        told = json.loads((saved / "manifest.json").read_bytes())
        return cls(
            {unquote_to_bytes(path): Was(**was) for path, was in told["paths"].items()},
            {unquote_to_bytes(path): mode for path, mode in told["folders"].items()},
            told["index_mtime_ns"],
        )

    def moved(self, root: Path) -> list[bytes]:
        """Return the paths that are no longer as they were, by their times and sizes."""
        found = {path: look(root, path, content=False) for path in self.paths}
        return [
            path
            for path, was in self.paths.items()
            if (now := found[path]) is None
            or (now.mode, now.size, now.mtime_ns, now.ino) != (was.mode, was.size, was.mtime_ns, was.ino)
        ]


def save(root: Path, plan: Plan, saved: Path) -> None:
    """Point the backup ref at HEAD and put by what an undo needs, all of it durable.

    Raises Refused (dirty-tree: a file has changed since the plan was made; unsafe-file), OSError and git.GitError.
    """
    repository = open_repository(root)
    _back_up(repository, plan)
    for folder in (saved, saved / "raw", saved / "bookkeeping"):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    saved.chmod(0o700)
    save_index(repository, saved)
    found = changes(repository, plan.head, plan.new)
    manifest = Manifest(
        paths=dict(_were(root, found, saved / "raw")),
        folders={path: _mode(root, path) for path in folders_above(root, [change.path for change in found])},
        index_mtime_ns=(saved / "index").stat().st_mtime_ns,
    )
    gone = [change.path for change in found if change.old and change.path not in manifest.paths]
    if gone:
        raise over_paths("dirty-tree", "No longer there", gone)
    _replace(saved / "manifest.json", manifest.dump())
    _save_bookkeeping(root, plan, saved)
    for folder in (saved / "raw", saved, saved.parent):
        fsync_folder(folder)


def save_index(repository: Repository, saved: Path) -> None:
    """Put the index by as it is now, with its time. Raises Refused (unsafe-file)."""
    temporary = saved / "index.new"
    reading.copy(repository.index, temporary, reading.INDEX_BYTES)
    temporary.rename(saved / "index")
    fsync_folder(saved)


def _back_up(repository: Repository, plan: Plan) -> None:
    try:
        repository.git("update-ref", plan.backup_ref, plan.head, "0" * len(plan.head))
    except git.GitError:
        if repository.line("rev-parse", "--verify", "--quiet", plan.backup_ref) != plan.head:
            raise


def _were(root: Path, found: list[Change], raw: Path) -> Iterator[tuple[bytes, Was]]:
    for number, change in enumerate(found):
        if change.old is None:
            continue
        now = look(root, change.path, algorithm=algorithm(change.old.oid))
        if now is None:
            continue
        copy = ""
        if not now.has_content_of(change.old):
            copy = str(number)
            (raw / copy).unlink(missing_ok=True)
            if not copy_out(root, change.path, raw / copy):
                continue
        yield change.path, Was(now.mode, now.size, now.mtime_ns, now.ino, now.oid, copy)


def _save_bookkeeping(root: Path, plan: Plan, saved: Path) -> None:
    """Copy the loop's own files, the small and named ones first; `left-out.json` names what was too much."""
    room, left_out, count = MAX_BOOKKEEPING_BYTES, [], 0
    for path in islice(_bookkeeping(root, plan), _LOOKED_AT):
        found = look(root, path, content=False)
        if found is None or not found.is_file:
            continue
        count += 1
        if found.size > room or count > MAX_BOOKKEEPING_FILES:
            left_out.append(_text(path))
            continue
        to = saved / "bookkeeping" / os.fsdecode(path)
        to.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        to.unlink(missing_ok=True)
        with suppress(PermissionError):
            copy_out(root, path, to, limit=room)
            room -= found.size
    if left_out:
        told = {"total": len(left_out), "paths": left_out[:_LEFT_OUT_SHOWN]}
        _replace(saved / "left-out.json", json.dumps(told, indent=1).encode())


def _bookkeeping(root: Path, plan: Plan) -> Iterator[bytes]:
    names = [os.fsencode(name) for name in plan.bookkeeping]
    yield from (name for name in names if not name.endswith(b"/"))
    for name in names:
        top = root / os.fsdecode(name)
        if not name.endswith(b"/") or top.is_symlink():
            continue
        for folder, _, files in os.walk(top):
            for file in sorted(files):
                yield bytes((Path(folder) / file).relative_to(root))


def _mode(root: Path, path: bytes) -> int:
    found = look(root, path, content=False)
    return stat.S_IMODE(found.mode) if found else 0o755


def _replace(path: Path, content: bytes) -> None:
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    write_new(temporary, content)
    temporary.rename(path)
    fsync_folder(path.parent)


def _text(path: bytes) -> str:
    return quote(path, safe="/ ")
