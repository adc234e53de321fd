"""Django's ASGI handler with one change of threads a request, on threads that keep their connection.

Django's own changes threads five times where a synchronous middleware stands under asynchronous ones, and begins each
request with a new thread and a new connection: more than half of what a small read takes (docs/decisions).
"""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import RequestAborted
from django.core.handlers.asgi import ASGIHandler, ASGIRequest, get_script_prefix
from django.core.signals import request_started
from django.db import connection
from django.http import FileResponse, HttpResponseBase
from django.urls import set_script_prefix

# A verb may wait 15 s for its outcome; so many may, and pages are still answered. Threads are made as they are needed.
THREADS = 64


def _keep_connection() -> None:
    """Keep this thread's connection over requests; PostgreSQL's come from a pool."""
    if connection.vendor == "sqlite":
        connection.settings_dict = {**connection.settings_dict, "CONN_MAX_AGE": None}


class Handler(ASGIHandler):
    """Answer one HTTP request; asynchronous views and streams work as ever."""

    # A board of 10 MB would otherwise pass from task to task 160 times.
    chunk_size = 1024 * 1024

    def __init__(self) -> None:
        super().__init__()
        threads = ThreadPoolExecutor(THREADS, thread_name_prefix="request", initializer=_keep_connection)
        self._in_thread = sync_to_async(self._respond, thread_sensitive=False, executor=threads)

    def load_middleware(self, is_async: bool = False) -> None:
        """Load the middleware as one synchronous chain."""
        super().load_middleware(is_async=False)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer a request of the type http."""
        try:
            body = await self.read_body(receive)
        except RequestAborted:
            return
        with body:
            request, refusal = self.create_request(scope, body)
            response = refusal if request is None else await self._in_thread(scope, request)
            assert response is not None  # noqa: S101 (one of both is there)
            if not response.streaming:
                await self.send_response(response, send)
                return
            async with ThreadSensitiveContext():
                try:
                    await self._stream(response, receive, send)
                finally:
                    await sync_to_async(response.close)()

    def _respond(self, scope: Any, request: ASGIRequest) -> HttpResponseBase:
        """Return the answer, closed already if it is whole, in the thread that its view ran in."""
        set_script_prefix(get_script_prefix(scope))
        request_started.send(sender=type(self), scope=scope)
        response = self.get_response(request)
        response._handler_class = type(self)  # type: ignore[attr-defined]  # noqa: SLF001 (Django's handlers do)
        if isinstance(response, FileResponse):
            response.block_size = self.chunk_size
        if not response.streaming:
            response.close()
        return response

    async def _stream(self, response: HttpResponseBase, receive: Any, send: Any) -> None:
        """Send a stream until it ends or its reader leaves."""
        sending = asyncio.ensure_future(self.send_response(response, send))
        leaving = asyncio.ensure_future(receive())
        try:
            await asyncio.wait({sending, leaving}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            sending.cancel()
            leaving.cancel()
            await asyncio.gather(sending, leaving, return_exceptions=True)
        if not sending.cancelled():
            sending.result()
