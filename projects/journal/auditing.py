"""What is odd in the journals, each with what to do about it. One bad file never ends the audit."""

import os
from pathlib import Path
from typing import Any, NamedTuple

from projects import lines
from projects.journal.deriving import TurnState, feed, good_time, turn_key
from projects.journal.reading import check, open_session
from projects.journal.sessions import illegal_names, session_ids
from projects.lines import Line, Problem, escaped

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
# The others are told of lines.
OF_TURNS = {"pending_turn", "interrupted_turn", "double_terminal", "orphan_turn", "reopened_after_terminal"}

Finding = dict[str, Any]


class Audited(NamedTuple):
    """The findings of one session, of each kind the first 100 and a line that says how many more, and all counted."""

    findings: list[Finding]
    counts: dict[str, int]


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
    return audit_counted(root, session_id, now=now).findings


def audit_counted(root: Path, session_id: str, *, now: float) -> Audited:
    """Return the findings of one session and how many there are; holds its turns in memory, not its events."""
    try:
        with os.fdopen(open_session(root, session_id), "rb", buffering=0) as file:
            return _audited(file.fileno(), session_id, now)
    except FileNotFoundError:
        return Audited([], {})
    except OSError as error:
        found = finding_of("unreadable_file", session_id, f"{error.strerror or error}")
        return Audited([found], {"unreadable_file": 1})


def _audited(descriptor: int, session_id: str, now: float) -> Audited:
    quiet = now - os.fstat(descriptor).st_mtime >= QUIET_S
    told, turns = Told(session_id), dict[str, TurnState]()
    for line in lines.read(descriptor, check=check):
        if line.value is None:
            _line(told, line, quiet=quiet)
        else:
            _event(told, line.value, line.number, now)
            feed(turns, line.value, line.number)
    for turn in turns.values():
        for finding in of_turn(session_id, turn):
            told.add(finding)
    return told.all()


class Told:
    """Findings as they are told, so that a flood of one kind leaves room for the others."""

    def __init__(self, session_id: str) -> None:
        self.session_id = session_id
        self._found: list[Finding] = []
        self._counts: dict[str, int] = {}

    def add(self, finding: Finding) -> None:
        kind = finding["kind"]
        self._counts[kind] = self._counts.get(kind, 0) + 1
        if self._counts[kind] <= MAX_OF_A_KIND:
            self._found.append(finding)

    def all(self) -> Audited:
        left = {kind: count - MAX_OF_A_KIND for kind, count in self._counts.items() if count > MAX_OF_A_KIND}
        more = [
            finding_of(kind, self.session_id, f"and {count} more {'turns' if kind in OF_TURNS else 'lines'}")
            for kind, count in left.items()
        ]
        return Audited([*self._found, *more], self._counts)


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


def _line(told: Told, line: Line, *, quiet: bool) -> None:
    torn = line.problem == Problem.TORN
    if not torn or quiet:
        detail = f"line {line.number}, byte {line.offset}: {line.problem}: {escaped(line.text)[:120]}"
        told.add(finding_of("torn_tail" if torn else "malformed_event", told.session_id, detail))


def _event(told: Told, event: dict[str, Any], line: int, now: float) -> None:
    def tell(kind: str, detail: str) -> None:
        told.add(finding_of(kind, told.session_id, f"line {line}: {detail}", turn or None))

    turn = turn_key(event)
    if not turn:
        tell("orphan_turn", "it names no turn")
    if (said := event.get("session_id")) != told.session_id:
        tell("foreign_session_id", f"it names {str(said)[:100]}")
    at = good_time(event.get("created_at"))
    if at is None:
        tell("bad_timestamp", f"created_at is {str(event.get('created_at'))[:60]}")
    elif at > now + SLACK_S:
        tell("future_timestamp", f"created_at is {int(at - now)} s ahead")
