"""Who of the registered loops runs: judged by the worker of their host, kept with the moment, mended each time."""

import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.utils import timezone

from projects import history, intake, jobs, registries, sweeps
from projects.intake import rebuilding
from projects.models import Event, LoopRegistry, Project
from services import processes

pytestmark = pytest.mark.django_db


@pytest.fixture
def demo(imported: Callable) -> Project:
    return imported("demo")


def register(project: Project, *entries: dict, text: str = "") -> None:
    folder = Path(project.path) / ".ralph"
    folder.mkdir(exist_ok=True)
    (folder / "loops.json").write_text(text or json.dumps({"loops": entries}))


def here(**about) -> dict:
    return {"id": "a", "pid": os.getpid(), "started": timezone.now().isoformat(), **about}


def states(project: Project) -> list[str]:
    return [loop.state for loop in LoopRegistry.objects.get(project=project).found()]


def told() -> list[list[str]]:
    changes = Event.objects.filter(kind="project.changed").order_by("pk")
    return [event.payload["changed"] for event in changes if "loops" in event.payload["changed"]]


def test_what_was_seen_is_kept_with_the_moment_and_told_once(demo, now):
    register(demo, here(), here(id="b", pid=4_000_000))
    assert registries.sweep(now=now) == 1
    assert states(demo) == ["running", "crashed"]
    assert LoopRegistry.objects.get().judged_at == now
    assert told() == [["loops"]]
    assert registries.sweep(now=now + timedelta(seconds=5)) == 0
    assert told() == [["loops"]]


def test_a_moment_moves_on_in_one_query_however_many_there_are(imported, now, django_assert_num_queries):
    for number in range(8):
        register(imported(f"p{number}"), here())
    assert registries.sweep(now=now) == 8
    with django_assert_num_queries(1):
        registries.sweep(now=now + timedelta(seconds=14))
    assert set(LoopRegistry.objects.values_list("judged_at", flat=True)) == {now}
    later = now + timedelta(seconds=15)
    with django_assert_num_queries(2):
        assert registries.sweep(now=later) == 0
    assert set(LoopRegistry.objects.values_list("judged_at", flat=True)) == {later}


def test_a_loop_that_dies_is_crashed_at_the_next_look(demo, now):
    process = subprocess.Popen(["sleep", "60"])
    try:
        register(demo, here(pid=process.pid))
        registries.sweep(now=now)
        assert states(demo) == ["running"]
    finally:
        process.kill()
    # A zombie is dead: nobody has waited for it yet.
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    try:
        assert registries.sweep(now=now) == 1
        assert states(demo) == ["crashed"]
    finally:
        process.wait()
    assert len(told()) == 2


def test_a_process_that_came_to_a_pid_later_is_another(demo, now):
    long_before = datetime.fromtimestamp(processes.started_at(processes.identify(os.getpid(), "n")), UTC)
    register(demo, here(started=(long_before - timedelta(seconds=60)).isoformat()))
    registries.sweep(now=now)
    assert states(demo) == ["crashed"]


def test_what_cannot_be_seen_is_unknown(demo, now, monkeypatch):
    register(demo, here(), here(id="b", started=None))

    def hidden(pid: int, host: str) -> None:
        raise PermissionError(13, "hidden")

    with monkeypatch.context() as patched:
        patched.setattr(processes, "identify", hidden)
        registries.sweep(now=now)
    assert states(demo) == ["unknown", "unknown"]
    registries.sweep(now=now)
    # It is there, but whether it is that one, without a start, nobody can tell.
    assert states(demo) == ["running", "unknown"]


def test_a_registry_that_is_none_is_a_problem_and_one_that_goes_leaves_none(demo, now):
    register(demo, text="{")
    registries.sweep(now=now)
    assert "cannot be read" in LoopRegistry.objects.get().problem
    (Path(demo.path) / ".ralph/loops.json").unlink()
    assert registries.sweep(now=now) == 1
    row = LoopRegistry.objects.get()
    assert (row.loops, row.problem) == ([], "")
    assert len(told()) == 2


def test_a_project_without_one_is_judged_too_and_nobody_hears_of_it(demo, now):
    assert registries.sweep(now=now) == 1
    assert LoopRegistry.objects.get().loops == []
    assert told() == []


def test_hostile_entries_are_kept_as_text(demo, now):
    register(demo, here(id="\0\ud800<script>", prompt="\u202e" * 9000, worktree_path=["no"], pid=-5), {"pid": 10**30})
    registries.sweep(now=now)
    [loop, other] = LoopRegistry.objects.get().found()
    assert (loop.id, len(loop.prompt), loop.worktree, loop.pid, loop.state) == ("<script>", 200, "", None, "crashed")
    assert other.pid is None


def test_only_this_nodes_projects_are_judged(demo, imported, now):
    gone = imported("gone")
    for project in (demo, gone):
        register(project, here())
    Project.objects.filter(pk=demo.pk).update(node="elsewhere")
    Project.objects.filter(pk=gone.pk).update(missing_since=now)
    assert registries.sweep(now=now) == 0
    assert not LoopRegistry.objects.exists()


def test_one_that_fails_does_not_stop_the_rest(demo, imported, now, monkeypatch):
    other = imported("other")
    register(other, here())
    real = history.read_registry

    def read(root: Path, **about):
        if root == Path(demo.path):
            raise RuntimeError("poison")
        return real(root, **about)

    monkeypatch.setattr(history, "read_registry", read)
    assert registries.sweep(now=now) == 1
    assert states(other) == ["running"]


def test_of_a_project_that_is_forgotten_meanwhile_nothing_is_kept(demo, now, monkeypatch):
    register(demo, here())
    real = history.read_registry

    def read(root: Path, **about):
        Project.objects.all().delete()
        return real(root, **about)

    monkeypatch.setattr(history, "read_registry", read)
    assert registries.sweep(now=now) == 0
    assert not LoopRegistry.objects.exists()


def test_it_goes_with_its_project(demo, now):
    registries.sweep(now=now)
    demo.delete()
    assert not LoopRegistry.objects.exists()


def test_projections_are_made_again_without_it(demo, now):
    register(demo, here())
    history.append(
        Path(demo.path) / history.HISTORY, "loop_started", {"prompt": "p"}, data={"pid": os.getpid()}, at=now
    )
    intake.rescan(now=now)
    registries.sweep(now=now)
    before = list(LoopRegistry.objects.values())
    assert rebuilding.rebuild() == rebuilding.Rebuilt(files=1, changed=0)
    assert list(LoopRegistry.objects.values()) == before


def test_a_change_on_disk_wakes_the_look(demo, monkeypatch):
    keys = []
    monkeypatch.setattr(jobs, "submit", lambda key, function, *args: keys.append((key, function(*args))))
    register(demo, here())
    sweeps.notice(f"{demo.path}/.ralph/loops.json")
    assert keys == [("registries", 1)]
    assert states(demo) == ["running"]
    sweeps.notice(f"{demo.path}/.ralph/history.jsonl")
    assert keys[1][0].startswith("intake ")
