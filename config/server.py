"""Daphne with backpressure: whoever stops reading holds up himself, not our memory.

Daphne hands every frame to Twisted's buffer at once, without end. Here a reply waits while its connection has too
much unsent; the relay then cuts that reader to a reset, and after a minute without progress it is disconnected.
"""

import asyncio
import gc
import time
from typing import Any

from daphne.cli import CommandLineInterface
from daphne.server import Server

UNSENT_BYTES = 1024 * 1024
PATIENCE_S = 60.0
# A reader that keeps up takes a megabyte in less than the first; one that does not is looked at ever less often.
FIRST_LOOK_S, LAST_LOOK_S = 0.0005, 0.05


class PatientServer(Server):  # type: ignore[misc]
    def run(self) -> None:
        """Serve until told to stop."""
        # What is loaded by now stays: walked at each full collection, it held up all requests for 70 ms.
        gc.freeze()
        super().run()

    async def handle_reply(self, protocol: Any, message: dict[str, Any]) -> None:
        """Forward one reply once its connection has room; abort one that took nothing for a minute."""
        waiting_since, pause = time.monotonic(), FIRST_LOOK_S
        while (left := unsent(protocol)) > UNSENT_BYTES and protocol in self.connections:
            await asyncio.sleep(pause)
            pause = min(pause * 2, LAST_LOOK_S)
            if unsent(protocol) < left:
                waiting_since, pause = time.monotonic(), FIRST_LOOK_S
            elif time.monotonic() - waiting_since > PATIENCE_S:
                transport_of(protocol).abortConnection()
                return
        await super().handle_reply(protocol, message)


class WebCommand(CommandLineInterface):  # type: ignore[misc]
    server_class = PatientServer


def transport_of(protocol: Any) -> Any:
    """Return the TCP transport of a WebSocket protocol or of an HTTP request; None once it is gone."""
    channel = getattr(protocol, "channel", None)
    return channel.transport if channel is not None else getattr(protocol, "transport", None)


def unsent(protocol: Any) -> int:
    """Return how many bytes wait in a connection's buffer; 0 where there is none any more."""
    transport = transport_of(protocol)
    if not hasattr(transport, "dataBuffer"):
        return 0
    waiting: int = len(transport.dataBuffer) - transport.offset + transport._tempDataLen  # noqa: SLF001 (no public measure)
    return waiting
