"""What is odd in the journals, each with what to do about it. One bad file never ends the audit."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from projects.journal.deriving import TurnState, fold, good_time, turn_key
from projects.journal.reading import open_session, read_open
from projects.journal.sessions import illegal_names, session_ids
from projects.lines import Problem, escaped

# A tail that changes still is being written.
QUIET_S = 60.0
# Clocks differ a little.
SLACK_S = 300.0
MAX_OF_A_KIND = 100
ADVICE = {
    "pending_turn": "If its agent is gone, recover marks it interrupted; what was asked is kept.",
    "interrupted_turn": "Nobody answered this turn. Ask again if the answer is still wanted.",
    "malformed_event": "Look at the line. It is kept as it is and counts for nothing; find out which program wrote it.",
    "torn_tail": "A writer died in the middle of a line. The next append moves it aside; nothing else is lost.",
    "double_terminal": "The first end counts. Find out why two programs ended the same turn.",
    "orphan_turn": "Its submitted event is missing: what was asked is not known. Look in the agent's own log.",
    "reopened_after_terminal": "Something went on with this turn after its end. The end counts; see what came later.",
    "foreign_session_id": "The line names another session than its file, for which it counts. Find who mixed them up.",
    "bad_timestamp": "Its created_at is no time and counts as 0. Mend the program that wrote it.",
    "future_timestamp": "The clock of whoever wrote it is ahead. Set it right; the order of lines is not affected.",
    "unreadable_file": "Make it a regular file that Andon's user can read, or move it away.",
    "illegal_filename": "No session can have this name. Move the file out of the journal's directory.",
    "journal_rewritten": "The file is not the one that was read before. What was read then is kept; find who did it.",
}

Finding = dict[str, Any]


class Audited(NamedTuple):
    """The findings of one session and its turns, of which some may still be pending at another time."""

    findings: list[Finding]
    turns: dict[str, TurnState]


def audit(root: Path, *, now: float) -> list[Finding]:
    """Return the findings of all sessions under a root: {session_id, turn_id, kind, detail, recommendation} each.

    `now` is epoch seconds. Reads every file once.
    """
    found = [finding for session_id in session_ids(root) for finding in audit_session(root, session_id, now=now)]
    return found + illegal(root)


def illegal(root: Path) -> list[Finding]:
    """Return a finding for each file that no session can have."""
    names = illegal_names(root)[:MAX_OF_A_KIND]
    return [
        finding_of("illegal_filename", None, f"{escaped(os.fsencode(name))} is no session's file") for name in names
    ]


def audit_session(root: Path, session_id: str, *, now: float) -> list[Finding]:
    """Return the findings of one session."""
    try:
        with os.fdopen(open_session(root, session_id), "rb", buffering=0) as file:
            written = os.fstat(file.fileno()).st_mtime
            journal = read_open(file.fileno())
    except FileNotFoundError:
        return []
    except OSError as error:
        return [finding_of("unreadable_file", session_id, f"{error.strerror or error}")]
    found = _lines(session_id, journal.malformed, quiet=now - written >= QUIET_S)
    found += _events(session_id, journal.events, journal.numbers, now)
    for turn in fold(zip(journal.events, journal.numbers, strict=True)).values():
        found += of_turn(session_id, turn)
    return found


def of_turn(session_id: str, turn: TurnState) -> list[Finding]:
    """Return what is odd about one turn."""
    found = []

    def tell(kind: str, detail: str) -> None:
        found.append(finding_of(kind, session_id, detail, turn.turn_id))

    if turn.is_pending:
        tell("pending_turn", f"it got as far as {turn.effective_state}")
    elif turn.effective_state == "interrupted":
        tell("interrupted_turn", turn.reason[:200] or "no reason was given")
    if turn.collides:
        ends = ", ".join(name for name, *_ in turn.terminals)
        tell("double_terminal", f"it ended {len(turn.terminals)} times: {ends}{', the same line' * turn.is_duplicate}")
    if not turn.submitted:
        tell("orphan_turn", f"{turn.events} events and no submitted")
    if turn.reopened:
        tell("reopened_after_terminal", f"{turn.reopened} events after its end")
    return found


def finding_of(kind: str, session_id: str | None, detail: str, turn_id: str | None = None) -> Finding:
    """Return one finding with its recommendation."""
    return {
        "session_id": session_id,
        "turn_id": turn_id,
        "kind": kind,
        "detail": detail,
        "recommendation": ADVICE[kind],
    }


def _lines(session_id: str, malformed: list[dict[str, Any]], *, quiet: bool) -> list[Finding]:
    found = []
    for line in malformed[:MAX_OF_A_KIND]:
        torn = line["kind"] == Problem.TORN
        if torn and not quiet:
            continue
        detail = f"line {line['line']}, byte {line['offset']}: {line['kind']}: {line['raw'][:120]}"
        found.append(finding_of("torn_tail" if torn else "malformed_event", session_id, detail))
    if (left := len(malformed) - MAX_OF_A_KIND) > 0:
        found.append(finding_of("malformed_event", session_id, f"and {left} more lines"))
    return found


def _events(session_id: str, events: list[dict[str, Any]], numbers: list[int], now: float) -> list[Finding]:
    found: list[Finding] = []
    counts: dict[str, int] = {}

    def tell(kind: str, line: int, detail: str, turn: str) -> None:
        counts[kind] = counts.get(kind, 0) + 1
        if counts[kind] <= MAX_OF_A_KIND:
            found.append(finding_of(kind, session_id, f"line {line}: {detail}", turn or None))

    for event, line in zip(events, numbers, strict=True):
        turn = turn_key(event)
        if not turn:
            tell("orphan_turn", line, "it names no turn", "")
        if (said := event.get("session_id")) != session_id:
            tell("foreign_session_id", line, f"it names {str(said)[:100]}", turn)
        at = good_time(event.get("created_at"))
        if at is None:
            tell("bad_timestamp", line, f"created_at is {str(event.get('created_at'))[:60]}", turn)
        elif at > now + SLACK_S:
            tell("future_timestamp", line, f"created_at is {int(at - now)} s ahead", turn)
    for kind, count in counts.items():
        if count > MAX_OF_A_KIND:
            found.append(finding_of(kind, session_id, f"and {count - MAX_OF_A_KIND} more lines"))
    return found
