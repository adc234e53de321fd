"""Who listens on a TCP port, read from /proc/net/tcp and tcp6.

Never a bind test: TIME_WAIT fools it into "taken" and a listener on `::1` into "free".
"""

import contextlib
import ipaddress
import os
import socket
import struct
import sys
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from services.processes.kernel import Holder
from services.processes.proc import name_of, pids, read_stat

_TABLES = ("/proc/net/tcp", "/proc/net/tcp6")
_LISTEN = b"0A"


class _Row(NamedTuple):
    port: int
    address: str
    inode: int


def listeners(ports: Collection[int]) -> dict[int, Holder]:
    """Return who listens on which of these ports, on any address of either family, in our network namespace.

    One holder a port; of several (a server's workers share its socket) one whose pid is known, the lowest pid. /proc's
    descriptors are searched only when something listens. Raises OSError when /proc/net/tcp cannot be read.
    """
    rows = [row for path in _TABLES for row in _rows(path, frozenset(ports))]
    if not rows:
        return {}
    owners = _owners({row.inode for row in rows})
    found: dict[int, Holder] = {}
    for row in rows:
        pid = owners.get(row.inode)
        known = found.get(row.port)
        if known is None or (known.pid is None and pid is not None):
            found[row.port] = Holder(row.port, row.address, pid, "" if pid is None else name_of(pid), _start_of(pid))
    return found


def _start_of(pid: int | None) -> int | None:
    try:
        return None if pid is None else read_stat(pid).start_ticks
    except (OSError, ValueError, IndexError):
        return None


def _rows(path: str, wanted: frozenset[int]) -> Iterator[_Row]:
    try:
        table = Path(path).open("rb")  # noqa: SIM115 (below; only the opening may fail)
    except FileNotFoundError:
        if path == _TABLES[0]:
            raise
        return  # a kernel without IPv6
    with table:
        for line in table:
            if b" 0A " not in line:
                continue
            # proc(5): sl local_address rem_address st tx:rx tr:when retrnsmt uid timeout inode …
            fields = line.split()
            if len(fields) < 10 or fields[3] != _LISTEN:
                continue
            address, _, port = fields[1].rpartition(b":")
            if int(port, 16) in wanted:
                yield _Row(int(port, 16), _address(address), int(fields[9]))


def _address(written: bytes) -> str:
    """Decode an address: 32-bit words in hexadecimal, each in the machine's byte order."""
    size = len(written) // 8
    words = struct.unpack(f">{size}I", bytes.fromhex(written.decode("ascii")))
    packed = struct.pack(f"{'<' if sys.byteorder == 'little' else '>'}{size}I", *words)
    if size == 1:
        return socket.inet_ntop(socket.AF_INET, packed)
    return str(ipaddress.IPv6Address(packed))


def _owners(inodes: set[int]) -> dict[int, int]:
    """Find which process holds which socket; those that we may not look into are left out."""
    wanted = {f"socket:[{inode}]": inode for inode in inodes if inode}
    found: dict[int, int] = {}
    for pid in sorted(pids()):
        if len(found) == len(wanted):
            break
        with contextlib.suppress(OSError):
            folder = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                for inode in _sockets(folder, wanted):
                    found.setdefault(inode, pid)
            finally:
                os.close(folder)
    return found


def _sockets(folder: int, wanted: Mapping[str, int]) -> Iterator[int]:
    with os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                inode = wanted.get(os.readlink(entry.name, dir_fd=folder))
                if inode is not None:
                    yield inode
