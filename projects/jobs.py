"""Jobs: Huey with second-level ticks that skip while they run, and a second bounded pool for what waits.

Huey looks for periodic tasks once a minute and delivers at most once; so ticks have a schedule of their own
here, and every sweep is level-triggered (docs/decisions/0003).
"""

import functools
import logging
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from threading import Lock
from typing import Any

from django.conf import settings
from django.db import close_old_connections
from huey import RedisHuey
from huey.api import Huey
from huey.consumer import Consumer, Scheduler
from huey.storage import SqliteStorage

POOL_THREADS = 16
# An enqueued tick that no worker has taken by then was lost with a killed consumer.
LOST_AFTER_S = 30.0
log = logging.getLogger("andon.jobs")


@dataclass
class Tick:
    """One periodic job and what became of its last run; times are monotonic seconds."""

    name: str
    seconds: float
    enqueue: Callable[[], object]
    last_fired: float | None = None
    queued_at: float | None = None
    running_since: float | None = None
    last_result: Any = None
    last_took_s: float = 0.0
    last_error: str = ""
    skipped: int = 0

    def is_due(self, now: float) -> bool:
        return self.last_fired is None or now - self.last_fired >= self.seconds

    def is_busy(self, now: float) -> bool:
        if self.running_since is not None:
            return True
        return self.queued_at is not None and now - self.queued_at < LOST_AFTER_S

    def fire(self, now: float) -> bool:
        """Enqueue when due, unless the run before is still queued or running."""
        if not self.is_due(now):
            return False
        # Missed seconds are not made up for, but the rhythm is kept.
        self.last_fired = (
            now
            if self.last_fired is None or now - self.last_fired > 2 * self.seconds
            else self.last_fired + self.seconds
        )
        if self.is_busy(now):
            self.skipped += 1
            return False
        self.queued_at = now
        self.enqueue()
        return True


class SecondScheduler(Scheduler):  # type: ignore[misc]  # huey ships no types
    """Fires ticks each second, beside Huey's own schedule of delayed jobs."""

    def loop(self, now: Any = None) -> None:
        moment = time.monotonic()
        for tick in ticks.values():
            try:
                tick.fire(moment)
            except Exception:
                tick.queued_at = None
                log.exception("tick %s was not enqueued", tick.name)
        super().loop(now)


class SecondConsumer(Consumer):  # type: ignore[misc]  # huey ships no types
    scheduler_class = SecondScheduler


class LateStorage(SqliteStorage):  # type: ignore[misc]  # huey ships no types
    """Makes its file when it is first used: most commands enqueue nothing."""

    def _create_connection(self) -> Any:
        made = super()._create_connection()
        for statement in self.ddl:
            made.execute(statement)
        return made


class LateHuey(Huey):  # type: ignore[misc]  # huey ships no types
    storage_class = LateStorage


def _queue() -> Huey:
    name = f"andon-{settings.ANDON_NODE}"
    options = {"results": False, "immediate": False, "utc": True}
    if settings.REDIS_URL:
        return RedisHuey(name, url=settings.REDIS_URL, **options)
    file = str(settings.ANDON_HOME / "queue.sqlite3")
    return LateHuey(name, filename=file, fsync=False, create_tables=False, **options)


queue = _queue()
ticks: dict[str, Tick] = {}
pool = ThreadPoolExecutor(POOL_THREADS, thread_name_prefix="pool")
# key -> whether it was asked for again meanwhile
_in_flight: dict[str, bool] = {}
_lock = Lock()


def consumer(workers: int = 4) -> SecondConsumer:
    """Make the consumer: threads (killed process workers would live on as orphans), a queue poll of 100 ms at most."""
    return SecondConsumer(
        queue,
        workers=workers,
        worker_type="thread",
        scheduler_interval=1,
        initial_delay=0.02,
        max_delay=0.1,
        backoff=1.3,
        flush_locks=True,
        shutdown_timeout=4,
        graceful_signal="TERM",
    )


def job(function: Callable[..., Any]) -> Any:
    """Make a function a job: calling it enqueues, `.call_local` runs it here; arguments are plain data."""

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        close_old_connections()
        try:
            return function(*args, **kwargs)
        finally:
            close_old_connections()

    return queue.task(name=f"{function.__module__}.{function.__name__}")(run)


def every(*, seconds: float) -> Callable[[Callable[[], Any]], Any]:
    """Make a function a tick: run each `seconds`, skipped while its last run is still queued or running."""

    def decorate(function: Callable[[], Any]) -> Any:
        name = f"{function.__module__.split('.')[0]}.{function.__name__}"

        @functools.wraps(function)
        def run() -> Any:
            tick = ticks[name]
            started = time.monotonic()
            with _lock:
                # A message left in the queue by a killed consumer may come beside ours.
                if tick.running_since is not None:
                    return None
                tick.running_since = started
                tick.queued_at = None
            try:
                tick.last_result = function()
                tick.last_error = ""
            except Exception as error:
                tick.last_error = f"{type(error).__name__}: {error}"[:500]
                log.exception("job %s failed", name)
            finally:
                tick.last_took_s = time.monotonic() - started
                tick.running_since = None
            return tick.last_result

        task = job(run)
        ticks[name] = Tick(name, seconds, task)
        return task

    return decorate


def submit(key: str, function: Callable[..., Any], *args: Any) -> Future[Any] | None:
    """Run on the second pool (16 threads) what may wait for a file, a process or git; never two of one key at once.

    A key that is under way runs once more when it ends, since what changed meanwhile may have been overlooked;
    then None is returned. Errors are logged, database connections closed.
    """
    with _lock:
        if key in _in_flight:
            _in_flight[key] = True
            return None
        _in_flight[key] = False
    return pool.submit(_run_keyed, key, function, args)


def _run_keyed(key: str, function: Callable[..., Any], args: tuple[Any, ...]) -> Any:
    while True:
        result = None
        try:
            result = function(*args)
        except Exception:
            log.exception("%s failed", key)
        finally:
            close_old_connections()
        with _lock:
            if not _in_flight[key]:
                del _in_flight[key]
                return result
            _in_flight[key] = False
