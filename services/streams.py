"""The log of a managed process: opened for one reading, and followed as server-sent events while it grows."""

import contextlib
import os
from collections.abc import AsyncIterator, Iterator

from projects import streams
from projects.access import Identity
from services import logs
from services.models import LOG_FOLDER, ManagedProcess
from services.states import LIVE


@contextlib.contextmanager
def opened_log(row: ManagedProcess) -> Iterator[int | None]:
    """Open a process's log for reading; gives None when there is none, or something else lies in its place."""
    with contextlib.ExitStack() as stack:
        descriptor = None
        with contextlib.suppress(OSError):
            descriptor = logs.open_for_reading(LOG_FOLDER, row.log_name)
            stack.callback(os.close, descriptor)
        yield descriptor


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
