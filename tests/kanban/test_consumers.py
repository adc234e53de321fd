"""The board's WebSocket under both of its addresses: who gets in, what arrives, and what never does."""

from datetime import timedelta

import pytest
from django.utils import timezone

from kanban import lifecycle, workers
from projects import access
from projects.events import SWEEP, By, record, writing
from projects.models import ApiToken, Event, EventFloor
from projects.relay import relay
from projects.sockets import EXPELLED, REFUSED
from tests.kanban import rows
from tests.projects.aside import elsewhere, running
from tests.projects.wire import OWN, close_code, frame_of, opened, refusal

HOME = "/api/kanban/events"
PLUGIN = "/api/plugins/kanban/events"
pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(params=[HOME, PLUGIN])
def address(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def _nothing_is_left_behind():
    yield
    assert not relay.subscriptions


def told(kind: str = "a.thing", project: str = "") -> int:
    """Commit one event of something else; returns its id."""
    with writing():
        record(kind, "a:b", by=SWEEP, now=timezone.now(), project=project)
    return Event.objects.latest("id").pk


def test_a_stranger_is_refused(address):
    async def test() -> None:
        assert await refusal(address) == REFUSED
        assert await refusal(address, origin=OWN) == REFUSED
        assert await refusal(f"{address}?token=andon_wrong") == REFUSED

    running(test)


def test_a_run_is_refused(address):
    run = rows.pulled()
    token = workers.issue_token(run, run.task, by=rows.AGENT, now=timezone.now())

    async def test() -> None:
        assert await refusal(f"{address}?token={token}") == REFUSED

    running(test)


def test_everything_of_tasks_that_is_retained_arrives_in_the_boards_shape(address, make_token):
    token = make_token("viewer")
    told()
    made = rows.task("One", now=timezone.now())
    told()

    async def test() -> None:
        for since in ("", "&since=", "&since=nonsense", "&since=-1", "&since=0"):
            async with opened(f"{address}?token={token}{since}") as socket:
                frame = await frame_of(socket)
        [event] = frame["events"]
        assert set(frame) == {"events", "cursor"}
        assert set(event) == {"id", "task_id", "kind", "payload", "created_at"}
        assert (event["task_id"], event["kind"]) == (made.pk, "created")
        assert (
            event["payload"] | {"assignee": "demo", "status": "ready", "parents": [], "tenant": None}
            == event["payload"]
        )
        assert event["created_at"] == int(made.created_at.timestamp())
        assert frame["cursor"] >= event["id"]

    running(test)


def test_only_what_comes_after_since_arrives_and_no_frame_is_empty(address, make_token):
    token = make_token("viewer")
    rows.task()
    last = Event.objects.latest("id").pk

    async def test() -> None:
        async with opened(f"{address}?token={token}&since={last}") as socket:
            await elsewhere(told)
            assert await socket.receive_nothing(timeout=0.4)
            made = await elsewhere(rows.task)
            frame = await frame_of(socket)
            assert [(event["task_id"], event["kind"]) for event in frame["events"]] == [(made.pk, "created")]

    running(test)


def test_a_frame_has_at_most_200_events(make_token):
    token = make_token("viewer")
    with writing():
        for _ in range(450):
            record("task.heartbeat", "task:t_1", by=SWEEP, now=timezone.now())

    async def test() -> None:
        async with opened(f"{HOME}?token={token}") as socket:
            frames = [await frame_of(socket) for _ in range(3)]
        assert [len(frame["events"]) for frame in frames] == [200, 200, 50]

    running(test)


def test_a_cursor_beyond_the_head_goes_on_from_there(make_token):
    token = make_token("viewer")
    rows.task()

    async def test() -> None:
        async with opened(f"{HOME}?token={token}&since=999999999") as socket:
            assert await socket.receive_nothing(timeout=0.4)
            made = await elsewhere(rows.task)
            frame = await frame_of(socket)
            assert [event["task_id"] for event in frame["events"]] == [made.pk]
            assert "reset" not in frame

    running(test)


def test_a_cursor_in_what_was_pruned_goes_on_with_what_is_retained(make_token):
    token = make_token("viewer")
    for _ in range(3):
        rows.task()
    ids = list(Event.objects.filter(kind="task.created").order_by("id").values_list("id", flat=True))
    Event.objects.filter(id__lte=ids[1]).delete()
    EventFloor.objects.update_or_create(defaults={"pruned_through": ids[1]})

    async def test() -> None:
        async with opened(f"{HOME}?token={token}&since={ids[0]}") as socket:
            frame = await frame_of(socket)
            assert [event["id"] for event in frame["events"]] == [ids[2]]

    running(test)


def test_a_reader_that_lagged_behind_misses_nothing(make_token, monkeypatch):
    monkeypatch.setattr("projects.relay.WAITING_FRAMES", 1)
    token = make_token("viewer")
    rows.task()
    start = Event.objects.latest("id").pk

    def burst() -> None:
        for _ in range(6):
            rows.task()

    async def test() -> None:
        async with opened(f"{HOME}?token={token}&since={start}") as socket:
            await elsewhere(burst)
            found: list[int] = []
            while len(found) < 6:
                frame = await frame_of(socket)
                assert "reset" not in frame
                found += [event["id"] for event in frame["events"]]
        wanted = await elsewhere(
            lambda: list(Event.objects.filter(kind="task.created", id__gt=start).values_list("id", flat=True))
        )
        assert found == wanted

    running(test)


def test_a_token_of_a_project_hears_of_that_project_alone(make_token, imported):
    imported("demo")
    imported("other")
    token = make_token("viewer", project="demo")
    rows.task(project="other")
    rows.task()
    mine = rows.task(project="demo")

    async def test() -> None:
        async with opened(f"{HOME}?token={token}") as socket:
            frame = await frame_of(socket)
            assert [event["task_id"] for event in frame["events"]] == [mine.pk]

    running(test)


def test_whose_token_is_revoked_is_thrown_out(make_token):
    token = make_token("viewer")
    row = ApiToken.objects.latest("pk")

    async def test() -> None:
        async with opened(f"{HOME}?token={token}") as socket:
            await elsewhere(access.revoke, row, by=By("test", "api"), now=timezone.now() + timedelta(0))
            assert await close_code(socket) == EXPELLED

    running(test)


def test_what_hostile_hands_wrote_arrives_as_it_was_written(make_token):
    token = make_token("viewer")
    text = '</script>\x1b[31m"\\\u2028{{x}}\ud800'
    made = rows.task()
    lifecycle.comment(made, text, author=text, by=rows.ANNA, now=timezone.now())

    async def test() -> None:
        async with opened(f"{HOME}?token={token}") as socket:
            frame = await frame_of(socket)
            assert frame["events"][-1]["payload"]["author"] == text.replace("\ud800", "?")

    running(test)
