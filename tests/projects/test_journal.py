"""The turn journal: what is acknowledged is on the disk, and what lies there is read without trust."""

import errno
import fcntl
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from projects import journal
from tests.projects import kill_writers

pytestmark = pytest.mark.pure
# A busy machine is no failure.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

ROOT = Path(__file__).resolve().parents[2]
NOW = 1_700_000_000.0
SID = "sess-1"


def append(root, name="submitted", turn="t1", *, session=SID, at=NOW, **fields):
    return journal.append_event(root, session, {"event": name, "turn_id": turn, "created_at": at, **fields})


def scribble(root: Path, *texts: bytes, session: str = SID, end: bytes = b"\n") -> Path:
    """Write lines as another program might."""
    path = journal.path_of(root, session)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        stream.write(b"\n".join(texts) + end)
    return path


def derive(root, session=SID):
    found = journal.read_journal(root, session)
    return journal.derive_states(found.events, found.numbers)


def turn_of(root, turn="t1"):
    return next(each for each in derive(root).turns if each["turn_id"] == turn)


def kinds(root, *, now=NOW + 3600):
    return [finding["kind"] for finding in journal.audit(root, now=now)]


class TestWhatIsWritten:
    def test_is_what_is_returned_and_what_is_read(self, tmp_path):
        written = append(tmp_path, content="héllo\u2028\u2029\u0085\ud800", attachments=[{"name": "a"}], model="m")
        path = tmp_path / "_turn_journal" / "sess-1.jsonl"
        [line] = path.read_bytes().splitlines()
        assert json.loads(line) == written
        assert list(written)[:5] == ["event", "version", "session_id", "turn_id", "created_at"]
        assert b"\\u2028\\u2029\\u0085\\ud800" in line
        assert "é".encode() in line
        assert journal.read_journal(tmp_path, SID).events == [written]

    def test_is_private(self, tmp_path):
        append(tmp_path)
        folder = tmp_path / "_turn_journal"
        assert (folder / "sess-1.jsonl").stat().st_mode & 0o777 == 0o600
        assert folder.stat().st_mode & 0o777 == 0o700
        folder.chmod(0o755)
        append(tmp_path)
        assert folder.stat().st_mode & 0o777 == 0o700

    @pytest.mark.parametrize("turn", [None, "", "  \t"])
    def test_gets_a_turn_where_none_is_given(self, tmp_path, turn):
        written = journal.append_event(tmp_path, SID, {"event": "submitted", "turn_id": turn}, now=NOW)
        assert written["turn_id"].startswith("20231114T221320Z-")
        assert len(written["turn_id"]) == 17 + 12
        assert int(written["turn_id"][17:], 16) >= 0
        assert written["created_at"] == NOW

    @pytest.mark.parametrize("at", [None, "12", True, float("nan"), float("inf"), 10**400, [1]])
    def test_gets_a_time_where_none_is_given(self, tmp_path, at):
        written = journal.append_event(tmp_path, SID, {"event": "submitted", "created_at": at}, now=NOW)
        assert written["created_at"] == NOW

    def test_keeps_the_time_and_the_number_that_are(self, tmp_path):
        written = append(tmp_path, turn=7, at=12)
        assert (written["turn_id"], written["created_at"]) == ("7", 12.0)

    def test_names_its_own_session_and_version(self, tmp_path):
        written = journal.append_event(tmp_path, SID, {"event": "submitted", "session_id": "other", "version": 9})
        assert (written["session_id"], written["version"]) == (SID, 1)

    def test_leaves_an_empty_stream_out(self, tmp_path):
        assert "stream_id" not in append(tmp_path, stream_id="")
        assert append(tmp_path, stream_id="s")["stream_id"] == "s"

    @pytest.mark.parametrize(
        "event",
        [
            {},
            {"event": ""},
            {"event": "  "},
            {"event": 5},
            {"event": None},
            {"event": "submitted", "stream_id": 5},
            {"event": "submitted", "turn_id": ["t"]},
            {"event": "submitted", "turn_id": True},
            {"event": "submitted", "content": float("nan")},
            {"event": "submitted", "content": float("inf")},
            {"event": "submitted", "content": {1, 2}},
            {"event": "submitted", "content": 1 << 64},
            {"event": "submitted", "content": json.loads("[" * 150 + "]" * 150)},
        ],
    )
    def test_what_is_no_event_is_refused_and_leaves_no_file(self, tmp_path, event):
        with pytest.raises(journal.InvalidEventError):
            journal.append_event(tmp_path, SID, event)
        assert not list(tmp_path.rglob("*"))

    def test_over_a_mebibyte_is_refused(self, tmp_path):
        room = 1024 * 1024 - len(json.dumps(append(tmp_path, content=""), separators=(",", ":"))) - 1
        append(tmp_path, content="x" * room)
        with pytest.raises(journal.TooLargeError):
            append(tmp_path, content="x" * (room + 1))
        assert len(journal.read_journal(tmp_path, SID).events) == 2

    @pytest.mark.parametrize(
        "session", ["", ".", "..", ".hidden", "a/b", "../up", "a b", "é", "x" * 129, "a\n", "a\0", None, 5, " a"]
    )
    def test_a_session_that_is_no_name_is_refused(self, tmp_path, session):
        for call in (append, derive):
            with pytest.raises(journal.InvalidSessionError):
                call(tmp_path, session=session)
        with pytest.raises(journal.InvalidSessionError):
            journal.delete_session(tmp_path, session)
        assert not list(tmp_path.rglob("*"))

    def test_the_longest_name(self, tmp_path):
        append(tmp_path, session="x" * 128)
        append(tmp_path, session="a..b_-.")
        assert journal.session_ids(tmp_path) == ["a..b_-.", "x" * 128]


class TestOrder:
    def test_open_lock_write_sync_and_the_directory_when_new(self, tmp_path, monkeypatch):
        """The order of section 1, as the kernel is asked."""
        folder = tmp_path / "_turn_journal"
        folder.mkdir(0o700)
        calls = []
        names = {}
        opened, locked, stated, written, synced = os.open, fcntl.flock, os.stat, os.write, os.fsync

        def note_open(path, flags, *args, **options):
            descriptor = opened(path, flags, *args, **options)
            names[descriptor] = os.path.basename(path)
            if names[descriptor] == "sess-1.jsonl":
                assert flags & os.O_APPEND
                assert flags & os.O_CREAT
                assert flags & os.O_NOFOLLOW
                assert flags & os.O_CLOEXEC
                assert args[0] == 0o600
            calls.append(("open", names[descriptor]))
            return descriptor

        def note(what, call):
            def noted(descriptor, *args, **options):
                calls.append((what, names.get(descriptor, descriptor)))
                return call(descriptor, *args, **options)

            return noted

        monkeypatch.setattr(os, "open", note_open)
        monkeypatch.setattr(fcntl, "flock", note("lock", locked))
        monkeypatch.setattr(os, "stat", note("look", stated))
        monkeypatch.setattr(os, "write", note("write", written))
        monkeypatch.setattr(os, "fsync", note("sync", synced))
        append(tmp_path)
        new = [call for call in calls if "sess-1" in str(call[1]) or call[1] == "_turn_journal"]
        calls.clear()
        append(tmp_path)
        again = [call for call in calls if "sess-1" in str(call[1]) or call[1] == "_turn_journal"]
        monkeypatch.undo()
        file = "sess-1.jsonl"
        expected = [("open", "_turn_journal"), ("open", file), ("lock", file), ("look", file), ("write", file)]
        assert [call for call in again if call in [*expected, ("sync", file)]] == [*expected, ("sync", file)]
        assert new[-3:] == [("write", file), ("sync", file), ("sync", "_turn_journal")]
        assert again[-1] == ("sync", file)

    def test_a_file_that_was_replaced_meanwhile_is_not_written_to(self, tmp_path, monkeypatch):
        append(tmp_path)
        path = journal.path_of(tmp_path, SID)
        old = path.open("rb")
        flock, calls = fcntl.flock, []

        def replaced_once(file, how):
            calls.append(file)
            if len(calls) == 1:
                path.rename(path.with_name("gone"))
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", replaced_once)
        append(tmp_path, "completed")
        assert [event["event"] for event in journal.read_journal(tmp_path, SID).events] == ["completed"]
        assert len(old.read().splitlines()) == 1
        old.close()

    @pytest.mark.parametrize("call", ["write", "fsync"])
    def test_an_error_takes_the_line_back_and_is_heard(self, tmp_path, monkeypatch, call):
        append(tmp_path)
        path = journal.path_of(tmp_path, SID)
        before = path.read_bytes()

        def fail(*_):
            raise OSError(errno.EIO, "broken disk")

        with monkeypatch.context() as broken:
            broken.setattr(os, call, fail)
            with pytest.raises(OSError, match="broken disk"):
                append(tmp_path, "completed")
        assert path.read_bytes() == before
        append(tmp_path, "completed")
        assert len(journal.read_journal(tmp_path, SID).events) == 2

    def test_a_short_write_is_taken_back(self, tmp_path, monkeypatch):
        append(tmp_path)
        before = journal.path_of(tmp_path, SID).read_bytes()
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:7]))
        with pytest.raises(OSError, match="only 7 of"):
            append(tmp_path, "completed")
        assert journal.path_of(tmp_path, SID).read_bytes() == before


LIMITED = """
import resource, sys
from pathlib import Path
from projects import journal
root = Path(sys.argv[1])
size = journal.path_of(root, "s").stat().st_size if journal.path_of(root, "s").exists() else 0
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 500, resource.RLIM_INFINITY))
try:
    journal.append_event(root, "s", {"event": "submitted", "turn_id": "big", "content": "x" * 5000})
except OSError as error:
    print(error.errno or "short", journal.path_of(root, "s").stat().st_size - size)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
journal.append_event(root, "s", {"event": "completed", "turn_id": "after"})
"""


class TestNoRoom:
    def test_a_limit_on_the_size_of_files(self, tmp_path):
        append(tmp_path, session="s")
        done = subprocess.run(
            [sys.executable, "-c", LIMITED, tmp_path], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.stderr == ""
        assert done.stdout.split() == [str(errno.ENOSPC), "0"]
        found = journal.read_journal(tmp_path, "s")
        assert [event["turn_id"] for event in found.events] == ["t1", "after"]
        assert found.malformed == []

    def test_a_full_disk(self, tmp_path):
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "none", disk], capture_output=True, check=False
        )
        if mounted.returncode:
            pytest.skip("needs the right to mount a tmpfs: run the suite as root outside of a restricted container")
        try:
            sizes = [0]
            with pytest.raises(OSError, match=r"No space|bytes were written"):
                fill(disk, sizes)
            path = journal.path_of(disk, SID)
            assert path.stat().st_size == sizes[-1]
            found = journal.read_journal(disk, SID)
            assert (len(found.events), found.malformed) == (len(sizes) - 1, [])
            append(disk, "completed")
            assert len(journal.read_journal(disk, SID).events) == len(sizes)
        finally:
            subprocess.run(["umount", disk], check=True)


class TestRefused:
    def test_a_link(self, tmp_path):
        (tmp_path / "_turn_journal").mkdir()
        journal.path_of(tmp_path, SID).symlink_to(tmp_path / "elsewhere")
        for call in (append, derive):
            with pytest.raises(OSError):
                call(tmp_path)
        assert not (tmp_path / "elsewhere").exists()
        assert kinds(tmp_path) == ["unreadable_file"]

    def test_a_directory_that_is_a_link(self, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "_turn_journal").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError):
            append(tmp_path)
        assert not list((tmp_path / "elsewhere").iterdir())

    @pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
    def test_a_pipe_or_a_directory(self, tmp_path, make):
        (tmp_path / "_turn_journal").mkdir()
        make(journal.path_of(tmp_path, SID))
        for call in (append, derive):
            with pytest.raises(OSError):
                call(tmp_path)
        append(tmp_path, session="other")
        assert kinds(tmp_path, now=NOW) == ["pending_turn", "unreadable_file"]

    def test_a_second_link(self, tmp_path):
        append(tmp_path)
        os.link(journal.path_of(tmp_path, SID), tmp_path / "twin")
        with pytest.raises(OSError, match="one link"):
            append(tmp_path)

    def test_read_only(self, tmp_path):
        append(tmp_path)
        path = journal.path_of(tmp_path, SID)
        path.chmod(0o400)
        with pytest.raises(PermissionError):
            append(tmp_path)
        path.chmod(0o600)
        path.parent.chmod(0o500)
        try:
            with pytest.raises(PermissionError):
                append(tmp_path, session="other")
        finally:
            path.parent.chmod(0o700)


class TestKilled:
    def test_whatever_was_acknowledged_is_read_back(self, tmp_path):
        done = subprocess.run(
            [sys.executable, "-m", "tests.projects.kill_writers", "50"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        counts = json.loads(done.stdout)
        assert (counts["rounds"], counts["lost"], counts["glued"]) == (50, 0, 0)
        assert counts["acknowledged"] >= 50
        assert kill_writers.WRITERS == 4

    def test_a_torn_tail_is_set_aside_and_kept(self, tmp_path):
        append(tmp_path)
        path = journal.path_of(tmp_path, SID)
        size = path.stat().st_size
        scribble(tmp_path, b'{"event":"completed","turn_', end=b"")
        append(tmp_path, "completed")
        assert [event["event"] for event in journal.read_journal(tmp_path, SID).events] == ["submitted", "completed"]
        assert path.with_name(f"sess-1.jsonl.torn-{size}").read_bytes() == b'{"event":"completed","turn_'

    def test_a_whole_tail_gets_its_line_feed(self, tmp_path):
        path = scribble(tmp_path, b'{"event":"submitted","turn_id":"t1"}', end=b"")
        assert journal.read_journal(tmp_path, SID).unterminated
        append(tmp_path, "completed")
        found = journal.read_journal(tmp_path, SID)
        assert (len(found.events), found.unterminated, found.malformed) == (2, False, [])
        assert not list(path.parent.glob("*.torn-*"))


class TestStream:
    def test_the_turn_of_the_last_line_that_has_it(self, tmp_path):
        append(tmp_path, turn="t1", stream_id="s", at=NOW + 99)
        append(tmp_path, turn="t2", stream_id="s", at=NOW)
        append(tmp_path, turn="t3", stream_id="other")
        written = journal.append_for_stream(tmp_path, SID, "s", {"event": "completed"})
        assert (written["turn_id"], written["stream_id"]) == ("t2", "s")

    def test_none_has_it(self, tmp_path):
        append(tmp_path, turn="t1", stream_id="s")
        with pytest.raises(journal.UnknownStreamError):
            journal.append_for_stream(tmp_path, SID, "nobody", {"event": "completed"})
        scribble(tmp_path, b'{"event":"submitted","stream_id":"x"}')
        with pytest.raises(journal.UnknownStreamError):
            journal.append_for_stream(tmp_path, SID, "x", {"event": "completed"})


class TestNewRoot:
    def test_each_directory_is_on_the_disk_before_the_next(self, tmp_path, monkeypatch):
        synced = []
        fsync = os.fsync

        def spy(file):
            synced.append(os.readlink(f"/proc/self/fd/{file}").removeprefix(str(tmp_path)))
            fsync(file)

        monkeypatch.setattr(os, "fsync", spy)
        append(tmp_path / "a" / "b")
        folder = "/a/b/_turn_journal"
        assert synced == ["", "/a", "/a/b", f"{folder}/sess-1.jsonl", folder]
        assert (tmp_path / "a").stat().st_mode & 0o777 == 0o700


class TestDeleted:
    def test_a_late_append_is_refused(self, tmp_path):
        append(tmp_path)
        assert journal.delete_session(tmp_path, SID) is True
        assert journal.is_deleted(tmp_path, SID)
        with pytest.raises(journal.SessionDeletedError):
            append(tmp_path)
        assert journal.session_ids(tmp_path) == []
        assert journal.delete_session(tmp_path, SID) is False
        assert journal.session_ids(tmp_path) == []

    def test_one_that_waited_for_the_lock_meanwhile(self, tmp_path, monkeypatch):
        append(tmp_path)
        flock, calls = fcntl.flock, []

        def deleted_meanwhile(file, how):
            calls.append(file)
            if len(calls) == 1:
                journal.delete_session(tmp_path, SID)
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", deleted_meanwhile)
        with pytest.raises(journal.SessionDeletedError):
            append(tmp_path)
        assert journal.session_ids(tmp_path) == []

    def test_what_a_deletion_that_was_cut_short_has_left_stays(self, tmp_path):
        append(tmp_path)
        before = journal.path_of(tmp_path, SID).read_bytes()
        (tmp_path / "_turn_journal" / f"{SID}.deleted").touch()
        with pytest.raises(journal.SessionDeletedError):
            append(tmp_path)
        assert journal.path_of(tmp_path, SID).read_bytes() == before

    def test_a_tombstone_is_on_the_disk_before_the_file_goes(self, tmp_path, monkeypatch):
        append(tmp_path)

        def fail(*_, **__):
            raise OSError(errno.EIO, "broken disk")

        monkeypatch.setattr(os, "unlink", fail)
        with pytest.raises(OSError, match="broken disk"):
            journal.delete_session(tmp_path, SID)
        assert journal.is_deleted(tmp_path, SID)

    def test_of_a_session_that_never_was(self, tmp_path):
        assert journal.delete_session(tmp_path / "new", SID) is False
        assert journal.is_deleted(tmp_path / "new", SID)


class TestReading:
    def test_malformed_lines_do_not_end_it(self, tmp_path):
        bad = [b"{", b"\xff", b"[1]", b"\0\0", b'{"event":5}', b'{"turn_id":"t"}', b"[" * 5000, b""]
        path = scribble(
            tmp_path, b'{"event":"submitted","turn_id":"t1"}', *bad, b'{"event":"completed","turn_id":"t1"}'
        )
        before = path.read_bytes()
        found = journal.read_journal(tmp_path, SID)
        assert [event["event"] for event in found.events] == ["submitted", "completed"]
        assert [line["kind"] for line in found.malformed] == ["json", "utf8", "shape", "nul", "shape", "shape", "json"]
        assert [line["line"] for line in found.malformed] == [2, 3, 4, 5, 6, 7, 8]
        assert found.numbers == [1, 10]
        assert path.read_bytes() == before

    def test_a_torn_tail_is_told_as_such(self, tmp_path):
        scribble(tmp_path, b'{"event":"submitted"}', b'{"event":"compl', end=b"")
        [line] = journal.read_journal(tmp_path, SID).malformed
        assert (line["kind"], line["line"], line["offset"]) == ("torn", 2, 22)

    def test_without_a_file(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            journal.read_journal(tmp_path, SID)
        assert journal.session_ids(tmp_path) == []
        assert journal.audit(tmp_path, now=NOW) == []
        assert journal.recover(tmp_path).added == 0

    @settings(CALM, max_examples=60)
    @given(content=st.binary(max_size=300))
    def test_any_bytes(self, tmp_path_factory, content):
        root = tmp_path_factory.mktemp("any")
        path = scribble(root, content, b'{"event":"submitted","turn_id":"sure"}')
        before = path.read_bytes()
        found = journal.read_journal(root, SID)
        assert found.events[-1]["turn_id"] == "sure"
        journal.derive_states(found.events, found.numbers)
        journal.audit(root, now=NOW)
        journal.recover(root, dry_run=True)
        assert path.read_bytes() == before


events = st.fixed_dictionaries(
    {
        "event": st.sampled_from([*sorted(journal.deriving.KNOWN), "tool_called", " completed "]),
        "turn_id": st.sampled_from(["a", " a ", 7, "7", None, "", ["x"], True, 1.5]),
        "created_at": st.sampled_from([1, 2, 2.5, 3]) | st.none() | st.text(max_size=3) | st.floats() | st.integers(),
    },
    optional={
        "content": st.none() | st.text(max_size=5) | st.lists(st.integers(), max_size=2),
        "stream_id": st.none() | st.integers() | st.text(max_size=3),
        "reason": st.none() | st.integers() | st.text(max_size=3),
        "assistant_message_index": st.none() | st.integers(),
    },
)


class TestDerived:
    @settings(CALM, max_examples=150)
    @given(st.lists(events, max_size=12))
    def test_of_any_events(self, rows):
        found = journal.derive_states(rows)
        by_turn: dict[str, list[dict]] = {}
        for row in rows:
            if key := journal.turn_key(row):
                by_turn.setdefault(key, []).append(row)
        assert [turn["turn_id"] for turn in found.turns] == list(by_turn)
        for turn in found.turns:
            mine = by_turn[turn["turn_id"]]
            ends = [row for row in mine if row["event"].strip() in {"completed", "interrupted"}]
            if ends:
                assert turn["effective_state"] == ends[0]["event"].strip()
            else:
                assert turn["effective_state"] not in {"completed", "interrupted"}
            collisions = [each for each in found.collisions if each["turn_id"] == turn["turn_id"]]
            assert bool(collisions) == turn["collision"] == (len(ends) > 1)
            for collision in collisions:
                assert len(collision["events"]) == len(ends)

    def test_the_latest_by_time_and_of_equals_the_later_line(self, tmp_path):
        append(tmp_path, "assistant_started", at=NOW + 5)
        append(tmp_path, "submitted", at=NOW)
        append(tmp_path, "worker_started", at=NOW + 5)
        assert (turn_of(tmp_path)["raw_state"], turn_of(tmp_path)["effective_state"]) == ("worker_started",) * 2

    def test_the_first_end_in_the_file_wins_whatever_the_clocks_say(self, tmp_path):
        append(tmp_path, at=NOW)
        append(tmp_path, "completed", at=NOW + 9)
        append(tmp_path, "interrupted", at=NOW + 5, reason="late")
        turn = turn_of(tmp_path)
        assert (turn["effective_state"], turn["raw_state"], turn["collision"]) == ("completed", "completed", True)
        [collision] = derive(tmp_path).collisions
        assert [event["event"] for event in collision["events"]] == ["interrupted", "completed"]
        assert collision["duplicate"] is False

    def test_the_same_line_twice_is_a_duplicate(self, tmp_path):
        append(tmp_path)
        scribble(tmp_path, *[b'{"event":"completed","turn_id":"t1","created_at":5}'] * 2)
        assert derive(tmp_path).collisions[0]["duplicate"] is True

    def test_numbers_and_texts_are_one_turn(self, tmp_path):
        scribble(tmp_path, b'{"event":"submitted","turn_id":7}', b'{"event":"completed","turn_id":" 7 "}')
        [turn] = derive(tmp_path).turns
        assert (turn["turn_id"], turn["effective_state"], turn["events"]) == ("7", "completed", 2)

    def test_what_was_asked_is_folded_from_submitted(self, tmp_path):
        append(tmp_path, role="user", content="do", attachments=["a"], workspace="/w", model="m", model_provider="p")
        append(tmp_path, "worker_started", content="not this")
        append(tmp_path, "completed", assistant_message_index=4)
        turn = turn_of(tmp_path)
        assert [turn[key] for key in ("role", "content", "attachments", "workspace", "model", "model_provider")] == [
            "user",
            "do",
            ["a"],
            "/w",
            "m",
            "p",
        ]
        assert turn["assistant_message_index"] == 4

    def test_an_unknown_event_is_kept_and_shown_as_unknown(self, tmp_path):
        append(tmp_path, "tool_called")
        assert (turn_of(tmp_path)["raw_state"], turn_of(tmp_path)["effective_state"]) == ("unknown", "unknown")
        append(tmp_path, "submitted", at=NOW - 5)
        assert (turn_of(tmp_path)["raw_state"], turn_of(tmp_path)["effective_state"]) == ("unknown", "submitted")

    def test_only_the_first_ends_of_a_turn_are_kept(self, tmp_path):
        for _ in range(25):
            append(tmp_path, "completed")
        [collision] = derive(tmp_path).collisions
        assert len(collision["events"]) == 20
        assert turn_of(tmp_path)["events"] == 25


class TestAudit:
    def test_every_kind_has_its_advice_and_can_be_met(self, tmp_path):
        append(tmp_path, turn="pending")
        append(tmp_path, turn="ended")
        append(tmp_path, "interrupted", turn="ended", reason="stopped by hand")
        append(tmp_path, "interrupted", turn="ended")
        append(tmp_path, "worker_started", turn="ended")
        append(tmp_path, "completed", turn="orphan")
        append(tmp_path, turn="ahead", at=NOW + 9e6)
        scribble(tmp_path, b"{", b'{"event":"submitted","turn_id":"bad","created_at":"noon","session_id":"other"}')
        path = scribble(tmp_path, b'{"event":"x"}', b"half", end=b"")
        os.utime(path, (NOW, NOW))
        (path.parent / ".hidden.jsonl").touch()
        journal.path_of(tmp_path, "folder").mkdir()
        found = journal.audit(tmp_path, now=NOW + 3600)
        assert {finding["kind"] for finding in found} == set(journal.ADVICE) - {"journal_rewritten"}
        for finding in found:
            assert set(finding) == {"session_id", "turn_id", "kind", "detail", "recommendation"}
            assert finding["recommendation"] == journal.ADVICE[finding["kind"]]
        assert [f["detail"] for f in found if f["kind"] == "interrupted_turn"] == ["stopped by hand"]

    def test_a_tail_that_is_being_written_is_none(self, tmp_path):
        path = scribble(tmp_path, b"half", end=b"")
        os.utime(path, (NOW, NOW))
        assert kinds(tmp_path, now=NOW + 59) == []
        assert kinds(tmp_path, now=NOW + 60) == ["torn_tail"]

    def test_a_flood_is_counted(self, tmp_path):
        scribble(tmp_path, *[b"{"] * 250, *[b'{"event":"submitted"}'] * 130)
        found = journal.audit(tmp_path, now=NOW)
        assert sum(f["kind"] == "malformed_event" for f in found) == 101
        assert "and 150 more lines" in [f["detail"] for f in found]
        assert "and 30 more lines" in [f["detail"] for f in found]

    def test_a_flood_of_turns_is_counted(self, tmp_path):
        scribble(
            tmp_path,
            *[b'{"event":"submitted","session_id":"sess-1","turn_id":%d,"created_at":1}' % n for n in range(150)],
        )
        found = journal.audit(tmp_path, now=NOW)
        assert [f["detail"] for f in found][100:] == ["and 50 more turns"]

    @pytest.mark.parametrize("at", [b"253402300799", b"4102444800", b"-1", b"1e300"])
    def test_a_time_that_is_far_from_ours_counts_as_none(self, tmp_path, at):
        append(tmp_path, turn="t")
        scribble(tmp_path, b'{"event":"completed","session_id":"sess-1","turn_id":"t","created_at":' + at + b"}")
        assert kinds(tmp_path) == ["bad_timestamp"]
        assert turn_of(tmp_path, "t")["updated_at"] == NOW

    def test_a_clean_session_has_none(self, tmp_path):
        append(tmp_path)
        append(tmp_path, "completed")
        assert kinds(tmp_path) == []


class TestRecovery:
    def test_says_interrupted_once_and_never_more(self, tmp_path):
        append(tmp_path, turn="a", content="what was asked")
        append(tmp_path, "worker_started", turn="a", stream_id="s-a")
        append(tmp_path, turn="b")
        append(tmp_path, "completed", turn="b")
        later = path_time(tmp_path) + 31
        preview = journal.recover(tmp_path, now=later, dry_run=True)
        assert (preview.by_session, preview.added) == ({SID: ["a"]}, 1)
        assert journal.recover(tmp_path, now=later).by_session == {SID: ["a"]}
        last = journal.read_journal(tmp_path, SID).events[-1]
        assert {key: last.get(key) for key in ("event", "reason", "recovered_from", "stream_id", "content")} == {
            "event": "interrupted",
            "reason": "server_startup_recovery",
            "recovered_from": "worker_started",
            "stream_id": "s-a",
            "content": None,
        }
        assert turn_of(tmp_path, "a")["content"] == "what was asked"
        before = journal.path_of(tmp_path, SID).read_bytes()
        assert journal.recover(tmp_path, now=later + 999).added == 0
        assert journal.path_of(tmp_path, SID).read_bytes() == before

    def test_not_what_is_live_or_young(self, tmp_path):
        append(tmp_path, turn="live", stream_id="s")
        append(tmp_path, turn="young", at=path_time(tmp_path) + 100)
        now = path_time(tmp_path)
        os.utime(journal.path_of(tmp_path, SID), (now + 100, now + 100))
        assert journal.recover(tmp_path, now=now + 129, is_live={"s"}.__contains__).added == 0
        assert journal.recover(tmp_path, now=now + 131, is_live={"s"}.__contains__).by_session == {SID: ["young"]}

    def test_a_clock_that_is_ahead_or_no_time_at_all_is_the_files(self, tmp_path):
        append(tmp_path, turn="ahead", at=NOW + 9e9)
        path = scribble(tmp_path, b'{"event":"submitted","turn_id":"never","created_at":null}')
        os.utime(path, (NOW, NOW))
        assert journal.recover(tmp_path, now=NOW + 29).added == 0
        assert journal.recover(tmp_path, now=NOW + 31).by_session == {SID: ["ahead", "never"]}

    def test_a_bad_file_does_not_end_it(self, tmp_path):
        append(tmp_path, session="a")
        append(tmp_path, session="c")
        journal.path_of(tmp_path, "a").chmod(0o400)
        journal.path_of(tmp_path, "b").mkdir()
        found = journal.recover(tmp_path, now=NOW + 9e9)
        assert found.by_session == {"c": ["t1"]}
        assert set(found.failed) == {"a", "b"}

    def test_two_at_once_add_one(self, tmp_path):
        append(tmp_path)
        together = threading.Barrier(4)

        def recover():
            together.wait()
            journal.recover(tmp_path, now=NOW + 9e9)

        threads = [threading.Thread(target=recover) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [event["event"] for event in journal.read_journal(tmp_path, SID).events] == ["submitted", "interrupted"]


def fill(disk: Path, sizes: list[int]) -> None:
    """Append until there is no room, and note the file's size after each line."""
    for _ in range(100):
        append(disk, content="x" * 20_000)
        sizes.append(journal.path_of(disk, SID).stat().st_size)


def path_time(root: Path) -> float:
    return journal.path_of(root, SID).stat().st_mtime
