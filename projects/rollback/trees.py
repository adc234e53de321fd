"""Trees without a work tree: what a commit is, what lies in it, and the tree that undoes it."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from projects import git
from projects.ralph.text import one_line
from projects.rollback.refusal import over_paths
from projects.rollback.repository import Repository

_IN_RALPH_FOLDER = (
    *(b"prd.json", b"progress.txt", b".ralph.pid", b".last-branch", b"usage.jsonl"),
    *(b"logs/", b"archive/"),
)
GITLINK = "160000"
COMMIT_BYTES = 1024 * 1024
LISTED_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class Commit:
    """A commit as it is stored, without grafts; `author` is a name, `at` aware or None."""

    sha: str
    tree: str
    parents: tuple[str, ...]
    author: str
    email: str
    at: datetime | None
    message: str

    @property
    def subject(self) -> str:
        return one_line(self.message.strip().partition("\n\n")[0], 200)


@dataclass(frozen=True)
class Entry:
    """What a tree holds at a path: `mode` as git writes it, `oid` of the blob or the commit."""

    mode: str
    oid: str


@dataclass(frozen=True)
class Change:
    """What differs between two trees at a path; None where there is nothing."""

    path: bytes
    old: Entry | None
    new: Entry | None


class Bookkeeping:
    """The paths that are the loop's own, by name; `prd` is prd.json's path, relative to the root, or None."""

    def __init__(self, prd: Path | None) -> None:
        self.names = [b".ralph/"]
        if prd is not None:
            folder = b"" if prd.parent == Path() else bytes(prd.parent) + b"/"
            self.names += [folder + name for name in _IN_RALPH_FOLDER]

    @classmethod
    def of(cls, names: Iterable[bytes]) -> "Bookkeeping":
        """Return the one with these names; folders end with a slash."""
        made = cls(None)
        made.names = list(names)
        return made

    def __contains__(self, path: bytes) -> bool:
        return any(path.startswith(name) if name.endswith(b"/") else path == name for name in self.names)

    def entries(self, repository: Repository, tree: str) -> dict[bytes, Entry]:
        """Return what a tree holds of it."""
        names = [name.rstrip(b"/").decode("utf-8", "surrogateescape") for name in self.names]
        listed = repository.git("ls-tree", "-r", "-z", "--full-tree", tree, *names)
        found = {}
        for line in listed.split(b"\0")[:-1]:
            described, _, path = line.partition(b"\t")
            mode, _, oid = described.decode().split(" ")
            if path in self:
                found[path] = Entry(mode, oid)
        return found


def read_commits(repository: Repository, *names: str) -> list[Commit]:
    """Return the commits that these full ids name. Raises git.GitError, also for more than COMMIT_BYTES."""
    asked = "".join(f"{name}\n" for name in names).encode()
    out = repository.git("cat-file", "--batch", input=asked, limit=COMMIT_BYTES)
    commits = []
    for name in names:
        header, _, out = out.partition(b"\n")
        sha, kind, size = [*header.decode().split(" "), "", ""][:3]
        if kind != "commit":
            raise git.GitError(["cat-file", name], 0, f"{name} is not a commit that is here")
        commits.append(_commit(sha, out[: int(size)]))
        out = out[int(size) + 1 :]
    return commits


def recent(repository: Repository, head: str, count: int) -> tuple[tuple[str, str], ...]:
    """Return (id, subject) of the last `count` commits from `head` on, along first parents; () when git fails."""
    plainly = ("--no-commit-header", "--encoding=UTF-8", "--format=%H %s")
    try:
        listed = repository.line("rev-list", "--first-parent", f"--max-count={count}", *plainly, head)
    except git.GitError:
        return ()
    return tuple(
        (sha, one_line(subject, 200)) for sha, _, subject in (row.partition(" ") for row in listed.split("\n"))
    )


def read_blob(repository: Repository, oid: str, limit: int) -> bytes | None:
    """Return a blob's bytes, or None when there is none of that name or it is larger than `limit`."""
    asked = repository.git("cat-file", "--batch-check=%(objecttype) %(objectsize)", input=f"{oid}\n".encode())
    kind, _, size = asked.decode().strip().partition(" ")
    if kind != "blob" or not size.isdecimal() or int(size) > limit:
        return None
    return repository.git("cat-file", "blob", oid, limit=limit)


def undoing_tree(
    repository: Repository, folder: Path, *, head: Commit, commit: Commit, parent: Commit, bookkeeping: Bookkeeping
) -> str:
    """Write the tree that HEAD has without what `commit` did to `parent`; the bookkeeping stays as HEAD has it.

    `folder` is for temporary indexes. Raises Refused (conflict).
    """
    kept = bookkeeping.entries(repository, head.tree)

    def without(tree: str, name: str) -> str:
        return _with_entries(repository, tree, folder / name, bookkeeping.entries(repository, tree), kept)

    before = without(parent.tree, "before")
    if commit.sha == head.sha:
        return before
    # merge-tree takes a base only since git 2.40, but it finds the one of two commits that have it as a parent.
    base = write_commit(repository, without(commit.tree, "base"), [], "base")
    ours = write_commit(repository, head.tree, [base], "ours")
    theirs = write_commit(repository, before, [base], "theirs")
    try:
        said = repository.git("merge-tree", "--write-tree", "--no-messages", "--name-only", "-z", ours, theirs)
    except git.GitError as error:
        if error.returncode != 1:
            raise
        paths = [path for path in error.stdout.split(b"\0")[1:] if path]
        raise over_paths("conflict", "Later commits changed the same lines", paths) from None
    return said.split(b"\0")[0].decode().strip()


def write_commit(
    repository: Repository, tree: str, parents: Iterable[str], message: str, at: datetime | None = None
) -> str:
    """Write a commit of the fixed identity and return its id."""
    at = at or datetime.fromtimestamp(0, UTC)
    stamp = f"{git.NAME} <{git.EMAIL}> {int(at.timestamp())} +0000"
    lines = [f"tree {tree}", *(f"parent {parent}" for parent in parents), f"author {stamp}", f"committer {stamp}"]
    raw = "\n".join([*lines, "", message]).encode()
    return repository.git("hash-object", "-t", "commit", "-w", "--stdin", input=raw).decode().strip()


def changes(repository: Repository, old: str, new: str) -> list[Change]:
    """Return what differs between two trees, renames not detected, sorted by path."""
    plainly = ("--no-renames", "--no-ext-diff", "--no-abbrev")
    raw = repository.git("diff-tree", "-r", "-z", "--raw", *plainly, old, new, limit=LISTED_BYTES)
    fields = raw.split(b"\0")
    found = []
    for described, path in zip(fields[0::2], fields[1::2], strict=False):
        old_mode, new_mode, old_oid, new_oid, status = described.decode().lstrip(":").split(" ")
        before = None if status == "A" else Entry(old_mode, old_oid)
        after = None if status == "D" else Entry(new_mode, new_oid)
        found.append(Change(path, before, after))
    return sorted(found, key=lambda change: change.path)


def _with_entries(
    repository: Repository, tree: str, index: Path, theirs: dict[bytes, Entry], ours: dict[bytes, Entry]
) -> str:
    """Return a tree with the entries `theirs` taken out and `ours` put in."""
    if theirs == ours:
        return tree
    repository.git("read-tree", tree, index=index)
    nothing = "0" * len(tree)
    lines = [f"0 {nothing}\t".encode() + path for path in theirs]
    lines += [f"{entry.mode} {entry.oid}\t".encode() + path for path, entry in ours.items()]
    repository.git("update-index", "-z", "--index-info", index=index, input=b"\0".join(lines) + b"\0")
    return repository.line("write-tree", index=index)


def _commit(sha: str, raw: bytes) -> Commit:
    headers, _, message = raw.partition(b"\n\n")
    tree, parents, author, encoding = "", [], b"", "utf-8"
    for line in headers.split(b"\n"):
        key, _, value = line.partition(b" ")
        match key:
            case b"tree":
                tree = value.decode()
            case b"parent":
                parents.append(value.decode())
            case b"author":
                author = value
            case b"encoding":
                encoding = value.decode("ascii", "replace")
    name, _, rest = author.rpartition(b" <")
    email, _, stamp = rest.rpartition(b"> ")
    return Commit(
        sha=sha,
        tree=tree,
        parents=tuple(parents),
        author=one_line(_decoded(name, encoding), 200),
        email=one_line(_decoded(email, encoding), 200),
        at=_at(stamp),
        message=_decoded(message, encoding),
    )


def _decoded(text: bytes, encoding: str) -> str:
    try:
        return text.decode(encoding, "replace")
    except (LookupError, ValueError):
        return text.decode("utf-8", "replace")


def _at(stamp: bytes) -> datetime | None:
    try:
        seconds, zone = stamp.decode().split(" ")
        offset = timedelta(hours=int(zone[1:3]), minutes=int(zone[3:5]))
        return datetime.fromtimestamp(int(seconds), timezone(-offset if zone[0] == "-" else offset))
    except (ValueError, OverflowError, OSError, IndexError):
        return None
