"""Read lines that anybody may have written: every whole one is found, nothing raises, nothing is changed.

A line ends with LF and with nothing else. What is not one JSON object is a line with a `problem`, and reading goes on
behind it.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import orjson

MAX_LINE = 1024 * 1024
MAX_DEPTH = 100
RAW_SHOWN = 500
CHUNK = 256 * 1024
BOM = b"\xef\xbb\xbf"
# No number beyond 64 bits: few programs that read JSON can hold it, and what we tell has to be read again.
# Nineteen digits in a row may be one; found by telling digits from the rest, ten times as fast as by a pattern.
_DIGITS = bytes(48 if 48 <= code <= 57 else 32 for code in range(256))
_LONG_NUMBER = b"0" * 19
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


@dataclass(slots=True)
class Line:
    """One line that is not blank: `number` counts from 1, `offset` and `length` (its LF too) are bytes.

    `text` is the line without LF and BOM, only its beginning where it is over the cap; `digest` is then the SHA-256 of
    all of it, else "". `value` is None exactly when there is a `problem`.
    """

    number: int
    offset: int
    length: int
    text: bytes
    value: dict[str, Any] | None
    problem: str
    terminated: bool
    digest: str = ""

    @property
    def sha256(self) -> str:
        """The SHA-256 of the line without its LF, in hexadecimal."""
        if self.digest:
            return self.digest
        has_mark = self.length - self.terminated != len(self.text)
        return hashlib.sha256(BOM + self.text if has_mark else self.text).hexdigest()

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
    has_long_number = _LONG_NUMBER in text.translate(_DIGITS)
    try:
        value = _loads(text, exact=has_long_number)
    except UnicodeDecodeError:
        return None, Problem.UTF8
    except (ValueError, RecursionError):
        return None, Problem.JSON
    has_depth = text.count(b"[") + text.count(b"{") > MAX_DEPTH
    if not isinstance(value, dict) or (has_depth and not _is_shallow(value, MAX_DEPTH)):
        return None, Problem.SHAPE
    return (None, Problem.JSON) if has_long_number and not _fits(value) else (value, "")


def _loads(text: bytes, *, exact: bool) -> Any:
    if not exact:
        try:
            # Three times as fast; what it refuses, lone surrogates and NaN among it, is looked at again.
            return orjson.loads(text)
        except ValueError:
            pass
    return json.loads(text.decode())


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


def _lines(chunks: Iterator[bytes], check: Callable[[dict[str, Any]], str], offset: int, number: int) -> Iterator[Line]:
    rest: bytes | _Overlong = b""
    for chunk in chunks:
        first, *others = chunk.split(b"\n")
        if not others:
            rest = _longer(rest, first)
            continue
        *whole, last = others
        for text in (_longer(rest, first), *whole):
            number += 1
            length = len(text) + 1
            if (line := _line(text, number, offset, length, check)) is not None:
                yield line
            offset += length
        rest = _longer(b"", last)
    if len(rest) and (line := _line(rest, number + 1, offset, len(rest), check)) is not None:
        yield line


class _Overlong:
    """A line over the cap while it is put together: its beginning, its length and its hash."""

    def __init__(self, text: bytes) -> None:
        self.kept = text[:RAW_SHOWN]
        self.hash = hashlib.sha256(text)
        self._length = len(text)

    def __len__(self) -> int:
        return self._length

    def add(self, text: bytes) -> "_Overlong":
        self.hash.update(text)
        self._length += len(text)
        return self


def _longer(rest: bytes | _Overlong, text: bytes) -> bytes | _Overlong:
    if isinstance(rest, _Overlong):
        return rest.add(text)
    joined = rest + text if rest else text
    return joined if len(joined) < MAX_LINE else _Overlong(joined)


def _line(
    text: bytes | _Overlong, number: int, offset: int, length: int, check: Callable[[dict[str, Any]], str]
) -> Line | None:
    terminated = length > len(text)
    if isinstance(text, _Overlong):
        problem = Problem.OVERSIZE if terminated else Problem.TORN
        return Line(number, offset, length, text.kept, None, problem, terminated, text.hash.hexdigest())
    if offset == 0:
        text = text.removeprefix(BOM)
    value, problem_ = parse(text)
    if value is not None:
        if problem_ := check(value):
            value = None
    elif not text.strip():
        return None
    elif not terminated:
        problem_ = Problem.TORN
    return Line(number, offset, length, text, value, str(problem_), terminated)


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
