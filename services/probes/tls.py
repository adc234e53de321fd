"""TLS over a non-blocking socket that stays ours."""

import contextlib
import functools
import socket
import ssl
from collections.abc import Callable
from typing import TypeVar

_PIECE = 16 * 1024
_T = TypeVar("_T")


class Tls:
    """A TLS client that verifies nothing: dev servers on loopback sign for themselves.

    Over memory, not by SSLContext.wrap_socket: of a connection that is reset meanwhile that one loses the descriptor.
    Each call reads the socket at most once, so that no peer can keep it busy; it raises SSLWantReadError or
    SSLWantWriteError when it is to be called again once the socket is ready for that, and OSError when it is broken.
    """

    def __init__(self, sock: socket.socket, name: str | None) -> None:
        """Speak over a connected socket, asking for a host's name; raises ValueError for one that TLS cannot carry."""
        self._sock = sock
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._object = _context().wrap_bio(self._incoming, self._outgoing, server_hostname=name)
        self._unsent = b""

    def do_handshake(self) -> None:
        """Go on with the handshake."""
        self._step(self._object.do_handshake)

    def send(self, content: bytes | memoryview) -> int:
        """Encrypt all of it; what does not leave now does so with the next call."""
        self._flush()
        written = self._object.write(content)
        with contextlib.suppress(ssl.SSLWantWriteError):
            self._flush()
        return written

    def recv(self, size: int) -> bytes:
        """Return what has arrived, decrypted; the end is b"" or an OSError."""
        return self._step(lambda: self._object.read(size))

    def _step(self, step: Callable[[], _T]) -> _T:
        self._flush()
        try:
            return step()
        except ssl.SSLWantReadError:
            self._flush()
        try:
            piece = self._sock.recv(_PIECE)
        except BlockingIOError:
            raise ssl.SSLWantReadError from None
        if piece:
            self._incoming.write(piece)
        else:
            self._incoming.write_eof()
        try:
            return step()
        except ssl.SSLWantReadError:
            self._flush()
            raise

    def _flush(self) -> None:
        self._unsent += self._outgoing.read()
        while self._unsent:
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                raise ssl.SSLWantWriteError from None
            self._unsent = self._unsent[sent:]


@functools.cache
def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context
