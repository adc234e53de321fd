"""What is kept for how long, on real directories."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.utils import timezone

from kanban import lifecycle, retention, workspaces
from kanban.models import Run, Task
from kanban.states import Status
from projects.models import Event
from services.models import ManagedProcess
from tests.kanban import rows
from tests.kanban.rows import ANNA, ended, events, fresh, kinds, started, task

pytestmark = pytest.mark.django_db

LONG_AGO = timezone.now() - timedelta(days=40)


def worked_on(home: Path, *, result: str = "see report.md", **fields: Any) -> Run:
    """Return the run of a task that was done long ago, in a workspace with three files."""
    run = started(task(now=LONG_AGO, **fields), now=LONG_AGO)
    if fields.get("workspace_kind", "scratch") == "scratch":
        place = workspaces.make("scratch", task_id=run.task_id, home=home, path="", roots=[], repository=None)
        for name in ("report.md", "other.txt"):
            (place / name).write_text(name)
        Run.objects.filter(pk=run.pk).update(workspace=str(place))
    lifecycle.complete(run.task, result=result, by=rows.as_run(run), now=LONG_AGO)
    ended(run, now=LONG_AGO)
    folder = home / "agents" / run.agent
    folder.mkdir(parents=True)
    (folder / "context.md").write_text("context")
    return rows.fresh_run(run)


def test_events_of_tasks_that_were_closed_long_ago_go(home: Path, now: datetime) -> None:
    run = worked_on(home)
    old, open_ = run.task, task("Open since long", now=LONG_AGO)
    recent = task("Done today")
    lifecycle.complete(recent, by=ANNA, now=timezone.now())
    others = Event.objects.exclude(kind__startswith="task.").count()
    gone = len(events(old))
    assert retention.prune_events(now=timezone.now()) == gone
    assert (events(old), kinds(open_), kinds(recent)) == ([], ["created"], ["created", "completed"])
    assert Event.objects.exclude(kind__startswith="task.").count() == others
    assert fresh(old).status == Status.DONE
    assert retention.prune_events(now=timezone.now()) == 0


def test_what_was_said_lately_of_an_old_task_stays(home: Path) -> None:
    old = worked_on(home).task
    lifecycle.comment(old, "I remember", author="anna", by=ANNA, now=timezone.now())
    retention.prune_events(now=timezone.now())
    assert kinds(old) == ["commented"]


def test_events_are_pruned_with_few_queries(home: Path, django_assert_max_num_queries) -> None:
    for _ in range(5):
        worked_on(home)
    with django_assert_max_num_queries(6):
        assert retention.prune_events(now=timezone.now()) >= 20


def test_a_log_and_what_its_worker_was_told_go(home: Path) -> None:
    run = worked_on(home)
    assert retention.prune_logs(now=timezone.now()) == 1
    assert not ManagedProcess.objects.exists()
    assert not (home / "agents" / run.agent).exists()
    assert rows.fresh_run(run).outcome == "completed"
    assert retention.prune_logs(now=timezone.now()) == 0


def test_a_sidecar_that_nobody_read_stays(home: Path) -> None:
    run = worked_on(home)
    (home / "agents" / run.agent / "managed-spawn.json").write_text("{}")
    retention.prune_logs(now=timezone.now())
    assert (home / "agents" / run.agent / "context.md").exists()


def test_a_log_of_another_host_is_not_ours_to_remove(home: Path) -> None:
    run = worked_on(home)
    ManagedProcess.objects.filter(pk=run.process_id).update(node="elsewhere")
    assert retention.prune_logs(now=timezone.now()) == 0


def test_a_workspace_goes_and_what_the_result_names_is_kept(home: Path) -> None:
    run = worked_on(home)
    place = home / "workspaces" / run.task_id
    assert retention.prune_workspaces(now=timezone.now(), dry_run=True) == [run.task_id]
    assert place.exists()
    assert retention.prune_workspaces(now=timezone.now()) == [run.task_id]
    assert not place.exists()
    kept = home / "artefacts" / run.task_id
    assert [each.name for each in kept.iterdir()] == ["report.md"]
    assert rows.last(run.task, "pruned").payload["kept"] == ["report.md"]
    assert retention.prune_workspaces(now=timezone.now()) == []


def test_a_workspace_stays_while_a_child_is_open(home: Path) -> None:
    run = worked_on(home)
    child = task("Reads it", parents=[run.task_id])
    assert retention.prune_workspaces(now=timezone.now()) == []
    lifecycle.archive(child, by=ANNA, now=timezone.now())
    assert retention.prune_workspaces(now=timezone.now()) == [run.task_id]


def test_a_workspace_stays_of_what_was_opened_again_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = worked_on(home), worked_on(home)
    real = workspaces.remove

    def remove(*words: Any, **about: Any) -> bool:
        other = second if words[0] == first.task_id else first
        started(lifecycle.reopen(other.task, by=ANNA, now=timezone.now()))
        return real(*words, **about)

    monkeypatch.setattr(workspaces, "remove", remove)
    [gone] = retention.prune_workspaces(now=timezone.now())
    kept = second if gone == first.task_id else first
    assert (home / "workspaces" / kept.task_id / "report.md").exists()


def test_a_workspace_stays_while_somebody_works_there(home: Path) -> None:
    run = worked_on(home)
    ManagedProcess.objects.filter(pk=run.process_id).update(status="stopping", outcome="stopped")
    assert retention.prune_workspaces(now=timezone.now()) == []


@pytest.mark.parametrize("marker", ["", "t_00000000"])
def test_a_directory_that_is_not_ours_is_never_touched(home: Path, marker: str) -> None:
    run = worked_on(home)
    place = home / "workspaces" / run.task_id
    (place / workspaces.MARKER).write_text(marker)
    assert retention.prune_workspaces(now=timezone.now()) == []
    assert (place / "report.md").read_text() == "report.md"
    assert "pruned" not in kinds(run.task)


def test_a_directory_of_somebody_is_never_touched(home: Path, workspace: Path) -> None:
    place = workspace / "garden"
    place.mkdir()
    run = worked_on(home, workspace_kind="dir", workspace_path=str(place))
    Run.objects.filter(pk=run.pk).update(workspace=str(place))
    assert retention.prune_workspaces(now=timezone.now()) == []
    assert place.exists()
    assert rows.fresh_run(run).workspace == str(place)


def test_a_task_that_was_closed_lately_keeps_all(home: Path) -> None:
    run = worked_on(home)
    Task.objects.filter(pk=run.task_id).update(since=timezone.now() - timedelta(days=29))
    now = timezone.now()
    assert (retention.prune_events(now=now), retention.prune_logs(now=now)) == (0, 0)
    assert retention.prune_workspaces(now=now) == []


def test_what_cannot_be_removed_is_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)

    def refuse(*_: Any, **__: Any) -> bool:
        raise PermissionError(13, "no")

    with monkeypatch.context() as patched:
        patched.setattr(workspaces, "remove", refuse)
        assert retention.prune_workspaces(now=timezone.now()) == []
        patched.setattr(retention, "_remove_folder", refuse)
        assert retention.prune_logs(now=timezone.now()) == 0
    assert retention.prune_workspaces(now=timezone.now()) == [run.task_id]
