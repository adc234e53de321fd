"""Logs rotated while a child holds them open: nothing is lost that is not told of."""

import contextlib
import errno
import os
import random
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from resource import RLIMIT_FSIZE, getrlimit, setrlimit
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.logs import Rotation, open_log, read_from, remove, rotate, rotation, size, tail_bytes, tail_lines

pytestmark = pytest.mark.pure

NAME = "7-web.log"
KIB = 1024
MIB = 1024 * 1024
NOBODY_WAITS_S = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "logs").mkdir(mode=0o700)
    return tmp_path / "logs"


@pytest.fixture
def no_punching(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(rotation, "punch", refuse)


def append(folder: Path, content: bytes, name: str = NAME) -> None:
    fd = open_log(folder, name)
    try:
        while content:
            content = content[os.write(fd, content) :]
    finally:
        os.close(fd)


def lines(start: int, end: int) -> bytes:
    """Return lines of 16 bytes, numbered."""
    return b"".join(b"line %10d\n" % n for n in range(start, end))


def live(folder: Path, head: int) -> bytes:
    return (folder / NAME).read_bytes()[head:]


def archive(folder: Path, generation: int = 1) -> bytes:
    """Return what a person sees who looks with zcat."""
    path = folder / f"{NAME}.{generation}.gz"
    return subprocess.run(["gzip", "-dc", path], stdout=subprocess.PIPE, check=True).stdout


def archives(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != NAME)


def blocks(path: Path) -> int:
    """Return the bytes that a file takes on the disk."""
    return path.stat().st_blocks * 512


def incompressible(length: int) -> bytes:
    return random.Random(1).randbytes(length // 2).hex().encode()


def test_a_small_log_is_left_alone(folder: Path) -> None:
    append(folder, lines(0, 4096))
    assert rotate(folder, NAME, 0, limit=64 * KIB) == Rotation(0)
    assert rotate(folder, NAME, 1000, limit=64 * KIB) == Rotation(1000)
    assert rotate(folder, NAME, 10_000_000, limit=64 * KIB) == Rotation(0), "that head was of an earlier file"
    assert archives(folder) == []
    append(folder, b"\n")
    assert rotate(folder, NAME, 1, limit=64 * KIB) == Rotation(1)
    assert rotate(folder, NAME, 0, limit=64 * KIB).mode == "punch"


def test_the_oldest_part_is_archived_and_its_space_freed(folder: Path) -> None:
    content = lines(0, 65_536)
    append(folder, content)
    before = (folder / NAME).stat()
    taken = rotate(folder, NAME, 0, limit=256 * KIB)
    assert taken == Rotation(MIB - 128 * KIB, archived=MIB - 128 * KIB, mode="punch")
    assert archive(folder) == content[: taken.head]
    assert live(folder, taken.head) == content[taken.head :]
    after = (folder / NAME).stat()
    assert (after.st_size, after.st_ino) == (MIB, before.st_ino)
    assert blocks(folder / NAME) <= 128 * KIB + 3 * 4096
    assert (folder / f"{NAME}.1.gz").stat().st_mode & 0o777 == 0o600
    assert size(folder, NAME, taken.head) == 128 * KIB
    assert rotate(folder, NAME, taken.head, limit=256 * KIB) == Rotation(taken.head)


def test_cuts_fall_on_line_ends(folder: Path) -> None:
    content = b"".join(b"x" * (n % 997) + b"\n" for n in range(2000))
    append(folder, content)
    taken = rotate(folder, NAME, 0, limit=100 * KIB, at_once=200 * KIB)
    told, _, archived = archive(folder).partition(b"\n")
    assert told == b"--- andon: %d bytes dropped ---" % taken.dropped
    assert archived == content[taken.dropped : taken.head]
    assert content[taken.dropped - 1 : taken.dropped] == content[taken.head - 1 : taken.head] == b"\n"
    assert (taken.archived, taken.mode) == (len(archived), "punch")
    assert 198 * KIB <= taken.archived <= 201 * KIB
    assert taken.archived + taken.dropped + size(folder, NAME, taken.head) == len(content)
    assert 50 * KIB <= size(folder, NAME, taken.head) <= 51 * KIB


def test_the_newest_of_what_must_go_is_archived(folder: Path) -> None:
    """So that an archive ends where the log begins."""
    append(folder, lines(0, 65_536))
    taken = rotate(folder, NAME, 0, limit=128 * KIB, at_once=320 * KIB)
    assert archive(folder) == b"--- andon: 655360 bytes dropped ---\n" + lines(40_960, 61_440)
    assert live(folder, taken.head) == lines(61_440, 65_536)


def test_three_generations_are_kept(folder: Path) -> None:
    head, heads = 0, [0]
    for n in range(6):
        append(folder, lines(n * 8192, (n + 1) * 8192))
        head = rotate(folder, NAME, head, limit=64 * KIB).head
        heads.append(head)
        assert len(archives(folder)) == min(n + 1, 3)
    assert archives(folder) == [f"{NAME}.{n}.gz" for n in (1, 2, 3)]
    content = lines(0, 6 * 8192)
    for generation in (1, 2, 3):
        assert archive(folder, generation) == content[heads[-1 - generation] : heads[-generation]]
    rotate(folder, NAME, 0, limit=KIB, keep=1)
    assert archive(folder, 2) == content[heads[-3] : heads[-2]]


def test_a_gap_between_generations_is_filled_first(folder: Path) -> None:
    for generation in (1, 3):
        (folder / f"{NAME}.{generation}.gz").write_bytes(b"%d" % generation)
    append(folder, lines(0, 8192))
    rotate(folder, NAME, 0, limit=64 * KIB)
    assert (folder / f"{NAME}.2.gz").read_bytes() == b"1"
    assert (folder / f"{NAME}.3.gz").read_bytes() == b"3"
    assert archive(folder).startswith(b"line ")


@pytest.mark.parametrize("length", [300, 1000])
def test_a_line_longer_than_the_limit_is_cut_between_characters(folder: Path, length: int) -> None:
    content = "é😀".encode() * (length * KIB // 6)
    append(folder, b"x" + content)
    taken = rotate(folder, NAME, 0, limit=100 * KIB, at_once=150 * KIB + 1)
    assert taken.mode == "punch"
    assert abs(size(folder, NAME, taken.head) - 50 * KIB) < 4
    assert abs(taken.archived - min(150 * KIB, taken.head)) < 6
    assert taken.archived + taken.dropped == taken.head
    shown = archive(folder).decode().removeprefix(f"--- andon: {taken.dropped} bytes dropped ---\n")
    assert len(shown.encode()) == taken.archived
    assert tail_bytes(folder / NAME, tail=MIB, head=taken.head).text == live(folder, taken.head).decode()


def test_a_line_end_is_sought_behind_the_cut_too(folder: Path) -> None:
    append(folder, b"x" * 260 * KIB + b"\n" + b"y" * 40 * KIB)
    taken = rotate(folder, NAME, 0, limit=100 * KIB)
    assert live(folder, taken.head) == b"y" * 40 * KIB


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    rounds=st.lists(st.lists(st.integers(0, 30_000), max_size=12), min_size=1, max_size=6),
    at_once=st.sampled_from([0, 1, 5000, 20_000, 10**9]),
    limit=st.sampled_from([0, 10, 8192, 40_000]),
    refused=st.booleans(),
)
def test_every_byte_is_in_the_log_or_archived_or_told_of(
    folder: Path, rounds: list[list[int]], at_once: int, limit: int, refused: bool
) -> None:
    remove(folder, NAME)
    written, head, gone, base = b"", 0, 0, 0
    fallocate = rotation._fallocate
    with pytest.MonkeyPatch.context() as patch:
        if refused:

            def refuse(fd: int, length: int) -> None:
                raise OSError(errno.EOPNOTSUPP, "Operation not supported")

            patch.setattr(rotation, "punch", refuse)
        for widths in rounds:
            added = b"".join(b"%05d" % width + b"z" * width + b"\n" for width in widths)
            append(folder, added)
            written += added
            taken = rotate(folder, NAME, head, limit=limit, at_once=at_once)
            assert taken.error == ""
            if taken.mode != "none":
                told = b"--- andon: %d bytes dropped ---\n" % taken.dropped if taken.dropped else b""
                end = gone + taken.archived + taken.dropped
                assert archive(folder) == told + written[gone + taken.dropped : end]
                assert taken.archived <= at_once + 3
            gone += taken.archived + taken.dropped
            head = taken.head
            base = gone if taken.mode == "copytruncate" else base
            assert live(folder, head) == written[gone:]
            assert head == gone - base
            assert size(folder, NAME, head) == len(written) - gone <= max(limit, 0)
    assert rotation._fallocate is fallocate


WRITER = """
import os, sys, time
n, pause = 0, float(sys.argv[1])
block = int(sys.argv[2])
until = time.monotonic() + float(sys.argv[3])
start = time.monotonic()
while time.monotonic() < until:
    out = b"".join(b"line %10d\\n" % k for k in range(n, n + block))
    while out:
        out = out[os.write(1, out):]
    n += block
    time.sleep(pause)
print("end", file=sys.stderr)
"""


@pytest.fixture
def writing(folder: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    """Start a child whose standard output is the log; it writes numbered lines for some seconds."""
    children = []

    def start(pause_s: float, block: int, seconds: float, script: str = WRITER) -> subprocess.Popen[bytes]:
        fd = open_log(folder, NAME)
        try:
            arguments = [str(pause_s), str(block), str(seconds)]
            child = subprocess.Popen([sys.executable, "-c", script, *arguments], stdout=fd, stderr=subprocess.DEVNULL)
        finally:
            os.close(fd)
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.wait()


def test_a_child_that_goes_on_writing_loses_no_line(folder: Path, writing: Callable[..., Any]) -> None:
    child = writing(0.001, 100, 1.0)
    head, rotations, archived = 0, 0, b""
    deadline = time.monotonic() + NOBODY_WAITS_S
    while child.poll() is None:
        assert time.monotonic() < deadline
        taken = rotate(folder, NAME, head, limit=32 * KIB)
        assert (taken.error, taken.dropped) == ("", 0)
        if taken.mode == "punch":
            rotations += 1
            archived += archive(folder)
            assert len(archived) == taken.head
        head = taken.head
        time.sleep(0.01)
    assert child.returncode == 0
    assert rotations >= 3
    whole = archived + live(folder, head)
    assert whole == lines(0, len(whole) // 16)
    assert (folder / NAME).stat().st_size == len(whole)


def test_a_child_goes_on_after_copy_and_truncate(folder: Path, writing: Callable[..., Any], no_punching: None) -> None:
    """What it writes in the instant of the truncation may be lost; the rest stays whole and in order."""
    child = writing(0.001, 100, 1.0)
    head, rotations, archived = 0, 0, b""
    deadline = time.monotonic() + NOBODY_WAITS_S
    while child.poll() is None:
        assert time.monotonic() < deadline
        taken = rotate(folder, NAME, head, limit=32 * KIB)
        assert taken.error == ""
        if taken.mode == "copytruncate":
            rotations += 1
            archived += archive(folder)
        assert (taken.head, taken.mode) in {(0, "none"), (0, "copytruncate")}
        time.sleep(0.01)
    assert rotations >= 3
    whole = archived + live(folder, head)
    assert b"\0" not in whole
    numbers = [int(line[5:]) for line in whole.splitlines() if len(line) == 15]
    assert numbers == sorted(set(numbers))
    assert len(numbers) * 16 >= len(whole) - 100
    assert blocks(folder / NAME) < 10 * MIB


def test_the_disk_of_a_flood_stays_bounded(folder: Path, writing: Callable[..., Any]) -> None:
    """50 MB/s with a look each 0.1 s, instead of each second or half minute, at a tenth of the sizes."""
    child = writing(0.02, 65_536, 2.0)
    head = archived = dropped = rotations = 0
    deadline = time.monotonic() + NOBODY_WAITS_S
    while child.poll() is None:
        assert time.monotonic() < deadline
        taken = rotate(folder, NAME, head, limit=MIB, at_once=3 * MIB)
        assert taken.error == ""
        rotations += taken.mode == "punch"
        head, archived, dropped = taken.head, archived + taken.archived, dropped + taken.dropped
        assert archived + dropped == head
        text = read_from(folder / NAME, offset=head, head=head, limit=100).text
        assert not text or text.startswith("line ")
        # A file system may have reserved some more for a file that grows.
        assert blocks(folder / NAME) < 2 * size(folder, NAME, head) + 8 * MIB
        time.sleep(0.1)
    written = (folder / NAME).stat().st_size
    assert written > 10 * MIB
    assert rotations >= 2
    taken = rotate(folder, NAME, head, limit=MIB)
    assert archived + taken.archived + dropped + taken.dropped + size(folder, NAME, taken.head) == written
    assert sum(blocks(path) for path in folder.iterdir()) < written // 4


class Killed(BaseException):
    """What no `except` stops, as nothing stops SIGKILL."""


STEPS = ["unlink", "open", "write", "fdatasync", "rename", "pwrite", "ftruncate"]


@pytest.mark.parametrize("refused", [False, True])
@pytest.mark.parametrize("after", [False, True])
def test_killed_at_any_point_no_line_is_lost(folder: Path, after: bool, refused: bool) -> None:
    fatal, killed = 0, True
    while killed:
        remove(folder, NAME)
        append(folder, lines(0, 5000))
        with pytest.MonkeyPatch.context() as patch:
            if refused:
                _refuse(patch)
            head = rotate(folder, NAME, 0, limit=64 * KIB).head
        append(folder, lines(5000, 10_000))
        # The last round is killed when all is done, before the caller has stored the new head.
        killed = _dies(folder, head, fatal, after=after, refused=refused)
        _nothing_is_missing(folder, head)
        append(folder, lines(10_000, 20_000))
        with pytest.MonkeyPatch.context() as patch:
            if refused:
                _refuse(patch)
            taken = rotate(folder, NAME, head, limit=64 * KIB)
        assert (taken.error, taken.dropped) == ("", 0)
        _nothing_is_missing(folder, taken.head, upto=20_000)
        assert not any(name.endswith("part") for name in archives(folder))
        fatal += 1
    assert fatal > 8


def _refuse(patch: pytest.MonkeyPatch) -> None:
    def refuse(fd: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    patch.setattr(rotation, "punch", refuse)


def _dies(folder: Path, head: int, fatal: int, *, after: bool, refused: bool) -> bool:
    """Rotate; the n-th call that changes anything is the last, before or after it took effect."""
    left = fatal

    def last(call: Callable[..., Any]) -> Callable[..., Any]:
        def called(*args: Any, **keywords: Any) -> Any:
            nonlocal left
            left -= 1
            if left == -1 and not after:
                raise Killed
            try:
                return call(*args, **keywords)
            finally:
                if left == -1:
                    raise Killed

        return called

    with pytest.MonkeyPatch.context() as patch:
        if refused:
            _refuse(patch)
        for step in STEPS:
            patch.setattr(os, step, last(getattr(os, step)))
        patch.setattr(rotation, "punch", last(rotation.punch))
        try:
            rotate(folder, NAME, head, limit=64 * KIB)
        except Killed:
            return True
    assert left >= 0
    return False


def _nothing_is_missing(folder: Path, head: int, upto: int = 10_000) -> None:
    shown = tail_bytes(folder / NAME, tail=4 * MIB, head=head)
    assert "\0" not in shown.text
    seen = set(shown.text.splitlines())
    for name in archives(folder):
        if name.endswith(".part"):
            continue
        seen |= set(zlib.decompress((folder / name).read_bytes(), wbits=31).decode().splitlines())
    assert not set(lines(0, upto).decode().splitlines()) - seen
    assert shown.text.endswith(f"line {upto - 1:10}\n")


def test_a_full_disk_stops_neither_rotation_nor_loses_the_newest(folder: Path) -> None:
    content = incompressible(300 * KIB)
    append(folder, content)
    before = getrlimit(RLIMIT_FSIZE)
    setrlimit(RLIMIT_FSIZE, (20 * KIB, before[1]))
    try:
        taken = rotate(folder, NAME, 0, limit=64 * KIB)
    finally:
        setrlimit(RLIMIT_FSIZE, before)
    assert taken == Rotation(
        268 * KIB, dropped=268 * KIB, mode="punch", error="The archive could not be written: File too large."
    )
    assert archives(folder) == []
    assert live(folder, taken.head) == content[taken.head :]
    assert blocks(folder / NAME) <= 32 * KIB + 3 * 4096


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "andon-test", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"no file system may be mounted here: {mounted.stderr.decode().strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_what_a_full_disk_dropped_is_told_in_the_log(small_disk: Path) -> None:
    fd = open_log(small_disk, NAME)
    written = b""
    try:
        block = incompressible(16 * KIB)[:-1] + b"\n"
        with contextlib.suppress(OSError):
            while True:
                written += block[: os.write(fd, block)]
        assert len(written) > MIB // 2
        taken = rotate(small_disk, NAME, 0, limit=256 * KIB)
        assert "No space left" in taken.error
        assert (taken.archived, taken.mode) == (0, "punch")
        told = b"--- andon: %d bytes dropped. The archive could not be written: No space left on device ---\n"
        assert live(small_disk, taken.head) == written[taken.head :] + told % taken.dropped
        assert os.write(fd, b"goes on\n") == 8
        append(small_disk, lines(0, 16_384))
        taken = rotate(small_disk, NAME, taken.head, limit=256 * KIB)
        assert taken.error == ""
        assert archives(small_disk) == [f"{NAME}.1.gz"]
    finally:
        os.close(fd)


def test_where_punching_is_refused_the_log_is_copied_and_truncated(folder: Path, no_punching: None) -> None:
    append(folder, lines(0, 65_536))
    inode = (folder / NAME).stat().st_ino
    taken = rotate(folder, NAME, 0, limit=256 * KIB)
    assert taken == Rotation(0, archived=MIB - 128 * KIB, mode="copytruncate")
    assert archive(folder) + live(folder, 0) == lines(0, 65_536)
    assert (folder / NAME).stat().st_size == 128 * KIB
    assert (folder / NAME).stat().st_ino == inode
    append(folder, b"goes on\n")
    assert tail_lines(folder / NAME, lines=1).text == "goes on\n"


def test_what_could_not_be_copied_is_told(folder: Path, no_punching: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "AT_ONCE", 0)
    append(folder, lines(0, 65_536))
    taken = rotate(folder, NAME, 0, limit=256 * KIB, at_once=MIB)
    assert taken == Rotation(0, archived=MIB - 128 * KIB, dropped=128 * KIB, mode="copytruncate")
    assert live(folder, 0) == b"--- andon: 131072 bytes dropped ---\n"


def test_offsets_begin_anew_before_the_file_system_ends(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rotation, "RESTART_AT", MIB)
    append(folder, lines(0, 65_536))
    head = rotate(folder, NAME, 0, limit=256 * KIB).head
    append(folder, lines(65_536, 90_000))
    taken = rotate(folder, NAME, head, limit=256 * KIB)
    assert (taken.head, taken.mode) == (0, "copytruncate")
    assert archive(folder, 2) + archive(folder) + live(folder, 0) == lines(0, 90_000)


def test_what_cannot_be_freed_is_freed_later(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(fd: int, length: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    append(folder, lines(0, 65_536))
    with monkeypatch.context() as patch:
        patch.setattr(rotation, "punch", fail)
        taken = rotate(folder, NAME, 0, limit=256 * KIB)
    assert taken == Rotation(MIB - 128 * KIB, archived=MIB - 128 * KIB, error="No space was freed: Input/output error.")
    append(folder, lines(65_536, 80_000))
    taken = rotate(folder, NAME, taken.head, limit=256 * KIB)
    assert taken.mode == "punch"
    assert archive(folder, 2) + archive(folder) + live(folder, taken.head) == lines(0, 80_000)
    assert blocks(folder / NAME) <= 128 * KIB + 3 * 4096


def test_a_hole_that_the_head_does_not_tell_of_is_not_archived(folder: Path) -> None:
    append(folder, lines(0, 65_536))
    head = rotate(folder, NAME, 0, limit=256 * KIB).head
    found = rotate(folder, NAME, 0, limit=256 * KIB)
    assert (found.mode, found.archived) == ("none", 0)
    assert head - 4096 < found.head <= head
    append(folder, lines(65_536, 131_072))
    taken = rotate(folder, NAME, 0, limit=256 * KIB)
    assert archive(folder) == lines(found.head // 16, taken.head // 16)


def test_links_pipes_and_second_names_are_left_alone(tmp_path: Path, folder: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(lines(0, 65_536))
    (folder / "link").symlink_to(victim)
    os.link(victim, folder / "second")
    os.mkfifo(folder / "fifo")
    (folder / "folder").mkdir()
    (tmp_path / "way").symlink_to(folder)
    append(folder, lines(0, 65_536))
    for path in (
        *(folder / name for name in ("link", "second", "fifo", "folder", "missing", "a\0b", "\ud800", "")),
        *(tmp_path / "way" / NAME, tmp_path / "nowhere" / NAME),
    ):
        taken = rotate(path.parent if path.name != folder.name else folder, path.name, 5, limit=KIB)
        assert taken == Rotation(5, error=taken.error)
        assert taken.error
    assert rotate(folder, "../victim", 5, limit=KIB).error
    assert victim.read_bytes() == lines(0, 65_536)
    assert (folder / NAME).read_bytes() == lines(0, 65_536)
    assert archives(folder) == ["fifo", "folder", "link", "second"]


def test_no_link_laid_for_an_archive_is_followed(tmp_path: Path, folder: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    for suffix in ("1.gz", "2.gz", "3.gz", "gz.part"):
        (folder / f"{NAME}.{suffix}").symlink_to(victim)
    append(folder, lines(0, 65_536))
    assert rotate(folder, NAME, 0, limit=256 * KIB).error == ""
    assert archive(folder).startswith(b"line ")
    assert victim.read_bytes() == b"precious\n"


def test_where_no_archive_can_be_the_oldest_is_dropped_all_the_same(folder: Path) -> None:
    (folder / f"{NAME}.gz.part" / "x").mkdir(parents=True)
    append(folder, lines(0, 65_536) + b"no end")
    taken = rotate(folder, NAME, 0, limit=256 * KIB)
    assert (taken.archived, taken.dropped, taken.mode) == (0, taken.head, "punch")
    assert taken.error == "The archive could not be written: Is a directory."
    assert live(folder, taken.head).endswith(
        b"no end\n--- andon: %d bytes dropped. The archive could not be written: Is a directory ---\n" % taken.head
    )


def test_a_child_that_truncates_or_blows_up_its_log_harms_only_itself(folder: Path) -> None:
    append(folder, lines(0, 65_536))
    head = rotate(folder, NAME, 0, limit=256 * KIB).head
    os.truncate(folder / NAME, 0)
    append(folder, lines(0, 100))
    taken = rotate(folder, NAME, head, limit=256 * KIB)
    assert taken == Rotation(0)
    assert tail_bytes(folder / NAME, tail=MIB, head=head).text == lines(0, 100).decode()
    os.truncate(folder / NAME, 1 << 40)
    append(folder, b"\nthe end\n")
    began = time.monotonic()
    taken = rotate(folder, NAME, 0)
    assert time.monotonic() - began < 20
    assert taken.archived + taken.dropped + size(folder, NAME, taken.head) == (1 << 40) + 9
    assert size(folder, NAME, taken.head) <= 10 * MIB
    assert tail_lines(folder / NAME, lines=1, head=taken.head).text == "the end\n"
    assert sum(blocks(path) for path in folder.iterdir()) < MIB


def test_size_counts_from_the_head(tmp_path: Path, folder: Path) -> None:
    append(folder, b"0123456789")
    (folder / "link").symlink_to(folder / NAME)
    assert size(folder, NAME, 0) == 10
    assert size(folder, NAME, 4) == 6
    assert size(folder, NAME, 11) == size(folder, NAME, -1) == 10, "that head was of an earlier file"
    for name in ("missing", "link", "../logs", "", "a\0b"):
        assert size(folder, name, 0) == 0
    assert size(tmp_path / "nowhere", NAME, 0) == 0


def test_a_log_is_removed_with_its_archives_and_nothing_else(tmp_path: Path, folder: Path) -> None:
    others = ["17-web.log", "7-webXlog", f"{NAME}.gz", f"{NAME}.1.gz.x", "7-web.log2", f"{NAME}\n"]
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious\n")
    for name in (NAME, *others, f"{NAME}.1.gz", f"{NAME}.3.gz", f"{NAME}.12.gz", f"{NAME}.gz.part"):
        (folder / name).write_bytes(b"x")
    (folder / f"{NAME}.2.gz").symlink_to(victim)
    remove(folder, NAME)
    remove(folder, NAME)
    assert sorted(path.name for path in folder.iterdir()) == sorted(others)
    assert victim.exists()
    remove(tmp_path / "nowhere", NAME)
    with pytest.raises(OSError):
        remove(folder, "../victim")
    (folder / NAME).mkdir()
    (folder / f"{NAME}.1.gz").write_bytes(b"x")
    with pytest.raises(OSError):
        remove(folder, NAME)
    assert not (folder / f"{NAME}.1.gz").exists()


def test_a_child_killed_in_the_middle_leaves_a_log_that_rotates(folder: Path, writing: Callable[..., Any]) -> None:
    child = writing(0, 1000, 60)
    deadline = time.monotonic() + NOBODY_WAITS_S
    while size(folder, NAME, 0) < MIB:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    taken = rotate(folder, NAME, 0, limit=128 * KIB)
    assert archive(folder) == lines(0, taken.head // 16)
