"""Children of `up` end with it, even when it is killed with -9; what they leave behind becomes its own."""

import ctypes
import os
import signal
import sys
from collections.abc import Collection

PARENT_VARIABLE = "ANDON_UP_PID"
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36


def follow_parent() -> None:
    """Have the kernel send TERM to this process when the `up` that started it dies; a no-op without one."""
    parent = os.environ.pop(PARENT_VARIABLE, "")
    if not parent:
        return
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    # It may have died before the kernel was asked.
    if os.getppid() != int(parent):
        sys.exit(0)


def become_reaper() -> None:
    """Have the kernel hand us what a killed worker leaves behind: its exit codes are told once they are reaped."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def reap_orphans(own: Collection[int]) -> int:
    """Reap ended processes that were handed to us, never one of `own`, whose owner waits for it. Returns how many."""
    count = 0
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return count
        if found is None or found.si_pid in own:
            return count
        os.waitid(os.P_PID, found.si_pid, os.WEXITED | os.WNOHANG)
        count += 1
