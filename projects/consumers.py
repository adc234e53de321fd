"""The event log over WebSocket: /ws/events?since=&subject=&kind=&project=&token= (design: section 2)."""

import contextlib
from collections.abc import AsyncGenerator

from channels.generic.websocket import AsyncWebsocketConsumer

from projects.access import Identity
from projects.relay import Filter, relay
from projects.sockets import REFUSED, EventSocket, number


class EventsConsumer(EventSocket):
    """Streams frames as the log has them.

    `since` absent is from now, nonsense is from the beginning rather than a silent gap.
    """

    async def frames(self, identity: Identity, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        since = number(query["since"]) if "since" in query else None
        wanted = Filter(
            query.get("subject", ""), query.get("kind", ""), query.get("project", ""), only=identity.project
        )
        async with contextlib.aclosing(relay.frames(identity, wanted, since)) as frames:
            async for _, encoded in frames:
                yield encoded


class RefusingConsumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # channels ships no types
    """Refuses a socket at an unknown address instead of raising in the server's log."""

    async def connect(self) -> None:
        await self.close(code=REFUSED)
