"""How a process ended, asked of its pidfd, and the reaping of our own.

A child of ours tells by waitid(2) for as long as it is not reaped. Of anybody else's the kernel tells from 6.15 on:
`ioctl(pidfd, PIDFD_GET_INFO)` with PIDFD_INFO_EXIT (include/uapi/linux/pidfd.h), on a pidfd that was opened before it
was reaped. Measured on 6.18: that answer exists only once the parent *has* reaped the process. While it is a zombie
the pidfd is readable already but that call says nothing, and an init that polls its children can take seconds (2 s
seen); then field 52 of /proc/PID/stat (proc(5)) has the code, for processes that we could trace.
"""

import fcntl
import os
import struct
from pathlib import Path

# struct pidfd_info, first published size: mask, cgroupid (u64), pid tgid ppid, 8 ids of users and groups (u32),
# exit_code (s32, as in wait(2)). Later kernels append and take the size from the request's number.
_FORM = struct.Struct("=QQ11Ii")
_GET_INFO = (3 << 30) | (_FORM.size << 16) | (0xFF << 8) | 11
_INFO_EXIT = 1 << 3


def is_child(pidfd: int) -> bool:
    """Say whether this is a child of our process that is not reaped yet, dead or alive."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def exit_code(pidfd: int) -> int | None:
    """Return the exit code, or minus the signal; None while it lives, is another's zombie, or on an older kernel.

    Reaps nothing.
    """
    try:
        ended = os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return _published_code(pidfd)
    if ended is None:
        return None
    return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status


def reap(pidfd: int) -> None:
    """Collect a child of ours that has ended; nothing for one that lives or is not ours."""
    try:
        os.waitid(os.P_PIDFD, pidfd, os.WEXITED | os.WNOHANG)
    except ChildProcessError:
        return


def code_of_zombie(pid: int, start_ticks: int) -> int | None:
    """Return the exit code that an unreaped process of this identity left in /proc; None when it cannot be read."""
    try:
        line = Path(f"/proc/{pid}/stat").read_bytes()
        fields = line[line.rindex(b")") + 2 :].split()
        is_it = fields[0] == b"Z" and int(fields[19]) == start_ticks and int(fields[17]) <= 1
        # To others it shows 0.
        may_know = os.geteuid() in {0, Path(f"/proc/{pid}").stat().st_uid}
        return os.waitstatus_to_exitcode(int(fields[49])) if is_it and may_know else None
    except (OSError, ValueError, IndexError):
        return None


def _published_code(pidfd: int) -> int | None:
    request = bytearray(_FORM.size)
    _FORM.pack_into(request, 0, _INFO_EXIT, *(0,) * 13)
    try:
        fcntl.ioctl(pidfd, _GET_INFO, request)
    except OSError:
        # ENOTTY before 6.13; ESRCH where the end was not recorded for this descriptor.
        return None
    answer = _FORM.unpack(request)
    return os.waitstatus_to_exitcode(answer[-1]) if answer[0] & _INFO_EXIT else None
