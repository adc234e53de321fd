"""Server-sent events: one render for all, no more often than need be, and a log as it grows."""

import asyncio
import contextlib
import itertools
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import orjson
import pytest
from asgiref.testing import ApplicationCommunicator
from django.db import OperationalError, connection
from django.test import AsyncClient
from django.utils import timezone

from projects import access, importer, nudge, queries, streams
from projects import relay as module
from projects.access import Identity
from projects.events import SWEEP, record, writing
from projects.models import ApiToken, Event, Iteration, Project
from projects.relay import relay
from projects.states import Role
from services import logs
from tests.projects.aside import elsewhere, running
from tests.projects.files import write_log, write_prd

ANYBODY = Identity(name="andon", role=Role.VIEWER)
LONG_S = 5
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch) -> Iterator[None]:
    # Stopping the relay waits for its ear.
    for ear in (nudge.PostgresEar, nudge.RedisEar):
        monkeypatch.setattr(ear, "poll_s", 0.1)
    monkeypatch.setattr(streams, "STATUS_EVERY_S", 0.05)
    streams._boards.clear()
    yield
    assert not relay.subscriptions
    for board in streams._boards.values():
        assert board._task is None
        assert not board.listeners


@pytest.fixture
def renders(monkeypatch) -> list[float]:
    """When the status document was rendered."""
    times: list[float] = []
    snapshot = queries.snapshot

    def counted(*args: Any) -> dict[str, Any]:
        times.append(time.monotonic())
        return snapshot(*args)

    monkeypatch.setattr(queries, "snapshot", counted)
    return times


def make_row(slug: str = "demo", root: Path = Path("/nowhere"), **columns: Any) -> Project:
    columns = {"ralph": True, "prd_path": "scripts/ralph/prd.json", "total": 100, **columns}
    return Project.objects.create(
        slug=slug, node="test-node", path=str(root / slug), name=slug, found_at=timezone.now(), **columns
    )


def pass_stories(passed: int, slug: str = "demo", kind: str = "story.passed") -> int:
    """Change what the status shows and tell of it; returns the head of the log."""
    with writing():
        Project.objects.filter(slug=slug).update(passed=passed)
        record(kind, f"story:{slug}/US-{passed}", by=SWEEP, now=timezone.now(), project=slug)
    return Event.objects.latest("id").pk


def parsed(chunk: bytes) -> tuple[str, str, Any]:
    """Return (event, id, document) of one message."""
    assert chunk.endswith(b"\n\n")
    fields = dict(line.split(": ", 1) for line in chunk.decode().strip().split("\n"))
    assert set(fields) <= {"event", "id", "data"}
    return fields["event"], fields.get("id", ""), orjson.loads(fields["data"])


async def chunk_of(chunks: Any, within: float = LONG_S) -> bytes:
    return await asyncio.wait_for(anext(chunks), within)


async def take(chunks: Any, within: float = LONG_S) -> tuple[str, str, Any]:
    return parsed(await chunk_of(chunks, within))


async def skip_to(chunks: Any, event: str) -> tuple[str, str, Any]:
    while (taken := await take(chunks))[0] != event:
        pass
    return taken


async def ends(chunks: Any) -> bool:
    """Read on to the end of a stream."""
    with contextlib.suppress(StopAsyncIteration):
        while True:
            await chunk_of(chunks)
    return True


def following(who: Identity = ANYBODY) -> Any:
    chunks: Any = streams.status_stream(who)
    return contextlib.aclosing(chunks)


async def silent(*many: Any, seconds: float = 0.3) -> bool:
    """Say whether none of the streams brings anything for a while; they are spent afterwards."""
    tasks = [asyncio.ensure_future(anext(chunks)) for chunks in many]
    done, _ = await asyncio.wait(tasks, timeout=seconds)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return not done


def passed_in(document: dict[str, Any]) -> int:
    return document["projects"][0]["storiesComplete"]


# The status of all loops


def test_it_begins_with_the_retry_line_and_the_full_snapshot():
    make_row("demo", passed=3)
    make_row("other")
    last = pass_stories(4)

    async def test() -> None:
        async with following() as chunks:
            assert await chunk_of(chunks) == b"retry: 3000\n\n"
            event, id_, document = await take(chunks)
            assert (event, id_) == ("status", str(last))
            assert set(document) == {"projects", "fetchedAt", "count"}
            assert document["projects"] == orjson.loads(
                orjson.dumps((await elsewhere(queries.snapshot, timezone.now()))["projects"])
            )
            assert [row["slug"] for row in document["projects"]] == ["demo", "other"]

    running(test)


def test_a_story_that_passes_is_told(imported):
    project = imported("demo")

    async def test() -> None:
        async with following() as chunks:
            await chunk_of(chunks)
            _, before, document = await take(chunks)
            assert [story["passes"] for story in document["projects"][0]["stories"]] == [True, False, False]
            await elsewhere(write_prd, Path(project.path), "passed", "passed", "pending")
            await elsewhere(importer.rescan, now=timezone.now())
            event, id_, document = await take(chunks)
            assert event == "status"
            assert [story["passes"] for story in document["projects"][0]["stories"]] == [True, True, False]
            assert int(id_) > int(before)

    running(test)


def test_clients_get_the_same_bytes_of_one_render(renders):
    make_row()

    async def test() -> None:
        async with following() as one, following() as two, following() as three:
            for chunks in (one, two, three):
                await chunk_of(chunks)
            first, second = await asyncio.gather(chunk_of(one), chunk_of(two))
            assert first == second == await chunk_of(three)
            assert len(renders) == 1
            await elsewhere(pass_stories, 7)
            first = await chunk_of(one)
            assert passed_in(parsed(first)[2]) == 7
            assert first == await chunk_of(two) == await chunk_of(three)
            assert len(renders) == 2

    running(test)


def test_what_is_not_shown_is_neither_rendered_nor_told(renders):
    make_row()

    async def test() -> None:
        async with following() as chunks, following() as others:
            for stream in (chunks, others):
                await chunk_of(stream)
                await chunk_of(stream)
            await elsewhere(pass_stories, 1, kind="task.claimed")
            assert await silent(chunks)
            assert len(renders) == 1
            # Rendered, but the same.
            await elsewhere(pass_stories, 0, kind="project.changed")
            await elsewhere(pass_stories, 1, kind="project.changed")
            assert passed_in((await take(others))[2]) == 1

    running(test)


def test_an_event_that_changes_nothing_shown_is_not_told(renders):
    make_row()

    async def test() -> None:
        async with following() as chunks:
            await chunk_of(chunks)
            await chunk_of(chunks)
            await elsewhere(pass_stories, 0, kind="project.changed")
            assert await silent(chunks)
            assert len(renders) == 2

    running(test)


def test_a_burst_is_one_status_an_interval_and_ends_with_the_newest(renders, monkeypatch):
    monkeypatch.setattr(streams, "STATUS_EVERY_S", 0.4)
    make_row()

    async def test() -> None:
        told = []
        async with following() as chunks:
            await chunk_of(chunks)
            await chunk_of(chunks)

            async def read() -> None:
                while not told or told[-1][1] < 20:
                    document = (await take(chunks))[2]
                    told.append((time.monotonic(), passed_in(document)))

            reading = asyncio.create_task(read())
            for n in range(1, 21):
                await elsewhere(pass_stories, n)
            await asyncio.wait_for(reading, LONG_S)
            # What was rendered already is not rendered again, though twenty frames had been waiting.
            await asyncio.sleep(0.9)
        gaps = [after - before for before, after in itertools.pairwise(renders[1:])]
        assert all(gap >= 0.39 for gap in gaps)
        assert len(renders) == len(told) + 1
        assert len(told) <= 3

    running(test)


def test_silence_is_broken_by_heartbeats_with_an_id(monkeypatch):
    monkeypatch.setattr(streams, "HEARTBEAT_S", 0.1)
    make_row()
    last = pass_stories(1)

    async def test() -> None:
        async with following() as chunks:
            await chunk_of(chunks)
            await chunk_of(chunks)
            begun = time.monotonic()
            for _ in range(2):
                assert await take(chunks) == ("heartbeat", str(last), {})
            assert 0.18 <= time.monotonic() - begun < 1
            await elsewhere(pass_stories, 2)
            assert passed_in((await skip_to(chunks, "status"))[2]) == 2

    running(test)


def test_a_failing_first_snapshot_is_an_error_and_then_it_goes_on(monkeypatch, caplog):
    make_row(passed=5)
    snapshot = queries.snapshot
    left = [1, 2, 3]

    def failing(*args: Any) -> dict[str, Any]:
        if left:
            left.pop()
            raise OperationalError("disk I/O error at /secret/path")
        return snapshot(*args)

    monkeypatch.setattr(queries, "snapshot", failing)

    async def test() -> None:
        async with following() as chunks:
            assert await chunk_of(chunks) == streams.RETRY
            event, _, document = await take(chunks)
            assert event == "error"
            assert document["error"] == "internal"
            assert "secret" not in document["detail"]
            # Nobody has to change anything for it to go on.
            event, _, document = await take(chunks)
            assert (event, passed_in(document)) == ("status", 5)
            await elsewhere(pass_stories, 6)
            assert passed_in((await take(chunks))[2]) == 6

    running(test)
    assert "disk I/O error" in caplog.text


def test_a_change_whose_render_failed_is_told_once_it_works(monkeypatch, caplog):
    make_row()
    snapshot = queries.snapshot
    failing = []

    def sometimes(*args: Any) -> dict[str, Any]:
        if failing:
            failing.pop()
            raise OperationalError("database is locked")
        return snapshot(*args)

    monkeypatch.setattr(queries, "snapshot", sometimes)

    async def test() -> None:
        async with following() as chunks:
            await chunk_of(chunks)
            await chunk_of(chunks)
            failing.append(1)
            await elsewhere(pass_stories, 9)
            assert passed_in((await take(chunks))[2]) == 9

    running(test)
    assert "database is locked" in caplog.text


def test_a_client_that_lags_gets_only_the_newest():
    make_row()

    async def test() -> None:
        async with following() as lagging, following() as quick:
            for chunks in (lagging, quick):
                await chunk_of(chunks)
                await chunk_of(chunks)
            for n in (1, 2, 3):
                await elsewhere(pass_stories, n)
                newest = await chunk_of(quick)
                assert passed_in(parsed(newest)[2]) == n
            assert await chunk_of(lagging) == newest
            assert await silent(lagging, quick, seconds=0.2)

    running(test)


def test_a_token_of_one_project_sees_only_its_own(make_token):
    make_row("demo")
    make_row("other")
    who = access.identify_token(make_token(project="demo"), now=timezone.now(), address="")

    async def test() -> None:
        async with following(who) as bound, following() as free:
            for chunks, slugs in ((bound, ["demo"]), (free, ["demo", "other"])):
                await chunk_of(chunks)
                assert [row["slug"] for row in (await take(chunks))[2]["projects"]] == slugs
            await elsewhere(pass_stories, 1, slug="other")
            await take(free)
            await elsewhere(pass_stories, 2, slug="demo")
            document = (await take(bound))[2]
            assert [(row["slug"], row["storiesComplete"]) for row in document["projects"]] == [("demo", 2)]

    running(test)


def _revoke(token_id: int) -> None:
    access.revoke(ApiToken.objects.get(pk=token_id), by=SWEEP, now=timezone.now())


def test_whoever_is_expelled_hears_the_end_and_the_others_go_on(make_token, monkeypatch):
    monkeypatch.setattr(module, "RECHECK_S", 0.1)
    make_row()
    who = access.identify_token(make_token(), now=timezone.now(), address="")

    async def test() -> None:
        async with following(who) as gone, following() as stays:
            for chunks in (gone, stays):
                await chunk_of(chunks)
                await chunk_of(chunks)
            await elsewhere(_revoke, who.token_id)
            assert await ends(gone)
            await elsewhere(pass_stories, 1)
            assert passed_in((await take(stays))[2]) == 1

    running(test)


def test_the_last_to_leave_ends_the_rendering_and_the_next_sees_what_is_new(renders):
    make_row()

    async def test() -> None:
        async with following() as chunks:
            await chunk_of(chunks)
            await chunk_of(chunks)
            (board,) = streams._boards.values()
            task = board._task
        await asyncio.wait([task], timeout=LONG_S)
        assert task.cancelled()
        assert not relay.subscriptions
        await elsewhere(pass_stories, 8)
        await asyncio.sleep(0.1)
        assert len(renders) == 1
        async with following() as chunks:
            await chunk_of(chunks)
            assert passed_in((await take(chunks))[2]) == 8

    running(test)


# Over HTTP


async def get(token: str, path: str, **headers: str) -> Any:
    return await AsyncClient().get(path, headers={"Authorization": f"Bearer {token}", **headers})


def test_the_status_stream_over_http(make_token):
    make_row(passed=2)
    token = make_token()

    async def test() -> None:
        assert (await AsyncClient().get("/api/ralph/stream")).status_code == 401
        response = await get(token, "/api/ralph/stream")
        assert response.status_code == 200
        assert response["Content-Type"] == "text/event-stream"
        assert response["Cache-Control"] == "no-store"
        assert response["X-Accel-Buffering"] == "no"
        chunks = aiter(response)
        assert await chunk_of(chunks) == b"retry: 3000\n\n"
        assert passed_in((await take(chunks))[2]) == 2

    running(test)


@pytest.mark.parametrize("path", ["/api/ralph/stream", "/api/events/stream", "/api/ralph/demo/iterations/1/log-stream"])
def test_a_client_that_goes_leaves_nothing_behind(make_token, tmp_path, path):
    project = make_row(root=tmp_path)
    make_iteration(project)
    token = make_token()

    async def test() -> None:
        from config.asgi import application

        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": "GET",
            "path": path,
            "query_string": b"",
            "headers": [(b"authorization", f"Bearer {token}".encode()), (b"host", b"127.0.0.1")],
        }
        client = ApplicationCommunicator(application, scope)
        await client.send_input({"type": "http.request", "body": b"", "more_body": False})
        assert (await client.receive_output(LONG_S))["status"] == 200
        assert (await client.receive_output(LONG_S))["body"] == b"retry: 3000\n\n"
        deadline = time.monotonic() + LONG_S
        while not relay.subscriptions and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert relay.subscriptions
        await client.send_input({"type": "http.disconnect"})
        await client.wait(LONG_S)
        while relay.subscriptions and time.monotonic() < deadline:
            await asyncio.sleep(0.01)
        assert not relay.subscriptions

    running(test)


def test_opening_a_log_stream_holds_no_connection(make_token, tmp_path):
    """On PostgreSQL each thread of asyncio.to_thread would keep one of the pool's for good."""
    make_iteration(make_row(root=tmp_path), ended=True)
    token = make_token()

    async def test() -> None:
        with ThreadPoolExecutor(1) as thread:
            asyncio.get_running_loop().set_default_executor(thread)
            response = await get(token, "/api/ralph/demo/iterations/1/log-stream")
            assert parsed([chunk async for chunk in response][-1])[0] == "done"
            assert await asyncio.to_thread(lambda: connection.connection) is None

    running(test)


def test_the_event_stream_resumes_behind_the_last_event_id(make_token):
    token = make_token()
    known = [pass_stories(n) for n in range(3)]

    async def test() -> None:
        chunks = aiter(await get(token, "/api/events/stream?since=0", **{"Last-Event-ID": str(known[0])}))
        assert await chunk_of(chunks) == b"retry: 3000\n\n"
        event, id_, document = await take(chunks)
        assert (event, id_) == ("events", str(known[-1]))
        assert set(document) == {"events", "cursor"}
        assert document["cursor"] == known[-1]
        assert [row["id"] for row in document["events"]] == known[1:]
        last = await elsewhere(pass_stories, 4)
        event, id_, document = await take(chunks)
        assert (event, id_, [row["id"] for row in document["events"]]) == ("events", str(last), [last])

    running(test)


def test_the_event_stream_from_now_is_filtered_and_bound(make_token):
    token = make_token(project="demo")

    async def test() -> None:
        chunks = aiter(await get(token, "/api/events/stream?kind=story."))
        await chunk_of(chunks)
        assert (await take(chunks))[2]["events"] == []
        await elsewhere(pass_stories, 1, slug="other")
        await elsewhere(pass_stories, 1, kind="task.done")
        last = await elsewhere(pass_stories, 1)
        assert [row["id"] for row in (await take(chunks))[2]["events"]] == [last]

    running(test)


def test_the_event_stream_tells_of_a_cursor_that_is_not_in_the_log(make_token):
    token = make_token()
    last = pass_stories(1)

    async def test() -> None:
        chunks = aiter(await get(token, "/api/events/stream", **{"Last-Event-ID": str(last + 5)}))
        await chunk_of(chunks)
        assert await take(chunks) == ("reset", str(last), {"reset": True, "cursor": last})

    running(test)


def test_the_event_stream_ends_for_whoever_is_expelled(make_token, monkeypatch):
    monkeypatch.setattr(module, "RECHECK_S", 0.1)
    who = access.identify_token(make_token(), now=timezone.now(), address="")

    async def test() -> None:
        async with contextlib.aclosing(streams.event_stream(who, module.Filter(), None)) as chunks:
            await chunk_of(chunks)
            await chunk_of(chunks)
            await elsewhere(_revoke, who.token_id)
            assert await ends(chunks)

    running(test)


# A log as it grows


@pytest.fixture
def quick_log(monkeypatch) -> None:
    monkeypatch.setattr(streams, "LOG_STEP_S", 0.01)
    monkeypatch.setattr(streams, "LOG_PACE_S", 0.01)
    monkeypatch.setattr(streams, "LOG_ENDED_LOOK_S", 0.05)


def make_iteration(project: Project, *, ended: bool = False) -> Iteration:
    now = timezone.now()
    return Iteration.objects.create(project=project, number=1, written_at=now, ended_at=now if ended else None)


def append(path: Path, text: str | bytes) -> None:
    with path.open("ab") as log:
        log.write(text if isinstance(text, bytes) else text.encode())


def log_of(iteration: Iteration, offset: int = 0, who: Identity = ANYBODY) -> Any:
    chunks: Any = streams.log_stream(who, iteration, offset)
    return contextlib.aclosing(chunks)


def test_a_log_is_followed_as_it_grows(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))
    path = write_log(tmp_path / "demo", 1, "first\n")

    async def test() -> None:
        async with log_of(iteration) as chunks:
            assert await chunk_of(chunks) == b"retry: 3000\n\n"
            document = {"offset": 0, "next_offset": 6, "text": "first\n", "html": "first\n", "truncated": False}
            assert await take(chunks) == ("log", "6", document)
            append(path, "sécond\n")
            document = {"offset": 6, "next_offset": 14, "text": "sécond\n", "html": "sécond\n", "truncated": False}
            assert await take(chunks) == ("log", "14", document)

    running(test)


def test_a_log_is_resumed_by_offset_and_by_the_last_event_id(tmp_path, make_token, quick_log):
    make_iteration(make_row(root=tmp_path), ended=True)
    write_log(tmp_path / "demo", 1, "first\nsecond\nthird\n")
    token = make_token()
    path = "/api/ralph/demo/iterations/1/log-stream"

    async def test() -> None:
        for headers, query, text in (
            ({}, "", "first\nsecond\nthird\n"),
            ({}, "?offset=6", "second\nthird\n"),
            ({"Last-Event-ID": "13"}, "?offset=6", "third\n"),
            ({"Last-Event-ID": "nonsense"}, "?offset=6", "second\nthird\n"),
        ):
            response = await get(token, path + query, **headers)
            assert response["Content-Type"] == "text/event-stream"
            taken = [chunk async for chunk in response]
            assert [parsed(chunk)[0] for chunk in taken[1:]] == ["log", "done"]
            assert parsed(taken[1])[2]["text"] == text
            assert parsed(taken[2])[2] == {"offset": 19}
        assert (await AsyncClient().get(path)).status_code == 401
        assert (await get(token, path.replace("/1/", "/2/"))).status_code == 404

    running(test)


def test_a_log_that_ends_while_it_is_followed_is_read_to_its_end(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))
    path = write_log(tmp_path / "demo", 1, "first\n")

    def end() -> None:
        append(path, "last\n")
        Iteration.objects.update(ended_at=timezone.now())

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            await take(chunks)
            await elsewhere(end)
            assert (await take(chunks))[2]["text"] == "last\n"
            assert await take(chunks) == ("done", "", {"offset": 11})
            assert await ends(chunks)

    running(test)


def test_a_log_whose_iteration_was_deleted_is_done(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            await elsewhere(Iteration.objects.all().delete)
            assert await take(chunks) == ("done", "", {"offset": 0})

    running(test)


def test_a_log_that_comes_late_is_followed(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            waiting = asyncio.create_task(take(chunks))
            await asyncio.sleep(0.1)
            assert not waiting.done()
            write_log(tmp_path / "demo", 1, "late\n")
            assert (await waiting)[2]["text"] == "late\n"

    running(test)


def test_a_log_that_was_written_anew_begins_anew(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))
    write_log(tmp_path / "demo", 1, "\x1b[31mlong and long ago\n")

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            await take(chunks)
            write_log(tmp_path / "demo", 1, "new\n")
            taken = [(await take(chunks))[2]]
            # The moment between emptying and writing may have been seen.
            while not taken[-1]["text"]:
                taken.append((await take(chunks))[2])
            assert taken[0]["truncated"]
            assert (taken[-1]["offset"], taken[-1]["text"]) == (0, "new\n")
            assert taken[-1]["html"] == "new\n", "the old colour is not carried over"

    running(test)


def test_a_quiet_log_has_a_heartbeat(tmp_path, quick_log, monkeypatch):
    monkeypatch.setattr(streams, "LOG_HEARTBEAT_S", 0.1)
    iteration = make_iteration(make_row(root=tmp_path))
    path = write_log(tmp_path / "demo", 1, "first\n")

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            await take(chunks)
            begun = time.monotonic()
            for _ in range(2):
                assert await take(chunks) == ("heartbeat", "", {})
            assert 0.19 <= time.monotonic() - begun < 1
            append(path, "second\n")
            assert (await skip_to(chunks, "log"))[2]["text"] == "second\n"

    running(test)


def test_what_agents_write_is_inert_and_colours_reach_over_pieces(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))
    path = write_log(tmp_path / "demo", 1, "<script>alert('x')</script>\x1b]0;title\x07\x1b[31mred\n")

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            document = (await take(chunks))[2]
            assert document["html"] == (
                '&lt;script&gt;alert(&#x27;x&#x27;)&lt;/script&gt;<span class="ansi-fg-1">red</span>\n'
            )
            append(path, "still <red>\n")
            document = (await take(chunks))[2]
            assert document["html"] == '<span class="ansi-fg-1">still &lt;red&gt;</span>\n'

    running(test)


def test_a_character_that_was_cut_waits_for_its_rest(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path))
    path = write_log(tmp_path / "demo", 1, "")

    async def test() -> None:
        async with log_of(iteration) as chunks:
            await chunk_of(chunks)
            append(path, b"5 \xe2\x82")
            assert (await take(chunks))[2]["text"] == "5 "
            append(path, b"\xac\n")
            document = (await take(chunks))[2]
            assert (document["offset"], document["text"], document["next_offset"]) == (2, "€\n", 6)

    running(test)


def test_a_large_log_comes_in_pieces_that_add_up(tmp_path, quick_log):
    iteration = make_iteration(make_row(root=tmp_path), ended=True)
    content = "".join(f"line {n} ä\n" for n in range(60_000))
    write_log(tmp_path / "demo", 1, content)

    async def test() -> None:
        async with log_of(iteration) as chunks:
            taken = [parsed(chunk) async for chunk in chunks if chunk != streams.RETRY]
        pieces = [document for event, _, document in taken if event == "log"]
        assert len(pieces) > 1
        assert "".join(piece["text"] for piece in pieces) == content
        assert [piece["next_offset"] for piece in pieces[:-1]] == [piece["offset"] for piece in pieces[1:]]
        assert taken[-1] == ("done", "", {"offset": len(content.encode())})

    running(test)


def test_a_follower_of_a_log_is_expelled_though_nobody_else_listens(tmp_path, quick_log, make_token, monkeypatch):
    monkeypatch.setattr(module, "RECHECK_S", 0.1)
    iteration = make_iteration(make_row(root=tmp_path))
    who = access.identify_token(make_token(life=timedelta(days=1)), now=timezone.now(), address="")

    async def test() -> None:
        async with log_of(iteration, who=who) as chunks:
            await chunk_of(chunks)
            reading = asyncio.create_task(ends(chunks))
            await elsewhere(_revoke, who.token_id)
            assert await asyncio.wait_for(reading, LONG_S)

    running(test)


def following_log(read: Any, has_ended: Any, offset: int) -> Any:
    chunks: Any = streams.follow(ANYBODY, read, has_ended, offset)
    return contextlib.aclosing(chunks)


async def pieces_of(chunks: Any) -> list[dict[str, Any]]:
    """Return the documents of `log` up to `done`; every message in between is one of them or a heartbeat."""
    assert await chunk_of(chunks) == streams.RETRY
    pieces = []
    while (taken := await take(chunks))[0] != "done":
        if taken[0] == "log":
            assert taken[1] == str(taken[2]["next_offset"])
            pieces.append(taken[2])
    assert taken[2] == {"offset": pieces[-1]["next_offset"] if pieces else 0}
    return pieces


def test_who_cannot_keep_up_goes_on_near_the_end(tmp_path, quick_log):
    path = tmp_path / "fast.log"
    rounds = iter(range(6))
    last = b"x" * 99 + b"\n"

    def read(offset: int) -> logs.Chunk:
        if next(rounds, None) is not None:
            append(path, last * 50_000)
        return logs.read_from(path, offset=offset)

    async def test() -> None:
        async with following_log(read, lambda: True, 0) as chunks:
            pieces = await pieces_of(chunks)
        sent = sum(len(piece["text"]) for piece in pieces)
        assert sent < 4 * 1024 * 1024 < path.stat().st_size
        jumps = [at for at, piece in enumerate(pieces) if piece["truncated"]]
        assert jumps
        assert 0 not in jumps
        for at, piece in enumerate(pieces):
            assert piece["offset"] % 100 == 0 or not piece["truncated"], "a jump lands on a line"
            if at:
                gap = piece["offset"] - pieces[at - 1]["next_offset"]
                assert gap > 4_000_000 if at in jumps else gap == 0
        assert pieces[-1]["next_offset"] == path.stat().st_size

    running(test)


def test_a_long_past_is_sent_whole(tmp_path, quick_log, monkeypatch):
    monkeypatch.setattr(streams, "LOG_BEHIND", 100_000)
    path = tmp_path / "long.log"
    path.write_bytes(b"0123456789abcde\n" * 100_000)

    async def test() -> None:
        async with following_log(lambda offset: logs.read_from(path, offset=offset), lambda: True, 0) as chunks:
            pieces = await pieces_of(chunks)
        assert not any(piece["truncated"] for piece in pieces)
        assert sum(len(piece["text"]) for piece in pieces) == 1_600_000

    running(test)


def test_a_negative_offset_follows_the_last_lines(tmp_path, quick_log):
    path = tmp_path / "a.log"
    ended = [False]

    async def test() -> None:
        path.write_bytes(b"one\ntwo\nthree\n")
        async with following_log(lambda offset: logs.read_from(path, offset=offset), lambda: ended[0], -8) as chunks:
            await chunk_of(chunks)
            _, id_, piece = await take(chunks)
            assert (id_, piece["offset"], piece["text"], piece["truncated"]) == ("14", 8, "three\n", True)
            append(path, "four\n")
            _, _, piece = await take(chunks)
            assert (piece["offset"], piece["text"], piece["truncated"]) == (14, "four\n", False)
            ended[0] = True
            assert await take(chunks) == ("done", "", {"offset": 19})

    running(test)


def test_a_log_that_is_missing_or_no_file_is_waited_for(tmp_path, quick_log):
    path = tmp_path / "a.log"
    path.mkdir()
    ended = [False]

    async def test() -> None:
        async with following_log(lambda offset: logs.read_from(path, offset=offset), lambda: ended[0], -100) as chunks:
            await chunk_of(chunks)
            waiting = asyncio.create_task(take(chunks))
            await asyncio.sleep(0.05)
            path.rmdir()
            await asyncio.sleep(0.05)
            path.write_bytes(b"now\n")
            assert (await waiting)[2]["text"] == "now\n"
        async with following_log(lambda offset: None, lambda: True, -100) as chunks:
            assert await pieces_of(chunks) == []

    running(test)


def test_the_log_of_a_flood_is_rotated_under_its_follower(tmp_path, quick_log):
    """Who follows sees whole lines, in order, and is told of every gap; never the zeros of what was punched out."""
    fd = logs.open_log(tmp_path, "a.log")
    total = 4000
    written, head = 0, 0

    def read(offset: int) -> logs.Chunk:
        nonlocal written, head
        stale = head
        for _ in range(min(400, total - written)):
            os.write(fd, b"%05d %s\n" % (written, b"x" * 93))
            written += 1
        head = logs.rotate(tmp_path, "a.log", head, limit=30_000).head
        return logs.read_from(tmp_path / "a.log", offset=offset, head=stale, limit=8192)

    async def test() -> None:
        async with following_log(read, lambda: written == total, 0) as chunks:
            pieces = await pieces_of(chunks)
        assert any(piece["truncated"] for piece in pieces)
        seen = []
        held = ""
        for piece in pieces:
            *lines, held = (("" if piece["truncated"] else held) + piece["text"]).split("\n")
            seen += lines
        assert all(len(line) == 99 and line.endswith("x" * 93) for line in seen)
        numbers = [int(line[:5]) for line in seen]
        assert numbers == sorted(set(numbers))
        assert numbers[-1] == total - 1

    try:
        running(test)
    finally:
        os.close(fd)
