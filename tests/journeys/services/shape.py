"""The programs that the journeys have managed: `shape.py <ledger> <token> <shape> [argument]`.

Every process enters itself into the ledger (a file, one line `role pid start-ticks generation shape` each) as soon as
it runs, so that a test knows of all of them whatever they do to their names, environments, sessions and descriptors.
"""

import ctypes
import os
import signal
import socket
import sys
import time
from pathlib import Path

LEDGER, TOKEN, SHAPE, *REST = sys.argv[1:]
PR_SET_NAME = 15
GENERATION = os.environ.get("ANDON_SERVICE", "").rpartition(".")[2] or (REST[0] if SHAPE == "child_plain" else "0")


def enter(role: str) -> None:
    stat = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
    ledger = os.open(LEDGER, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(ledger, f"{role} {os.getpid()} {int(stat[19])} {GENERATION} {SHAPE}\n".encode())
    os.close(ledger)


def sleep() -> None:
    while True:
        time.sleep(60)


def ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def fork(child) -> int:
    pid = os.fork()
    if pid == 0:
        try:
            enter("child")
            child()
        finally:
            os._exit(0)
    return pid


def again(shape: str, env: dict[str, str]) -> None:
    """Become another shape, with this environment."""
    os.execve(sys.executable, [sys.executable, "-ISs", __file__, LEDGER, TOKEN, shape, GENERATION], env)


def silence() -> None:
    """Let go of the log."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    os.dup2(nothing, 2)


def plain() -> None:
    sleep()


def child_plain() -> None:
    sleep()


def stubborn() -> None:
    ignore_term()
    sleep()


def slow() -> None:
    """Take a while to go."""

    def leave(*_: object) -> None:
        time.sleep(0.3)
        os._exit(0)

    signal.signal(signal.SIGTERM, leave)
    sleep()


def escapee() -> None:
    """Start one that has a session of its own and keeps marker and log."""

    def away() -> None:
        os.setsid()
        ignore_term()
        sleep()

    fork(away)
    sleep()


def orphan(child) -> None:
    """Fork twice: the second one is nobody's child."""

    def first() -> None:
        fork(child)

    os.waitpid(fork(first), 0)


def daemon() -> None:
    """Leave one in a session of its own that has let go of the log: known by its marker alone."""

    def away() -> None:
        os.setsid()
        silence()
        ignore_term()
        sleep()

    orphan(away)
    sleep()


def bare() -> None:
    """Leave one without environment in a session of its own: known by its log alone."""

    def away() -> None:
        os.setsid()
        again("child_plain", {})

    orphan(away)
    sleep()


def mute() -> None:
    """Leave one without environment, in a group of its own, that has let go of the log: known by its session alone."""

    def inside() -> None:
        os.setpgid(0, 0)
        silence()
        again("child_plain", {})

    orphan(inside)
    sleep()


def renamed() -> None:
    """Take another name, and wipe arguments and environment out of our memory as daemons do for their titles."""

    def away() -> None:
        os.setsid()
        ctypes.CDLL(None).prctl(PR_SET_NAME, b"1) S 1 (x", 0, 0, 0)
        fields = Path("/proc/self/stat").read_bytes().rpartition(b")")[2].split()
        for first, last in ((fields[45], fields[46]), (fields[47], fields[48])):
            ctypes.memset(int(first), 0, int(last) - int(first))
        sleep()

    fork(away)
    sleep()


def leaver() -> None:
    """Leave a child in our group behind."""
    fork(stubborn)
    time.sleep(0.3)
    os._exit(0)


def spawner() -> None:
    """Leave new processes in new sessions on and on, each for a moment."""

    def away() -> None:
        os.setsid()
        ignore_term()
        time.sleep(0.5)

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        fork(away)
        time.sleep(0.1)


def exits() -> None:
    """End with the code in the argument."""
    os.write(1, b"about to fail\n")
    os._exit(int(REST[0]))


def told() -> None:
    """End with the code that a file says, once it is there."""
    path = Path(REST[0])
    while True:
        try:
            os._exit(int(path.read_text()))
        except (OSError, ValueError):
            time.sleep(0.02)


def serve() -> None:
    """Answer HTTP on a port with the status in a file, 200 without one."""
    with socket.create_server(("127.0.0.1", int(REST[0]))) as server:
        while True:
            peer, _ = server.accept()
            with peer:
                peer.settimeout(2)
                try:
                    peer.recv(4096)
                    status = Path(f"{LEDGER}.{TOKEN}.status")
                    code = status.read_text() if status.exists() else "200"
                    peer.sendall(f"HTTP/1.1 {code} X\r\nContent-Length: 0\r\nConnection: close\r\n\r\n".encode())
                except OSError:
                    continue


def spam() -> None:
    """Write so many MB a second to the log."""
    line = b"x" * 1023 + b"\n"
    block = line * 1024
    began, written = time.monotonic(), 0
    while True:
        os.write(1, block)
        written += 1
        time.sleep(max(0.0, began + written / float(REST[0]) - time.monotonic()))


if __name__ == "__main__":
    if SHAPE == "stubborn":
        # Whoever finds it in the ledger knows that it is deaf by now.
        ignore_term()
    enter("child" if SHAPE.startswith("child_") else "leader")
    globals()[SHAPE]()
