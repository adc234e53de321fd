"""Logs opened for appending, so that nothing else is ever written to."""

import fcntl
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from services.logs import boundary, open_for_reading, open_log

pytestmark = pytest.mark.pure


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "logs" / "services"


@pytest.fixture
def log(folder: Path) -> Iterator[int]:
    fd = open_log(folder, "a.log")
    yield fd
    os.close(fd)


@pytest.fixture
def wide_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_a_log_and_its_folders_are_private(wide_umask: None, folder: Path, log: int) -> None:
    assert (mode(folder.parent), mode(folder), mode(folder / "a.log")) == (0o700, 0o700, 0o600)


def test_wider_modes_are_narrowed(wide_umask: None, folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "a.log").write_bytes(b"old\n")
    os.close(open_log(folder, "a.log"))
    assert (mode(folder), mode(folder / "a.log")) == (0o700, 0o600)
    assert mode(folder.parent) == 0o777, "that one is not ours"
    assert (folder / "a.log").read_bytes() == b"old\n"


def test_the_descriptor_appends_blocks_and_is_not_inherited(log: int) -> None:
    flags = fcntl.fcntl(log, fcntl.F_GETFL)
    assert flags & os.O_APPEND
    assert flags & os.O_ACCMODE == os.O_WRONLY
    assert os.get_blocking(log)
    assert not os.get_inheritable(log)


def test_a_child_appends_behind_what_is_there(folder: Path, log: int) -> None:
    os.write(log, b"first\n")
    subprocess.run(["sh", "-c", "echo out; echo err >&2"], stdout=log, stderr=log, check=True)
    os.write(log, b"last\n")
    assert (folder / "a.log").read_bytes() == b"first\nout\nerr\nlast\n"


def test_what_is_no_plain_file_of_one_name_is_refused(tmp_path: Path, folder: Path) -> None:
    folder.mkdir(parents=True)
    other = tmp_path / "other"
    other.write_bytes(b"precious\n")
    (folder / "link").symlink_to(other)
    (folder / "dangling").symlink_to(tmp_path / "made")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    os.link(other, folder / "second")
    reader = os.open(folder / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    try:
        for name in ("link", "dangling", "fifo", "folder"):
            for opening in (open_log, open_for_reading):
                with pytest.raises(OSError):
                    opening(folder, name)
        with pytest.raises(OSError, match="2 names"):
            open_log(folder, "second")
    finally:
        os.close(reader)
    with pytest.raises(OSError):
        open_log(folder, "fifo")
    assert not (tmp_path / "made").exists()
    assert other.read_bytes() == b"precious\n"
    assert mode(other) != 0o600


def test_a_folder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    for opening in (open_log, open_for_reading):
        with pytest.raises(OSError):
            opening(tmp_path / "link", "a.log")
    assert list((tmp_path / "real").iterdir()) == []


@pytest.mark.parametrize("name", ["", ".", "..", "../a.log", "b/a.log", "/etc/passwd", "a\0b", "\ud800", "x" * 300])
def test_what_is_no_name_of_a_file_is_refused(folder: Path, name: str) -> None:
    for opening in (open_log, open_for_reading):
        with pytest.raises(OSError):
            opening(folder, name)
    assert not (folder.parent / "a.log").exists()


def test_a_log_is_opened_for_reading(folder: Path, log: int) -> None:
    os.write(log, b"text\n")
    fd = open_for_reading(folder, "a.log")
    try:
        assert os.read(fd, 100) == b"text\n"
        assert not os.get_inheritable(fd)
        with pytest.raises(OSError):
            os.write(fd, b"x")
    finally:
        os.close(fd)
    with pytest.raises(FileNotFoundError):
        open_for_reading(folder, "missing")


@pytest.mark.parametrize(
    ("before", "between"), [(b"", b""), (b"whole line\n", b""), (b"no end", b"\n"), (b"\n\n", b""), (b"\0", b"\n")]
)
def test_a_boundary_is_a_line_of_its_own(folder: Path, log: int, before: bytes, between: bytes) -> None:
    os.write(log, before)
    boundary(log, "generation 3 started 2026-11-20T15:00:00Z")
    boundary(log, "again")
    expected = before + between + b"--- andon: generation 3 started 2026-11-20T15:00:00Z ---\n--- andon: again ---\n"
    assert (folder / "a.log").read_bytes() == expected


def test_a_boundary_is_one_write(log: int, monkeypatch: pytest.MonkeyPatch) -> None:
    writes = []
    write = os.write

    def counting(fd: int, content: bytes) -> int:
        writes.append(content)
        return write(fd, content)

    write(log, b"no end")
    monkeypatch.setattr(os, "write", counting)
    boundary(log, "started")
    assert writes == [b"\n--- andon: started ---\n"]


def test_the_text_of_a_boundary_is_inert_and_short(folder: Path, log: int) -> None:
    boundary(log, "a\nb\r\x1b[31m\x00\x9b\u2028\u202e\ud800\x7f<é>" + "y" * 10_000)
    lines = (folder / "a.log").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("--- andon: a\ufffdb\ufffd\ufffd[31m" + "\ufffd" * 6 + "<é>yyy")
    assert len(lines[0]) == len("--- andon:  ---") + 500


def test_a_boundary_goes_into_the_file_that_was_opened(folder: Path, log: int) -> None:
    os.write(log, b"no end")
    (folder / "a.log").rename(folder / "b.log")
    (folder / "a.log").write_bytes(b"another\n")
    boundary(log, "started")
    assert (folder / "b.log").read_bytes() == b"no end\n--- andon: started ---\n"
    assert (folder / "a.log").read_bytes() == b"another\n"
