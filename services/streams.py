"""The log of a managed process: opened for one reading, and followed as server-sent events while it grows."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from projects import streams
from projects.access import Identity
from services import logs
from services.logs.reading import first_offset
from services.models import LOG_FOLDER, ManagedProcess
from services.states import LIVE

# As much of a log as a page shows at first.
LOG_TAIL = 128 * 1024


@contextlib.contextmanager
def opened_log(row: ManagedProcess) -> Iterator[int | None]:
    """Open a process's log for reading; gives None when there is none, or something else lies in its place."""
    with contextlib.ExitStack() as stack:
        descriptor = None
        with contextlib.suppress(OSError):
            descriptor = logs.open_for_reading(LOG_FOLDER, row.log_name)
            stack.callback(os.close, descriptor)
        yield descriptor


def log_tail(row: ManagedProcess) -> dict[str, object]:
    """Return the end of a process's log as templates/_log.html shows it."""
    with opened_log(row) as descriptor:
        if descriptor is None:
            return {"html": "", "exists": False}
        chunk = logs.tail_bytes(descriptor, tail=LOG_TAIL, head=row.log_head)
        first = first_offset(descriptor, row.log_head, chunk.size)
    html, _ = logs.ansi_html(chunk.text)
    return {
        "html": html,
        "exists": True,
        "offset": chunk.offset,
        "next_offset": chunk.next_offset,
        "size": chunk.size - first,
        "before": chunk.offset - first,
        "truncated": chunk.offset > first,
    }


def log_stream(identity: Identity, row: ManagedProcess, offset: int) -> AsyncIterator[bytes]:
    """Follow a process's log from a byte offset, negative = from the end.

    Messages as `projects.streams.follow` sends them; `done` once the process has ended for good and all was read.
    """

    def read(offset: int) -> logs.Chunk | None:
        with opened_log(row) as descriptor:
            return None if descriptor is None else logs.read_from(descriptor, offset=offset, head=row.log_head)

    def has_ended() -> bool:
        return not ManagedProcess.objects.filter(pk=row.pk, status__in=LIVE).exists()

    return streams.follow(identity, read, has_ended, offset)
