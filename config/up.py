"""`up`: web and worker under one small parent that restarts what crashes and stops both with one Ctrl-C."""

import fcntl
import os
import random
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from config.environment import LOOPBACK_NAMES, Environment
from config.parent import become_reaper, reap_orphans

STOP_WITHIN_S = 4.0
STABLE_S = 60.0
BACKOFF_S = 0.5
BACKOFF_CAP_S = 30.0
# Doubled more often than this, the cap was reached long ago and a float would overflow in time.
DOUBLINGS = 10
COLOURS = {"web": "36", "worker": "35", "andon": "32"}
MANAGE = Path(__file__).resolve().parent.parent / "manage.py"


class AlreadyUp(RuntimeError):
    """Another `up` holds this home; the text says which and what to do."""


def public_url(environment: Environment) -> str:
    """Return the address that people open: beyond loopback the first host name that is allowed, behind TLS."""
    names = [name for name in environment.allowed_hosts if name not in LOOPBACK_NAMES]
    if environment.is_loopback or not names:
        return base_url(environment.bind, environment.port)
    return f"https://{names[0]}"


def base_url(bind: str, port: int) -> str:
    """Return the address at which this machine reaches the web process."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(bind, f"[{bind}]" if ":" in bind else bind)  # noqa: S104
    return f"http://{host}:{port}"


def hold_home(home: Path, url: str) -> IO[str]:
    """Lock the home for one `up`, and write into the lock who holds it; AlreadyUp when it is held."""
    lock = (home / "up.lock").open("a+", encoding="utf-8")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        held = lock.read().strip() or "unknown"
        lock.close()
        raise AlreadyUp(
            f"Andon is up already on {home} ({held}). Use that one, stop it with Ctrl-C, or give another ANDON_HOME."
        ) from None
    lock.truncate(0)
    lock.write(f"pid {os.getpid()}, {url}\n")
    lock.flush()
    return lock


def is_port_free(bind: str, port: int) -> bool:
    """Say whether daphne could listen there; TIME_WAIT does not count as taken."""
    family = socket.AF_INET6 if ":" in bind else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((bind.strip("[]"), port))
            probe.listen(1)
        except OSError:
            return False
    return True


def is_ready(url: str) -> bool:
    """Ask /readyz once."""
    try:
        # A name that is allowed wherever we listen.
        request = urllib.request.Request(f"{url}/readyz", headers={"Host": "localhost"})  # noqa: S310 (our own address)
        with urllib.request.urlopen(request, timeout=2) as answer:  # noqa: S310
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


class Printer:
    """Prints whole lines from several threads, each behind its process's name."""

    def __init__(self, out: IO[str]) -> None:
        self._out = out
        self._lock = threading.Lock()
        self._colour = out.isatty() and "NO_COLOR" not in os.environ

    def line(self, name: str, text: str) -> None:
        label = f"{name:<6}"
        if self._colour:
            label = f"\x1b[{COLOURS.get(name, '33')}m{label}\x1b[0m"
        with self._lock:
            try:
                self._out.write(f"{label} | {text}\n")
                self._out.flush()
            except OSError:  # nobody reads our output any more; the processes matter more
                self._colour = False


@dataclass
class Child:
    """One process of `up`: how it is started, and when it may be started again."""

    name: str
    argv: list[str]
    env: dict[str, str]
    process: subprocess.Popen[str] | None = None
    started_at: float = 0.0
    failures: int = 0
    start_again_at: float = 0.0
    reader: threading.Thread | None = field(default=None, repr=False)


class Supervisor:
    """Starts the children, restarts what dies with back-off, and stops all within five seconds."""

    def __init__(self, children: list[Child], printer: Printer) -> None:
        self.children = children
        self.printer = printer
        self._stopping = threading.Event()
        self._hurry = False

    def ask_stop(self, *_: object) -> None:
        """Ask for a stop, from a signal; asking twice kills."""
        self._hurry = self._stopping.is_set()
        self._stopping.set()

    def run(self, url: str, on_ready: Callable[[], None], *, wait_ready: bool) -> None:
        """Return when a stop was asked for and all children have ended."""
        told = not wait_ready
        become_reaper()
        while not self._stopping.is_set():
            now = time.monotonic()
            for child in self.children:
                self._keep(child, now)
            reap_orphans({child.process.pid for child in self.children if child.process is not None})
            if not told and is_ready(url):
                told = True
                on_ready()
            self._stopping.wait(0.1 if told else 0.05)
        self._stop()

    def _keep(self, child: Child, now: float) -> None:
        if child.process is None:
            if now >= child.start_again_at:
                self._start(child, now)
            return
        status = child.process.poll()
        if status is None:
            return
        if now - child.started_at > STABLE_S:
            child.failures = 0
        self._back_off(child, now, f"ended with {_told(status)}")

    def _back_off(self, child: Child, now: float, why: str) -> None:
        doubled = BACKOFF_S * 2 ** min(child.failures, DOUBLINGS)
        delay = min(BACKOFF_CAP_S, doubled) * random.uniform(0.8, 1.2)  # noqa: S311
        child.failures += 1
        child.process = None
        child.start_again_at = now + delay
        self.printer.line("andon", f"{child.name} {why}; starting it again in {delay:.1f} s")

    def _start(self, child: Child, now: float) -> None:
        """Start a child; a machine short of processes, memory or threads is asked again later."""
        child.started_at = now
        try:
            child.process = subprocess.Popen(
                child.argv,
                env={**child.env, "ANDON_UP_PID": str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                # A Ctrl-C in the terminal is for the parent, which stops them in order.
                process_group=0,
            )
        except OSError as error:
            self._back_off(child, now, f"could not be started ({error})")
            return
        reader = threading.Thread(target=self._copy, args=(child.name, child.process.stdout), daemon=True)
        try:
            reader.start()
        except RuntimeError as error:
            # Nobody would read what it prints, and it would stop once the pipe is full.
            with child.process as unheard:
                unheard.kill()
            self._back_off(child, now, f"could not be started ({error})")
            return
        child.reader = reader

    def _copy(self, name: str, lines: IO[str]) -> None:
        with lines:
            for line in lines:
                self.printer.line(name, line.rstrip("\n"))

    def _stop(self) -> None:
        alive = [child.process for child in self.children if child.process is not None]
        for process in alive:
            process.terminate()
        deadline = time.monotonic() + STOP_WITHIN_S
        while any(process.poll() is None for process in alive):
            if self._hurry or time.monotonic() > deadline:
                for process in alive:
                    process.kill()
            time.sleep(0.05)


def manage(*words: str) -> list[str]:
    """Return the argv of one of our own commands, on this very Python."""
    return [sys.executable, str(MANAGE), *words]


def _told(status: int) -> str:
    return signal.Signals(-status).name if status < 0 else f"exit code {status}"
