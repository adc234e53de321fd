"""Events are told in the transaction that makes the change, and the order of ids is the order of commits."""

import contextlib
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta, timezone
from typing import Self

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Group
from django.db import IntegrityError, connection, transaction
from django.test.utils import CaptureQueriesContext

from projects import events
from projects.events import MAX_TEXT, SWEEP, By, after, frame_row, record, writing
from projects.models import Event, SignInLink
from projects.relay import read

ANNA = By("user:anna", "page", "10.0.0.7")
committed = pytest.mark.django_db(transaction=True)


def kinds() -> list[str]:
    return list(Event.objects.order_by("id").values_list("kind", flat=True))


def in_threads(*jobs: Callable[[], object]) -> list[object]:
    """Run jobs at once, each on a connection of its own; returns what each returned or raised."""

    def run(job: Callable[[], object]) -> object:
        try:
            return job()
        except Exception as error:
            return error
        finally:
            connection.close()

    with ThreadPoolExecutor(len(jobs)) as threads:
        return list(threads.map(run, jobs))


class Tail:
    """A reader that follows the log as the relay does, on a thread of its own, without a pause."""

    def __init__(self) -> None:
        self.seen: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            while True:
                # Asked before reading: what was committed until then is read once more.
                last = self._stop.is_set()
                rows = read(self.seen[-1] if self.seen else 0, 1000)
                self.seen += [row["id"] for row in rows]
                if last and not rows:
                    return
        finally:
            connection.close()


# What is recorded


@pytest.mark.django_db
def test_record_outside_writing_raises(now):
    with pytest.raises(RuntimeError, match=r"record\('task.claimed'\) outside writing"):
        record("task.claimed", "task:t_1", by=SWEEP, now=now)
    with transaction.atomic(), pytest.raises(RuntimeError):
        record("task.claimed", "task:t_1", by=SWEEP, now=now)


@pytest.mark.django_db
def test_who_where_and_which_run_are_told(now):
    with writing():
        by = By("run:t_1/3", "run", "127.0.0.1", run="t_1/3")
        record("task.claimed", "task:t_1", by=by, now=now, project="demo", n=3, why=None)
        record("task.swept", "task:t_1", by=SWEEP, now=now)
    claimed, swept = Event.objects.order_by("id")
    assert (claimed.kind, claimed.subject, claimed.project, claimed.actor, claimed.run, claimed.at) == (
        "task.claimed",
        "task:t_1",
        "demo",
        "run:t_1/3",
        "t_1/3",
        now,
    )
    assert claimed.payload == {"n": 3, "via": "run", "address": "127.0.0.1"}
    assert (swept.actor, swept.run, swept.project, swept.payload) == ("andon", "", "", {"via": "sweep"})


@pytest.mark.django_db
def test_a_caller_cannot_forge_the_door(now):
    with writing():
        record("task.claimed", "task:t_1", by=ANNA, now=now, via="sweep", address="::1")
    assert Event.objects.get().payload == {"via": "page", "address": "10.0.0.7"}


@pytest.mark.django_db
def test_values_keep_their_types(now):
    told = {"yes": True, "n": 7, "share": 0.5, "names": ["a", "b"], "empty": [], "text": 'quoted " \\ ü 😀\n'}
    with writing():
        record("task.claimed", "task:t_1", by=SWEEP, now=now, **told)
    assert Event.objects.get().payload == {**told, "via": "sweep"}


@pytest.mark.django_db
def test_long_texts_and_lists_are_cut(now):
    by = By("user:" + "n" * 300, "page")
    with writing():
        record("task.noted", "task:" + "s" * 300, by=by, now=now, text="é" * 2001, texts=["x" * 2001] * 51)
    event = Event.objects.get()
    assert event.payload["text"] == "é" * MAX_TEXT
    assert event.payload["texts"] == ["x" * MAX_TEXT] * 50
    assert event.subject == "task:" + "s" * 195
    assert event.actor == "user:" + "n" * 195


@pytest.mark.django_db
def test_what_no_database_holds_is_taken_out(now):
    """Titles come from files that agents write: neither NUL nor half a character may poison a transaction."""
    with writing():
        record(
            "task.noted",
            "task:\x00t\ud800_1",
            by=By("us\x00er:\udfff", "page"),
            now=now,
            text="a\x00b\ud83d",
            l=["\x00"],
        )
    event = Event.objects.get()
    assert (event.subject, event.actor) == ("task:t?_1", "user:?")
    assert event.payload == {"text": "ab?", "l": [""], "via": "page"}


@pytest.mark.django_db
def test_time_is_utc_on_the_wire_to_the_microsecond(now):
    at = (now + timedelta(microseconds=123456)).astimezone(timezone(timedelta(hours=5)))
    with writing():
        record("task.claimed", "task:t_1", by=ANNA, now=at, project="demo")
    event = Event.objects.get()
    told = {
        "id": event.pk,
        "at": "2026-11-20T12:00:00.123456Z",
        "kind": "task.claimed",
        "subject": "task:t_1",
        "project": "demo",
        "actor": "user:anna",
        "run": "",
        "payload": {"via": "page", "address": "10.0.0.7"},
    }
    assert frame_row(event) == told
    assert read(0, 10) == [told]


# Transactions


@committed
def test_change_and_event_commit_together(now):
    with writing():
        Group.objects.create(name="one")
        record("group.made", "group:one", by=SWEEP, now=now)
        assert not Event.objects.exists()
    assert kinds() == ["group.made"]
    assert Group.objects.filter(name="one").exists()


@committed
def test_change_and_event_roll_back_together(now):
    with contextlib.suppress(ZeroDivisionError), writing():
        Group.objects.create(name="one")
        record("group.made", "group:one", by=SWEEP, now=now)
        raise ZeroDivisionError
    assert kinds() == []
    assert not Group.objects.filter(name="one").exists()
    with pytest.raises(RuntimeError):
        record("group.made", "group:one", by=SWEEP, now=now)


@committed
def test_events_that_cannot_be_written_take_the_change_back(now):
    def verb() -> None:
        with writing():
            Group.objects.create(name="one")
            record("group.made", "group:one", by=SWEEP, now=now, what=object())

    with pytest.raises(TypeError):
        verb()
    assert not Group.objects.filter(name="one").exists()


@pytest.mark.django_db
@pytest.mark.parametrize("inner", [writing, transaction.atomic])
def test_a_rolled_back_savepoint_drops_what_it_collected(now, inner):
    with writing():
        record("a.first", "a:1", by=SWEEP, now=now)
        with contextlib.suppress(ZeroDivisionError), inner():
            record("a.dropped", "a:1", by=SWEEP, now=now)
            with inner():
                record("a.dropped_too", "a:1", by=SWEEP, now=now)
            raise ZeroDivisionError
        record("a.second", "a:1", by=SWEEP, now=now)
        with inner():
            record("a.third", "a:1", by=SWEEP, now=now)
        record("a.fourth", "a:1", by=SWEEP, now=now)
    assert kinds() == ["a.first", "a.second", "a.third", "a.fourth"]


@pytest.mark.django_db
def test_nested_writing_keeps_the_order_and_writes_at_the_outermost_end(now):
    with writing():
        record("a.first", "a:1", by=SWEEP, now=now)
        with writing():
            record("a.second", "a:1", by=SWEEP, now=now)
            with writing():
                record("a.third", "a:1", by=SWEEP, now=now)
        assert kinds() == []
        record("a.fourth", "a:1", by=SWEEP, now=now)
    assert kinds() == ["a.first", "a.second", "a.third", "a.fourth"]


@pytest.mark.django_db
def test_two_writings_one_after_the_other_tell_once_each(now):
    """Under a test's own transaction the first one's events are still waiting for a commit."""
    for kind in ("a.first", "a.second"):
        with writing():
            record(kind, "a:1", by=SWEEP, now=now)
    assert kinds() == ["a.first", "a.second"]


@committed
def test_writing_inside_a_plain_transaction_raises(now):
    with transaction.atomic():
        with pytest.raises(RuntimeError, match="durable"), writing():
            pytest.fail("it was entered")
        with pytest.raises(RuntimeError, match="outside writing"):
            record("a.first", "a:1", by=SWEEP, now=now)


@committed
def test_a_broken_transaction_tells_nobody(now):
    def verb() -> None:
        with writing():
            Group.objects.create(name="one")
            record("group.made", "group:one", by=SWEEP, now=now)
            with contextlib.suppress(ZeroDivisionError), transaction.atomic(savepoint=False):
                raise ZeroDivisionError

    with pytest.raises(transaction.TransactionManagementError):
        verb()
    assert kinds() == []
    assert not Group.objects.filter(name="one").exists()


@committed
def test_after_calls_only_on_commit(now):
    called = []
    with contextlib.suppress(ZeroDivisionError), writing():
        after(lambda: called.append("outer rolled back"))
        raise ZeroDivisionError
    with writing():
        after(lambda: called.append(kinds()))
        with contextlib.suppress(ZeroDivisionError), writing():
            after(lambda: called.append("savepoint rolled back"))
            raise ZeroDivisionError
        record("a.first", "a:1", by=SWEEP, now=now)
        assert called == []
    assert called == [["a.first"]]


@committed
def test_after_that_fails_stops_neither_the_others_nor_the_caller(now, caplog):
    called = []
    with writing():
        after(lambda: 1 / 0)
        after(lambda: called.append("second"))
        record("a.first", "a:1", by=SWEEP, now=now)
    assert called == ["second"]
    assert kinds() == ["a.first"]
    assert "division by zero" in caplog.text


@committed
def test_what_after_calls_may_write_itself(now):
    """Act, then commit the outcome: it is another transaction, and its events must not be lost."""

    def outcome() -> None:
        with pytest.raises(RuntimeError, match="outside writing"):
            record("a.lost", "a:1", by=SWEEP, now=now)
        with writing():
            record("a.started", "a:1", by=SWEEP, now=now)

    with writing():
        after(outcome)
        record("a.starting", "a:1", by=SWEEP, now=now)
    assert kinds() == ["a.starting", "a.started"]


@committed
def test_a_thousand_events_are_one_insert_and_it_comes_last(now, settings):
    with (
        CaptureQueriesContext(
            connection,
        ) as captured,
        writing(),
    ):
        for n in range(1000):
            record("task.promoted", f"task:t_{n}", by=SWEEP, now=now, n=n)
        Group.objects.create(name="changed after they were recorded")
    told = [query["sql"].split("(")[0].strip() for query in captured]
    insert = "INSERT INTO projects_event"
    assert told.count(insert) == 1
    last = told.index(insert)
    if connection.vendor == "postgresql":
        assert told[last - 1] == "SELECT pg_advisory_xact_lock"
        assert told[last + 1 :] == ([] if settings.REDIS_URL else ["SELECT pg_notify"]) + ["COMMIT"]
    else:
        assert told[last + 1 :] == ["COMMIT"]
    assert [row["payload"]["n"] for row in read(0, 2000)] == list(range(1000))


@committed
def test_a_transaction_without_events_writes_none_and_takes_no_lock():
    with CaptureQueriesContext(connection) as captured, writing():
        Group.objects.create(name="one")
    assert not [query["sql"] for query in captured if "event" in query["sql"] or "lock" in query["sql"]]


# The order of ids is the order of commits


@committed
def test_recorded_first_committed_last_is_told_last(now):
    recorded, other_done = threading.Event(), threading.Event()

    def early() -> None:
        with writing():
            record("pair.early", "pair:1", by=SWEEP, now=now)
            recorded.set()
            # SQLite has one writer: there the other waits for this one, and this one not for ever.
            other_done.wait(0.05 if connection.vendor == "sqlite" else 5)

    def late() -> None:
        recorded.wait(5)
        with writing():
            record("pair.late", "pair:1", by=SWEEP, now=now)
        other_done.set()

    with Tail() as tail:
        for _ in range(3):
            recorded.clear()
            other_done.clear()
            assert in_threads(early, late) == [None, None]
    assert tail.seen == sorted(Event.objects.values_list("id", flat=True))
    pair = ["pair.early", "pair.late"] if connection.vendor == "sqlite" else ["pair.late", "pair.early"]
    assert kinds() == pair * 3


@committed
def test_whoever_has_its_ids_commits_before_the_next_gets_any(now, monkeypatch):
    """A commit that dawdles after its INSERT must not be overtaken by greater ids: a reader would miss it."""
    inserted = threading.Event()
    flush = events._flush

    def slow_flush(owner: object) -> None:
        flush(owner)
        if threading.current_thread().name == "slow":
            inserted.set()
            time.sleep(0.1)

    monkeypatch.setattr(events, "_flush", slow_flush)

    def slow() -> None:
        threading.current_thread().name = "slow"
        with writing():
            record("pair.slow", "pair:1", by=SWEEP, now=now)

    def quick() -> None:
        inserted.wait(5)
        with writing():
            record("pair.quick", "pair:1", by=SWEEP, now=now)

    with Tail() as tail:
        for _ in range(3):
            inserted.clear()
            assert in_threads(slow, quick) == [None, None]
    assert kinds() == ["pair.slow", "pair.quick"] * 3
    assert tail.seen == sorted(Event.objects.values_list("id", flat=True))


@committed
def test_nobody_waits_for_a_row_while_others_wait_for_the_order(now):
    """A foreign key is checked at COMMIT; against somebody who deletes that row this was a deadlock."""
    user = get_user_model().objects.create_user("gone")
    deleted, linking = threading.Event(), threading.Event()

    def delete() -> None:
        with writing():
            get_user_model().objects.filter(pk=user.pk).delete()
            deleted.set()
            if connection.vendor == "postgresql":
                linking.wait(5)
                time.sleep(0.2)
            record("user.deleted", "user:gone", by=SWEEP, now=now)

    def link() -> None:
        deleted.wait(5)
        with writing():
            SignInLink.objects.create(user_id=user.pk, digest="d", created_at=now, expires_at=now)
            record("user.invited", "user:gone", by=SWEEP, now=now)
            linking.set()

    outcomes = in_threads(delete, link)
    assert outcomes[0] is None
    assert isinstance(outcomes[1], IntegrityError)
    assert kinds() == ["user.deleted"]


WRITERS, TURNS, HOT_ROWS = 8, 40, 20


@committed
def test_eight_writers_on_hot_rows_lose_nothing_and_tell_it_in_order(now):
    rows = [Group.objects.create(name=f"hot {n}").pk for n in range(HOT_ROWS)]

    def writer(number: int) -> Callable[[], None]:
        def run() -> None:
            for turn in range(TURNS):
                first = (number * 7 + turn * 3) % HOT_ROWS
                pair = sorted({rows[first], rows[(first + 1 + turn % 5) % HOT_ROWS]})
                gives_up = turn % 10 == 9
                try:
                    with writing():
                        record("hot.begun", f"hot:{number}", by=SWEEP, now=now, turn=turn, dropped=gives_up)
                        for pk in pair:
                            Group.objects.filter(pk=pk).update(name=f"hot {pk} {number} {turn}")
                        record("hot.done", f"hot:{number}", by=SWEEP, now=now, turn=turn, dropped=gives_up)
                        if gives_up:
                            raise ZeroDivisionError
                except ZeroDivisionError:
                    pass

        return run

    with Tail() as tail:
        outcomes = in_threads(*[writer(number) for number in range(WRITERS)])
    assert outcomes == [None] * WRITERS
    told = list(Event.objects.order_by("id").values_list("id", "kind", "subject", "payload"))
    assert tail.seen == [pk for pk, *_ in told]
    kept = [turn for turn in range(TURNS) if turn % 10 != 9]
    for number in range(WRITERS):
        mine = [(kind, payload["turn"]) for _, kind, subject, payload in told if subject == f"hot:{number}"]
        assert mine == [(kind, turn) for turn in kept for kind in ("hot.begun", "hot.done")]
    # The two events of a transaction stand together: nobody else's lie between.
    for (_, kind, subject, payload), (_, kind2, subject2, payload2) in zip(told[::2], told[1::2], strict=True):
        assert (kind, kind2) == ("hot.begun", "hot.done")
        assert (subject, payload["turn"]) == (subject2, payload2["turn"])
