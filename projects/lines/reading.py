"""Read lines that anybody may have written: every whole one is found, nothing raises, nothing is changed.

A line ends with LF and with nothing else. What is not one JSON object is a line with a `problem`, and reading goes on
behind it.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

MAX_LINE = 1024 * 1024
MAX_DEPTH = 100
RAW_SHOWN = 500
CHUNK = 256 * 1024
BOM = b"\xef\xbb\xbf"
# No number beyond 64 bits: few programs that read JSON can hold it, and what we tell has to be read again.
_LONG_NUMBER = re.compile(rb"[0-9]{19}")
_SMALLEST, _LARGEST = -(1 << 63), (1 << 64) - 1


class Problem(StrEnum):
    """Why a line is not an event."""

    JSON = "json"
    UTF8 = "utf8"
    SHAPE = "shape"
    """JSON, but not an object, or not one of these."""
    NUL = "nul"
    OVERSIZE = "oversize"
    """More than 1 MiB with its LF."""
    TORN = "torn"
    """The last one, without its LF and not whole."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank: `number` counts from 1, `offset` and `length` (its LF too) are bytes.

    `text` is the line without LF and BOM, only its beginning where it is over the cap; `sha256` is of all of it without
    the LF. `value` is None exactly when there is a `problem`.
    """

    number: int
    offset: int
    length: int
    text: bytes
    sha256: str
    value: dict[str, Any] | None
    problem: str
    terminated: bool

    def malformed(self) -> dict[str, Any]:
        """Return it as the malformed line that REST and pages show."""
        return {
            "line": self.number,
            "offset": self.offset,
            "raw": escaped(self.text),
            "sha256": self.sha256,
            "kind": str(self.problem),
        }


def escaped(text: bytes) -> str:
    """Return at most 500 characters of printable ASCII that stand for the bytes: `\\n`, `\\x00`, `\\xff`."""
    return text[:RAW_SHOWN].decode("latin-1").encode("unicode_escape").decode("ascii")[:RAW_SHOWN]


def parse(text: bytes) -> tuple[dict[str, Any] | None, str]:
    """Return (object, "") or (None, problem) of one line without its LF."""
    if len(text) >= MAX_LINE or b"\0" in text:
        return None, Problem.OVERSIZE if len(text) >= MAX_LINE else Problem.NUL
    try:
        value = json.loads(text.decode())
    except UnicodeDecodeError:
        return None, Problem.UTF8
    except (ValueError, RecursionError):
        return None, Problem.JSON
    if not isinstance(value, dict):
        return None, Problem.SHAPE
    if text.count(b"[") + text.count(b"{") > MAX_DEPTH and not _is_shallow(value, MAX_DEPTH):
        return None, Problem.SHAPE
    return (None, Problem.JSON) if _LONG_NUMBER.search(text) and not _fits(value) else (value, "")


def sound(value: dict[str, Any]) -> str:
    """Return "" for any object: what `read` asks of a line unless it is told more."""
    return ""


def read(
    descriptor: int, *, check: Callable[[dict[str, Any]], str] = sound, start: int = 0, line: int = 0
) -> Iterator[Line]:
    """Yield the lines of an open file from the byte `start`, where `line` lines lie before; blank ones are left out.

    `check` returns a problem for an object that is not one of these, else "". Holds at most one line and a chunk in
    memory. Raises OSError when the disk does.
    """
    place = start

    def chunks() -> Iterator[bytes]:
        nonlocal place
        while chunk := os.pread(descriptor, CHUNK, place):
            place += len(chunk)
            yield chunk

    return _lines(chunks(), check, start, line)


def read_bytes(
    content: bytes, *, check: Callable[[dict[str, Any]], str] = sound, start: int = 0, line: int = 0
) -> Iterator[Line]:
    """Yield the lines of bytes, as `read` does; `start` is where the first byte lies in its file."""
    return _lines(iter([content]), check, start, line)


class _Whole:
    """A line while it is put together: over the cap only its beginning and its hash are kept."""

    __slots__ = ("_hash", "kept", "length")

    def __init__(self) -> None:
        self.kept = b""
        self.length = 0
        self._hash: Any = None

    def add(self, part: bytes) -> None:
        self.length += len(part)
        if self._hash is not None:
            self._hash.update(part)
        elif self.length >= MAX_LINE:
            self._hash = hashlib.sha256(self.kept + part)
            self.kept = (self.kept + part)[:RAW_SHOWN]
        else:
            self.kept = self.kept + part if self.kept else part

    def sha256(self) -> str:
        return (self._hash or hashlib.sha256(self.kept)).hexdigest()

    @property
    def is_over(self) -> bool:
        return self._hash is not None


def _lines(chunks: Iterator[bytes], check: Callable[[dict[str, Any]], str], offset: int, number: int) -> Iterator[Line]:
    whole = _Whole()
    for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for part in ended:
            whole.add(part)
            number += 1
            if (line := _line(whole, number, offset, check, terminated=True)) is not None:
                yield line
            offset += whole.length + 1
            whole = _Whole()
        whole.add(rest)
    if whole.length and (line := _line(whole, number + 1, offset, check, terminated=False)) is not None:
        yield line


def _line(
    whole: _Whole, number: int, offset: int, check: Callable[[dict[str, Any]], str], *, terminated: bool
) -> Line | None:
    text = whole.kept.removeprefix(BOM) if offset == 0 else whole.kept
    if not whole.is_over and not text.strip():
        return None
    value, problem = (None, str(Problem.OVERSIZE)) if whole.is_over else parse(text)
    if value is None and not terminated:
        problem = Problem.TORN
    elif value is not None and (problem := check(value)):
        value = None
    length = whole.length + terminated
    return Line(number, offset, length, text, whole.sha256(), value, str(problem), terminated)


def _is_shallow(value: object, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return True
    inner = value.values() if isinstance(value, dict) else value
    return depth > 0 and all(_is_shallow(item, depth - 1) for item in inner)


def _fits(value: object) -> bool:
    """Say whether no integer in a value is beyond 64 bits; its depth was checked."""
    if isinstance(value, dict | list):
        return all(map(_fits, value.values() if isinstance(value, dict) else value))
    return not isinstance(value, int) or _SMALLEST <= value <= _LARGEST
