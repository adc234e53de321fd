"""Censuses that are asked for at the same time share one pass over /proc."""

import threading
from collections.abc import Callable

from services.processes import Census, Kernel, Mark


class Censuses:
    """Takes censuses of one kernel; each asker's pass begins after it asked."""

    def __init__(self, kernel: Kernel) -> None:
        self._kernel = kernel
        self._lock = threading.Lock()
        self._pass = threading.Lock()
        self._waiting: list[tuple[Mark, Callable[[Census], None]]] = []

    def take(self, mark: Mark) -> Census:
        """Return who is there of one service."""
        answer: list[Census] = []
        with self._lock:
            self._waiting.append((mark, answer.append))
        with self._pass:
            if not answer:
                with self._lock:
                    asked, self._waiting = self._waiting, []
                if not any(give == answer.append for _, give in asked):
                    asked.append((mark, answer.append))  # a pass that failed took it along
                found = self._kernel.census([each for each, _ in asked])
                for _, give in asked:
                    give(found)
        return answer[0]
