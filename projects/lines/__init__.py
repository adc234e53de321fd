"""Files of one JSON object a line: appended to durably, read without trust (spec/journal.md 1). A pure leaf."""

from projects.lines.appending import Locked, append_line, locked, make_directory, serialise
from projects.lines.reading import (
    BOM,
    MAX_LINE,
    Line,
    Problem,
    escaped,
    parse,
    read,
    read_bytes,
    sound,
)

__all__ = [
    "BOM",
    "MAX_LINE",
    "Line",
    "Locked",
    "Problem",
    "append_line",
    "escaped",
    "locked",
    "make_directory",
    "parse",
    "read",
    "read_bytes",
    "serialise",
    "sound",
]
