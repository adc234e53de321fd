"""Where journals lie on this node, and how one is opened without being led astray."""

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from django.conf import settings

from projects import history, journal, ralph
from projects.journal.sessions import SUFFIX
from projects.models import Project
from projects.states import JournalFamily


@dataclass(frozen=True, slots=True)
class Place:
    """One path that may hold a journal: below `root`, of a session or of a project's loop."""

    family: JournalFamily
    root: str
    relpath: str
    name: str

    @property
    def key(self) -> tuple[str, str]:
        return self.root, self.relpath

    @property
    def path(self) -> Path:
        return Path(self.root) / self.relpath

    def open(self) -> int:
        """Open it for reading; the caller closes the descriptor. Raises FileNotFoundError and OSError."""
        if self.family == JournalFamily.TURNS:
            return journal.open_session(Path(self.root), self.name)
        return ralph.open_inside(Path(self.root), self.relpath)

    def stat(self) -> os.stat_result:
        """Return what the kernel says of it, of a link the link. Raises FileNotFoundError and OSError."""
        try:
            return self.path.lstat()
        except NotADirectoryError:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.relpath) from None


def session_place(root: Path, session_id: str) -> Place:
    """Return the place of a session. Raises journal.InvalidSessionError."""
    relpath = str(journal.path_of(root, session_id).relative_to(root))
    return Place(JournalFamily.TURNS, str(root), relpath, session_id)


def history_place(path: str, slug: str) -> Place:
    """Return the place of a loop's history in the project at `path`."""
    return Place(JournalFamily.HISTORY, path, str(history.HISTORY), slug)


def found() -> Iterator[Place]:
    """Yield the places of this node where a file lies now."""
    for root in settings.ANDON_JOURNAL_ROOTS:
        for session_id in journal.session_ids(root):
            yield session_place(root, session_id)
    projects = Project.objects.filter(node=settings.ANDON_NODE, missing_since=None)
    for path, slug in projects.values_list("path", "slug"):
        place = history_place(path, slug)
        if os.path.lexists(place.path):
            yield place


def place_of(path: str) -> Place | None:
    """Return the place that a path which has changed is, None when it is no journal's."""
    name = Path(path)
    for root in settings.ANDON_JOURNAL_ROOTS:
        session_id = name.name.removesuffix(SUFFIX)
        if name.parent == root / journal.DIRECTORY and name.suffix == SUFFIX and journal.is_session_id(session_id):
            return session_place(root, session_id)
    if not path.endswith(f"/{history.HISTORY}"):
        return None
    root = name.parent.parent
    slug = Project.objects.filter(node=settings.ANDON_NODE, path=str(root)).values_list("slug", flat=True).first()
    return history_place(str(root), slug) if slug else None


def directories() -> set[str]:
    """Return the directories to watch for changes of turn journals, those that exist."""
    folders = (root / journal.DIRECTORY for root in settings.ANDON_JOURNAL_ROOTS)
    return {str(folder) for folder in folders if _is_directory(folder)}


def _is_directory(path: Path) -> bool:
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except OSError:
        return False
