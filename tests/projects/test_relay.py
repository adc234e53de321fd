"""One reader of the log per process: in order, once, and nobody waits for the slow."""

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.contrib.sessions.models import Session
from django.db import OperationalError, connection
from django.test import Client
from django.utils import timezone

from projects import access, nudge
from projects import relay as module
from projects.access import Identity
from projects.events import SWEEP, record, writing
from projects.models import ApiToken, Event, EventFloor
from projects.relay import FRAME, Expelled, Filter, Frame, Relay, Subscription, head, page_of
from projects.states import Role

ALL = Filter()
ANYBODY = Identity(name="andon", role=Role.VIEWER)
LONG_S = 5
committed = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _short_polls(monkeypatch, request) -> None:
    """Stopping a relay waits for its ear; only where the poll is the matter must it be the real one."""
    if request.node.name != "test_the_poll_alone_delivers":
        for ear in (nudge.PostgresEar, nudge.RedisEar):
            monkeypatch.setattr(ear, "poll_s", 0.1)


@pytest.fixture
def relay() -> Iterator[Relay]:
    """A relay of its own, stopped at the end."""
    relay = Relay()
    yield relay
    relay.stop()
    assert not relay.subscriptions


def tell(*subjects: str, kind: str = "a.told", project: str = "") -> list[int]:
    """Commit one event a subject in one transaction; returns all ids so far."""
    with writing():
        for subject in subjects:
            record(kind, subject, by=SWEEP, now=timezone.now(), project=project)
    return ids()


def ids() -> list[int]:
    return list(Event.objects.order_by("id").values_list("id", flat=True))


def told(frame: Frame) -> list[int]:
    return [row["id"] for row in frame.events]


async def elsewhere(job: Callable[..., Any], *args: Any) -> Any:
    """Run a job on another thread, whose connection ends with it."""

    def run() -> Any:
        try:
            return job(*args)
        finally:
            connection.close()

    return await asyncio.to_thread(run)


async def take(frames: AsyncGenerator[tuple[Frame, bytes], None], within: float = LONG_S) -> Frame:
    frame, encoded = await asyncio.wait_for(anext(frames), within)
    assert encoded == frame.encode()
    return frame


async def collect(frames: AsyncGenerator[tuple[Frame, bytes], None], last: int) -> list[int]:
    """Take frames up to an event; the relay may have read several commits at once."""
    seen: list[int] = []
    while not seen or seen[-1] < last:
        seen += told(await take(frames))
    return seen


def running(test: Callable[..., Awaitable[None]]) -> None:
    """Run a coroutine; its synchronous database calls run on this thread."""
    async_to_sync(test)()


def reader(relay: Relay, since: int | None, wanted: Filter = ALL, who: Identity = ANYBODY) -> Any:
    return contextlib.aclosing(relay.frames(who, wanted, since))


# Pages


@pytest.mark.django_db
def test_a_page_from_now_holds_only_the_head():
    assert page_of(ALL, None) == Frame([], 0)
    last = tell("a:1", "a:2")[-1]
    assert page_of(ALL, None) == Frame([], last)


@pytest.mark.django_db
def test_a_page_from_zero_holds_all_that_is_retained():
    assert page_of(ALL, 0) == Frame([], 0)
    known = tell("a:1", "a:2", "a:3")
    page = page_of(ALL, 0)
    assert told(page) == known
    assert (page.cursor, page.reset) == (known[-1], False)


@pytest.mark.django_db
def test_a_page_from_the_middle_and_from_the_head():
    known = tell("a:1", "a:2", "a:3")
    assert told(page_of(ALL, known[0])) == known[1:]
    assert page_of(ALL, known[-1]) == Frame([], known[-1])


@pytest.mark.django_db
def test_a_page_beyond_the_head_is_a_reset():
    last = tell("a:1")[-1]
    assert page_of(ALL, last + 1) == Frame([], last, reset=True)
    assert page_of(ALL, 1 << 62).encode() == b'{"reset":true,"cursor":%d}' % last


@pytest.mark.django_db
def test_a_page_before_what_was_pruned_is_a_reset_but_zero_is_not():
    known = tell("a:1", "a:2", "a:3")
    Event.objects.filter(id__lte=known[1]).delete()
    EventFloor.objects.create(id=1, pruned_through=known[1])
    assert page_of(ALL, known[0]) == Frame([], known[2], reset=True)
    assert told(page_of(ALL, known[1])) == [known[2]]
    assert told(page_of(ALL, 0)) == [known[2]]


@pytest.mark.django_db
def test_the_head_of_a_log_of_which_all_was_pruned_is_its_floor():
    last = tell("a:1")[-1]
    Event.objects.all().delete()
    EventFloor.objects.create(id=1, pruned_through=last)
    assert head() == last
    assert page_of(ALL, last) == Frame([], last)


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (Filter(), [0, 1, 2, 3]),
        (Filter(subject="task:"), [0, 1, 3]),
        (Filter(subject="task:t_1"), [0, 3]),
        (Filter(kind="task.c"), [0, 3]),
        (Filter(project="de"), [0, 1, 3]),
        (Filter(only="demo"), [0, 1]),
        (Filter(project="demo", only="demo2"), [3]),
        (Filter(subject="task:", kind="task.claimed", project="demo", only="demo"), [0]),
        (Filter(only="de"), []),
        (Filter(subject="ask:"), []),
    ],
)
def test_filters_are_prefixes_and_a_bound_token_sees_its_project_alone(wanted, expected):
    tell("task:t_1", kind="task.claimed", project="demo")
    tell("task:t_2", kind="task.done", project="demo")
    tell("service:web", kind="service.crashed")
    known = tell("task:t_10", kind="task.claimed", project="demo2")
    page = page_of(wanted, 0)
    assert told(page) == [known[n] for n in expected]
    assert page.cursor == known[-1]


@pytest.mark.django_db
def test_a_page_holds_at_most_200_events_and_the_next_goes_on_there():
    tell("b:1")
    known = tell(*["a:1"] * 450)[1:]
    pages = [page_of(Filter(subject="a:"), 0)]
    while pages[-1].events:
        pages.append(page_of(Filter(subject="a:"), pages[-1].cursor))
    assert [len(page.events) for page in pages] == [FRAME, FRAME, 50, 0]
    assert [pk for page in pages for pk in told(page)] == known
    assert pages[0].cursor == known[FRAME - 1]


@pytest.mark.django_db
def test_a_filter_that_matches_little_reads_a_bounded_piece(django_assert_max_num_queries):
    tell(*["b:1"] * 2100)
    known = tell("a:1")
    with django_assert_max_num_queries(13):
        first = page_of(Filter(subject="a:"), 0)
    assert first == Frame([], known[1999])
    assert page_of(Filter(subject="a:"), first.cursor).cursor == known[-1]


# Live


@committed
def test_events_arrive_as_they_are_committed(relay):
    async def test() -> None:
        async with reader(relay, None) as frames:
            assert await take(frames) == Frame([], 0)
            for n in range(3):
                known = await elsewhere(tell, f"a:{n}", f"b:{n}")
                frame = await take(frames)
                assert told(frame) == known[-2:]
                assert frame.cursor == known[-1]
                assert frame.events[0] == {
                    "id": known[-2],
                    "at": frame.events[0]["at"],
                    "kind": "a.told",
                    "subject": f"a:{n}",
                    "project": "",
                    "actor": "andon",
                    "run": "",
                    "payload": {"via": "sweep"},
                }

    running(test)


@committed
def test_the_first_frame_comes_at_once_and_says_where_the_log_stands(relay):
    last = tell("a:1")[-1]

    async def test() -> None:
        for since, expected in ((None, []), (0, [last]), (last, [])):
            async with reader(relay, since) as frames:
                frame = await take(frames)
                assert (told(frame), frame.cursor, frame.reset) == (expected, last, False)

    running(test)


@committed
def test_readers_share_one_thread(relay):
    async def test() -> None:
        async with reader(relay, None) as one, reader(relay, None) as two:
            await take(one)
            thread = relay._thread
            await take(two)
            assert relay._thread is thread
            assert len(relay.subscriptions) == 2
            known = await elsewhere(tell, "a:1")
            assert told(await take(one)) == told(await take(two)) == known

    running(test)
    assert sum(thread.name == "relay" for thread in threading.enumerate()) == 1
    relay.stop()
    assert sum(thread.name == "relay" for thread in threading.enumerate()) == 0


@committed
def test_stopping_leaves_no_descriptor_behind(relay):
    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)

    running(test)
    relay.stop()
    connection.close()
    before = len(os.listdir("/proc/self/fd"))
    running(test)
    relay.stop()
    connection.close()
    assert len(os.listdir("/proc/self/fd")) <= before


@committed
def test_live_frames_are_filtered_for_each_reader(relay):
    async def test() -> None:
        async with (
            reader(relay, None) as everything,
            reader(relay, None, Filter(kind="b.")) as kind,
            reader(relay, None, Filter(only="demo")) as bound,
        ):
            for frames in (everything, kind, bound):
                await take(frames)
            await elsewhere(lambda: tell("x:1", kind="a.told", project="demo"))
            await elsewhere(lambda: tell("x:2", kind="b.told", project="other"))
            known = await elsewhere(lambda: tell("x:3", kind="b.told", project="demo"))
            assert await collect(kind, known[-1]) == known[1:]
            assert await collect(bound, known[-1]) == [known[0], known[2]]
            assert await collect(everything, known[-1]) == known

    running(test)


@committed
def test_the_beat_tells_of_rows_that_were_filtered_out(relay, monkeypatch):
    monkeypatch.setattr(module, "BEAT_S", 0.2)

    async def test() -> None:
        async with reader(relay, None, Filter(subject="nothing:")) as frames:
            assert (await take(frames)).cursor == 0
            last = (await elsewhere(tell, "a:1", "a:2"))[-1]
            # A beat may have been on its way before the commit.
            beats = [await take(frames)]
            while beats[-1].cursor < last:
                beats.append(await take(frames))
            assert len(beats) <= 3
            assert beats[-1] == Frame([], last)

    running(test)


@committed
def test_nothing_is_lost_or_doubled_while_somebody_writes_all_the_time(relay):
    old = tell(*["old:1"] * 1500)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            with writing():
                for subject in ("new:1", "new:2"):
                    record("a.told", subject, by=SWEEP, now=timezone.now())

    async def follow(since: int) -> list[int]:
        seen: list[int] = []
        async with reader(relay, since) as frames:
            while True:
                frame = await take(frames)
                assert not frame.reset
                assert len(frame.events) <= FRAME
                seen += told(frame)
                if frame.events and frame.events[-1]["subject"] == "last:1":
                    return seen

    async def test() -> None:
        writer = asyncio.create_task(elsewhere(write))
        readers = [asyncio.create_task(follow(0))]
        # Others join in the middle of it all.
        for since in (700, 1499):
            await asyncio.sleep(0.1)
            readers.append(asyncio.create_task(follow(old[since])))
        await asyncio.sleep(0.3)
        done.set()
        await writer
        known = await elsewhere(tell, "last:1")
        seen = await asyncio.wait_for(asyncio.gather(*readers), LONG_S)
        assert len(known) > 1500 + 50
        assert seen == [known, known[701:], known[1500:]]

    try:
        running(test)
    finally:
        done.set()


@committed
def test_many_events_of_one_transaction_come_in_frames_of_200(relay):
    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            known = await elsewhere(lambda: tell(*["a:1"] * 1450))
            taken = [await take(frames) for _ in range(8)]
            assert [len(frame.events) for frame in taken] == [200] * 7 + [50]
            assert [pk for frame in taken for pk in told(frame)] == known

    running(test)


@committed
def test_a_busy_log_resets_nobody_who_is_still_catching_up(relay, monkeypatch):
    """What overflowed while pages were read is in the pages."""
    monkeypatch.setattr(module, "WAITING_FRAMES", 3)
    tell(*["old:1"] * 450)

    async def test() -> None:
        async with reader(relay, 0) as frames:
            seen = told(await take(frames))
            (place,) = relay.subscriptions
            while not any(frame.reset for frame, _ in place.frames):
                known = await elsewhere(tell, "new:1")
                await asyncio.sleep(0.01)
            while seen[-1] < known[-1]:
                frame = await take(frames)
                assert not frame.reset
                seen += told(frame)
            assert seen == known
            live = asyncio.create_task(take(frames))
            await asyncio.sleep(0.1)
            known = await elsewhere(tell, "new:2")
            assert told(await live) == known[-1:]

    running(test)


@committed
def test_what_was_read_from_the_database_is_not_told_again_by_a_relay_that_lags(relay, monkeypatch):
    monkeypatch.setattr(module, "FRAME", 2)
    go = threading.Event()
    read = module.read

    def lagging_read(cursor: int, limit: int) -> list[dict[str, Any]]:
        if threading.current_thread().name == "relay":
            go.wait(LONG_S)
        return read(cursor, limit)

    monkeypatch.setattr(module, "read", lagging_read)

    async def test() -> None:
        async with reader(relay, None) as others, reader(relay, 0) as frames:
            await take(others)
            known = await elsewhere(tell, "a:1", "a:2", "a:3")
            assert told(await take(frames)) + told(await take(frames)) == known
            live = asyncio.create_task(take(frames))
            await asyncio.sleep(0.1)
            known = await elsewhere(tell, "a:4")
            assert not live.done()
            go.set()
            assert told(await live) == known[-1:]
            assert [told(await take(others)) for _ in range(2)] == [known[:2], known[2:]]

    try:
        running(test)
    finally:
        go.set()


@committed
def test_a_slow_reader_is_reset_and_holds_up_nobody(relay, monkeypatch):
    monkeypatch.setattr(module, "WAITING_FRAMES", 4)

    async def test() -> None:
        async with reader(relay, None) as slow, reader(relay, None) as quick:
            await take(slow)
            (place,) = relay.subscriptions
            await take(quick)
            seen = []
            for n in range(10):
                await elsewhere(tell, f"a:{n}")
                seen += told(await take(quick))
                assert len(place.frames) <= 4
            known = await elsewhere(ids)
            assert seen == known
            first = await take(slow)
            assert first.reset
            assert first.events == []
            rest = []
            while not rest or rest[-1] < known[-1]:
                rest += told(await take(slow))
            # All that came after the reset, so that reading anew at its cursor misses nothing.
            assert rest == [pk for pk in known if pk > first.cursor]

    running(test)


@committed
def test_a_restored_backup_resets_its_readers(relay):
    known = tell("a:1", "a:2", "a:3")

    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            (place,) = relay.subscriptions
            await elsewhere(lambda: Event.objects.filter(id__gt=known[0]).delete())
            # Told before its first frame was all done with, and still told.
            await asyncio.wait_for(place.ready.wait(), LONG_S)
            assert await take(frames) == Frame([], known[0], reset=True)
            assert relay.cursor == known[0]
            again = await elsewhere(tell, "a:4")
            assert told(await take(frames)) == again[-1:]
        async with reader(relay, again[-1] + 7) as frames:
            assert await take(frames) == Frame([], again[-1], reset=True)
            again = await elsewhere(tell, "a:5")
            assert told(await take(frames)) == again[-1:]

    running(test)


@committed
def test_the_poll_alone_delivers(relay, monkeypatch):
    monkeypatch.setattr(nudge, "after_commit", lambda: None)
    monkeypatch.setattr(nudge, "in_transaction", lambda cursor: None)
    delays = []

    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            for n in range(3):
                await elsewhere(tell, f"a:{n}")
                begun = time.monotonic()
                assert len((await take(frames)).events) == 1
                delays.append(time.monotonic() - begun)

    running(test)
    assert min(delays) < (0.2 if connection.vendor == "sqlite" else 1)
    assert max(delays) < 2


@committed
def test_a_nudge_delivers_at_once(relay):
    delays = []

    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            for n in range(5):
                await elsewhere(tell, f"a:{n}")
                begun = time.monotonic()
                await take(frames)
                delays.append(time.monotonic() - begun)

    running(test)
    assert min(delays) < 0.04


# What goes wrong


@committed
@pytest.mark.parametrize("error", [OperationalError("the database went away"), ValueError("anything else")])
def test_an_error_while_reading_is_survived(relay, monkeypatch, caplog, error):
    failing = threading.Event()
    raised = threading.Event()
    read = module.read

    def breaking_read(cursor: int, limit: int) -> list[dict[str, Any]]:
        if failing.is_set() and threading.current_thread().name == "relay":
            failing.clear()
            raised.set()
            raise error
        return read(cursor, limit)

    monkeypatch.setattr(module, "read", breaking_read)

    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            failing.set()
            known = await elsewhere(tell, "a:1")
            assert told(await take(frames)) == known
            assert raised.is_set()
            known = await elsewhere(tell, "a:2")
            assert told(await take(frames)) == known[-1:]

    running(test)
    assert str(error) in caplog.text


@committed
def test_an_ear_that_breaks_is_opened_anew(relay, monkeypatch):
    opened = []
    listen = nudge.listen

    class Broken:
        closed = False

        def wait(self) -> None:
            raise ConnectionResetError("the ear went away")

        def close(self) -> None:
            self.closed = True

    def listening() -> Any:
        opened.append(listen() if opened else Broken())
        return opened[-1]

    monkeypatch.setattr(nudge, "listen", listening)

    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            known = await elsewhere(tell, "a:1")
            assert told(await take(frames)) == known

    running(test)
    assert opened[0].closed
    assert len(opened) == 2


@committed
def test_checks_run_and_what_they_record_is_told(monkeypatch):
    """They write on the relay's own connection, of which PRAGMA data_version says nothing."""
    monkeypatch.setattr(module, "CHECK_S", 0.2)
    calls = []

    def check() -> None:
        calls.append(threading.current_thread().name)
        if len(calls) == 1:
            raise ZeroDivisionError
        tell(f"check:{len(calls)}")

    relay = Relay(checks=(check,))

    async def test() -> None:
        async with reader(relay, None) as frames:
            await take(frames)
            for n in (2, 3):
                frame = await take(frames)
                assert [row["subject"] for row in frame.events] == [f"check:{n}"]

    try:
        running(test)
    finally:
        relay.stop()
    assert set(calls) == {"relay"}


# Who may listen


def test_an_expelled_reader_hears_nothing_more():
    place = Subscription(ANYBODY, ALL)
    place.put(Frame([{"id": 1}], 1), b"before")
    place.expel()
    place.put(Frame([{"id": 2}], 2), b"after")
    with pytest.raises(Expelled):
        async_to_sync(place.get)()


@committed
def test_expulsion_ends_catching_up_too(relay):
    tell(*["a:1"] * 450)

    async def test() -> None:
        async with reader(relay, 0) as frames:
            await take(frames)
            relay._expel({ANYBODY})
            with pytest.raises(Expelled):
                await take(frames)

    running(test)


def _session_of(user: Any) -> str:
    client = Client()
    client.force_login(user)
    return client.session.session_key


@committed
def test_whoever_loses_the_right_to_listen_is_expelled_within_5_s(relay, make_user, make_token):
    now = timezone.now()
    roles = {
        "bystander",
        "logs-out",
        "session-over",
        "deactivated",
        "deleted",
        "role-lost",
        "promoted",
        "other-session",
    }
    users = {name: make_user(name, "viewer") for name in roles}
    readers = {name: access.identify_user(user, _session_of(user)) for name, user in users.items()}
    second = access.identify_user(users["other-session"], _session_of(users["other-session"]))
    tokens = {name: make_token(life=timedelta(days=1)) for name in ("token", "revoked", "expired", "token-deleted")}
    readers |= {name: access.identify_token(raw, now=now, address="") for name, raw in tokens.items()}
    stay = {"bystander", "token", "other-session"}

    def take_away() -> None:
        Session.objects.filter(session_key__in=[readers["logs-out"].session, second.session]).delete()
        Session.objects.filter(session_key=readers["session-over"].session).update(expire_date=timezone.now())
        type(users["deactivated"]).objects.filter(username="deactivated").update(is_active=False)
        users["deleted"].delete()
        users["role-lost"].groups.clear()
        users["promoted"].groups.add(Group.objects.get_or_create(name="operator")[0])
        revoked = ApiToken.objects.get(pk=readers["revoked"].token_id)
        access.revoke(revoked, by=SWEEP, now=timezone.now())
        ApiToken.objects.filter(pk=readers["expired"].token_id).update(expires_at=timezone.now())
        ApiToken.objects.filter(pk=readers["token-deleted"].token_id).delete()

    async def follow(who: Identity, opened: asyncio.Event) -> None:
        with contextlib.suppress(Expelled):
            async with reader(relay, None, Filter(subject="nothing:"), who) as frames:
                await take(frames)
                opened.set()
                async for _ in frames:
                    pass

    async def test() -> None:
        opened = [asyncio.Event() for _ in range(len(readers) + 1)]
        follower = {
            name: asyncio.create_task(follow(who, signal))
            for (name, who), signal in zip([*readers.items(), ("second", second)], opened, strict=True)
        }
        for signal in opened:
            await asyncio.wait_for(signal.wait(), LONG_S)
        await elsewhere(take_away)
        gone = [task for name, task in follower.items() if name not in stay]
        done, _ = await asyncio.wait(gone, timeout=5)
        assert {name for name, task in follower.items() if task not in done} == stay
        # Nobody who stays is expelled at the next look either.
        await elsewhere(relay._recheck)
        await asyncio.sleep(0.05)
        assert {name for name, task in follower.items() if not task.done()} == stay
        for name in stay:
            follower[name].cancel()
        await asyncio.gather(*follower.values(), return_exceptions=True)

    running(test)
