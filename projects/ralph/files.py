"""Find a project's files, open them without being led astray, and lock the project.

Linux only. Nothing here follows a path out of the project's directory, and nothing blocks.
Rules: spec/projects.md, sections 1 and 2.
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePath

from projects.ralph.text import one_line

PRD_PLACES: tuple[str, ...] = (
    "scripts/ralph/prd.json",
    ".ralph/prd.json",
    "ralph/prd.json",
    "plans/prd.json",
    ".agents/tasks/prd.json",
    "prd.json",
)

_SLUG_LIMIT = 64
_SLUG = re.compile(r"[A-Za-z0-9_-]{1,64}")
# The largest pid that Linux gives out: PID_MAX_LIMIT in include/linux/threads.h.
_PID_MAX = 4_194_304
_ITERATION = re.compile(r"iteration-0*([0-9]{1,10})\.log")
_ITERATION_MAX = 10**9
_DASH = re.compile(r"\s[-–—]\s")
_HEADING_ID = re.compile(r"[\s\[(*`]*([^\s\[\]()*`:,]{1,200})")
_HEADING_LIMIT = 400
_CHUNK = 256 * 1024


class Unreadable(OSError):
    """The file is there, but it is not read; the text says why."""


class ProjectBusy(RuntimeError):
    """Somebody else holds the project's lock."""


@dataclass(frozen=True, slots=True)
class Heading:
    """A heading of progress.txt: `line` counts from 1, `date` is as it was written."""

    line: int
    date: str
    story_id: str


def find_prd(root: Path) -> Path | None:
    """Return the first of PRD_PLACES, relative to `root`, that is a regular file inside it.

    A symbolic link is not a regular file, and a directory may be one only if it stays inside: what is found
    here `read_inside` accepts, permissions aside.
    """
    return next((Path(place) for place in PRD_PLACES if _is_file_inside(root, place)), None)


def is_project(root: Path) -> bool:
    """Return whether `root` holds a prd.json in one of its places, or a `.git` folder or file of its own."""
    return _is_kind(root / ".git", stat.S_IFDIR, stat.S_IFREG) or find_prd(root) is not None


def is_slug(text: str) -> bool:
    """Return whether the whole text is `[A-Za-z0-9_-]{1,64}`."""
    return _SLUG.fullmatch(text) is not None


def slug_for(name: str, real_path: str, taken: Collection[str] = ()) -> tuple[str, str]:
    """Return `(slug, warning)` of a project directory.

    `name` is the directory's name, `real_path` its resolved path, `taken` the slugs given out before. The
    name itself with the warning "" when it is legal and free; else its legal characters, `-` and 6 hex of the
    path's SHA-256 (more only if that is taken too).
    """
    if is_slug(name) and name not in taken:
        return name, ""
    stem = re.sub(r"[^A-Za-z0-9_-]", "", name) or "project"
    digest = hashlib.sha256(real_path.encode("utf-8", "surrogatepass")).hexdigest()
    for length in range(6, _SLUG_LIMIT - 1):
        slug = f"{stem[: _SLUG_LIMIT - 1 - length]}-{digest[:length]}"
        if slug not in taken:
            break
    why = "another project has that name" if is_slug(name) else "that name is not legal in an address"
    return slug, f"The directory {one_line(name, 100)} is shown as {slug}: {why}."


def open_inside(root: Path, relative: Path | str) -> int:
    """Open a regular file inside `root` for reading and return its descriptor, which the caller closes.

    Never blocks and never follows a link out of `root`: the directories are resolved, compared by components,
    and then walked by descriptor without following links, so a swap in between is refused. The file itself
    must not be a link. Raises FileNotFoundError when it is absent, Unreadable for everything else.
    """
    name = PurePath(relative)
    if name.is_absolute() or ".." in name.parts or not name.name:
        raise Unreadable(f"{one_line(str(relative), 200)} is not a path inside the project")
    shown = one_line(str(name), 200)
    try:
        directory = open_directory(root, name.parent, shown)
        try:
            flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            descriptor = os.open(name.name, flags, dir_fd=directory)
        finally:
            os.close(directory)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(name)) from None
    except Unreadable:
        raise
    except OSError as error:
        raise Unreadable(f"{shown} cannot be opened: {_why(error)}") from error
    except (ValueError, RuntimeError) as error:
        # pathlib: NUL or an unencodable character in the name; a loop of links.
        raise Unreadable(f"{shown} is not a path that can be followed") from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise Unreadable(f"{shown} is not a regular file")
    return descriptor


def read_inside(root: Path, relative: Path | str, limit: int) -> bytes:
    """Return the bytes of a regular file inside `root`, at most `limit` of them.

    Raises FileNotFoundError when it is absent, Unreadable when it is larger or `open_inside` refuses it.
    """
    with open(open_inside(root, relative), "rb", buffering=0) as file:
        shown = one_line(str(relative), 200)
        if os.fstat(file.fileno()).st_size > limit:
            raise Unreadable(f"{shown} is larger than {limit} bytes")
        chunks = bytearray()
        try:
            # One byte more than allowed, so that a file which grows meanwhile is noticed.
            while chunk := file.read(min(_CHUNK, limit + 1 - len(chunks))):
                chunks += chunk
        except OSError as error:
            raise Unreadable(f"{shown} cannot be read: {_why(error)}") from error
    if len(chunks) > limit:
        raise Unreadable(f"{shown} is larger than {limit} bytes")
    return bytes(chunks)


def parse_pid(data: bytes) -> int | None:
    """Return the pid that a pid file holds: decimal, above 1, at most what Linux gives out; else None."""
    text = data.strip()
    if not re.fullmatch(rb"[0-9]{1,20}", text):
        return None
    pid = int(text)
    return pid if 1 < pid <= _PID_MAX else None


def iteration_number(name: str) -> int | None:
    """Return N of the file name `iteration-N.log` (padded or not, at most 10**9), else None."""
    match = _ITERATION.fullmatch(name)
    number = int(match[1]) if match else _ITERATION_MAX + 1
    return number if number <= _ITERATION_MAX else None


def progress_headings(text: str) -> list[Heading]:
    """Return the headings `## <date> - <story id>` of a progress.txt, in order.

    Best effort: the date is any short text with a digit, brackets around the id are taken off, and whatever
    follows the id is ignored.
    """
    headings = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.startswith("## "):
            continue
        title = one_line(line[3:_HEADING_LIMIT], _HEADING_LIMIT)
        dash = _DASH.search(title)
        story = _HEADING_ID.match(title, dash.end()) if dash else None
        date = title[: dash.start()].strip(" []()*") if dash else ""
        if story and re.search("[0-9]", date):
            headings.append(Heading(number, date[:100], story[1]))
    return headings


@contextmanager
def project_lock(root: Path) -> Iterator[None]:
    """Hold the project's exclusive lock for a `with` block, or raise ProjectBusy at once.

    It is a flock on the directory itself: no file is left behind, and the kernel lets it go when the holder
    dies, kill -9 included. A second attempt from the same process is refused too. Raises OSError when `root`
    is not a directory.
    """
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ProjectBusy(f"{one_line(root.name, 100)} is locked by another process") from None
        try:
            yield
        finally:
            # Closing alone would leave it to a child caught between fork and exec.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)


def open_directory(root: Path, parent: PurePath, shown: str, *, access: int = os.O_PATH) -> int:
    """Return a descriptor of the directory `parent` of `root`, walked without following links out of it.

    O_PATH is enough to open what is in it; to fsync it, `access` is O_RDONLY. Raises Unreadable, which names `shown`,
    when it is outside, OSError when it is not there.
    """
    real_root = root.resolve(strict=True)
    real_parent = (real_root / parent).resolve(strict=True)
    if not real_parent.is_relative_to(real_root):
        raise Unreadable(f"{shown} leads out of the project")
    flags = access | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(real_root, flags)
    for part in real_parent.relative_to(real_root).parts:
        try:
            below = os.open(part, flags, dir_fd=descriptor)
        finally:
            os.close(descriptor)
        descriptor = below
    return descriptor


def _is_file_inside(root: Path, place: str) -> bool:
    name = PurePath(place)
    try:
        directory = open_directory(root, name.parent, place)
    except (OSError, RuntimeError):
        return False
    try:
        return stat.S_ISREG(os.stat(name.name, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False
    finally:
        os.close(directory)


def _is_kind(path: Path, *kinds: int) -> bool:
    try:
        return stat.S_IFMT(path.lstat().st_mode) in kinds
    except OSError:
        return False


def _why(error: OSError) -> str:
    if error.errno == errno.ELOOP:
        return "it is a symbolic link"
    return (error.strerror or "unknown reason").lower()
