"""Tell the runs of a history apart, as far as it lets us.

A run begins at `loop_started`; `loop_resumed` goes on with it. Our runner says in `data.run` whose an event is. Others
do not, and real files interleave two runs: an end then belongs to the one run that is open, and where several are, it
cannot be told whose it was. Those are `ambiguous` and no later end is theirs.
"""

from collections.abc import Iterable
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import Any

from projects.history.line import Line
from projects.history.summing import number_of, text_of
from projects.ralph.text import clean, one_line

MAX_PROMPT = 2000
MAX_TEXT = 200
MAX_RUN = 100
# What the key of a run begins with that has no name of its own.
UNNAMED = "line:"


class Outcome(StrEnum):
    """What became of a run."""

    SUCCESS = "success"
    LIMIT = "limit"
    FAILED = "failed"
    STOPPED = "stopped"
    INTERRUPTED = "interrupted"
    CRASHED = "crashed"
    RUNNING = "running"
    UNKNOWN = "unknown"
    """It ended for a reason that nobody has told us about; or an end was not to be told from another run's; or it has
    none, and whether its process runs nobody has seen."""


class MergeState(StrEnum):
    """Where a run's work is on its way into the main branch; "" = it is not."""

    NONE = ""
    QUEUED = "queued"
    MERGING = "merging"
    MERGED = "merged"
    NEEDS_REVIEW = "needs_review"
    DISCARDED = "discarded"


REASONS = {
    "completion_promise": Outcome.SUCCESS,
    **dict.fromkeys(("max_iterations", "max_runtime", "max_cost"), Outcome.LIMIT),
    **dict.fromkeys(
        ("consecutive_failures", "loop_thrashing", "loop_stale", "validation_failure", "workspace_gone"), Outcome.FAILED
    ),
    **dict.fromkeys(("stopped", "cancelled", "restart_requested"), Outcome.STOPPED),
}


@dataclass(slots=True)
class Run:
    """One run. `key` is its run id, else `line:N` of its first line; `ended_by` the kind of its end, "" while open.

    Times are UTC, None where the line has none; texts are cut and storable. `iterations_completed` counts, `iteration`
    is the number of the last one that ended.
    """

    key: str
    first_line: int
    last_line: int
    prompt: str = ""
    pid: int | None = None
    started_at: datetime | None = None
    last_at: datetime | None = None
    ended_at: datetime | None = None
    ended_by: str = ""
    reason: str = ""
    ambiguous: bool = False
    resumed: int = 0
    iteration: int = 0
    iterations_started: int = 0
    iterations_completed: int = 0
    iterations_failed: int = 0
    events_published: int = 0
    merge_state: str = ""
    merge_commit: str = ""
    merge_reason: str = ""

    @property
    def is_open(self) -> bool:
        return not self.ended_by and not self.ambiguous

    def outcome(self, *, alive: bool | None = False) -> Outcome:
        """Return what became of it; `alive`: whether its process runs, None when nobody can tell."""
        match self.ended_by:
            case "loop_completed":
                return REASONS.get(self.reason, Outcome.UNKNOWN)
            case "loop_terminated":
                return Outcome.INTERRUPTED
            case "loop_discarded":
                return Outcome.STOPPED
        if self.ambiguous or alive is None:
            return Outcome.UNKNOWN
        return Outcome.RUNNING if alive else Outcome.CRASHED

    def told(self, *, alive: bool | None = False) -> dict[str, Any]:
        """Return it as REST shows it."""
        shown = {field.name: getattr(self, field.name) for field in fields(self)}
        return {**shown, "outcome": str(self.outcome(alive=alive))}


class Runs:
    """A fold over a history: feed it events in file order, read `all`. It goes on from runs that are `known`."""

    def __init__(self, known: Iterable[Run] = ()) -> None:
        self.all = sorted(known, key=lambda run: run.first_line)

    def feed(self, line: Line, number: int) -> Run:
        """Take in the event on line `number` and return the run that it was counted to."""
        run_id = run_id_of(line)
        if line.kind == "loop_started":
            run = self._start(run_id, line, number)
        elif line.kind == "loop_resumed":
            run = self._find(run_id) or self._start(run_id, line, number)
            run.ended_by, run.ended_at, run.reason = "", None, ""
            run.resumed += 1
            run.pid = number_of(line.data.get("pid")) or run.pid
        else:
            run = self._find(run_id) or self._start(run_id, line, number)
        run.last_line = number
        run.last_at = line.at or run.last_at
        self._count(run, line, sure=bool(run_id))
        return run

    def _start(self, run_id: str, line: Line, number: int) -> Run:
        # An id that was used before is no name for this one.
        key = run_id if run_id and all(run.key != run_id for run in self.all) else f"{UNNAMED}{number}"
        run = Run(key, number, number, started_at=line.at, pid=number_of(line.data.get("pid")))
        run.prompt = clean(text_of(line.fields.get("prompt")) or "", MAX_PROMPT)
        self.all.append(run)
        return run

    def _find(self, run_id: str) -> Run | None:
        """Return the run of an id; without one the newest that is open, else the newest of all."""
        if run_id:
            return next((run for run in reversed(self.all) if run.key == run_id), None)
        return next((run for run in reversed(self.all) if run.is_open), self.all[-1] if self.all else None)

    def _count(self, run: Run, line: Line, *, sure: bool) -> None:
        said = line.fields
        match line.kind:
            case "iteration_started":
                run.iterations_started += 1
            case "iteration_completed":
                run.iterations_completed += 1
                run.iterations_failed += said.get("success") is False
                run.iteration = number_of(said.get("iteration")) or run.iteration
            case "event_published":
                run.events_published += 1
            case "loop_completed" | "loop_terminated":
                self._end(run, line, sure=sure)
            case "loop_discarded":
                run.merge_state, run.merge_reason = MergeState.DISCARDED, _text(said.get("reason"))
                if run.is_open:
                    self._end(run, line, sure=sure)
            case "merge_queued":
                run.merge_state = MergeState.QUEUED
            case "merge_started":
                run.merge_state = MergeState.MERGING
            case "merge_completed":
                run.merge_state, run.merge_commit, run.merge_reason = (
                    MergeState.MERGED,
                    _text(said.get("commit")),
                    "",
                )
            case "merge_failed":
                run.merge_state, run.merge_reason = MergeState.NEEDS_REVIEW, _text(said.get("reason"))

    def _end(self, run: Run, line: Line, *, sure: bool) -> None:
        unsure = [] if sure else [each for each in self.all if each.is_open]
        if len(unsure) > 1:
            for each in unsure:
                each.ambiguous = True
            return
        if not run.is_open and not sure:
            # Of an ambiguous one, or a second end of one that has ended: the first stands.
            return
        run.ended_by, run.ended_at = line.kind, line.at
        run.reason = _text(line.fields.get("signal" if line.kind == "loop_terminated" else "reason"))


def run_id_of(line: Line) -> str:
    """Return the run that an event says it is of, "" without one: our own keys are no names."""
    said = line.data.get("run")
    run_id = one_line(said, MAX_RUN) if isinstance(said, str) else ""
    return "" if run_id.startswith(UNNAMED) else run_id


def _text(value: object) -> str:
    return one_line(value, MAX_TEXT) if isinstance(value, str) else ""
