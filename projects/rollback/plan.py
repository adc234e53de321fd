"""What is asked, what a page shows before it is done, and what is written down so that a crash can be undone."""

import os
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from projects.rollback.refusal import Refused


@dataclass(frozen=True)
class Wanted:
    """What is asked: hexadecimal ids, whole or shortened, "" = HEAD as it is; `mainline` counts parents from 1."""

    expected_head: str = ""
    commit: str = ""
    story: str = ""
    mainline: int | None = None


@dataclass(frozen=True)
class FileChange:
    """A file that a rollback changes: `status` A M D R T; lines `added` and `removed`, None = binary.

    Paths are for a person: what is not UTF-8 is written `\\xNN`. `old_path` is a rename's, else "".
    """

    path: str
    old_path: str
    status: str
    added: int | None
    removed: int | None


@dataclass(frozen=True)
class Preview:
    """What a page shows, also when it cannot be done; an empty field could not be told.

    `commit` is what is undone; `subject`, `author`, `at` (aware) and `parents` are its own. `files` is capped,
    `files_total` is not; `added` and `removed` are lines in all. `blockers` are in the order of the rules. `recent` are
    the last commits of the branch, newest first, as (id, subject): another one to choose.
    """

    head: str = ""
    branch: str = ""
    commit: str = ""
    parents: tuple[str, ...] = ()
    subject: str = ""
    author: str = ""
    at: datetime | None = None
    story: str = ""
    story_title: str = ""
    candidates: tuple[str, ...] = ()
    files: tuple[FileChange, ...] = ()
    files_total: int = 0
    added: int = 0
    removed: int = 0
    stat: str = ""
    pushed: bool = False
    upstreams: tuple[str, ...] = ()
    blockers: tuple[Refused, ...] = ()
    recent: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Plan:
    """What is about to be done. `branch` is a full ref name, `head` and `new` are commits, `commit` is undone.

    `paths` are all that is written or removed, as `os.fsdecode` gives them (surrogates for what is not UTF-8).
    """

    head: str
    new: str
    branch: str
    commit: str
    subject: str
    story: str
    message: str
    backup_ref: str
    paths: tuple[str, ...]
    bookkeeping: tuple[str, ...]

    @property
    def raw_paths(self) -> list[bytes]:
        return [os.fsencode(path) for path in self.paths]

    def to_json(self) -> dict[str, Any]:
        """Return a plain dict; paths are percent-encoded bytes, so that no surrogate is in it."""
        told = {**asdict(self)}
        for name in ("paths", "bookkeeping"):
            told[name] = [quote(os.fsencode(path), safe="/ ") for path in told[name]]
        return told

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> "Plan":
        """Return the plan that `to_json` has written."""
        paths = {name: tuple(os.fsdecode(unquote_to_bytes(p)) for p in told[name]) for name in ("paths", "bookkeeping")}
        return cls(**{**told, **paths})
