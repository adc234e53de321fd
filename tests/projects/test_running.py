"""What is known of a loop beside its files: who was started, how it ended, what start runs, what it may cost."""

from datetime import timedelta
from decimal import Decimal

import pytest

from projects import importer, lifecycle
from projects.errors import Rejected
from projects.events import By, writing
from projects.lifecycle import stops
from projects.models import Event, LoopStop, Project
from services.processes import Identity
from tests.projects.files import write_project

ANNA = By("user:anna", "page")
LOOP = {
    "process": 7,
    "pid": 4242,
    "start_ticks": 99,
    "boot_id": "b",
    "started_at": "2026-11-20T12:00:00+00:00",
    "by": "user:anna",
}
pytestmark = pytest.mark.django_db


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


def look(project: Project, now) -> Project:
    importer.import_project(project.path, now=now)
    return Project.objects.get(pk=project.pk)


def begin(project: Project, now, **more: object) -> Project:
    with writing():
        lifecycle.note_loop(project.slug, {**LOOP, **more})
    return look(project, now)


def end(project: Project, now, code: int | None, cause: str = "") -> Project:
    with writing():
        lifecycle.note_loop_end(project.slug, 7, exit_code=code, cause=cause, now=now)
    return look(project, now)


def told() -> list[tuple[str, str, object]]:
    rows = Event.objects.filter(kind__in=["loop.started", "loop.stopped", "loop.crashed", "loop.completed"])
    return [(row.kind, row.actor, row.payload.get("exit_code")) for row in rows]


class TestLoop:
    def test_one_that_writes_no_pid_is_shown_as_running(self, demo, now):
        seen = begin(demo, now)
        assert (seen.running, seen.pid, seen.ours, seen.loop_is_ours) == (True, 4242, True, True)
        assert told() == [("loop.started", "user:anna", None)]
        # Its process may be gone: its supervisor has the word.
        assert look(demo, now).running

    @pytest.mark.parametrize(
        ("code", "cause", "kind"),
        [
            (0, "", "loop.stopped"),
            (3, "crash", "loop.crashed"),
            (None, "unobserved", "loop.crashed"),
            (-15, "user", "loop.stopped"),
        ],
    )
    def test_its_end_is_told_once_with_its_code(self, demo, now, code, cause, kind):
        begin(demo, now)
        seen = end(demo, now, code, cause)
        look(demo, now)
        assert (seen.running, seen.pid) == (False, None)
        assert told() == [("loop.started", "user:anna", None), (kind, "andon", code)]

    def test_all_passed_is_completed(self, imported, workspace, now):
        demo = imported("demo")
        begin(demo, now)
        write_project(workspace / "demo", ("passed", "passed"))
        end(demo, now, 0)
        assert told()[-1] == ("loop.completed", "andon", 0)

    @pytest.mark.parametrize("killed", [False, True])
    def test_a_stop_is_told_with_who_asked(self, demo, now, killed):
        begin(demo, now)
        stop = stops.ask(demo, grace_s=10, process=7, by=ANNA, now=now)
        stops.signal(stop, Identity(demo.node, "b", 4242, 99), [], now + timedelta(seconds=10), now)
        end(demo, now + timedelta(seconds=11 if killed else 1), -9 if killed else 0, "user")
        stop.refresh_from_db()
        assert stop.status == ("killed" if killed else "stopped")
        event = Event.objects.get(kind="loop.stopped")
        assert (event.actor, event.payload.get("killed")) == ("user:anna", True if killed else None)

    def test_the_end_of_another_one_is_not_this_ones(self, demo, now):
        begin(demo, now, process=8)
        assert end(demo, now, 0).running
        with writing():
            lifecycle.note_loop_end("nobody", 7, exit_code=0, cause="", now=now)
        assert told() == [("loop.started", "user:anna", None)]

    def test_one_that_nobody_is_known_to_have_started(self, demo, now):
        begin(demo, now, by="")
        assert told() == [("loop.started", "andon", None)]


class TestConfigure:
    def test_it_is_told_once(self, demo, now):
        for _ in range(2):
            lifecycle.configure(demo, agent=" claude -p ", command="", by=ANNA, now=now)
        assert Project.objects.get().loop_agent == demo.loop_agent == "claude -p"
        assert Event.objects.get(kind="loop.configured").payload["what"] == "agent"

    @pytest.mark.parametrize(
        ("agent", "command"), [("a", "b"), ("x" * 2001, ""), ("a\nb", ""), ("", "a\x00b"), ("", 'open "quote')]
    )
    def test_what_will_not_do(self, demo, now, agent, command):
        with pytest.raises(Rejected, match="loop-command-invalid"):
            lifecycle.configure(demo, agent=agent, command=command, by=ANNA, now=now)
        assert not Event.objects.filter(kind="loop.configured").exists()


@pytest.mark.parametrize("cost", [None, Decimal("2.50")])
def test_a_budget_is_told(demo, now, cost):
    lifecycle.tell_budget(demo, 3, cost, by=ANNA, now=now)
    payload = Event.objects.get(kind="loop.budget_set").payload
    assert (payload["max_iterations"], payload.get("max_cost_usd")) == (3, None if cost is None else 2.5)
    assert not LoopStop.objects.exists()
