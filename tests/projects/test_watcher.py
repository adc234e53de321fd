"""The watcher: a real thread, real inotify; what changes on disk is an event within a second."""

import shutil
import time

import pytest
from django.db import connection

from projects import importer, jobs
from projects.importer import watcher as watching
from projects.importer.watcher import Watcher, watched_paths
from projects.models import Event, Project
from tests.projects.files import write_log, write_prd, write_project

pytestmark = pytest.mark.django_db(transaction=True)
PATIENCE_S = 10.0


@pytest.fixture
def start(workspace):
    """Start a watcher and wait until it watches; at the end it stops and what it submitted is done."""
    started = []

    def make(mode: str = "inotify") -> Watcher:
        watcher = Watcher()
        started.append(watcher)
        watcher.start()
        wait_for(lambda: watcher.mode == mode)
        wait_for_quiet()
        return watcher

    yield make
    for watcher in started:
        watcher.stop()
        assert not watcher._thread.is_alive()
    wait_for_quiet()


def wait_for(condition) -> float:
    """Wait until a condition holds; returns the seconds that it took."""
    started = time.monotonic()
    while not condition():
        assert time.monotonic() - started < PATIENCE_S, "it never happened"
        time.sleep(0.01)
    return time.monotonic() - started


def wait_for_quiet() -> None:
    wait_for(lambda: not jobs._in_flight)


def told(kind: str, subject: str) -> bool:
    return Event.objects.filter(kind=kind, subject=subject).exists()


def seconds_until(kind: str, subject: str) -> float:
    return wait_for(lambda: told(kind, subject))


def test_a_changed_prd_is_an_event_within_a_second(start, make_project):
    root = make_project("demo", states=("pending",) * 4)
    start()
    assert told("project.found", "project:demo")
    took = []
    for number in range(1, 5):
        write_prd(root, *["passed"] * number, *["pending"] * (4 - number))
        took.append(seconds_until("story.passed", f"story:demo/US-{number:03}"))
        wait_for_quiet()
    # The best of four: other tests may hold both cores for a while.
    assert min(took) < 1.0
    assert Event.objects.filter(kind="story.passed").count() == 4


def test_a_prd_that_is_replaced_by_a_rename(start, make_project):
    root = make_project("demo", states=("pending",))
    start()
    written = write_prd(root.parent.parent / "elsewhere", "passed", project="demo", branchName="ralph/demo")
    written.rename(root / "scripts/ralph/prd.json")
    assert seconds_until("story.passed", "story:demo/US-001") < PATIENCE_S


def test_a_line_of_progress(start, make_project):
    root = make_project("demo")
    start()
    with (root / "scripts/ralph/progress.txt").open("a") as file:
        file.write("more\n")
    seconds_until("project.changed", "project:demo")


def test_a_new_project_directory(start, workspace):
    start()
    write_project(workspace / "demo")
    seconds_until("project.found", "project:demo")
    wait_for_quiet()
    wait_for(lambda: watched_paths() == set(map(str, [workspace, *folders(workspace / "demo", "scripts/ralph")])))
    write_prd(workspace / "demo", "passed", "passed", "pending")
    seconds_until("story.passed", "story:demo/US-002")


def test_a_directory_moved_into_the_workspace(start, workspace):
    start()
    write_project(workspace.parent / "ready").rename(workspace / "demo")
    seconds_until("project.found", "project:demo")


def test_the_first_log_in_a_new_logs_directory(start, make_project):
    root = make_project("demo")
    start()
    write_log(root, 1)
    wait_for(Project.objects.get().iterations.exists)
    wait_for_quiet()
    write_log(root, 2)
    wait_for(lambda: Project.objects.get().iterations.count() == 2)


def test_a_prd_that_comes_late(start, workspace):
    root = workspace / "demo"
    (root / ".git").mkdir(parents=True)
    start()
    assert Project.objects.get().ralph is False
    (root / "scripts").mkdir()
    time.sleep(0.1)
    (root / "scripts/ralph").mkdir()
    time.sleep(0.1)
    write_prd(root, "pending")
    seconds_until("story.added", "story:demo/US-001")
    wait_for_quiet()
    write_prd(root, "passed")
    seconds_until("story.passed", "story:demo/US-001")


def test_a_project_that_is_deleted(start, make_project):
    root = make_project("demo", states=("passed", "pending"))
    make_project("other")
    start()
    shutil.rmtree(root)
    seconds_until("project.missing", "project:demo")
    wait_for_quiet()
    write_prd(root.parent / "other", "passed", "passed", "pending")
    seconds_until("story.passed", "story:other/US-002")


def test_a_project_that_is_moved_away_keeps_its_stories(start, make_project):
    root = make_project("demo", states=("passed", "pending"))
    start()
    root.rename(root.parent.parent / "away")
    seconds_until("project.missing", "project:demo")
    wait_for_quiet()
    assert importer.import_project(str(root), now=Project.objects.get().missing_since) is False
    assert Project.objects.get().total == 2
    assert not Event.objects.filter(kind="story.removed").exists()


@pytest.mark.parametrize("error", [OSError(28, "no space left on device"), RuntimeError("broken"), PermissionError(13)])
def test_out_of_watches_it_polls(start, make_project, monkeypatch, error):
    root = make_project("demo", states=("pending",))

    def refused(*paths, **options):
        raise error

    monkeypatch.setattr(watching, "watch", refused)
    start("polling")
    wait_for(lambda: told("project.found", "project:demo"))
    write_prd(root, "passed")
    # One second between two looks, and one for other tests.
    assert seconds_until("story.passed", "story:demo/US-001") < 2.5


def test_it_watches_again_when_it_can(start, make_project, monkeypatch):
    root = make_project("demo", states=("pending",))
    monkeypatch.setattr(watching, "RETRY_S", 0.1)
    monkeypatch.setattr(watching, "POLL_S", 0.1)
    watch, calls = watching.watch, []

    def refused_twice(*paths, **options):
        calls.append(paths)
        if len(calls) < 3:
            raise OSError(28, "no space left on device")
        return watch(*paths, **options)

    monkeypatch.setattr(watching, "watch", refused_twice)
    watcher = Watcher()
    watcher.start()
    try:
        wait_for(lambda: watcher.mode == "polling")
        wait_for(lambda: watcher.mode == "inotify")
        wait_for_quiet()
        write_prd(root, "passed")
        seconds_until("story.passed", "story:demo/US-001")
    finally:
        watcher.stop()
    wait_for_quiet()


def test_a_directory_that_goes_before_it_is_watched_does_not_end_inotify(start, make_project, monkeypatch):
    root = make_project("demo", states=("pending",))
    gone = root.parent / "gone"
    paths, calls = watching.watched_paths, []

    def with_one_that_went():
        calls.append(1)
        return paths() | ({str(gone)} if len(calls) < 3 else set())

    monkeypatch.setattr(watching, "watched_paths", with_one_that_went)
    watcher = start()
    assert len(calls) >= 3
    assert watcher.mode == "inotify"
    write_prd(root, "passed")
    seconds_until("story.passed", "story:demo/US-001")


def test_a_rescan_that_fails_does_not_end_the_poll(start, make_project, monkeypatch):
    root = make_project("demo", states=("pending",))
    rescan, calls = importer.rescan, []

    def broken_once(*, now):
        calls.append(now)
        if len(calls) == 1:
            raise RuntimeError("database is locked")
        return rescan(now=now)

    def refused(*paths, **options):
        raise OSError(28, "no space left on device")

    monkeypatch.setattr(importer, "rescan", broken_once)
    monkeypatch.setattr(watching, "watch", refused)
    monkeypatch.setattr(watching, "POLL_S", 0.05)
    start("polling")
    wait_for(lambda: told("project.found", "project:demo"))
    write_prd(root, "passed")
    seconds_until("story.passed", "story:demo/US-001")


def test_stop_ends_the_thread_at_once(workspace):
    for pause in (0.0, 0.0, 0.05, 0.3):
        watcher = Watcher()
        watcher.start()
        time.sleep(pause)
        started = time.monotonic()
        watcher.stop()
        assert not watcher._thread.is_alive()
        assert time.monotonic() - started < 4
    wait_for_quiet()


def test_the_mode_says_how_it_watches(workspace):
    watcher = Watcher()
    assert watcher.mode == ""
    watcher.start()
    wait_for(lambda: watcher.mode == "inotify")
    watcher.stop()
    wait_for_quiet()


class TestWatchedPaths:
    def test_of_a_project_and_of_what_is_none_yet(self, workspace, make_project):
        root = make_project("demo")
        write_log(root, 1)
        (root / ".ralph").mkdir()
        (root / "src/deep").mkdir(parents=True)
        (workspace / "notes/plans").mkdir(parents=True)
        assert watched_paths() == {
            str(path)
            for path in [
                workspace,
                *folders(root, "scripts/ralph/logs"),
                root / ".ralph",
                workspace / "notes",
                workspace / "notes/plans",
            ]
        }

    def test_never_through_links(self, workspace, make_project):
        root = make_project("demo")
        outside = workspace.parent / "outside"
        outside.mkdir()
        (root / "scripts/ralph/logs").symlink_to(outside)
        (root / ".ralph").symlink_to(outside)
        assert watched_paths() == {str(path) for path in [workspace, *folders(root, "scripts/ralph")]}

    def test_not_where_we_may_not_look(self, workspace, make_project, monkeypatch):
        root = make_project("demo")
        secret = root / "scripts/ralph/logs"
        secret.mkdir()
        monkeypatch.setattr(watching.os, "access", lambda path, mode: path != secret)
        assert watched_paths() == {str(path) for path in [workspace, *folders(root, "scripts/ralph")]}

    def test_without_a_workspace(self, settings, workspace):
        settings.ANDON_WORKSPACE = [workspace / "absent"]
        assert watched_paths() == set()


def folders(root, below):
    """Return a directory and each on the way to one below it."""
    found = [root]
    for part in below.split("/"):
        found.append(found[-1] / part)
    return found


@pytest.fixture(autouse=True)
def _own_connection_closed():
    yield
    connection.close()
