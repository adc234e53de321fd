"""What a history adds up to, in the words that ralph-orchestrator's own reader uses."""

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from projects.history.line import Line


@dataclass(slots=True)
class Summary:
    """The last start with the ends, failures and merges of the whole file; times as they stand there."""

    prompt: str | None = None
    started_at: str | None = None
    iterations_completed: int = 0
    iterations_failed: int = 0
    events_published: int = 0
    completed: bool = False
    completion_reason: str | None = None
    ended_at: str | None = None
    terminated: bool = False
    termination_signal: str | None = None
    merge_commit: str | None = None
    merge_failed: bool = False
    merge_failure_reason: str | None = None

    def feed(self, line: Line) -> None:
        """Take in the next event in file order."""
        fields, at = line.fields, line.at.isoformat().replace("+00:00", "Z") if line.at else None
        match line.kind:
            case "loop_started":
                self.prompt, self.started_at = text_of(fields.get("prompt")), at
            case "iteration_completed":
                number = number_of(fields.get("iteration"))
                self.iterations_completed = self.iterations_completed if number is None else number
                self.iterations_failed += fields.get("success") is False
            case "event_published":
                self.events_published += 1
            case "loop_completed":
                self.completed, self.completion_reason, self.ended_at = True, text_of(fields.get("reason")), at
            case "loop_terminated":
                self.terminated, self.termination_signal, self.ended_at = True, text_of(fields.get("signal")), at
            case "merge_completed":
                self.merge_commit = text_of(fields.get("commit"))
                self.merge_failed, self.merge_failure_reason = False, None
            case "merge_failed":
                self.merge_failed, self.merge_failure_reason = True, text_of(fields.get("reason"))

    def told(self) -> dict[str, Any]:
        return asdict(self)


def summary(lines: Iterable[Line]) -> Summary:
    """Return what a history adds up to."""
    found = Summary()
    for line in lines:
        found.feed(line)
    return found


def last_iteration(lines: Iterable[Line]) -> int | None:
    """Return the number of the last iteration that ended, a failed one too; None without."""
    found = None
    for line in lines:
        if line.kind == "iteration_completed" and (number := number_of(line.fields.get("iteration"))) is not None:
            found = number
    return found


def is_completed(lines: Sequence[Line]) -> bool:
    """Say whether the newest end is a completion, not a termination or a discarding."""
    ends = (line.kind for line in reversed(lines))
    kind = next((kind for kind in ends if kind in {"loop_completed", "loop_terminated", "loop_discarded"}), "")
    return kind == "loop_completed"


def get_prompt(lines: Iterable[Line]) -> str | None:
    """Return the prompt of the first start; None without."""
    return next((text_of(line.fields.get("prompt")) for line in lines if line.kind == "loop_started"), None)


def text_of(value: object) -> str | None:
    return value if isinstance(value, str) else None


def number_of(value: object) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31 else None
