"""Probes over sockets: http, https and tcp, to each address a host has until one answers as expected."""

import errno
import os
import select
import socket
import ssl
import time
from collections import deque
from enum import Enum, auto

from services.probes.addresses import LOOPBACK, MAX_ADDRESSES, Address, is_allowed, literal
from services.probes.answers import Head, Malformed
from services.probes.checks import Http, Tcp
from services.probes.flights import Flight
from services.probes.loop import Timer
from services.probes.tls import Tls

MAX_BODY = 64 * 1024
_PIECE = 16 * 1024
_NEXT_ADDRESS_S = 0.25
_LINGER_S = 1.0

# How much a failure tells of the service: nobody there, nobody answers, a wrong answer.
_ABSENT, _SILENT, _WRONG = range(3)


class Exchange:
    """One http or tcp probe.

    The addresses are tried in turn: the next one when the last has failed, or has not answered for 250 ms. What has
    answered is read on for a moment, up to 64 KiB and one second, with the probe over already: a server that writes
    to a connection closed in its face would fill its log with broken pipes.
    """

    def __init__(self, flight: Flight, what: Http | Tcp) -> None:
        """Carry out `what` for a flight."""
        self.flight = flight
        self.what = what
        self._pending: deque[Address] = deque()
        self._dials: set[_Dial] = set()
        self._failures: list[tuple[int, str]] = []
        self._timer: Timer | None = None
        self._settled = False

    def begin(self) -> None:
        """Start with the first address, or with the look-up of the name."""
        if isinstance(self.what, Tcp):
            self._pending.extend(LOOPBACK)
            self._next()
            return
        found = literal(self.what.host)
        if found is None:
            self.flight.lookups.ask(self.what.host, self._resolved)
        else:
            self._resolved(found)

    def expire(self, reason: str) -> None:
        """Give up; a wrong answer at one address says more than silence at another."""
        self._failures.append((_SILENT, reason))
        self._fail()
        self.close()

    def close(self) -> None:
        """Close every connection."""
        self._settled = True
        for dial in tuple(self._dials):
            dial.close()
        if self._timer is not None:
            self._timer.cancel()
        self.flight.land()

    def accept(self) -> None:
        """One address answered as expected."""
        self._settle(ok=True)

    def miss(self, rank: int, reason: str) -> None:
        """One address failed; go on to the next, or fail when there is none."""
        if self._settled:
            return
        self._failures.append((rank, reason))
        if self._pending:
            # Opening waits until the present events are through (see Loop).
            self.flight.loop.soon(self._next)
        elif not any(dial.is_open_question for dial in self._dials):
            self._fail()

    def closed(self, dial: "_Dial") -> None:
        """A connection was closed."""
        self._dials.discard(dial)
        if self._settled and not self._dials:
            self.close()

    def _resolved(self, found: tuple[Address, ...]) -> None:
        if self._settled or not isinstance(self.what, Http):
            return
        if not found:
            self._settle(ok=False, reason=f"no address for {self.what.host}")
        elif not all(is_allowed(address, listed=self.what.listed) for _, address in found):
            self._settle(ok=False, reason=f"{self.what.host} is not a loopback address")
        else:
            self._pending.extend(found[:MAX_ADDRESSES])
            self._next()

    def _next(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._settled or not self._pending:
            return
        family, address = self._pending.popleft()
        if self._pending:
            self._timer = self.flight.loop.at(time.monotonic() + _NEXT_ADDRESS_S, self._next)
        dial = _Dial(self, self.what)
        self._dials.add(dial)
        dial.open(family, address)

    def _fail(self) -> None:
        best = max(rank for rank, _ in self._failures)
        reasons = dict.fromkeys(reason for rank, reason in self._failures if rank == best)
        self._settle(ok=False, reason="; ".join(reasons))

    def _settle(self, *, ok: bool, reason: str = "") -> None:
        if self._settled:
            return
        self._settled = True
        for dial in tuple(self._dials):
            if not dial.is_lingering:
                dial.close()
        if self._timer is not None:
            self._timer.cancel()
        if self._dials:
            self._timer = self.flight.loop.at(time.monotonic() + _LINGER_S, self.close)
        else:
            self.flight.land()
        self.flight.leave()
        self.flight.settle(ok=ok, reason=reason)


class _Phase(Enum):
    CONNECTING = auto()
    SHAKING_HANDS = auto()
    SENDING = auto()
    READING = auto()
    LINGERING = auto()
    CLOSED = auto()


class _Dial:
    """One connection to one address."""

    __slots__ = (
        "_events",
        "_exchange",
        "_fd",
        "_head",
        "_left",
        "_phase",
        "_place",
        "_sock",
        "_stream",
        "_to_send",
        "_what",
    )

    def __init__(self, exchange: Exchange, what: Http | Tcp) -> None:
        self._exchange = exchange
        self._what = what
        self._phase = _Phase.CLOSED
        self._fd = -1
        self._events = 0
        self._place = ""
        self._left = MAX_BODY
        self._sock: socket.socket
        self._stream: socket.socket | Tls
        self._head: Head
        self._to_send: memoryview

    @property
    def is_lingering(self) -> bool:
        return self._phase is _Phase.LINGERING

    @property
    def is_open_question(self) -> bool:
        return self._phase not in {_Phase.LINGERING, _Phase.CLOSED}

    def open(self, family: socket.AddressFamily, address: str) -> None:
        port = self._what.port
        self._place = f"{address}:{port}" if family == socket.AF_INET else f"[{address}]:{port}"
        try:
            self._sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        except OSError as error:
            self._exchange.closed(self)
            self._exchange.miss(_ABSENT, _unreachable(error.errno, self._place))
            return
        self._fd = self._sock.fileno()
        self._phase = _Phase.CONNECTING
        error_number = self._sock.connect_ex((address, port))
        if error_number == 0:
            self._connected()
        elif error_number == errno.EINPROGRESS:
            self._wait_for(select.EPOLLOUT)
        else:
            self._missed(_ABSENT, _unreachable(error_number, self._place))

    def close(self) -> None:
        if self._phase is not _Phase.CLOSED:
            self._phase = _Phase.CLOSED
            self._exchange.flight.loop.forget(self._fd)
            self._sock.close()
            self._exchange.closed(self)

    def ready(self, _events: int) -> None:
        match self._phase:
            case _Phase.CONNECTING:
                error_number = self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                if error_number:
                    self._missed(_ABSENT, _unreachable(error_number, self._place))
                else:
                    self._connected()
            case _Phase.SHAKING_HANDS:
                self._shake_hands()
            case _Phase.SENDING:
                self._send()
            case _Phase.READING:
                self._read()
            case _Phase.LINGERING:
                self._linger()
            case _Phase.CLOSED:
                pass

    def _connected(self) -> None:
        if isinstance(self._what, Tcp):
            if _is_own_echo(self._sock):
                self._missed(_ABSENT, f"refused on {self._place}")
            else:
                self.close()
                self._exchange.accept()
            return
        self._head = Head(self._what.expect_status)
        self._to_send = memoryview(self._what.request)
        self._stream = self._sock
        if self._what.tls:
            name = self._what.host if literal(self._what.host) is None else None
            try:
                self._stream = Tls(self._sock, name)
            except (OSError, ValueError) as error:
                self._missed(_WRONG, _tls(error, self._place))
                return
            self._phase = _Phase.SHAKING_HANDS
            self._shake_hands()
        else:
            self._phase = _Phase.SENDING
            self._send()

    def _shake_hands(self) -> None:
        try:
            if isinstance(self._stream, Tls):
                self._stream.do_handshake()
        except ssl.SSLWantReadError:
            self._wait_for(select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._wait_for(select.EPOLLOUT)
        except (OSError, ValueError) as error:
            self._missed(_WRONG, _tls(error, self._place))
        else:
            self._phase = _Phase.SENDING
            self._send()

    def _send(self) -> None:
        try:
            sent = self._stream.send(self._to_send)
        except (BlockingIOError, ssl.SSLWantWriteError):
            self._wait_for(select.EPOLLOUT)
            return
        except ssl.SSLWantReadError:
            self._wait_for(select.EPOLLIN)
            return
        except OSError:
            # It may have answered and closed before it read us to the end.
            sent = len(self._to_send)
        self._to_send = self._to_send[sent:]
        if self._to_send:
            self._wait_for(select.EPOLLOUT)
        else:
            self._phase = _Phase.READING
            self._wait_for(select.EPOLLIN)

    def _read(self) -> None:
        while self._phase is _Phase.READING:
            piece = self._receive()
            if piece is None:
                return
            try:
                status = self._head.feed(piece) if piece else self._head.finish()
            except Malformed as why:
                self._missed(_WRONG, f"{why} ({self._place})")
                return
            if status is not None:
                self._judge(status, ended=not piece)

    def _judge(self, status: int, *, ended: bool) -> None:
        if ended:
            self.close()
        else:
            self._phase = _Phase.LINGERING
        if status == self._head.expected:
            self._exchange.accept()
        else:
            self._exchange.miss(_WRONG, f"answered {status}, expected {self._head.expected}")

    def _linger(self) -> None:
        piece = self._receive()
        if piece is not None:
            self._left -= len(piece)
            if not piece or self._left <= 0:
                self.close()

    def _receive(self) -> bytes | None:
        """Return what has arrived, None when nothing has, b"" at the end or when the connection broke."""
        try:
            return self._stream.recv(_PIECE)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._wait_for(select.EPOLLIN)
        except ssl.SSLWantWriteError:
            self._wait_for(select.EPOLLOUT)
        except OSError:
            return b""
        return None

    def _wait_for(self, events: int) -> None:
        loop = self._exchange.flight.loop
        if self._events == 0:
            loop.watch(self._fd, events, self.ready)
        elif self._events != events:
            loop.change(self._fd, events)
        self._events = events

    def _missed(self, rank: int, reason: str) -> None:
        self.close()
        self._exchange.miss(rank, reason)


def _unreachable(error_number: int | None, place: str) -> str:
    if error_number == errno.ECONNREFUSED:
        return f"refused on {place}"
    return f"cannot connect to {place}: {os.strerror(error_number or 0)}"


def _tls(error: Exception, place: str) -> str:
    why = getattr(error, "reason", None) or "the connection broke"
    return f"no TLS with {place}: {str(why).replace('_', ' ').lower()}"


def _is_own_echo(sock: socket.socket) -> bool:
    """Tell whether the socket is connected to itself.

    With nobody listening on a port of the ephemeral range, connect(2) may choose that very port for its own end.
    """
    try:
        return bool(sock.getsockname() == sock.getpeername())
    except OSError:
        return False
