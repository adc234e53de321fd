"""What is kept for how long, on real directories."""

import shutil
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
from tests.kanban.closed import LONG_AGO, worked_on
from tests.kanban.rows import ANNA, events, fresh, kinds, started, task

pytestmark = pytest.mark.django_db


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
    assert retention.prune_logs(now=timezone.now()).gone == [str(run)]
    assert not ManagedProcess.objects.exists()
    assert not (home / "agents" / run.agent).exists()
    assert rows.fresh_run(run).outcome == "completed"
    assert retention.prune_logs(now=timezone.now()).gone == []


def test_a_sidecar_that_nobody_read_stays(home: Path) -> None:
    run = worked_on(home)
    (home / "agents" / run.agent / "managed-spawn.json").write_text("{}")
    retention.prune_logs(now=timezone.now())
    assert (home / "agents" / run.agent / "context.md").exists()


def test_a_log_of_another_host_is_not_ours_to_remove(home: Path) -> None:
    run = worked_on(home)
    ManagedProcess.objects.filter(pk=run.process_id).update(node="elsewhere")
    assert retention.prune_logs(now=timezone.now()).gone == []


def test_a_workspace_goes_and_what_the_result_names_is_kept(home: Path) -> None:
    run = worked_on(home)
    place = home / "workspaces" / run.task_id
    assert retention.prune_workspaces(now=timezone.now(), dry_run=True).gone == [run.task_id]
    assert place.exists()
    assert retention.prune_workspaces(now=timezone.now()).gone == [run.task_id]
    assert not place.exists()
    kept = home / "artefacts" / run.task_id
    assert [each.name for each in kept.iterdir()] == ["report.md"]
    told = rows.last(run.task, "pruned").payload
    assert (told["kept"], told["bytes"], told["via"]) == (
        ["report.md"],
        len("report.mdother.txt") + len(run.task_id),
        "sweep",
    )
    assert retention.prune_workspaces(now=timezone.now()).gone == []


def test_a_workspace_stays_while_a_child_is_open(home: Path) -> None:
    run = worked_on(home)
    child = task("Reads it", parents=[run.task_id])
    assert retention.prune_workspaces(now=timezone.now()).gone == []
    lifecycle.archive(child, by=ANNA, now=timezone.now())
    assert retention.prune_workspaces(now=timezone.now()).gone == [run.task_id]


def test_a_workspace_stays_of_what_was_opened_again_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = worked_on(home), worked_on(home)
    real = workspaces.keep

    def keep(*words: Any, **about: Any) -> None:
        real(*words, **about)
        other = second if words[0] == first.task_id else first
        if fresh(other.task).status == Status.DONE and not was_opened:
            was_opened.append(other.task_id)
            started(lifecycle.reopen(other.task, by=ANNA, now=timezone.now()))

    was_opened: list[str] = []
    monkeypatch.setattr(workspaces, "keep", keep)
    [gone] = retention.prune_workspaces(now=timezone.now()).gone
    kept = second if gone == first.task_id else first
    assert (home / "workspaces" / kept.task_id / "report.md").exists()


def test_what_is_opened_again_at_the_last_moment_has_all_of_its_workspace(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = worked_on(home)
    place = home / "workspaces" / run.task_id
    real = workspaces.keep

    def keep(*words: Any, **about: Any) -> None:
        real(*words, **about)
        lifecycle.reopen(run.task, by=ANNA, now=timezone.now())

    monkeypatch.setattr(workspaces, "keep", keep)
    assert retention.prune_workspaces(now=timezone.now()).gone == []
    assert sorted(each.name for each in place.iterdir()) == [workspaces.MARKER, "other.txt", "report.md"]
    assert rows.fresh_run(run).workspace == str(place)
    assert "pruned" not in kinds(run.task)


def test_what_is_opened_again_while_it_is_removed_gets_a_new_workspace(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = worked_on(home)
    real = workspaces.clear

    def clear(name: str, *, home: Path) -> None:
        lifecycle.reopen(run.task, by=ANNA, now=timezone.now())
        new = workspaces.make("scratch", task_id=run.task_id, home=home, path="", roots=[], repository=None)
        (new / "new").write_text("new")
        real(name, home=home)

    monkeypatch.setattr(workspaces, "clear", clear)
    assert retention.prune_workspaces(now=timezone.now()).gone == [run.task_id]
    place = home / "workspaces" / run.task_id
    assert sorted(each.name for each in place.iterdir()) == [workspaces.MARKER, "new"]
    assert [each.name for each in place.parent.iterdir()] == [run.task_id]


def test_what_would_not_go_is_removed_later(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "no")

    with monkeypatch.context() as patched:
        patched.setattr(workspaces, "clear", refuse)
        assert retention.prune_workspaces(now=timezone.now()).gone == [run.task_id]
    assert len(workspaces.aside(home=home)) == 1
    assert retention.prune_workspaces(now=timezone.now()).gone == []
    assert workspaces.aside(home=home) == []


def test_a_log_stays_of_what_was_opened_again_meanwhile(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = worked_on(home), worked_on(home)
    real = retention.size_of

    def size_of(run: Run) -> int:
        other = second if run.pk == first.pk else first
        lifecycle.reopen(other.task, by=ANNA, now=timezone.now())
        return real(run)

    monkeypatch.setattr(retention, "size_of", size_of)
    assert retention.prune_logs(now=timezone.now()).gone == [str(first)]
    assert ManagedProcess.objects.filter(pk=second.process_id).exists()
    assert (home / "agents" / second.agent / "context.md").exists()


def test_batches_say_whether_there_may_be_more(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(3):
        worked_on(home)
    monkeypatch.setattr(retention, "BATCH", 2)
    now = timezone.now()
    for prune in (retention.prune_workspaces, retention.prune_logs):
        assert [(len(done.gone), done.more) for done in (prune(now=now), prune(now=now))] == [(2, True), (1, False)]


def test_a_batch_of_which_nothing_goes_says_that_there_is_no_more(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(2):
        worked_on(home)
    monkeypatch.setattr(retention, "BATCH", 2)

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError(13, "no")

    monkeypatch.setattr(workspaces, "keep", refuse)
    monkeypatch.setattr(retention, "folder_of", refuse)
    for prune in (retention.prune_workspaces, retention.prune_logs):
        done = prune(now=timezone.now())
        assert (done.gone, done.more) == ([], False)


def test_a_workspace_stays_while_somebody_works_there(home: Path) -> None:
    run = worked_on(home)
    ManagedProcess.objects.filter(pk=run.process_id).update(status="stopping", outcome="stopped")
    assert retention.prune_workspaces(now=timezone.now()).gone == []


@pytest.mark.parametrize("marker", ["", "t_00000000"])
def test_a_directory_that_is_not_ours_is_never_touched(home: Path, marker: str) -> None:
    run = worked_on(home)
    place = home / "workspaces" / run.task_id
    (place / workspaces.MARKER).write_text(marker)
    assert retention.prune_workspaces(now=timezone.now()).gone == []
    assert (place / "report.md").read_text() == "report.md"
    assert "pruned" not in kinds(run.task)


def test_a_directory_of_somebody_is_never_touched(home: Path, workspace: Path) -> None:
    place = workspace / "garden"
    place.mkdir()
    run = worked_on(home, workspace_kind="dir", workspace_path=str(place))
    Run.objects.filter(pk=run.pk).update(workspace=str(place))
    assert retention.prune_workspaces(now=timezone.now()).gone == []
    assert place.exists()
    assert rows.fresh_run(run).workspace == str(place)


def test_a_task_that_was_closed_lately_keeps_all(home: Path) -> None:
    run = worked_on(home)
    Task.objects.filter(pk=run.task_id).update(since=timezone.now() - timedelta(days=29))
    now = timezone.now()
    assert (retention.prune_events(now=now), retention.prune_logs(now=now).gone) == (0, [])
    assert retention.prune_workspaces(now=now).gone == []


def test_what_cannot_be_removed_is_tried_again(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = worked_on(home)

    def refuse(*_: Any, **__: Any) -> bool:
        raise PermissionError(13, "no")

    with monkeypatch.context() as patched:
        patched.setattr(workspaces, "set_aside", refuse)
        assert retention.prune_workspaces(now=timezone.now()).gone == []
        patched.setattr(shutil, "rmtree", refuse)
        assert retention.prune_logs(now=timezone.now()).gone == []
    assert retention.prune_workspaces(now=timezone.now()).gone == [run.task_id]
