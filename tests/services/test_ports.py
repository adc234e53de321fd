"""Listeners as /proc/net/tcp and tcp6 show them."""

import contextlib
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from services.processes import Holder, ports
from services.processes.ports import listeners
from services.processes.proc import name_of

pytestmark = pytest.mark.pure

NAME = name_of(os.getpid())

Listen = Callable[..., socket.socket]


@pytest.fixture
def listen() -> Iterator[Listen]:
    with contextlib.ExitStack() as cleanup:

        def _listen(address: str = "127.0.0.1", port: int = 0) -> socket.socket:
            family = socket.AF_INET6 if ":" in address else socket.AF_INET
            server = cleanup.enter_context(socket.socket(family))
            if family == socket.AF_INET6:
                server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            server.bind((address, port))
            server.listen()
            return server

        yield _listen


def port_of(server: socket.socket) -> int:
    return server.getsockname()[1]


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0", "127.1.2.3", "::1", "::"])
def test_a_listener_is_found_on_any_address(listen: Listen, address: str) -> None:
    if ":" in address and not socket.has_dualstack_ipv6():
        pytest.skip("no IPv6 here")
    port, other = port_of(listen(address)), port_of(listen())
    assert listeners([port]) == {port: Holder(port, address, os.getpid(), NAME)}
    assert set(listeners({port, other})) == {port, other}


def test_what_does_not_listen_holds_nothing(listen: Listen) -> None:
    server = listen()
    port = port_of(server)
    with socket.create_connection(("127.0.0.1", port)) as client, server.accept()[0]:
        mine = client.getsockname()[1]
        assert listeners([mine]) == {}
        bound = socket.socket()
        bound.bind(("127.0.0.1", 0))
        with bound:
            assert listeners([port_of(bound)]) == {}
        server.close()
        assert listeners([port]) == {}, "a connection without a listener"


def test_time_wait_counts_for_nothing(listen: Listen) -> None:
    server = listen()
    port = port_of(server)
    client = socket.create_connection(("127.0.0.1", port))
    # Whoever closes first is left in TIME_WAIT.
    served = server.accept()[0]
    served.close()
    client.close()
    server.close()
    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", port))
    assert listeners([port]) == {}


def test_a_shared_socket_is_the_eldest_ones(listen: Listen) -> None:
    server = listen()
    child = subprocess.Popen(["/bin/sleep", "60"], pass_fds=[server.fileno()])
    try:
        port = port_of(server)
        assert listeners([port])[port].pid == min(child.pid, os.getpid())
        server.close()
        assert listeners([port]) == {port: Holder(port, "127.0.0.1", child.pid, name_of(child.pid))}
    finally:
        child.kill()
        child.wait()
    assert listeners([port]) == {}


@pytest.mark.skipif(os.geteuid() != 0, reason="needs another user")
def test_another_users_listener_has_no_pid(listen: Listen) -> None:
    port = port_of(listen())
    # Imported before: our files may be closed to that user.
    code = f"from services.processes import ports; import os; os.setuid(65534); print(ports.listeners([{port}]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == str({port: Holder(port, "127.0.0.1", None, "")})


def test_one_port_on_two_addresses_has_one_holder(listen: Listen) -> None:
    port = port_of(listen("127.0.0.1"))
    listen("127.0.0.2", port)
    found = listeners([port])
    assert found[port].pid == os.getpid()
    assert found[port].address in {"127.0.0.1", "127.0.0.2"}


def test_nobody_is_searched_when_nothing_listens(monkeypatch: pytest.MonkeyPatch, listen: Listen) -> None:
    server = listen()
    port = port_of(server)
    server.close()

    def searched() -> list[int]:
        raise AssertionError("no need")

    monkeypatch.setattr(ports, "pids", searched)
    assert listeners([port]) == {}
    assert listeners([]) == {}


def test_a_kernel_without_ipv6_but_none_without_proc(
    monkeypatch: pytest.MonkeyPatch, listen: Listen, tmp_path: Path
) -> None:
    port = port_of(listen())
    monkeypatch.setattr(ports, "_TABLES", ("/proc/net/tcp", str(tmp_path / "tcp6")))
    assert set(listeners([port])) == {port}
    monkeypatch.setattr(ports, "_TABLES", (str(tmp_path / "tcp"),))
    with pytest.raises(OSError):
        listeners([port])


def test_lines_that_are_no_listeners_are_passed_over(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "tcp").write_text(
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"
        "   0: 0100007F:0BB8 00000000:0000 0A 00000000:00000000 00:00000000 00000000  0  0 0 1 x 100 0 0 10 0\n"
        "   1: 0100007F:0BB9 0100007F:0BB8 01 00000000:00000000 00:00000000 00000000  0 0A 7 1 x 100 0 0 10 0\n"
        "   2: 0A 0A\n"
        "\n"
    )
    monkeypatch.setattr(ports, "_TABLES", (str(tmp_path / "tcp"),))
    assert listeners([3000, 3001]) == {3000: Holder(3000, "127.0.0.1", None, "")}


def test_a_name_is_printable(tmp_path: Path) -> None:
    path = tmp_path / "a\x1b[31m\nb\x07"
    path.symlink_to("/bin/sleep")
    child = subprocess.Popen([str(path), "60"])
    try:
        end = time.monotonic() + 20
        while name_of(child.pid) != "a\ufffd[31m\ufffdb\ufffd":
            assert time.monotonic() < end, name_of(child.pid)
            time.sleep(0.005)
    finally:
        child.kill()
        child.wait()
    assert name_of(child.pid) == ""
