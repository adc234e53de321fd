"""A board that is not there: a little HTTP server on the loopback that answers as told and keeps what it heard."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

TOKEN = "andon_5ecret-T0ken"
CLI = Path(__file__).parents[2] / "kanban/andon_cli.py"


@dataclass
class Heard:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)

    @property
    def verb(self) -> str:
        return self.path.rpartition("/")[2]


@dataclass
class Answer:
    """`pieces` are written one by one, `pause_s` before each; a status of 0 closes the line without a word."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    pieces: list[bytes] | None = None
    pause_s: float = 0


@dataclass
class Loopback:
    """`script` is answered first, in order; then what `by_verb` says, else 200."""

    url: str
    heard: list[Heard] = field(default_factory=list)
    script: list[Answer] = field(default_factory=list)
    by_verb: dict[str, Answer] = field(default_factory=dict)

    def verbs(self) -> list[str]:
        return [each.verb for each in self.heard]

    def environ(self, **more: str) -> dict[str, str]:
        """Return what a worker finds in its environment."""
        return {
            "PATH": os.environ["PATH"],
            "ANDON_URL": self.url,
            "ANDON_TOKEN": TOKEN,
            "ANDON_TASK": "t_1a2b3c4d",
            "ANDON_RUN": "t_1a2b3c4d/3",
            "ANDON_CLI": str(CLI),
            **more,
        }

    def run(self, *words: str, input: bytes = b"", **more: str) -> "subprocess.CompletedProcess[bytes]":  # noqa: A002
        return subprocess.run(
            [sys.executable, str(CLI), *words],
            env=self.environ(**more),
            input=input,
            capture_output=True,
            check=False,
            timeout=60,
        )


@contextlib.contextmanager
def serving() -> Iterator[Loopback]:
    board = Loopback("")
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            heard = Heard(self.command, self.path, dict(self.headers), body)
            board.heard.append(heard)
            answer = board.script.pop(0) if board.script else board.by_verb.get(heard.verb, Answer())
            with contextlib.suppress(OSError):
                self.tell(answer)

        do_GET = do_POST  # noqa: N815 - http.server names it so

        def tell(self, answer: Answer) -> None:
            if not answer.status:
                self.close_connection = True
                return
            self.send_response(answer.status)
            for name, text in {"Content-Length": str(len(answer.body)), **answer.headers}.items():
                self.send_header(name, text)
            self.end_headers()
            for piece in answer.pieces or [answer.body]:
                released.wait(answer.pause_s)
                self.wfile.write(piece)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    board.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield board
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()
