"""The board's events over WebSocket: /api/kanban/events?since=&token= (spec: kanban.md 4)."""

import contextlib
from collections.abc import AsyncGenerator
from datetime import datetime
from typing import Any

import orjson
from channels.db import database_sync_to_async

from kanban.queries import epoch, event_document
from kanban.queries.events import PREFIX
from projects import relay as log
from projects.access import Identity
from projects.relay import Filter, relay
from projects.sockets import EventSocket, number


class BoardConsumer(EventSocket):
    """Streams `{events: [{id, task_id, kind, payload, created_at}], cursor}`, never an empty frame and never a reset.

    `since` absent or not a number is 0: all that is retained.
    """

    async def frames(self, identity: Identity, query: dict[str, str]) -> AsyncGenerator[bytes, None]:
        wanted = Filter(kind=PREFIX, only=identity.project)
        cursor = number(query.get("since", ""))
        while True:
            cursor = await database_sync_to_async(_retained)(cursor)
            async with contextlib.aclosing(relay.frames(identity, wanted, cursor)) as frames:
                async for frame, _ in frames:
                    if frame.reset:
                        # It lagged behind, or the log begins later, or ends earlier, than it thought.
                        break
                    cursor = frame.cursor
                    if frame.events:
                        yield orjson.dumps({"events": [_shown(row) for row in frame.events], "cursor": cursor})


def _retained(since: int) -> int:
    """Return where to go on: what is pruned is past, what is beyond the head has not come yet."""
    last = log.head()
    return last if since > last else max(since, log.floor()) if since else 0


def _shown(row: dict[str, Any]) -> dict[str, Any]:
    created_at = epoch(datetime.fromisoformat(row["at"]))
    return event_document(row["id"], row["kind"], row["subject"], row["payload"], created_at)
