"""Clean up now: what the rules let go goes, and nothing else; whatever fails or dies, the rest is done."""

import os
import shutil
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.conf import settings
from django.db import connection
from django.utils import timezone

from kanban import cleaning, lifecycle, notices, retention, workspaces
from kanban.models import CleanUp, Run
from kanban.states import Status
from projects import jobs
from projects.errors import Unavailable
from projects.events import SWEEP, record, writing
from projects.models import Event
from services import orders, supervisor
from services import sweeps as services
from services.models import LOG_FOLDER, ManagedProcess, WorkerHost
from tests.kanban import rows
from tests.kanban.closed import LONG_AGO, worked_on
from tests.kanban.rows import ANNA

pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of logs of its own for each test."""
    folder = tmp_path / "logs"
    folder.mkdir()
    for module in (retention, services, cleaning):
        monkeypatch.setattr(module, "LOG_FOLDER", folder)
    return folder


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What the workers would have been told."""
    found: list[tuple[str, int]] = []
    monkeypatch.setattr(orders, "send", lambda job, node, pk: found.append((node, pk)))
    monkeypatch.setattr(cleaning, "ENDED_WITHIN_S", 0.0)
    return found


def asked(node: str = "") -> CleanUp:
    return lifecycle.ask_clean_up(node or settings.ANDON_NODE, by=ANNA, now=timezone.now())


def carried_out() -> CleanUp:
    row = cleaning.carry_out(asked().pk)
    assert row is not None
    assert row.ended_at is not None
    return row


def old_log(folder: Path, name: str, size: int) -> Path:
    path = folder / name
    path.write_bytes(b"x" * size)
    os.utime(path, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))
    return path


def test_all_that_the_rules_let_go_goes_and_is_counted(home: Path, logs: Path) -> None:
    run = worked_on(home)
    assert run.process is not None
    old_log(logs, run.process.log_name, 100)
    old_log(logs, "999-gone.log", 10)
    events = Event.objects.filter(subject=run.task.subject).count()
    row = carried_out()
    size = len("report.mdother.txt") + len(run.task_id) + 100 + len("context") + 10
    assert row.removed == {"workspaces": 1, "processes": 1, "logs": 1, "task_events": events, "bytes": size}
    assert (row.failed, row.left) == ([], False)
    assert list(logs.iterdir()) == []
    assert not (home / "agents" / run.agent).exists()
    assert list((home / "workspaces").iterdir()) == []
    assert [each.name for each in (home / "artefacts" / run.task_id).iterdir()] == ["report.md"]
    assert not ManagedProcess.objects.exists()
    for kind in ("task.pruned", "cleanup.completed"):
        event = Event.objects.get(kind=kind)
        assert (event.actor, event.payload["via"], event.payload["address"]) == ("user:anna", "page", "10.0.0.1")


def test_nothing_to_go_is_an_end_too(home: Path) -> None:
    assert carried_out().removed == {}
    assert Event.objects.get(kind="cleanup.completed").payload == {"via": "page", "address": "10.0.0.1"}


def test_a_second_one_removes_nothing_more(home: Path) -> None:
    worked_on(home)
    assert carried_out().removed["workspaces"] == 1
    # What the first one told is not old.
    assert carried_out().removed == {}


def test_a_task_that_was_opened_again_since_the_preview_keeps_all(home: Path, logs: Path) -> None:
    kept, gone = worked_on(home), worked_on(home)
    assert kept.process is not None
    log = old_log(logs, kept.process.log_name, 100)
    row = asked()
    lifecycle.reopen(kept.task, by=ANNA, now=timezone.now())
    before = Event.objects.filter(subject=kept.task.subject).count()
    cleaning.carry_out(row.pk)
    assert (home / "workspaces" / kept.task_id / "other.txt").exists()
    assert (home / "agents" / kept.agent / "context.md").exists()
    assert log.exists()
    assert Event.objects.filter(subject=kept.task.subject).count() == before
    assert not (home / "workspaces" / gone.task_id).exists()


@pytest.mark.parametrize("why", ["open", "recent", "child", "at_work", "no-marker", "dir"])
def test_what_the_rules_keep_stays(home: Path, workspace: Path, why: str) -> None:
    place = workspace / "garden"
    place.mkdir()
    about = {"workspace_kind": "dir", "workspace_path": str(place)} if why == "dir" else {}
    run = worked_on(home, **about)
    here = home / "workspaces" / run.task_id
    match why:
        case "open":
            lifecycle.reopen(run.task, by=ANNA, now=timezone.now())
        case "recent":
            type(run.task).objects.update(since=timezone.now() - timedelta(days=29))
        case "child":
            rows.task("Reads it", parents=[run.task_id])
        case "at_work":
            ManagedProcess.objects.update(status="stopping", outcome="stopped")
        case "no-marker":
            (here / workspaces.MARKER).unlink()
        case "dir":
            Run.objects.update(workspace=str(place))
            here = place
    assert "workspaces" not in carried_out().removed
    assert here.is_dir()
    assert why == "dir" or (here / "report.md").exists()


def test_a_workspace_that_is_gone_already_is_no_fault(home: Path) -> None:
    run = worked_on(home)
    shutil.rmtree(home / "workspaces")
    row = carried_out()
    assert (row.failed, row.removed.get("workspaces")) == ([], None)
    assert rows.fresh_run(run).workspace == ""


def test_what_agents_left_is_removed_and_what_it_points_to_stays(home: Path, tmp_path: Path) -> None:
    run = worked_on(home, title="<script>alert(1)</script>\u202e", result="../../secret and report.md")
    (tmp_path / "secret").write_text("mine")
    place = home / "workspaces" / run.task_id
    (place / "out").symlink_to(tmp_path)
    (place / "a\nb\x1b[31m").write_text("x")
    assert carried_out().removed["workspaces"] == 1
    assert (tmp_path / "secret").read_text() == "mine"
    assert [each.name for each in (home / "artefacts" / run.task_id).rglob("*")] == ["report.md"]


def test_many_go_batch_by_batch(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(5):
        worked_on(home)
    monkeypatch.setattr(retention, "BATCH", 2)
    monkeypatch.setattr(retention, "MOST_EVENTS", 3)
    events = Event.objects.filter(subject__startswith="task:").count()
    row = carried_out()
    assert (row.removed["workspaces"], row.removed["processes"], row.removed["task_events"]) == (5, 5, events)
    assert not row.left


def test_it_ends_in_time_and_says_that_there_is_more(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        worked_on(home)
    monkeypatch.setattr(retention, "BATCH", 2)
    clock = iter(range(0, 10_000, 40))
    monkeypatch.setattr(cleaning.time, "monotonic", lambda: next(clock))
    row = carried_out()
    assert row.left
    assert row.removed["workspaces"] == 2
    assert Event.objects.get(kind="cleanup.completed").payload["left"] is True


@pytest.mark.parametrize(
    ("module", "name", "kind"),
    [
        (retention, "prune_workspaces", "workspaces"),
        (retention, "prune_logs", "processes"),
        (services, "remove_unnamed", "logs"),
        (notices, "prune", "deliveries"),
    ],
)
def test_what_fails_is_named_and_stops_nothing_else(
    home: Path, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, kind: str
) -> None:
    worked_on(home)

    def refuse(**_: Any) -> None:
        raise RuntimeError("secret path")

    monkeypatch.setattr(module, name, refuse)
    row = carried_out()
    assert kind in row.failed
    assert "secret" not in str(Event.objects.get(kind="cleanup.completed").payload)
    assert row.removed["task_events"]
    # Forgotten processes take their logs with them.
    assert row.failed in ([kind], ["logs", "processes"])


def test_old_events_and_deliveries_and_what_ended_in_lost_projects_go(
    home: Path, logs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with writing():
        record("bench.x", "bench:1", by=SWEEP, now=timezone.now() - timedelta(days=91))
    common = {"node": settings.ANDON_NODE, "cmd": "x", "cwd": "/", "since": LONG_AGO, "declared_at": LONG_AGO}
    row = ManagedProcess.objects.create(project="lost", name="web", purpose="service", status="exited", **common)
    old_log(logs, row.log_name, 5)

    class Here:
        node = settings.ANDON_NODE
        born_at = LONG_AGO

    monkeypatch.setattr(supervisor, "current", Here)
    done = carried_out()
    assert done.removed == {"processes": 1, "events": 1}
    assert list(logs.iterdir()) == []


def test_one_of_another_node_or_that_is_over_is_left_alone(home: Path) -> None:
    worked_on(home)
    elsewhere = asked("elsewhere")
    assert cleaning.carry_out(elsewhere.pk) is None
    mine = carried_out()
    assert cleaning.carry_out(mine.pk) is None
    assert cleaning.carry_out(0) is None
    assert CleanUp.objects.get(pk=elsewhere.pk).ended_at is None


class TestOrder:
    def test_each_host_that_ticks_is_told_once(self, sent: list[tuple[str, int]]) -> None:
        now = timezone.now()
        rows.tick(now, settings.ANDON_NODE, "elsewhere", "silent")
        WorkerHost.objects.filter(node="silent").update(tick_at=now - timedelta(seconds=16))
        found = cleaning.order(by=ANNA, now=now)
        assert {row.node for row in found} == {settings.ANDON_NODE, "elsewhere"}
        assert sorted(sent) == sorted((row.node, row.pk) for row in found)
        again = cleaning.order(by=ANNA, now=now)
        assert {row.pk for row in again} == {row.pk for row in found}
        assert CleanUp.objects.count() == 2

    def test_without_a_worker_nothing_is_changed(self, home: Path, sent: list[tuple[str, int]]) -> None:
        run = worked_on(home)
        WorkerHost.objects.update(tick_at=timezone.now() - timedelta(seconds=16))
        before = rows.everything()
        with pytest.raises(Unavailable) as refusal:
            cleaning.order(by=ANNA, now=timezone.now())
        assert refusal.value.code == "no-worker"
        assert (rows.everything(), sent, CleanUp.objects.count()) == (before, [], 0)
        assert (home / "workspaces" / run.task_id).exists()

    def test_the_answer_waits_for_the_end(self, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        worked_on(home)
        rows.tick()
        monkeypatch.setattr(orders, "send", lambda job, node, pk: cleaning.carry_out(pk))
        [row] = cleaning.order(by=ANNA, now=timezone.now())
        assert row.removed["workspaces"] == 1

    def test_the_intent_alone_removes_nothing(self, home: Path, sent: list[tuple[str, int]]) -> None:
        run = worked_on(home)
        rows.tick()
        cleaning.order(by=ANNA, now=timezone.now())
        assert (home / "workspaces" / run.task_id / "report.md").exists()


class TestWorker:
    @pytest.fixture
    def submitted(self, monkeypatch: pytest.MonkeyPatch) -> list[str]:
        keys: list[str] = []

        def submit(key: str, function: Callable[..., Any], *args: Any) -> None:
            keys.append(key)
            function(*args)

        monkeypatch.setattr(jobs, "submit", submit)
        return keys

    def test_what_a_lost_message_or_a_killed_worker_left_is_done(self, home: Path, submitted: list[str]) -> None:
        worked_on(home)
        row, other = asked(), asked("elsewhere")
        assert cleaning.sweep() == 1
        assert submitted == [f"clean up {row.pk}"]
        assert CleanUp.objects.get(pk=row.pk).removed["workspaces"] == 1
        assert CleanUp.objects.get(pk=other.pk).ended_at is None
        assert cleaning.sweep() == 0

    def test_what_a_crash_had_set_aside_is_cleared(self, home: Path, submitted: list[str]) -> None:
        run = worked_on(home)
        workspaces.set_aside(run.task_id, home=home)
        asked()
        cleaning.sweep()
        assert list((home / "workspaces").iterdir()) == []

    def test_who_is_told_does_it_at_once(
        self, home: Path, submitted: list[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        row = asked()
        monkeypatch.setattr("projects.jobs.close_old_connections", lambda: None)
        cleaning.act.call_local(row.pk)
        assert submitted == [f"clean up {row.pk}"]
        assert CleanUp.objects.get().ended_at is not None


def test_status_of_tasks_is_as_it_was(home: Path) -> None:
    run = worked_on(home)
    carried_out()
    assert rows.fresh(run.task).status == Status.DONE
    assert LOG_FOLDER.name == "services"


@pytest.mark.django_db(transaction=True)
def test_who_opens_a_task_at_the_same_moment_is_waited_for(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)
    row = asked()
    holds, real = threading.Event(), workspaces.keep

    def open_again() -> None:
        try:
            with writing():
                lifecycle.reopen(run.task, by=ANNA, now=timezone.now())
                holds.set()
                # The clean-up has found the task closed, and comes to its row now.
                time.sleep(0.3)
        finally:
            connection.close()

    def keep(*words: Any, **about: Any) -> None:
        real(*words, **about)
        thread.start()
        assert holds.wait(10)

    thread = threading.Thread(target=open_again)
    monkeypatch.setattr(workspaces, "keep", keep)
    done = cleaning.carry_out(row.pk)
    thread.join(10)
    assert done is not None
    assert "workspaces" not in done.removed
    assert rows.fresh(run.task).status == Status.READY
    place = home / "workspaces" / run.task_id
    assert sorted(each.name for each in place.iterdir()) == [workspaces.MARKER, "other.txt", "report.md"]


@pytest.mark.django_db(transaction=True)
def test_who_opens_a_task_after_the_decision_waits_and_gets_none(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)
    row = asked()
    real, opened = workspaces.set_aside, []

    def open_again() -> None:
        try:
            lifecycle.reopen(run.task, by=ANNA, now=timezone.now())
            opened.append((home / "workspaces" / run.task_id).exists())
        finally:
            connection.close()

    def set_aside(*words: Any, **about: Any) -> bool:
        thread.start()
        time.sleep(0.2)
        assert opened == []
        return real(*words, **about)

    thread = threading.Thread(target=open_again)
    monkeypatch.setattr(workspaces, "set_aside", set_aside)
    done = cleaning.carry_out(row.pk)
    thread.join(10)
    assert done is not None
    assert (done.removed["workspaces"], opened) == (1, [False])
