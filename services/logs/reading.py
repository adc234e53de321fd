"""Reading of growing log files by byte offset, never the whole file.

Offsets are absolute in the file. Everything before `head` has been punched out by rotation (spec/services.md
5): it reads as zeros, so no reader starts before it. A head that the reader does not know yet shows as a hole in
the file, perhaps only after reading: then reading starts anew at the first whole line behind it. A head beyond
the end belongs to an earlier file and counts as 0. A source is a descriptor (its position is not used, and left
where it was) or a path, opened without following a last symlink.
"""

import codecs
import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

Source: TypeAlias = int | str | os.PathLike[str]

BLOCK = 64 * 1024
MAX_TAIL = 4 * 1024 * 1024
_LONGEST_CHARACTER = 4


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a log file.

    `offset` is that of the first byte, `next_offset` where to go on reading, `text` what lies between (UTF-8,
    broken bytes as U+FFFD), `size` the length of the file in bytes, punched part included. `truncated` tells
    that something before `offset` was left out, or, from `read_from`, that the asked offset is not in the
    file any more.
    """

    offset: int
    next_offset: int
    text: str
    size: int
    truncated: bool


def tail_bytes(source: Source, *, tail: int, head: int = 0) -> Chunk:
    """Read the last `tail` bytes, or all from `head` on if that is less.

    A first line that is cut is dropped if anything remains then; else the cut falls between two characters. A
    character still incomplete at the end is left for `read_from(next_offset)`. Raises ValueError for a
    negative `tail`, OSError when the file cannot be read or is not a regular one.
    """
    if tail < 0:
        raise ValueError("tail is a number of bytes")
    with _descriptor(source) as fd:
        size = os.fstat(fd).st_size
        first = first_offset(fd, head, size)
        chunk = _window(fd, max(first, size - tail), first, size)
        left = first_offset(fd, chunk.offset, size)
        return chunk if left == chunk.offset else tail_bytes(fd, tail=tail, head=left)


def tail_lines(source: Source, *, lines: int, head: int = 0) -> Chunk:
    """Read the last `lines` lines (ended by LF; a last one without it counts), at most 4 MiB of them.

    Reads backwards in blocks of 64 KiB and stops at the first that completes the count. Ends and raises as
    `tail_bytes` does.
    """
    if lines < 0:
        raise ValueError("lines is a number of lines")
    with _descriptor(source) as fd:
        size = os.fstat(fd).st_size
        first = first_offset(fd, head, size)
        floor = max(first, size - MAX_TAIL)
        if lines == 0:
            return _chunk(b"", size, size, truncated=size > first)
        blocks: list[bytes] = []
        start, breaks, wanted = size, 0, lines
        while start > floor and breaks < wanted:
            length = min(BLOCK, start - floor)
            start -= length
            block = _read(fd, start, length)
            if not blocks and block.endswith(b"\n"):
                wanted += 1
            blocks.append(block)
            breaks += block.count(b"\n")
        if breaks < wanted:
            chunk = _window(fd, floor, first, size)
        else:
            content = b"".join(reversed(blocks))
            cut = len(content)
            for _ in range(wanted):
                cut = content.rindex(b"\n", 0, cut)
            chunk = _chunk(content[cut + 1 :], start + cut + 1, size, truncated=True)
        left = first_offset(fd, chunk.offset, size)
        return chunk if left == chunk.offset else tail_lines(fd, lines=lines, head=left)


def read_from(source: Source, *, offset: int, limit: int = 262_144, head: int = 0) -> Chunk:
    """Read at most `limit` bytes (4 at the least) from a byte offset forward.

    A character that is incomplete at the end is left for the next read, so the texts of consecutive reads add
    up to the decoded file; with nothing new, `next_offset == offset`. An offset beyond the end (the file was
    rewritten) or before `head` (rotated away) starts again at `head`, with `truncated`. A negative offset counts
    from the end, 4 MiB at most, and starts where `tail_bytes` would. Raises OSError as `tail_bytes` does.
    """
    with _descriptor(source) as fd:
        size = os.fstat(fd).st_size
        first = first_offset(fd, head, size)
        limit = max(limit, _LONGEST_CHARACTER)
        if offset < 0:
            tail = _window(fd, max(first, size + max(offset, -MAX_TAIL)), first, size)
            start, lost = tail.offset, tail.truncated
        else:
            lost = not first <= offset <= size
            start = first if lost else offset
        while True:
            content = _read(fd, start, min(limit, size - start))
            left = first_offset(fd, start, size)
            if left == start:
                return _chunk(content, start, size, truncated=lost)
            start, lost = left, True


def count_lines(source: Source, *, start_offset: int = 0, end: int | None = None, head: int = 0) -> int:
    """Count the LF from `start_offset`, or `head` if that comes later, up to `end` (bytes; None: the present end).

    To keep a total of a growing file, count from the `end` of the last time. Raises OSError as `tail_bytes`
    does.
    """
    with _descriptor(source) as fd:
        size = os.fstat(fd).st_size
        end = size if end is None else min(end, size)
        start_offset = max(start_offset, first_offset(fd, head, size))
        count = 0
        for start in range(start_offset, end, BLOCK):
            count += _read(fd, start, min(BLOCK, end - start)).count(b"\n")
        return count


def first_offset(fd: int, head: int, size: int) -> int:
    """Return where the log in a file of `size` bytes begins: at `head`, or at the first whole line behind a hole.

    The hole ends at a page; where no line ends within 64 KiB from there, between two characters.
    """
    head = head if 0 <= head <= size else 0
    position = os.lseek(fd, 0, os.SEEK_CUR)
    try:
        start = min(os.lseek(fd, head, os.SEEK_DATA), size)
    except OSError as refusal:
        # ENXIO: from here to the end there is nothing but a hole.
        return size if refusal.errno == errno.ENXIO else head
    finally:
        os.lseek(fd, position, os.SEEK_SET)
    if start == head:
        return head
    block = _read(fd, start, min(BLOCK, size - start))
    return start + (block.find(b"\n") + 1 or _character(block, 0))


@contextlib.contextmanager
def _descriptor(source: Source) -> Iterator[int]:
    if isinstance(source, int):
        yield source
        return
    # Without O_NONBLOCK a FIFO laid where the log should be would hold us for ever.
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, "not a regular file", os.fspath(source))
        yield fd
    finally:
        os.close(fd)


def _read(fd: int, start: int, length: int) -> bytes:
    """Read `length` bytes at `start`, fewer only when the file ends before."""
    pieces: list[bytes] = []
    while length > 0:
        piece = os.pread(fd, length, start)
        if not piece:
            break
        pieces.append(piece)
        start += len(piece)
        length -= len(piece)
    return b"".join(pieces)


def _window(fd: int, start: int, first: int, size: int) -> Chunk:
    """Read from `start` to `size`, without the line or the character that `start` falls into."""
    if start <= first:
        return _chunk(_read(fd, first, size - first), first, size, truncated=False)
    content = _read(fd, start - 1, size - start + 1)
    line_end = content.find(b"\n")
    skip = line_end + 1 if 0 <= line_end < len(content) - 1 else _character(content, 1)
    return _chunk(content[skip:], start - 1 + skip, size, truncated=True)


def _character(content: bytes, start: int) -> int:
    """Return where the next character begins, `start` or behind the rest of one that was cut."""
    end = min(start + _LONGEST_CHARACTER - 1, len(content))
    while start < end and content[start] & 0xC0 == 0x80:
        start += 1
    return start


def _chunk(content: bytes, start: int, size: int, *, truncated: bool) -> Chunk:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(content)
    unfinished, _flags = decoder.getstate()
    end = start + len(content) - len(unfinished)
    return Chunk(offset=start, next_offset=end, text=text, size=size, truncated=truncated)
