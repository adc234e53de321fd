"""Boards of Hermes, brought in: older and newer, live, hostile and broken, and again without duplicates."""

import io
import sqlite3
import subprocess
import sys
import time
from datetime import UTC, datetime

import pytest
from django.core.management import CommandError, call_command
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from kanban import dispatch, hermes, lifecycle, notices, queries, sweeps
from kanban.hermes import bringing, translating
from kanban.hermes.weaving import weave
from kanban.lifecycle import subscribing
from kanban.models import Board, Comment, Delivery, Link, Task
from kanban.states import BlockKind
from projects.events import SWEEP, By
from projects.models import Event
from tests.kanban.hermes import BESIDE, NEWER, OLD, T0, TODAY, Hermes

pytestmark = pytest.mark.django_db


@pytest.fixture
def board(tmp_path) -> Hermes:
    return Hermes(tmp_path / "kanban.db")


def bring(board: Hermes, *, apply: bool = True) -> hermes.Brought:
    with hermes.opened(board.path, board.path.parent) as found:
        return hermes.bring(found, apply=apply, by=SWEEP, now=timezone.now())


def at(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def everything() -> tuple[int, ...]:
    return tuple(model.objects.count() for model in (Task, Comment, Link, Event))


class TestBring:
    def test_tasks_come_with_all_that_fits(self, board):
        board.task(
            1,
            "done",
            body="do it",
            assignee="coder",
            priority=7,
            created_by="anna",
            started_at=T0 + 10,
            completed_at=T0 + 20,
            tenant="home",
            result="done it",
            idempotency_key="k1",
            spawn_failures=2,
            last_spawn_error="no such file",
        )
        assert bring(board).tasks == 1
        task = Task.objects.get(pk="t_00000001")
        assert (task.title, task.body, task.assignee, task.priority) == ("task 1", "do it", "coder", 7)
        assert (task.created_at, task.started_at, task.completed_at) == (at(T0 + 1), at(T0 + 10), at(T0 + 20))
        assert (task.status, task.tenant, task.result) == ("done", "home", "done it")
        assert (task.idempotency_key, task.failures, task.last_error) == ("k1", 2, "no such file")
        assert not task.comments.exists()

    def test_links_comments_and_events_come_with_their_times(self, board):
        parent, child = board.task(1), board.task(2, "todo")
        board.link(parent, child)
        board.comment(child, "ünïcode\x00")
        board.event(parent, "created", '{"assignee": "coder", "parents": []}', T0 + 1)
        board.event(child, "commented", '{"author": "anna", "len": 3, "kind": "x", "deep": {"a": [1]}}', T0 + 50)
        board.event(child, "heartbeat", None, T0 + 70)
        done = bring(board)
        assert (done.tasks, done.comments, done.links, done.events) == (2, 1, 1, 2)
        assert Link.objects.get().parent_id == parent
        said = Comment.objects.get()
        assert (said.author, said.body, said.created_at) == ("anna", "ünïcode", at(T0 + 50))
        events = list(Event.objects.filter(kind__startswith="task.").order_by("id"))
        assert [event.kind for event in events] == ["task.created"] * 2 + ["task.commented", "task.heartbeat"]
        assert [event.at for event in events] == [at(T0 + 1), at(T0 + 2), at(T0 + 50), at(T0 + 70)]
        assert events[0].payload == {
            "assignee": "coder", "status": "ready", "parents": [], "imported": True, "source": 1, "via": "sweep",
        }  # fmt: skip
        assert events[2].payload["kind_"] == "x"
        assert events[2].payload["deep"] == '{"a": [1]}'
        summary = Event.objects.get(kind="board.imported")
        assert summary.summary == "hermes was brought in: 2 tasks, 1 comments, 1 links, 2 events"

    def test_again_brings_nothing_twice_and_what_is_new(self, board):
        parent, child = board.task(1), board.task(2, "todo")
        board.link(parent, child)
        for _ in range(2):
            board.comment(child)
        board.event(parent, "created", None, T0 + 1)
        bring(board)
        Task.objects.filter(pk=parent).update(title="mine now")
        before = everything()
        assert not bring(board).is_new
        assert everything() == before
        board.comment(child)
        board.event(child, "edited")
        board.task(3)
        done = bring(board)
        assert (done.tasks, done.comments, done.links, done.events, done.known) == (1, 1, 0, 1, 2)
        assert Task.objects.get(pk=parent).title == "mine now"

    def test_a_dry_run_says_the_same_and_changes_nothing(self, board):
        parent, child = board.task(1), board.task(2, "todo")
        board.link(parent, child)
        board.comment(child)
        board.event(parent, "created")
        board.event(child, "edited")
        planned = bring(board, apply=False)
        assert everything() == (0, 0, 0, 0)
        assert not Board.objects.exists()
        assert planned == bring(board)

    def test_what_a_crash_leaves_is_brought_next_time(self, board, monkeypatch):
        for number in range(30):
            board.task(number)
            board.event(f"t_{number:08x}", "created", None, T0 + number)
            board.comment(f"t_{number:08x}")
        monkeypatch.setattr(bringing, "TASKS_AT_ONCE", 10)
        real, calls = bringing._check_keys, []

        def crash(*args):
            calls.append(1)
            if len(calls) == 3:
                raise KeyboardInterrupt
            real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(bringing, "_check_keys", crash)
            with pytest.raises(KeyboardInterrupt):
                bring(board)
        assert (Task.objects.count(), Comment.objects.count(), Event.objects.count()) == (20, 20, 20)
        assert bring(board).tasks == 10
        assert (Task.objects.count(), Comment.objects.count()) == (30, 30)
        assert Event.objects.filter(kind="task.created").count() == 30
        assert not bring(board).is_new

    def test_the_boards_cursor_goes_beyond_kinds_that_nobody_knows(self, board):
        name = board.task(1)
        board.event(name, "teleported")
        board.event(name, "edited")
        bring(board)
        newest = Event.objects.filter(kind__startswith="task.").latest("id")
        assert (newest.kind, newest.subject) == ("task.imported", f"task:{name}")
        assert queries.latest_event_id() == newest.pk
        assert not bring(board).is_new
        assert Event.objects.latest("id").kind == "board.imported"
        board.event(name, "edited")
        bring(board)
        assert Event.objects.filter(kind="task.imported").count() == 1

    def test_beside_a_live_worker_what_waits_is_not_started(self, board, monkeypatch):
        parent, child, free, late = board.task(1), board.task(2), board.task(3, "todo"), board.task(4, "todo")
        done, gone = board.task(5, "done"), board.task(6, "archived")
        for above, below in ((parent, child), (parent, late), (parent, gone), (done, free)):
            board.link(above, below)
        monkeypatch.setattr(bringing, "TASKS_AT_ONCE", 1)
        real, seen = bringing._bring_some, []

        def looked(*args):
            real(*args)
            sweeps.promote_ready(now=timezone.now())
            seen.extend(dispatch.ready("n1", timezone.now()).values_list("pk", flat=True))

        monkeypatch.setattr(bringing, "_bring_some", looked)
        bring(board)
        assert set(seen) == {parent}
        found = dict(Task.objects.values_list("pk", "status"))
        assert found == {parent: "ready", child: "todo", free: "ready", late: "todo", done: "done", gone: "archived"}
        assert not Task.objects.filter(held=True).exists()
        assert not Task.objects.exclude(not_before=None).exists()
        assert Event.objects.filter(kind="task.ready").count() == 1
        assert sweeps.promote_ready(now=timezone.now()) == 0

    @pytest.mark.parametrize("place", ["_bring_links", "let_go"])
    def test_after_a_crash_before_the_links_the_next_import_lets_go(self, board, monkeypatch, place):
        parent, child, own = board.task(1), board.task(2), board.task(3, "todo")
        board.link(parent, child)
        board.link(parent, own)

        def crash(*args, **about):
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(bringing, place, crash)
            with pytest.raises(KeyboardInterrupt):
                bring(board)
        # Also one that a person has sent on is nobody's to start yet.
        lifecycle.move_to(Task.objects.get(pk=own), "ready", by=SWEEP, now=timezone.now())
        sweeps.promote_ready(now=timezone.now())
        assert list(dispatch.ready("n1", timezone.now())) == [Task.objects.get(pk=parent)]
        bring(board)
        lifecycle.complete(Task.objects.get(pk=parent), by=SWEEP, now=timezone.now())
        assert set(dispatch.ready("n1", timezone.now()).values_list("pk", flat=True)) == {child, own}

    def test_what_a_person_holds_stays_held_by_an_import(self, board):
        name = board.task(2, "ready")
        board.link(board.task(1, "done"), name)
        bring(board)
        lifecycle.move_to(Task.objects.get(pk=name), "todo", by=SWEEP, now=timezone.now())
        bring(board)
        assert Task.objects.get(pk=name).held

    def test_a_running_task_comes_in_as_ready_with_a_note(self, board):
        board.task(1, "running", claim_lock="box:42", worker_pid=42, started_at=T0 + 5)
        done = bring(board)
        task = Task.objects.get()
        assert (task.status, task.lease_until, done.ready) == ("ready", None, 1)
        assert "claimed by box:42, process 42" in task.comments.get().body
        assert any("box:42" in line for line in done.lines)

    @pytest.mark.parametrize(("kind", "block"), [("blocked", "needs_input"), ("spawn_auto_blocked", "breaker")])
    def test_a_blocked_task_says_why(self, board, kind, block):
        name = board.task(1, "blocked")
        board.event(name, kind, '{"reason": "which colour?", "error": "which colour?"}', T0 + 30)
        bring(board)
        task = Task.objects.get()
        assert (task.block_kind, task.block_reason, task.since) == (BlockKind(block), "which colour?", at(T0 + 30))

    def test_every_status_comes_in(self, board):
        wanted = ["triage", "todo", "ready", "review", "blocked", "done", "archived", "scheduled", "", "READY "]
        for number, status in enumerate(wanted):
            board.task(number, status)
        done = bring(board)
        found = list(Task.objects.order_by("pk").values_list("status", flat=True))
        assert found == [*wanted[:7], "triage", "triage", "ready"]
        assert any("scheduled" in line for line in done.lines)
        assert "status was scheduled" in Comment.objects.get(task="t_00000007").body

    def test_a_taken_id_is_mapped_and_told_and_known_again(self, board, make_task):
        mine = make_task("mine")
        Task.objects.filter(pk=mine.pk).update(id="t_00000001")
        Task.objects.filter(pk=mine.pk).delete()
        board.task(1)
        board.task(2, "todo", id="HERMES-2")
        board.link("t_00000001", "HERMES-2")
        board.comment("HERMES-2")
        done = bring(board)
        assert done.mapped == 2
        link = Link.objects.get()
        assert link.parent_id not in {"t_00000001", "HERMES-2"}
        assert Comment.objects.get().task_id == link.child_id
        assert any(line.startswith("t_00000001:") and link.parent_id in line for line in done.lines)
        assert Task.objects.get(pk="t_00000001").title == "mine"
        assert not bring(board).is_new

    def test_an_idempotency_key_that_is_taken_is_kept_in_the_note(self, board):
        board.task(1, idempotency_key="k")
        board.task(2, idempotency_key="k")
        board.task(3, "archived", idempotency_key="k")
        bring(board)
        assert sorted(Task.objects.values_list("idempotency_key", flat=True)) == ["", "k", "k"]
        assert "key was k" in Comment.objects.get().body

    def test_circles_and_strangers_among_links_are_told(self, board):
        a, b, c = board.task(1), board.task(2), board.task(3)
        for parent, child in ((a, b), (b, c), (c, a), (a, a), (a, "t_ffffffff")):
            board.link(parent, child)
        done = bring(board)
        assert done.links == 2
        assert sum("leads back" in line for line in done.lines) == 2
        assert sum("not there" in line for line in done.lines) == 1

    def test_a_workspace_of_the_other_board_is_not_taken_over(self, board):
        board.task(1, workspace_kind="scratch", workspace_path="/home/x/.hermes/ws/1")
        board.task(2, workspace_kind="worktree", workspace_path="/src/w")
        board.task(3, workspace_kind="dir", workspace_path="/src/d")
        board.task(4, workspace_kind="dir", workspace_path="../../etc")
        bring(board)
        found = list(Task.objects.order_by("pk").values_list("workspace_kind", "workspace_path"))
        assert found == [("scratch", ""), ("scratch", ""), ("dir", "/src/d"), ("scratch", "")]
        assert Comment.objects.count() == 3

    def test_history_is_told_to_no_subscription(self, board, now):
        subscribing.subscribe("webhook", "https://example.org/", by=By("user:anna", "page"), now=now)
        board.event(board.task(1), "created")
        bring(board)
        notices.feed(now=now)
        assert [each.kind for each in Delivery.objects.all()] == ["board.imported"]

    def test_what_cannot_be_read_is_told(self, board):
        board.task(1)
        board.insert("tasks", id=None, title="x", status="ready", created_at=T0)
        board.comment("t_00000001", "   ")
        board.event("t_00000001", "no such kind!")
        board.event("t_99999999", "created")
        done = bring(board)
        said = "\n".join(done.lines)
        for part in (
            "without an id",
            "comment without text",
            "1 events whose id or kind",
            "1 events of tasks that are",
        ):
            assert part in said


class TestSchemas:
    def test_an_older_file(self, tmp_path):
        old = Hermes(tmp_path / "old.db", OLD, BESIDE.split("CREATE TABLE kanban")[0])
        old.task(1, "done")
        done = bring(old)
        assert (done.tasks, done.lines) == (1, [])

    def test_one_with_tasks_alone(self, tmp_path):
        bare = Hermes(tmp_path / "bare.db", "id TEXT, title TEXT, status TEXT", "")
        bare.insert("tasks", id="t_00000001", title="x", status="ready")
        assert bring(bare).tasks == 1
        assert not bring(bare).is_new

    def test_a_newer_file_keeps_what_is_unknown_in_notes_and_tells(self, tmp_path):
        newer = Hermes(
            tmp_path / "new.db",
            NEWER,
            f"{BESIDE} CREATE TABLE task_runs (id INTEGER PRIMARY KEY, task_id TEXT, outcome TEXT, blob BLOB);"
            'CREATE TABLE "odd ""name" (x); INSERT INTO "odd ""name" VALUES (1);',
        )
        name = newer.task(1, skills='["python"]', current_run_id=7)
        for number in range(25):
            newer.insert("task_runs", task_id=name, outcome=f"crashed {number}", blob=b"\xff")
        newer.insert("kanban_notify_subs", task_id=name, platform="telegram", chat_id="5", created_at=T0)
        done = bring(newer)
        note = Comment.objects.get()
        assert (note.author, note.created_at) == ("import", at(T0 + 1))
        for part in ('skills: ["python"]', "current_run_id: 7", "crashed 3", "5 more rows", "telegram"):
            assert part in note.body
        said = "\n".join(done.lines)
        for part in (
            "column tasks.skills",
            "table task_runs",
            "25 rows, kept",
            'table odd "name',
            "1 rows, not brought",
        ):
            assert part in said
        assert not bring(newer).is_new


class TestFiles:
    def test_what_is_no_board_is_refused(self, tmp_path):
        (tmp_path / "text.db").write_text("hello")
        (tmp_path / "empty.db").touch()
        other = sqlite3.connect(tmp_path / "other.db")
        other.execute("CREATE TABLE things (x)")
        other.execute("CREATE VIEW tasks AS SELECT x AS id, x AS title, x AS status FROM things")
        other.close()
        for name, reason in (
            ("none.db", "is not there"),
            ("text.db", "no SQLite database"),
            ("empty.db", "no SQLite database"),
            ("other.db", "lacks id, status, title"),
            (".", "is a directory"),
        ):
            with pytest.raises(hermes.Unreadable, match=reason), hermes.opened(tmp_path / name, tmp_path):
                pass

    def test_a_damaged_file_is_refused_whole(self, board):
        board.db.execute("BEGIN")
        for number in range(3000):
            board.task(number, body="x" * 300)
        board.db.execute("COMMIT")
        board.db.close()
        with board.path.open("r+b") as file:
            for page in range(20, 200, 7):
                file.seek(page * 4096)
                file.write(b"\xa5" * 4096)
        with pytest.raises(hermes.Unreadable, match=r"damaged|cannot be read"):
            bring(board)
        assert not Task.objects.exists()

    def test_a_locked_file_says_so(self, board, monkeypatch):
        monkeypatch.setattr("kanban.hermes.reading.WAIT_S", 0.2)
        board.task(1)
        board.db.execute("BEGIN EXCLUSIVE")
        with pytest.raises(hermes.Unreadable, match="locked by another program"):
            bring(board)
        board.db.execute("COMMIT")
        assert bring(board).tasks == 1

    def test_a_huge_value_is_an_error_not_an_outage(self, board, monkeypatch):
        monkeypatch.setattr("kanban.hermes.reading.MAX_VALUE", 10_000)
        board.task(1, body="x" * 20_000)
        with pytest.raises(hermes.Unreadable, match="too big"):
            bring(board)

    def test_the_file_is_not_changed_and_no_copy_stays(self, board):
        board.task(1)
        board.db.close()
        before = board.path.read_bytes()
        bring(board)
        assert board.path.read_bytes() == before
        assert [path.name for path in board.path.parent.iterdir()] == ["kanban.db"]

    def test_a_live_one_is_read_from_one_moment_while_another_process_writes(self, tmp_path):
        live = Hermes(tmp_path / "live.db", wal=True)
        live.task(0)
        script = (
            "import sqlite3, sys, time\n"
            "db = sqlite3.connect(sys.argv[1], timeout=20, isolation_level=None)\n"
            "n = 1\n"
            "while True:\n"
            "    db.execute('BEGIN IMMEDIATE')\n"
            "    db.execute('INSERT INTO tasks (id, title, status, created_at) VALUES (?, ?, ?, ?)',"
            f" (f't_{{n:08x}}', 'x', 'ready', {T0} + n))\n"
            "    db.execute('INSERT INTO task_events (task_id, kind, created_at) VALUES (?, ?, ?)',"
            f" (f't_{{n:08x}}', 'created', {T0} + n))\n"
            "    db.execute('COMMIT')\n"
            "    n += 1\n"
            "    time.sleep(0.004)\n"
        )
        writer = subprocess.Popen([sys.executable, "-c", script, str(live.path)], stderr=subprocess.PIPE)
        try:
            deadline = time.monotonic() + 20
            while live.db.execute("SELECT count(*) FROM tasks").fetchone()[0] < 50 and time.monotonic() < deadline:
                time.sleep(0.02)
            for _ in range(3):
                bring(live)
                assert Task.objects.count() == Event.objects.filter(kind="task.created").count()
                assert not Event.objects.filter(kind="task.created", payload__source=0).exclude(
                    subject="task:t_00000000"
                )
            assert writer.poll() is None
        finally:
            writer.kill()
            writer.communicate()
        assert Task.objects.count() > 50


class TestTranslating:
    @settings(max_examples=60, deadline=None)
    @given(st.one_of(st.none(), st.text(max_size=50), st.integers(), st.floats(), st.binary(max_size=20)))
    def test_any_value_becomes_something(self, value):
        assert "\x00" not in translating.text(value)
        assert 0 <= translating.number(value, 0, 10) <= 10
        translating.moment(value)
        document = translating.payload(value)
        assert not set(document) & translating.TAKEN

    @settings(max_examples=40, deadline=None)
    @given(
        st.dictionaries(
            st.text(max_size=20),
            st.recursive(st.none() | st.integers() | st.text(max_size=9), st.lists, max_leaves=4),
            max_size=8,
        )
    )
    def test_any_payload_is_flat(self, document):
        import json

        found = translating.payload(json.dumps(document))
        assert len(found) <= 30
        for key, value in found.items():
            assert translating.FIELD.fullmatch(key) or key.endswith("_")
            assert isinstance(value, str | int | float | list | bool | None)

    def test_deep_and_broken_payloads_are_kept_as_text(self):
        assert translating.payload("{oops") == {"text": "{oops"}
        assert translating.payload("[" * 100_000)["text"].startswith("[")
        assert translating.payload("[1, 2]") == {"value": [1, 2]}


def test_many_doubtful_links_are_refused_at_once(make_task, monkeypatch):
    monkeypatch.setattr("kanban.hermes.weaving.MOST_DOUBTFUL", 1)
    assert weave([("a", "b"), ("b", "a"), ("b", "c")], apply=False) == (1, [("a", "b"), ("b", "a")])


class TestCommand:
    def test_says_what_it_would_do_and_does_it(self, board, home):
        board.task(1)
        out = io.StringIO()
        call_command("import_hermes", str(board.path), stdout=out)
        assert "would bring in 1 tasks, 0 comments, 0 links and 0 events" in out.getvalue()
        assert "give --apply" in out.getvalue()
        assert "1 of them would be ready" in out.getvalue()
        assert not Task.objects.exists()
        out = io.StringIO()
        call_command("import_hermes", str(board.path), "--apply", stdout=out)
        assert "brought in 1 tasks" in out.getvalue()
        assert Task.objects.count() == 1
        out = io.StringIO()
        call_command("import_hermes", str(board.path), "--apply", stdout=out)
        assert "brought in 0 tasks" in out.getvalue()
        assert "1 tasks were here already" in out.getvalue()

    def test_refuses_with_a_sentence(self, tmp_path, home):
        with pytest.raises(CommandError, match="is not there"):
            call_command("import_hermes", str(tmp_path / "none.db"))

    def test_shows_a_bar_on_a_terminal(self, board, home, monkeypatch):
        board.task(1)
        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        err = io.StringIO()
        call_command("import_hermes", str(board.path), stderr=err, stdout=io.StringIO())
        assert "tasks    [##############################] 1/1" in err.getvalue()

    def test_lines_are_bounded(self, board, home, monkeypatch):
        monkeypatch.setattr(bringing, "MOST_LINES", 2)
        for number in range(5):
            board.task(number, "scheduled")
        out = io.StringIO()
        call_command("import_hermes", str(board.path), stdout=out)
        assert "note: and 3 more" in out.getvalue()


assert TODAY.startswith(OLD)
