"""Write a tree and an index back to what was put by."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from projects.rollback import reading
from projects.rollback.plan import Plan
from projects.rollback.repository import Repository
from projects.rollback.saving import Manifest, Was
from projects.rollback.states import algorithm
from projects.rollback.trees import Change, changes
from projects.rollback.worktree import Found, copy_out, fsync_folder, look, parent, put, put_link, remove

# Above this many files one sync of everything is quicker.
FSYNC_EACH = 200
_AT_ONCE_BYTES = 32 * 1024 * 1024
_AT_ONCE = 500
# What stands around each blob: its id, its type and its size.
_HEADER = 200


def put_back(repository: Repository, plan: Plan, saved: Path) -> None:
    """Write every path of the plan back, bytes, permissions and time; what nobody knows is kept in `saved/found`."""
    root, manifest = repository.root, Manifest.load(saved)
    found = changes(repository, plan.head, plan.new)
    for change in reversed(found):
        if change.old is None:
            _clear(root, change, look(root, change.path, algorithm=algorithm(plan.head)), saved)
            remove(root, change.path, manifest.folders)
    for folder, mode in sorted(manifest.folders.items()):
        _make_folder(root, folder, mode)
    changed = [change for change in found if change.old and not _is_untouched(root, change, manifest)]
    durable = len(changed) <= FSYNC_EACH
    for change, blob in _with_blobs(repository, changed):
        was = manifest.paths[change.path]
        now = look(root, change.path, algorithm=algorithm(plan.head))
        _clear(root, change, now, saved, was)
        content = (saved / "raw" / was.raw).read_bytes() if was.raw else blob
        if stat.S_ISLNK(was.mode):
            put_link(root, change.path, content)
        else:
            put(root, change.path, content, mode=stat.S_IMODE(was.mode), mtime_ns=was.mtime_ns, durable=durable)
    if not durable:
        os.sync()


def put_index_back(repository: Repository, saved: Path, temporary: Path) -> None:
    """Bring the saved index back in one step, with its time."""
    reading.copy(saved / "index", temporary, reading.INDEX_BYTES)
    temporary.rename(repository.index)
    fsync_folder(repository.git_dir)


def _is_untouched(root: Path, change: Change, manifest: Manifest) -> bool:
    was = manifest.paths[change.path]
    now = look(root, change.path, algorithm=algorithm(was.oid))
    return now is not None and (now.mode, now.mtime_ns, now.oid) == (was.mode, was.mtime_ns, was.oid)


def _clear(root: Path, change: Change, now: Found | None, saved: Path, was: Was | None = None) -> None:
    """Keep a copy of what lies at a path unless it is from before or from the rollback."""
    if now is None or (was and now.oid == was.oid) or (change.new and now.has_content_of(change.new)):
        return
    if now.is_directory:
        raise IsADirectoryError(f"{change.path!r} is a directory now: move it away")
    kept = saved / "found"
    kept.mkdir(mode=0o700, exist_ok=True)
    number = len(list(kept.iterdir()))
    copy_out(root, change.path, kept / f"{number}-{os.fsdecode(change.path.rpartition(b'/')[2])[:60]}")
    fsync_folder(kept)


def _make_folder(root: Path, folder: bytes, mode: int) -> None:
    with suppress(FileExistsError, NotADirectoryError), parent(root, folder) as (directory, name):
        os.mkdir(name, mode, dir_fd=directory)
        os.chmod(name, mode, dir_fd=directory)


def _with_blobs(repository: Repository, found: list[Change]) -> Iterator[tuple[Change, bytes]]:
    """Yield the changes with the bytes they had before, asking git for many at once."""
    oids = [change.old.oid for change in found if change.old]
    asked = "".join(f"{oid}\n" for oid in oids).encode()
    sizes = repository.git("cat-file", "--batch-check=%(objectsize)", input=asked).split() if oids else []
    start = 0
    while start < len(oids):
        end, room = start + 1, _AT_ONCE_BYTES - int(sizes[start])
        while end < min(len(oids), start + _AT_ONCE) and int(sizes[end]) <= room:
            room -= int(sizes[end])
            end += 1
        limit = sum(map(int, sizes[start:end])) + _HEADER * (end - start)
        asked = "".join(f"{oid}\n" for oid in oids[start:end]).encode()
        out = repository.git("cat-file", "--batch", input=asked, limit=limit)
        at = 0
        for number in range(start, end):
            at = out.index(b"\n", at) + 1
            size = int(sizes[number])
            yield found[number], out[at : at + size]
            at += size + 1
        start = end
