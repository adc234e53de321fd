"""Requests through Django's handler of ours: one thread for middleware and view, kept with its connection."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest
from django.core.signals import request_finished
from django.db import connection
from django.http import FileResponse, HttpResponse, StreamingHttpResponse
from django.urls import path

from config import answering
from config.answering import Handler

pytestmark = pytest.mark.django_db(transaction=True)
seen: dict[str, Any] = {}


class Marking:
    """A middleware that knows the synchronous way alone, such as the door."""

    sync_capable, async_capable = True, False

    def __init__(self, get_response):
        self.get_response = get_response

    def __call__(self, request):
        seen["middleware"] = threading.get_ident()
        return self.get_response(request)


def look(request) -> HttpResponse:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")
    # A connection that was closed leaves its id to the next one, but none that is kept does.
    seen.setdefault("kept", []).append(connection.connection)
    seen.setdefault("connections", []).append((threading.get_ident(), id(connection.connection)))
    seen["view"] = threading.get_ident()
    return HttpResponse(request.body or b"seen")


def large(request) -> HttpResponse:
    return HttpResponse(b"x" * (Handler.chunk_size * 2 + 1))


def file(request) -> FileResponse:
    return FileResponse(io.BytesIO(b"x" * 200_000))


def broken(request) -> HttpResponse:
    raise ValueError("a secret of the view")


def waiting(request) -> HttpResponse:
    with seen["held"]:
        return HttpResponse("waited")


async def stream(request) -> StreamingHttpResponse:
    async def parts() -> AsyncIterator[bytes]:
        seen["loop"] = asyncio.get_running_loop()
        try:
            yield b"first"
            while True:
                await asyncio.sleep(0.01)
                if seen.get("ends"):
                    return
        finally:
            seen["ended"] = True

    return StreamingHttpResponse(parts())


urlpatterns = [
    path("look", look),
    path("large", large),
    path("file", file),
    path("broken", broken),
    path("waiting", waiting),
    path("stream", stream),
]


@pytest.fixture(autouse=True)
def _few(settings) -> None:
    seen.clear()
    settings.ROOT_URLCONF = __name__
    settings.MIDDLEWARE = [f"{__name__}.Marking", "django_htmx.middleware.HtmxMiddleware"]
    settings.ALLOWED_HOSTS = ["*"]


class Caller:
    """One request, as daphne gives it to an application."""

    def __init__(self, application: Handler, path: str, body: bytes = b"") -> None:
        scope = {"type": "http", "method": "POST" if body else "GET", "path": path, "headers": [(b"host", b"x")]}
        self.told: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.told.put_nowait({"type": "http.request", "body": body, "more_body": False})
        self.sent: list[dict[str, Any]] = []
        self.task = asyncio.ensure_future(
            application({**scope, "query_string": b"", "root_path": ""}, self.told.get, self._send)
        )

    async def _send(self, message: dict[str, Any]) -> None:
        self.sent.append(message)

    def leave(self) -> None:
        self.told.put_nowait({"type": "http.disconnect"})

    @property
    def bodies(self) -> list[bytes]:
        return [message.get("body", b"") for message in self.sent[1:]]


def run(work) -> Any:
    return asyncio.run(asyncio.wait_for(work, 20))


async def asked(application: Handler, path: str, body: bytes = b"") -> tuple[int, bytes]:
    caller = Caller(application, path, body)
    await caller.task
    return caller.sent[0]["status"], b"".join(caller.bodies)


def test_middleware_and_view_run_in_one_thread_that_is_not_the_loops():
    assert run(asked(Handler(), "/look", b"a body")) == (200, b"a body")
    assert seen["middleware"] == seen["view"] != threading.get_ident()


@pytest.mark.skipif("connection.vendor != 'sqlite'", reason="PostgreSQL's connections come from a pool")
def test_a_thread_keeps_its_connection_and_other_threads_of_the_process_do_not():
    async def often() -> None:
        application = Handler()
        for _ in range(20):
            await asked(application, "/look")

    run(often())
    threads = {thread for thread, _ in seen["connections"]}
    assert len(set(seen["connections"])) == len(threads) < 5
    assert connection.settings_dict["CONN_MAX_AGE"] == 0


def test_a_large_answer_comes_whole_in_large_pieces():
    async def once() -> list[int]:
        caller = Caller(Handler(), "/large")
        await caller.task
        return [len(body) for body in caller.bodies]

    assert run(once()) == [Handler.chunk_size, Handler.chunk_size, 1]


@pytest.mark.filterwarnings("ignore:StreamingHttpResponse must consume synchronous iterators")
def test_a_file_comes_in_one_piece():
    async def once() -> list[int]:
        caller = Caller(Handler(), "/file")
        await caller.task
        return [len(body) for body in caller.bodies]

    assert run(once()) == [200_000, 0]


def test_an_error_is_500_and_its_text_stays_here(caplog):
    status, body = run(asked(Handler(), "/broken"))
    assert status == 500
    assert b"secret" not in body


def test_each_answer_is_finished_once():
    finished = []

    def count(**_) -> None:
        finished.append(threading.get_ident())

    request_finished.connect(count)
    try:
        run(asked(Handler(), "/look"))
    finally:
        request_finished.disconnect(count)
    assert finished == [seen["view"]]


def test_verbs_that_wait_hold_up_nobody_else():
    seen["held"] = threading.Lock()

    async def work() -> list[tuple[int, bytes]]:
        application = Handler()
        with seen["held"]:
            waiting = [asyncio.ensure_future(asked(application, "/waiting")) for _ in range(answering.THREADS // 2)]
            answer = await asked(application, "/look")
            assert not any(each.done() for each in waiting)
        return [answer, *await asyncio.gather(*waiting)]

    assert {status for status, _ in run(work())} == {200}


class TestStreams:
    def test_one_runs_on_the_servers_loop_until_it_ends(self):
        async def work() -> list[bytes]:
            caller = Caller(Handler(), "/stream")
            while not caller.bodies:
                await asyncio.sleep(0.01)
            assert seen["loop"] is asyncio.get_running_loop()
            seen["ends"] = True
            await caller.task
            return caller.bodies[:1]

        assert run(work()) == [b"first"]

    def test_one_ends_when_its_reader_leaves(self):
        async def work() -> float:
            caller = Caller(Handler(), "/stream")
            while not caller.bodies:
                await asyncio.sleep(0.01)
            left_at = time.monotonic()
            caller.leave()
            await caller.task
            return time.monotonic() - left_at

        assert run(work()) < 5
        assert seen["ended"]

    def test_one_ends_when_the_server_gives_it_up(self):
        async def work() -> None:
            caller = Caller(Handler(), "/stream")
            while not caller.bodies:
                await asyncio.sleep(0.01)
            caller.task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await caller.task

        run(work())
        assert seen["ended"]


def test_who_leaves_before_the_request_is_whole_is_not_answered():
    async def work() -> list[dict[str, Any]]:
        caller = Caller(Handler(), "/look")
        caller.told.get_nowait()
        caller.leave()
        await caller.task
        return caller.sent

    assert run(work()) == []
    assert "view" not in seen
