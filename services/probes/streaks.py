"""What a row of results means: pure counting, no clock and no chance of its own."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Streak:
    """Count the latest results of one kind in a row; one of the two is always 0."""

    misses: int = 0
    passes: int = 0


def after(streak: Streak, *, ok: bool) -> Streak:
    """Return the streak with one more result."""
    return Streak(passes=streak.passes + 1) if ok else Streak(misses=streak.misses + 1)


def is_down(streak: Streak, failure_threshold: int) -> bool:
    """Tell whether so many misses in a row make a service unhealthy."""
    return streak.misses >= failure_threshold


def is_up(streak: Streak, success_threshold: int) -> bool:
    """Tell whether so many passes in a row make it healthy again."""
    return streak.passes >= success_threshold


def next_delay(period_s: float, jitter: float) -> float:
    """Return the seconds to the next probe: the period less 10 % at jitter 0, plus 10 % at jitter 1."""
    return period_s * (0.9 + 0.2 * min(max(jitter, 0.0), 1.0))
