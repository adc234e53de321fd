"""Turns and runs as pages draw them: words, shapes, and bars on an axis of time."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy, ngettext

from projects.history import Outcome, Run
from projects.intake.turns import CONTENT, moment, unpacked
from projects.journal.deriving import FOLDED
from projects.models import JournalRecord, Turn

WIDE = 1000
LANES = 6
LEAST = 4
EVENTS_OF_A_TURN = 30
CONTENT_SHOWN = 4000
LINE_SHOWN = 300

# The words of a turn's states and of a run's outcomes, and the shape (static/img/status.svg) that stands for each.
STATES = {
    "submitted": ("queued", gettext_lazy("Submitted")),
    "worker_started": ("running", gettext_lazy("Worker started")),
    "assistant_started": ("running", gettext_lazy("Being answered")),
    "completed": ("done", gettext_lazy("Completed")),
    "interrupted": ("stopped", gettext_lazy("Interrupted")),
    "unknown": ("pending", gettext_lazy("Unknown")),
}
OUTCOMES = {
    Outcome.SUCCESS: ("done", "fill-ok", gettext_lazy("Success")),
    Outcome.LIMIT: ("waiting", "fill-warn", gettext_lazy("Limit reached")),
    Outcome.FAILED: ("failed", "fill-bad", gettext_lazy("Failed")),
    Outcome.STOPPED: ("stopped", "fill-neutral", gettext_lazy("Stopped")),
    Outcome.INTERRUPTED: ("stopped", "fill-neutral", gettext_lazy("Interrupted")),
    Outcome.CRASHED: ("error", "fill-bad", gettext_lazy("Crashed")),
    Outcome.RUNNING: ("running", "fill-info", gettext_lazy("Running")),
    Outcome.UNKNOWN: ("idle", "fill-line", gettext_lazy("Not known")),
}
MERGES = {
    "queued": gettext_lazy("waits to be merged"),
    "merging": gettext_lazy("is being merged"),
    "merged": gettext_lazy("merged"),
    "needs_review": gettext_lazy("merge needs review"),
    "discarded": gettext_lazy("discarded"),
}


@dataclass(slots=True)
class Bar:
    """One run as a row and as a bar: `x` and `width` of 1,000, `lane` from 0; without a start it has no bar."""

    run: Run
    mark: str
    fill: str
    word: str
    merge: str
    ended: datetime | None
    took_s: float | None
    x: int = 0
    width: int = 0
    lane: int = 0
    has_bar: bool = False


@dataclass(slots=True)
class Axis:
    """Runs, the newest first, and the span of time that their bars lie on; `lanes` of them lie above each other."""

    bars: list[Bar]
    begin: datetime | None
    end: datetime | None
    lanes: int

    @property
    def height(self) -> int:
        return 20 * self.lanes


def turn_rows(turns: Iterable[Turn], records: Iterable[JournalRecord]) -> list[dict[str, Any]]:
    """Return turns for a session's page, in their order, each with those of the records that are of it."""
    events: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        events.setdefault(record.key, []).append({"name": record.kind, "line": record.line_no, "at": record.at})
    return [_turn(unpacked(turn.folded).told(), events.get(turn.turn_id, [])) for turn in turns]


def _turn(turn: dict[str, Any], events: list[dict[str, Any]]) -> dict[str, Any]:
    mark, word = STATES[turn["effective_state"]]
    begun, ended = moment(turn["submitted_at"]), moment(turn["ended_at"])
    asked = {name: _shown(turn[name]) for name in FOLDED if turn[name] not in (None, "", [])}
    content = asked.pop("content", "")
    return {
        **turn,
        "mark": mark,
        "word": str(word),
        "raw_word": str(STATES[turn["raw_state"]][1]),
        "content": content[:CONTENT_SHOWN],
        "content_left": max(0, len(content) - CONTENT_SHOWN),
        "is_cut": len(content) >= CONTENT,
        "asked": {name: value[:LINE_SHOWN] for name, value in asked.items()},
        "at": begun or moment(turn["updated_at"]),
        "ended": ended,
        "took_s": (ended - begun).total_seconds() if begun and ended and ended >= begun else None,
        "shown": events,
    }


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def axis(runs: Sequence[tuple[Run, bool | None]], now: datetime) -> Axis:
    """Return (run, is alive) pairs, the newest first, as bars from the first start to the last end, or to now."""
    bars = [_bar(run, now, alive=alive) for run, alive in runs]
    spans = [(bar, bar.run.started_at, _until(bar, now)) for bar in bars if bar.run.started_at is not None]
    if not spans:
        return Axis(bars, None, None, 0)
    begin = min(start for _, start, _ in spans)
    end = max(until for _, _, until in spans)
    scale = WIDE / max((end - begin).total_seconds(), 1.0)
    free = [begin] * LANES
    for bar, start, until in sorted(spans, key=lambda span: span[1]):
        lane = next((place for place, at in enumerate(free) if at <= start), None)
        bar.lane = free.index(min(free)) if lane is None else lane
        free[bar.lane] = max(free[bar.lane], until)
        bar.width = max(LEAST, math.ceil((until - start).total_seconds() * scale))
        bar.x = min(math.floor((start - begin).total_seconds() * scale), WIDE - bar.width)
        bar.has_bar = True
    return Axis(bars, begin, end, 1 + max(bar.lane for bar in bars))


def _bar(run: Run, now: datetime, *, alive: bool | None) -> Bar:
    outcome = run.outcome(alive=alive)
    mark, fill, word = OUTCOMES[outcome]
    ended = run.ended_at or (None if outcome is Outcome.RUNNING else run.last_at)
    until = now if outcome is Outcome.RUNNING else ended
    took = (until - run.started_at).total_seconds() if until and run.started_at else None
    merge = MERGES.get(run.merge_state)
    return Bar(run, mark, fill, str(word), str(merge) if merge else "", ended, took if took and took >= 0 else None)


def _until(bar: Bar, now: datetime) -> datetime:
    start = bar.run.started_at or now
    return max(start, bar.ended or now)


def findings(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return findings for a page, the worst first, each with its shape and word."""
    rows = [
        {**finding, "severity": SEVERITIES[finding["kind"]], "word": str(KINDS[finding["kind"]])} for finding in found
    ]
    return sorted(rows, key=lambda row: rank(row["kind"]))


def rank(kind: str) -> int:
    """Return where findings of a kind come, the worst at 0: those of whole files hide what else there may be."""
    return 0 if kind in OF_FILES else 1 + ORDER[SEVERITIES[kind]]


OF_FILES = {"unreadable_file", "journal_rewritten", "illegal_filename"}
ORDER = {"failed": 0, "stalled": 1, "idle": 2}
SEVERITIES = {
    "unreadable_file": "failed",
    "journal_rewritten": "failed",
    "double_terminal": "failed",
    "malformed_event": "failed",
    "pending_turn": "stalled",
    "torn_tail": "stalled",
    "orphan_turn": "stalled",
    "reopened_after_terminal": "stalled",
    "foreign_session_id": "stalled",
    "bad_timestamp": "stalled",
    "future_timestamp": "stalled",
    "illegal_filename": "stalled",
    "interrupted_turn": "idle",
}
KINDS = {
    "unreadable_file": gettext_lazy("Unreadable file"),
    "journal_rewritten": gettext_lazy("Journal rewritten"),
    "double_terminal": gettext_lazy("Ended more than once"),
    "malformed_event": gettext_lazy("Malformed line"),
    "pending_turn": gettext_lazy("Without an end"),
    "torn_tail": gettext_lazy("Torn tail"),
    "orphan_turn": gettext_lazy("Without a beginning"),
    "reopened_after_terminal": gettext_lazy("Went on after its end"),
    "foreign_session_id": gettext_lazy("Another session's"),
    "bad_timestamp": gettext_lazy("No time"),
    "future_timestamp": gettext_lazy("From the future"),
    "illegal_filename": gettext_lazy("Illegal file name"),
    "interrupted_turn": gettext_lazy("Interrupted"),
}


def need_words(kind: str, count: int) -> tuple[str, str, str]:
    """Return (severity, title, reason) of what in the journals needs somebody."""
    titles = {
        "pending": ngettext("%d turn has no end", "%d turns have no end", count),
        "collided": ngettext("%d turn ended more than once", "%d turns ended more than once", count),
        "unreadable": ngettext("%d journal cannot be read", "%d journals cannot be read", count),
        "rewritten": ngettext("%d journal was rewritten", "%d journals were rewritten", count),
        "malformed": ngettext("%d journal holds lines that are none", "%d journals hold lines that are none", count),
    }
    reasons = {
        "pending": _("Nothing was heard of it for ten minutes."),
        "collided": _("Two programs worked on the same turn."),
        "unreadable": _("What was read before is kept."),
        "rewritten": _("The file is not the one that was read before."),
        "malformed": _("They are kept and passed over."),
    }
    return "bad" if kind in {"unreadable", "rewritten"} else "warn", titles[kind] % count, reasons[kind]
