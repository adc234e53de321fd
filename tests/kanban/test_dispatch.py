"""One pass of the dispatcher: who is claimed, in which order, within which caps; any number of them at once."""

import contextlib
import hashlib
import threading
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.apps import apps
from django.db import connections
from django.utils import timezone

from kanban import dispatch, lifecycle, sweeps
from kanban.dispatch import claim_ready, look, wake
from kanban.models import Profile, Run, Task
from kanban.states import Reports, Status, WorkspaceKind
from projects.errors import Conflict
from projects.events import SWEEP, By
from projects.models import Event, Project
from services import orders
from services.models import ManagedProcess, WorkerHost
from tests.kanban import rows
from tests.kanban.rows import ANNA, NODE, task
from tests.services.world import make_project

pytestmark = pytest.mark.django_db
SECOND = timedelta(seconds=1)


@pytest.fixture
def demo(db: None, now: datetime) -> Profile:
    """The demo profile, with room for everybody, and a worker that ticks."""
    rows.tick(now)
    return rows.profile(concurrency=100)


def claim(now: datetime, *, limit: int = 100, nodes: Any = (NODE,), **more: Any) -> dispatch.Claimed:
    return claim_ready(list(nodes), limit=limit, by=SWEEP, now=now, **more)


def ids(claimed: dispatch.Claimed) -> list[str]:
    return [task_id for task_id, _, _ in claimed.spawned]


def whole_database() -> str:
    """Return a digest of every row of every table."""
    found = hashlib.sha256()
    for model in sorted(apps.get_models(), key=lambda each: each._meta.db_table):
        found.update(f"{model._meta.db_table} {list(model._default_manager.order_by('pk').values_list())}".encode())
    return found.hexdigest()


class TestOrder:
    def test_priority_then_age_then_id(self, demo: Profile, now: datetime) -> None:
        old, young = task(now=now), task(now=now + SECOND)
        urgent, later = task(priority=5, now=now + 9 * SECOND), task(priority=-1, now=now - SECOND)
        same = sorted(task(priority=5, now=now + 99 * SECOND).pk for _ in range(3))
        expected = [urgent.pk, *same, old.pk, young.pk, later.pk]
        done = claim(now + 100 * SECOND, dry_run=True)
        assert ids(done) == expected
        rows.tick(now + 100 * SECOND)
        done = claim(now + 100 * SECOND)
        assert ids(done) == expected
        assert [run.task_id for run in done.runs] == expected

    def test_what_it_says_of_each(self, demo: Profile, now: datetime, settings: Any) -> None:
        scratch, folder = task(now=now), task(workspace_kind="dir", workspace_path="/srv/x", now=now + SECOND)
        done = claim(now)
        home = settings.ANDON_HOME
        assert done.spawned == [
            (scratch.pk, "demo", str(home / "workspaces" / scratch.pk)), (folder.pk, "demo", "/srv/x")
        ]  # fmt: skip
        tree = Task(id="t_1", workspace_kind=WorkspaceKind.WORKTREE)
        assert dispatch.planned_workspace(tree) == str(home / "workspaces" / "t_1")
        assert dispatch.planned_workspace(Task(id="t_1", workspace_kind=WorkspaceKind.DIR)) == ""


class TestWho:
    def test_only_what_may_be_claimed(self, demo: Profile, now: datetime) -> None:
        parent = rows.in_status(Status.READY, assignee="bruno", now=now)
        waiting = task(now=now)
        from kanban.models import Link

        Link.objects.create(parent=parent, child=waiting)
        cooling = rows.ended(rows.started(now=now), 75, now=now)
        waived = task(parents=[parent.pk], now=now)
        lifecycle.move_to(waived, Status.READY, by=ANNA, now=now)
        for status in set(Status) - {Status.READY}:
            rows.in_status(status, now=now)
        assert ids(claim(now)) == [waived.pk]
        assert rows.fresh(waiting).status == rows.fresh(cooling).status == Status.READY
        rows.tick(now + timedelta(minutes=5))
        assert ids(claim(now + timedelta(minutes=5))) == [cooling.pk]

    def test_not_while_an_old_worker_lingers(self, demo: Profile, now: datetime) -> None:
        run = rows.started(now=now)
        lifecycle.release(run.task, by=ANNA, now=now)
        rows.commit()
        assert ids(claim(now)) == []
        rows.ended(run, -15, now=now)
        assert ids(claim(now)) == [run.task_id]

    def test_a_projects_tasks_on_its_node_only(self, demo: Profile, now: datetime, workspace: Any) -> None:
        make_project(workspace)
        mine, free = task(project="demo", now=now), task(now=now + SECOND)
        rows.tick(now, NODE, "n2")
        assert ids(claim(now, nodes=["n2"], dry_run=True)) == [free.pk]
        done = claim(now, nodes=["n2", NODE])
        assert [(run.task_id, run.host, run.process.node) for run in done.runs] == [
            (free.pk, "n2", "n2"), (mine.pk, NODE, NODE)
        ]  # fmt: skip

    def test_not_of_a_project_whose_directory_is_gone(self, demo: Profile, now: datetime, workspace: Any) -> None:
        make_project(workspace)
        task(project="demo", now=now)
        Project.objects.update(missing_since=now)
        assert ids(claim(now)) == []

    def test_a_full_node_leaves_the_rest_to_the_next(self, demo: Profile, now: datetime, settings: Any) -> None:
        settings.ANDON_WORKERS_PER_HOST = 2
        rows.tick(now, NODE, "n2")
        made = [task(now=now + n * SECOND) for n in range(5)]
        done = claim(now, nodes=[NODE, "n2"])
        assert [(run.task_id, run.host) for run in done.runs] == [
            (each.pk, node) for each, node in zip(made, [NODE, NODE, "n2", "n2"], strict=False)
        ]

    def test_a_profile_that_is_installed_elsewhere(self, demo: Profile, now: datetime) -> None:
        rows.profile("codex", enabled=None, found_on=["n2"])
        rows.tick(now, NODE, "n2")
        made = task(assignee="codex", now=now)
        assert ids(claim(now)) == []
        assert [run.host for run in claim(now, nodes=[NODE, "n2"]).runs] == ["n2"]
        assert rows.fresh(made).status == Status.RUNNING


class TestCaps:
    def test_of_a_pass(self, demo: Profile, now: datetime) -> None:
        made = [task(now=now + n * SECOND).pk for n in range(3)]
        assert ids(claim(now, limit=2)) == made[:2]
        assert ids(claim(now, limit=0)) == []
        assert ids(claim(now, limit=-1)) == []
        assert ids(claim(now, limit=2)) == made[2:]

    def test_of_a_profile_counts_what_runs_already(self, demo: Profile, now: datetime) -> None:
        rows.profile("demo", concurrency=2)
        rows.profile("codex", concurrency=1)
        first = [task(now=now + n * SECOND).pk for n in range(4)]
        other = [task(assignee="codex", now=now + (10 + n) * SECOND).pk for n in range(2)]
        assert ids(claim(now)) == [*first[:2], other[0]]
        assert ids(claim(now)) == []
        lifecycle.archive(Task.objects.get(pk=first[0]), by=ANNA, now=now)
        assert ids(claim(now)) == [first[2]]

    def test_of_a_host_counts_what_runs_already_whosever(self, demo: Profile, now: datetime, settings: Any) -> None:
        settings.ANDON_WORKERS_PER_HOST = 3
        rows.profile("codex", concurrency=5)
        claim(now)
        made = [task(assignee="codex", now=now) for _ in range(2)] + [task(now=now) for _ in range(4)]
        assert len(ids(claim(now))) == 3
        assert ids(claim(now)) == []
        assert Task.objects.filter(pk__in=[each.pk for each in made], status=Status.RUNNING).count() == 3

    def test_a_pull_worker_takes_nobodys_place(self, demo: Profile, now: datetime, settings: Any) -> None:
        settings.ANDON_WORKERS_PER_HOST = 1
        rows.profile("demo", concurrency=1)
        rows.pulled(now=now)
        made = task(now=now)
        assert ids(claim(now)) == [made.pk]

    def test_room_behind_a_profile_that_is_full_is_used(self, demo: Profile, now: datetime) -> None:
        rows.profile("demo", concurrency=1)
        rows.profile("codex", concurrency=9)
        for n in range(20):
            task(now=now + n * SECOND)
        late = [task(assignee="codex", now=now + (50 + n) * SECOND).pk for n in range(2)]
        assert ids(claim(now, limit=3))[1:] == late

    def test_what_another_dispatcher_filled_meanwhile_is_not_tried_for_every_task(
        self, demo: Profile, now: datetime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = [task(now=now + n * SECOND) for n in range(20)]
        real, tries = lifecycle.claim, []

        def slow(of: Task, **about: Any) -> Run:
            tries.append(of.pk)
            if len(tries) == 1:
                Profile.objects.filter(name="demo").update(concurrency=1)
                real(made[19], **about)
            return real(of, **about)

        monkeypatch.setattr(lifecycle, "claim", slow)
        assert ids(claim(now)) == []
        assert len(tries) == 1


class TestOthersAreFaster:
    def test_who_was_claimed_meanwhile_is_left_out(
        self, demo: Profile, now: datetime, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        made = [task(now=now + n * SECOND) for n in range(3)]
        real = lifecycle.claim

        def slow(of: Task, **about: Any) -> Run:
            if of.pk == made[1].pk:
                rows.pulled(of, now=now)
            return real(of, **about)

        monkeypatch.setattr(lifecycle, "claim", slow)
        assert ids(claim(now)) == [made[0].pk, made[2].pk]

    def test_one_poison_row_stops_nobody(
        self, demo: Profile, now: datetime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        made = [task(now=now + n * SECOND) for n in range(3)]
        real = lifecycle.claim

        def poisoned(of: Task, **about: Any) -> Run:
            if of.pk == made[0].pk:
                raise OSError("poison")
            return real(of, **about)

        monkeypatch.setattr(lifecycle, "claim", poisoned)
        assert ids(claim(now)) == [made[1].pk, made[2].pk]
        assert f"{made[0].pk} cannot be claimed" in caplog.text


class TestSkipped:
    def test_who_can_be_started_for_nobody_is_listed(self, demo: Profile, now: datetime) -> None:
        rows.profile("off", enabled=False)
        rows.profile("paused")
        lifecycle.pause(Profile.objects.get(name="paused"), by=ANNA, now=now)
        rows.profile("away", enabled=None, found_on=["n9"])
        nobody, unknown = task(assignee="", now=now), task(assignee="bruno", now=now + SECOND)
        idle = [task(assignee=name, now=now + 2 * SECOND).pk for name in ("off", "paused", "away")]
        done = claim(now)
        assert done.skipped_unassigned == [nobody.pk, unknown.pk]
        assert sorted(done.skipped_nonspawnable) == sorted(idle)
        assert done.spawned == []

    def test_whose_project_is_nowhere_is_listed(self, demo: Profile, workspace: Path, now: datetime) -> None:
        rows.tick(now, NODE, "n2")
        made = {slug: task(project=make_project(workspace, slug).slug, now=now) for slug in ("away", "gone", "lost")}
        elsewhere = task(project=make_project(workspace, "beside").slug, now=now)
        rows.profile("local", enabled=None, found_on=[NODE])
        wrong = task(project="beside", assignee="local", now=now)
        Project.objects.filter(slug="away").update(node="silent")
        Project.objects.filter(slug="gone").update(missing_since=now)
        Project.objects.filter(slug="lost").delete()
        Project.objects.filter(slug="beside").update(node="n2")
        done = claim(now)
        assert sorted(done.skipped_nonspawnable) == sorted([wrong.pk, *(each.pk for each in made.values())])
        assert done.spawned == []
        # Its own host will do it.
        assert elsewhere.pk not in done.skipped_nonspawnable

    def test_the_lists_are_bounded(self, demo: Profile, now: datetime) -> None:
        about = {"status": Status.READY, "since": now, "created_at": now, "active_at": now}
        Task.objects.bulk_create(Task(id=f"t_{n:08x}", title="x", **about) for n in range(250))
        assert len(claim(now).skipped_unassigned) == dispatch.MOST_LISTED

    def test_without_a_worker_nobody_can_be_started(self, demo: Profile, now: datetime) -> None:
        made = task(now=now)
        WorkerHost.objects.all().delete()
        done = claim(now, nodes=[])
        assert (done.spawned, done.skipped_nonspawnable) == ([], [made.pk])

    def test_a_worker_that_falls_silent_meanwhile_is_asked_once(self, demo: Profile, now: datetime) -> None:
        made = [task(now=now) for _ in range(5)]
        WorkerHost.objects.all().delete()
        assert claim(now).spawned == []
        assert Task.objects.filter(pk__in=[each.pk for each in made], status=Status.READY).count() == 5


class TestDryRun:
    def test_nothing_at_all_is_changed(self, demo: Profile, now: datetime, heard: rows.Heard) -> None:
        late = now + timedelta(hours=2)
        rows.profile("codex", reports=Reports.ENVELOPE)
        for status in Status:
            rows.in_status(status, now=now)
        rows.blocked("transient", now=now)
        run = rows.started(max_runtime_s=60, now=now)
        rows.claimed(now=now)
        ManagedProcess.objects.filter(pk=run.process_id).update(pid=None, start_ticks=None, boot_id="", status="lost")
        from kanban.models import Link

        stuck = task(parents=[task(now=now).pk], now=now)
        Link.objects.filter(child=stuck).delete()
        [task(now=now) for _ in range(3)]
        rows.profile("demo", concurrency=100)
        rows.tick(late)
        rows.commit()
        heard.freed, heard.told = 0, []
        before = whole_database()
        done, runs = sweeps.run_pass([NODE], limit=2, dry_run=True, by=ANNA, now=late)
        assert whole_database() == before
        rows.commit()
        assert (runs, heard.told, heard.freed, heard.left) == ([], [], 0, [])
        assert (done.dry_run, len(done.spawned), done.promoted) == (True, 2, 1)
        # Its worker is provably there: it would be extended; the lost one's would not.
        assert done.reclaimed == 1
        done, runs = sweeps.run_pass([NODE], limit=2, by=ANNA, now=late)
        assert whole_database() != before
        assert len(runs) == 2


class TestTelling:
    def test_the_hosts_of_what_was_claimed(self, demo: Profile, now: datetime, heard: rows.Heard) -> None:
        made = [task(now=now) for _ in range(2)]
        _, runs = sweeps.run_pass([NODE], limit=9, by=SWEEP, now=now)
        assert {row.pk for row in heard.told} == {run.process_id for run in runs}
        assert {run.task_id for run in runs} == {each.pk for each in made}
        runs[0].process = None
        heard.told.clear()
        dispatch.tell(runs)
        assert len(heard.told) == 1

    def test_who_ticks(self, now: datetime) -> None:
        rows.tick(now, "n1", "n2")
        rows.tick(now - timedelta(minutes=1), "n3")
        assert dispatch.ticking(now) == ["n1", "n2"]
        assert dispatch.ticking(now + timedelta(minutes=1)) == []

    def test_a_wake_up_reaches_every_worker_there_is(self, monkeypatch: pytest.MonkeyPatch, settings: Any) -> None:
        sent: list[tuple[Any, ...]] = []
        monkeypatch.setattr(orders, "send", lambda *words: sent.append(words))
        rows.tick(timezone.now(), "n1", "n2")
        settings.REDIS_URL = ""
        wake()
        assert sent == [(look, NODE, 0)]
        sent.clear()
        settings.REDIS_URL = "redis://nowhere"
        wake()
        assert sent == [(look, "n1", 0), (look, "n2", 0)]

    def test_the_worker_then_looks_once_on_its_own_pool(self, monkeypatch: pytest.MonkeyPatch) -> None:
        submitted: list[tuple[Any, ...]] = []
        monkeypatch.setattr(dispatch.jobs, "submit", lambda *words: submitted.append(words))
        dispatch.look.call_local(0)
        assert submitted == [("kanban.dispatch", sweeps.tick)]


@pytest.mark.django_db(transaction=True)
class TestAtOnce:
    def run(self, acts: list[Any]) -> list[BaseException]:
        errors: list[BaseException] = []
        gate = threading.Barrier(len(acts))

        def one(act: Any) -> None:
            gate.wait()
            try:
                act()
            except BaseException as error:
                errors.append(error)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=one, args=(act,)) for act in acts]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        assert not any(thread.is_alive() for thread in threads)
        return errors

    def test_eight_claimers_never_claim_a_task_twice(self, settings: Any) -> None:
        settings.ANDON_WORKERS_PER_HOST = 1000
        now = timezone.now()
        rows.profile(concurrency=1000)
        rows.tick(now, NODE, "n2")
        about = {"status": Status.READY, "since": now, "created_at": now, "active_at": now, "assignee": "demo"}
        Task.objects.bulk_create(Task(id=f"t_{n:08x}", title="x", priority=n % 3, **about) for n in range(120))

        def dispatcher(node: str) -> None:
            while claim(now, nodes=[node], limit=16).runs:
                pass

        def puller(name: str) -> None:
            while found := list(Task.objects.filter(status=Status.READY).order_by("-priority", "id")[:4]):
                for each in found:
                    with contextlib.suppress(Conflict):
                        lifecycle.claim(each, by=By(f"token:{name}", "api"), now=now)

        acts = [lambda n=node: dispatcher(n) for node in (NODE, "n2") * 2] + [
            lambda k=k: puller(f"p{k}") for k in range(4)
        ]
        assert self.run(acts) == []
        assert Task.objects.filter(status=Status.RUNNING).count() == 120
        assert Counter(Run.objects.values_list("task_id", flat=True)) == {f"t_{n:08x}": 1 for n in range(120)}
        told = Counter(Event.objects.filter(kind="task.claimed").values_list("subject", flat=True))
        assert told == {f"task:t_{n:08x}": 1 for n in range(120)}
        assert ManagedProcess.objects.count() == Run.objects.filter(has_process=True).count()

    def test_two_dispatchers_never_pass_a_cap_together(self, settings: Any) -> None:
        settings.ANDON_WORKERS_PER_HOST = 5
        now = timezone.now()
        rows.profile(concurrency=7)
        rows.tick(now, NODE, "n2")
        for _ in range(20):
            task(now=now)
        acts = [lambda n=nodes: claim(now, nodes=n) for nodes in ([NODE, "n2"], ["n2", NODE], [NODE], ["n2"])]
        assert self.run(acts) == []
        hosts = Counter(Run.objects.values_list("host", flat=True))
        assert sum(hosts.values()) == 7
        assert max(hosts.values()) <= 5
