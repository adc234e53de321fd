"""Where a webhook may go, and one POST to a server that may be anything."""

import contextlib
import hashlib
import hmac
import ipaddress
import socket
import time

import pytest

from kanban import webhooks
from kanban.webhooks import Failed, Unusable
from tests.kanban.endpoint import answer, endpoint

pytestmark = pytest.mark.pure
HERE = {"127.0.0.1", "localhost", "hook.test"}


@pytest.fixture
def server():
    with endpoint() as found:
        yield found


def post(url: str, body: bytes = b"{}", *, listed=HERE, within_s: float = 5.0, **headers: str) -> int:
    return webhooks.post(webhooks.endpoint(url), body, headers, listed=listed, within_s=within_s)


class TestAddress:
    @pytest.mark.parametrize(
        ("url", "host", "port", "path"),
        [
            ("https://Hooks.Example.org/a?b=c", "hooks.example.org", 443, "/a?b=c"),
            ("http://example.org", "example.org", 80, "/"),
            ("HTTP://example.org.:8080/x", "example.org", 8080, "/x"),
            ("https://[2001:db8:0::1]:8443/", "2001:db8::1", 8443, "/"),
        ],
    )
    def test_is_read(self, url, host, port, path):
        found = webhooks.endpoint(url)
        assert (found.host, found.port, found.path) == (host, port, path)

    @pytest.mark.parametrize(
        "url",
        [
            "",
            "example.org",
            "ftp://example.org/",
            "file:///etc/passwd",
            "https://",
            "https://user:pw@example.org/",
            "https://user@example.org/",
            "https://example.org/#x",
            "https://exa mple.org/",
            "https://example.org/\r\nHost: other",
            "https://example.org:99999/",
            "https://example.org:0/",
            "https://exämple.org/",
            "https://[::1%25eth0]/",
            "https://-.example.org/",
            "https://" + "a" * 1000 + "/",
        ],
    )
    def test_is_refused(self, url):
        with pytest.raises(Unusable):
            webhooks.endpoint(url)

    def test_shows_its_origin_without_the_path(self):
        assert webhooks.endpoint("https://hooks.example.org:8443/T0/5ecret").origin == "https://hooks.example.org:8443"
        assert webhooks.endpoint("http://[::1]:80/x").origin == "http://[::1]"

    @pytest.mark.parametrize(
        ("address", "is_public"),
        [
            ("93.184.216.34", True),
            ("2606:4700::1111", True),
            ("10.0.0.1", False),
            ("192.168.1.1", False),
            ("172.16.0.1", False),
            ("100.64.0.1", False),
            ("127.0.0.1", False),
            ("0.0.0.0", False),
            ("240.0.0.1", False),
            ("::1", False),
            ("fd00::1", False),
            ("fe80::1", False),
            ("fec0::1", False),
            ("64:ff9b::a00:1", False),
            ("2002:a00:1::1", False),
        ],
    )
    def test_is_public_or_not(self, address, is_public):
        assert webhooks.is_public(ipaddress.ip_address(address)) is is_public

    @pytest.mark.parametrize(
        "host", ["169.254.169.254", "224.0.0.1", "0.0.0.0", "168.63.129.16", "[fe80::1]", "[ff02::1]"]
    )
    def test_some_are_never_asked_though_they_are_listed(self, host):
        with pytest.raises(Unusable, match="never"):
            webhooks.check_literal(webhooks.endpoint(f"http://{host}/"), {host.strip("[]")})

    def test_private_ones_are_asked_only_when_listed(self):
        where = webhooks.endpoint("http://10.0.0.7/")
        with pytest.raises(Unusable, match="ANDON_WEBHOOK_HOSTS"):
            webhooks.check_literal(where, set())
        webhooks.check_literal(where, {"10.0.0.7"})
        webhooks.check_literal(webhooks.endpoint("http://intern.example/"), set())


class TestResolving:
    @pytest.mark.parametrize("text", ["127.0.0.1", "10.1.2.3", "169.254.169.254", "::ffff:127.0.0.1", "fe80::1%lo"])
    def test_a_name_that_leads_inside_is_refused(self, monkeypatch, text):
        family = socket.AF_INET6 if ":" in text else socket.AF_INET
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: [(family, 1, 6, "", (text, 80))])
        with pytest.raises(Failed, match=r"evil\.example"):
            post("http://evil.example/", listed=set())

    def test_one_bad_address_among_good_ones_is_enough(self, monkeypatch):
        rows = [(socket.AF_INET, 1, 6, "", (text, 80)) for text in ("93.184.216.34", "127.0.0.1")]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: rows)
        with pytest.raises(Failed, match=r"127\.0\.0\.1 is not a public address"):
            post("http://evil.example/", listed=set())

    def test_numbers_that_only_the_resolver_understands_are_judged_too(self):
        for host in ("2130706433", "127.1", "0x7f.1"):
            with pytest.raises(Failed, match="not a public address"):
                post(f"http://{host}/", listed=set())

    def test_a_name_is_asked_for_once(self, monkeypatch, server):
        asked = []

        def once(host, port, **_):
            asked.append(host)
            return [(socket.AF_INET, 1, 6, "", ("127.0.0.1" if len(asked) == 1 else "10.9.9.9", port))]

        monkeypatch.setattr(socket, "getaddrinfo", once)
        assert post(f"http://hook.test:{server.port}/x") == 200
        assert asked == ["hook.test"]
        assert server.heard[0].headers["host"] == f"hook.test:{server.port}"

    def test_a_silent_name_server_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: time.sleep(1.0) or [])
        started = time.monotonic()
        with pytest.raises(Failed, match="not resolved in time"):
            post("http://slow.example/", within_s=0.2)
        assert time.monotonic() - started < 0.9

    def test_an_unknown_name_is_said(self, monkeypatch):
        monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: (_ for _ in ()).throw(socket.gaierror()))
        with pytest.raises(Failed, match=r"no address for nowhere\.example"):
            post("http://nowhere.example/")


class TestPost:
    def test_says_what_it_is_and_ignores_proxies(self, server, monkeypatch):
        for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, "http://127.0.0.1:9/")
        assert post(server.url, b'{"a":1}', **{"X-One": "1"}) == 200
        [heard] = server.heard
        assert heard.line == "POST /hook?key=5ecret HTTP/1.1"
        assert heard.json == {"a": 1}
        assert heard.headers["content-type"] == "application/json"
        assert heard.headers["x-one"] == "1"

    def test_signs_the_time_and_the_body(self):
        wanted = hmac.new(b"key", b"17.{}", hashlib.sha256).hexdigest()
        assert webhooks.signature("key", 17, b"{}") == f"sha256={wanted}"

    def test_any_2xx_is_good(self, server):
        server.script += [answer(204), answer(202), b"HTTP/1.1 100 Continue\r\n\r\n" + answer(200)]
        assert [post(server.url) for _ in range(3)] == [204, 202, 200]

    def test_a_redirect_is_not_followed(self, server):
        server.script.append(answer(302, f"Location: http://127.0.0.1:{server.port}/other"))
        with pytest.raises(Failed, match="302; redirects are not followed") as caught:
            post(server.url)
        assert caught.value.status == 302
        assert len(server.heard) == 1

    @pytest.mark.parametrize(
        ("said", "reason"),
        [
            (answer(500), "answered 500"),
            (answer(404), "answered 404"),
            (b"", "closed without an answer"),
            (b"SSH-2.0-x\r\n", "not HTTP/1"),
            (b"HTTP/1.1 2", "closed in the middle"),
            (b"HTTP/1.1 200 OK\r\n" + b"X: " + b"y" * 70_000, "64 KiB"),
        ],
    )
    def test_anything_else_failed(self, server, said, reason):
        server.script.append(said)
        with pytest.raises(Failed, match=reason):
            post(server.url)

    def test_a_slow_server_is_left_at_the_deadline(self, server):
        def drip(sock):
            for _ in range(20):
                sock.sendall(b"H" if _ == 0 else b"T")
                time.sleep(0.1)

        server.script += [1.0, drip]
        for _ in range(2):
            started = time.monotonic()
            with pytest.raises(Failed):
                post(server.url, within_s=0.4)
            assert time.monotonic() - started < 0.9

    def test_a_drip_of_header_lines_is_left_at_the_deadline(self, server):
        def drip(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\n")
            for number in range(30):
                sock.sendall(b"X-%d: y\r\n" % number)
                time.sleep(0.1)

        server.script.append(drip)
        started = time.monotonic()
        with pytest.raises(Failed, match="no answer in time"):
            post(server.url, within_s=0.5)
        assert time.monotonic() - started < 1.0

    def test_a_huge_answer_is_not_read(self, server):
        sent = []

        def flood(sock):
            sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 100000000\r\n\r\n")
            for _ in range(1600):
                sock.sendall(b"x" * 65536)
                sent.append(65536)

        server.script.append(flood)
        started = time.monotonic()
        assert post(server.url) == 200
        assert time.monotonic() - started < 2
        time.sleep(0.2)
        assert sum(sent) < 20_000_000

    def test_nobody_there_is_said(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
        with pytest.raises(Failed, match="connection refused"):
            post(f"http://127.0.0.1:{port}/")

    def test_a_plain_server_speaks_no_tls(self, server):
        with pytest.raises(Failed, match="no TLS"):
            post(server.url.replace("http:", "https:"))

    def test_a_certificate_of_nobody_is_refused(self, tmp_path):
        import ssl
        import subprocess
        import threading

        pem = tmp_path / "c.pem"
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-keyout", str(pem), "-out", str(tmp_path / "c.crt")],
            check=True, capture_output=True,
        )  # fmt: skip
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "c.crt", pem)
        with socket.create_server(("127.0.0.1", 0)) as listener:

            def serve():
                sock, _ = listener.accept()
                with sock, contextlib.suppress(OSError):
                    context.wrap_socket(sock, server_side=True).close()

            thread = threading.Thread(target=serve)
            thread.start()
            with pytest.raises(Failed, match="no TLS: certificate verify failed"):
                post(f"https://127.0.0.1:{listener.getsockname()[1]}/")
            thread.join()
