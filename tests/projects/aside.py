"""Tests of what lives in an event loop, and what they do beside it."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from asgiref.sync import async_to_sync
from django.db import connection


async def elsewhere(job: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Run a job on another thread, whose connection ends with it."""

    def run() -> Any:
        try:
            return job(*args, **options)
        finally:
            connection.close()

    return await asyncio.to_thread(run)


def running(test: Callable[[], Awaitable[None]]) -> None:
    async_to_sync(test)()
