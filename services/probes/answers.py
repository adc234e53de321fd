"""The head of an HTTP/1.x answer, read piece by piece (RFC 9112, sections 2.1 and 4)."""

import re

MAX_HEAD = 64 * 1024
_START = b"HTTP/1."
_STATUS_LINE = re.compile(rb"HTTP/1\.[0-9] ([1-9][0-9]{2})(?: [^\r\n]*)?\r?\n")
_END = re.compile(rb"\n\r?\n")


class Malformed(Exception):
    """What came is not the head of an HTTP answer; the text says it in one line, without a byte of it."""


class Head:
    """Collect an answer's head until its final status is known; interim answers (1xx) are skipped.

    101 is final, for nothing follows it in HTTP. So is the status that is expected, whatever it is.
    """

    __slots__ = ("_buffer", "_scanned", "_size", "expected")

    def __init__(self, expected: int) -> None:
        """Read the head of an answer of which this status is expected."""
        self.expected = expected
        self._buffer = bytearray()
        self._scanned = 0
        self._size = 0

    def feed(self, piece: bytes) -> int | None:
        """Take what arrived; return the final status once its head is complete, None before.

        Raises Malformed as soon as it cannot become an answer, and when the head passes 64 KiB.
        """
        self._buffer += piece
        self._size += len(piece)
        while True:
            buffer = self._buffer
            if buffer[: len(_START)] != _START[: len(buffer)]:
                raise Malformed("the answer is not HTTP/1")
            end = _END.search(buffer, self._scanned)
            if end is None:
                if self._size > MAX_HEAD:
                    raise Malformed("the head of the answer is larger than 64 KiB")
                self._scanned = max(0, len(buffer) - 2)
                return None
            # What follows the head is the body, which does not count.
            if self._size - len(buffer) + end.end() > MAX_HEAD:
                raise Malformed("the head of the answer is larger than 64 KiB")
            status = self._status()
            if status is not None:
                return status
            del buffer[: end.end()]
            self._scanned = 0

    def finish(self) -> int:
        """Return the status when the connection ended before the head did; a whole status line is enough.

        Raises Malformed when there is none.
        """
        if not self._buffer and not self._size:
            raise Malformed("closed without an answer")
        status = self._status() if b"\n" in self._buffer else None
        if status is None:
            raise Malformed("closed in the middle of the answer")
        return status

    def _status(self) -> int | None:
        line = _STATUS_LINE.match(self._buffer)
        if line is None:
            raise Malformed("the answer is not HTTP/1")
        status = int(line[1])
        return None if status < 200 and status not in {101, self.expected} else status
