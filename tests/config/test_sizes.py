"""How much lies on the disk, while others write and remove there."""

import os
from pathlib import Path

import pytest

from config import sizes

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


def test_what_goes_while_it_is_looked_at_counts_nothing(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "stays").write_bytes(b"x" * 10)
    (tmp_path / "goes").write_bytes(b"x" * 5)
    (tmp_path / "folder").mkdir()
    walk = os.walk

    def racing(folder: Path):
        for place, folders, names in walk(folder):
            (tmp_path / "goes").unlink(missing_ok=True)
            if (tmp_path / "folder").is_dir():
                (tmp_path / "folder").rmdir()
            yield place, folders, names

    monkeypatch.setattr(os, "walk", racing)
    assert sizes.of_tree(tmp_path) == 10


def test_what_is_dear_is_asked_again_only_once_it_is_old(monkeypatch) -> None:
    clock, asked = [1000.0], []
    monkeypatch.setattr(sizes.time, "monotonic", lambda: clock[0])
    count = sizes.kept(seconds=60)(lambda: asked.append(1) or len(asked))
    assert [count(), count()] == [1, 1]
    clock[0] += 59
    assert count() == 1
    clock[0] += 1
    assert [count(), count()] == [2, 2]
