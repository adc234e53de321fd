"""The loop history: the exact bytes and nothing half done when appending, any bytes when reading."""

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects import history

pytestmark = pytest.mark.pure

ROOT = Path(__file__).resolve().parents[2]
AT = datetime(2026, 1, 2, 3, 4, 5, 678900, tzinfo=UTC)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".ralph" / "history.jsonl"


def append(path, kind="iteration_started", fields=None, data=None, at=AT):
    return history.append(path, kind, {"iteration": 1} if fields is None else fields, data=data, at=at)


class TestLine:
    def test_order_and_bytes(self, path):
        line = append(path, "loop_completed", {"reason": "max_cost"}, data={"run": "r1"})
        assert line == (
            b'{"ts":"2026-01-02T03:04:05.678900Z","type":{"kind":"loop_completed","reason":"max_cost"},'
            b'"data":{"run":"r1"}}\n'
        )
        assert path.read_bytes() == line

    def test_without_data_and_without_a_fraction(self, path):
        line = append(path, at=AT.replace(microsecond=0))
        assert line == b'{"ts":"2026-01-02T03:04:05Z","type":{"kind":"iteration_started","iteration":1}}\n'

    def test_data_that_is_false_is_written(self, path):
        assert json.loads(append(path, data=0))["data"] == 0

    def test_other_offsets_become_utc(self, path):
        at = AT.astimezone(timezone(timedelta(hours=5, minutes=30)))
        assert json.loads(append(path, at=at))["ts"] == "2026-01-02T03:04:05.678900Z"

    def test_line_separators_and_lone_surrogates_are_escaped(self, path):
        text = "ä\u2028\u2029\u0085\ud800\n"
        line = append(path, "loop_started", {"prompt": text})
        assert line.count(b"\n") == 1
        assert "ä\\u2028\\u2029\\u0085\\ud800\\n".encode() in line
        assert json.loads(line)["type"]["prompt"] == text

    @pytest.mark.parametrize(
        ("fields", "data", "at"),
        [
            ({"x": float("nan")}, None, AT),
            ({}, float("inf"), AT),
            ({"kind": "other"}, None, AT),
            ({"prompt": "x" * history.MAX_LINE}, None, AT),
            ({}, {1, 2}, AT),
            ({}, None, AT.replace(tzinfo=None)),
        ],
    )
    def test_what_cannot_be_a_line_leaves_no_file(self, path, fields, data, at):
        with pytest.raises(ValueError):
            append(path, fields=fields, data=data, at=at)
        assert not path.exists()

    @given(st.dictionaries(st.text().filter(lambda key: key != "kind"), json_values), json_values)
    def test_any_json_comes_back(self, fields, data):
        line = history.serialise({"type": fields, "data": data})
        assert line.endswith(b"\n")
        assert len(line.decode().splitlines()) == 1
        assert json.loads(line) == {"type": fields, "data": data}


class TestTornTail:
    def test_an_object_gets_its_line_feed(self, path):
        first = append(path)
        path.write_bytes(first[:-1])
        second = append(path, "loop_completed", {"reason": "stopped"})
        assert path.read_bytes() == first + second

    @pytest.mark.parametrize(
        "tail", [b'{"ts":"2026', b"\0" * 100, b"[1]", b"7", b"x" * 200_000, b"\xff", b"[" * 100_000]
    )
    def test_anything_else_is_set_aside(self, path, tail):
        first = append(path)
        path.write_bytes(first + tail)
        second = append(path)
        assert path.read_bytes() == first + second
        aside = path.with_name(f"history.jsonl.torn-{len(first)}")
        assert aside.read_bytes() == tail

    def test_twice_at_the_same_place(self, path):
        for tail in (b"one", b"two"):
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(tail)
            append(path)
        assert path.with_name("history.jsonl.torn-0").read_bytes() == b"one"
        assert path.with_name("history.jsonl.torn-0.1").read_bytes() == b"two"


class TestRefusals:
    def test_a_link_is_not_followed(self, path, tmp_path):
        path.parent.mkdir()
        path.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError):
            append(path)
        assert not (tmp_path / "elsewhere").exists()

    def test_nor_a_directory_that_is_one(self, path, tmp_path):
        (tmp_path / "elsewhere").mkdir()
        path.parent.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError):
            append(path)
        assert not list((tmp_path / "elsewhere").iterdir())

    def test_nor_a_lock_that_is_one(self, path, tmp_path):
        path.parent.mkdir()
        path.with_name("history.jsonl.lock").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(OSError):
            append(path)

    def test_a_second_link(self, path, tmp_path):
        append(path)
        os.link(path, tmp_path / "twin")
        with pytest.raises(OSError, match="one link"):
            append(path)

    def test_a_pipe_does_not_block(self, path):
        path.parent.mkdir()
        os.mkfifo(path)
        with pytest.raises(OSError):
            append(path)

    def test_no_directory_above(self, tmp_path):
        with pytest.raises(OSError):
            append(tmp_path / "gone" / ".ralph" / "history.jsonl")


class TestDurable:
    def test_a_short_write_is_taken_back(self, path, monkeypatch):
        first = append(path)
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
        with pytest.raises(OSError, match="only 10 of"):
            append(path)
        assert path.read_bytes() == first

    def test_a_short_write_after_a_tail_without_line_feed_leaves_the_tail(self, path, monkeypatch):
        first = append(path)[:-1]
        path.write_bytes(first)
        write = os.write
        monkeypatch.setattr(os, "write", lambda file, line: write(file, line[:10]))
        with pytest.raises(OSError):
            append(path)
        assert path.read_bytes() == first

    def test_a_failed_sync_is_taken_back(self, path, monkeypatch):
        first = append(path)

        def fail(_):
            raise OSError(errno.EIO, "broken disk")

        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="broken disk"):
            append(path)
        assert path.read_bytes() == first

    def test_the_file_is_synced_and_the_directory_once(self, path, monkeypatch):
        synced = []
        fsync = os.fsync

        def spy(file):
            synced.append(os.readlink(f"/proc/self/fd/{file}"))
            fsync(file)

        path.parent.mkdir()
        monkeypatch.setattr(os, "fsync", spy)
        append(path)
        append(path)
        assert synced == [str(path), str(path.parent), str(path)]

    def test_no_descriptor_is_left(self, path):
        append(path)
        before = len(os.listdir("/proc/self/fd"))
        append(path)
        path.unlink()
        path.mkdir()
        with pytest.raises(OSError):
            append(path)
        assert len(os.listdir("/proc/self/fd")) == before


class TestLock:
    def test_waits_for_whoever_holds_the_sidecar(self, path):
        append(path)
        code = (
            "import sys, pathlib, datetime; from projects import history;"
            "now = datetime.datetime.now(datetime.UTC);"
            "history.append(pathlib.Path(sys.argv[1]), 'late', {}, data=None, at=now)"
        )
        with path.with_name("history.jsonl.lock").open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            late = subprocess.Popen([sys.executable, "-c", code, str(path)], cwd=ROOT)
            time.sleep(0.3)
            assert late.poll() is None
            assert b"late" not in path.read_bytes()
        assert late.wait(10) == 0
        assert b'"late"' in path.read_bytes()

    def test_a_sidecar_that_was_replaced_is_not_trusted(self, path, monkeypatch):
        append(path)
        lock = path.with_name("history.jsonl.lock")
        flock, calls = fcntl.flock, []

        def replaced_once(file, how):
            calls.append(file)
            if len(calls) == 1:
                lock.unlink()
            flock(file, how)

        monkeypatch.setattr(fcntl, "flock", replaced_once)
        append(path)
        assert len(calls) == 2
        assert lock.exists()

    def test_writers_at_once_and_one_killed(self, path):
        code = (
            "import sys, pathlib, datetime; from projects import history\n"
            "for n in range(int(sys.argv[2])):\n"
            "    history.append(pathlib.Path(sys.argv[1]), 'k', {'n': n, 'pad': 'x' * 5000}, data=sys.argv[3],"
            " at=datetime.datetime.now(datetime.UTC))"
        )
        path.parent.mkdir()
        writers = [
            subprocess.Popen([sys.executable, "-c", code, str(path), count, name], cwd=ROOT)
            for name, count in (("a", "30"), ("b", "30"), ("victim", "100000"))
        ]
        for writer in writers[:2]:
            assert writer.wait(30) == 0
        writers[2].send_signal(signal.SIGKILL)
        writers[2].wait()
        append(path)
        events = [json.loads(line) for line in path.read_bytes().splitlines()]
        for name in "ab":
            assert [e["type"]["n"] for e in events if e.get("data") == name] == list(range(30))

    def test_without_a_sidecar_the_file_itself_is_locked(self, tmp_path):
        target = tmp_path / "usage.jsonl"
        assert history.append_line(target, {"a": 1}) + history.append_line(target, {"b": 2}) == target.read_bytes()
        assert os.listdir(tmp_path) == ["usage.jsonl"]


NOISE = [
    b"\xff\xfe\x00",
    b"{",
    b"[" * 9999,
    b"[]",
    b"null",
    b'{"type": "loop_completed"}',
    b'{"type": {"kind": ["loop_completed"]}}',
    b'{"ts": "2026-01-02T09:00:00Z"}',
    b'{"ts": 5, "type": {"kind": "loop_completed", "reason": "no time"}}',
    b'{"ts": "yesterday", "type": {"kind": "loop_completed", "reason": "no time"}}',
    b'{"ts": "0001-01-01T00:00:00+23:00", "type": {"kind": "loop_completed", "reason": "before all time"}}',
    b'{"ts": "2026-01-02T09:00:00Z", "type": {"kind": "iteration_completed"}, "data": {"commits": 5}}',
    b'{"ts": "2026-01-02T09:00:00Z", "type": {"kind": "iteration_completed"}, "data": []}',
    b"",
]


def scatter(path):
    """Write what is not an event, on lines of its own."""
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as stream:
        stream.write(b"\n".join(NOISE) + b"\n")


class TestLastEnding:
    def at(self, seconds):
        return AT + timedelta(seconds=seconds)

    def test_the_last_one_and_how(self, path, tmp_path):
        append(path, "loop_completed", {"reason": "max_cost"}, at=self.at(1))
        append(path, "loop_terminated", {"signal": "SIGTERM"}, at=self.at(2))
        append(path, "iteration_started", at=self.at(3))
        assert history.last_ending(tmp_path, AT) == history.Ending("SIGTERM", "loop_terminated", self.at(2))
        append(path, "loop_completed", {"reason": "stopped"}, at=self.at(4))
        assert history.last_ending(tmp_path, AT) == history.Ending("stopped", "loop_completed", self.at(4))

    def test_not_before_since(self, path, tmp_path):
        append(path, "loop_completed", {"reason": "max_cost"}, at=self.at(1))
        assert history.last_ending(tmp_path, self.at(1)).reason == "max_cost"
        assert history.last_ending(tmp_path, self.at(1) + timedelta(microseconds=1)) is None

    def test_without_a_history(self, tmp_path):
        assert history.last_ending(tmp_path, AT) is None
        assert history.last_ending(tmp_path / "gone", AT) is None

    @pytest.mark.parametrize(
        ("text", "at"),
        [
            ("2026-01-02T03:04:05Z", AT.replace(microsecond=0)),
            ("2026-01-02T03:04:05.678Z", AT.replace(microsecond=678000)),
            ("2026-01-02T03:04:05.678900123Z", AT),
            ("2026-01-02T04:04:05.678900+01:00", AT),
            ("2026-01-02T03:04:05.678900", AT),
        ],
    )
    def test_times_of_any_fraction_and_offset(self, path, tmp_path, text, at):
        path.parent.mkdir()
        path.write_text(json.dumps({"ts": text, "type": {"kind": "loop_completed", "reason": "x"}}) + "\n")
        assert history.last_ending(tmp_path, at).at == at

    @pytest.mark.parametrize(
        "text", ["9999-12-31T23:59:59Z", "2100-01-01T00:00:00Z", "1999-12-31T23:59:59Z", "0001-01-01T00:00:00Z"]
    )
    def test_a_time_that_no_loop_ever_had_is_none(self, text):
        assert history.time_of(text) is None

    def test_a_last_line_without_its_end(self, path, tmp_path):
        line = append(path, "loop_completed", {"reason": "max_cost"})
        path.write_bytes(line[:-1])
        assert history.last_ending(tmp_path, AT).reason == "max_cost"
        path.write_bytes(line + line[:-2].replace(b"max_cost", b"stopped"))
        assert history.last_ending(tmp_path, AT).reason == "max_cost"

    @pytest.mark.parametrize(
        ("reason", "told"),
        [
            ("<script>alert(1)</script>", "<script>alert(1)</script>"),
            ("a\nb\x00\x1b[2J\u2028c\ud800", "a b[2J c"),
            ("x" * 100, "x" * 64),
            (5, ""),
            (None, ""),
            (["max_cost"], ""),
        ],
    )
    def test_a_hostile_reason_is_a_short_text(self, path, tmp_path, reason, told):
        append(path, "loop_completed", {"reason": reason})
        assert history.last_ending(tmp_path, AT).reason == told

    def test_between_bytes_of_any_kind(self, path, tmp_path):
        scatter(path)
        assert history.last_ending(tmp_path, AT - timedelta(days=999)) is None
        append(path, "loop_completed", {"reason": "max_cost"})
        scatter(path)
        assert history.last_ending(tmp_path, AT).reason == "max_cost"

    @given(content=st.binary())
    def test_any_bytes(self, tmp_path_factory, content):
        root = tmp_path_factory.mktemp("demo")
        (root / ".ralph").mkdir()
        (root / ".ralph" / "history.jsonl").write_bytes(content)
        assert history.last_ending(root, AT) is None
        assert history.story_of_commit(root, "a" * 40) == ""

    def test_only_the_end_is_read(self, path, tmp_path):
        append(path, "loop_completed", {"reason": "max_cost"})
        room = history.MAX_ENDING - len(path.read_bytes())
        filler = append(path, "x", {"pad": ""})
        append(path, "x", {"pad": "x" * (room - 2 * len(filler))})
        assert path.stat().st_size == history.MAX_ENDING
        assert history.last_ending(tmp_path, AT).reason == "max_cost"
        append(path, "x")
        assert history.last_ending(tmp_path, AT) is None

    @pytest.mark.parametrize("what", ["file", "folder", "fifo"])
    def test_what_leads_elsewhere_is_not_read(self, path, tmp_path, what):
        append(path, "loop_completed", {"reason": "max_cost"})
        root = tmp_path / "demo"
        root.mkdir()
        if what == "folder":
            (root / ".ralph").symlink_to(path.parent)
        else:
            (root / ".ralph").mkdir()
            here = root / ".ralph" / "history.jsonl"
            here.symlink_to(path) if what == "file" else os.mkfifo(here)
        assert history.last_ending(root, AT) is None
        assert list(history.newest(tmp_path, 10**6))


class TestLastLines:
    @pytest.mark.parametrize(
        ("limit", "lines"),
        [(0, []), (1, []), (3, [b"cc"]), (4, [b"cc"]), (5, [b"cc"]), (6, [b"bb", b"cc"]), (9, [b"aa", b"bb", b"cc"])],
    )
    def test_only_whole_ones(self, tmp_path, limit, lines):
        (tmp_path / "file").write_bytes(b"aa\nbb\ncc\n")
        assert history.last_lines(tmp_path, Path("file"), limit) == lines

    def test_one_longer_than_the_limit(self, tmp_path):
        (tmp_path / "file").write_bytes(b"x" * 100)
        assert history.last_lines(tmp_path, Path("file"), 10) == []


class TestStoryOfCommit:
    ONE, TWO = "1" * 40, "2" * 40

    def completed(self, path, story, *commits, kind="iteration_completed"):
        append(path, kind, data={"run": "r", "story": story, "commits": list(commits)})

    def test_the_newest_that_has_it(self, path, tmp_path):
        self.completed(path, "US-001", self.ONE)
        self.completed(path, "US-002", self.TWO, self.ONE)
        self.completed(path, "US-003", self.TWO)
        self.completed(path, "US-004")
        assert history.story_of_commit(tmp_path, self.ONE) == "US-002"
        assert history.story_of_commit(tmp_path, self.TWO) == "US-003"
        assert history.story_of_commit(tmp_path, "3" * 40) == ""

    def test_only_a_completed_iteration_tells(self, path, tmp_path):
        self.completed(path, "US-001", self.ONE, kind="iteration_started")
        append(path, "iteration_completed", data={"story": "US-001", "note": self.ONE})
        append(path, "iteration_completed", data={"story": "US-001", "commits": self.ONE})
        assert history.story_of_commit(tmp_path, self.ONE) == ""

    @pytest.mark.parametrize("commit", ["", "1", "1" * 39, "HEAD", "1" * 40 + "\n", "run"])
    def test_only_whole_names(self, path, tmp_path, commit):
        self.completed(path, "US-001", self.ONE, commit)
        assert history.story_of_commit(tmp_path, commit) == ""

    def test_names_of_sha256(self, path, tmp_path):
        self.completed(path, "US-001", "a" * 64)
        assert history.story_of_commit(tmp_path, "a" * 64) == "US-001"

    @pytest.mark.parametrize("story", [None, 5, ["US-001"], {}])
    def test_a_story_that_is_none(self, path, tmp_path, story):
        self.completed(path, story, self.ONE)
        assert history.story_of_commit(tmp_path, self.ONE) == ""

    def test_a_hostile_story_is_a_short_line(self, path, tmp_path):
        self.completed(path, "a\n\x00b" + "x" * 999, self.ONE)
        assert history.story_of_commit(tmp_path, self.ONE) == "a b" + "x" * 197

    def test_between_bytes_of_any_kind_and_without_a_history(self, path, tmp_path):
        assert history.story_of_commit(tmp_path, self.ONE) == ""
        self.completed(path, "US-001", self.ONE)
        scatter(path)
        with path.open("ab") as stream:
            stream.write(b"[" * 9999 + self.ONE.encode() + b"\n" + self.ONE.encode())
        assert history.story_of_commit(tmp_path, self.ONE) == "US-001"

    def test_only_the_end_is_read(self, path, tmp_path):
        self.completed(path, "US-001", self.ONE)
        for _ in range(4):
            append(path, "x", {"pad": "x" * (history.MAX_LINE - 200)})
        assert history.story_of_commit(tmp_path, self.ONE) == "US-001"
        append(path, "x", {"pad": "x" * 2000})
        assert history.story_of_commit(tmp_path, self.ONE) == ""
