"""Rollbacks carried out by the worker on real git: done, refused, undone, and gone on with after a crash anywhere."""

import json
import subprocess
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.utils import timezone

from projects import git, lifecycle, ralph, rollback, undoing
from projects.errors import Conflict, Rejected
from projects.events import By
from projects.models import Event, Project, Rollback
from projects.rollback import document
from projects.states import ROLLBACK_MOVES, ROLLBACK_OPEN, RollbackStatus
from tests.services.repository import commit, everything, flip
from tests.services.repository import git as ask

ANNA = By("user:anna", "page", "10.0.0.1")
pytestmark = pytest.mark.django_db


@pytest.fixture(autouse=True)
def submitted(home: Path, monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is saved of a rollback lies in a home of the test's own, and no thread imports into its transaction."""
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(undoing.jobs, "submit", lambda *words: calls.append(words))
    return calls


@pytest.fixture
def demo(imported) -> Project:
    return imported("demo")


@pytest.fixture
def root(demo: Project) -> Path:
    root = Path(demo.path)
    ask(root, "init", "-q", "-b", "main")
    commit(root, "A start", a__py="one = 1\n")
    commit(root, "feat: [US-002] Story 2", a__py="one = 1\ntwo = 2\n", b__py="b = 2\n")
    flip(root, "US-002")
    return root


def asked(project: Project, **wanted: Any) -> Rollback:
    return lifecycle.ask_rollback(project, wanted, by=ANNA, now=timezone.now())


def kinds() -> list[str]:
    return [
        kind.removeprefix("rollback.")
        for kind in Event.objects.filter(kind__startswith="rollback.").values_list("kind", flat=True)
    ]


def passes(root: Path, key: str) -> bool:
    stories = json.loads((root / "scripts/ralph/prd.json").read_text())["userStories"]
    return next(story["passes"] for story in stories if story["id"] == key)


def is_new(root: Path, row: Rollback) -> bool:
    head = ask(root, "rev-parse", "HEAD")
    dirt = ask(root, "status", "--porcelain", "--", ".", ":!scripts/ralph")
    assert dirt == ""
    assert head in {row.head, row.new}
    assert (root / "a.py").read_text() == ("one = 1\n" if head == row.new else "one = 1\ntwo = 2\n")
    assert (root / "b.py").exists() == (head == row.head)
    return head == row.new


class Killed(BaseException):
    """Stands for kill -9: nothing of ours runs after it."""


class TestVerbs:
    def test_every_move(self, demo):
        for verb, (sources, target) in ROLLBACK_MOVES.items():
            for status in RollbackStatus:
                Rollback.objects.all().delete()
                row = asked(demo)
                Rollback.objects.filter(pk=row.pk).update(
                    status=status, head="a" * 40, new="b" * 40, backup_ref="refs/andon/x"
                )
                row.refresh_from_db()
                act = {
                    "intend": lambda row=row: lifecycle.intend(
                        row, plan(), Path("/x"), pushed=False, files=1, now=timezone.now()
                    ),
                    "finish": lambda row=row: lifecycle.finish(row, now=timezone.now()),
                    "refuse": lambda row=row: lifecycle.refuse(row, "dirty-tree", "why", now=timezone.now()),
                    "force": lambda row=row: lifecycle.force(row, "stuck", by=ANNA, now=timezone.now()),
                    "undo": lambda row=row: lifecycle.undo(row, "git-failed", "why", now=timezone.now()),
                }[verb]
                if status in sources:
                    act()
                    assert Rollback.objects.get().status == row.status == target
                else:
                    with pytest.raises(Conflict, match="illegal-transition"):
                        act()
                    assert Rollback.objects.get().status == status

    def test_one_at_a_time(self, demo):
        row = asked(demo)
        with pytest.raises(Conflict, match="rollback-in-progress"):
            asked(demo)
        lifecycle.refuse(row, "dirty-tree", "why", now=timezone.now())
        assert asked(demo).pk != row.pk

    def test_a_key_is_answered_with_what_it_gave_first(self, demo):
        first = lifecycle.ask_rollback(demo, {"story": "x"}, key="k", by=ANNA, now=timezone.now())
        again = lifecycle.ask_rollback(demo, {"story": "y"}, key="k", by=ANNA, now=timezone.now())
        assert (again.pk, again.wanted) == (first.pk, {"story": "x"})
        assert kinds() == ["asked"]

    def test_one_that_another_process_opened_between_two_looks(self, demo, monkeypatch):
        from projects.lifecycle import rollbacks

        first = lifecycle.ask_rollback(demo, {}, key="k", by=ANNA, now=timezone.now())
        monkeypatch.setattr(rollbacks, "of_key", lambda project, key: None)
        assert lifecycle.ask_rollback(demo, {}, key="k", by=ANNA, now=timezone.now()).pk == first.pk

    @pytest.mark.parametrize("text", ["a\x00b", "\ud800"])
    def test_what_no_database_holds(self, demo, text):
        with pytest.raises(Rejected, match="rollback-invalid"):
            asked(demo, story=text)
        assert not Rollback.objects.exists()

    @pytest.mark.parametrize("key", ["k" * 201, "a\x00b"])
    def test_a_key_that_is_none(self, demo, key):
        with pytest.raises(Rejected, match="idempotency-key-invalid"):
            lifecycle.ask_rollback(demo, {}, key=key, by=ANNA, now=timezone.now())

    @pytest.mark.parametrize("key", ["", "k"])
    def test_what_another_process_asked_for_in_between(self, demo, monkeypatch, key):
        """Only the constraints stand between two processes that both saw nothing."""
        from projects.lifecycle import rollbacks

        first = lifecycle.ask_rollback(demo, {}, key=key, by=ANNA, now=timezone.now())
        looks = iter([None, first])
        monkeypatch.setattr(rollbacks.queries, "open_rollback", lambda project: None)
        monkeypatch.setattr(rollbacks, "of_key", lambda project, key: next(looks))
        if key:
            assert lifecycle.ask_rollback(demo, {}, key=key, by=ANNA, now=timezone.now()).pk == first.pk
        else:
            with pytest.raises(Conflict, match="rollback-in-progress"):
                lifecycle.ask_rollback(demo, {}, by=ANNA, now=timezone.now())
        assert Rollback.objects.count() == 1

    def test_a_start_waits_until_it_is_over(self, demo):
        row = asked(demo)
        with pytest.raises(Conflict, match="rollback-in-progress"):
            lifecycle.refuse_while_open(demo)
        lifecycle.refuse(row, "dirty-tree", "why", now=timezone.now())
        lifecycle.refuse_while_open(demo)

    def test_a_key_is_free_again_once_its_answer_is_nobodys(self, demo):
        row = lifecycle.ask_rollback(demo, {}, key="k", by=ANNA, now=timezone.now())
        lifecycle.release_key(row)
        assert lifecycle.of_key(demo, "k") is not None
        lifecycle.refuse(row, "loop-running", "why", now=timezone.now())
        lifecycle.release_key(row)
        assert lifecycle.of_key(demo, "k") is None

    def test_it_is_written_off_with_a_reason_only(self, demo):
        row = asked(demo)
        with pytest.raises(Rejected, match="reason-missing"):
            lifecycle.force(row, "  ", by=ANNA, now=timezone.now())
        lifecycle.force(row, "the disk is gone", by=ANNA, now=timezone.now())
        assert Event.objects.get(kind="rollback.forced").payload["reason"] == "the disk is gone"

    def test_it_waits_longer_each_time_and_not_once_it_is_over(self, demo, now):
        row = asked(demo)
        waits = []
        for _ in range(9):
            lifecycle.note_wait(row, "the directory is away", now=now)
            waits.append((datetime.fromisoformat(row.extra["again_at"]) - now).total_seconds())
        assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]
        assert (row.is_due(now), row.is_due(now + timedelta(minutes=5))) == (False, True)
        lifecycle.refuse(row, "dirty-tree", "why", now=now)
        with pytest.raises(Conflict, match="illegal-transition"):
            lifecycle.note_wait(row, "again", now=now)

    def test_texts_of_others_are_cut_and_can_be_stored(self, demo):
        row = asked(demo)
        lifecycle.refuse(row, "dirty-tree", "a\x00\udcff" + "x" * 3000, now=timezone.now())
        row.refresh_from_db()
        assert row.detail == "a?" + "x" * 1998

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize("key", ["", "k"])
    def test_of_many_at_once_one_is_asked(self, demo, key):
        seen: list[Any] = []
        gate = threading.Barrier(6)

        def ask_once() -> None:
            gate.wait()
            try:
                seen.append(lifecycle.ask_rollback(demo, {}, key=key, by=ANNA, now=timezone.now()).pk)
            except Conflict as refusal:
                seen.append(refusal.code)
            finally:
                connection.close()

        threads = [threading.Thread(target=ask_once) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        row = Rollback.objects.get()
        assert seen.count(row.pk) == (6 if key else 1)
        assert seen.count("rollback-in-progress") == (0 if key else 5)


def plan() -> rollback.Plan:
    made = rollback.Plan.__new__(rollback.Plan)
    for name in rollback.Plan.__dataclass_fields__:
        object.__setattr__(made, name, () if name == "paths" else "x")
    object.__setattr__(made, "to_json", dict)
    return made


class TestAct:
    def test_it_is_done(self, demo, root):
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.story_key, row.code) == ("done", "US-002", "")
        assert is_new(root, row)
        assert not passes(root, "US-002")
        assert kinds() == ["asked", "started", "completed"]
        assert ask(root, "rev-parse", row.backup_ref) == row.head
        assert Path(row.intent["saved"]).is_dir()
        told = Event.objects.get(kind="rollback.completed")
        assert (told.actor, told.payload["via"], told.payload["address"]) == ("user:anna", "page", "10.0.0.1")

    def test_once(self, demo, root):
        row = asked(demo)
        undoing.act(row.pk)
        undoing.act(row.pk)
        assert kinds() == ["asked", "started", "completed"]
        assert ask(root, "rev-list", "--count", "HEAD") == "3"

    def test_of_another_node_is_left(self, demo, root):
        row = asked(demo)
        Rollback.objects.update(node="elsewhere")
        undoing.act(row.pk)
        assert Rollback.objects.get().status == "asked"
        assert undoing.sweep() == 0

    def test_refused(self, demo, root):
        (root / "a.py").write_text("mine\n")
        before = everything(root)
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.code, row.extra["paths"], row.extra["status"]) == (
            "refused",
            "dirty-tree",
            ["a.py"],
            409,
        )
        assert everything(root) == before

    def test_where_nothing_is(self, demo):
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.code, row.extra["status"]) == ("not-a-git-repository", 400)

    def test_a_directory_that_is_gone(self, demo, root):
        row = asked(demo)
        root.rename(root.with_name("elsewhere"))
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.code) == ("refused", "project-missing")

    def test_a_loop_that_runs_is_seen_at_its_lock(self, demo, root):
        row = asked(demo)
        before = everything(root)
        with ralph.project_lock(root):
            undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.code) == ("refused", "loop-running")
        assert everything(root) == before

    def test_a_loop_that_runs_is_seen_at_its_pid(self, demo, root):
        with subprocess.Popen(["sleep", "60"], cwd=root) as loop:
            (root / "scripts/ralph/.ralph.pid").write_text(f"{loop.pid}\n")
            row = asked(demo)
            undoing.act(row.pk)
            loop.kill()
        row.refresh_from_db()
        assert (row.status, row.code) == ("refused", "loop-running")

    def test_a_pid_that_cannot_be_looked_at_counts_as_running(self, demo, root, monkeypatch):
        from projects import pidfile

        monkeypatch.setattr(pidfile, "look", lambda *_: pidfile.Found(pidfile.State.UNKNOWN))
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert row.code == "loop-running"

    def test_git_that_cannot_tell(self, demo, root, monkeypatch):
        def broken(*words: Any, **options: Any) -> None:
            raise git.GitError(["write-tree"], 128, "no space left")

        monkeypatch.setattr(rollback, "build", broken)
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.code) == ("refused", "git-failed")
        assert "no space left" in row.detail

    @pytest.mark.parametrize("step", ["save", "carry_out"])
    def test_what_fails_under_way_is_undone(self, demo, root, monkeypatch, step):
        before = everything(root)

        def broken(*words: Any, **options: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(rollback, step, broken)
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.code) == ("undone", "git-failed")
        assert "No space left" in row.detail
        assert not is_new(root, row)
        assert passes(root, "US-002")
        if step == "save":
            assert everything(root) == before
        assert kinds() == ["asked", "started", "undone"]

    def test_what_was_done_all_the_same_is_done(self, demo, root, monkeypatch):
        real = rollback.carry_out

        def late(*words: Any, **options: Any) -> None:
            real(*words, **options)
            raise git.GitError(["update-ref"], None, "timed out after 30 s")

        monkeypatch.setattr(rollback, "carry_out", late)
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert row.status == "done"
        assert is_new(root, row)
        assert not passes(root, "US-002")

    def test_a_story_that_cannot_be_reopened_is_told(self, demo, root, monkeypatch):
        def busy(*words: Any, **options: Any) -> None:
            raise document.Changed("prd.json was written by somebody else")

        monkeypatch.setattr(document, "reopen_on_disk", busy)
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert row.status == "done"
        assert "US-002 was not opened again" in row.detail
        assert row.story_reverted is None
        assert "not opened again" in Event.objects.get(kind="rollback.completed").payload["reason"]

    def test_an_agent_that_writes_at_the_same_moment_is_read_again(self, demo, root, monkeypatch):
        real, tries = document.reopen_on_disk, []

        def contended(*words: Any, **options: Any) -> str:
            tries.append(1)
            if len(tries) < 3:
                raise document.Changed("prd.json was written by somebody else")
            return real(*words, **options)

        monkeypatch.setattr(document, "reopen_on_disk", contended)
        row = asked(demo)
        undoing.act(row.pk)
        assert not passes(root, "US-002")
        assert Rollback.objects.get().detail == ""

    def test_the_story_that_our_runner_recorded(self, demo, root):
        head = commit(root, "tidy up", c__py="c\n")
        (root / ".ralph").mkdir()
        record = {
            "ts": "2026-11-20T12:00:00Z",
            "type": {"kind": "iteration_completed", "iteration": 1, "success": True},
            "data": {"run": "r", "story": "US-001", "commits": [head]},
        }
        (root / ".ralph/history.jsonl").write_text(json.dumps(record) + "\n")
        row = asked(demo)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.story_key) == ("done", "US-001")


class TestCrash:
    """The worker dies somewhere; what the next one finds is the row and the repository."""

    def crash(self, monkeypatch, where: Any, name: str, *, after: bool = False) -> None:
        real = getattr(where, name)

        def dies(*words: Any, **options: Any) -> Any:
            if after:
                real(*words, **options)
            raise Killed

        monkeypatch.setattr(where, name, dies)

    @pytest.mark.parametrize(
        ("where", "name", "after", "ends"),
        [
            (rollback, "build", False, "done"),
            (rollback, "build", True, "done"),
            (lifecycle, "intend", False, "done"),
            (lifecycle, "intend", True, "undone"),
            (rollback, "save", True, "undone"),
            (rollback, "carry_out", False, "undone"),
            (rollback, "carry_out", True, "done"),
            (document, "reopen_on_disk", False, "done"),
            (document, "reopen_on_disk", True, "done"),
            (lifecycle, "finish", False, "done"),
        ],
    )
    def test_at_every_step(self, demo, root, monkeypatch, where, name, after, ends):
        row = asked(demo)
        with monkeypatch.context() as patch:
            self.crash(patch, where, name, after=after)
            with pytest.raises(Killed):
                undoing.act(row.pk)
        assert Rollback.objects.get().status in ROLLBACK_OPEN
        undoing.act(row.pk)
        row.refresh_from_db()
        assert row.status == ends
        assert is_new(root, row) == (ends == "done")
        assert passes(root, "US-002") == (ends == "undone")
        assert kinds()[-1] == ("completed" if ends == "done" else "undone")
        if ends == "undone":
            # Nothing stands in the way of another one.
            again = asked(demo)
            undoing.act(again.pk)
            assert Rollback.objects.get(pk=again.pk).status == "done"

    def test_somebody_worked_on_meanwhile(self, demo, root, monkeypatch):
        row = asked(demo)
        with monkeypatch.context() as patch:
            self.crash(patch, rollback, "carry_out")
            with pytest.raises(Killed):
                undoing.act(row.pk)
        commit(root, "somebody else", z__py="z\n")
        before = everything(root)
        undoing.act(row.pk)
        row.refresh_from_db()
        assert (row.status, row.code) == ("undone", "head-moved")
        assert row.intent["saved"] in row.detail
        assert everything(root) == before

    def test_a_loop_that_took_the_lock_meanwhile_is_waited_for(self, demo, root, monkeypatch):
        row = asked(demo)
        with monkeypatch.context() as patch:
            self.crash(patch, rollback, "carry_out")
            with pytest.raises(Killed):
                undoing.act(row.pk)
        with ralph.project_lock(root):
            undoing.act(row.pk)
            assert Rollback.objects.get().status == "applying"
        undoing.act(row.pk)
        assert Rollback.objects.get().status == "undone"

    @pytest.mark.parametrize("error", [OSError(5, "I/O error"), git.GitError(["read-tree"], 1, "locked")])
    def test_what_cannot_be_undone_yet_is_tried_again(self, demo, root, monkeypatch, error):
        def broken(*words: Any, **options: Any) -> None:
            raise error

        row = asked(demo)
        with monkeypatch.context() as patch:
            patch.setattr(rollback, "carry_out", broken)
            patch.setattr(rollback, "resume", broken)
            undoing.act(row.pk)
            assert Rollback.objects.get().status == "applying"
            undoing.act(row.pk)
            assert Rollback.objects.get().status == "applying"
        undoing.act(row.pk)
        assert Rollback.objects.get().status == "undone"

    def test_a_directory_that_is_away_is_waited_for(self, demo, root, monkeypatch):
        row = asked(demo)
        with monkeypatch.context() as patch:
            self.crash(patch, rollback, "carry_out")
            with pytest.raises(Killed):
                undoing.act(row.pk)
        away = root.with_name("elsewhere")
        root.rename(away)
        undoing.act(row.pk)
        assert Rollback.objects.get().status == "applying"
        away.rename(root)
        undoing.act(row.pk)
        assert Rollback.objects.get().status == "undone"

    def test_the_sweep_goes_on_with_all(self, demo, root, submitted):
        row = asked(demo)
        assert undoing.sweep() == 1
        assert submitted == [("rollback:demo", undoing.act, row.pk)]
        lifecycle.refuse(row, "dirty-tree", "why", now=row.asked_at + timedelta(seconds=2))
        assert undoing.sweep() == 0
