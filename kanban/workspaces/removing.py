"""Remove a scratch workspace whose task needs it no more; what its result names is kept first.

It leaves its task's reach in one step, which may stand in the transaction that decides it: a worker that comes
afterwards finds no workspace and makes another. All else can be done later, again and again.
"""

import contextlib
import itertools
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath

from kanban.workspaces.inside import FOLDER, MARKER, TASK_ID, empty, managed, names_in, opened, owner_of
from projects import ralph

# Of one file that outlives its workspace.
ARTEFACT_BYTES = 10 * 1024 * 1024
MOST_ARTEFACTS = 50
# What of a result is looked through for the names of files.
RESULT_CHARACTERS = 200_000
MOST_WORDS = 2000

_WORD = re.compile(r"[\w./@+-]{1,500}")
# No id of a task begins with a dot.
_ASIDE = re.compile(rf"\.({TASK_ID.pattern})\.[0-9a-f]{{32}}")


def is_ours(task_id: str, *, home: Path) -> bool:
    """Say whether a task has a scratch workspace that may be removed.

    Ours is a directory directly below the managed root that holds the marker of this task; anything else is left
    alone.
    """
    with _ours(task_id, home) as root:
        return root is not None


def keep(task_id: str, *, home: Path, kept: Sequence[str], to: Path) -> None:
    """Copy the files named in `kept` (relative paths) to the same names below `to`.

    Only regular ones inside a workspace of ours, of at most 10 MB. Raises OSError when a copy could not be written.
    """
    workspace = home / FOLDER / task_id
    for name in kept if is_ours(task_id, home=home) else ():
        relative = _relative(name, workspace)
        if not relative:
            continue
        try:
            content = ralph.read_inside(workspace, relative, ARTEFACT_BYTES)
        except OSError:
            continue
        target = to / relative
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fresh = target.with_name(f".{uuid.uuid4().hex}")
        try:
            with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
                file.write(content)
            fresh.replace(target)
        except OSError:
            fresh.unlink(missing_ok=True)
            raise


def set_aside(task_id: str, *, home: Path) -> bool:
    """Take a workspace out of its task's reach, to be cleared; says whether there was one of ours. Raises OSError."""
    with _ours(task_id, home) as root:
        if root is None:
            return False
        os.rename(task_id, f".{task_id}.{uuid.uuid4().hex}", src_dir_fd=root, dst_dir_fd=root)
    return True


def aside(*, home: Path) -> list[str]:
    """Return the names of what was set aside and is still there."""
    try:
        with managed(home) as root:
            return sorted(name for name in names_in(root) if _ASIDE.fullmatch(name))
    except OSError:
        return []


def clear(name: str, *, home: Path) -> None:
    """Remove what was set aside. The marker goes last, so what a crash leaves is still ours.

    Raises OSError for what would not go, and for what is not ours and not empty.
    """
    found = _ASIDE.fullmatch(name)
    if found is None:
        raise ValueError(f"{name!r} was not set aside")
    with managed(home) as root:
        with opened(name, root) as folder:
            if owner_of(folder) == found[1]:
                empty(folder, spare=MARKER)
                os.unlink(MARKER, dir_fd=folder)
        os.rmdir(name, dir_fd=root)


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


@contextlib.contextmanager
def _ours(task_id: str, home: Path) -> Iterator[int | None]:
    """Open the managed root when a task has a workspace of ours in it, else give None."""
    with contextlib.ExitStack() as stack:
        root = None
        if TASK_ID.fullmatch(task_id):
            with contextlib.suppress(OSError):
                opened_root = stack.enter_context(managed(home))
                folder = stack.enter_context(opened(task_id, opened_root))
                root = opened_root if owner_of(folder) == task_id else None
        yield root
