"""The budget of a running loop: what is read is safe to use, and what is written is all there or not at all."""

import json
import os
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from projects import budget
from projects.budget import Budget

pytestmark = pytest.mark.pure

values = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.none())


@pytest.fixture
def path(tmp_path):
    return tmp_path / ".ralph" / "budget.json"


def put(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)


def listed(path):
    return sorted(os.listdir(path.parent))


class TestRead:
    def test_without_a_file(self, tmp_path):
        assert budget.read(tmp_path) == (Budget(), "")
        assert budget.read(tmp_path / "gone") == (Budget(), "")

    def test_both(self, tmp_path, path):
        put(path, '{"max_iterations": 4, "max_cost_usd": 2.5, "note": "x"}')
        assert budget.read(tmp_path) == (Budget(4, Decimal("2.5")), "")

    def test_the_good_half_of_one_counts(self, tmp_path, path):
        put(path, '{"max_iterations": 2, "max_cost_usd": "much"}')
        limits, warning = budget.read(tmp_path)
        assert limits == Budget(2, None)
        assert warning == ".ralph/budget.json: max_cost_usd ignored: not a number from 0 to 1000000000"

    @pytest.mark.parametrize("number", ["-1", "true", "1e10", "NaN", "Infinity", "1" + "0" * 400, '"1"', "[]"])
    @pytest.mark.parametrize("key", ["max_iterations", "max_cost_usd"])
    def test_what_is_no_limit_is_told(self, tmp_path, path, key, number):
        put(path, f'{{"{key}": {number}}}')
        limits, warning = budget.read(tmp_path)
        assert limits == Budget()
        assert key in warning

    @pytest.mark.parametrize("text", ["", "{", "[]", "null", "[" * 9999, '{"max_iterations": 1' + "0" * 5000 + "}"])
    def test_nonsense_is_told(self, tmp_path, path, text):
        put(path, text)
        limits, warning = budget.read(tmp_path)
        assert limits == Budget()
        assert ".ralph/budget.json is ignored" in warning

    def test_a_large_one_is_not_read(self, tmp_path, path):
        put(path, '{"max_iterations": 1}' + " " * budget.MAX_BYTES)
        limits, warning = budget.read(tmp_path)
        assert limits == Budget()
        assert "larger than" in warning

    @pytest.mark.parametrize("what", ["link", "fifo", "folder"])
    def test_what_is_not_a_plain_file_is_told(self, tmp_path, path, what):
        path.parent.mkdir()
        (tmp_path / "other.json").write_text('{"max_iterations": 1}')
        {
            "link": lambda: path.symlink_to(tmp_path / "other.json"),
            "fifo": lambda: os.mkfifo(path),
            "folder": path.mkdir,
        }[what]()
        limits, warning = budget.read(tmp_path)
        assert limits == Budget()
        assert "is ignored" in warning

    @given(document=st.dictionaries(st.sampled_from(["max_iterations", "max_cost_usd", "x"]), values))
    def test_any_json(self, tmp_path_factory, document):
        root = tmp_path_factory.mktemp("budget")
        put(root / ".ralph" / "budget.json", json.dumps(document))
        limits, _ = budget.read(root)
        assert limits.iterations is None or limits.iterations >= 0
        assert limits.cost is None or limits.cost >= 0


class TestMark:
    def test_without_a_file(self, tmp_path):
        assert budget.mark(tmp_path) is None

    def test_of_one_that_stays_as_it_was(self, tmp_path):
        budget.write(tmp_path, 3, None)
        before = budget.mark(tmp_path)
        assert budget.mark(tmp_path) == before
        assert budget.read(tmp_path, unless=before) == (Budget(), "")
        assert budget.read(tmp_path, unless=None) == (Budget(3), "")

    @pytest.mark.parametrize("limits", [(3, None), (4, None)])
    def test_of_one_that_was_written_again(self, tmp_path, limits):
        budget.write(tmp_path, 3, None)
        before = budget.mark(tmp_path)
        budget.write(tmp_path, *limits)
        assert budget.mark(tmp_path) != before
        assert budget.read(tmp_path, unless=before) == (Budget(*limits), "")

    def test_of_one_that_was_written_in_place(self, tmp_path, path):
        put(path, '{"max_iterations": 1}')
        os.utime(path, (1, 1))
        before = budget.mark(tmp_path)
        put(path, '{"max_iterations": 1}')
        assert budget.read(tmp_path, unless=before) == (Budget(1), "")

    def test_of_one_that_goes(self, tmp_path):
        budget.write(tmp_path, 3, None)
        before = budget.mark(tmp_path)
        budget.write(tmp_path, None, None)
        assert budget.read(tmp_path, unless=before) == (Budget(), "")


class TestWrite:
    @pytest.mark.parametrize(
        "limits", [(3, Decimal("5.20")), (3, None), (None, Decimal("0.0001")), (0, Decimal(0)), (10**9, Decimal(10**9))]
    )
    def test_is_read_again(self, tmp_path, path, limits):
        budget.write(tmp_path, *limits)
        assert budget.read(tmp_path) == (Budget(*limits), "")
        assert listed(path) == ["budget.json"]

    def test_a_limit_that_is_none_goes(self, tmp_path, path):
        budget.write(tmp_path, 3, Decimal(5))
        budget.write(tmp_path, None, Decimal(6))
        assert json.loads(path.read_text()) == {"max_cost_usd": 6}

    def test_the_file_goes_with_its_last_key(self, tmp_path, path):
        budget.write(tmp_path, 3, Decimal(5))
        budget.write(tmp_path, None, None)
        assert listed(path) == []

    def test_nothing_is_made_for_nothing(self, tmp_path):
        budget.write(tmp_path, None, None)
        assert os.listdir(tmp_path) == []
        (tmp_path / ".ralph").mkdir()
        budget.write(tmp_path, None, None)
        assert os.listdir(tmp_path / ".ralph") == []

    @pytest.mark.parametrize("limits", [(2, Decimal(1)), (None, None)])
    def test_other_keys_stay(self, tmp_path, path, limits):
        put(path, '{"note": "ä", "max_iterations": 9, "deep": {"a": [1, null]}}')
        budget.write(tmp_path, *limits)
        kept = json.loads(path.read_text())
        assert kept.pop("note") == "ä"
        assert kept.pop("deep") == {"a": [1, None]}
        assert kept == ({} if limits[0] is None else {"max_iterations": 2, "max_cost_usd": 1})

    @pytest.mark.parametrize("text", ["", "{", "[1]", '{"x": NaN}', "[" * 9999, "\x00", " " * 70_000])
    def test_what_cannot_be_read_is_replaced(self, tmp_path, path, text):
        put(path, text)
        budget.write(tmp_path, 1, None)
        assert path.read_text() == '{\n  "max_iterations": 1\n}\n'
        put(path, text)
        budget.write(tmp_path, None, None)
        assert listed(path) == []

    @pytest.mark.parametrize(
        "limits", [(-1, None), (10**9 + 1, None), (None, Decimal(-1)), (None, Decimal("nan")), (None, Decimal("inf"))]
    )
    def test_what_would_not_be_read_is_refused(self, tmp_path, limits):
        with pytest.raises(ValueError, match="not a number from 0"):
            budget.write(tmp_path, *limits)
        assert os.listdir(tmp_path) == []

    @pytest.mark.parametrize("limits", [(1, None), (None, None)])
    @pytest.mark.parametrize("inside", [True, False])
    def test_a_folder_that_is_a_link_is_not_followed(self, tmp_path, limits, inside):
        root, other = tmp_path / "demo", tmp_path / ("demo/other" if inside else "other")
        root.mkdir()
        other.mkdir()
        (other / "budget.json").write_text('{"max_iterations": 7}')
        (root / ".ralph").symlink_to(other)
        with pytest.raises(OSError):
            budget.write(root, *limits)
        assert (other / "budget.json").read_text() == '{"max_iterations": 7}'
        assert os.listdir(other) == ["budget.json"]

    @pytest.mark.parametrize("limits", [(1, None), (None, None)])
    @pytest.mark.parametrize("make", [os.symlink, os.link])
    def test_a_file_that_is_a_link_is_replaced(self, tmp_path, path, limits, make):
        path.parent.mkdir()
        precious = tmp_path / "precious"
        precious.write_text("keep")
        make(precious, path)
        budget.write(tmp_path, *limits)
        assert precious.read_text() == "keep"
        assert path.exists() == (limits[0] is not None)
        assert not path.is_symlink()

    def test_what_is_in_the_way_stays(self, tmp_path, path):
        path.mkdir(parents=True)
        with pytest.raises(OSError):
            budget.write(tmp_path, 1, None)
        with pytest.raises(OSError):
            budget.write(tmp_path, None, None)
        assert listed(path) == ["budget.json"]
        (tmp_path / "file").mkdir()
        (tmp_path / "file" / ".ralph").write_text("in the way")
        with pytest.raises(OSError):
            budget.write(tmp_path / "file", 1, None)

    def test_no_project(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            budget.write(tmp_path / "gone", 1, None)
        budget.write(tmp_path / "gone", None, None)

    @pytest.mark.parametrize("step", ["fsync", "replace"])
    def test_a_failure_leaves_the_file_as_it_was(self, tmp_path, path, step, monkeypatch):
        budget.write(tmp_path, 1, None)

        def fail(*_, **__):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, step, fail)
        with pytest.raises(OSError):
            budget.write(tmp_path, 2, None)
        monkeypatch.undo()
        assert budget.read(tmp_path) == (Budget(1), "")
        assert listed(path) == ["budget.json"]

    def test_the_content_is_on_the_disk_before_its_name_and_the_name_before_the_end(self, tmp_path, monkeypatch):
        budget.write(tmp_path, 1, None)
        steps = []
        fsync, replace = os.fsync, os.replace

        def seen_fsync(file):
            steps.append("folder" if os.path.isdir(f"/proc/self/fd/{file}") else "file")
            fsync(file)

        def seen_replace(*args, **more):
            steps.append("name")
            replace(*args, **more)

        monkeypatch.setattr(os, "fsync", seen_fsync)
        monkeypatch.setattr(os, "replace", seen_replace)
        budget.write(tmp_path, 2, None)
        assert steps == ["file", "name", "folder"]

    def test_no_descriptor_is_left_open(self, tmp_path):
        before = len(os.listdir("/proc/self/fd"))
        budget.write(tmp_path, 1, None)
        budget.write(tmp_path, None, None)
        budget.read(tmp_path)
        assert len(os.listdir("/proc/self/fd")) == before
