"""A webhook's receiver on the loopback: answers as told, keeps what it heard, speaks raw HTTP so as to misbehave."""

import contextlib
import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok"


def answer(status: int, *headers: str) -> bytes:
    lines = "".join(f"{line}\r\n" for line in headers)
    return f"HTTP/1.1 {status} X\r\n{lines}Content-Length: 0\r\n\r\n".encode()


@dataclass
class Heard:
    line: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> dict:
        return json.loads(self.body)


@dataclass
class Endpoint:
    """`script` is answered first, in order, then 200; a number waits so many seconds, bytes are written as they are."""

    port: int
    heard: list[Heard] = field(default_factory=list)
    script: list[object] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook?key=5ecret"

    def serve(self, sock: socket.socket) -> None:
        with sock, contextlib.suppress(OSError):
            sock.settimeout(10)
            received = b""
            while b"\r\n\r\n" not in received:
                piece = sock.recv(65536)
                if not piece:
                    return
                received += piece
                if not received.startswith(b"POST"):
                    sock.sendall(answer(400))
                    return
            head, _, body = received.partition(b"\r\n\r\n")
            line, *rows = head.decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (row.partition(": ") for row in rows)}
            while len(body) < int(headers.get("content-length", 0)):
                body += sock.recv(65536)
            self.heard.append(Heard(line, headers, body))
            say = self.script.pop(0) if self.script else OK
            if isinstance(say, float | int):
                time.sleep(say)
            elif callable(say):
                say(sock)
            else:
                sock.sendall(say)


@contextlib.contextmanager
def endpoint() -> Iterator[Endpoint]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        found = Endpoint(listener.getsockname()[1])
        stopped = threading.Event()
        listener.settimeout(0.1)
        threads: list[threading.Thread] = []

        def accept() -> None:
            while not stopped.is_set():
                with contextlib.suppress(TimeoutError):
                    sock, _ = listener.accept()
                    threads.append(threading.Thread(target=found.serve, args=(sock,)))
                    threads[-1].start()

        acceptor = threading.Thread(target=accept)
        acceptor.start()
        yield found
        stopped.set()
        acceptor.join()
        for thread in threads:
            thread.join(15)
