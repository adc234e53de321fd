"""How much lies on the disk, while others write and remove there."""

import contextlib
import os
import subprocess
from pathlib import Path

import pytest

from projects import sizes

pytestmark = pytest.mark.pure


def test_counts_regular_files_at_any_depth_and_follows_no_link(tmp_path: Path) -> None:
    (tmp_path / "a/b").mkdir(parents=True)
    (tmp_path / "one").write_bytes(b"x" * 10)
    (tmp_path / "a/b/two").write_bytes(b"x" * 5)
    (tmp_path / "a/again").symlink_to(tmp_path / "one")
    (tmp_path / "a/round").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a/pipe")
    assert sizes.of_tree(tmp_path) == 15
    assert sizes.of_tree(tmp_path / "nowhere") == 0
    assert sizes.of_files([tmp_path / "one", tmp_path / "nowhere", tmp_path / "a"]) == 10


def test_what_goes_while_it_is_looked_at_counts_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "stays").write_bytes(b"x" * 10)
    (tmp_path / "goes").write_bytes(b"x" * 5)
    (tmp_path / "folder").mkdir()
    scandir = os.scandir

    @contextlib.contextmanager
    def racing(folder: Path):
        with scandir(folder) as entries:
            found = list(entries)
        (tmp_path / "goes").unlink(missing_ok=True)
        if (tmp_path / "folder").is_dir():
            (tmp_path / "folder").rmdir()
        yield found

    monkeypatch.setattr(os, "scandir", racing)
    assert sizes.of_tree(tmp_path) == 10


def test_bottomless_and_closed_directories_are_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x" * 7)
    folder = os.open(tmp_path, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("d" * 5, dir_fd=folder)
        below = os.open("d" * 5, os.O_RDONLY, dir_fd=folder)
        os.close(folder)
        folder = below
    os.close(folder)
    assert sizes.of_tree(tmp_path) == 7
    subprocess.run(["rm", "-rf", str(tmp_path / "ddddd")], check=True)


def test_no_more_entries_are_looked_at_than_may_be(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(4):
            (tmp_path / name / str(number)).write_bytes(b"x")
    measure = sizes.Measure(7)
    assert measure.of(tmp_path / "a") == 4
    assert measure.left == 3
    assert measure.of(tmp_path / "b") is None
    assert measure.of(tmp_path / "nowhere") == 0


def test_what_is_dear_is_asked_again_only_once_it_is_old(monkeypatch) -> None:
    clock, asked = [1000.0], []
    monkeypatch.setattr(sizes.time, "monotonic", lambda: clock[0])
    count = sizes.kept(seconds=60)(lambda: asked.append(1) or len(asked))
    assert [count(), count()] == [1, 1]
    clock[0] += 59
    assert count() == 1
    clock[0] += 1
    assert [count(), count()] == [2, 2]
