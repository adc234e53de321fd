"""REST: the log of a service, its end and as it grows."""

import asyncio
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from django.test import AsyncClient, Client
from django.utils import timezone

from projects import access
from projects import relay as relay_module
from projects import streams as floor
from projects.events import SWEEP
from projects.models import ApiToken, Project
from projects.relay import relay
from services import lifecycle, logs, streams
from services.models import ManagedProcess
from tests.projects.aside import elsewhere, running
from tests.services.rows import healthy, refused

pytestmark = pytest.mark.django_db(transaction=True)
URL = "/api/managed-processes"
LONG_S = 20


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch) -> Path:
    """Where the logs of these tests lie."""
    path = tmp_path / "home" / "logs" / "services"
    monkeypatch.setattr(streams, "LOG_FOLDER", path)
    return path


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


@pytest.fixture
def web(demo) -> ManagedProcess:
    return healthy(demo)


@pytest.fixture
def viewer(client_of) -> Client:
    return client_of("viewer")


@pytest.fixture
def append(folder, web) -> Iterator[Callable[[bytes], None]]:
    """Write to the log as the service would."""
    fd = logs.open_log(folder, web.log_name)
    yield lambda content: (os.write(fd, content), None)[1]
    os.close(fd)


def rotated(folder: Path, row: ManagedProcess, limit: int) -> int:
    head = logs.rotate(folder, row.log_name, row.log_head, limit=limit).head
    ManagedProcess.objects.filter(pk=row.pk).update(log_head=head)
    return head


class TestLog:
    def get(self, client: Client, query: str = "", name: str = "web"):
        return client.get(f"{URL}/log/{name}{query}")

    def test_the_last_lines(self, viewer, append):
        append(b"".join(b"line %d\n" % number for number in range(1500)))
        size = sum(len(b"line %d\n" % number) for number in range(1500))
        for query, count in (("", 100), ("?lines=1", 1), ("?lines=1000", 1000), ("?lines=", 100)):
            body = self.get(viewer, query).json()
            assert body == {
                "name": "web",
                "content": "".join(f"line {number}\n" for number in range(1500 - count, 1500)),
                "size_bytes": size,
                "truncated": True,
                "offset": size,
            }

    def test_the_last_bytes(self, viewer, append):
        append("".join(f"zeile {number} ä\n" for number in range(10_000)).encode())
        body = self.get(viewer, "?tail=40").json()
        assert body["content"] == "zeile 9998 ä\nzeile 9999 ä\n"
        assert body["truncated"]
        whole = self.get(viewer, "?tail=1048576").json()
        assert (len(whole["content"].encode()), whole["truncated"]) == (whole["size_bytes"], False)

    def test_that_is_not_there_yet(self, viewer, web):
        expected = {"name": "web", "content": "", "size_bytes": 0, "truncated": False, "offset": 0}
        for query in ("", "?tail=100"):
            assert self.get(viewer, query).json() == expected

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_in_whose_place_something_else_lies(self, viewer, web, folder, tmp_path, kind):
        folder.mkdir(parents=True)
        (tmp_path / "secret").write_text("sesame")
        path = folder / web.log_name
        {
            "link": lambda: path.symlink_to(tmp_path / "secret"),
            "fifo": lambda: os.mkfifo(path),
            "directory": path.mkdir,
        }[kind]()
        body = self.get(viewer).json()
        assert (body["content"], body["size_bytes"]) == ("", 0)

    def test_that_was_rotated_begins_at_its_head(self, viewer, append, folder, web):
        append(b"".join(b"%05d %s\n" % (number, b"x" * 93) for number in range(3000)))
        head = rotated(folder, web, 100_000)
        assert head > 0
        body = self.get(viewer, "?tail=1048576").json()
        assert (body["size_bytes"], body["offset"]) == (
            (folder / web.log_name).stat().st_size - head,
            head + body["size_bytes"],
        )
        assert len(body["content"]) == body["size_bytes"]
        assert "\x00" not in body["content"]
        assert body["content"].startswith(f"{head // 100:05d} ")

    def test_with_a_head_of_an_earlier_file(self, viewer, append, web):
        append(b"new\n")
        ManagedProcess.objects.update(log_head=10**12)
        body = self.get(viewer).json()
        assert (body["content"], body["size_bytes"], body["offset"]) == ("new\n", 4, 4)

    def test_whatever_was_written(self, viewer, append):
        append(b"\xff\xed\xa0\x80\x00\x1b[31m</script>\n")
        response = self.get(viewer)
        assert response["Content-Type"] == "application/json"
        assert response.json()["content"].endswith("\x00\x1b[31m</script>\n")
        assert "\ufffd" in response.json()["content"]

    @pytest.mark.parametrize(
        ("query", "error"),
        [
            *((f"?lines={text}", "invalid-lines") for text in ("0", "1001", "-1", "1.5", "all", "%C2%B2", "9" * 30)),
            *((f"?tail={text}", "invalid-tail") for text in ("0", "1048577", "-1", "+5", "0x10", "9" * 30)),
            ("?lines=5&tail=0", "invalid-tail"),
            ("?lines=0&tail=5", "invalid-lines"),
        ],
    )
    def test_out_of_bounds(self, viewer, web, query, error):
        refused(self.get(viewer, query), 400, error)

    def test_of_whom(self, viewer, client_of, web, imported):
        healthy(imported("other"), "theirs")
        healthy(Project.objects.get(slug="other"), "web")
        bound = client_of("viewer", project="demo")
        refused(self.get(viewer), 409, "ambiguous-name")
        refused(self.get(viewer, name="Web"), 400, "invalid-name")
        refused(self.get(viewer, name="api"), 404, "not-found")
        refused(self.get(viewer, "?project=absent"), 404, "not-found")
        refused(self.get(bound, name="theirs"), 404, "not-found")
        refused(self.get(bound, "?project=other"), 404, "not-found")
        refused(self.get(Client()), 401, "unauthenticated")
        assert self.get(bound).status_code == 200

    def test_takes_few_queries(self, viewer, append, django_assert_num_queries):
        viewer.get("/api/me")
        with django_assert_num_queries(3):
            self.get(viewer, "?project=demo")


@pytest.fixture
def quick(monkeypatch) -> Iterator[None]:
    """Look often, so that no test waits long."""
    monkeypatch.setattr(floor, "LOG_STEP_S", 0.01)
    monkeypatch.setattr(floor, "LOG_ENDED_LOOK_S", 0.05)
    monkeypatch.setattr(floor, "LOG_PACE_S", 0.01)
    yield
    assert not relay.subscriptions


def parsed(chunk: bytes) -> tuple[str, str, Any]:
    """Return (event, id, document) of one message."""
    fields = dict(line.split(": ", 1) for line in chunk.decode().strip().split("\n"))
    return fields["event"], fields.get("id", ""), orjson.loads(fields["data"])


async def take(chunks: Any) -> tuple[str, str, Any]:
    while True:
        chunk = await asyncio.wait_for(anext(chunks), LONG_S)
        if chunk.startswith(b"retry:"):
            continue
        event, id_, document = parsed(chunk)
        if event != "heartbeat":
            return event, id_, document


def stop(row: ManagedProcess) -> None:
    row = lifecycle.stop(ManagedProcess.objects.get(pk=row.pk), by=SWEEP, now=timezone.now())
    lifecycle.settle(row, -15, by=SWEEP, now=timezone.now())


def restart(row: ManagedProcess) -> None:
    row = lifecycle.restart(ManagedProcess.objects.get(pk=row.pk), by=SWEEP, now=timezone.now())
    lifecycle.settle(row, -15, by=SWEEP, now=timezone.now())


@pytest.mark.usefixtures("quick")
class TestStream:
    @pytest.fixture
    def token(self, make_token) -> str:
        return make_token()

    async def get(self, token: str, query: str = "", name: str = "web", **headers: str) -> Any:
        headers = {"Authorization": f"Bearer {token}", **headers}
        return await AsyncClient().get(f"{URL}/log-stream/{name}{query}", headers=headers)

    async def all_of(self, response: Any) -> list[tuple[str, str, Any]]:
        chunks = aiter(response)
        taken = [await take(chunks)]
        while taken[-1][0] != "done":
            taken.append(await take(chunks))
        with pytest.raises(StopAsyncIteration):
            await asyncio.wait_for(anext(chunks), LONG_S)
        return taken

    def test_follows_and_ends_with_the_service(self, token, web, append):
        append(b"first\n")

        def end() -> None:
            append(b"last\n")
            stop(web)

        async def test() -> None:
            response = await self.get(token)
            assert (response.status_code, response["Content-Type"]) == (200, "text/event-stream")
            assert response["Cache-Control"] == "no-store"
            chunks = aiter(response)
            event, id_, document = await take(chunks)
            assert (event, id_, document["offset"], document["text"]) == ("log", "6", 0, "first\n")
            await elsewhere(append, b"\x1b[31msecond <b>\n")
            _, _, document = await take(chunks)
            assert (document["offset"], document["text"]) == (6, "\x1b[31msecond <b>\n")
            assert document["html"] == '<span class="ansi-fg-1">second &lt;b&gt;</span>\n'
            await elsewhere(end)
            assert (await take(chunks))[2]["text"] == "last\n"
            assert await take(chunks) == ("done", "", {"offset": 27})

        running(test)

    def test_goes_on_over_a_restart(self, token, web, append):
        async def test() -> None:
            chunks = aiter(await self.get(token))
            await elsewhere(append, b"one\n")
            assert (await take(chunks))[2]["text"] == "one\n"
            await elsewhere(restart, web)
            waiting = asyncio.create_task(take(chunks))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            await elsewhere(append, b"two\n")
            assert (await waiting)[2]["text"] == "two\n"
            await elsewhere(stop, web)
            assert (await take(chunks))[0] == "done"

        running(test)

    def test_from_where(self, token, web, append):
        append(b"".join(b"%07d\n" % number for number in range(10_000)))
        stop(web)

        async def first_of(query: str, **headers: str) -> Any:
            taken = await self.all_of(await self.get(token, query, **headers))
            assert taken[-1][2] == {"offset": 80_000}
            return taken[0][2].get("offset"), taken[0][2].get("truncated")

        async def test() -> None:
            assert await first_of("") == (80_000 - 65_536, True)
            assert await first_of("?tail=16") == (79_984, True)
            assert await first_of("?tail=1048576") == (0, False)
            assert await first_of("?offset=8") == (8, False)
            assert await first_of("?offset=8&tail=5") == (8, False)
            assert await first_of("?offset=0", **{"Last-Event-ID": "79992"}) == (79_992, False)
            assert await first_of("?offset=8", **{"Last-Event-ID": "junk"}) == (8, False)
            # A file that was written anew meanwhile.
            assert await first_of("?offset=99999999") == (0, True)
            # Nothing is left to be read.
            assert await first_of("", **{"Last-Event-ID": "80000"}) == (80_000, None)

        running(test)

    def test_of_a_log_that_was_rotated(self, token, web, append, folder):
        append(b"".join(b"%05d %s\n" % (number, b"x" * 93) for number in range(3000)))
        head = rotated(folder, web, 100_000)
        stop(web)

        async def test() -> None:
            taken = await self.all_of(await self.get(token, "?offset=0"))
            assert (taken[0][2]["offset"], taken[0][2]["truncated"]) == (head, True)
            assert not any("\x00" in document.get("text", "") for _, _, document in taken)

        running(test)

    def test_of_one_without_a_log(self, token, web):
        stop(web)

        async def test() -> None:
            assert await self.all_of(await self.get(token)) == [("done", "", {"offset": 0})]

        running(test)

    def test_of_one_that_was_erased(self, token, web, append):
        append(b"one\n")

        async def test() -> None:
            chunks = aiter(await self.get(token))
            await take(chunks)
            await elsewhere(ManagedProcess.objects.all().delete)
            assert (await take(chunks))[0] == "done"

        running(test)

    def test_ends_for_who_may_no_longer_look(self, token, web, append, monkeypatch):
        monkeypatch.setattr(relay_module, "RECHECK_S", 0.1)
        append(b"one\n")

        def revoke() -> None:
            access.revoke(ApiToken.objects.get(), by=SWEEP, now=timezone.now())

        async def test() -> None:
            chunks = aiter(await self.get(token))
            await take(chunks)
            await elsewhere(revoke)
            async with asyncio.timeout(LONG_S):
                left = [chunk async for chunk in chunks]
            assert b"event: done" not in b"".join(left)

        running(test)

    def test_refuses_before_it_begins(self, viewer, client_of, web, imported):
        healthy(imported("other"), "theirs")
        bound = client_of("viewer", project="demo")

        def get(client: Client, rest: str) -> Any:
            return client.get(f"{URL}/log-stream/{rest}")

        refused(get(Client(), "web"), 401, "unauthenticated")
        refused(get(viewer, "Web"), 400, "invalid-name")
        refused(get(viewer, "api"), 404, "not-found")
        refused(get(bound, "theirs"), 404, "not-found")
        refused(get(bound, "theirs?project=other"), 404, "not-found")
        for text in ("0", "1048577", "-5", "x"):
            refused(get(viewer, f"web?tail={text}"), 400, "invalid-tail")
        for text in ("-1", str((1 << 62) + 1), "x", "9" * 40):
            refused(get(viewer, f"web?offset={text}"), 400, "invalid-offset")
