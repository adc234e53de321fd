"""Probes against real servers and real programs, well and badly behaved."""

import contextlib
import itertools
import os
import resource
import shlex
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.probes import Check, Prober, Result, Streak, addresses, after, exchanges, is_down, is_up, next_delay, run
from services.probes.answers import MAX_HEAD, Head, Malformed
from services.processes import identify

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
PATH = {"PATH": os.environ["PATH"]}
LONG_S = 20.0
"""What no healthy case comes near, on a loaded machine either."""

Handle = Callable[[socket.socket], object]


class Server:
    """Serves each connection by `handle` in a thread of its own; `heard` are the requests that were read."""

    def __init__(self, listener: socket.socket, handle: Handle) -> None:
        self.listener = listener
        self.port = listener.getsockname()[1]
        self.heard: list[bytes] = []
        self.errors: list[OSError] = []
        self.done = threading.Event()
        self._handle = handle
        self._open: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def url(self, host: str = "127.0.0.1", path: str = "/", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    def close(self) -> None:
        self.done.set()
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self.listener.close()
        for each in self._open:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads[1:]:
            thread.join()
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            connection.settimeout(LONG_S)
            self._open.append(connection)
            thread = threading.Thread(target=self._serve, args=(connection,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            self._handle(connection)
        except OSError as error:
            self.errors.append(error)


@pytest.fixture
def serve() -> Iterator[Callable[..., Server]]:
    with contextlib.ExitStack() as stack:

        def make(handle: Handle | bytes, listener: socket.socket | None = None) -> Server:
            if isinstance(handle, bytes):
                handle = answering(handle)
            server = Server(listener or socket.create_server(("127.0.0.1", 0)), handle)
            stack.callback(server.close)
            return server

        yield make


@pytest.fixture
def prober() -> Iterator[Prober]:
    made = Prober()
    made.start()
    yield made
    made.stop()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port where the kernel takes connections and nobody ever reads them."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener.getsockname()[1]


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port that surely nobody listens on, on either loopback address."""
    four, six = both()
    yield four.getsockname()[1]
    four.close()
    six.close()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> Path:
    """A certificate that signs for itself, for another name and expired long ago, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "elsewhere.test")])
    long_ago = datetime(2001, 1, 1, tzinfo=UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(long_ago)
        .not_valid_after(long_ago + timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("tls") / "both.pem"
    plain = serialization.NoEncryption()
    pem = serialization.Encoding.PEM
    path.write_bytes(key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain) + made.public_bytes(pem))
    return path


class Heard:
    """Collects results; `wait` until so many have come."""

    def __init__(self) -> None:
        self.results: dict[object, Result] = {}
        self._came = threading.Condition()

    def __call__(self, key: object, result: Result) -> None:
        with self._came:
            assert key not in self.results
            self.results[key] = result
            self._came.notify_all()

    def wait(self, count: int = 1) -> dict[object, Result]:
        with self._came:
            assert self._came.wait_for(lambda: len(self.results) >= count, LONG_S), self.results
        return self.results

    def wait_for(self, key: object) -> Result:
        with self._came:
            assert self._came.wait_for(lambda: key in self.results, LONG_S), self.results
        return self.results[key]


def both() -> tuple[socket.socket, socket.socket]:
    """Bind one port on 127.0.0.1 and on ::1, listening on neither."""
    while True:
        four = socket.socket(socket.AF_INET)
        six = socket.socket(socket.AF_INET6)
        four.bind(("127.0.0.1", 0))
        try:
            six.bind(("::1", four.getsockname()[1]))
        except OSError:
            four.close()
            six.close()
        else:
            return four, six


def http(url: str, expect_status: int = 200, **fields: object) -> Check:
    return make(type="http", url=url, expect_status=expect_status, **fields)


def command(cmd: str, *args: str, expect_regex: str = "", cwd: str = "/", env: dict | None = None) -> Check:
    return make(
        type="command", cmd=cmd, args=list(args), shell=False, expect_regex=expect_regex, cwd=cwd, env=env or PATH
    )


def shell(script: str, **fields: object) -> Check:
    return command("sh", "-c", script, **fields)


def make(*, cwd: str = "/", env: dict | None = None, hosts: frozenset = frozenset(), **fields: object) -> Check:
    defaults = {"timeout_s": 60, "interval_s": 1, "period_s": 30, "failure_threshold": 3, "success_threshold": 1}
    return Check.from_spec({**defaults, **fields}, cwd=cwd, env=env or PATH, hosts=hosts)


def request_of(connection: socket.socket) -> bytes:
    request = b""
    while b"\r\n\r\n" not in request:
        piece = connection.recv(4096)
        if not piece:
            break
        request += piece
    return request


def answering(answer: bytes) -> Handle:
    def handle(connection: socket.socket) -> None:
        request_of(connection)
        connection.sendall(answer)
        connection.shutdown(socket.SHUT_WR)
        connection.recv(1)

    return handle


def wait_until(condition: Callable[[], object], why: str = "") -> None:
    until = time.monotonic() + LONG_S
    while not condition():
        assert time.monotonic() < until, why
        time.sleep(0.01)


def is_dead(pid: int) -> bool:
    return identify(pid, "here") is None


def written_pid(path: Path) -> int:
    wait_until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


class TestHttp:
    def test_the_status_that_is_expected(self, serve) -> None:
        server = serve(OK)
        result = run(http(server.url()), LONG_S)
        assert (result.ok, result.reason) == (True, "")
        assert 0 < result.took_ms < LONG_S * 1000

    def test_another_status(self, serve) -> None:
        server = serve(b"HTTP/1.1 500 Oh no\r\n\r\n")
        assert run(http(server.url()), LONG_S).reason == "answered 500, expected 200"

    def test_what_is_sent(self, serve) -> None:
        heard = []

        def handle(connection: socket.socket) -> None:
            heard.append(request_of(connection))
            connection.sendall(OK)

        server = serve(handle)
        assert run(http(server.url(path="/a b/%41?q=ü&r=\x7f#fragment")), LONG_S).ok
        line, *headers = heard[0].decode("ascii").split("\r\n")
        assert line == "GET /a%20b/%41?q=%C3%BC&r=%7F HTTP/1.1"
        assert f"Host: 127.0.0.1:{server.port}" in headers
        assert "Connection: close" in headers

    def test_no_redirect_is_followed(self, serve) -> None:
        visited = []
        target = serve(visited.append)
        moved = serve(b"HTTP/1.1 302 Found\r\nLocation: %s\r\n\r\n" % target.url().encode())
        assert run(http(moved.url()), LONG_S).reason == "answered 302, expected 200"
        assert run(http(moved.url(), 302), LONG_S).ok
        assert visited == []

    def test_no_proxy_is_asked(self, serve, monkeypatch) -> None:
        visited = []
        proxy = serve(visited.append)
        monkeypatch.setenv("http_proxy", proxy.url())
        monkeypatch.setenv("HTTP_PROXY", proxy.url())
        assert run(http(serve(OK).url()), LONG_S).ok
        assert visited == []

    def test_refused(self, free_port) -> None:
        result = run(http(f"http://127.0.0.1:{free_port}/"), LONG_S)
        assert (result.ok, result.reason) == (False, f"refused on 127.0.0.1:{free_port}")

    def test_refused_on_both_addresses(self, free_port) -> None:
        result = run(http(f"http://localhost:{free_port}/"), LONG_S)
        assert result.reason == f"refused on 127.0.0.1:{free_port}; refused on [::1]:{free_port}"

    @pytest.mark.parametrize(
        ("answer", "reason"),
        [
            (b"", "closed without an answer"),
            (b"HTTP/1.1 2", "closed in the middle of the answer"),
            (b"HTTP/1.1 100 Continue\r\n\r\n", "closed in the middle of the answer"),
            (b"SSH-2.0-OpenSSH_9.2\r\n", "the answer is not HTTP/1"),
            (b"\x00\xff\x15\x03\x01" * 100, "the answer is not HTTP/1"),
            (b"HTTP/2 200\r\n\r\n", "the answer is not HTTP/1"),
            (b"HTTP/1.1 2000 OK\r\n\r\n", "the answer is not HTTP/1"),
            (b"HTTP/1.1 -20 OK\r\n\r\n", "the answer is not HTTP/1"),
            (b"HTTP/1.1  200 OK\r\n\r\n", "the answer is not HTTP/1"),
            (b"HTTP/1.1 200 O\rK\r\n\r\n", "the answer is not HTTP/1"),
            (b"http/1.1 200 OK\r\n\r\n", "the answer is not HTTP/1"),
            (b"<html>200</html>", "the answer is not HTTP/1"),
            (b"HTTP/1.1 200 OK\r\nX: " + b"a" * 100_000, "the head of the answer is larger than 64 KiB"),
            (b"HTTP/1.1 100 Continue\r\n\r\n" * 4000 + OK, "the head of the answer is larger than 64 KiB"),
            (b"HTTP/1.1 101 Switching\r\n\r\n", "answered 101, expected 200"),
        ],
    )
    def test_wrong_answers(self, serve, answer: bytes, reason: str) -> None:
        result = run(http(serve(answer).url()), LONG_S)
        assert not result.ok
        assert result.reason.startswith(reason)

    @pytest.mark.parametrize(
        "answer",
        [
            b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + OK,
            b"HTTP/1.0 200\n\n",
            b"HTTP/1.1 200 OK\r\n",
            b"HTTP/1.1 200 \xff\x00\r\nX: " + b"a" * 60_000 + b"\r\n\r\nbody",
        ],
    )
    def test_right_answers(self, serve, answer: bytes) -> None:
        assert run(http(serve(answer).url()), LONG_S).reason == ""

    def test_an_interim_status_may_be_what_is_expected(self, serve) -> None:
        assert run(http(serve(b"HTTP/1.1 101 Switching\r\n\r\n").url(), 101), LONG_S).ok

    def test_a_reset_connection(self, serve) -> None:
        def reset(connection: socket.socket) -> None:
            request_of(connection)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        assert run(http(serve(reset).url()), LONG_S).reason.startswith("closed without an answer")

    def test_an_answer_before_the_request_was_read(self, serve) -> None:
        def eager(connection: socket.socket) -> None:
            connection.sendall(OK)
            connection.shutdown(socket.SHUT_WR)
            connection.recv(4096)

        assert run(http(serve(eager).url()), LONG_S).ok

    def test_never_answers(self, silent_port) -> None:
        result = run(http(f"http://127.0.0.1:{silent_port}/"), 0.3)
        assert (result.ok, result.reason) == (False, "no answer within 0.3 s")
        assert result.took_ms >= 300

    def test_a_drip_does_not_stretch_the_deadline(self, serve) -> None:
        def drip(connection: socket.socket) -> None:
            for byte in OK * 100:
                connection.sendall(bytes([byte]))
                if server.done.wait(0.1):
                    return

        server = serve(drip)
        result = run(http(server.url()), 0.8)
        assert result.reason == "no answer within 0.8 s"
        assert result.took_ms < LONG_S * 1000 / 4

    def test_the_body_is_not_waited_for_and_not_broken_off(self, serve) -> None:
        told, finished = threading.Event(), threading.Event()

        def slow_body(connection: socket.socket) -> None:
            request_of(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            assert told.wait(LONG_S)
            for _ in range(10):
                connection.sendall(b"x" * 1000)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(1) == b""
            finished.set()

        server = serve(slow_body)
        prober = Prober()
        prober.start()
        heard = Heard()
        assert prober.submit("a", http(server.url()), LONG_S, lambda *result: (heard(*result), told.set()))
        assert heard.wait()["a"].ok
        assert finished.wait(LONG_S)
        prober.stop()
        assert server.errors == []

    def test_an_endless_body_is_cut_off(self, serve, prober) -> None:
        sent = [0]

        def endless(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            request_of(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            while True:
                sent[0] += connection.send(b"x" * 65536)

        server = serve(endless)
        heard = Heard()
        prober.submit("a", http(server.url()), LONG_S, heard)
        assert heard.wait()["a"].ok
        wait_until(lambda: server.errors)
        assert sent[0] < 32 * 1024 * 1024

    def test_a_body_that_hangs_is_let_go(self, serve, prober) -> None:
        gone = threading.Event()

        def hang(connection: socket.socket) -> None:
            request_of(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n")
            connection.recv(1)
            gone.set()

        heard = Heard()
        prober.submit("a", http(serve(hang).url()), LONG_S, heard)
        assert heard.wait()["a"].ok
        assert prober.in_flight() == 0
        assert gone.wait(LONG_S)


class TestAddresses:
    def test_localhost_is_either(self, serve) -> None:
        four, six = both()
        four.listen()
        with six:
            assert run(http(serve(OK, four).url("localhost")), LONG_S).ok
        four, six = both()
        six.listen()
        with four:
            server = serve(OK, six)
            assert run(http(server.url("localhost")), LONG_S).ok
            assert run(http(server.url("[::1]")), LONG_S).ok
            assert run(http(server.url("app.localhost")), LONG_S).ok

    def test_silence_on_one_address_does_not_hide_the_other(self, serve) -> None:
        four, six = both()
        six.listen()
        four.listen()
        with four:
            assert run(http(serve(OK, six).url("localhost")), LONG_S).ok

    def test_a_wrong_answer_does_not_hide_the_right_one(self, serve) -> None:
        four, six = both()
        six.listen()
        four.listen()
        serve(b"HTTP/1.1 404 No\r\n\r\n", four)
        assert run(http(serve(OK, six).url("localhost")), LONG_S).ok

    def test_a_wrong_answer_says_more_than_a_refusal(self, serve) -> None:
        four, six = both()
        four.listen()
        with six:
            result = run(http(serve(b"HTTP/1.1 404 No\r\n\r\n", four).url("localhost")), LONG_S)
            assert result.reason == "answered 404, expected 200"

    @pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]"])
    def test_other_ways_to_write_loopback(self, serve, host: str) -> None:
        assert run(http(serve(OK).url(host)), LONG_S).ok

    @pytest.mark.parametrize(
        "host", ["0.0.0.0", "[::]", "10.1.2.3", "2852039166", "169.254.169.254", "[fe80::1%25lo]", "[::ffff:10.1.2.3]"]
    )
    def test_other_machines_are_not_asked(self, host: str) -> None:
        result = run(http(f"http://{host}:9/"), LONG_S)
        assert not result.ok
        assert "is not a loopback address" in result.reason

    @pytest.mark.parametrize(
        ("address", "alone", "listed"),
        [
            ("127.0.0.1", True, True),
            ("127.200.3.4", True, True),
            ("::1", True, True),
            ("::ffff:127.0.0.1", True, True),
            ("10.1.2.3", False, True),
            ("93.184.216.34", False, True),
            ("fd00::1", False, True),
            ("169.254.169.254", False, False),
            ("::ffff:169.254.169.254", False, False),
            ("fe80::1", False, False),
            ("fe80::1%lo", False, False),
            ("::1%lo", False, False),
            ("fd00:ec2::254", False, False),
            ("100.100.100.200", False, False),
            ("168.63.129.16", False, False),
            ("192.0.0.192", False, False),
            ("fd20:ce::254", False, False),
            ("64:ff9b::a9fe:a9fe", False, False),
            ("2002:a9fe:a9fe::1", False, False),
            ("2002:a00:1::1", False, True),
            ("0.0.0.0", False, False),
            ("::", False, False),
            ("224.0.0.1", False, False),
            ("ff02::1", False, False),
            ("nonsense", False, False),
            ("", False, False),
        ],
    )
    def test_what_is_allowed(self, address: str, alone: bool, listed: bool) -> None:
        assert addresses.is_allowed(address, listed=False) is alone
        assert addresses.is_allowed(address, listed=True) is listed

    def resolve_to(self, monkeypatch, *found: str) -> list[str]:
        asked = []

        def getaddrinfo(host: str, _port: None, **_: object) -> list:
            asked.append(host)
            return [
                (socket.AF_INET6 if ":" in each else socket.AF_INET, socket.SOCK_STREAM, 6, "", (each, 0))
                for each in found
            ]

        monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
        return asked

    def test_a_name_is_resolved_at_each_probe(self, serve, monkeypatch) -> None:
        server = serve(OK)
        check = http(server.url("app.test"))
        self.resolve_to(monkeypatch, "127.0.0.1")
        assert run(check, LONG_S).ok
        self.resolve_to(monkeypatch, "10.1.2.3")
        assert run(check, LONG_S).reason == "app.test is not a loopback address"

    def test_one_foreign_address_is_enough_to_refuse(self, serve, monkeypatch) -> None:
        server = serve(OK)
        self.resolve_to(monkeypatch, "127.0.0.1", "10.1.2.3")
        assert not run(http(server.url("app.test")), LONG_S).ok

    def test_a_listed_name_never_leads_to_metadata(self, monkeypatch) -> None:
        self.resolve_to(monkeypatch, "169.254.169.254")
        check = http("http://app.test/", hosts=frozenset({"app.test"}))
        assert run(check, LONG_S).reason == "app.test is not a loopback address"

    def test_a_name_without_address(self, monkeypatch) -> None:
        def getaddrinfo(*_: object, **__: object) -> list:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")

        monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
        assert run(http("http://app.test/"), LONG_S).reason == "no address for app.test"

    def test_a_silent_name_server_delays_nobody(self, serve, prober, monkeypatch) -> None:
        released = threading.Event()
        asked = []

        def getaddrinfo(host: str, *_: object, **__: object) -> list:
            asked.append(host)
            if host == "other.test":
                return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", 0))]
            released.wait(LONG_S * 2)
            return []

        monkeypatch.setattr(addresses.socket, "getaddrinfo", getaddrinfo)
        server = serve(OK)
        heard = Heard()
        try:
            for number in range(50):
                prober.submit(number, http("http://app.test/"), 0.5, heard)
            prober.submit("good", http(server.url()), LONG_S, heard)
            prober.submit("named", http(server.url("other.test")), LONG_S, heard)
            results = heard.wait(52)
        finally:
            released.set()
        assert {results["good"].ok, results["named"].ok} == {True}
        assert {results[number].reason for number in range(50)} == {"no answer within 0.5 s"}
        assert asked.count("app.test") == 1


class TestTls:
    def secured(self, certificate: Path, answer: bytes) -> Handle:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)

        def handle(connection: socket.socket) -> None:
            with context.wrap_socket(connection, server_side=True) as secure:
                request_of(secure)
                secure.sendall(answer)

        return handle

    @pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
    def test_self_signed_is_good_enough(self, serve, certificate, host: str) -> None:
        server = serve(self.secured(certificate, OK))
        assert run(http(server.url(host, scheme="https")), LONG_S).reason == ""

    def test_another_status(self, serve, certificate) -> None:
        server = serve(self.secured(certificate, b"HTTP/1.1 503 No\r\n\r\n" + b"x" * 200_000))
        assert run(http(server.url(scheme="https")), LONG_S).reason == "answered 503, expected 200"

    def test_no_tls_there(self, serve) -> None:
        server = serve(b"HTTP/1.1 400 Bad\r\n\r\n")

        def plain(connection: socket.socket) -> None:
            connection.recv(4096)
            connection.sendall(b"HTTP/1.1 400 Bad\r\n\r\n")

        server = serve(plain)
        reason = run(http(server.url(scheme="https")), LONG_S).reason
        assert reason == f"no TLS with 127.0.0.1:{server.port}: wrong version number"

    def test_a_handshake_that_hangs(self, silent_port) -> None:
        assert run(http(f"https://127.0.0.1:{silent_port}/"), 0.3).reason == "no answer within 0.3 s"

    def test_an_end_in_the_handshake(self, serve) -> None:
        def end(connection: socket.socket) -> None:
            connection.recv(4096)
            connection.shutdown(socket.SHUT_WR)

        result = run(http(serve(end).url(scheme="https")), LONG_S)
        assert result.reason.startswith("no TLS with 127.0.0.1:")

    def test_a_reset_in_the_handshake(self, serve) -> None:
        def reset(connection: socket.socket) -> None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()

        server = serve(reset)
        before = descriptors()
        for _ in range(20):
            reason = run(http(server.url(scheme="https")), LONG_S).reason
            assert reason.startswith(("no TLS with 127.0.0.1:", "cannot connect to 127.0.0.1:"))
        wait_until(lambda: descriptors() <= before)

    def test_plain_http_to_a_tls_port(self, serve, certificate) -> None:
        def handle(connection: socket.socket) -> None:
            with contextlib.suppress(ssl.SSLError):
                self.secured(certificate, OK)(connection)

        assert not run(http(serve(handle).url()), LONG_S).ok


class TestTcp:
    def test_either_address(self, serve, free_port) -> None:
        assert run(make(type="tcp", port=serve(lambda _: None).port), LONG_S).ok
        four, six = both()
        six.listen()
        with four:
            assert run(make(type="tcp", port=serve(lambda _: None, six).port), LONG_S).ok
        refused = run(make(type="tcp", port=free_port), LONG_S).reason
        assert refused == f"refused on 127.0.0.1:{free_port}; refused on [::1]:{free_port}"

    def test_a_full_backlog_is_no_answer(self) -> None:
        four, six = both()
        four.listen(0)
        with four, six, contextlib.ExitStack() as stack:
            for _ in range(3):
                filler = stack.enter_context(socket.socket())
                filler.setblocking(False)
                filler.connect_ex(four.getsockname())
            assert run(make(type="tcp", port=four.getsockname()[1]), 0.5).reason == "no answer within 0.5 s"

    def test_a_socket_that_met_itself(self, serve, monkeypatch) -> None:
        with socket.socket() as alone:
            alone.bind(("127.0.0.1", 0))
            alone.connect(alone.getsockname())
            assert exchanges._is_own_echo(alone)
        with socket.create_connection(("127.0.0.1", serve(lambda _: None).port)) as other:
            assert not exchanges._is_own_echo(other)
        monkeypatch.setattr(exchanges, "_is_own_echo", lambda _: True)
        assert run(make(type="tcp", port=serve(lambda _: None).port), LONG_S).reason.startswith("refused on")


class TestCommand:
    def test_code_and_output(self) -> None:
        assert run(shell("echo ready", expect_regex="^ready$"), LONG_S).reason == ""
        assert run(shell("echo ready >&2", expect_regex="rea"), LONG_S).ok
        assert run(shell("printf 'ready\\r\\n'", expect_regex="^ready$"), LONG_S).ok
        assert run(shell("echo no", expect_regex="ready"), LONG_S).reason == "output does not match"
        assert run(shell("echo ready; exit 1", expect_regex="ready"), LONG_S).reason == "exit code 1"
        assert run(shell("echo ready; kill -9 $$", expect_regex="ready"), LONG_S).reason == "ended by SIGKILL"

    def test_words_are_split_and_no_shell_runs(self) -> None:
        check = command(
            "printf '%s|' \"a  b\" $HOME", "c d", ";", "`id`", expect_regex=r"^a  b\|\$HOME\|c d\|;\|`id`\|$"
        )
        assert run(check, LONG_S).reason == ""

    def test_output_need_not_be_text(self) -> None:
        assert run(shell("printf '\\377\\000ok\\355\\240\\200'", expect_regex="�\x00ok�"), LONG_S).ok

    def test_its_environment_and_directory(self, tmp_path) -> None:
        os.environ["PROBE_LEAK"] = "1"
        try:
            check = shell("pwd; env", expect_regex=f"^{tmp_path}\n", cwd=str(tmp_path), env={**PATH, "X_ONE": "1"})
            assert run(check, LONG_S).ok
            check = shell("env", expect_regex="PROBE_LEAK", env=PATH)
            assert run(check, LONG_S).reason == "output does not match"
        finally:
            del os.environ["PROBE_LEAK"]

    def test_it_cannot_be_started(self, tmp_path) -> None:
        assert (
            run(command("no-such-program"), LONG_S).reason == "cannot start no-such-program: No such file or directory"
        )
        (tmp_path / "plain").write_text("")
        assert "Permission denied" in run(command(str(tmp_path / "plain")), LONG_S).reason
        missing = run(command("true", cwd=str(tmp_path / "gone")), LONG_S)
        assert missing.reason == "cannot start in its directory: No such file or directory"
        for check in (
            command("true", "a\x00b"),
            command("true", "\ud800"),
            command("true", env={**PATH, "A": "\x00"}),
            command("true", env={**PATH, "A=B": "1"}),
            command("true", cwd="/\x00"),
        ):
            assert not run(check, LONG_S).ok
        assert "too long" in run(command("true", "a" * 3_000_000), LONG_S).reason

    def test_no_secret_and_no_control_character_in_a_reason(self) -> None:
        secret = {**PATH, "X_SECRET": "hunter2"}
        assert run(shell("echo $X_SECRET; exit 3", env=secret), LONG_S).reason == "exit code 3"
        result = run(command(shlex.quote("x\n\x1b[31m\u202e" + "y" * 900), env=secret), LONG_S)
        assert result.reason.isprintable()
        assert len(result.reason) <= 300
        assert "hunter2" not in repr(shell("true", env=secret))

    def test_one_that_hangs_is_killed_with_its_children(self, tmp_path) -> None:
        script = f"sleep 1000 & echo $! > {tmp_path}/child; echo $$ > {tmp_path}/leader; trap '' TERM; wait"
        prober = Prober()
        prober.start()
        heard = Heard()
        prober.submit("a", shell(script), 1.0, heard)
        child, leader = written_pid(tmp_path / "child"), written_pid(tmp_path / "leader")
        assert heard.wait()["a"].reason == "no answer within 1 s"
        wait_until(lambda: is_dead(child))
        wait_until(lambda: not Path(f"/proc/{leader}").exists(), "reaped")
        wait_until(lambda: prober.in_flight() == 0)
        prober.stop()

    def test_what_it_leaves_behind_is_not_waited_for_and_killed(self, tmp_path) -> None:
        result = run(shell(f"sleep 1000 & echo $! > {tmp_path}/child; echo ready", expect_regex="^ready$"), LONG_S)
        assert result.ok
        assert result.took_ms < LONG_S * 1000
        child = written_pid(tmp_path / "child")
        wait_until(lambda: is_dead(child))

    def test_who_escaped_with_the_pipe_is_not_waited_for(self, tmp_path) -> None:
        script = f"setsid sh -c 'echo $$ > {tmp_path}/child; exec sleep 1000' & echo ready; sleep 1000"
        result = run(shell(script), 1.0)
        child = written_pid(tmp_path / "child")
        os.kill(child, 9)
        assert result.reason == "no answer within 1 s"
        assert result.took_ms < LONG_S * 1000 / 2

    def test_a_closed_output_is_not_looked_at_again_and_again(self) -> None:
        spent = time.process_time()
        assert run(shell("exec >&- 2>&-; sleep 1"), LONG_S).ok
        assert time.process_time() - spent < 0.5

    def test_a_flood_drowns_nobody(self, serve, prober) -> None:
        heard = Heard()
        server = serve(OK)
        prober.submit("flood", command("cat /dev/zero"), 1.0, heard)
        prober.submit("page", http(server.url()), LONG_S, heard)
        results = heard.wait(2)
        assert results["page"].ok
        assert results["page"].took_ms < 1000
        assert results["flood"].reason == "no answer within 1 s"

    def test_output_beyond_64_kib_passes_and_is_not_searched(self) -> None:
        script = "echo first; head -c 20000000 /dev/zero; echo last"
        assert run(shell(script, expect_regex="^first"), LONG_S).reason == ""
        assert run(shell(script, expect_regex="last"), LONG_S).reason == "output does not match"

    def test_a_slow_pattern_holds_up_nobody(self, serve, prober) -> None:
        ab = "import random; random.seed(1); print(''.join(random.choices('ab', k=65000)))"
        heard = Heard()
        prober.submit("bomb", command("python3", "-c", ab, expect_regex="[ab]*a[ab]{900}c"), LONG_S, heard)
        prober.submit("old bomb", shell("head -c 65000 /dev/zero | tr '\\0' x", expect_regex="(x+x+)+y"), LONG_S, heard)
        server = serve(OK)
        slowest = 0.0
        for number in range(200):
            prober.submit(number, http(server.url()), LONG_S, heard)
            slowest = max(slowest, heard.wait_for(number).took_ms)
            if {"bomb", "old bomb"} <= heard.results.keys():
                break
            time.sleep(0.01)
        results = heard.wait(2)
        wait_until(lambda: {"bomb", "old bomb"} <= results.keys())
        assert {results["bomb"].reason, results["old bomb"].reason} == {"output does not match"}
        assert slowest < LONG_S * 1000 / 4


class TestProber:
    def test_one_probe_of_a_service_at_a_time(self, silent_port, prober) -> None:
        heard = Heard()
        check = http(f"http://127.0.0.1:{silent_port}/")
        assert prober.submit("a", check, 0.3, heard)
        assert not prober.submit("a", check, 0.3, heard)
        assert prober.submit("b", check, 0.3, heard)
        assert prober.in_flight() == 2
        heard.wait(2)
        assert prober.in_flight() == 0

    def test_the_next_may_be_submitted_from_the_result(self, serve, prober) -> None:
        server, results, done = serve(OK), [], threading.Event()

        def again(key: object, result: Result) -> None:
            results.append(result.ok)
            if len(results) == 5:
                done.set()
            else:
                assert prober.submit(key, check, LONG_S, again)

        check = http(server.url())
        assert prober.submit("a", check, LONG_S, again)
        assert done.wait(LONG_S)
        assert results == [True] * 5

    def test_500_that_hang_beside_a_good_one(self, serve, silent_port, prober) -> None:
        heard = Heard()
        check = http(f"http://127.0.0.1:{silent_port}/")
        for number in range(500):
            assert prober.submit(number, check, LONG_S, heard)
        for number in range(10):
            prober.submit(("hanging", number), command("sleep 1000"), LONG_S, heard)
        assert prober.submit("good", http(serve(OK).url()), LONG_S, heard)
        result = heard.wait()["good"]
        assert result.ok
        assert result.took_ms < 2000
        assert prober.in_flight() == 510

    def test_an_answer_in_time_counts_though_we_are_late(self, serve, prober) -> None:
        def soon(connection: socket.socket) -> None:
            request_of(connection)
            time.sleep(0.1)
            connection.sendall(OK)

        heard = Heard()
        assert prober.submit("late", http(serve(soon).url()), 0.5, heard)
        assert prober.submit("wait", http(serve(OK).url()), LONG_S, lambda *_: time.sleep(1.0))
        result = heard.wait()["late"]
        assert (result.reason, result.ok) == ("", True)

    def test_cancel(self, serve, silent_port, prober, tmp_path) -> None:
        heard, silence = Heard(), Heard()
        hanging = http(f"http://127.0.0.1:{silent_port}/")
        prober.submit("page", hanging, 0.6, silence)
        prober.submit("program", shell(f"echo $$ > {tmp_path}/pid; exec sleep 1000"), LONG_S, silence)
        pid = written_pid(tmp_path / "pid")
        for key in ("page", "program", "nobody"):
            prober.cancel(key)
        assert prober.in_flight() == 0
        good = http(serve(OK).url())
        assert prober.submit("page", good, LONG_S, heard)
        assert prober.submit("never began", hanging, LONG_S, silence)
        prober.cancel("never began")
        assert heard.wait()["page"].ok
        wait_until(lambda: not Path(f"/proc/{pid}").exists())
        prober.submit("later", hanging, 0.8, heard)
        heard.wait(2)
        assert silence.results == {}

    def test_stop_leaves_nothing(self, silent_port, serve, tmp_path) -> None:
        def hang(connection: socket.socket) -> None:
            request_of(connection)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            connection.recv(1)

        server = serve(hang)
        before, threads = descriptors(), threading.active_count()
        prober, silence, heard = Prober(), Heard(), Heard()
        prober.start()
        prober.start()
        assert prober.submit("lingering", http(server.url()), LONG_S, heard)
        heard.wait()
        for number in range(5):
            prober.submit(number, http(f"http://127.0.0.1:{silent_port}/"), LONG_S, silence)
            prober.submit(("tls", number), http(f"https://127.0.0.1:{silent_port}/"), LONG_S, silence)
            script = f"sleep 1000 & echo $! > {tmp_path}/child{number}; echo $$ > {tmp_path}/leader{number}; wait"
            prober.submit(("program", number), shell(script), LONG_S, silence)
        leaders = [written_pid(tmp_path / f"leader{number}") for number in range(5)]
        children = [written_pid(tmp_path / f"child{number}") for number in range(5)]
        started = time.monotonic()
        prober.stop()
        assert time.monotonic() - started < LONG_S
        assert [pid for pid in leaders if Path(f"/proc/{pid}").exists()] == []
        wait_until(lambda: all(map(is_dead, children)))
        assert silence.results == {}
        assert prober.in_flight() == 0
        assert not prober.submit("a", http(server.url()), LONG_S, silence)
        prober.stop()
        server.close()
        wait_until(lambda: threading.active_count() <= threads)
        assert descriptors() <= before

    def test_it_rests_when_nothing_is_due(self, silent_port, serve, prober) -> None:
        heard = Heard()
        prober.submit("good", http(serve(OK).url()), LONG_S, heard)
        prober.submit("hanging", http(f"http://127.0.0.1:{silent_port}/"), LONG_S, heard)
        prober.submit("program", command("sleep 1000"), LONG_S, heard)
        heard.wait()
        spent = time.process_time()
        time.sleep(0.6)
        assert time.process_time() - spent < 0.3

    def test_start_again(self, serve) -> None:
        server, prober = serve(OK), Prober()
        check = http(server.url())
        assert not prober.submit("a", check, LONG_S, Heard())
        for _ in range(3):
            heard = Heard()
            prober.start()
            assert prober.submit("a", check, LONG_S, heard)
            assert heard.wait()["a"].ok
            prober.stop()

    def test_nothing_leaks_over_many_probes_from_many_threads(self, serve, free_port, prober) -> None:
        server = serve(OK)
        checks = [
            http(server.url()),
            http(server.url("localhost")),
            http(f"http://127.0.0.1:{free_port}/"),
            make(type="tcp", port=free_port),
            command("true"),
        ]
        heard = Heard()
        prober.submit("warm", command("true"), LONG_S, heard)
        heard.wait()
        before = descriptors()
        counts = [0] * 4

        def submit(thread: int) -> None:
            for number in range(60):
                key = (thread, number)
                assert prober.submit(key, checks[number % len(checks)], LONG_S, heard)
                if number % 7 == 0:
                    prober.cancel(key)
                else:
                    counts[thread] += 1

        threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        results = heard.wait(1 + sum(counts))
        wait_until(lambda: prober.in_flight() == 0)
        good = {key for key, result in results.items() if result.ok}
        assert all((key[1] % 5 in {0, 1, 4}) == (key in good) for key in results if isinstance(key, tuple))
        server.close()
        wait_until(lambda: descriptors() <= before, "descriptors leak")

    def test_a_listener_that_fails_does_not_stop_the_prober(self, serve, prober, caplog) -> None:
        def fail(_key: object, _result: Result) -> None:
            raise RuntimeError("broken")

        server, heard = serve(OK), Heard()
        prober.submit("a", http(server.url()), LONG_S, fail)
        wait_until(lambda: caplog.records)
        assert prober.submit("a", http(server.url()), LONG_S, heard)
        assert heard.wait()["a"].ok

    def test_without_descriptors_it_fails_and_lives_on(self, silent_port, prober) -> None:
        heard = Heard()
        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
        taken = []
        try:
            with contextlib.suppress(OSError):
                while True:
                    taken.append(os.dup(0))
            for left in range(5):
                prober.submit(("program", left), command("true"), LONG_S, heard)
                prober.submit(("page", left), make(type="tcp", port=silent_port), LONG_S, heard)
                heard.wait(2 * left + 2)
                os.close(taken.pop())
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            for fd in taken:
                os.close(fd)
        assert "Too many open files" in heard.results["page", 0].reason
        assert "Too many open files" in heard.results["program", 0].reason
        prober.submit("program", command("true"), LONG_S, heard)
        assert heard.wait_for("program").ok
        assert heard.results["page", 4].ok

    @pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
    def test_a_deadline_is_positive_and_finite(self, prober, seconds: float) -> None:
        with pytest.raises(ValueError):
            prober.submit("a", command("true"), seconds, Heard())


class TestCheck:
    @pytest.mark.parametrize(
        "fields",
        [
            {"type": "carrier pigeon"},
            {"type": "http", "expect_status": 200},
            {"type": "http", "url": None, "expect_status": 200},
            {"type": "http", "url": "ftp://localhost/", "expect_status": 200},
            {"type": "http", "url": "http:///path", "expect_status": 200},
            {"type": "http", "url": "http://u:p@localhost/", "expect_status": 200},
            {"type": "http", "url": "http://localhost:0/", "expect_status": 200},
            {"type": "http", "url": "http://localhost:99999/", "expect_status": 200},
            {"type": "http", "url": "http://local host/", "expect_status": 200},
            {"type": "http", "url": "http://[::1/", "expect_status": 200},
            {"type": "http", "url": "http://localhost/\ud800", "expect_status": 200},
            {"type": "http", "url": "http://" + "a" * 300 + "/", "expect_status": 200},
            {"type": "tcp", "port": 0},
            {"type": "tcp", "port": "many"},
            {"type": "command", "cmd": "", "expect_regex": "x"},
            {"type": "command", "cmd": "'open", "expect_regex": "x"},
            {"type": "command", "cmd": "true", "expect_regex": "(?=x)"},
            {"type": "command", "cmd": "true", "expect_regex": "\ud800"},
        ],
    )
    def test_what_cannot_be_probed(self, fields: dict) -> None:
        with pytest.raises(ValueError):
            make(**fields)

    @settings(max_examples=150, deadline=None)
    @given(st.text(max_size=40) | st.from_regex(r"https?://[\w.:\[\]@%-]{0,20}(/.*)?", fullmatch=True))
    def test_any_url_is_one_request_or_a_value_error(self, url: str) -> None:
        try:
            request = http(url).what.request
        except ValueError:
            return
        assert request.isascii()
        assert request.count(b"\r\n") == 7
        assert request.endswith(b"\r\n\r\n")
        assert len(request.split(b"\r\n")[0].split(b" ")) == 3

    def test_defaults(self) -> None:
        check = Check.from_spec({"type": "tcp", "port": 80, "timeout_s": 9}, cwd="/", env={}, hosts=frozenset())
        numbers = (check.timeout_s, check.interval_s, check.period_s, check.failure_threshold, check.success_threshold)
        assert numbers == (9, 1, 30, 3, 1)


class TestHead:
    @settings(max_examples=150, deadline=None)
    @given(
        st.sampled_from(
            [
                OK,
                b"HTTP/1.1 100 C\r\n\r\nHTTP/1.1 204 No\r\nA: b\r\n\r\n",
                b"HTTP/1.0 404\n\nbody\n\nbody",
                b"HTTP/1.1 102 P\nX: y\n\nHTTX/1.1 200 OK\r\n\r\n",
                b"HTTP/1.1 200 OK\r\nX: y\r\n",
                b"nothing of the kind",
            ]
        ),
        st.lists(st.integers(0, 60), max_size=10),
    )
    def test_how_it_is_cut_up_changes_nothing(self, answer: bytes, cuts: list[int]) -> None:
        def read(pieces: list[bytes]) -> object:
            head = Head(200)
            try:
                for piece in pieces:
                    if (status := head.feed(piece)) is not None:
                        return status
                return head.finish()
            except Malformed as why:
                return str(why)

        edges = sorted({0, len(answer), *(min(cut, len(answer)) for cut in cuts)})
        assert read([answer[a:b] for a, b in itertools.pairwise(edges)]) == read([answer])

    def test_a_head_that_is_too_large_in_one_piece(self) -> None:
        with pytest.raises(Malformed):
            Head(200).feed(b"HTTP/1.1 200 OK\r\nX: " + b"a" * MAX_HEAD + b"\r\n\r\n")
        assert Head(200).feed(b"HTTP/1.1 200 OK\r\n\r\n" + b"a" * MAX_HEAD) == 200

    def test_byte_by_byte_is_cheap(self) -> None:
        head = Head(200)
        start = b"HTTP/1.1 200 OK\r\nX: "
        assert head.feed(start) is None
        started = time.process_time()
        for number in range(MAX_HEAD - len(start)):
            head.feed(b"a\n"[number % 2 :][:1])
        with pytest.raises(Malformed):
            head.feed(b"a")
        assert time.process_time() - started < 2


class TestStreaks:
    def test_thresholds(self) -> None:
        streak = Streak()
        assert not is_down(streak, 1)
        assert not is_up(streak, 1)
        downs, ups = [], []
        for ok in (False, False, True, False, False, False, True, True):
            streak = after(streak, ok=ok)
            downs.append(is_down(streak, 3))
            ups.append(is_up(streak, 2))
        assert downs == [False] * 5 + [True, False, False]
        assert ups == [False] * 7 + [True]

    def test_jitter(self) -> None:
        delays = [next_delay(30, jitter) for jitter in (0, 0.5, 1, -5, 7)]
        assert delays == pytest.approx([27, 30, 33, 27, 33])
