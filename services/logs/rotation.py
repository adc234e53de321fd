"""Rotation of a log that a child holds open for appending (spec/services.md 5).

The oldest part goes into a gzip file and is then punched out of the log, which keeps its inode and its offsets:
the child notices nothing. Readers start at `head`, which the caller stores after each rotation.
"""

import contextlib
import ctypes
import errno
import functools
import os
import re
import stat
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from services.logs.reading import first_offset
from services.logs.writing import boundary, checked, note, open_plain, opened_folder

LIMIT = 10 * 1024 * 1024
KEEP = 3
AT_ONCE = 32 * 1024 * 1024
BLOCK = 1024 * 1024
# A line end is looked for this far from where the cut is wanted, at most.
REACH = 1024 * 1024
PAGE = 4096
# Offsets of a punched file grow for ever, and ext4 ends at 16 TiB: there the child's writes would fail.
RESTART_AT = 1 << 42
# linux/falloc.h
FALLOC_FL_KEEP_SIZE = 1
FALLOC_FL_PUNCH_HOLE = 2
_REFUSALS = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV}
# The gzip format (RFC 1952), rather than zlib's own.
_GZIP = 16 + zlib.MAX_WBITS
_LEVEL = 1


@dataclass(frozen=True, slots=True)
class Rotation:
    """What a rotation did.

    `head` is the offset from which the log counts now, `archived` and `dropped` the bytes of it that went into
    an archive and that are lost. `mode` tells how the space was freed; after "copytruncate" offsets begin anew
    at 0. `error` is "" or a sentence; also then `head`, `archived` and `dropped` say what is.
    """

    head: int
    archived: int = 0
    dropped: int = 0
    mode: Literal["none", "punch", "copytruncate"] = "none"
    error: str = ""


def rotate(
    folder: Path, name: str, head: int, *, limit: int = LIMIT, keep: int = KEEP, at_once: int = AT_ONCE
) -> Rotation:
    """Rotate a log once it has more than `limit` bytes from `head` on; one call at a time for one log.

    About the newest half of `limit` stays (a line that is longer than a quarter of it is cut): more than what a
    tail may show, so that no view is empty after a rotation, and one takes place only every half `limit`. Of
    what is older the newest `at_once` bytes go into `<name>.1.gz`, which so ends where the log begins; the rest
    is dropped, and the first line of the archive says how much. Older archives are renamed up to `<name>.<keep>.gz`.
    An archive that cannot be written (a full disk) is done without: the oldest part is dropped all the same, and
    a line in the log says so.

    In this order: archive, rename, punch. Killed between the last two, the next call archives the same part
    again; killed after, before `head` is stored, readers and the next call find the hole.

    Never raises OSError: it is in `error`. A log that is a link, or no regular file, or has a second name, is
    left alone.
    """
    try:
        with opened_folder(folder) as directory:
            log = open_plain(name, os.O_RDWR, directory=directory, links=1)
            try:
                size = os.fstat(log).st_size
                first = first_offset(log, head, size)
                if size - first <= limit:
                    return Rotation(first)
                reach = min(limit // 4, REACH)
                wanted = size - limit // 2
                cut = _cut(log, max(first, wanted - reach), wanted, min(size, wanted + reach))
                start = cut - at_once
                start = first if start <= first else _cut(log, start - 1, start, min(cut, start + reach))
                return _moved(log, directory, name, first=first, start=start, cut=cut, keep=keep)
            finally:
                os.close(log)
    except OSError as refusal:
        return Rotation(head, error=_told(refusal))


def remove(folder: Path, name: str) -> None:
    """Remove a log and its archives; whatever is missing is fine. Raises OSError after all were tried."""
    checked(name)
    refusal = None
    ours = re.compile(rf"{re.escape(name)}(\.\d+\.gz|\.gz\.part)?")
    try:
        with opened_folder(folder) as directory:
            for found in os.listdir(directory):  # noqa: PTH208 (of a descriptor)
                if ours.fullmatch(found):
                    try:
                        os.unlink(found, dir_fd=directory)
                    except FileNotFoundError:
                        pass
                    except OSError as error:
                        refusal = error
    except FileNotFoundError:
        return
    if refusal is not None:
        raise refusal


def size(folder: Path, name: str, head: int) -> int:
    """Return how many bytes a log has from `head` on; 0 when there is none or it is not a regular file."""
    try:
        with opened_folder(folder) as directory:
            status = os.stat(checked(name), dir_fd=directory, follow_symlinks=False)
    except OSError:
        return 0
    if not stat.S_ISREG(status.st_mode):
        return 0
    return status.st_size - head if 0 <= head <= status.st_size else status.st_size


def _moved(log: int, directory: int, name: str, *, first: int, start: int, cut: int, keep: int) -> Rotation:
    """Archive from `start` to `cut` and drop what lies before."""
    errors = []
    archived, dropped = cut - start, start - first
    try:
        told = note(f"{dropped} bytes dropped") if dropped else b""
        _archive(log, directory, name, told=told, start=start, cut=cut, keep=keep)
    except OSError as refusal:
        archived, dropped = 0, cut - first
        errors.append(f"The archive could not be written: {_told(refusal)}")
    try:
        mode, skipped = _free(log, cut)
    except OSError as refusal:
        # The next call punches from the beginning, and with it what was left here.
        return Rotation(cut, archived, dropped, "none", _sentence([*errors, f"No space was freed: {_told(refusal)}"]))
    dropped += skipped
    if errors or skipped:
        with contextlib.suppress(OSError):
            _tell(directory, name, ". ".join([f"{dropped} bytes dropped", *errors]))
    return Rotation(cut if mode == "punch" else 0, archived, dropped, mode, _sentence(errors))


def _cut(log: int, low: int, wanted: int, high: int) -> int:
    """Return the offset behind the last line end up to `wanted`, else behind the next, else between characters."""
    around = os.pread(log, high - low, low)
    line = around.rfind(b"\n", 0, wanted - low) + 1 or around.find(b"\n", wanted - low) + 1
    if line:
        return low + line
    cut = wanted
    while wanted - cut < 3 and low < cut < high and around[cut - low] & 0xC0 == 0x80:
        cut -= 1
    return cut


def _archive(log: int, directory: int, name: str, *, told: bytes, start: int, cut: int, keep: int) -> None:
    part = f"{checked(name)}.gz.part"
    with contextlib.suppress(FileNotFoundError):
        os.unlink(part, dir_fd=directory)
    archive = open_plain(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, directory=directory)
    try:
        try:
            # The fastest level takes 0.15 s for 32 MiB of a typical log, the usual one 0.5 s for a seventh less.
            compressor = zlib.compressobj(_LEVEL, wbits=_GZIP)
            _write(archive, compressor.compress(told))
            while start < cut and (block := os.pread(log, min(BLOCK, cut - start), start)):
                _write(archive, compressor.compress(block))
                start += len(block)
            _write(archive, compressor.flush())
            # What is punched out next must not exist in memory alone.
            os.fdatasync(archive)
        finally:
            os.close(archive)
        _shift(directory, name, keep)
        os.rename(part, f"{name}.1.gz", src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(part, dir_fd=directory)
        raise


def _shift(directory: int, name: str, keep: int) -> None:
    """Make room for a first generation; a gap, which a crash may leave, is filled before the oldest is given up."""
    last = 1
    while last < keep and _exists(directory, f"{name}.{last}.gz"):
        last += 1
    for generation in range(last - 1, 0, -1):
        before, after = f"{name}.{generation}.gz", f"{name}.{generation + 1}.gz"
        os.rename(before, after, src_dir_fd=directory, dst_dir_fd=directory)


def _exists(directory: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=directory, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _free(log: int, cut: int) -> tuple[Literal["punch", "copytruncate"], int]:
    """Free the space before `cut`; returns how, and how many bytes behind it were lost. Raises OSError."""
    if cut < RESTART_AT:
        try:
            # Whole pages alone, and never the byte before the cut: what is left of a punched page would read as
            # zeros to whoever does not know the new head yet, and the line end there shows where lines begin.
            page = max(PAGE, os.fstat(log).st_blksize)
            punch(log, (cut - 1) // page * page)
        except OSError as refusal:
            if refusal.errno not in _REFUSALS:
                raise
        else:
            return "punch", 0
    return "copytruncate", _copy_and_truncate(log, cut)


def punch(fd: int, length: int) -> None:
    """Free the first `length` bytes of a file; its size stays, they read as zeros. Raises OSError."""
    if length > 0 and _fallocate()(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, length):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


@functools.cache
def _fallocate() -> Callable[[int, int, int, int], int]:
    # os.posix_fallocate only allocates. The 64-bit name is glibc's; elsewhere off_t has 64 bits anyway.
    library = ctypes.CDLL(None, use_errno=True)
    function = getattr(library, "fallocate64", None) or getattr(library, "fallocate", None)
    if function is None:
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    function.restype = ctypes.c_int
    return function  # type: ignore[no-any-return]


def _copy_and_truncate(log: int, cut: int) -> int:
    """Move what is behind `cut` to the beginning and end the file there; returns the bytes that were not moved.

    Over the old part, which is archived by now: killed in the middle, everything new is still there. What the
    child writes between the last read and the truncation is lost and cannot be counted.
    """
    source, target, most = cut, 0, 8 * AT_ONCE
    while target < most and (block := os.pread(log, BLOCK, source)):
        at = 0
        while at < len(block):
            at += os.pwrite(log, block[at:], target + at)
        source += len(block)
        target += len(block)
    # A child that writes faster than this copies would keep us here for ever.
    skipped = max(0, os.fstat(log).st_size - source)
    os.ftruncate(log, target)
    return skipped


def _write(fd: int, content: bytes) -> None:
    while content:
        content = content[os.write(fd, content) :]


def _tell(directory: int, name: str, text: str) -> None:
    log = open_plain(name, os.O_WRONLY | os.O_APPEND, directory=directory, links=1)
    try:
        boundary(log, text)
    finally:
        os.close(log)


def _told(refusal: OSError) -> str:
    return refusal.strerror or "the system refused"


def _sentence(errors: list[str]) -> str:
    return "".join(f"{error}. " for error in errors).strip()
