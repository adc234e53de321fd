"""What is read from a project's files when somebody asks: tails, counts, and nothing from outside."""

import os

import pytest

from projects import disk
from projects.models import Iteration, Project
from services import logs
from tests.projects.files import write_log, write_project


@pytest.fixture
def row(workspace) -> Project:
    root = write_project(workspace / "demo", progress="one\ntwo\nthree\n")
    return Project(slug="demo", path=str(root), prd_path="scripts/ralph/prd.json")


@pytest.fixture
def progress(row):
    return disk.Path(row.path) / "scripts/ralph/progress.txt"


@pytest.fixture
def counted(monkeypatch):
    """Return the list that each count adds (start, end) to."""
    spans = []
    count = logs.count_lines

    def counting(source, *, start_offset=0, end=None):
        spans.append((start_offset, end))
        return count(source, start_offset=start_offset, end=end)

    monkeypatch.setattr(logs, "count_lines", counting)
    return spans


def append(path, text):
    with path.open("a", encoding="utf-8") as file:
        file.write(text)


class TestProgress:
    @pytest.mark.parametrize(
        ("text", "lines", "total"),
        [
            ("", [], 0),
            ("\n", [], 1),
            ("one", ["one"], 1),
            ("one\n", ["one"], 1),
            ("one\ntwo", ["one", "two"], 2),
            ("one\n\n\n", ["one", "", ""], 3),
            ("ä\U0001f600\nb\n", ["ä\U0001f600", "b"], 2),
        ],
    )
    def test_lines_and_total(self, row, progress, text, lines, total):
        progress.write_text(text, encoding="utf-8")
        tail = disk.progress(row, 10)
        assert (tail.lines, tail.total, tail.exists) == (lines, total, True)

    def test_the_last_ones(self, row, progress):
        progress.write_text("".join(f"line {number}\n" for number in range(5000)))
        tail = disk.progress(row, 2)
        assert (tail.lines, tail.total) == (["line 4998", "line 4999"], 5000)
        assert len(disk.progress(row, 1000).lines) == 1000

    def test_bytes_that_are_not_utf_8(self, row, progress):
        progress.write_bytes(b"a\xffb\x00\nc")
        assert disk.progress(row, 5).lines == ["a\ufffdb\x00", "c"]

    def test_absent(self, row, progress):
        progress.unlink()
        assert disk.progress(row, 5) == disk.Tail([], 0, exists=False)

    @pytest.mark.parametrize("kind", ["link", "folder-link", "fifo", "directory"])
    def test_nothing_from_outside_and_nothing_that_blocks(self, row, progress, workspace, kind):
        outside = workspace.parent / "outside"
        outside.mkdir()
        (outside / "progress.txt").write_text("secret\n")
        progress.unlink()
        if kind == "link":
            progress.symlink_to(outside / "progress.txt")
        elif kind == "folder-link":
            progress.parent.rename(workspace.parent / "was")
            progress.parent.symlink_to(outside)
        elif kind == "fifo":
            os.mkfifo(progress)
        else:
            progress.mkdir()
        assert disk.progress(row, 5) == disk.Tail([], 0, exists=False)


class TestCount:
    def test_reads_on_from_where_the_last_count_ended(self, row, progress, counted):
        assert disk.progress(row, 1).total == 3
        append(progress, "four\n")
        assert disk.progress(row, 1).total == 4
        assert disk.progress(row, 1).total == 4
        append(progress, "five")
        assert disk.progress(row, 1).total == 5
        append(progress, " and a half\nsix\n")
        assert disk.progress(row, 1).total == 6
        assert counted == [(0, 14), (14, 19), (19, 19), (19, 23), (23, 39)]

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "shorter\n",
            "sevensevensev\n",
            "as long as it was, and more\nline\n\n\n\n\n",
            "\n" * 14,
            "\n" * 1000,
        ],
    )
    def test_a_file_written_anew_in_place_is_counted_anew(self, row, progress, text):
        assert disk.progress(row, 1).total == 3
        with progress.open("r+") as file:
            file.truncate(0)
            file.write(text)
        assert disk.progress(row, 1).total == text.count("\n")

    def test_a_file_that_took_its_place(self, row, progress):
        disk.progress(row, 1)
        fresh = progress.with_name("fresh")
        fresh.write_text("a\nb\nc\nd\n")
        fresh.replace(progress)
        assert disk.progress(row, 1).total == 4

    def test_what_is_remembered_is_bounded(self, row, progress, monkeypatch):
        monkeypatch.setattr(disk, "_counted", {(0, number): disk._Count() for number in range(1001)})
        assert disk.progress(row, 1).total == 3
        assert len(disk._counted) == 1


class TestIterationLog:
    def read(self, row, number):
        with disk.opened_log(Iteration(project=row, number=number)) as descriptor:
            return None if descriptor is None else os.read(descriptor, 100).decode()

    def test_by_its_number(self, row):
        write_log(disk.Path(row.path), 7, "seven")
        write_log(disk.Path(row.path), 77, "seventy")
        assert self.read(row, 7) == "seven"
        assert self.read(row, 77) == "seventy"
        assert self.read(row, 8) is None

    def test_with_leading_zeros(self, row):
        write_log(disk.Path(row.path), 1).rename(disk.Path(row.path) / "scripts/ralph/logs/iteration-007.log")
        assert self.read(row, 7) == "working\n"
        assert disk.iteration_path(row, 7) == disk.Path("scripts/ralph/logs/iteration-007.log")

    def test_without_a_folder(self, row):
        assert self.read(row, 1) is None

    @pytest.mark.parametrize("kind", ["file", "folder"])
    def test_a_link_out_is_refused(self, row, workspace, kind):
        outside = write_project(workspace.parent / "outside")
        log = write_log(outside, 1, "secret")
        folder = disk.Path(row.path) / "scripts/ralph/logs"
        if kind == "file":
            folder.mkdir()
            (folder / "iteration-1.log").symlink_to(log)
        else:
            folder.symlink_to(log.parent)
        assert self.read(row, 1) is None

    def test_descriptors_are_closed(self, row):
        write_log(disk.Path(row.path), 1)
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            self.read(row, 1)
            disk.progress(row, 1)
        with pytest.raises(RuntimeError), disk.opened(row, disk.Path("scripts/ralph/progress.txt")):
            raise RuntimeError
        assert len(os.listdir("/proc/self/fd")) == before
