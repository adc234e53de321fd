"""Server-sent events: the status of all loops, rendered once per process, and a log as it grows."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any, BinaryIO

import orjson
from channels.db import database_sync_to_async
from django.http import StreamingHttpResponse
from django.utils import timezone

from projects import disk, queries
from projects.access import Identity
from projects.models import Iteration
from projects.relay import Expelled, Filter, Frame, Subscription, head, relay
from projects.states import Role
from services import logs

STATUS_EVERY_S = 2.0
HEARTBEAT_S = 30.0
LOG_HEARTBEAT_S = 15.0
LOG_STEP_S = 0.25
LOG_ENDED_LOOK_S = 2.0
LOG_PACE_S = 0.1
LOG_BEHIND = 4 * 1024 * 1024
LOG_SKIP_TO = 64 * 1024
RETRY = b"retry: 3000\n\n"
SHOWN = ("project.", "story.", "loop.", "iteration.")
# Matches no event: such a place waits for its own messages and for expulsion.
NOTHING = Filter(subject="\x00")
RENDERER = Identity(name="andon", role=Role.VIEWER)
log = logging.getLogger("andon.streams")


def sse(chunks: AsyncIterator[bytes]) -> StreamingHttpResponse:
    """Answer with a stream of server-sent events that no proxy holds back."""
    response = StreamingHttpResponse(chunks, content_type="text/event-stream")
    response["Cache-Control"] = "no-store"
    response["X-Accel-Buffering"] = "no"
    return response


def message(event: str, data: bytes | str | dict[str, Any], id_: int | str | None = None) -> bytes:
    """Return one message; `data` is one line of JSON."""
    body = data if isinstance(data, bytes) else data.encode() if isinstance(data, str) else orjson.dumps(data)
    head_ = b"" if id_ is None else f"id: {id_}\n".encode()
    return head_ + b"event: " + event.encode() + b"\ndata: " + body + b"\n\n"


class StatusBoard:
    """The latest status document of one scope ("" = all projects), rendered when something shown changed."""

    def __init__(self, scope: str) -> None:
        self.scope = scope
        self.listeners: set[Subscription] = set()
        self.cursor = 0
        self.latest = b""
        self.digest = ""
        self._entrance = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    async def follow(self, identity: Identity) -> AsyncIterator[bytes]:
        """Yield messages for one client: at once the snapshot, then what changed, a heartbeat in silence."""
        place = Subscription(identity, NOTHING)
        relay.subscriptions.add(place)
        self.listeners.add(place)
        try:
            yield RETRY
            yield await self._first()
            loop = asyncio.get_running_loop()
            silent_since = loop.time()
            while True:
                try:
                    frame, encoded = await asyncio.wait_for(
                        place.get(), max(0.01, silent_since + HEARTBEAT_S - loop.time())
                    )
                except TimeoutError:
                    silent_since = loop.time()
                    yield message("heartbeat", {}, self.cursor)
                    continue
                if frame.events:
                    silent_since = loop.time()
                    yield encoded
        except Expelled:
            return
        finally:
            self.listeners.discard(place)
            relay.subscriptions.discard(place)
            if not self.listeners and self._task is not None:
                self._task.cancel()
                self._task = None

    async def _first(self) -> bytes:
        # Clients that come together share one snapshot.
        async with self._entrance:
            if self._task is None:
                self.latest = b""
                try:
                    await self._render()
                except Exception:
                    log.exception("the status could not be rendered")
                self._task = asyncio.create_task(self._run())
        if not self.latest:
            return message("error", {"error": "internal", "detail": "The status could not be read; trying again."})
        return message("status", self.latest, self.cursor)

    async def _run(self) -> None:
        while True:
            try:
                await self._follow_log()
            except Exception:
                log.exception("the status could not be rendered")
            await asyncio.sleep(STATUS_EVERY_S)

    async def _follow_log(self) -> None:
        since = self.cursor if self.latest else None
        async with contextlib.aclosing(relay.frames(RENDERER, Filter(only=self.scope), since)) as frames:
            async for frame, _ in frames:
                if self.latest and not frame.reset and not self._is_news(frame):
                    continue
                if await self._render():
                    self._publish()
                await asyncio.sleep(STATUS_EVERY_S)

    def _is_news(self, frame: Frame) -> bool:
        return frame.cursor > self.cursor and any(row["kind"].startswith(SHOWN) for row in frame.events)

    async def _render(self) -> bool:
        """Render anew; says whether anything shown changed."""
        cursor = await database_sync_to_async(head)()
        document = await database_sync_to_async(queries.snapshot)(timezone.now(), self.scope)
        self.cursor = cursor
        digest = hashlib.sha256(orjson.dumps(document["projects"])).hexdigest()
        if digest == self.digest and self.latest:
            return False
        self.digest, self.latest = digest, orjson.dumps(document)
        return True

    def _publish(self) -> None:
        encoded = message("status", self.latest, self.cursor)
        for place in self.listeners:
            # A client that lags gets only the newest.
            place.frames.clear()
            place.put(Frame([{"status": True}], self.cursor), encoded)


_boards: dict[tuple[int, str], StatusBoard] = {}


def status_stream(identity: Identity) -> AsyncIterator[bytes]:
    """Follow the status of all projects that an identity may see."""
    key = id(asyncio.get_running_loop()), identity.project
    return _boards.setdefault(key, StatusBoard(identity.project)).follow(identity)


async def event_stream(identity: Identity, wanted: Filter, since: int | None) -> AsyncIterator[bytes]:
    """Follow the event log; `id:` is the cursor."""
    yield RETRY
    try:
        async with contextlib.aclosing(relay.frames(identity, wanted, since)) as frames:
            async for frame, encoded in frames:
                yield message("reset" if frame.reset else "events", encoded, frame.cursor)
    except Expelled:
        return


def log_stream(identity: Identity, iteration: Iteration, offset: int) -> AsyncIterator[bytes]:
    """Follow an iteration's log from a byte offset; `done` once the iteration has ended and all was read."""

    def read(offset: int) -> logs.Chunk | None:
        with disk.opened_log(iteration) as descriptor:
            return None if descriptor is None else logs.read_from(descriptor, offset=offset)

    def has_ended() -> bool:
        return iteration.ended_at is not None or not Iteration.objects.filter(pk=iteration.pk, ended_at=None).exists()

    return follow(identity, read, has_ended, offset)


async def follow(
    identity: Identity, read: Callable[[int], logs.Chunk | None], has_ended: Callable[[], bool], offset: int
) -> AsyncIterator[bytes]:
    """Follow a growing log from a byte offset: `log`, `heartbeat` each 15 s of silence, `done` at its end.

    `log` carries offset, next_offset, text, the same text as escaped spans in html, and `truncated`: something
    before was left out. `done` carries the offset reached.

    `read(offset)` is `logs.read_from` on the log, with its meaning of a negative offset; while there is no log it
    gives None or raises OSError. It runs in a thread that must not use the database. `has_ended()` may; it is asked
    when nothing new is there, each 2 s, and when it says yes, what is there still is read.

    A log that grows faster than it can be sent is not followed line by line: who falls back by 4 MiB goes on with
    the last 64 KiB.
    """
    await relay.wake()
    place = Subscription(identity, NOTHING)
    relay.subscriptions.add(place)
    loop = asyncio.get_running_loop()
    state = None
    silent_since, looked = loop.time(), -LOG_ENDED_LOOK_S
    nearest: int | None = None
    ended = False
    try:
        yield RETRY
        while not place.is_expelled:
            chunk, html, state = await asyncio.to_thread(_piece, read, offset, state)
            if chunk is not None:
                offset = chunk.next_offset
            if chunk is not None and (chunk.text or chunk.truncated):
                body = {"offset": chunk.offset, "next_offset": offset, "text": chunk.text, "html": html}
                yield message("log", {**body, "truncated": chunk.truncated}, offset)
                silent_since = loop.time()
                behind = chunk.size - offset
                nearest = behind if nearest is None else min(nearest, behind)
                if behind - nearest > LOG_BEHIND:
                    offset, nearest = -LOG_SKIP_TO, None
                # The server buffers without limit for a client that does not read.
                await asyncio.sleep(LOG_PACE_S)
                continue
            if ended:
                yield message("done", {"offset": max(0, offset)})
                return
            if loop.time() - looked >= LOG_ENDED_LOOK_S:
                looked = loop.time()
                ended = await database_sync_to_async(has_ended)()
                if ended:
                    continue
            if loop.time() - silent_since >= LOG_HEARTBEAT_S:
                silent_since = loop.time()
                yield message("heartbeat", {})
            await asyncio.sleep(LOG_STEP_S)
    finally:
        relay.subscriptions.discard(place)


def _piece(
    read: Callable[[int], logs.Chunk | None], offset: int, state: logs.AnsiState | None
) -> tuple[logs.Chunk | None, str, logs.AnsiState | None]:
    chunk = None
    with contextlib.suppress(OSError):
        chunk = read(offset)
    if chunk is None:
        return None, "", state
    return chunk, *logs.ansi_html(chunk.text, None if chunk.truncated else state)


async def pieces(whole: BinaryIO, size: int = 262_144) -> AsyncIterator[bytes]:
    """Yield a file in pieces and close it; never more than one piece in memory."""
    with whole:
        while piece := await asyncio.to_thread(whole.read, size):
            yield piece
