"""Pages of the journals: everything hostile is inert, everything is bounded, and what is empty says what to do."""

import json
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.conf import settings
from django.utils import timezone

from projects import auditing, history, intake, journal, keeping, ralph, registries, sessions, timelines
from projects.history import Outcome, Run
from projects.models import Event, JournalFile, LoopRegistry, LoopRun, Project, Turn
from projects.views import journals
from services import processes

pytestmark = pytest.mark.django_db
FRAME = 6
SID = "s-1"
HOSTILE = "<script>alert(1)</script>\u202e"


@pytest.fixture(autouse=True)
def root(tmp_path, settings, workspace) -> Path:
    folder = tmp_path / "journals"
    settings.ANDON_JOURNAL_ROOTS = [folder]
    auditing._audited.clear()
    return folder


@pytest.fixture
def append(root):
    def make(name="submitted", turn="t1", *, session=SID, **fields):
        return journal.append_event(root, session, {"event": name, "turn_id": turn, **fields})

    return make


def read():
    intake.rescan(now=timezone.now())


def age(root: Path, session=SID) -> None:
    os.utime(journal.path_of(root, session), (1e9, 1e9))


def write(project, kind, number=0, data=None, **fields):
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=number)
    history.append(Path(project.path) / history.HISTORY, kind, fields, data=data, at=at)


class TestSessions:
    def test_says_how_to_begin_when_there_is_none(self, sign_in, root):
        text = sign_in().get("/sessions/").content.decode()
        assert "No session yet" in text
        assert str(root) in text
        assert "/api/journal/sessions/my-session/events" in text
        assert "No session matches" in sign_in().get("/sessions/?q=x").content.decode()

    def test_shows_counts_and_filters(self, sign_in, append, root):
        append(session="alpha")
        append("completed", session="beta")
        append("interrupted", session="beta")
        with journal.path_of(root, "beta").open("ab") as stream:
            stream.write(b"{\n")
        read()
        text = sign_in().get("/sessions/").content.decode()
        for part in ("1 without an end", "1 collision", "1 malformed line", "/sessions/alpha/"):
            assert part in text, part
        assert "alpha" not in sign_in().get("/sessions/?q=BET").content.decode()

    def test_says_when_a_file_is_gone_or_unreadable(self, sign_in, append, root):
        append(session="a")
        append(session="b")
        read()
        journal.path_of(root, "a").unlink()
        journal.path_of(root, "b").unlink()
        journal.path_of(root, "b").mkdir()
        read()
        text = sign_in().get("/sessions/").content.decode()
        assert "its file is gone" in text
        assert "not a regular file" in text
        assert "What is shown was read before" in sign_in().get("/sessions/a/").content.decode()

    @pytest.fixture
    def several(self, append, root):
        append("completed", session="a")
        append(session="b")
        append("completed", session="c")
        append("interrupted", session="c")
        append("completed", turn="t2", session="c")
        with journal.path_of(root, "c").open("ab") as stream:
            stream.write(b"{\n")
        for place, name in enumerate("bca"):
            os.utime(journal.path_of(root, name), (1e9 + place, 1e9 + place))
        read()

    @pytest.mark.parametrize(
        ("sort", "names"),
        [
            ("name", "abc"),
            ("-name", "cba"),
            ("-turns", "cab"),
            ("turns", "abc"),
            ("-findings", "cba"),
            ("written", "bca"),
            *((sort, "acb") for sort in ("", "-", "--name", "nonsense", "root", "-turns__folded", "%27")),
        ],
    )
    def test_has_the_order_that_is_asked_for(self, sign_in, several, sort, names):
        shown = sign_in().get(f"/sessions/?sort={sort}").context["sessions"]
        assert "".join(row.name for row in shown) == names

    def test_filter_order_and_page_keep_each_other(self, sign_in, append, monkeypatch):
        for number in range(5):
            append(session=f"s-{number}")
        append(session="other")
        read()
        monkeypatch.setattr(journals, "SESSIONS_PAGE", 2)
        client = sign_in()
        pages = [client.get(f"/sessions/?q=s-&sort=-turns&page={number}") for number in (1, 2, 3)]
        assert sorted(row.name for each in pages for row in each.context["sessions"]) == [f"s-{at}" for at in range(5)]
        text = pages[1].content.decode()
        for part in (
            'data-live-url="/sessions/?q=s-&amp;sort=-turns&amp;page=2"',
            'href="?q=s-&amp;sort=-turns&amp;page=3"',
            'aria-sort="descending"><a class="sort" href="?q=s-&amp;sort=turns">',
            'href="?q=s-&amp;sort=name">',
            '<option value="-turns" selected>',
            'href="/sessions/?sort=-turns">Clear',
        ):
            assert part in text, part

    @pytest.mark.parametrize(
        "path", ["/sessions/", "/sessions/?sort=-findings", "/sessions/s-1/", "/audit/", "/audit/?sort=session"]
    )
    def test_costs_the_same_however_much_there_is(self, sign_in, append, path, django_assert_max_num_queries):
        for number in range(30):
            append(session=f"s-{number}")
            append(turn=f"t-{number}")
        read()
        client = sign_in()
        with django_assert_max_num_queries(FRAME + 4):
            assert client.get(path).status_code == 200


class TestSession:
    def test_turns_findings_and_malformed_lines(self, sign_in, append, root):
        append(role="user", content="Mend the gate", model="m-1", created_at=1e9)
        append("completed", created_at=1e9 + 90)
        append("interrupted", reason="too late", created_at=1e9 + 99)
        append(turn="t2")
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(b"\xff\n")
        read()
        text = sign_in().get(f"/sessions/{SID}/").content.decode()
        for part in (
            "Mend the gate",
            "m-1",
            "1 min 30 s",
            "Completed",
            "Ended more than once",
            "\\xff",
            "Without an end",
        ):
            assert part in text, part
        assert text.index("t2") < text.index("Mend the gate")

    def test_what_was_written_is_inert(self, sign_in, append, root):
        append(HOSTILE, turn=HOSTILE, content=HOSTILE)
        append("submitted", turn=HOSTILE, content=HOSTILE, model=HOSTILE, role={"a": HOSTILE}, attachments=[HOSTILE])
        append("interrupted", turn=HOSTILE, reason=HOSTILE)
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(f"{HOSTILE}\n".encode())
        read()
        client = sign_in()
        for path in (f"/sessions/{SID}/", "/audit/", "/sessions/", "/events/", "/"):
            answer = client.get(path)
            assert answer.status_code == 200, path
            assert "<script>alert(1)" not in answer.content.decode(), path
            assert "\u202e" not in answer.content.decode() or path in {"/events/", "/"}, path

    def test_odd_values_have_a_page(self, sign_in, append, root):
        append(content=["a", {"b": 1}], created_at=1e300)
        append("tool_called", turn="t2", content="x" * 9000)
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(b'{"event":"completed","turn_id":7,"created_at":NaN,"reason":5}\n{"event":"x"}\n')
        read()
        text = sign_in().get(f"/sessions/{SID}/").content.decode()
        assert "no time" in text
        assert "Unknown" in text

    def test_the_end_of_the_calendar_is_no_time(self, sign_in, append, root):
        append(created_at=253402300799)
        append("completed", created_at=253402300799.0)
        read()
        text = sign_in().get(f"/sessions/{SID}/").content.decode()
        assert text.count(">no time<") == 2
        assert "No time" in text

    @pytest.mark.parametrize(
        "path", ["/sessions/none/", "/sessions/.hidden/", "/sessions/a%20b/", "/sessions/a%20b/delete/"]
    )
    def test_what_is_not_there(self, sign_in, path):
        assert sign_in().get(path).status_code == 404

    def test_one_that_cannot_be_read_shows_what_was_read(self, sign_in, append, root):
        append(content="kept")
        read()
        journal.path_of(root, SID).unlink()
        journal.path_of(root, SID).mkdir()
        text = sign_in().get(f"/sessions/{SID}/").content.decode()
        assert "kept" in text
        assert "Unreadable file" in text

    def test_one_that_was_rewritten_says_so(self, sign_in, append, root):
        append()
        read()
        journal.path_of(root, SID).write_bytes(b"")
        read()
        assert "Journal rewritten" in sign_in().get(f"/sessions/{SID}/").content.decode()

    def test_one_that_was_not_read_yet_says_so(self, sign_in, append):
        append()
        assert "It has not been read yet" in sign_in().get(f"/sessions/{SID}/").content.decode()

    def test_one_of_this_host_goes_before_one_of_another(self, sign_in, append):
        append(content="ours")
        read()
        JournalFile.objects.create(
            node="elsewhere", family="turns", root="/r", relpath="s", name=SID, found_at=timezone.now()
        )
        assert "ours" in sign_in().get(f"/sessions/{SID}/").content.decode()

    def test_the_newest_turns_have_their_events_however_many_there_are(self, sign_in, root, monkeypatch):
        path = journal.path_of(root, SID)
        path.parent.mkdir(parents=True)
        names = ["submitted", *["tool_called"] * 40, "completed"]
        lines = [{"event": name, "turn_id": f"t{n}", "created_at": 1e9} for n in range(260) for name in names]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "{\n")
        read()
        # Of a long file the page reads nothing.
        monkeypatch.setattr(auditing, "READ_BYTES", 1000)
        monkeypatch.setattr(auditing, "audit_counted", pytest.fail)
        text = sign_in().get(f"/sessions/{SID}/").content.decode()
        assert "10921 lines" in text
        assert ">t259<" in text
        assert ">t234<" not in text
        assert text.count(">tool_called<") == 25 * 29
        assert "1 lines" in text
        assert ">t0<" in sign_in().get(f"/sessions/{SID}/?page=11").content.decode()

    def test_a_long_file_tells_of_turns_what_was_read_of_them(self, sign_in, append, monkeypatch):
        append()
        append("completed", turn="t2")
        append("interrupted", turn="t2")
        append("completed", turn="t3")
        read()
        monkeypatch.setattr(auditing, "READ_BYTES", 10)
        monkeypatch.setattr(auditing, "audit_counted", pytest.fail)
        text = sign_in().get(f"/sessions/{SID}/").content.decode()
        assert "Without an end" in text
        assert "Ended more than once" in text
        assert "Malformed line" not in text

    def test_a_long_file_that_was_not_read_yet_is_not_read_for_its_page(self, sign_in, append, monkeypatch):
        append()
        monkeypatch.setattr(auditing, "READ_BYTES", 10)
        monkeypatch.setattr(auditing, "audit_counted", pytest.fail)
        assert "It has not been read yet" in sign_in().get(f"/sessions/{SID}/").content.decode()

    def test_is_deleted_after_a_question(self, sign_in, append, root):
        append()
        read()
        client = sign_in()
        assert "for good" in client.get(f"/sessions/{SID}/delete/").content.decode()
        answer = client.post(f"/sessions/{SID}/delete/", follow=True)
        assert answer.redirect_chain == [("/sessions/", 302)]
        assert "is deleted" in answer.content.decode()
        assert not JournalFile.objects.exists()
        assert client.post("/sessions/none/delete/").headers["Location"] == "/sessions/none/"


class TestAudit:
    def test_is_quiet_when_nothing_is_odd(self, sign_in):
        text = sign_in().get("/audit/").content.decode()
        assert "Nothing is odd" in text
        assert "Nothing: every turn has an end" in text
        assert "No finding of this kind" in sign_in().get("/audit/?kind=torn_tail").content.decode()

    def test_says_when_not_all_is_listed(self, sign_in, append, monkeypatch):
        for number in range(6):
            append(turn=f"t{number}")
        append("completed", turn="orphan")
        assert "are listed" not in sign_in().get("/audit/").content.decode()
        monkeypatch.setattr(auditing, "MOST_FINDINGS", 4)
        text = sign_in().get("/audit/").content.decode()
        assert "The worst 4 are listed" in text
        assert "Without an end (6)" in text
        text = sign_in().get("/audit/?kind=orphan_turn").content.decode()
        assert "are listed" not in text
        assert text.count("data-row") == 1

    @pytest.mark.parametrize(
        ("sort", "found"),
        [
            ("finding", "b:malformed_event a:pending_turn c:pending_turn c:interrupted_turn"),
            ("-finding", "c:interrupted_turn a:pending_turn c:pending_turn b:malformed_event"),
            ("session", "a:pending_turn b:malformed_event c:pending_turn c:interrupted_turn"),
            ("-session", "c:pending_turn c:interrupted_turn b:malformed_event a:pending_turn"),
            *(
                (sort, "b:malformed_event a:pending_turn c:pending_turn c:interrupted_turn")
                for sort in ("", "-", "--session", "detail", "%3Cscript%3E")
            ),
        ],
    )
    def test_has_the_order_that_is_asked_for(self, sign_in, append, root, sort, found):
        append(session="a")
        append(session="c")
        append(turn="t2", session="c")
        append("interrupted", turn="t2", session="c")
        append(session="b")
        append("completed", session="b")
        with journal.path_of(root, "b").open("ab") as stream:
            stream.write(b"{\n")
        shown = sign_in().get(f"/audit/?sort={sort}").context["findings"]
        assert " ".join(f"{row['session_id']}:{row['kind']}" for row in shown) == found

    def test_filter_order_and_page_keep_each_other(self, sign_in, append, monkeypatch):
        for number in range(5):
            append(session=f"s-{number}")
        monkeypatch.setattr(journals, "FINDINGS_PAGE", 2)
        client = sign_in()
        pages = [client.get(f"/audit/?kind=pending_turn&sort=-session&page={number}") for number in (1, 2, 3)]
        shown = [row["session_id"] for each in pages for row in each.context["findings"]]
        assert shown == [f"s-{number}" for number in (4, 3, 2, 1, 0)]
        text = pages[1].content.decode()
        for part in (
            'data-live-url="/audit/?kind=pending_turn&amp;sort=-session&amp;page=2"',
            'href="?kind=pending_turn&amp;sort=-session&amp;page=3"',
            'aria-sort="descending"><a class="sort" href="?kind=pending_turn&amp;sort=session">',
            '<option value="-session" selected>',
            'href="/audit/?sort=-session">Clear',
        ):
            assert part in text, part

    def test_with_nothing_to_recover_nothing_is_offered(self, sign_in, append, root):
        append()
        append("completed")
        age(root)
        read()
        client = sign_in()
        assert "/audit/recover/" not in client.get("/audit/").content.decode()
        text = client.get("/audit/recover/").content.decode()
        assert "There is nothing to recover" in text
        sheet = text[text.index('id="confirm"') :].partition("</section>")[0]
        assert "<button" not in sheet
        assert ">Back</a>" in sheet
        before = Event.objects.count()
        answer = client.post("/audit/recover/", follow=True)
        assert answer.redirect_chain == [("/audit/", 302)]
        assert "Nothing was to be recovered." in answer.content.decode()
        assert Event.objects.count() == before

    def test_previews_and_recovers(self, sign_in, append, root):
        append(created_at=1e9)
        age(root)
        read()
        client = sign_in()
        text = client.get("/audit/").content.decode()
        assert "1 turn has no end" in text
        assert journal.ADVICE["pending_turn"] in text.replace("&#x27;", "'")
        assert Turn.objects.get().pending
        assert "Recover 1 turn?" in client.get("/audit/recover/").content.decode()
        text = client.post("/audit/recover/", follow=True).content.decode()
        assert "1 turn is called interrupted" in text
        assert not Turn.objects.get().pending
        event = Event.objects.get(kind="journal.recovered")
        assert event.payload["via"] == "page"
        assert event.summary == "1 turn without an end was called interrupted"

    def test_says_where_it_failed(self, sign_in, append, root):
        append(created_at=1e9)
        age(root)
        read()
        journal.path_of(root, SID).chmod(0o400)
        assert f"{SID}: read-only" in sign_in().post("/audit/recover/", follow=True).content.decode()
        (root / "_turn_journal" / ".recovery.lock").unlink()
        (root / "_turn_journal" / ".recovery.lock").mkdir()
        assert "cannot be written" in sign_in().post("/audit/recover/", follow=True).content.decode()

    def test_viewers_look_and_do_not_touch(self, sign_in, append, root):
        append(created_at=1e9)
        age(root)
        read()
        client = sign_in("viewer")
        assert "/audit/recover/" not in client.get("/audit/").content.decode()
        for path in ("/audit/recover/", f"/sessions/{SID}/delete/"):
            assert client.get(path).status_code == client.post(path).status_code == 403
        assert "/delete/" not in client.get(f"/sessions/{SID}/").content.decode()

    def test_what_cannot_be_told_is_told(self, sign_in, monkeypatch):
        def fail(*_, **__):
            raise keeping.unavailable(OSError(5, "Input/output error"))

        monkeypatch.setattr(keeping, "recover", fail)
        for path in ("/audit/", "/audit/recover/"):
            text = sign_in().get(path).content.decode()
            assert "input/output error" in text
            assert "There is nothing to recover" not in text


class TestHome:
    def test_findings_need_somebody(self, sign_in, append, root):
        assert "Nothing needs you" in sign_in().get("/").content.decode()
        append(created_at=timezone.now().timestamp() - 3600)
        append("completed", turn="t2")
        append("interrupted", turn="t2")
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(b"{\n")
        append(session="gone")
        read()
        journal.path_of(root, "gone").write_bytes(b"")
        append(session="bad")
        read()
        journal.path_of(root, "bad").unlink()
        journal.path_of(root, "bad").mkdir()
        read()
        text = sign_in().get("/").content.decode()
        for part in (
            "1 turn has no end",
            "1 turn ended more than once",
            "1 journal holds lines that are none",
            "1 journal was rewritten",
            "1 journal cannot be read",
            "/audit/",
        ):
            assert part in text, part

    def test_a_quiet_journal_that_was_rewritten(self, sign_in, append, root):
        append("completed")
        age(root)
        read()
        journal.path_of(root, SID).write_bytes(b"")
        age(root)
        read()
        assert "1 journal was rewritten" in sign_in().get("/").content.decode()
        JournalFile.objects.update(found_at=timezone.now() - timedelta(days=2))
        assert "1 journal was rewritten" not in sign_in().get("/").content.decode()


class TestHistory:
    @pytest.fixture
    def demo(self, imported):
        return imported("demo")

    def test_says_where_runs_come_from_when_there_is_none(self, sign_in, demo):
        text = sign_in().get("/projects/demo/history/").content.decode()
        assert "No run is recorded" in text
        assert ".ralph/history.jsonl" in text
        assert "/projects/demo/history/" in sign_in().get("/projects/demo/").content.decode()
        assert sign_in().get("/projects/none/history/").status_code == 404

    def test_runs_on_an_axis_and_what_became_of_them(self, sign_in, demo):
        write(demo, "loop_started", 0, {"run": "r1"}, prompt="do it")
        write(demo, "iteration_completed", 5, {"run": "r1"}, iteration=1, success=False)
        write(demo, "loop_completed", 10, {"run": "r1"}, reason="completion_promise")
        write(demo, "merge_failed", 11, {"run": "r1"}, reason="conflict in a.py")
        write(demo, "loop_started", 20, prompt="again")
        read()
        text = sign_in().get("/projects/demo/history/").content.decode()
        for part in ("Success", "completion_promise", "1 failed", "10 min", "merge needs review", "conflict in a.py"):
            assert part in text, part
        assert "Crashed" in text
        assert text.count('height="18"') == 2
        assert "2 runs from 2026-01-01 00:00" in text

    def test_the_end_of_the_calendar_is_no_time(self, sign_in, demo):
        (Path(demo.path) / ".ralph").mkdir()
        event = {"ts": "9999-12-31T23:59:59Z", "type": {"kind": "loop_started", "prompt": "for ever"}}
        (Path(demo.path) / history.HISTORY).write_text(json.dumps(event) + "\n")
        (Path(demo.path) / ".ralph/loops.json").write_text(json.dumps([{"id": "a", "pid": 9, "started": event["ts"]}]))
        read()
        assert "for ever" in sign_in().get("/projects/demo/history/").content.decode()

    def test_a_file_that_is_odd_says_so(self, sign_in, demo):
        def text():
            read()
            return sign_in().get("/projects/demo/history/").content.decode()

        path = Path(demo.path) / history.HISTORY
        write(demo, "loop_started", prompt="before")
        assert "notice-bad" not in text()
        with path.open("ab") as stream:
            stream.write(b'{"ts":')
        assert "torn" not in text()
        os.utime(path, (1e9, 1e9))
        assert "ends in a torn line" in text()
        path.write_bytes(b"")
        write(demo, "loop_started", prompt="after")
        assert "it was rewritten" in text()
        path.unlink()
        assert "is gone" in text()
        path.mkdir()
        assert "cannot be read: " in text()

    def test_of_another_host_nothing_is_read_here(self, sign_in, demo, monkeypatch):
        write(demo, "loop_started", prompt="theirs")
        read()
        JournalFile.objects.update(node="elsewhere")
        Project.objects.update(node="elsewhere")
        JournalFile.objects.create(
            node=settings.ANDON_NODE,
            family="history",
            root=demo.path,
            relpath="h",
            name="demo",
            found_at=timezone.now(),
        )
        for name in ("read_merges", "read_registry"):
            monkeypatch.setattr(history, name, pytest.fail)
        monkeypatch.setattr(ralph, "open_inside", pytest.fail)
        text = sign_in().get("/projects/demo/history/").content.decode()
        assert "Its files lie on elsewhere" in text
        assert "theirs" in text

    def test_lines_of_a_path_that_another_host_has_too_are_not_its(self, sign_in, demo):
        write(demo, "loop_started", prompt="theirs")
        read()
        JournalFile.objects.update(node="elsewhere")
        assert "theirs" not in sign_in().get("/projects/demo/history/").content.decode()

    def test_a_pid_that_is_used_again_makes_no_crashed_run_live(self, demo):
        began = datetime(2026, 1, 1, tzinfo=UTC)
        crashed = Run("r", 1, 2, pid=77, started_at=began, last_at=began)
        later = began + timedelta(hours=1)

        def is_alive(*loops, as_of=later):
            found = [history.Loop("x", pid, at, "", "", state) for pid, at, state in loops]
            return sessions.is_alive(crashed, demo, sessions.Registered(found, "", as_of))

        assert is_alive((77, later, "running")) is False
        assert is_alive((77, began, "running")) is True
        assert is_alive((78, began, "running")) is False
        assert is_alive((77, began, "unknown")) is None
        assert is_alive((77, began, "unknown"), (77, began, "running")) is True
        assert is_alive((77, began, "crashed")) is False
        assert is_alive(as_of=None) is None
        demo.running, demo.pid, demo.loop_started_at = True, 77, later
        assert is_alive() is False
        demo.loop_started_at = began
        assert is_alive() is True
        assert is_alive(as_of=None) is True

    def test_who_runs_is_shown_as_of_when_the_worker_looked(self, sign_in, demo, monkeypatch):
        (Path(demo.path) / ".ralph").mkdir()
        entry = {"id": "mine", "pid": os.getpid(), "started": timezone.now().isoformat()}
        (Path(demo.path) / ".ralph/loops.json").write_text(json.dumps([entry]))
        client = sign_in()

        def loops():
            text = client.get("/projects/demo/history/").content.decode()
            return text[text.index('aria-labelledby="loops-title"') - 40 :]

        before = loops()
        assert "no worker has looked" in before
        assert "is-stale" in before
        assert 'data-status="idle"' in before
        registries.sweep(now=timezone.now())
        monkeypatch.setattr(processes, "identify", pytest.fail)
        now = loops()
        assert "as of" in now
        assert "is-stale" not in now
        assert 'data-status="running"' in now
        LoopRegistry.objects.update(judged_at=timezone.now() - timedelta(seconds=90))
        assert "is-stale" in loops()

    def test_registry_queue_and_what_is_wrong_with_them(self, sign_in, demo):
        folder = Path(demo.path) / ".ralph"
        folder.mkdir()
        (folder / "loops.json").write_text(json.dumps([{"id": HOSTILE, "pid": 1, "prompt": HOSTILE}]))
        queued = {
            "ts": "2026-01-01T00:00:00Z",
            "loop_id": HOSTILE,
            "event": {"type": "needs_review", "reason": HOSTILE},
        }
        (folder / "merge-queue.jsonl").write_text(json.dumps(queued) + f"\n{HOSTILE}\n")
        write(demo, "loop_started", prompt=HOSTILE)
        write(demo, HOSTILE)
        read()
        text = sign_in().get("/projects/demo/history/").content.decode()
        assert "<script>alert(1)" not in text
        assert "merge needs review" in text
        assert "Crashed" in text
        (folder / "loops.json").write_text("{")
        assert "cannot be read" in sign_in().get("/projects/demo/history/").content.decode()

    def test_costs_the_same_however_much_there_is(self, sign_in, demo, django_assert_max_num_queries):
        for number in range(120):
            write(demo, "loop_started", number, prompt="p")
            write(demo, "loop_completed", number, reason="stopped")
        read()
        assert LoopRun.objects.count() == 120
        client = sign_in()
        with django_assert_max_num_queries(FRAME + 5):
            text = client.get("/projects/demo/history/").content.decode()
        assert "Page 1 of 3" in text

    @pytest.mark.parametrize(
        ("path", "name"),
        [
            ("/sessions/", "session-list"),
            ("/audit/", "audit"),
            ("/sessions/s-1/", "session"),
            ("/projects/demo/history/", "history"),
        ],
    )
    def test_each_fragment_is_the_include_of_its_page(self, sign_in, demo, append, path, name):
        append()
        read()
        text = sign_in().get(path, headers={"HX-Request": "true", "HX-Target": name}).content.decode()
        assert f'id="{name}"' in text
        assert "<html" not in text


class TestAxis:
    NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)

    def run(self, begin, end=None, **fields):
        at = self.NOW + timedelta(minutes=begin)
        until = self.NOW + timedelta(minutes=end) if end is not None else None
        run = Run(f"r{begin}", 1, 2, started_at=at, last_at=until, ended_at=until, **fields)
        run.ended_by = "loop_completed" if end is not None else ""
        return run

    def test_runs_beside_each_other_share_a_lane_and_others_do_not(self):
        axis = timelines.axis(
            [(self.run(40, 60), False), (self.run(10, 30), False), (self.run(0, 20), False)], self.NOW
        )
        assert [(bar.x, bar.width, bar.lane) for bar in axis.bars] == [(666, 334, 0), (166, 334, 1), (0, 334, 0)]
        assert (axis.lanes, axis.height) == (2, 40)

    def test_one_that_runs_ends_now(self):
        axis = timelines.axis([(self.run(-60), True)], self.NOW)
        assert (axis.begin, axis.end) == (self.NOW - timedelta(hours=1), self.NOW)
        assert (axis.bars[0].width, axis.bars[0].took_s) == (1000, 3600)

    def test_none_has_a_start(self):
        axis = timelines.axis([(Run("r", 1, 1), False)], self.NOW)
        assert (axis.lanes, axis.begin, axis.bars[0].has_bar) == (0, None, False)

    def test_more_at_once_than_there_are_lanes(self):
        axis = timelines.axis([(self.run(number, 600), False) for number in range(20)], self.NOW)
        assert axis.lanes == timelines.LANES

    def test_every_outcome_state_and_finding_has_a_shape(self):
        shapes = (Path(__file__).parents[2] / "config/static/img/status.svg").read_text()
        assert set(timelines.OUTCOMES) == set(Outcome)
        assert set(timelines.KINDS) == set(timelines.SEVERITIES) == set(journal.ADVICE)
        marks = {mark for mark, *_ in (*timelines.OUTCOMES.values(), *timelines.STATES.values())}
        for mark in marks | set(timelines.SEVERITIES.values()):
            assert f'id="{mark}"' in shapes, mark
