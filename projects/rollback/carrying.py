"""Touch the tree, last of all, and take it back when that was cut short.

`.git/index.lock` is held from the first check to the moved HEAD. It is a second name (hard link) of a file of ours,
`.git/andon-<start of the new commit>.lock`, whose text names the new commit: so a lock that a crash has left is known
to be ours. git inherits a flock on that file: while one that we started lives on without us, nobody resumes.
"""

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from projects import git
from projects.rollback import reading
from projects.rollback.plan import Plan
from projects.rollback.refusal import Refused, over_paths
from projects.rollback.repository import Repository, open_repository
from projects.rollback.restoring import FSYNC_EACH, put_back, put_index_back
from projects.rollback.saving import Manifest, save, save_index
from projects.rollback.states import CHECKS, copy_index, index_locked, refuse_dirt, refuse_locked_index
from projects.rollback.trees import Bookkeeping, Change, changes
from projects.rollback.worktree import fsync_folder, in_the_way, look, parent, write_new

__all__ = ["carry_out", "ignore", "resume", "save", "undo"]

# Longer than git may run: then it is killed, or has ended.
ORPHAN_ENDS_WITHIN_S = 45
_BEGUN = "begun"


def ignore(_step: str) -> None:
    """Take no notice of a step."""


def carry_out(
    root: Path, plan: Plan, saved: Path, *, step: Callable[[str], None] = ignore, scratch: Path | None = None
) -> None:
    """Bring index, tree and HEAD to the new commit; `save` has been called; `scratch` as in `preview`.

    Calls `step` after each part: locked checked copied begun tree index head released. Raises Refused before anything
    is touched; after that git.GitError or OSError, and `resume` must be called.
    """
    repository = open_repository(root)
    with _locked(repository, plan, saved) as lock:
        step("locked")
        if _head(repository) != plan.head:
            raise Refused("head-moved", "HEAD has moved since it was looked at.", {"head": _head(repository)})
        found = changes(repository, plan.head, plan.new)
        _check(repository, plan, Manifest.load(saved), found, scratch)
        step("checked")
        save_index(repository, saved)
        copy = copy_index(repository, _ours(repository, plan, "index"))
        step("copied")
        write_new(saved / _BEGUN, b"")
        fsync_folder(saved)
        step("begun")
        with suppress(git.GitError):
            # It ends with 1 when something is changed: the loop's own files are.
            repository.git("update-index", "-q", "--refresh", index=copy, keep=[lock])
        repository.git("read-tree", "-m", "-u", plan.head, plan.new, index=copy, keep=[lock])
        _verify(repository, copy, found)
        _make_durable(root, copy, found)
        step("tree")
        copy.rename(repository.index)
        fsync_folder(repository.git_dir)
        step("index")
        message = f'andon: roll back "{plan.subject}"'
        repository.git("update-ref", "-m", message, "HEAD", plan.new, plan.head, keep=[lock])
        step("head")
    step("released")


def undo(root: Path, plan: Plan, saved: Path) -> None:
    """Bring HEAD, index and tree back to what they were when `save` was called.

    What lies at a path concerned and is neither from before nor from the rollback is kept in `saved/found`. Raises
    Refused (head-moved: somebody worked on; index-locked), git.GitError and OSError; then call it again.
    """
    repository = open_repository(root)
    with _locked(repository, plan, saved):
        at = _head(repository)
        if at == plan.new:
            repository.git("update-ref", "-m", "andon: take a rollback back", "HEAD", plan.head, plan.new)
        elif at != plan.head:
            raise Refused("head-moved", "HEAD has moved since.", {"head": at})
        _take_back(repository, plan, saved)


def resume(root: Path, plan: Plan, saved: Path) -> Literal["carried-out", "undone", "moved"]:
    """Finish what a crash or an error has left; any number of times.

    HEAD is the new commit, or somebody has worked on from it: "carried-out". HEAD is the old one: everything is written
    back, "undone". Anything else: somebody worked on elsewhere, only our own lock is removed, "moved". Raises Refused
    (index-locked: another git, or one that we started and that has not ended; unsafe-file), git.GitError and OSError;
    then call it again.
    """
    repository = open_repository(root)
    with _locked(repository, plan, saved):
        _remove_ref_locks(repository, plan)
        at = _head(repository)
        if at == plan.new:
            return "carried-out"
        if at != plan.head:
            return "carried-out" if _is_behind(repository, plan.new, at) else "moved"
        _take_back(repository, plan, saved)
    return "undone"


def _take_back(repository: Repository, plan: Plan, saved: Path) -> None:
    if (saved / _BEGUN).exists():
        put_back(repository, plan, saved)
        put_index_back(repository, saved, _ours(repository, plan, "restored"))
        (saved / _BEGUN).unlink()
        fsync_folder(saved)
    if repository.git("for-each-ref", plan.backup_ref):
        repository.git("update-ref", "-d", plan.backup_ref, plan.head)


@contextmanager
def _locked(repository: Repository, plan: Plan, saved: Path) -> Iterator[int]:
    """Hold `.git/index.lock`, ours from a crash or new, and give the descriptor that git has to inherit.

    After an error once the tree was begun it stays, so that nobody works on half a tree before `resume`.
    """
    ours = _ours(repository, plan, "lock")
    descriptor = _alone(ours, f"andon {plan.new}\n".encode())
    try:
        try:
            os.link(ours, repository.index_lock)
        except FileNotFoundError:
            # Whoever we waited for has finished and removed it.
            raise index_locked() from None
        except FileExistsError:
            if not os.path.samestat(repository.index_lock.lstat(), os.fstat(descriptor)):
                ours.unlink(missing_ok=True)
                raise index_locked() from None
        try:
            yield descriptor
        except BaseException:
            if not (saved / _BEGUN).exists():
                _release(repository, plan)
            raise
        _release(repository, plan)
    finally:
        os.close(descriptor)


def _alone(ours: Path, text: bytes) -> int:
    """Open our lock file and wait until no git that was started with it lives. Raises Refused."""
    deadline = time.monotonic() + ORPHAN_ENDS_WITHIN_S
    descriptor = os.open(ours, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o600)
    try:
        reading.plain(descriptor, ours)
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise Refused("index-locked", "A git that was started here has not ended yet.") from None
                time.sleep(0.05)
        os.pwrite(descriptor, text, 0)
        os.fsync(descriptor)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _release(repository: Repository, plan: Plan) -> None:
    """Remove our files; the lock file last, since it tells whose index.lock is."""
    for name in ("index", "index.lock", "restored"):
        _ours(repository, plan, name).unlink(missing_ok=True)
    repository.index_lock.unlink(missing_ok=True)
    _ours(repository, plan, "lock").unlink(missing_ok=True)


def _ours(repository: Repository, plan: Plan, name: str) -> Path:
    return repository.git_dir / f"andon-{plan.new[:16]}.{name}"


def _head(repository: Repository) -> str:
    return repository.line("rev-parse", "--verify", "HEAD^{commit}")


def _is_behind(repository: Repository, commit: str, at: str) -> bool:
    """Return whether a commit is in the history of another; one that is not here any more is not."""
    try:
        repository.git("rev-parse", "--verify", "--quiet", f"{commit}^{{commit}}")
        repository.git("merge-base", "--is-ancestor", commit, at)
    except git.GitError as error:
        if error.returncode != 1:
            raise
        return False
    return True


def _remove_ref_locks(repository: Repository, plan: Plan) -> None:
    """Remove what a killed update-ref leaves: a lock that names the new commit, which only we know, is ours."""
    lock = repository.common_dir / f"{plan.branch}.lock"
    try:
        ours = reading.read(lock, 1000).strip() == plan.new.encode()
    except (OSError, Refused):
        return
    head = repository.git_dir / "HEAD.lock"
    if ours:
        with suppress(FileNotFoundError):
            if not head.lstat().st_size:
                head.unlink()
        lock.unlink(missing_ok=True)


def _check(repository: Repository, plan: Plan, manifest: Manifest, found: list[Change], scratch: Path | None) -> None:
    """Refuse what has come about since the plan was made."""
    branch = repository.line("rev-parse", "--symbolic-full-name", "HEAD").removeprefix("refs/heads/")
    if f"refs/heads/{branch}" != plan.branch:
        raise Refused("head-moved", f"HEAD is on {branch} now.", {"head": plan.head})
    for check in CHECKS:
        if check is not refuse_locked_index:
            check(repository, branch)
    names = Bookkeeping.of(os.fsencode(name) for name in plan.bookkeeping)
    with repository.aside(scratch) as (aside, folder):
        refuse_dirt(aside, folder, names, found)
    moved = manifest.moved(repository.root)
    if moved:
        raise over_paths("dirty-tree", "Changed a moment ago", moved)
    going = {change.path for change in found if change.new is None}
    blocked = in_the_way(repository.root, [change.path for change in found if change.old is None], going)
    if blocked:
        raise over_paths("would-overwrite", "Files lie where others would come back", blocked)


def _verify(repository: Repository, index: Path, found: list[Change]) -> None:
    """Raise OSError unless the tree is as the new index says: git only warns of what it cannot remove."""
    different = set(
        repository.git("diff-files", "-z", "--name-only", "--ignore-submodules=all", index=index).split(b"\0")
    )
    added = [change.path for change in found if change.new]
    for change in found:
        if change.path in different:
            raise OSError(f"git has not written {change.path!r}")
        is_folder_now = any(path.startswith(change.path + b"/") for path in added) if change.new is None else False
        if change.new is None and not is_folder_now and look(repository.root, change.path, content=False):
            raise OSError(f"git has not removed {change.path!r}")


def _make_durable(root: Path, index: Path, found: list[Change]) -> None:
    with reading.opened(index, reading.INDEX_BYTES) as (descriptor, _):
        os.fsync(descriptor)
    if len(found) > FSYNC_EACH:
        os.sync()
        return
    for change in found:
        with suppress(FileNotFoundError, NotADirectoryError), parent(root, change.path) as (directory, name):
            if change.new and change.new.mode != "120000":
                descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
                os.fsync(descriptor)
                os.close(descriptor)
            os.fsync(directory)
