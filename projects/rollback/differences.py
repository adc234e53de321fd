"""What a rollback changes, as a page shows it."""

from typing import Any

from projects.rollback.plan import FileChange
from projects.rollback.refusal import shown_path
from projects.rollback.repository import Repository
from projects.rollback.trees import LISTED_BYTES

MAX_FILES = 2000
MAX_STAT = 20_000
_DRAWN_BYTES = 1024 * 1024

_PLAIN = ("--no-ext-diff", "--no-textconv", "--no-color")


def shown(repository: Repository, old: str, new: str) -> dict[str, Any]:
    """Return the fields of a Preview that tell what differs between two trees: files, sums, git's own `--stat`."""
    listed = repository.git("diff-tree", "-r", "-z", "-M", "--raw", "--numstat", *_PLAIN, old, new, limit=LISTED_BYTES)
    files = _files(listed)
    drawn = ("--stat=100,80", "--stat-count=200")
    stat = repository.git("diff-tree", "-r", "-M", *drawn, *_PLAIN, old, new, limit=_DRAWN_BYTES)
    return {
        "files": tuple(files[:MAX_FILES]),
        "files_total": len(files),
        "added": sum(file.added or 0 for file in files),
        "removed": sum(file.removed or 0 for file in files),
        "stat": stat[:MAX_STAT].decode("utf-8", "replace"),
    }


def _files(listed: bytes) -> list[FileChange]:
    """Read `--raw --numstat -z`: first a status for each file, then its lines; a rename has two paths in both."""
    statuses: dict[bytes, str] = {}
    files = []
    fields = iter(listed.split(b"\0")[:-1])
    for field in fields:
        if field.startswith(b":"):
            status = field.rpartition(b" ")[2][:1].decode()
            path = next(fields)
            statuses[next(fields) if status in {"R", "C"} else path] = status
            continue
        added, removed, path = field.split(b"\t", 2)
        old_path = b""
        if not path:
            old_path, path = next(fields), next(fields)
        counts = [None if count == b"-" else int(count) for count in (added, removed)]
        files.append(FileChange(shown_path(path), shown_path(old_path), statuses.get(path, "M"), *counts))
    return files
