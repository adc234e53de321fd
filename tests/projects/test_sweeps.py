"""Sweeps: each compares what is with what should be, and one bad row does not stop the rest."""

import os
import signal
import subprocess
from datetime import timedelta

import pytest

from projects import importer, jobs, sweeps, tasks
from projects.events import SWEEP, record, writing
from projects.models import Event, EventFloor, Project
from tests.running import wait_for

pytestmark = pytest.mark.django_db


@pytest.fixture
def submitted(monkeypatch):
    """Run what a sweep submits here and now; returns the list of its keys."""
    keys = []

    def submit(key, function, *args):
        keys.append(key)
        function(*args)

    monkeypatch.setattr(jobs, "submit", submit)
    return keys


@pytest.fixture
def running(make_project, now):
    """Import projects with a real loop each; returns the processes by name."""
    started = {}

    def make(*names):
        for name in names:
            root = make_project(name)
            started[name] = subprocess.Popen(["sleep", "60"], cwd=root)
            (root / "scripts/ralph/.ralph.pid").write_text(str(started[name].pid))
        importer.rescan(now=now)
        return started

    yield make
    for process in started.values():
        process.kill()
        process.wait()


def kill(process):
    process.send_signal(signal.SIGKILL)
    process.wait()


def kinds():
    return list(Event.objects.exclude(kind="project.found").order_by("id").values_list("kind", flat=True))


class TestRescan:
    def test_returns_counts(self, make_project, now):
        make_project("demo")
        assert sweeps.rescan(now=now) == {"projects": 1, "changed": 1, "missing": 0, "failed": 0}


class TestDetectEnded:
    def test_nothing_runs(self, imported, now, submitted, django_assert_num_queries):
        imported("demo")
        with django_assert_num_queries(1):
            assert sweeps.detect_ended(now=now) == 0
        assert submitted == []

    def test_living_loops_cost_one_query(self, running, now, submitted, django_assert_num_queries):
        running("one", "two", "three")
        with django_assert_num_queries(1):
            assert sweeps.detect_ended(now=now) == 0

    def test_a_killed_loop_is_imported(self, running, now, submitted):
        started = running("one", "two")
        kill(started["two"])
        assert sweeps.detect_ended(now=now) == 1
        assert [key.rpartition("/")[2] for key in submitted] == ["two"]
        assert kinds() == ["loop.started", "loop.started", "loop.crashed"]
        assert list(Project.objects.filter(running=True).values_list("slug", flat=True)) == ["one"]
        assert sweeps.detect_ended(now=now) == 0

    def test_a_pid_that_came_to_mean_another_process(self, running, now, submitted):
        running("one")
        Project.objects.update(start_ticks=1)
        assert sweeps.detect_ended(now=now) == 1
        assert kinds() == ["loop.started", "loop.stopped", "loop.started"]

    def test_another_boot(self, running, now, submitted):
        running("one")
        Project.objects.update(boot_id="another")
        assert sweeps.detect_ended(now=now) == 1

    def test_what_cannot_be_seen_is_left_alone(self, running, now, submitted, monkeypatch):
        running("one")

        def hidden(pid):
            raise PermissionError(13, "hidden")

        monkeypatch.setattr("services.processes.identity._read_stat", hidden)
        assert sweeps.detect_ended(now=now) == 0
        assert Project.objects.get().running is True

    def test_loops_of_another_host_are_left_alone(self, running, now, submitted):
        kill(running("one")["one"])
        Project.objects.update(node="elsewhere")
        assert sweeps.detect_ended(now=now) == 0
        assert Project.objects.get().running is True


class TestFindStalled:
    def make_quiet(self, imported, now, *names):
        for name in names:
            imported(name)
        Project.objects.update(
            running=True, pid=7, written_at=now - timedelta(hours=2), loop_started_at=now - timedelta(hours=3)
        )

    def test_is_told_once(self, imported, now):
        self.make_quiet(imported, now, "demo", "other")
        Project.objects.filter(slug="other").update(written_at=now)
        assert sweeps.find_stalled(now=now) == 1
        [event] = Event.objects.filter(kind="loop.stalled")
        assert (event.subject, event.project, event.at) == ("project:demo", "demo", now)
        assert event.payload == {"quiet_s": 7200, "via": "sweep"}
        assert list(Project.objects.filter(stalled=True).values_list("slug", flat=True)) == ["demo"]
        assert sweeps.find_stalled(now=now + timedelta(seconds=5)) == 0

    def test_nothing_that_stands_is_stalled(self, imported, now):
        self.make_quiet(imported, now, "demo")
        Project.objects.update(running=False)
        assert sweeps.find_stalled(now=now) == 0

    def test_a_loop_that_has_just_started_is_not(self, imported, now):
        self.make_quiet(imported, now, "demo")
        Project.objects.update(loop_started_at=now - timedelta(minutes=1), written_at=now - timedelta(days=9))
        assert sweeps.find_stalled(now=now) == 0

    def test_not_that_of_another_host(self, imported, now):
        self.make_quiet(imported, now, "demo")
        Project.objects.update(node="elsewhere")
        assert sweeps.find_stalled(now=now) == 0

    def test_writing_again_ends_it_and_the_next_silence_is_told_anew(self, running, now):
        started = running("demo")
        row = Project.objects.get()
        later = max(row.written_at, row.loop_started_at) + timedelta(hours=2)
        assert sweeps.find_stalled(now=later) == 1
        root = row.path
        with open(f"{root}/scripts/ralph/progress.txt", "a") as file:
            file.write("alive\n")
        os.utime(f"{root}/scripts/ralph/progress.txt", (later.timestamp(), later.timestamp()))
        importer.rescan(now=later)
        assert Project.objects.get().stalled is False
        assert kinds()[-1] == "project.changed"
        assert sweeps.find_stalled(now=later + timedelta(seconds=5)) == 0
        assert sweeps.find_stalled(now=later + timedelta(hours=2)) == 1
        assert started["demo"].poll() is None

    def test_a_poison_row_does_not_stop_the_rest(self, imported, now, caplog):
        self.make_quiet(imported, now, "aaa", "demo", "zzz")
        Project.objects.filter(slug="demo").update(durations=["poison"] * 3)
        assert sweeps.find_stalled(now=now) == 2
        assert list(Project.objects.filter(stalled=True).values_list("slug", flat=True)) == ["aaa", "zzz"]
        assert "demo" in caplog.text

    def test_a_loop_that_ended_meanwhile_is_not_told(self, imported, now, monkeypatch):
        self.make_quiet(imported, now, "demo")

        def ends(project, at):
            Project.objects.update(running=False, stalled=False)
            return True

        monkeypatch.setattr(sweeps.queries, "is_stalled", ends)
        assert sweeps.find_stalled(now=now) == 0
        assert "loop.stalled" not in kinds()

    def test_takes_one_query_when_nothing_is_stalled(self, imported, now, django_assert_num_queries):
        self.make_quiet(imported, now, "aaa", "demo")
        Project.objects.update(written_at=now)
        with django_assert_num_queries(1):
            assert sweeps.find_stalled(now=now) == 0


class TestPruneEvents:
    @pytest.fixture
    def tell(self, now):
        def make(*ages_in_days):
            for age in ages_in_days:
                with writing():
                    record("test.told", "test:1", by=SWEEP, now=now - timedelta(days=age))
            return list(Event.objects.order_by("id").values_list("id", flat=True))

        return make

    def kept(self):
        return list(Event.objects.order_by("id").values_list("id", flat=True))

    def floor(self):
        return EventFloor.objects.values_list("pruned_through", flat=True).first() or 0

    def test_an_empty_log(self, now):
        assert sweeps.prune_events(now=now) == 0
        assert self.floor() == 0

    def test_nothing_is_old(self, tell, now):
        ids = tell(89, 1)
        assert sweeps.prune_events(now=now) == 0
        assert (self.kept(), self.floor()) == (ids, 0)

    def test_what_is_older_than_ninety_days_goes(self, tell, now):
        ids = tell(200, 91, 90.1, 89.9, 0)
        assert sweeps.prune_events(now=now) == 3
        assert (self.kept(), self.floor()) == (ids[3:], ids[2])
        assert sweeps.prune_events(now=now) == 0
        assert self.floor() == ids[2]

    def test_only_a_prefix_goes(self, tell, now):
        ids = tell(200, 1, 200)
        assert sweeps.prune_events(now=now) == 1
        assert (self.kept(), self.floor()) == (ids[1:], ids[0])

    def test_what_is_beyond_the_limit_goes(self, tell, now, monkeypatch):
        monkeypatch.setattr(sweeps, "EVENTS_AT_MOST", 2)
        ids = tell(0, 0, 0, 0, 0)
        assert sweeps.prune_events(now=now) == 3
        assert (self.kept(), self.floor()) == (ids[3:], ids[2])

    def test_in_batches(self, tell, now, monkeypatch):
        monkeypatch.setattr(sweeps, "PRUNE_BATCH", 2)
        ids = tell(200, 200, 200, 200, 200, 1)
        seen = []
        while deleted := sweeps.prune_events(now=now):
            seen.append((deleted, self.floor()))
        assert seen == [(2, ids[1]), (2, ids[3]), (1, ids[4])]
        assert self.kept() == ids[5:]

    def test_all_go(self, tell, now):
        ids = tell(200, 200)
        assert sweeps.prune_events(now=now) == 2
        assert (self.kept(), self.floor()) == ([], ids[-1])
        assert tell(0)[0] > ids[-1]

    @pytest.mark.parametrize("most", [2, 2_000_000])
    @pytest.mark.parametrize(
        "days", [(), (200, 200), (0, 0, 0), (200, 1, 200), (200, 91, 90.1, 89.9, 0), (1, 200, 200, 200, 1)]
    )
    def test_what_is_old_is_what_goes(self, tell, now, monkeypatch, days, most):
        monkeypatch.setattr(sweeps, "EVENTS_AT_MOST", most)
        tell(*days)
        old = list(Event.objects.filter(sweeps.is_old(now)).order_by("id").values_list("id", flat=True))
        kept = self.kept()
        while sweeps.prune_events(now=now):
            pass
        assert old == kept[: len(kept) - len(self.kept())]

    def test_the_floor_and_the_deletion_are_one(self, tell, now, monkeypatch):
        ids = tell(200, 1)
        monkeypatch.setattr(Event.objects, "filter", lambda **wanted: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            sweeps.prune_events(now=now)
        monkeypatch.undo()
        assert (self.kept(), self.floor()) == (ids, 0)


@pytest.mark.django_db(transaction=True)
def test_each_job_runs_its_sweep_at_its_rhythm(make_project):
    make_project("demo")
    rhythm = {"rescan": 30, "detect_ended": 1, "find_stalled": 5, "prune_events": 10}
    assert {name: jobs.ticks[f"projects.{name}"].seconds for name in rhythm} == rhythm
    for look in (tasks.rescan, tasks.rescan_now):
        assert look.call_local() is True
        wait_for(lambda: "rescan" not in jobs._in_flight, 5)
    assert Project.objects.count() == 1
    assert tasks.detect_ended.call_local() == 0
    assert tasks.find_stalled.call_local() == 0
    assert tasks.prune_events.call_local() == 0
