"""REST of the journals: what is acknowledged is on the disk, what is refused says why, and who may do what."""

import json
import os
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.test import Client
from django.utils import timezone

from projects import auditing, history, intake, journal, keeping, registries
from projects.models import Event, JournalFile, JournalRecord, LoopRun, Tombstone, Turn
from services import processes
from tests.projects.test_api import BAD_SLUGS, refused

pytestmark = pytest.mark.django_db
SID = "s-1"
BASE = "/api/journal/sessions"


@pytest.fixture(autouse=True)
def root(tmp_path, settings, workspace) -> Path:
    folder = tmp_path / "journals"
    settings.ANDON_JOURNAL_ROOTS = [folder]
    auditing._audited.clear()
    return folder


@pytest.fixture
def operator(client_of) -> Client:
    return client_of("operator")


@pytest.fixture
def viewer(client_of) -> Client:
    return client_of("viewer")


def post(client: Client, path: str, body):
    body = body if isinstance(body, bytes | str) else json.dumps(body)
    return client.post(path, data=body, content_type="application/json")


def append(client: Client, session=SID, **event):
    return post(client, f"{BASE}/{session}/events", {"event": "submitted", "turn_id": "t1", **event})


class TestAppend:
    def test_answers_what_was_written(self, operator, root):
        answer = append(operator, content="do it", odd={"a": [1]})
        assert answer.status_code == 201
        [line] = (root / "_turn_journal" / f"{SID}.jsonl").read_bytes().splitlines()
        assert answer.json() == json.loads(line)
        assert answer.json()["odd"] == {"a": [1]}
        body = operator.get(f"{BASE}/{SID}").json()
        assert body["events"] == [answer.json()]
        assert [(turn["turn_id"], turn["effective_state"], turn["content"]) for turn in body["turns"]] == [
            ("t1", "submitted", "do it")
        ]

    def test_is_told_by_whoever_did_it(self, operator):
        append(operator)
        event = Event.objects.get(kind="turn.submitted")
        assert (event.subject, event.payload["via"]) == (f"turn:{SID}/t1", "api")
        assert event.actor.startswith("token:")

    @pytest.mark.parametrize(
        "body",
        [
            "",
            "{",
            "[]",
            "7",
            "null",
            "{}",
            '{"event": 5}',
            '{"event": "submitted", "content": NaN}',
            b"\xff",
            "[" * 9999,
        ],
    )
    def test_what_is_no_event(self, operator, root, body):
        refused(post(operator, f"{BASE}/{SID}/events", body), 422, "invalid-event")
        assert not root.exists()

    @pytest.mark.parametrize("session", [".hidden", "a%20b", "x" * 129, "a%00", "d%C3%A9mo", "a%0A"])
    def test_a_session_that_is_no_name(self, operator, root, session):
        refused(append(operator, session), 422, "invalid-session-id")
        refused(operator.get(f"{BASE}/{session}"), 422, "invalid-session-id")
        refused(operator.delete(f"{BASE}/{session}"), 422, "invalid-session-id")
        assert not root.exists()

    @pytest.mark.parametrize("size", [1 << 20, 3 << 20])
    def test_over_the_cap(self, operator, size):
        refused(append(operator, content="x" * size), 413, "event-too-large")
        assert not JournalFile.objects.exists()

    def test_what_cannot_be_made_durable_is_refused_and_says_why(self, operator, root, monkeypatch):
        append(operator)
        before = (root / "_turn_journal" / f"{SID}.jsonl").read_bytes()

        def fail(_):
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as broken:
            broken.setattr(os, "fsync", fail)
            body = refused(append(operator, turn_id="t2"), 503, "journal-unavailable")
        assert "no space left on device" in body["detail"]
        assert str(root) not in body["detail"]
        assert (root / "_turn_journal" / f"{SID}.jsonl").read_bytes() == before
        assert [row.turn_id for row in Turn.objects.all()] == ["t1"]

    def test_a_root_that_is_none(self, operator, settings, root):
        root.parent.mkdir(exist_ok=True)
        root.write_text("a file")
        refused(append(operator), 503, "journal-unavailable")
        settings.ANDON_JOURNAL_ROOTS = []
        refused(append(operator), 400, "no-journal-root")

    def test_a_root_that_cannot_be_seen(self, operator, settings, tmp_path):
        settings.ANDON_JOURNAL_ROOTS = [tmp_path / ("x" * 300)]
        refused(append(operator), 503, "journal-unavailable")
        refused(operator.delete(f"{BASE}/{SID}"), 503, "journal-unavailable")

    def test_stands_although_the_database_fails(self, operator, monkeypatch):
        def fail(*_, **__):
            raise RuntimeError("no database")

        with monkeypatch.context() as broken:
            broken.setattr(intake, "look", fail)
            assert append(operator).status_code == 201
        assert not Turn.objects.exists()
        intake.rescan(now=timezone.now())
        assert Turn.objects.get().turn_id == "t1"

    def test_goes_to_the_root_that_has_the_session(self, operator, settings, root, tmp_path):
        other = tmp_path / "other"
        journal.append_event(other, SID, {"event": "submitted", "turn_id": "t0"})
        settings.ANDON_JOURNAL_ROOTS = [root, other]
        append(operator)
        append(operator, "new")
        assert journal.session_ids(other) == [SID]
        assert journal.session_ids(root) == ["new"]
        assert len(operator.get(f"{BASE}/{SID}").json()["events"]) == 2


class TestRead:
    def test_a_list_with_its_counts_newest_first(self, operator, viewer, root):
        append(operator, "a")
        append(operator, "b")
        append(operator, "b", event="completed")
        append(operator, "b", event="interrupted")
        with journal.path_of(root, "b").open("ab") as stream:
            stream.write(b"{\n")
        intake.rescan(now=timezone.now())
        body = viewer.get(BASE).json()
        assert (body["page"], body["pages"], body["total"]) == (1, 1, 2)
        assert [
            tuple(row[name] for name in ("session_id", "turns", "pending", "collisions", "malformed"))
            for row in body["sessions"]
        ] == [("b", 1, 0, 1, 1), ("a", 1, 1, 0, 0)]
        assert datetime.fromisoformat(body["sessions"][0]["updated_at"]).tzinfo is not None

    def test_a_list_costs_the_same_however_long(self, viewer, root, django_assert_num_queries):
        for number in range(120):
            journal.append_event(root, f"s-{number}", {"event": "submitted"})
        intake.rescan(now=timezone.now())
        viewer.get("/api/me")
        with django_assert_num_queries(3):
            body = viewer.get(BASE).json()
        assert (len(body["sessions"]), body["pages"]) == (100, 2)
        assert len(viewer.get(f"{BASE}?page=2").json()["sessions"]) == 20

    def test_what_stands_in_the_file_whatever_it_is(self, viewer, root):
        journal.append_event(root, SID, {"event": "submitted", "turn_id": "t1", "content": "\ud800"})
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(b'{"event":"tool","turn_id":"t1","created_at":NaN,"x":1e999}\n\xff\n{"event":"comp')
        answer = viewer.get(f"{BASE}/{SID}")
        body = json.loads(answer.content, parse_constant=pytest.fail)
        assert body["events"][0]["content"] == "\ud800"
        assert body["events"][1]["x"] is None
        assert [line["kind"] for line in body["malformed"]] == ["utf8", "torn"]

    def test_goes_on_behind_a_line(self, viewer, root):
        for number in range(5):
            journal.append_event(root, SID, {"event": "submitted", "turn_id": f"t{number}"})
        body = viewer.get(f"{BASE}/{SID}?limit=2").json()
        assert ([event["turn_id"] for event in body["events"]], body["next"]) == (["t0", "t1"], 2)
        body = viewer.get(f"{BASE}/{SID}?after=3&limit=2").json()
        assert ([event["turn_id"] for event in body["events"]], body["next"]) == (["t3", "t4"], None)
        assert body["total_events"] == 5

    def test_of_more_than_fits_the_newest_turns(self, viewer, root):
        for number in range(9):
            journal.append_event(root, SID, {"event": "submitted", "turn_id": f"t{number}"})
            for _ in range(2):
                journal.append_event(root, SID, {"event": "completed", "turn_id": f"t{number}"})
            with journal.path_of(root, SID).open("ab") as stream:
                stream.write(b"{%d\n" % number)
        body = viewer.get(f"{BASE}/{SID}?limit=2").json()
        assert [event["turn_id"] for event in body["events"]] == ["t0", "t0"]
        assert [turn["turn_id"] for turn in body["turns"]] == ["t7", "t8"]
        assert [collision["turn_id"] for collision in body["collisions"]] == ["t7", "t8"]
        assert [len(collision["events"]) for collision in body["collisions"]] == [2, 2]
        assert [line["raw"] for line in body["malformed"]] == ["{7", "{8"]
        assert (body["next"], body["total_events"]) == (2, 27)

    def test_from_what_was_read_when_the_file_is_gone(self, operator, root):
        append(operator, content="kept")
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(b"{\n")
        intake.rescan(now=timezone.now())
        here = operator.get(f"{BASE}/{SID}").json()
        journal.path_of(root, SID).unlink()
        gone = operator.get(f"{BASE}/{SID}").json()
        assert (here.pop("source"), gone.pop("source")) == ("file", "database")
        assert gone == here

    def test_what_is_not_there(self, viewer, root):
        refused(viewer.get(f"{BASE}/none"), 404, "session-not-found")
        (root / "_turn_journal").mkdir(parents=True)
        os.mkfifo(journal.path_of(root, SID))
        refused(viewer.get(f"{BASE}/{SID}"), 500, "journal-unreadable")


class TestDelete:
    def test_leaves_a_tombstone(self, operator, root):
        append(operator)
        assert operator.delete(f"{BASE}/{SID}").status_code == 204
        assert operator.delete(f"{BASE}/{SID}").status_code == 204
        refused(append(operator), 409, "session-deleted")
        refused(operator.get(f"{BASE}/{SID}"), 404, "session-not-found")
        assert operator.get(BASE).json()["sessions"] == []
        assert not JournalRecord.objects.exists()
        assert not journal.path_of(root, SID).exists()
        assert Event.objects.filter(kind="session.deleted").count() == 1
        assert Tombstone.objects.get().buried_at is not None

    def test_a_file_that_is_made_again_is_not_seen_and_a_second_time_removed(self, operator, root, tmp_path, settings):
        append(operator)
        operator.delete(f"{BASE}/{SID}")
        path = journal.path_of(root, SID)
        path.write_bytes(b'{"event":"submitted","turn_id":"back"}\n')
        assert intake.look(intake.places.session_place(root, SID), now=timezone.now()) == 0
        assert operator.get(BASE).json()["sessions"] == []
        refused(operator.get(f"{BASE}/{SID}"), 404, "session-not-found")
        assert operator.get("/api/journal/audit").json()["findings"] == []
        assert operator.delete(f"{BASE}/{SID}").status_code == 204
        assert not path.exists()
        other = tmp_path / "other"
        settings.ANDON_JOURNAL_ROOTS = [root, other]
        elsewhere = journal.path_of(other, SID)
        elsewhere.parent.mkdir(parents=True)
        elsewhere.write_bytes(b'{"event":"submitted","turn_id":"back"}\n')
        assert operator.delete(f"{BASE}/{SID}").status_code == 204
        assert not elsewhere.exists()
        assert Tombstone.objects.filter(buried_at__isnull=False).count() == 2

    def test_a_row_that_came_in_beside_the_deletion_is_not_listed(self, operator, root):
        append(operator)
        stone = {"node": JournalFile.objects.get().node, "root": str(root), "session_id": SID}
        Tombstone.objects.create(**stone, deleted_at=timezone.now())
        assert operator.get(BASE).json()["sessions"] == []

    def test_a_crash_before_the_file_went_is_finished(self, operator, root, monkeypatch):
        append(operator)

        def fail(*_):
            raise OSError(30, "Read-only file system")

        with monkeypatch.context() as broken:
            broken.setattr(journal, "delete_session", fail)
            refused(operator.delete(f"{BASE}/{SID}"), 503, "journal-unavailable")
            assert keeping.finish_deletions(now=timezone.now()) == 0
        refused(append(operator), 409, "session-deleted")
        assert journal.path_of(root, SID).exists()
        assert keeping.finish_deletions(now=timezone.now()) == 1
        assert keeping.finish_deletions(now=timezone.now()) == 0
        assert not journal.path_of(root, SID).exists()

    def test_the_files_own_tombstone_holds_without_the_database(self, operator, root):
        append(operator)
        operator.delete(f"{BASE}/{SID}")
        Tombstone.objects.all().delete()
        refused(append(operator), 409, "session-deleted")

    def test_what_never_was(self, operator):
        refused(operator.delete(f"{BASE}/{SID}"), 404, "session-not-found")
        assert not Tombstone.objects.exists()


class TestAudit:
    def test_findings(self, operator, viewer, root):
        append(operator)
        with journal.path_of(root, SID).open("ab") as stream:
            stream.write(b"{\n")
        body = viewer.get("/api/journal/audit").json()
        assert [finding["kind"] for finding in body["findings"]] == ["malformed_event", "pending_turn"]
        assert set(body["findings"][0]) == {"session_id", "turn_id", "kind", "detail", "recommendation"}
        assert body == viewer.get("/api/journal/audit").json()

    def test_a_flood_hides_nothing(self, viewer, root, monkeypatch):
        path = journal.path_of(root, "a-flood")
        path.parent.mkdir(parents=True)
        path.write_text("".join(f'{{"event":"submitted","turn_id":"t{n}","session_id":"x"}}\n' for n in range(300)))
        journal.append_event(root, "z-last", {"event": "completed", "turn_id": "t"})
        journal.append_event(root, "z-last", {"event": "interrupted", "turn_id": "t"})
        journal.path_of(root, "z-unreadable").mkdir()
        journal.path_of(root, "z").write_bytes(b'{"event":"submitted","turn_id":"t"}\n')
        intake.rescan(now=timezone.now())
        journal.path_of(root, "z").write_bytes(b"")
        intake.rescan(now=timezone.now())
        (path.parent / ".hidden.jsonl").touch()
        monkeypatch.setattr(auditing, "MOST_FINDINGS", 10)
        body = viewer.get("/api/journal/audit").json()
        kinds = [finding["kind"] for finding in body["findings"]]
        assert kinds[:4] == ["journal_rewritten", "illegal_filename", "unreadable_file", "double_terminal"]
        assert len(kinds) == 10
        # 300 without an end, without a time and of another session, and two of the turn that ended twice.
        assert body["count"] == 3 + 900 + 2
        pending = auditing.audit(timezone.now(), "pending_turn").findings
        assert {finding["kind"] for finding in pending} == {"pending_turn"}
        assert auditing.audit(timezone.now()).counts["pending_turn"] == 300

    def test_a_file_that_was_rewritten(self, operator, viewer, root):
        append(operator)
        journal.path_of(root, SID).write_bytes(b"")
        intake.rescan(now=timezone.now())
        kinds = [finding["kind"] for finding in viewer.get("/api/journal/audit").json()["findings"]]
        assert kinds == ["journal_rewritten"]

    def test_a_file_that_cannot_be_seen(self, viewer, root, monkeypatch):
        journal.append_event(root, SID, {"event": "submitted", "turn_id": "t"})

        def fail(error):
            def stat(_):
                raise error

            return stat

        monkeypatch.setattr(intake.places.Place, "stat", fail(OSError(5, "Input/output error")))
        assert [found["kind"] for found in viewer.get("/api/journal/audit").json()["findings"]] == ["pending_turn"]
        monkeypatch.setattr(intake.places.Place, "stat", fail(FileNotFoundError(2, "gone")))
        assert viewer.get("/api/journal/audit").json()["findings"] == []

    def test_no_more_is_kept_than_is_bounded(self, viewer, root, monkeypatch):
        for number in range(3):
            journal.append_event(root, f"s-{number}", {"event": "submitted"})
        time.sleep(0.03)
        monkeypatch.setattr(auditing, "MOST_AUDITED", 2)
        viewer.get("/api/journal/audit")
        assert [session for _, session in auditing._audited] == ["s-1", "s-2"]

    def test_a_file_that_is_as_it_was_is_not_read_again(self, viewer, root, monkeypatch):
        journal.append_event(root, SID, {"event": "submitted"})
        os.utime(journal.path_of(root, SID), (1e9, 1e9))
        time.sleep(0.03)
        first = viewer.get("/api/journal/audit").json()
        monkeypatch.setattr(auditing, "audit_counted", pytest.fail)
        assert viewer.get("/api/journal/audit").json() == first


class TestRecover:
    def old(self, root, **event) -> None:
        journal.append_event(root, SID, {"event": "submitted", "turn_id": "t1", "created_at": 1e9, **event})
        os.utime(journal.path_of(root, SID), (1e9, 1e9))

    def test_once_and_not_again(self, operator, root):
        self.old(root)
        preview = post(operator, "/api/journal/recover", {"dry_run": True}).json()
        assert preview == {"added": 1, "by_session": {SID: 1}, "failed": {}}
        assert not Event.objects.filter(kind="journal.recovered").exists()
        assert post(operator, "/api/journal/recover", {}).json() == preview
        for nonsense in ("{", "[]", '{"live_streams": 5}'):
            refused(post(operator, "/api/journal/recover", nonsense), 422, "invalid-request")
        assert operator.post("/api/journal/recover").json() == {"added": 0, "by_session": {}, "failed": {}}
        turn = Turn.objects.get()
        assert (turn.effective_state, turn.pending) == ("interrupted", False)
        assert Event.objects.get(kind="journal.recovered").payload["added"] == 1
        assert Event.objects.filter(kind="turn.interrupted").count() == 1

    @pytest.mark.parametrize("kind", ["application/json", "text/plain", "application/x-www-form-urlencoded", ""])
    def test_what_is_asked_for_whatever_it_is_said_to_be(self, operator, root, kind):
        self.old(root)
        answer = operator.post("/api/journal/recover", data=b'{"dry_run": true}', content_type=kind)
        assert answer.json()["added"] == 1
        assert not Event.objects.filter(kind="journal.recovered").exists()
        for nonsense in (b"[]", b"dry_run=true", b"null"):
            told = operator.post("/api/journal/recover", data=nonsense, content_type=kind)
            refused(told, 422, "invalid-request")
        assert operator.post("/api/journal/recover", data=b" ", content_type=kind).json()["added"] == 1

    def test_a_form_asks_for_nothing(self, operator, root):
        self.old(root)
        refused(operator.post("/api/journal/recover", {"dry_run": "true"}), 422, "invalid-request")
        broken = operator.post("/api/journal/recover", data=b"x", content_type="multipart/form-data")
        refused(broken, 422, "invalid-request")

    def test_not_what_somebody_works_on(self, operator, root, monkeypatch):
        self.old(root, stream_id="s")
        assert post(operator, "/api/journal/recover", {"live_streams": ["s"]}).json()["added"] == 0
        monkeypatch.setattr(keeping, "live_streams", [lambda: {"s"}])
        assert operator.post("/api/journal/recover").json()["added"] == 0
        monkeypatch.undo()
        assert operator.post("/api/journal/recover").json()["added"] == 1

    def test_at_the_start_of_a_worker(self, root, settings):
        self.old(root)
        settings.ANDON_RECOVER = False
        assert keeping.begin(now=timezone.now()) == {"files": 1, "lines": 1, "missing": 0, "failed": 0}
        settings.ANDON_RECOVER = True
        assert keeping.begin(now=timezone.now())["recovered"] == 1
        assert keeping.begin(now=timezone.now()) == {"files": 1, "lines": 0, "missing": 0, "failed": 0, "recovered": 0}

    def test_a_start_with_a_root_that_cannot_be_made(self, root):
        root.write_text("a file")
        assert keeping.begin(now=timezone.now())["recovered"] == 0

    def test_without_the_lock_it_is_unavailable(self, operator, root):
        self.old(root)
        (root / "_turn_journal" / ".recovery.lock").mkdir()
        refused(operator.post("/api/journal/recover"), 503, "journal-unavailable")
        assert "recovered" not in keeping.begin(now=timezone.now())


class TestDoors:
    def test_a_token_of_one_project_sees_no_session(self, client_of, root):
        client = client_of("operator", project="demo")
        for answer in (
            client.get(BASE),
            client.get(f"{BASE}/{SID}"),
            client.get("/api/journal/audit"),
            append(client),
            client.delete(f"{BASE}/{SID}"),
            client.post("/api/journal/recover"),
        ):
            refused(answer, 403, "forbidden")

    def test_a_viewer_changes_nothing(self, viewer, root):
        refused(append(viewer), 403, "forbidden")
        refused(viewer.delete(f"{BASE}/{SID}"), 403, "forbidden")
        assert not root.exists()


class TestHistory:
    @pytest.fixture
    def demo(self, imported):
        return imported("demo")

    def write(self, project, kind, number=0, data=None, **fields):
        at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)
        history.append(Path(project.path) / history.HISTORY, kind, fields, data=data, at=at)

    def test_of_a_project_without_one(self, viewer, demo):
        body = viewer.get("/api/ralph/demo/history").json()
        assert (body["events"], body["runs"], body["loops"], body["merges"], body["problems"]) == ([], [], [], [], [])
        assert body["summary"]["iterations_completed"] == 0

    def test_events_summary_and_runs(self, viewer, demo):
        self.write(demo, "loop_started", 0, {"run": "r"}, prompt="p")
        self.write(demo, "iteration_completed", 1, {"run": "r"}, iteration=1, success=True)
        self.write(demo, "loop_completed", 2, {"run": "r"}, reason="completion_promise")
        body = viewer.get("/api/ralph/demo/history?limit=2").json()
        assert [event["type"]["kind"] for event in body["events"]] == ["iteration_completed", "loop_completed"]
        assert body["summary"]["completion_reason"] == "completion_promise"
        assert [(run["key"], run["outcome"], run["prompt"]) for run in body["runs"]] == [("r", "success", "p")]

    def test_registry_and_queue_beside_it(self, viewer, demo):
        folder = Path(demo.path) / ".ralph"
        folder.mkdir()
        loops = [{"id": "a", "pid": os.getpid(), "started": timezone.now().isoformat()}, {"id": "b", "pid": 4_000_000}]
        (folder / "loops.json").write_text(json.dumps({"loops": loops}))
        queued = {"ts": "2026-01-01T00:00:00Z", "loop_id": "a", "event": {"type": "queued"}}
        (folder / "merge-queue.jsonl").write_text(json.dumps(queued) + "\n{\n")
        looked = timezone.now()
        registries.sweep(now=looked)
        body = viewer.get("/api/ralph/demo/history").json()
        assert [(loop["id"], loop["state"]) for loop in body["loops"]] == [("a", "running"), ("b", "crashed")]
        assert datetime.fromisoformat(body["loops_as_of"]) == looked
        assert [(merge["loop"], merge["state"]) for merge in body["merges"]] == [("a", "queued")]
        assert [line["kind"] for line in body["malformed"]] == ["json"]

    def test_who_runs_is_unknown_until_the_worker_of_its_host_has_looked(self, viewer, demo, monkeypatch):
        for name in ("identify", "verdict", "boot_id", "started_at"):
            monkeypatch.setattr(processes, name, pytest.fail)
        folder = Path(demo.path) / ".ralph"
        folder.mkdir()
        entry = {"id": "a", "pid": os.getpid(), "started": timezone.now().isoformat()}
        (folder / "loops.json").write_text(json.dumps([entry, {"id": "none"}]))
        self.write(demo, "loop_started", 0, {"run": "r", "pid": os.getpid()}, prompt="p")
        body = viewer.get("/api/ralph/demo/history").json()
        assert [(loop["id"], loop["state"]) for loop in body["loops"]] == [("a", "unknown"), ("none", "crashed")]
        assert (body["loops_as_of"], body["runs"][0]["outcome"]) == (None, "unknown")
        intake.rescan(now=timezone.now())
        JournalFile.objects.update(node="elsewhere")
        type(demo).objects.update(node="elsewhere")
        body = viewer.get("/api/ralph/demo/history").json()
        assert (body["loops"], body["loops_as_of"], body["runs"][0]["outcome"]) == ([], None, "unknown")

    def test_what_the_worker_saw_is_told_whoever_asks(self, viewer, demo, monkeypatch):
        folder = Path(demo.path) / ".ralph"
        folder.mkdir()
        now = timezone.now()
        entry = {"id": "a", "pid": os.getpid(), "started": now.isoformat()}
        (folder / "loops.json").write_text(json.dumps([entry]))
        for run, pid in (("r", os.getpid()), ("s", 4_000_000)):
            event = {"ts": now.isoformat(), "type": {"kind": "loop_started", "prompt": "p"}}
            line = json.dumps({**event, "data": {"run": run, "pid": pid}})
            with (Path(demo.path) / history.HISTORY).open("a") as stream:
                stream.write(line + "\n")
        registries.sweep(now=now)
        intake.rescan(now=now)
        for name in ("identify", "verdict", "boot_id", "started_at"):
            monkeypatch.setattr(processes, name, pytest.fail)
        outcomes = {"r": "running", "s": "crashed"}
        body = viewer.get("/api/ralph/demo/history").json()
        assert {run["key"]: run["outcome"] for run in body["runs"]} == outcomes
        JournalFile.objects.update(node="elsewhere")
        type(demo).objects.update(node="elsewhere")
        there = viewer.get("/api/ralph/demo/history").json()
        assert {run["key"]: run["outcome"] for run in there["runs"]} == outcomes
        assert there["loops"] == body["loops"]

    def test_what_is_no_file_is_a_problem_and_no_fault(self, viewer, demo):
        folder = Path(demo.path) / ".ralph"
        folder.mkdir()
        for name in ("history.jsonl", "loops.json", "merge-queue.jsonl"):
            (folder / name).mkdir()
        assert len(viewer.get("/api/ralph/demo/history").json()["problems"]) == 3

    def test_append(self, operator, demo):
        answer = post(operator, "/api/ralph/demo/history", {"type": {"iteration": 3, "kind": "iteration_started"}})
        assert answer.status_code == 201
        [line] = (Path(demo.path) / history.HISTORY).read_bytes().splitlines()
        assert json.loads(line) == answer.json()
        assert line.endswith(b'"type":{"kind":"iteration_started","iteration":3}}')
        assert LoopRun.objects.get().iterations_started == 1
        sent = {"ts": "2026-01-02T03:04:05+01:00", "type": {"kind": "merge_queued"}, "data": {"run": "r"}}
        assert post(operator, "/api/ralph/demo/history", sent).json()["ts"] == "2026-01-02T02:04:05Z"

    @pytest.mark.parametrize(
        "body",
        [
            {},
            {"type": "loop_started"},
            {"type": {"kind": "no_such_kind"}},
            {"type": {"kind": "loop_started"}},
            {"type": {"kind": "loop_started", "prompt": 5}},
            {"type": {"kind": "iteration_started", "iteration": True}},
            {"type": {"kind": "merge_queued", "more": 1}},
            {"type": {"kind": "merge_queued"}, "ts": "yesterday"},
            {"type": {"kind": "merge_queued"}, "more": 1},
            '{"type": {"kind": "merge_queued"}, "data": NaN}',
        ],
    )
    def test_what_is_no_event(self, operator, demo, body):
        told = refused(post(operator, "/api/ralph/demo/history", body), 422, "invalid-event")
        assert told["success"] is False
        assert not (Path(demo.path) / history.HISTORY).exists()

    def test_what_cannot_be_written(self, operator, demo):
        big = {"type": {"kind": "loop_started", "prompt": "x" * (1 << 20)}}
        refused(post(operator, "/api/ralph/demo/history", big), 413, "event-too-large")
        (Path(demo.path) / ".ralph").mkdir()
        (Path(demo.path) / history.HISTORY).mkdir()
        queued = {"type": {"kind": "merge_queued"}}
        refused(post(operator, "/api/ralph/demo/history", queued), 503, "journal-unavailable")

    @pytest.mark.parametrize("slug", BAD_SLUGS)
    def test_bad_slugs(self, operator, demo, slug):
        refused(operator.get(f"/api/ralph/{slug}/history"), 400, "invalid-project-slug")
        refused(post(operator, f"/api/ralph/{slug}/history", {}), 400, "invalid-project-slug")

    def test_files_of_another_host_are_not_ours(self, operator, demo):
        type(demo).objects.update(node="elsewhere")
        refused(post(operator, "/api/ralph/demo/history", {"type": {"kind": "merge_queued"}}), 409, "elsewhere")

    def test_of_a_project_on_another_host_what_was_read_there(self, operator, viewer, demo):
        self.write(demo, "loop_started", 0, {"run": "r"}, prompt="p")
        self.write(demo, "iteration_completed", 1, {"run": "r"}, iteration=1, success=True)
        with (Path(demo.path) / history.HISTORY).open("ab") as stream:
            stream.write(b"{\n")
        intake.rescan(now=timezone.now())
        here = viewer.get("/api/ralph/demo/history?limit=1").json()
        (Path(demo.path) / ".ralph/loops.json").write_text('[{"id": "ours", "pid": 5}]')
        JournalFile.objects.update(node="elsewhere")
        type(demo).objects.update(node="elsewhere")
        self.write(demo, "loop_completed", 2, {"run": "r"}, reason="stopped")
        intake.rescan(now=timezone.now())
        there = viewer.get("/api/ralph/demo/history?limit=1").json()
        assert "lie on elsewhere" in there["problems"][0]
        assert {**there, "problems": []} == here
