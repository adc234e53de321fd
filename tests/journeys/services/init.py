"""The init of a small machine: whatever loses its parent becomes its child and is reaped at once; ends all when told.

Reads from standard input, one JSON line each: `[argv, output file]` starts a program and answers its pid. When the
input ends, every descendant is killed, those that hid in sessions of their own included: while we live, an orphan is
always ours.
"""

import ctypes
import json
import os
import select
import signal
import sys

PR_SET_CHILD_SUBREAPER = 36


def start(argv: list[str], output: str) -> int:
    write = os.O_WRONLY | os.O_APPEND | os.O_CREAT
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, output, write, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    return os.posix_spawn(argv[0], argv, os.environ, file_actions=actions, setpgroup=0, setsigdef=[signal.SIGPIPE])


def children() -> list[int]:
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as stat:
                    parent = int(stat.read().rpartition(b")")[2].split()[1])
            except OSError:
                continue
            if parent == os.getpid():
                found.append(int(name))
    return found


def reap(options: int) -> bool:
    """Reap one; False when there is none to be reaped (now)."""
    try:
        return os.waitpid(-1, options)[0] != 0
    except ChildProcessError:
        return False


def main() -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    woken, bell = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(bell, warn_on_full_buffer=False)
    waiting = b""
    while True:
        ready = select.select([0, woken], [], [])[0]
        if woken in ready:
            os.read(woken, 4096)
            while reap(os.WNOHANG):
                pass
        if 0 in ready:
            block = os.read(0, 65536)
            if not block:
                break
            *lines, waiting = (waiting + block).split(b"\n")
            for line in lines:
                os.write(1, b"%d\n" % start(*json.loads(line)))
    while left := children():
        for pid in left:
            # Not reaped yet, so the number is surely its.
            os.kill(pid, signal.SIGKILL)
        for _ in left:
            reap(0)


if __name__ == "__main__":
    sys.exit(main())
