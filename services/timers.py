"""Have rows looked at again in a while: one timer for each, however often it is asked for."""

import time
from collections.abc import Callable

from services.processes import Kernel

# A timer that is later than this was lost.
LATE_S = 5.0


class Timers:
    """Calls `wake` with a row's key, from the kernel's thread. The sweeps are what is sure; this is what is soon."""

    def __init__(self, kernel: Kernel, wake: Callable[[int], None]) -> None:
        self._kernel = kernel
        self._wake = wake
        # When the next timer of a row fires, monotonic seconds.
        self._due: dict[int, float] = {}

    def wake_in(self, seconds: float, pk: int) -> None:
        """Have a row looked at in so many seconds at the latest; a timer that fires before that will do."""
        due = time.monotonic() + max(0.0, seconds)
        pending = self._due.get(pk)
        # Else each look at a row that does not end would begin another chain of timers.
        if pending is not None and time.monotonic() - LATE_S < pending <= due:
            return
        self._due[pk] = due

        def fire() -> None:
            if self._due.get(pk) == due:
                del self._due[pk]
            self._wake(pk)

        self._kernel.after(max(0.0, seconds), fire)
