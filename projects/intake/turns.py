"""Project the events of a session's file to Turn rows."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any

import orjson

from projects.events import By, record
from projects.intake import tables
from projects.journal import TurnState, turn_key
from projects.journal.deriving import good_time
from projects.models import JournalFile, Turn
from projects.ralph.text import clean, one_line

LOOKUP = 500
# Shorter than its column: what follows a hash's mark there is none of these.
KEY = 100
STATE = 64
CONTENT = 10_000
NAMES = tuple(TurnState.__dataclass_fields__)
VALUES = attrgetter(*NAMES)
# Of what happened longer ago nobody needs to be told: a file that is met for the first time tells its whole past.
NEWS = timedelta(minutes=10)
COLUMNS = (
    "raw_state",
    "effective_state",
    "pending",
    "collides",
    "submitted_at",
    "updated_at",
    "ended_at",
    "first_line",
    "folded",
)


def key_of(event: dict[str, Any]) -> str:
    """Return the key of an event's turn as a column holds it: its id, or a hash of one that no column holds."""
    turn = turn_key(event)
    if len(turn) <= KEY and turn.isprintable() and "  " not in turn:
        return turn
    return "#" + hashlib.sha256(turn.encode("utf-8", "surrogatepass")).hexdigest()[:40]


def project(
    file: JournalFile, events: Iterable[tuple[dict[str, Any], int]], keys: Iterable[str], *, by: By, now: datetime
) -> None:
    """Fold (event, line) pairs, of turns with these keys, that follow what was folded before.

    Inside `writing()`; records turn.…
    """
    by_key: dict[str, list[tuple[dict[str, Any], int]]] = {}
    for pair, key in zip(events, keys, strict=True):
        if key:
            by_key.setdefault(key, []).append(pair)
    known = {row.turn_id: row for row in _rows(file, list(by_key))}
    fresh, edited = [], []
    for key, mine in by_key.items():
        row = known.get(key)
        turn = unpacked(row.folded) if row else TurnState(turn_key(mine[0][0]), mine[0][1])
        was = (turn.effective_state if row else "", turn.collides)
        for event, line in mine:
            turn.feed(event, line)
        values = values_of(turn)
        if row is None:
            fresh.append([file.pk, file.name, key, *values])
        else:
            edited.append([*values, row.pk])
        _tell(file, key, turn, was, by=by, now=now)
    tables.insert(Turn, fresh)
    tables.update(Turn, COLUMNS, edited)


def values_of(turn: TurnState) -> list[Any]:
    """Return the values of COLUMNS."""
    return [
        clean(turn.raw_state, STATE),
        turn.effective_state,
        turn.is_pending,
        turn.collides,
        moment(turn.submitted_at),
        moment(turn.updated_at),
        moment(turn.ended_at),
        turn.first_line,
        packed(turn),
    ]


def packed(turn: TurnState) -> str:
    """Return a turn as JSON; long contents are cut, the file has the rest."""
    state = dict(zip(NAMES, VALUES(turn), strict=True))
    state["asked"] = {name: _cut(value) for name, value in turn.asked.items()}
    state["assistant_message_index"] = _cut(turn.assistant_message_index)
    try:
        return orjson.dumps(state).decode()
    except TypeError:
        # A lone surrogate, which UTF-8 cannot hold.
        return json.dumps(state, separators=(",", ":"))


def unpacked(text: str) -> TurnState:
    """Return the turn that `packed` made a text of."""
    try:
        state = orjson.loads(text)
    except ValueError:
        state = json.loads(text)
    return TurnState(**{**state, "terminals": [tuple(end) for end in state["terminals"]]})


def moment(at: object) -> datetime | None:
    """Return epoch seconds as UTC, None for what is not from 1970 to 2100."""
    good = good_time(at)
    return None if good is None else datetime.fromtimestamp(good, UTC)


def event_time(event: dict[str, Any]) -> tuple[datetime | None, str]:
    """Return an event's time and how it was written."""
    said = event.get("created_at")
    if isinstance(said, float):
        return moment(said), str(said)
    return moment(said), "" if said is None else clean(str(said), 64)


def _cut(value: Any) -> Any:
    if isinstance(value, str):
        return value[:CONTENT]
    if value is None or isinstance(value, int):
        return value
    text = json.dumps(value)
    return value if len(text) <= CONTENT else text[:CONTENT]


def _rows(file: JournalFile, keys: list[str]) -> Iterator[Turn]:
    for place in range(0, len(keys), LOOKUP):
        rows = Turn.objects.filter(file=file, turn_id__in=keys[place : place + LOOKUP])
        yield from rows.only("pk", "turn_id", "folded")


def _tell(file: JournalFile, key: str, turn: TurnState, was: tuple[str, bool], *, by: By, now: datetime) -> None:
    state, collided = was
    updated = moment(turn.updated_at)
    if updated is None or updated < now - NEWS:
        return
    subject = f"turn:{file.name}/{key}"
    if turn.effective_state not in {state, "unknown"}:
        record(f"turn.{turn.effective_state}", subject, by=by, now=now, reason=one_line(turn.reason, 200) or None)
    if turn.collides and not collided:
        record("turn.collided", subject, by=by, now=now, ends=[name for name, *_ in turn.terminals[:5]])
