"""The dry run: what would go and what stays and why, told without changing anything, from bounded looks."""

import os
import shutil
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from kanban import cleaning, leftovers, lifecycle, retention, workspaces
from kanban.models import Delivery, Run, Subscription
from projects.events import SWEEP, record, writing
from projects.models import Event
from services import sweeps as services
from services.models import ManagedProcess
from tests.kanban import rows
from tests.kanban.closed import LONG_AGO, worked_on
from tests.kanban.rows import ANNA

pytestmark = pytest.mark.django_db
NOTHING = dict.fromkeys(("workspaces", "runs", "processes", "logs", "events", "deliveries"), 0)


@pytest.fixture(autouse=True)
def logs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "logs"
    folder.mkdir()
    for module in (retention, services, cleaning, leftovers):
        monkeypatch.setattr(module, "LOG_FOLDER", folder)
    monkeypatch.setattr(leftovers, "_measured", {})
    return folder


def look() -> leftovers.Preview:
    return leftovers.look(timezone.now())


def old_log(folder: Path, name: str, size: int) -> None:
    (folder / name).write_bytes(b"x" * size)
    os.utime(folder / name, (LONG_AGO.timestamp(), LONG_AGO.timestamp()))


def test_where_nothing_is_nothing_is_told(home: Path) -> None:
    found = look()
    assert (found.total, found.workspaces, found.runs, found.size) == (NOTHING, [], [], 0)
    assert (found.is_empty, found.is_measured, set(found.kept.values())) == (True, True, {0})


def test_what_would_go_with_task_path_size_and_age(home: Path, logs: Path) -> None:
    run = worked_on(home, title="Paint <b>it</b>")
    assert run.process is not None
    old_log(logs, run.process.log_name, 100)
    old_log(logs, "999-gone.log", 10)
    found = look()
    size = len("report.mdother.txt") + len(run.task_id)
    [place], [log] = found.workspaces, found.runs
    assert (place.task, place.title, place.host, place.paths, place.size, place.closed_at, place.is_here) == (
        *(run.task_id, "Paint <b>it</b>", settings.ANDON_NODE, [f"workspaces/{run.task_id}"], size, LONG_AGO, True),
    )
    assert log.paths == [f"agents/{run.agent}", f"logs/services/{run.process.log_name}"]
    assert log.size == 100 + len("context")
    assert found.size == size + log.size + 10
    events = Event.objects.filter(subject=run.task.subject).count()
    assert found.total == {**NOTHING, "workspaces": 1, "runs": 1, "logs": 1, "events": events}
    assert not found.is_empty


def test_it_is_what_a_clean_up_then_removes(home: Path, logs: Path) -> None:
    for _ in range(3):
        run = worked_on(home)
        assert run.process is not None
        old_log(logs, run.process.log_name, 100)
    with writing():
        # Old, of a task that was closed long ago, and yet one event.
        record("task.commented", run.task.subject, by=SWEEP, now=timezone.now() - timedelta(days=91))
    seen = look()
    row = lifecycle.ask_clean_up(settings.ANDON_NODE, by=ANNA, now=timezone.now())
    done = cleaning.carry_out(row.pk)
    assert done is not None
    told = done.removed
    assert (told["workspaces"], told["processes"], told["bytes"]) == (3, 3, seen.size)
    assert told["task_events"] + told.get("events", 0) == seen.total["events"]
    assert look().is_empty


def test_looking_changes_nothing(home: Path, logs: Path) -> None:
    run = worked_on(home)
    old_log(logs, "999-gone.log", 10)

    def everything() -> list[tuple[str, int, int]]:
        found = [each for top in (home, logs) for each in top.rglob("*")]
        return sorted((str(each), each.lstat().st_size, each.lstat().st_mtime_ns) for each in found)

    before = rows.everything(), everything()
    assert not look().is_empty
    assert (rows.everything(), everything()) == before
    assert rows.fresh_run(run).workspace


def test_why_workspaces_stay(home: Path, workspace: Path) -> None:
    place = workspace / "garden"
    place.mkdir()
    directory = worked_on(home, workspace_kind="dir", workspace_path=str(place))
    Run.objects.filter(pk=directory.pk).update(workspace=str(place))
    opened, recent, parent, at_work, strange, gone = (worked_on(home) for _ in range(6))
    lifecycle.reopen(opened.task, by=ANNA, now=timezone.now())
    type(recent.task).objects.filter(pk=recent.task_id).update(since=timezone.now() - timedelta(days=29))
    rows.task("Reads it", parents=[parent.task_id])
    ManagedProcess.objects.filter(pk=at_work.process_id).update(status="stopping", outcome="stopped")
    (home / "workspaces" / strange.task_id / workspaces.MARKER).write_text("t_00000000")
    shutil.rmtree(home / "workspaces" / gone.task_id)
    found = look()
    kept = {"open": 1, "recent": 1, "child": 1, "at_work": 1, "somebodys": 1, "not_ours": 2}
    assert (found.kept, found.workspaces, found.total["workspaces"]) == (kept, [], 0)


def test_the_first_reason_counts_and_only_once(home: Path) -> None:
    run = worked_on(home)
    rows.task("Reads it", parents=[run.task_id])
    ManagedProcess.objects.update(status="stopping", outcome="stopped")
    type(run.task).objects.filter(pk=run.task_id).update(since=timezone.now())
    assert {kind: number for kind, number in look().kept.items() if number} == {"at_work": 1}


def test_a_sidecar_that_nobody_read_is_not_said_to_go(home: Path) -> None:
    run = worked_on(home)
    (home / "agents" / run.agent / "managed-spawn.json").write_text("{}")
    assert run.process is not None
    assert look().runs[0].paths == [run.process.log_path]


def test_of_another_host_nothing_is_read_here(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)
    Run.objects.update(host="elsewhere")
    ManagedProcess.objects.update(node="elsewhere")
    for module, name in ((workspaces, "is_ours"), (retention, "size_of"), (retention, "folder_of")):
        monkeypatch.setattr(module, name, pytest.fail)
    found = look()
    [place], [log] = found.workspaces, found.runs
    assert (place.host, place.size, place.is_here) == ("elsewhere", None, False)
    assert (log.host, log.size, log.paths[0]) == ("elsewhere", None, f"agents/{run.agent}")
    assert (found.size, found.is_measured, found.total["workspaces"]) == (0, False, 1)


def test_of_many_the_first_are_listed_and_all_are_counted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = worked_on(home)
    type(first.task).objects.update(since=LONG_AGO - timedelta(days=1))
    for _ in range(4):
        worked_on(home)
    monkeypatch.setattr(leftovers, "MOST_LISTED", 2)
    found = look()
    assert (len(found.workspaces), found.more("workspaces"), len(found.runs), found.more("runs")) == (2, 3, 2, 3)
    assert found.workspaces[0].task == first.task_id
    assert found.is_measured
    monkeypatch.setattr(leftovers, "MOST_LOOKED", 3)
    assert (look().is_measured, look().total["workspaces"]) == (False, 5)


def test_no_more_is_measured_than_may_be_and_once_a_minute(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)
    place = home / "workspaces" / run.task_id
    for number in range(20):
        (place / f"file-{number}").write_text("x")
    monkeypatch.setattr(leftovers, "MOST_ENTRIES", 10)
    found = look()
    assert (found.workspaces[0].size, found.is_measured) == (None, False)
    monkeypatch.setattr(leftovers, "MOST_ENTRIES", 100)
    first = look().workspaces[0].size
    (place / "more").write_text("x" * 1000)
    assert look().workspaces[0].size == first
    clock = leftovers.time.monotonic() + 61
    monkeypatch.setattr(leftovers.time, "monotonic", lambda: clock)
    assert look().workspaces[0].size == (first or 0) + 1000


def test_what_was_measured_is_not_remembered_without_end(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leftovers, "MOST_LOOKED", 1)
    for number in range(5):
        leftovers._measured[home / str(number)] = (0.0, 1)
    worked_on(home)
    look()
    assert len(leftovers._measured) == 1


def test_events_deliveries_and_processes_of_lost_projects_are_counted(imported, home: Path, now: datetime) -> None:
    imported("demo")
    for age in (91, 92, 89):
        with writing():
            record("bench.x", "bench:1", by=SWEEP, now=timezone.now() - timedelta(days=age))
    # Only a prefix of the log is deleted: an old one behind a younger stays.
    assert look().total["events"] == 0
    Event.objects.exclude(kind="bench.x").delete()
    assert look().total["events"] == 2
    Event.objects.filter(at__gt=timezone.now() - timedelta(days=90)).delete()
    assert look().total["events"] == 2
    subscription = Subscription.objects.create(
        target="email", address="a@b", created_by="a", created_at=LONG_AGO, cursor=0
    )
    for status, age in (("delivered", 31), ("delivered", 29), ("dead", 91), ("dead", 89), ("pending", 99)):
        at = timezone.now() - timedelta(days=age)
        delivered_at = at if status == "delivered" else None
        Delivery.objects.create(
            subscription=subscription, status=status, created_at=at, next_try_at=at, delivered_at=delivered_at
        )
    common = {"node": "n", "cmd": "x", "cwd": "/", "since": LONG_AGO, "declared_at": LONG_AGO, "purpose": "service"}
    for project, name, status in (
        ("lost", "a", "exited"),
        ("lost", "b", "starting"),
        ("demo", "c", "exited"),
        ("", "d", "exited"),
    ):
        ManagedProcess.objects.create(project=project, name=name, status=status, **common)
    total = look().total
    assert (total["deliveries"], total["processes"]) == (2, 1)


def test_many_cost_the_same(home: Path, logs: Path, django_assert_num_queries) -> None:
    for _ in range(6):
        worked_on(home)
    with django_assert_num_queries(4):
        look()
    old_log(logs, "999-gone.log", 10)
    with django_assert_num_queries(5):
        look()
