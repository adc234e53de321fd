"""What became of each turn, from its events in file order."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import orjson

from projects.journal.writing import turn_text
from projects.usage import LATEST

PHASES = ("submitted", "worker_started", "assistant_started")
TERMINAL = ("completed", "interrupted")
# No calendar, and no zone of a viewer, has trouble with what lies before: those of usage records end here too.
LATEST_S = LATEST.timestamp()
KNOWN = frozenset((*PHASES, *TERMINAL))
UNKNOWN = "unknown"
# Of a turn that ends again and again.
MAX_TERMINALS = 20
FOLDED = ("role", "content", "attachments", "workspace", "model", "model_provider")


class States(NamedTuple):
    """The turns of a session in the order of their first line, and those that ended more than once."""

    turns: list[dict[str, Any]]
    collisions: list[dict[str, Any]]


@dataclass(slots=True)
class TurnState:
    """One turn, folded event by event; times are epoch seconds, None where nothing good was said.

    `raw_state` is the event with the greatest created_at, `effective_state` the first terminal in file order, else the
    known event with the greatest created_at. `terminals` are the first 20 that ended it: (event, created_at or 0, line,
    a digest of all of it).
    """

    turn_id: str
    first_line: int
    last_line: int = 0
    stream_id: str = ""
    raw_state: str = ""
    raw_at: float = -1.0
    phase: str = UNKNOWN
    phase_at: float = -1.0
    submitted: bool = False
    submitted_at: float | None = None
    updated_at: float | None = None
    ended_at: float | None = None
    events: int = 0
    reopened: int = 0
    bad_times: int = 0
    reason: str = ""
    assistant_message_index: Any = None
    asked: dict[str, Any] = field(default_factory=dict)
    terminals: list[tuple[str, float, int, str]] = field(default_factory=list)

    def feed(self, event: dict[str, Any], line: int) -> None:
        """Take in the next event of this turn in file order."""
        name, at = event["event"].strip(), good_time(event.get("created_at"))
        # Ties go to the later line; a bad time counts as 0.
        when = 0.0 if at is None else at
        self.events += 1
        self.last_line = line
        self.bad_times += at is None
        if when >= self.raw_at:
            self.raw_state, self.raw_at = name, when
        if name in PHASES and when >= self.phase_at:
            self.phase, self.phase_at = name, when
        if at is not None:
            self.updated_at = at if self.updated_at is None else max(at, self.updated_at)
        if isinstance(stream := event.get("stream_id"), str) and stream:
            self.stream_id = stream
        if (index := event.get("assistant_message_index")) is not None:
            self.assistant_message_index = index
        if name == "submitted":
            self.submitted = True
            self.submitted_at = at if self.submitted_at is None else self.submitted_at
            self.asked.update({key: event[key] for key in FOLDED if event.get(key) is not None})
        if name in TERMINAL:
            if not self.terminals:
                self.ended_at = at
                self.reason = event["reason"] if isinstance(event.get("reason"), str) else ""
            if len(self.terminals) < MAX_TERMINALS:
                self.terminals.append((name, when, line, _digest(event)))
        elif self.terminals and name in KNOWN:
            self.reopened += 1

    @property
    def effective_state(self) -> str:
        return self.terminals[0][0] if self.terminals else self.phase

    @property
    def is_pending(self) -> bool:
        return not self.terminals

    @property
    def collides(self) -> bool:
        return len(self.terminals) > 1

    @property
    def is_duplicate(self) -> bool:
        """Say whether all its ends are the same line again."""
        return self.collides and len({digest for *_, digest in self.terminals}) == 1

    def told(self) -> dict[str, Any]:
        """Return it as REST shows it."""
        return {
            "turn_id": self.turn_id,
            "raw_state": self.raw_state if self.raw_state in KNOWN else UNKNOWN,
            "effective_state": self.effective_state,
            "terminal": not self.is_pending,
            "collision": self.collides,
            "stream_id": self.stream_id or None,
            **{key: self.asked.get(key) for key in FOLDED},
            "assistant_message_index": self.assistant_message_index,
            "reason": self.reason or None,
            "submitted_at": self.submitted_at,
            "updated_at": self.updated_at,
            "ended_at": self.ended_at,
            "events": self.events,
            "first_line": self.first_line,
            "last_line": self.last_line,
        }

    def collision(self, by_line: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
        """Return its ends in the order of their created_at; `by_line` are the session's events."""
        ends = [by_line[line] for _, _, line, _ in sorted(self.terminals, key=lambda end: end[1])]
        return {"turn_id": self.turn_id, "duplicate": self.is_duplicate, "events": ends}


def turn_key(event: dict[str, Any]) -> str:
    """Return the turn that an event is of, "" when it says none: 7 and "7 " are one turn."""
    return turn_text(event.get("turn_id"))


def fold(events: Iterable[tuple[dict[str, Any], int]]) -> dict[str, TurnState]:
    """Return the turns of (event, line) pairs by their ids; events without a turn are none's."""
    turns: dict[str, TurnState] = {}
    for event, line in events:
        feed(turns, event, line)
    return turns


def feed(turns: dict[str, TurnState], event: dict[str, Any], line: int) -> None:
    """Take the next event in file order into the turn that it is of, if it is of one."""
    if key := turn_key(event):
        turn = turns.get(key)
        if turn is None:
            turn = turns[key] = TurnState(key, line)
        turn.feed(event, line)


def derive_states(events: Sequence[dict[str, Any]], numbers: Sequence[int] | None = None) -> States:
    """Return the turns and the collisions of a session's events in file order; `numbers` are their lines."""
    pairs = list(zip(events, numbers or range(1, len(events) + 1), strict=True))
    turns = fold(pairs).values()
    by_line = {line: event for event, line in pairs}
    return States([turn.told() for turn in turns], [turn.collision(by_line) for turn in turns if turn.collides])


def good_time(at: object) -> float | None:
    """Return epoch seconds, None for what is no number from 1970 to 2100."""
    if isinstance(at, float):
        # What is not finite is not between the two either.
        return at if 0 <= at < LATEST_S else None
    return float(at) if isinstance(at, int) and not isinstance(at, bool) and 0 <= at < LATEST_S else None


def _digest(event: dict[str, Any]) -> str:
    try:
        text = orjson.dumps(event, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        text = json.dumps(event, sort_keys=True).encode()
    return hashlib.sha256(text).hexdigest()[:32]
