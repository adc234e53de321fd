"""The thread that waits for descriptors and timers."""

import heapq
import itertools
import logging
import os
import select
import threading
import time
from collections.abc import Callable
from functools import partial

_LOG = logging.getLogger(__name__)
# Longer than epoll can wait is waited for in turns.
_LONGEST_WAIT_S = 3600.0
_MAX_EVENTS = 1024


class Watch:
    """Call `on_ready(fd)` for each descriptor that becomes readable, and timers when they are due, in one thread.

    A descriptor is reported for as long as it is readable: `drop` it. Callbacks run one after another and must not
    wait; an exception in one is logged and stops nothing else. Safe to call from any thread.
    """

    def __init__(self, name: str, on_ready: Callable[[int], None]) -> None:
        """Open what is needed; `name` is the thread's. `stop` must be called in the end, started or not."""
        self._name = name
        self._on_ready = on_ready
        self._lock = threading.Lock()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._epoll = select.epoll()
        self._bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._epoll.register(self._bell, select.EPOLLIN)
        self._is_over = False
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; a second call does nothing. Raises RuntimeError after `stop`."""
        with self._lock:
            if self._is_over:
                raise RuntimeError("the watch was stopped")
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End the thread, wait for the callback it is in, and close everything; later timers never run."""
        with self._lock:
            if self._is_over:
                return
            self._is_over = True
            thread = self._thread
            os.eventfd_write(self._bell, 1)
        if thread is threading.current_thread():
            return  # stopped by a callback: the thread closes what it uses when it leaves
        if thread is not None:
            thread.join()
        else:
            self._close()

    def add(self, fd: int) -> None:
        """Wait for this descriptor too. Raises RuntimeError after `stop`, OSError when the kernel refuses."""
        with self._lock:
            if self._is_over:
                raise RuntimeError("the watch was stopped")
            self._epoll.register(fd, select.EPOLLIN)

    def drop(self, fd: int) -> None:
        """Wait for this descriptor no more; call before it is closed."""
        with self._lock:
            if not self._epoll.closed:
                self._epoll.unregister(fd)

    def after(self, seconds: float, callback: Callable[[], None]) -> None:
        """Call back in so many seconds (a millisecond late at most), in order of their times; nothing after `stop`."""
        due = time.monotonic() + max(seconds, 0.0)
        with self._lock:
            if self._is_over:
                return
            heapq.heappush(self._timers, (due, next(self._numbers), callback))
            if self._timers[0][0] == due:
                os.eventfd_write(self._bell, 1)

    def _run(self) -> None:
        try:
            while not self._is_over:
                for fd, _ in self._epoll.poll(self._patience(), _MAX_EVENTS):
                    if fd == self._bell:
                        os.eventfd_read(self._bell)
                    elif not self._is_over:
                        self._call(partial(self._on_ready, fd))
                for callback in self._due():
                    if not self._is_over:
                        self._call(callback)
        finally:
            self._close()

    def _patience(self) -> float:
        with self._lock:
            if not self._timers:
                return _LONGEST_WAIT_S
            return min(max(self._timers[0][0] - time.monotonic(), 0.0), _LONGEST_WAIT_S)

    def _due(self) -> list[Callable[[], None]]:
        # One snapshot a turn: a timer that sets another for "at once" must not keep deaths waiting.
        now = time.monotonic()
        callbacks = []
        with self._lock:
            while self._timers and self._timers[0][0] <= now:
                callbacks.append(heapq.heappop(self._timers)[2])
        return callbacks

    def _call(self, callback: Callable[[], None]) -> None:
        try:
            callback()
        except Exception:  # noqa: BLE001 (the callbacks are others', and all deaths would go unseen)
            _LOG.exception("A callback of %s failed", self._name)

    def _close(self) -> None:
        with self._lock:
            self._epoll.close()
            os.close(self._bell)
