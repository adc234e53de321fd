"""Journals in the database: every line once, whoever reads, whatever became of the file, whenever a process dies."""

import json
import os
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.db import connection, connections
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from projects import history, intake, jobs, journal, sweeps
from projects.events import SWEEP, writing
from projects.importer.watcher import Watcher
from projects.intake import batches, rebuilding, tables, turns
from projects.lifecycle import journals as lifecycle
from projects.models import Event, JournalFile, JournalRecord, LoopRun, Project, Tombstone, Turn
from projects.states import RECORD_MOVES, JournalState, RecordStatus

pytestmark = pytest.mark.django_db
SID = "s-1"


@pytest.fixture
def root(tmp_path, settings, workspace) -> Path:
    folder = tmp_path / "journals"
    settings.ANDON_JOURNAL_ROOTS = [folder]
    return folder


@pytest.fixture
def append(root):
    """Append through the leaf, as any program would; returns what was written."""

    def make(name="submitted", turn="t1", *, session=SID, at=None, **fields):
        event = {"event": name, "turn_id": turn, "created_at": at, **fields}
        return journal.append_event(root, session, event)

    return make


def rescan(now=None):
    return intake.rescan(now=now or timezone.now())


def scribble(root: Path, *texts: bytes, session: str = SID, end: bytes = b"\n") -> Path:
    path = journal.path_of(root, session)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(b"\n".join(texts) + end)
    return path


def event(number: int, *, name="submitted", **fields) -> bytes:
    return json.dumps({"event": name, "turn_id": f"t{number}", "created_at": 1e9 + number, **fields}).encode()


def current(session=SID) -> JournalFile:
    return JournalFile.objects.exclude(state=JournalState.SUPERSEDED).get(name=session)


def lines_of(session=SID) -> list[int]:
    return list(JournalRecord.objects.filter(file=current(session)).values_list("line_no", flat=True))


def everything() -> list[list[tuple]]:
    """Return all that was derived, keys and all."""
    models = (JournalFile, JournalRecord, Turn, LoopRun)
    return [list(model.objects.order_by("pk").values_list()) for model in models]


class TestOnce:
    def test_every_line_and_what_follows_from_it(self, root, append):
        append(content="do it")
        scribble(root, b"{", b"", b'{"event":"tool_called","turn_id":"t1","created_at":1e9}')
        append("completed")
        assert rescan() == (1, 4, 0, 0)
        records = list(JournalRecord.objects.order_by("offset"))
        assert [(row.line_no, row.status, row.kind, row.key) for row in records] == [
            (1, "event", "submitted", "t1"),
            (2, "malformed", "json", ""),
            (4, "event", "tool_called", "t1"),
            (5, "event", "completed", "t1"),
        ]
        content = journal.path_of(root, SID).read_bytes()
        for row in records[0], records[2], records[3]:
            assert content[row.offset : row.offset + row.length] == row.payload.encode() + b"\n"
        turn = Turn.objects.get()
        assert (turn.session_id, turn.turn_id, turn.effective_state, turn.pending) == (SID, "t1", "completed", False)
        assert turns.unpacked(turn.folded).asked["content"] == "do it"
        file = current()
        assert (file.committed_offset, file.committed_line, file.malformed) == (len(content), 5, 1)

    def test_nothing_new_writes_nothing(self, root, append):
        append()
        rescan()
        time.sleep(0.03)
        rescan()
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert rescan() == (1, 0, 0, 0)
        assert not [query for query in queries if query["sql"].startswith(("INSERT", "UPDATE", "DELETE"))]
        assert len(queries) == 3

    def test_one_line_more_costs_one_line(self, root, append):
        scribble(root, *[event(number, content="x" * 400) for number in range(1000)])
        rescan()
        append(turn="last")
        assert rescan().lines == 1
        reads = []
        pread = os.pread
        append("completed", turn="last")

        def counted(descriptor, size, offset):
            chunk = pread(descriptor, size, offset)
            reads.append(len(chunk))
            return chunk

        os.pread = counted
        try:
            assert rescan().lines == 1
        finally:
            os.pread = pread
        assert sum(reads) < 8_000
        assert journal.path_of(root, SID).stat().st_size > 400_000

    def test_batches_of_any_size_say_the_same_as_the_leaf(self, root, monkeypatch):
        scribble(root, *[event(number % 7, name=name) for number in range(30) for name in ("submitted", "completed")])
        monkeypatch.setattr(batches, "BATCH_LINES", 7)
        rescan()
        assert lines_of() == list(range(1, 61))
        found = journal.read_journal(root, SID)
        expected = journal.derive_states(found.events, found.numbers).turns
        assert [turns.unpacked(row.folded).told() for row in Turn.objects.order_by("first_line")] == expected

    def test_a_torn_tail_waits_until_it_is_whole(self, root):
        scribble(root, event(1))
        path = scribble(root, b'{"event":"comple', end=b"")
        assert rescan().lines == 1
        assert rescan().lines == 0
        with path.open("ab") as stream:
            stream.write(b'ted","turn_id":"t1"}\n')
        assert rescan().lines == 1
        assert Turn.objects.get().effective_state == "completed"

    def test_an_overlong_line_is_one_record_and_waits_for_its_end(self, root):
        path = scribble(root, b"x" * (3 << 20), end=b"")
        assert rescan().lines == 0
        with path.open("ab") as stream:
            stream.write(b"\n" + event(2) + b"\n")
        assert rescan().lines == 2
        first, second = JournalRecord.objects.order_by("offset")
        assert (first.kind, first.length, second.line_no, second.offset) == ("oversize", (3 << 20) + 1, 2, first.length)

    def test_hostile_ids_and_times_find_room(self, root, append):
        append(turn="x" * 500)
        append(turn="a\0\ud800\n b", reason="\0\ud800", event="submitted")
        scribble(
            root,
            b'{"event":"submitted","turn_id":[1]}',
            b'{"event":"' + b"e" * 300 + b'","turn_id":"t","created_at":1e300,"content":"\\u0000\\ud800"}',
            b'{"event":"completed","turn_id":"t","created_at":NaN,"reason":7}',
        )
        assert rescan().failed == 0
        assert [row.turn_id[0] for row in Turn.objects.order_by("first_line")] == ["#", "#", "t"]
        assert JournalRecord.objects.count() == 5

    @pytest.mark.parametrize(
        ("turn", "key"),
        [
            ("t 1", "t 1"),
            ("é" * 100, "é" * 100),
            (" 7 ", "7"),
            ("a  b", "#"),
            ("a\tb", "#"),
            ("x" * 101, "#"),
            ("\0", "#"),
        ],
    )
    def test_a_turn_is_its_id_or_a_hash_of_one_that_no_column_holds(self, turn, key):
        found = turns.key_of({"turn_id": turn})
        assert found == key or (key == "#" and len(found) == 41 and found[0] == "#")

    @pytest.mark.parametrize("written", [400_000_000_000, -5_000_000_000])
    def test_a_file_of_no_time_that_a_calendar_has_is_taken_in(self, root, written):
        path = scribble(root, event(1))
        try:
            os.utime(path, (written, written))
        except OSError:
            pytest.skip("this file system has no such time")
        assert rescan() == (1, 1, 0, 0)
        assert current().written_at is None

    @pytest.mark.django_db(transaction=True)
    def test_two_importers_at_once_take_each_line_once(self, root, monkeypatch):
        scribble(root, *[event(number) for number in range(600)])
        monkeypatch.setattr(batches, "BATCH_LINES", 20)
        # Two processes share no lock of ours.
        monkeypatch.setattr(intake, "_locks", _NoLocks())
        together = threading.Barrier(2)
        failures = []

        def look():
            together.wait()
            try:
                intake.look(intake.places.session_place(root, SID), now=timezone.now())
            except Exception as error:
                failures.append(error)
            finally:
                connections.close_all()

        threads = [threading.Thread(target=look) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert lines_of() == list(range(1, 601))
        assert Turn.objects.count() == 600

    @pytest.mark.django_db(transaction=True)
    @pytest.mark.parametrize(
        ("module", "name"),
        [
            (intake, "read_batch"),
            (intake, "fingerprints"),
            (tables, "insert"),
            (turns, "project"),
            (turns, "_tell"),
            (intake, "_settle"),
        ],
    )
    def test_a_crash_between_any_two_steps_loses_nothing(self, root, append, monkeypatch, module, name):
        append()
        append("completed")
        real = getattr(module, name)
        with monkeypatch.context() as broken:
            for after in range(3):
                calls = []

                def crash(*args, calls=calls, after=after, **options):
                    calls.append(1)
                    if len(calls) > after:
                        raise RuntimeError("killed")
                    return real(*args, **options)

                broken.setattr(module, name, crash)
                assert rescan().failed in {0, 1}
        rescan()
        assert lines_of() == [1, 2]
        assert Turn.objects.get().effective_state == "completed"
        assert [row.kind for row in Event.objects.filter(kind__startswith="turn.")] == ["turn.completed"]


class _NoLocks(dict):
    def __missing__(self, key):
        return threading.Lock()


class TestGenerations:
    def other(self, root, *texts: bytes) -> Path:
        path = journal.path_of(root, SID)
        path.write_bytes(b"\n".join(texts) + b"\n")
        return path

    def generations(self):
        return [(row.generation, row.state) for row in JournalFile.objects.order_by("generation")]

    def test_a_shorter_file_is_another(self, root):
        scribble(root, event(1), event(2))
        rescan()
        self.other(root, event(3))
        assert rescan().lines == 1
        assert self.generations() == [(1, "superseded"), (2, "read")]
        assert set(JournalRecord.objects.filter(file__generation=1).values_list("status", flat=True)) == {"superseded"}
        assert [row.turn_id for row in Turn.objects.all()] == ["t3"]
        assert Event.objects.filter(kind="journal.rewritten", subject=f"session:{SID}").count() == 1

    def test_truncated_and_grown_beyond_it_skips_no_line(self, root):
        scribble(root, event(1), event(2))
        rescan()
        self.other(root, *[event(number) for number in range(10, 20)])
        assert rescan().lines == 10
        assert Turn.objects.count() == 10

    def test_the_same_beginning_and_another_middle(self, root):
        """The first 1,024 bytes alone would not tell."""
        head = [event(number, content="x" * 100) for number in range(20)]
        scribble(root, *head, event(30), event(31))
        rescan()
        self.other(root, *head, event(40), event(41), event(42))
        assert rescan().lines == 23
        assert self.generations()[-1] == (2, "read")

    @pytest.mark.parametrize("name", ["read_batch", "fingerprints"])
    @pytest.mark.parametrize("known", [True, False])
    def test_one_that_is_truncated_and_grown_while_it_is_read(self, root, monkeypatch, name, known):
        scribble(root, event(1), event(2))
        if known:
            rescan()
            scribble(root, event(3))
        real = getattr(intake, name)

        def rewrite_first(*args):
            self.other(root, *[event(number, content="another") for number in range(10, 20)])
            return real(*args)

        with monkeypatch.context() as raced:
            raced.setattr(intake, name, rewrite_first)
            rescan()
        rescan()
        assert lines_of() == list(range(1, 11))
        assert set(Turn.objects.values_list("turn_id", flat=True)) == {f"t{number}" for number in range(10, 20)}

    def test_an_inode_used_again_is_no_proof(self, root):
        path = scribble(root, event(1))
        rescan()
        inode = path.stat().st_ino
        with path.open("r+b") as stream:
            stream.truncate(0)
            stream.write(b"\n".join([event(7), event(8)]) + b"\n")
        assert path.stat().st_ino == inode
        assert rescan().lines == 2
        assert [row.turn_id for row in Turn.objects.order_by("first_line")] == ["t7", "t8"]

    def test_a_copy_with_another_inode_is_the_same(self, root):
        path = scribble(root, event(1))
        rescan()
        content = path.read_bytes()
        path.rename(path.with_name("old"))
        path.write_bytes(content + event(2) + b"\n")
        assert rescan().lines == 1
        assert self.generations() == [(1, "read")]

    def test_gone_and_back(self, root):
        path = scribble(root, event(1))
        rescan()
        path.rename(path.with_name("aside"))
        assert rescan().missing == 1
        assert rescan().missing == 0
        assert self.generations() == [(1, "missing")]
        assert JournalRecord.objects.count() == 1
        path.with_name("aside").rename(path)
        assert rescan().lines == 0
        assert self.generations() == [(1, "read")]

    def test_gone_when_it_is_looked_at(self, root):
        path = scribble(root, event(1))
        place = intake.places.session_place(root, SID)
        assert intake.look(place, now=timezone.now()) == 1
        path.unlink()
        assert intake.look(place, now=timezone.now()) == 0
        assert self.generations() == [(1, "missing")]
        path.parent.rmdir()
        path.parent.touch()
        with pytest.raises(FileNotFoundError):
            place.stat()

    def test_what_cannot_be_read_says_why(self, root):
        path = scribble(root, event(1))
        rescan()
        path.unlink()
        path.mkdir()
        rescan()
        file = current()
        assert (file.state, file.last_error) == ("unreadable", "not a regular file")
        assert Event.objects.filter(kind="journal.unreadable").count() == 1
        rescan()
        assert Event.objects.filter(kind="journal.unreadable").count() == 1
        path.rmdir()
        scribble(root, event(1))
        rescan()
        assert current().state == "read"

    def test_of_two_that_supersede_at_once_one_wins(self, root):
        scribble(root, event(1))
        rescan()
        file = current()
        first = lifecycle.supersede(file, by=SWEEP, now=timezone.now())
        assert lifecycle.supersede(file, by=SWEEP, now=timezone.now()) == first
        assert self.generations() == [(1, "superseded"), (2, "read")]

    def test_the_table_of_a_records_moves(self, root):
        scribble(root, event(1), b"{")
        rescan()
        for verb, (sources, target) in RECORD_MOVES.items():
            assert verb == "supersede"
            assert set(JournalRecord.objects.values_list("status", flat=True)) <= sources
            with writing():
                assert lifecycle._move(JournalRecord.objects.all(), verb) == 2
                assert lifecycle._move(JournalRecord.objects.all(), verb) == 0
            assert set(JournalRecord.objects.values_list("status", flat=True)) == {target} == {RecordStatus.SUPERSEDED}


class TestTold:
    def test_a_turn_tells_where_it_came_to(self, root, append):
        append()
        rescan()
        append("worker_started")
        append("completed")
        append("interrupted", reason="late")
        rescan()
        told = Event.objects.filter(subject=f"turn:{SID}/t1").order_by("id")
        assert [row.kind for row in told] == ["turn.submitted", "turn.completed", "turn.collided"]
        assert told[2].payload["ends"] == ["completed", "interrupted"]
        assert told[0].url == f"/sessions/{SID}/"
        assert "t1" in told[0].summary

    def test_the_past_of_a_file_that_is_new_tells_nothing(self, root):
        scribble(root, *[event(number) for number in range(50)])
        rescan()
        assert not Event.objects.filter(kind__startswith="turn.").exists()

    def test_a_deleted_session_is_not_taken_in_again(self, root, append):
        append()
        rescan()
        lifecycle.bury(root, SID, by=SWEEP, now=timezone.now())
        rescan()
        assert not JournalFile.objects.exists()
        assert Tombstone.objects.get().session_id == SID
        lifecycle.bury(root, SID, by=SWEEP, now=timezone.now())
        assert Event.objects.filter(kind="session.deleted").count() == 1

    def test_a_deleted_session_stays_away_whoever_looks(self, root, append):
        append()
        rescan()
        lifecycle.bury(root, SID, by=SWEEP, now=timezone.now())
        place = intake.places.session_place(root, SID)
        assert intake.look(place, now=timezone.now()) == 0
        place.path.unlink()
        place.path.mkdir()
        assert intake.look(place, now=timezone.now()) == 0
        assert not JournalFile.objects.exists()

    @pytest.mark.parametrize("name", ["is_same", "read_batch", "fingerprints", "_settle"])
    def test_a_session_that_is_deleted_while_it_is_read_stays_away(self, root, append, monkeypatch, name):
        append()
        rescan()
        append("completed")
        if name == "is_same":
            journal.path_of(root, SID).write_bytes(b"")
        real = getattr(intake, name)

        def delete_first(*args):
            lifecycle.bury(root, SID, by=SWEEP, now=timezone.now())
            return real(*args)

        monkeypatch.setattr(intake, name, delete_first)
        assert rescan().failed == 0
        assert not JournalFile.objects.exists()

    def test_a_row_that_was_made_beside_a_deletion_goes(self, root, append):
        append()
        rescan()
        Tombstone.objects.create(node=current().node, root=str(root), session_id=SID, deleted_at=timezone.now())
        rescan()
        assert not JournalFile.objects.exists()

    def test_a_file_that_is_to_be_looked_at_again_is_opened_though_it_seems_the_same(self, root, append):
        append()
        rescan()
        JournalFile.objects.update(mark="as it seems")
        assert lifecycle.look_again(JournalFile.objects.all()) == 1
        assert current().mark == ""


def record(path: Path, kind: str, at: datetime, data=None, **fields) -> None:
    history.append(path / history.HISTORY, kind, fields, data=data, at=at)


class TestWatched:
    def test_a_path_is_the_journal_that_lies_there(self, root, imported):
        project = imported("demo")
        place = intake.places.place_of
        assert place(str(journal.path_of(root, SID))) == intake.places.session_place(root, SID)
        assert place(f"{project.path}/.ralph/history.jsonl").name == "demo"
        for other in (
            f"{root}/_turn_journal/.hidden.jsonl",
            f"{root}/_turn_journal/s.jsonl.torn-5",
            f"{root}/other/s.jsonl",
            f"{project.path}/prd.json",
            "/nowhere/.ralph/history.jsonl",
        ):
            assert place(other) is None, other

    def test_directories_are_those_that_are_there_and_no_links(self, root, settings, tmp_path):
        assert intake.places.directories() == set()
        scribble(root, event(1))
        (tmp_path / "linked").mkdir()
        (tmp_path / "linked" / "_turn_journal").symlink_to(root / "_turn_journal")
        settings.ANDON_JOURNAL_ROOTS = [root, tmp_path / "linked", tmp_path / "none", tmp_path / ("x" * 300)]
        assert intake.places.directories() == {str(root / "_turn_journal")}

    @pytest.mark.django_db(transaction=True)
    def test_a_change_is_taken_in_at_once(self, root):
        scribble(root, event(1))
        seen = []
        watcher = Watcher(
            beside=intake.places.directories, noticed=lambda path: seen.append(path) or intake.notice(path)
        )
        watcher.start()
        try:
            wait_for(lambda: watcher.mode == "inotify")
            wait_for(lambda: scribble(root, event(2)) and Turn.objects.exists())
        finally:
            watcher.stop()
        assert str(journal.path_of(root, SID)) in seen

    def test_a_sweep_reads_them_in_the_pool(self, root, monkeypatch):
        asked = []
        monkeypatch.setattr(jobs, "submit", lambda key, work: asked.append((key, work)))
        assert sweeps.read_journals() is False
        scribble(root, event(1))
        assert asked[0][1]() == {"files": 1, "lines": 1, "missing": 0, "failed": 0}


def wait_for(holds) -> None:
    deadline = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


class TestHistories:
    @pytest.fixture
    def demo(self, root, imported) -> Project:
        return imported("demo")

    def test_runs_are_projected_and_go_on(self, demo):
        path, at = Path(demo.path), datetime(2026, 1, 1, tzinfo=UTC)
        record(path, "loop_started", at, {"run": "r1", "pid": 12}, prompt="p")
        record(path, "iteration_completed", at + timedelta(minutes=1), {"run": "r1"}, iteration=1, success=False)
        rescan()
        run = LoopRun.objects.get()
        assert (run.project, run.key, run.pid, run.iterations_failed, run.ended_by) == ("demo", "r1", 12, 1, "")
        record(path, "loop_completed", at + timedelta(minutes=2), {"run": "r1"}, reason="completion_promise")
        record(path, "loop_started", at + timedelta(minutes=3), prompt="q")
        assert rescan().lines == 2
        first, second = LoopRun.objects.order_by("first_line")
        assert (first.outcome(alive=False), first.ended_at) == ("success", at + timedelta(minutes=2))
        assert (second.key, second.outcome(alive=True), second.outcome(alive=False)) == ("line:4", "running", "crashed")
        assert list(JournalRecord.objects.order_by("offset").values_list("key", flat=True)) == ["r1"] * 3 + ["line:4"]
        assert Event.objects.filter(kind="project.changed", project="demo", payload__changed=["history"]).count() == 2

    def test_batches_of_one_line_say_the_same_as_the_leaf(self, demo, monkeypatch):
        path, at = Path(demo.path), datetime(2026, 1, 1, tzinfo=UTC)
        kinds = [
            "loop_started",
            "iteration_started",
            "loop_resumed",
            "loop_completed",
            "merge_failed",
            "merge_completed",
        ]
        for number in range(60):
            data = {"run": f"r{number % 3}"} if number % 2 else None
            kind = kinds[number * 7 % len(kinds)]
            record(path, kind, at + timedelta(seconds=number), data, reason="stopped", prompt="p", commit="c")
        monkeypatch.setattr(batches, "BATCH_LINES", 1)
        rescan()
        found = history.read(path, 10)
        assert [row.run() for row in LoopRun.objects.order_by("first_line")] == found.runs
        before = everything()
        assert rebuilding.rebuild() == rebuilding.Rebuilt(files=1, changed=0)
        assert everything() == before

    @pytest.mark.parametrize("size", [1, 1000])
    def test_a_run_that_has_a_key_of_ours_stops_nothing(self, demo, monkeypatch, size):
        path, at = Path(demo.path), datetime(2026, 1, 1, tzinfo=UTC)
        record(path, "loop_started", at, {"run": "line:2"}, prompt="p")
        record(path, "loop_started", at, prompt="q")
        record(path, "loop_started", at, {"run": "line:1"}, prompt="r")
        monkeypatch.setattr(batches, "BATCH_LINES", size)
        assert rescan() == (1, 3, 0, 0)
        assert list(LoopRun.objects.order_by("first_line").values_list("key", "prompt")) == [
            ("line:1", "p"),
            ("line:2", "q"),
            ("line:3", "r"),
        ]


class TestRebuilt:
    def test_projections_are_the_same_byte_for_byte(self, root, append):
        scribble(root, *[event(number % 5, name=name) for number in range(12) for name in ("submitted", "completed")])
        rescan()
        for number in range(4):
            append(turn=f"new-{number}")
            rescan()
        before = everything()
        assert rebuilding.rebuild() == rebuilding.Rebuilt(files=1, changed=0)
        assert everything() == before
        Turn.objects.filter(turn_id="t1").delete()
        Turn.objects.filter(turn_id="t2").update(effective_state="submitted", folded="{}")
        Turn.objects.create(file=current(), session_id=SID, turn_id="invented", first_line=1, folded="{}")
        assert rebuilding.rebuild().changed == 3
        after = everything()
        strip = [[row[1:] for row in table] for table in before]
        assert [sorted(row[1:] for row in table) for table in after] == [sorted(table) for table in strip]

    def test_the_command_shows_how_far_it_is(self, root, append, capsys):
        from django.core.management import call_command

        append()
        rescan()
        Turn.objects.all().delete()
        call_command("rebuild_journals")
        told = capsys.readouterr()
        assert "1 of 1 files" in told.err
        assert "1 row was not as it should be" in told.out
        assert Turn.objects.count() == 1
