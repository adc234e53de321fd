"""What the state of a repository has against a rollback; every check raises Refused or is content."""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from projects.rollback import reading
from projects.rollback.refusal import Refused, over_paths
from projects.rollback.repository import Repository
from projects.rollback.trees import GITLINK, Bookkeeping, Change
from projects.rollback.worktree import look

_OPERATIONS = {
    "rebase-merge": "A rebase",
    "rebase-apply": "A rebase or an am",
    "MERGE_HEAD": "A merge",
    "CHERRY_PICK_HEAD": "A cherry-pick",
    "REVERT_HEAD": "A revert",
    "sequencer": "A cherry-pick or a revert of several commits",
    "BISECT_LOG": "A bisect",
    "BISECT_START": "A bisect",
}


def refuse_detached(repository: Repository, branch: str) -> None:
    if not branch:
        raise Refused("detached-head", "HEAD is on no branch.")


def refuse_operation(repository: Repository, branch: str) -> None:
    for name, what in _OPERATIONS.items():
        if (repository.git_dir / name).exists():
            raise Refused("operation-in-progress", f"{what} is in progress: finish or abort it first.")


def refuse_branch_elsewhere(repository: Repository, branch: str) -> None:
    """Refuse a branch that another work tree has checked out: that tree would stand still under a moved HEAD."""
    trees = [] if repository.is_set("core.bare") else [repository.common_dir]
    trees += (repository.common_dir / "worktrees").glob("*")
    for tree in trees:
        try:
            if tree != repository.git_dir and _branch_of(tree) == f"refs/heads/{branch}".encode():
                raise Refused("branch-elsewhere", f"Another work tree has the branch {branch} checked out too.")
        except OSError:
            continue


def refuse_locked_index(repository: Repository, branch: str) -> None:
    if repository.index_lock.exists():
        raise index_locked()


def refuse_unusual(repository: Repository, branch: str) -> None:
    if repository.shallow:
        raise Refused("shallow-clone", "The clone is shallow: what was before may not be here.")
    promised = [
        n for n in repository.config if n.startswith("remote.") and n.endswith((".promisor", ".partialclonefilter"))
    ]
    if "extensions.partialclone" in repository.config or promised:
        raise Refused("partial-clone", "The clone is partial: what was before may not be here.")
    if repository.is_set("core.sparsecheckout"):
        raise Refused("sparse-checkout", "The checkout is sparse: not every file that comes back belongs on disk.")


CHECKS: tuple[Callable[[Repository, str], None], ...] = (
    refuse_detached,
    refuse_operation,
    refuse_branch_elsewhere,
    refuse_locked_index,
    refuse_unusual,
)


def index_locked() -> Refused:
    return Refused("index-locked", "Another git is at work here, or has died at it: try again.")


def refuse_filters(repository: Repository, folder: Path, tree: str, changes: Sequence[Change]) -> None:
    """Refuse paths that a filter program (LFS, encryption) stands between: none is ever run, so none can be written."""
    index = copy_index(repository, folder / "filters")
    new = folder / "new"
    repository.git("read-tree", tree, index=new)
    paths = b"".join(change.path + b"\0" for change in changes)
    ask = ("check-attr", "-z", "--stdin")
    said = repository.git(*ask, "filter", index=index, input=paths)
    said += repository.git(*ask, "--cached", "filter", index=new, input=paths)
    fields = said.split(b"\0")
    filtered = [
        p for p, value in zip(fields[0::3], fields[2::3], strict=False) if value not in {b"unspecified", b"unset"}
    ]
    if filtered:
        raise over_paths("filter-change", "A filter program (such as LFS) would have to be run for them", filtered)


def refuse_dirt(repository: Repository, folder: Path, bookkeeping: Bookkeeping, changes: Sequence[Change]) -> None:
    """Refuse when a tracked path beside the bookkeeping is changed or staged.

    What would be written or removed is compared byte by byte, whatever the index believes. Raises Refused
    (hidden-changes, dirty-tree).
    """
    index = copy_index(repository, folder / "dirt")
    dirty = _dirty(repository, index, bookkeeping)
    odd = [
        change
        for change in changes
        if change.old and change.old.mode != GITLINK and change.path not in dirty and not _is_as_in(repository, change)
    ]
    if odd:
        # Line ends and encodings may differ lawfully; without what it believes of them, git reads the files again.
        entries = b"".join(f"{c.old.mode} {c.old.oid}\t".encode() + c.path + b"\0" for c in odd if c.old)
        repository.git("update-index", "-z", "--index-info", index=index, input=entries)
        dirty |= _dirty(repository, index, bookkeeping)
    if dirty:
        raise over_paths("dirty-tree", "Not committed", dirty)
    written = {change.path for change in changes if change.old}
    hidden = _hidden(repository, folder, written) if written else []
    if hidden:
        raise over_paths("hidden-changes", "git was told not to look at them (assume-unchanged, skip-worktree)", hidden)


def copy_index(repository: Repository, to: Path) -> Path:
    """Copy the index, with its time: git tells by it which entries to read again. Raises Refused (unsafe-file)."""
    with suppress(FileNotFoundError):
        reading.copy(repository.index, to, reading.INDEX_BYTES)
    return to


def algorithm(oid: str) -> str:
    return "sha256" if len(oid) == 64 else "sha1"


def _branch_of(tree: Path) -> bytes:
    """Return the ref that a work tree's HEAD names, b"" when it is detached; HEAD was a link once."""
    head = tree / "HEAD"
    if head.is_symlink():
        return os.fsencode(head.readlink())
    named = reading.read(head, 10_000).strip()
    return named.removeprefix(b"ref: ") if named.startswith(b"ref: ") else b""


def _dirty(repository: Repository, index: Path, bookkeeping: Bookkeeping) -> set[bytes]:
    # A submodule's own files are asked with its own configuration; where it stands is enough.
    quiet = ("--untracked-files=no", "--no-renames", "--ignore-submodules=dirty", "--no-ahead-behind")
    listed = repository.git("status", "--porcelain=v2", "-z", *quiet, index=index)
    return set(_reported(listed.split(b"\0"), bookkeeping))


def _reported(lines: Iterable[bytes], bookkeeping: Bookkeeping) -> Iterable[bytes]:
    for line in lines:
        if line.startswith(b"u "):
            yield line.split(b" ", 10)[10]
        elif line.startswith(b"1 ") and (path := line.split(b" ", 8)[8]) not in bookkeeping:
            yield path


def _is_as_in(repository: Repository, change: Change) -> bool:
    if change.old is None:
        return False
    found = look(repository.root, change.path, algorithm=algorithm(change.old.oid))
    return found is not None and found.has_content_of(change.old)


def _hidden(repository: Repository, folder: Path, paths: set[bytes]) -> list[bytes]:
    index = copy_index(repository, folder / "hidden")
    listed = repository.git("ls-files", "-v", "-z", index=index).split(b"\0")
    return [line[2:] for line in listed if (line[:1].islower() or line[:1] == b"S") and line[2:] in paths]
