"""One reader of the event log per web process, which tells all its sockets and streams.

The cursor is the truth: nudges only decide when the log is read (docs/decisions/0001).
"""

import asyncio
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Any

import orjson
from channels.db import database_sync_to_async
from django.db import DatabaseError, connection
from django.db.models import Max
from django.utils import timezone

from projects import access, nudge
from projects.access import Identity
from projects.events import WIRE, frame_row
from projects.models import Event, EventFloor

FRAME = 200
BATCH = 1000
BEAT_S = 20.0
RECHECK_S = 2.0
CHECK_S = 5.0
# A reader so far behind is told to read anew instead of holding frames for it.
WAITING_FRAMES = 32
log = logging.getLogger("andon.relay")


@dataclass(frozen=True, slots=True)
class Filter:
    """Which events one reader wants: prefixes, "" = all; `only` binds a project's token to its project."""

    subject: str = ""
    kind: str = ""
    project: str = ""
    only: str = ""

    def wants(self, row: dict[str, Any]) -> bool:
        return (
            row["subject"].startswith(self.subject)
            and row["kind"].startswith(self.kind)
            and row["project"].startswith(self.project)
            and (not self.only or row["project"] == self.only)
        )


@dataclass(frozen=True, slots=True)
class Frame:
    """What goes to a reader at once: at most 200 events, and how far the log was read."""

    events: list[dict[str, Any]]
    cursor: int
    reset: bool = False

    def encode(self) -> bytes:
        if self.reset:
            return orjson.dumps({"reset": True, "cursor": self.cursor})
        return orjson.dumps({"events": self.events, "cursor": self.cursor})


class Expelled(Exception):
    """The reader lost its right to listen."""


@dataclass(eq=False)
class Subscription:
    """One reader's place: frames wait here, in the event loop that made it."""

    identity: Identity
    wanted: Filter
    frames: deque[tuple[Frame, bytes]] = field(default_factory=deque)
    ready: asyncio.Event = field(default_factory=asyncio.Event)
    is_expelled: bool = False
    is_restored: bool = False

    def put(self, frame: Frame, encoded: bytes) -> None:
        self.is_restored = self.is_restored or frame.reset
        if len(self.frames) >= WAITING_FRAMES:
            self.frames.clear()
            frame = Frame([], frame.cursor, reset=True)
            encoded = frame.encode()
        self.frames.append((frame, encoded))
        self.ready.set()

    async def get(self) -> tuple[Frame, bytes]:
        while not self.frames and not self.is_expelled:
            self.ready.clear()
            await self.ready.wait()
        if self.is_expelled:
            raise Expelled
        return self.frames.popleft()

    def forget(self, cursor: int) -> None:
        """Drop what waits here and was told through `cursor` by other means, an overflow's reset included.

        Not the reset of a restored backup: its reader has seen what is not in the log any more.
        """
        while not self.is_restored and self.frames and self.frames[0][0].cursor <= cursor:
            self.frames.popleft()

    def expel(self) -> None:
        self.is_expelled = True
        self.frames.clear()
        self.ready.set()


class Relay:
    """Tails the log in a thread and fans out in the event loop. `checks` run in the thread every 5 s."""

    def __init__(self, checks: tuple[Callable[[], object], ...] = ()) -> None:
        self.checks = checks
        self.subscriptions: set[Subscription] = set()
        self.cursor = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        self._started = threading.Lock()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Start reading at the head of the log, once; daphne has no lifespan, so the first reader starts it."""
        with self._started:
            if self._thread is not None and self._thread.is_alive():
                return
            self._loop = loop
            self._stop.clear()
            self.cursor = head()
            self._thread = threading.Thread(target=self._run, name="relay", daemon=True)
            self._thread.start()

    async def wake(self) -> None:
        """Start from the event loop of a reader; one that waits only for its expulsion needs it too."""
        await database_sync_to_async(self.start)(asyncio.get_running_loop())

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(timeout=5)
            self._thread = None

    async def frames(
        self, identity: Identity, wanted: Filter, since: int | None
    ) -> AsyncGenerator[tuple[Frame, bytes], None]:
        """Yield frames from `since` (None = from now) for ever; raises Expelled when the right to listen ends.

        The first frame may be empty. `since` before what was pruned or beyond the head yields a reset.
        """
        await self.wake()
        place = Subscription(identity, wanted)
        self.subscriptions.add(place)
        try:
            async for frame in catch_up(wanted, since):
                if place.is_expelled:
                    raise Expelled
                cursor = frame.cursor
                yield frame, frame.encode()
                place.forget(cursor)
            while True:
                frame, encoded = await place.get()
                fresh = [row for row in frame.events if row["id"] > cursor]
                if not frame.reset and (frame.cursor < cursor or len(fresh) < len(frame.events)):
                    # Catching up has told of it already.
                    if not fresh:
                        continue
                    frame = Frame(fresh, frame.cursor)
                    encoded = frame.encode()
                cursor = frame.cursor
                yield frame, encoded
        finally:
            self.subscriptions.discard(place)

    def _run(self) -> None:
        ear = None
        seen_version = None
        beat = recheck = checked = time.monotonic()
        while not self._stop.is_set():
            try:
                ear = ear or nudge.listen()
                ear.wait()
                version = _data_version()
                if version is None or version != seen_version:
                    seen_version = version
                    self._read()
                now = time.monotonic()
                if now - beat >= BEAT_S:
                    beat = now
                    self._tell([], self.cursor, silent_too=True)
                if now - recheck >= RECHECK_S:
                    recheck = now
                    self._recheck()
                if now - checked >= CHECK_S:
                    checked = now
                    for check in self.checks:
                        check()
                    # data_version tells of other connections only, and the checks wrote on this one.
                    seen_version = None
            except Exception as error:  # noqa: BLE001 (whatever it was, the log must go on being read)
                log.warning("relay: %s, trying again", error)
                seen_version = None
                connection.close()
                if ear is not None and not isinstance(error, DatabaseError):
                    ear.close()
                    ear = None
                self._stop.wait(0.5)
        if ear is not None:
            ear.close()
        connection.close()

    def _read(self) -> None:
        while True:
            rows = read(self.cursor, BATCH)
            if not rows:
                if self.cursor > head():  # a backup was restored under us
                    self.cursor = head()
                    self._tell([], self.cursor, reset=True)
                return
            for start in range(0, len(rows), FRAME):
                chunk = rows[start : start + FRAME]
                self.cursor = chunk[-1]["id"]
                self._tell(chunk, self.cursor)
            if len(rows) < BATCH:
                return

    def _tell(self, rows: list[dict[str, Any]], cursor: int, *, silent_too: bool = False, reset: bool = False) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fan_out, rows, cursor, silent_too, reset)

    def _fan_out(self, rows: list[dict[str, Any]], cursor: int, silent_too: bool, reset: bool) -> None:
        encoded: dict[Filter, tuple[Frame, bytes]] = {}
        for place in self.subscriptions:
            if place.wanted not in encoded:
                frame = Frame([row for row in rows if place.wanted.wants(row)], cursor, reset)
                encoded[place.wanted] = frame, frame.encode()
            frame, text = encoded[place.wanted]
            if frame.events or silent_too or reset:
                place.put(frame, text)

    def _recheck(self) -> None:
        listening = {place.identity for place in list(self.subscriptions)}
        if not listening:
            return
        gone = access.expelled(listening, now=timezone.now())
        if gone and self._loop is not None:
            self._loop.call_soon_threadsafe(self._expel, gone)

    def _expel(self, gone: set[Identity]) -> None:
        for place in [place for place in self.subscriptions if place.identity in gone]:
            place.expel()


relay = Relay()


def head() -> int:
    """Return the greatest event id, 0 in an empty log (then what was pruned, ids are never used again)."""
    return Event.objects.aggregate(last=Max("id"))["last"] or floor()


def floor() -> int:
    """Return the greatest id that retention has deleted."""
    row = EventFloor.objects.values_list("pruned_through", flat=True).first()
    return row or 0


def read(cursor: int, limit: int) -> list[dict[str, Any]]:
    """Return up to `limit` events after `cursor` in order, as they stand on the wire."""
    return [frame_row(row) for row in Event.objects.filter(id__gt=cursor).order_by("id").values(*WIRE)[:limit]]


def page_of(wanted: Filter, since: int | None) -> Frame:
    """Return one frame after `since`, read from the database; a reset where `since` is not in the log."""
    last = head()
    if since is None:
        return Frame([], last)
    if since > last or (since and since < floor()):
        return Frame([], last, reset=True)
    cursor = since
    events: list[dict[str, Any]] = []
    # Bounded work for a filter that matches little: the cursor tells how far this page read.
    for _ in range(10):
        rows = read(cursor, FRAME)
        for row in rows:
            if len(events) == FRAME:
                return Frame(events, cursor)
            cursor = row["id"]
            if wanted.wants(row):
                events.append(row)
        if len(rows) < FRAME:
            break
    return Frame(events, cursor)


async def catch_up(wanted: Filter, since: int | None) -> AsyncIterator[Frame]:
    """Yield what the log holds after `since`, at least one frame."""
    for turn in itertools.count():
        frame = await database_sync_to_async(page_of)(wanted, since)
        if turn and not frame.events and frame.cursor == since:
            return
        yield frame
        if frame.reset or since is None or frame.cursor == since:
            return
        since = frame.cursor


def _data_version() -> int | None:
    """Return SQLite's change counter as this connection sees it; None elsewhere (each wake-up reads)."""
    if connection.vendor != "sqlite":
        return None
    # Below Django's cursors: this runs twenty times a second for as long as the process lives.
    connection.ensure_connection()
    version: int = connection.connection.execute("PRAGMA data_version").fetchone()[0]
    return version
