"""One thread over epoll: descriptors, timers, and callbacks from other threads."""

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections import deque
from collections.abc import Callable

logger = logging.getLogger(__name__)

_AT_ONCE = 32
_STOP_S = 3.0


class Timer:
    """A callback at a moment of time.monotonic(); made by `Loop.at`."""

    __slots__ = ("callback", "when")

    def __init__(self, when: float, callback: Callable[[], None]) -> None:
        self.when = when
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        """Forget the callback."""
        self.callback = None


class Loop:
    """Calls back from its one thread; only `soon` may be called from others.

    Within a batch of events descriptors are only closed, never opened (whoever wants to open one says so by
    `soon`): the kernel's numbers are reused at once, and an event of the old one must not reach the new. Events
    come before timers, so that an answer that was there in time counts even when we are late.
    """

    def __init__(self) -> None:
        """Make a loop that does not run yet; raises OSError without descriptors. `close` it in the end."""
        self._callbacks: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[float, int, Timer]] = []
        self._numbers = itertools.count()
        self._orders: deque[Callable[[], None]] = deque()
        self._waking = threading.Lock()
        self._woken = False
        self._thread: threading.Thread | None = None
        self._epoll = select.epoll()
        try:
            self._event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        except OSError:
            self._epoll.close()
            raise
        self._epoll.register(self._event, select.EPOLLIN)

    def watch(self, fd: int, events: int, callback: Callable[[int], None]) -> None:
        """Call back with the event mask whenever the descriptor is ready (level-triggered)."""
        self._epoll.register(fd, events)
        self._callbacks[fd] = callback

    def change(self, fd: int, events: int) -> None:
        """Wait for other events of a watched descriptor."""
        self._epoll.modify(fd, events)

    def forget(self, fd: int) -> None:
        """Watch a descriptor no more, before it is closed; nothing for one that is not watched."""
        if self._callbacks.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, when: float, callback: Callable[[], None]) -> Timer:
        """Call back at a moment of time.monotonic(), or soon after."""
        timer = Timer(when, callback)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def soon(self, callback: Callable[[], None]) -> None:
        """Call back after the present events, in order; from any thread, dropped when the loop is closed."""
        self._orders.append(callback)
        if threading.current_thread() is not self._thread:
            with self._waking:
                if not self._woken and self._event >= 0:
                    self._woken = True
                    os.eventfd_write(self._event, 1)

    def run(self, is_stopping: Callable[[], bool], close: Callable[[], bool]) -> None:
        """Serve the calling thread until told to stop.

        Then `close` is called once; while it says that something is left, up to 3 s more are served.
        """
        self._thread = threading.current_thread()
        while not is_stopping():
            self._turn(None)
        until = time.monotonic() + _STOP_S
        while close() and time.monotonic() < until:
            self._turn(0.1)

    def close(self) -> None:
        """Give the descriptors back, once `run` has returned."""
        with self._waking:
            os.close(self._event)
            self._event = -1
        self._epoll.close()
        self._callbacks.clear()
        self._timers.clear()
        self._orders.clear()

    def _turn(self, at_most_s: float | None) -> None:
        try:
            events = self._epoll.poll(self._patience(at_most_s), len(self._callbacks) + 1)
            # What becomes due from here on waits for the next look at the events.
            now = time.monotonic()
            for fd, mask in events:
                if fd == self._event:
                    self._hear()
                elif (callback := self._callbacks.get(fd)) is not None:
                    self._serve(fd, mask, callback)
            # A burst of orders (each may start a program) must not keep answers waiting.
            for _ in range(min(len(self._orders), _AT_ONCE)):
                self._call(self._orders.popleft())
            while self._timers and self._timers[0][0] <= now:
                timer = heapq.heappop(self._timers)[2]
                if timer.callback is not None:
                    self._call(timer.callback)
        except Exception:
            logger.exception("a turn of the probes' loop failed")
            time.sleep(0.1)

    def _patience(self, at_most_s: float | None) -> float | None:
        if self._orders:
            return 0.0
        while self._timers and self._timers[0][2].callback is None:
            heapq.heappop(self._timers)
        if not self._timers:
            return at_most_s
        left = max(0.0, self._timers[0][0] - time.monotonic())
        return left if at_most_s is None else min(left, at_most_s)

    def _hear(self) -> None:
        with self._waking:
            self._woken = False
            os.eventfd_read(self._event)

    def _serve(self, fd: int, mask: int, callback: Callable[[int], None]) -> None:
        try:
            callback(mask)
        except Exception:
            # It would be ready again at once and for ever; the probe's deadline ends it.
            logger.exception("a probe failed on an event")
            self.forget(fd)

    @staticmethod
    def _call(callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:
            logger.exception("a callback of the probes' loop failed")
