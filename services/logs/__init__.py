"""Growing log files: written, rotated, read by byte offset, shown as inert text or as HTML spans. A pure leaf."""

from services.logs.ansi import LINE_LIMIT, AnsiState, ansi_html, plain
from services.logs.reading import Chunk, count_lines, read_from, tail_bytes, tail_lines
from services.logs.rotation import Rotation, remove, rotate, size
from services.logs.writing import boundary, open_for_reading, open_log

__all__ = [
    "LINE_LIMIT",
    "AnsiState",
    "Chunk",
    "Rotation",
    "ansi_html",
    "boundary",
    "count_lines",
    "open_for_reading",
    "open_log",
    "plain",
    "read_from",
    "remove",
    "rotate",
    "size",
    "tail_bytes",
    "tail_lines",
]
