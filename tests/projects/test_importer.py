"""The importer: every change of the files is told once, and nothing in one project touches another."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects import importer, ralph
from projects.events import By
from projects.models import Event, Iteration, Project, Story
from services import processes
from tests.projects.files import write_log, write_prd, write_project

STORY = "story:demo/US-001"
PROJECT = "project:demo"


class Look:
    """Rescans at a clock of its own, ten seconds on each time; returns the events that came of it."""

    def __init__(self, now: datetime) -> None:
        self.now = now
        self.counts = None

    def __call__(self) -> list[Event]:
        seen = Event.objects.order_by("-id").values_list("id", flat=True).first() or 0
        self.now += timedelta(seconds=10)
        self.counts = importer.rescan(now=self.now)
        return list(Event.objects.filter(id__gt=seen).order_by("id"))

    def told(self) -> list[tuple[str, str]]:
        return [(event.kind, event.subject) for event in self()]


@pytest.fixture
def look(db, workspace, now):
    return Look(now)


@pytest.fixture
def start_loop():
    """Start a real process in a directory and write its pid file; what is left of it is killed at the end."""
    started = []

    def start(root: Path, cwd: Path | None = None, pid_file: str | None = None) -> subprocess.Popen:
        process = subprocess.Popen(["sleep", "60"], cwd=cwd or root)
        started.append(process)
        (root / "scripts/ralph/.ralph.pid").write_text(str(process.pid) if pid_file is None else pid_file)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def kill(process: subprocess.Popen) -> None:
    process.send_signal(signal.SIGKILL)
    process.wait()


def seconds_ago(seconds: float) -> datetime:
    return datetime.now(UTC) - timedelta(seconds=seconds)


def make_git(root: Path) -> Path:
    (root / ".git").mkdir(parents=True)
    return root


def demo() -> Project:
    return Project.objects.get(slug="demo")


class TestFirstImport:
    def test_is_one_event_and_tells_no_story(self, look, make_project):
        make_project("demo", states=("passed", "failed", "pending"))
        [event] = look()
        assert (event.kind, event.subject, event.project, event.actor) == ("project.found", PROJECT, "demo", "andon")
        assert event.payload == {
            "path": str(demo().path),
            "total": 3,
            "passed": 1,
            "ralph": True,
            "via": "sweep",
        }

    def test_rows_are_what_the_file_says(self, look, make_project):
        make_project("demo", states=("passed", "failed", "blocked", "in_progress", "pending"), description="What it is")
        look()
        row = demo()
        assert (row.title, row.branch, row.description) == ("demo", "ralph/demo", "What it is")
        assert (row.total, row.passed, row.failed, row.blocked, row.in_progress) == (5, 1, 1, 1, 1)
        assert (row.ralph, row.prd_path, row.error, row.stale_since) == (True, "scripts/ralph/prd.json", "", None)
        assert [(story.key, story.state) for story in row.stories.all()] == [
            ("US-001", "passed"),
            ("US-002", "failed"),
            ("US-003", "blocked"),
            ("US-004", "in_progress"),
            ("US-005", "pending"),
        ]
        assert row.stories.get(key="US-002").failure_reason == "reason 2"
        assert json.loads(row.document)["branchName"] == "ralph/demo"

    def test_of_a_repository_without_a_prd(self, look, workspace):
        make_git(workspace / "demo")
        [event] = look()
        assert (event.kind, event.payload["ralph"]) == ("project.found", False)
        assert (demo().ralph, demo().total, demo().title) == (False, 0, "demo")

    def test_of_a_directory_that_is_no_project(self, look, workspace):
        (workspace / "notes").mkdir()
        (workspace / ".hidden/.git").mkdir(parents=True)
        (workspace / "link").symlink_to(make_git(workspace.parent / "elsewhere"))
        assert look() == []
        assert look.counts == importer.Counts(0, 0, 0, 0)

    def test_of_a_corrupt_prd(self, look, make_project):
        prd = make_project("demo") / "scripts/ralph/prd.json"
        prd.write_text('{"userStories": [\n  oops]}')
        [event] = look()
        assert event.kind == "project.found"
        assert event.payload["error"] == demo().error == "prd.json: invalid JSON: Expecting value (line 2, column 3)"

    def test_of_a_loop_that_runs_already(self, look, make_project, start_loop):
        root = make_project("demo")
        process = start_loop(root)
        write_log(root, 1, at=seconds_ago(500))
        write_log(root, 2, at=seconds_ago(-1))
        assert look.told() == [("loop.started", PROJECT), ("project.found", PROJECT)]
        first, second = demo().iterations.all()
        assert demo().pid == process.pid
        assert first.ended_at == first.written_at
        assert second.ended_at is None
        # The loop is younger than the log before.
        assert second.started_at == demo().loop_started_at

    def test_iteration_of_a_running_loop_began_when_the_one_before_ended(self, look, make_project, start_loop):
        root = make_project("demo")
        start_loop(root)
        write_log(root, 1, at=seconds_ago(-100))
        write_log(root, 2, at=seconds_ago(-150))
        look()
        first, second = demo().iterations.all()
        assert second.started_at == first.written_at

    def test_a_name_that_is_no_slug_keeps_its_warning(self, look, workspace):
        root = write_project(workspace / "my project")
        look()
        row = Project.objects.get()
        assert row.slug.startswith("myproject-")
        warning = f"The directory my project is shown as {row.slug}: that name is not legal in an address."
        assert row.warnings == [warning]
        write_prd(root, "passed", userStories=[{"id": "a", "title": "A", "status": "huh"}])
        look()
        [kept, of_the_file] = Project.objects.get().warnings
        assert kept == warning
        assert "huh" in of_the_file

    def test_the_same_name_in_two_roots(self, look, workspace, settings):
        other = workspace.parent / "other"
        settings.ANDON_WORKSPACE = [workspace, other]
        write_project(workspace / "demo")
        write_project(other / "demo", ("passed",))
        look()
        first, second = Project.objects.order_by("id")
        assert (first.slug, first.path) == ("demo", str(workspace / "demo"))
        assert second.slug.startswith("demo-")
        assert "another project has that name" in second.warnings[0]
        assert look() == []

    def test_a_name_that_is_not_utf_8_is_left_out(self, look, workspace):
        write_project(workspace / "demo")
        os.makedirs(os.fsencode(workspace) + b"/caf\xe9/.git")
        assert look.told() == [("project.found", PROJECT)]
        assert look.counts.failed == 0


class TestStories:
    @pytest.mark.parametrize(
        ("before", "after", "kind", "payload"),
        [
            ("pending", "passed", "story.passed", {"was": "pending"}),
            ("in_progress", "passed", "story.passed", {"was": "in_progress"}),
            ("failed", "passed", "story.passed", {"was": "failed"}),
            ("pending", "failed", "story.failed", {"was": "pending", "reason": "reason 1"}),
            ("passed", "failed", "story.failed", {"was": "passed", "reason": "reason 1"}),
            ("pending", "blocked", "story.blocked", {"was": "pending", "reason": "reason 1"}),
            ("passed", "pending", "story.reopened", {"was": "passed"}),
            ("failed", "in_progress", "story.reopened", {"was": "failed"}),
            ("blocked", "pending", "story.reopened", {"was": "blocked"}),
        ],
    )
    def test_a_changed_state_is_one_event(self, look, make_project, before, after, kind, payload):
        root = make_project("demo", states=(before, "pending"))
        look()
        write_prd(root, after, "pending")
        [event] = look()
        assert (event.kind, event.subject) == (kind, STORY)
        assert event.payload == {"title": "Story 1", "via": "sweep", **payload}
        assert Story.objects.get(key="US-001").state == after

    @pytest.mark.parametrize(("before", "after"), [("pending", "in_progress"), ("in_progress", "pending")])
    def test_taken_up_or_laid_down_is_a_change_of_the_project(self, look, make_project, before, after):
        root = make_project("demo", states=(before,))
        look()
        write_prd(root, after)
        [event] = look()
        assert (event.kind, event.payload["changed"]) == ("project.changed", ["stories"])
        assert Story.objects.get(key="US-001").state == after
        assert demo().in_progress == (after == "in_progress")

    def test_added_and_removed(self, look, make_project):
        root = make_project("demo", states=("passed", "pending"))
        look()
        write_prd(root, "passed", "pending", "failed")
        [event] = look()
        assert (event.kind, event.subject) == ("story.added", "story:demo/US-003")
        assert event.payload == {"title": "Story 3", "state": "failed", "via": "sweep"}
        write_prd(root, "passed")
        assert look.told() == [("story.removed", "story:demo/US-002"), ("story.removed", "story:demo/US-003")]
        assert list(Story.objects.values_list("key", flat=True)) == ["US-001"]

    def test_an_edited_text(self, look, make_project):
        root = make_project("demo", states=("pending", "pending"))
        look()
        document = json.loads((root / "scripts/ralph/prd.json").read_text())
        document["userStories"][1].update(title="Another", notes="n", tags=["x"], dependsOn=["US-001"], retries=3)
        (root / "scripts/ralph/prd.json").write_text(json.dumps(document))
        [event] = look()
        assert (event.kind, event.payload["changed"]) == ("project.changed", ["stories"])
        row = Story.objects.get(key="US-002")
        assert (row.title, row.notes, row.tags, row.depends_on, row.retries) == ("Another", "n", ["x"], ["US-001"], 3)

    def test_all_go_when_the_prd_goes(self, look, make_project):
        root = make_project("demo", states=("passed", "pending"))
        make_git(root)
        look()
        (root / "scripts/ralph/prd.json").unlink()
        assert look.told() == [
            ("story.removed", "story:demo/US-001"),
            ("story.removed", "story:demo/US-002"),
            ("project.changed", PROJECT),
        ]
        assert (demo().ralph, demo().total, demo().passed) == (False, 0, 0)
        assert look() == []

    def test_all_come_when_a_prd_comes(self, look, workspace):
        root = make_git(workspace / "demo")
        look()
        write_prd(root, "pending")
        assert look.told() == [("story.added", STORY), ("project.changed", PROJECT)]
        assert (demo().ralph, demo().total) == (True, 1)

    def test_a_prd_in_a_better_place_is_read_instead(self, look, make_project):
        root = make_project("demo", states=("pending",), place="prd.json")
        look()
        assert demo().prd_path == "prd.json"
        write_prd(root, "passed")
        assert [event.kind for event in look()] == ["story.passed", "project.changed"]
        assert demo().prd_path == "scripts/ralph/prd.json"


class TestProject:
    @pytest.mark.parametrize(
        ("facts", "name", "value"),
        [
            ({"branchName": "ralph/other"}, "branch", "ralph/other"),
            ({"description": "New"}, "description", "New"),
            ({"project": "Renamed"}, "title", "Renamed"),
        ],
    )
    def test_a_changed_fact(self, look, make_project, facts, name, value):
        root = make_project("demo", states=("pending",))
        look()
        write_prd(root, "pending", **facts)
        [event] = look()
        assert (event.kind, event.payload["changed"]) == ("project.changed", ["prd"])
        assert getattr(demo(), name) == value

    def test_a_line_of_progress(self, look, make_project):
        root = make_project("demo")
        look()
        with (root / "scripts/ralph/progress.txt").open("a") as file:
            file.write("more\n")
        [event] = look()
        assert (event.kind, event.payload["changed"]) == ("project.changed", ["progress"])

    def test_missing_and_found_again(self, look, make_project, workspace):
        root = make_project("demo", states=("passed", "pending"))
        look()
        root.rename(workspace.parent / "away")
        [event] = look()
        assert (event.kind, event.subject, event.payload["path"]) == ("project.missing", PROJECT, str(root))
        assert demo().missing_since == look.now
        assert look() == []
        (workspace.parent / "away").rename(root)
        [event] = look()
        assert event.kind == "project.changed"
        assert "found" in event.payload["changed"]
        assert (demo().missing_since, demo().total, demo().passed) == (None, 2, 1)
        assert look() == []

    def test_missing_while_its_loop_runs(self, look, make_project, start_loop, workspace):
        root = make_project("demo")
        process = start_loop(root)
        write_log(root, 1, at=seconds_ago(-1))
        look()
        assert Iteration.objects.get().ended_at is None
        root.rename(workspace.parent / "away")
        assert look.told() == [("project.missing", PROJECT)]
        assert (demo().running, demo().pid) == (False, None)
        kill(process)
        (workspace.parent / "away").rename(root)
        assert ("iteration.finished", "iteration:demo/1") in look.told()
        assert Iteration.objects.get().ended_at is not None

    def test_forgotten_is_read_anew(self, look, make_project):
        make_project("demo")
        look()
        before = demo().fingerprints["prd"]["sha256"]
        assert importer.forget(Project.objects.all(), by=By("user:anna", "admin"), now=look.now) == 1
        event = Event.objects.latest("id")
        assert (event.kind, event.actor, event.payload["changed"]) == ("project.changed", "user:anna", ["read-again"])
        assert not any(event.kind.startswith("story.") for event in look())
        assert demo().fingerprints["prd"]["sha256"] == before


class TestBroken:
    def test_error_keeps_the_last_good_stories_and_is_mended(self, look, make_project):
        root = make_project("demo", states=("passed", "pending"))
        make_project("other", states=("pending",))
        look()
        prd = root / "scripts/ralph/prd.json"
        good = prd.read_text()
        prd.write_text('{\n  "userStories": [}\n')
        [event] = look()
        assert (event.kind, event.subject) == ("project.error", PROJECT)
        assert event.payload["error"] == "prd.json: invalid JSON: Expecting value (line 2, column 19)"
        broken_at = look.now
        assert (demo().error, demo().stale_since) == (event.payload["error"], broken_at)
        assert (demo().total, demo().passed, demo().stories.count()) == (2, 1, 2)
        assert look() == []
        other = Project.objects.get(slug="other")
        assert (other.error, other.stale_since, other.total) == ("", None, 1)

        prd.write_text("[")
        [event] = look()
        assert (event.kind, event.payload["error"]) == (
            "project.error",
            "prd.json: invalid JSON: Expecting value (line 1, column 2)",
        )
        assert demo().stale_since == broken_at

        prd.write_text(good)
        [event] = look()
        assert (event.kind, event.payload["changed"]) == ("project.changed", ["prd"])
        assert (demo().error, demo().stale_since) == ("", None)

    def test_others_are_imported_beside_it(self, look, make_project):
        broken, other = make_project("demo"), make_project("other", states=("pending",))
        look()
        (broken / "scripts/ralph/prd.json").write_text("nonsense")
        write_prd(other, "passed")
        assert sorted(look.told()) == [("project.error", PROJECT), ("story.passed", "story:other/US-001")]

    def test_an_error_ends_with_its_file(self, look, make_project):
        root = make_git(make_project("demo"))
        (root / "scripts/ralph/prd.json").write_text("nonsense")
        look()
        assert demo().error
        (root / "scripts/ralph/prd.json").unlink()
        look()
        assert (demo().error, demo().stale_since, demo().ralph) == ("", None, False)

    def test_a_touched_broken_file_is_no_second_event(self, look, make_project):
        prd = make_project("demo") / "scripts/ralph/prd.json"
        look()
        prd.write_text("nonsense")
        look()
        os.utime(prd)
        assert look() == []

    def test_one_whose_import_raises_does_not_stop_the_rest(self, look, make_project, monkeypatch, caplog):
        roots = [make_project(name, states=("pending",)) for name in ("aaa", "demo", "zzz")]
        look()
        for root in roots:
            write_prd(root, "passed")

        observe = importer.observe

        def observed(root, known, **more):
            if root.name == "demo":
                raise RuntimeError("the disk is on fire")
            return observe(root, known, **more)

        monkeypatch.setattr(importer, "observe", observed)
        assert look.told() == [("story.passed", "story:aaa/US-001"), ("story.passed", "story:zzz/US-001")]
        assert look.counts == importer.Counts(projects=3, changed=2, missing=0, failed=1)
        assert "demo failed" in caplog.text
        monkeypatch.undo()
        assert ("story.passed", STORY) in look.told()

    def test_a_transaction_that_fails_leaves_nothing(self, look, make_project, monkeypatch):
        root = make_project("demo", states=("pending", "pending"))
        look()
        write_prd(root, "passed")
        with monkeypatch.context() as patch:
            patch.setattr("projects.importer.absorb.Absorption._tell", lambda self: 1 / 0)
            assert look() == []
        assert (look.counts.failed, demo().total, demo().stories.count()) == (1, 2, 2)
        assert look.told() == [("story.passed", STORY), ("story.removed", "story:demo/US-002")]


class TestLoop:
    def test_started(self, look, make_project, start_loop):
        root = make_project("demo")
        look()
        process = start_loop(root)
        [event] = look()
        assert (event.kind, event.subject) == ("loop.started", PROJECT)
        assert event.payload == {"pid": process.pid, "ours": True, "via": "sweep"}
        row = demo()
        assert (row.running, row.ours, row.pid) == (True, True, process.pid)
        assert row.start_ticks == processes.read_start_ticks(process.pid)
        assert row.boot_id == processes.boot_id()
        assert abs(row.loop_started_at - datetime.now(UTC)) < timedelta(seconds=10)
        assert look() == []

    def test_a_process_below_the_project_counts(self, look, make_project, start_loop):
        root = make_project("demo")
        look()
        start_loop(root, cwd=root / "scripts/ralph")
        assert look.told() == [("loop.started", PROJECT)]

    def test_killed_is_crashed(self, look, make_project, start_loop):
        process = start_loop(make_project("demo"))
        look()
        kill(process)
        [event] = look()
        assert (event.kind, event.payload) == ("loop.crashed", {"pid": process.pid, "via": "sweep"})
        assert (demo().running, demo().pid, demo().start_ticks) == (False, None, None)
        assert look() == []

    def test_a_zombie_is_crashed(self, look, make_project, start_loop):
        process = start_loop(make_project("demo"))
        look()
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert look.told() == [("loop.crashed", PROJECT)]

    def test_without_its_pid_file_is_stopped(self, look, make_project, start_loop):
        root = make_project("demo")
        process = start_loop(root)
        look()
        kill(process)
        (root / "scripts/ralph/.ralph.pid").unlink()
        assert look.told() == [("loop.stopped", PROJECT)]

    @pytest.mark.parametrize("cleans_up", [True, False])
    def test_with_all_stories_passed_is_completed(self, look, make_project, start_loop, cleans_up):
        root = make_project("demo", states=("passed", "pending"))
        process = start_loop(root)
        look()
        write_prd(root, "passed", "passed")
        kill(process)
        if cleans_up:
            (root / "scripts/ralph/.ralph.pid").unlink()
        assert look.told() == [("story.passed", "story:demo/US-002"), ("loop.completed", PROJECT)]

    def test_one_after_the_other(self, look, make_project, start_loop):
        root = make_project("demo")
        first = start_loop(root)
        look()
        kill(first)
        second = start_loop(root)
        [stopped, started] = look()
        assert (stopped.kind, stopped.payload["pid"]) == ("loop.stopped", first.pid)
        assert (started.kind, started.payload["pid"]) == ("loop.started", second.pid)

    @pytest.mark.parametrize("content", ["", "0", "1", "-5", "4194305", "12 34", "words", "9" * 60, "9" * 100])
    def test_a_pid_that_is_none(self, look, make_project, start_loop, content):
        root = make_project("demo")
        look()
        start_loop(root, pid_file=content)
        assert look() == []
        assert demo().running is False

    def test_a_stale_pid(self, look, make_project, start_loop):
        root = make_project("demo")
        look()
        kill(start_loop(root))
        assert look() == []

    def test_a_process_elsewhere(self, look, make_project, start_loop, workspace):
        root, beside = make_project("demo"), workspace / "demolition"
        beside.mkdir()
        look()
        start_loop(root, cwd=beside)
        assert look() == []
        assert demo().running is False

    def test_a_pid_file_older_than_the_process(self, look, make_project, start_loop):
        root = make_project("demo")
        look()
        start_loop(root)
        old = seconds_ago(60).timestamp()
        os.utime(root / "scripts/ralph/.ralph.pid", (old, old))
        assert look() == []
        assert demo().running is False

    def test_a_clock_that_is_set_on_ends_no_loop(self, look, make_project, start_loop):
        root = make_project("demo")
        process = start_loop(root)
        look()
        old = seconds_ago(3600).timestamp()
        os.utime(root / "scripts/ralph/.ralph.pid", (old, old))
        assert look() == []
        assert (demo().running, demo().pid) == (True, process.pid)

    def test_another_users_process_runs_and_is_not_ours(self, look, make_project, start_loop, monkeypatch):
        root = make_project("demo")
        look()

        def forbidden(pid):
            raise PermissionError(13, "not yours")

        monkeypatch.setattr(processes, "working_directory", forbidden)
        process = start_loop(root)
        [event] = look()
        assert (event.kind, event.payload["ours"]) == ("loop.started", False)
        assert (demo().running, demo().ours, demo().pid) == (True, False, process.pid)
        assert look() == []

    def test_one_that_is_just_ending_is_not_running(self, look, make_project, start_loop, monkeypatch):
        start_loop(make_project("demo"))
        look()

        def ending(pid):
            raise FileNotFoundError(2, "no such file")

        monkeypatch.setattr(processes, "working_directory", ending)
        assert look.told() == [("loop.crashed", PROJECT)]
        assert look.counts.failed == 0

    def test_a_pid_file_that_is_a_link_is_not_followed(self, look, make_project, start_loop):
        root = make_project("demo")
        look()
        start_loop(root)
        pid_file = root / "scripts/ralph/.ralph.pid"
        pid_file.rename(root.parent.parent / "pid")
        pid_file.symlink_to(root.parent.parent / "pid")
        assert look() == []


class TestIterations:
    def test_finished_with_its_duration_and_story(self, look, make_project, start_loop):
        root = make_project("demo", states=("passed", "pending", "pending"))
        process = start_loop(root)
        look()
        write_log(root, 1, at=seconds_ago(-1))
        assert look.told() == [("project.changed", PROJECT)]
        first = Iteration.objects.get()
        assert (first.number, first.story_key, first.ended_at) == (1, "US-002", None)
        write_log(root, 1, "working\ndone\n", at=seconds_ago(-91))
        assert "iteration.finished" not in [event.kind for event in look()]
        write_log(root, 2, at=seconds_ago(-100))
        finished = [event for event in look() if event.kind == "iteration.finished"]
        assert [event.subject for event in finished] == ["iteration:demo/1"]
        payload = finished[0].payload
        assert payload["duration_s"] == pytest.approx(90, abs=2)
        assert (payload["number"], payload["story"]) == (1, "US-002")
        assert demo().durations == [pytest.approx(90, abs=2)]
        kill(process)
        assert look.told() == [("loop.crashed", PROJECT), ("iteration.finished", "iteration:demo/2")]
        assert not Iteration.objects.filter(ended_at=None).exists()
        assert look() == []

    def test_times_are_those_of_the_files(self, look, make_project):
        root = make_project("demo")
        ends = [seconds_ago(3000), seconds_ago(2400), seconds_ago(2100)]
        for number, at in enumerate(ends, 9):
            write_log(root, number, "x" * number, at=at)
        look()
        rows = list(demo().iterations.all())
        assert [row.number for row in rows] == [9, 10, 11]
        assert [row.size for row in rows] == [9, 10, 11]
        assert [row.duration_s for row in rows] == [None, pytest.approx(600), pytest.approx(300)]
        assert demo().durations == [pytest.approx(600, abs=0.1), pytest.approx(300, abs=0.1)]
        assert abs(demo().last_iteration_at - ends[-1]) < timedelta(milliseconds=1)

    def test_a_night_between_two_logs_is_no_iteration(self, look, make_project):
        root = make_project("demo")
        write_log(root, 1, at=seconds_ago(40_000))
        write_log(root, 2, at=seconds_ago(10))
        look()
        assert [row.duration_s for row in demo().iterations.all()] == [None, None]
        assert demo().durations == []

    def test_a_log_that_went(self, look, make_project):
        root = make_project("demo")
        write_log(root, 1, at=seconds_ago(20))
        gone = write_log(root, 2, at=seconds_ago(10))
        look()
        gone.unlink()
        [event] = look()
        assert (event.kind, event.payload["changed"]) == ("project.changed", ["iterations"])
        assert [row.number for row in demo().iterations.all()] == [1]
        shutil.rmtree(gone.parent)
        assert [event.kind for event in look()] == ["project.changed"]
        assert demo().last_iteration_at is None

    def test_a_new_loop_does_not_reopen_the_last_iteration(self, look, make_project, start_loop):
        root = make_project("demo")
        write_log(root, 1, at=seconds_ago(600))
        look()
        process = start_loop(root)
        assert look.told() == [("loop.started", PROJECT)]
        assert Iteration.objects.get().ended_at is not None
        kill(process)
        assert look.told() == [("loop.crashed", PROJECT)]

    def test_a_new_loop_that_counts_from_one_again(self, look, make_project, start_loop):
        root = make_project("demo", states=("passed", "pending"))
        for number, age in ((1, 9000), (2, 8400), (3, 7800)):
            write_log(root, number, at=seconds_ago(age))
        look()
        process = start_loop(root)
        look()
        write_log(root, 1, "again\n", at=seconds_ago(-1))
        assert "project.changed" in [event.kind for event in look()]
        first = Iteration.objects.get(number=1)
        assert (first.ended_at, first.story_key) == (None, "US-002")
        assert demo().last_iteration_at == first.written_at
        assert not Iteration.objects.filter(number__gt=1, ended_at=None).exists()
        write_log(root, 2, "again\n", at=seconds_ago(-61))
        finished = [event for event in look() if event.kind == "iteration.finished"]
        assert [event.payload["number"] for event in finished] == [1]
        assert finished[0].payload["duration_s"] < 30
        kill(process)
        finished = [event for event in look() if event.kind == "iteration.finished"]
        assert [event.payload["number"] for event in finished] == [2]
        assert max(demo().durations) <= 600

    def test_writing_is_told_at_most_once_a_minute(self, look, make_project, start_loop):
        root = make_project("demo")
        start_loop(root)
        write_log(root, 1, at=seconds_ago(-1))
        look()
        told = []
        for number in range(2, 15):
            write_log(root, 1, "line\n" * number, at=seconds_ago(-1 - number))
            told += [(look.now, event.payload["changed"]) for event in look()]
        assert [changed for _, changed in told] == [["activity"]] * len(told)
        assert 2 <= len(told) <= 3


class TestUnchanged:
    @pytest.fixture
    def settled(self, make_project, look):
        """Make projects whose files have not changed for longer than the kernel's clock ticks."""

        def make(count: int) -> None:
            for number in range(count):
                root = make_project(f"p{number}")
                write_log(root, 1, at=seconds_ago(60))
            threading.Event().wait(0.03)
            look()

        return make

    def queries(self, look) -> list[str]:
        with CaptureQueriesContext(connection) as captured:
            importer.rescan(now=look.now)
        return [query["sql"] for query in captured.captured_queries]

    @pytest.mark.parametrize("count", [1, 20])
    def test_rescan_is_one_query(self, settled, look, count):
        settled(count)
        [query] = self.queries(look)
        assert query.startswith("SELECT")
        assert look.counts.projects == count

    def test_rescan_is_one_query_while_loops_run(self, settled, look, make_project, start_loop):
        settled(3)
        for number in range(3):
            start_loop(make_project(f"p{number}"))
        threading.Event().wait(0.03)
        look()
        assert Project.objects.filter(running=True).count() == 3
        assert len(self.queries(look)) == 1

    def test_reads_no_file(self, settled, look, monkeypatch):
        settled(3)
        asked = []
        read = ralph.read_inside

        def counting(root, relative, limit):
            data = read(root, relative, limit)
            asked.append(str(relative))
            return data

        monkeypatch.setattr(ralph, "read_inside", counting)
        assert look() == []
        assert asked == []
        (look_at := Path(demo_path("p1"))).joinpath("scripts/ralph/prd.json").touch()
        assert look() == []
        assert asked == ["scripts/ralph/prd.json"]
        assert look_at.is_dir()

    def test_touched_with_the_same_content_is_no_event(self, look, make_project):
        prd = make_project("demo") / "scripts/ralph/prd.json"
        look()
        revision = demo().revision
        prd.write_bytes(prd.read_bytes())
        assert look() == []
        content = prd.read_bytes()
        prd.unlink()
        prd.write_bytes(content)
        assert look() == []
        assert demo().revision == revision

    def test_a_second_change_within_one_tick_of_the_clock_is_seen(self, look, make_project, monkeypatch):
        """The kernel's clock ticks every few milliseconds; here it ticks once a minute."""
        module = sys.modules["projects.importer.observe"]
        mark, minute = module._mark, 60_000_000_000

        def coarse(path):
            found = mark(path)
            return found and [found[0], *(moment // minute * minute for moment in found[1:])]

        monkeypatch.setattr(module, "_mark", coarse)
        monkeypatch.setattr(module, "RACY_NS", 2 * minute)
        prd = make_project("demo", states=("passed", "pending")) / "scripts/ralph/prd.json"
        one = prd.read_bytes()
        other = one.replace(b"true", b"null")
        assert len(one) == len(other)
        look()
        for content, state in ((other, "pending"), (one, "passed"), (other, "pending")):
            prd.write_bytes(content)
            assert [event.subject for event in look()] == [STORY]
            assert Story.objects.get(key="US-001").state == state


def demo_path(slug: str) -> str:
    return Project.objects.values_list("path", flat=True).get(slug=slug)


@pytest.mark.django_db(transaction=True)
class TestAtOnce:
    def together(self, *works):
        """Run works in threads that start at one moment; returns what they returned."""
        barrier = threading.Barrier(len(works))
        results = []

        def run(work):
            barrier.wait()
            try:
                results.append(work())
            finally:
                connection.close()

        threads = [threading.Thread(target=run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results

    def test_two_imports_tell_each_change_once(self, workspace, make_project, now):
        root = make_project("demo", states=("pending", "pending", "pending"))

        def rescan():
            return importer.rescan(now=now)

        def single():
            return importer.import_project(str(root), now=now)

        first = self.together(rescan, rescan)
        assert [(count.projects, count.failed) for count in first] == [(1, 0), (1, 0)]
        assert sum(count.changed for count in first) == 1
        assert list(Event.objects.values_list("kind", flat=True)) == ["project.found"]
        flips = [("passed", "story.passed"), ("failed", "story.failed"), ("pending", "story.reopened")] * 4
        for number, (state, kind) in enumerate(flips):
            Event.objects.all().delete()
            write_prd(root, state, state, state, description=str(number))
            results = self.together(rescan, single, single)
            assert all(count.failed == 0 for count in results if isinstance(count, importer.Counts))
            told = sorted(Event.objects.values_list("kind", "subject"))
            assert told == [
                ("project.changed", PROJECT),
                *[(kind, f"story:demo/US-00{story}") for story in (1, 2, 3)],
            ]
            assert demo().stories.count() == 3

    def test_what_a_sweep_writes_after_the_rows_were_read_stays(self, workspace, make_project, now, monkeypatch):
        root = make_project("demo", states=("pending",))
        importer.rescan(now=now)
        prd = write_prd(root, "passed")
        os.utime(prd, (0, 0))
        project_roots = importer.project_roots

        def after_the_sweep():
            Project.objects.update(stalled=True)
            return project_roots()

        monkeypatch.setattr(importer, "project_roots", after_the_sweep)
        assert importer.rescan(now=now).changed == 1
        assert (demo().passed, demo().stalled) == (1, True)


class TestHostile:
    def test_nul_surrogates_and_huge_numbers_are_stored(self, look, make_project):
        root = make_project("demo")
        (root / "scripts/ralph/prd.json").write_bytes(
            b'{"project": "a\\u0000b\\ud800c", "branchName": "x\\u0000y", "description": "\\udfff\\u0000",'
            b'"huge": ' + b"9" * 400 + b', "wide": 1e400, "\\u0000key": 1, "userStories": ['
            b'{"id": "US\\u0000-1\\ud83d", "title": "t\\u0000\\udc00", "priority": ' + b"9" * 30 + b","
            b'"retries": ' + b"9" * 25 + b', "tags": ["\\u0000", "\\ud800x"], "acceptanceCriteria": ["\\u0000c"],'
            b'"notes": "n\\u0000", "failed": true, "failureReason": "r\\ud800\\u0000", "dependsOn": ["\\u0000"]}]}'
        )
        assert look.told() == [("project.found", PROJECT)]
        assert look.counts.failed == 0
        row, story = demo(), Story.objects.get()
        assert (row.title, row.branch, row.error) == ("abc", "xy", "")
        assert (story.key, story.title, story.failure_reason) == ("US-1", "t", "r")
        assert 0 <= story.retries < 2**31
        assert json.loads(row.document)["huge"] == "9" * 400
        prd = root / "scripts/ralph/prd.json"
        prd.write_bytes(prd.read_bytes().replace(b'"failed": true', b'"passes": true'))
        assert look.told() == [("story.passed", "story:demo/US-1")]

    @pytest.mark.parametrize("kind", ["link", "fifo", "directory"])
    def test_a_prd_that_is_no_file(self, look, make_project, workspace, kind):
        root = make_git(make_project("demo"))
        prd = root / "scripts/ralph/prd.json"
        outside = workspace.parent / "outside.json"
        prd.rename(outside)
        if kind == "link":
            prd.symlink_to(outside)
        elif kind == "fifo":
            os.mkfifo(prd)
        else:
            prd.mkdir()
        make_project("other")
        assert look.told() == [("project.found", PROJECT), ("project.found", "project:other")]
        assert (demo().ralph, demo().total, demo().document) == (False, 0, "")

    def test_a_ralph_folder_that_leads_outside(self, look, workspace):
        outside = write_project(workspace.parent / "outside")
        root = make_git(workspace / "demo")
        (root / "scripts").symlink_to(outside / "scripts")
        look()
        assert (demo().ralph, demo().total) == (False, 0)

    def test_a_prd_of_six_megabytes(self, look, make_project):
        root = make_project("demo", states=("passed",))
        look()
        with (root / "scripts/ralph/prd.json").open("r+b") as file:
            file.truncate(6 * 1024 * 1024)
        [event] = look()
        assert event.kind == "project.error"
        assert "larger than 5242880 bytes" in event.payload["error"]
        assert (demo().total, demo().passed) == (1, 1)
        assert look() == []

    def test_logs_that_lie_outside(self, look, make_project, workspace):
        root = make_project("demo")
        outside = write_project(workspace.parent / "outside")
        write_log(outside, 1)
        (root / "scripts/ralph/logs").symlink_to(outside / "scripts/ralph/logs")
        look()
        assert Iteration.objects.count() == 0

    def test_logs_that_are_no_files(self, look, make_project, workspace):
        root = make_project("demo")
        logs = write_log(root, 1, at=seconds_ago(5)).parent
        (logs / "iteration-2.log").symlink_to("/etc/hostname")
        os.mkfifo(logs / "iteration-3.log")
        (logs / "iteration-4.log").mkdir()
        (logs / "iteration-99999999999.log").write_text("")
        (logs / "notes.log").write_text("")
        look()
        assert [row.number for row in Iteration.objects.all()] == [1]
        (root.parent / "two").mkdir()
        write_project(root.parent / "two")
        (root.parent / "two/scripts/ralph/logs").write_text("a file")
        look()
        assert look.counts.failed == 0
        assert Iteration.objects.count() == 1

    def test_three_thousand_logs(self, look, make_project):
        root = make_project("demo")
        logs = root / "scripts/ralph/logs"
        logs.mkdir()
        for number in range(1, 3001):
            (logs / f"iteration-{number}.log").touch()
        assert look.told() == [("project.found", PROJECT)]
        numbers = list(Iteration.objects.order_by("number").values_list("number", flat=True))
        assert numbers == list(range(2001, 3001))
        threading.Event().wait(0.03)
        look()
        assert look() == []

    def test_a_clock_far_off(self, look, make_project):
        root = make_project("demo")
        log = write_log(root, 1)
        for moment in (0, 2**33):
            os.utime(log, (moment, moment))
            os.utime(root / "scripts/ralph/prd.json", (moment, moment))
            look()
            assert look.counts.failed == 0
            assert demo().last_iteration_at.timestamp() == moment

    def test_an_unreadable_prd_is_an_error(self, look, make_project, monkeypatch):
        root = make_project("demo", states=("passed",))
        look()
        os.utime(root / "scripts/ralph/prd.json")

        def refused(root, relative, limit):
            raise ralph.Unreadable(f"{relative} cannot be opened: permission denied")

        with monkeypatch.context() as patch:
            patch.setattr(ralph, "read_inside", refused)
            [event] = look()
        assert event.payload["error"] == (
            "prd.json cannot be read: scripts/ralph/prd.json cannot be opened: permission denied"
        )
        os.utime(root / "scripts/ralph/prd.json")
        assert [event.kind for event in look()] == ["project.changed"]
        assert demo().error == ""


STATES = st.sampled_from(
    [
        {"passes": True},
        {"passes": "true"},
        {"passes": "false"},
        {"failed": True},
        {"failed": 1, "passes": True},
        {"blocked": "yes"},
        {"blocked": True, "failed": True, "failureReason": "why"},
        {"status": "in_progress"},
        {"status": "done"},
        {"status": "nonsense"},
        {},
    ]
)
STORIES = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c", "d", 5, None, "x" * 150]), st.text(max_size=5), STATES).map(
        lambda parts: {"id": parts[0], "title": parts[1], **parts[2]}
    ),
    max_size=6,
)
DOCUMENTS = st.one_of(
    STORIES.map(lambda stories: json.dumps({"userStories": stories}).encode()),
    STORIES.map(lambda stories: json.dumps({"milestones": [{"name": "m", "tasks": stories}]}).encode()),
    STORIES.map(lambda stories: json.dumps(stories).encode()),
    st.sampled_from([b"", b"{", b"[1, null]", b'"text"', b"\xff", None]),
)
CLOSED = {"passed", "failed", "blocked"}


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(documents=st.lists(DOCUMENTS, min_size=1, max_size=6))
def test_rows_counts_and_events_agree_whatever_is_written(db, workspace, now, documents):
    """Rows equal the last good document, counts add up to the total, and the events explain every state."""
    root = workspace / "demo"
    prd = root / "scripts/ralph/prd.json"
    prd.parent.mkdir(parents=True)
    make_git(root)
    Project.objects.all().delete()
    Event.objects.all().delete()
    good: dict[str, str] = {}
    by_events: dict[str, str] = {}
    try:
        for number, data in enumerate(documents):
            if data is None:
                prd.unlink(missing_ok=True)
            else:
                prd.write_bytes(data)
            seen = Event.objects.order_by("-id").values_list("id", flat=True).first() or 0
            counts = importer.rescan(now=now)
            assert counts.failed == 0
            row = Project.objects.get()

            if data is None:
                good = {}
            with contextlib.suppress(ralph.PrdError):
                if data is not None:
                    good = {story.id: story.state.value for story in ralph.parse_prd(data).stories}
            rows = dict(row.stories.values_list("key", "state"))
            assert rows == good
            shown = json.loads(row.shown_stories)
            assert {story["id"] for story in shown} == set(rows)
            for story in shown:
                told = {state for state in CLOSED if story["passes" if state == "passed" else state]}
                assert told == {rows[story["id"]]} & CLOSED
            assert row.total == len(rows)
            for state in ("passed", "failed", "blocked", "in_progress"):
                assert getattr(row, state) == list(rows.values()).count(state)
            assert row.passed + row.failed + row.blocked + row.in_progress <= row.total

            events = Event.objects.filter(id__gt=seen).order_by("id")
            if number == 0:
                assert [event.kind for event in events] == ["project.found"]
                by_events = dict(rows)
            for event in events:
                family, _, what = event.kind.partition(".")
                if family == "story":
                    key = event.subject.removeprefix("story:demo/")
                    match what:
                        case "added":
                            assert key not in by_events
                            by_events[key] = event.payload["state"]
                        case "removed":
                            del by_events[key]
                        case "reopened":
                            assert by_events[key] == event.payload["was"]
                            assert by_events[key] in CLOSED
                            by_events[key] = "open"
                        case _:
                            assert by_events[key] != what
                            by_events[key] = what
            assert {key: state if state in CLOSED else "open" for key, state in by_events.items()} == {
                key: state if state in CLOSED else "open" for key, state in rows.items()
            }
    finally:
        shutil.rmtree(root)
