"""What every WebSocket of events has in common: who is let in, the frames that are sent, and how it ends."""

import asyncio
import contextlib
import logging
from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator
from typing import Any
from urllib.parse import parse_qs

from channels.db import database_sync_to_async
from channels.generic.websocket import AsyncWebsocketConsumer
from django.conf import settings
from django.utils import timezone

from projects import access
from projects.access import Identity
from projects.errors import DomainError, Forbidden
from projects.relay import Expelled

REFUSED = 1008
FAILED = 1011
EXPELLED = 4401
log = logging.getLogger("andon.events")


class EventSocket(ABC, AsyncWebsocketConsumer):  # type: ignore[misc]  # channels ships no types
    """Sends what `frames` yields until the socket closes; closes 4401 when the session or token ends."""

    pump: asyncio.Task[None] | None = None

    @abstractmethod
    def frames(self, identity: Identity, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        """Yield encoded frames for ever; raises Expelled when the right to listen ends."""

    async def connect(self) -> None:
        raw = self.scope.get("query_string", b"").decode("latin-1")
        query = {key: values[-1] for key, values in parse_qs(raw, keep_blank_values=True).items()}
        try:
            identity = await self._identify(query.get("token", ""))
        except DomainError:
            await self.close(code=REFUSED)
            return
        await self.accept()
        self.pump = asyncio.create_task(self._pump(identity, query))

    async def disconnect(self, code: int) -> None:
        if self.pump is not None:
            self.pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.pump

    async def _pump(self, identity: Identity, query: dict[str, str]) -> None:
        try:
            async with contextlib.aclosing(self.frames(identity, query)) as frames:
                async for encoded in frames:
                    await self.send(text_data=encoded.decode())
        except Expelled:
            await self.close(code=EXPELLED)
        except Exception:
            # Open but silent, nobody would connect again.
            log.exception("the event log could not be followed")
            await self.close(code=FAILED)

    async def _identify(self, token: str) -> Identity:
        address = (self.scope.get("client") or ("",))[0]
        who: Identity
        if token:
            who = await database_sync_to_async(access.identify_token)(token, now=timezone.now(), address=address)
            if who.run:
                raise Forbidden("forbidden", "A run may not listen to the event log.")
            return who
        if not _is_own_origin(self.scope):
            raise Forbidden("forbidden", "This socket was opened by a page of another origin.")
        user, session = self.scope["user"], self.scope["session"]
        who = await database_sync_to_async(access.identify_user)(user, session.session_key or "")
        return who


def _is_own_origin(scope: dict[str, Any]) -> bool:
    """Compare host *and port*: a dev server on another port of this machine is a stranger."""
    headers = {name: value.decode("latin-1") for name, value in scope["headers"]}
    origin, host = headers.get(b"origin", ""), headers.get(b"host", "")
    if not host:
        return False
    return origin in {f"http://{host}", f"https://{host}", *getattr(settings, "CSRF_TRUSTED_ORIGINS", [])}


def number(text: str) -> int:
    """Return the number that a text is, 0 when it is none."""
    return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0
