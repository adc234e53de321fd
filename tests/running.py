"""A real `up` on a temporary home: real processes, a real port, and on the scale-out half a real database."""

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

ROOT = Path(__file__).resolve().parent.parent
READY_WITHIN_S = 180


class Up:
    """One `manage.py up`; `url` is its address, `link` the one-time sign-in path of `admin`."""

    def __init__(self, folder: Path, *words: str, env: dict[str, str] | None = None) -> None:
        self.home = folder / "home"
        self.workspace = folder / "workspace"
        self.workspace.mkdir(parents=True, exist_ok=True)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log = folder / "up.log"
        self.words = words
        self.env = {
            **os.environ,
            "ANDON_HOME": str(self.home),
            "ANDON_WORKSPACE": str(self.workspace),
            "ANDON_PORT": str(self.port),
            "ANDON_NODE": f"node-{folder.name}",
            "NO_COLOR": "1",
            **(env or {}),
        }
        self.process: subprocess.Popen[bytes] | None = None
        self.tokens: dict[str, str] = {}

    @property
    def link(self) -> str:
        return re.findall(r"(/login/link/\S+/)", self.log.read_text())[-1]

    def start(self, *, wait: bool = True) -> "Up":
        started = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(ROOT / "manage.py"), "up", *self.words], env=self.env, stdout=log, stderr=log
            )
        if wait:
            wait_for(
                lambda: "Andon is ready at" in self.log.read_text()[started:] or self.process.poll() is not None,
                READY_WITHIN_S,
            )
            assert self.process.poll() is None, self.log.read_text()
        return self

    def stop(self, number: int = signal.SIGINT, within_s: float = 8) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(within_s)

    def manage(self, *words: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / "manage.py"), *words],
            env=self.env,
            capture_output=True,
            text=True,
            check=check,
            timeout=180,
        )

    def token(self, role: str = "operator") -> str:
        if role not in self.tokens:
            self.tokens[role] = self.manage("token", f"test-{role}", "--role", role).stdout.strip()
        return self.tokens[role]

    def get(self, path: str) -> Any:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Bearer {self.token()}"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.loads(answer.read())

    def post(self, path: str, body: dict[str, Any]) -> Any:
        headers = {"Authorization": f"Bearer {self.token()}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=90) as answer:
            return json.loads(answer.read())

    def events(self, kind: str = "", since: int = 0) -> list[dict[str, Any]]:
        return self.get(f"/api/events?since={since}&kind={kind}")["events"]

    def children(self, name: str) -> list[int]:
        """Return the pids of `web` or `worker` under this `up`."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                is_named = name.encode() in words or words[0] == f"andon-{name}".encode()
                if self.process is not None and parent == self.process.pid and is_named:
                    found.append(int(entry.name))
        return found

    def kill_all(self) -> None:
        if self.process is not None and self.process.poll() is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.stop()
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait(5)


@contextlib.contextmanager
def running(folder: Path, *words: str, start: bool = True, env: dict[str, str] | None = None) -> Iterator[Up]:
    """Run `up` in `folder`; where the tests run on PostgreSQL, on a database of its own that is dropped afterwards."""
    with own_database() as database:
        up = Up(folder, *words, env={**(env or {}), **database})
        try:
            yield up.start() if start else up
        finally:
            up.kill_all()


@contextlib.contextmanager
def own_database() -> Iterator[dict[str, str]]:
    url = os.environ.get("DATABASE_URL", "")
    if not url:
        yield {}
        return
    import psycopg

    name = f"andon_up_{uuid.uuid4().hex[:8]}"
    parts = urlsplit(url)
    with psycopg.connect(urlunsplit(parts._replace(path="/postgres")), autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name}")
        try:
            yield {"DATABASE_URL": urlunsplit(parts._replace(path=f"/{name}"))}
        finally:
            server.execute(f"DROP DATABASE {name} WITH (FORCE)")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_for(condition: Callable[[], Any], within_s: float, step_s: float = 0.05) -> Any:
    """Return the first true value of `condition`; AssertionError when there is none in time."""
    deadline = time.monotonic() + within_s
    while True:
        if value := condition():
            return value
        assert time.monotonic() < deadline, f"not within {within_s} s"
        time.sleep(step_s)
