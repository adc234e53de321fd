"""Probes by a command: a program in a session of its own, its output, and its end by pidfd."""

import os
import select
import signal
import subprocess
from contextlib import suppress

from services.probes.checks import Command
from services.probes.flights import Flight

MAX_OUTPUT = 64 * 1024
_PIECE = 64 * 1024


class Program:
    """One command probe.

    It is over when the program itself ends: whoever else still holds its output is not waited for, and its whole
    process group is killed then, as at the deadline, before the leader is reaped and the group's number can come to
    mean another one. The next probe of the service is let in when the leader is reaped, not before, so that a program
    that even SIGKILL cannot end does not pile up.
    """

    def __init__(self, flight: Flight, what: Command) -> None:
        """Carry out `what` for a flight."""
        self._flight = flight
        self._what = what
        self._child: subprocess.Popen[bytes] | None = None
        self._pidfd = -1
        self._pipe = -1
        self._kept = bytearray()
        self._settled = False

    def begin(self) -> None:
        """Start the program, or settle why it cannot be started."""
        try:
            self._start()
        except OSError as error:
            why = os.strerror(error.errno or 0)
            if error.filename == self._what.cwd:
                self._end(f"cannot start in its directory: {why}")
            else:
                self._end(f"cannot start {self._what.argv[0][:100]}: {why}")
        except ValueError:
            self._end("cannot start: not a valid argument, directory or environment")

    def expire(self, reason: str) -> None:
        """Kill the group; the result does not wait for the kernel."""
        self._settle(reason)
        self.close()

    def close(self) -> None:
        """Kill the group, if the program has not ended yet; reap it when the pidfd says that it has."""
        self._settled = True
        if self._child is None:
            self._flight.leave()
            self._flight.land()
        else:
            self._kill()
            self._close_pipe()

    def _start(self) -> None:
        ours, theirs = os.pipe()
        self._pipe = ours
        try:
            os.set_blocking(ours, False)
            child = subprocess.Popen(
                self._what.argv,
                cwd=self._what.cwd,
                env=self._what.env,
                stdin=subprocess.DEVNULL,
                stdout=theirs,
                stderr=theirs,
                start_new_session=True,
            )
        except BaseException:
            self._close_pipe()
            raise
        finally:
            os.close(theirs)
        self._child = child
        try:
            self._pidfd = os.pidfd_open(child.pid)
            self._flight.loop.watch(self._pidfd, select.EPOLLIN, self._ended)
            self._flight.loop.watch(self._pipe, select.EPOLLIN, self._spoke)
        except OSError:
            self._kill()
            self._close_pipe()
            self._reap()
            raise

    def _spoke(self, _events: int) -> None:
        """Keep what fits, and let the rest pass so that the program is not held up."""
        if not self._receive():
            self._close_pipe()

    def _receive(self) -> bool:
        """Read one piece, if one is there; False at the end of the output."""
        try:
            piece = os.read(self._pipe, _PIECE)
        except BlockingIOError:
            return True
        self._kept += piece[: MAX_OUTPUT - len(self._kept)]
        return bool(piece)

    def _ended(self, _events: int) -> None:
        """Collect what it wrote last, kill what it left, reap it, and judge."""
        if self._settled:
            self._kill()
            self._reap()
            self._flight.leave()
            self._flight.land()
            return
        while self._pipe >= 0 and len(self._kept) < MAX_OUTPUT:
            before = len(self._kept)
            if not self._receive() or len(self._kept) == before:
                break
        self._kill()
        self._close_pipe()
        code = self._reap()
        if code:
            self._end(f"exit code {code}" if code > 0 else f"ended by {_signal_name(-code)}")
        else:
            # RE2 takes linear time, but up to a few 100 ms for 64 KiB and the worst of patterns.
            self._flight.searches.submit(lambda: _is_match(self._what, bytes(self._kept)), self._searched)

    def _searched(self, matches: bool | None) -> None:
        self._end("" if matches else "output does not match")

    def _end(self, reason: str) -> None:
        self._flight.leave()
        self._flight.land()
        self._settle(reason)

    def _settle(self, reason: str) -> None:
        if not self._settled:
            self._settled = True
            self._flight.settle(ok=not reason, reason=reason)

    def _kill(self) -> None:
        # A group of which some run as another user is killed as far as we may.
        with suppress(ProcessLookupError, PermissionError):
            if self._child is not None:
                os.killpg(self._child.pid, signal.SIGKILL)

    def _reap(self) -> int:
        child, self._child = self._child, None
        code = child.wait() if child is not None else 0
        if self._pidfd >= 0:
            self._flight.loop.forget(self._pidfd)
            os.close(self._pidfd)
            self._pidfd = -1
        return code

    def _close_pipe(self) -> None:
        if self._pipe >= 0:
            self._flight.loop.forget(self._pipe)
            os.close(self._pipe)
            self._pipe = -1


def _is_match(what: Command, output: bytes) -> bool:
    """Search the output, and the output without its last line end: to RE2, `$` is only the very end."""
    text = output.decode("utf-8", "replace")
    if what.pattern.search(text):
        return True
    shorter = text.removesuffix("\n").removesuffix("\r")
    return shorter != text and bool(what.pattern.search(shorter))


def _signal_name(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"
