"""Make and remove the directory that a task's worker runs in. Knows no Django.

Below a managed root, `<home>/workspaces`, every component is opened without following links. Agents may have left
anything in a workspace: links, FIFOs, directories that may not be entered, ten thousand of them in each other.
Rules: spec/kanban.md, sections 3 and 5.
"""

import contextlib
import errno
import itertools
import os
import re
import stat
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from projects import git, ralph
from projects.ralph.text import one_line

FOLDER = "workspaces"
MARKER = ".andon-workspace"
BRANCH = "andon/"
# Of one file that outlives its workspace.
ARTEFACT_BYTES = 10 * 1024 * 1024
MOST_ARTEFACTS = 50
# What of a result is looked through for the names of files.
RESULT_CHARACTERS = 200_000
MOST_WORDS = 2000
# A claim that has not spawned after 60 s is taken back.
CHECKOUT_S = 50

_TASK_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,127}")
_WORD = re.compile(r"[\w./@+-]{1,500}")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
# `git worktree add` locks with this reason what it has not finished.
_UNFINISHED = "initializing"


class CannotMake(Exception):
    """There is no workspace; the text says why, for a person. What lay there is untouched."""


def make(kind: str, *, task_id: str, home: Path, path: str, roots: Sequence[Path], repository: Path | None) -> Path:
    """Make the directory that a task's worker runs in, or find the one of an earlier attempt, and return it.

    `scratch`: `<home>/workspaces/<task_id>`, 0700, with a marker file; `path` is ignored.
    `dir`: `path`, absolute and really inside one of `roots`; made with its parents when it is missing.
    `worktree`: a work tree of `repository` on the branch `andon/<task_id>`, which starts at its HEAD unless there is
    one; at `path` under the rule of `dir`, or at the place of `scratch` when `path` is "".

    May be called again after a crash at any point. Raises CannotMake.
    """
    if not _TASK_ID.fullmatch(task_id):
        raise CannotMake(f"{one_line(task_id, 100)} is not a task id")
    try:
        match kind:
            case "scratch":
                return _scratch(task_id, home)
            case "dir":
                place, root = _allowed(path, roots, home)
                with _walked(place, root):
                    return place
            case "worktree":
                return _worktree(task_id, home, path, roots, repository)
    except OSError as error:
        raise CannotMake(_why(error)) from error
    raise CannotMake(f"{one_line(kind, 100)} is not a kind of workspace")


def remove(task_id: str, *, home: Path, kept: Sequence[str], keep_to: Path) -> bool:
    """Remove the scratch workspace of a task, and return whether it was there and ours.

    Ours is a directory directly below the managed root that holds the marker of this task; anything else is left
    alone. First the files named in `kept` (relative paths) are copied to the same names below `keep_to`: regular
    ones inside the workspace of at most 10 MB. The marker goes last, so what a crash leaves is still ours.
    Raises OSError: before anything was removed when a copy could not be written, else for what would not go.
    """
    if not _TASK_ID.fullmatch(task_id):
        return False
    with contextlib.ExitStack() as stack:
        try:
            managed = stack.enter_context(_managed(home))
            folder = stack.enter_context(_opened(task_id, managed))
            if _mark(folder) != task_id:
                return False
        except OSError:
            return False
        _keep(home / FOLDER / task_id, kept, keep_to)
        _empty(folder, spare=MARKER)
        os.unlink(MARKER, dir_fd=folder)
        os.rmdir(task_id, dir_fd=managed)
    return True


def artefacts(result: str, workspace: Path) -> list[str]:
    """Return the regular files inside a workspace that a text names, as relative paths in its order; at most 50.

    A name is a run of letters, digits and `_ . / @ + -`; an absolute path counts when it leads into the workspace.
    """
    found: dict[str, None] = {}
    words = dict.fromkeys(match[0] for match in _WORD.finditer(result[:RESULT_CHARACTERS]))
    for word in itertools.islice(words, MOST_WORDS):
        for name in dict.fromkeys((word, word.rstrip("."))):
            relative = _relative(name, workspace)
            if relative and _is_file(workspace, relative):
                found[relative] = None
                break
        if len(found) == MOST_ARTEFACTS:
            break
    return list(found)


def _scratch(task_id: str, home: Path) -> Path:
    place = home / FOLDER / task_id
    with _managed(home, make=True) as managed, _made(task_id, managed) as folder:
        mark = _mark(folder)
        if mark != task_id:
            # A crash may have come before the marker, or in the middle of it; then nothing else is there.
            is_half_made = not set(_names(folder)) - {MARKER} and task_id.startswith(mark or "")
            if not is_half_made:
                raise CannotMake(f"{place} is there already, and it has no marker of this task ({MARKER})")
            _write_mark(folder, task_id)
        os.fchmod(folder, 0o700)
    return place


def _mark(folder: int) -> str | None:
    """Return whose workspace this is, None when it has no marker; OSError when it is a link or unreadable."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        marker = os.open(MARKER, flags, dir_fd=folder)
    except FileNotFoundError:
        return None
    with os.fdopen(marker, "rb", buffering=0) as file:
        if not stat.S_ISREG(os.fstat(marker).st_mode):
            return None
        return (file.read(256) or b"").decode("utf-8", "replace")


def _write_mark(folder: int, task_id: str) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    with os.fdopen(os.open(MARKER, flags, 0o600, dir_fd=folder), "wb") as file:
        file.write(task_id.encode())


def _allowed(path: str, roots: Sequence[Path], home: Path) -> tuple[Path, Path]:
    """Return the real path that `path` is or would be, and the root that it lies in."""
    if not path:
        raise CannotMake("it has no path")
    shown = one_line(path, 300)
    if not PurePath(path).is_absolute() or ".." in PurePath(path).parts:
        raise CannotMake(f"{shown} is not an absolute path without ..")
    try:
        real = Path(os.path.realpath(path))
    except ValueError:
        raise CannotMake(f"{shown} is not a path that can be followed") from None
    real_roots = [Path(os.path.realpath(root)) for root in roots]
    root = next((each for each in real_roots if real.is_relative_to(each)), None)
    if root is None:
        raise CannotMake(f"{shown} is outside the allowed roots")
    if real.is_relative_to(os.path.realpath(home)):
        raise CannotMake(f"{shown} is inside Andon's own home")
    return real, root


def _worktree(task_id: str, home: Path, path: str, roots: Sequence[Path], repository: Path | None) -> Path:
    if repository is None:
        raise CannotMake("a worktree needs a project, and this task has none")
    _need_commit(repository)
    if path:
        place, root = _allowed(path, roots, home)
    else:
        with _managed(home, make=True):
            place = Path(os.path.realpath(home)) / FOLDER / task_id
            root = place.parent
    with _walked(place, root) as folder:
        tree = _registered(repository, place)
        if tree and tree.is_unfinished:
            # Only git was here: it was killed before any worker was started.
            _empty(folder)
            _git(["worktree", "unlock", str(place)], repository)
        elif tree and not tree.is_lost:
            if path and tree.branch != f"refs/heads/{BRANCH}{task_id}":
                raise CannotMake(f"{place} is a worktree of something else")
            return place if path else home / FOLDER / task_id
        if _names(folder):
            raise CannotMake(f"{place} is there already, and it is no worktree of {one_line(repository.name, 100)}")
        _add(task_id, place, repository)
        if not path:
            os.fchmod(folder, 0o700)
    return place if path else home / FOLDER / task_id


@dataclass(frozen=True, slots=True)
class _Tree:
    """A work tree as its repository knows it; `branch` is the ref, "" when it is on none."""

    branch: str
    is_lost: bool
    is_unfinished: bool


def _need_commit(repository: Path) -> None:
    shown = one_line(str(repository), 300)
    try:
        git.run(["rev-parse", "--git-dir"], repository)
    except git.GitError as error:
        raise CannotMake(f"{shown} is not a git repository: {_said(error)}") from None
    try:
        git.run(["rev-parse", "--quiet", "--verify", "HEAD^{commit}"], repository)
    except git.GitError:
        raise CannotMake(f"{shown} has no commit yet, so there is nothing to start from") from None


def _registered(repository: Path, place: Path) -> _Tree | None:
    listed = _git(["worktree", "list", "--porcelain", "-z"], repository)
    for entry in listed.split(b"\0\0"):
        fields = dict(line.partition(b" ")[::2] for line in entry.split(b"\0"))
        if os.path.realpath(fields.get(b"worktree", b"")) == os.fsencode(place):
            return _Tree(
                fields.get(b"branch", b"").decode("utf-8", "replace"),
                not os.path.lexists(place / ".git"),
                fields.get(b"locked", b"").decode("utf-8", "replace") == _UNFINISHED,
            )
    return None


def _add(task_id: str, place: Path, repository: Path) -> None:
    branch = f"{BRANCH}{task_id}"
    # A tree whose directory is gone would still hold the branch.
    _git(["worktree", "prune"], repository)
    if _git(["for-each-ref", "--count=1", f"refs/heads/{branch}"], repository):
        words = ["worktree", "add", "--", str(place), branch]
    else:
        words = ["worktree", "add", "--no-track", "-b", branch, "--", str(place), "HEAD"]
    _git(words, repository)


def _git(words: Sequence[str], repository: Path) -> bytes:
    try:
        return git.run(words, repository, timeout_s=CHECKOUT_S)
    except git.GitError as error:
        raise CannotMake(f"git {' '.join(words[:2])}: {_said(error)}") from None


def _said(error: git.GitError) -> str:
    """Return the line that tells the reason: git says what it does before it fails."""
    lines = [line for line in error.stderr.splitlines() if line.startswith(("fatal:", "error:"))]
    return one_line(lines[-1].partition(":")[2] if lines else str(error), 300)


@contextlib.contextmanager
def _managed(home: Path, *, make: bool = False) -> Iterator[int]:
    """Open the managed root. The home may itself be reached by a link: it is the installation's own choice."""
    top = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with (_made if make else _opened)(FOLDER, top) as folder:
            yield folder
    finally:
        os.close(top)


@contextlib.contextmanager
def _opened(name: str, parent: int) -> Iterator[int]:
    folder = os.open(name, _DIRECTORY, dir_fd=parent)
    try:
        yield folder
    finally:
        os.close(folder)


@contextlib.contextmanager
def _made(name: str, parent: int, mode: int = 0o700) -> Iterator[int]:
    with contextlib.suppress(FileExistsError):
        os.mkdir(name, mode, dir_fd=parent)
    try:
        with _opened(name, parent) as folder:
            yield folder
    except NotADirectoryError:
        # A link to a directory is none either.
        raise CannotMake(f"{name} is in the way: it is a link or not a directory") from None


@contextlib.contextmanager
def _walked(place: Path, root: Path) -> Iterator[int]:
    """Open `place`, making what is missing of it below `root`; both are real paths, so a link was put there since."""
    folder = os.open(root, _DIRECTORY)
    try:
        for name in place.relative_to(root).parts:
            with _made(name, folder, 0o777) as below:
                os.dup2(below, folder, inheritable=False)
        yield folder
    finally:
        os.close(folder)


def _keep(workspace: Path, kept: Sequence[str], keep_to: Path) -> None:
    for name in kept:
        relative = _relative(name, workspace)
        if not relative:
            continue
        try:
            content = ralph.read_inside(workspace, relative, ARTEFACT_BYTES)
        except OSError:
            continue
        target = keep_to / relative
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(content)
            fresh.replace(target)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def _names(folder: int) -> list[str]:
    with os.scandir(folder) as entries:
        return [entry.name for entry in entries]


def _empty(top: int, spare: str = "") -> None:
    """Remove all that is in a directory, links themselves and never what they point to.

    A directory's own directories are moved up to the top, so that neither depth nor descriptors run out.
    """
    while names := [name for name in _names(top) if name != spare]:
        for name in names:
            if _unlinked(name, top):
                continue
            with _entered(name, top) as folder:
                for inner in _names(folder):
                    if not _unlinked(inner, folder):
                        with _entered(inner, folder):
                            os.rename(inner, uuid.uuid4().hex, src_dir_fd=folder, dst_dir_fd=top)
            os.rmdir(name, dir_fd=top)


def _unlinked(name: str, folder: int) -> bool:
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    return True


@contextlib.contextmanager
def _entered(name: str, parent: int) -> Iterator[int]:
    """Open a directory that its owner may have closed to himself."""
    handle = os.open(name, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
    try:
        if os.fstat(handle).st_mode & stat.S_IRWXU != stat.S_IRWXU:
            Path(f"/proc/self/fd/{handle}").chmod(0o700)
        with _opened(".", handle) as folder:
            yield folder
    finally:
        os.close(handle)


def _relative(name: str, workspace: Path) -> str:
    """Return the path inside the workspace that a text names, "" when it is none or the marker."""
    path = PurePath(name)
    tops = (workspace, Path(os.path.realpath(workspace)))
    path = next((path.relative_to(top) for top in tops if path.is_relative_to(top)), path)
    if path.is_absolute() or ".." in path.parts or not path.name or path == PurePath(MARKER):
        return ""
    return str(path)


def _is_file(workspace: Path, relative: str) -> bool:
    try:
        os.close(ralph.open_inside(workspace, relative))
    except OSError:
        return False
    return True


def _why(error: OSError) -> str:
    what = "a link is in the way" if error.errno == errno.ELOOP else (error.strerror or str(error)).lower()
    name = error.filename if isinstance(error.filename, str | PurePath) else ""
    return f"{one_line(str(name), 300)}: {what}" if name else what
