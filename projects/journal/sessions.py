"""Where a session's file lies, and which names are legal."""

import os
import re
from pathlib import Path

DIRECTORY = "_turn_journal"
SUFFIX = ".jsonl"
# Says that a session was deleted, so that a late append does not bring it back.
DELETED = ".deleted"
_SESSION = re.compile(r"(?!\.)[A-Za-z0-9_.-]{1,128}")


class InvalidSessionError(ValueError):
    """The session id is not `[A-Za-z0-9_.-]{1,128}` without a dot in front; nothing is stripped."""


def is_session_id(text: object) -> bool:
    """Say whether a value is a legal session id."""
    return isinstance(text, str) and _SESSION.fullmatch(text) is not None


def path_of(root: Path, session_id: str) -> Path:
    """Return the file of a session. Raises InvalidSessionError."""
    if not is_session_id(session_id):
        raise InvalidSessionError("A session id is 1 to 128 of A-Z a-z 0-9 _ . - and begins with no dot.")
    return root / DIRECTORY / f"{session_id}{SUFFIX}"


def session_ids(root: Path) -> list[str]:
    """Return the legal session ids under a root, sorted; whether their files can be read is not asked."""
    return sorted(name.removesuffix(SUFFIX) for name in _names(root) if is_session_id(name.removesuffix(SUFFIX)))


def illegal_names(root: Path) -> list[str]:
    """Return the names of journal files, sorted, that no session can have."""
    return sorted(name for name in _names(root) if not is_session_id(name.removesuffix(SUFFIX)))


def _names(root: Path) -> list[str]:
    try:
        with os.scandir(root / DIRECTORY) as entries:
            return [entry.name for entry in entries if entry.name.endswith(SUFFIX)]
    except OSError:
        return []
