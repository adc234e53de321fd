"""The thread that drives all probes."""

import logging
import threading
import time
from collections.abc import Callable, Hashable
from typing import TypeAlias

from services.probes.addresses import Lookups, Pool
from services.probes.checks import Check, Command, Result, deadline, inert
from services.probes.exchanges import Exchange
from services.probes.flights import Carrier
from services.probes.loop import Loop, Timer
from services.probes.programs import Program

logger = logging.getLogger(__name__)

OnResult: TypeAlias = Callable[[Hashable, Result], None]

_LOOKUPS = 4
_SEARCHES = 2


class Prober:
    """Probes any number of services with one thread and one epoll.

    Beside it stand a few daemon threads, started when first needed, for look-ups of names and searches in outputs.
    All methods may be called from any thread; all but `start` and `stop` from `on_result` too.
    """

    def __init__(self) -> None:
        """Make one that does not run yet."""
        self._lock = threading.Lock()
        self._flights: dict[Hashable, _Flight] = {}
        self._engine: _Engine | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread; nothing when it runs already. Raises OSError without descriptors."""
        with self._lock:
            if self._engine is None:
                self._engine = engine = _Engine()
                self._thread = threading.Thread(target=self._run, args=(engine,), name="prober", daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """End every probe without a result, kill what runs, and wait for the thread (at most about 3 s).

        `on_result` is not called any more afterwards. Nothing when it does not run.
        """
        with self._lock:
            engine, self._engine = self._engine, None
            thread, self._thread = self._thread, None
            self._flights.clear()
        if engine is not None and thread is not None:
            engine.loop.soon(lambda: None)
            thread.join()

    def submit(self, key: Hashable, check: Check, deadline_s: float, on_result: OnResult) -> bool:
        """Probe once, and call `on_result(key, result)` from the prober's thread; that must not wait.

        `deadline_s` (seconds) is the total for the probe, from when the thread takes it up. Returns False, and does
        nothing, when a probe of this key is in flight or the prober does not run. A command that was killed at its
        deadline stays in flight after its result until it is reaped. Raises ValueError unless the deadline is finite
        and positive.
        """
        deadline(deadline_s)
        with self._lock:
            if self._engine is None or key in self._flights:
                return False
            flight = _Flight(self, self._engine, key=key, check=check, deadline_s=deadline_s, on_result=on_result)
            self._flights[key] = flight
            self._engine.loop.soon(flight.begin)
        return True

    def cancel(self, key: Hashable) -> None:
        """End the probe of this key without a result; at once another one may be submitted.

        A call of `on_result` that has begun already is not undone. Nothing when none is in flight.
        """
        with self._lock:
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.is_off = True
                flight.loop.soon(flight.close)

    def in_flight(self) -> int:
        """Return how many probes are in flight."""
        with self._lock:
            return len(self._flights)

    def release(self, flight: "_Flight") -> None:
        """Free the key of a flight, unless another one has it by now."""
        with self._lock:
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]

    def claim(self, flight: "_Flight") -> bool:
        """Tell whether the result of a flight is still to be told, and take that on."""
        with self._lock:
            is_first = not flight.is_off and flight.engine is self._engine
            flight.is_off = True
            return is_first

    def _run(self, engine: "_Engine") -> None:
        engine.loop.run(lambda: self._engine is not engine, engine.close_flights)
        engine.close()


class _Engine:
    """What lives from one start to one stop."""

    def __init__(self) -> None:
        self.loop = Loop()
        self._names = Pool("probe-lookup", _LOOKUPS, self.loop.soon)
        self.lookups = Lookups(self._names)
        self.searches = Pool("probe-search", _SEARCHES, self.loop.soon)
        self.in_air: set[_Flight] = set()
        self.is_closing = False

    def close_flights(self) -> bool:
        """End all that is in the air; True while a killed program is not reaped."""
        self.is_closing = True
        for flight in tuple(self.in_air):
            flight.close()
        return bool(self.in_air)

    def close(self) -> None:
        if self.in_air:
            logger.warning("%d killed probes could not be reaped", len(self.in_air))
        self._names.close()
        self.searches.close()
        self.loop.close()


class _Flight:
    """One probe, from submit until nothing of it is left; see flights.Flight."""

    def __init__(
        self, prober: Prober, engine: _Engine, *, key: Hashable, check: Check, deadline_s: float, on_result: OnResult
    ) -> None:
        self.engine = engine
        self.loop = engine.loop
        self.lookups = engine.lookups
        self.searches = engine.searches
        self.key = key
        self.is_off = False
        self._prober = prober
        self._check = check
        self._deadline_s = deadline_s
        self._on_result = on_result
        self._began = 0.0
        self._timer: Timer | None = None
        self._carrier: Carrier | None = None

    def begin(self) -> None:
        if self.is_off or self.engine.is_closing:
            return
        what = self._check.what
        carrier = Program(self, what) if isinstance(what, Command) else Exchange(self, what)
        self._carrier = carrier
        self.engine.in_air.add(self)
        self._began = time.monotonic()
        self._timer = self.loop.at(self._began + self._deadline_s, self._expire)
        carrier.begin()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._carrier is not None:
            self._carrier.close()

    def leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._prober.release(self)

    def settle(self, *, ok: bool, reason: str = "") -> None:
        if not self._prober.claim(self):
            return
        result = Result(ok=ok, reason=inert(reason), took_ms=(time.monotonic() - self._began) * 1000)
        try:
            self._on_result(self.key, result)
        except Exception:
            logger.exception("what was to hear a probe's result failed")

    def land(self) -> None:
        self.engine.in_air.discard(self)

    def _expire(self) -> None:
        if self._carrier is not None:
            self._carrier.expire(f"no answer within {self._deadline_s:g} s")


def run(check: Check, deadline_s: float) -> Result:
    """Probe once and wait for the result. Raises ValueError and OSError as `Prober.submit` and `start` do."""
    deadline(deadline_s)
    done = threading.Event()
    results: list[Result] = []

    def on_result(_key: Hashable, result: Result) -> None:
        results.append(result)
        done.set()

    prober = Prober()
    prober.start()
    try:
        prober.submit(0, check, deadline_s, on_result)
        done.wait()
    finally:
        prober.stop()
    return results[0]
