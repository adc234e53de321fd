"""A yard for loops: a running Andon asked over HTTP only, and what /proc, files and git themselves say.

Nothing here goes through the code under test, but what starts it.
"""

import asyncio
import contextlib
import ctypes
import http.cookiejar
import json
import os
import re
import shlex
import signal
import struct
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.journeys.services.machine import ticks_of
from tests.projects.files import write_project
from tests.running import ROOT, Up, wait_for

AGENT = Path(__file__).with_name("agent.py")
WITHIN_S = 60
ENDS = {"loop.stopped", "loop.crashed", "loop.completed"}


@dataclass(frozen=True)
class Seen:
    """A living process of a project, as /proc shows it."""

    pid: int
    ticks: int
    session: int
    argv: tuple[str, ...]


def working(root: Path) -> list[Seen]:
    """Return the living processes that work in a directory or below it."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        with contextlib.suppress(OSError):
            fields = Path(f"/proc/{entry}/stat").read_bytes().rpartition(b")")[2].split()
            place = Path(f"/proc/{entry}/cwd").readlink()
            if fields[0] in {b"Z", b"X"} or not place.is_relative_to(root):
                continue
            words = Path(f"/proc/{entry}/cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            found.append(Seen(int(entry), int(fields[19]), int(fields[3]), tuple(map(os.fsdecode, words))))
    return found


def agent(dollars: float = 0, *gates: str) -> str:
    """Return the tiny agent's command as a loop takes it."""
    return shlex.join([sys.executable, "-IS", str(AGENT), str(dollars), *gates])


class Yard:
    """Projects under a running Andon, their loops, and whoever asks for something."""

    def __init__(self, up: Up) -> None:
        self.up = up
        self.cookies = http.cookiejar.CookieJar()
        self.browser = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(self.cookies))
        self.askers = ThreadPoolExecutor(16)
        self.started: list[subprocess.Popen[bytes]] = []

    def project(self, slug: str, *states: str, script: str = "", agent: str = "") -> Path:
        """Make a project and wait until it is shown; `script` becomes its ralph.sh, `agent` is set on its page."""
        root = write_project(self.up.workspace / slug, states or ("passed", "pending", "pending"))
        if script:
            path = root / "scripts/ralph/ralph.sh"
            path.write_text(f"#!/bin/sh\n{script}\n")
            path.chmod(0o755)
        self.wait_project(slug)
        if agent:
            self.configure(slug, agent)
        return root

    def name(self, wanted: str) -> str:
        """Return a slug that is free: a journey that is walked once more begins anew."""
        return next(slug for slug in (wanted, *(f"{wanted}-again-{n}" for n in range(9))) if slug not in self.slugs())

    def wait_project(self, slug: str) -> None:
        wait_for(lambda: slug in self.slugs(), WITHIN_S)

    def slugs(self) -> list[str]:
        return [row["slug"] for row in self.up.get("/api/ralph/status")["projects"]]

    def status(self, slug: str) -> dict[str, Any]:
        return next(row for row in self.up.get("/api/ralph/status")["projects"] if row["slug"] == slug)

    def post(self, path: str, body: dict[str, Any] | None = None, role: str = "operator") -> tuple[int, dict[str, Any]]:
        """Return the status and the document that a POST under /api/ralph/ is answered with."""
        headers = {"Authorization": f"Bearer {self.up.token(role)}", "Content-Type": "application/json"}
        content = json.dumps(body or {}).encode()
        request = urllib.request.Request(f"{self.up.url}/api/ralph/{path}", content, headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, json.loads(answer.read())
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.loads(refusal.read())

    def posting(self, path: str, body: dict[str, Any] | None = None) -> "Future[tuple[int, dict[str, Any]]]":
        """Ask and do not wait."""
        self.up.token()
        return self.askers.submit(self.post, path, body)

    def start(self, slug: str, **limits: Any) -> int:
        """Start a loop and return its pid."""
        status, said = self.post(f"{slug}/start", limits)
        assert (status, said.get("success")) in {(200, True), (202, True)}, said
        return said["pid"] or wait_for(lambda: self.status(slug)["pid"], WITHIN_S)

    def send_page(self, path: str, **fields: Any) -> str:
        """Send a form as the signed-in administrator; returns the address that it led to."""
        if not self.cookies:
            self._send_form(self.up.link)
        return self._send_form(path, **fields)

    def _send_form(self, path: str, **fields: Any) -> str:
        with self.browser.open(self.up.url + path, timeout=30) as page:
            token = re.search(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.read().decode())[1]
        content = urllib.parse.urlencode({"csrfmiddlewaretoken": token, **fields}).encode()
        with self.browser.open(self.up.url + path, content, timeout=60) as answer:
            return answer.url

    def configure(self, slug: str, agent: str) -> None:
        led_to = self.send_page(f"/projects/{slug}/loop/", agent=agent, command="")
        assert led_to == f"{self.up.url}/projects/{slug}/"

    def told(self, slug: str, kind: str = "loop.") -> list[dict[str, Any]]:
        events = self.up.get(f"/api/events?since=0&kind={kind}&project={slug}")["events"]
        return [event for event in events if event["project"] == slug]

    def ends(self, slug: str) -> list[tuple[str, dict[str, Any]]]:
        """Return how the loops of a project were told to have ended: kind and payload."""
        return [(event["kind"], event["payload"]) for event in self.told(slug) if event["kind"] in ENDS]

    def only_end(self, slug: str) -> tuple[str, dict[str, Any]]:
        """Wait for the end of the only loop that a project had, let its files be looked at once more, and return it."""
        wait_for(lambda: self.ends(slug), WITHIN_S)
        self.look_again(slug)
        [end] = self.ends(slug)
        assert self.status(slug)["running"] is False
        return end

    def look_again(self, slug: str) -> None:
        """Wait until a project's files were looked at after now."""
        before = len(self.told(slug, "project.changed"))
        with (self.up.workspace / slug / "scripts/ralph/progress.txt").open("a") as progress:
            progress.write("one more line\n")
        wait_for(lambda: len(self.told(slug, "project.changed")) > before, WITHIN_S)

    def run(self, root: Path, *words: str) -> subprocess.Popen[bytes]:
        """Run a command of manage.py as somebody would in a terminal, in a session of its own."""
        argv = [sys.executable, str(ROOT / "manage.py"), *words]
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self.started.append(subprocess.Popen(argv, env=self.up.env, cwd=root, start_new_session=True, **quiet))
        return self.started[-1]

    def close(self) -> None:
        """Kill whatever works in the workspace: loops outlive Andon."""
        self.askers.shutdown(wait=False, cancel_futures=True)
        for _ in range(5):
            for seen in working(self.up.workspace):
                if ticks_of(seen.pid) == seen.ticks:
                    with contextlib.suppress(OSError):
                        os.kill(seen.pid, signal.SIGKILL)
        for process in self.started:
            process.kill()
            process.wait()
        wait_for(lambda: not working(self.up.workspace), 10)


@contextlib.contextmanager
def yard(up: Up) -> Iterator[Yard]:
    made = Yard(up)
    try:
        yield made
    finally:
        made.close()


class Opens:
    """Counts how often the files in some directories are opened or read, by anybody (inotify)."""

    IN_ACCESS, IN_OPEN = 0x1, 0x20
    IN_ISDIR = 0x40000000

    def __init__(self, *folders: Path) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.descriptor = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert self.descriptor >= 0
        for folder in folders:
            assert libc.inotify_add_watch(self.descriptor, os.fsencode(folder), self.IN_ACCESS | self.IN_OPEN) >= 0

    def take(self) -> list[str]:
        """Return the names of the files that were opened or read since the last call, each as often as it was."""
        names = []
        while True:
            try:
                found = os.read(self.descriptor, 1 << 16)
            except BlockingIOError:
                return names
            at = 0
            while at < len(found):
                _, mask, _, length = struct.unpack_from("iIII", found, at)
                if not mask & self.IN_ISDIR:
                    names.append(found[at + 16 : at + 16 + length].rstrip(b"\0").decode())
                at += 16 + length

    def close(self) -> None:
        os.close(self.descriptor)


class Reader:
    """One client of the status stream: `newest` is the data of its last `status`, byte for byte."""

    def __init__(self) -> None:
        self.newest = b""
        self.count = 0
        self.writer: asyncio.StreamWriter | None = None

    async def follow(self, port: int, token: str) -> None:
        reader, self.writer = await asyncio.open_connection("127.0.0.1", port, limit=1 << 24)
        # Of HTTP/1.0 the answer comes as it is, not in chunks.
        lines = ["GET /api/ralph/stream HTTP/1.0", f"Host: 127.0.0.1:{port}", f"Authorization: Bearer {token}"]
        self.writer.write(("\r\n".join(lines) + "\r\n\r\n").encode())
        event = b""
        while line := await reader.readline():
            if line.startswith(b"event: "):
                event = line[7:].strip()
            elif line.startswith(b"data: ") and event == b"status":
                self.newest = line[6:].strip()
                self.count += 1
