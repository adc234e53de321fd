"""A work tree, path by path, without following a link: what lies there, and putting something there.

Paths are bytes, relative to the root, as git writes them.
"""

import hashlib
import os
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from errno import EFBIG, EINVAL
from pathlib import Path
from secrets import token_hex

from projects.rollback import reading
from projects.rollback.trees import Entry

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# A file with a hole costs nothing to make and hours to read.
HASHED_BYTES = 4 * 1024**3
ENOUGH = 1000


@dataclass(frozen=True)
class Found:
    """What lies at a path. `oid` is the git id of its raw bytes, "" for what is neither file nor link."""

    mode: int
    size: int
    mtime_ns: int
    ino: int
    oid: str

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def is_file(self) -> bool:
        return stat.S_ISREG(self.mode)

    def has_content_of(self, entry: Entry) -> bool:
        """Return whether file or link is, byte for byte, what a tree's entry says; permissions are not asked."""
        kind = stat.S_IFLNK if entry.mode == "120000" else stat.S_IFREG
        return stat.S_IFMT(self.mode) == kind and self.oid == entry.oid


@contextmanager
def parent(root: Path, path: bytes, *, make: bool = False) -> Iterator[tuple[int, bytes]]:
    """Give a descriptor of a path's directory, and its last name.

    With `make` missing directories are made. Raises FileNotFoundError, and NotADirectoryError for a link on the way.
    """
    *folders, name = path.split(b"/")
    if not name or any(part in {b"", b".", b".."} for part in (*folders, name)):
        raise NotADirectoryError(f"{path!r} is not a path inside")
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for folder in folders:
            if make:
                with suppress(FileExistsError):
                    os.mkdir(folder, dir_fd=descriptor)
            below = os.open(folder, _DIRECTORY, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = below
        yield descriptor, name
    finally:
        os.close(descriptor)


def look(root: Path, path: bytes, *, content: bool = True, algorithm: str = "sha1") -> Found | None:
    """Return what lies at a path, or None when nothing does or a directory on the way is none.

    Raises OSError, also for a file of more than HASHED_BYTES with `content`.
    """
    try:
        with parent(root, path) as (directory, name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            oid = _oid(directory, name, status, algorithm) if content else ""
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Found(status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino, oid)


def in_the_way(root: Path, new: Collection[bytes], going: Collection[bytes]) -> list[bytes]:
    """Return what lies where the paths `new` shall be; `going` are the tracked paths that are removed."""
    found: set[bytes] = set()
    seen: dict[bytes, int | None] = {}

    def kind(path: bytes) -> int | None:
        if path not in seen:
            seen[path] = _kind(root, path)
        return seen[path]

    for path in new:
        parts = path.split(b"/")
        for length in range(1, len(parts) + 1):
            at = b"/".join(parts[:length])
            what = kind(at)
            if what == stat.S_IFDIR and length < len(parts):
                continue
            if what == stat.S_IFDIR:
                found.update(_left_in(root, at, going))
            elif what is not None and at not in going:
                found.add(at)
            break
    return sorted(found)


def copy_out(root: Path, path: bytes, to: Path, *, limit: int | None = None) -> bool:
    """Copy a file's or a link's bytes to the new file `to`, fsynced; False when it is larger or not there.

    Of a file that grows meanwhile the bytes that were there at first.
    """
    try:
        with parent(root, path) as (directory, name):
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            if stat.S_ISLNK(status.st_mode):
                write_new(to, os.fsencode(os.readlink(name, dir_fd=directory)))
                return True
            if not stat.S_ISREG(status.st_mode) or (limit is not None and status.st_size > limit):
                return False
            with _opened(directory, name) as source, to.open("xb") as target:
                for chunk in reading.chunks(source, status.st_size):
                    target.write(chunk)
                target.flush()
                os.fsync(target.fileno())
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def put(root: Path, path: bytes, content: bytes, *, mode: int, mtime_ns: int, durable: bool) -> None:
    """Put a file at a path, replacing what lies there in one step; `durable`: on disk before this returns."""
    with parent(root, path, make=True) as (directory, name):
        temporary = f".andon-{token_hex(8)}".encode()
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=directory)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fchmod(file.fileno(), mode)
                os.utime(file.fileno(), ns=(mtime_ns, mtime_ns))
                if durable:
                    os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(temporary, dir_fd=directory)
            raise
        if durable:
            os.fsync(directory)


def put_link(root: Path, path: bytes, target: bytes) -> None:
    """Put a symbolic link at a path, replacing what lies there in one step."""
    with parent(root, path, make=True) as (directory, name):
        temporary = f".andon-{token_hex(8)}".encode()
        os.symlink(target, temporary, dir_fd=directory)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
        os.fsync(directory)


def remove(root: Path, path: bytes, keep: Collection[bytes]) -> None:
    """Remove a file or link, then the directories above that this leaves empty, but for those in `keep`."""
    with suppress(FileNotFoundError, NotADirectoryError), parent(root, path) as (directory, name):
        os.unlink(name, dir_fd=directory)
    while b"/" in path:
        path = path.rpartition(b"/")[0]
        if path in keep:
            return
        try:
            with parent(root, path) as (directory, name):
                os.rmdir(name, dir_fd=directory)
        except FileNotFoundError:
            continue
        except OSError:
            return


def folders_above(root: Path, paths: Collection[bytes]) -> list[bytes]:
    """Return the directories above these paths that are there."""
    above = {b"/".join(parts[:n]) for parts in (path.split(b"/") for path in paths) for n in range(1, len(parts))}
    return sorted(folder for folder in above if _kind(root, folder) == stat.S_IFDIR)


def write_new(path: Path, content: bytes) -> None:
    """Write a new file, fsynced. Raises FileExistsError."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def fsync_folder(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, _DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _oid(directory: int, name: bytes, status: os.stat_result, algorithm: str) -> str:
    if stat.S_ISLNK(status.st_mode):
        target = os.fsencode(os.readlink(name, dir_fd=directory))
        return _hash(algorithm, b"blob %d\0" % len(target) + target).hexdigest()
    if not stat.S_ISREG(status.st_mode):
        return ""
    if status.st_size > HASHED_BYTES:
        raise OSError(EFBIG, "it is too large to be looked at", os.fsdecode(name))
    with _opened(directory, name) as descriptor:
        hashed = _hash(algorithm, b"blob %d\0" % status.st_size)
        for chunk in reading.chunks(descriptor, status.st_size):
            hashed.update(chunk)
    return hashed.hexdigest()


def _hash(algorithm: str, start: bytes) -> "hashlib._Hash":
    return hashlib.new(algorithm, start, usedforsecurity=False)


@contextmanager
def _opened(directory: int, name: bytes) -> Iterator[int]:
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(EINVAL, "it is no plain file any more", os.fsdecode(name))
        yield descriptor
    finally:
        os.close(descriptor)


def _kind(root: Path, path: bytes) -> int | None:
    found = look(root, path, content=False)
    return None if found is None else stat.S_IFMT(found.mode)


def _left_in(root: Path, top: bytes, going: Collection[bytes]) -> list[bytes]:
    """Return what is in a directory beside the paths that are removed; the directory itself when it is all untracked.

    At most ENOUGH of them: one would do.
    """
    above = {b"/".join(parts[:n]) for parts in (path.split(b"/") for path in going) for n in range(1, len(parts))}
    found: list[bytes] = []
    waiting = [top]
    while waiting and len(found) < ENOUGH:
        folder = waiting.pop()
        try:
            with parent(root, folder + b"/any") as (directory, _):
                names = [os.fsencode(name) for name in os.listdir(directory)]  # noqa: PTH208 - a descriptor
        except OSError:
            found.append(folder)
            continue
        for path in (folder + b"/" + name for name in names):
            if path in above and _kind(root, path) == stat.S_IFDIR:
                waiting.append(path)
            elif path not in going:
                found.append(path)
    return found if top in above else [top]
