"""WebSockets of the ASGI application, opened as a browser or a program would."""

import contextlib
from collections.abc import AsyncIterator
from typing import Any

from channels.testing import WebsocketCommunicator

LONG_S = 5
HOST = "andon.example:8000"
OWN = f"http://{HOST}"


def socket_at(path: str, *, session: str = "", origin: str = "", host: str = HOST) -> WebsocketCommunicator:
    from config.asgi import application

    headers = {"host": host, "origin": origin, "cookie": f"andon_session={session}" if session else ""}
    lines = [(name.encode(), value.encode()) for name, value in headers.items() if value]
    return WebsocketCommunicator(application, path, headers=lines)


@contextlib.asynccontextmanager
async def opened(path: str, **options: str) -> AsyncIterator[WebsocketCommunicator]:
    socket = socket_at(path, **options)
    accepted, code = await socket.connect(timeout=LONG_S)
    assert accepted, code
    try:
        yield socket
    finally:
        await socket.disconnect(timeout=LONG_S)


async def refusal(path: str, **options: str) -> int:
    """Return the close code of a socket that must not be accepted."""
    socket = socket_at(path, **options)
    accepted, code = await socket.connect(timeout=LONG_S)
    await socket.disconnect(timeout=LONG_S)
    assert not accepted
    return code


async def frame_of(socket: WebsocketCommunicator) -> dict[str, Any]:
    return await socket.receive_json_from(timeout=LONG_S)


async def close_code(socket: WebsocketCommunicator) -> int:
    """Read until the server closes; returns its code."""
    while True:
        output = await socket.receive_output(timeout=LONG_S)
        if output["type"] == "websocket.close":
            return output["code"]
