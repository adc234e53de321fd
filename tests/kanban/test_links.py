"""The graph of tasks: no circles, whoever adds links at once; children follow their parents in both directions."""

import threading
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext

from kanban import lifecycle, links
from kanban.models import Board, Link, Task
from kanban.states import Status
from projects.errors import Rejected
from projects.models import Event
from tests.kanban import rows
from tests.kanban.rows import ANNA, task

pytestmark = pytest.mark.django_db
committed = pytest.mark.django_db(transaction=True)


def chain(length: int) -> list[Task]:
    """Return tasks of which each waits for the one before."""
    made: list[Task] = []
    for _ in range(length):
        made.append(task(parents=[made[-1].pk] if made else []))
    return made


def at_once(acts: list[Callable[[], object]]) -> list[object]:
    """Run each in a thread of its own, all from one moment; returns what they returned or refused."""
    gate, found = threading.Barrier(len(acts)), [None] * len(acts)

    def run(n: int, act: Callable[[], object]) -> None:
        gate.wait()
        try:
            found[n] = act()
        except Exception as refusal:
            found[n] = refusal
        finally:
            connections.close_all()

    threads = [threading.Thread(target=run, args=each) for each in enumerate(acts)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return found


class TestReading:
    def test_who_is_whose(self) -> None:
        one, two, three = chain(3)
        other = rows.in_status(Status.DONE)
        lifecycle.link(other.pk, three.pk, by=ANNA, now=one.created_at)
        assert links.parents(three.pk) == [two.pk, other.pk]
        assert links.children(one.pk) == [two.pk]
        assert links.open_parents(three.pk) == [two.pk]
        assert links.open_parents(one.pk) == []

    def test_ancestors_however_far(self) -> None:
        made = chain(30)
        assert links.is_ancestor(made[0].pk, of=made[-1].pk)
        assert not links.is_ancestor(made[-1].pk, of=made[0].pk)
        # The way up begins with the task itself.
        assert links.is_ancestor(made[3].pk, of=made[3].pk)

    def test_a_circle_that_should_not_be_ends(self) -> None:
        one, two = chain(2)
        Link.objects.create(parent=two, child=one)
        assert not links.is_ancestor("t_00000000", of=one.pk)
        assert links.dependants([one.pk]) == 2

    def test_who_waits_for_them_directly_or_not(self) -> None:
        one, two, three = chain(3)
        done = task(parents=[one.pk])
        lifecycle.archive(done, by=ANNA, now=one.created_at)
        assert links.dependants([one.pk]) == 2
        assert links.dependants([one.pk, two.pk]) == 2
        assert links.dependants([three.pk]) == 0
        assert links.dependants([]) == 0

    def test_a_diamond_counts_once(self) -> None:
        top = task()
        sides = [task(parents=[top.pk]) for _ in range(2)]
        task(parents=[side.pk for side in sides])
        assert links.dependants([top.pk]) == 3


class TestCircles:
    @pytest.mark.parametrize("length", [2, 3, 30])
    def test_none_is_closed(self, length: int, now: datetime) -> None:
        made = chain(length)
        refusal = rows.unchanged(lambda: lifecycle.link(made[-1].pk, made[0].pk, by=ANNA, now=now))
        assert (type(refusal), refusal.code) == (Rejected, "cycle")

    def test_not_through_closed_tasks_either(self, now: datetime) -> None:
        one, two = chain(2)
        lifecycle.archive(one, by=ANNA, now=now)
        assert rows.unchanged(lambda: lifecycle.link(two.pk, one.pk, by=ANNA, now=now)).code == "cycle"

    def test_a_shortcut_is_no_circle(self, now: datetime) -> None:
        made = chain(4)
        lifecycle.link(made[0].pk, made[3].pk, by=ANNA, now=now)
        assert Link.objects.count() == 4

    @committed
    def test_not_by_two_at_once(self, now: datetime) -> None:
        for _ in range(6):
            one, two = task(), task()
            found = at_once(
                [
                    partial(lifecycle.link, one.pk, two.pk, by=ANNA, now=now),
                    partial(lifecycle.link, two.pk, one.pk, by=ANNA, now=now),
                ]
            )
            assert sorted(type(each).__name__ for each in found) == ["NoneType", "Rejected"]
            assert Link.objects.filter(parent__in=[one, two]).count() == 1

    @committed
    def test_not_by_three_that_close_it_together(self, now: datetime) -> None:
        made = [task() for _ in range(3)]
        pairs = [(made[n], made[(n + 1) % 3]) for n in range(3)]
        found = at_once([partial(lifecycle.link, one.pk, two.pk, by=ANNA, now=now) for one, two in pairs])
        assert sum(isinstance(each, Rejected) for each in found) == 1
        assert Link.objects.count() == 2

    def test_the_lock_has_a_row_to_stand_on(self) -> None:
        Board.objects.all().delete()
        links.lock_graph()
        links.lock_graph()
        assert Board.objects.count() == 1


class TestPromotion:
    @pytest.mark.parametrize("verb", [lifecycle.complete, lifecycle.archive])
    def test_the_last_parent_that_closes_promotes(self, verb: Callable[..., Task], now: datetime) -> None:
        parents = [task() for _ in range(3)]
        child = task(parents=[each.pk for each in parents])
        for n, parent in enumerate(parents):
            assert rows.fresh(child).status == Status.TODO, n
            verb(parent, by=ANNA, now=now)
        kept = rows.fresh(child)
        assert (kept.status, kept.since) == (Status.READY, now)
        assert rows.last(child, "ready").payload == {"via": "page", "address": "10.0.0.1"}

    def test_a_run_that_completes_the_parent_is_named(self, now: datetime) -> None:
        run = rows.started()
        child = task(parents=[run.task_id])
        lifecycle.complete(run.task, by=rows.as_run(run), now=now)
        assert rows.last(child, "ready").run == str(run)

    def test_there_and_back_and_there_again(self, now: datetime) -> None:
        parent = task()
        child = task(parents=[parent.pk])
        grandchild = task(parents=[child.pk])
        before = rows.head()
        lifecycle.complete(parent, by=ANNA, now=now)
        lifecycle.reopen(parent, by=ANNA, now=now)
        lifecycle.complete(parent, by=ANNA, now=now)
        assert rows.kinds(child, before) == ["ready", "status", "ready"]
        assert rows.kinds(grandchild, before) == []

    @pytest.mark.parametrize("status", [Status.TRIAGE, Status.BLOCKED, Status.REVIEW, Status.RUNNING, Status.DONE])
    def test_whatever_does_not_wait_stays(self, status: Status, now: datetime) -> None:
        child, parent = rows.in_status(status), task()
        lifecycle.link(parent.pk, child.pk, by=ANNA, now=now)
        before = rows.head()
        lifecycle.complete(parent, by=ANNA, now=now)
        lifecycle.reopen(parent, by=ANNA, now=now)
        assert (rows.fresh(child).status, rows.kinds(child, before)) == (status, [])

    @committed
    def test_two_parents_that_close_at_once_promote_once(self, now: datetime) -> None:
        for _ in range(6):
            one, two = task(), task()
            child = task(parents=[one.pk, two.pk])
            found = at_once([partial(lifecycle.complete, each, by=ANNA, now=now) for each in (one, two)])
            assert [type(each) for each in found] == [Task, Task]
            assert rows.fresh(child).status == Status.READY
            assert rows.kinds(child) == ["created", "ready"]

    @committed
    def test_a_parent_that_closes_while_its_child_is_made(self, now: datetime) -> None:
        for _ in range(6):
            parent = task()
            found = at_once(
                [
                    partial(lifecycle.complete, parent, by=ANNA, now=now),
                    partial(task, "The child", parents=[parent.pk]),
                ]
            )
            assert isinstance(found[1], Task), found
            assert rows.fresh(found[1]).status == Status.READY

    def test_a_thousand_children_among_ten_thousand_tasks(self, now: datetime) -> None:
        parent = task(now=now)
        about = {"since": now, "created_at": now, "active_at": now}
        children = [Task(id=f"t_{n:08x}", title="x", status=Status.TODO, **about) for n in range(1000)]
        Task.objects.bulk_create(children)
        Task.objects.bulk_create(
            Task(id=f"t_{n:08x}", title="x", status=Status.READY, **about) for n in range(1000, 10_000)
        )
        Link.objects.bulk_create(Link(parent=parent, child=child) for child in children)
        with CaptureQueriesContext(
            connection,
        ) as queries:
            lifecycle.complete(parent, by=ANNA, now=now + timedelta(seconds=1))
        said = [each["sql"] for each in queries.captured_queries]
        assert sum(sql.startswith(f"INSERT INTO {Event._meta.db_table} ") for sql in said) == 1
        assert sum(sql.startswith("UPDATE") for sql in said) == 2
        assert len(said) <= 12, [sql[:90] for sql in said]
        assert Task.objects.filter(status=Status.READY).count() == 10_000
        assert Event.objects.filter(kind="task.ready").count() == 1000

    def test_more_than_one_transaction_should_take_are_left_to_the_sweep(
        self, now: datetime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from kanban import sweeps
        from kanban.lifecycle import promotion

        monkeypatch.setattr(promotion, "MOST_AT_ONCE", 2)
        parent = task()
        children = [task(parents=[parent.pk]) for _ in range(5)]
        lifecycle.complete(parent, by=ANNA, now=now)
        assert Task.objects.filter(pk__in=[each.pk for each in children], status=Status.READY).count() == 2
        assert [sweeps.promote_ready(now=now) for _ in range(3)] == [2, 1, 0]
