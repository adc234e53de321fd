"""Run one agent process in a session of its own, and end its whole group when it must end."""

import ctypes
import os
import select
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, Self

POLL_S = 0.05
NOT_STARTED = 127
PR_SET_PDEATHSIG = 1

# Loaded before any fork.
_libc = ctypes.CDLL(None)


class Signals:
    """Count TERM, INT and HUP for a `with` block instead of dying of them; what was ignored stays ignored."""

    CAUGHT = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

    def __init__(self) -> None:
        self.count = 0
        self.last = ""

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._before = {
            number: signal.signal(number, self._caught)
            for number in self.CAUGHT
            if signal.getsignal(number) is not signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        self._reader.close()
        self._writer.close()

    def wait(self, seconds: float | None, other: int | None = None) -> None:
        """Sleep until a signal comes, the descriptor `other` is readable, or the time is over."""
        poll = select.poll()
        for descriptor in (self._reader.fileno(), other):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        poll.poll(None if seconds is None else max(0, seconds) * 1000)
        with suppress(BlockingIOError):
            self._reader.recv(4096)

    def _caught(self, number: int, _: FrameType | None) -> None:
        self.count += 1
        self.last = signal.Signals(number).name


@dataclass(frozen=True, slots=True)
class Ending:
    """How an agent ended: `exit_code` is negative for a signal; `cut` says why we ended it, if we did."""

    exit_code: int
    cut: Literal["", "timeout", "terminated"]
    duration_s: float


def run_agent(
    argv: Sequence[str],
    *,
    cwd: Path,
    prompt: bytes,
    log: int,
    signals: Signals,
    timeout_s: float | None,
    kill_after_s: float,
    on_signal: Callable[[], None],
) -> Ending:
    """Run the agent to its end with `prompt` as its input and the descriptor `log` as its output.

    A second signal, or `timeout_s`, ends its group: TERM, then KILL after `kill_after_s` seconds. `on_signal`
    is called once, at the first signal. An agent that cannot be started ends with 127 and says so in the log.
    """
    began = time.monotonic()
    # A file, not a pipe: an agent that never reads its input cannot hold us up.
    with tempfile.TemporaryFile() as stdin:
        stdin.write(prompt)
        stdin.seek(0)
        try:
            process = subprocess.Popen(
                argv,
                cwd=cwd,
                env=_environment(os.environ, cwd),
                stdin=stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=_die_with(os.getpid()),  # noqa: PLW1509 - the runner has one thread
            )
        except (OSError, subprocess.SubprocessError) as error:
            os.write(log, f"{argv[0]} cannot be started: {error}\n".encode("utf-8", "replace"))
            return Ending(NOT_STARTED, "", time.monotonic() - began)
    deadline = None if timeout_s is None else began + timeout_s
    pidfd = os.pidfd_open(process.pid)
    try:
        cut = _attend(pidfd, signals, deadline, on_signal)
        if cut:
            end_group(process.pid, kill_after_s)
    except BaseException:
        end_group(process.pid, 0)
        raise
    finally:
        os.close(pidfd)
        process.wait()
    return Ending(process.returncode, cut, time.monotonic() - began)


def end_group(group: int, kill_after_s: float) -> None:
    """TERM a process group, and KILL what is left of it after `kill_after_s` seconds.

    Its leader must not have been reaped: until then the number cannot belong to anybody else.
    """
    deadline = time.monotonic() + kill_after_s
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        while _lives(group):
            if time.monotonic() >= deadline:
                os.killpg(group, signal.SIGKILL)
                return
            time.sleep(POLL_S)


def _attend(
    pidfd: int, signals: Signals, deadline: float | None, on_signal: Callable[[], None]
) -> Literal["", "timeout", "terminated"]:
    told = False
    watch = select.poll()
    watch.register(pidfd, select.POLLIN)
    while not watch.poll(0):
        if signals.count and not told:
            told = True
            on_signal()
        if signals.count > 1:
            return "terminated"
        left = None if deadline is None else deadline - time.monotonic()
        if left is not None and left <= 0:
            return "timeout"
        signals.wait(left, pidfd)
    return ""


def _lives(group: int) -> bool:
    """Say whether a process of the group still runs; zombies do not."""
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, number = status.read_bytes().rpartition(b")")[2].split()[:3]
            if int(number) == group and state not in (b"Z", b"X"):
                return True
    return False


def _die_with(parent: int) -> Callable[[], None]:
    """Make the agent get TERM when the runner is killed with -9: the next loop must not share the tree."""

    def in_child() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:
            os._exit(NOT_STARTED)

    return in_child


def _environment(inherited: Mapping[str, str], cwd: Path) -> dict[str, str]:
    """Return the agent's environment: ours, in its directory, less what opens Andon itself.

    A project of the agent's that reads DATABASE_URL would else migrate or flush Andon's own database.
    """
    kept = {
        name: value
        for name, value in inherited.items()
        # By this sign its supervisor finds whatever the agent leaves behind.
        if name == "ANDON_SERVICE" or not (name.startswith("ANDON_") or name in {"DATABASE_URL", "REDIS_URL"})
    }
    if kept.get("DJANGO_SETTINGS_MODULE") == "config.settings":
        del kept["DJANGO_SETTINGS_MODULE"]
    return {**kept, "PWD": str(cwd)}
