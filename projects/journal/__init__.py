"""The turn journal: what was asked of an agent and what became of it, one event a line (spec/journal.md 1).

A pure leaf. It survives any crash because of the order in which a line is appended, and it is read back without trust:
whatever lies in the directory, the rest is found. Only `delete_session` takes anything away.
"""

from projects.journal.auditing import ADVICE, Finding, audit, audit_session
from projects.journal.deriving import States, TurnState, derive_states, turn_key
from projects.journal.reading import Journal, check, open_session, read_journal
from projects.journal.recovering import RECOVERED, Recovery, recover
from projects.journal.sessions import DIRECTORY, InvalidSessionError, is_session_id, path_of, session_ids
from projects.journal.writing import (
    InvalidEventError,
    SessionDeletedError,
    TooLargeError,
    UnknownStreamError,
    append_event,
    append_for_stream,
    delete_session,
    is_deleted,
)

__all__ = [
    "ADVICE",
    "DIRECTORY",
    "RECOVERED",
    "Finding",
    "InvalidEventError",
    "InvalidSessionError",
    "Journal",
    "Recovery",
    "SessionDeletedError",
    "States",
    "TooLargeError",
    "TurnState",
    "UnknownStreamError",
    "append_event",
    "append_for_stream",
    "audit",
    "audit_session",
    "check",
    "delete_session",
    "derive_states",
    "is_deleted",
    "is_session_id",
    "open_session",
    "path_of",
    "read_journal",
    "recover",
    "session_ids",
    "turn_key",
]
