"""Make the directory that a task's worker runs in.

Rules: spec/kanban.md, section 3.
"""

import contextlib
import errno
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath

from kanban.workspaces.inside import (
    DIRECTORY,
    FOLDER,
    MARKER,
    TASK_ID,
    CannotMake,
    empty,
    made,
    managed,
    names_in,
    owner_of,
)
from projects import git
from projects.ralph.text import one_line

BRANCH = "andon/"
# A claim that has not spawned after 60 s is taken back.
CHECKOUT_S = 50

# `git worktree add` locks with this reason what it has not finished.
_UNFINISHED = "initializing"


def make(kind: str, *, task_id: str, home: Path, path: str, roots: Sequence[Path], repository: Path | None) -> Path:
    """Make the directory that a task's worker runs in, or find the one of an earlier attempt, and return it.

    `scratch`: `<home>/workspaces/<task_id>`, 0700, with a marker file; `path` is ignored.
    `dir`: `path`, absolute and really inside one of `roots`; made with its parents when it is missing.
    `worktree`: a work tree of `repository` on the branch `andon/<task_id>`, which starts at its HEAD unless there is
    one; at `path` under the rule of `dir`, or at the place of `scratch` when `path` is "".

    May be called again after a crash at any point. Raises CannotMake.
    """
    if not TASK_ID.fullmatch(task_id):
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


def _scratch(task_id: str, home: Path) -> Path:
    place = home / FOLDER / task_id
    with managed(home, make=True) as root, made(task_id, root) as folder:
        owner = owner_of(folder)
        if owner != task_id:
            # A crash may have come before the marker, or in the middle of it; then nothing else is there.
            is_half_made = not set(names_in(folder)) - {MARKER} and task_id.startswith(owner or "")
            if not is_half_made:
                raise CannotMake(f"{place} is there already, and it has no marker of this task ({MARKER})")
            _write_mark(folder, task_id)
        os.fchmod(folder, 0o700)
    return place


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
        with managed(home, make=True):
            place = Path(os.path.realpath(home)) / FOLDER / task_id
            root = place.parent
    with _walked(place, root) as folder:
        tree = _registered(repository, place)
        if tree and tree.is_unfinished:
            # Only git was here: it was killed before any worker was started.
            empty(folder)
            _git(["worktree", "unlock", str(place)], repository)
        elif tree and not tree.is_lost:
            if path and tree.branch != f"refs/heads/{BRANCH}{task_id}":
                raise CannotMake(f"{place} is a worktree of something else")
            return place if path else home / FOLDER / task_id
        if names_in(folder):
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
def _walked(place: Path, root: Path) -> Iterator[int]:
    """Open `place`, making what is missing of it below `root`; both are real paths, so a link was put there since."""
    folder = os.open(root, DIRECTORY)
    try:
        for name in place.relative_to(root).parts:
            with made(name, folder, 0o777) as below:
                os.dup2(below, folder, inheritable=False)
        yield folder
    finally:
        os.close(folder)


def _why(error: OSError) -> str:
    what = "a link is in the way" if error.errno == errno.ELOOP else (error.strerror or str(error)).lower()
    name = error.filename if isinstance(error.filename, str | PurePath) else ""
    return f"{one_line(str(name), 300)}: {what}" if name else what
