"""The WebSocket: who gets in, what arrives, and who is thrown out."""

import threading
from collections.abc import Callable, Iterator
from datetime import timedelta

import pytest
from channels.testing import WebsocketCommunicator
from django.contrib.auth import get_user_model
from django.contrib.sessions.models import Session
from django.db import OperationalError
from django.test import Client
from django.utils import timezone

from projects import access, nudge
from projects import relay as module
from projects.events import SWEEP, record, writing
from projects.models import ApiToken, Event, EventFloor
from projects.relay import relay
from projects.sockets import EXPELLED, FAILED, REFUSED
from tests.projects.aside import elsewhere, running
from tests.projects.wire import HOST, LONG_S, OWN, close_code, frame_of, opened, refusal, socket_at

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _nothing_is_left_behind(monkeypatch) -> Iterator[None]:
    # Stopping the relay waits for its ear.
    for ear in (nudge.PostgresEar, nudge.RedisEar):
        monkeypatch.setattr(ear, "poll_s", 0.1)
    yield
    assert not relay.subscriptions


@pytest.fixture
def session(make_user) -> Callable[..., str]:
    """Return the session key of a new user who is signed in."""

    def make(role: str = "viewer", name: str = "anna") -> str:
        client = Client()
        client.force_login(make_user(name, role))
        return client.session.session_key

    return make


def tell(*subjects: str, kind: str = "a.told", project: str = "") -> list[int]:
    """Commit one event a subject; returns all ids so far."""
    with writing():
        for subject in subjects:
            record(kind, subject, by=SWEEP, now=timezone.now(), project=project)
    return list(Event.objects.order_by("id").values_list("id", flat=True))


async def next_ids(socket: WebsocketCommunicator) -> list[int]:
    """Return the ids of the next frame that holds any; one read while catching up may only move the cursor."""
    while not (events := (await frame_of(socket))["events"]):
        pass
    return [row["id"] for row in events]


# Who gets in


def test_nobody_gets_in_without_credentials():
    async def test() -> None:
        assert await refusal("/ws/events") == REFUSED
        assert await refusal("/ws/events", origin=OWN) == REFUSED
        assert await refusal("/ws/events?token=", origin=OWN) == REFUSED
        assert await refusal("/ws/events", origin=OWN, session="0123456789abcdef0123456789abcdef") == REFUSED

    running(test)


def test_a_wrong_expired_or_revoked_token_is_refused(make_token):
    expired = make_token(life=timedelta(seconds=-1))
    revoked = make_token()
    access.revoke(ApiToken.objects.get(hint=revoked[6:10]), by=SWEEP, now=timezone.now())

    async def test() -> None:
        for token in ("andon_wrong", expired, revoked, revoked.upper()):
            assert await refusal(f"/ws/events?token={token}") == REFUSED

    running(test)


def test_a_wrong_token_is_refused_whatever_the_session(session):
    key = session()

    async def test() -> None:
        assert await refusal("/ws/events?token=andon_wrong", origin=OWN, session=key) == REFUSED

    running(test)


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "null",
        "http://evil.example",
        "http://andon.example",
        "http://andon.example:8001",
        "http://andon.example:80000",
        "http://evil.example:8000",
        "http://andon.example:8000.evil.example",
        "http://evil.example/andon.example:8000",
        "http://andon.example:8000@evil.example",
        "file://andon.example:8000",
        "http://[",
    ],
)
def test_a_session_is_refused_to_a_page_of_another_origin(session, origin):
    key = session()

    async def test() -> None:
        assert await refusal("/ws/events", origin=origin, session=key) == REFUSED

    running(test)


def test_an_origin_proves_nothing_without_a_host(session):
    key = session()

    async def test() -> None:
        for origin in ("null", "http://", "https://"):
            assert await refusal("/ws/events", origin=origin, session=key, host="") == REFUSED

    running(test)


@pytest.mark.parametrize("origin", [OWN, f"https://{HOST}"])
def test_a_session_gets_in_from_its_own_origin(session, origin):
    key = session()

    async def test() -> None:
        async with opened("/ws/events", session=key, origin=origin) as socket:
            assert await frame_of(socket) == {"events": [], "cursor": module.relay.cursor}

    running(test)


def test_a_trusted_origin_gets_in(session, settings):
    settings.CSRF_TRUSTED_ORIGINS = ["https://board.example"]
    key = session()

    async def test() -> None:
        async with opened("/ws/events", session=key, origin="https://board.example") as socket:
            assert (await frame_of(socket))["events"] == []
        assert await refusal("/ws/events", session=key, origin="http://board.example") == REFUSED

    running(test)


def test_a_token_gets_in_from_anywhere(make_token):
    token = make_token()

    async def test() -> None:
        for origin in ("", "http://evil.example"):
            async with opened(f"/ws/events?token={token}", origin=origin) as socket:
                assert (await frame_of(socket))["events"] == []

    running(test)
    assert ApiToken.objects.get().last_used_at is not None


def test_a_user_without_a_role_or_without_a_future_is_refused(session):
    outsider, former = session(role="", name="outsider"), session(name="former")
    get_user_model().objects.filter(username="former").update(is_active=False)

    async def test() -> None:
        assert await refusal("/ws/events", origin=OWN, session=outsider) == REFUSED
        assert await refusal("/ws/events", origin=OWN, session=former) == REFUSED

    running(test)


@pytest.mark.parametrize("path", ["/ws", "/ws/events/", "/ws/other", "/events", "/ws/events/more"])
def test_an_unknown_address_is_refused_whoever_asks(make_token, path):
    token = make_token()

    async def test() -> None:
        assert await refusal(f"{path}?token={token}") == REFUSED

    running(test)


# What arrives


def test_frames_have_their_exact_shape(make_token):
    token = make_token()

    async def test() -> None:
        async with opened(f"/ws/events?token={token}") as socket:
            first = await frame_of(socket)
            assert set(first) == {"events", "cursor"}
            known = await elsewhere(tell, "story:demo/US-1", kind="story.passed", project="demo")
            frame = await frame_of(socket)
            at = await elsewhere(lambda: Event.objects.latest("id").at)
            assert frame == {
                "events": [
                    {
                        "id": known[-1],
                        "at": at.isoformat().replace("+00:00", "Z"),
                        "kind": "story.passed",
                        "subject": "story:demo/US-1",
                        "project": "demo",
                        "actor": "andon",
                        "run": "",
                        "payload": {"via": "sweep"},
                    }
                ],
                "cursor": known[-1],
            }

    running(test)


def test_since_zero_is_all_that_is_retained(make_token):
    token = make_token()
    known = tell(*["a:1"] * 450)
    Event.objects.filter(id__lte=known[9]).delete()
    EventFloor.objects.create(id=1, pruned_through=known[9])

    async def test() -> None:
        async with opened(f"/ws/events?since=0&token={token}") as socket:
            seen: list[int] = []
            while not seen or seen[-1] < known[-1]:
                frame = await frame_of(socket)
                assert len(frame["events"]) <= 200
                seen += [row["id"] for row in frame["events"]]
                assert frame["cursor"] == seen[-1]
            assert seen == known[10:]

    running(test)


def test_without_since_only_what_comes_is_told(make_token):
    token = make_token()
    last = tell("a:1")[-1]

    async def test() -> None:
        async with opened(f"/ws/events?token={token}") as socket:
            assert await frame_of(socket) == {"events": [], "cursor": last}
            known = await elsewhere(tell, "a:2")
            assert [row["id"] for row in (await frame_of(socket))["events"]] == known[-1:]

    running(test)


def test_since_a_cursor_is_what_came_after_it(make_token):
    token = make_token()
    known = tell("a:1", "a:2", "a:3")

    async def test() -> None:
        async with opened(f"/ws/events?since={known[-3]}&token={token}") as socket:
            assert [row["id"] for row in (await frame_of(socket))["events"]] == known[-2:]

    running(test)


def test_since_outside_the_log_is_a_reset(make_token):
    token = make_token()
    known = tell("a:1", "a:2", "a:3")
    Event.objects.filter(id__lte=known[-2]).delete()
    EventFloor.objects.create(id=1, pruned_through=known[-2])

    async def test() -> None:
        for since in (known[-1] + 1, 10**17, known[-3]):
            async with opened(f"/ws/events?since={since}&token={token}") as socket:
                assert await frame_of(socket) == {"reset": True, "cursor": known[-1]}
                assert await socket.receive_nothing(timeout=0.05)

    running(test)


@pytest.mark.parametrize("since", ["", "-1", "1.5", "null", "٣", "9" * 40, "0x1"])
def test_nonsense_in_since_leaves_no_silent_gap(make_token, since):
    token = make_token()
    known = tell("a:1")

    async def test() -> None:
        async with opened(f"/ws/events?since={since}&token={token}") as socket:
            assert [row["id"] for row in (await frame_of(socket))["events"]] == known

    running(test)


def test_bytes_that_are_no_text_in_the_address_break_nothing(make_token):
    token = make_token()

    async def test() -> None:
        socket = socket_at("/ws/events")
        socket.scope["query_string"] = b"kind=\xff\xfe&subject=%ff%00&since=0&token=" + token.encode()
        accepted, _ = await socket.connect(timeout=LONG_S)
        assert accepted
        assert (await frame_of(socket))["events"] == []
        await socket.disconnect(timeout=LONG_S)

    running(test)


def test_filters_are_prefixes(make_token):
    token = make_token()

    async def test() -> None:
        path = f"/ws/events?since=0&subject=task:&kind=task.&project=de&token={token}"
        async with opened(path) as socket:
            await frame_of(socket)
            await elsewhere(tell, "task:t_1", kind="run.done", project="demo")
            await elsewhere(tell, "service:web", kind="task.done", project="demo")
            await elsewhere(tell, "task:t_1", kind="task.done", project="other")
            known = await elsewhere(tell, "task:t_1", kind="task.done", project="demo")
            assert await next_ids(socket) == known[-1:]

    running(test)


def test_a_token_of_one_project_hears_of_no_other(make_token):
    bound, free = make_token(project="demo"), make_token()
    for project in ("demo", "demo2", "other", ""):
        known = tell("x:1", project=project)

    async def test() -> None:
        async with (
            opened(f"/ws/events?since=0&token={bound}") as socket,
            opened(f"/ws/events?since=0&project=other&token={bound}") as nosy,
            opened(f"/ws/events?since=0&token={free}") as everything,
        ):
            frame = await frame_of(socket)
            # Its own issue was told of its project too.
            assert {row["project"] for row in frame["events"]} == {"demo"}
            assert frame["cursor"] == known[-1]
            assert await frame_of(nosy) == {"events": [], "cursor": known[-1]}
            assert len((await frame_of(everything))["events"]) == len(known)
            await elsewhere(tell, "x:2", project="other")
            again = await elsewhere(tell, "x:3", project="demo")
            assert await next_ids(socket) == again[-1:]
            while not await nosy.receive_nothing(timeout=0.05):
                assert (await frame_of(nosy))["events"] == []

    running(test)


def test_what_a_client_sends_is_ignored(make_token):
    token = make_token()

    async def test() -> None:
        async with opened(f"/ws/events?token={token}") as socket:
            await frame_of(socket)
            await socket.send_to(text_data='{"since": 0}')
            await socket.send_to(bytes_data=b"\xff")
            known = await elsewhere(tell, "a:1")
            assert (await frame_of(socket))["cursor"] == known[-1]

    running(test)


# How it ends


def _revoke(raw: str) -> None:
    access.revoke(ApiToken.objects.get(digest=access._digest(raw)), by=SWEEP, now=timezone.now())


def test_a_revoked_token_is_closed_within_5_s(make_token):
    token = make_token()

    async def test() -> None:
        async with opened(f"/ws/events?token={token}") as socket:
            await frame_of(socket)
            await elsewhere(_revoke, token)
            assert await close_code(socket) == EXPELLED == 4401

    running(test)


def test_who_signs_out_or_is_locked_out_is_closed(session, make_token, monkeypatch):
    monkeypatch.setattr(module, "RECHECK_S", 0.1)
    signed_out, locked_out, stays = session(name="bea"), session(name="carl"), session(name="dora")

    async def test() -> None:
        async with (
            opened("/ws/events", session=signed_out, origin=OWN) as bea,
            opened("/ws/events", session=locked_out, origin=OWN) as carl,
            opened("/ws/events", session=stays, origin=OWN) as dora,
        ):
            for socket in (bea, carl, dora):
                await frame_of(socket)
            await elsewhere(lambda: Session.objects.filter(session_key=signed_out).delete())
            assert await close_code(bea) == EXPELLED
            await elsewhere(lambda: get_user_model().objects.filter(username="carl").update(is_active=False))
            assert await close_code(carl) == EXPELLED
            assert len(relay.subscriptions) == 1
            known = await elsewhere(tell, "a:1")
            assert (await frame_of(dora))["cursor"] == known[-1]

    running(test)


def test_disconnecting_leaves_no_subscription_behind(make_token):
    token = make_token()

    async def test() -> None:
        async with opened(f"/ws/events?token={token}") as one:
            await frame_of(one)
            async with opened(f"/ws/events?token={token}") as two:
                await frame_of(two)
                assert len(relay.subscriptions) == 2
            assert len(relay.subscriptions) == 1
        assert len(relay.subscriptions) == 0
        # One that leaves before its first frame was read.
        async with opened(f"/ws/events?since=0&token={token}"):
            pass
        assert len(relay.subscriptions) == 0

    running(test)


def test_a_log_that_cannot_be_read_closes_the_socket(make_token, monkeypatch, caplog):
    """Left open it would be silent for ever; closed, its page connects again."""
    token = make_token()

    def broken_page(*_: object) -> None:
        raise OperationalError("the database went away")

    async def test() -> None:
        with monkeypatch.context() as broken:
            broken.setattr(module, "page_of", broken_page)
            async with opened(f"/ws/events?since=0&token={token}") as socket:
                assert await close_code(socket) == FAILED
        assert not relay.subscriptions
        async with opened(f"/ws/events?since=0&token={token}") as socket:
            assert len((await frame_of(socket))["events"]) == 1

    running(test)
    assert "the database went away" in caplog.text


def test_a_refused_socket_starts_no_relay():
    async def test() -> None:
        assert await refusal("/ws/events?token=andon_wrong") == REFUSED

    running(test)
    assert not [thread for thread in threading.enumerate() if thread.name == "relay"]
