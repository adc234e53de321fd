"""Probes of this node's services: the wait for the first success, then one each period, their results in one write."""

import logging
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

import orjson
from django.conf import settings
from django.db import connection, transaction
from django.utils import timezone

from projects.errors import Conflict
from projects.events import SWEEP
from services import lifecycle, starting
from services.models import ManagedProcess
from services.probes import Check, Prober, Result, Streak, after, is_down, is_up, next_delay
from services.processes import Kernel
from services.states import Status

MOST_S = 5.0
STRIP = 60
STRIP_EVERY_S = 10.0
BATCH = 500
log = logging.getLogger("andon.health")
DUE = (
    *("id", "generation", "status", "project", "node", "purpose", "name", "healthcheck"),
    *("cwd", "env", "misses", "passes", "next_probe_at", "last_error"),
)

Key = tuple[int, int]


@dataclass
class _Strip:
    """The last probes of one service, over all its generations, kept here between two writes."""

    shown: deque[list[int]]
    generation: int = 0
    written_at: float = 0.0
    is_written: bool = True

    def text(self) -> str:
        self.written_at, self.is_written = time.monotonic(), True
        return orjson.dumps(list(self.shown)).decode()


class Health:
    """Probes services; `wake(pk)` has the supervisor look at a row. Results of a second are written together."""

    def __init__(
        self, prober: Prober, kernel: Kernel, wake: Callable[[int], None], submit: Callable[..., object]
    ) -> None:
        self._prober = prober
        self._kernel = kernel
        self._wake = wake
        self._submit = submit
        self._lock = threading.Lock()
        # Services that wait for their first success, with the reason of the last miss.
        self._waiting: dict[Key, str] = {}
        # Whom a round probes, and since when.
        self._in_flight: dict[Key, tuple[ManagedProcess, datetime]] = {}
        self._results: list[tuple[Key, Result, float]] = []
        self._strips: dict[int, _Strip] = {}

    def first(self, row: ManagedProcess) -> None:
        """Probe at once and then each `interval_s` until the first success; a second call does nothing."""
        key = (row.pk, row.generation)
        with self._lock:
            if key in self._waiting:
                return
            self._waiting[key] = ""
        self._seed([row.pk])
        interval = float(row.healthcheck["interval_s"])
        if row.health_by is not None:
            self._kernel.after((row.health_by - timezone.now()).total_seconds() + 0.01, lambda: self._wake(row.pk))

        def again() -> None:
            if key in self._waiting and not self._prober.submit(key, check, min(MOST_S, check.timeout_s), told):
                # The child of the probe before is not reaped yet.
                self._kernel.after(max(interval, 0.1), again)

        def told(_: Any, result: Result) -> None:
            with self._lock:
                if key not in self._waiting:
                    return
                self._waiting[key] = result.reason
            self._keep(row, result, is_due=False)
            if result.ok:
                self._submit(f"health:{row.pk}:{row.generation}", self._first_success, row)
            else:
                self._kernel.after(interval, again)

        try:
            check = _check(row)
        except ValueError as error:
            self._waiting[key] = str(error)
            return
        again()

    def last_reason(self, row: ManagedProcess) -> str:
        """Return why the last probe of a service that waits for its first success missed."""
        return self._waiting.get((row.pk, row.generation), "")

    def forget(self, pk: int) -> None:
        """Wait no longer for a service."""
        with self._lock:
            gone = [key for key in (*self._waiting, *self._in_flight) if key[0] == pk]
            for key in gone:
                self._waiting.pop(key, None)
                self._in_flight.pop(key, None)
        for key in gone:
            self._prober.cancel(key)
        self._keep_strip(pk)
        self._strips.pop(pk, None)

    def _seed(self, keys: Iterable[int]) -> None:
        """Take up the strips where the worker before us, or the life before this one, left them; one query."""
        missing = [pk for pk in keys if pk not in self._strips]
        if missing:
            for pk, shown in ManagedProcess.objects.filter(pk__in=missing).values_list("pk", "strip"):
                self._strips[pk] = _Strip(deque(shown, maxlen=STRIP))

    def _keep_strip(self, pk: int) -> None:
        """Write what of a strip is not written yet."""
        strip = self._strips.get(pk)
        if strip is not None and not strip.is_written:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.execute(_STRIP, [strip.text(), pk, strip.generation])

    def _first_success(self, row: ManagedProcess) -> None:
        now = timezone.now()
        try:
            lifecycle.heal(row, next_probe_at=now + _period(row), by=SWEEP, now=now)
            self._keep_strip(row.pk)
        except Conflict:
            self._wake(row.pk)
        finally:
            with self._lock:
                self._waiting.pop((row.pk, row.generation), None)

    def probe(self, *, node: str, now: datetime) -> int:
        """Start the probes that are due; returns how many."""
        rows = ManagedProcess.objects.filter(
            node=node, next_probe_at__lte=now, status__in=[Status.HEALTHY, Status.UNHEALTHY]
        )
        started = 0
        for row in rows.order_by("next_probe_at").only(*DUE)[:BATCH]:
            key = (row.pk, row.generation)
            with self._lock:
                if key in self._in_flight:
                    continue
                self._in_flight[key] = (row, now)
            try:
                check = _check(row)
            except ValueError as error:
                # A miss like any other; the probes of the rest go on.
                self._told(key, Result(ok=False, reason=str(error), took_ms=0.0))
                continue
            if self._prober.submit(key, check, min(MOST_S, check.timeout_s), self._told):
                started += 1
            else:
                with self._lock:
                    self._in_flight.pop(key, None)
        return started

    def _told(self, key: Any, result: Result) -> None:
        with self._lock:
            self._results.append((key, result, time.time()))

    def write(self, *, now: datetime) -> int:
        """Write what the probes of the last second found and move those on whose state it changes; returns how many."""
        with self._lock:
            results, self._results = self._results, []
            found = [(self._in_flight.pop(key, None), result) for key, result, _ in results]
        plain: list[tuple[Any, ...]] = []
        strips: list[tuple[Any, ...]] = []
        changed: list[tuple[ManagedProcess, Result, Streak]] = []
        adapt = connection.ops.adapt_datetimefield_value
        self._seed(flight[0].pk for flight, _ in found if flight is not None)
        for flight, result in found:
            if flight is None:
                continue
            row, asked_at = flight
            streak = after(Streak(row.misses, row.passes), ok=result.ok)
            next_at = max(now, asked_at + _period(row))
            if (strip := self._keep(row, result)) is not None:
                strips.append((strip, row.pk, row.generation))
            seen = str(adapt(now)) if result.ok else None
            plain.append((streak.misses, streak.passes, str(adapt(next_at)), seen, row.pk, row.generation))
            changed.append((row, result, streak))
        if plain:
            with transaction.atomic(), connection.cursor() as cursor:
                cursor.executemany(_RESULT, plain)
                if strips:
                    cursor.executemany(_STRIP, strips)
        for row, result, streak in changed:
            try:
                self._turn(row, result, streak, now)
            except Exception:
                log.exception("%s", row)
        return len(plain)

    def _turn(self, row: ManagedProcess, result: Result, streak: Streak, now: datetime) -> None:
        spec = row.healthcheck
        try:
            if row.status == Status.HEALTHY and is_down(streak, spec["failure_threshold"]):
                whole = ManagedProcess.objects.get(pk=row.pk, generation=row.generation)
                lifecycle.sicken(
                    whole,
                    result.reason,
                    misses=streak.misses,
                    jitter=_jitter(),
                    by=SWEEP,
                    now=now,
                )
                self._wake(row.pk)
            elif row.status == Status.UNHEALTHY and is_up(streak, spec["success_threshold"]):
                lifecycle.heal(row, passes=streak.passes, next_probe_at=now + _period(row), by=SWEEP, now=now)
        except (Conflict, ManagedProcess.DoesNotExist):
            return

    def _keep(self, row: ManagedProcess, result: Result, *, is_due: bool = True) -> str | None:
        """Add to a service's strip; returns it as JSON when it is time to write it."""
        strip = self._strips.setdefault(row.pk, _Strip(deque(maxlen=STRIP)))
        strip.shown.append([int(time.time() * 1000), int(result.ok), round(result.took_ms)])
        strip.is_written, strip.generation = False, row.generation
        if not is_due or time.monotonic() - strip.written_at < STRIP_EVERY_S:
            return None
        return strip.text()


def _check(row: ManagedProcess) -> Check:
    env = starting.environment(row)
    return Check.from_spec(row.healthcheck, cwd=row.cwd, env=env, hosts=settings.ANDON_HEALTH_HOSTS)


def _jitter() -> float:
    return random.random()  # noqa: S311 (spreads probes and restarts, guards nothing)


def _period(row: ManagedProcess) -> timedelta:
    return timedelta(seconds=next_delay(float(row.healthcheck["period_s"]), _jitter()))


_TABLE = ManagedProcess._meta.db_table  # noqa: SLF001 (Django's documented way to a table's name)
_RESULT = (
    f"UPDATE {_TABLE} SET misses = %s, passes = %s, next_probe_at = %s, "  # noqa: S608 (constants only)
    "last_health_at = COALESCE(%s, last_health_at) WHERE id = %s AND generation = %s AND next_probe_at IS NOT NULL"
)
_STRIP = f"UPDATE {_TABLE} SET strip = %s WHERE id = %s AND generation = %s"  # noqa: S608 (constants only)
